/* overlay.h - what the batch under way has changed, above what the engine holds. Applying reads
 * through it, so that a later entry of a batch sees an earlier one, and one engine get serves all
 * operations of a batch on the same key.
 *
 * Holds the records of newest versions ('k') and of attached keys ('a') under their engine keys.
 * Everything lies in the batch's arena; values that came from the engine are the engine's until
 * kv_overlay_clear. Thread: apply. */
#ifndef KRD_KV_OVERLAY_H
#define KRD_KV_OVERLAY_H

#include "base/arena.h"
#include "kv/engine.h"
#include "kv/hash.h"

struct kv_slot {
    struct slice raw; /* engine key */
    uint64_t hash;    /* kv_hash_key(raw) */
    struct slice record;
    bool present;         /* false: no such record */
    bool dirty;           /* differs from the engine */
    struct kv_sum before; /* once dirty: what the engine's record adds to the state's sum */
    struct slice owned;   /* to be given back to the engine; may be empty */
};

struct kv_overlay {
    struct kv_engine *engine;
    struct krd_arena *arena;
    struct kv_slot **table; /* open addressing, power of two */
    size_t table_cap;
    struct kv_slot **slots; /* in order of arrival */
    size_t n, cap;
    size_t bytes; /* of records held, roughly */
};

void kv_overlay_init(struct kv_overlay *o, struct kv_engine *engine, struct krd_arena *arena);
void kv_overlay_deinit(struct kv_overlay *o);
/* Forgets all; the arena is reset by its owner afterwards. */
void kv_overlay_clear(struct kv_overlay *o);

/* The slot of an engine key, read from the engine when it is not here yet. raw must live as long
 * as the batch's arena. The slot lives until kv_overlay_clear. */
struct kv_slot *kv_overlay_get(struct kv_overlay *o, struct slice raw);
/* The same without reading: for records whose old content does not matter ('a'). */
struct kv_slot *kv_overlay_blind(struct kv_overlay *o, struct slice raw);
/* The same when the caller has just read the record (from an iterator); it is copied. */
struct kv_slot *kv_overlay_adopt(struct kv_overlay *o, struct slice raw, struct slice record);
/* New content; record lies in the batch's arena. Passing present = false removes it. */
void kv_overlay_set(struct kv_overlay *o, struct kv_slot *slot, struct slice record, bool present);

/* A walk over what is present in [start, end), in order: the engine's records with the slots laid
 * over them. The key just given may be set, new slots are not met. */
struct kv_walk {
    struct kv_overlay *o;
    struct kv_engine_iter *it;
    struct slice end;
    struct kv_slot **hits; /* dirty slots in the range, sorted; in the arena */
    size_t n_hits, hit;
    bool engine_read; /* the iterator stands on what was given last */
};
void kv_walk_open(struct kv_walk *w, struct kv_overlay *o, struct slice start, struct slice end);
/* raw and record live until the next call, or as long as the batch when *slot is not NULL (slot:
 * where they come from, NULL for the engine's). */
bool kv_walk_next(struct kv_walk *w, struct slice *raw, struct slice *record,
                  struct kv_slot **slot);
void kv_walk_close(struct kv_walk *w);

#endif
