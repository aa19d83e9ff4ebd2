/* session.h - what each origin's proposals have already done. A node may propose the same command
 * again when a leader change leaves its fate open; the second copy in the log is then recognised
 * here, on every node alike, and has no effect.
 *
 * For each origin (a member's id): its newest boot, the lowest sequence that may still come
 * (settled: everything below was answered), and which sequences from there on were applied, as a
 * bitmap. Bits are kept from the multiple of 64 at or below settled; those below settled are 0.
 *
 * Bounded: SESSION_WINDOW sequences. A sequence beyond pushes settled up, so that whatever falls
 * out counts as settled: never applied from then on, its outcome unknown to its origin.
 *
 * Thread: apply. */
#ifndef KRD_KV_SESSION_H
#define KRD_KV_SESSION_H

#include "base/buf.h"
#include "kv/engine.h"
#include "kv/hash.h"

#define KV_SESSION_WINDOW (1u << 20) /* 128 KiB a member in the worst case */

struct kv_session {
    uint64_t origin, boot, settled;
    uint64_t *words; /* applied, from sequence (settled & ~63) */
    size_t n_words;  /* the last one is not 0 */
    size_t cap;
    bool dirty;
    struct kv_sum sum; /* of its record in the engine */
};

struct kv_sessions {
    struct kv_session **list; /* few: one an origin that ever was */
    size_t n, cap;
};

void kv_sessions_init(struct kv_sessions *t);
void kv_sessions_deinit(struct kv_sessions *t);
/* Reads all of them; O(origins). False: a record does not decode. */
KRD_MUST_CHECK bool kv_sessions_load(struct kv_sessions *t, struct kv_engine *engine);

enum kv_session_verdict {
    KV_SESSION_NEW,  /* noted as applied: apply it */
    KV_SESSION_DONE, /* applied before, settled, or of an earlier boot: no effect */
};
/* origin and sequence are not 0. */
enum kv_session_verdict kv_sessions_take(struct kv_sessions *t, uint64_t origin, uint64_t boot,
                                         uint64_t sequence, uint64_t settled);
/* Puts what has changed into the batch and moves the state's sum along. */
void kv_sessions_flush(struct kv_sessions *t, struct kv_engine_batch *batch, struct kv_sum *sum);

#endif
