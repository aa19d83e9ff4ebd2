/* The contract of kv/engine.h, on LevelDB in a directory of its own. */
#include "base/rand.h"
#include "kv/engine.h"
#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

/* --- Fixture -----------------------------------------------------------------------------------
 */

struct fixture {
    char dir[64];
    struct kv_engine *e;
};

static struct kv_engine *open_engine(const char *dir, size_t write_buffer)
{
    struct kv_engine_options o = {dir, 1 << 20, write_buffer};
    struct kv_engine *e;
    char *err;
    enum krd_status st = kv_engine_open(&o, &e, &err);
    if (st != KRD_OK)
        fail_msg("%s: %s", krd_status_code(st), err);
    return e;
}

static enum krd_status try_open(const char *dir)
{
    struct kv_engine_options o = {dir, 1 << 20, 1 << 20};
    struct kv_engine *e;
    char *err;
    enum krd_status st = kv_engine_open(&o, &e, &err);
    if (st == KRD_OK)
        kv_engine_close(e);
    else
        assert_non_null(err);
    krd_free(err);
    return st;
}

static void run(const char *command, const char *a, const char *b)
{
    char *line = krd_asprintf("%s %s %s", command, a, b);
    assert_int_equal(system(line), 0);
    krd_free(line);
}

static int set_up(void **state)
{
    struct fixture *f = krd_zalloc(sizeof *f);
    const char *root = access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp";
    snprintf(f->dir, sizeof f->dir, "%s/kv-engine-XXXXXX", root);
    assert_non_null(mkdtemp(f->dir));
    strcat(f->dir, "/db");
    f->e = open_engine(f->dir, 1 << 20);
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;
    kv_engine_close(f->e);
    *strrchr(f->dir, '/') = '\0';
    run("rm -rf", f->dir, "");
    krd_free(f);
    return 0;
}

static char *path_of(const struct fixture *f, const char *name)
{
    return krd_asprintf("%s/%s", f->dir, name);
}

static bool exists(const struct fixture *f, const char *name)
{
    char *path = path_of(f, name);
    bool there = access(path, F_OK) == 0;
    krd_free(path);
    return there;
}

static void put(struct kv_engine *e, const char *key, const char *value)
{
    struct kv_engine_batch *b = kv_engine_batch_create(e);
    kv_engine_batch_put(b, slice_str(key), slice_str(value));
    kv_engine_write(e, b);
    kv_engine_batch_destroy(b);
}

/* The value, or "(none)", in a static buffer. */
static const char *get(struct kv_engine *e, struct kv_engine_snapshot *snap, const char *key)
{
    static char text[256];
    struct slice v;
    if (!kv_engine_get(e, snap, slice_str(key), &v))
        return "(none)";
    assert_true(v.len < sizeof text);
    memcpy(text, v.ptr, v.len);
    text[v.len] = '\0';
    kv_engine_free(v);
    return text;
}

static const char *at(struct kv_engine_iter *it)
{
    static char text[256];
    if (!kv_engine_iter_valid(it))
        return "(end)";
    struct slice k = kv_engine_iter_key(it), v = kv_engine_iter_value(it);
    snprintf(text, sizeof text, "%.*s=%.*s", (int)k.len, k.ptr, (int)v.len, v.ptr);
    return text;
}

/* --- Batches and gets ---------------------------------------------------------------------------
 */

static void a_batch_puts_and_deletes_in_order(void **state)
{
    struct fixture *f = *state;
    struct kv_engine_batch *b = kv_engine_batch_create(f->e);
    put(f->e, "c", "old");
    kv_engine_batch_put(b, slice_str("a"), slice_str("1"));
    kv_engine_batch_put(b, slice_str("a"), slice_str("2"));
    kv_engine_batch_put(b, slice_str("b"), slice_str("1"));
    kv_engine_batch_delete(b, slice_str("b"));
    kv_engine_batch_delete(b, slice_str("c"));
    assert_string_equal(get(f->e, NULL, "a"), "(none)"); /* not written yet */
    kv_engine_write(f->e, b);
    assert_string_equal(get(f->e, NULL, "a"), "2");
    assert_string_equal(get(f->e, NULL, "b"), "(none)");
    assert_string_equal(get(f->e, NULL, "c"), "(none)");

    kv_engine_batch_clear(b); /* and nothing of it is left */
    kv_engine_batch_put(b, slice_str("d"), slice_str("1"));
    put(f->e, "a", "3");
    kv_engine_write(f->e, b);
    assert_string_equal(get(f->e, NULL, "a"), "3");
    kv_engine_batch_destroy(b);
    kv_engine_batch_destroy(NULL);
}

static void keys_and_values_are_any_bytes_and_may_be_empty(void **state)
{
    struct fixture *f = *state;
    struct kv_engine_batch *b = kv_engine_batch_create(f->e);
    struct slice zeros = slice_of("\0\0\xff", 3), v;
    kv_engine_batch_put(b, zeros, zeros);
    kv_engine_batch_put(b, slice_str("empty"), slice_of(NULL, 0));
    kv_engine_batch_put(b, slice_of(NULL, 0), slice_str("no key"));
    kv_engine_write(f->e, b);
    kv_engine_batch_destroy(b);
    assert_true(kv_engine_get(f->e, NULL, zeros, &v));
    assert_true(slice_eq(v, zeros));
    kv_engine_free(v);
    assert_string_equal(get(f->e, NULL, "empty"), "");
    assert_true(kv_engine_get(f->e, NULL, slice_of(NULL, 0), &v));
    kv_engine_free(v);
    struct kv_engine_snapshot *s = kv_engine_snapshot(f->e);
    assert_string_equal(get(f->e, s, "empty"), "");
    kv_engine_snapshot_release(f->e, s);
}

/* --- Iterators ------------------------------------------------------------------------------- */

static void an_empty_store_has_no_positions(void **state)
{
    struct fixture *f = *state;
    struct kv_engine_iter *it = kv_engine_iter_create(f->e, NULL, true);
    assert_false(kv_engine_iter_valid(it));
    kv_engine_iter_seek(it, slice_str(""));
    assert_string_equal(at(it), "(end)");
    kv_engine_iter_seek_before(it, slice_str("z"));
    assert_string_equal(at(it), "(end)");
    kv_engine_iter_destroy(it);
    kv_engine_iter_destroy(NULL);
    assert_string_equal(get(f->e, NULL, "a"), "(none)");
}

static void iterators_walk_both_ways(void **state)
{
    struct fixture *f = *state;
    put(f->e, "d", "4");
    put(f->e, "b", "2");
    put(f->e, "f", "6");
    struct kv_engine_iter *it = kv_engine_iter_create(f->e, NULL, false);
    kv_engine_iter_seek(it, slice_str("c"));
    assert_string_equal(at(it), "d=4");
    kv_engine_iter_next(it);
    assert_string_equal(at(it), "f=6");
    kv_engine_iter_prev(it);
    kv_engine_iter_prev(it);
    assert_string_equal(at(it), "b=2");
    kv_engine_iter_next(it); /* turning round again */
    assert_string_equal(at(it), "d=4");
    kv_engine_iter_next(it);
    kv_engine_iter_next(it);
    assert_string_equal(at(it), "(end)");
    kv_engine_iter_seek(it, slice_str("b"));
    assert_string_equal(at(it), "b=2");
    kv_engine_iter_prev(it);
    assert_string_equal(at(it), "(end)");
    kv_engine_iter_destroy(it);
}

static void seek_before_finds_the_last_below(void **state)
{
    struct fixture *f = *state;
    put(f->e, "b", "2");
    put(f->e, "d", "4");
    struct kv_engine_iter *it = kv_engine_iter_create(f->e, NULL, true);
    static const char *const cases[][2] = {{"", "(end)"}, {"a", "(end)"}, {"b", "(end)"},
                                           {"c", "b=2"},  {"d", "b=2"},   {"da", "d=4"},
                                           {"z", "d=4"}};
    for (size_t i = 0; i < KRD_ARRAY_LEN(cases); i++) {
        kv_engine_iter_seek_before(it, slice_str(cases[i][0]));
        assert_string_equal(at(it), cases[i][1]);
    }
    kv_engine_iter_destroy(it);
}

static void iterators_and_snapshots_show_one_moment(void **state)
{
    struct fixture *f = *state;
    put(f->e, "a", "1");
    put(f->e, "b", "1");
    struct kv_engine_snapshot *s = kv_engine_snapshot(f->e);
    struct kv_engine_iter *it = kv_engine_iter_create(f->e, NULL, true);
    put(f->e, "a", "2");
    put(f->e, "aa", "2");
    struct kv_engine_batch *b = kv_engine_batch_create(f->e);
    kv_engine_batch_delete(b, slice_str("b"));
    kv_engine_write(f->e, b);
    kv_engine_batch_destroy(b);

    for (int i = 0; i < 2; i++) { /* its own iterator, then one of the snapshot's */
        kv_engine_iter_seek(it, slice_str("a"));
        assert_string_equal(at(it), "a=1");
        kv_engine_iter_next(it);
        assert_string_equal(at(it), "b=1");
        kv_engine_iter_destroy(it);
        it = kv_engine_iter_create(f->e, s, true);
    }
    kv_engine_iter_destroy(it);
    assert_string_equal(get(f->e, s, "a"), "1");
    assert_string_equal(get(f->e, s, "aa"), "(none)");
    assert_string_equal(get(f->e, s, "b"), "1");
    assert_string_equal(get(f->e, s, "c"), "(none)");
    kv_engine_snapshot_release(f->e, s);
    kv_engine_snapshot_release(f->e, NULL);
    assert_string_equal(get(f->e, NULL, "a"), "2");
    assert_string_equal(get(f->e, NULL, "b"), "(none)");
}

/* --- A naive twin ---------------------------------------------------------------------------- */

enum { TWIN_KEYS = 200 };
struct twin {
    uint32_t value[TWIN_KEYS]; /* 0: absent */
};

static struct slice twin_key(char buf[8], unsigned k)
{
    return slice_of(buf, (size_t)snprintf(buf, 8, "%05u", k));
}

static void twin_write(struct twin *t, struct kv_engine *e, struct krd_rand *r, uint32_t *n)
{
    struct kv_engine_batch *b = kv_engine_batch_create(e);
    char key[8], value[400];
    for (uint64_t i = krd_rand_below(r, 20); i > 0; i--) {
        unsigned k = (unsigned)krd_rand_below(r, TWIN_KEYS);
        t->value[k] = krd_rand_below(r, 3) == 0 ? 0 : ++*n;
        if (t->value[k] == 0) {
            kv_engine_batch_delete(b, twin_key(key, k));
            continue;
        }
        memset(value, 'x', sizeof value);
        memcpy(value, &t->value[k], 4);
        kv_engine_batch_put(b, twin_key(key, k), slice_of(value, sizeof value));
    }
    kv_engine_write(e, b);
    kv_engine_batch_destroy(b);
}

/* The next present key from k on, or down from it; -1 or TWIN_KEYS when there is none. */
static int twin_up(const struct twin *t, int k)
{
    while (k < TWIN_KEYS && t->value[k] == 0)
        k++;
    return k;
}
static int twin_down(const struct twin *t, int k)
{
    while (k >= 0 && t->value[k] == 0)
        k--;
    return k;
}

static void twin_expect(const struct twin *t, struct kv_engine_iter *it, int k)
{
    char key[8];
    if (k < 0 || k >= TWIN_KEYS) {
        assert_false(kv_engine_iter_valid(it));
        return;
    }
    assert_true(kv_engine_iter_valid(it));
    assert_true(slice_eq(kv_engine_iter_key(it), twin_key(key, (unsigned)k)));
    assert_int_equal(krd_get_le32(kv_engine_iter_value(it).ptr), t->value[k]);
}

static void twin_check(const struct twin *t, struct kv_engine *e, struct kv_engine_snapshot *s)
{
    struct kv_engine_iter *it = kv_engine_iter_create(e, s, false);
    for (int k = 0; k < TWIN_KEYS; k++) {
        char key[8];
        struct slice v;
        bool present = kv_engine_get(e, s, twin_key(key, (unsigned)k), &v);
        assert_int_equal(present, t->value[k] != 0);
        if (present) {
            assert_int_equal(krd_get_le32(v.ptr), t->value[k]);
            kv_engine_free(v);
        }
        kv_engine_iter_seek(it, twin_key(key, (unsigned)k));
        int up = twin_up(t, k), down = twin_down(t, k - 1);
        twin_expect(t, it, up);
        if (up < TWIN_KEYS) {
            kv_engine_iter_next(it);
            twin_expect(t, it, twin_up(t, up + 1));
        }
        kv_engine_iter_seek_before(it, twin_key(key, (unsigned)k));
        twin_expect(t, it, down);
        if (down >= 0) {
            kv_engine_iter_prev(it);
            twin_expect(t, it, twin_down(t, down - 1));
        }
    }
    kv_engine_iter_destroy(it);
}

static void behaves_as_an_ordered_map_through_flushes_and_restarts(void **state)
{
    struct fixture *f = *state;
    struct twin t = {{0}}, old;
    struct krd_rand r;
    uint32_t n = 0;
    krd_rand_seed(&r, 42);
    for (int round = 0; round < 6; round++) {
        kv_engine_close(f->e);
        f->e = open_engine(f->dir, 65536); /* LevelDB's least: many flushes */
        twin_check(&t, f->e, NULL);
        for (int i = 0; i < 150; i++)
            twin_write(&t, f->e, &r, &n);
        struct kv_engine_snapshot *s = kv_engine_snapshot(f->e);
        old = t;
        for (int i = 0; i < 150; i++)
            twin_write(&t, f->e, &r, &n);
        twin_check(&old, f->e, s);
        twin_check(&t, f->e, NULL);
        kv_engine_snapshot_release(f->e, s);
    }
}

/* --- Threads --------------------------------------------------------------------------------- */

struct race {
    struct kv_engine *e;
    atomic_bool stop;
    unsigned checkpoints;
};

static void *write_pairs(void *arg)
{
    struct race *race = arg;
    struct kv_engine_batch *b = kv_engine_batch_create(race->e);
    char value[2000];
    memset(value, 'v', sizeof value);
    for (uint32_t n = 1; n <= 3000; n++) {
        memcpy(value, &n, 4);
        kv_engine_batch_clear(b);
        kv_engine_batch_put(b, slice_str("a"), slice_of(value, sizeof value));
        kv_engine_batch_put(b, slice_str("z"), slice_of(value, sizeof value));
        kv_engine_write(race->e, b);
    }
    kv_engine_batch_destroy(b);
    atomic_store(&race->stop, true);
    return NULL;
}

static void *checkpoints(void *arg)
{
    struct race *race = arg;
    while (!atomic_load(&race->stop)) {
        kv_engine_checkpoint(race->e);
        race->checkpoints++;
    }
    return NULL;
}

static uint32_t get_number(struct kv_engine *e, struct kv_engine_snapshot *s, const char *key)
{
    struct slice v;
    if (!kv_engine_get(e, s, slice_str(key), &v))
        return 0;
    uint32_t n = krd_get_le32(v.ptr);
    kv_engine_free(v);
    return n;
}

static void readers_and_checkpoints_beside_the_writer_see_whole_batches(void **state)
{
    struct fixture *f = *state;
    kv_engine_close(f->e);
    f->e = open_engine(f->dir, 65536); /* log files come and go under the checkpoints */
    struct race race = {.e = f->e};
    pthread_t writer, syncer;
    assert_int_equal(pthread_create(&writer, NULL, write_pairs, &race), 0);
    assert_int_equal(pthread_create(&syncer, NULL, checkpoints, &race), 0);
    uint32_t last = 0;
    while (!atomic_load(&race.stop)) {
        struct kv_engine_snapshot *s = kv_engine_snapshot(f->e);
        uint32_t a = get_number(f->e, s, "a");
        assert_int_equal(a, get_number(f->e, s, "z"));
        assert_true(a >= last);
        struct kv_engine_iter *it = kv_engine_iter_create(f->e, s, false);
        kv_engine_iter_seek(it, slice_str("z"));
        assert_int_equal(kv_engine_iter_valid(it) ? krd_get_le32(kv_engine_iter_value(it).ptr) : 0,
                         a);
        kv_engine_iter_destroy(it);
        kv_engine_snapshot_release(f->e, s);
        last = a;
    }
    pthread_join(writer, NULL);
    pthread_join(syncer, NULL);
    assert_true(race.checkpoints > 0);
    assert_int_equal(get_number(f->e, NULL, "a"), 3000);
}

/* --- Stopping and starting ------------------------------------------------------------------- */

static void a_clean_stop_leaves_a_marker_that_opening_takes(void **state)
{
    struct fixture *f = *state;
    assert_false(exists(f, "CLEAN"));
    put(f->e, "a", "1");
    kv_engine_close(f->e);
    assert_true(exists(f, "CLEAN"));
    assert_false(exists(f, "CLEAN.tmp"));
    f->e = open_engine(f->dir, 1 << 20);
    assert_false(exists(f, "CLEAN"));
    assert_string_equal(get(f->e, NULL, "a"), "1");
}

static void a_copy_of_the_running_store_opens_as_after_a_kill(void **state)
{
    struct fixture *f = *state;
    put(f->e, "a", "1");
    char *copy = krd_asprintf("%s-copy", f->dir);
    run("cp -r", f->dir, copy); /* all that was written is in the page cache */
    struct kv_engine *e = open_engine(copy, 1 << 20);
    assert_string_equal(get(e, NULL, "a"), "1");
    kv_engine_close(e);
    krd_free(copy);
}

static void damage_after_a_clean_stop_is_refused_time_and_again(void **state)
{
    struct fixture *f = *state;
    char *copy = krd_asprintf("%s-copy", f->dir);
    put(f->e, "a", "1");
    put(f->e, "b", "1");
    kv_engine_close(f->e);
    run("cp -r", f->dir, copy);
    f->e = open_engine(f->dir, 1 << 20);
    char *cut = krd_asprintf("for l in %s/*.log; do truncate -s -1 $l; done", copy);
    assert_int_equal(system(cut), 0);
    assert_int_equal(try_open(copy), KRD_CORRUPT);
    assert_int_equal(try_open(copy), KRD_CORRUPT);
    char *marker = krd_asprintf("%s/CLEAN", copy);
    assert_int_equal(unlink(marker), 0);
    struct kv_engine *e = open_engine(copy, 1 << 20); /* a crash explains it */
    assert_string_equal(get(e, NULL, "a"), "1");
    assert_string_equal(get(e, NULL, "b"), "(none)");
    kv_engine_close(e);
    krd_free(marker);
    krd_free(cut);
    krd_free(copy);
}

static void missing_pieces_are_corruption_not_a_new_store(void **state)
{
    struct fixture *f = *state;
    put(f->e, "a", "1");
    kv_engine_close(f->e);
    f->e = open_engine(f->dir, 1 << 20); /* the replay makes a table */
    static const char *const pieces[] = {"CURRENT", "MANIFEST-*", "*.ldb", "*.log"};
    for (size_t i = 0; i < KRD_ARRAY_LEN(pieces); i++) {
        char *copy = krd_asprintf("%s-%zu", f->dir, i);
        char *piece = krd_asprintf("/%s", pieces[i]);
        run("cp -r", f->dir, copy);
        char *remove = krd_asprintf("rm %s%s", copy, piece);
        assert_int_equal(system(remove), 0);
        assert_int_equal(try_open(copy), KRD_CORRUPT);
        krd_free(remove);
        krd_free(piece);
        krd_free(copy);
    }
}

static void a_store_that_another_process_has_open_is_left_alone(void **state)
{
    struct fixture *f = *state;
    int ready[2], done[2];
    char byte;
    kv_engine_close(f->e);
    f->e = NULL;
    assert_int_equal(pipe(ready) | pipe(done), 0);
    pid_t child = fork();
    if (child == 0) {
        close(done[1]);
        struct kv_engine *e = open_engine(f->dir, 1 << 20);
        put(e, "a", "1");
        bool told = write(ready[1], "r", 1) == 1 && read(done[0], &byte, 1) == 0;
        kv_engine_close(e);
        _exit(told ? 0 : 1);
    }
    close(done[0]);
    assert_int_equal(read(ready[0], &byte, 1), 1);
    assert_int_equal(try_open(f->dir), KRD_IO);
    close(done[1]);
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    close(ready[0]);
    close(ready[1]);
    f->e = open_engine(f->dir, 1 << 20);
    assert_string_equal(get(f->e, NULL, "a"), "1");
}

static void a_failed_write_ends_the_process(void **state)
{
    struct fixture *f = *state;
    kv_engine_close(f->e);
    pid_t child = fork();
    if (child == 0) {
        struct kv_engine *e = open_engine(f->dir, 1 << 20);
        struct rlimit limit = {20000, 20000};
        signal(SIGXFSZ, SIG_IGN); /* the write fails with EFBIG instead */
        close(STDERR_FILENO);     /* the message is for operators */
        setrlimit(RLIMIT_FSIZE, &limit);
        for (int i = 0; i < 1000; i++)
            put(e, "key", "some value that adds up to more than the limit");
        _exit(0);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 70);
    f->e = open_engine(f->dir, 1 << 20); /* and what was written before is there */
    assert_string_not_equal(get(f->e, NULL, "key"), "(none)");
}

static void disk_bytes_follow_the_data(void **state)
{
    struct fixture *f = *state;
    uint64_t before = kv_engine_disk_bytes(f->e);
    char value[10001];
    memset(value, 'x', 10000);
    value[10000] = '\0';
    put(f->e, "a", value);
    assert_true(kv_engine_disk_bytes(f->e) >= before + 10000);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(a_batch_puts_and_deletes_in_order),
        TEST(keys_and_values_are_any_bytes_and_may_be_empty),
        TEST(an_empty_store_has_no_positions),
        TEST(iterators_walk_both_ways),
        TEST(seek_before_finds_the_last_below),
        TEST(iterators_and_snapshots_show_one_moment),
        TEST(behaves_as_an_ordered_map_through_flushes_and_restarts),
        TEST(readers_and_checkpoints_beside_the_writer_see_whole_batches),
        TEST(a_clean_stop_leaves_a_marker_that_opening_takes),
        TEST(a_copy_of_the_running_store_opens_as_after_a_kill),
        TEST(damage_after_a_clean_stop_is_refused_time_and_again),
        TEST(missing_pieces_are_corruption_not_a_new_store),
        TEST(a_store_that_another_process_has_open_is_left_alone),
        TEST(a_failed_write_ends_the_process),
        TEST(disk_bytes_follow_the_data),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
