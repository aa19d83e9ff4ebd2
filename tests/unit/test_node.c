/* Three whole nodes in one process, without a front: real log, store, transport and threads.
 * What is asserted here is the node's face (server/node.h); real processes that are killed are
 * tests/cluster's. */
#include "base/clock.h"
#include "base/log.h"
#include "server/node_host.h"
#include "server/node_internal.h"

#include <arpa/inet.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <ftw.h>

#include <cmocka.h>

#define NODES   3
#define WAIT_MS 20000

struct cluster {
    char dir[64];
    struct node_seed_member seeds[NODES];
    struct node *node[NODES];
};

/* --- Waiting for a callback ------------------------------------------------------------------ */

struct answer {
    pthread_mutex_t lock;
    pthread_cond_t cond;
    int outstanding;
    enum krd_status status;   /* of the last one that was not OK, else KRD_OK */
    struct kv_result *result; /* of the last write */
};
#define ANSWER_INIT                                                         \
    {                                                                       \
        .lock = PTHREAD_MUTEX_INITIALIZER, .cond = PTHREAD_COND_INITIALIZER \
    }

static void answer_expect(struct answer *a)
{
    pthread_mutex_lock(&a->lock);
    a->outstanding++;
    pthread_mutex_unlock(&a->lock);
}

static void on_answer(void *arg, enum krd_status st)
{
    struct answer *a = arg;
    pthread_mutex_lock(&a->lock);
    a->outstanding--;
    if (st != KRD_OK)
        a->status = st;
    pthread_cond_broadcast(&a->cond);
    pthread_mutex_unlock(&a->lock);
}

static void on_write(void *arg, enum krd_status st, struct kv_result *result)
{
    struct answer *a = arg;
    pthread_mutex_lock(&a->lock);
    kv_result_destroy(a->result);
    a->result = result;
    pthread_mutex_unlock(&a->lock);
    on_answer(a, st);
}

/* Until at most `left` answers are owed. */
static enum krd_status answer_wait(struct answer *a, int left)
{
    pthread_mutex_lock(&a->lock);
    while (a->outstanding > left)
        pthread_cond_wait(&a->cond, &a->lock);
    enum krd_status st = a->status;
    pthread_mutex_unlock(&a->lock);
    return st;
}

static void answer_done(struct answer *a)
{
    answer_wait(a, 0);
    kv_result_destroy(a->result);
    a->result = NULL;
    a->status = KRD_OK;
}

/* --- The cluster ----------------------------------------------------------------------------- */

static int free_port(void)
{
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    assert_int_equal(bind(fd, (struct sockaddr *)&a, sizeof a), 0);
    socklen_t len = sizeof a;
    getsockname(fd, (struct sockaddr *)&a, &len);
    close(fd);
    return ntohs(a.sin_port);
}

static void start(struct cluster *c, int i)
{
    char dir[128];
    snprintf(dir, sizeof dir, "%s/n%d", c->dir, i + 1);
    struct node_options o;
    node_options_default(&o);
    o.dir = dir;
    o.name = c->seeds[i].name;
    o.raft_listen = c->seeds[i].address;
    o.raft_advertise = c->seeds[i].address;
    o.http_advertise = "localhost:1";
    o.initial = c->seeds;
    o.n_initial = NODES;
    o.initial_given = true;
    o.segment_bytes = 1u << 20;
    char *err = NULL;
    enum krd_status st = node_start(&o, &c->node[i], &err);
    if (st != KRD_OK)
        fail_msg("node %d does not start: %s", i + 1, err);
}

static void stop(struct cluster *c, int i)
{
    if (c->node[i] != NULL)
        node_stop(c->node[i]);
    c->node[i] = NULL;
}

/* The member that leads, as all running members agree; -1 while they do not. */
static int leader_of(struct cluster *c)
{
    int leader = -1;
    uint64_t id = 0;
    for (int i = 0; i < NODES; i++) {
        if (c->node[i] == NULL)
            continue;
        struct node_status st;
        node_get_status(c->node[i], &st);
        if (st.leader_id == 0 || (id != 0 && st.leader_id != id))
            leader = -2;
        id = st.leader_id;
        if (st.role == NODE_LEADER && leader != -2)
            leader = i;
        node_status_deinit(&st);
    }
    return leader;
}

static int await_leader(struct cluster *c)
{
    uint64_t end = krd_mono_ms() + WAIT_MS;
    int leader;
    while ((leader = leader_of(c)) < 0) {
        assert_true(krd_mono_ms() < end);
        usleep(1000);
    }
    return leader;
}

static int setup(void **state)
{
    struct cluster *c = krd_zalloc(sizeof *c);
    snprintf(c->dir, sizeof c->dir, "%s", "/tmp/kvraftd-test-node-XXXXXX");
    assert_non_null(mkdtemp(c->dir));
    for (int i = 0; i < NODES; i++) {
        snprintf(c->seeds[i].name, sizeof c->seeds[i].name, "n%d", i + 1);
        snprintf(c->seeds[i].address, sizeof c->seeds[i].address, "127.0.0.1:%d", free_port());
    }
    for (int i = 0; i < NODES; i++)
        start(c, i);
    *state = c;
    return 0;
}

static int remove_one(const char *path, const struct stat *st, int flag, struct FTW *ftw)
{
    (void)st, (void)flag, (void)ftw;
    return remove(path);
}

static int teardown(void **state)
{
    struct cluster *c = *state;
    for (int i = 0; i < NODES; i++)
        stop(c, i);
    nftw(c->dir, remove_one, 16, FTW_DEPTH | FTW_PHYS);
    krd_free(c);
    return 0;
}

/* --- Requests -------------------------------------------------------------------------------- */

static void put_async(struct node *n, const char *key, const char *value, int64_t lease,
                      struct answer *a)
{
    Etcdserverpb__PutRequest put = ETCDSERVERPB__PUT_REQUEST__INIT;
    put.key = (ProtobufCBinaryData){strlen(key), (uint8_t *)key};
    put.value = (ProtobufCBinaryData){strlen(value), (uint8_t *)value};
    put.lease = lease;
    Etcdserverpb__InternalRaftRequest r = ETCDSERVERPB__INTERNAL_RAFT_REQUEST__INIT;
    r.put = &put;
    answer_expect(a);
    node_propose(n, &r, WAIT_MS, on_write, a);
}

static void put(struct node *n, const char *key, const char *value, int64_t lease)
{
    struct answer a = ANSWER_INIT;
    put_async(n, key, value, lease, &a);
    assert_int_equal(answer_wait(&a, 0), KRD_OK);
    assert_int_equal(a.result->status, KRD_OK);
    answer_done(&a);
}

static void barrier(struct node *n)
{
    struct answer a = ANSWER_INIT;
    answer_expect(&a);
    node_read_barrier(n, WAIT_MS, on_answer, &a);
    assert_int_equal(answer_wait(&a, 0), KRD_OK);
}

static int64_t version_of(struct node *n, const char *key)
{
    struct krd_arena arena = KRD_ARENA_INIT;
    struct kv_pair pair;
    enum krd_status st = node_get(n, slice_str(key), 0, &arena, &pair, NULL);
    int64_t version = st == KRD_OK ? pair.version : 0;
    krd_arena_deinit(&arena);
    return version;
}

/* --- Tests
 * ------------------------------------------------------------------------------------------------
 */

static void write_on_any_node_is_read_on_every_node(void **state)
{
    struct cluster *c = *state;
    await_leader(c);
    for (int i = 0; i < NODES; i++) {
        char key[32];
        snprintf(key, sizeof key, "from-%d", i);
        put(c->node[i], key, "value", 0);
        for (int j = 0; j < NODES; j++) {
            barrier(c->node[j]);
            assert_int_equal(version_of(c->node[j], key), 1);
        }
    }
}

static void stopped_leader_is_replaced_and_comes_back(void **state)
{
    struct cluster *c = *state;
    put(c->node[0], "before", "1", 0);
    int leader = await_leader(c);
    stop(c, leader);
    int other = (leader + 1) % NODES;
    put(c->node[other], "after", "1", 0);
    start(c, leader);
    barrier(c->node[leader]);
    assert_int_equal(version_of(c->node[leader], "before"), 1);
    assert_int_equal(version_of(c->node[leader], "after"), 1);
}

static void writes_under_way_survive_a_leader_change_once_each(void **state)
{
    struct cluster *c = *state;
    enum { WRITES = 3000, WINDOW = 64 };
    int leader = await_leader(c);
    int follower = (leader + 1) % NODES;
    struct answer a = ANSWER_INIT;
    for (int i = 0; i < WRITES; i++) {
        put_async(c->node[follower], "counted", "x", 0, &a);
        answer_wait(&a, WINDOW);
        if (i == WRITES / 2)
            stop(c, leader);
    }
    assert_int_equal(answer_wait(&a, 0), KRD_OK);
    answer_done(&a);
    start(c, leader);
    for (int i = 0; i < NODES; i++) {
        barrier(c->node[i]);
        assert_int_equal(version_of(c->node[i], "counted"), WRITES);
    }
}

static void all_stop_and_everything_is_there_again(void **state)
{
    struct cluster *c = *state;
    put(c->node[1], "kept", "1", 0);
    for (int i = 0; i < NODES; i++)
        stop(c, i);
    for (int i = 0; i < NODES; i++)
        start(c, i);
    for (int i = 0; i < NODES; i++) {
        barrier(c->node[i]);
        assert_int_equal(version_of(c->node[i], "kept"), 1);
    }
}

static void leadership_goes_where_it_is_sent(void **state)
{
    struct cluster *c = *state;
    int leader = await_leader(c);
    int to = (leader + 1) % NODES;
    struct answer a = ANSWER_INIT;
    answer_expect(&a);
    node_transfer(c->node[(leader + 2) % NODES], c->seeds[to].name, on_answer, &a);
    assert_int_equal(answer_wait(&a, 0), KRD_OK);
    assert_int_equal(await_leader(c), to);
}

static void lease_ends_with_its_keys_after_its_time(void **state)
{
    struct cluster *c = *state;
    struct answer a = ANSWER_INIT;
    Etcdserverpb__LeaseGrantRequest grant = ETCDSERVERPB__LEASE_GRANT_REQUEST__INIT;
    grant.ttl = 1;
    Etcdserverpb__InternalRaftRequest r = ETCDSERVERPB__INTERNAL_RAFT_REQUEST__INIT;
    r.lease_grant = &grant;
    answer_expect(&a);
    uint64_t granted_ms = krd_mono_ms();
    node_propose(c->node[0], &r, WAIT_MS, on_write, &a);
    assert_int_equal(answer_wait(&a, 0), KRD_OK);
    int64_t lease = a.result->lease_id;
    answer_done(&a);
    put(c->node[1], "leased", "1", lease);
    barrier(c->node[2]);
    assert_int_equal(version_of(c->node[2], "leased"), 1);

    answer_expect(&a);
    node_lease_keep_alive(c->node[2], lease, on_write, &a);
    assert_int_equal(answer_wait(&a, 0), KRD_OK);
    assert_int_equal(a.result->lease_ttl, 1);
    answer_done(&a);

    uint64_t end = krd_mono_ms() + WAIT_MS;
    while (version_of(c->node[2], "leased") != 0) {
        assert_true(krd_mono_ms() < end);
        usleep(1000);
    }
    assert_true(krd_mono_ms() - granted_ms >= 1000);

    answer_expect(&a);
    node_lease_keep_alive(c->node[2], lease, on_write, &a);
    assert_int_equal(answer_wait(&a, 0), KRD_OK);
    assert_int_equal(a.result->status, KRD_LEASE_NOT_FOUND);
    answer_done(&a);
}

static void minority_refuses_definitely_what_it_never_sent(void **state)
{
    struct cluster *c = *state;
    int leader = await_leader(c);
    int last = (leader + 1) % NODES;
    stop(c, leader);
    stop(c, (leader + 2) % NODES);
    /* Until it knows that nobody leads, a write may have been sent to the leader that is gone. */
    struct node_status st;
    uint64_t end = krd_mono_ms() + WAIT_MS;
    do {
        node_get_status(c->node[last], &st);
        node_status_deinit(&st);
        assert_true(krd_mono_ms() < end);
        usleep(1000);
    } while (st.leader_id != 0);
    struct answer a = ANSWER_INIT;
    Etcdserverpb__PutRequest p = ETCDSERVERPB__PUT_REQUEST__INIT;
    p.key = (ProtobufCBinaryData){1, (uint8_t *)"k"};
    Etcdserverpb__InternalRaftRequest r = ETCDSERVERPB__INTERNAL_RAFT_REQUEST__INIT;
    r.put = &p;
    answer_expect(&a);
    node_propose(c->node[last], &r, 300, on_write, &a);
    assert_int_equal(answer_wait(&a, 0), KRD_NO_LEADER);
    a.status = KRD_OK;
    answer_expect(&a);
    node_read_barrier(c->node[last], 300, on_answer, &a);
    assert_int_equal(answer_wait(&a, 0), KRD_NO_LEADER);
}

static void an_entry_of_unknown_type_stops_the_node(void **state)
{
    (void)state;
    int status;
    pid_t child = fork();
    if (child == 0) {
        fclose(stderr);
        struct raft_entry e = raft_entry_make(RAFT_ENTRY_COMMAND, slice_str(""));
        raft_entry_seal(&e, 1, 1, 1);
        e.type = 77;
        (void)apply_loop_entry(&e);
        _exit(0);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 70);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_entry_of_unknown_type_stops_the_node),
        cmocka_unit_test_setup_teardown(write_on_any_node_is_read_on_every_node, setup, teardown),
        cmocka_unit_test_setup_teardown(stopped_leader_is_replaced_and_comes_back, setup, teardown),
        cmocka_unit_test_setup_teardown(writes_under_way_survive_a_leader_change_once_each, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(all_stop_and_everything_is_there_again, setup, teardown),
        cmocka_unit_test_setup_teardown(leadership_goes_where_it_is_sent, setup, teardown),
        cmocka_unit_test_setup_teardown(lease_ends_with_its_keys_after_its_time, setup, teardown),
        cmocka_unit_test_setup_teardown(minority_refuses_definitely_what_it_never_sent, setup,
                                        teardown),
    };
    krd_log_start(getenv("VERBOSE") != NULL ? KRD_LOG_INFO : KRD_LOG_ERROR, KRD_LOG_LOGFMT, "test");
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    krd_log_stop();
    return failed;
}
