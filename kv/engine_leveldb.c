/* engine_leveldb.c - engine.h over LevelDB 1.23 and its C interface; the only file that includes
 * it.
 *
 * Life of a batch: kv_engine_write hands it to LevelDB with sync=0: a record in the newest *.log
 * file (page cache) and a memtable. A full memtable is written by LevelDB's own thread into a
 * table, which it syncs, then names in its MANIFEST, which it syncs too, and only then does it
 * delete the log file. kv_engine_checkpoint makes the rest durable: it syncs the log files.
 *
 * Why a checkpoint, running beside writes, misses nothing. Take a batch whose write had returned.
 *   1. Its record is in a log file that existed at that moment, whole: LevelDB passes its own
 *      buffer on to the kernel at the end of each record.
 *   2. A log file leaves the directory only after the table made of it and the MANIFEST that names
 *      the table are synced, and the directory before that MANIFEST. So when the file is missing
 *      from our list, or vanishes between list and open (ENOENT), the batch is durable already.
 *   3. Otherwise the list has it (readdir returns what is there from first to last), fdatasync of
 *      any descriptor covers the inode's pages whoever wrote them, and the directory's fsync
 *      covers its name. A memtable switch meanwhile adds a file with later batches only.
 * What a descriptor of our own does not see is a write-back error that the kernel met and forgot
 * before we opened the file. The data then lives in the memtable only; a crash shows as a store
 * that ends before its checkpoint, which kv_open refuses.
 *
 * A clean stop leaves the file CLEAN, written after the last sync; the next opening checks with it
 * that nothing was lost since, and removes it, durably, before LevelDB writes. LevelDB leaves names
 * that it does not know alone. Without it the pass of ldb_recover.h runs first.
 *
 * No snapshots of LevelDB's. While one is held, compaction keeps several versions of a key and may
 * put them into neighbouring files of a level. Version 1.23 can then compact the file with a
 * deletion without the file with the value that it deleted: the value comes back (LevelDB's issue
 * 887, mended after 1.23). Where compaction keeps one version a key this cannot happen, and
 * iterators do not stop it from doing so: they hold on to files instead. (A random load of puts and
 * deletes showed deleted keys after 54,000 to 534,000 operations with snapshots held now and then;
 * none in 5 million with iterators held.) The price is that a snapshot waits for a write under way:
 * 8 us in the middle beside a thread that writes without a pause, 2 us without one, but as long as
 * LevelDB holds up its writer (up to 1 s seen at 110,000 entries a second).
 *
 * Why unsynced batches with a recovery pass, and not gathering in memory with synced batches. Tried
 * on 2 cores, ext4, 300,000 entries of two records of 256 bytes as fast as they go; memtable 8 MiB,
 * a checkpoint every 64 MiB from another thread, against an overlay handed over to a flushing
 * thread. Entries a second and the longest time that one batch took, the best and the worst of two
 * runs:
 *
 *     entries a batch               1              16             256
 *     unsynced, checkpoints    189 k/s  17 ms  208 k/s  27 ms  255 k/s  0.3 s    checkpoint 6-16 ms
 *     overlay, synced 1 MiB    221 k/s  0.4 s  218 k/s  0.7 s  240 k/s  0.7 s    flush 7-13 ms
 *     overlay, synced 4 MiB    201 k/s  0.7 s  199 k/s  0.7 s  197 k/s  1.1 s    flush 32-70 ms
 *
 * Both end where compaction does, so speed does not decide. Synced batches stop for as long as
 * LevelDB does, all gathered entries behind them; reads must look in two places, ranges and
 * snapshots as well, in all the code above, for ever. The pass is 400 lines that run once a start
 * and that crash images can exhaust. A checkpoint is cheap because LevelDB deletes log files: there
 * are never more than two memtables' worth to sync.
 *
 * Failures: whatever LevelDB reports once it is open ends the process (krd_fatal); the state is
 * rebuilt by replaying the log from the last checkpoint. Opening reports to the caller. */
#include "kv/engine.h"
#include "base/log.h"
#include "base/vfs.h"
#include "kv/ldb_recover.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <leveldb/c.h>
#include <pthread.h>
#include <sys/stat.h>
#include <unistd.h>

#define MARKER "CLEAN"
static const char marker_text[] = "kvraftd stopped cleanly; everything in here is on disk\n";

enum {
    BLOOM_BITS_PER_KEY = 10, /* 1 % of lookups of absent keys read a block in vain */
    MAX_OPEN_FILES = 500,    /* of tables; each keeps its index and filter in memory */
    TABLE_BYTES = 4 * 1024 * 1024,
};

struct kv_engine {
    leveldb_t *db;
    char *dir;
    leveldb_options_t *options;
    leveldb_cache_t *cache;
    leveldb_filterpolicy_t *filter;
    leveldb_readoptions_t *read, *scan; /* scan does not fill the cache */
    leveldb_writeoptions_t *write;
    pthread_mutex_t writing; /* held by whoever writes, or needs that nobody does */
};

struct kv_engine_batch {
    leveldb_writebatch_t *b;
};

/* An iterator shows the state of the moment it was made. Those of a snapshot are made while nobody
 * writes, and so show the same state. See "No snapshots of LevelDB's" above. */
struct kv_engine_snapshot {
    leveldb_iterator_t *gets, *range;
    bool lent; /* range, to a struct kv_engine_iter */
};

struct kv_engine_iter {
    leveldb_iterator_t *it;
    struct kv_engine_snapshot *owner; /* of it; NULL: its own */
    const char *dir;                  /* for messages; the engine's */
};

/* LevelDB gets no NULL: its slices compare and copy whatever they are given. */
static const char *bytes(struct slice s)
{
    return s.len > 0 ? (const char *)s.ptr : "";
}

static KRD_NORETURN void fatal(const char *dir, const char *what, const char *why)
{
    krd_fatal("reason=\"%s failed\" dir=%s error=\"%s\" help=\"check the disk (free space, kernel "
              "messages) and start the node again: it replays its log; should this repeat, see "
              "'LevelDB is damaged' in docs/OPERATIONS.md\"",
              what, dir, why);
}

/* --- Opening and closing -------------------------------------------------------------------- */

static leveldb_readoptions_t *read_options(bool fill_cache)
{
    leveldb_readoptions_t *o = leveldb_readoptions_create();
    leveldb_readoptions_set_verify_checksums(o, 1);
    leveldb_readoptions_set_fill_cache(o, fill_cache);
    return o;
}

static void set_options(struct kv_engine *e, const struct kv_engine_options *o)
{
    e->cache = leveldb_cache_create_lru(o->cache_bytes);
    e->filter = leveldb_filterpolicy_create_bloom(BLOOM_BITS_PER_KEY);
    e->options = leveldb_options_create();
    leveldb_options_set_create_if_missing(e->options, 1);
    leveldb_options_set_paranoid_checks(e->options, 1);
    leveldb_options_set_compression(e->options, leveldb_no_compression);
    leveldb_options_set_cache(e->options, e->cache);
    leveldb_options_set_filter_policy(e->options, e->filter);
    leveldb_options_set_write_buffer_size(e->options, o->write_buffer_bytes);
    leveldb_options_set_max_open_files(e->options, MAX_OPEN_FILES);
    leveldb_options_set_max_file_size(e->options, TABLE_BYTES);
    e->read = read_options(true);
    e->scan = read_options(false);
    e->write = leveldb_writeoptions_create(); /* sync is 0 by default */
}

static void engine_free(struct kv_engine *e)
{
    if (e->db != NULL)
        leveldb_close(e->db);
    leveldb_writeoptions_destroy(e->write);
    leveldb_readoptions_destroy(e->scan);
    leveldb_readoptions_destroy(e->read);
    leveldb_options_destroy(e->options);
    leveldb_filterpolicy_destroy(e->filter);
    leveldb_cache_destroy(e->cache);
    pthread_mutex_destroy(&e->writing);
    krd_free(e->dir);
    krd_free(e);
}

/* The directory's own name must survive as well, hence its parent is synced. */
static int make_dir(const struct krd_vfs *v, const char *dir)
{
    int r = v->mkdir(v->ctx, dir);
    if (r < 0)
        return r;
    char *parent = krd_asprintf("%s/..", dir);
    r = v->sync_dir(v->ctx, parent);
    krd_free(parent);
    return r;
}

/* KRD_OK when no other process has the store open: the recovery pass must not cut under its feet.
 * The lock is LevelDB's own file; LevelDB takes it for good when it opens. */
static enum krd_status check_unlocked(const char *dir, char **err)
{
    char *path = krd_asprintf("%s/LOCK", dir);
    struct flock whole = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    enum krd_status st = KRD_OK;
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd >= 0 && fcntl(fd, F_GETLK, &whole) == 0 && whole.l_type != F_UNLCK) {
        *err = krd_asprintf("%s: held by process %ld", path, (long)whole.l_pid);
        st = KRD_IO;
    }
    if (fd >= 0)
        close(fd);
    krd_free(path);
    return st;
}

static bool has_marker(const struct krd_vfs *v, const char *dir)
{
    struct krd_file *f;
    char *path = krd_asprintf("%s/%s", dir, MARKER);
    bool there = v->open(v->ctx, path, KRD_OPEN_READ, &f) == 0;
    if (there)
        v->close(f);
    krd_free(path);
    return there;
}

/* The directory in a state that LevelDB may open; from here on the stop counts as unclean. The
 * marker goes last: what is damaged in spite of it must still be called so the next time. */
static enum krd_status prepare(const struct krd_vfs *v, const char *dir, char **err)
{
    struct ldb_cut cut;
    bool clean = has_marker(v, dir);
    enum krd_status st = check_unlocked(dir, err);
    if (st == KRD_OK)
        st = ldb_recover(v, dir, clean, &cut, err);
    if (st != KRD_OK)
        return st;
    if (cut.logs)
        krd_warn("store cut back after an unclean stop; the log is replayed from there",
                 "dir=%s log=%" PRIu64 " offset=%" PRIu64 " lost_bytes=%" PRIu64
                 " lost_files=%u found=\"%s\"",
                 dir, cut.log_number, cut.offset, cut.lost_bytes, cut.lost_files, cut.why);
    if (cut.manifest)
        krd_warn("store: an unfinished edit of the MANIFEST was cut off", "dir=%s", dir);
    char *path = krd_asprintf("%s/%s", dir, MARKER);
    int r = v->unlink(v->ctx, path);
    krd_free(path);
    if (r == 0 || r == -ENOENT)
        r = v->sync_dir(v->ctx, dir);
    if (r == 0)
        return KRD_OK;
    *err = krd_asprintf("%s: %s", dir, strerror(-r));
    return KRD_IO;
}

static enum krd_status open_db(struct kv_engine *e, char **err)
{
    char *why = NULL;
    e->db = leveldb_open(e->options, e->dir, &why);
    if (why == NULL)
        return KRD_OK;
    bool damaged = strncmp(why, "Corruption", 10) == 0 || strncmp(why, "Invalid", 7) == 0;
    *err = krd_asprintf("%s: %s", e->dir, why);
    leveldb_free(why);
    return damaged ? KRD_CORRUPT : KRD_IO;
}

enum krd_status kv_engine_open(const struct kv_engine_options *o, struct kv_engine **out,
                               char **err)
{
    const struct krd_vfs *v = krd_vfs_posix();
    struct kv_engine *e = krd_zalloc(sizeof *e);
    enum krd_status st = KRD_IO;
    e->dir = krd_strdup(o->dir);
    pthread_mutex_init(&e->writing, NULL);
    set_options(e, o);
    *err = NULL;

    int r = make_dir(v, e->dir);
    if (r < 0)
        goto fail;
    st = prepare(v, e->dir, err);
    if (st != KRD_OK)
        goto fail;
    st = open_db(e, err);
    if (st != KRD_OK)
        goto fail;
    /* LevelDB renames CURRENT without syncing the directory: not a batch may be taken before the
     * new MANIFEST is the one that a crash finds. */
    st = KRD_IO;
    r = v->sync_dir(v->ctx, e->dir);
    if (r < 0)
        goto fail;
    *out = e;
    return KRD_OK;
fail:
    if (*err == NULL)
        *err = krd_asprintf("%s: %s", e->dir, strerror(-r));
    engine_free(e);
    return st;
}

void kv_engine_close(struct kv_engine *e)
{
    const struct krd_vfs *v = krd_vfs_posix();
    if (e == NULL)
        return;
    kv_engine_checkpoint(e);
    char *dir = krd_strdup(e->dir);
    engine_free(e); /* waits for LevelDB's thread, which may still write tables and the MANIFEST */
    int r = krd_vfs_write_file_atomic(v, dir, MARKER, marker_text, sizeof marker_text - 1);
    if (r < 0) /* no harm done: the next start checks more than it had to */
        krd_warn("store closed without its marker", "dir=%s error=\"%s\"", dir, strerror(-r));
    krd_free(dir);
}

/* --- Writing -------------------------------------------------------------------------------- */

struct kv_engine_batch *kv_engine_batch_create(struct kv_engine *e)
{
    (void)e;
    struct kv_engine_batch *b = krd_alloc(sizeof *b);
    b->b = leveldb_writebatch_create();
    return b;
}

void kv_engine_batch_put(struct kv_engine_batch *b, struct slice key, struct slice value)
{
    leveldb_writebatch_put(b->b, bytes(key), key.len, bytes(value), value.len);
}

void kv_engine_batch_delete(struct kv_engine_batch *b, struct slice key)
{
    leveldb_writebatch_delete(b->b, bytes(key), key.len);
}

void kv_engine_batch_clear(struct kv_engine_batch *b)
{
    leveldb_writebatch_clear(b->b);
}

void kv_engine_batch_destroy(struct kv_engine_batch *b)
{
    if (b == NULL)
        return;
    leveldb_writebatch_destroy(b->b);
    krd_free(b);
}

void kv_engine_write(struct kv_engine *e, struct kv_engine_batch *b)
{
    char *why = NULL;
    pthread_mutex_lock(&e->writing);
    leveldb_write(e->db, e->write, b->b, &why);
    pthread_mutex_unlock(&e->writing);
    if (why != NULL)
        fatal(e->dir, "writing a batch", why);
}

struct name_list {
    char **names;
    size_t n, cap;
};

static void add_log_name(void *arg, const char *name)
{
    struct name_list *l = arg;
    size_t len = strlen(name);
    if (len <= 4 || strcmp(name + len - 4, ".log") != 0)
        return;
    krd_grow(&l->names, &l->cap, l->n + 1, sizeof *l->names);
    l->names[l->n++] = krd_strdup(name);
}

static int sync_file(const struct krd_vfs *v, const char *dir, const char *name)
{
    char *path = krd_asprintf("%s/%s", dir, name);
    struct krd_file *f;
    int r = v->open(v->ctx, path, KRD_OPEN_READ, &f);
    if (r == 0) {
        r = v->fdatasync(f);
        v->close(f);
    } else if (r == -ENOENT) {
        r = 0; /* argument 2 above */
    }
    krd_free(path);
    return r;
}

void kv_engine_checkpoint(struct kv_engine *e)
{
    const struct krd_vfs *v = krd_vfs_posix();
    struct name_list logs = {NULL, 0, 0};
    int r = v->list(v->ctx, e->dir, add_log_name, &logs);
    for (size_t i = 0; i < logs.n; i++) {
        if (r == 0)
            r = sync_file(v, e->dir, logs.names[i]);
        krd_free(logs.names[i]);
    }
    krd_free(logs.names);
    if (r == 0)
        r = v->sync_dir(v->ctx, e->dir);
    if (r < 0)
        fatal(e->dir, "syncing the store", strerror(-r));
}

/* --- Reading -------------------------------------------------------------------------------- */

struct kv_engine_snapshot *kv_engine_snapshot(struct kv_engine *e)
{
    struct kv_engine_snapshot *s = krd_zalloc(sizeof *s);
    pthread_mutex_lock(&e->writing);
    s->gets = leveldb_create_iterator(e->db, e->read);
    s->range = leveldb_create_iterator(e->db, e->scan);
    pthread_mutex_unlock(&e->writing);
    return s;
}

void kv_engine_snapshot_release(struct kv_engine *e, struct kv_engine_snapshot *s)
{
    (void)e;
    if (s == NULL)
        return;
    KRD_ASSERT(!s->lent);
    leveldb_iter_destroy(s->range);
    leveldb_iter_destroy(s->gets);
    krd_free(s);
}

static bool snapshot_get(struct kv_engine *e, struct kv_engine_snapshot *snap, struct slice key,
                         struct slice *value)
{
    struct kv_engine_iter it = {.it = snap->gets, .owner = snap, .dir = e->dir};
    kv_engine_iter_seek(&it, key);
    if (!kv_engine_iter_valid(&it) || !slice_eq(kv_engine_iter_key(&it), key))
        return false;
    struct slice v = kv_engine_iter_value(&it);
    *value = slice_of(krd_alloc(v.len), v.len);
    memcpy((void *)(uintptr_t)value->ptr, v.ptr, v.len);
    return true;
}

bool kv_engine_get(struct kv_engine *e, struct kv_engine_snapshot *snap, struct slice key,
                   struct slice *value)
{
    if (snap != NULL)
        return snapshot_get(e, snap, key, value);
    char *why = NULL;
    size_t len = 0;
    char *p = leveldb_get(e->db, e->read, bytes(key), key.len, &len, &why);
    if (why != NULL)
        fatal(e->dir, "reading a key", why);
    if (p == NULL)
        return false;
    *value = slice_of(p, len);
    return true;
}

/* What LevelDB gives away comes from malloc, as krd_alloc's memory does. */
void kv_engine_free(struct slice value)
{
    krd_free((void *)(uintptr_t)value.ptr);
}

struct kv_engine_iter *kv_engine_iter_create(struct kv_engine *e, struct kv_engine_snapshot *snap,
                                             bool fill_cache)
{
    struct kv_engine_iter *it = krd_alloc(sizeof *it);
    it->owner = snap;
    it->dir = e->dir;
    if (snap == NULL) {
        it->it = leveldb_create_iterator(e->db, fill_cache ? e->read : e->scan);
        return it;
    }
    KRD_ASSERT(!snap->lent);
    snap->lent = true;
    it->it = snap->range;
    return it;
}

void kv_engine_iter_seek(struct kv_engine_iter *it, struct slice key)
{
    leveldb_iter_seek(it->it, bytes(key), key.len);
}

void kv_engine_iter_seek_before(struct kv_engine_iter *it, struct slice key)
{
    leveldb_iter_seek(it->it, bytes(key), key.len);
    if (kv_engine_iter_valid(it))
        leveldb_iter_prev(it->it);
    else
        leveldb_iter_seek_to_last(it->it);
}

void kv_engine_iter_next(struct kv_engine_iter *it)
{
    leveldb_iter_next(it->it);
}
void kv_engine_iter_prev(struct kv_engine_iter *it)
{
    leveldb_iter_prev(it->it);
}

bool kv_engine_iter_valid(struct kv_engine_iter *it)
{
    /* LevelDB steps over a block that it cannot read and stays valid: what it says about errors is
     * asked at each step, or a range would silently lack its keys. */
    char *why = NULL;
    leveldb_iter_get_error(it->it, &why);
    if (why != NULL)
        fatal(it->dir, "reading a range", why);
    return leveldb_iter_valid(it->it) != 0;
}

struct slice kv_engine_iter_key(struct kv_engine_iter *it)
{
    size_t len;
    const char *p = leveldb_iter_key(it->it, &len);
    return slice_of(p, len);
}

struct slice kv_engine_iter_value(struct kv_engine_iter *it)
{
    size_t len;
    const char *p = leveldb_iter_value(it->it, &len);
    return slice_of(p, len);
}

void kv_engine_iter_destroy(struct kv_engine_iter *it)
{
    if (it == NULL)
        return;
    if (it->owner != NULL)
        it->owner->lent = false;
    else
        leveldb_iter_destroy(it->it);
    krd_free(it);
}

/* O(files), one stat each. */
uint64_t kv_engine_disk_bytes(struct kv_engine *e)
{
    uint64_t sum = 0;
    DIR *d = opendir(e->dir);
    if (d == NULL)
        return 0;
    for (struct dirent *f; (f = readdir(d)) != NULL;) {
        struct stat st;
        if (fstatat(dirfd(d), f->d_name, &st, 0) == 0 && S_ISREG(st.st_mode))
            sum += (uint64_t)st.st_size;
    }
    closedir(d);
    return sum;
}
