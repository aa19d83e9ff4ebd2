/* chain.c - a key's history: its newest version names its own change, each change names the one
 * before. Changes are immutable; compaction removes them from the old end, so that a chain that
 * breaks off has lost only what no permitted reader may ask for (see compact.c). */
#include "kv/store_internal.h"

static bool read_batch(const struct kv_changes *c, struct kv_place at, struct kv_change *out)
{
    size_t lo = 0, hi = c->n;
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        struct kv_place p = c->list[mid].at;
        if (p.revision < at.revision || (p.revision == at.revision && p.sub < at.sub))
            lo = mid + 1;
        else
            hi = mid;
    }
    if (lo == c->n || c->list[lo].at.revision != at.revision || c->list[lo].at.sub != at.sub)
        return false;
    *out = kv_change_decode(at, c->list[lo].record);
    return true;
}

bool kv_source_read(const struct kv_source *src, struct kv_place at, struct kv_change *out,
                    struct slice *owned)
{
    uint8_t buf[KV_CHANGE_KEY_BYTES];
    *owned = slice_of(NULL, 0);
    if (src->changes != NULL && read_batch(src->changes, at, out))
        return true;
    struct slice raw = kv_raw_change(buf, at);
    /* Changes never change: what is still there is what the snapshot has, and a get outside of it
     * is several times cheaper. */
    if (!kv_engine_get(src->engine, NULL, raw, owned) &&
        (src->snap == NULL || !kv_engine_get(src->engine, src->snap, raw, owned)))
        return false;
    *out = kv_change_decode(at, *owned);
    return true;
}

void kv_owned_free(struct slice *owned)
{
    if (owned->ptr != NULL)
        kv_engine_free(*owned);
    *owned = slice_of(NULL, 0);
}

bool kv_head_whole(const struct kv_source *src, const struct kv_head *head, struct kv_pair *out,
                   struct slice *owned)
{
    *owned = slice_of(NULL, 0);
    *out = head->pair;
    if (!head->far)
        return true;
    struct kv_change change;
    struct kv_place at = {head->pair.mod_revision, head->sub};
    if (!kv_source_read(src, at, &change, owned))
        return false;
    if (!kv_head_value_matches(head, change.pair.value))
        krd_fatal("kv: the value of a key at revision %" PRId64 " is not the one that was written "
                  "(its hash differs): the store is damaged. See 'LevelDB is damaged' in "
                  "docs/OPERATIONS.md.",
                  at.revision);
    out->value = change.pair.value;
    return true;
}

bool kv_version_at(const struct kv_source *src, const struct kv_head *head, int64_t revision,
                   bool with_value, struct kv_pair *out, struct slice *owned)
{
    *owned = slice_of(NULL, 0);
    if (head->pair.mod_revision <= revision) {
        *out = head->pair;
        if (kv_pair_is_tombstone(out))
            return false;
        if (with_value)
            return kv_head_whole(src, head, out, owned);
        out->value = slice_of(NULL, 0);
        return true;
    }
    /* O(newer versions): one point read each. */
    struct kv_place at = {head->pair.mod_revision, head->sub};
    struct kv_change change;
    for (;;) {
        if (at.revision == 0 || !kv_source_read(src, at, &change, owned))
            return false;
        if (change.pair.mod_revision <= revision)
            break;
        at = change.prev;
        kv_owned_free(owned);
    }
    if (kv_pair_is_tombstone(&change.pair)) {
        kv_owned_free(owned);
        return false;
    }
    *out = change.pair;
    return true;
}
