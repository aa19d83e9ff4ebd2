/* wal_scan.c - see wal_scan.h. A chunk is read ahead, so that a walk from frame to frame costs one
 * system call per chunk. A frame longer than the chunk is read whole; one that claims to reach
 * beyond the end of the file is refused before memory is asked for. */
#include "raft/wal_scan.h"

#include "base/blob.h"

void wal_scan_start(struct wal_scan *s, const struct krd_vfs *vfs, struct krd_file *file,
                    uint64_t size, uint32_t seed, size_t chunk)
{
    s->vfs = vfs;
    s->file = file;
    s->size = size;
    s->seed = seed;
    s->chunk = chunk;
    s->at = 0;
    s->len = 0;
    s->error = 0;
}

void wal_scan_deinit(struct wal_scan *s)
{
    krd_free(s->buf);
    *s = (struct wal_scan){0};
}

const uint8_t *wal_scan_at(struct wal_scan *s, uint64_t offset, size_t n)
{
    if (offset >= s->at && offset + n <= s->at + s->len)
        return s->buf + (offset - s->at);
    size_t want = krd_max_size(n, s->chunk);
    if (offset < s->size && want > n) /* not much beyond the end */
        want = krd_max_size(n, (size_t)krd_min_u64(want, s->size - offset));
    krd_grow(&s->buf, &s->cap, want, 1);
    s->len = 0;
    ssize_t got = 0;
    if (offset < s->size) {
        got = s->vfs->pread(s->file, s->buf, want, offset);
        if (got < 0) {
            s->error = (int)got;
            return NULL;
        }
    }
    memset(s->buf + got, 0, want - (size_t)got);
    s->at = offset;
    s->len = want;
    return s->buf;
}

enum krd_status wal_scan_frame(struct wal_scan *s, uint64_t offset, uint64_t seq,
                               struct wal_scanned *f)
{
    const uint8_t *p = wal_scan_at(s, offset, WAL_SECTOR_BYTES);
    if (p == NULL)
        return KRD_IO;
    uint64_t no = offset / WAL_SECTOR_BYTES, found;
    bool first;
    if (!wal_sector_verify(p, s->seed, no, seq, &found, &first) || found != seq || !first)
        return KRD_CORRUPT;
    if (wal_frame_decode(p, &f->h) != KRD_OK || f->h.seq != seq)
        return KRD_CORRUPT;
    uint64_t bytes = wal_frame_disk_bytes(f->h.body_bytes);
    if (offset + bytes > s->size)
        return KRD_CORRUPT;
    p = wal_scan_at(s, offset, bytes);
    if (p == NULL)
        return KRD_IO;
    f->sectors = p;
    f->n_sectors = bytes / WAL_SECTOR_BYTES;
    f->chain = wal_sector_crc(p);
    for (size_t i = 1; i < f->n_sectors; i++) {
        if (!wal_sector_verify(p + i * WAL_SECTOR_BYTES, s->seed, no + i, seq, &found, &first))
            return KRD_CORRUPT;
        if (found != seq || first)
            return KRD_CORRUPT;
    }
    return wal_body_sum(p, f->n_sectors) == f->h.body_sum ? KRD_OK : KRD_CORRUPT;
}

struct krd_blob *wal_scanned_blob(const struct wal_scanned *f)
{
    struct krd_blob *blob = krd_blob_create(f->n_sectors * WAL_CONTENT_BYTES);
    wal_contents(f->sectors, f->n_sectors, blob->data);
    return blob;
}

struct wal_entry_cursor wal_entry_cursor_of(struct krd_blob *blob, const struct wal_frame *h)
{
    return (struct wal_entry_cursor){
        .blob = blob,
        .at = WAL_FRAME_HEADER_BYTES,
        .end = h->kind == WAL_FRAME_BATCH ? WAL_FRAME_HEADER_BYTES + (size_t)h->body_bytes
                                          : WAL_FRAME_HEADER_BYTES,
        .next = h->first_index,
    };
}

enum krd_status wal_entry_next(struct wal_entry_cursor *c, struct raft_entry *e)
{
    if (c->at == c->end)
        return KRD_EOF_;
    struct slice left = slice_of(c->blob->data + c->at, c->end - c->at);
    if (raft_entry_parse(c->blob, left, e) != KRD_OK)
        return KRD_CORRUPT;
    if (e->index != c->next) {
        raft_entry_unref(e);
        return KRD_CORRUPT;
    }
    c->at += raft_record_bytes(e);
    c->next++;
    return KRD_OK;
}
