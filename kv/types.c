/* types.c - ranges of keys, and the end of results. */
#include "kv/types.h"

struct kv_range kv_range_of_prefix(struct slice prefix, uint8_t *end_buf)
{
    size_t n = prefix.len;
    while (n > 0 && prefix.ptr[n - 1] == 0xff)
        n--;
    if (n == 0) { /* no key with this prefix has a later neighbour: open-ended */
        end_buf[0] = 0;
        return (struct kv_range){prefix.len > 0 ? prefix : slice_of(end_buf, 1),
                                 slice_of(end_buf, 1)};
    }
    memcpy(end_buf, prefix.ptr, n);
    end_buf[n - 1]++;
    return (struct kv_range){prefix, slice_of(end_buf, n)};
}

bool kv_range_contains(const struct kv_range *r, struct slice key)
{
    if (r->range_end.len == 0)
        return slice_eq(r->key, key);
    if (slice_cmp(key, r->key) < 0)
        return false;
    bool open_ended = r->range_end.len == 1 && r->range_end.ptr[0] == 0;
    return open_ended || slice_cmp(key, r->range_end) < 0;
}

void kv_result_destroy(struct kv_result *r)
{
    if (r == NULL)
        return;
    krd_arena_deinit(&r->arena);
    krd_free(r);
}
