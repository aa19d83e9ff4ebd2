/* op.c - the single operations of a command: put, delete, range; each with a check that may say no
 * and changes nothing, and an execution that cannot fail. Semantics are etcd's. */
#include "kv/command.pb-c.h"
#include "kv/ops.h"

#include <stdlib.h>

static struct slice bytes_of(const ProtobufCBinaryData *b)
{
    return slice_of(b->data, b->len);
}

static struct kv_range range_of(const ProtobufCBinaryData *key, const ProtobufCBinaryData *end)
{
    return (struct kv_range){bytes_of(key), bytes_of(end)};
}

static enum krd_status refuse(struct kv_command *c, enum krd_status st, const char *message)
{
    c->message = message;
    return st;
}

/* A pair that outlives the command. */
static struct kv_pair keep_pair(struct krd_arena *a, const struct kv_pair *p, bool with_value)
{
    struct kv_pair kept = *p;
    kept.key = krd_arena_copy(a, p->key);
    kept.value = with_value ? krd_arena_copy(a, p->value) : slice_of(NULL, 0);
    return kept;
}

struct pair_list {
    struct kv_pair *list; /* in the result's arena once closed */
    size_t n, cap;
};

static struct kv_pair *add_pair(struct pair_list *l)
{
    krd_grow(&l->list, &l->cap, l->n + 1, sizeof l->list[0]);
    return &l->list[l->n++];
}

static struct kv_pair *close_list(struct pair_list *l, struct krd_arena *a)
{
    struct kv_pair *kept = NULL;
    if (l->n > 0)
        kept = memcpy(krd_arena_alloc(a, l->n * sizeof *kept), l->list, l->n * sizeof *kept);
    krd_free(l->list);
    return kept;
}

/* --- Put ------------------------------------------------------------------------------------- */

/* Within a transaction no other operation touches a key that is put (kv_check), so what holds now
 * holds when it is executed. */
enum krd_status kv_put_check(struct kv_command *c, const Etcdserverpb__PutRequest *r)
{
    struct kv_head head;
    if (r->lease == KV_LEASE_GRANTED && c->granted != 0)
        c->grant_used = true;
    else if (r->lease != 0 && kv_leases_find(&c->s->leases, r->lease) == NULL)
        return refuse(c, KRD_LEASE_NOT_FOUND, "requested lease not found");
    if (!r->ignore_value && !r->ignore_lease)
        return KRD_OK;
    if (!kv_slot_head(kv_command_head(c, bytes_of(&r->key), &head), &head))
        return refuse(c, KRD_NOT_FOUND, "key not found");
    return KRD_OK;
}

/* A live version with its value; here nothing can have been compacted meanwhile. */
static struct kv_pair whole_pair(struct kv_command *c, const struct kv_head *head,
                                 struct slice *owned)
{
    struct kv_source source = {c->s->engine, NULL, &c->s->changes};
    struct kv_pair pair;
    bool found = kv_head_whole(&source, head, &pair, owned);
    KRD_ASSERT(found); /* the newest version's change is never compacted */
    return pair;
}

void kv_put_execute(struct kv_command *c, const Etcdserverpb__PutRequest *r,
                    struct kv_op_result *out)
{
    struct kv_head old;
    struct kv_slot *slot = kv_command_head(c, bytes_of(&r->key), &old);
    bool live = kv_slot_head(slot, &old);
    bool wants_prev = out != NULL && r->prev_kv && live;
    struct slice owned = slice_of(NULL, 0);
    struct kv_pair before = {.version = 0};
    if (wants_prev || r->ignore_value)
        before = whole_pair(c, &old, &owned);
    struct slice value = r->ignore_value ? before.value : bytes_of(&r->value);
    int64_t lease = r->ignore_lease ? old.pair.lease : r->lease;
    if (lease == KV_LEASE_GRANTED)
        lease = c->granted;

    if (out != NULL) {
        *out = (struct kv_op_result){.type = KV_OP_PUT};
        out->u.put.has_prev = wants_prev;
        if (wants_prev)
            out->u.put.prev = keep_pair(&c->result->arena, &before, true);
    }
    struct kv_pair stored;
    kv_change_put(c, slot, value, lease, &stored);
    if (out != NULL)
        out->u.put.kv = keep_pair(&c->result->arena, &stored, false);
    kv_owned_free(&owned);
}

/* --- Delete ---------------------------------------------------------------------------------- */

struct deletion {
    struct kv_command *c;
    bool keep; /* prev_kv, and somebody waits */
    struct pair_list prev;
    int64_t deleted;
};

static void delete_one(struct deletion *d, struct kv_slot *slot)
{
    struct kv_head head;
    if (!kv_slot_head(slot, &head))
        return;
    if (d->keep) {
        struct slice owned;
        struct kv_pair before = whole_pair(d->c, &head, &owned);
        *add_pair(&d->prev) = keep_pair(&d->c->result->arena, &before, true);
        kv_owned_free(&owned);
    }
    kv_change_delete(d->c, slot);
    d->deleted++;
}

static void delete_range(struct deletion *d, const struct kv_range *range)
{
    struct kv_store *s = d->c->s;
    struct kv_raw_range raw_range = kv_raw_range_of(&s->command_arena, range);
    struct kv_walk w;
    struct slice raw, record;
    struct kv_slot *slot;
    kv_walk_open(&w, &s->overlay, raw_range.start, raw_range.end);
    while (kv_walk_next(&w, &raw, &record, &slot)) {
        if (!kv_head_is_live(record))
            continue;
        if (slot == NULL)
            slot = kv_overlay_adopt(&s->overlay, raw, record);
        delete_one(d, slot);
    }
    kv_walk_close(&w);
}

void kv_delete_execute(struct kv_command *c, const Etcdserverpb__DeleteRangeRequest *r,
                       struct kv_op_result *out)
{
    struct deletion d = {.c = c, .keep = r->prev_kv && out != NULL};
    struct kv_range range = range_of(&r->key, &r->range_end);
    if (range.range_end.len == 0) {
        struct kv_head head;
        delete_one(&d, kv_command_head(c, range.key, &head));
    } else {
        delete_range(&d, &range);
    }
    if (out != NULL) {
        *out = (struct kv_op_result){.type = KV_OP_DELETE};
        out->u.del.deleted = d.deleted;
        out->u.del.n_prev = d.prev.n;
        out->u.del.prev = close_list(&d.prev, &c->result->arena);
    }
}

/* --- Range ----------------------------------------------------------------------------------- */

/* Revisions are held against the state before the transaction. */
enum krd_status kv_range_check(struct kv_command *c, const Etcdserverpb__RangeRequest *r)
{
    if (r->revision > c->s->meta.revision)
        return refuse(c, KRD_FUTURE_REVISION, "required revision is a future revision");
    if (r->revision != 0 && (r->revision < 0 || r->revision < c->s->meta.compacted))
        return refuse(c, KRD_COMPACTED, "required revision has been compacted");
    return KRD_OK;
}

struct ranging {
    struct kv_command *c;
    const Etcdserverpb__RangeRequest *r;
    struct kv_source source;
    bool whole; /* all are needed before the limit: they are sorted or filtered */
    struct pair_list kvs;
    int64_t count;
};

static bool outside(int64_t v, int64_t min, int64_t max)
{
    return (min != 0 && v < min) || (max != 0 && v > max);
}

static void range_one(struct ranging *g, const struct kv_head *head)
{
    const Etcdserverpb__RangeRequest *r = g->r;
    struct kv_pair pair;
    struct slice owned;
    int64_t revision = r->revision > 0 ? r->revision : INT64_MAX;
    bool with_value =
        !r->count_only &&
        (!r->keys_only || r->sort_target == ETCDSERVERPB__RANGE_REQUEST__SORT_TARGET__VALUE);
    if (!kv_version_at(&g->source, head, revision, with_value, &pair, &owned))
        return;
    pair.key = head->pair.key;
    g->count++;
    bool wanted = !r->count_only && (g->whole || r->limit <= 0 || g->count <= r->limit) &&
                  !outside(pair.mod_revision, r->min_mod_revision, r->max_mod_revision) &&
                  !outside(pair.create_revision, r->min_create_revision, r->max_create_revision);
    if (wanted)
        *add_pair(&g->kvs) = keep_pair(&g->c->result->arena, &pair, with_value);
    kv_owned_free(&owned);
}

static void range_walk(struct ranging *g, const struct kv_range *range)
{
    struct kv_store *s = g->c->s;
    struct kv_raw_range raw_range = kv_raw_range_of(&s->command_arena, range);
    struct kv_walk w;
    struct slice raw, record;
    struct kv_slot *slot;
    kv_walk_open(&w, &s->overlay, raw_range.start, raw_range.end);
    while (kv_walk_next(&w, &raw, &record, &slot)) {
        struct kv_head head = kv_head_decode(slice_of(raw.ptr + 1, raw.len - 1), record);
        range_one(g, &head);
    }
    kv_walk_close(&w);
}

static int compare_i64(int64_t a, int64_t b)
{
    return (a > b) - (a < b);
}

/* Equal ones stay in key order. */
static int by_target(const void *pa, const void *pb, void *arg)
{
    const Etcdserverpb__RangeRequest *r = arg;
    const struct kv_pair *a = pa, *b = pb;
    int c = 0;
    switch (r->sort_target) {
    case ETCDSERVERPB__RANGE_REQUEST__SORT_TARGET__VERSION:
        c = compare_i64(a->version, b->version);
        break;
    case ETCDSERVERPB__RANGE_REQUEST__SORT_TARGET__CREATE:
        c = compare_i64(a->create_revision, b->create_revision);
        break;
    case ETCDSERVERPB__RANGE_REQUEST__SORT_TARGET__MOD:
        c = compare_i64(a->mod_revision, b->mod_revision);
        break;
    case ETCDSERVERPB__RANGE_REQUEST__SORT_TARGET__VALUE:
        c = slice_cmp(a->value, b->value);
        break;
    default:
        c = slice_cmp(a->key, b->key);
    }
    if (r->sort_order == ETCDSERVERPB__RANGE_REQUEST__SORT_ORDER__DESCEND)
        c = -c;
    return c != 0 ? c : slice_cmp(a->key, b->key);
}

static bool needs_whole(const Etcdserverpb__RangeRequest *r)
{
    return r->sort_order != ETCDSERVERPB__RANGE_REQUEST__SORT_ORDER__NONE ||
           r->sort_target != ETCDSERVERPB__RANGE_REQUEST__SORT_TARGET__KEY ||
           r->min_mod_revision != 0 || r->max_mod_revision != 0 || r->min_create_revision != 0 ||
           r->max_create_revision != 0;
}

void kv_range_execute(struct kv_command *c, const Etcdserverpb__RangeRequest *r,
                      struct kv_op_result *out)
{
    if (out == NULL) /* reads leave no trace */
        return;
    struct ranging g = {
        .c = c, .r = r, .source = {c->s->engine, NULL, &c->s->changes}, .whole = needs_whole(r)};
    struct kv_range range = range_of(&r->key, &r->range_end);
    if (range.range_end.len == 0) {
        struct kv_head head;
        if (kv_command_head(c, range.key, &head)->present)
            range_one(&g, &head);
    } else {
        range_walk(&g, &range);
    }
    if (g.whole && g.kvs.n > 1)
        qsort_r(g.kvs.list, g.kvs.n, sizeof g.kvs.list[0], by_target, (void *)(uintptr_t)r);

    *out = (struct kv_op_result){.type = KV_OP_RANGE};
    size_t n = g.kvs.n;
    if (!r->count_only && r->limit > 0) {
        out->u.range.more = g.whole ? n > (uint64_t)r->limit : g.count > r->limit;
        n = (size_t)krd_min_u64(n, (uint64_t)r->limit);
    }
    for (size_t i = 0; i < n && r->keys_only; i++)
        g.kvs.list[i].value = slice_of(NULL, 0);
    out->u.range.count = g.count;
    out->u.range.n = n;
    out->u.range.kvs = close_list(&g.kvs, &c->result->arena);
}
