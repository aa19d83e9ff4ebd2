#include "server/forward.h"

#define HEAD_BYTES     8
#define PROGRESS_BYTES 32

void forward_begin(struct krd_buf *out, enum forward_op op, enum krd_status status, uint32_t count)
{
    krd_buf_put_u8(out, (uint8_t)op);
    krd_buf_put_u8(out, (uint8_t)status);
    krd_buf_put_le16(out, 0);
    krd_buf_put_le32(out, count);
}

static size_t item_bytes(enum forward_op op)
{
    switch (op) {
    case FORWARD_PROPOSE:
    case FORWARD_REFUSED:
    case FORWARD_TRANSFER:
        return 8;
    case FORWARD_HELLO:
        return 1;
    case FORWARD_PROGRESS:
        return PROGRESS_BYTES;
    }
    return 0;
}

enum krd_status forward_decode(struct slice body, struct forward_frame *out)
{
    struct krd_reader r = krd_reader_of(body);
    uint8_t op = krd_read_u8(&r), status = krd_read_u8(&r);
    uint16_t zero = krd_read_le16(&r);
    uint32_t count = krd_read_le32(&r);
    size_t bytes = item_bytes((enum forward_op)op);
    if (r.bad || zero != 0 || bytes == 0 || status >= KRD_STATUS_COUNT)
        return KRD_CORRUPT;
    if (count > krd_reader_left(&r) / bytes)
        return KRD_CORRUPT;
    struct slice items = krd_read_bytes(&r, count * bytes);
    struct slice records = krd_read_bytes(&r, krd_reader_left(&r));
    if ((op == FORWARD_PROPOSE) != (records.len > 0) || (op == FORWARD_TRANSFER && count != 1))
        return KRD_CORRUPT;
    *out =
        (struct forward_frame){(enum forward_op)op, (enum krd_status)status, count, items, records};
    return KRD_OK;
}

uint64_t forward_item(const struct forward_frame *f, uint32_t i)
{
    KRD_ASSERT(i < f->count);
    return krd_get_le64(f->items.ptr + (size_t)i * 8);
}

void forward_put_progress(struct krd_buf *out, const struct forward_progress *p)
{
    krd_buf_put_le64(out, p->id);
    krd_buf_put_le64(out, p->match);
    krd_buf_put_le64(out, p->rtt_us);
    krd_buf_put_le64(out, p->active);
}

struct forward_progress forward_progress_item(const struct forward_frame *f, uint32_t i)
{
    KRD_ASSERT(f->op == FORWARD_PROGRESS && i < f->count);
    const uint8_t *p = f->items.ptr + (size_t)i * PROGRESS_BYTES;
    return (struct forward_progress){krd_get_le64(p), krd_get_le64(p + 8), krd_get_le64(p + 16),
                                     krd_get_le64(p + 24) != 0};
}
