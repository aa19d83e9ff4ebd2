/* wal.c - writing the log. Formats: wal_format.h. Opening and recovery: wal_recover.c. Reading:
 * wal_read.c. The thread: wal_writer.c.
 *
 * The journey of a batch:
 *   1. All writes that wait become one frame: their entries (those that a later write of the same
 *      batch replaces are left out), the newest hard state, the checkpoint.
 *   2. If the segment has no room, the next one is begun: its opening frame goes into a spare file
 *      under a temporary name, is synced, the file gets its name, the directory is synced. Only
 *      then is anything appended to it (P58, P65).
 *   3. One pwrite at the end of the log, at a sector boundary; one fdatasync. The space has been
 *      filled with zeros and synced before, so that no metadata is written with it.
 *   4. The map learns what the frame said. Whoever waits is told.
 *
 * What a crash leaves, and what is then done:
 *   in 1, 4      nothing that matters.
 *   in 2         spare.tmp or NNN.wal.tmp: removed at the next start. A named segment that holds
 *                its opening frame and nothing else: it is continued. (The opening is on disk
 *                before the name is, so a named segment with a bad opening is damage.)
 *   in 3         any subset of the frame's sectors, one of them perhaps torn: the frame is given
 *                up, its sectors are made zero again. Nobody was told that it was durable. If all
 *                of it is there it is kept, written once more and synced: pages may be in the
 *                kernel's memory that are not on the disk, even after an fdatasync that failed.
 *   in a cut     a `base` frame says durably which segments are not needed; whatever is left of
 *                them is removed at the next start.
 *   later        only one frame is ever in flight, so a frame that another one follows was
 *                synced: if it is bad, that is damage and never a crash. For the last frame this
 *                cannot be told when its bad sectors are zero or torn; the marker that follows it
 *                after a moment of idleness (wal_mark) closes that window.
 *
 * Who notices a failure: write and sync errors end the process here (krd_fatal), and nothing is
 * tried again; the next start looks at what the disk really has. A full disk is met when a spare is
 * prepared, long before a batch needs it.
 *
 * A conflict (entries at or below the last index) needs no truncation: the frame's first index says
 * that everything from there on is replaced, atomically with the entries that replace it (P67). */
#include "raft/wal_internal.h"

#include "base/clock.h"
#include "base/log.h"
#include <errno.h>

#define ZERO_SLICE_BYTES       (1024u * 1024)
#define KEEP_BUFFER_BYTES      (8u * 1024 * 1024) /* a larger one is given back after its batch */
#define SLOW_SYNC_US           100000
#define HASTY_SEGMENT_BYTES    (8u * 1024 * 1024) /* zeros written in some 25 ms */
#define SHORTEST_SEGMENT_BYTES (64u * 1024)

char *wal_path(const struct wal *w, const char *name)
{
    return krd_asprintf("%s/%s", w->dir, name);
}

char *wal_segment_path(const struct wal *w, uint64_t number)
{
    char name[WAL_NAME_BYTES];
    wal_segment_name(number, name);
    return wal_path(w, name);
}

KRD_NORETURN static void die(struct wal *w, const char *step, int error)
{
    char *path = wal_segment_path(w, wal_map_current(&w->map)->number);
    krd_fatal("the log can no longer be written: %s, %s at byte %" PRIu64 ": %s. Nothing that was "
              "acknowledged is lost. Look at the disk's health, its free space and the kernel's "
              "messages, then start the node again: it recovers by itself",
              step, path, wal_map_current(&w->map)->end, strerror(-error));
}

/* --- Spares and segments ------------------------------------------------------------------ */

static int fill_with_zeros(const struct krd_vfs *vfs, struct krd_file *f, uint64_t bytes,
                           bool (*pause)(void *), void *arg, const char **step)
{
    /* Reserves first, so that a full disk shows before anything is written. Not every file
     * system can; then the zeros reserve. */
    *step = "reserve space";
    int r = vfs->fallocate(f, 0, bytes);
    if (r < 0 && r != -EOPNOTSUPP && r != -ENOSYS)
        return r;
    uint8_t *zeros = krd_zalloc(krd_min_u64(bytes, ZERO_SLICE_BYTES));
    r = 0;
    for (uint64_t at = 0; at < bytes && r == 0; at += ZERO_SLICE_BYTES) {
        *step = "write zeros";
        r = vfs->pwrite(f, zeros, krd_min_u64(bytes - at, ZERO_SLICE_BYTES), at);
        if (r < 0 || pause == NULL)
            continue;
        /* Slice by slice, lest the sync at the end keep the disk from the writer for long. */
        *step = "fdatasync";
        r = vfs->fdatasync(f);
        if (r == 0 && !pause(arg))
            r = -ECANCELED;
    }
    krd_free(zeros);
    if (r == 0) {
        *step = "fsync";
        r = vfs->fsync(f);
    }
    return r;
}

int wal_spare_make(const struct krd_vfs *vfs, const char *dir, const char *name, uint64_t bytes,
                   bool (*pause)(void *arg), void *arg, struct wal_spare *out, const char **step)
{
    struct wal_spare s = {.path = krd_asprintf("%s/%s", dir, name), .bytes = bytes};
    *step = "create";
    int r = vfs->open(vfs->ctx, s.path, KRD_OPEN_WRITE | KRD_OPEN_CREATE | KRD_OPEN_EXCL, &s.file);
    if (r < 0) {
        krd_free(s.path);
        return r;
    }
    r = fill_with_zeros(vfs, s.file, bytes, pause, arg, step);
    if (r < 0)
        wal_spare_discard(vfs, &s);
    else
        *out = s;
    return r;
}

void wal_spare_discard(const struct krd_vfs *vfs, struct wal_spare *spare)
{
    if (spare->path == NULL)
        return;
    vfs->close(spare->file);
    (void)vfs->unlink(vfs->ctx, spare->path); /* a leftover is removed at the next start */
    krd_free(spare->path);
    *spare = (struct wal_spare){0};
}

static struct wal_frame frame_header(const struct wal *w, enum wal_frame_kind kind)
{
    return (struct wal_frame){
        .prev_chain = w->chain,
        .segment = w->map.n_segments > 0 ? w->map.segments[w->map.n_segments - 1].number : 0,
        .seq = w->next_seq,
        .kind = kind,
        .term = w->map.hs.term,
        .vote = w->map.hs.vote,
        .commit = w->map.hs.commit,
        .checkpoint = w->map.checkpoint,
        .synced_seq = w->next_seq - 1,
    };
}

static void put_opening(const struct wal *w, uint64_t file_bytes, struct krd_buf *out)
{
    const struct wal_map *m = &w->map;
    const struct wal_segment *prev = m->n_segments > 0 ? &m->segments[m->n_segments - 1] : NULL;
    struct wal_opening o = {
        .cluster_id = w->cluster_id,
        .member_id = w->member_id,
        .segment_bytes = file_bytes,
        .first_segment = m->first_segment,
        .base_index = m->base_index,
        .base_term = m->base_term,
        .last_index = m->last_index,
        .last_term = m->last_term,
        .last_time_ms = m->last_time_ms,
        .prev_end = prev != NULL ? prev->end : 0,
        .prev_low = prev != NULL ? prev->low : 0,
        .n_runs = (uint32_t)m->n_runs,
        .n_configs = (uint32_t)m->n_configs,
        .n_points = prev != NULL ? (uint32_t)prev->n_points : 0,
    };
    wal_opening_put(&o, out);
    for (size_t i = 0; i < m->n_runs; i++) {
        krd_buf_put_le64(out, m->runs[i].first);
        krd_buf_put_le64(out, m->runs[i].term);
    }
    for (size_t i = 0; i < o.n_points; i++) {
        krd_buf_put_le64(out, prev->points[i].index);
        krd_buf_put_le64(out, prev->points[i].offset);
    }
    for (size_t i = 0; i < m->n_configs; i++) {
        static const uint8_t pad[8];
        krd_buf_put_le64(out, m->configs[i].index);
        krd_buf_put_le64(out, m->configs[i].length);
        krd_buf_put(out, m->configs[i].payload, m->configs[i].length);
        krd_buf_put(out, pad, -(size_t)m->configs[i].length & 7);
    }
}

/* The opening frame into the spare, and the spare under its name. */
static int name_segment(struct wal *w, uint64_t number, const struct wal_spare *spare,
                        const char **step)
{
    struct krd_buf body = KRD_BUF_INIT;
    put_opening(w, spare->bytes, &body);
    struct wal_frame h = frame_header(w, WAL_FRAME_OPENING);
    h.segment = number;
    wal_frame_begin(&w->frame, body.len);
    wal_frame_put(&w->frame, body.ptr, body.len);
    krd_buf_deinit(&body);
    uint32_t seed = wal_seed(w->cluster_id, w->member_id, number);
    uint32_t chain = wal_frame_finish(&w->frame, &h, seed, 0);

    *step = "write a new segment's opening";
    int r = w->vfs->pwrite(spare->file, w->frame.ptr, wal_frame_buf_bytes(&w->frame), 0);
    if (r < 0)
        return r;
    *step = "fdatasync a new segment's opening";
    r = w->vfs->fdatasync(spare->file);
    if (r < 0)
        return r;
    *step = "rename a new segment";
    char *path = wal_segment_path(w, number);
    r = w->vfs->rename(w->vfs->ctx, spare->path, path);
    krd_free(path);
    if (r < 0)
        return r;
    *step = "fsync the log's directory";
    r = w->vfs->sync_dir(w->vfs->ctx, w->dir);
    if (r < 0)
        return r;
    w->seed = seed;
    w->chain = chain;
    w->next_seq++;
    return 0;
}

/* No spare is ready: at the first start, after a torn tail, or because the keeper is late. Somebody
 * waits for this one, so it is short, and soon followed by one of full length. On a full disk an
 * even shorter one is better than none: the node can start and take what makes room (P69). */
static int make_in_time_of_need(struct wal *w, const char *name, struct wal_spare *out,
                                const char **step)
{
    uint64_t bytes = krd_min_u64(w->segment_bytes, HASTY_SEGMENT_BYTES);
    int r = wal_spare_make(w->vfs, w->dir, name, bytes, NULL, NULL, out, step);
    while (r == -ENOSPC && bytes / 4 >= SHORTEST_SEGMENT_BYTES) {
        bytes /= 4;
        r = wal_spare_make(w->vfs, w->dir, name, bytes, NULL, NULL, out, step);
    }
    return r;
}

int wal_next_segment(struct wal *w, const char **step)
{
    struct wal_map *m = &w->map;
    uint64_t number = m->n_segments > 0 ? wal_map_current(m)->number + 1 : 1;
    struct wal_spare spare = w->spare;
    w->spare = (struct wal_spare){0};
    int r = 0;
    if (spare.path == NULL) {
        char name[WAL_NAME_BYTES + 4];
        wal_segment_name(number, name);
        strcat(name, ".tmp");
        r = make_in_time_of_need(w, name, &spare, step);
    }
    if (r == 0)
        r = name_segment(w, number, &spare, step);
    if (r < 0) {
        wal_spare_discard(w->vfs, &spare);
        return r;
    }
    krd_free(spare.path);
    if (w->file != NULL) {
        w->vfs->close(w->file);
        w->older_bytes += wal_map_current(m)->bytes;
    }
    w->file = spare.file;
    struct wal_segment *s = wal_map_open(m, number);
    s->seq = w->next_seq - 1;
    s->end = wal_frame_buf_bytes(&w->frame);
    s->bytes = krd_max_u64(spare.bytes, s->end);
    w->unproven = false; /* the opening is the proof */
    w->checkpoint_waits = false;
    return 0;
}

/* --- Frames ------------------------------------------------------------------------------- */

/* A frame that does not fit even into an empty segment makes that segment longer: then the sync
 * writes metadata as well, which is slow and right. */
static void make_room(struct wal *w, uint64_t bytes)
{
    const struct wal_segment *s = wal_map_current(&w->map);
    bool empty = w->next_seq == s->seq + 1;
    if (s->end + bytes <= s->bytes || empty)
        return;
    const char *step = "";
    int r = wal_next_segment(w, &step);
    if (r < 0)
        die(w, step, r);
}

/* Writes the frame whose body is in w->frame. Afterwards it is durable. */
static void write_frame(struct wal *w, struct wal_frame *h)
{
    struct wal_segment *s = wal_map_current(&w->map);
    uint32_t chain = wal_frame_finish(&w->frame, h, w->seed, s->end);
    size_t bytes = wal_frame_buf_bytes(&w->frame);
    uint64_t began = krd_mono_us();
    int r = w->vfs->pwrite(w->file, w->frame.ptr, bytes, s->end);
    if (r < 0)
        die(w, "pwrite", r);
    r = w->vfs->fdatasync(w->file);
    if (r < 0)
        die(w, "fdatasync", r);
    w->sync_us = krd_mono_us() - began;
    w->sync_bytes = bytes;
    if (w->sync_us > SLOW_SYNC_US)
        krd_warn("slow disk", "operation=log_fdatasync duration_ms=%" PRIu64 " bytes=%zu",
                 w->sync_us / 1000, bytes);
    s->end += bytes;
    s->bytes = krd_max_u64(s->bytes, s->end);
    w->chain = chain;
    w->next_seq++;
    w->checkpoint_waits = false;
    if (w->frame.cap > KEEP_BUFFER_BYTES)
        wal_frame_buf_deinit(&w->frame);
}

static void write_empty_frame(struct wal *w)
{
    make_room(w, wal_frame_disk_bytes(0));
    struct wal_frame h = frame_header(w, WAL_FRAME_BATCH);
    wal_frame_begin(&w->frame, 0);
    write_frame(w, &h);
    w->unproven = false;
}

/* The entries that are left when each write has replaced what it replaces; how many bytes. */
static size_t collect(struct wal *w, const struct raft_write *writes, size_t n_writes)
{
    size_t bytes = 0;
    w->n_batch = 0;
    for (size_t i = 0; i < n_writes; i++) {
        const struct raft_write *wr = &writes[i];
        if (wr->n_entries == 0)
            continue;
        while (w->n_batch > 0 && w->batch[w->n_batch - 1]->index >= wr->entries[0].index)
            bytes -= raft_record_bytes(w->batch[--w->n_batch]);
        krd_grow(&w->batch, &w->cap_batch, w->n_batch + wr->n_entries, sizeof(*w->batch));
        for (size_t k = 0; k < wr->n_entries; k++) {
            const struct raft_entry *e = &wr->entries[k];
            KRD_ASSERT(w->n_batch == 0 || e->index == w->batch[w->n_batch - 1]->index + 1);
            w->batch[w->n_batch++] = e;
            bytes += raft_record_bytes(e);
        }
    }
    return bytes;
}

void wal_append(struct wal *w, const struct raft_write *writes, size_t n_writes)
{
    size_t body_bytes = collect(w, writes, n_writes);
    const struct raft_write *state = NULL;
    for (size_t i = 0; i < n_writes; i++)
        if (writes[i].has_hard_state)
            state = &writes[i];
    if (w->n_batch == 0 && state == NULL)
        return;

    make_room(w, wal_frame_disk_bytes(body_bytes));
    struct wal_frame h = frame_header(w, WAL_FRAME_BATCH);
    h.n_entries = (uint32_t)w->n_batch;
    struct raft_hard_state hs = state != NULL ? state->hard_state : w->map.hs;
    h.term = hs.term;
    h.vote = hs.vote;
    h.commit = hs.commit;
    wal_frame_begin(&w->frame, body_bytes);
    raft_index last = w->map.last_index;
    if (w->n_batch > 0) {
        h.first_index = w->batch[0]->index;
        last = w->batch[w->n_batch - 1]->index;
        KRD_ASSERT(h.first_index > w->map.base_index && h.first_index <= w->map.last_index + 1);
        KRD_ASSERT(h.first_index > w->map.hs.commit); /* committed entries are final (P23) */
        for (size_t i = 0; i < w->n_batch; i++)
            wal_frame_put(&w->frame, w->batch[i]->record, raft_record_bytes(w->batch[i]));
    }
    KRD_ASSERT(hs.term >= w->map.hs.term && hs.commit <= last); /* P64 */
    uint64_t offset = wal_map_current(&w->map)->end;
    write_frame(w, &h);
    w->unproven = true;
    if (w->n_batch > 0)
        wal_map_frame(&w->map, h.first_index, offset, wal_point_spacing(w));
    for (size_t i = 0; i < w->n_batch; i++)
        wal_map_entry(&w->map, w->batch[i]);
    wal_map_hard_state(&w->map, &hs);
}

void wal_mark(struct wal *w)
{
    if (w->unproven || w->checkpoint_waits)
        write_empty_frame(w);
}

void wal_checkpoint(struct wal *w, raft_index index, bool flush)
{
    if (index > w->map.checkpoint) {
        w->map.checkpoint = index;
        w->checkpoint_waits = true;
    }
    if (flush && w->checkpoint_waits)
        write_empty_frame(w);
}

/* --- Cutting ------------------------------------------------------------------------------ */

bool wal_cut_begin(struct wal *w, raft_index index, uint64_t *from, uint64_t *to)
{
    struct wal_map *m = &w->map;
    if (wal_map_cuttable(m, index) == 0)
        return false;
    uint8_t body[24];
    make_room(w, wal_frame_disk_bytes(sizeof body)); /* may begin a segment: count after it */
    size_t n = wal_map_cuttable(m, index);
    raft_index base = m->segments[n - 1].live_last;
    krd_put_le64(body, m->segments[n].number);
    krd_put_le64(body + 8, base);
    krd_put_le64(body + 16, wal_map_term(m, base));
    struct wal_frame h = frame_header(w, WAL_FRAME_BASE);
    wal_frame_begin(&w->frame, sizeof body);
    wal_frame_put(&w->frame, body, sizeof body);
    write_frame(w, &h);
    w->unproven = true;

    *from = m->segments[0].number;
    *to = m->segments[n].number;
    for (size_t i = 0; i < n; i++)
        w->older_bytes -= m->segments[i].bytes;
    if (w->read_segment != 0 && w->read_segment < *to) {
        w->vfs->close(w->read_file);
        w->read_segment = 0;
    }
    m->first_segment = *to;
    wal_map_rebase(m, base);
    wal_map_drop(m, n);
    return true;
}

void wal_cut(struct wal *w, raft_index index)
{
    uint64_t from, to;
    if (!wal_cut_begin(w, index, &from, &to))
        return;
    for (uint64_t number = from; number < to; number++) {
        char *path = wal_segment_path(w, number);
        int r = w->vfs->unlink(w->vfs->ctx, path);
        if (r < 0) /* harmless: it is tried again at the next start */
            krd_warn("cannot remove an old log segment", "file=\"%s\" error=\"%s\"", path,
                     strerror(-r));
        krd_free(path);
    }
}

/* --- The rest ----------------------------------------------------------------------------- */

raft_index wal_first_index(const struct wal *w)
{
    return w->map.base_index + 1;
}

uint64_t wal_bytes(const struct wal *w)
{
    const struct wal_map *m = &w->map;
    return w->older_bytes + (m->n_segments > 0 ? m->segments[m->n_segments - 1].bytes : 0);
}

void wal_close(struct wal *w)
{
    if (w == NULL)
        return;
    wal_spare_discard(w->vfs, &w->spare);
    if (w->read_segment != 0)
        w->vfs->close(w->read_file);
    if (w->file != NULL)
        w->vfs->close(w->file);
    wal_scan_deinit(&w->scan);
    wal_frame_buf_deinit(&w->frame);
    wal_map_deinit(&w->map);
    krd_free(w->batch);
    krd_free(w->dir);
    krd_free(w);
}
