/* ldb_recover.c - the pass over LevelDB's files after an unclean stop.
 *
 * What LevelDB 1.23 does. Batches go, with consecutive sequence numbers, into the newest log file
 * and a memtable. When the memtable is full, a new log file is begun and the old memtable is
 * written to a table in the background: table synced, directory synced, MANIFEST edit {log_number
 * = the new file's} written and synced; then the old log file, now below log_number, is deleted.
 * Opening replays the files >= log_number in order of their numbers into new tables, starts a new
 * log file and names it in a new MANIFEST; log files are never appended to again (reuse_logs is
 * off). What the replay cannot read it skips.
 *
 * What a crash leaves when nothing but our checkpoints syncs log files: of each file any subset of
 * its unsynced pages (missing ones read as zeros or are cut off), of the directory any state since
 * its last sync. Hence the trap: the tail of the old file is gone and the new file is there, and
 * LevelDB would open a state with a hole in the middle.
 *
 * What the pass does:
 *   1. CURRENT names the MANIFEST, the MANIFEST yields log_number and last_sequence. Its last edit
 *      may be torn: then it was never synced, so nothing was deleted on the strength of it, and it
 *      is cut off. Damage before an intact edit was synced once: no crash explains it.
 *   2. The log files >= log_number are read in order. Each record must be whole, and its sequence
 *      must follow the one before it, across files too. Lower files are obsolete whether or not
 *      their deletion reached the disk: the tables have their data, a missing tail is no gap.
 *   3. At the first thing that does not follow, the file is truncated behind its last good record
 *      and synced, the files behind it are removed, the directory is synced.
 * Tables hold complete logs only, so what remains is the tables and a contiguous run on top.
 *
 * Where the run begins. The first record of file log_number follows the tables, but the MANIFEST
 * does not say where these end (its last_sequence may lie beyond them, after a cut also before the
 * next batch that will be written). The file's first bytes vouch for it: it was begun with the
 * batch behind the tables. Hence when nothing is left of it the files behind it go as well. The
 * name itself is durable (LevelDB syncs the directory before the MANIFEST edit), so a missing file
 * is damage. A run that begins beyond last_sequence + 1 left a hole as well: damage.
 *
 *     file log_number  | next file     | damage met | then
 *     -----------------+---------------+------------+-------------------------------------------
 *     missing          | any           |            | KRD_CORRUPT
 *     starts too late  | any           |            | KRD_CORRUPT
 *     no whole record  | none or empty | no / yes   | fine / truncated to 0
 *     no whole record  | has records   | no / yes   | next ones removed / truncated to 0 too
 *     whole            | follows on    | no         | fine
 *     whole            | leaves a gap  | no         | next ones removed
 *     ends early       | any           | yes        | truncated, next ones removed
 *
 * Repetition. Every cut loses at least one batch, so that the gap stays visible until the last
 * file behind it is gone: whatever subset of {truncation, removals} reached the disk, the next
 * pass finds the same place. LevelDB opens only after both were synced; it only reads the cut file
 * (a record that ends within a block is an ordinary end of file to its reader).
 *
 * Numbers of lost batches may be given again, and the number of a removed file too: nothing on
 * disk knows them any more.
 *
 * Cost: reads what LevelDB is about to read anyway, at most two memtables' worth; some 1 GB/s. */
#include "kv/ldb_recover.h"
#include "kv/ldb_format.h"
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

/* CURRENT holds a file name and a newline. */
#define CURRENT_BYTES_MAX 256

struct log_file {
    uint64_t number;
    char *name;
    uint64_t size, good; /* good: end of the last record that is kept */
    size_t records;      /* kept */
};

struct pass {
    const struct krd_vfs *vfs;
    const char *dir;
    bool clean;
    char **err;
    struct ldb_cut *cut;

    struct log_file *logs; /* sorted by number */
    size_t n_logs, cap_logs;
    bool has_tables;

    char *manifest; /* its file name */
    uint64_t manifest_good;
    struct ldb_edit edit; /* the sum of the MANIFEST */
};

static enum krd_status fail(struct pass *p, enum krd_status st, const char *name, const char *what)
{
    *p->err = krd_asprintf("%s/%s: %s", p->dir, name, what);
    return st;
}

static enum krd_status fail_errno(struct pass *p, const char *name, int error)
{
    return fail(p, KRD_IO, name, strerror(-error));
}

/* --- What is there -------------------------------------------------------------------------- */

/* NUMBER.SUFFIX, as LevelDB reads names. */
static bool parse_name(const char *name, const char *suffix, uint64_t *number)
{
    uint64_t n = 0;
    const char *c = name;
    for (; *c >= '0' && *c <= '9'; c++)
        if (__builtin_mul_overflow(n, 10, &n) || __builtin_add_overflow(n, *c - '0', &n))
            return false;
    *number = n;
    return c > name && strcmp(c, suffix) == 0;
}

static void on_name(void *arg, const char *name)
{
    struct pass *p = arg;
    uint64_t number;
    if (parse_name(name, ".ldb", &number) || parse_name(name, ".sst", &number))
        p->has_tables = true;
    if (!parse_name(name, ".log", &number))
        return;
    krd_grow(&p->logs, &p->cap_logs, p->n_logs + 1, sizeof *p->logs);
    p->logs[p->n_logs++] = (struct log_file){.number = number, .name = krd_strdup(name)};
}

static int by_number(const void *a, const void *b)
{
    const struct log_file *x = a, *y = b;
    return (x->number > y->number) - (x->number < y->number);
}

static int open_file(struct pass *p, const char *name, int flags, struct krd_file **out)
{
    char *path = krd_asprintf("%s/%s", p->dir, name);
    int r = p->vfs->open(p->vfs->ctx, path, flags, out);
    krd_free(path);
    return r;
}

static enum krd_status log_sizes(struct pass *p)
{
    for (size_t i = 0; i < p->n_logs; i++) {
        struct krd_file *f;
        int r = open_file(p, p->logs[i].name, KRD_OPEN_READ, &f);
        if (r < 0)
            return fail_errno(p, p->logs[i].name, r);
        r = p->vfs->size(f, &p->logs[i].size);
        p->vfs->close(f);
        if (r < 0)
            return fail_errno(p, p->logs[i].name, r);
    }
    return KRD_OK;
}

/* Without CURRENT LevelDB would begin anew and delete all it does not know. That is right only
 * when its very first opening was cut short, before a batch was taken. */
static enum krd_status check_virgin(struct pass *p)
{
    bool data = p->has_tables;
    for (size_t i = 0; i < p->n_logs; i++)
        data = data || p->logs[i].size > 0;
    return data ? fail(p, KRD_CORRUPT, "CURRENT", "missing, though there is data") : KRD_OK;
}

/* KRD_NOT_FOUND: there is none. */
static enum krd_status read_current(struct pass *p)
{
    char *path = krd_asprintf("%s/CURRENT", p->dir);
    uint8_t *bytes;
    size_t n;
    int r = krd_vfs_read_file(p->vfs, path, CURRENT_BYTES_MAX, &bytes, &n);
    krd_free(path);
    if (r == -ENOENT)
        return KRD_NOT_FOUND;
    if (r == -EFBIG)
        return fail(p, KRD_CORRUPT, "CURRENT", "does not name a MANIFEST");
    if (r < 0)
        return fail_errno(p, "CURRENT", r);
    struct slice s = slice_of(bytes, n);
    bool good = n > 0 && bytes[n - 1] == '\n' && memchr(bytes, '/', n) == NULL &&
                memchr(bytes, '\0', n) == NULL && slice_has_prefix(s, slice_str("MANIFEST-"));
    if (good)
        p->manifest = krd_asprintf("%.*s", (int)(n - 1), (const char *)bytes);
    krd_free(bytes);
    return good ? KRD_OK : fail(p, KRD_CORRUPT, "CURRENT", "does not name a MANIFEST");
}

/* --- Step 1: the MANIFEST -------------------------------------------------------------------- */

static enum krd_status judge_torn_edit(struct pass *p, struct ldb_reader *r)
{
    if (p->clean || r->good == 0)
        return fail(p, KRD_CORRUPT, p->manifest, r->why);
    enum ldb_read later = ldb_reader_find_later(r);
    if (later == LDB_ERROR)
        return fail_errno(p, p->manifest, r->error);
    if (later == LDB_RECORD)
        return fail(p, KRD_CORRUPT, p->manifest, "damaged before an intact edit");
    p->cut->manifest = true;
    p->manifest_good = r->good;
    return KRD_OK;
}

static enum krd_status sum_edits(struct pass *p, struct ldb_reader *r)
{
    enum ldb_read got;
    while ((got = ldb_reader_next(r)) == LDB_RECORD)
        if (!ldb_edit_add(krd_buf_slice(&r->record), &p->edit))
            return fail(p, KRD_CORRUPT, p->manifest, "an edit that cannot be understood");
    if (got == LDB_ERROR)
        return fail_errno(p, p->manifest, r->error);
    if (got == LDB_DAMAGE)
        return judge_torn_edit(p, r);
    return KRD_OK;
}

static enum krd_status read_manifest(struct pass *p)
{
    struct krd_file *f;
    int r = open_file(p, p->manifest, KRD_OPEN_READ, &f);
    if (r == -ENOENT)
        return fail(p, KRD_CORRUPT, p->manifest, "missing, though CURRENT names it");
    if (r < 0)
        return fail_errno(p, p->manifest, r);
    struct ldb_reader *reader = krd_alloc(sizeof *reader);
    r = ldb_reader_init(reader, p->vfs, f);
    enum krd_status st = r < 0 ? fail_errno(p, p->manifest, r) : sum_edits(p, reader);
    ldb_reader_deinit(reader);
    krd_free(reader);
    p->vfs->close(f);
    const struct ldb_edit *e = &p->edit;
    if (st == KRD_OK && !(e->has_log_number && e->has_next_file && e->has_last_sequence))
        st = fail(p, KRD_CORRUPT, p->manifest, "incomplete");
    return st;
}

/* --- Step 2: the log files ------------------------------------------------------------------- */

/* Forgets the log files that LevelDB is not going to replay. */
static enum krd_status keep_live_logs(struct pass *p)
{
    const struct ldb_edit *e = &p->edit;
    bool has_first = e->log_number == 0;
    size_t kept = 0;
    for (size_t i = 0; i < p->n_logs; i++) {
        struct log_file *l = &p->logs[i];
        bool live = l->number >= e->log_number ||
                    (e->prev_log_number != 0 && l->number == e->prev_log_number);
        has_first = has_first || l->number == e->log_number;
        if (live)
            p->logs[kept++] = *l;
        else
            krd_free(l->name);
    }
    p->n_logs = kept;
    if (!has_first)
        return fail(p, KRD_CORRUPT, p->manifest, "names a log file that is missing");
    return KRD_OK;
}

/* The run of batches so far, and where it stopped. */
struct run {
    bool begun;
    uint64_t first, next; /* sequences: its first one, the one that must come. Once begun */
    size_t at;            /* file that was read last */
    const char *why;      /* what stopped it there; NULL: nothing */
};

/* NULL when the batch carries the run on, otherwise why it does not. */
static const char *extend(struct run *run, struct slice record)
{
    struct ldb_batch b;
    if (!ldb_batch_decode(record, &b))
        return "a record too short for a batch";
    if (!run->begun && run->at > 0)
        return "batches behind a log file of which nothing is left";
    if (run->begun && b.sequence != run->next)
        return "a gap in the sequence of batches";
    if (!run->begun)
        run->first = b.sequence;
    run->begun = true;
    run->next = b.sequence + b.count;
    return NULL;
}

static void read_batches(struct run *run, struct log_file *l, struct ldb_reader *r,
                         enum ldb_read *got)
{
    while ((*got = ldb_reader_next(r)) == LDB_RECORD) {
        run->why = extend(run, krd_buf_slice(&r->record));
        if (run->why != NULL)
            return;
        l->good = r->good;
        l->records++;
    }
    if (*got == LDB_DAMAGE)
        run->why = r->why;
}

static enum krd_status read_log(struct pass *p, struct log_file *l, struct run *run)
{
    struct krd_file *f;
    int r = open_file(p, l->name, KRD_OPEN_READ, &f);
    if (r < 0)
        return fail_errno(p, l->name, r);
    struct ldb_reader *reader = krd_alloc(sizeof *reader);
    enum ldb_read got = LDB_ERROR;
    r = ldb_reader_init(reader, p->vfs, f);
    if (r == 0) {
        read_batches(run, l, reader, &got);
        r = reader->error;
    }
    ldb_reader_deinit(reader);
    krd_free(reader);
    p->vfs->close(f);
    return got == LDB_ERROR ? fail_errno(p, l->name, r) : KRD_OK;
}

static enum krd_status read_logs(struct pass *p, struct run *run)
{
    for (size_t i = 0; i < p->n_logs && run->why == NULL; i++) {
        run->at = i;
        enum krd_status st = read_log(p, &p->logs[i], run);
        if (st != KRD_OK)
            return st;
    }
    if (run->begun && run->first > p->edit.last_sequence + 1)
        return fail(p, KRD_CORRUPT, p->logs[0].name, "does not follow what the tables hold");
    if (run->why == NULL || !p->clean)
        return KRD_OK;
    const struct log_file *l = &p->logs[run->at];
    *p->err = krd_asprintf("%s/%s: after a clean stop, at byte %" PRIu64 ": %s", p->dir, l->name,
                           l->good, run->why);
    return KRD_CORRUPT;
}

/* --- Step 3: cutting ------------------------------------------------------------------------- */

static enum krd_status truncate_file(struct pass *p, const char *name, uint64_t size)
{
    struct krd_file *f;
    int r = open_file(p, name, KRD_OPEN_WRITE, &f);
    if (r < 0)
        return fail_errno(p, name, r);
    r = p->vfs->ftruncate(f, size);
    if (r == 0)
        r = p->vfs->fsync(f);
    p->vfs->close(f);
    return r < 0 ? fail_errno(p, name, r) : KRD_OK;
}

static enum krd_status remove_file(struct pass *p, const struct log_file *l)
{
    char *path = krd_asprintf("%s/%s", p->dir, l->name);
    int r = p->vfs->unlink(p->vfs->ctx, path);
    krd_free(path);
    p->cut->lost_bytes += l->size;
    p->cut->lost_files++;
    return r < 0 ? fail_errno(p, l->name, r) : KRD_OK;
}

/* The run ended early in file `at`. A file of which nothing is kept goes as a whole, but for the
 * first: the MANIFEST names it. */
static enum krd_status cut_logs(struct pass *p, size_t at, const char *why)
{
    enum krd_status st = KRD_OK;
    if (at > 0 && p->logs[at].records == 0)
        at--;
    const struct log_file *l = &p->logs[at];
    p->cut->logs = true;
    p->cut->why = why;
    p->cut->log_number = l->number;
    p->cut->offset = l->good;
    p->cut->lost_bytes = l->size - l->good;
    if (l->good < l->size)
        st = truncate_file(p, l->name, l->good);
    for (size_t i = p->n_logs - 1; st == KRD_OK && i > at; i--)
        st = remove_file(p, &p->logs[i]);
    if (st != KRD_OK)
        return st;
    int r = p->vfs->sync_dir(p->vfs->ctx, p->dir);
    return r < 0 ? fail_errno(p, "", r) : KRD_OK;
}

static enum krd_status run_pass(struct pass *p)
{
    struct run run = {.why = NULL};
    int r = p->vfs->list(p->vfs->ctx, p->dir, on_name, p);
    if (r == -ENOENT)
        return KRD_OK;
    if (r < 0)
        return fail_errno(p, "", r);
    if (p->n_logs > 1)
        qsort(p->logs, p->n_logs, sizeof *p->logs, by_number);
    enum krd_status st = log_sizes(p);
    if (st == KRD_OK)
        st = read_current(p);
    if (st == KRD_NOT_FOUND)
        return check_virgin(p);
    if (st == KRD_OK)
        st = read_manifest(p);
    if (st == KRD_OK)
        st = keep_live_logs(p);
    if (st == KRD_OK)
        st = read_logs(p, &run);
    if (st == KRD_OK && p->cut->manifest)
        st = truncate_file(p, p->manifest, p->manifest_good);
    if (st == KRD_OK && run.why != NULL)
        st = cut_logs(p, run.at, run.why);
    return st;
}

enum krd_status ldb_recover(const struct krd_vfs *v, const char *dir, bool clean,
                            struct ldb_cut *cut, char **err)
{
    struct pass p = {.vfs = v, .dir = dir, .clean = clean, .cut = cut, .err = err};
    *cut = (struct ldb_cut){.why = ""};
    *err = NULL;
    enum krd_status st = run_pass(&p);
    for (size_t i = 0; i < p.n_logs; i++)
        krd_free(p.logs[i].name);
    krd_free(p.logs);
    krd_free(p.manifest);
    return st;
}
