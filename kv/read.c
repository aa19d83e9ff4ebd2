/* read.c - reading beside the apply thread.
 *
 * A single key costs one engine get, two when its value is long, and no snapshot: the newest
 * version's record is replaced in one piece, and it says at which revision. Whoever follows it to
 * a change, or walks a chain, without a snapshot may lose a race with compaction: so he reads the compacted revision before and after, and starts again when
 * it has moved. (It is published before anything is deleted on account of it.)
 *
 * A range costs a snapshot; the store's revision is read inside it. */
#include "kv/store_internal.h"

static enum krd_status check_revision(int64_t asked, int64_t revision, int64_t compacted)
{
    if (asked > revision)
        return KRD_FUTURE_REVISION;
    if (asked > 0 && asked < compacted)
        return KRD_COMPACTED;
    return KRD_OK;
}

static struct kv_pair keep(struct krd_arena *a, struct slice key, const struct kv_pair *p)
{
    struct kv_pair kept = *p;
    kept.key = key;
    kept.value = krd_arena_copy(a, p->value);
    return kept;
}

/* --- One key --------------------------------------------------------------------------------- */

/* One attempt. *store_revision comes in as read before, and is raised to what was met. */
static enum krd_status get(struct kv_store *s, struct slice raw, int64_t revision,
                           struct krd_arena *arena, struct kv_pair *out, int64_t *store_revision)
{
    struct slice record, owned;
    struct kv_pair pair;
    struct kv_source source = {s->engine, NULL, NULL};
    if (!kv_engine_get(s->engine, NULL, raw, &record))
        return KRD_NOT_FOUND;
    struct kv_head head = kv_head_decode(slice_of(raw.ptr + 1, raw.len - 1), record);
    *store_revision = krd_max_i64(*store_revision, head.pair.mod_revision);
    bool found =
        kv_version_at(&source, &head, revision > 0 ? revision : INT64_MAX, true, &pair, &owned);
    if (found)
        *out = keep(arena, head.pair.key, &pair);
    kv_owned_free(&owned);
    kv_engine_free(record);
    return found ? KRD_OK : KRD_NOT_FOUND;
}

enum krd_status kv_get(struct kv_store *s, struct slice key, int64_t revision,
                       struct krd_arena *arena, struct kv_pair *out, int64_t *store_revision)
{
    struct slice raw = kv_raw_key(arena, 'k', key);
    int64_t compacted = kv_compacted_revision(s);
    for (;;) {
        int64_t now = kv_revision(s);
        enum krd_status st = check_revision(revision, now, compacted);
        if (st == KRD_OK)
            st = get(s, raw, revision, arena, out, &now);
        int64_t compacted_after = kv_compacted_revision(s);
        if (compacted_after == compacted) {
            if (store_revision != NULL)
                *store_revision = now;
            return st;
        }
        compacted = compacted_after;
    }
}

/* --- A key's history ------------------------------------------------------------------------- */

struct versions {
    struct krd_arena *arena;
    struct kv_pair *list;
    size_t n, cap, limit;
};

/* What compaction keeps, whether or not it has come so far: everything from the compacted revision
 * on and, unless a tombstone, the newest version below it. False: older ones are not kept. */
static bool take_version(struct versions *v, struct slice key, const struct kv_pair *p,
                         int64_t compacted)
{
    if (p->mod_revision < compacted && kv_pair_is_tombstone(p))
        return false;
    krd_grow(&v->list, &v->cap, v->n + 1, sizeof v->list[0]);
    v->list[v->n++] = keep(v->arena, key, p);
    return p->mod_revision > compacted && v->n != v->limit;
}

static void walk_history(struct kv_store *s, struct slice raw, int64_t compacted,
                         struct versions *v, int64_t *store_revision)
{
    struct slice record, key = slice_of(raw.ptr + 1, raw.len - 1);
    struct kv_source source = {s->engine, NULL, NULL};
    if (!kv_engine_get(s->engine, NULL, raw, &record))
        return;
    struct kv_head head = kv_head_decode(key, record);
    struct kv_place at = {head.pair.mod_revision, head.sub};
    *store_revision = krd_max_i64(*store_revision, head.pair.mod_revision);
    kv_engine_free(record);
    for (bool more = true; more && at.revision != 0;) {
        struct kv_change change;
        struct slice owned;
        more = kv_source_read(&source, at, &change, &owned);
        if (more) {
            at = change.prev;
            more = take_version(v, key, &change.pair, compacted);
        }
        kv_owned_free(&owned);
    }
}

enum krd_status kv_history(struct kv_store *s, struct slice key, size_t limit,
                           struct krd_arena *arena, struct kv_pair **out, size_t *n,
                           int64_t *store_revision)
{
    struct slice raw = kv_raw_key(arena, 'k', key);
    struct versions v = {.arena = arena, .limit = limit};
    int64_t now, before, compacted = kv_compacted_revision(s);
    do {
        v.n = 0;
        before = compacted;
        now = kv_revision(s);
        walk_history(s, raw, before, &v, &now);
        compacted = kv_compacted_revision(s);
    } while (compacted != before);
    if (store_revision != NULL)
        *store_revision = now;
    *n = v.n;
    *out = NULL;
    if (v.n > 0)
        *out =
            memcpy(krd_arena_alloc(arena, v.n * sizeof v.list[0]), v.list, v.n * sizeof v.list[0]);
    krd_free(v.list);
    return *n > 0 ? KRD_OK : KRD_NOT_FOUND;
}

/* --- Ranges ---------------------------------------------------------------------------------- */

struct kv_cursor {
    struct kv_source source;
    struct kv_engine_iter *it;
    struct krd_arena arena;
    struct kv_raw_range raw;
    int64_t store_revision, revision; /* revision: at which it reads */
    bool descending, keys_only;
    bool started;
    struct slice owned; /* of the pair given last */
};

enum krd_status kv_cursor_open(struct kv_store *s, const struct kv_query *q, struct kv_cursor **out)
{
    struct kv_meta meta;
    struct kv_engine_snapshot *snap = kv_engine_snapshot(s->engine);
    if (!kv_meta_read(s->engine, snap, &meta))
        krd_fatal("kv: the state record in %s does not decode. See 'LevelDB is damaged' in "
                  "docs/OPERATIONS.md.",
                  s->options.dir);
    enum krd_status st = check_revision(q->revision, meta.revision, meta.compacted);
    if (st != KRD_OK) {
        kv_engine_snapshot_release(s->engine, snap);
        return st;
    }
    struct kv_cursor *c = krd_zalloc(sizeof *c);
    c->source = (struct kv_source){s->engine, snap, NULL};
    c->it = kv_engine_iter_create(s->engine, snap, false);
    c->raw = kv_raw_range_of(&c->arena, &q->range);
    c->store_revision = meta.revision;
    c->revision = q->revision > 0 ? q->revision : meta.revision;
    c->descending = q->descending;
    c->keys_only = q->keys_only;
    *out = c;
    return KRD_OK;
}

/* To the next record of the range, whatever it holds. */
static bool step(struct kv_cursor *c)
{
    if (!c->started && c->descending)
        kv_engine_iter_seek_before(c->it, c->raw.end);
    else if (!c->started)
        kv_engine_iter_seek(c->it, c->raw.start);
    else if (!kv_engine_iter_valid(c->it))
        return false;
    else if (c->descending)
        kv_engine_iter_prev(c->it);
    else
        kv_engine_iter_next(c->it);
    c->started = true;
    if (!kv_engine_iter_valid(c->it))
        return false;
    struct slice raw = kv_engine_iter_key(c->it);
    return slice_cmp(raw, c->raw.start) >= 0 && slice_cmp(raw, c->raw.end) < 0;
}

bool kv_cursor_next(struct kv_cursor *c, struct kv_pair *out)
{
    kv_owned_free(&c->owned);
    while (step(c)) {
        struct slice raw = kv_engine_iter_key(c->it);
        struct kv_head head =
            kv_head_decode(slice_of(raw.ptr + 1, raw.len - 1), kv_engine_iter_value(c->it));
        if (!kv_version_at(&c->source, &head, c->revision, !c->keys_only, out, &c->owned))
            continue;
        out->key = head.pair.key;
        if (c->keys_only)
            out->value = slice_of(NULL, 0);
        return true;
    }
    return false;
}

int64_t kv_cursor_revision(const struct kv_cursor *c)
{
    return c->store_revision;
}

int64_t kv_cursor_count_rest(struct kv_cursor *c)
{
    struct kv_pair pair;
    int64_t n = 0;
    c->keys_only = true;
    while (kv_cursor_next(c, &pair))
        n++;
    return n;
}

void kv_cursor_close(struct kv_cursor *c)
{
    if (c == NULL)
        return;
    kv_owned_free(&c->owned);
    kv_engine_iter_destroy(c->it);
    kv_engine_snapshot_release(c->source.engine, c->source.snap);
    krd_arena_deinit(&c->arena);
    krd_free(c);
}

/* --- Leases ---------------------------------------------------------------------------------- */

static struct kv_lease_info info_of(int64_t id, struct slice record)
{
    struct kv_lease_record rec = kv_lease_decode(record);
    return (struct kv_lease_info){id, rec.ttl, rec.deadline_ms, rec.keys};
}

enum krd_status kv_lease_get(struct kv_store *s, int64_t id, struct kv_lease_info *out)
{
    uint8_t key[KV_ID_KEY_BYTES];
    struct slice record;
    if (!kv_engine_get(s->engine, NULL, kv_raw_id(key, 'l', (uint64_t)id), &record))
        return KRD_LEASE_NOT_FOUND;
    *out = info_of(id, record);
    kv_engine_free(record);
    return KRD_OK;
}

size_t kv_lease_list(struct kv_store *s, struct kv_lease_info **out)
{
    size_t n = 0, cap = 0;
    *out = NULL;
    struct kv_engine_iter *it = kv_engine_iter_create(s->engine, NULL, false);
    kv_engine_iter_seek(it, slice_str("l"));
    for (; kv_engine_iter_valid(it); kv_engine_iter_next(it)) {
        struct slice raw = kv_engine_iter_key(it);
        if (raw.ptr[0] != 'l')
            break;
        krd_grow(out, &cap, n + 1, sizeof **out);
        (*out)[n++] = info_of((int64_t)krd_get_be64(raw.ptr + 1), kv_engine_iter_value(it));
    }
    kv_engine_iter_destroy(it);
    return n;
}

size_t kv_lease_keys(struct kv_store *s, int64_t id, struct krd_arena *arena, struct slice **out)
{
    uint8_t prefix_buf[KV_ID_KEY_BYTES];
    struct slice prefix = kv_raw_id(prefix_buf, 'a', (uint64_t)id), *list = NULL;
    size_t n = 0, cap = 0;
    struct kv_engine_iter *it = kv_engine_iter_create(s->engine, NULL, false);
    kv_engine_iter_seek(it, prefix);
    for (; kv_engine_iter_valid(it); kv_engine_iter_next(it)) {
        struct slice raw = kv_engine_iter_key(it);
        if (!slice_has_prefix(raw, prefix))
            break;
        krd_grow(&list, &cap, n + 1, sizeof *list);
        list[n++] = krd_arena_copy(arena, slice_of(raw.ptr + prefix.len, raw.len - prefix.len));
    }
    kv_engine_iter_destroy(it);
    *out = NULL;
    if (n > 0)
        *out = memcpy(krd_arena_alloc(arena, n * sizeof *list), list, n * sizeof *list);
    krd_free(list);
    return n;
}
