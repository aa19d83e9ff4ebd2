/* wal_read.c - entries that left memory, for a follower that fell behind.
 *
 * 1. The map says which segment holds the first wanted index, and from which offset to walk.
 * 2. Frames are walked; each is verified sector by sector, each entry once more by its own two
 *    checksums. What is wanted is kept, until the bytes asked for are passed.
 * 3. At the end of what that place knows (a point, a segment), the map is asked again.
 *
 * Frames that do not verify here were fine when they were written or recovered: damage, named in
 * *err. The last read's older segment stays open, so that a follower's catch-up opens each segment
 * once; offsets are looked up anew each time, which costs at most one point's spacing of walking
 * (1/64 of a segment). */
#include "raft/wal_internal.h"

#include <errno.h>
#include <inttypes.h>

#define READ_CHUNK_BYTES (256u * 1024)

struct reading {
    struct wal *w;
    raft_index next, last;
    size_t bytes, bytes_max;
    struct raft_entry *entries;
    size_t n, cap;
    char *err;
};

static bool satisfied(const struct reading *r)
{
    return r->next > r->last || (r->n > 0 && r->bytes >= r->bytes_max);
}

static enum krd_status fail(struct reading *r, enum krd_status st, uint64_t number, uint64_t offset)
{
    char *path = wal_segment_path(r->w, number);
    if (st == KRD_CORRUPT)
        r->err = krd_asprintf("the log is damaged: %s at byte %" PRIu64 ": entries from %" PRIu64
                              " on cannot be read. Let this member start anew from the others "
                              "with an empty data directory",
                              path, offset, r->next);
    else
        r->err = krd_asprintf("log: read %s: %s", path, strerror(-r->w->scan.error));
    krd_free(path);
    return st;
}

/* Points w->scan at the segment's file. */
static enum krd_status start_scan(struct reading *r, const struct wal_segment *s)
{
    struct wal *w = r->w;
    struct krd_file *file = w->file;
    if (s->number != wal_map_current(&w->map)->number) {
        if (w->read_segment != s->number) {
            if (w->read_segment != 0)
                w->vfs->close(w->read_file);
            w->read_segment = 0;
            char *path = wal_segment_path(w, s->number);
            int e = w->vfs->open(w->vfs->ctx, path, KRD_OPEN_READ, &w->read_file);
            krd_free(path);
            if (e < 0) {
                w->scan.error = e;
                return fail(r, KRD_IO, s->number, 0);
            }
            w->read_segment = s->number;
        }
        file = w->read_file;
    }
    uint32_t seed = wal_seed(w->cluster_id, w->member_id, s->number);
    wal_scan_start(&w->scan, w->vfs, file, s->end, seed, READ_CHUNK_BYTES);
    return KRD_OK;
}

/* The entries of one frame that are wanted, below end. */
static bool take_entries(struct reading *r, const struct wal_scanned *f, raft_index end)
{
    struct krd_blob *blob = wal_scanned_blob(f);
    struct wal_entry_cursor c = wal_entry_cursor_of(blob, &f->h);
    struct raft_entry e;
    enum krd_status st = KRD_OK;
    while (!satisfied(r) && r->next < end && (st = wal_entry_next(&c, &e)) == KRD_OK) {
        if (e.index < r->next) {
            raft_entry_unref(&e);
            continue;
        }
        krd_grow(&r->entries, &r->cap, r->n + 1, sizeof *r->entries);
        r->entries[r->n++] = e;
        r->bytes += raft_record_bytes(&e);
        r->next++;
    }
    krd_blob_unref(blob);
    return st == KRD_OK || st == KRD_EOF_;
}

/* Walks one segment's frames from offset on, for entries below end. */
static enum krd_status walk(struct reading *r, const struct wal_segment *s, uint64_t offset,
                            raft_index end)
{
    uint64_t near_seq = s->seq; /* of the first frame only 24 bits are known beforehand */
    bool known = false;
    while (!satisfied(r) && r->next < end) {
        struct wal_scanned f;
        const uint8_t *p = wal_scan_at(&r->w->scan, offset, WAL_SECTOR_BYTES);
        if (p == NULL)
            return fail(r, KRD_IO, s->number, offset);
        uint64_t seq = near_seq + 1;
        bool first;
        if (!known && !wal_sector_verify(p, r->w->scan.seed, offset / WAL_SECTOR_BYTES, near_seq,
                                         &seq, &first))
            return fail(r, KRD_CORRUPT, s->number, offset);
        enum krd_status st = wal_scan_frame(&r->w->scan, offset, seq, &f);
        if (st != KRD_OK)
            return fail(r, st, s->number, offset);
        known = true;
        near_seq = seq;
        bool wanted = f.h.n_entries > 0 && r->next < f.h.first_index + f.h.n_entries;
        if (wanted && (f.h.first_index > r->next || !take_entries(r, &f, end)))
            return fail(r, KRD_CORRUPT, s->number, offset);
        offset += wal_scanned_bytes(&f);
    }
    return KRD_OK;
}

enum krd_status wal_read(struct wal *w, raft_index first, raft_index last, size_t bytes_max,
                         struct raft_entry **entries, size_t *n, char **err)
{
    if (first <= w->map.base_index || first > w->map.last_index || last < first)
        return KRD_NOT_FOUND;
    struct reading r = {
        .w = w,
        .next = first,
        .last = krd_min_u64(last, w->map.last_index),
        .bytes_max = bytes_max,
    };
    enum krd_status st = KRD_OK;
    while (st == KRD_OK && !satisfied(&r)) {
        raft_index end;
        const struct wal_segment *s = wal_map_find(&w->map, r.next, &end);
        uint64_t offset = wal_segment_find(s, r.next, &end);
        st = start_scan(&r, s);
        if (st == KRD_OK)
            st = walk(&r, s, offset, end);
    }
    if (st != KRD_OK) {
        for (size_t i = 0; i < r.n; i++)
            raft_entry_unref(&r.entries[i]);
        krd_free(r.entries);
        *err = r.err;
        return st;
    }
    *entries = r.entries;
    *n = r.n;
    return KRD_OK;
}
