/* vfs.c - what can be said in terms of any disk: reading a whole small file, and replacing one so
 * that whatever crashes, its old or its new content is there, whole.
 *
 * Replacement: write NAME.tmp, fsync it, rename it over NAME, fsync the directory. A crash before
 * the rename leaves the old file and perhaps a NAME.tmp, which the next replacement overwrites; a
 * crash between rename and directory sync leaves either (P58, P70). */
#include "base/vfs.h"
#include <errno.h>

int krd_vfs_read_file(const struct krd_vfs *v, const char *path, size_t max, uint8_t **out,
                      size_t *out_len)
{
    struct krd_file *f;
    int r = v->open(v->ctx, path, KRD_OPEN_READ, &f);
    if (r < 0)
        return r;
    uint8_t *bytes = NULL;
    uint64_t size;
    r = v->size(f, &size);
    if (r < 0)
        goto done;
    if (size > max) {
        r = -EFBIG;
        goto done;
    }
    bytes = krd_alloc(size > 0 ? size : 1);
    ssize_t n = v->pread(f, bytes, size, 0);
    if (n < 0) {
        r = (int)n;
        goto done;
    }
    *out = bytes;
    *out_len = (size_t)n;
    bytes = NULL;
    r = 0;
done:
    krd_free(bytes);
    v->close(f);
    return r;
}

static int write_and_sync(const struct krd_vfs *v, const char *path, const void *p, size_t n)
{
    struct krd_file *f;
    int r = v->open(v->ctx, path, KRD_OPEN_WRITE | KRD_OPEN_CREATE, &f);
    if (r < 0)
        return r;
    r = v->ftruncate(f, 0); /* a longer one may have been left by a crash */
    if (r == 0 && n > 0)
        r = v->pwrite(f, p, n, 0);
    if (r == 0)
        r = v->fsync(f);
    v->close(f);
    return r;
}

int krd_vfs_write_file_atomic(const struct krd_vfs *v, const char *dir, const char *name,
                              const void *p, size_t n)
{
    char *path = krd_asprintf("%s/%s", dir, name);
    char *tmp = krd_asprintf("%s/%s.tmp", dir, name);
    int r = write_and_sync(v, tmp, p, n);
    if (r == 0)
        r = v->rename(v->ctx, tmp, path);
    else
        (void)v->unlink(v->ctx, tmp); /* best effort: the error that counts is r */
    if (r == 0)
        r = v->sync_dir(v->ctx, dir);
    krd_free(tmp);
    krd_free(path);
    return r;
}
