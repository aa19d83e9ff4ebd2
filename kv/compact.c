/* compact.c - history is forgotten in two steps.
 *
 * Logically, by an entry (apply.c): reads below the compacted revision C are refused from then on,
 * on every node at once. Reads at C are allowed, and so are watches from C.
 *
 * Physically, here, at each node's own pace, in slices between batches: a pass walks the changes
 * from where the last pass began to end, up to its target T (the C it started with).
 *   - A change at or below T makes the version before it unreachable: that one is deleted.
 *   - A tombstone below T is unreachable itself: it is deleted, and so is the key's newest-version
 *     record if it is still that tombstone. One at T stays until a later pass: a watch from C = T
 *     must see the delete.
 * A pass begins at the revision T of the pass before it, for that reason. Progress is written in
 * the same batch as the deletes; a crash repeats deletes of what is gone, which does nothing.
 *
 * None of it touches the state's hash or any answer: readers hold a revision against C after they
 * have read (read.c, watch.c). */
#include "kv/store_internal.h"

enum {
    SLICE_CHANGES = 512,
    SLICE_BYTES = 1024 * 1024,
    PROGRESS_BYTES = 20,
};

void kv_compact_load(struct kv_store *s)
{
    struct slice record;
    if (!kv_engine_get(s->engine, NULL, slice_str("c"), &record))
        return;
    struct krd_reader r = krd_reader_of(record);
    s->compact_at.revision = (int64_t)krd_read_le64(&r);
    s->compact_at.sub = krd_read_le32(&r);
    s->compact_to = (int64_t)krd_read_le64(&r);
    s->compact_busy = true; /* perhaps it was in the middle; to finish twice is harmless */
    if (r.bad)
        krd_fatal("kv: the record of compaction's progress in %s does not decode. See "
                  "'LevelDB is damaged' in docs/OPERATIONS.md.",
                  s->options.dir);
    kv_engine_free(record);
}

static void put_progress(struct kv_store *s)
{
    uint8_t record[PROGRESS_BYTES];
    krd_put_le64(record, (uint64_t)s->compact_at.revision);
    krd_put_le32(record + 8, s->compact_at.sub);
    krd_put_le64(record + 12, (uint64_t)s->compact_to);
    kv_engine_batch_put(s->maintain_batch, slice_str("c"), slice_of(record, sizeof record));
}

static void delete_change(struct kv_store *s, struct kv_place at)
{
    uint8_t key[KV_CHANGE_KEY_BYTES];
    kv_engine_batch_delete(s->maintain_batch, kv_raw_change(key, at));
}

/* The key's newest version may have moved on since. */
static void delete_head_if(struct kv_store *s, const struct kv_change *tombstone)
{
    struct krd_arena arena = KRD_ARENA_INIT;
    struct slice raw = kv_raw_key(&arena, 'k', tombstone->pair.key), record;
    if (kv_engine_get(s->engine, NULL, raw, &record)) {
        struct kv_head head = kv_head_decode(tombstone->pair.key, record);
        if (head.pair.mod_revision == tombstone->pair.mod_revision && head.sub == tombstone->sub)
            kv_engine_batch_delete(s->maintain_batch, raw);
        kv_engine_free(record);
    }
    krd_arena_deinit(&arena);
}

static void compact_change(struct kv_store *s, const struct kv_change *change)
{
    if (change->prev.revision != 0)
        delete_change(s, change->prev);
    if (kv_pair_is_tombstone(&change->pair) && change->pair.mod_revision < s->compact_to) {
        delete_change(s, (struct kv_place){change->pair.mod_revision, change->sub});
        delete_head_if(s, change);
    }
}

/* True: the slice was full, and the pass has not ended. */
static bool compact_slice(struct kv_store *s)
{
    uint8_t start[KV_CHANGE_KEY_BYTES];
    size_t changes = 0, bytes = 0;
    bool more = false;
    struct kv_engine_iter *it = kv_engine_iter_create(s->engine, NULL, false);
    kv_engine_iter_seek(it, kv_raw_change(start, s->compact_at));
    for (; kv_engine_iter_valid(it); kv_engine_iter_next(it)) {
        struct slice raw = kv_engine_iter_key(it), record = kv_engine_iter_value(it);
        if (raw.ptr[0] != 'r')
            break;
        struct kv_place at = kv_place_of_raw(raw);
        if (at.revision > s->compact_to)
            break;
        more = changes >= SLICE_CHANGES || bytes >= SLICE_BYTES;
        if (more) {
            s->compact_at = at;
            break;
        }
        struct kv_change change = kv_change_decode(at, record);
        compact_change(s, &change);
        changes++;
        bytes += record.len;
    }
    kv_engine_iter_destroy(it);
    return more;
}

bool kv_maintain(struct kv_store *s)
{
    KRD_ASSERT(s->n_outcomes == 0); /* between batches */
    if (!s->compact_busy && s->meta.compacted <= s->compact_to)
        return false;
    if (!s->compact_busy) {
        s->compact_busy = true;
        s->compact_to = s->meta.compacted;
    }
    if (!compact_slice(s)) {
        s->compact_busy = false;
        s->compact_at = (struct kv_place){s->compact_to, 0};
    }
    put_progress(s);
    kv_engine_write(s->engine, s->maintain_batch);
    kv_engine_batch_clear(s->maintain_batch);
    return s->compact_busy || s->meta.compacted > s->compact_to;
}

/* --- Which revision a time stands for -------------------------------------------------------- */

/* The first change at or behind a revision. */
static bool first_change(struct kv_engine_iter *it, int64_t revision, int64_t *found,
                         uint64_t *time_ms)
{
    uint8_t raw[KV_CHANGE_KEY_BYTES];
    kv_engine_iter_seek(it, kv_raw_change(raw, (struct kv_place){revision, 0}));
    if (!kv_engine_iter_valid(it) || kv_engine_iter_key(it).ptr[0] != 'r')
        return false;
    struct kv_place at = kv_place_of_raw(kv_engine_iter_key(it));
    *found = at.revision;
    *time_ms = kv_change_decode(at, kv_engine_iter_value(it)).time_ms;
    return true;
}

/* Times do not fall along the log: a binary search by seeks. Below the compacted revision there may
 * be gaps, hence it is the lower end; from there on every revision has its changes. */
int64_t kv_revision_at_time(struct kv_store *s, uint64_t time_ms)
{
    int64_t best = 0;
    struct kv_engine_snapshot *snap = kv_engine_snapshot(s->engine);
    struct kv_meta meta;
    if (kv_meta_read(s->engine, snap, &meta)) {
        struct kv_engine_iter *it = kv_engine_iter_create(s->engine, snap, true);
        int64_t lo = krd_max_i64(meta.compacted, 1), hi = meta.revision;
        while (lo <= hi) {
            int64_t mid = lo + (hi - lo) / 2, found;
            uint64_t at_ms;
            if (first_change(it, mid, &found, &at_ms) && found <= hi && at_ms <= time_ms) {
                best = found;
                lo = found + 1;
            } else {
                hi = mid - 1;
            }
        }
        kv_engine_iter_destroy(it);
    }
    kv_engine_snapshot_release(s->engine, snap);
    return best;
}
