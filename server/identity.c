#include "server/identity.h"

#include "base/log.h"
#include "base/vfs.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/file.h>
#include <unistd.h>

#define FILE_BYTES_MAX 4096

static enum krd_status fail(char **err, const char *what, const char *path, int errnum)
{
    *err = krd_asprintf("%s %s: %s", what, path, strerror(errnum));
    return KRD_IO;
}

static enum krd_status lock_dir(const char *dir, struct identity *id, char **err)
{
    char *path = krd_asprintf("%s/LOCK", dir);
    enum krd_status st = KRD_OK;
    id->lock_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (id->lock_fd < 0) {
        st = fail(err, "cannot open", path, errno);
    } else if (flock(id->lock_fd, LOCK_EX | LOCK_NB) != 0) {
        char holder[32] = "";
        ssize_t n = pread(id->lock_fd, holder, sizeof holder - 1, 0);
        holder[n > 0 ? strcspn(holder, "\n") : 0] = '\0';
        *err = krd_asprintf("data directory %s is in use by another kvraftd (pid %s)", dir,
                            holder[0] != '\0' ? holder : "unknown");
        st = KRD_CONFLICT;
    } else {
        char pid[32];
        int n = snprintf(pid, sizeof pid, "%d\n", (int)getpid());
        if (ftruncate(id->lock_fd, 0) != 0 || pwrite(id->lock_fd, pid, (size_t)n, 0) != n)
            st = fail(err, "cannot write", path, errno);
    }
    krd_free(path);
    return st;
}

/* Makes the directory and what is missing above it, each made durable in its parent. */
static int make_dirs(const char *dir)
{
    const struct krd_vfs *v = krd_vfs_posix();
    char *path = krd_strdup(dir);
    int rv = 0;
    for (char *slash = path + 1; rv == 0; slash++) {
        if (*slash != '/' && *slash != '\0')
            continue;
        char was = *slash;
        *slash = '\0';
        if (access(path, F_OK) != 0)
            rv = v->mkdir(v->ctx, path);
        *slash = was;
        if (was == '\0')
            break;
    }
    krd_free(path);
    return rv;
}

/* A small text file; *text is NUL-terminated, NULL when there is none. */
static enum krd_status read_text(const char *path, char **text, char **err)
{
    uint8_t *bytes = NULL;
    size_t n = 0;
    *text = NULL;
    int rv = krd_vfs_read_file(krd_vfs_posix(), path, FILE_BYTES_MAX, &bytes, &n);
    if (rv == -ENOENT)
        return KRD_OK;
    if (rv < 0)
        return fail(err, "cannot read", path, -rv);
    *text = krd_alloc(n + 1);
    memcpy(*text, bytes, n);
    (*text)[n] = '\0';
    krd_free(bytes);
    return KRD_OK;
}

static enum krd_status read_identity(const char *dir, struct identity *id, char **err)
{
    char *path = krd_asprintf("%s/identity", dir), *text;
    enum krd_status st = read_text(path, &text, err);
    if (st == KRD_OK && text == NULL) {
        id->fresh = true;
    } else if (st == KRD_OK) {
        unsigned format = 0;
        int n = sscanf(text, "format %u\ncluster %" SCNx64 "\nmember %" SCNx64 "\nname %63[^\n]\n",
                       &format, &id->cluster_id, &id->member_id, id->name);
        if (n >= 1 && format != IDENTITY_FORMAT) {
            *err = krd_asprintf("%s: data of format %u; this kvraftd reads format %u. Use the "
                                "version that wrote it",
                                path, format, IDENTITY_FORMAT);
            st = KRD_CORRUPT;
        } else if (n != 4 || id->cluster_id == 0 || id->member_id == 0) {
            *err = krd_asprintf("%s is damaged: restore the file, or give this member an empty "
                                "directory and a new id",
                                path);
            st = KRD_CORRUPT;
        }
    }
    krd_free(text);
    krd_free(path);
    return st;
}

enum krd_status identity_open(const char *dir, struct identity *out, char **err)
{
    *out = (struct identity){.lock_fd = -1};
    int rv = make_dirs(dir);
    if (rv < 0)
        return fail(err, "cannot create data directory", dir, -rv);
    enum krd_status st = lock_dir(dir, out, err);
    if (st == KRD_OK)
        st = read_identity(dir, out, err);
    if (st != KRD_OK)
        identity_close(out);
    return st;
}

enum krd_status identity_save(const char *dir, const struct identity *id, char **err)
{
    char *text = krd_asprintf("format %u\ncluster %016" PRIx64 "\nmember %016" PRIx64 "\nname %s\n",
                              IDENTITY_FORMAT, id->cluster_id, id->member_id, id->name);
    int rv = krd_vfs_write_file_atomic(krd_vfs_posix(), dir, "identity", text, strlen(text));
    krd_free(text);
    return rv == 0 ? KRD_OK : fail(err, "cannot write the identity in", dir, -rv);
}

enum krd_status identity_count_boot(const char *dir, struct identity *id, char **err)
{
    char *path = krd_asprintf("%s/boot", dir), *text;
    enum krd_status st = read_text(path, &text, err);
    if (st == KRD_OK) {
        char *end = text;
        id->boot = text != NULL ? strtoull(text, &end, 10) : 0;
        if (text != NULL && (end == text || *end != '\n')) {
            *err = krd_asprintf("%s is damaged: it must hold a number larger than every earlier "
                                "one; write e.g. the seconds since 1970 into it",
                                path);
            st = KRD_CORRUPT;
        }
    }
    krd_free(text);
    krd_free(path);
    if (st != KRD_OK)
        return st;
    id->boot++;
    char number[32];
    int n = snprintf(number, sizeof number, "%" PRIu64 "\n", id->boot);
    int rv = krd_vfs_write_file_atomic(krd_vfs_posix(), dir, "boot", number, (size_t)n);
    return rv == 0 ? KRD_OK : fail(err, "cannot write the boot number in", dir, -rv);
}

void identity_close(struct identity *id)
{
    if (id->lock_fd >= 0)
        close(id->lock_fd);
    id->lock_fd = -1;
}
