/* store.c - opening and closing, and what is said of the state as a whole.
 *
 * Opening reads the state record, the leases and the sessions, and nothing in proportion to the
 * number of keys. What a crash leaves is the engine's business (engine.h): some prefix of the
 * batches, hence the state as it was after some entry, at or beyond the last checkpoint; the log is
 * applied again from there. */
#include "kv/store_internal.h"

#include "kv/ldb_maps.h"

#include <inttypes.h>

enum {
    CACHE_BYTES_DEFAULT = 16 * 1024 * 1024,
    WRITE_BUFFER_BYTES_DEFAULT = 8 * 1024 * 1024,
};

static bool engine_is_empty(struct kv_engine *e)
{
    struct kv_engine_iter *it = kv_engine_iter_create(e, NULL, false);
    kv_engine_iter_seek(it, slice_of(NULL, 0));
    bool empty = !kv_engine_iter_valid(it);
    kv_engine_iter_destroy(it);
    return empty;
}

/* The state record, or that of an empty store. */
static enum krd_status load_meta(struct kv_store *s, char **err)
{
    struct slice record;
    s->meta = (struct kv_meta){.revision = 1};
    if (kv_engine_get(s->engine, NULL, slice_str("m"), &record)) {
        bool good = kv_meta_decode(record, &s->meta);
        kv_engine_free(record);
        if (!good) {
            *err = krd_asprintf("%s: the store's format is not this program's", s->options.dir);
            return KRD_CORRUPT;
        }
    } else if (!engine_is_empty(s->engine)) {
        *err = krd_asprintf("%s: the store has data but no state record", s->options.dir);
        return KRD_CORRUPT;
    }
    if (s->meta.index < s->options.checkpoint) {
        *err = krd_asprintf("%s: the store ends at entry %" PRIu64 ", but everything up to %" PRIu64
                            " had been made durable: data is missing",
                            s->options.dir, s->meta.index, s->options.checkpoint);
        return KRD_CORRUPT;
    }
    s->sum = kv_sum_load(s->meta.sum);
    return KRD_OK;
}

static enum krd_status load(struct kv_store *s, char **err)
{
    enum krd_status st = load_meta(s, err);
    if (st != KRD_OK)
        return st;
    kv_leases_load(&s->leases, s->engine);
    if (!kv_sessions_load(&s->sessions, s->engine)) {
        *err = krd_asprintf("%s: the record of a session does not decode", s->options.dir);
        return KRD_CORRUPT;
    }
    kv_compact_load(s);
    return KRD_OK;
}

enum krd_status kv_open(const struct kv_options *o, struct kv_store **out, char **err)
{
    struct kv_store *s = krd_zalloc(sizeof *s);
    s->options = *o;
    pthread_mutex_init(&s->hash_lock, NULL);
    kv_leases_init(&s->leases);
    kv_sessions_init(&s->sessions);
    struct kv_engine_options eo = {
        .dir = o->dir,
        .cache_bytes = o->cache_bytes != 0 ? o->cache_bytes : CACHE_BYTES_DEFAULT,
        .write_buffer_bytes =
            o->write_buffer_bytes != 0 ? o->write_buffer_bytes : WRITE_BUFFER_BYTES_DEFAULT,
    };
    s->options.dir = krd_strdup(o->dir);
    enum krd_status st = kv_engine_open(&eo, &s->engine, err);
    if (st != KRD_OK)
        goto fail;
    st = load(s, err);
    if (st != KRD_OK)
        goto fail;
    s->batch = kv_engine_batch_create(s->engine);
    s->maintain_batch = kv_engine_batch_create(s->engine);
    kv_overlay_init(&s->overlay, s->engine, &s->batch_arena);
    s->hub = kv_hub_create(s->meta.revision);
    kv_store_publish(s);
    *out = s;
    return KRD_OK;
fail:
    kv_close(s);
    return st;
}

void kv_close(struct kv_store *s)
{
    if (s == NULL)
        return;
    KRD_ASSERT(s->n_outcomes == 0);
    kv_hub_destroy(s->hub);
    kv_overlay_deinit(&s->overlay);
    kv_engine_batch_destroy(s->batch);
    kv_engine_batch_destroy(s->maintain_batch);
    kv_leases_deinit(&s->leases);
    kv_sessions_deinit(&s->sessions);
    krd_arena_deinit(&s->batch_arena);
    krd_arena_deinit(&s->command_arena);
    krd_free(s->changes.list);
    krd_free(s->outcomes);
    kv_engine_close(s->engine);
    pthread_mutex_destroy(&s->hash_lock);
    krd_free((char *)(uintptr_t)s->options.dir);
    krd_free(s);
}

/* --- The state, told to other threads -------------------------------------------------------- */

void kv_store_publish(struct kv_store *s)
{
    uint8_t hash[16];
    kv_sum_store(hash, kv_hash_finish(s->sum, s->meta.revision, s->meta.compacted));
    pthread_mutex_lock(&s->hash_lock);
    s->hash_index = s->meta.index;
    memcpy(s->hash, hash, sizeof hash);
    pthread_mutex_unlock(&s->hash_lock);

    /* Revision first: whoever has seen a compaction then sees a revision at or beyond it (read.c
     * relies on it). */
    atomic_store(&s->revision, s->meta.revision);
    atomic_store(&s->compacted, s->meta.compacted);
    atomic_store(&s->applied_time_ms, s->meta.time_ms);
    atomic_store(&s->applied_term, s->meta.term);
    atomic_store(&s->applied_index, s->meta.index);
}

uint64_t kv_applied_index(const struct kv_store *s)
{
    return atomic_load(&s->applied_index);
}

uint64_t kv_applied_term(const struct kv_store *s)
{
    return atomic_load(&s->applied_term);
}

uint64_t kv_applied_time_ms(const struct kv_store *s)
{
    return atomic_load(&s->applied_time_ms);
}

int64_t kv_revision(const struct kv_store *s)
{
    return atomic_load(&s->revision);
}

int64_t kv_compacted_revision(const struct kv_store *s)
{
    return atomic_load(&s->compacted);
}

void kv_state_hash(const struct kv_store *cs, uint64_t *index, uint8_t hash[16])
{
    struct kv_store *s = (struct kv_store *)(uintptr_t)cs; /* for its lock */
    pthread_mutex_lock(&s->hash_lock);
    *index = s->hash_index;
    memcpy(hash, s->hash, sizeof s->hash);
    pthread_mutex_unlock(&s->hash_lock);
}

/* Records that belong to the state's sum: keys that live, leases, sessions. All of them, and the
 * state record between them, lie in ['k', 'p'). */
static bool counts(struct slice raw, struct slice record)
{
    switch (raw.ptr[0]) {
    case 'k':
        return kv_head_is_live(record);
    case 'l':
    case 'o':
        return true;
    default:
        return false;
    }
}

/* The sum knows a far value by its hash: here the value itself is held against it. */
static bool far_value_is_good(const struct kv_source *src, struct slice raw, struct slice record)
{
    struct kv_change change;
    struct slice owned;
    if (raw.ptr[0] != 'k')
        return true;
    struct kv_head head = kv_head_decode(slice_of(raw.ptr + 1, raw.len - 1), record);
    if (!head.far)
        return true;
    struct kv_place at = {head.pair.mod_revision, head.sub};
    bool good =
        kv_source_read(src, at, &change, &owned) && kv_head_value_matches(&head, change.pair.value);
    kv_owned_free(&owned);
    return good;
}

enum krd_status kv_state_hash_scan(struct kv_store *s, uint64_t *index, uint8_t hash[16])
{
    struct kv_engine_snapshot *snap = kv_engine_snapshot(s->engine);
    struct kv_meta meta;
    enum krd_status st = kv_meta_read(s->engine, snap, &meta) ? KRD_OK : KRD_CORRUPT;
    struct kv_source source = {s->engine, snap, NULL};
    struct kv_sum sum = {0, 0};
    struct kv_engine_iter *it = kv_engine_iter_create(s->engine, snap, false);
    kv_engine_iter_seek(it, slice_str("k"));
    for (; kv_engine_iter_valid(it); kv_engine_iter_next(it)) {
        struct slice raw = kv_engine_iter_key(it), record = kv_engine_iter_value(it);
        if (raw.ptr[0] >= 'p')
            break;
        if (!counts(raw, record))
            continue;
        if (!far_value_is_good(&source, raw, record))
            st = KRD_CORRUPT;
        else
            sum = kv_sum_add(sum, kv_hash_item(kv_hash_key(raw), record));
    }
    kv_engine_iter_destroy(it);
    kv_engine_snapshot_release(s->engine, snap);
    if (st == KRD_OK) {
        *index = meta.index;
        kv_sum_store(hash, kv_hash_finish(sum, meta.revision, meta.compacted));
    }
    return st;
}

bool kv_meta_read(struct kv_engine *e, struct kv_engine_snapshot *snap, struct kv_meta *out)
{
    struct slice record;
    *out = (struct kv_meta){.revision = 1};
    if (!kv_engine_get(e, snap, slice_str("m"), &record))
        return true; /* nothing was ever applied */
    bool good = kv_meta_decode(record, out);
    kv_engine_free(record);
    return good;
}

uint64_t kv_checkpoint(struct kv_store *s)
{
    uint64_t index = kv_applied_index(s);
    kv_engine_checkpoint(s->engine);
    return index;
}

void kv_trim_memory(size_t resident_max)
{
    ldb_maps_trim(resident_max);
}

uint64_t kv_disk_bytes(struct kv_store *s)
{
    return kv_engine_disk_bytes(s->engine);
}

size_t kv_lease_due(struct kv_store *s, uint64_t now_ms, int64_t *ids, size_t max,
                    uint64_t *next_ms)
{
    return kv_leases_due(&s->leases, now_ms, ids, max, next_ms);
}
