/* face.c - the node's face (node.h): from a front's call to mail for the raft loop, and reads that
 * go straight to the store. */
#include "server/node_internal.h"

#include "base/clock.h"
#include "base/limits.h"
#include "kv/watch.h"

/* --- Writes ---------------------------------------------------------------------------------- */

/* Around the caller's callback: what /metrics counts. */
struct write_call {
    struct node *n;
    uint64_t start_us;
    node_write_fn *fn;
    void *arg;
};

static void on_written(void *arg, enum krd_status status, struct kv_result *result)
{
    struct write_call *c = arg;
    histogram_add(&c->n->metrics.write, krd_mono_us() - c->start_us);
    if (status != KRD_OK)
        atomic_fetch_add(&c->n->metrics.proposals_failed, 1);
    if (status == KRD_OUTCOME_UNKNOWN)
        atomic_fetch_add(&c->n->metrics.proposals_unknown, 1);
    c->fn(c->arg, status, result);
    krd_free(c);
}

struct raft_entry node_encode(Etcdserverpb__InternalRaftRequest *r)
{
    size_t len = etcdserverpb__internal_raft_request__get_packed_size(r);
    struct raft_entry e = raft_entry_begin(RAFT_ENTRY_COMMAND, len);
    size_t wrote =
        etcdserverpb__internal_raft_request__pack(r, e.record + RAFT_RECORD_HEADER_BYTES);
    KRD_ASSERT(wrote == len);
    raft_entry_close(&e);
    return e;
}

/* What a full disk has no room for; deletes, compaction and renewals go on. */
static bool brings_data(const Etcdserverpb__InternalRaftRequest *r)
{
    return r->put != NULL || r->txn != NULL || r->lease_grant != NULL;
}

void node_propose(struct node *n, Etcdserverpb__InternalRaftRequest *r, uint32_t timeout_ms,
                  node_write_fn *fn, void *arg)
{
    enum krd_status refuse = atomic_load_explicit(&n->stopping, memory_order_relaxed) ? KRD_STOPPING
                             : brings_data(r) && wal_writer_starved(n->log)           ? KRD_NO_SPACE
                                                                                      : KRD_OK;
    if (refuse != KRD_OK) {
        fn(arg, refuse, NULL);
        return;
    }
    struct write_call *c = krd_alloc(sizeof *c);
    *c = (struct write_call){n, krd_mono_us(), fn, arg};
    uint32_t timeout = timeout_ms != 0 ? timeout_ms : n->o.request_timeout_ms;
    struct proposal *p = proposals_admit(n->proposals, on_written, c, c->start_us / 1000 + timeout);
    if (p == NULL) {
        krd_free(c);
        atomic_fetch_add(&n->metrics.proposals_failed, 1);
        fn(arg, KRD_OVERLOADED, NULL);
        return;
    }
    atomic_fetch_add_explicit(&n->metrics.proposals, 1, memory_order_relaxed);
    r->origin = n->identity.member_id;
    r->boot = n->identity.boot;
    r->sequence = p->sequence;
    r->settled = proposals_settled(n->proposals);
    p->entry = node_encode(r);
    node_post(n, &p->mail, NODE_MAIL_PROPOSAL);
}

void node_propose_own(struct node *n, Etcdserverpb__InternalRaftRequest *r)
{
    struct own_entry *own = krd_zalloc(sizeof *own);
    own->entry = node_encode(r);
    node_post(n, &own->mail, NODE_MAIL_OWN_ENTRY);
}

enum krd_status node_check(struct node *n, const Etcdserverpb__InternalRaftRequest *r,
                           const char **message)
{
    size_t len = etcdserverpb__internal_raft_request__get_packed_size(r);
    /* Keys and the envelope come on top of the body that a client was allowed. */
    if (len > n->o.max_request_bytes + KRD_KEY_BYTES_MAX + 1024) {
        *message = "request is too large";
        return KRD_TOO_LARGE;
    }
    return kv_check(r, message);
}

void node_lease_keep_alive(struct node *n, int64_t lease, node_write_fn *fn, void *arg)
{
    if (atomic_load_explicit(&n->stopping, memory_order_relaxed)) {
        fn(arg, KRD_STOPPING, NULL);
        return;
    }
    struct renew_wait *w = krd_zalloc(sizeof *w);
    w->lease = lease;
    w->fn = fn;
    w->arg = arg;
    node_post(n, &w->mail, NODE_MAIL_RENEW);
}

/* --- Reads ----------------------------------------------------------------------------------- */

struct barrier_call {
    struct replica_wait wait;
    struct node *n;
    uint64_t start_us;
    node_barrier_fn *fn;
    void *arg;
};

static void on_barrier(void *arg, enum krd_status status)
{
    struct barrier_call *c = arg;
    histogram_add(&c->n->metrics.barrier, krd_mono_us() - c->start_us);
    if (status != KRD_OK)
        atomic_fetch_add(&c->n->metrics.read_barriers_failed, 1);
    c->fn(c->arg, status);
    krd_free(c);
}

static struct barrier_call *barrier_call(struct node *n, uint32_t timeout_ms, node_barrier_fn *fn,
                                         void *arg)
{
    struct barrier_call *c = krd_zalloc(sizeof *c);
    c->n = n;
    c->start_us = krd_mono_us();
    c->fn = fn;
    c->arg = arg;
    c->wait.fn = on_barrier;
    c->wait.arg = c;
    uint32_t timeout = timeout_ms != 0 ? timeout_ms : n->o.request_timeout_ms;
    c->wait.deadline_ms = c->start_us / 1000 + timeout;
    return c;
}

void node_read_barrier(struct node *n, uint32_t timeout_ms, node_barrier_fn *fn, void *arg)
{
    if (atomic_load_explicit(&n->stopping, memory_order_relaxed)) {
        fn(arg, KRD_STOPPING);
        return;
    }
    atomic_fetch_add_explicit(&n->metrics.read_barriers, 1, memory_order_relaxed);
    struct barrier_call *c = barrier_call(n, timeout_ms, fn, arg);
    node_post(n, &c->wait.mail, NODE_MAIL_BARRIER);
}

uint64_t node_staleness_ms(struct node *n)
{
    uint64_t now = krd_mono_ms(), fresh = atomic_load(&n->fresh_ms);
    atomic_store(&n->want_fresh_until_ms, now + 10000);
    return fresh == 0 ? UINT64_MAX : now > fresh ? now - fresh : 0;
}

enum krd_status node_get(struct node *n, struct slice key, int64_t revision,
                         struct krd_arena *arena, struct kv_pair *out, int64_t *store_revision)
{
    return kv_get(n->store, key, revision, arena, out, store_revision);
}

enum krd_status node_cursor_open(struct node *n, const struct kv_query *q, struct kv_cursor **out)
{
    return kv_cursor_open(n->store, q, out);
}

bool node_cursor_next(struct kv_cursor *c, struct kv_pair *out)
{
    return kv_cursor_next(c, out);
}
int64_t node_cursor_revision(const struct kv_cursor *c)
{
    return kv_cursor_revision(c);
}
int64_t node_cursor_count_rest(struct kv_cursor *c)
{
    return kv_cursor_count_rest(c);
}
void node_cursor_close(struct kv_cursor *c)
{
    kv_cursor_close(c);
}

enum krd_status node_history(struct node *n, struct slice key, size_t limit,
                             struct krd_arena *arena, struct kv_pair **out, size_t *count,
                             int64_t *store_revision)
{
    return kv_history(n->store, key, limit, arena, out, count, store_revision);
}

int64_t node_revision(struct node *n)
{
    return kv_revision(n->store);
}
int64_t node_compacted_revision(struct node *n)
{
    return kv_compacted_revision(n->store);
}

uint64_t node_cluster_time_ms(struct node *n)
{
    return (uint64_t)((int64_t)krd_mono_ms() +
                      atomic_load_explicit(&n->cluster_time_offset_ms, memory_order_relaxed));
}

static struct node_lease node_lease_of(struct node *n, const struct kv_lease_info *i)
{
    return (struct node_lease){
        .id = i->id,
        .ttl = i->ttl,
        .remaining_ms = (int64_t)(i->deadline_ms - node_cluster_time_ms(n)),
        .keys = i->keys,
    };
}

enum krd_status node_lease_get(struct node *n, int64_t id, struct node_lease *out)
{
    struct kv_lease_info info;
    enum krd_status st = kv_lease_get(n->store, id, &info);
    if (st == KRD_OK)
        *out = node_lease_of(n, &info);
    return st;
}

size_t node_lease_list(struct node *n, struct node_lease **out)
{
    struct kv_lease_info *infos;
    size_t count = kv_lease_list(n->store, &infos);
    *out = krd_calloc(count, sizeof **out);
    for (size_t i = 0; i < count; i++)
        (*out)[i] = node_lease_of(n, &infos[i]);
    krd_free(infos);
    return count;
}

size_t node_lease_keys(struct node *n, int64_t id, struct krd_arena *arena, struct slice **out)
{
    return kv_lease_keys(n->store, id, arena, out);
}

/* --- Watching: the store's groups under the face's names -----------------------------------------
 */

struct node_watch_group *node_watch_group_create(struct node *n, void (*wake)(void *arg), void *arg)
{
    return (struct node_watch_group *)kv_watch_group_create(n->store, wake, arg);
}

void node_watch_group_destroy(struct node_watch_group *g)
{
    kv_watch_group_destroy((struct kv_watch_group *)g);
}

bool node_watch_run(struct node_watch_group *g)
{
    return kv_watch_run((struct kv_watch_group *)g);
}

enum krd_status node_watch_open(struct node_watch_group *g, const struct node_watch_spec *spec,
                                const struct node_watch_sink *sink, struct node_watch **out)
{
    struct kv_watch_spec s = {.range = spec->range,
                              .from = spec->from,
                              .prev_kv = spec->prev_kv,
                              .no_put = spec->no_put,
                              .no_delete = spec->no_delete};
    struct kv_watch_sink k = {
        .arg = sink->arg, .events = sink->events, .compacted = sink->compacted};
    struct kv_watch *w = NULL;
    enum krd_status st = kv_watch_open((struct kv_watch_group *)g, &s, &k, &w);
    *out = (struct node_watch *)w;
    return st;
}

void node_watch_resume(struct node_watch *w)
{
    kv_watch_resume((struct kv_watch *)w);
}
int64_t node_watch_synced_revision(const struct node_watch *w)
{
    return kv_watch_synced_revision((const struct kv_watch *)w);
}
void node_watch_close(struct node_watch *w)
{
    kv_watch_close((struct kv_watch *)w);
}

/* --- The cluster ----------------------------------------------------------------------------- */

static enum node_role role_of(const struct raft_status *st, const struct raft_config_state *c)
{
    const struct raft_member *self = raft_config_find(c, st->id);
    if (st->role == RAFT_LEADER)
        return NODE_LEADER;
    if (self != NULL && !self->voter)
        return NODE_LEARNER;
    return st->role == RAFT_FOLLOWER ? NODE_FOLLOWER : NODE_CANDIDATE;
}

static const struct member_view *find_view(const struct node *n, raft_id id)
{
    for (size_t i = 0; i < n->n_published_views; i++)
        if (n->published_views[i].id == id)
            return &n->published_views[i];
    return NULL;
}

static void describe_member(struct node *n, const struct raft_status *st, uint32_t i,
                            struct node_member *out)
{
    const struct raft_member *m = &n->config.members[i];
    const struct member_view *v = find_view(n, m->id), *leader = find_view(n, st->leader);
    uint64_t end = st->role == RAFT_LEADER ? st->last : leader != NULL ? leader->match : 0;
    out->id = m->id;
    memcpy(out->name, m->name, sizeof out->name);
    memcpy(out->raft_address, m->address, sizeof out->raft_address);
    out->voter = m->voter;
    out->is_self = m->id == st->id;
    out->is_leader = m->id == st->leader;
    out->lag = -1;
    if (out->is_self || out->is_leader) {
        out->match_index = out->is_self ? st->last : end;
        out->lag = out->is_leader ? 0 : (int64_t)(end > st->last ? end - st->last : 0);
        out->healthy = st->leader != 0 && (out->is_self || n->peer_status[i].connected);
    } else {
        out->healthy = n->peer_status[i].connected && (v == NULL || v->active);
    }
    if (v != NULL && !out->is_self && !out->is_leader) {
        out->match_index = v->match;
        out->rtt_us = v->rtt_us;
        if (st->leader != 0)
            out->lag = (int64_t)(end > v->match ? end - v->match : 0);
    }
    const char *http = out->is_self ? n->http_advertise : v != NULL ? v->http_address : "";
    krd_copy_text(out->http_address, sizeof out->http_address, http);
}

void node_get_status(struct node *n, struct node_status *out)
{
    *out = (struct node_status){.cluster_id = n->identity.cluster_id,
                                .member_id = n->identity.member_id,
                                .revision = kv_revision(n->store),
                                .compacted_revision = kv_compacted_revision(n->store),
                                .uptime_ms = krd_mono_ms() - n->started_ms,
                                .log_bytes = wal_writer_bytes(n->log),
                                .store_bytes = kv_disk_bytes(n->store),
                                .stopping = atomic_load(&n->stopping)};
    krd_copy_text(out->name, sizeof out->name, n->name);
    kv_state_hash(n->store, &out->state_hash_index, out->state_hash);
    pthread_mutex_lock(&n->status_lock);
    const struct raft_status *st = &n->raft_status;
    out->role = role_of(st, &n->config);
    out->leader_id = st->leader;
    out->term = st->term;
    out->commit_index = st->commit;
    out->last_index = st->last;
    out->first_index = st->base + 1;
    out->n_members = n->config.n;
    out->members = krd_calloc(n->config.n, sizeof *out->members);
    for (uint32_t i = 0; i < n->config.n; i++) {
        describe_member(n, st, i, &out->members[i]);
        if (out->members[i].is_leader)
            memcpy(out->leader_name, out->members[i].name, sizeof out->leader_name);
    }
    pthread_mutex_unlock(&n->status_lock);
    out->applied_index = kv_applied_index(n->store);
    out->commit_index = krd_max_u64(out->commit_index, out->applied_index);
}

void node_status_deinit(struct node_status *s)
{
    krd_free(s->members);
    s->members = NULL;
}

bool node_peer_status(struct node *n, uint64_t id, struct peer_status *out)
{
    bool found = false;
    pthread_mutex_lock(&n->status_lock);
    for (uint32_t i = 0; i < n->config.n && !found; i++) {
        found = n->config.members[i].id == id;
        if (found)
            *out = n->peer_status[i];
    }
    pthread_mutex_unlock(&n->status_lock);
    return found;
}

const char *node_role_name(enum node_role role)
{
    static const char *const names[] = {"follower", "candidate", "leader", "learner"};
    return names[role];
}

bool node_healthy(struct node *n, const char **reason)
{
    /* Entries that wait to be received and applied: more than this is a node that cannot keep up
     * or that cannot be caught up. */
    const uint64_t lag_max = 50000;
    pthread_mutex_lock(&n->status_lock);
    const struct member_view *view = find_view(n, n->raft_status.leader);
    bool leader = n->raft_status.leader != 0;
    uint64_t commit = n->raft_status.commit;
    if (view != NULL) /* what the leader said of itself: where its log ends */
        commit = krd_max_u64(commit, view->match);
    pthread_mutex_unlock(&n->status_lock);
    uint64_t applied = kv_applied_index(n->store);
    const char *why = NULL;
    if (atomic_load(&n->stopping))
        why = "the node is stopping";
    else if (!leader)
        why = "no leader is known";
    else if (commit > applied && commit - applied > lag_max)
        why = "the state machine is behind";
    if (reason != NULL)
        *reason = why;
    return why == NULL;
}

struct transfer_call {
    struct replica_wait wait;
    node_barrier_fn *fn;
    void *arg;
};

static void on_transferred(void *arg, enum krd_status status)
{
    struct transfer_call *c = arg;
    c->fn(c->arg, status);
    krd_free(c);
}

void node_transfer(struct node *n, const char *name, node_barrier_fn *fn, void *arg)
{
    raft_id to = 0;
    pthread_mutex_lock(&n->status_lock);
    for (uint32_t i = 0; i < n->config.n; i++)
        if (strcmp(n->config.members[i].name, name) == 0)
            to = n->config.members[i].id;
    pthread_mutex_unlock(&n->status_lock);
    if (name[0] != '\0' && to == 0) {
        fn(arg, KRD_NOT_FOUND);
        return;
    }
    struct transfer_call *c = krd_zalloc(sizeof *c);
    c->fn = fn;
    c->arg = arg;
    c->wait.fn = on_transferred;
    c->wait.arg = c;
    c->wait.transfer_to = to;
    c->wait.deadline_ms = krd_mono_ms() + 2 * n->o.election_ms;
    node_post(n, &c->wait.mail, NODE_MAIL_TRANSFER);
}
