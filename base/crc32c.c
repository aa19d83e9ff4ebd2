/* Two ways to one value: the processor's crc32 instruction, or a table of 8 x 256 (slicing by
 * eight) where there is none. */
#include "base/crc32c.h"

#include <pthread.h>

#define POLYNOMIAL 0x82f63b78u /* Castagnoli, reflected */

static uint32_t table[8][256];
static pthread_once_t table_once = PTHREAD_ONCE_INIT;

static void table_make(void)
{
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t c = i;
        for (int k = 0; k < 8; k++)
            c = c & 1 ? POLYNOMIAL ^ (c >> 1) : c >> 1;
        table[0][i] = c;
    }
    for (uint32_t i = 0; i < 256; i++)
        for (int k = 1; k < 8; k++)
            table[k][i] = (table[k - 1][i] >> 8) ^ table[0][table[k - 1][i] & 0xff];
}

uint32_t krd_crc32c_software(uint32_t crc, const void *p, size_t n)
{
    pthread_once(&table_once, table_make);
    const uint8_t *s = p;
    uint32_t c = ~crc;
    for (; n >= 8; n -= 8, s += 8) {
        uint64_t v = krd_get_le64(s) ^ c;
        c = table[7][v & 0xff] ^ table[6][(v >> 8) & 0xff] ^ table[5][(v >> 16) & 0xff] ^
            table[4][(v >> 24) & 0xff] ^ table[3][(v >> 32) & 0xff] ^ table[2][(v >> 40) & 0xff] ^
            table[1][(v >> 48) & 0xff] ^ table[0][v >> 56];
    }
    for (; n > 0; n--, s++)
        c = (c >> 8) ^ table[0][(c ^ *s) & 0xff];
    return ~c;
}

#if defined(__x86_64__)
#include <nmmintrin.h>

__attribute__((target("sse4.2"))) static uint32_t crc32c_hardware(uint32_t crc, const uint8_t *s,
                                                                  size_t n)
{
    uint64_t c = ~crc;
    for (; n >= 8; n -= 8, s += 8)
        c = _mm_crc32_u64(c, krd_get_le64(s));
    for (; n > 0; n--, s++)
        c = _mm_crc32_u8((uint32_t)c, *s);
    return ~(uint32_t)c;
}

uint32_t krd_crc32c(uint32_t crc, const void *p, size_t n)
{
    if (KRD_LIKELY(__builtin_cpu_supports("sse4.2")))
        return crc32c_hardware(crc, p, n);
    return krd_crc32c_software(crc, p, n);
}
#else
uint32_t krd_crc32c(uint32_t crc, const void *p, size_t n)
{
    return krd_crc32c_software(crc, p, n);
}
#endif
