/* lease.h - the leases that live, in memory, with a heap of their deadlines. Records 'l' in the
 * engine are the truth that readers see and that a start loads; keys by lease are records 'a' and
 * not held here (kv/apply's business), but for their number.
 *
 * Time is cluster time, which stands in the entries: nothing here reads a clock.
 * Thread: apply. */
#ifndef KRD_KV_LEASE_H
#define KRD_KV_LEASE_H

#include "kv/engine.h"
#include "kv/hash.h"
#include "kv/record.h"

struct kv_lease {
    int64_t id;
    struct kv_lease_record rec;
    size_t heap;       /* place in the heap */
    bool dirty;        /* rec is not yet in a batch */
    bool ending;       /* picked by the command under way */
    struct kv_sum sum; /* of its record in the engine; 0 when it has none yet */
};

struct kv_lease_row;
struct kv_leases {
    struct kv_lease_row *by_id; /* uthash */
    struct kv_lease **heap;     /* earliest deadline first */
    size_t n, heap_cap;
    int64_t *touched; /* IDs to be written or deleted at the next flush */
    size_t n_touched, touched_cap;
};

void kv_leases_init(struct kv_leases *t);
void kv_leases_deinit(struct kv_leases *t);
void kv_leases_load(struct kv_leases *t, struct kv_engine *engine); /* O(leases) */

struct kv_lease *kv_leases_find(struct kv_leases *t, int64_t id); /* NULL: none */
/* A free ID, drawn from values that all members share. */
int64_t kv_leases_choose_id(struct kv_leases *t, uint64_t index, uint64_t time_ms);
/* The ID is free. */
struct kv_lease *kv_leases_grant(struct kv_leases *t, int64_t id, int64_t ttl, uint64_t now_ms);
/* A full TTL from now on; never shortens. */
void kv_leases_renew(struct kv_leases *t, struct kv_lease *l, uint64_t now_ms);
void kv_leases_attached(struct kv_leases *t, struct kv_lease *l, int64_t more); /* keys += more */
/* No keys are attached any more; frees it and takes it out of the state's sum. */
void kv_leases_end(struct kv_leases *t, struct kv_lease *l, struct kv_sum *sum);

/* See kv_lease_due. */
size_t kv_leases_due(const struct kv_leases *t, uint64_t now_ms, int64_t *ids, size_t max,
                     uint64_t *next_ms);
void kv_leases_flush(struct kv_leases *t, struct kv_engine_batch *batch, struct kv_sum *sum);

#endif
