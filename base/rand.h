/* rand.h - xoshiro256**: seeded, small, reproducible. State is the caller's; no globals.
 * krd_random_bytes takes the operating system's entropy instead (ids, seeds). */
#ifndef KRD_RAND_H
#define KRD_RAND_H
#include "base/base.h"
struct krd_rand {
    uint64_t s[4];
};
void krd_rand_seed(struct krd_rand *r, uint64_t seed);
uint64_t krd_rand_u64(struct krd_rand *r);
/* Uniform in [0, n). n > 0. */
uint64_t krd_rand_below(struct krd_rand *r, uint64_t n);
void krd_random_bytes(void *p, size_t n);
#endif
