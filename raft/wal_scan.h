/* wal_scan.h - reading frames out of one segment file, through a window of its bytes.
 * Thread: one. What wal_scan_at and wal_scan_frame point to lives until their next call. */
#ifndef KRD_RAFT_WAL_SCAN_H
#define KRD_RAFT_WAL_SCAN_H

#include "base/vfs.h"
#include "raft/wal_format.h"

struct wal_scan {
    const struct krd_vfs *vfs;
    struct krd_file *file;
    uint64_t size; /* of the file; beyond, everything reads as zeros */
    uint32_t seed;
    uint8_t *buf; /* file bytes [at, at + len) */
    size_t cap, chunk;
    uint64_t at;
    size_t len;
    int error; /* -errno of the last failed read */
};

/* chunk: how much to read at once. Keeps the buffer of an earlier use. */
void wal_scan_start(struct wal_scan *s, const struct krd_vfs *vfs, struct krd_file *file,
                    uint64_t size, uint32_t seed, size_t chunk);
void wal_scan_deinit(struct wal_scan *s);
/* n bytes from offset on; NULL: the file could not be read, see error. */
const uint8_t *wal_scan_at(struct wal_scan *s, uint64_t offset, size_t n);

/* A frame that has passed every checksum. */
struct wal_scanned {
    struct wal_frame h;
    uint32_t chain; /* of the frame: the next one's prev_chain */
    const uint8_t *sectors;
    size_t n_sectors;
};
static inline uint64_t wal_scanned_bytes(const struct wal_scanned *f)
{
    return (uint64_t)f->n_sectors * WAL_SECTOR_BYTES;
}
/* The frame at offset with sequence number seq. KRD_CORRUPT: there is none, whole. KRD_IO. */
KRD_MUST_CHECK enum krd_status wal_scan_frame(struct wal_scan *s, uint64_t offset, uint64_t seq,
                                              struct wal_scanned *f);
/* The contents of a frame as one blob, the caller's: header at 0, body behind it, aligned to 8. */
struct krd_blob *wal_scanned_blob(const struct wal_scanned *f);

/* Parses the entries of a frame one after another. */
struct wal_entry_cursor {
    struct krd_blob *blob;
    size_t at, end; /* in the blob */
    raft_index next;
};
struct wal_entry_cursor wal_entry_cursor_of(struct krd_blob *blob, const struct wal_frame *h);
/* KRD_EOF_ after the last; KRD_CORRUPT: not what the header promised. *e holds a reference. */
KRD_MUST_CHECK enum krd_status wal_entry_next(struct wal_entry_cursor *c, struct raft_entry *e);

#endif
