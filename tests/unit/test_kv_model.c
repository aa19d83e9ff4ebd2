/* Long random streams of commands, applied to the store and to its naive twin (kv_model.h) at once.
 * Compared: every result; reads of the present and the past, by key and by range; histories;
 * leases; what watchers that start anywhere are given; the hash against a full scan. In between the
 * store is compacted, closed and opened again. */
#include "base/rand.h"
#include "tests/unit/kv_model.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SLOWER 4 /* sanitized builds do a quarter */
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SLOWER 4
#endif
#endif
#ifndef SLOWER
#define SLOWER 1
#endif

enum {
    N_KEYS = 120,
    BATCH_MAX = 40,
    WATCHERS_MAX = 24,
    GROUPS = 3,
};

struct watcher {
    struct run *run;
    struct kv_watch *w; /* NULL: the place is free */
    struct kv_watch_spec spec;
    struct krd_arena arena; /* of spec's range */
    size_t group;
    size_t expect; /* place in the model's events: all before it were given or do not match */
    bool resting, dead;
    int64_t first; /* lowest revision to be given; may lie in the future */
    int64_t last;  /* newest revision given */
};

struct run {
    struct fixture *f;
    struct model m;
    struct krd_rand rand;
    struct slice universe[N_KEYS];
    struct krd_arena arena; /* of the universe */

    struct raft_entry entries[BATCH_MAX];
    struct kv_result expected[BATCH_MAX];
    size_t n, checked;
    bool grant_last; /* the batch ends with a grant that chooses its ID */
    size_t commands, events, compared_reads, restarts;

    struct kv_watch_group *groups[GROUPS];
    struct watcher watchers[WATCHERS_MAX];
};

static uint64_t below(struct run *r, uint64_t n)
{
    return krd_rand_below(&r->rand, n);
}

static bool chance(struct run *r, uint64_t percent)
{
    return below(r, 100) < percent;
}

/* --- Keys ------------------------------------------------------------------------------------------- */

static int by_bytes(const void *a, const void *b)
{
    return slice_cmp(*(const struct slice *)a, *(const struct slice *)b);
}

/* Short strings over an alphabet with the extremes in it: many are prefixes of others. */
static struct slice random_bytes(struct run *r, struct krd_arena *a, size_t len)
{
    static const uint8_t alphabet[] = {0x00, '/', 'a', 'b', 0xfe, 0xff};
    uint8_t *p = krd_arena_alloc(a, len);
    for (size_t i = 0; i < len; i++)
        p[i] = alphabet[below(r, sizeof alphabet)];
    return slice_of(p, len);
}

static void make_universe(struct run *r)
{
    size_t n = 0;
    while (n < N_KEYS) {
        struct slice key = random_bytes(r, &r->arena, 1 + below(r, 5));
        size_t i = 0;
        while (i < n && !slice_eq(r->universe[i], key))
            i++;
        if (i == n)
            r->universe[n++] = key;
    }
    qsort(r->universe, N_KEYS, sizeof r->universe[0], by_bytes);
}

static ProtobufCBinaryData bytes_of(struct slice s)
{
    return (ProtobufCBinaryData){s.len, (uint8_t *)(uintptr_t)s.ptr};
}

static struct slice random_key(struct run *r)
{
    /* Some keys are hot. */
    size_t n = chance(r, 30) ? 8 : N_KEYS;
    return r->universe[below(r, n) * (N_KEYS / n)];
}

static struct kv_range random_range(struct run *r, struct krd_arena *a)
{
    static const uint8_t open_end[1] = {0};
    struct kv_range range = {random_key(r), slice_of(NULL, 0)};
    switch (below(r, 6)) {
    case 0:
    case 1:
        break;
    case 2:
        range.range_end = random_key(r); /* may be empty or turned around */
        break;
    case 3:
        range.range_end = slice_of(open_end, 1);
        break;
    case 4: {
        struct slice prefix = slice_of(range.key.ptr, 1 + below(r, range.key.len));
        range = kv_range_of_prefix(prefix, krd_arena_alloc(a, prefix.len + 1));
        break;
    }
    default:
        range.key = random_bytes(r, a, 1 + below(r, 3));
        range.range_end = random_bytes(r, a, 1 + below(r, 3));
    }
    return range;
}

static int64_t random_revision(struct run *r)
{
    int64_t recent = (int64_t)below(r, 300);
    switch (below(r, 12)) {
    case 0:
        return (int64_t)below(r, (uint64_t)r->m.revision + 3);
    case 1:
        return r->m.compacted + (int64_t)below(r, 3) - 1;
    case 2:
        return r->m.revision + (int64_t)below(r, 3) - 1;
    case 3:
        return -1;
    default:
        return r->m.revision > recent ? r->m.revision - recent : 0;
    }
}

/* --- Commands ---------------------------------------------------------------------------------------- */

static int64_t random_lease(struct run *r)
{
    if (r->m.n_leases > 0 && chance(r, 90))
        return r->m.leases[below(r, r->m.n_leases)].id;
    return (int64_t)below(r, 40);
}

static void fill_put(struct run *r, Etcdserverpb__PutRequest *p)
{
    struct krd_arena *a = &r->f->arena;
    p->key = bytes_of(random_key(r));
    /* Values beyond KV_NEAR_VALUE_MAX stand elsewhere. */
    size_t most = chance(r, 2) ? 6000 : chance(r, 25) ? 300 : 30;
    p->value = bytes_of(random_bytes(r, a, below(r, most)));
    p->prev_kv = chance(r, 30);
    if (chance(r, 15))
        p->lease = random_lease(r);
    if (chance(r, 5)) {
        p->ignore_value = true;
        if (chance(r, 90))
            p->value = bytes_of(slice_of(NULL, 0));
    }
    if (chance(r, 5)) {
        p->ignore_lease = true;
        if (chance(r, 90))
            p->lease = 0;
    }
}

static void fill_delete(struct run *r, Etcdserverpb__DeleteRangeRequest *d)
{
    struct kv_range range = random_range(r, &r->f->arena);
    if (chance(r, 60))
        range.range_end = slice_of(NULL, 0);
    d->key = bytes_of(range.key);
    d->range_end = bytes_of(range.range_end);
    d->prev_kv = chance(r, 40);
}

static void fill_range(struct run *r, Etcdserverpb__RangeRequest *g)
{
    struct kv_range range = random_range(r, &r->f->arena);
    g->key = bytes_of(range.key);
    g->range_end = bytes_of(range.range_end);
    if (chance(r, 30))
        g->limit = (int64_t)below(r, 12);
    if (chance(r, 15))
        g->revision = random_revision(r);
    if (chance(r, 30)) {
        g->sort_order = (int)below(r, 3);
        g->sort_target = (int)below(r, 5);
    }
    g->keys_only = chance(r, 20);
    g->count_only = chance(r, 10);
    if (chance(r, 10))
        g->min_mod_revision = random_revision(r);
    if (chance(r, 10))
        g->max_mod_revision = random_revision(r);
    if (chance(r, 5))
        g->min_create_revision = random_revision(r);
    if (chance(r, 5))
        g->max_create_revision = random_revision(r);
}

static comparison *random_compare(struct run *r)
{
    struct fixture *f = r->f;
    comparison *c = if_version(f, "", (int)below(r, 4), (int64_t)below(r, 4));
    struct kv_range range = random_range(r, &f->arena);
    if (chance(r, 70))
        range.range_end = slice_of(NULL, 0);
    c->key = bytes_of(range.key);
    c->range_end = bytes_of(range.range_end);
    c->target = (int)below(r, 5);
    switch (c->target) {
    case ETCDSERVERPB__COMPARE__COMPARE_TARGET__VERSION:
        break;
    case ETCDSERVERPB__COMPARE__COMPARE_TARGET__CREATE:
        c->target_union_case = ETCDSERVERPB__COMPARE__TARGET_UNION_CREATE_REVISION;
        c->create_revision = chance(r, 50) ? 0 : random_revision(r);
        break;
    case ETCDSERVERPB__COMPARE__COMPARE_TARGET__MOD:
        c->target_union_case = ETCDSERVERPB__COMPARE__TARGET_UNION_MOD_REVISION;
        c->mod_revision = random_revision(r);
        break;
    case ETCDSERVERPB__COMPARE__COMPARE_TARGET__LEASE:
        c->target_union_case = ETCDSERVERPB__COMPARE__TARGET_UNION_LEASE;
        c->lease = chance(r, 50) ? 0 : random_lease(r);
        break;
    default:
        c->target_union_case = ETCDSERVERPB__COMPARE__TARGET_UNION_VALUE;
        c->value = bytes_of(random_bytes(r, &f->arena, below(r, 3)));
    }
    return c;
}

static txn_request *random_txn(struct run *r, int depth)
{
    struct fixture *f = r->f;
    txn_request *t = txn(f);
    for (uint64_t n = below(r, 3); n > 0; n--)
        txn_if(f, t, random_compare(r));
    for (uint64_t n = below(r, 6); n > 0; n--) {
        operation *op;
        switch (below(r, depth < 4 ? 5 : 4)) {
        case 0:
        case 1:
            op = op_put(f, "", "");
            fill_put(r, op->request_put);
            break;
        case 2:
            op = op_get(f, "", NULL);
            fill_range(r, op->request_range);
            break;
        case 3:
            op = op_delete(f, "", NULL);
            fill_delete(r, op->request_delete_range);
            break;
        default:
            op = op_txn(f, random_txn(r, depth + 1));
        }
        if (chance(r, 60))
            txn_then(f, t, op);
        else
            txn_else(f, t, op);
    }
    return t;
}

static command *random_expire(struct run *r)
{
    int64_t ids[6];
    size_t n = below(r, 6);
    for (size_t i = 0; i < n; i++)
        ids[i] = random_lease(r);
    return cmd_expire(r->f, n, ids);
}

/* A put or transaction with a lease of its own. */
static command *random_leased(struct run *r)
{
    struct fixture *f = r->f;
    command *c = cmd_grant(f, (int64_t)(1 + below(r, 40)), (int64_t)below(r, 5));
    if (chance(r, 60)) {
        c->put = cmd_put_lease(f, "", "mine", -1)->put;
        c->put->key = bytes_of(random_key(r));
    } else {
        operation *op = op_put(f, "", "ours");
        op->request_put->key = bytes_of(random_key(r));
        op->request_put->lease = -1;
        c->txn = txn_then(f, txn_if(f, txn(f), random_compare(r)), op);
    }
    return c;
}

static command *random_command(struct run *r)
{
    struct fixture *f = r->f;
    uint64_t dice = below(r, 100);
    command *c = cmd(f);
    if (dice < 55) {
        c = cmd_put(f, "", "");
        fill_put(r, c->put);
    } else if (dice < 67) {
        c = cmd_delete(f, "", NULL);
        fill_delete(r, c->delete_range);
    } else if (dice < 83) {
        c = cmd_txn(f, random_txn(r, 1));
    } else if (dice < 87) {
        c = cmd_grant(f, (int64_t)(1 + below(r, 40)), (int64_t)below(r, 6) - 1);
    } else if (dice < 89) {
        c = cmd_revoke(f, random_lease(r));
    } else if (dice < 92) {
        c = cmd_renew(f, random_lease(r));
    } else if (dice < 95) {
        c = random_expire(r);
    } else if (dice < 99) {
        c = random_leased(r);
    } else if (chance(r, 70)) {
        c = cmd_compact(f, chance(r, 50) ? r->m.revision - (int64_t)below(r, 900)
                                         : random_revision(r));
    }
    return c;
}

/* --- Results ------------------------------------------------------------------------------------------ */

static void assert_slice(struct slice got, struct slice want)
{
    assert_int_equal(got.len, want.len);
    assert_true(slice_eq(got, want));
}

static void assert_pair(const struct kv_pair *got, const struct kv_pair *want)
{
    assert_slice(got->key, want->key);
    assert_slice(got->value, want->value);
    assert_int_equal(got->create_revision, want->create_revision);
    assert_int_equal(got->mod_revision, want->mod_revision);
    assert_int_equal(got->version, want->version);
    assert_int_equal(got->lease, want->lease);
}

static void assert_pairs(const struct kv_pair *got, size_t n, const struct kv_pair *want,
                         size_t n_want)
{
    assert_int_equal(n, n_want);
    for (size_t i = 0; i < n; i++)
        assert_pair(&got[i], &want[i]);
}

static void assert_op(const struct kv_op_result *got, const struct kv_op_result *want)
{
    assert_int_equal(got->type, want->type);
    switch (got->type) {
    case KV_OP_PUT:
        assert_pair(&got->u.put.kv, &want->u.put.kv);
        assert_int_equal(got->u.put.has_prev, want->u.put.has_prev);
        if (got->u.put.has_prev)
            assert_pair(&got->u.put.prev, &want->u.put.prev);
        break;
    case KV_OP_DELETE:
        assert_int_equal(got->u.del.deleted, want->u.del.deleted);
        assert_pairs(got->u.del.prev, got->u.del.n_prev, want->u.del.prev, want->u.del.n_prev);
        break;
    case KV_OP_RANGE:
        assert_int_equal(got->u.range.count, want->u.range.count);
        assert_int_equal(got->u.range.more, want->u.range.more);
        assert_pairs(got->u.range.kvs, got->u.range.n, want->u.range.kvs, want->u.range.n);
        break;
    case KV_OP_TXN:
        assert_int_equal(got->u.txn.succeeded, want->u.txn.succeeded);
        assert_int_equal(got->u.txn.failed_compare, want->u.txn.failed_compare);
        assert_int_equal(got->u.txn.n, want->u.txn.n);
        for (size_t i = 0; i < got->u.txn.n; i++)
            assert_op(&got->u.txn.results[i], &want->u.txn.results[i]);
        break;
    }
}

static void on_outcome(void *arg, struct kv_outcome *o)
{
    struct run *r = arg;
    struct kv_result *got = o->result, *want = &r->expected[r->checked++];
    assert_non_null(got);
    assert_int_equal(got->status, want->status);
    assert_int_equal(got->revision, want->revision);
    assert_int_equal(got->has_op, want->has_op);
    if (got->has_op)
        assert_op(&got->op, &want->op);
    if (r->grant_last && r->checked == r->n && got->status == KRD_OK) {
        assert_true(got->lease_id > 0);
        model_set_granted(&r->m, got->lease_id);
        want->lease_id = got->lease_id;
    }
    assert_int_equal(got->lease_id, want->lease_id);
    assert_int_equal(got->lease_ttl, want->lease_ttl);
    assert_int_equal(got->n_renewed, want->n_renewed);
    for (size_t i = 0; i < got->n_renewed; i++)
        assert_int_equal(got->renewed_ttl[i], want->renewed_ttl[i]);
    kv_result_destroy(got);
}

static void add_command(struct run *r, command *c)
{
    struct fixture *f = r->f;
    f->time_ms += below(r, 400);
    c->origin = f->self;
    c->boot = f->boot;
    c->sequence = ++f->sequence;
    c->settled = f->sequence > 50 ? f->sequence - 50 : 1;
    r->entries[r->n] = entry_of(c, ++f->index, f->time_ms);
    model_apply(&r->m, c, f->time_ms, &r->expected[r->n]);
    r->n++;
    r->commands++;
}

/* The batch's last command comes in a second time, as after a change of leaders. */
static void add_retry(struct run *r)
{
    struct raft_entry *last = &r->entries[r->n - 1], *e = &r->entries[r->n];
    *e = raft_entry_make(RAFT_ENTRY_COMMAND, raft_payload(last));
    raft_entry_seal(e, ++r->f->index, 1, r->f->time_ms);
    r->m.time_ms = r->f->time_ms;
    r->expected[r->n] =
        (struct kv_result){.status = KRD_OUTCOME_UNKNOWN, .revision = r->m.revision};
    r->n++;
}

static void do_batch(struct run *r)
{
    size_t want = 1 + below(r, BATCH_MAX - 2);
    r->n = r->checked = 0;
    while (r->n < want)
        add_command(r, random_command(r));
    if (chance(r, 5))
        add_retry(r);
    r->grant_last = chance(r, 5);
    if (r->grant_last)
        add_command(r, cmd_grant(r->f, 0, (int64_t)below(r, 9)));
    apply_entries(r->f->s, r->entries, r->n, on_outcome, r);
    assert_int_equal(r->checked, r->n);
    for (size_t i = 0; i < r->n; i++) {
        raft_entry_unref(&r->entries[i]);
        krd_arena_deinit(&r->expected[i].arena);
    }
    assert_int_equal(kv_revision(r->f->s), r->m.revision);
    assert_int_equal(kv_compacted_revision(r->f->s), r->m.compacted);
    assert_int_equal(kv_applied_index(r->f->s), r->f->index);
    krd_arena_reset(&r->f->arena);
}

/* --- Reads --------------------------------------------------------------------------------------------- */

static enum krd_status expected_status(struct run *r, int64_t revision)
{
    if (revision > r->m.revision)
        return KRD_FUTURE_REVISION;
    return revision > 0 && revision < r->m.compacted ? KRD_COMPACTED : KRD_OK;
}

static void check_get(struct run *r)
{
    size_t key = below(r, N_KEYS);
    int64_t revision = chance(r, 50) ? 0 : random_revision(r), store_revision = 0;
    struct kv_pair got;
    enum krd_status want = expected_status(r, revision);
    const struct model_version *v = model_at(&r->m, key, revision > 0 ? revision : INT64_MAX);
    if (want == KRD_OK && v == NULL)
        want = KRD_NOT_FOUND;
    assert_int_equal(
        kv_get(r->f->s, r->universe[key], revision, &r->f->arena, &got, &store_revision), want);
    assert_int_equal(store_revision, r->m.revision);
    if (want == KRD_OK) {
        struct kv_pair p = model_pair(&r->m, key, v);
        assert_pair(&got, &p);
    }
}

static void check_cursor(struct run *r)
{
    struct kv_query q = {.range = random_range(r, &r->f->arena),
                         .revision = chance(r, 40) ? 0 : random_revision(r),
                         .descending = chance(r, 40),
                         .keys_only = chance(r, 30)};
    struct kv_cursor *c = NULL;
    struct kv_pair got;
    enum krd_status want = expected_status(r, q.revision);
    assert_int_equal(kv_cursor_open(r->f->s, &q, &c), want);
    if (want != KRD_OK)
        return;
    assert_int_equal(kv_cursor_revision(c), r->m.revision);
    size_t stop = chance(r, 20) ? below(r, 20) : N_KEYS, n = 0;
    int64_t rest = 0;
    for (size_t i = 0; i < N_KEYS; i++) {
        size_t key = q.descending ? N_KEYS - 1 - i : i;
        const struct model_version *v =
            model_at(&r->m, key, q.revision > 0 ? q.revision : INT64_MAX);
        if (v == NULL || !kv_range_contains(&q.range, r->universe[key]))
            continue;
        if (n++ >= stop) {
            rest++;
            continue;
        }
        struct kv_pair p = model_pair(&r->m, key, v);
        if (q.keys_only)
            p.value = slice_of(NULL, 0);
        assert_true(kv_cursor_next(c, &got));
        assert_pair(&got, &p);
    }
    assert_int_equal(kv_cursor_count_rest(c), rest);
    assert_false(kv_cursor_next(c, &got));
    kv_cursor_close(c);
}

static void check_history(struct run *r)
{
    size_t key = below(r, N_KEYS), n = 0;
    size_t limit = chance(r, 50) ? 0 : 1 + below(r, 10);
    const struct model_key *k = &r->m.keys[key];
    size_t first = model_first_kept(&r->m, key), want = k->n - first;
    struct kv_pair *got;
    int64_t store_revision;
    if (limit != 0 && want > limit)
        want = limit;
    enum krd_status st =
        kv_history(r->f->s, k->key, limit, &r->f->arena, &got, &n, &store_revision);
    assert_int_equal(st, want > 0 ? KRD_OK : KRD_NOT_FOUND);
    assert_int_equal(n, want);
    for (size_t i = 0; i < n; i++) {
        struct kv_pair p = model_pair(&r->m, key, &k->list[k->n - 1 - i]);
        assert_pair(&got[i], &p);
    }
}

static void check_lease(struct run *r)
{
    int64_t id = random_lease(r);
    struct kv_lease_info info;
    struct slice *keys;
    struct model_lease *l = model_lease(&r->m, id);
    enum krd_status st = kv_lease_get(r->f->s, id, &info);
    size_t n = kv_lease_keys(r->f->s, id, &r->f->arena, &keys);
    assert_int_equal(st, l != NULL ? KRD_OK : KRD_LEASE_NOT_FOUND);
    if (l == NULL) {
        assert_int_equal(n, 0);
        return;
    }
    assert_int_equal(info.id, id);
    assert_int_equal(info.ttl, l->ttl);
    assert_int_equal(info.deadline_ms, l->deadline_ms);
    assert_int_equal(info.keys, n);
    assert_int_equal(n, model_lease_keys(&r->m, id));
    size_t at = 0;
    for (size_t i = 0; i < N_KEYS; i++) {
        const struct model_version *v = model_at(&r->m, i, INT64_MAX);
        if (v != NULL && v->lease == id)
            assert_slice(keys[at++], r->universe[i]);
    }
}

static void check_due(struct run *r)
{
    int64_t ids[64];
    uint64_t now = r->f->time_ms + below(r, 4000), next, earliest = UINT64_MAX;
    size_t n = kv_lease_due(r->f->s, now, ids, 64, &next), want = 0;
    for (size_t i = 0; i < r->m.n_leases; i++) {
        uint64_t deadline = r->m.leases[i].deadline_ms;
        want += deadline <= now;
        if (deadline > now && deadline < earliest)
            earliest = deadline;
    }
    struct kv_lease_info *list;
    size_t all = kv_lease_list(r->f->s, &list);
    assert_int_equal(all, r->m.n_leases);
    for (size_t i = 0; i < all; i++) {
        assert_non_null(model_lease(&r->m, list[i].id));
        assert_true(i == 0 || list[i - 1].id < list[i].id);
    }
    krd_free(list);
    if (want > 64)
        return;
    assert_int_equal(n, want);
    assert_int_equal(next, earliest);
    for (size_t i = 0; i < n; i++)
        assert_true(model_lease(&r->m, ids[i])->deadline_ms <= now);
}

static void check_time(struct run *r)
{
    uint64_t asked = r->f->time_ms - below(r, krd_min_u64(r->f->time_ms, 200000));
    int64_t want = 0;
    for (int64_t rev = r->m.revision; rev >= 2 && rev >= r->m.compacted && want == 0; rev--) {
        if (r->m.times[rev] <= asked)
            want = rev;
    }
    assert_int_equal(kv_revision_at_time(r->f->s, asked), want);
}

static void check_reads(struct run *r)
{
    check_get(r);
    check_get(r);
    switch (below(r, 10)) {
    case 0:
    case 1:
    case 2:
        check_cursor(r);
        break;
    case 3:
        check_history(r);
        break;
    case 4:
        check_lease(r);
        break;
    case 5:
        check_due(r);
        break;
    case 6:
        check_time(r);
        break;
    default:
        break;
    }
    r->compared_reads += 3;
}

/* --- Watchers ------------------------------------------------------------------------------------------ */

static bool matches(const struct watcher *w, const struct model_event *e)
{
    const struct model_key *k = &w->run->m.keys[e->key];
    bool deleted = k->list[e->version].version == 0;
    return e->revision >= w->first && kv_range_contains(&w->spec.range, k->key) &&
           !(deleted ? w->spec.no_delete : w->spec.no_put);
}

/* The next event that it must be given, up to a revision; NULL: none. */
static const struct model_event *next_expected(struct watcher *w, int64_t upto)
{
    const struct model *m = &w->run->m;
    for (; w->expect < m->n_events && m->events[w->expect].revision <= upto; w->expect++) {
        if (matches(w, &m->events[w->expect]))
            return &m->events[w->expect];
    }
    return NULL;
}

static void check_event(struct watcher *w, const struct kv_event *got,
                        const struct model_event *want)
{
    const struct model *m = &w->run->m;
    const struct model_version *v = &m->keys[want->key].list[want->version];
    struct kv_pair p = model_pair(m, want->key, v);
    assert_int_equal(got->type, v->version == 0 ? KV_EVENT_DELETE : KV_EVENT_PUT);
    assert_pair(&got->kv, &p);
    const struct model_version *before = want->version > 0 ? v - 1 : NULL;
    if (before != NULL && before->version == 0)
        before = NULL;
    if (!w->spec.prev_kv || before == NULL) {
        assert_false(got->has_prev);
    } else if (got->has_prev) {
        p = model_pair(m, want->key, before);
        assert_pair(&got->prev, &p);
    } else {
        assert_true(want->revision <= m->compacted); /* only then may it be missing */
    }
}

static bool on_events(void *arg, int64_t revision, const struct kv_event *events, size_t n)
{
    struct watcher *w = arg;
    struct run *r = w->run;
    assert_false(w->resting);
    assert_false(w->dead);
    assert_true(revision > w->last);
    w->last = revision;
    for (size_t i = 0; i < n; i++) {
        const struct model_event *want = next_expected(w, INT64_MAX);
        assert_non_null(want);
        assert_int_equal(want->revision, revision);
        check_event(w, &events[i], want);
        w->expect++;
    }
    const struct model_event *more = next_expected(w, revision);
    assert_null(more); /* all of one revision come at once */
    r->events += n;
    w->resting = chance(r, 3);
    return !w->resting;
}

static void on_compacted(void *arg, int64_t compact_revision)
{
    struct watcher *w = arg;
    assert_int_equal(compact_revision, w->run->m.compacted);
    assert_true(kv_watch_synced_revision(w->w) + 1 < compact_revision);
    w->dead = true;
}

static void on_wake(void *arg)
{
    (void)arg; /* the test runs all groups anyway */
}

static void open_watch(struct run *r, struct watcher *w, int64_t from)
{
    struct kv_watch_sink sink = {w, on_events, on_compacted};
    w->resting = w->dead = false;
    w->spec.from = from;
    enum krd_status st = kv_watch_open(r->groups[w->group], &w->spec, &sink, &w->w);
    if (st != KRD_OK) {
        assert_int_equal(st, KRD_BAD_REQUEST);
        w->w = NULL;
        krd_arena_reset(&w->arena);
        return;
    }
    if (from == 0) {
        assert_int_equal(kv_watch_synced_revision(w->w), r->m.revision);
        from = r->m.revision + 1;
    }
    w->first = from;
    w->last = from - 1;
    w->expect = 0;
    size_t hi = r->m.n_events;
    while (w->expect < hi) {
        size_t mid = (w->expect + hi) / 2;
        if (r->m.events[mid].revision < from)
            w->expect = mid + 1;
        else
            hi = mid;
    }
}

static void close_watch(struct watcher *w)
{
    kv_watch_close(w->w);
    w->w = NULL;
    krd_arena_reset(&w->arena);
}

static int64_t random_from(struct run *r)
{
    if (chance(r, 40))
        return 0;
    int64_t from = random_revision(r);
    return from < 0 ? 1 : chance(r, 10) ? r->m.revision + (int64_t)below(r, 100) : from;
}

static void play_watch(struct run *r)
{
    struct watcher *w = &r->watchers[below(r, WATCHERS_MAX)];
    if (w->w == NULL) {
        w->run = r;
        w->group = below(r, GROUPS);
        w->spec = (struct kv_watch_spec){
            .prev_kv = chance(r, 50), .no_put = chance(r, 10), .no_delete = chance(r, 10)};
        w->spec.range = random_range(r, &w->arena);
        open_watch(r, w, random_from(r));
    } else if (w->dead || chance(r, 10)) {
        close_watch(w);
    } else if (w->resting) {
        w->resting = false;
        kv_watch_resume(w->w);
    }
}

static void run_groups(struct run *r, bool until_done)
{
    for (size_t i = 0; i < GROUPS; i++) {
        if (!until_done && chance(r, 50))
            continue;
        while (kv_watch_run(r->groups[i]) && until_done)
            ;
    }
}

/* Nobody misses anything: what is synced has been given, and in the end everything is synced. */
static void settle_watches(struct run *r)
{
    run_groups(r, true);
    for (size_t i = 0; i < WATCHERS_MAX; i++) {
        struct watcher *w = &r->watchers[i];
        if (w->w == NULL || w->dead)
            continue;
        int64_t synced = kv_watch_synced_revision(w->w);
        assert_int_equal(kv_watch_is_synced(w->w), !w->resting);
        if (!w->resting)
            assert_int_equal(synced, r->m.revision);
        assert_true(synced >= w->last || w->spec.from > r->m.revision);
        assert_null(next_expected(w, synced));
    }
}

static void open_groups(struct run *r)
{
    for (size_t i = 0; i < GROUPS; i++)
        r->groups[i] = kv_watch_group_create(r->f->s, on_wake, NULL);
}

/* --- The whole -------------------------------------------------------------------------------------------- */

/* A stop and a start: the state is the same, and watches go on where they were. */
static void restart(struct run *r)
{
    uint64_t index, index_after;
    uint8_t hash[16], hash_after[16];
    int64_t resume_at[WATCHERS_MAX];
    for (size_t i = 0; i < WATCHERS_MAX; i++) {
        struct watcher *w = &r->watchers[i];
        if (w->w == NULL)
            continue;
        resume_at[i] = kv_watch_synced_revision(w->w) + 1;
        kv_watch_close(w->w);
    }
    for (size_t i = 0; i < GROUPS; i++)
        kv_watch_group_destroy(r->groups[i]);
    kv_state_hash(r->f->s, &index, hash);
    fixture_reopen(r->f);
    kv_state_hash(r->f->s, &index_after, hash_after);
    assert_int_equal(index, index_after);
    assert_memory_equal(hash, hash_after, sizeof hash);
    open_groups(r);
    for (size_t i = 0; i < WATCHERS_MAX; i++) {
        if (r->watchers[i].w != NULL)
            open_watch(r, &r->watchers[i], resume_at[i]);
    }
    r->restarts++;
}

static void stream(uint64_t seed, size_t commands)
{
    struct run *r = krd_zalloc(sizeof *r);
    krd_rand_seed(&r->rand, seed);
    r->f = fixture_create();
    make_universe(r);
    model_init(&r->m, r->universe, N_KEYS);
    open_groups(r);
    while (r->commands < commands) {
        do_batch(r);
        check_reads(r);
        play_watch(r);
        run_groups(r, false);
        if (chance(r, 30))
            kv_maintain(r->f->s);
        if (chance(r, 4))
            settle_watches(r);
        if (chance(r, 2))
            assert_hash_is_true(r->f);
        if (below(r, 250) == 0)
            restart(r);
    }
    settle_watches(r);
    maintain(r->f);
    assert_hash_is_true(r->f);
    for (size_t i = 0; i < 200; i++)
        check_reads(r);
    for (size_t i = 0; i < WATCHERS_MAX; i++) {
        if (r->watchers[i].w != NULL)
            close_watch(&r->watchers[i]);
        krd_arena_deinit(&r->watchers[i].arena);
    }
    for (size_t i = 0; i < GROUPS; i++)
        kv_watch_group_destroy(r->groups[i]);
    if (commands > 10000)
        print_message("%zu commands, revision %" PRId64 ", %zu events, %zu restarts\n", r->commands,
                      r->m.revision, r->events, r->restarts);
    assert_true(r->events > 0);
    model_deinit(&r->m);
    krd_arena_deinit(&r->arena);
    fixture_destroy(r->f);
    krd_free(r);
}

static void a_long_stream_agrees_with_the_model(void **state)
{
    (void)state;
    stream(1, 400000 / SLOWER);
}

static void many_short_streams_agree_with_the_model(void **state)
{
    (void)state;
    for (uint64_t seed = 100; seed < 100 + 40 / SLOWER; seed++)
        stream(seed, 3000);
}

/* For hunting: SEED=n COMMANDS=n build/release/tests/test_kv_model */
int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(many_short_streams_agree_with_the_model),
        cmocka_unit_test(a_long_stream_agrees_with_the_model),
    };
    const char *seed = getenv("SEED"), *commands = getenv("COMMANDS");
    if (seed != NULL && commands != NULL) {
        stream(strtoull(seed, NULL, 10), strtoull(commands, NULL, 10));
        return 0;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
