/* simdisk.h - a disk in memory that loses what was not synced. For tests and the simulator.
 *
 * Each file has two contents: what reads return (the kernel's memory) and what is durable. Between
 * two syncs the sectors (512 bytes) that were written, a grown length, and the creations, renames
 * and removals of names are pending: independent atoms, of which a crash keeps any subset. One
 * sector that is kept may be torn: only its first bytes arrive. fdatasync and fsync make one file's
 * content durable, never its name; sync_dir makes all names durable.
 *
 * Every call first passes a hook, numbered, which may look at the disk (and copy it: that is the
 * image at this very moment) or make the call fail. A failed sync leaves the pages readable,
 * clean, and not durable: the worst that kernels were seen to do.
 *
 * Of a sector written twice between two syncs only the older durable content and the newest are
 * possible afterwards, not the one between. Not thread-safe. */
#ifndef KRD_TESTS_SIMDISK_H
#define KRD_TESTS_SIMDISK_H

#include "base/vfs.h"

enum simdisk_op {
    SIMDISK_OPEN,
    SIMDISK_READ,
    SIMDISK_WRITE,
    SIMDISK_SYNC,
    SIMDISK_GROW, /* fallocate, ftruncate */
    SIMDISK_RENAME,
    SIMDISK_UNLINK,
    SIMDISK_SYNC_DIR,
    SIMDISK_LIST,
};

struct simdisk;
struct simdisk *simdisk_create(void);
void simdisk_destroy(struct simdisk *d); /* takes NULL */
const struct krd_vfs *simdisk_vfs(struct simdisk *d);
/* Makes `to` equal to `from`, but for the hook. No file of `to` may be open. */
void simdisk_copy(struct simdisk *to, const struct simdisk *from);
/* Returns 0, or the -errno with which the call fails. NULL: none. */
typedef int simdisk_hook(void *arg, enum simdisk_op op, const char *path);
void simdisk_set_hook(struct simdisk *d, simdisk_hook *hook, void *arg);

/* How many things are pending. Their order is fixed: names first (oldest first), then for each file
 * its length and its sectors, ascending. */
size_t simdisk_pending(const struct simdisk *d);
#define SIMDISK_NOT_TORN SIZE_MAX
/* Power fails: keep[i] says whether atom i is kept; of atom `torn`, if it is a sector, only the
 * first torn_bytes. What remains is both durable and visible. No file may be used any more but to
 * be closed. */
void simdisk_crash(struct simdisk *d, const uint8_t *keep, size_t torn, size_t torn_bytes);
bool simdisk_is_sector(const struct simdisk *d, size_t atom);

/* At rest, below everyone: changes durable and visible content. False: there is no such file (or
 * byte). */
bool simdisk_peek(const struct simdisk *d, const char *path, uint64_t offset, void *p, size_t n);
bool simdisk_poke(struct simdisk *d, const char *path, uint64_t offset, const void *p, size_t n);
bool simdisk_shorten(struct simdisk *d, const char *path, uint64_t len);
bool simdisk_size(const struct simdisk *d, const char *path, uint64_t *len);

#endif
