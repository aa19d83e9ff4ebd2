/* buf.h - a growing byte buffer for writing, and a bounded reader that, once bad, stays bad.
 * Thread: a buffer belongs to whoever made it. */
#ifndef KRD_BUF_H
#define KRD_BUF_H

#include "base/base.h"

struct krd_buf {
    uint8_t *ptr; /* NULL when nothing was ever written */
    size_t len;   /* bytes written. len <= cap */
    size_t cap;
};
#define KRD_BUF_INIT \
    {                \
        NULL, 0, 0   \
    }

void krd_buf_deinit(struct krd_buf *b);
void krd_buf_reserve(struct krd_buf *b, size_t more);
void krd_buf_put(struct krd_buf *b, const void *p, size_t n);
void krd_buf_printf(struct krd_buf *b, const char *fmt, ...) KRD_PRINTF(2, 3);
/* Decimal digits, several times faster than printf. */
void krd_buf_put_u64(struct krd_buf *b, uint64_t v);
void krd_buf_put_i64(struct krd_buf *b, int64_t v);
static inline void krd_buf_put_u8(struct krd_buf *b, uint8_t v)
{
    krd_buf_put(b, &v, 1);
}
static inline void krd_buf_put_le16(struct krd_buf *b, uint16_t v)
{
    krd_buf_put(b, &v, 2);
}
static inline void krd_buf_put_le32(struct krd_buf *b, uint32_t v)
{
    krd_buf_put(b, &v, 4);
}
static inline void krd_buf_put_le64(struct krd_buf *b, uint64_t v)
{
    krd_buf_put(b, &v, 8);
}
static inline void krd_buf_put_be64(struct krd_buf *b, uint64_t v)
{
    v = __builtin_bswap64(v);
    krd_buf_put(b, &v, 8);
}
static inline void krd_buf_put_slice(struct krd_buf *b, struct slice s)
{
    krd_buf_put(b, s.ptr, s.len);
}
static inline void krd_buf_puts(struct krd_buf *b, const char *s)
{
    krd_buf_put(b, s, strlen(s));
}
static inline struct slice krd_buf_slice(const struct krd_buf *b)
{
    return slice_of(b->ptr, b->len);
}

/* Reads fields one after another. Past the end every read yields 0 and bad is set for good; the
 * caller checks once, at the end. */
struct krd_reader {
    const uint8_t *ptr, *end;
    bool bad;
};
static inline struct krd_reader krd_reader_of(struct slice s)
{
    /* C knows no sum of NULL and 0. */
    return (struct krd_reader){s.ptr, s.len > 0 ? s.ptr + s.len : s.ptr, false};
}
struct slice krd_read_bytes(struct krd_reader *r, size_t n);
uint8_t krd_read_u8(struct krd_reader *r);
uint16_t krd_read_le16(struct krd_reader *r);
uint32_t krd_read_le32(struct krd_reader *r);
uint64_t krd_read_le64(struct krd_reader *r);
uint64_t krd_read_be64(struct krd_reader *r);
static inline size_t krd_reader_left(const struct krd_reader *r)
{
    return (size_t)(r->end - r->ptr);
}

#endif
