#include "base/buf.h"

#include <stdarg.h>
#include <stdio.h>

void krd_buf_deinit(struct krd_buf *b)
{
    krd_free(b->ptr);
    *b = (struct krd_buf)KRD_BUF_INIT;
}

void krd_buf_reserve(struct krd_buf *b, size_t more)
{
    if (b->cap - b->len >= more)
        return;
    size_t cap = b->cap < 256 ? 256 : b->cap;
    while (cap - b->len < more) {
        KRD_ASSERT(cap <= SIZE_MAX / 2);
        cap *= 2;
    }
    b->ptr = krd_realloc(b->ptr, cap);
    b->cap = cap;
}

void krd_buf_put(struct krd_buf *b, const void *p, size_t n)
{
    if (n == 0)
        return;
    krd_buf_reserve(b, n);
    memcpy(b->ptr + b->len, p, n);
    b->len += n;
}

void krd_buf_printf(struct krd_buf *b, const char *fmt, ...)
{
    krd_buf_reserve(b, 128);
    for (;;) {
        va_list ap;
        va_start(ap, fmt);
        int n = vsnprintf((char *)b->ptr + b->len, b->cap - b->len, fmt, ap);
        va_end(ap);
        KRD_ASSERT(n >= 0);
        if ((size_t)n < b->cap - b->len) {
            b->len += (size_t)n;
            return;
        }
        krd_buf_reserve(b, (size_t)n + 1);
    }
}

void krd_buf_put_u64(struct krd_buf *b, uint64_t v)
{
    char digits[20];
    size_t at = sizeof digits;
    do {
        digits[--at] = (char)('0' + v % 10);
        v /= 10;
    } while (v != 0);
    krd_buf_put(b, digits + at, sizeof digits - at);
}

void krd_buf_put_i64(struct krd_buf *b, int64_t v)
{
    if (v < 0)
        krd_buf_put_u8(b, '-');
    krd_buf_put_u64(b, v < 0 ? 0 - (uint64_t)v : (uint64_t)v);
}

struct slice krd_read_bytes(struct krd_reader *r, size_t n)
{
    if (r->bad || n > krd_reader_left(r)) {
        r->bad = true;
        return slice_of(NULL, 0);
    }
    struct slice s = slice_of(r->ptr, n);
    r->ptr += n;
    return s;
}

#define READ_FIELD(name, T, get)                       \
    T name(struct krd_reader *r)                       \
    {                                                  \
        struct slice s = krd_read_bytes(r, sizeof(T)); \
        return s.len == sizeof(T) ? get(s.ptr) : 0;    \
    }
#define GET_U8(p) (*(p))
READ_FIELD(krd_read_u8, uint8_t, GET_U8)
READ_FIELD(krd_read_le16, uint16_t, krd_get_le16)
READ_FIELD(krd_read_le32, uint32_t, krd_get_le32)
READ_FIELD(krd_read_le64, uint64_t, krd_get_le64)
READ_FIELD(krd_read_be64, uint64_t, krd_get_be64)
