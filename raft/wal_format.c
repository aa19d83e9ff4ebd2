/* wal_format.c - sectors and frames, to bytes and back.
 *
 * Writing: begin a frame (its size is known), put the body, finish. The body goes straight into
 * its place between the trailers, so an entry is copied once on its way to the disk. finish seals
 * the later sectors first, because the header in the first one holds their sum.
 *
 * Reading: verify each sector where it stands, then the header, then the sum over the rest; only
 * then are the contents put together and given to the parser of the body. Nothing of a sector that
 * does not verify is ever believed, its length least of all (P61). */
#include "raft/wal_format.h"

#include "base/crc32c.h"
#include <inttypes.h>
#include <stdio.h>

enum { MARK_FIRST = 0xa7, MARK_LATER = 0xb6 };
enum { AT_CRC = WAL_CONTENT_BYTES, AT_SEQ = 508, AT_MARK = 511 };
_Static_assert(AT_MARK + 1 == WAL_SECTOR_BYTES, "the mark is what reaches the disk last");
_Static_assert(WAL_CONTENT_BYTES % 8 == 0, "records stay aligned when contents are joined");
_Static_assert(WAL_FRAME_HEADER_BYTES % 8 == 0, "and they begin aligned");

void wal_segment_name(uint64_t number, char out[WAL_NAME_BYTES])
{
    KRD_ASSERT(number < 10000000000000000u);
    snprintf(out, WAL_NAME_BYTES, "%016" PRIu64 ".wal", number);
}

bool wal_segment_number(const char *name, uint64_t *number)
{
    if (strlen(name) != WAL_NAME_BYTES - 1 || strcmp(name + 16, ".wal") != 0)
        return false;
    uint64_t v = 0;
    for (int i = 0; i < 16; i++) {
        if (name[i] < '0' || name[i] > '9')
            return false;
        v = v * 10 + (uint64_t)(name[i] - '0');
    }
    *number = v;
    return v > 0;
}

/* --- Sectors ------------------------------------------------------------------------------ */

uint32_t wal_seed(uint64_t cluster_id, uint64_t member_id, uint64_t segment)
{
    uint64_t id[3] = {cluster_id, member_id, segment};
    return krd_crc32c(0, id, sizeof id);
}

static uint32_t sector_crc(const uint8_t *sector, uint32_t seed, uint64_t no, uint64_t seq,
                           uint8_t mark)
{
    uint64_t place[3] = {no, seq, mark};
    return krd_crc32c(krd_crc32c(seed, place, sizeof place), sector, WAL_CONTENT_BYTES);
}

static void put_trailer(uint8_t *sector, uint32_t crc, uint64_t seq, uint8_t mark)
{
    krd_put_le32(sector + AT_CRC, crc);
    krd_put_le32(sector + AT_SEQ, (uint32_t)(seq & 0xffffff) | (uint32_t)mark << 24);
}

uint32_t wal_sector_seal(uint8_t *sector, uint32_t seed, uint64_t no, uint64_t seq, bool first)
{
    uint8_t mark = first ? MARK_FIRST : MARK_LATER;
    uint32_t crc = sector_crc(sector, seed, no, seq, mark);
    put_trailer(sector, crc, seq, mark);
    return crc;
}

/* The number nearest to near whose low 24 bits are low. */
static uint64_t complete_seq(uint32_t low, uint64_t near)
{
    uint32_t ahead = (low - (uint32_t)near) & 0xffffff;
    return ahead < 0x800000 ? near + ahead : near + ahead - 0x1000000;
}

bool wal_sector_verify(const uint8_t *sector, uint32_t seed, uint64_t no, uint64_t near_seq,
                       uint64_t *seq, bool *first)
{
    uint8_t mark = sector[AT_MARK];
    if (mark != MARK_FIRST && mark != MARK_LATER)
        return false;
    uint64_t s = complete_seq(krd_get_le32(sector + AT_SEQ) & 0xffffff, near_seq);
    if (sector_crc(sector, seed, no, s, mark) != wal_sector_crc(sector))
        return false;
    *seq = s;
    *first = mark == MARK_FIRST;
    return true;
}

bool wal_sector_torn(const uint8_t *sector, uint32_t seed, uint64_t no, uint64_t seq, bool first,
                     struct slice prefix)
{
    size_t written = WAL_SECTOR_BYTES;
    while (written > 0 && sector[written - 1] == 0)
        written--;
    if (written == 0 || written == WAL_SECTOR_BYTES)
        return false;
    size_t n = krd_min_size(written, prefix.len);
    if (n > 0 && memcmp(sector, prefix.ptr, n) != 0)
        return false;
    if (written <= AT_CRC)
        return true;
    uint8_t mark = first ? MARK_FIRST : MARK_LATER;
    uint8_t whole[WAL_SECTOR_BYTES];
    put_trailer(whole, sector_crc(sector, seed, no, seq, mark), seq, mark);
    return memcmp(sector + AT_CRC, whole + AT_CRC, written - AT_CRC) == 0;
}

bool wal_sector_speck(const uint8_t *sector)
{
    size_t from = 0, to = WAL_SECTOR_BYTES;
    while (from < to && sector[from] == 0)
        from++;
    while (to > from && sector[to - 1] == 0)
        to--;
    return to > from && to - from <= 8;
}

bool wal_is_zero(const uint8_t *p, size_t n)
{
    for (; n >= 64; p += 64, n -= 64) {
        uint64_t v[8];
        memcpy(v, p, sizeof v);
        if ((v[0] | v[1] | v[2] | v[3] | v[4] | v[5] | v[6] | v[7]) != 0)
            return false;
    }
    for (; n > 0; p++, n--)
        if (*p != 0)
            return false;
    return true;
}

/* --- Frames ------------------------------------------------------------------------------- */

void wal_frame_buf_deinit(struct wal_frame_buf *b)
{
    krd_free(b->ptr);
    *b = (struct wal_frame_buf){0};
}

void wal_frame_begin(struct wal_frame_buf *b, size_t body_bytes)
{
    KRD_ASSERT(body_bytes <= WAL_BODY_BYTES_MAX);
    b->n_sectors = wal_sectors_for(WAL_FRAME_HEADER_BYTES + body_bytes);
    krd_grow(&b->ptr, &b->cap, b->n_sectors * WAL_SECTOR_BYTES, 1);
    memset(b->ptr + (b->n_sectors - 1) * WAL_SECTOR_BYTES, 0, WAL_SECTOR_BYTES);
    b->content = WAL_FRAME_HEADER_BYTES;
}

void wal_frame_put(struct wal_frame_buf *b, const void *p, size_t n)
{
    const uint8_t *from = p;
    KRD_ASSERT(b->content + n <= b->n_sectors * WAL_CONTENT_BYTES);
    while (n > 0) {
        size_t sector = b->content / WAL_CONTENT_BYTES;
        size_t at = b->content % WAL_CONTENT_BYTES;
        size_t now = krd_min_size(n, WAL_CONTENT_BYTES - at);
        memcpy(b->ptr + sector * WAL_SECTOR_BYTES + at, from, now);
        b->content += now;
        from += now;
        n -= now;
    }
}

uint32_t wal_frame_finish(struct wal_frame_buf *b, struct wal_frame *h, uint32_t seed,
                          uint64_t offset)
{
    KRD_ASSERT(offset % WAL_SECTOR_BYTES == 0);
    KRD_ASSERT(wal_sectors_for(b->content) == b->n_sectors);
    uint64_t no = offset / WAL_SECTOR_BYTES;
    for (size_t i = 1; i < b->n_sectors; i++)
        wal_sector_seal(b->ptr + i * WAL_SECTOR_BYTES, seed, no + i, h->seq, false);
    h->magic = WAL_MAGIC;
    h->body_bytes = (uint32_t)(b->content - WAL_FRAME_HEADER_BYTES);
    h->body_sum = wal_body_sum(b->ptr, b->n_sectors);
    wal_frame_encode(h, b->ptr);
    return wal_sector_seal(b->ptr, seed, no, h->seq, true);
}

#define WAL_FRAME_SIZE(bits, name) +(bits) / 8
_Static_assert((0 WAL_FRAME_FIELDS(WAL_FRAME_SIZE)) == WAL_FRAME_HEADER_BYTES, "frame header");
_Static_assert((0 WAL_OPENING_FIELDS(WAL_FRAME_SIZE)) == WAL_OPENING_FIXED_BYTES, "opening");
_Static_assert(WAL_FRAME_HEADER_BYTES + WAL_OPENING_FIXED_BYTES <= WAL_CONTENT_BYTES,
               "whose segment it is stands in its first sector");

void wal_frame_encode(const struct wal_frame *h, uint8_t out[WAL_FRAME_HEADER_BYTES])
{
    uint8_t *p = out;
#define WAL_PUT(bits, name) krd_put_le##bits(p, h->name), p += (bits) / 8;
    WAL_FRAME_FIELDS(WAL_PUT)
#undef WAL_PUT
}

enum krd_status wal_frame_decode(const uint8_t *sector, struct wal_frame *h)
{
    const uint8_t *p = sector;
#define WAL_GET(bits, name) h->name = krd_get_le##bits(p), p += (bits) / 8;
    WAL_FRAME_FIELDS(WAL_GET)
#undef WAL_GET
    if (h->magic != WAL_MAGIC || h->body_bytes > WAL_BODY_BYTES_MAX)
        return KRD_CORRUPT;
    if (h->kind < WAL_FRAME_OPENING || h->kind > WAL_FRAME_BASE)
        return KRD_CORRUPT;
    if (h->kind != WAL_FRAME_BATCH && h->n_entries > 0)
        return KRD_CORRUPT;
    if ((h->n_entries == 0) != (h->first_index == 0))
        return KRD_CORRUPT;
    return KRD_OK;
}

void wal_contents(const uint8_t *sectors, size_t n, uint8_t *out)
{
    for (size_t i = 0; i < n; i++)
        memcpy(out + i * WAL_CONTENT_BYTES, sectors + i * WAL_SECTOR_BYTES, WAL_CONTENT_BYTES);
}

uint32_t wal_body_sum(const uint8_t *sectors, size_t n)
{
    uint32_t sum = 0;
    for (size_t i = 1; i < n; i++)
        sum = krd_crc32c(sum, sectors + i * WAL_SECTOR_BYTES + AT_CRC, 4);
    return sum;
}

void wal_opening_put(const struct wal_opening *o, struct krd_buf *out)
{
#define WAL_PUT(bits, name) krd_buf_put_le##bits(out, o->name);
    WAL_OPENING_FIELDS(WAL_PUT)
#undef WAL_PUT
}

struct wal_opening wal_opening_read(struct krd_reader *r)
{
    struct wal_opening o;
#define WAL_GET(bits, name) o.name = krd_read_le##bits(r);
    WAL_OPENING_FIELDS(WAL_GET)
#undef WAL_GET
    return o;
}
