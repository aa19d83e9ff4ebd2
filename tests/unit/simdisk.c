/* simdisk.c - see simdisk.h. Small and plain: linear searches, whole copies. */
#include "tests/unit/simdisk.h"

#include <errno.h>
#include <stdio.h>

#define SECTOR     512
#define PATH_BYTES 120

struct bytes {
    uint8_t *p;
    size_t len, cap;
};

struct inode {
    struct bytes now, durable;
    struct bytes dirty; /* one byte for each sector of now */
    bool size_dirty;
    bool referenced; /* scratch of collect() */
    unsigned open;
};

struct name {
    char path[PATH_BYTES];
    size_t inode;
};

struct names {
    struct name *p;
    size_t n, cap;
};

/* A change of names that sync_dir has not confirmed: from disappears, to stands for inode. */
struct change {
    char from[PATH_BYTES], to[PATH_BYTES]; /* empty: none */
    size_t inode;
};

struct simdisk {
    struct krd_vfs vfs;
    struct inode *inodes;
    size_t n_inodes, cap_inodes;
    struct names now, durable;
    struct change *changes;
    size_t n_changes, cap_changes;
    simdisk_hook *hook;
    void *hook_arg;
};

struct krd_file {
    struct simdisk *d;
    size_t inode;
    char path[PATH_BYTES];
};

/* --- Bytes and names ---------------------------------------------------------------------- */

static void bytes_resize(struct bytes *b, size_t len)
{
    krd_grow(&b->p, &b->cap, len, 1);
    if (len > b->len)
        memset(b->p + b->len, 0, len - b->len);
    b->len = len;
}

static void bytes_copy(struct bytes *to, const struct bytes *from)
{
    krd_grow(&to->p, &to->cap, from->len, 1);
    if (from->len > 0)
        memcpy(to->p, from->p, from->len);
    to->len = from->len;
}

static size_t sectors_of(size_t len)
{
    return (len + SECTOR - 1) / SECTOR;
}

static void inode_resize(struct inode *f, size_t len)
{
    bytes_resize(&f->now, len);
    bytes_resize(&f->dirty, sectors_of(len));
}

static void inode_clean(struct inode *f)
{
    if (f->dirty.len > 0)
        memset(f->dirty.p, 0, f->dirty.len);
    f->size_dirty = false;
}

static void inode_sync(struct inode *f)
{
    if (f->size_dirty)
        bytes_resize(&f->durable, f->now.len);
    for (size_t i = 0; i < f->dirty.len; i++)
        if (f->dirty.p[i]) {
            size_t at = i * SECTOR, n = krd_min_size(SECTOR, f->now.len - at);
            if (f->durable.len < at + n) /* its length was lost by a failed sync */
                bytes_resize(&f->durable, at + n);
            memcpy(f->durable.p + at, f->now.p + at, n);
        }
    inode_clean(f);
}

static struct name *names_find(const struct names *ns, const char *path)
{
    for (size_t i = 0; i < ns->n; i++)
        if (strcmp(ns->p[i].path, path) == 0)
            return &ns->p[i];
    return NULL;
}

static void names_remove(struct names *ns, const char *path)
{
    struct name *e = names_find(ns, path);
    if (e != NULL)
        *e = ns->p[--ns->n];
}

static void names_set(struct names *ns, const char *path, size_t inode)
{
    struct name *e = names_find(ns, path);
    if (e == NULL) {
        krd_grow(&ns->p, &ns->cap, ns->n + 1, sizeof *ns->p);
        e = &ns->p[ns->n++];
        KRD_ASSERT(strlen(path) < sizeof e->path);
        strcpy(e->path, path);
    }
    e->inode = inode;
}

static void names_copy(struct names *to, const struct names *from)
{
    krd_grow(&to->p, &to->cap, from->n, sizeof *to->p);
    if (from->n > 0)
        memcpy(to->p, from->p, from->n * sizeof *to->p);
    to->n = from->n;
}

static void change_apply(const struct change *c, struct names *ns)
{
    if (c->from[0] != '\0')
        names_remove(ns, c->from);
    if (c->to[0] != '\0')
        names_set(ns, c->to, c->inode);
}

static void change_names(struct simdisk *d, const char *from, const char *to, size_t inode)
{
    krd_grow(&d->changes, &d->cap_changes, d->n_changes + 1, sizeof *d->changes);
    struct change *c = &d->changes[d->n_changes++];
    snprintf(c->from, sizeof c->from, "%s", from);
    snprintf(c->to, sizeof c->to, "%s", to);
    c->inode = inode;
    change_apply(c, &d->now);
}

/* Empties inodes that nobody can reach any more. */
static void collect(struct simdisk *d)
{
    for (size_t i = 0; i < d->n_inodes; i++)
        d->inodes[i].referenced = d->inodes[i].open > 0;
    for (size_t i = 0; i < d->now.n; i++)
        d->inodes[d->now.p[i].inode].referenced = true;
    for (size_t i = 0; i < d->durable.n; i++)
        d->inodes[d->durable.p[i].inode].referenced = true;
    for (size_t i = 0; i < d->n_changes; i++)
        if (d->changes[i].to[0] != '\0')
            d->inodes[d->changes[i].inode].referenced = true;
    for (size_t i = 0; i < d->n_inodes; i++) {
        struct inode *f = &d->inodes[i];
        if (!f->referenced) {
            f->now.len = f->durable.len = f->dirty.len = 0;
            f->size_dirty = false;
        }
    }
}

static size_t new_inode(struct simdisk *d)
{
    collect(d);
    for (size_t i = 0; i < d->n_inodes; i++)
        if (!d->inodes[i].referenced)
            return i;
    krd_grow(&d->inodes, &d->cap_inodes, d->n_inodes + 1, sizeof *d->inodes);
    d->inodes[d->n_inodes] = (struct inode){0};
    return d->n_inodes++;
}

/* --- The calls ---------------------------------------------------------------------------- */

static int pass(struct simdisk *d, enum simdisk_op op, const char *path)
{
    return d->hook != NULL ? d->hook(d->hook_arg, op, path) : 0;
}

static int sim_open(void *ctx, const char *path, int flags, struct krd_file **out)
{
    struct simdisk *d = ctx;
    int r = pass(d, SIMDISK_OPEN, path);
    if (r < 0)
        return r;
    struct name *e = names_find(&d->now, path);
    if (e == NULL && !(flags & KRD_OPEN_CREATE))
        return -ENOENT;
    if (e != NULL && (flags & KRD_OPEN_EXCL))
        return -EEXIST;
    if (e == NULL) {
        change_names(d, "", path, new_inode(d));
        e = names_find(&d->now, path);
    }
    struct krd_file *f = krd_alloc(sizeof *f);
    f->d = d;
    f->inode = e->inode;
    strcpy(f->path, e->path);
    d->inodes[f->inode].open++;
    *out = f;
    return 0;
}

static void sim_close(struct krd_file *f)
{
    f->d->inodes[f->inode].open--;
    krd_free(f);
}

/* A file is known to the hook by its present name, whatever it was opened as. */
static int pass_file(struct krd_file *f, enum simdisk_op op)
{
    const char *path = f->path;
    for (size_t i = 0; i < f->d->now.n; i++)
        if (f->d->now.p[i].inode == f->inode)
            path = f->d->now.p[i].path;
    return pass(f->d, op, path);
}

static ssize_t sim_pread(struct krd_file *f, void *p, size_t n, uint64_t offset)
{
    int r = pass_file(f, SIMDISK_READ);
    if (r < 0)
        return r;
    const struct bytes *b = &f->d->inodes[f->inode].now;
    if (offset >= b->len)
        return 0;
    n = krd_min_size(n, b->len - offset);
    memcpy(p, b->p + offset, n);
    return (ssize_t)n;
}

static int sim_pwrite(struct krd_file *f, const void *p, size_t n, uint64_t offset)
{
    int r = pass_file(f, SIMDISK_WRITE);
    if (r < 0)
        return r;
    struct inode *i = &f->d->inodes[f->inode];
    if (n == 0)
        return 0;
    if (offset + n > i->now.len) {
        inode_resize(i, offset + n);
        i->size_dirty = true;
    }
    memcpy(i->now.p + offset, p, n);
    for (uint64_t s = offset / SECTOR; s <= (offset + n - 1) / SECTOR; s++)
        i->dirty.p[s] = 1;
    return 0;
}

static int sim_sync(struct krd_file *f)
{
    int r = pass_file(f, SIMDISK_SYNC);
    struct inode *i = &f->d->inodes[f->inode];
    if (r < 0)
        inode_clean(i);
    else
        inode_sync(i);
    return r;
}

static int sim_resize(struct krd_file *f, uint64_t len, bool shrink)
{
    int r = pass_file(f, SIMDISK_GROW);
    struct inode *i = &f->d->inodes[f->inode];
    if (r < 0)
        return r;
    if (len > i->now.len || (shrink && len < i->now.len)) {
        inode_resize(i, len);
        i->size_dirty = true;
    }
    return 0;
}

static int sim_fallocate(struct krd_file *f, uint64_t offset, uint64_t len)
{
    return sim_resize(f, offset + len, false);
}

static int sim_ftruncate(struct krd_file *f, uint64_t len)
{
    return sim_resize(f, len, true);
}

static int sim_size(struct krd_file *f, uint64_t *out)
{
    *out = f->d->inodes[f->inode].now.len;
    return 0;
}

static int sim_rename(void *ctx, const char *from, const char *to)
{
    struct simdisk *d = ctx;
    int r = pass(d, SIMDISK_RENAME, to);
    if (r < 0)
        return r;
    struct name *e = names_find(&d->now, from);
    if (e == NULL)
        return -ENOENT;
    change_names(d, from, to, e->inode);
    return 0;
}

static int sim_unlink(void *ctx, const char *path)
{
    struct simdisk *d = ctx;
    int r = pass(d, SIMDISK_UNLINK, path);
    if (r < 0)
        return r;
    if (names_find(&d->now, path) == NULL)
        return -ENOENT;
    change_names(d, path, "", 0);
    return 0;
}

static int sim_mkdir(void *ctx, const char *path)
{
    (void)ctx;
    (void)path; /* a name's directory always exists, durably */
    return 0;
}

static int sim_sync_dir(void *ctx, const char *path)
{
    struct simdisk *d = ctx;
    int r = pass(d, SIMDISK_SYNC_DIR, path);
    if (r == 0)
        names_copy(&d->durable, &d->now);
    d->n_changes = 0;
    return r;
}

static int sim_list(void *ctx, const char *path, void (*fn)(void *arg, const char *name), void *arg)
{
    struct simdisk *d = ctx;
    int r = pass(d, SIMDISK_LIST, path);
    size_t n = strlen(path);
    for (size_t i = 0; r == 0 && i < d->now.n; i++) {
        const char *p = d->now.p[i].path;
        if (strncmp(p, path, n) == 0 && p[n] == '/' && strchr(p + n + 1, '/') == NULL)
            fn(arg, p + n + 1);
    }
    return r;
}

/* --- Life --------------------------------------------------------------------------------- */

struct simdisk *simdisk_create(void)
{
    struct simdisk *d = krd_zalloc(sizeof *d);
    d->vfs = (struct krd_vfs){
        .ctx = d,
        .open = sim_open,
        .close = sim_close,
        .pread = sim_pread,
        .pwrite = sim_pwrite,
        .fdatasync = sim_sync,
        .fsync = sim_sync,
        .fallocate = sim_fallocate,
        .ftruncate = sim_ftruncate,
        .size = sim_size,
        .rename = sim_rename,
        .unlink = sim_unlink,
        .mkdir = sim_mkdir,
        .sync_dir = sim_sync_dir,
        .list = sim_list,
    };
    return d;
}

void simdisk_destroy(struct simdisk *d)
{
    if (d == NULL)
        return;
    for (size_t i = 0; i < d->n_inodes; i++) {
        krd_free(d->inodes[i].now.p);
        krd_free(d->inodes[i].durable.p);
        krd_free(d->inodes[i].dirty.p);
    }
    krd_free(d->inodes);
    krd_free(d->now.p);
    krd_free(d->durable.p);
    krd_free(d->changes);
    krd_free(d);
}

const struct krd_vfs *simdisk_vfs(struct simdisk *d)
{
    return &d->vfs;
}

void simdisk_set_hook(struct simdisk *d, simdisk_hook *hook, void *arg)
{
    d->hook = hook;
    d->hook_arg = arg;
}

void simdisk_copy(struct simdisk *to, const struct simdisk *from)
{
    krd_grow(&to->inodes, &to->cap_inodes, from->n_inodes, sizeof *to->inodes);
    for (size_t i = 0; i < to->n_inodes; i++)
        KRD_ASSERT(to->inodes[i].open == 0);
    while (to->n_inodes < from->n_inodes)
        to->inodes[to->n_inodes++] = (struct inode){0};
    for (size_t i = 0; i < to->n_inodes; i++) {
        static const struct inode nothing;
        const struct inode *f = i < from->n_inodes ? &from->inodes[i] : &nothing;
        bytes_copy(&to->inodes[i].now, &f->now);
        bytes_copy(&to->inodes[i].durable, &f->durable);
        bytes_copy(&to->inodes[i].dirty, &f->dirty);
        to->inodes[i].size_dirty = f->size_dirty;
    }
    names_copy(&to->now, &from->now);
    names_copy(&to->durable, &from->durable);
    krd_grow(&to->changes, &to->cap_changes, from->n_changes, sizeof *to->changes);
    if (from->n_changes > 0)
        memcpy(to->changes, from->changes, from->n_changes * sizeof *to->changes);
    to->n_changes = from->n_changes;
}

/* --- Crashes ------------------------------------------------------------------------------ */

size_t simdisk_pending(const struct simdisk *d)
{
    size_t n = d->n_changes;
    for (size_t i = 0; i < d->n_inodes; i++) {
        n += d->inodes[i].size_dirty;
        for (size_t s = 0; s < d->inodes[i].dirty.len; s++)
            n += d->inodes[i].dirty.p[s];
    }
    return n;
}

bool simdisk_is_sector(const struct simdisk *d, size_t atom)
{
    size_t n = d->n_changes;
    for (size_t i = 0; i < d->n_inodes; i++) {
        if (d->inodes[i].size_dirty && n++ == atom)
            return false;
        for (size_t s = 0; s < d->inodes[i].dirty.len; s++)
            if (d->inodes[i].dirty.p[s] && n++ == atom)
                return true;
    }
    return false;
}

/* Which of one file's pending atoms arrive; *atom runs on. */
static void crash_file(struct inode *f, const uint8_t *keep, size_t *atom, size_t torn,
                       size_t torn_bytes)
{
    if (f->size_dirty && keep[(*atom)++])
        bytes_resize(&f->durable, f->now.len);
    for (size_t s = 0; s < f->dirty.len; s++) {
        if (!f->dirty.p[s])
            continue;
        size_t mine = (*atom)++, at = s * SECTOR;
        size_t n = krd_min_size(SECTOR, f->now.len - at);
        if (!keep[mine])
            continue;
        if (f->durable.len < at + n)
            bytes_resize(&f->durable, at + n);
        memcpy(f->durable.p + at, f->now.p + at, mine == torn ? krd_min_size(n, torn_bytes) : n);
    }
    bytes_copy(&f->now, &f->durable);
    bytes_resize(&f->dirty, sectors_of(f->now.len));
    inode_clean(f);
}

void simdisk_crash(struct simdisk *d, const uint8_t *keep, size_t torn, size_t torn_bytes)
{
    size_t atom = 0;
    for (; atom < d->n_changes; atom++)
        if (keep[atom])
            change_apply(&d->changes[atom], &d->durable);
    for (size_t i = 0; i < d->n_inodes; i++)
        crash_file(&d->inodes[i], keep, &atom, torn, torn_bytes);
    d->n_changes = 0;
    names_copy(&d->now, &d->durable);
    collect(d);
}

/* --- At rest ------------------------------------------------------------------------------ */

static struct inode *find(const struct simdisk *d, const char *path)
{
    struct name *e = names_find(&d->now, path);
    return e != NULL ? &d->inodes[e->inode] : NULL;
}

bool simdisk_peek(const struct simdisk *d, const char *path, uint64_t offset, void *p, size_t n)
{
    const struct inode *f = find(d, path);
    if (f == NULL || offset + n > f->now.len)
        return false;
    memcpy(p, f->now.p + offset, n);
    return true;
}

bool simdisk_poke(struct simdisk *d, const char *path, uint64_t offset, const void *p, size_t n)
{
    struct inode *f = find(d, path);
    if (f == NULL || offset + n > f->now.len)
        return false;
    memcpy(f->now.p + offset, p, n);
    if (offset + n <= f->durable.len)
        memcpy(f->durable.p + offset, p, n);
    return true;
}

bool simdisk_shorten(struct simdisk *d, const char *path, uint64_t len)
{
    struct inode *f = find(d, path);
    if (f == NULL || len > f->now.len)
        return false;
    inode_resize(f, len);
    if (f->durable.len > len)
        bytes_resize(&f->durable, len);
    return true;
}

bool simdisk_size(const struct simdisk *d, const char *path, uint64_t *len)
{
    const struct inode *f = find(d, path);
    if (f == NULL)
        return false;
    *len = f->now.len;
    return true;
}
