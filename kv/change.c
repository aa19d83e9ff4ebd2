/* change.c - one key changes: its newest version in the overlay, its history in the batch's list of
 * changes, its lease's keys. Everything that alters keys comes through here: puts, deletes, ends of
 * leases. Whether it may be done was decided before; nothing here fails. */
#include "kv/store_internal.h"

#include <stdlib.h>

bool kv_slot_head(const struct kv_slot *slot, struct kv_head *head)
{
    *head = (struct kv_head){.sub = 0};
    struct slice key = slice_of(slot->raw.ptr + 1, slot->raw.len - 1);
    head->pair.key = key;
    if (!slot->present)
        return false;
    *head = kv_head_decode(key, slot->record);
    return !kv_pair_is_tombstone(&head->pair);
}

struct kv_slot *kv_command_head(struct kv_command *c, struct slice key, struct kv_head *head)
{
    struct kv_store *s = c->s;
    struct kv_slot *slot = kv_overlay_get(&s->overlay, kv_raw_key(&s->batch_arena, 'k', key));
    kv_slot_head(slot, head);
    return slot;
}

/* --- Leases' keys ------------------------------------------------------------------------------
 */

static void move_lease(struct kv_command *c, struct slice key, int64_t from, int64_t to)
{
    struct kv_store *s = c->s;
    if (from == to)
        return;
    int64_t ids[2] = {from, to};
    for (int i = 0; i < 2; i++) {
        if (ids[i] == 0)
            continue;
        bool attach = i == 1;
        struct kv_lease *l = kv_leases_find(&s->leases, ids[i]);
        KRD_ASSERT(l != NULL); /* checked before a put; ended only after its keys */
        kv_leases_attached(&s->leases, l, attach ? 1 : -1);
        struct slice raw = kv_raw_attached(&s->batch_arena, ids[i], key);
        kv_overlay_set(&s->overlay, kv_overlay_blind(&s->overlay, raw), slice_of(NULL, 0), attach);
    }
}

/* --- Versions -----------------------------------------------------------------------------------
 */

/* Where the version that is about to be replaced stands. A tombstone below the compacted revision
 * counts as gone whether or not physical compaction, which runs at each node's own pace, has met
 * it: what is written stays a function of the log. */
static struct kv_place place_before(const struct kv_store *s, const struct kv_slot *slot,
                                    const struct kv_head *old)
{
    if (!slot->present ||
        (kv_pair_is_tombstone(&old->pair) && old->pair.mod_revision < s->meta.compacted))
        return (struct kv_place){0, 0};
    return (struct kv_place){old->pair.mod_revision, old->sub};
}

static void replace(struct kv_command *c, struct kv_slot *slot, const struct kv_head *old,
                    const struct kv_pair *now)
{
    struct kv_store *s = c->s;
    struct kv_change change = {
        .pair = *now, .sub = c->sub, .prev = place_before(s, slot, old), .time_ms = c->time_ms};
    struct slice record = kv_change_encode(&s->batch_arena, &change);
    struct kv_changes *list = &s->changes;
    krd_grow(&list->list, &list->cap, list->n + 1, sizeof list->list[0]);
    list->list[list->n++] = (struct kv_logged){{c->revision, c->sub}, record};
    list->bytes += record.len;

    struct kv_head head = {.pair = *now, .sub = c->sub};
    kv_overlay_set(&s->overlay, slot, kv_head_encode(&s->batch_arena, &head), true);
    c->sub++;
}

void kv_change_put(struct kv_command *c, struct kv_slot *slot, struct slice value, int64_t lease,
                   struct kv_pair *stored)
{
    struct kv_head old;
    bool live = kv_slot_head(slot, &old);
    *stored = (struct kv_pair){.key = old.pair.key,
                               .value = value,
                               .create_revision = live ? old.pair.create_revision : c->revision,
                               .mod_revision = c->revision,
                               .version = live ? old.pair.version + 1 : 1,
                               .lease = lease};
    replace(c, slot, &old, stored);
    move_lease(c, old.pair.key, live ? old.pair.lease : 0, lease);
}

void kv_change_delete(struct kv_command *c, struct kv_slot *slot)
{
    struct kv_head old;
    bool live = kv_slot_head(slot, &old);
    KRD_ASSERT(live);
    struct kv_pair tombstone = {.key = old.pair.key, .mod_revision = c->revision};
    int64_t lease = old.pair.lease;
    replace(c, slot, &old, &tombstone);
    move_lease(c, tombstone.key, lease, 0);
}

/* --- Ends of leases ------------------------------------------------------------------------------
 */

struct key_list {
    struct slice *keys;
    size_t n, cap;
};

static void collect_attached(struct kv_store *s, int64_t lease, struct key_list *out)
{
    uint8_t start[KV_ID_KEY_BYTES], end[KV_ID_KEY_BYTES];
    struct kv_walk w;
    struct slice raw, record;
    struct kv_slot *slot;
    kv_walk_open(&w, &s->overlay, kv_raw_id(start, 'a', (uint64_t)lease),
                 kv_raw_id(end, 'a', (uint64_t)lease + 1));
    while (kv_walk_next(&w, &raw, &record, &slot)) {
        struct slice key = slice_of(raw.ptr + KV_ID_KEY_BYTES, raw.len - KV_ID_KEY_BYTES);
        krd_grow(&out->keys, &out->cap, out->n + 1, sizeof out->keys[0]);
        out->keys[out->n++] = krd_arena_copy(&s->command_arena, key);
    }
    kv_walk_close(&w);
}

static int by_bytes(const void *a, const void *b)
{
    return slice_cmp(*(const struct slice *)a, *(const struct slice *)b);
}

void kv_change_end_leases(struct kv_command *c, struct kv_lease **ending, size_t n)
{
    struct kv_store *s = c->s;
    struct key_list list = {NULL, 0, 0};
    for (size_t i = 0; i < n; i++)
        collect_attached(s, ending[i]->id, &list);
    if (list.n > 1)
        qsort(list.keys, list.n, sizeof list.keys[0], by_bytes);
    for (size_t i = 0; i < list.n; i++) {
        struct kv_head head;
        kv_change_delete(c, kv_command_head(c, list.keys[i], &head));
    }
    krd_free(list.keys);
    for (size_t i = 0; i < n; i++)
        kv_leases_end(&s->leases, ending[i], &s->sum);
}
