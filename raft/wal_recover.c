/* wal_recover.c - opening the log and deciding where it ends.
 *
 *   1. The directory says which segments there are; files under temporary names are leftovers.
 *   2. Openings, from the newest segment down: which segments must be there, who they belong to,
 *      and from which one on entries after keep_after lie.
 *   3. That segment's opening tells what the log held before it. From there on every frame of every
 *      segment is verified and retold to the map, in order; each further opening must say exactly
 *      what the map says by then.
 *   4. In the last segment, the first sector that is not a valid next frame is judged by the table
 *      below. The last frame is written once more and synced before anyone may rely on it: what we
 *      have read may be in the kernel's memory only, even if an fdatasync was tried (and failed)
 *      before the process ended.
 *   5. Leftovers are removed.
 *   6. If anything but zeros is behind the end, that segment is left as it is and the next one is
 *      begun; its opening says where the log ended. So nothing is ever written over something
 *      that was given up (such a write could tear as well, and would then look like damage), and
 *      it stays there to be looked at. It costs a segment for each crash that tears a batch.
 *
 * A crash in any of these steps leaves a log that recovers to the same content: 4 writes the bytes
 * that are there, 5 removes what nobody needs, 6 adds a segment or does not.
 *
 * The table. `first` is the sector in which the next frame should begin, `rest` what follows (the
 * frame's own sectors when first is valid, else everything up to the end of the file), `later`
 * whether anything proves that frames were written after this one: a whole sector with a higher
 * sequence number behind it, or a next segment. As only one frame is in flight at a time, that
 * proves that this one had been synced.
 *
 *   first    rest     later  verdict
 *   valid    whole    any    accept
 *   valid    missing  no     cut      the last batch, not completely written: never acknowledged
 *   zero     whole    no     end      how a log ends after a clean stop
 *   zero     missing  no     cut      a batch whose first sector never arrived
 *   zero     damaged  no     end      bytes in unused space: damage, but of nothing
 *   torn     any      no     cut      a batch whose first sector was being written
 *   speck    whole    no     end      a few bytes in unused space
 *   speck    damaged  no     end      the same, in several places
 *   else                     corrupt  whole once, and not any more
 *
 * What cannot be told apart: a last batch that was acknowledged and whose sectors have since been
 * lost to zeros looks like one that was never written. We assume the crash. The window is one
 * batch, until another one or the marker of an idle moment stands behind it; only zeros that
 * reach from a batch over all that follows to the end leave no witness. And: garbage that fills
 * the very sector behind the end could be a frame that rotted. We assume that, and refuse. */
#include "raft/wal_internal.h"

#include "base/log.h"
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#define RECOVER_CHUNK_BYTES (1024u * 1024)

#define ANY  0xff
#define F(x) (1u << WAL_FIRST_##x)
#define R(x) (1u << WAL_REST_##x)
#define NO   1u
#define YES  2u

enum wal_verdict wal_judge(enum wal_first first, enum wal_rest rest, bool later)
{
    static const struct {
        uint8_t first, rest, later;
        enum wal_verdict verdict;
    } table[] = {
        /* clang-format off */
        {F(VALID), R(WHOLE),   ANY, WAL_ACCEPT},
        {F(VALID), R(MISSING), NO,  WAL_CUT},
        {F(ZERO),  R(WHOLE),   NO,  WAL_END},
        {F(ZERO),  R(MISSING), NO,  WAL_CUT},
        {F(ZERO),  R(DAMAGED), NO,  WAL_END},
        {F(TORN),  ANY,        NO,  WAL_CUT},
        {F(SPECK), R(WHOLE),   NO,  WAL_END},
        {F(SPECK), R(DAMAGED), NO,  WAL_END},
        /* clang-format on */
    };
    for (size_t i = 0; i < KRD_ARRAY_LEN(table); i++)
        if ((table[i].first & 1u << first) && (table[i].rest & 1u << rest) &&
            (table[i].later & (later ? YES : NO)))
            return table[i].verdict;
    return WAL_CORRUPT;
}

/* --- The work in hand --------------------------------------------------------------------- */

struct opened { /* a segment's opening frame */
    struct wal_frame h;
    struct wal_opening o;
    uint32_t chain;
    uint64_t end; /* bytes */
    uint64_t file_bytes;
    struct krd_blob *blob; /* contents; the lists lie behind the fixed part */
};

struct recovery {
    struct wal *w;
    raft_index keep_after;
    uint64_t *numbers; /* of the segment files, ascending */
    size_t n_numbers, cap_numbers;
    char **leftovers; /* names of temporary files */
    size_t n_leftovers, cap_leftovers;
    struct opened *opened; /* of numbers[n_numbers - n_opened ...] */
    size_t n_opened;
    struct wal_scan scan;
    struct raft_entry *entries;
    size_t n_entries, cap_entries;
    uint64_t last_frame; /* offset of the last accepted frame in the last segment */
    bool torn;           /* a frame was given up */
    bool soiled;         /* something but zeros is behind the end */
    char *err;
};

static enum krd_status fail_io(struct recovery *r, const char *what, const char *path, int error)
{
    r->err = krd_asprintf("log: %s %s: %s", what, path, strerror(-error));
    return error == -ENOSPC ? KRD_NO_SPACE : KRD_IO;
}

static enum krd_status fail_refused(struct recovery *r, char *sentence /* taken */)
{
    r->err = sentence;
    return KRD_CORRUPT;
}

/* Damage at an offset; the entries from..to are affected (to 0: not known how far). */
static enum krd_status KRD_PRINTF(6, 7)
    fail_damaged(struct recovery *r, uint64_t number, uint64_t offset, raft_index from,
                 raft_index to, const char *fmt, ...)
{
    char what[256], range[80];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(what, sizeof what, fmt, ap);
    va_end(ap);
    if (to >= from && to > 0)
        snprintf(range, sizeof range, "entries %" PRIu64 " to %" PRIu64 " are affected", from, to);
    else
        snprintf(range, sizeof range, "entries from %" PRIu64 " on are affected", from);
    char *path = wal_segment_path(r->w, number);
    r->err = krd_asprintf("the log is damaged: %s at byte %" PRIu64 ": %s; %s. This is not what a "
                          "crash leaves, so acknowledged writes may be among them, and the node "
                          "does not start. Keep this directory for examination; let the member "
                          "start anew from the others with an empty one, or restore a backup",
                          path, offset, what, range);
    krd_free(path);
    return KRD_CORRUPT;
}

/* --- 1. The directory --------------------------------------------------------------------- */

static void on_name(void *arg, const char *name)
{
    struct recovery *r = arg;
    uint64_t number;
    size_t len = strlen(name);
    if (wal_segment_number(name, &number)) {
        krd_grow(&r->numbers, &r->cap_numbers, r->n_numbers + 1, sizeof *r->numbers);
        r->numbers[r->n_numbers++] = number;
    } else if (len > 4 && strcmp(name + len - 4, ".tmp") == 0) {
        krd_grow(&r->leftovers, &r->cap_leftovers, r->n_leftovers + 1, sizeof *r->leftovers);
        r->leftovers[r->n_leftovers++] = krd_strdup(name);
    } else {
        krd_warn("a file in the log's directory is not the log's", "dir=\"%s\" name=\"%s\"",
                 r->w->dir, name);
    }
}

static int compare_numbers(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static enum krd_status list_directory(struct recovery *r)
{
    int e = r->w->vfs->list(r->w->vfs->ctx, r->w->dir, on_name, r);
    if (e < 0)
        return fail_io(r, "list", r->w->dir, e);
    if (r->n_numbers > 0)
        qsort(r->numbers, r->n_numbers, sizeof *r->numbers, compare_numbers);
    return KRD_OK;
}

/* --- 2. Openings -------------------------------------------------------------------------- */

static enum krd_status open_for_scan(struct recovery *r, uint64_t number, int flags,
                                     struct krd_file **file)
{
    const struct krd_vfs *v = r->w->vfs;
    char *path = wal_segment_path(r->w, number);
    enum krd_status st = KRD_OK;
    uint64_t size = 0;
    int e = v->open(v->ctx, path, flags, file);
    if (e < 0) {
        st = fail_io(r, "open", path, e);
    } else {
        e = v->size(*file, &size);
        if (e < 0) {
            st = fail_io(r, "size of", path, e);
            v->close(*file);
        }
    }
    krd_free(path);
    if (st == KRD_OK)
        wal_scan_start(&r->scan, v, *file, size, 0, RECOVER_CHUNK_BYTES);
    return st;
}

static enum krd_status fail_read(struct recovery *r, uint64_t number)
{
    char *path = wal_segment_path(r->w, number);
    enum krd_status st = fail_io(r, "read", path, r->scan.error);
    krd_free(path);
    return st;
}

/* Whose segment this is, by its own first sector: the seed is made from what that sector says, so
 * a foreign segment is told from a damaged one. */
static enum krd_status check_owner(struct recovery *r, uint64_t number)
{
    const uint8_t *p = wal_scan_at(&r->scan, 0, WAL_SECTOR_BYTES);
    if (p == NULL)
        return fail_read(r, number);
    struct wal_frame h;
    struct krd_reader rd =
        krd_reader_of(slice_of(p + WAL_FRAME_HEADER_BYTES, WAL_OPENING_FIXED_BYTES));
    struct wal_opening o = wal_opening_read(&rd);
    bool decoded = wal_frame_decode(p, &h) == KRD_OK;
    uint32_t magic = krd_get_le32(p);
    if (!decoded && magic != WAL_MAGIC && (magic & 0xffffff) == (WAL_MAGIC & 0xffffff)) {
        char *path = wal_segment_path(r->w, number);
        char *s = krd_asprintf("log: %s has format version '%c', this program knows only '1': "
                               "start it with the program that wrote it, or a newer one",
                               path, (int)(magic >> 24));
        krd_free(path);
        return fail_refused(r, s);
    }
    uint64_t seq;
    bool first;
    if (!decoded || h.kind != WAL_FRAME_OPENING ||
        !wal_sector_verify(p, wal_seed(o.cluster_id, o.member_id, h.segment), 0, h.seq, &seq,
                           &first) ||
        seq != h.seq || !first)
        return fail_damaged(r, number, 0, r->w->map.last_index + 1, 0,
                            "the segment's opening does not match its checksum");
    char *s = NULL;
    char *path = wal_segment_path(r->w, number);
    if (o.cluster_id != r->w->cluster_id)
        s = krd_asprintf("log: %s belongs to cluster %016" PRIx64 ", this node to cluster "
                         "%016" PRIx64 ": is this the right data directory?",
                         path, o.cluster_id, r->w->cluster_id);
    else if (o.member_id != r->w->member_id)
        s = krd_asprintf("log: %s belongs to member %016" PRIx64 ", this node is member "
                         "%016" PRIx64 ": is this the right data directory?",
                         path, o.member_id, r->w->member_id);
    else if (h.segment != number)
        s = krd_asprintf("log: %s is segment %" PRIu64 " under a wrong name: files were renamed, "
                         "swapped or copied. Put the directory back as it was",
                         path, h.segment);
    krd_free(path);
    return s != NULL ? fail_refused(r, s) : KRD_OK;
}

/* Reads the opening of the file in r->scan. */
static enum krd_status read_opening(struct recovery *r, uint64_t number, struct opened *out)
{
    struct wal *w = r->w;
    enum krd_status st = check_owner(r, number);
    if (st != KRD_OK)
        return st;
    r->scan.seed = wal_seed(w->cluster_id, w->member_id, number);
    const uint8_t *p = wal_scan_at(&r->scan, 0, WAL_SECTOR_BYTES);
    struct wal_frame h;
    if (p == NULL)
        return fail_read(r, number);
    if (wal_frame_decode(p, &h) != KRD_OK)
        return fail_damaged(r, number, 0, 1, 0, "the segment's opening cannot be read");
    struct wal_scanned f;
    st = wal_scan_frame(&r->scan, 0, h.seq, &f);
    if (st == KRD_IO)
        return fail_read(r, number);
    if (st != KRD_OK)
        return fail_damaged(r, number, 0, w->map.last_index + 1, 0,
                            "the segment's opening does not match its checksums");
    struct krd_reader rd =
        krd_reader_of(slice_of(p + WAL_FRAME_HEADER_BYTES, WAL_OPENING_FIXED_BYTES));
    *out = (struct opened){
        .h = f.h,
        .o = wal_opening_read(&rd),
        .chain = f.chain,
        .end = wal_scanned_bytes(&f),
        .file_bytes = r->scan.size,
        .blob = wal_scanned_blob(&f),
    };
    if (r->scan.size >= out->o.segment_bytes)
        return KRD_OK;
    return fail_damaged(r, number, r->scan.size, out->o.last_index + 1, 0,
                        "the file has %" PRIu64 " bytes and was made with %" PRIu64, r->scan.size,
                        out->o.segment_bytes);
}

/* Openings of the newest segment and of all before it, down to the first that is needed or to a
 * gap. Whether a gap is legal is known when the newest segment has been read: it may have cut. */
static enum krd_status read_openings(struct recovery *r)
{
    size_t n = r->n_numbers;
    r->opened = krd_calloc(n, sizeof *r->opened);
    r->n_opened = 0;
    for (size_t i = n; i > 0; i--) {
        uint64_t number = r->numbers[i - 1];
        if (i < n && (number + 1 != r->numbers[i] || number < r->opened[n - 1].o.first_segment))
            break;
        struct krd_file *file;
        enum krd_status st = open_for_scan(r, number, KRD_OPEN_READ, &file);
        if (st != KRD_OK)
            return st;
        st = read_opening(r, number, &r->opened[i - 1]);
        r->w->vfs->close(file);
        if (st != KRD_OK)
            return st;
        r->n_opened++;
    }
    return KRD_OK;
}

/* --- 3. What the openings and frames say -------------------------------------------------- */

/* The lists of an opening; into the map, or only the points into a segment. */
static bool take_lists(const struct opened *op, struct wal_map *m, struct wal_segment *prev)
{
    struct krd_reader rd =
        krd_reader_of(slice_of(op->blob->data + WAL_FRAME_HEADER_BYTES + WAL_OPENING_FIXED_BYTES,
                               op->h.body_bytes - WAL_OPENING_FIXED_BYTES));
    for (uint32_t i = 0; i < op->o.n_runs && !rd.bad; i++) {
        raft_index first = krd_read_le64(&rd);
        raft_term term = krd_read_le64(&rd);
        if (m != NULL)
            wal_map_put_run(m, first, term);
    }
    for (uint32_t i = 0; i < op->o.n_points && !rd.bad; i++) {
        raft_index index = krd_read_le64(&rd);
        uint64_t offset = krd_read_le64(&rd);
        if (prev != NULL)
            wal_map_put_point(prev, index, offset);
    }
    for (uint32_t i = 0; i < op->o.n_configs && !rd.bad && m != NULL; i++) {
        raft_index index = krd_read_le64(&rd);
        size_t length = krd_read_le64(&rd);
        struct slice payload = krd_read_bytes(&rd, length);
        krd_read_bytes(&rd, -length & 7);
        if (!rd.bad)
            wal_map_put_config(m, index, payload);
    }
    return !rd.bad;
}

static void seed_map(struct wal_map *m, const struct opened *op)
{
    m->hs = (struct raft_hard_state){op->h.term, op->h.vote, op->h.commit};
    m->checkpoint = op->h.checkpoint;
    m->first_segment = op->o.first_segment;
    m->base_index = op->o.base_index;
    m->base_term = op->o.base_term;
    m->last_index = op->o.last_index;
    m->last_term = op->o.last_term;
    m->last_time_ms = op->o.last_time_ms;
}

/* Segments that are not read: where they end is told by the opening behind each. */
static void add_older(struct recovery *r, size_t from, size_t to)
{
    for (size_t i = from; i < to; i++) {
        const struct opened *op = &r->opened[i], *next = &r->opened[i + 1];
        struct wal_segment *s = wal_map_open(&r->w->map, r->numbers[i]);
        s->bytes = op->file_bytes;
        s->end = next->o.prev_end;
        s->seq = op->h.seq;
        s->before = op->o.last_index;
        s->low = next->o.prev_low;
        take_lists(next, NULL, s);
        r->w->older_bytes += s->bytes;
    }
}

/* Does this opening say what we have found before it? */
static bool continues(const struct wal *w, const struct opened *op)
{
    const struct wal_map *m = &w->map;
    const struct wal_segment *prev = &m->segments[m->n_segments - 1];
    return op->h.prev_chain == w->chain && op->h.seq == w->next_seq &&
           op->o.last_index == m->last_index && op->o.last_term == m->last_term &&
           op->o.base_index == m->base_index && op->o.first_segment == m->first_segment &&
           op->o.prev_end == prev->end && op->o.prev_low == prev->low &&
           op->o.n_runs == m->n_runs && op->h.term == m->hs.term && op->h.vote == m->hs.vote;
}

static void drop_entries_from(struct recovery *r, raft_index first)
{
    while (r->n_entries > 0 && r->entries[r->n_entries - 1].index >= first)
        raft_entry_unref(&r->entries[--r->n_entries]);
}

static void keep_entry(struct recovery *r, struct raft_entry *e /* taken */)
{
    if (e->index <= r->keep_after) {
        raft_entry_unref(e);
        return;
    }
    krd_grow(&r->entries, &r->cap_entries, r->n_entries + 1, sizeof *r->entries);
    r->entries[r->n_entries++] = *e;
}

static bool take_entries(struct recovery *r, const struct wal_scanned *f, uint64_t offset)
{
    struct wal_map *m = &r->w->map;
    raft_index first = f->h.first_index;
    if (first <= m->base_index || first > m->last_index + 1 || first <= m->hs.commit)
        return false;
    wal_map_frame(m, first, offset, wal_point_spacing(r->w));
    drop_entries_from(r, first);
    struct krd_blob *blob = wal_scanned_blob(f);
    struct wal_entry_cursor c = wal_entry_cursor_of(blob, &f->h);
    struct raft_entry e;
    enum krd_status st;
    while ((st = wal_entry_next(&c, &e)) == KRD_OK) {
        if (e.term < m->last_term) {
            raft_entry_unref(&e);
            st = KRD_CORRUPT;
            break;
        }
        wal_map_entry(m, &e);
        keep_entry(r, &e);
    }
    krd_blob_unref(blob);
    return st == KRD_EOF_ && m->last_index + 1 == first + f->h.n_entries;
}

static bool take_base(struct wal_map *m, const struct wal_scanned *f)
{
    if (f->h.body_bytes != 24)
        return false;
    const uint8_t *body = f->sectors + WAL_FRAME_HEADER_BYTES; /* all in the first sector */
    uint64_t segment = krd_get_le64(body);
    raft_index base = krd_get_le64(body + 8);
    if (segment < m->first_segment || segment > wal_map_current(m)->number)
        return false;
    if (base < m->base_index || base > m->last_index)
        return false;
    if (wal_map_term(m, base) != krd_get_le64(body + 16))
        return false;
    m->first_segment = segment;
    wal_map_rebase(m, base);
    return true;
}

/* What a frame means that every checksum has passed. False: it cannot mean this here; such a frame
 * was written by a program with a fault. */
static bool take_frame(struct recovery *r, const struct wal_scanned *f, uint64_t offset)
{
    struct wal_map *m = &r->w->map;
    if (f->h.kind == WAL_FRAME_OPENING || f->h.synced_seq + 1 != f->h.seq)
        return false;
    if (f->h.kind == WAL_FRAME_BASE && !take_base(m, f))
        return false;
    if (f->h.n_entries > 0 && !take_entries(r, f, offset))
        return false;
    if (f->h.term < m->hs.term || f->h.commit > m->last_index)
        return false;
    struct raft_hard_state hs = {f->h.term, f->h.vote, f->h.commit};
    wal_map_hard_state(m, &hs);
    m->checkpoint = f->h.checkpoint;
    return true;
}

/* --- 4. The end of the log ---------------------------------------------------------------- */

struct behind {             /* what there is from an offset to the end of the file */
    bool remains;           /* sectors of the frame that should be next */
    bool dirt;              /* bytes that belong to nothing */
    bool later;             /* whole sectors with a higher sequence number */
    raft_index later_first; /* first index of the nearest such frame; 0: not known */
};

static void look_at_sector(struct recovery *r, const uint8_t *p, uint64_t no, struct behind *b)
{
    uint64_t seq;
    bool first;
    if (!wal_sector_verify(p, r->scan.seed, no, r->w->next_seq, &seq, &first)) {
        b->dirt = true;
    } else if (seq == r->w->next_seq) {
        b->remains = true;
    } else if (seq > r->w->next_seq) {
        struct wal_frame h;
        b->later = true;
        if (first && b->later_first == 0 && wal_frame_decode(p, &h) == KRD_OK)
            b->later_first = h.first_index;
    }
}

/* O(rest of the file); runs of zeros pass at the speed of memory. */
static enum krd_status look_behind(struct recovery *r, uint64_t number, uint64_t offset,
                                   struct behind *b)
{
    *b = (struct behind){0};
    uint64_t step = 64 * WAL_SECTOR_BYTES;
    for (; offset < r->scan.size; offset += step) {
        const uint8_t *p = wal_scan_at(&r->scan, offset, step);
        if (p == NULL)
            return fail_read(r, number);
        if (wal_is_zero(p, step))
            continue;
        for (uint64_t at = 0; at < step; at += WAL_SECTOR_BYTES)
            if (!wal_is_zero(p + at, WAL_SECTOR_BYTES))
                look_at_sector(r, p + at, (offset + at) / WAL_SECTOR_BYTES, b);
    }
    return KRD_OK;
}

static enum wal_first look_at_first(struct recovery *r, const uint8_t *p, uint64_t number,
                                    uint64_t offset, struct wal_frame *h)
{
    struct wal *w = r->w;
    uint64_t no = offset / WAL_SECTOR_BYTES, seq;
    bool first;
    if (wal_is_zero(p, WAL_SECTOR_BYTES))
        return WAL_FIRST_ZERO;
    if (wal_sector_verify(p, r->scan.seed, no, w->next_seq, &seq, &first)) {
        if (seq == w->next_seq && first && wal_frame_decode(p, h) == KRD_OK && h->seq == seq &&
            h->segment == number && h->prev_chain == w->chain)
            return WAL_FIRST_VALID;
        return WAL_FIRST_GARBAGE;
    }
    uint8_t expected[WAL_FRAME_HEADER_BYTES];
    struct wal_frame next = {
        .magic = WAL_MAGIC, .prev_chain = w->chain, .segment = number, .seq = w->next_seq};
    wal_frame_encode(&next, expected);
    if (wal_sector_torn(p, r->scan.seed, no, w->next_seq, true,
                        slice_of(expected, WAL_PREFIX_BYTES)))
        return WAL_FIRST_TORN;
    return wal_sector_speck(p) ? WAL_FIRST_SPECK : WAL_FIRST_GARBAGE;
}

/* The sectors of a frame whose first one is valid; n_sectors of them lie in the file, maybe fewer
 * than the frame has. */
static enum wal_rest look_at_body(const struct recovery *r, const uint8_t *p, uint64_t no,
                                  const struct wal_frame *h, size_t n_sectors)
{
    bool missing = n_sectors < wal_frame_disk_bytes(h->body_bytes) / WAL_SECTOR_BYTES;
    for (size_t i = 1; i < n_sectors; i++) {
        const uint8_t *s = p + i * WAL_SECTOR_BYTES;
        uint64_t seq;
        bool first;
        if (wal_sector_verify(s, r->scan.seed, no + i, h->seq, &seq, &first)) {
            if (seq != h->seq || first)
                return WAL_REST_DAMAGED;
        } else {
            if (!wal_is_zero(s, WAL_SECTOR_BYTES) &&
                !wal_sector_torn(s, r->scan.seed, no + i, h->seq, false, slice_of(NULL, 0)))
                return WAL_REST_DAMAGED;
            missing = true;
        }
    }
    if (missing)
        return WAL_REST_MISSING;
    return wal_body_sum(p, n_sectors) == h->body_sum ? WAL_REST_WHOLE : WAL_REST_DAMAGED;
}

/* Judges what stands at offset. On ACCEPT *f is the frame. */
static enum krd_status judge(struct recovery *r, uint64_t number, uint64_t offset, bool newer,
                             raft_index newer_last, struct wal_scanned *f,
                             enum wal_verdict *verdict)
{
    const uint8_t *p = wal_scan_at(&r->scan, offset, WAL_SECTOR_BYTES);
    if (p == NULL)
        return fail_read(r, number);
    enum wal_first first = look_at_first(r, p, number, offset, &f->h);
    enum wal_rest rest = WAL_REST_WHOLE;
    if (first == WAL_FIRST_VALID) {
        uint64_t bytes = wal_frame_disk_bytes(f->h.body_bytes);
        if (offset + bytes > r->scan.size) /* a longer one was never completed */
            bytes = (r->scan.size - offset + WAL_SECTOR_BYTES - 1) & ~(uint64_t)511;
        f->n_sectors = bytes / WAL_SECTOR_BYTES;
        f->sectors = p = wal_scan_at(&r->scan, offset, bytes);
        if (p == NULL)
            return fail_read(r, number);
        f->chain = wal_sector_crc(p);
        rest = look_at_body(r, p, offset / WAL_SECTOR_BYTES, &f->h, f->n_sectors);
        if (rest == WAL_REST_WHOLE) {
            *verdict = wal_judge(first, rest, newer);
            return KRD_OK;
        }
    }
    struct behind b;
    enum krd_status st = look_behind(r, number, offset + WAL_SECTOR_BYTES, &b);
    if (st != KRD_OK)
        return st;
    if (first != WAL_FIRST_VALID)
        rest = b.remains ? WAL_REST_MISSING : b.dirt ? WAL_REST_DAMAGED : WAL_REST_WHOLE;
    *verdict = wal_judge(first, rest, newer || b.later);
    r->soiled = first != WAL_FIRST_ZERO || b.remains || b.dirt;
    if (*verdict != WAL_CORRUPT)
        return KRD_OK;

    raft_index from = r->w->map.last_index + 1, to = newer ? newer_last : 0;
    if (first == WAL_FIRST_VALID && f->h.n_entries > 0) {
        from = f->h.first_index;
        to = from + f->h.n_entries - 1;
    } else if (b.later_first > from) {
        to = b.later_first - 1;
    }
    return fail_damaged(r, number, offset, from, to, "a batch fails its checksums%s",
                        newer || b.later ? " although later ones follow it" : "");
}

/* Reads all frames of the segment in r->scan behind its opening. next: the opening of the
 * following segment, NULL for the last one. */
static enum krd_status read_segment(struct recovery *r, const struct opened *op,
                                    const struct opened *next)
{
    struct wal *w = r->w;
    struct wal_segment *s = wal_map_open(&w->map, op->h.segment);
    s->seq = op->h.seq;
    s->bytes = op->file_bytes;
    s->end = op->end;
    w->chain = op->chain;
    w->next_seq = op->h.seq + 1;
    w->unproven = false;
    r->last_frame = 0;
    while (next == NULL || s->end < next->o.prev_end) {
        struct wal_scanned f;
        enum wal_verdict verdict = WAL_CORRUPT;
        enum krd_status st = judge(r, s->number, s->end, next != NULL,
                                   next != NULL ? next->o.last_index : 0, &f, &verdict);
        if (st != KRD_OK)
            return st;
        KRD_ASSERT(verdict == WAL_ACCEPT || next == NULL);
        r->torn = verdict == WAL_CUT;
        if (verdict != WAL_ACCEPT)
            return KRD_OK;
        if (!take_frame(r, &f, s->end))
            return fail_damaged(r, s->number, s->end, f.h.first_index,
                                f.h.first_index + f.h.n_entries,
                                "a batch is intact but does not fit what is before it");
        w->unproven = f.h.kind != WAL_FRAME_BATCH || f.h.n_entries > 0;
        r->last_frame = s->end;
        s->end += wal_scanned_bytes(&f);
        w->chain = f.chain;
        w->next_seq = f.h.seq + 1;
    }
    return KRD_OK;
}

static enum krd_status secure_tail(struct recovery *r, struct krd_file *file)
{
    struct wal *w = r->w;
    const struct wal_segment *s = wal_map_current(&w->map);
    size_t n = s->end - r->last_frame;
    const uint8_t *p = wal_scan_at(&r->scan, r->last_frame, n);
    int e = p == NULL ? r->scan.error : w->vfs->pwrite(file, p, n, r->last_frame);
    if (e == 0)
        e = w->vfs->fdatasync(file);
    if (e == 0)
        e = w->vfs->sync_dir(w->vfs->ctx, w->dir); /* a name that we see may not be durable yet */
    if (e == 0)
        return KRD_OK;
    char *path = wal_segment_path(w, s->number);
    enum krd_status st = fail_io(r, "secure the end of", path, e);
    krd_free(path);
    return st;
}

/* --- All together ------------------------------------------------------------------------- */

/* The newest segment that has nothing after keep_after before it: reading starts there. */
static size_t first_to_read(const struct recovery *r)
{
    size_t i = r->n_numbers - 1;
    while (i > r->n_numbers - r->n_opened && r->opened[i].o.last_index > r->keep_after)
        i--;
    return i;
}

static enum krd_status read_segments(struct recovery *r)
{
    struct wal *w = r->w;
    size_t n = r->n_numbers, lowest = n - r->n_opened, from = first_to_read(r);
    add_older(r, lowest, from);
    seed_map(&w->map, &r->opened[from]);
    if (!take_lists(&r->opened[from], &w->map, NULL))
        return fail_damaged(r, r->numbers[from], 0, 1, 0, "the segment's opening is incomplete");
    for (size_t i = from; i < n; i++) {
        bool last = i + 1 == n;
        const struct opened *op = &r->opened[i];
        if (i > from && !continues(w, op))
            return fail_damaged(r, r->numbers[i], 0, w->map.last_index + 1, op->o.last_index,
                                "the segment does not continue segment %" PRIu64,
                                r->numbers[i - 1]);
        struct krd_file *file;
        enum krd_status st =
            open_for_scan(r, r->numbers[i], last ? KRD_OPEN_WRITE : KRD_OPEN_READ, &file);
        if (st != KRD_OK)
            return st;
        r->scan.seed = wal_seed(w->cluster_id, w->member_id, r->numbers[i]);
        st = read_segment(r, op, last ? NULL : op + 1);
        if (st == KRD_OK && last)
            st = secure_tail(r, file);
        if (last && st == KRD_OK) {
            w->file = file;
            w->seed = r->scan.seed;
        } else {
            w->vfs->close(file);
            w->older_bytes += op->file_bytes;
        }
        if (st != KRD_OK)
            return st;
    }
    return KRD_OK;
}

/* Segments that a cut has given up are forgotten; one that it has not must be there. */
static enum krd_status settle_segments(struct recovery *r)
{
    struct wal_map *m = &r->w->map;
    if (m->segments[0].number > m->first_segment) {
        uint64_t missing = m->segments[0].number - 1;
        char *path = wal_segment_path(r->w, missing);
        char *s = krd_asprintf("log: segment file %s is missing; entries up to %" PRIu64
                               " are affected. Put it back, or see 'The log is damaged' in "
                               "docs/OPERATIONS.md",
                               path, m->segments[0].before);
        krd_free(path);
        return fail_refused(r, s);
    }
    size_t cut = 0;
    for (; m->segments[cut].number < m->first_segment; cut++)
        r->w->older_bytes -= m->segments[cut].bytes;
    wal_map_drop(m, cut);
    wal_map_settle(m);
    return KRD_OK;
}

static void remove_leftovers(struct recovery *r)
{
    const struct krd_vfs *v = r->w->vfs;
    for (size_t i = 0; i < r->n_leftovers; i++) {
        char *path = wal_path(r->w, r->leftovers[i]);
        (void)v->unlink(v->ctx, path); /* if not now, then at the next start */
        krd_free(path);
    }
    for (size_t i = 0; i < r->n_numbers && r->numbers[i] < r->w->map.first_segment; i++) {
        char *path = wal_segment_path(r->w, r->numbers[i]);
        (void)v->unlink(v->ctx, path);
        krd_free(path);
    }
}

static enum krd_status create_log(struct recovery *r)
{
    const char *step = "";
    remove_leftovers(r); /* one of them may bear the name that the first segment needs */
    r->w->map.first_segment = 1;
    r->w->next_seq = 1;
    int e = wal_next_segment(r->w, &step);
    return e < 0 ? fail_io(r, step, r->w->dir, e) : KRD_OK;
}

static enum krd_status leave_segment(struct recovery *r)
{
    const char *step = "";
    const struct wal_segment *s = wal_map_current(&r->w->map);
    char *path = wal_segment_path(r->w, s->number);
    krd_warn(r->torn ? "the log ended in a batch that was never completely written; it was cut off"
                     : "the log's unused space held bytes; a new segment was begun",
             "file=\"%s\" offset=%" PRIu64, path, s->end);
    krd_free(path);
    int e = wal_next_segment(r->w, &step);
    return e < 0 ? fail_io(r, step, r->w->dir, e) : KRD_OK;
}

static enum krd_status recover(struct recovery *r)
{
    enum krd_status st = list_directory(r);
    if (st != KRD_OK)
        return st;
    if (r->n_numbers == 0)
        return create_log(r);
    st = read_openings(r);
    if (st == KRD_OK)
        st = read_segments(r);
    if (st == KRD_OK)
        st = settle_segments(r);
    if (st != KRD_OK)
        return st;
    remove_leftovers(r); /* first, since one of them may hold the last free space */
    return r->soiled ? leave_segment(r) : KRD_OK;
}

static enum krd_status hand_over(struct recovery *r, struct wal_recovered *rec)
{
    const struct wal_map *m = &r->w->map;
    struct raft_config_state *config = NULL;
    if (m->n_configs > 0) {
        const struct wal_config_at *c = &m->configs[m->n_configs - 1];
        config = krd_alloc(sizeof *config);
        if (raft_config_decode(slice_of(c->payload, c->length), config) != KRD_OK) {
            krd_free(config);
            return fail_refused(r, krd_asprintf("log: entry %" PRIu64 " holds a configuration that "
                                                "this program cannot read",
                                                c->index));
        }
        rec->config_index = c->index;
    }
    size_t below = 0; /* entries that were read before a cut was */
    while (below < r->n_entries && r->entries[below].index <= m->base_index)
        raft_entry_unref(&r->entries[below++]);
    r->n_entries -= below;
    if (r->n_entries > 0)
        memmove(r->entries, r->entries + below, r->n_entries * sizeof *r->entries);
    KRD_ASSERT(r->n_entries +
                   krd_max_u64(krd_min_u64(r->keep_after, m->last_index), m->base_index) ==
               m->last_index);

    rec->config = config;
    rec->hard_state = m->hs;
    rec->base_index = m->base_index;
    rec->base_term = m->base_term;
    rec->last_index = m->last_index;
    rec->runs = krd_alloc(m->n_runs * sizeof *m->runs + 1);
    if (m->n_runs > 0)
        memcpy(rec->runs, m->runs, m->n_runs * sizeof *m->runs);
    rec->n_runs = m->n_runs;
    rec->entries = r->entries;
    rec->n_entries = r->n_entries;
    r->entries = NULL;
    r->n_entries = 0;
    rec->time_ms = m->last_time_ms;
    rec->checkpoint = m->checkpoint;
    rec->created = r->n_numbers == 0;
    rec->torn_tail = r->torn;
    if (r->torn) { /* the segment before the one that was begun because of it */
        const struct wal_segment *s = &m->segments[m->n_segments - 2];
        char *path = wal_segment_path(r->w, s->number);
        snprintf(rec->torn_file, sizeof rec->torn_file, "%s", path);
        krd_free(path);
        rec->torn_offset = s->end;
    }
    return KRD_OK;
}

static void recovery_deinit(struct recovery *r)
{
    drop_entries_from(r, 0);
    krd_free(r->entries);
    for (size_t i = 0; i < r->n_leftovers; i++)
        krd_free(r->leftovers[i]);
    krd_free(r->leftovers);
    for (size_t i = 0; r->opened != NULL && i < r->n_numbers; i++)
        krd_blob_unref(r->opened[i].blob);
    krd_free(r->opened);
    krd_free(r->numbers);
    wal_scan_deinit(&r->scan);
}

enum krd_status wal_open(const struct wal_options *o, raft_index keep_after, struct wal **out,
                         struct wal_recovered *rec, char **err)
{
    KRD_ASSERT(o->cluster_id != 0 && o->member_id != 0);
    struct wal *w = krd_zalloc(sizeof *w);
    w->vfs = o->vfs;
    w->dir = krd_strdup(o->dir);
    w->cluster_id = o->cluster_id;
    w->member_id = o->member_id;
    w->segment_bytes = o->segment_bytes != 0 ? o->segment_bytes : 64u * 1024 * 1024;
    KRD_ASSERT(w->segment_bytes % WAL_SECTOR_BYTES == 0);

    memset(rec, 0, sizeof *rec);
    struct recovery r = {.w = w, .keep_after = keep_after};
    enum krd_status st = recover(&r);
    if (st == KRD_OK)
        st = hand_over(&r, rec);
    recovery_deinit(&r);
    if (st != KRD_OK) {
        KRD_ASSERT(r.err != NULL);
        *err = r.err;
        wal_recovered_deinit(rec);
        wal_close(w);
        return st;
    }
    *out = w;
    return KRD_OK;
}

void wal_recovered_deinit(struct wal_recovered *rec)
{
    for (size_t i = 0; i < rec->n_entries; i++)
        raft_entry_unref(&rec->entries[i]);
    krd_free(rec->entries);
    krd_free(rec->runs);
    krd_free(rec->config);
    memset(rec, 0, sizeof *rec);
}
