/* blob.h - immutable shared bytes with an atomic reference count. A blob is filled by the thread
 * that made it and not written to after it was given to another. Entries, frames and rendered
 * events travel between threads as blobs, so that a value is copied once at most.
 *
 * Thread: ref and unref from any thread. */
#ifndef KRD_BLOB_H
#define KRD_BLOB_H

#include "base/base.h"
#include <stdatomic.h>

struct krd_blob {
    atomic_uint refs;
    size_t len; /* bytes in data */
    uint8_t data[] __attribute__((aligned(8)));
};

/* A blob of len uninitialised bytes with one reference, the caller's. */
struct krd_blob *krd_blob_create(size_t len);
/* The same with a copy of the slice's bytes. */
struct krd_blob *krd_blob_copy(struct slice s);
struct krd_blob *krd_blob_ref(struct krd_blob *b);
/* Drops one reference; the last one frees. Takes NULL. */
void krd_blob_unref(struct krd_blob *b);

static inline struct slice krd_blob_slice(const struct krd_blob *b)
{
    return slice_of(b->data, b->len);
}

#endif
