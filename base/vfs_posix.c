/* vfs_posix.c - the disk of the product: each function is the system call of its name.
 *
 * What is promised beyond the calls: EINTR is retried, a short read or write is carried on, and
 * every error comes back as -errno. A sync that failed is reported once and never repeated: the
 * kernel may have marked the pages clean, so that a second call would succeed without having
 * written anything (P57).
 *
 * The files are opened with O_CLOEXEC: a child must not keep a log open. */
#include "base/vfs.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

struct krd_file {
    int fd;
};

static int open_retry(const char *path, int flags)
{
    int fd;
    do {
        fd = open(path, flags | O_CLOEXEC, 0640);
    } while (fd < 0 && errno == EINTR);
    return fd < 0 ? -errno : fd;
}

static int os_open(void *ctx, const char *path, int flags, struct krd_file **out)
{
    (void)ctx;
    int oflags = (flags & KRD_OPEN_WRITE) ? O_RDWR : O_RDONLY;
    oflags |= (flags & KRD_OPEN_CREATE) ? O_CREAT : 0;
    oflags |= (flags & KRD_OPEN_EXCL) ? O_EXCL : 0;
    int fd = open_retry(path, oflags);
    if (fd < 0)
        return fd;
    struct krd_file *f = krd_alloc(sizeof *f);
    f->fd = fd;
    *out = f;
    return 0;
}

static void os_close(struct krd_file *f)
{
    /* Nothing depends on close's result: whoever needs durability has synced before. */
    close(f->fd);
    krd_free(f);
}

static ssize_t os_pread(struct krd_file *f, void *p, size_t n, uint64_t offset)
{
    size_t done = 0;
    while (done < n) {
        ssize_t r = pread(f->fd, (uint8_t *)p + done, n - done, (off_t)(offset + done));
        if (r < 0 && errno == EINTR)
            continue;
        if (r < 0)
            return -errno;
        if (r == 0)
            break;
        done += (size_t)r;
    }
    return (ssize_t)done;
}

static int os_pwrite(struct krd_file *f, const void *p, size_t n, uint64_t offset)
{
    size_t done = 0;
    while (done < n) {
        ssize_t r = pwrite(f->fd, (const uint8_t *)p + done, n - done, (off_t)(offset + done));
        if (r < 0 && errno == EINTR)
            continue;
        if (r < 0)
            return -errno;
        if (r == 0)
            return -EIO; /* a regular file never does this; do not spin */
        done += (size_t)r;
    }
    return 0;
}

/* EINTR included: a sync that was interrupted has not been done, and whether a repetition would
 * do it cannot be known. */
static int os_fdatasync(struct krd_file *f)
{
    return fdatasync(f->fd) < 0 ? -errno : 0;
}
static int os_fsync(struct krd_file *f)
{
    return fsync(f->fd) < 0 ? -errno : 0;
}

static int os_fallocate(struct krd_file *f, uint64_t offset, uint64_t len)
{
    int r;
    do {
        r = fallocate(f->fd, 0, (off_t)offset, (off_t)len);
    } while (r < 0 && errno == EINTR);
    return r < 0 ? -errno : 0;
}

static int os_ftruncate(struct krd_file *f, uint64_t len)
{
    int r;
    do {
        r = ftruncate(f->fd, (off_t)len);
    } while (r < 0 && errno == EINTR);
    return r < 0 ? -errno : 0;
}

static int os_size(struct krd_file *f, uint64_t *out)
{
    struct stat st;
    if (fstat(f->fd, &st) < 0)
        return -errno;
    *out = (uint64_t)st.st_size;
    return 0;
}

static int os_rename(void *ctx, const char *from, const char *to)
{
    (void)ctx;
    return rename(from, to) < 0 ? -errno : 0;
}

static int os_unlink(void *ctx, const char *path)
{
    (void)ctx;
    return unlink(path) < 0 ? -errno : 0;
}

static int os_mkdir(void *ctx, const char *path)
{
    (void)ctx;
    if (mkdir(path, 0750) == 0)
        return 0;
    if (errno != EEXIST)
        return -errno;
    struct stat st;
    if (stat(path, &st) < 0)
        return -errno;
    return S_ISDIR(st.st_mode) ? 0 : -ENOTDIR;
}

static int os_sync_dir(void *ctx, const char *path)
{
    (void)ctx;
    int fd = open_retry(path, O_RDONLY | O_DIRECTORY);
    if (fd < 0)
        return fd;
    int r = fsync(fd) < 0 ? -errno : 0;
    close(fd);
    return r;
}

static int os_list(void *ctx, const char *path, void (*fn)(void *arg, const char *name), void *arg)
{
    (void)ctx;
    DIR *d = opendir(path);
    if (d == NULL)
        return -errno;
    int r = 0;
    for (;;) {
        errno = 0;
        struct dirent *e = readdir(d);
        if (e == NULL) {
            r = -errno;
            break;
        }
        if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0)
            fn(arg, e->d_name);
    }
    closedir(d);
    return r;
}

const struct krd_vfs *krd_vfs_posix(void)
{
    static const struct krd_vfs vfs = {
        .ctx = NULL,
        .open = os_open,
        .close = os_close,
        .pread = os_pread,
        .pwrite = os_pwrite,
        .fdatasync = os_fdatasync,
        .fsync = os_fsync,
        .fallocate = os_fallocate,
        .ftruncate = os_ftruncate,
        .size = os_size,
        .rename = os_rename,
        .unlink = os_unlink,
        .mkdir = os_mkdir,
        .sync_dir = os_sync_dir,
        .list = os_list,
    };
    return &vfs;
}
