#include "base/arena.h"

#include <stdarg.h>
#include <stdio.h>

#define CHUNK_BYTES     4096u
#define CHUNK_BYTES_MAX (1u << 20) /* but for a single larger allocation */

struct krd_arena_chunk {
    struct krd_arena_chunk *next;
    size_t cap; /* bytes in data */
    uint8_t data[] __attribute__((aligned(16)));
};

void *krd_arena_alloc(struct krd_arena *a, size_t n)
{
    KRD_ASSERT(n <= SIZE_MAX / 2);
    n = (n + 15) & ~(size_t)15;
    if (a->chunks == NULL || a->chunks->cap - a->used < n) {
        /* Chunks double, so that a large user makes few of them. */
        size_t cap = a->chunks == NULL ? CHUNK_BYTES - sizeof(struct krd_arena_chunk)
                                       : krd_min_size(a->chunks->cap * 2, CHUNK_BYTES_MAX);
        struct krd_arena_chunk *c = krd_alloc(sizeof *c + krd_max_size(cap, n));
        c->cap = krd_max_size(cap, n);
        c->next = a->chunks;
        a->chunks = c;
        a->used = 0;
    }
    void *p = a->chunks->data + a->used;
    a->used += n;
    return p;
}

void *krd_arena_zalloc(struct krd_arena *a, size_t n)
{
    return memset(krd_arena_alloc(a, n), 0, n);
}

struct slice krd_arena_copy(struct krd_arena *a, struct slice s)
{
    if (s.len == 0)
        return slice_of(NULL, 0);
    return slice_of(memcpy(krd_arena_alloc(a, s.len), s.ptr, s.len), s.len);
}

char *krd_arena_printf(struct krd_arena *a, const char *fmt, ...)
{
    va_list ap, again;
    va_start(ap, fmt);
    va_copy(again, ap);
    int n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    KRD_ASSERT(n >= 0);
    char *s = krd_arena_alloc(a, (size_t)n + 1);
    vsnprintf(s, (size_t)n + 1, fmt, again);
    va_end(again);
    return s;
}

static void free_chunks(struct krd_arena_chunk *c)
{
    while (c != NULL) {
        struct krd_arena_chunk *next = c->next;
        krd_free(c);
        c = next;
    }
}

void krd_arena_reset(struct krd_arena *a)
{
    if (a->chunks == NULL)
        return;
    if (a->chunks->cap > CHUNK_BYTES_MAX) { /* one large request must not be paid for ever */
        krd_arena_deinit(a);
        return;
    }
    free_chunks(a->chunks->next);
    a->chunks->next = NULL;
    a->used = 0;
}

void krd_arena_deinit(struct krd_arena *a)
{
    free_chunks(a->chunks);
    *a = (struct krd_arena)KRD_ARENA_INIT;
}
