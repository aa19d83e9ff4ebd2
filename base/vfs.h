/* vfs.h - everything that touches a file goes through here, so that tests and the simulator can
 * put a disk of their own below and make it fail. One struct of functions; the product's is
 * krd_vfs_posix(). Paths are absolute or relative to the process.
 *
 * Results: 0 or a count >= 0 on success, -errno on failure. EINTR is retried inside; a short
 * write is completed inside. Nothing is ever retried after a failed sync.
 * Thread: as the caller arranges; a file object is used by one thread at a time, except that
 * pread may run beside others. */
#ifndef KRD_VFS_H
#define KRD_VFS_H

#include "base/base.h"
#include <sys/types.h>

struct krd_file; /* an open file */

enum krd_open_flags {
    KRD_OPEN_READ = 1,
    KRD_OPEN_WRITE = 2,  /* read and write */
    KRD_OPEN_CREATE = 4, /* create when missing */
    KRD_OPEN_EXCL = 8,   /* with CREATE: fail when present */
};

struct krd_vfs {
    void *ctx;
    int (*open)(void *ctx, const char *path, int flags, struct krd_file **out);
    void (*close)(struct krd_file *f);
    /* Reads up to n bytes; fewer only at the end of the file. */
    ssize_t (*pread)(struct krd_file *f, void *p, size_t n, uint64_t offset);
    int (*pwrite)(struct krd_file *f, const void *p, size_t n, uint64_t offset);
    int (*fdatasync)(struct krd_file *f);
    int (*fsync)(struct krd_file *f);
    int (*fallocate)(struct krd_file *f, uint64_t offset, uint64_t len);
    int (*ftruncate)(struct krd_file *f, uint64_t len);
    int (*size)(struct krd_file *f, uint64_t *out);
    int (*rename)(void *ctx, const char *from, const char *to);
    int (*unlink)(void *ctx, const char *path);
    int (*mkdir)(void *ctx, const char *path); /* 0 also when it is there already */
    int (*sync_dir)(void *ctx, const char *path);
    /* Calls fn for each name in the directory but . and .., in no particular order. */
    int (*list)(void *ctx, const char *path, void (*fn)(void *arg, const char *name), void *arg);
};

const struct krd_vfs *krd_vfs_posix(void);

/* Conveniences over any vfs. */
/* Whole file into *out (krd_alloc'd, caller frees); refuses more than max bytes with -EFBIG. */
KRD_MUST_CHECK int krd_vfs_read_file(const struct krd_vfs *v, const char *path, size_t max,
                                     uint8_t **out, size_t *out_len);
/* Replaces path atomically: temporary name, fsync, rename, fsync of the directory. */
KRD_MUST_CHECK int krd_vfs_write_file_atomic(const struct krd_vfs *v, const char *dir,
                                             const char *name, const void *p, size_t n);

#endif
