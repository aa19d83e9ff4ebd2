/* clock.h - the two clocks. Only shells read them: never the consensus core, never apply.
 * Monotonic time does not jump and does not relate to other machines. Thread: any. */
#ifndef KRD_CLOCK_H
#define KRD_CLOCK_H
#include <stdint.h>
uint64_t krd_mono_ns(void);
static inline uint64_t krd_mono_us(void)
{
    return krd_mono_ns() / 1000;
}
static inline uint64_t krd_mono_ms(void)
{
    return krd_mono_ns() / 1000000;
}
/* Wall time, for humans only: log lines, backup names. */
uint64_t krd_wall_ms(void);
#endif
