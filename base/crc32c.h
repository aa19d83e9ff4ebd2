/* crc32c.h - CRC-32C (Castagnoli), in hardware where the processor has it.
 * crc is the value for the bytes before (0 for none). Thread: any. */
#ifndef KRD_CRC32C_H
#define KRD_CRC32C_H
#include "base/base.h"
uint32_t krd_crc32c(uint32_t crc, const void *p, size_t n);
/* The same without hardware; tests compare the two. */
uint32_t krd_crc32c_software(uint32_t crc, const void *p, size_t n);
#endif
