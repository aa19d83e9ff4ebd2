/* Crash images of LevelDB's directory, made of the real files of a real run, are recovered and
 * opened: the content must be batches 1 to n, whole, with n the largest that the image allows.
 *
 * A run writes batches that carry their number and notes, for each, the log file and the bytes
 * that hold it. An image is a moment of the run (a prefix of the MANIFEST's edits and the log files
 * of that moment) less what its power loss took. Which n to expect is told by a naive twin: the
 * batches whose bytes are still the same, up to the first that is not. */
#include "base/rand.h"
#include "kv/engine.h"
#include "kv/ldb_format.h"
#include "kv/ldb_recover.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <leveldb/c.h> /* to see what LevelDB does by itself */
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

/* --- Files ---------------------------------------------------------------------------------------
 */

static char root[64];

struct bytes {
    uint8_t *p;
    size_t n;
};

static struct bytes read_all(const char *path)
{
    struct bytes b = {NULL, 0};
    int r = krd_vfs_read_file(krd_vfs_posix(), path, 1 << 26, &b.p, &b.n);
    if (r < 0)
        fail_msg("%s: %s", path, strerror(-r));
    return b;
}

static void write_all(const char *path, struct bytes b)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, b.p, b.n), b.n);
    close(fd);
}

static struct bytes copy_of(struct bytes b)
{
    return (struct bytes){memcpy(krd_alloc(b.n), b.p, b.n), b.n};
}

static const char *in(const char *dir, const char *name)
{
    static char path[4][512];
    static unsigned turn;
    char *p = path[turn++ % 4];
    snprintf(p, sizeof path[0], "%s/%s", dir, name);
    return p;
}

static const char *log_name(uint64_t number)
{
    static char name[32];
    snprintf(name, sizeof name, "%06u.log", (unsigned)number);
    return name;
}

/* Calls fn for each file called NUMBER.SUFFIX. */
static void each_file(const char *dir, const char *suffix, void (*fn)(void *, unsigned), void *arg)
{
    DIR *d = opendir(dir);
    assert_non_null(d);
    for (struct dirent *e; (e = readdir(d)) != NULL;) {
        char *end;
        unsigned long number = strtoul(e->d_name, &end, 10);
        if (end != e->d_name && strcmp(end, suffix) == 0)
            fn(arg, (unsigned)number);
    }
    closedir(d);
}

static void empty_dir(const char *dir)
{
    if (mkdir(dir, 0755) == 0)
        return;
    DIR *d = opendir(dir);
    assert_non_null(d);
    for (struct dirent *e; (e = readdir(d)) != NULL;)
        if (e->d_name[0] != '.')
            assert_int_equal(unlinkat(dirfd(d), e->d_name, 0), 0);
    closedir(d);
}

/* --- The run --------------------------------------------------------------------------------- */

enum { BATCHES_MAX = 400, LOGS_MAX = 32, EDITS_MAX = 64 };

struct batch_place {
    unsigned log;      /* index in logs */
    size_t start, end; /* its bytes */
};
struct log_copy {
    unsigned number;
    struct bytes b;
};
struct edit_copy {
    uint64_t log_number;
    size_t end; /* in the MANIFEST */
};

static struct {
    char dir[80];
    unsigned n; /* batches */
    struct batch_place place[BATCHES_MAX + 1];
    struct log_copy logs[LOGS_MAX];
    unsigned n_logs;
    struct edit_copy edits[EDITS_MAX];
    unsigned n_edits;
    char manifest_name[64];
    struct bytes current, manifest;
} ran;

static size_t value_bytes(unsigned n, char which)
{
    size_t h = (n * 2654435761u) >> 16;
    if (which == 'a' && n % 29 == 7)
        return 33000 + h % 40000; /* over one or two ends of blocks */
    return 20 + h % 900;
}

static void put_batch(struct kv_engine *e, unsigned n)
{
    struct kv_engine_batch *b = kv_engine_batch_create(e);
    static uint8_t value[80000];
    for (char which = 'a'; which <= 'b'; which++) {
        char key[16];
        size_t len = value_bytes(n, which);
        snprintf(key, sizeof key, "n%08u%c", n, which);
        memset(value, (int)n, len); /* no zero bytes unless n % 256 is 0 */
        memcpy(value, &n, sizeof n);
        kv_engine_batch_put(b, slice_str(key), slice_of(value, len));
    }
    kv_engine_write(e, b);
    kv_engine_batch_destroy(b);
}

static void newest(void *arg, unsigned number)
{
    unsigned *max = arg;
    *max = number > *max ? number : *max;
}

static void count(void *arg, unsigned number)
{
    (void)number;
    ++*(unsigned *)arg;
}

static struct kv_engine *open_engine(const char *dir)
{
    struct kv_engine_options o = {dir, 1 << 20, 65536}; /* LevelDB's least */
    struct kv_engine *e;
    char *err;
    if (kv_engine_open(&o, &e, &err) != KRD_OK)
        fail_msg("%s", err);
    return e;
}

/* Notes where batch n went. A hard link keeps the log file when LevelDB deletes it. */
static void note_place(unsigned n)
{
    unsigned number = 0;
    each_file(ran.dir, ".log", newest, &number);
    const char *kept = in(root, log_name(number));
    if (ran.n_logs == 0 || ran.logs[ran.n_logs - 1].number != number) {
        assert_true(ran.n_logs < LOGS_MAX);
        ran.logs[ran.n_logs++].number = number;
        assert_int_equal(link(in(ran.dir, log_name(number)), kept), 0);
    }
    struct stat st;
    assert_int_equal(stat(kept, &st), 0);
    struct batch_place *p = &ran.place[n], *before = &ran.place[n - 1];
    p->log = ran.n_logs - 1;
    p->start = n > 1 && before->log == p->log ? before->end : 0;
    p->end = (size_t)st.st_size;
    if (LDB_BLOCK_BYTES - p->start % LDB_BLOCK_BYTES < LDB_HEADER_BYTES)
        p->start += LDB_BLOCK_BYTES - p->start % LDB_BLOCK_BYTES;
}

static struct ldb_reader *reader_of(const char *path)
{
    const struct krd_vfs *v = krd_vfs_posix();
    struct ldb_reader *r = krd_alloc(sizeof *r);
    struct krd_file *f;
    assert_int_equal(v->open(v->ctx, path, KRD_OPEN_READ, &f), 0);
    assert_int_equal(ldb_reader_init(r, v, f), 0);
    return r;
}

static void reader_free(struct ldb_reader *r)
{
    r->vfs->close(r->file);
    ldb_reader_deinit(r);
    krd_free(r);
}

static void note_edits(void)
{
    struct ldb_reader *r = reader_of(in(ran.dir, ran.manifest_name));
    struct ldb_edit sum = {0};
    while (ldb_reader_next(r) == LDB_RECORD) {
        assert_true(ran.n_edits < EDITS_MAX);
        assert_true(ldb_edit_add(krd_buf_slice(&r->record), &sum));
        ran.edits[ran.n_edits++] = (struct edit_copy){sum.log_number, (size_t)r->good};
    }
    assert_int_equal(r->good, r->size);
    reader_free(r);
}

static int record_run(void **state)
{
    (void)state;
    snprintf(root, sizeof root, "%s/ldb-recover-XXXXXX",
             access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
    assert_non_null(mkdtemp(root));
    snprintf(ran.dir, sizeof ran.dir, "%s/run", root);
    struct kv_engine *e = open_engine(ran.dir);
    for (ran.n = 1; ran.n_logs < 9; ran.n++) {
        assert_true(ran.n < BATCHES_MAX);
        put_batch(e, ran.n);
        note_place(ran.n);
    }
    ran.n--;
    for (unsigned logs = 0; logs != 1; sched_yield()) /* until the last flush is done */
        logs = 0, each_file(ran.dir, ".log", count, &logs);
    for (unsigned i = 0; i < ran.n_logs; i++)
        ran.logs[i].b = read_all(in(root, log_name(ran.logs[i].number)));
    ran.current = read_all(in(ran.dir, "CURRENT"));
    memcpy(ran.manifest_name, ran.current.p, ran.current.n - 1);
    ran.manifest = read_all(in(ran.dir, ran.manifest_name));
    note_edits();
    kv_engine_close(e);
    return 0;
}

static int drop_run(void **state)
{
    (void)state;
    char command[128];
    for (unsigned i = 0; i < ran.n_logs; i++)
        krd_free(ran.logs[i].b.p);
    krd_free(ran.current.p);
    krd_free(ran.manifest.p);
    snprintf(command, sizeof command, "rm -rf %s", root);
    return system(command);
}

/* --- Images ---------------------------------------------------------------------------------- */

struct image {
    size_t manifest_len;
    struct log_copy logs[LOGS_MAX]; /* own copies; p NULL: not there */
    unsigned first, n_logs;         /* live ones: first <= i < n_logs */
};

static char image_dir[80];

/* The state after `edits` edits, with live_logs log files the last of which ends with the run's
 * share of it. LevelDB itself never has more than two; the pass does not count on that. */
static struct image image_at(unsigned edits, unsigned live_logs)
{
    struct image im = {.manifest_len = ran.edits[edits - 1].end};
    while (ran.logs[im.first].number < ran.edits[edits - 1].log_number)
        im.first++;
    im.n_logs = im.first + live_logs;
    assert_true(im.n_logs <= ran.n_logs);
    for (unsigned i = im.first; i < im.n_logs; i++)
        im.logs[i] = (struct log_copy){ran.logs[i].number, copy_of(ran.logs[i].b)};
    return im;
}

static void image_free(struct image *im)
{
    for (unsigned i = 0; i < im->n_logs; i++)
        krd_free(im->logs[i].b.p);
}

struct link_up_to {
    unsigned last;
};
static void link_table(void *arg, unsigned number)
{
    const struct link_up_to *l = arg;
    char name[32];
    snprintf(name, sizeof name, "%06u.ldb", number);
    if (number <= l->last)
        assert_int_equal(link(in(ran.dir, name), in(image_dir, name)), 0);
}

static void image_write(const struct image *im)
{
    snprintf(image_dir, sizeof image_dir, "%s/image", root);
    empty_dir(image_dir);
    write_all(in(image_dir, "CURRENT"), ran.current);
    write_all(in(image_dir, ran.manifest_name), (struct bytes){ran.manifest.p, im->manifest_len});
    for (unsigned i = 0; i < im->n_logs; i++)
        if (im->logs[i].b.p != NULL)
            write_all(in(image_dir, log_name(im->logs[i].number)), im->logs[i].b);
    /* The table of the log before file `first` got the number after that of file `first`. */
    struct link_up_to up_to = {ran.logs[im->first].number + 1};
    if (im->first > 0)
        each_file(ran.dir, ".ldb", link_table, &up_to);
}

/* The naive twin. */
static unsigned expected(const struct image *im)
{
    unsigned n = 0;
    for (; n < ran.n; n++) {
        const struct batch_place *p = &ran.place[n + 1];
        const struct log_copy *l = &im->logs[p->log];
        if (p->log < im->first)
            continue; /* in a table */
        if (p->log >= im->n_logs || l->b.p == NULL || l->b.n < p->end ||
            memcmp(l->b.p + p->start, ran.logs[p->log].b.p + p->start, p->end - p->start) != 0)
            break;
    }
    return n;
}

/* Number of the last batch when the content is batches 1 to n, whole; -1 when it is not. */
static int content(struct kv_engine *e)
{
    struct kv_engine_iter *it = kv_engine_iter_create(e, NULL, false);
    unsigned keys = 0;
    bool good = true;
    for (kv_engine_iter_seek(it, slice_str("")); kv_engine_iter_valid(it);
         kv_engine_iter_next(it), keys++) {
        char key[16], which = keys % 2 == 0 ? 'a' : 'b';
        unsigned n = keys / 2 + 1;
        snprintf(key, sizeof key, "n%08u%c", n, which);
        struct slice v = kv_engine_iter_value(it);
        good = good && slice_eq(kv_engine_iter_key(it), slice_str(key)) &&
               v.len == value_bytes(n, which) && krd_get_le32(v.ptr) == n &&
               v.ptr[v.len - 1] == (uint8_t)n;
    }
    kv_engine_iter_destroy(it);
    return good && keys % 2 == 0 ? (int)(keys / 2) : -1;
}

static enum krd_status recover(bool clean, struct ldb_cut *cut)
{
    char *err;
    enum krd_status st = ldb_recover(krd_vfs_posix(), image_dir, clean, cut, &err);
    assert_int_equal(err == NULL, st == KRD_OK);
    krd_free(err);
    return st;
}

/* Recovers and opens the directory; its content must be batches 1 to n. */
static void expect_content(unsigned n)
{
    struct ldb_cut cut;
    assert_int_equal(recover(false, &cut), KRD_OK);
    assert_int_equal(recover(true, &cut), KRD_OK); /* nothing more to cut */
    assert_false(cut.logs || cut.manifest);
    struct kv_engine *e = open_engine(image_dir);
    assert_int_equal(content(e), n);
    put_batch(e, n + 1); /* life goes on */
    kv_engine_close(e);
    e = open_engine(image_dir);
    assert_int_equal(content(e), n + 1);
    kv_engine_close(e);
}

static unsigned images;

static unsigned check(const struct image *im)
{
    unsigned n = expected(im);
    image_write(im);
    expect_content(n);
    images++;
    return n;
}

/* Each page is lost with a chance of 1 in `of`. */
static void lose_pages(struct image *im, size_t page, uint64_t of, struct krd_rand *r)
{
    for (unsigned i = im->first; i < im->n_logs; i++)
        for (size_t at = 0; at < im->logs[i].b.n; at += page)
            if (krd_rand_below(r, of) == 0)
                memset(im->logs[i].b.p + at, 0, krd_min_size(page, im->logs[i].b.n - at));
}

/* --- Tests: what a crash leaves -------------------------------------------------------------- */

static void the_run_is_what_the_tests_need(void **state)
{
    (void)state;
    unsigned spanning = 0, tables = 0;
    for (unsigned n = 1; n <= ran.n; n++)
        spanning +=
            ran.place[n].start / LDB_BLOCK_BYTES != (ran.place[n].end - 1) / LDB_BLOCK_BYTES;
    each_file(ran.dir, ".ldb", count, &tables);
    assert_true(spanning >= 8);
    assert_true(tables >= ran.n_logs - 1); /* none was compacted away */
    assert_true(ran.n_edits >= ran.n_logs);
}

static void an_undamaged_image_loses_nothing(void **state)
{
    (void)state;
    for (unsigned edits = 2; edits <= ran.n_edits; edits++) {
        for (unsigned live = 1; live <= 2; live++) {
            struct image im = image_at(edits, edits == ran.n_edits ? 1 : live);
            unsigned n = check(&im);
            assert_int_equal(ran.place[n].log, im.n_logs - 1);
            image_free(&im);
        }
    }
}

static void any_single_lost_page_cuts_there(void **state)
{
    (void)state;
    static const size_t pages[] = {4096, 512};
    for (unsigned edits = 2; edits < ran.n_edits; edits++) {
        struct image im = image_at(edits, 2);
        size_t page = pages[edits % 2];
        for (unsigned i = im.first; i < im.n_logs; i++) {
            struct bytes *b = &im.logs[i].b;
            for (size_t at = 0; at < b->n; at += page) {
                memset(b->p + at, 0, krd_min_size(page, b->n - at));
                check(&im);
                memcpy(b->p + at, ran.logs[i].b.p + at, krd_min_size(page, b->n - at));
            }
        }
        image_free(&im);
    }
}

static void any_set_of_lost_pages_leaves_the_longest_prefix(void **state)
{
    (void)state;
    struct krd_rand r;
    krd_rand_seed(&r, 7);
    for (unsigned i = 0; i < 2000; i++) {
        unsigned edits = 2 + (unsigned)krd_rand_below(&r, ran.n_edits - 3);
        struct image im = image_at(edits, 2);
        lose_pages(&im, i % 2 == 0 ? 4096 : 512, (uint64_t[]){2, 8, 30, 100}[i / 2 % 4], &r);
        struct log_copy *last = &im.logs[im.n_logs - 1];
        if (i % 3 == 0)
            last->b.n = krd_rand_below(&r, last->b.n + 1);
        check(&im);
        image_free(&im);
    }
}

/* Shortens one of the two live files at, just before and just behind each batch's end. */
static void shorten_everywhere(unsigned edits, bool older)
{
    struct image im = image_at(edits, 2);
    unsigned which = older ? im.first : im.first + 1;
    struct log_copy *l = &im.logs[which];
    size_t whole = l->b.n;
    unsigned all = check(&im);
    for (unsigned n = 1; n <= ran.n; n++) {
        if (ran.place[n].log != which)
            continue;
        for (int delta = -1; delta <= 1; delta++) {
            l->b.n = krd_min_size(ran.place[n].end + (size_t)delta, whole);
            unsigned want = delta < 0 ? n - 1 : l->b.n == whole ? all : n;
            assert_int_equal(check(&im), want);
        }
    }
    image_free(&im);
}

static void a_shortened_newest_file_loses_its_tail_only(void **state)
{
    (void)state;
    shorten_everywhere(3, false);
    shorten_everywhere(5, false);
}

static void a_shortened_older_file_takes_the_newer_one_along(void **state)
{
    (void)state;
    shorten_everywhere(3, true);
    shorten_everywhere(5, true);
}

static void what_a_checkpoint_synced_is_never_lost(void **state)
{
    (void)state;
    struct krd_rand r;
    krd_rand_seed(&r, 8);
    for (unsigned i = 0; i < 150; i++) {
        struct image im = image_at(4, 2);
        unsigned synced = 1;
        while (ran.place[synced].log < im.first)
            synced++;
        synced += (unsigned)krd_rand_below(&r, 20);
        const struct batch_place *p = &ran.place[synced];
        struct image damaged = image_at(4, 2);
        lose_pages(&damaged, 512, 2, &r);
        for (unsigned l = im.first; l <= p->log; l++) /* all before is on disk for good */
            memcpy(damaged.logs[l].b.p, im.logs[l].b.p, l == p->log ? p->end : im.logs[l].b.n);
        assert_true(check(&damaged) >= synced);
        image_free(&damaged);
        image_free(&im);
    }
}

static void changed_bits_cut_as_lost_pages_do(void **state)
{
    (void)state;
    struct krd_rand r;
    krd_rand_seed(&r, 9);
    for (unsigned i = 0; i < 2000; i++) {
        struct image im = image_at(6, 2);
        unsigned n = 1 + (unsigned)krd_rand_below(&r, ran.n);
        const struct batch_place *p = &ran.place[n];
        if (p->log >= im.first && p->log < im.n_logs) {
            /* every other one in the header, where lengths and types are */
            size_t at = i % 2 == 0 ? krd_rand_below(&r, 19) : krd_rand_below(&r, p->end - p->start);
            im.logs[p->log].b.p[p->start + at] ^= (uint8_t)(1u << krd_rand_below(&r, 8));
            assert_int_equal(check(&im), n - 1);
        }
        image_free(&im);
    }
}

static void an_obsolete_file_that_reappears_changes_nothing(void **state)
{
    (void)state;
    struct krd_rand r;
    krd_rand_seed(&r, 10);
    for (unsigned i = 0; i < 60; i++) {
        struct image im = image_at(5, 2);
        for (unsigned l = 0; l < im.first; l++) {
            if (krd_rand_below(&r, 2) == 0)
                continue;
            im.logs[l] = (struct log_copy){ran.logs[l].number, copy_of(ran.logs[l].b)};
            if (i % 3 != 0)
                im.logs[l].b.n = krd_rand_below(&r, im.logs[l].b.n + 1);
            if (i % 3 == 2)
                memset(im.logs[l].b.p + im.logs[l].b.n / 2, 0, im.logs[l].b.n / 2);
        }
        assert_int_equal(ran.place[check(&im)].log, im.n_logs - 1); /* nothing is lost */
        image_free(&im);
    }
}

static void files_that_never_reached_the_directory_are_an_end(void **state)
{
    (void)state;
    for (unsigned gone = 1; gone < 4; gone++) {
        struct image im = image_at(3, 4);
        krd_free(im.logs[im.first + gone].b.p);
        im.logs[im.first + gone].b.p = NULL;
        assert_int_equal(ran.place[check(&im)].log, im.first + gone - 1);
        image_free(&im);
    }
}

static void nothing_left_of_the_first_file_takes_all_others_along(void **state)
{
    (void)state;
    for (unsigned zeros = 0; zeros < 2; zeros++) {
        struct image im = image_at(3, 3);
        struct bytes *b = &im.logs[im.first].b;
        memset(b->p, 0, b->n);
        b->n = zeros == 0 ? 0 : b->n;
        assert_int_equal(ran.place[check(&im)].log, im.first - 1);
        image_free(&im);
    }
}

/* --- Tests: the MANIFEST --------------------------------------------------------------------- */

static void a_torn_last_edit_was_never_made(void **state)
{
    (void)state;
    const unsigned before = 4;
    size_t start = ran.edits[before - 1].end, end = ran.edits[before].end;
    struct bytes whole = ran.manifest;
    for (size_t at = start; at < end; at++) {
        for (unsigned kind = 0; kind < 3; kind++) { /* cut off, zeros, one wrong bit */
            struct image im = image_at(before, 2);
            ran.manifest = copy_of(whole);
            im.manifest_len = kind == 0 ? at : end;
            if (kind == 1)
                memset(ran.manifest.p + at, 0, end - at);
            if (kind == 2)
                ran.manifest.p[at] ^= 0x10;
            bool torn = memcmp(ran.manifest.p, whole.p, end) != 0 || kind == 0;
            if (torn)
                assert_int_equal(ran.place[check(&im)].log, im.n_logs - 1);
            krd_free(ran.manifest.p);
            image_free(&im);
        }
    }
    ran.manifest = whole;
}

/* All files with their contents, in one string of bytes. */
static void add_file(void *arg, const char *name)
{
    struct krd_buf *b = arg;
    if (strcmp(name, "LOCK") == 0)
        return;
    struct bytes f = read_all(in(image_dir, name));
    krd_buf_printf(b, "%s %zu ", name, f.n);
    krd_buf_put(b, f.p, f.n);
    krd_free(f.p);
}
static struct krd_buf fingerprint(void)
{
    struct krd_buf b = KRD_BUF_INIT;
    struct dirent **names;
    int n = scandir(image_dir, &names, NULL, alphasort);
    assert_true(n > 0);
    for (int i = 0; i < n; i++) {
        if (names[i]->d_name[0] != '.')
            add_file(&b, names[i]->d_name);
        free(names[i]);
    }
    free(names);
    return b;
}

/* Refused, and not a byte was changed. */
static void expect_corrupt(bool clean)
{
    struct ldb_cut cut;
    struct krd_buf before = fingerprint();
    assert_int_equal(recover(clean, &cut), KRD_CORRUPT);
    struct krd_buf after = fingerprint();
    assert_true(slice_eq(krd_buf_slice(&before), krd_buf_slice(&after)));
    krd_buf_deinit(&before);
    krd_buf_deinit(&after);
}

static void damage_before_an_intact_edit_is_refused(void **state)
{
    (void)state;
    struct bytes whole = ran.manifest;
    for (size_t at = 0; at < ran.edits[3].end; at++) {
        struct image im = image_at(5, 1);
        for (unsigned l = 0; l < im.first; l++) /* even if the log files would make up for it */
            im.logs[l] = (struct log_copy){ran.logs[l].number, copy_of(ran.logs[l].b)};
        ran.manifest = copy_of(whole);
        ran.manifest.p[at] ^= 1;
        image_write(&im);
        expect_corrupt(false);
        krd_free(ran.manifest.p);
        image_free(&im);
    }
    ran.manifest = whole;
}

static void a_lost_edit_shows_by_the_log_file_it_had_deleted(void **state)
{
    (void)state;
    struct image im = image_at(5, 2);
    im.manifest_len = ran.edits[3].end; /* the disk lost a synced edit */
    image_write(&im);
    expect_corrupt(false);
    image_free(&im);
}

static void a_missing_first_file_is_refused(void **state)
{
    (void)state;
    for (unsigned live = 1; live <= 2; live++) {
        struct image im = image_at(5, live);
        krd_free(im.logs[im.first].b.p);
        im.logs[im.first].b.p = NULL;
        image_write(&im);
        expect_corrupt(false);
        image_free(&im);
    }
}

static void a_file_that_starts_too_late_is_refused(void **state)
{
    (void)state;
    struct image im = image_at(2, 1);
    krd_free(im.logs[im.first].b.p);
    im.logs[im.first].b = copy_of(ran.logs[im.first + 3].b);
    image_write(&im);
    expect_corrupt(false);
    image_free(&im);
}

static void a_bad_current_is_refused(void **state)
{
    (void)state;
    static const char *const bad[] = {"", "MANIFEST-000009", "MANIFEST-999999\n", "../x\n", "x\n"};
    for (size_t i = 0; i < KRD_ARRAY_LEN(bad); i++) {
        struct image im = image_at(3, 1);
        image_write(&im);
        struct bytes b = {(uint8_t *)(uintptr_t)bad[i], strlen(bad[i])};
        write_all(in(image_dir, "CURRENT"), b);
        expect_corrupt(false);
        assert_int_equal(unlink(in(image_dir, "CURRENT")), 0);
        expect_corrupt(false);
        image_free(&im);
    }
}

static void an_empty_or_missing_directory_is_fine(void **state)
{
    (void)state;
    struct ldb_cut cut;
    snprintf(image_dir, sizeof image_dir, "%s/missing", root);
    assert_int_equal(recover(false, &cut), KRD_OK);
    empty_dir(image_dir);
    assert_int_equal(recover(false, &cut), KRD_OK);
    write_all(in(image_dir, "000003.log"), (struct bytes){NULL, 0}); /* a first opening cut short */
    assert_int_equal(recover(false, &cut), KRD_OK);
    assert_false(cut.logs);
}

static void after_a_clean_stop_nothing_may_be_cut(void **state)
{
    (void)state;
    struct ldb_cut cut;
    struct image im = image_at(4, 2);
    image_write(&im);
    assert_int_equal(recover(true, &cut), KRD_OK);
    im.logs[im.first + 1].b.n--;
    image_write(&im);
    expect_corrupt(true);
    im.logs[im.first + 1].b.n++;
    im.manifest_len = ran.edits[4].end - 1;
    image_write(&im);
    expect_corrupt(true);
    image_free(&im);
}

/* --- Tests: the trap, and the pass cut short ------------------------------------------------- */

/* What LevelDB makes of an image by itself: how many batches, and whether one is missing among
 * them. */
static void open_without_the_pass(unsigned *n, bool *hole)
{
    char *err = NULL;
    leveldb_options_t *o = leveldb_options_create();
    leveldb_options_set_paranoid_checks(o, 1);
    leveldb_t *db = leveldb_open(o, image_dir, &err);
    assert_null(err);
    leveldb_readoptions_t *ro = leveldb_readoptions_create();
    leveldb_iterator_t *it = leveldb_create_iterator(db, ro);
    *n = 0;
    *hole = false;
    for (leveldb_iter_seek_to_first(it); leveldb_iter_valid(it); leveldb_iter_next(it)) {
        size_t len;
        unsigned at = (unsigned)strtoul(leveldb_iter_key(it, &len) + 1, NULL, 10);
        *hole = *hole || at > *n + 1;
        *n = at;
    }
    leveldb_iter_destroy(it);
    leveldb_readoptions_destroy(ro);
    leveldb_close(db);
    leveldb_options_destroy(o);
}

static void without_the_pass_leveldb_loses_the_middle(void **state)
{
    (void)state;
    unsigned n, holes = 0;
    bool hole;
    for (unsigned edits = 3; edits < 6; edits++) {
        struct image im = image_at(edits, 2);
        unsigned last = ran.n;
        while (ran.place[last].log != im.first)
            last--;
        im.logs[im.first].b.n = ran.place[last].start; /* its last batch did not reach the disk */
        image_write(&im);
        open_without_the_pass(&n, &hole);
        assert_int_equal(ran.place[n].log, im.n_logs - 1);
        holes += hole;

        assert_int_equal(check(&im), last - 1); /* with it, it does not */
        open_without_the_pass(&n, &hole);
        assert_false(hole);
        image_free(&im);
    }
    assert_int_equal(holes, 3);
}

/* A disk that fails for good after some changes. */
static int changes_left;
static int fails(void)
{
    return changes_left-- > 0 ? 0 : -EIO;
}
static int failing_ftruncate(struct krd_file *f, uint64_t n)
{
    return fails() < 0 ? -EIO : krd_vfs_posix()->ftruncate(f, n);
}
static int failing_fsync(struct krd_file *f)
{
    return fails() < 0 ? -EIO : krd_vfs_posix()->fsync(f);
}
static int failing_unlink(void *ctx, const char *path)
{
    return fails() < 0 ? -EIO : krd_vfs_posix()->unlink(ctx, path);
}
static int failing_sync_dir(void *ctx, const char *path)
{
    return fails() < 0 ? -EIO : krd_vfs_posix()->sync_dir(ctx, path);
}

/* Four live files; the second one damaged in the middle, the MANIFEST's last edit torn. */
static struct image much_to_do(unsigned kind)
{
    struct image im = image_at(3, 4);
    struct bytes *b = &im.logs[im.first + (kind == 1 ? 0 : 1)].b;
    if (kind == 0)
        memset(b->p + 16384, 0, 4096);
    else
        b->n = kind == 1 ? 0 : b->n - 1;
    im.manifest_len = ran.edits[3].end - 5;
    return im;
}

static void interrupted_at_any_step_it_ends_the_same(void **state)
{
    (void)state;
    struct krd_vfs failing = *krd_vfs_posix();
    failing.ftruncate = failing_ftruncate;
    failing.fsync = failing_fsync;
    failing.unlink = failing_unlink;
    failing.sync_dir = failing_sync_dir;
    for (unsigned kind = 0; kind < 3; kind++) {
        struct image im = much_to_do(kind);
        struct ldb_cut cut;
        image_write(&im);
        assert_int_equal(recover(false, &cut), KRD_OK);
        assert_true(cut.logs && cut.manifest && cut.lost_files >= 2);
        struct krd_buf end = fingerprint();
        enum krd_status st = KRD_IO;
        for (int steps = 0; st != KRD_OK; steps++) {
            char *err;
            image_write(&im);
            changes_left = steps;
            st = ldb_recover(&failing, image_dir, false, &cut, &err);
            assert_int_equal(err != NULL, st == KRD_IO);
            krd_free(err);
            assert_true(st == KRD_OK || st == KRD_IO);
            assert_int_equal(recover(false, &cut), KRD_OK);
            struct krd_buf now = fingerprint();
            assert_true(slice_eq(krd_buf_slice(&now), krd_buf_slice(&end)));
            krd_buf_deinit(&now);
            assert_true(steps < 20);
        }
        krd_buf_deinit(&end);
        image_free(&im);
    }
}

/* Nothing is synced before all is done, so that any part of the changes may reach the disk. */
static void whatever_part_of_it_reached_the_disk_it_ends_the_same(void **state)
{
    (void)state;
    for (unsigned kind = 0; kind < 3; kind++) {
        struct image im = much_to_do(kind);
        unsigned n = expected(&im);
        struct ldb_cut cut;
        image_write(&im);
        assert_int_equal(recover(false, &cut), KRD_OK);
        struct krd_buf end = fingerprint();
        for (unsigned done = 0; done < 32; done++) { /* bit i: file i is as the pass leaves it */
            image_write(&im);
            if (done & 16)
                assert_int_equal(
                    truncate(in(image_dir, ran.manifest_name), (off_t)ran.edits[2].end), 0);
            for (unsigned i = im.first; i < im.n_logs; i++) {
                const char *path = in(image_dir, log_name(im.logs[i].number));
                if ((done >> (i - im.first) & 1) == 0)
                    continue;
                if (im.logs[i].number > cut.log_number)
                    assert_int_equal(unlink(path), 0);
                else if (im.logs[i].number == cut.log_number)
                    assert_int_equal(truncate(path, (off_t)cut.offset), 0);
            }
            struct ldb_cut again;
            assert_int_equal(recover(false, &again), KRD_OK);
            struct krd_buf now = fingerprint();
            assert_true(slice_eq(krd_buf_slice(&now), krd_buf_slice(&end)));
            krd_buf_deinit(&now);
        }
        expect_content(n);
        krd_buf_deinit(&end);
        image_free(&im);
    }
}

/* --- Tests: the format ----------------------------------------------------------------------- */

/* A log whose batches leave 0 to 20 bytes at the ends of blocks, where headers fit or do not. */
static void reads_what_leveldb_writes_around_the_ends_of_blocks(void **state)
{
    (void)state;
    char dir[80];
    snprintf(dir, sizeof dir, "%s/blocks", root);
    struct kv_engine_options o = {dir, 1 << 20, 1 << 23};
    struct kv_engine *e;
    char *err;
    assert_int_equal(kv_engine_open(&o, &e, &err), KRD_OK);
    struct kv_engine_batch *b = kv_engine_batch_create(e);
    static uint8_t value[LDB_BLOCK_BYTES];
    const size_t around = 7 + 12 + 1 + 1 + 3 + 3; /* header, batch's head, tag, sizes, key */
    for (size_t leave = 0; leave <= 20; leave++) {
        kv_engine_batch_clear(b);
        kv_engine_batch_put(b, slice_str("big"), slice_of(value, LDB_BLOCK_BYTES - around - leave));
        kv_engine_write(e, b);
        kv_engine_batch_clear(b); /* fills the rest and all but 21 bytes of the next block */
        kv_engine_batch_put(b, slice_str("sml"), slice_of(value, 200));
        kv_engine_write(e, b);
        struct stat st;
        assert_int_equal(stat(in(dir, "000003.log"), &st), 0);
        size_t rest = LDB_BLOCK_BYTES - (size_t)st.st_size % LDB_BLOCK_BYTES;
        kv_engine_batch_clear(b); /* to the end of the block exactly */
        kv_engine_batch_put(b, slice_str("pad"), slice_of(value, rest - around));
        kv_engine_write(e, b);
        assert_int_equal(stat(in(dir, "000003.log"), &st), 0);
        assert_int_equal(st.st_size % LDB_BLOCK_BYTES, 0);
    }
    kv_engine_batch_destroy(b);
    kv_engine_close(e);

    struct ldb_reader *r = reader_of(in(dir, "000003.log"));
    for (uint64_t sequence = 1; sequence <= 63; sequence++) {
        struct ldb_batch batch;
        assert_int_equal(ldb_reader_next(r), LDB_RECORD);
        assert_true(ldb_batch_decode(krd_buf_slice(&r->record), &batch));
        assert_int_equal(batch.sequence, sequence);
        assert_int_equal(batch.count, 1);
    }
    assert_int_equal(ldb_reader_next(r), LDB_END);
    assert_int_equal(r->good, r->size);
    reader_free(r);
}

/* Blocks of a real log in an order that leaves a record without its beginning, or without its end;
 * every checksum is right. */
static void a_record_without_its_beginning_or_end_is_damage(void **state)
{
    (void)state;
    unsigned n = 1;
    while (ran.place[n].start / LDB_BLOCK_BYTES == (ran.place[n].end - 1) / LDB_BLOCK_BYTES)
        n++;
    const struct batch_place *p = &ran.place[n];
    struct bytes log = ran.logs[p->log].b;
    size_t end = (p->start / LDB_BLOCK_BYTES + 1) * LDB_BLOCK_BYTES; /* of the block it starts in */
    char path[80];
    snprintf(path, sizeof path, "%s/pieces", root);

    write_all(path, (struct bytes){log.p + end, log.n - end});
    struct ldb_reader *r = reader_of(path);
    assert_int_equal(ldb_reader_next(r), LDB_DAMAGE);
    assert_int_equal(r->good, 0);
    reader_free(r);

    struct bytes twice = {krd_alloc(2 * end), 2 * end};
    memcpy(twice.p, log.p, end);
    memcpy(twice.p + end, log.p, end);
    write_all(path, twice);
    krd_free(twice.p);
    r = reader_of(path);
    enum ldb_read got;
    while ((got = ldb_reader_next(r)) == LDB_RECORD)
        ;
    assert_int_equal(got, LDB_DAMAGE);
    assert_int_equal(r->good, p->start);
    reader_free(r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_run_is_what_the_tests_need),
        cmocka_unit_test(an_undamaged_image_loses_nothing),
        cmocka_unit_test(any_single_lost_page_cuts_there),
        cmocka_unit_test(any_set_of_lost_pages_leaves_the_longest_prefix),
        cmocka_unit_test(a_shortened_newest_file_loses_its_tail_only),
        cmocka_unit_test(a_shortened_older_file_takes_the_newer_one_along),
        cmocka_unit_test(what_a_checkpoint_synced_is_never_lost),
        cmocka_unit_test(changed_bits_cut_as_lost_pages_do),
        cmocka_unit_test(an_obsolete_file_that_reappears_changes_nothing),
        cmocka_unit_test(files_that_never_reached_the_directory_are_an_end),
        cmocka_unit_test(nothing_left_of_the_first_file_takes_all_others_along),
        cmocka_unit_test(a_torn_last_edit_was_never_made),
        cmocka_unit_test(damage_before_an_intact_edit_is_refused),
        cmocka_unit_test(a_lost_edit_shows_by_the_log_file_it_had_deleted),
        cmocka_unit_test(a_missing_first_file_is_refused),
        cmocka_unit_test(a_file_that_starts_too_late_is_refused),
        cmocka_unit_test(a_bad_current_is_refused),
        cmocka_unit_test(an_empty_or_missing_directory_is_fine),
        cmocka_unit_test(after_a_clean_stop_nothing_may_be_cut),
        cmocka_unit_test(without_the_pass_leveldb_loses_the_middle),
        cmocka_unit_test(interrupted_at_any_step_it_ends_the_same),
        cmocka_unit_test(whatever_part_of_it_reached_the_disk_it_ends_the_same),
        cmocka_unit_test(reads_what_leveldb_writes_around_the_ends_of_blocks),
        cmocka_unit_test(a_record_without_its_beginning_or_end_is_damage),
    };
    int failed = cmocka_run_group_tests(tests, record_run, drop_run);
    print_message("%u crash images recovered and opened\n", images);
    return failed;
}
