/* hash.c - see hash.h. The key enters as the seed of the record's hash: nothing is copied. */
#include "kv/hash.h"

#include <xxhash.h>

uint64_t kv_hash_key(struct slice raw)
{
    return XXH3_64bits(raw.ptr, raw.len);
}

struct kv_sum kv_hash_item(uint64_t key_hash, struct slice record)
{
    XXH128_hash_t h = XXH3_128bits_withSeed(record.ptr, record.len, key_hash);
    return (struct kv_sum){h.low64, h.high64};
}

struct kv_sum kv_hash_finish(struct kv_sum items, int64_t revision, int64_t compacted)
{
    uint8_t counters[16];
    krd_put_le64(counters, (uint64_t)revision);
    krd_put_le64(counters + 8, (uint64_t)compacted);
    return kv_sum_add(
        items, kv_hash_item(kv_hash_key(slice_str("m")), slice_of(counters, sizeof counters)));
}
