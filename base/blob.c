#include "base/blob.h"

struct krd_blob *krd_blob_create(size_t len)
{
    struct krd_blob *b = krd_alloc(sizeof *b + len);
    atomic_init(&b->refs, 1);
    b->len = len;
    return b;
}

struct krd_blob *krd_blob_copy(struct slice s)
{
    struct krd_blob *b = krd_blob_create(s.len);
    if (s.len != 0)
        memcpy(b->data, s.ptr, s.len);
    return b;
}

struct krd_blob *krd_blob_ref(struct krd_blob *b)
{
    unsigned before = atomic_fetch_add_explicit(&b->refs, 1, memory_order_relaxed);
    KRD_ASSERT(before != 0);
    return b;
}

void krd_blob_unref(struct krd_blob *b)
{
    if (b == NULL)
        return;
    /* acq_rel: whoever frees has seen what every other holder did with the bytes. */
    unsigned before = atomic_fetch_sub_explicit(&b->refs, 1, memory_order_acq_rel);
    KRD_ASSERT(before != 0);
    if (before == 1)
        krd_free(b);
}
