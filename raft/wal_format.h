/* wal_format.h - the bytes of a log segment. Segment files are named NNNNNNNNNNNNNNNN.wal, by their
 * number in decimal: a missing, swapped or copied one shows without being read, whereas first
 * indexes repeat when a conflict reaches back. A segment is an array of 512-byte sectors, and each
 * sector can be judged on its own:
 *
 *  0                            504         508      511    512
 *  | content                    | crc32c    | seq    | mark |
 *
 * crc32c covers the content and, as its seed, (cluster, member, segment number, sector number,
 * seq, mark). So a sector that was written to the wrong place, or is left from an earlier life of
 * the place, does not pass, and no value that a client stores can imitate one: the trailer is
 * never made of his bytes. seq holds the low 24 bits of the frame's sequence number. mark is the
 * last byte to reach the disk when a sector tears, and never zero: 0xa7 in a frame's first
 * sector, 0xb6 in the others. A zero there means "not completely written", anything else means
 * that the sector was whole once.
 *
 * Frames are made of whole sectors, so that no write ever touches a sector that is already
 * acknowledged; that costs half a sector of slack per frame on average, and a frame holds
 * everything that waited. The contents of a frame's sectors, put together, are a header and a body,
 * zeros to the end of the last sector:
 *
 *  0       4            8         16    24     28           32         36          40
 *  | magic | prev chain | segment | seq | kind | body bytes | body sum | n entries | first index |
 *  48     56     64       72           80           88
 *  | term | vote | commit | checkpoint | synced seq | body
 *
 * The first 24 bytes can be foretold by whoever knows the frame before: a torn first sector must
 * begin like them. prev chain is the crc32c in the trailer of the previous frame's first sector
 * (across segments as well), body sum covers the crc32c of this frame's other sectors: the log is
 * one chain. Every frame carries the whole hard state and the checkpoint. synced seq is the last
 * frame that was known durable when this one was written; one frame is in flight at a time, so it
 * is seq - 1.
 *
 * Bodies, by kind:
 *   opening  first in each segment and nowhere else: struct wal_opening, all that recovery needs
 *            to know of older segments. Durable before the segment gets its name.
 *   batch    n entries records (raft/entry.h) with consecutive indexes from first index on, which
 *            replace what the log held from there on; or none: hard state, checkpoint, or a
 *            marker whose only purpose is to prove that the frame before it was synced.
 *   base     first segment, base index, base term: what is below has been cut. The slot in which
 *            an installed snapshot will one day move the base forward.
 *
 * All integers are little-endian. Another meaning of any byte means another magic. */
#ifndef KRD_RAFT_WAL_FORMAT_H
#define KRD_RAFT_WAL_FORMAT_H

#include "base/buf.h"
#include "raft/raft.h"

#define WAL_SECTOR_BYTES       512
#define WAL_CONTENT_BYTES      504
#define WAL_FRAME_HEADER_BYTES 88
#define WAL_PREFIX_BYTES       24          /* of a frame header: what can be foretold */
#define WAL_MAGIC              0x316c776bu /* "kwl1"; the digit is the version */
#define WAL_NAME_BYTES         21          /* 16 digits, ".wal" and the end */

/* The widest frame that may stand on disk: the log's own bound on a batch, with much room. */
#define WAL_BODY_BYTES_MAX (1u << 30)

enum wal_frame_kind { WAL_FRAME_OPENING = 1, WAL_FRAME_BATCH = 2, WAL_FRAME_BASE = 3 };

/* One field list for encoder, decoder and struct. */
#define WAL_FRAME_FIELDS(X) \
    X(32, magic)            \
    X(32, prev_chain)       \
    X(64, segment)          \
    X(64, seq)              \
    X(32, kind)             \
    X(32, body_bytes)       \
    X(32, body_sum)         \
    X(32, n_entries)        \
    X(64, first_index)      \
    X(64, term)             \
    X(64, vote)             \
    X(64, commit)           \
    X(64, checkpoint)       \
    X(64, synced_seq)

#define WAL_OPENING_FIELDS(X)                                                          \
    X(64, cluster_id)                                                                  \
    X(64, member_id)                                                                   \
    X(64, segment_bytes) /* the file was at least this long before it got its name */  \
    X(64, first_segment) /* lower ones have been cut */                                \
    X(64, base_index)    /* of the whole log */                                        \
    X(64, base_term)                                                                   \
    X(64, last_index) /* of the log when the segment was opened */                     \
    X(64, last_term)                                                                   \
    X(64, last_time_ms)                                                                \
    X(64, prev_end) /* bytes of frames in the previous segment; 0: there is none */    \
    X(64, prev_low) /* lowest index written there; its own last index + 1: no entry */ \
    X(32, n_runs)                                                                      \
    X(32, n_configs)                                                                   \
    X(32, n_points)                                                                    \
    X(32, zero)

#define WAL_FIELD(bits, name) uint##bits##_t name;
struct wal_frame {
    WAL_FRAME_FIELDS(WAL_FIELD)
};
/* Followed by n_runs runs (first, term), n_points points (index, offset) of the previous segment,
 * and n_configs configurations (index, length, bytes padded to 8). */
struct wal_opening {
    WAL_OPENING_FIELDS(WAL_FIELD)
};
#undef WAL_FIELD
#define WAL_OPENING_FIXED_BYTES 104

/* Where a stretch of a segment's entries can be read from: see wal_map.h. */
struct wal_point {
    raft_index index;
    uint64_t offset; /* in the file, of the frame that holds it */
};

static inline uint64_t wal_sectors_for(uint64_t content_bytes)
{
    return (content_bytes + WAL_CONTENT_BYTES - 1) / WAL_CONTENT_BYTES;
}
/* Bytes on disk of a frame with this body. */
static inline uint64_t wal_frame_disk_bytes(uint64_t body_bytes)
{
    return wal_sectors_for(WAL_FRAME_HEADER_BYTES + body_bytes) * WAL_SECTOR_BYTES;
}

void wal_segment_name(uint64_t number, char out[WAL_NAME_BYTES]);
/* False when name is not exactly what wal_segment_name makes. */
bool wal_segment_number(const char *name, uint64_t *number);

/* --- Sectors ------------------------------------------------------------------------------ */

/* What the checksums of a segment's sectors start from. */
uint32_t wal_seed(uint64_t cluster_id, uint64_t member_id, uint64_t segment);
/* Fills in the trailer; returns its crc32c. */
uint32_t wal_sector_seal(uint8_t *sector, uint32_t seed, uint64_t sector_no, uint64_t seq,
                         bool first);
/* True when the sector is whole and belongs here. *seq is completed from the 24 bits by its
 * nearness to near_seq. */
bool wal_sector_verify(const uint8_t *sector, uint32_t seed, uint64_t sector_no, uint64_t near_seq,
                       uint64_t *seq, bool *first);
/* True when the sector can be the beginning of the one that was being written over zeros: it ends
 * in zeros, begins with as much of prefix as there is, and what there is of a checksum is right.
 * An untouched sector (all zeros) is not torn. */
bool wal_sector_torn(const uint8_t *sector, uint32_t seed, uint64_t sector_no, uint64_t seq,
                     bool first, struct slice prefix);
/* All that is not zero lies within 8 bytes: too little to be left of any frame's first sector. */
bool wal_sector_speck(const uint8_t *sector);
static inline uint32_t wal_sector_crc(const uint8_t *sector)
{
    return krd_get_le32(sector + WAL_CONTENT_BYTES);
}
bool wal_is_zero(const uint8_t *p, size_t n);

/* --- Frames ------------------------------------------------------------------------------- */

/* A frame being written: its sectors in one buffer, which is kept from frame to frame. */
struct wal_frame_buf {
    uint8_t *ptr; /* sectors; NULL at first */
    size_t cap;
    size_t n_sectors;
    size_t content; /* bytes of content put so far */
};

void wal_frame_buf_deinit(struct wal_frame_buf *b);
/* Begins a frame with a body of body_bytes. */
void wal_frame_begin(struct wal_frame_buf *b, size_t body_bytes);
/* Appends to the body; all calls together put exactly body_bytes. */
void wal_frame_put(struct wal_frame_buf *b, const void *p, size_t n);
/* Writes the header (body_bytes and body_sum are computed here) and seals every sector for
 * offset in the segment of that seed. Returns the chain value for the next frame. */
uint32_t wal_frame_finish(struct wal_frame_buf *b, struct wal_frame *h, uint32_t seed,
                          uint64_t offset);
static inline size_t wal_frame_buf_bytes(const struct wal_frame_buf *b)
{
    return b->n_sectors * WAL_SECTOR_BYTES;
}

void wal_frame_encode(const struct wal_frame *h, uint8_t out[WAL_FRAME_HEADER_BYTES]);
/* Reads the header at the start of a verified first sector. KRD_CORRUPT: no frame of ours could
 * say this. */
KRD_MUST_CHECK enum krd_status wal_frame_decode(const uint8_t *sector, struct wal_frame *h);
/* The contents of n sectors, one after another. */
void wal_contents(const uint8_t *sectors, size_t n, uint8_t *out);
/* What body_sum must be. */
uint32_t wal_body_sum(const uint8_t *sectors, size_t n);

void wal_opening_put(const struct wal_opening *o, struct krd_buf *out);
/* The fixed part. */
struct wal_opening wal_opening_read(struct krd_reader *r);

#endif
