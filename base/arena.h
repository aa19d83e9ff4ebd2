/* arena.h - memory with one common end: allocate piece by piece, free all at once.
 * Thread: an arena belongs to whoever uses it; it may be handed over as a whole. */
#ifndef KRD_ARENA_H
#define KRD_ARENA_H
#include "base/base.h"

struct krd_arena_chunk;
struct krd_arena {
    struct krd_arena_chunk *chunks; /* newest first; NULL when nothing was allocated */
    size_t used;                    /* in the newest chunk */
};
#define KRD_ARENA_INIT \
    {                  \
        NULL, 0        \
    }
/* 16-byte aligned, uninitialised, never NULL. */
void *krd_arena_alloc(struct krd_arena *a, size_t n);
void *krd_arena_zalloc(struct krd_arena *a, size_t n);
struct slice krd_arena_copy(struct krd_arena *a, struct slice s);
char *krd_arena_printf(struct krd_arena *a, const char *fmt, ...) KRD_PRINTF(2, 3);
/* Forgets everything but keeps one chunk, of 1 MiB at most, for the next round. */
void krd_arena_reset(struct krd_arena *a);
void krd_arena_deinit(struct krd_arena *a);
#endif
