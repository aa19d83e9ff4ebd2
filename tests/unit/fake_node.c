/* Modest on purpose: everything under one lock, nothing is ever freed before the end, history is a
 * list of versions a key. What matters is that callbacks come from another thread and that the
 * results have the shape of the real ones. */
#include "tests/unit/fake_node.h"

#include "base/arena.h"
#include "base/limits.h"

#include <pthread.h>
#include <stdio.h>

struct record { /* one key */
    struct slice key;
    struct kv_pair *versions; /* oldest first; version 0: a tombstone */
    size_t n, cap;
};

struct event {
    struct kv_event e;
    int64_t revision;
};

struct lease {
    int64_t id, ttl;
    bool ended;
};

struct job {
    struct job *next;
    uint8_t *packed; /* NULL: no command */
    size_t len;
    int64_t keep_alive; /* != 0 */
    node_write_fn *write_fn;
    node_barrier_fn *barrier_fn;
    void *arg;
};

struct node {
    pthread_mutex_t lock;
    pthread_cond_t work;
    pthread_t thread;
    struct job *first, **last;
    size_t waiting, barriers, watches, cursors;
    bool hold, stop;
    enum krd_status refuse;
    uint64_t staleness_ms;
    size_t max_request_bytes;

    struct krd_arena arena;
    struct record **keys; /* sorted */
    size_t n_keys, cap_keys;
    struct event *events;
    size_t n_events, cap_events;
    struct lease leases[64];
    size_t n_leases;
    int64_t revision, compacted;
    struct node_watch_group *groups;
};

/* --- State ------------------------------------------------------------------------------------ */

static size_t lower_bound(const struct node *n, struct slice key)
{
    size_t lo = 0, hi = n->n_keys;
    while (lo < hi) {
        size_t mid = (lo + hi) / 2;
        if (slice_cmp(n->keys[mid]->key, key) < 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

static struct record *record_of(struct node *n, struct slice key, bool create)
{
    size_t at = lower_bound(n, key);
    if (at < n->n_keys && slice_eq(n->keys[at]->key, key))
        return n->keys[at];
    if (!create)
        return NULL;
    krd_grow(&n->keys, &n->cap_keys, n->n_keys + 1, sizeof n->keys[0]);
    memmove(n->keys + at + 1, n->keys + at, (n->n_keys - at) * sizeof n->keys[0]);
    n->n_keys++;
    n->keys[at] = krd_zalloc(sizeof *n->keys[at]);
    n->keys[at]->key = krd_arena_copy(&n->arena, key);
    return n->keys[at];
}

/* The live version at a revision (0: the newest), or NULL. */
static struct kv_pair *version_at(const struct record *rec, int64_t revision)
{
    for (size_t i = rec != NULL ? rec->n : 0; i > 0; i--) {
        struct kv_pair *v = &rec->versions[i - 1];
        if (revision <= 0 || v->mod_revision <= revision)
            return v->version > 0 ? v : NULL;
    }
    return NULL;
}

static struct lease *lease_of(struct node *n, int64_t id)
{
    for (size_t i = 0; i < n->n_leases; i++) {
        if (n->leases[i].id == id && !n->leases[i].ended)
            return &n->leases[i];
    }
    return NULL;
}

static struct kv_pair add_version(struct node *n, struct record *rec, struct kv_pair v,
                                  int64_t revision)
{
    struct kv_pair *old = version_at(rec, 0);
    bool put = v.version != 0;
    v.key = rec->key;
    v.mod_revision = revision;
    v.create_revision = !put ? 0 : old != NULL ? old->create_revision : revision;
    v.version = !put ? 0 : old != NULL ? old->version + 1 : 1;
    krd_grow(&n->events, &n->cap_events, n->n_events + 1, sizeof n->events[0]);
    struct event *e = &n->events[n->n_events++];
    *e = (struct event){{put ? KV_EVENT_PUT : KV_EVENT_DELETE, v, old != NULL, {}}, revision};
    if (old != NULL)
        e->e.prev = *old;
    krd_grow(&rec->versions, &rec->cap, rec->n + 1, sizeof rec->versions[0]);
    rec->versions[rec->n++] = v;
    return v;
}

/* --- Commands --------------------------------------------------------------------------------- */

static struct slice bytes(ProtobufCBinaryData b)
{
    return slice_of(b.data, b.len);
}

static void run_txn(struct node *n, struct kv_result *res, const Etcdserverpb__TxnRequest *m,
                    int64_t rev, bool *wrote, struct kv_op_result *out);

static void run_put(struct node *n, struct kv_result *res, const Etcdserverpb__PutRequest *m,
                    int64_t rev, bool *wrote, struct kv_op_result *out)
{
    struct record *rec = record_of(n, bytes(m->key), true);
    struct kv_pair *old = version_at(rec, 0);
    out->type = KV_OP_PUT;
    if (m->prev_kv && old != NULL) {
        out->u.put.has_prev = true;
        out->u.put.prev = *old;
    }
    int64_t lease = m->lease == -1 ? res->lease_id : m->lease;
    if (lease != 0 && lease_of(n, lease) == NULL) {
        res->status = KRD_LEASE_NOT_FOUND;
        res->message = krd_status_text(KRD_LEASE_NOT_FOUND);
        return;
    }
    struct kv_pair v = {
        .value = krd_arena_copy(&n->arena, bytes(m->value)), .version = 1, .lease = lease};
    out->u.put.kv = add_version(n, rec, v, rev);
    out->u.put.kv.value = slice_of(NULL, 0);
    *wrote = true;
}

static void run_delete(struct node *n, struct kv_result *res, struct kv_range range, bool prev,
                       int64_t rev, bool *wrote, struct kv_op_result *out)
{
    out->type = KV_OP_DELETE;
    for (size_t i = lower_bound(n, range.key); i < n->n_keys; i++) {
        struct kv_pair *old = version_at(n->keys[i], 0);
        if (!kv_range_contains(&range, n->keys[i]->key))
            break;
        if (old == NULL)
            continue;
        if (prev) {
            struct kv_pair *all =
                krd_arena_alloc(&res->arena, (out->u.del.n_prev + 1) * sizeof *all);
            if (out->u.del.n_prev > 0)
                memcpy(all, out->u.del.prev, out->u.del.n_prev * sizeof *all);
            all[out->u.del.n_prev++] = *old;
            out->u.del.prev = all;
        }
        add_version(n, n->keys[i], (struct kv_pair){.version = 0}, rev);
        out->u.del.deleted++;
        *wrote = true;
    }
}

static void run_range(struct node *n, struct kv_result *res, const Etcdserverpb__RangeRequest *m,
                      struct kv_op_result *out)
{
    struct kv_range range = {bytes(m->key), bytes(m->range_end)};
    out->type = KV_OP_RANGE;
    out->u.range.kvs = krd_arena_alloc(&res->arena, n->n_keys * sizeof(struct kv_pair));
    for (size_t i = lower_bound(n, range.key); i < n->n_keys; i++) {
        struct kv_pair *v = version_at(n->keys[i], m->revision);
        if (!kv_range_contains(&range, n->keys[i]->key))
            break;
        if (v == NULL)
            continue;
        out->u.range.count++;
        if (m->limit > 0 && out->u.range.count > m->limit) {
            out->u.range.more = true;
            continue;
        }
        out->u.range.kvs[out->u.range.n] = *v;
        if (m->keys_only)
            out->u.range.kvs[out->u.range.n].value = slice_of(NULL, 0);
        out->u.range.n++;
    }
}

static bool holds(struct node *n, const Etcdserverpb__Compare *m)
{
    static const struct kv_pair none;
    struct kv_pair *v = version_at(record_of(n, bytes(m->key), false), 0);
    const struct kv_pair *p = v != NULL ? v : &none;
    int64_t have = 0, want = 0;
    int c;
    switch (m->target) {
    case ETCDSERVERPB__COMPARE__COMPARE_TARGET__VALUE:
        if (v == NULL)
            return false;
        c = slice_cmp(v->value, bytes(m->value));
        break;
    case ETCDSERVERPB__COMPARE__COMPARE_TARGET__CREATE:
        have = p->create_revision;
        want = m->create_revision;
        break;
    case ETCDSERVERPB__COMPARE__COMPARE_TARGET__MOD:
        have = p->mod_revision;
        want = m->mod_revision;
        break;
    case ETCDSERVERPB__COMPARE__COMPARE_TARGET__LEASE:
        have = p->lease;
        want = m->lease;
        break;
    default:
        have = p->version;
        want = m->version;
    }
    if (m->target != ETCDSERVERPB__COMPARE__COMPARE_TARGET__VALUE)
        c = (have > want) - (have < want);
    switch (m->result) {
    case ETCDSERVERPB__COMPARE__COMPARE_RESULT__GREATER:
        return c > 0;
    case ETCDSERVERPB__COMPARE__COMPARE_RESULT__LESS:
        return c < 0;
    case ETCDSERVERPB__COMPARE__COMPARE_RESULT__NOT_EQUAL:
        return c != 0;
    default:
        return c == 0;
    }
}

static void run_op(struct node *n, struct kv_result *res, const Etcdserverpb__RequestOp *op,
                   int64_t rev, bool *wrote, struct kv_op_result *out)
{
    switch (op->request_case) {
    case ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_PUT:
        run_put(n, res, op->request_put, rev, wrote, out);
        break;
    case ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_DELETE_RANGE:
        run_delete(n, res,
                   (struct kv_range){bytes(op->request_delete_range->key),
                                     bytes(op->request_delete_range->range_end)},
                   op->request_delete_range->prev_kv, rev, wrote, out);
        break;
    case ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_RANGE:
        run_range(n, res, op->request_range, out);
        break;
    default:
        run_txn(n, res, op->request_txn, rev, wrote, out);
    }
}

static void run_txn(struct node *n, struct kv_result *res, const Etcdserverpb__TxnRequest *m,
                    int64_t rev, bool *wrote, struct kv_op_result *out)
{
    out->type = KV_OP_TXN;
    out->u.txn.succeeded = true;
    out->u.txn.failed_compare = -1;
    for (size_t i = 0; i < m->n_compare && out->u.txn.succeeded; i++) {
        out->u.txn.succeeded = holds(n, m->compare[i]);
        if (!out->u.txn.succeeded)
            out->u.txn.failed_compare = (int32_t)i;
    }
    size_t count = out->u.txn.succeeded ? m->n_success : m->n_failure;
    Etcdserverpb__RequestOp **ops = out->u.txn.succeeded ? m->success : m->failure;
    out->u.txn.n = count;
    out->u.txn.results = krd_arena_zalloc(&res->arena, count * sizeof *out->u.txn.results);
    for (size_t i = 0; i < count; i++)
        run_op(n, res, ops[i], rev, wrote, &out->u.txn.results[i]);
}

static void grant(struct node *n, struct kv_result *res, const Etcdserverpb__LeaseGrantRequest *m)
{
    int64_t id = m->id != 0 ? m->id : 0x1000 + (int64_t)n->n_leases;
    if (lease_of(n, id) != NULL) {
        res->status = KRD_LEASE_EXISTS;
        return;
    }
    KRD_ASSERT(n->n_leases < KRD_ARRAY_LEN(n->leases));
    n->leases[n->n_leases++] = (struct lease){id, m->ttl, false};
    res->lease_id = id;
    res->lease_ttl = m->ttl;
}

static void end_lease(struct node *n, struct kv_result *res, int64_t id, int64_t rev, bool *wrote)
{
    struct lease *l = lease_of(n, id);
    if (l == NULL) {
        res->status = KRD_LEASE_NOT_FOUND;
        return;
    }
    l->ended = true;
    for (size_t i = 0; i < n->n_keys; i++) {
        struct kv_pair *v = version_at(n->keys[i], 0);
        if (v != NULL && v->lease == id) {
            add_version(n, n->keys[i], (struct kv_pair){.version = 0}, rev);
            *wrote = true;
        }
    }
}

static void run_command(struct node *n, const Etcdserverpb__InternalRaftRequest *m,
                        struct kv_result *res)
{
    int64_t rev = n->revision + 1;
    bool wrote = false;
    if (m->lease_grant != NULL)
        grant(n, res, m->lease_grant);
    res->has_op = m->put != NULL || m->delete_range != NULL || m->txn != NULL;
    if (res->status == KRD_OK && m->put != NULL)
        run_put(n, res, m->put, rev, &wrote, &res->op);
    if (m->delete_range != NULL)
        run_delete(
            n, res,
            (struct kv_range){bytes(m->delete_range->key), bytes(m->delete_range->range_end)},
            m->delete_range->prev_kv, rev, &wrote, &res->op);
    if (m->txn != NULL)
        run_txn(n, res, m->txn, rev, &wrote, &res->op);
    if (m->lease_revoke != NULL)
        end_lease(n, res, m->lease_revoke->id, rev, &wrote);
    if (m->compaction != NULL) {
        if (m->compaction->revision <= n->compacted)
            res->status = KRD_COMPACTED;
        else if (m->compaction->revision > n->revision)
            res->status = KRD_FUTURE_REVISION;
        else
            n->compacted = m->compaction->revision;
    }
    if (wrote)
        n->revision = rev;
    res->revision = n->revision;
}

/* --- The thread that answers ------------------------------------------------------------------ */

struct node_watch_group {
    struct node *node;
    void (*wake)(void *);
    void *arg;
    struct node_watch *watches;
    struct node_watch_group *next;
};

static struct kv_result *run_job(struct node *n, const struct job *j)
{
    struct kv_result *res = krd_zalloc(sizeof *res);
    if (j->keep_alive != 0) {
        struct lease *l = lease_of(n, j->keep_alive);
        res->status = l != NULL ? KRD_OK : KRD_LEASE_NOT_FOUND;
        res->lease_ttl = l != NULL ? l->ttl : 0;
        res->revision = n->revision;
        return res;
    }
    Etcdserverpb__InternalRaftRequest *m =
        etcdserverpb__internal_raft_request__unpack(NULL, j->len, j->packed);
    KRD_ASSERT(m != NULL);
    run_command(n, m, res);
    etcdserverpb__internal_raft_request__free_unpacked(m, NULL);
    return res;
}

static void answer(struct node *n, struct job *j)
{
    enum krd_status st = n->stop ? KRD_STOPPING : n->refuse;
    struct kv_result *res = NULL;
    int64_t before = n->revision;
    if (st == KRD_OK && j->write_fn != NULL)
        res = run_job(n, j);
    for (struct node_watch_group *g = n->groups; g != NULL && n->revision > before; g = g->next)
        g->wake(g->arg);
    if (j->write_fn != NULL)
        j->write_fn(j->arg, st, res);
    else
        j->barrier_fn(j->arg, st);
    krd_free(j->packed);
    krd_free(j);
}

static void *run(void *arg)
{
    struct node *n = arg;
    pthread_mutex_lock(&n->lock);
    for (;;) {
        while (!n->stop && (n->first == NULL || n->hold))
            pthread_cond_wait(&n->work, &n->lock);
        struct job *j = n->first;
        if (j == NULL)
            break;
        n->first = j->next;
        if (n->first == NULL)
            n->last = &n->first;
        answer(n, j);
        n->waiting--;
    }
    pthread_mutex_unlock(&n->lock);
    return NULL;
}

static void submit(struct node *n, struct job job)
{
    struct job *j = krd_alloc(sizeof *j);
    *j = job;
    pthread_mutex_lock(&n->lock);
    j->next = NULL;
    *n->last = j;
    n->last = &j->next;
    n->waiting++;
    n->barriers += job.write_fn == NULL;
    pthread_cond_signal(&n->work);
    pthread_mutex_unlock(&n->lock);
}

/* --- For the tests ---------------------------------------------------------------------------- */

struct node *fake_node_create(size_t max_request_bytes)
{
    struct node *n = krd_zalloc(sizeof *n);
    pthread_mutex_init(&n->lock, NULL);
    pthread_cond_init(&n->work, NULL);
    n->last = &n->first;
    n->revision = 1;
    n->max_request_bytes = max_request_bytes;
    KRD_ASSERT(pthread_create(&n->thread, NULL, run, n) == 0);
    return n;
}

void fake_node_destroy(struct node *n)
{
    pthread_mutex_lock(&n->lock);
    n->stop = true;
    pthread_cond_signal(&n->work);
    pthread_mutex_unlock(&n->lock);
    pthread_join(n->thread, NULL);
    KRD_ASSERT(n->groups == NULL && n->watches == 0 && n->cursors == 0);
    for (size_t i = 0; i < n->n_keys; i++) {
        krd_free(n->keys[i]->versions);
        krd_free(n->keys[i]);
    }
    krd_free(n->keys);
    krd_free(n->events);
    krd_arena_deinit(&n->arena);
    pthread_mutex_destroy(&n->lock);
    pthread_cond_destroy(&n->work);
    krd_free(n);
}

#define LOCKED(n, statement)              \
    do {                                  \
        pthread_mutex_lock(&(n)->lock);   \
        statement;                        \
        pthread_cond_signal(&(n)->work);  \
        pthread_mutex_unlock(&(n)->lock); \
    } while (0)

void fake_node_hold(struct node *n, bool hold)
{
    LOCKED(n, n->hold = hold);
}
void fake_node_refuse(struct node *n, enum krd_status status)
{
    LOCKED(n, n->refuse = status);
}
void fake_node_set_staleness(struct node *n, uint64_t ms)
{
    LOCKED(n, n->staleness_ms = ms);
}

#define GETTER(T, name, member)   \
    T name(struct node *n)        \
    {                             \
        T v;                      \
        LOCKED(n, v = n->member); \
        return v;                 \
    }
GETTER(size_t, fake_node_waiting, waiting)
GETTER(size_t, fake_node_barriers, barriers)
GETTER(size_t, fake_node_watches, watches)
GETTER(size_t, fake_node_cursors, cursors)
GETTER(uint64_t, node_staleness_ms, staleness_ms)
GETTER(int64_t, node_revision, revision)
GETTER(int64_t, node_compacted_revision, compacted)

/* --- node.h: writes and barriers -------------------------------------------------------------- */

void node_propose(struct node *n, Etcdserverpb__InternalRaftRequest *r, uint32_t timeout_ms,
                  node_write_fn *fn, void *arg)
{
    (void)timeout_ms;
    size_t len = etcdserverpb__internal_raft_request__get_packed_size(r);
    uint8_t *packed = krd_alloc(len + 1);
    etcdserverpb__internal_raft_request__pack(r, packed);
    submit(n, (struct job){.packed = packed, .len = len, .write_fn = fn, .arg = arg});
}

enum krd_status node_check(struct node *n, const Etcdserverpb__InternalRaftRequest *r,
                           const char **message)
{
    if (etcdserverpb__internal_raft_request__get_packed_size(r) <= n->max_request_bytes + 1024)
        return KRD_OK;
    *message = "the request is too large";
    return KRD_TOO_LARGE;
}

void node_lease_keep_alive(struct node *n, int64_t lease, node_write_fn *fn, void *arg)
{
    submit(n, (struct job){.keep_alive = lease, .write_fn = fn, .arg = arg});
}

void node_read_barrier(struct node *n, uint32_t timeout_ms, node_barrier_fn *fn, void *arg)
{
    (void)timeout_ms;
    submit(n, (struct job){.barrier_fn = fn, .arg = arg});
}

void node_transfer(struct node *n, const char *name, node_barrier_fn *fn, void *arg)
{
    (void)n;
    fn(arg, name[0] == '\0' || strcmp(name, "n1") == 0 ? KRD_OK : KRD_NOT_FOUND);
}

/* --- node.h: reads ---------------------------------------------------------------------------- */

static enum krd_status check_revision(const struct node *n, int64_t revision)
{
    if (revision > n->revision)
        return KRD_FUTURE_REVISION;
    return revision > 0 && revision < n->compacted ? KRD_COMPACTED : KRD_OK;
}

static struct kv_pair copy_pair(struct krd_arena *arena, const struct kv_pair *v)
{
    struct kv_pair out = *v;
    out.key = krd_arena_copy(arena, v->key);
    out.value = krd_arena_copy(arena, v->value);
    return out;
}

enum krd_status node_get(struct node *n, struct slice key, int64_t revision,
                         struct krd_arena *arena, struct kv_pair *out, int64_t *store_revision)
{
    pthread_mutex_lock(&n->lock);
    enum krd_status st = check_revision(n, revision);
    struct kv_pair *v = version_at(record_of(n, key, false), revision);
    if (st == KRD_OK && v == NULL)
        st = KRD_NOT_FOUND;
    if (st == KRD_OK)
        *out = copy_pair(arena, v);
    *store_revision = n->revision;
    pthread_mutex_unlock(&n->lock);
    return st;
}

enum krd_status node_history(struct node *n, struct slice key, size_t limit,
                             struct krd_arena *arena, struct kv_pair **out, size_t *count,
                             int64_t *store_revision)
{
    pthread_mutex_lock(&n->lock);
    struct record *rec = record_of(n, key, false);
    size_t have = rec != NULL ? rec->n : 0;
    *count = limit == 0 ? have : krd_min_size(limit, have);
    *out = krd_arena_alloc(arena, *count * sizeof **out);
    for (size_t i = 0; i < *count; i++)
        (*out)[i] = copy_pair(arena, &rec->versions[have - 1 - i]);
    *store_revision = n->revision;
    pthread_mutex_unlock(&n->lock);
    return have > 0 ? KRD_OK : KRD_NOT_FOUND;
}

struct kv_cursor {
    struct node *node;
    struct kv_pair *pairs;
    size_t n, at;
    int64_t revision;
    struct krd_arena arena;
};

enum krd_status node_cursor_open(struct node *n, const struct kv_query *q, struct kv_cursor **out)
{
    pthread_mutex_lock(&n->lock);
    enum krd_status st = check_revision(n, q->revision);
    if (st == KRD_OK) {
        struct kv_cursor *c = krd_zalloc(sizeof *c);
        c->node = n;
        c->revision = n->revision;
        c->pairs = krd_calloc(n->n_keys + 1, sizeof *c->pairs);
        for (size_t i = lower_bound(n, q->range.key); i < n->n_keys; i++) {
            struct kv_pair *v = version_at(n->keys[i], q->revision);
            if (!kv_range_contains(&q->range, n->keys[i]->key))
                break;
            if (v != NULL)
                c->pairs[c->n++] = copy_pair(&c->arena, v);
        }
        for (size_t i = 0; q->descending && i < c->n / 2; i++) {
            struct kv_pair t = c->pairs[i];
            c->pairs[i] = c->pairs[c->n - 1 - i];
            c->pairs[c->n - 1 - i] = t;
        }
        n->cursors++;
        *out = c;
    }
    pthread_mutex_unlock(&n->lock);
    return st;
}

bool node_cursor_next(struct kv_cursor *c, struct kv_pair *out)
{
    if (c->at == c->n)
        return false;
    *out = c->pairs[c->at++];
    return true;
}

int64_t node_cursor_revision(const struct kv_cursor *c)
{
    return c->revision;
}

int64_t node_cursor_count_rest(struct kv_cursor *c)
{
    int64_t rest = (int64_t)(c->n - c->at);
    c->at = c->n;
    return rest;
}

void node_cursor_close(struct kv_cursor *c)
{
    struct node *n = c->node;
    krd_arena_deinit(&c->arena);
    krd_free(c->pairs);
    krd_free(c);
    LOCKED(n, n->cursors--);
}

enum krd_status node_lease_get(struct node *n, int64_t id, struct node_lease *out)
{
    pthread_mutex_lock(&n->lock);
    struct lease *l = lease_of(n, id);
    if (l != NULL)
        *out = (struct node_lease){l->id, l->ttl, l->ttl * 1000 - 500, 0};
    pthread_mutex_unlock(&n->lock);
    return l != NULL ? KRD_OK : KRD_LEASE_NOT_FOUND;
}

size_t node_lease_list(struct node *n, struct node_lease **out)
{
    size_t count = 0;
    pthread_mutex_lock(&n->lock);
    *out = krd_calloc(n->n_leases + 1, sizeof **out);
    for (size_t i = 0; i < n->n_leases; i++) {
        struct lease *l = &n->leases[i];
        if (!l->ended)
            (*out)[count++] = (struct node_lease){l->id, l->ttl, l->ttl * 1000 - 500, 0};
    }
    pthread_mutex_unlock(&n->lock);
    return count;
}

size_t node_lease_keys(struct node *n, int64_t id, struct krd_arena *arena, struct slice **out)
{
    size_t count = 0;
    pthread_mutex_lock(&n->lock);
    *out = krd_arena_alloc(arena, (n->n_keys + 1) * sizeof **out);
    for (size_t i = 0; i < n->n_keys; i++) {
        struct kv_pair *v = version_at(n->keys[i], 0);
        if (v != NULL && v->lease == id)
            (*out)[count++] = krd_arena_copy(arena, v->key);
    }
    pthread_mutex_unlock(&n->lock);
    return count;
}

/* --- node.h: watches -------------------------------------------------------------------------- */

struct node_watch {
    struct node_watch_group *group;
    struct node_watch *next;
    struct node_watch_spec spec;
    struct krd_arena arena;
    struct node_watch_sink sink;
    int64_t synced;
    size_t at; /* in events */
    bool resting;
};

struct node_watch_group *node_watch_group_create(struct node *n, void (*wake)(void *arg), void *arg)
{
    struct node_watch_group *g = krd_zalloc(sizeof *g);
    g->node = n;
    g->wake = wake;
    g->arg = arg;
    LOCKED(n, g->next = n->groups; n->groups = g);
    return g;
}

void node_watch_group_destroy(struct node_watch_group *g)
{
    struct node *n = g->node;
    KRD_ASSERT(g->watches == NULL);
    pthread_mutex_lock(&n->lock);
    struct node_watch_group **at = &n->groups;
    while (*at != g)
        at = &(*at)->next;
    *at = g->next;
    pthread_mutex_unlock(&n->lock);
    krd_free(g);
}

/* Gives it what it lacks. One revision at a time; at most 1000 of them. */
static bool feed(struct node *n, struct node_watch *w)
{
    struct kv_event events[256];
    for (int i = 0; i < 1000 && !w->resting && w->at < n->n_events; i++) {
        int64_t revision = n->events[w->at].revision;
        size_t count = 0;
        for (; w->at < n->n_events && n->events[w->at].revision == revision; w->at++) {
            struct kv_event *e = &n->events[w->at].e;
            bool unwanted = e->type == KV_EVENT_PUT ? w->spec.no_put : w->spec.no_delete;
            if (unwanted || !kv_range_contains(&w->spec.range, e->kv.key) || count == 256)
                continue;
            events[count] = *e;
            events[count].has_prev = e->has_prev && w->spec.prev_kv;
            count++;
        }
        w->synced = revision;
        if (count > 0 && revision >= w->spec.from)
            w->resting = !w->sink.events(w->sink.arg, revision, events, count);
    }
    if (w->at == n->n_events && w->synced < n->revision)
        w->synced = n->revision;
    return w->at < n->n_events && !w->resting;
}

bool node_watch_run(struct node_watch_group *g)
{
    bool more = false;
    pthread_mutex_lock(&g->node->lock);
    for (struct node_watch *w = g->watches; w != NULL; w = w->next)
        more = feed(g->node, w) || more;
    pthread_mutex_unlock(&g->node->lock);
    return more;
}

enum krd_status node_watch_open(struct node_watch_group *g, const struct node_watch_spec *spec,
                                const struct node_watch_sink *sink, struct node_watch **out)
{
    struct node *n = g->node;
    pthread_mutex_lock(&n->lock);
    enum krd_status st = spec->from > 0 && spec->from < n->compacted ? KRD_COMPACTED : KRD_OK;
    if (st == KRD_OK) {
        struct node_watch *w = krd_zalloc(sizeof *w);
        w->group = g;
        w->spec = *spec;
        w->spec.range.key = krd_arena_copy(&w->arena, spec->range.key);
        w->spec.range.range_end = krd_arena_copy(&w->arena, spec->range.range_end);
        w->sink = *sink;
        w->synced = spec->from > 0 ? spec->from - 1 : n->revision;
        w->at = n->n_events;
        while (spec->from > 0 && w->at > 0 && n->events[w->at - 1].revision >= spec->from)
            w->at--;
        w->next = g->watches;
        g->watches = w;
        n->watches++;
        *out = w;
    }
    pthread_mutex_unlock(&n->lock);
    return st;
}

void node_watch_resume(struct node_watch *w)
{
    w->resting = false;
}

int64_t node_watch_synced_revision(const struct node_watch *w)
{
    return w->synced;
}

void node_watch_close(struct node_watch *w)
{
    struct node *n = w->group->node;
    struct node_watch **at = &w->group->watches;
    while (*at != w)
        at = &(*at)->next;
    *at = w->next;
    krd_arena_deinit(&w->arena);
    krd_free(w);
    LOCKED(n, n->watches--);
}

/* --- node.h: the cluster ---------------------------------------------------------------------- */

void node_get_status(struct node *n, struct node_status *out)
{
    *out = (struct node_status){.cluster_id = 0xc1,
                                .member_id = 1,
                                .name = "n1",
                                .role = NODE_LEADER,
                                .leader_id = 1,
                                .leader_name = "n1",
                                .term = 3,
                                .commit_index = 9,
                                .applied_index = 9,
                                .uptime_ms = 61000,
                                .n_members = 2};
    out->revision = node_revision(n);
    out->members = krd_calloc(2, sizeof *out->members);
    out->members[0] = (struct node_member){.id = 1,
                                           .name = "n1",
                                           .raft_address = "127.0.0.1:12000",
                                           .http_address = "127.0.0.1:11000",
                                           .voter = true,
                                           .is_leader = true,
                                           .is_self = true,
                                           .healthy = true};
    out->members[1] = (struct node_member){
        .id = 2, .name = "n2", .raft_address = "127.0.0.1:12001", .voter = true, .lag = -1};
}

void node_status_deinit(struct node_status *s)
{
    krd_free(s->members);
}

const char *node_role_name(enum node_role role)
{
    static const char *const names[] = {"follower", "candidate", "leader", "learner"};
    return names[role];
}

bool node_healthy(struct node *n, const char **reason)
{
    enum krd_status refuse;
    LOCKED(n, refuse = n->refuse);
    *reason = refuse != KRD_OK ? krd_status_text(refuse) : NULL;
    return refuse == KRD_OK;
}

void node_metrics(struct node *n, struct krd_buf *out)
{
    (void)n;
    krd_buf_puts(out, "# TYPE fake_metric gauge\nfake_metric 1\n");
}
