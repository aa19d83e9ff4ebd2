/* node.c - a node's start and stop.
 *
 * Start: lock the directory and learn whose it is; open the store (its applied index says how much
 * of the log is needed), then the log; a fresh member of a fresh cluster writes the first entry,
 * the configuration, which is the same on all of them; then the transport, and the threads.
 *
 * Stop runs along the flow: no new requests, answer or fail what is under way, the raft loop, the
 * log, the apply thread, upkeep; then a last checkpoint makes the store whole. */
#include "server/node_internal.h"

#include "base/clock.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/rand.h"

#include <stdlib.h>
#include <xxhash.h>

void node_options_default(struct node_options *o)
{
    *o = (struct node_options){
        .tick_ms = 10,
        .heartbeat_ms = 100,
        .election_ms = 1000,
        .request_timeout_ms = 5000,
        .max_request_bytes = KRD_REQUEST_BYTES_DEFAULT,
        .segment_bytes = 64u << 20,
        .log_cache_bytes = 8u << 20,
        .store_cache_bytes = 16u << 20,
        .store_buffer_bytes = 8u << 20,
        .history_age_ms = 3600u * 1000,
        .history_revisions = 1000000,
    };
}

/* --- Who we are ------------------------------------------------------------------------------ */

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct node_seed_member *)a)->name,
                  ((const struct node_seed_member *)b)->name);
}

/* The cluster's id follows from its first members and the token, so that all of them compute the
 * same one without talking. */
static uint64_t cluster_id_of(const struct node_options *o)
{
    struct node_seed_member *sorted = krd_calloc(o->n_initial, sizeof *sorted);
    memcpy(sorted, o->initial, o->n_initial * sizeof *sorted);
    qsort(sorted, o->n_initial, sizeof *sorted, by_name);
    struct krd_buf b = KRD_BUF_INIT;
    krd_buf_puts(&b, o->cluster_token != NULL ? o->cluster_token : "");
    krd_buf_put_u8(&b, 0);
    for (size_t i = 0; i < o->n_initial; i++) {
        krd_buf_puts(&b, sorted[i].name);
        krd_buf_put_u8(&b, '=');
        krd_buf_puts(&b, sorted[i].address);
        krd_buf_put_u8(&b, 0);
    }
    uint64_t id = XXH3_64bits(b.ptr, b.len);
    krd_buf_deinit(&b);
    krd_free(sorted);
    return id != 0 ? id : 1;
}

static uint64_t member_id_of(uint64_t cluster_id, const char *name)
{
    uint64_t id = XXH3_64bits_withSeed(name, strlen(name), cluster_id);
    return id != 0 ? id : 1;
}

static int by_id(const void *a, const void *b)
{
    const struct raft_member *x = a, *y = b;
    return (x->id > y->id) - (x->id < y->id);
}

static void first_config(const struct node_options *o, uint64_t cluster_id,
                         struct raft_config_state *c)
{
    *c = (struct raft_config_state){.n = (uint32_t)o->n_initial};
    for (size_t i = 0; i < o->n_initial; i++) {
        struct raft_member *m = &c->members[i];
        m->id = member_id_of(cluster_id, o->initial[i].name);
        m->voter = true;
        krd_copy_text(m->name, sizeof m->name, o->initial[i].name);
        krd_copy_text(m->address, sizeof m->address, o->initial[i].address);
    }
    qsort(c->members, c->n, sizeof c->members[0], by_id);
}

static enum krd_status check_identity(struct node *n, char **err)
{
    struct identity *id = &n->identity;
    if (strcmp(id->name, n->o.name) != 0) {
        *err = krd_asprintf("data directory %s belongs to member %s, not to %s", n->dir, id->name,
                            n->o.name);
        return KRD_CONFLICT;
    }
    if (n->o.initial_given && cluster_id_of(&n->o) != id->cluster_id) {
        *err = krd_asprintf("data directory %s belongs to another cluster (%016" PRIx64
                            ") than -initial-cluster names (%016" PRIx64 ")",
                            n->dir, id->cluster_id, cluster_id_of(&n->o));
        return KRD_CONFLICT;
    }
    return KRD_OK;
}

static enum krd_status open_identity(struct node *n, char **err)
{
    enum krd_status st = identity_open(n->dir, &n->identity, err);
    if (st != KRD_OK)
        return st;
    if (!n->identity.fresh)
        return check_identity(n, err);
    n->identity.cluster_id = cluster_id_of(&n->o);
    n->identity.member_id = member_id_of(n->identity.cluster_id, n->o.name);
    krd_copy_text(n->identity.name, sizeof n->identity.name, n->o.name);
    return KRD_OK;
}

/* --- Opening --------------------------------------------------------------------------------- */

static enum krd_status open_store(struct node *n, raft_index checkpoint, char **err)
{
    char *dir = krd_asprintf("%s/state", n->dir);
    struct kv_options o = {
        .dir = dir,
        .self = n->identity.member_id,
        .self_boot = n->identity.boot,
        .checkpoint = checkpoint,
        .cache_bytes = n->o.store_cache_bytes,
        .write_buffer_bytes = n->o.store_buffer_bytes,
    };
    enum krd_status st = kv_open(&o, &n->store, err);
    krd_free(dir);
    return st;
}

static enum krd_status open_log(struct node *n, struct wal **w, struct wal_recovered *rec,
                                char **err)
{
    char *dir = krd_asprintf("%s/log", n->dir);
    const struct krd_vfs *v = krd_vfs_posix();
    int rv = v->mkdir(v->ctx, dir);
    enum krd_status st = KRD_OK;
    if (rv < 0) {
        *err = krd_asprintf("cannot create %s: %s", dir, strerror(-rv));
        st = KRD_IO;
    } else {
        struct wal_options o = {.vfs = v,
                                .dir = dir,
                                .cluster_id = n->identity.cluster_id,
                                .member_id = n->identity.member_id,
                                .segment_bytes = n->o.segment_bytes};
        st = wal_open(&o, kv_applied_index(n->store), w, rec, err);
    }
    krd_free(dir);
    return st;
}

/* The first entry of every member's log is the configuration, in term 1, as if a leader had
 * committed it: all start from the same state. */
static void write_first_entry(struct node *n, struct wal *w, struct wal_recovered *rec)
{
    struct raft_config_state *c = krd_zalloc(sizeof *c);
    first_config(&n->o, n->identity.cluster_id, c);
    struct krd_buf b = KRD_BUF_INIT;
    raft_config_encode(c, &b);
    struct raft_entry e = raft_entry_make(RAFT_ENTRY_CONFIG, krd_buf_slice(&b));
    krd_buf_deinit(&b);
    raft_entry_seal(&e, 1, 1, 0);
    struct raft_write write = {
        .seq = 1,
        .has_hard_state = true,
        .hard_state = {.term = 1, .commit = 1},
        .entries = &e,
        .n_entries = 1,
    };
    wal_append(w, &write, 1);
    rec->hard_state = write.hard_state;
    rec->last_index = 1;
    rec->runs = krd_realloc(rec->runs, sizeof *rec->runs);
    rec->runs[0] = (struct raft_term_run){.first = 1, .term = 1};
    rec->n_runs = 1;
    rec->entries = krd_realloc(rec->entries, sizeof *rec->entries);
    rec->entries[0] = e;
    rec->n_entries = 1;
    rec->config = c;
    rec->config_index = 1;
}

#define MEMBER_LOST "see docs/OPERATIONS.md, 'Losing a member for good'"

/* A member that lost its log has forgotten what it voted for and acknowledged: it must not go on
 * as if it were new. The identity is written after the log's first entry, so that a known member
 * without a log is one that lost it. */
static enum krd_status check_recovered(struct node *n, const struct wal_recovered *rec, char **err)
{
    raft_index applied = kv_applied_index(n->store);
    if (!n->identity.fresh && rec->created)
        *err = krd_asprintf(
            "%s/log: this member's log is gone, and with it what it acknowledged; " MEMBER_LOST,
            n->dir);
    else if (rec->last_index == 0 || rec->config == NULL)
        *err = krd_asprintf(
            "%s/log: holds no configuration: the directory is damaged; " MEMBER_LOST, n->dir);
    else if (applied > rec->last_index)
        *err =
            krd_asprintf("%s: the store has applied entry %" PRIu64 ", but the log ends at %" PRIu64
                         ": the log was damaged or exchanged; " MEMBER_LOST,
                         n->dir, applied, rec->last_index);
    else if (rec->checkpoint > applied || rec->base_index > applied)
        *err = krd_asprintf("%s/state: holds entries up to %" PRIu64
                            " only, but was durable up to %" PRIu64
                            ": the store was damaged; see docs/OPERATIONS.md, 'LevelDB is damaged'",
                            n->dir, applied, krd_max_u64(rec->checkpoint, rec->base_index));
    else
        return KRD_OK;
    return KRD_CORRUPT;
}

static void create_core(struct node *n, const struct wal_recovered *rec)
{
    struct raft_options o;
    raft_options_default(&o);
    o.id = n->identity.member_id;
    krd_random_bytes(&o.seed, sizeof o.seed);
    o.election_ticks = n->o.election_ms / n->o.tick_ms;
    o.heartbeat_ticks = n->o.heartbeat_ms / n->o.tick_ms;
    o.cache_bytes = n->o.log_cache_bytes;
    struct raft_restored from = {
        .hard_state = rec->hard_state,
        .base_index = rec->base_index,
        .base_term = rec->base_term,
        .runs = rec->runs,
        .n_runs = rec->n_runs,
        .last_index = rec->last_index,
        .applied = kv_applied_index(n->store),
        .time_ms = krd_max_u64(rec->time_ms, kv_applied_time_ms(n->store)),
        .entries = rec->entries,
        .n_entries = rec->n_entries,
        .config = rec->config,
        .config_index = rec->config_index,
    };
    n->core = raft_create(&o, &from);
    struct replica_ops ops = raft_loop_ops;
    ops.ctx = n;
    n->replica = replica_create(n->core, n->proposals, &ops);
}

static void on_persisted(void *arg, uint64_t seq)
{
    struct node *n = arg;
    node_notify(n, &n->persisted, seq);
}

static void on_fetched(void *arg, raft_id peer, struct raft_entry *entries, size_t count)
{
    struct node *n = arg;
    struct fetched *f = krd_zalloc(sizeof *f);
    f->peer = peer;
    f->entries = entries;
    f->n = count;
    node_post(n, &f->mail, NODE_MAIL_FETCHED);
}

static void on_synced(void *arg, uint64_t us, uint64_t bytes)
{
    struct node *n = arg;
    histogram_add(&n->metrics.fsync, us);
    atomic_fetch_add_explicit(&n->metrics.log_batches, 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&n->metrics.log_bytes, bytes, memory_order_relaxed);
}

static enum krd_status open_net(struct node *n, char **err)
{
    struct peer_tcp_options o;
    peer_tcp_options_default(&o);
    o.loop = &n->loop;
    o.listen = n->o.raft_listen;
    o.cluster_id = n->identity.cluster_id;
    o.id = n->identity.member_id;
    o.boot = n->identity.boot;
    krd_random_bytes(&o.seed, sizeof o.seed);
    struct peer_callbacks cb = raft_loop_peer_callbacks(n);
    return peer_tcp_create(&o, &cb, &n->net, err);
}

static void connect_peers(struct node *n)
{
    const struct raft_config_state *c = raft_config(n->core, NULL);
    for (uint32_t i = 0; i < c->n; i++)
        if (c->members[i].id != n->identity.member_id)
            n->net->ops->set_peer(n->net, c->members[i].id, c->members[i].address);
}

static void start_thread(pthread_t *t, void *(*fn)(void *), struct node *n)
{
    if (pthread_create(t, NULL, fn, n) != 0)
        krd_fatal("reason=\"cannot start a thread\"");
}

static void free_node(struct node *n)
{
    if (n->net != NULL)
        n->net->ops->destroy(n->net);
    replica_destroy(n->replica);
    raft_destroy(n->core);
    kv_close(n->store);
    proposals_destroy(n->proposals);
    identity_close(&n->identity);
    krd_buf_deinit(&n->frame);
    if (n->inbox_io.fd >= 0)
        krd_loop_del(&n->loop, &n->inbox_io);
    krd_loop_deinit(&n->loop);
    krd_mailbox_deinit(&n->inbox);
    krd_mailbox_deinit(&n->apply_inbox);
    krd_mailbox_deinit(&n->upkeep_inbox);
    pthread_mutex_destroy(&n->status_lock);
    pthread_cond_destroy(&n->status_changed);
    krd_free(n->dir);
    krd_free(n->name);
    krd_free(n->http_advertise);
    krd_free(n);
}

static struct node *new_node(const struct node_options *o)
{
    struct node *n = krd_zalloc(sizeof *n);
    n->o = *o;
    n->dir = krd_strdup(o->dir);
    n->name = krd_strdup(o->name);
    n->http_advertise = krd_strdup(o->http_advertise);
    n->o.dir = n->dir;
    n->o.name = n->name;
    n->identity.lock_fd = -1;
    n->inbox_io.fd = -1;
    n->started_ms = krd_mono_ms();
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_mutex_init(&n->status_lock, NULL);
    pthread_cond_init(&n->status_changed, &attr);
    pthread_condattr_destroy(&attr);
    n->proposals = proposals_create();
    if (krd_mailbox_init(&n->inbox) != KRD_OK || krd_mailbox_init(&n->apply_inbox) != KRD_OK ||
        krd_mailbox_init(&n->upkeep_inbox) != KRD_OK || krd_loop_init(&n->loop) != KRD_OK)
        krd_fatal("reason=\"no file descriptors are left\"");
    return n;
}

/* What must be there before any thread runs. */
static enum krd_status open_all(struct node *n, struct wal **w, struct wal_recovered *rec,
                                char **err)
{
    enum krd_status st = open_identity(n, err);
    if (st == KRD_OK)
        st = identity_count_boot(n->dir, &n->identity, err);
    if (st == KRD_OK)
        st = open_net(n, err); /* says the boot number in its hello */
    if (st == KRD_OK)
        st = open_store(n, 0, err);
    if (st == KRD_OK)
        st = open_log(n, w, rec, err);
    /* Also after a start that ended between making the log and its first entry. */
    if (st == KRD_OK && n->identity.fresh && rec->last_index == 0)
        write_first_entry(n, *w, rec);
    if (st == KRD_OK)
        st = check_recovered(n, rec, err);
    if (st == KRD_OK && n->identity.fresh)
        st = identity_save(n->dir, &n->identity, err);
    return st;
}

enum krd_status node_start(const struct node_options *o, struct node **out, char **err)
{
    struct node *n = new_node(o);
    struct wal *w = NULL;
    struct wal_recovered rec = {0};
    enum krd_status st = open_all(n, &w, &rec, err);
    if (st != KRD_OK) {
        wal_recovered_deinit(&rec);
        wal_close(w);
        free_node(n);
        return st;
    }
    if (rec.torn_tail)
        krd_info("the log's unsynced tail was cut off", "file=\"%s\" offset=%" PRIu64,
                 rec.torn_file, rec.torn_offset);
    krd_info("data opened",
             "cluster=%016" PRIx64 " member=%016" PRIx64 " boot=%" PRIu64 " term=%" PRIu64
             " last_index=%" PRIu64 " applied=%" PRIu64 " revision=%" PRId64 " ms=%" PRIu64,
             n->identity.cluster_id, n->identity.member_id, n->identity.boot, rec.hard_state.term,
             rec.last_index, kv_applied_index(n->store), kv_revision(n->store),
             krd_mono_ms() - n->started_ms);
    create_core(n, &rec);
    wal_recovered_deinit(&rec);
    struct wal_writer_callbacks cb = {
        .arg = n, .persisted = on_persisted, .fetched = on_fetched, .synced = on_synced};
    raft_loop_init(n);
    n->log = wal_writer_start(w, &cb);
    connect_peers(n);
    raft_loop_publish(n);
    start_thread(&n->apply_thread, apply_loop_main, n);
    start_thread(&n->raft_thread, raft_loop_main, n);
    start_thread(&n->upkeep_thread, upkeep_main, n);
    *out = n;
    return KRD_OK;
}

/* --- Stopping -------------------------------------------------------------------------------- */

struct aside {
    struct replica_wait wait;
    pthread_mutex_t lock;
    pthread_cond_t done_cond;
    bool done;
};

static void on_aside(void *arg, enum krd_status status)
{
    (void)status;
    struct aside *a = arg;
    pthread_mutex_lock(&a->lock);
    a->done = true;
    pthread_cond_signal(&a->done_cond);
    pthread_mutex_unlock(&a->lock);
}

void node_step_aside(struct node *n, uint32_t timeout_ms)
{
    pthread_mutex_lock(&n->status_lock);
    bool leads = n->raft_status.role == RAFT_LEADER && n->config.n > 1;
    pthread_mutex_unlock(&n->status_lock);
    if (!leads)
        return;
    struct aside a = {.lock = PTHREAD_MUTEX_INITIALIZER, .done_cond = PTHREAD_COND_INITIALIZER};
    a.wait.fn = on_aside;
    a.wait.arg = &a;
    a.wait.deadline_ms = krd_mono_ms() + timeout_ms;
    node_post(n, &a.wait.mail, NODE_MAIL_TRANSFER);
    pthread_mutex_lock(&a.lock);
    while (!a.done)
        pthread_cond_wait(&a.done_cond, &a.lock);
    pthread_mutex_unlock(&a.lock);
}

/* Mail that no loop will take any more: proposals and waits were answered by replica_fail_all. */
static void drain_inbox(struct node *n)
{
    n->inbox_io.fn(&n->inbox_io, EPOLLIN);
    replica_fail_all(n->replica);
}

void node_stop(struct node *n)
{
    atomic_store(&n->stopping, true);
    atomic_store(&n->stop_raft, true);
    node_notify(n, &n->wake, 1);
    pthread_join(n->raft_thread, NULL);

    atomic_store(&n->stop_upkeep, true);
    krd_mailbox_put(&n->upkeep_inbox, &n->upkeep_stop);
    pthread_join(n->upkeep_thread, NULL);
    krd_mailbox_take(&n->upkeep_inbox);

    atomic_store(&n->stop_apply, true);
    apply_loop_submit(n, NULL, 0);
    pthread_join(n->apply_thread, NULL);

    wal_writer_stop(n->log);
    drain_inbox(n);
    krd_mailbox_take(&n->apply_inbox);
    drain_inbox(n);
    free_node(n);
}
