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
 * A clean stop leaves the file CLEAN, written after the last sync and removed, durably, before
 * LevelDB is opened again. LevelDB leaves names that it does not know alone.
 *
 * Failures: whatever LevelDB reports once it is open ends the process (krd_fatal); the state is
 * rebuilt by replaying the log from the last checkpoint. Opening reports to the caller. */
#include "kv/engine.h"
#include "base/log.h"
#include "base/vfs.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <leveldb/c.h>
#include <stdlib.h>
#include <sys/stat.h>

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
};

struct kv_engine_batch {
    leveldb_writebatch_t *b;
};

struct kv_engine_snapshot {
    const leveldb_snapshot_t *snap;
    leveldb_readoptions_t *read, *scan;
};

struct kv_engine_iter {
    leveldb_iterator_t *it;
    const char *dir; /* for messages; the engine's */
};

/* LevelDB gets no NULL: its slices compare and copy whatever they are given. */
static const char *bytes(struct slice s)
{
    return s.len > 0 ? (const char *)s.ptr : "";
}

static KRD_NORETURN void fatal(const char *dir, const char *what, const char *why)
{
    krd_fatal("kv: %s failed in %s: %s. Check the disk (free space, kernel messages) and start the "
              "node again: it replays its log. Should this repeat, move the directory away; the "
              "node then takes the state from its peers.",
              what, dir, why);
}

/* --- Opening and closing -------------------------------------------------------------------- */

static leveldb_readoptions_t *read_options(bool fill_cache, const leveldb_snapshot_t *snap)
{
    leveldb_readoptions_t *o = leveldb_readoptions_create();
    leveldb_readoptions_set_verify_checksums(o, 1);
    leveldb_readoptions_set_fill_cache(o, fill_cache);
    leveldb_readoptions_set_snapshot(o, snap);
    return o;
}

static void set_options(struct kv_engine *e, const struct kv_engine_options *o)
{
    e->cache = leveldb_cache_create_lru(o->cache_bytes);
    e->filter = leveldb_filterpolicy_create_bloom(BLOOM_BITS_PER_KEY);
    e->options = leveldb_options_create();
    leveldb_options_set_create_if_missing(e->options, 1);
    leveldb_options_set_paranoid_checks(e->options, 1);
    leveldb_options_set_compression(e->options, leveldb_snappy_compression);
    leveldb_options_set_cache(e->options, e->cache);
    leveldb_options_set_filter_policy(e->options, e->filter);
    leveldb_options_set_write_buffer_size(e->options, o->write_buffer_bytes);
    leveldb_options_set_max_open_files(e->options, MAX_OPEN_FILES);
    leveldb_options_set_max_file_size(e->options, TABLE_BYTES);
    e->read = read_options(true, NULL);
    e->scan = read_options(false, NULL);
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

/* Whether the last stop was clean. From here on it counts as unclean. */
static int take_marker(const struct krd_vfs *v, const char *dir, bool *clean)
{
    char *path = krd_asprintf("%s/%s", dir, MARKER);
    int r = v->unlink(v->ctx, path);
    krd_free(path);
    *clean = r == 0;
    if (r < 0 && r != -ENOENT)
        return r;
    return v->sync_dir(v->ctx, dir);
}

static enum krd_status open_db(struct kv_engine *e, char **err)
{
    char *why = NULL;
    e->db = leveldb_open(e->options, e->dir, &why);
    if (why == NULL)
        return KRD_OK;
    bool damaged = strncmp(why, "Corruption", 10) == 0 || strncmp(why, "Invalid", 7) == 0;
    *err = krd_asprintf("open LevelDB in %s: %s", e->dir, why);
    leveldb_free(why);
    return damaged ? KRD_CORRUPT : KRD_IO;
}

enum krd_status kv_engine_open(const struct kv_engine_options *o, struct kv_engine **out,
                               char **err)
{
    const struct krd_vfs *v = krd_vfs_posix();
    struct kv_engine *e = krd_zalloc(sizeof *e);
    enum krd_status st = KRD_IO;
    bool clean = false;
    e->dir = krd_strdup(o->dir);
    set_options(e, o);
    *err = NULL;

    int r = make_dir(v, e->dir);
    if (r == 0)
        r = take_marker(v, e->dir, &clean);
    if (r == 0) {
        st = open_db(e, err);
        if (st != KRD_OK)
            goto fail;
        /* LevelDB has renamed CURRENT without syncing the directory: not a batch may be taken
         * before the new MANIFEST is the one that a crash finds. */
        r = v->sync_dir(v->ctx, e->dir);
    }
    if (r < 0) {
        *err = krd_asprintf("open %s: %s", e->dir, strerror(-r));
        st = KRD_IO;
        goto fail;
    }
    krd_info("store opened", "dir=%s clean=%d", e->dir, clean);
    *out = e;
    return KRD_OK;
fail:
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
    leveldb_write(e->db, e->write, b->b, &why);
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
    struct kv_engine_snapshot *s = krd_alloc(sizeof *s);
    s->snap = leveldb_create_snapshot(e->db);
    s->read = read_options(true, s->snap);
    s->scan = read_options(false, s->snap);
    return s;
}

void kv_engine_snapshot_release(struct kv_engine *e, struct kv_engine_snapshot *s)
{
    if (s == NULL)
        return;
    leveldb_readoptions_destroy(s->scan);
    leveldb_readoptions_destroy(s->read);
    leveldb_release_snapshot(e->db, s->snap);
    krd_free(s);
}

bool kv_engine_get(struct kv_engine *e, struct kv_engine_snapshot *snap, struct slice key,
                   struct slice *value)
{
    char *why = NULL;
    size_t len = 0;
    leveldb_readoptions_t *o = snap != NULL ? snap->read : e->read;
    char *p = leveldb_get(e->db, o, bytes(key), key.len, &len, &why);
    if (why != NULL)
        fatal(e->dir, "reading a key", why);
    if (p == NULL)
        return false;
    *value = slice_of(p, len);
    return true;
}

void kv_engine_free(struct slice value)
{
    leveldb_free((void *)(uintptr_t)value.ptr);
}

struct kv_engine_iter *kv_engine_iter_create(struct kv_engine *e, struct kv_engine_snapshot *snap,
                                             bool fill_cache)
{
    struct kv_engine_iter *it = krd_alloc(sizeof *it);
    leveldb_readoptions_t *read = snap != NULL ? snap->read : e->read;
    leveldb_readoptions_t *scan = snap != NULL ? snap->scan : e->scan;
    it->it = leveldb_create_iterator(e->db, fill_cache ? read : scan);
    it->dir = e->dir;
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
    if (leveldb_iter_valid(it->it))
        return true;
    char *why = NULL;
    leveldb_iter_get_error(it->it, &why);
    if (why != NULL)
        fatal(it->dir, "reading a range", why);
    return false;
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
