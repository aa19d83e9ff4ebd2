/* test_peer_tcp.c - the TCP transport: real sockets on loopback, several transports in one process,
 * each with a loop of its own so that one can be stopped while the others run, and forked children
 * where a process has to die. Time is the real one plus `skew_ms`, which tests move forward instead
 * of sleeping. */
#include "base/clock.h"
#include "base/limits.h"
#include "base/rand.h"
#include "raft/message.h"
#include "raft/peer_tcp.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <cmocka.h>

#define CLUSTER    77
#define NODES_MAX  4
#define FRAMES_MAX 60000

/* --- fixture --------------------------------------------------------------------------------- */

struct got {
    raft_id from;
    enum peer_frame_kind kind;
    struct krd_blob *blob;
    struct slice body;
};

struct node {
    struct krd_loop loop;
    struct peer_transport *t;
    raft_id id;
    char address[64];
    int up[NODES_MAX + 1], down[NODES_MAX + 1], lost[NODES_MAX + 1]; /* by peer */
    char story[512]; /* u, d, l and the peer's id, in order */
    int refused;
    char reason[128]; /* of the last refusal */
    struct got *got;
    size_t n_got;
    raft_id remove_on_frame; /* whom the frame callback removes */
    bool stopped;
};

struct world {
    struct node nodes[NODES_MAX + 1]; /* by id, from 1 */
    uint64_t skew_ms;
};

static void on_frame(void *arg, raft_id from, enum peer_frame_kind kind, struct krd_blob *blob,
                     struct slice body)
{
    struct node *n = arg;
    assert_true(n->n_got < FRAMES_MAX);
    assert_int_equal((uintptr_t)body.ptr & 7, 0);
    n->got[n->n_got++] = (struct got){from, kind, krd_blob_ref(blob), body};
    if (n->remove_on_frame != 0)
        n->t->ops->remove_peer(n->t, n->remove_on_frame);
}

static void tell(struct node *n, char what, raft_id peer)
{
    size_t len = strlen(n->story);
    if (len + 3 < sizeof n->story)
        snprintf(n->story + len, sizeof n->story - len, "%c%d", what, (int)peer);
}
static void on_up(void *arg, raft_id peer)
{
    struct node *n = arg;
    n->up[peer]++;
    tell(n, 'u', peer);
}
static void on_down(void *arg, raft_id peer)
{
    struct node *n = arg;
    n->down[peer]++;
    tell(n, 'd', peer);
}
static void on_lost(void *arg, raft_id peer)
{
    struct node *n = arg;
    n->lost[peer]++;
    tell(n, 'l', peer);
}
static void on_refused(void *arg, const char *address, const char *reason)
{
    struct node *n = arg;
    assert_true(strlen(address) > 0);
    n->refused++;
    snprintf(n->reason, sizeof n->reason, "%s", reason);
}

static int free_port(void)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof a;
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&a, sizeof a), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&a, &len), 0);
    close(fd);
    return ntohs(a.sin_port);
}

struct start {
    raft_id id;
    const char *listen; /* NULL: the node's address */
    uint64_t boot;      /* 0: 1 */
    uint64_t cluster;   /* 0: CLUSTER */
    size_t queue_bytes; /* 0: the default */
};

static struct node *start(struct world *w, struct start s)
{
    struct node *n = &w->nodes[s.id];
    n->id = s.id;
    if (n->address[0] == '\0')
        snprintf(n->address, sizeof n->address, "127.0.0.1:%d", free_port());
    if (n->got == NULL)
        n->got = krd_calloc(FRAMES_MAX, sizeof *n->got);
    assert_int_equal(krd_loop_init(&n->loop), KRD_OK);

    struct peer_tcp_options o;
    peer_tcp_options_default(&o);
    o.loop = &n->loop;
    o.listen = s.listen != NULL ? s.listen : n->address;
    o.cluster_id = s.cluster != 0 ? s.cluster : CLUSTER;
    o.id = s.id;
    o.boot = s.boot != 0 ? s.boot : 1;
    o.seed = s.id;
    if (s.queue_bytes != 0)
        o.queue_bytes_max = s.queue_bytes;
    struct peer_callbacks cb = {n, on_frame, on_up, on_down, on_lost, on_refused};
    char *err = NULL;
    if (peer_tcp_create(&o, &cb, &n->t, &err) != KRD_OK)
        fail_msg("%s", err);
    return n;
}

static void stop(struct node *n)
{
    if (n->t == NULL)
        return;
    n->t->ops->destroy(n->t);
    n->t = NULL;
    krd_loop_deinit(&n->loop);
}

static void forget_frames(struct node *n)
{
    for (size_t i = 0; i < n->n_got; i++)
        krd_blob_unref(n->got[i].blob);
    n->n_got = 0;
}

static int setup(void **state)
{
    *state = krd_zalloc(sizeof(struct world));
    return 0;
}

static int teardown(void **state)
{
    struct world *w = *state;
    for (int i = 1; i <= NODES_MAX; i++) {
        stop(&w->nodes[i]);
        forget_frames(&w->nodes[i]);
        krd_free(w->nodes[i].got);
    }
    krd_free(w);
    return 0;
}

/* One turn of every loop that is not stopped. */
static void turn(struct world *w)
{
    for (int i = 1; i <= NODES_MAX; i++) {
        struct node *n = &w->nodes[i];
        if (n->t == NULL || n->stopped)
            continue;
        krd_loop_run(&n->loop, 0);
        if (n->t == NULL)
            continue;
        n->t->ops->tick(n->t, krd_mono_ms() + w->skew_ms);
        n->t->ops->flush(n->t);
    }
}

#define AWAIT(w, cond)                                  \
    do {                                                \
        uint64_t end_ = krd_mono_ms() + 20000;          \
        while (!(cond)) {                               \
            if (krd_mono_ms() > end_)                   \
                fail_msg("never came true: %s", #cond); \
            turn(w);                                    \
        }                                               \
    } while (0)

/* For what must not happen: long enough for it to happen several times over. */
static void run_ms(struct world *w, uint64_t ms)
{
    for (uint64_t end = krd_mono_ms() + ms; krd_mono_ms() < end;)
        turn(w);
}

static void know(struct node *a, const struct node *b)
{
    a->t->ops->set_peer(a->t, b->id, b->address);
}

static void start_pair(struct world *w, struct node **a, struct node **b)
{
    *a = start(w, (struct start){.id = 1});
    *b = start(w, (struct start){.id = 2});
    know(*a, *b);
    know(*b, *a);
    AWAIT(w, (*a)->up[2] == 1 && (*b)->up[1] == 1);
}

static struct peer_status status_of(struct node *n, raft_id peer)
{
    struct peer_status st;
    assert_true(n->t->ops->status(n->t, peer, &st));
    return st;
}

static bool send_text(struct node *n, raft_id to, enum peer_channel ch, const char *text)
{
    return n->t->ops->send(n->t, to, ch, PEER_FRAME_FORWARD, slice_str(text), NULL, 0);
}

static bool got_text(const struct got *g, const char *text)
{
    return g->kind == PEER_FRAME_FORWARD && slice_eq(g->body, slice_str(text));
}

/* A frame that carries a number and stuffing. */
static bool send_number(struct node *n, raft_id to, enum peer_channel ch, uint64_t number,
                        size_t stuffing)
{
    static uint8_t bytes[1 << 20];
    krd_put_le64(bytes, number);
    return n->t->ops->send(n->t, to, ch, PEER_FRAME_FORWARD, slice_of(bytes, 8 + stuffing), NULL,
                           0);
}

/* --- a plain socket that plays the other side ------------------------------------------------ */

static int dial_raw(const struct node *n)
{
    struct peer_addresses a;
    assert_int_equal(peer_address_numeric(n->address, &a), KRD_OK);
    int fd = socket(a.at[0].sa.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(fd >= 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&a.at[0].sa, a.at[0].len), 0);
    return fd;
}

static void put_raw(int fd, const void *p, size_t n)
{
    assert_int_equal(send(fd, p, n, MSG_NOSIGNAL), n);
}

static struct peer_hello hello_from_2(void)
{
    return (struct peer_hello){
        .channel = PEER_BULK, .cluster_id = CLUSTER, .sender = 2, .receiver = 1, .boot = 1};
}

/* What came of a hello: the acceptor's answer, or PEER_ANSWERS if it just closed. */
static unsigned say_hello(struct world *w, int fd, struct peer_hello h)
{
    uint8_t bytes[PEER_HELLO_BYTES];
    peer_hello_encode(&h, bytes);
    put_raw(fd, bytes, sizeof bytes);
    ssize_t n = -1;
    AWAIT(w, (n = recv(fd, bytes, sizeof bytes, MSG_DONTWAIT)) >= 0 || errno != EAGAIN);
    struct peer_hello answer;
    if (n != sizeof bytes || peer_hello_decode(slice_of(bytes, sizeof bytes), &answer) != KRD_OK)
        return PEER_ANSWERS;
    assert_int_equal(answer.sender, 1);
    assert_true(answer.cluster_id == CLUSTER);
    return answer.answer;
}

static bool hung_up(int fd)
{
    uint8_t byte;
    ssize_t n = recv(fd, &byte, 1, MSG_DONTWAIT);
    return n == 0 || (n < 0 && errno != EAGAIN);
}

/* Node 1, which knows a member 2 that nobody plays but the test. */
static struct node *start_lonely(struct world *w)
{
    struct node *n = start(w, (struct start){.id = 1});
    char nobody[64];
    snprintf(nobody, sizeof nobody, "127.0.0.1:%d", free_port());
    n->t->ops->set_peer(n->t, 2, nobody);
    return n;
}

/* --- a proxy between a node and those who dial it -------------------------------------------- */

struct proxy {
    int listener;
    char address[64];
    char target[64];
    int fds[16]; /* pairs */
    int n;
    bool mute; /* accepts and says nothing */
};

static struct proxy proxy_start(const struct node *to)
{
    struct proxy p = {.n = 0};
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof a;
    p.listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    assert_int_equal(bind(p.listener, (struct sockaddr *)&a, sizeof a), 0);
    assert_int_equal(listen(p.listener, 16), 0);
    assert_int_equal(getsockname(p.listener, (struct sockaddr *)&a, &len), 0);
    snprintf(p.address, sizeof p.address, "127.0.0.1:%d", ntohs(a.sin_port));
    snprintf(p.target, sizeof p.target, "%s", to->address);
    return p;
}

static void proxy_turn(struct proxy *p)
{
    int fd = accept4(p->listener, NULL, NULL, SOCK_NONBLOCK);
    if (fd >= 0) {
        assert_true(p->n + 2 <= (int)KRD_ARRAY_LEN(p->fds));
        struct node to = {.id = 0};
        snprintf(to.address, sizeof to.address, "%s", p->target);
        p->fds[p->n++] = fd;
        p->fds[p->n++] = p->mute ? -1 : dial_raw(&to);
    }
    for (int i = 0; i < p->n && !p->mute; i++) {
        uint8_t bytes[4096];
        if (p->fds[i] < 0)
            continue;
        ssize_t n = recv(p->fds[i], bytes, sizeof bytes, MSG_DONTWAIT);
        if (n > 0)
            put_raw(p->fds[i ^ 1], bytes, (size_t)n);
    }
}

/* Resets every connection through it. */
static void proxy_reset(struct proxy *p)
{
    struct linger now = {.l_onoff = 1, .l_linger = 0};
    for (int i = 0; i < p->n; i++) {
        if (p->fds[i] < 0)
            continue;
        setsockopt(p->fds[i], SOL_SOCKET, SO_LINGER, &now, sizeof now);
        close(p->fds[i]);
    }
    p->n = 0;
}

static void proxy_stop(struct proxy *p)
{
    proxy_reset(p);
    close(p->listener);
}

#define AWAIT_PROXIED(w, p, cond) AWAIT(w, (proxy_turn(p), (cond)))

/* --- a listener that plays member 2 ----------------------------------------------------------- */

static int actor_start(char address[64])
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof a;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    assert_int_equal(bind(listener, (struct sockaddr *)&a, sizeof a), 0);
    assert_int_equal(listen(listener, 64), 0);
    assert_int_equal(getsockname(listener, (struct sockaddr *)&a, &len), 0);
    snprintf(address, 64, "127.0.0.1:%d", ntohs(a.sin_port));
    return listener;
}

/* Reads the hello of a connection that was accepted. What member 2 would answer is returned. */
static struct peer_hello actor_read(struct world *w, int fd, uint64_t boot)
{
    uint8_t bytes[PEER_HELLO_BYTES];
    struct peer_hello h;
    AWAIT(w, recv(fd, bytes, sizeof bytes, MSG_DONTWAIT) == sizeof bytes);
    assert_int_equal(peer_hello_decode(slice_of(bytes, sizeof bytes), &h), KRD_OK);
    assert_true(h.sender == 1 && h.receiver == 2 && h.cluster_id == CLUSTER);
    h.sender = 2;
    h.receiver = 1;
    h.boot = boot;
    return h;
}

static void actor_answer(int fd, struct peer_hello h)
{
    uint8_t bytes[PEER_HELLO_BYTES];
    peer_hello_encode(&h, bytes);
    put_raw(fd, bytes, sizeof bytes);
}

static void actor_greet(struct world *w, int fd, uint64_t boot)
{
    actor_answer(fd, actor_read(w, fd, boot));
}

static int actor_accept(struct world *w, int listener)
{
    int fd = -1;
    AWAIT(w, (fd = accept(listener, NULL, NULL)) >= 0);
    return fd;
}

/* Node 1 with both links up to the actor. */
static struct node *start_with_actor(struct world *w, int *listener, int fds[2])
{
    struct node *a = start(w, (struct start){.id = 1});
    char address[64];
    *listener = actor_start(address);
    a->t->ops->set_peer(a->t, 2, address);
    for (int i = 0; i < 2; i++) {
        fds[i] = actor_accept(w, *listener);
        actor_greet(w, fds[i], 1);
    }
    AWAIT(w, a->up[2] == 1);
    return a;
}

static void reset_raw(int fd)
{
    struct linger now = {.l_onoff = 1, .l_linger = 0};
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
    close(fd);
}

/* --- a member in a process of its own -------------------------------------------------------- */

static void child_main(const struct node *self, const struct node *parent, uint64_t boot)
{
    static struct world w;
    w.nodes[self->id] = (struct node){.id = self->id};
    memcpy(w.nodes[self->id].address, self->address, sizeof self->address);
    struct node *n = start(&w, (struct start){.id = self->id, .boot = boot});
    know(n, parent);
    for (;;) { /* until killed */
        krd_loop_run(&n->loop, 10);
        n->t->ops->tick(n->t, krd_mono_ms());
        for (size_t i = 0; i < n->n_got; i++) /* an echo */
            n->t->ops->send(n->t, n->got[i].from, PEER_CONTROL, PEER_FRAME_FORWARD, n->got[i].body,
                            NULL, 0);
        forget_frames(n);
        n->t->ops->flush(n->t);
    }
}

static pid_t fork_member(const struct node *self, const struct node *parent, uint64_t boot)
{
    fflush(NULL);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        alarm(60); /* not for ever, should the test die */
        /* The parent's sockets must not live on in here. */
        for (int fd = 3; fd < 256; fd++)
            close(fd);
        child_main(self, parent, boot);
    }
    return pid;
}

static void kill_member(pid_t pid)
{
    kill(pid, SIGKILL);
    assert_int_equal(waitpid(pid, NULL, 0), pid);
}

/* --- frames ---------------------------------------------------------------------------------- */

static void appends_travel_with_entries_of_up_to_several_MiB(void **state)
{
    struct world *w = *state;
    struct node *a, *b;
    start_pair(w, &a, &b);
    static const size_t sizes[] = {0, 1, 7, 8, 300, 65536, 300000, 5u << 20};
    enum { N = KRD_ARRAY_LEN(sizes) };
    struct raft_entry entries[N];
    uint8_t *payload = krd_alloc(sizes[N - 1]);
    for (size_t i = 0; i < sizes[N - 1]; i++)
        payload[i] = (uint8_t)(i * 7 + i / 251);
    for (size_t i = 0; i < N; i++) {
        entries[i] = raft_entry_make(RAFT_ENTRY_COMMAND, slice_of(payload, sizes[i]));
        raft_entry_seal(&entries[i], i + 1, 3, 9);
    }
    struct raft_message m = {.type = RAFT_MSG_APPEND, .term = 3, .from = 1, .to = 2};
    m.u.append.n_entries = N;
    m.u.append.entries = entries;
    struct krd_buf head = KRD_BUF_INIT;
    size_t records;
    raft_message_encode(&m, &head, &records);
    assert_true(
        a->t->ops->send(a->t, 2, PEER_BULK, PEER_FRAME_RAFT, krd_buf_slice(&head), entries, N));
    krd_buf_deinit(&head);
    for (size_t i = 0; i < N; i++)
        raft_entry_unref(&entries[i]);
    AWAIT(w, b->n_got == 1);

    struct raft_message in;
    assert_int_equal(b->got[0].from, 1);
    assert_int_equal(b->got[0].kind, PEER_FRAME_RAFT);
    assert_int_equal(raft_message_decode(b->got[0].blob, b->got[0].body, &in), KRD_OK);
    assert_int_equal(in.u.append.n_entries, N);
    for (size_t i = 0; i < N; i++)
        assert_true(slice_eq(raft_payload(&in.u.append.entries[i]), slice_of(payload, sizes[i])));
    raft_message_deinit(&in);
    krd_free(payload);
}

static void order_is_kept_within_a_channel_both_ways(void **state)
{
    struct world *w = *state;
    struct node *a, *b;
    start_pair(w, &a, &b);
    struct krd_rand rand;
    krd_rand_seed(&rand, 3);
    enum { N = 20000 };
    for (uint64_t i = 0; i < N; i++) {
        size_t stuffing = krd_rand_below(&rand, i % 100 == 0 ? 100000 : 700);
        assert_true(send_number(a, 2, PEER_BULK, i, stuffing));
        assert_true(send_number(b, 1, PEER_CONTROL, i, stuffing % 64));
        if (i % 500 == 0)
            turn(w);
    }
    AWAIT(w, b->n_got == N && a->n_got == N);
    for (uint64_t i = 0; i < N; i++) {
        assert_true(krd_get_le64(b->got[i].body.ptr) == i);
        assert_true(krd_get_le64(a->got[i].body.ptr) == i);
    }
}

static void three_members_talk_all_to_all(void **state)
{
    struct world *w = *state;
    struct node *n[4];
    for (raft_id i = 1; i <= 3; i++)
        n[i] = start(w, (struct start){.id = i});
    for (int i = 1; i <= 3; i++)
        for (int k = 1; k <= 3; k++)
            know(n[i], n[k]); /* itself as well: nothing comes of it */
    for (int i = 1; i <= 3; i++)
        for (int k = 1; k <= 3; k++)
            AWAIT(w, i == k || n[i]->up[k] == 1);
    for (int i = 1; i <= 3; i++)
        for (raft_id k = 1; k <= 3; k++)
            assert_int_equal(send_text(n[i], k, PEER_CONTROL, "hi"), (raft_id)i != k);
    AWAIT(w, n[1]->n_got == 2 && n[2]->n_got == 2 && n[3]->n_got == 2);
    assert_int_equal(n[1]->got[0].from + n[1]->got[1].from, 5);
    for (int i = 1; i <= 3; i++) {
        assert_int_equal(n[i]->up[i], 0);
        assert_int_equal(n[i]->refused, 0);
    }
}

static void control_overtakes_bulk_and_queues_are_bounded(void **state)
{
    struct world *w = *state;
    struct node *a = start(w, (struct start){.id = 1, .queue_bytes = 4u << 20});
    struct node *b = start(w, (struct start){.id = 2});
    know(a, b);
    know(b, a);
    AWAIT(w, a->up[2] == 1);

    b->stopped = true;
    uint64_t sent = 0;
    for (int idle = 0; idle < 3;) { /* until kernel and queue are full */
        if (send_number(a, 2, PEER_BULK, sent, 60000)) {
            sent++;
            idle = 0;
        } else {
            idle++;
            turn(w);
        }
    }
    struct peer_status st = status_of(a, 2);
    assert_true(st.send_failures > 0);
    assert_true(st.queued_bytes > 3u << 20 && st.queued_bytes <= 4u << 20);
    assert_true(st.connected);
    assert_true(sent * 60000 > 5u << 20);

    assert_true(send_text(a, 2, PEER_CONTROL, "heartbeat"));
    turn(w);
    b->stopped = false;
    size_t at = 0;
    AWAIT(w, b->n_got > 0 && (got_text(&b->got[at], "heartbeat") || ++at == b->n_got) &&
                 at < b->n_got);
    assert_true(at < sent / 2);

    AWAIT(w, b->n_got == sent + 1);
    uint64_t next = 0;
    for (size_t i = 0; i < b->n_got; i++)
        if (i != at)
            assert_true(krd_get_le64(b->got[i].body.ptr) == next++);
    assert_int_equal(status_of(a, 2).queued_bytes, 0);
    assert_int_equal(a->down[2], 0);
}

static void what_did_not_fit_goes_on_by_itself_when_there_is_room(void **state)
{
    struct world *w = *state;
    struct node *a, *b;
    start_pair(w, &a, &b);
    for (uint64_t i = 0; i < 200; i++) /* more than the kernel takes */
        assert_true(send_number(a, 2, PEER_BULK, i, 100000));
    a->t->ops->flush(a->t); /* once */
    assert_true(status_of(a, 2).queued_bytes > 0);
    for (uint64_t end = krd_mono_ms() + 20000; b->n_got < 200 && krd_mono_ms() < end;) {
        krd_loop_run(&a->loop, 1);
        krd_loop_run(&b->loop, 1);
    }
    assert_int_equal(b->n_got, 200);
    assert_int_equal(krd_loop_run(&a->loop, 0), 0); /* and does not ask for room for ever */
}

static void a_frame_larger_than_the_queue_passes_when_the_queue_is_empty(void **state)
{
    struct world *w = *state;
    struct node *a = start(w, (struct start){.id = 1, .queue_bytes = 65536});
    struct node *b = start(w, (struct start){.id = 2});
    know(a, b);
    know(b, a);
    AWAIT(w, a->up[2] == 1);
    assert_true(send_number(a, 2, PEER_BULK, 0, 500000));
    assert_false(send_number(a, 2, PEER_BULK, 1, 8));
    AWAIT(w, b->n_got == 1);
    assert_true(send_number(a, 2, PEER_BULK, 2, 8));
    AWAIT(w, b->n_got == 2);
    assert_int_equal(status_of(a, 2).send_failures, 1);
}

static void frames_to_nobody_are_dropped_and_counted(void **state)
{
    struct world *w = *state;
    struct node *n = start_lonely(w);
    assert_false(send_text(n, 2, PEER_CONTROL, "x"));
    assert_false(send_text(n, 2, PEER_BULK, "x"));
    assert_false(send_text(n, 9, PEER_BULK, "x"));
    struct peer_status st = status_of(n, 2);
    assert_int_equal(st.send_failures, 2);
    assert_false(st.connected);
    assert_false(n->t->ops->status(n->t, 9, &st));
}

static void status_counts_bytes(void **state)
{
    struct world *w = *state;
    struct node *a, *b;
    start_pair(w, &a, &b);
    send_text(a, 2, PEER_CONTROL, "12345678");
    send_text(a, 2, PEER_BULK, "123");
    AWAIT(w, b->n_got == 2);
    assert_int_equal(status_of(a, 2).sent_bytes, 48);
    assert_int_equal(status_of(b, 1).received_bytes, 48);
    assert_true(status_of(a, 2).connected);
    assert_int_equal(status_of(a, 2).reconnects, 0);
}

/* --- ends and losses ------------------------------------------------------------------------- */

static void a_reset_connection_comes_back_and_the_member_is_not_lost(void **state)
{
    struct world *w = *state;
    struct node *a = start(w, (struct start){.id = 1});
    struct node *b = start(w, (struct start){.id = 2});
    struct proxy p = proxy_start(b);
    a->t->ops->set_peer(a->t, 2, p.address);
    know(b, a);
    AWAIT_PROXIED(w, &p, a->up[2] == 1 && b->up[1] == 1);
    for (int round = 1; round <= 3; round++) {
        proxy_reset(&p);
        AWAIT_PROXIED(w, &p, a->up[2] == 1 + round);
        assert_true(send_text(a, 2, PEER_BULK, "again"));
        AWAIT_PROXIED(w, &p, b->n_got == (size_t)round);
    }
    run_ms(w, 30);
    assert_int_equal(a->down[2], 6);
    assert_int_equal(status_of(a, 2).reconnects, 6);
    assert_int_equal(a->lost[2] + b->lost[1], 0);
    assert_int_equal(b->down[1], 0); /* its own connections never broke: no storm */
    proxy_stop(&p);
}

static void a_killed_process_is_lost_at_once_and_only_once(void **state)
{
    struct world *w = *state;
    struct node *a = start(w, (struct start){.id = 1});
    struct node self = {.id = 2};
    snprintf(self.address, sizeof self.address, "127.0.0.1:%d", free_port());
    know(a, &self);
    uint64_t worst_us = 0;
    for (int round = 1; round <= 5; round++) {
        pid_t pid = fork_member(&self, a, (uint64_t)round);
        AWAIT(w, a->up[2] == round);
        assert_true(send_text(a, 2, PEER_BULK, "echo"));
        AWAIT(w, a->n_got == (size_t)round);
        assert_int_equal(a->lost[2], round - 1);

        uint64_t from = krd_mono_us();
        kill(pid, SIGKILL);
        AWAIT(w, a->lost[2] == round);
        worst_us = krd_max_u64(worst_us, krd_mono_us() - from);
        kill_member(pid);
        run_ms(w, 50); /* more dials are refused */
        assert_int_equal(a->lost[2], round);
        assert_false(status_of(a, 2).connected);
    }
    print_message("kill -9 until lost, worst of 5: %d us\n", (int)worst_us);
    assert_true(worst_us < 1000000); /* it takes well under 5000, on a machine that is not busy */
    assert_string_equal(a->reason, "");
}

static void a_stopped_process_is_not_lost_until_it_is_killed(void **state)
{
    struct world *w = *state;
    struct node *a = start(w, (struct start){.id = 1});
    struct node self = {.id = 2};
    snprintf(self.address, sizeof self.address, "127.0.0.1:%d", free_port());
    know(a, &self);
    pid_t pid = fork_member(&self, a, 1);
    AWAIT(w, a->up[2] == 1);
    kill(pid, SIGSTOP);
    send_text(a, 2, PEER_CONTROL, "anybody there?");
    run_ms(w, 50);
    assert_int_equal(a->lost[2] + a->down[2], 0);
    kill(pid, SIGCONT);
    AWAIT(w, a->n_got == 1);
    kill(pid, SIGSTOP);
    run_ms(w, 20);
    kill(pid, SIGKILL);
    AWAIT(w, a->lost[2] == 1);
    kill_member(pid);
}

static void a_later_boot_number_means_lost_and_then_up(void **state)
{
    struct world *w = *state;
    struct node *a, *b;
    start_pair(w, &a, &b);
    stop(b); /* the old process ends and the new one listens before anybody looks */
    b = start(w, (struct start){.id = 2, .boot = 2});
    know(b, a);
    AWAIT(w, a->up[2] == 2);
    assert_int_equal(a->lost[2], 1);
    assert_true(strstr(a->story, "l2u2") != NULL);
    assert_true(strncmp(a->story, "u2d2", 4) == 0);
    AWAIT(w, b->up[1] == 2);
    run_ms(w, 30);
    assert_int_equal(a->lost[2], 1);
    assert_int_equal(a->up[2], 2);
}

static void a_later_boot_number_counts_even_in_a_refusal(void **state)
{
    struct world *w = *state;
    struct node *a, *b;
    start_pair(w, &a, &b);
    stop(b);
    b = start(w, (struct start){.id = 2, .boot = 2}); /* and knows no members yet */
    AWAIT(w, a->lost[2] == 1);
    assert_int_equal(a->up[2], 1);
    know(b, a);
    AWAIT(w, a->up[2] == 2 && b->up[1] == 2);
    assert_int_equal(a->lost[2], 1);
}

/* A dying process may take one more call with its listening socket, and drop it at once. Here no
 * tick comes, so that no back-off ever ends: only dials at once can find out. */
static void a_dial_that_a_dying_process_drops_is_repeated_at_once(void **state)
{
    struct world *w = *state;
    int listener, fds[2];
    struct node *a = start_with_actor(w, &listener, fds);
    for (int i = 0; i < 2; i++)
        reset_raw(fds[i]);
    int accepted = 0;
    for (uint64_t end = krd_mono_ms() + 20000; a->lost[2] == 0 && krd_mono_ms() < end;) {
        krd_loop_run(&a->loop, 1);
        int fd = listener >= 0 ? accept(listener, NULL, NULL) : -1;
        if (fd < 0)
            continue;
        reset_raw(fd);
        if (++accepted == 2) { /* one dial of each link was dropped */
            close(listener);
            listener = -1;
        }
    }
    assert_int_equal(accepted, 2);
    assert_int_equal(a->lost[2], 1);
}

static void a_connection_that_breaks_each_time_is_no_storm(void **state)
{
    struct world *w = *state;
    struct node *a = start(w, (struct start){.id = 1});
    char address[64];
    int listener = actor_start(address), dials = 0;
    a->t->ops->set_peer(a->t, 2, address);
    for (uint64_t end = krd_mono_ms() + 700; krd_mono_ms() < end; turn(w)) {
        int fd = accept(listener, NULL, NULL);
        if (fd < 0)
            continue;
        actor_greet(w, fd, 1);
        dials++;
        turn(w);
        reset_raw(fd);
    }
    assert_true(dials >= 2 && dials <= 2 * (PEER_AT_ONCE_MAX + 10));
    assert_int_equal(a->lost[2], 0);
    close(listener);
}

static void a_loss_is_told_once_however_late_its_other_connections_end(void **state)
{
    struct world *w = *state;
    int listener, fds[2];
    struct node *a = start_with_actor(w, &listener, fds);
    close(listener);
    reset_raw(fds[0]);
    AWAIT(w, a->lost[2] == 1);
    reset_raw(fds[1]);
    AWAIT(w, a->down[2] == 2);
    run_ms(w, 50);
    assert_int_equal(a->lost[2], 1);
}

static void a_suspicion_ends_when_the_same_process_is_heard(void **state)
{
    struct world *w = *state;
    int listener, fds[2];
    struct node *a = start_with_actor(w, &listener, fds);
    reset_raw(fds[0]);
    int mute = actor_accept(w, listener); /* the dial after the loss, which gets no answer */
    int fd = dial_raw(a);
    assert_int_equal(say_hello(w, fd, hello_from_2()), PEER_WELCOME);
    close(listener);
    reset_raw(mute);
    run_ms(w, 100); /* dials are refused now, but the process speaks */
    assert_int_equal(a->lost[2], 0);
    close(fd);
    AWAIT(w, a->lost[2] == 1);
    close(fds[1]);
}

static void connections_of_an_earlier_process_are_closed(void **state)
{
    struct world *w = *state;
    int listener, fds[2];
    struct node *a = start_with_actor(w, &listener, fds);
    int old = dial_raw(a);
    assert_int_equal(say_hello(w, old, hello_from_2()), PEER_WELCOME);
    int fresh = dial_raw(a);
    struct peer_hello h = hello_from_2();
    h.boot = 2;
    h.channel = PEER_CONTROL;
    assert_int_equal(say_hello(w, fresh, h), PEER_WELCOME);
    AWAIT(w, hung_up(fds[0]) && hung_up(fds[1]) && hung_up(old));
    assert_false(hung_up(fresh));
    assert_string_equal(a->story, "u2d2d2l2");
    for (int i = 0; i < 2; i++) {
        close(fds[i]);
        fds[i] = actor_accept(w, listener); /* dialled anew */
        actor_greet(w, fds[i], 2);
    }
    AWAIT(w, a->up[2] == 2);
    assert_int_equal(a->lost[2], 1);
    close(fds[0]);
    close(fds[1]);
    close(old);
    close(fresh);
    close(listener);
}

static void an_answer_with_anything_wrong_is_not_believed(void **state)
{
    struct world *w = *state;
    struct node *a = start(w, (struct start){.id = 1});
    char address[64];
    int listener = actor_start(address);
    a->t->ops->set_peer(a->t, 2, address);
    for (int i = 0; i < 6; i++) {
        for (int link = 0; link < 2; link++) {
            int fd = actor_accept(w, listener);
            struct peer_hello h = actor_read(w, fd, 1);
            if (i == 0)
                h.cluster_id++;
            else if (i == 1)
                h.sender = 3;
            else if (i == 2)
                h.receiver = 3;
            else if (i == 3)
                h.channel ^= 1;
            else if (i == 4)
                h.answer = PEER_REFUSED_SENDER;
            if (i < 5)
                actor_answer(fd, h);
            else
                put_raw(fd, "HTTP/1.1 400 Bad Request\r\n", 26);
            AWAIT(w, hung_up(fd));
            close(fd);
        }
        w->skew_ms += 1000; /* dialled slowly */
    }
    assert_int_equal(a->up[2] + a->lost[2] + a->down[2], 0);
    close(listener);
}

/* No tick, so that no back-off ever ends. */
static void a_member_that_dials_us_is_dialled_at_once(void **state)
{
    struct world *w = *state;
    struct node *a = start(w, (struct start){.id = 1});
    struct node *b = &w->nodes[2];
    b->id = 2;
    snprintf(b->address, sizeof b->address, "127.0.0.1:%d", free_port());
    know(a, b);
    for (int i = 0; i < 10; i++)
        krd_loop_run(&a->loop, 1); /* refused */
    b = start(w, (struct start){.id = 2});
    know(b, a);
    for (uint64_t end = krd_mono_ms() + 20000; a->up[2] == 0 && krd_mono_ms() < end;) {
        krd_loop_run(&a->loop, 1);
        krd_loop_run(&b->loop, 1);
    }
    assert_int_equal(a->up[2], 1);
}

static void a_refused_dial_alone_says_nothing(void **state)
{
    struct world *w = *state;
    struct node *a = start_lonely(w);
    run_ms(w, 100);
    w->skew_ms += 2000;
    run_ms(w, 50);
    assert_int_equal(a->lost[2] + a->down[2] + a->up[2], 0);
}

/* Member 2 reached us, we never reached it; its end is noticed all the same. */
static void the_end_of_an_incoming_connection_is_enough_to_notice(void **state)
{
    struct world *w = *state;
    struct node *a = start_lonely(w);
    int fd = dial_raw(a);
    assert_int_equal(say_hello(w, fd, hello_from_2()), PEER_WELCOME);
    run_ms(w, 120);
    assert_int_equal(a->lost[2], 0);
    close(fd);
    AWAIT(w, a->lost[2] == 1);
    fd = dial_raw(a); /* the same process: it was not gone after all */
    assert_int_equal(say_hello(w, fd, hello_from_2()), PEER_WELCOME);
    run_ms(w, 120);
    close(fd);
    AWAIT(w, a->lost[2] == 2);
}

static void a_dial_that_nobody_answers_says_nothing_and_is_repeated(void **state)
{
    struct world *w = *state;
    struct node *a = start(w, (struct start){.id = 1});
    struct node *b = start(w, (struct start){.id = 2});
    struct proxy p = proxy_start(b);
    a->t->ops->set_peer(a->t, 2, p.address);
    know(b, a);
    AWAIT_PROXIED(w, &p, a->up[2] == 1);
    proxy_reset(&p);
    p.mute = true;
    AWAIT_PROXIED(w, &p, p.n == 4); /* both links were dialled again */
    w->skew_ms += PEER_HELLO_MS + 1;
    AWAIT_PROXIED(w, &p, p.n == 8);
    assert_int_equal(a->lost[2], 0);
    p.mute = false;
    proxy_reset(&p);
    w->skew_ms += 3000;
    AWAIT_PROXIED(w, &p, a->up[2] == 2);
    assert_int_equal(a->lost[2], 0);
    proxy_stop(&p);
}

static void an_earlier_boot_number_is_refused_by_both_sides(void **state)
{
    struct world *w = *state;
    struct node *a = start(w, (struct start){.id = 1});
    struct node *b = start(w, (struct start){.id = 2, .boot = 5});
    know(a, b);
    know(b, a);
    AWAIT(w, a->up[2] == 1 && b->up[1] == 1);
    stop(b);
    AWAIT(w, a->lost[2] == 1);
    b = start(w, (struct start){.id = 2, .boot = 4});
    know(b, a);
    AWAIT(w, a->refused > 0);
    assert_true(strstr(a->reason, "later start") != NULL);
    w->skew_ms += 2000;
    run_ms(w, 100);
    assert_int_equal(a->up[2], 1);
    assert_int_equal(b->up[1], 1); /* the one from before */
    assert_int_equal(a->lost[2], 1);
}

/* --- strangers ------------------------------------------------------------------------------- */

static void a_hello_with_anything_wrong_is_refused_with_the_reason(void **state)
{
    struct world *w = *state;
    struct node *a = start_lonely(w);
    const struct {
        struct peer_hello change; /* what is not 0 replaces */
        unsigned answer;
        const char *reason;
    } cases[] = {
        {{.cluster_id = 78}, PEER_REFUSED_CLUSTER, "another cluster"},
        {{.receiver = 3}, PEER_REFUSED_RECEIVER, "takes us for another member"},
        {{.sender = 9}, PEER_REFUSED_SENDER, "not one of our members"},
        {{.sender = 1}, PEER_REFUSED_SENDER, "not one of our members"},
        {{.channel = 2}, PEER_REFUSED_CHANNEL, "channel"},
    };
    for (size_t i = 0; i < KRD_ARRAY_LEN(cases); i++) {
        struct peer_hello h = hello_from_2(), c = cases[i].change;
        h.cluster_id = c.cluster_id ? c.cluster_id : h.cluster_id;
        h.receiver = c.receiver ? c.receiver : h.receiver;
        h.sender = c.sender ? c.sender : h.sender;
        h.channel = c.channel ? c.channel : h.channel;
        int fd = dial_raw(a);
        assert_int_equal(say_hello(w, fd, h), cases[i].answer);
        AWAIT(w, hung_up(fd));
        AWAIT(w, a->refused == (int)i + 1);
        assert_non_null(strstr(a->reason, cases[i].reason));
        close(fd);
    }
}

static void another_protocol_version_is_told_ours(void **state)
{
    struct world *w = *state;
    struct node *a = start_lonely(w);
    int fd = dial_raw(a);
    uint8_t bytes[PEER_HELLO_BYTES];
    put_raw(fd, "kvrp\x09\x00", 6); /* its hello may be shorter than ours */
    ssize_t n = -1;
    AWAIT(w, (n = recv(fd, bytes, sizeof bytes, MSG_DONTWAIT)) > 0);
    struct peer_hello h;
    assert_int_equal(peer_hello_decode(slice_of(bytes, (size_t)n), &h), KRD_OK);
    assert_int_equal(h.answer, PEER_REFUSED_VERSION);
    AWAIT(w, a->refused == 1);
    assert_non_null(strstr(a->reason, "version"));
    close(fd);
}

static void garbage_is_closed_at_once_and_silence_after_a_while(void **state)
{
    struct world *w = *state;
    struct node *a = start_lonely(w);
    int http = dial_raw(a), check = dial_raw(a), half = dial_raw(a), silent = dial_raw(a);
    put_raw(http, "GET / HTTP/1.1\r\n\r\n", 18);
    AWAIT(w, hung_up(http));
    assert_int_equal(a->refused, 1);
    assert_non_null(strstr(a->reason, "protocol"));

    close(check); /* a port check is no news */
    put_raw(half, "kvrp\x01\x00", 6);
    run_ms(w, 20);
    assert_int_equal(a->refused, 1);
    assert_false(hung_up(half));
    w->skew_ms += PEER_HELLO_MS;
    AWAIT(w, hung_up(half) && hung_up(silent));
    assert_int_equal(a->refused, 3);
    assert_non_null(strstr(a->reason, "in time"));
    close(http);
    close(half);
    close(silent);
}

static void too_many_strangers_do_not_lock_members_out(void **state)
{
    struct world *w = *state;
    struct node *a = start_lonely(w);
    int fds[PEER_STRANGERS_MAX + 40];
    for (size_t i = 0; i < KRD_ARRAY_LEN(fds); i++) {
        fds[i] = dial_raw(a);
        turn(w);
    }
    AWAIT(w, a->refused == 40);
    assert_true(hung_up(fds[0]) && hung_up(fds[39]));
    assert_false(hung_up(fds[40]));
    int member = dial_raw(a);
    assert_int_equal(say_hello(w, member, hello_from_2()), PEER_WELCOME);
    for (size_t i = 0; i < KRD_ARRAY_LEN(fds); i++)
        close(fds[i]);
    close(member);
}

static void a_foreign_cluster_is_refused_for_ever_and_dialled_slowly(void **state)
{
    struct world *w = *state;
    struct node *a = start(w, (struct start){.id = 1});
    struct node *b = start(w, (struct start){.id = 2, .cluster = 99});
    know(a, b);
    know(b, a);
    AWAIT(w, a->refused >= 2 && b->refused >= 2);
    assert_non_null(strstr(a->reason, "another cluster"));
    int before = a->refused;
    run_ms(w, 300); /* the shortest wait is half a second */
    assert_true(a->refused <= before + 2);
    assert_int_equal(a->up[2] + b->up[1] + a->lost[2], 0);
}

static void a_member_at_another_members_address_is_not_taken_for_it(void **state)
{
    struct world *w = *state;
    struct node *a = start(w, (struct start){.id = 1});
    struct node *c = start(w, (struct start){.id = 3});
    know(c, a);
    a->t->ops->set_peer(a->t, 2, c->address);
    AWAIT(w, c->refused >= 2);
    assert_non_null(strstr(c->reason, "another member"));
    assert_int_equal(a->up[2] + a->up[3], 0);
}

/* --- bytes of members ------------------------------------------------------------------------ */

static void frames_that_dribble_in_byte_by_byte_arrive(void **state)
{
    struct world *w = *state;
    struct node *a = start_lonely(w);
    int fd = dial_raw(a);
    uint8_t hello[PEER_HELLO_BYTES];
    struct peer_hello h = hello_from_2();
    peer_hello_encode(&h, hello);
    for (size_t i = 0; i < sizeof hello; i++) {
        put_raw(fd, hello + i, 1);
        turn(w);
    }
    uint8_t frame[32] = {0};
    memcpy(frame + 16, "dribbling", 9);
    peer_frame_header(PEER_FRAME_FORWARD, slice_of(frame + 16, 9), 0, frame);
    for (int round = 0; round < 3; round++)
        for (size_t i = 0; i < sizeof frame; i++) {
            put_raw(fd, frame + i, 1);
            turn(w);
        }
    AWAIT(w, a->n_got == 3);
    for (int i = 0; i < 3; i++)
        assert_true(got_text(&a->got[i], "dribbling") && a->got[i].from == 2);
    close(fd);
}

static void a_damaged_or_absurd_frame_ends_the_connection_only(void **state)
{
    struct world *w = *state;
    struct node *a = start_lonely(w);
    for (int i = 0; i < 3; i++) {
        int fd = dial_raw(a);
        assert_int_equal(say_hello(w, fd, hello_from_2()), PEER_WELCOME);
        uint8_t frame[32] = {0};
        peer_frame_header(PEER_FRAME_FORWARD, slice_of(frame + 16, 9), 0, frame);
        put_raw(fd, frame, sizeof frame); /* a good one first */
        if (i == 0)
            frame[20] ^= 1;
        else if (i == 1)
            krd_put_le32(frame + 4, UINT32_MAX);
        else
            krd_put_le32(frame + 8, 77);
        put_raw(fd, frame, sizeof frame);
        AWAIT(w, hung_up(fd));
        assert_int_equal(a->n_got, i + 1);
        assert_int_equal(a->refused, i + 1);
        close(fd);
    }
    assert_int_equal(a->lost[2], 0);
}

static void a_second_connection_on_a_channel_replaces_the_first(void **state)
{
    struct world *w = *state;
    struct node *a = start_lonely(w);
    int first = dial_raw(a);
    assert_int_equal(say_hello(w, first, hello_from_2()), PEER_WELCOME);
    int second = dial_raw(a);
    assert_int_equal(say_hello(w, second, hello_from_2()), PEER_WELCOME);
    AWAIT(w, hung_up(first));
    assert_false(hung_up(second));
    run_ms(w, 20);
    assert_int_equal(a->lost[2], 0);
    close(first);
    close(second);
}

/* --- members come and go ---------------------------------------------------------------------- */

static void a_callback_may_remove_the_member_that_it_is_about(void **state)
{
    struct world *w = *state;
    struct node *a, *b;
    start_pair(w, &a, &b);
    b->remove_on_frame = 1;
    for (int i = 0; i < 10; i++)
        send_text(a, 2, PEER_CONTROL, "remove me");
    AWAIT(w, b->n_got == 1);
    run_ms(w, 20);
    assert_int_equal(b->n_got, 1);
    struct peer_status st;
    assert_false(b->t->ops->status(b->t, 1, &st));
    AWAIT(w, b->refused > 0); /* a tries again and is not known any more */
    know(b, a);
    b->remove_on_frame = 0;
    w->skew_ms += 2000;
    AWAIT(w, a->up[2] == 2 && b->up[1] == 2);
}

static void a_members_address_can_change(void **state)
{
    struct world *w = *state;
    struct node *a, *b;
    start_pair(w, &a, &b);
    struct proxy p = proxy_start(b);
    a->t->ops->set_peer(a->t, 2, p.address);
    AWAIT_PROXIED(w, &p, a->up[2] == 2);
    assert_int_equal(p.n, 4);
    a->t->ops->set_peer(a->t, 2, p.address); /* the same again: nothing happens */
    run_ms(w, 20);
    assert_int_equal(a->up[2], 2);
    assert_int_equal(a->lost[2], 0);
    proxy_stop(&p);
}

/* --- addresses ------------------------------------------------------------------------------- */

static bool have_ipv6(void)
{
    struct sockaddr_in6 a = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    int fd = socket(AF_INET6, SOCK_STREAM, 0);
    bool ok = fd >= 0 && bind(fd, (struct sockaddr *)&a, sizeof a) == 0;
    if (fd >= 0)
        close(fd);
    return ok;
}

static void ipv6_works(void **state)
{
    struct world *w = *state;
    if (!have_ipv6()) {
        print_message("this machine has no IPv6 loopback\n");
        skip();
    }
    snprintf(w->nodes[1].address, 64, "[::1]:%d", free_port());
    snprintf(w->nodes[2].address, 64, "[::1]:%d", free_port());
    struct node *a, *b;
    start_pair(w, &a, &b);
    assert_true(send_text(a, 2, PEER_BULK, "six"));
    AWAIT(w, b->n_got == 1);
}

static void an_empty_host_listens_on_all_addresses_of_both_families(void **state)
{
    struct world *w = *state;
    int port = free_port();
    char listen_on[16];
    snprintf(listen_on, sizeof listen_on, ":%d", port);
    snprintf(w->nodes[1].address, 64, "127.0.0.1:%d", port);
    struct node *a = start(w, (struct start){.id = 1, .listen = listen_on});
    int v4 = dial_raw(a);
    put_raw(v4, "garbage", 7);
    AWAIT(w, a->refused == 1);
    close(v4);
    if (!have_ipv6())
        return;
    snprintf(a->address, 64, "[::1]:%d", port);
    int v6 = dial_raw(a);
    put_raw(v6, "garbage", 7);
    AWAIT(w, a->refused == 2);
    close(v6);
}

static void names_are_resolved(void **state)
{
    struct world *w = *state;
    struct node *a = start(w, (struct start){.id = 1});
    int port = free_port();
    char listen_on[32];
    snprintf(listen_on, sizeof listen_on, "127.0.0.1:%d", port);
    snprintf(w->nodes[2].address, 64, "localhost:%d", port);
    struct node *b = start(w, (struct start){.id = 2, .listen = listen_on});
    know(a, b);
    know(b, a);
    AWAIT(w, a->up[2] == 1 && b->up[1] == 1);
    stop(b);
    AWAIT(w, a->lost[2] == 1); /* by the address that was good, whatever else the name means */
    b = start(w, (struct start){.id = 2, .listen = listen_on, .boot = 2});
    know(b, a);
    AWAIT(w, a->up[2] == 2);
    assert_int_equal(a->lost[2], 1);
}

static void names_that_mean_nothing_and_nonsense_are_only_retried(void **state)
{
    struct world *w = *state;
    struct node *a = start(w, (struct start){.id = 1});
    static const char *const bad[] = {"name.invalid:1", "localhost",  "::1:12000", "[::1:12000",
                                      ":12000",         "localhost:", "x:99999",   "x:0",
                                      "x:1x",           "",           "[]:1"};
    for (size_t i = 0; i < KRD_ARRAY_LEN(bad); i++) {
        a->t->ops->set_peer(a->t, 2, bad[i]);
        run_ms(w, 15);
        assert_false(status_of(a, 2).connected);
    }
    a->t->ops->set_peer(a->t, 2, "name.invalid:2");
    a->t->ops->remove_peer(a->t, 2); /* while the question is out */
    run_ms(w, 15);
    struct node *b = start(w, (struct start){.id = 2});
    know(a, b);
    know(b, a);
    AWAIT(w, a->up[2] == 1);
}

static void what_cannot_be_listened_on_is_said_in_one_sentence(void **state)
{
    struct world *w = *state;
    struct node *a = start(w, (struct start){.id = 1});
    const struct {
        const char *listen, *says;
    } cases[] = {
        {a->address, "Address already in use"},
        {"nonsense", "not an address"},
        {"::1:12000", "not an address"},
        {"192.0.2.1:12000", "Cannot assign requested address"},
        {"name.invalid:12000", "name.invalid:12000"},
    };
    for (size_t i = 0; i < KRD_ARRAY_LEN(cases); i++) {
        struct peer_tcp_options o;
        peer_tcp_options_default(&o);
        o.loop = &a->loop;
        o.listen = cases[i].listen;
        o.id = o.boot = 1;
        struct peer_callbacks cb = {a, on_frame, on_up, on_down, on_lost, on_refused};
        struct peer_transport *t = NULL;
        char *err = NULL;
        assert_int_equal(peer_tcp_create(&o, &cb, &t, &err), KRD_IO);
        assert_null(t);
        assert_non_null(err);
        assert_non_null(strstr(err, cases[i].says));
        assert_non_null(strstr(err, cases[i].listen));
        krd_free(err);
    }
}

/* --- file descriptors ------------------------------------------------------------------------ */

static void without_file_descriptors_accepting_rests_and_goes_on(void **state)
{
    struct world *w = *state;
    struct node *a = start_lonely(w);
    run_ms(w, 20);
    int fd = dial_raw(a); /* waits in the backlog, while there is not one descriptor to be had */
    struct rlimit old, none;
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &old), 0);
    none = old;
    none.rlim_cur = 3; /* those that are open stay open */
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &none), 0);
    int busy = 0;
    for (int i = 0; i < 1000; i++)
        busy += krd_loop_run(&a->loop, 0) > 0;
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &old), 0);
    assert_true(busy >= 1 && busy < 10); /* it does not spin */
    if (hung_up(fd)) { /* valgrind has it accepted and thrown away before it counts */
        close(fd);
        fd = dial_raw(a);
    }
    w->skew_ms += PEER_ACCEPT_REST_MS + 10;
    assert_int_equal(say_hello(w, fd, hello_from_2()), PEER_WELCOME);
    close(fd);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(appends_travel_with_entries_of_up_to_several_MiB),
        T(order_is_kept_within_a_channel_both_ways),
        T(three_members_talk_all_to_all),
        T(control_overtakes_bulk_and_queues_are_bounded),
        T(what_did_not_fit_goes_on_by_itself_when_there_is_room),
        T(a_frame_larger_than_the_queue_passes_when_the_queue_is_empty),
        T(frames_to_nobody_are_dropped_and_counted),
        T(status_counts_bytes),
        T(a_reset_connection_comes_back_and_the_member_is_not_lost),
        T(a_killed_process_is_lost_at_once_and_only_once),
        T(a_stopped_process_is_not_lost_until_it_is_killed),
        T(a_later_boot_number_means_lost_and_then_up),
        T(a_later_boot_number_counts_even_in_a_refusal),
        T(a_dial_that_a_dying_process_drops_is_repeated_at_once),
        T(a_connection_that_breaks_each_time_is_no_storm),
        T(a_loss_is_told_once_however_late_its_other_connections_end),
        T(a_suspicion_ends_when_the_same_process_is_heard),
        T(connections_of_an_earlier_process_are_closed),
        T(an_answer_with_anything_wrong_is_not_believed),
        T(a_member_that_dials_us_is_dialled_at_once),
        T(a_refused_dial_alone_says_nothing),
        T(the_end_of_an_incoming_connection_is_enough_to_notice),
        T(a_dial_that_nobody_answers_says_nothing_and_is_repeated),
        T(an_earlier_boot_number_is_refused_by_both_sides),
        T(a_hello_with_anything_wrong_is_refused_with_the_reason),
        T(another_protocol_version_is_told_ours),
        T(garbage_is_closed_at_once_and_silence_after_a_while),
        T(too_many_strangers_do_not_lock_members_out),
        T(a_foreign_cluster_is_refused_for_ever_and_dialled_slowly),
        T(a_member_at_another_members_address_is_not_taken_for_it),
        T(frames_that_dribble_in_byte_by_byte_arrive),
        T(a_damaged_or_absurd_frame_ends_the_connection_only),
        T(a_second_connection_on_a_channel_replaces_the_first),
        T(a_callback_may_remove_the_member_that_it_is_about),
        T(a_members_address_can_change),
        T(ipv6_works),
        T(an_empty_host_listens_on_all_addresses_of_both_families),
        T(names_are_resolved),
        T(names_that_mean_nothing_and_nonsense_are_only_retried),
        T(what_cannot_be_listened_on_is_said_in_one_sentence),
        T(without_file_descriptors_accepting_rests_and_goes_on),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
