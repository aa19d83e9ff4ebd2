/* peer_frame.c - the bytes between members.
 *
 * A frame's way in: the connection asks for room, reads as much as fits (hundreds of small frames
 * in one read), and takes frames until there is none whole. Of a frame that is not whole yet, first
 * the header is awaited and its lengths are bounded, then the head and the checksum over both is
 * verified, and only then is the body believed to be as long as the header says: no unverified
 * length makes us allocate more than a head's worth, and no length at all more than
 * KRD_FRAME_BYTES_MAX.
 *
 * A frame that does not fit behind its predecessors moves to a new blob: its first part is copied,
 * at most half a buffer of it, the rest is read in place. Each frame moves twice at most.
 *
 * Failures: whatever cannot be a frame ends the stream (KRD_CORRUPT). Nothing can be found again
 * in a stream after that; the connection is closed and the sender starts over. */
#include "raft/peer_frame.h"

#include "base/crc32c.h"
#include "base/limits.h"

/* A buffer with less room than this behind its last frame is not worth a read of its own. */
#define ROOM_BYTES_MIN 4096

static size_t pad8(size_t n)
{
    return (n + 7) & ~(size_t)7;
}

/* --- hello ---------------------------------------------------------------------------------- */

enum {
    HELLO_MAGIC = 0,
    HELLO_VERSION = 4,
    HELLO_CHANNEL = 6,
    HELLO_ANSWER = 7,
    HELLO_CLUSTER = 8,
    HELLO_SENDER = 16,
    HELLO_RECEIVER = 24,
    HELLO_BOOT = 32,
    HELLO_CRC = 40,
    HELLO_ZERO = 44,
};
_Static_assert(HELLO_ZERO + 4 == PEER_HELLO_BYTES, "the hello's last field ends it");

static const uint8_t magic[4] = {'k', 'v', 'r', 'p'};

const char *peer_answer_text(unsigned answer)
{
    static const char *const texts[PEER_ANSWERS] = {
        [PEER_WELCOME] = "welcome",
        [PEER_REFUSED_VERSION] = "it speaks another version of the peer protocol",
        [PEER_REFUSED_CLUSTER] = "it belongs to another cluster",
        [PEER_REFUSED_RECEIVER] = "it is another member than the one at this address should be",
        [PEER_REFUSED_SENDER] = "it knows no member with our id",
        [PEER_REFUSED_BOOT] = "it has met a later start of this member: who else uses our id?",
        [PEER_REFUSED_CHANNEL] = "it does not know this channel",
    };
    return answer < PEER_ANSWERS ? texts[answer] : "it gives a reason that we do not know";
}

void peer_hello_encode(const struct peer_hello *h, uint8_t out[PEER_HELLO_BYTES])
{
    memcpy(out + HELLO_MAGIC, magic, sizeof magic);
    krd_put_le16(out + HELLO_VERSION, PEER_PROTOCOL_VERSION);
    out[HELLO_CHANNEL] = h->channel;
    out[HELLO_ANSWER] = h->answer;
    krd_put_le64(out + HELLO_CLUSTER, h->cluster_id);
    krd_put_le64(out + HELLO_SENDER, h->sender);
    krd_put_le64(out + HELLO_RECEIVER, h->receiver);
    krd_put_le64(out + HELLO_BOOT, h->boot);
    krd_put_le32(out + HELLO_CRC, krd_crc32c(0, out, HELLO_CRC));
    krd_put_le32(out + HELLO_ZERO, 0);
}

enum krd_status peer_hello_decode(struct slice bytes, struct peer_hello *out)
{
    const uint8_t *p = bytes.ptr;
    size_t seen = krd_min_size(bytes.len, sizeof magic);
    if (seen > 0 && memcmp(p, magic, seen) != 0)
        return KRD_CORRUPT;
    if (bytes.len < HELLO_CHANNEL)
        return KRD_AGAIN;

    uint16_t version = krd_get_le16(p + HELLO_VERSION);
    if (version != PEER_PROTOCOL_VERSION) {
        uint8_t answer = bytes.len > HELLO_ANSWER ? p[HELLO_ANSWER] : PEER_REFUSED_VERSION;
        *out = (struct peer_hello){.version = version, .answer = answer};
        return KRD_CONFLICT;
    }
    if (bytes.len < PEER_HELLO_BYTES)
        return KRD_AGAIN;
    if (krd_get_le32(p + HELLO_CRC) != krd_crc32c(0, p, HELLO_CRC) ||
        krd_get_le32(p + HELLO_ZERO) != 0)
        return KRD_CORRUPT;

    *out = (struct peer_hello){
        .version = version,
        .channel = p[HELLO_CHANNEL],
        .answer = p[HELLO_ANSWER],
        .cluster_id = krd_get_le64(p + HELLO_CLUSTER),
        .sender = krd_get_le64(p + HELLO_SENDER),
        .receiver = krd_get_le64(p + HELLO_RECEIVER),
        .boot = krd_get_le64(p + HELLO_BOOT),
    };
    return KRD_OK;
}

/* --- frames --------------------------------------------------------------------------------- */

enum {
    FRAME_CRC = 0,
    FRAME_LENGTH = 4,
    FRAME_KIND = 8,
    FRAME_ZERO = 9,
    FRAME_HEAD_LENGTH = 12,
};
_Static_assert(FRAME_HEAD_LENGTH + 4 == PEER_FRAME_HEADER_BYTES, "the header's last field ends it");
_Static_assert(PEER_FRAME_HEADER_BYTES % 8 == 0, "a body begins at a multiple of 8");
_Static_assert(KRD_FRAME_BYTES_MAX < UINT32_MAX / 2, "lengths fit their fields");

size_t peer_frame_bytes(size_t head_len, size_t records_len)
{
    return PEER_FRAME_HEADER_BYTES + pad8(head_len + records_len);
}

void peer_frame_header(enum peer_frame_kind kind, struct slice head, size_t records_len,
                       uint8_t out[PEER_FRAME_HEADER_BYTES])
{
    KRD_ASSERT(head.len <= KRD_FRAME_BYTES_MAX);
    KRD_ASSERT(records_len <= KRD_FRAME_BYTES_MAX - head.len);
    KRD_ASSERT(records_len % 8 == 0);
    KRD_ASSERT(records_len == 0 || head.len % 8 == 0); /* records are parsed in place */

    krd_put_le32(out + FRAME_LENGTH, (uint32_t)(head.len + records_len));
    krd_put_le32(out + FRAME_KIND, kind); /* and the three bytes of zero behind it */
    krd_put_le32(out + FRAME_HEAD_LENGTH, (uint32_t)head.len);
    uint32_t crc = krd_crc32c(0, out + FRAME_LENGTH, PEER_FRAME_HEADER_BYTES - FRAME_LENGTH);
    krd_put_le32(out + FRAME_CRC, krd_crc32c(crc, head.ptr, head.len));
}

struct frame_header {
    uint32_t crc, length, kind, head_len;
};

static struct frame_header read_header(const uint8_t *p)
{
    return (struct frame_header){
        .crc = krd_get_le32(p + FRAME_CRC),
        .length = krd_get_le32(p + FRAME_LENGTH),
        .kind = krd_get_le32(p + FRAME_KIND), /* any of the zeros set makes it an unknown one */
        .head_len = krd_get_le32(p + FRAME_HEAD_LENGTH),
    };
}

/* NULL, or what no sender of ours would write. */
static const char *header_fault(const struct frame_header *h)
{
    if (h->length > KRD_FRAME_BYTES_MAX)
        return "frame longer than the limit";
    if (h->kind != PEER_FRAME_RAFT && h->kind != PEER_FRAME_FORWARD)
        return "unknown kind of frame";
    if (h->head_len > h->length)
        return "frame's head longer than the frame";
    uint32_t records = h->length - h->head_len;
    if (records > 0 && (h->head_len % 8 != 0 || records % 8 != 0))
        return "frame's records not aligned";
    return NULL;
}

static bool all_zero(const uint8_t *p, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (p[i] != 0)
            return false;
    return true;
}

/* --- reader --------------------------------------------------------------------------------- */

void peer_reader_init(struct peer_reader *r, size_t buffer_bytes)
{
    KRD_ASSERT(buffer_bytes >= 4 * ROOM_BYTES_MIN && buffer_bytes % 8 == 0);
    *r = (struct peer_reader){.buffer_bytes = buffer_bytes, .need = PEER_FRAME_HEADER_BYTES};
}

void peer_reader_deinit(struct peer_reader *r)
{
    krd_blob_unref(r->blob);
    *r = (struct peer_reader){0};
}

/* Nobody but us holds it any more: the acquire pairs with the last reader's release, so that what
 * he read, he read before we write. */
static bool unshared(struct krd_blob *b)
{
    return atomic_load_explicit(&b->refs, memory_order_acquire) == 1;
}

static void move_to_new_blob(struct peer_reader *r, size_t size)
{
    struct krd_blob *fresh = krd_blob_create(size);
    size_t have = r->end - r->start;
    if (have > 0)
        memcpy(fresh->data, r->blob->data + r->start, have);
    krd_blob_unref(r->blob);
    r->blob = fresh;
    r->start = 0;
    r->end = have;
}

void peer_reader_room(struct peer_reader *r, uint8_t **ptr, size_t *len)
{
    size_t have = r->end - r->start;
    KRD_ASSERT(r->fault == NULL && have < r->need);

    if (r->blob == NULL) {
        move_to_new_blob(r, r->buffer_bytes);
    } else if (have == 0 && r->blob->len == r->buffer_bytes && unshared(r->blob)) {
        r->start = r->end = 0;
    } else if (have == 0 && r->blob->len - r->end < ROOM_BYTES_MIN) {
        move_to_new_blob(r, r->buffer_bytes);
    } else if (r->need > r->blob->len - r->start) {
        move_to_new_blob(r, r->need > r->buffer_bytes / 2 ? r->need : r->buffer_bytes);
    }

    *ptr = r->blob->data + r->end;
    *len = r->blob->len - r->end;
    KRD_ASSERT(*len > 0);
}

void peer_reader_filled(struct peer_reader *r, size_t n)
{
    KRD_ASSERT(r->blob != NULL && n <= r->blob->len - r->end);
    r->end += n;
}

static enum krd_status corrupt(struct peer_reader *r, const char *fault)
{
    r->fault = fault;
    return KRD_CORRUPT;
}

/* Are so many bytes of the frame here? If not, they are what is needed next. */
static bool have(struct peer_reader *r, size_t bytes)
{
    r->need = bytes;
    return r->end - r->start >= bytes;
}

enum krd_status peer_reader_next(struct peer_reader *r, struct peer_frame *out)
{
    if (r->fault != NULL)
        return KRD_CORRUPT;
    if (!have(r, PEER_FRAME_HEADER_BYTES))
        return KRD_AGAIN;
    const uint8_t *p = r->blob->data + r->start;
    const uint8_t *body = p + PEER_FRAME_HEADER_BYTES;
    struct frame_header h = read_header(p);

    if (!r->head_verified) {
        const char *fault = header_fault(&h);
        if (fault != NULL)
            return corrupt(r, fault);
        if (!have(r, PEER_FRAME_HEADER_BYTES + (size_t)h.head_len))
            return KRD_AGAIN;
        size_t covered = PEER_FRAME_HEADER_BYTES - FRAME_LENGTH + (size_t)h.head_len;
        if (krd_crc32c(0, p + FRAME_LENGTH, covered) != h.crc)
            return corrupt(r, "frame's checksum is wrong");
        r->head_verified = true;
    }
    size_t total = PEER_FRAME_HEADER_BYTES + pad8(h.length);
    if (!have(r, total))
        return KRD_AGAIN;
    if (!all_zero(body + h.length, pad8(h.length) - h.length))
        return corrupt(r, "frame's padding is not zero");

    *out = (struct peer_frame){
        .kind = (enum peer_frame_kind)h.kind,
        .blob = r->blob,
        .body = slice_of(body, h.length),
        .head_len = h.head_len,
    };
    r->start += total;
    r->need = PEER_FRAME_HEADER_BYTES;
    r->head_verified = false;
    return KRD_OK;
}
