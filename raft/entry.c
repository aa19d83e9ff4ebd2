/* entry.c - making, sealing and reading records.
 *
 * 1. The origin asks for a record (begin), writes the payload behind the header and closes it:
 *    the payload's checksum is computed here, once in the entry's life.
 * 2. The leader seals it: index, term, time. Only the 36 bytes of header are summed again.
 * 3. The bytes travel. Every reader (log recovery, log reads, peers) parses: header first, because
 *    its length must not be believed before its checksum; then the payload.
 *
 * A close leaves a valid, unsealed record (index 0), so that a follower can forward it to the
 * leader and have it verified there. */
#include "raft/entry.h"

#include "base/crc32c.h"
#include "base/limits.h"

enum {
    AT_HEAD_CRC = 0,
    AT_LENGTH = 4,
    AT_INDEX = 8,
    AT_TERM = 16,
    AT_TIME = 24,
    AT_TYPE = 32, /* one byte and three of zero */
    AT_BODY_CRC = 36,
};
_Static_assert(AT_BODY_CRC + 4 == RAFT_RECORD_HEADER_BYTES, "the header's last field ends it");

static uint32_t head_crc(const uint8_t *record)
{
    return krd_crc32c(0, record + AT_LENGTH, RAFT_RECORD_HEADER_BYTES - AT_LENGTH);
}

/* The struct's fields into the header; the body's checksum is there already. */
static void write_header(const struct raft_entry *e)
{
    krd_put_le32(e->record + AT_LENGTH, e->length);
    krd_put_le64(e->record + AT_INDEX, e->index);
    krd_put_le64(e->record + AT_TERM, e->term);
    krd_put_le64(e->record + AT_TIME, e->time_ms);
    krd_put_le32(e->record + AT_TYPE, e->type);
    krd_put_le32(e->record + AT_HEAD_CRC, head_crc(e->record));
}

struct raft_entry raft_entry_begin(enum raft_entry_type type, size_t payload_len)
{
    KRD_ASSERT(payload_len <= KRD_ENTRY_BYTES_MAX);
    size_t bytes = raft_record_bytes_for(payload_len);
    struct krd_blob *blob = krd_blob_create(bytes);
    size_t padded = bytes - RAFT_RECORD_HEADER_BYTES;
    /* The payload is the caller's to fill; the padding is summed by nobody and must be zero. */
    memset(blob->data + RAFT_RECORD_HEADER_BYTES + payload_len, 0, padded - payload_len);
    return (struct raft_entry){
        .blob = blob,
        .record = blob->data,
        .length = (uint32_t)payload_len,
        .type = (uint8_t)type,
    };
}

void raft_entry_close(struct raft_entry *e)
{
    struct slice body = raft_payload(e);
    krd_put_le32(e->record + AT_BODY_CRC, krd_crc32c(0, body.ptr, body.len));
    write_header(e);
}

struct raft_entry raft_entry_make(enum raft_entry_type type, struct slice payload)
{
    struct raft_entry e = raft_entry_begin(type, payload.len);
    if (payload.len > 0)
        memcpy(e.record + RAFT_RECORD_HEADER_BYTES, payload.ptr, payload.len);
    raft_entry_close(&e);
    return e;
}

void raft_entry_seal(struct raft_entry *e, raft_index index, raft_term term, uint64_t time_ms)
{
    KRD_ASSERT(index > 0 && term > 0);
    KRD_ASSERT(e->index == 0); /* sealed once; the bytes may be on their way already */
    e->index = index;
    e->term = term;
    e->time_ms = time_ms;
    write_header(e);
}

static bool known_type(uint32_t type)
{
    return type == RAFT_ENTRY_NOOP || type == RAFT_ENTRY_COMMAND || type == RAFT_ENTRY_CONFIG;
}

static bool padding_is_zero(const uint8_t *record, uint32_t length)
{
    size_t end = raft_record_bytes_for(length);
    for (size_t i = RAFT_RECORD_HEADER_BYTES + (size_t)length; i < end; i++)
        if (record[i] != 0)
            return false;
    return true;
}

enum krd_status raft_entry_parse(struct krd_blob *blob, struct slice bytes, struct raft_entry *e)
{
    if (bytes.len < RAFT_RECORD_HEADER_BYTES)
        return KRD_EOF_;
    KRD_ASSERT(((uintptr_t)bytes.ptr & 7) == 0);
    KRD_ASSERT(bytes.ptr >= blob->data && bytes.ptr + bytes.len <= blob->data + blob->len);

    uint8_t *record = blob->data + (bytes.ptr - blob->data);
    if (krd_get_le32(record + AT_HEAD_CRC) != head_crc(record))
        return KRD_CORRUPT;
    uint32_t length = krd_get_le32(record + AT_LENGTH);
    uint32_t type = krd_get_le32(record + AT_TYPE);
    if (!known_type(type) || length > KRD_ENTRY_BYTES_MAX)
        return KRD_CORRUPT;
    if (bytes.len < raft_record_bytes_for(length))
        return KRD_EOF_;
    uint32_t body_crc = krd_crc32c(0, record + RAFT_RECORD_HEADER_BYTES, length);
    if (krd_get_le32(record + AT_BODY_CRC) != body_crc || !padding_is_zero(record, length))
        return KRD_CORRUPT;

    *e = (struct raft_entry){
        .index = krd_get_le64(record + AT_INDEX),
        .term = krd_get_le64(record + AT_TERM),
        .time_ms = krd_get_le64(record + AT_TIME),
        .blob = krd_blob_ref(blob),
        .record = record,
        .length = length,
        .type = (uint8_t)type,
    };
    return KRD_OK;
}
