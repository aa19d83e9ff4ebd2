/* Reading goes block by block: a piece never crosses a block, so that one buffer of 32 KiB and the
 * record under way are all the memory needed. Failures end the reading; the caller decides what
 * they mean, `good` tells him how far all was well. */
#include "kv/ldb_format.h"
#include "base/crc32c.h"

enum piece { PIECE_ZERO, PIECE_FULL, PIECE_FIRST, PIECE_MIDDLE, PIECE_LAST };

int ldb_reader_init(struct ldb_reader *r, const struct krd_vfs *v, struct krd_file *f)
{
    r->vfs = v;
    r->file = f;
    r->good = r->at = 0;
    r->block_at = UINT64_MAX;
    r->block_len = 0;
    r->record = (struct krd_buf)KRD_BUF_INIT;
    r->why = "";
    r->error = 0;
    return v->size(f, &r->size);
}

void ldb_reader_deinit(struct ldb_reader *r)
{
    krd_buf_deinit(&r->record);
}

/* Reads the block that holds r->at. False: the disk failed. */
static bool load_block(struct ldb_reader *r)
{
    uint64_t start = r->at - r->at % LDB_BLOCK_BYTES;
    if (r->block_at == start)
        return true;
    size_t want = krd_min_u64(LDB_BLOCK_BYTES, r->size - start);
    ssize_t n = r->vfs->pread(r->file, r->block, want, start);
    if (n < 0) {
        r->error = (int)n;
        return false;
    }
    r->block_at = start;
    r->block_len = (size_t)n;
    return true;
}

/* LevelDB adds to and turns each checksum, so that a record within a record does not look valid. */
static uint32_t masked(uint32_t crc)
{
    return ((crc >> 15) | (crc << 17)) + 0xa282ead8u;
}

/* The piece at p, of whose block `left` bytes are there, or NULL and the reason why it is none. */
static const char *check_piece(const uint8_t *p, size_t left, size_t left_in_block,
                               struct slice *payload)
{
    if (left < LDB_HEADER_BYTES)
        return "the file ends within a header";
    size_t length = krd_get_le16(p + 4);
    if (p[6] == PIECE_ZERO && length == 0)
        return "zeros where a record should be";
    if (p[6] < PIECE_FULL || p[6] > PIECE_LAST)
        return "a record of unknown type";
    if (LDB_HEADER_BYTES + length > left_in_block)
        return "a record longer than its block";
    if (LDB_HEADER_BYTES + length > left)
        return "the file ends within a record";
    if (masked(krd_crc32c(0, p + 6, 1 + length)) != krd_get_le32(p))
        return "a record whose checksum does not match";
    *payload = slice_of(p + LDB_HEADER_BYTES, length);
    return NULL;
}

static enum ldb_read damage(struct ldb_reader *r, const char *why)
{
    r->why = why;
    return LDB_DAMAGE;
}

/* The next piece, header included in *type. LDB_END only at the end of the file. */
static enum ldb_read next_piece(struct ldb_reader *r, enum piece *type, struct slice *payload)
{
    size_t left_in_block = LDB_BLOCK_BYTES - r->at % LDB_BLOCK_BYTES;
    if (left_in_block < LDB_HEADER_BYTES) {
        r->at += left_in_block; /* too short for a header: unused */
        left_in_block = LDB_BLOCK_BYTES;
    }
    if (r->at >= r->size)
        return LDB_END;
    if (!load_block(r))
        return LDB_ERROR;
    size_t offset = r->at - r->block_at;
    size_t left = r->block_len > offset ? r->block_len - offset : 0;
    const char *why = check_piece(r->block + offset, left, left_in_block, payload);
    if (why != NULL)
        return damage(r, why);
    *type = r->block[offset + 6];
    r->at += LDB_HEADER_BYTES + payload->len;
    return LDB_RECORD;
}

enum ldb_read ldb_reader_next(struct ldb_reader *r)
{
    bool within = false; /* a first piece was read */
    r->record.len = 0;
    for (;;) {
        enum piece type;
        struct slice payload;
        enum ldb_read got = next_piece(r, &type, &payload);
        if (got == LDB_END && within)
            return damage(r, "the file ends within a record");
        if (got != LDB_RECORD)
            return got;
        bool starts = type == PIECE_FULL || type == PIECE_FIRST;
        if (starts == within)
            return damage(r, "a piece of a record without its beginning or end");
        krd_buf_put_slice(&r->record, payload);
        within = true;
        if (type == PIECE_FULL || type == PIECE_LAST) {
            r->good = r->at;
            return LDB_RECORD;
        }
    }
}

/* Pieces inside the damaged record may well be intact, hence only the start of a record counts.
 * O(bytes left), a checksum only where length and type make sense. */
enum ldb_read ldb_reader_find_later(struct ldb_reader *r)
{
    for (r->at = r->good + 1; r->at < r->size; r->at++) {
        if (!load_block(r))
            return LDB_ERROR;
        size_t offset = r->at - r->block_at;
        size_t left = r->block_len > offset ? r->block_len - offset : 0;
        struct slice payload;
        if (left < LDB_HEADER_BYTES || r->block[offset + 6] > PIECE_FIRST)
            continue;
        if (check_piece(r->block + offset, left, LDB_BLOCK_BYTES - offset, &payload) == NULL)
            return LDB_RECORD;
    }
    return LDB_END;
}

bool ldb_batch_decode(struct slice record, struct ldb_batch *out)
{
    struct krd_reader r = krd_reader_of(record);
    out->sequence = krd_read_le64(&r);
    out->count = krd_read_le32(&r);
    return !r.bad;
}

/* --- Version edits: a row of tagged fields ---------------------------------------------------- */

static uint64_t read_varint(struct krd_reader *r)
{
    uint64_t v = 0;
    for (unsigned shift = 0; shift < 64; shift += 7) {
        uint8_t b = krd_read_u8(r);
        v |= (uint64_t)(b & 0x7f) << shift;
        if (b < 0x80)
            return v;
    }
    r->bad = true;
    return 0;
}

static void skip_string(struct krd_reader *r)
{
    (void)krd_read_bytes(r, read_varint(r));
}

static void skip_varints(struct krd_reader *r, unsigned n)
{
    while (n-- > 0)
        (void)read_varint(r);
}

bool ldb_edit_add(struct slice record, struct ldb_edit *e)
{
    struct krd_reader r = krd_reader_of(record);
    while (!r.bad && krd_reader_left(&r) > 0) {
        switch (read_varint(&r)) {
        case 1: /* name of the comparator */
            skip_string(&r);
            break;
        case 2:
            e->log_number = read_varint(&r);
            e->has_log_number = true;
            break;
        case 3: /* next file number */
            skip_varints(&r, 1);
            e->has_next_file = true;
            break;
        case 4:
            e->last_sequence = read_varint(&r);
            e->has_last_sequence = true;
            break;
        case 5: /* where the next compaction of a level starts: level, key */
            skip_varints(&r, 1);
            skip_string(&r);
            break;
        case 6: /* deleted table: level, number */
            skip_varints(&r, 2);
            break;
        case 7: /* new table: level, number, size, smallest key, largest key */
            skip_varints(&r, 3);
            skip_string(&r);
            skip_string(&r);
            break;
        case 9:
            e->prev_log_number = read_varint(&r);
            break;
        default:
            return false;
        }
    }
    return !r.bad;
}
