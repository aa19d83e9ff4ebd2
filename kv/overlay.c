/* overlay.c - see overlay.h. A hash table for points; ranges collect and sort the dirty slots that
 * lie in them, O(slots of the batch) each: batches are bounded (apply.c), ranges inside commands
 * are rare, and a put then pays for no order. */
#include "kv/overlay.h"
#include "kv/record.h"

#include <stdlib.h>

enum {
    TABLE_MIN = 256,
    TABLE_KEPT = 1 << 15, /* a larger table is given back after its batch */
};

void kv_overlay_init(struct kv_overlay *o, struct kv_engine *engine, struct krd_arena *arena)
{
    *o = (struct kv_overlay){.engine = engine, .arena = arena, .table_cap = TABLE_MIN};
    o->table = krd_calloc(o->table_cap, sizeof(struct kv_slot *));
}

void kv_overlay_deinit(struct kv_overlay *o)
{
    if (o->table == NULL) /* never begun */
        return;
    kv_overlay_clear(o);
    krd_free(o->table);
    krd_free(o->slots);
}

void kv_overlay_clear(struct kv_overlay *o)
{
    for (size_t i = 0; i < o->n; i++) {
        if (o->slots[i]->owned.ptr != NULL)
            kv_engine_free(o->slots[i]->owned);
    }
    o->n = 0;
    o->bytes = 0;
    if (o->table_cap > TABLE_KEPT) {
        krd_free(o->table);
        krd_free(o->slots);
        o->slots = NULL;
        o->cap = 0;
        o->table_cap = TABLE_MIN;
        o->table = krd_calloc(o->table_cap, sizeof(struct kv_slot *));
    } else {
        memset(o->table, 0, o->table_cap * sizeof(struct kv_slot *));
    }
}

/* --- Points ----------------------------------------------------------------------------------- */

/* Where the key is, or where it would be put. */
static struct kv_slot **find(struct kv_slot **table, size_t cap, uint64_t hash, struct slice raw)
{
    size_t i = hash & (cap - 1);
    while (table[i] != NULL && !(table[i]->hash == hash && slice_eq(table[i]->raw, raw)))
        i = (i + 1) & (cap - 1);
    return &table[i];
}

static void grow_table(struct kv_overlay *o)
{
    size_t cap = o->table_cap * 2;
    struct kv_slot **table = krd_calloc(cap, sizeof(struct kv_slot *));
    for (size_t i = 0; i < o->n; i++)
        *find(table, cap, o->slots[i]->hash, o->slots[i]->raw) = o->slots[i];
    krd_free(o->table);
    o->table = table;
    o->table_cap = cap;
}

static struct kv_slot *add_slot(struct kv_overlay *o, uint64_t hash, struct slice raw)
{
    if (o->n + 1 > o->table_cap / 2)
        grow_table(o);
    struct kv_slot *s = krd_arena_zalloc(o->arena, sizeof *s);
    s->raw = raw;
    s->hash = hash;
    *find(o->table, o->table_cap, hash, raw) = s;
    krd_grow(&o->slots, &o->cap, o->n + 1, sizeof(struct kv_slot *));
    o->slots[o->n++] = s;
    o->bytes += sizeof *s + raw.len;
    return s;
}

struct kv_slot *kv_overlay_get(struct kv_overlay *o, struct slice raw)
{
    uint64_t hash = kv_hash_key(raw);
    struct kv_slot *s = *find(o->table, o->table_cap, hash, raw);
    if (s != NULL)
        return s;
    s = add_slot(o, hash, raw);
    s->present = kv_engine_get(o->engine, NULL, raw, &s->record);
    if (s->present) {
        s->owned = s->record;
        o->bytes += s->record.len;
    }
    return s;
}

struct kv_slot *kv_overlay_blind(struct kv_overlay *o, struct slice raw)
{
    uint64_t hash = kv_hash_key(raw);
    struct kv_slot *s = *find(o->table, o->table_cap, hash, raw);
    return s != NULL ? s : add_slot(o, hash, raw);
}

struct kv_slot *kv_overlay_adopt(struct kv_overlay *o, struct slice raw, struct slice record)
{
    uint64_t hash = kv_hash_key(raw);
    struct kv_slot *s = *find(o->table, o->table_cap, hash, raw);
    if (s != NULL)
        return s;
    s = add_slot(o, hash, krd_arena_copy(o->arena, raw));
    s->record = krd_arena_copy(o->arena, record);
    s->present = true;
    o->bytes += record.len;
    return s;
}

void kv_overlay_set(struct kv_overlay *o, struct kv_slot *s, struct slice record, bool present)
{
    if (!s->dirty) {
        s->dirty = true;
        if (s->present && s->raw.ptr[0] == 'k' && kv_head_is_live(s->record))
            s->before = kv_hash_item(s->hash, s->record);
    }
    s->record = record;
    s->present = present;
    o->bytes += record.len;
}

/* --- Ranges ----------------------------------------------------------------------------------- */

static int by_key(const void *a, const void *b)
{
    const struct kv_slot *const *x = a, *const *y = b;
    return slice_cmp((*x)->raw, (*y)->raw);
}

void kv_walk_open(struct kv_walk *w, struct kv_overlay *o, struct slice start, struct slice end)
{
    *w = (struct kv_walk){.o = o, .end = end};
    for (int pass = 0; pass < 2; pass++) { /* count, then collect */
        w->n_hits = 0;
        for (size_t i = 0; i < o->n; i++) {
            struct kv_slot *s = o->slots[i];
            if (!s->dirty || slice_cmp(s->raw, start) < 0 || slice_cmp(s->raw, end) >= 0)
                continue;
            if (pass == 1)
                w->hits[w->n_hits] = s;
            w->n_hits++;
        }
        if (pass == 0 && w->n_hits == 0)
            break;
        if (pass == 0)
            w->hits = krd_arena_alloc(o->arena, w->n_hits * sizeof(struct kv_slot *));
    }
    if (w->n_hits > 1)
        qsort(w->hits, w->n_hits, sizeof(struct kv_slot *), by_key);
    w->it = kv_engine_iter_create(o->engine, NULL, false);
    kv_engine_iter_seek(w->it, start);
}

bool kv_walk_next(struct kv_walk *w, struct slice *raw, struct slice *record, struct kv_slot **slot)
{
    if (w->engine_read)
        kv_engine_iter_next(w->it);
    w->engine_read = false;
    for (;;) {
        bool engine_has =
            kv_engine_iter_valid(w->it) && slice_cmp(kv_engine_iter_key(w->it), w->end) < 0;
        bool slot_has = w->hit < w->n_hits;
        if (!engine_has && !slot_has)
            return false;
        int c = 1;
        if (engine_has)
            c = slot_has ? slice_cmp(kv_engine_iter_key(w->it), w->hits[w->hit]->raw) : -1;
        if (c < 0) {
            *raw = kv_engine_iter_key(w->it);
            *record = kv_engine_iter_value(w->it);
            *slot = NULL;
            w->engine_read = true;
            return true;
        }
        if (c == 0) /* the slot hides the engine's record */
            kv_engine_iter_next(w->it);
        struct kv_slot *s = w->hits[w->hit++];
        if (!s->present)
            continue;
        *raw = s->raw;
        *record = s->record;
        *slot = s;
        return true;
    }
}

void kv_walk_close(struct kv_walk *w)
{
    kv_engine_iter_destroy(w->it);
}
