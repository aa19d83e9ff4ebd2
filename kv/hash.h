/* hash.h - the state's hash: a sum modulo 2^128 of one hash for each item (live key's newest
 * version, lease, session) and one for the counters. A sum, so that a change costs one subtraction
 * of the item as it was stored and one addition of the new one; an item that rotted or is missing
 * is subtracted as it is and makes the sum differ from then on.
 *
 * XXH3 by its specification: the same on every compiler and machine. It finds faults, it does not
 * stand against an adversary who can write the store. Thread: any. */
#ifndef KRD_KV_HASH_H
#define KRD_KV_HASH_H

#include "base/base.h"

struct kv_sum {
    uint64_t low, high;
};

static inline struct kv_sum kv_sum_add(struct kv_sum a, struct kv_sum b)
{
    uint64_t low = a.low + b.low;
    return (struct kv_sum){low, a.high + b.high + (low < a.low)};
}
static inline struct kv_sum kv_sum_subtract(struct kv_sum a, struct kv_sum b)
{
    return (struct kv_sum){a.low - b.low, a.high - b.high - (a.low < b.low)};
}
static inline bool kv_sum_eq(struct kv_sum a, struct kv_sum b)
{
    return a.low == b.low && a.high == b.high;
}
static inline struct kv_sum kv_sum_load(const uint8_t p[16])
{
    return (struct kv_sum){krd_get_le64(p), krd_get_le64(p + 8)};
}
static inline void kv_sum_store(uint8_t p[16], struct kv_sum s)
{
    krd_put_le64(p, s.low);
    krd_put_le64(p + 8, s.high);
}

/* Of an engine key; also used to find it in tables. */
uint64_t kv_hash_key(struct slice raw);
/* Of a record under the engine key with that hash. */
struct kv_sum kv_hash_item(uint64_t key_hash, struct slice record);
/* The sum with the counters that belong to the state. */
struct kv_sum kv_hash_finish(struct kv_sum items, int64_t revision, int64_t compacted);

#endif
