/* store_internal.h - the store's inside, for the files of kv/ alone.
 *
 *   kv_apply -> command (apply.c) -> checks, then changes (txn.c, change.c) -> overlay and the
 *   batch's list of changes -> flush: one engine batch -> published counters -> watch hub ->
 *   outcomes */
#ifndef KRD_KV_STORE_INTERNAL_H
#define KRD_KV_STORE_INTERNAL_H

#include "base/buf.h"
#include "kv/lease.h"
#include "kv/overlay.h"
#include "kv/session.h"
#include "kv/store.h"

#include <pthread.h>
#include <stdatomic.h>

/* A change of the batch under way, or read back from the engine: an 'r' record. */
struct kv_logged {
    struct kv_place at;
    struct slice record;
};

struct kv_changes {
    struct kv_logged *list; /* in order */
    size_t n, cap, bytes;
};

struct kv_hub;

struct kv_store {
    struct kv_options options;
    struct kv_engine *engine;

    /* Apply thread. */
    struct kv_meta meta; /* as of the last entry applied, in a batch or not */
    struct kv_sum sum;   /* of the items; up to date at flush only */
    struct kv_engine_batch *batch;
    struct krd_arena batch_arena;   /* until the flush */
    struct krd_arena command_arena; /* until the command's end */
    struct kv_overlay overlay;
    struct kv_changes changes;
    struct kv_leases leases;
    struct kv_sessions sessions;
    struct kv_outcome *outcomes; /* of the batch, in log order */
    size_t n_outcomes, outcomes_cap;
    struct kv_engine_batch *maintain_batch;
    struct kv_place compact_at; /* physical compaction: the next change to look at */
    int64_t compact_to;         /* target of the pass under way, or of the last one */
    bool compact_busy;          /* a pass is under way */

    /* Any thread: what readers are told. Set after the batch is in the engine. */
    _Atomic uint64_t applied_index, applied_term, applied_time_ms;
    _Atomic int64_t revision, compacted;
    pthread_mutex_t hash_lock; /* holds hash_index and hash together */
    uint64_t hash_index;
    uint8_t hash[16];

    struct kv_hub *hub;
};

void kv_store_publish(struct kv_store *s);
/* The state record as of a snapshot (NULL: now); an empty store's when there is none. False: it is
 * not of this format. */
bool kv_meta_read(struct kv_engine *e, struct kv_engine_snapshot *snap, struct kv_meta *out);
void kv_compact_load(struct kv_store *s);

/* --- Versions of a key (chain.c): any thread ----------------------------------------------------
 */

/* Where changes are looked up: those of the batch under way (NULL: none), then the engine. */
struct kv_source {
    struct kv_engine *engine;
    struct kv_engine_snapshot *snap; /* may be NULL */
    const struct kv_changes *changes;
};
/* Reads one change. Its slices live until kv_owned_free(owned). False: compacted away. */
bool kv_source_read(const struct kv_source *src, struct kv_place at, struct kv_change *out,
                    struct slice *owned);
void kv_owned_free(struct slice *owned); /* takes what is empty */
/* The newest version with its value, wherever that stands. out's slices are head's or live until
 * kv_owned_free(owned). False: overwritten and compacted away since head was read; nothing is
 * owned. That cannot happen on the apply thread and within a snapshot. */
bool kv_head_whole(const struct kv_source *src, const struct kv_head *head, struct kv_pair *out,
                   struct slice *owned);
/* The version of head's key that was the newest one at `revision`. False: the key did not exist
 * then; nothing is owned. out's slices are head's or live until kv_owned_free(owned). Without
 * with_value the value may be left out. */
bool kv_version_at(const struct kv_source *src, const struct kv_head *head, int64_t revision,
                   bool with_value, struct kv_pair *out, struct slice *owned);

/* --- Commands (change.c; ops.h): apply thread ---------------------------------------------------
 */

/* One command being applied. */
struct kv_command {
    struct kv_store *s;
    int64_t revision; /* what its changes get */
    uint32_t sub;     /* changes made so far */
    uint64_t index, time_ms;
    int64_t granted;          /* a put with lease -1 takes this; 0: none */
    bool grant_used;          /* some put does */
    struct kv_result *result; /* NULL: nobody waits for it here */
    const char *message;      /* why not; static */
};

/* The newest version of a key as the command sees it. The slot is for kv_change_*. */
struct kv_slot *kv_command_head(struct kv_command *c, struct slice key, struct kv_head *head);
bool kv_slot_head(const struct kv_slot *slot, struct kv_head *head); /* false: not live */

/* key lies in the batch's arena or longer (it is the slot's). Takes care of history and leases. */
void kv_change_put(struct kv_command *c, struct kv_slot *slot, struct slice value, int64_t lease,
                   struct kv_pair *stored);
void kv_change_delete(struct kv_command *c, struct kv_slot *slot);
/* Deletes all keys of the leases with .ending set, in key order, and ends them. */
void kv_change_end_leases(struct kv_command *c, struct kv_lease **ending, size_t n);

/* --- Watch hub (watch_hub.c) ---------------------------------------------------------------------
 */

struct kv_hub *kv_hub_create(int64_t revision);
void kv_hub_destroy(struct kv_hub *h); /* asserts that no group is left */
/* Apply thread, after the batch is in the engine and the counters are published. */
void kv_hub_publish(struct kv_hub *h, const struct kv_changes *changes, int64_t revision);

#endif
