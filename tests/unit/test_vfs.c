/* test_vfs.c - every disk keeps the same contract: the real one and the one in memory. And what
 * the one in memory may lose, since proofs elsewhere stand on it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "base/vfs.h"
#include "tests/unit/simdisk.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

struct fixture {
    struct simdisk *disk; /* NULL: the real one */
    const struct krd_vfs *v;
    char dir[64];
    char path[3][96];
};

static void name_paths(struct fixture *f)
{
    for (int i = 0; i < 3; i++)
        snprintf(f->path[i], sizeof f->path[i], "%s/file%d", f->dir, i);
}

static int setup_posix(void **state)
{
    struct fixture *f = krd_zalloc(sizeof *f);
    f->v = krd_vfs_posix();
    strcpy(f->dir, "/tmp/test_vfs_XXXXXX");
    if (mkdtemp(f->dir) == NULL)
        return -1;
    name_paths(f);
    *state = f;
    return 0;
}

static int setup_sim(void **state)
{
    struct fixture *f = krd_zalloc(sizeof *f);
    f->disk = simdisk_create();
    f->v = simdisk_vfs(f->disk);
    strcpy(f->dir, "dir");
    name_paths(f);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    if (f->disk == NULL) {
        char command[80];
        snprintf(command, sizeof command, "rm -r %s", f->dir);
        if (system(command) != 0)
            return -1;
    }
    simdisk_destroy(f->disk);
    krd_free(f);
    return 0;
}

static struct krd_file *open_file(struct fixture *f, int which, int flags)
{
    struct krd_file *file;
    assert_int_equal(f->v->open(f->v->ctx, f->path[which], flags, &file), 0);
    return file;
}

static struct krd_file *create_file(struct fixture *f, int which)
{
    return open_file(f, which, KRD_OPEN_WRITE | KRD_OPEN_CREATE);
}

static void opening_keeps_its_flags(void **state)
{
    struct fixture *f = *state;
    struct krd_file *file;
    assert_int_equal(f->v->open(f->v->ctx, f->path[0], KRD_OPEN_READ, &file), -ENOENT);
    assert_int_equal(f->v->open(f->v->ctx, f->path[0], KRD_OPEN_WRITE, &file), -ENOENT);
    f->v->close(create_file(f, 0));
    f->v->close(create_file(f, 0));
    f->v->close(open_file(f, 0, KRD_OPEN_READ));
    int excl = KRD_OPEN_WRITE | KRD_OPEN_CREATE | KRD_OPEN_EXCL;
    assert_int_equal(f->v->open(f->v->ctx, f->path[0], excl, &file), -EEXIST);
    f->v->close(open_file(f, 1, excl));
}

static void what_was_written_is_read(void **state)
{
    struct fixture *f = *state;
    struct krd_file *file = create_file(f, 0);
    char buf[16] = {0};
    uint64_t size;
    assert_int_equal(f->v->pread(file, buf, 5, 0), 0);
    assert_int_equal(f->v->pwrite(file, "hello", 5, 3), 0);
    assert_int_equal(f->v->pread(file, buf, sizeof buf, 0), 8); /* ends with the file */
    assert_memory_equal(buf, "\0\0\0hello", 8);
    assert_int_equal(f->v->pread(file, buf, 2, 4), 2);
    assert_memory_equal(buf, "el", 2);
    assert_int_equal(f->v->pread(file, buf, 2, 100), 0);
    assert_int_equal(f->v->size(file, &size), 0);
    assert_int_equal(size, 8);
    assert_int_equal(f->v->fallocate(file, 0, 1000), 0);
    assert_int_equal(f->v->size(file, &size), 0);
    assert_int_equal(size, 1000);
    assert_int_equal(f->v->fallocate(file, 0, 10), 0); /* never shortens */
    assert_int_equal(f->v->size(file, &size), 0);
    assert_int_equal(size, 1000);
    assert_int_equal(f->v->ftruncate(file, 5), 0);
    assert_int_equal(f->v->ftruncate(file, 9), 0);
    assert_int_equal(f->v->pread(file, buf, sizeof buf, 0), 9);
    assert_memory_equal(buf, "\0\0\0he\0\0\0\0", 9);
    assert_int_equal(f->v->fdatasync(file), 0);
    assert_int_equal(f->v->fsync(file), 0);
    f->v->close(file);
}

static void collect_names(void *arg, const char *name)
{
    strcat(arg, name);
    strcat(arg, " ");
}

static void names_can_be_changed_and_listed(void **state)
{
    struct fixture *f = *state;
    char names[200] = "";
    struct krd_file *file = create_file(f, 0);
    assert_int_equal(f->v->pwrite(file, "zero", 4, 0), 0);
    f->v->close(create_file(f, 1));
    assert_int_equal(f->v->rename(f->v->ctx, f->path[0], f->path[1]), 0); /* replaces */
    char buf[4];
    assert_int_equal(f->v->pread(file, buf, 4, 0), 4); /* an open file survives its name */
    f->v->close(file);
    assert_int_equal(f->v->list(f->v->ctx, f->dir, collect_names, names), 0);
    assert_string_equal(names, "file1 ");
    assert_int_equal(f->v->rename(f->v->ctx, f->path[0], f->path[1]), -ENOENT);
    assert_int_equal(f->v->unlink(f->v->ctx, f->path[1]), 0);
    assert_int_equal(f->v->unlink(f->v->ctx, f->path[1]), -ENOENT);
    assert_int_equal(f->v->sync_dir(f->v->ctx, f->dir), 0);
    names[0] = '\0';
    assert_int_equal(f->v->list(f->v->ctx, f->dir, collect_names, names), 0);
    assert_string_equal(names, "");
}

static void a_directory_is_made_once(void **state)
{
    struct fixture *f = *state;
    struct krd_file *file;
    assert_int_equal(f->v->mkdir(f->v->ctx, f->path[0]), 0);
    assert_int_equal(f->v->mkdir(f->v->ctx, f->path[0]), 0);
    assert_int_equal(f->v->list(f->v->ctx, f->path[0], collect_names, NULL), 0);
    assert_int_equal(f->v->open(f->v->ctx, f->path[1], KRD_OPEN_WRITE | KRD_OPEN_CREATE, &file), 0);
    f->v->close(file);
    assert_int_equal(f->v->mkdir(f->v->ctx, f->path[1]), -ENOTDIR);
    assert_int_equal(f->v->list(f->v->ctx, f->path[2], collect_names, NULL), -ENOENT);
}

static void whole_files_are_read_and_replaced(void **state)
{
    struct fixture *f = *state;
    uint8_t *p;
    size_t n;
    assert_int_equal(krd_vfs_read_file(f->v, f->path[0], 100, &p, &n), -ENOENT);
    assert_int_equal(krd_vfs_write_file_atomic(f->v, f->dir, "file0", "a longer text", 13), 0);
    assert_int_equal(krd_vfs_write_file_atomic(f->v, f->dir, "file0", "text", 4), 0);
    assert_int_equal(krd_vfs_read_file(f->v, f->path[0], 4, &p, &n), 0);
    assert_int_equal(n, 4);
    assert_memory_equal(p, "text", 4);
    krd_free(p);
    assert_int_equal(krd_vfs_read_file(f->v, f->path[0], 3, &p, &n), -EFBIG);
    assert_int_equal(krd_vfs_write_file_atomic(f->v, f->dir, "file0", NULL, 0), 0);
    assert_int_equal(krd_vfs_read_file(f->v, f->path[0], 0, &p, &n), 0);
    assert_int_equal(n, 0);
    krd_free(p);
    char names[100] = "";
    assert_int_equal(f->v->list(f->v->ctx, f->dir, collect_names, names), 0);
    assert_string_equal(names, "file0 ");
}

/* --- The disk in memory ------------------------------------------------------------------- */

static void unsynced_things_are_kept_in_any_subset(void **state)
{
    struct fixture *f = *state;
    struct simdisk *d = simdisk_create(), *image = simdisk_create();
    uint8_t ones[1024], twos[1024], got[1024];
    memset(ones, 1, sizeof ones);
    memset(twos, 2, sizeof twos);
    f->v = simdisk_vfs(d);
    struct krd_file *file = create_file(f, 0);
    assert_int_equal(f->v->pwrite(file, ones, 1024, 0), 0);
    assert_int_equal(simdisk_pending(d), 4); /* name, length, two sectors */
    uint8_t name_only[] = {1, 0, 0, 0}, no_name[] = {0, 1, 1, 1}, tail[] = {1, 0, 0, 1};
    uint64_t size;
    simdisk_copy(image, d);
    simdisk_crash(image, name_only, SIMDISK_NOT_TORN, 0);
    assert_true(simdisk_size(image, f->path[0], &size) && size == 0);
    simdisk_copy(image, d);
    simdisk_crash(image, no_name, SIMDISK_NOT_TORN, 0);
    assert_false(simdisk_size(image, f->path[0], &size));
    simdisk_copy(image, d);
    simdisk_crash(image, tail, 3, 100);
    assert_true(simdisk_peek(image, f->path[0], 0, got, 1024));
    for (size_t i = 0; i < 1024; i++)
        assert_int_equal(got[i], i >= 512 && i < 612);

    assert_int_equal(f->v->fdatasync(file), 0);
    assert_int_equal(simdisk_pending(d), 1); /* the name is still the directory's */
    assert_int_equal(f->v->sync_dir(f->v->ctx, f->dir), 0);
    assert_int_equal(simdisk_pending(d), 0);
    assert_int_equal(f->v->pwrite(file, twos, 1024, 0), 0);
    assert_int_equal(f->v->rename(f->v->ctx, f->path[0], f->path[1]), 0);
    uint8_t second[] = {0, 0, 1};
    simdisk_copy(image, d);
    simdisk_crash(image, second, SIMDISK_NOT_TORN, 0);
    assert_true(simdisk_peek(image, f->path[0], 0, got, 1024));
    for (size_t i = 0; i < 1024; i++)
        assert_int_equal(got[i], i < 512 ? 1 : 2);
    f->v->close(file);
    simdisk_destroy(d);
    simdisk_destroy(image);
}

static int fail_syncs(void *arg, enum simdisk_op op, const char *path)
{
    (void)arg;
    (void)path;
    return op == SIMDISK_SYNC ? -EIO : 0;
}

static void a_failed_sync_leaves_pages_that_only_look_durable(void **state)
{
    struct fixture *f = *state;
    struct krd_file *file = create_file(f, 0);
    assert_int_equal(f->v->sync_dir(f->v->ctx, f->dir), 0);
    assert_int_equal(f->v->pwrite(file, "abc", 3, 0), 0);
    simdisk_set_hook(f->disk, fail_syncs, NULL);
    assert_int_equal(f->v->fdatasync(file), -EIO);
    simdisk_set_hook(f->disk, NULL, NULL);
    assert_int_equal(f->v->fdatasync(file), 0); /* "succeeds" */
    char buf[3];
    assert_int_equal(f->v->pread(file, buf, 3, 0), 3);
    f->v->close(file);
    assert_int_equal(simdisk_pending(f->disk), 0);
    simdisk_crash(f->disk, NULL, SIMDISK_NOT_TORN, 0);
    uint64_t size;
    assert_true(simdisk_size(f->disk, f->path[0], &size) && size == 0);
}

struct replacing {
    struct simdisk *disk, *image;
    const char *path;
    unsigned images;
};

/* At every call, with every subset of what is pending: the old content or the new one. */
static int expect_old_or_new(void *arg, enum simdisk_op op, const char *path)
{
    struct replacing *r = arg;
    (void)op;
    (void)path;
    size_t n = simdisk_pending(r->disk);
    assert_true(n <= 12);
    for (size_t subset = 0; subset < (size_t)1 << n; subset++) {
        uint8_t keep[12];
        for (size_t i = 0; i < n; i++)
            keep[i] = subset >> i & 1;
        simdisk_copy(r->image, r->disk);
        simdisk_crash(r->image, keep, SIMDISK_NOT_TORN, 0);
        uint8_t *p;
        size_t len;
        assert_int_equal(krd_vfs_read_file(simdisk_vfs(r->image), r->path, 5000, &p, &len), 0);
        assert_true((len == 3 && memcmp(p, "old", 3) == 0) || (len == 1500 && p[1499] == 'n'));
        krd_free(p);
        r->images++;
    }
    return 0;
}

static void a_replaced_file_is_old_or_new_whatever_crashes(void **state)
{
    struct fixture *f = *state;
    uint8_t text[1500];
    memset(text, 'n', sizeof text);
    struct replacing r = {f->disk, simdisk_create(), f->path[0], 0};
    assert_int_equal(krd_vfs_write_file_atomic(f->v, f->dir, "file0", "old", 3), 0);
    simdisk_set_hook(f->disk, expect_old_or_new, &r);
    assert_int_equal(krd_vfs_write_file_atomic(f->v, f->dir, "file0", text, sizeof text), 0);
    simdisk_set_hook(f->disk, NULL, NULL);
    assert_true(r.images > 30);
    simdisk_crash(f->disk, NULL, SIMDISK_NOT_TORN, 0); /* nothing is pending any more */
    uint64_t size;
    assert_true(simdisk_size(f->disk, f->path[0], &size) && size == sizeof text);
    simdisk_destroy(r.image);
}

int main(void)
{
#define POSIX(test)                                        \
    {                                                      \
        "posix: " #test, test, setup_posix, teardown, NULL \
    }
#define SIM(test)                                            \
    {                                                        \
        "in memory: " #test, test, setup_sim, teardown, NULL \
    }
    const struct CMUnitTest tests[] = {
        POSIX(opening_keeps_its_flags),
        SIM(opening_keeps_its_flags),
        POSIX(what_was_written_is_read),
        SIM(what_was_written_is_read),
        POSIX(names_can_be_changed_and_listed),
        SIM(names_can_be_changed_and_listed),
        POSIX(a_directory_is_made_once),
        POSIX(whole_files_are_read_and_replaced),
        SIM(whole_files_are_read_and_replaced),
        SIM(unsynced_things_are_kept_in_any_subset),
        SIM(a_failed_sync_leaves_pages_that_only_look_durable),
        SIM(a_replaced_file_is_old_or_new_whatever_crashes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
