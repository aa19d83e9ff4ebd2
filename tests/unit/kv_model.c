#include "tests/unit/kv_model.h"

#include <stdlib.h>

void model_init(struct model *m, const struct slice *keys, size_t n)
{
    *m = (struct model){.revision = 1, .n_keys = n};
    m->keys = krd_calloc(n, sizeof m->keys[0]);
    for (size_t i = 0; i < n; i++)
        m->keys[i].key = krd_arena_copy(&m->arena, keys[i]);
    krd_grow(&m->times, &m->times_cap, 2, sizeof m->times[0]);
}

void model_deinit(struct model *m)
{
    for (size_t i = 0; i < m->n_keys; i++)
        krd_free(m->keys[i].list);
    krd_free(m->keys);
    krd_free(m->events);
    krd_free(m->times);
    krd_free(m->leases);
    krd_arena_deinit(&m->arena);
}

/* --- Looking ---------------------------------------------------------------------------------------- */

const struct model_version *model_at(const struct model *m, size_t key, int64_t revision)
{
    const struct model_key *k = &m->keys[key];
    size_t lo = 0, hi = k->n; /* first with mod > revision */
    while (lo < hi) {
        size_t mid = (lo + hi) / 2;
        if (k->list[mid].mod <= revision)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo > 0 && k->list[lo - 1].version != 0 ? &k->list[lo - 1] : NULL;
}

struct kv_pair model_pair(const struct model *m, size_t key, const struct model_version *v)
{
    return (struct kv_pair){.key = m->keys[key].key,
                            .value = v->value,
                            .create_revision = v->create,
                            .mod_revision = v->mod,
                            .version = v->version,
                            .lease = v->lease};
}

struct model_lease *model_lease(struct model *m, int64_t id)
{
    for (size_t i = 0; i < m->n_leases; i++) {
        if (m->leases[i].id == id)
            return &m->leases[i];
    }
    return NULL;
}

size_t model_lease_keys(const struct model *m, int64_t id)
{
    size_t n = 0;
    for (size_t i = 0; i < m->n_keys; i++) {
        const struct model_version *v = model_at(m, i, INT64_MAX);
        n += v != NULL && v->lease == id;
    }
    return n;
}

size_t model_first_kept(const struct model *m, size_t key)
{
    const struct model_key *k = &m->keys[key];
    size_t first = k->n;
    while (first > 0 && k->list[first - 1].mod > m->compacted)
        first--;
    if (first > 0 && (k->list[first - 1].version != 0 || k->list[first - 1].mod == m->compacted))
        first--;
    return first;
}

static struct kv_range range_of(ProtobufCBinaryData key, ProtobufCBinaryData end)
{
    return (struct kv_range){slice_of(key.data, key.len), slice_of(end.data, end.len)};
}

static bool in_range(const struct model *m, size_t key, const struct kv_range *r)
{
    return kv_range_contains(r, m->keys[key].key);
}

/* --- Changing --------------------------------------------------------------------------------------- */

static void add_version(struct model *m, size_t key, struct model_version v)
{
    struct model_key *k = &m->keys[key];
    v.value = krd_arena_copy(&m->arena, v.value);
    krd_grow(&k->list, &k->cap, k->n + 1, sizeof k->list[0]);
    k->list[k->n++] = v;
    krd_grow(&m->events, &m->events_cap, m->n_events + 1, sizeof m->events[0]);
    m->events[m->n_events++] = (struct model_event){v.mod, key, k->n - 1};
    m->changed = true;
}

static void undo(struct model *m)
{
    while (m->n_events > 0 && m->events[m->n_events - 1].revision == m->before + 1)
        m->keys[m->events[--m->n_events].key].n--;
    m->changed = false;
}

static void delete_key(struct model *m, size_t key)
{
    add_version(m, key, (struct model_version){.mod = m->before + 1});
}

static enum krd_status put(struct model *m, const Etcdserverpb__PutRequest *r,
                           struct kv_op_result *out)
{
    int64_t lease = r->lease;
    if (lease == -1 && m->granted != 0) {
        lease = m->granted;
        m->grant_used = true;
    } else if (lease != 0 && model_lease(m, lease) == NULL) {
        return KRD_LEASE_NOT_FOUND;
    }
    size_t key = 0;
    while (!slice_eq(m->keys[key].key, slice_of(r->key.data, r->key.len)))
        key++;
    const struct model_version *old = model_at(m, key, INT64_MAX);
    if (old == NULL && (r->ignore_value || r->ignore_lease))
        return KRD_NOT_FOUND;
    *out = (struct kv_op_result){.type = KV_OP_PUT};
    struct model_version v = {slice_of(r->value.data, r->value.len), m->before + 1, m->before + 1,
                              1, lease};
    if (old != NULL) {
        v.create = old->create;
        v.version = old->version + 1;
        if (r->ignore_value)
            v.value = old->value;
        if (r->ignore_lease)
            v.lease = old->lease;
        out->u.put.has_prev = r->prev_kv;
        if (r->prev_kv)
            out->u.put.prev = model_pair(m, key, old);
    }
    out->u.put.kv = model_pair(m, key, &v);
    out->u.put.kv.value = slice_of(NULL, 0);
    add_version(m, key, v);
    return KRD_OK;
}

static void delete_range(struct model *m, const Etcdserverpb__DeleteRangeRequest *r,
                         struct kv_op_result *out, struct krd_arena *a)
{
    struct kv_range range = range_of(r->key, r->range_end);
    *out = (struct kv_op_result){.type = KV_OP_DELETE};
    out->u.del.prev = krd_arena_alloc(a, m->n_keys * sizeof(struct kv_pair));
    for (size_t i = 0; i < m->n_keys; i++) {
        const struct model_version *old = model_at(m, i, INT64_MAX);
        if (old == NULL || !in_range(m, i, &range))
            continue;
        if (r->prev_kv)
            out->u.del.prev[out->u.del.n_prev++] = model_pair(m, i, old);
        out->u.del.deleted++;
        delete_key(m, i);
    }
}

/* --- Ranges ----------------------------------------------------------------------------------------- */

static int compare_i64(int64_t a, int64_t b)
{
    return a < b ? -1 : a > b;
}

static int compare_pairs(const Etcdserverpb__RangeRequest *r, const struct kv_pair *a,
                         const struct kv_pair *b)
{
    switch (r->sort_target) {
    case ETCDSERVERPB__RANGE_REQUEST__SORT_TARGET__VERSION:
        return compare_i64(a->version, b->version);
    case ETCDSERVERPB__RANGE_REQUEST__SORT_TARGET__CREATE:
        return compare_i64(a->create_revision, b->create_revision);
    case ETCDSERVERPB__RANGE_REQUEST__SORT_TARGET__MOD:
        return compare_i64(a->mod_revision, b->mod_revision);
    case ETCDSERVERPB__RANGE_REQUEST__SORT_TARGET__VALUE:
        return slice_cmp(a->value, b->value);
    default:
        return slice_cmp(a->key, b->key);
    }
}

/* Stable insertion sort. */
static void sort_pairs(const Etcdserverpb__RangeRequest *r, struct kv_pair *p, size_t n)
{
    int sign = r->sort_order == ETCDSERVERPB__RANGE_REQUEST__SORT_ORDER__DESCEND ? -1 : 1;
    for (size_t i = 1; i < n; i++) {
        struct kv_pair x = p[i];
        size_t j = i;
        for (; j > 0 && sign * compare_pairs(r, &p[j - 1], &x) > 0; j--)
            p[j] = p[j - 1];
        p[j] = x;
    }
}

static bool out_of(int64_t v, int64_t min, int64_t max)
{
    return (min != 0 && v < min) || (max != 0 && v > max);
}

static enum krd_status range(struct model *m, const Etcdserverpb__RangeRequest *r,
                             struct kv_op_result *out, struct krd_arena *a)
{
    struct kv_range keys = range_of(r->key, r->range_end);
    if (r->revision > m->before)
        return KRD_FUTURE_REVISION;
    if (r->revision < 0 || (r->revision > 0 && r->revision < m->compacted))
        return KRD_COMPACTED;
    *out = (struct kv_op_result){.type = KV_OP_RANGE};
    struct kv_pair *p = krd_arena_alloc(a, m->n_keys * sizeof *p);
    size_t n = 0;
    for (size_t i = 0; i < m->n_keys; i++) {
        const struct model_version *v = model_at(m, i, r->revision == 0 ? INT64_MAX : r->revision);
        if (v == NULL || !in_range(m, i, &keys))
            continue;
        out->u.range.count++;
        if (!out_of(v->mod, r->min_mod_revision, r->max_mod_revision) &&
            !out_of(v->create, r->min_create_revision, r->max_create_revision))
            p[n++] = model_pair(m, i, v);
    }
    sort_pairs(r, p, n);
    if (r->count_only)
        n = 0;
    out->u.range.more = r->limit > 0 && n > (size_t)r->limit;
    if (out->u.range.more)
        n = (size_t)r->limit;
    for (size_t i = 0; i < n && r->keys_only; i++)
        p[i].value = slice_of(NULL, 0);
    out->u.range.kvs = p;
    out->u.range.n = n;
    return KRD_OK;
}

/* --- Transactions ------------------------------------------------------------------------------------- */

static bool one_holds(const comparison *c, const struct kv_pair *p)
{
    int d = 0;
    switch (c->target) {
    case ETCDSERVERPB__COMPARE__COMPARE_TARGET__VERSION:
        d = compare_i64(p->version, c->version);
        break;
    case ETCDSERVERPB__COMPARE__COMPARE_TARGET__CREATE:
        d = compare_i64(p->create_revision, c->create_revision);
        break;
    case ETCDSERVERPB__COMPARE__COMPARE_TARGET__MOD:
        d = compare_i64(p->mod_revision, c->mod_revision);
        break;
    case ETCDSERVERPB__COMPARE__COMPARE_TARGET__LEASE:
        d = compare_i64(p->lease, c->lease);
        break;
    default:
        if (p->version == 0)
            return false;
        d = slice_cmp(p->value, slice_of(c->value.data, c->value.len));
    }
    return c->result == 0 ? d == 0 : c->result == 1 ? d > 0 : c->result == 2 ? d < 0 : d != 0;
}

/* Against the state before the command, whatever it has done by now. */
static bool holds(const struct model *m, const comparison *c)
{
    struct kv_range keys = range_of(c->key, c->range_end);
    bool any = false;
    for (size_t i = 0; i < m->n_keys; i++) {
        const struct model_version *v = model_at(m, i, m->before);
        if (v == NULL || !in_range(m, i, &keys))
            continue;
        struct kv_pair p = model_pair(m, i, v);
        if (!one_holds(c, &p))
            return false;
        any = true;
    }
    struct kv_pair none = {.version = 0};
    return any || one_holds(c, &none);
}

static enum krd_status run_txn(struct model *m, const txn_request *t, bool outermost,
                               struct kv_op_result *out, struct krd_arena *a)
{
    enum krd_status st = KRD_OK;
    size_t held = 0;
    while (held < t->n_compare && holds(m, t->compare[held]))
        held++;
    bool yes = held == t->n_compare;
    size_t n = yes ? t->n_success : t->n_failure;
    operation **ops = yes ? t->success : t->failure;
    *out = (struct kv_op_result){.type = KV_OP_TXN};
    out->u.txn.succeeded = yes;
    out->u.txn.failed_compare = yes || !outermost ? -1 : (int32_t)held;
    out->u.txn.n = n;
    out->u.txn.results = krd_arena_zalloc(a, (n + 1) * sizeof(struct kv_op_result));
    for (size_t i = 0; i < n && st == KRD_OK; i++) {
        struct kv_op_result *r = &out->u.txn.results[i];
        switch (ops[i]->request_case) {
        case ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_PUT:
            st = put(m, ops[i]->request_put, r);
            break;
        case ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_RANGE:
            st = range(m, ops[i]->request_range, r, a);
            break;
        case ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_DELETE_RANGE:
            delete_range(m, ops[i]->request_delete_range, r, a);
            break;
        default:
            st = run_txn(m, ops[i]->request_txn, false, r, a);
        }
    }
    return st;
}

/* --- Leases ------------------------------------------------------------------------------------------- */

static void add_lease(struct model *m, int64_t id, int64_t ttl, struct kv_result *out)
{
    ttl = ttl < 1 ? 1 : ttl;
    krd_grow(&m->leases, &m->leases_cap, m->n_leases + 1, sizeof m->leases[0]);
    m->leases[m->n_leases++] = (struct model_lease){id, ttl, m->time_ms + (uint64_t)ttl * 1000};
    out->lease_id = id;
    out->lease_ttl = ttl;
}

void model_set_granted(struct model *m, int64_t id)
{
    assert_int_equal(m->leases[m->n_leases - 1].id, 0);
    m->leases[m->n_leases - 1].id = id;
}

static void end_leases(struct model *m, const int64_t *ids, size_t n, bool expired_only)
{
    bool *ends = krd_calloc(m->n_leases + 1, sizeof *ends);
    for (size_t i = 0; i < m->n_leases; i++) {
        for (size_t j = 0; j < n; j++)
            ends[i] |= m->leases[i].id == ids[j] &&
                       (!expired_only || m->leases[i].deadline_ms <= m->time_ms);
    }
    for (size_t k = 0; k < m->n_keys; k++) {
        const struct model_version *v = model_at(m, k, INT64_MAX);
        for (size_t i = 0; v != NULL && i < m->n_leases; i++) {
            if (ends[i] && m->leases[i].id == v->lease) {
                delete_key(m, k);
                break;
            }
        }
    }
    size_t kept = 0;
    for (size_t i = 0; i < m->n_leases; i++) {
        if (!ends[i])
            m->leases[kept++] = m->leases[i];
    }
    m->n_leases = kept;
    krd_free(ends);
}

static void renew(struct model *m, const Etcdserverpb__LeaseRenewRequest *r, struct kv_result *out)
{
    out->n_renewed = r->n_ids;
    out->renewed_ttl = krd_arena_zalloc(&out->arena, (r->n_ids + 1) * sizeof(int64_t));
    for (size_t i = 0; i < r->n_ids; i++) {
        struct model_lease *l = model_lease(m, r->ids[i]);
        if (l == NULL)
            continue;
        l->deadline_ms = m->time_ms + (uint64_t)l->ttl * 1000;
        out->renewed_ttl[i] = l->ttl;
    }
}

/* --- Commands ------------------------------------------------------------------------------------------ */

static enum krd_status run(struct model *m, const command *c, struct kv_result *out)
{
    enum krd_status st = KRD_OK;
    if (c->lease_grant != NULL) {
        if (c->lease_grant->id != 0 && model_lease(m, c->lease_grant->id) != NULL)
            return KRD_LEASE_EXISTS;
        m->granted = c->lease_grant->id;
    }
    out->has_op = c->put != NULL || c->txn != NULL || c->delete_range != NULL;
    if (c->put != NULL)
        st = put(m, c->put, &out->op);
    else if (c->txn != NULL)
        st = run_txn(m, c->txn, true, &out->op, &out->arena);
    else if (c->delete_range != NULL)
        delete_range(m, c->delete_range, &out->op, &out->arena);
    else if (c->lease_revoke != NULL && model_lease(m, c->lease_revoke->id) == NULL)
        st = KRD_LEASE_NOT_FOUND;
    else if (c->lease_revoke != NULL)
        end_leases(m, &c->lease_revoke->id, 1, false);
    else if (c->lease_expire != NULL)
        end_leases(m, c->lease_expire->ids, c->lease_expire->n_ids, true);
    else if (c->lease_renew != NULL)
        renew(m, c->lease_renew, out);
    else if (c->compaction != NULL && c->compaction->revision <= m->compacted)
        st = KRD_COMPACTED;
    else if (c->compaction != NULL && c->compaction->revision > m->revision)
        st = KRD_FUTURE_REVISION;
    else if (c->compaction != NULL)
        m->compacted = c->compaction->revision;
    bool grant = c->lease_grant != NULL && ((c->put == NULL && c->txn == NULL) || m->grant_used);
    if (st == KRD_OK && grant)
        add_lease(m, c->lease_grant->id, c->lease_grant->ttl, out);
    return st;
}

void model_apply(struct model *m, const command *c, uint64_t time_ms, struct kv_result *out)
{
    const char *message;
    m->time_ms = time_ms;
    m->before = m->revision;
    m->changed = m->grant_used = false;
    m->granted = 0;
    *out = (struct kv_result){.status = kv_check(c, &message)};
    if (out->status == KRD_OK)
        out->status = run(m, c, out);
    if (out->status != KRD_OK) {
        undo(m);
        out->has_op = false;
    }
    if (m->changed) {
        m->revision++;
        krd_grow(&m->times, &m->times_cap, (size_t)m->revision + 1, sizeof m->times[0]);
        m->times[m->revision] = time_ms;
    }
    out->revision = m->revision;
}
