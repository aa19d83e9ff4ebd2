/* ldb_recover.h - before LevelDB opens its directory again: leaves in its log files an exact
 * prefix of the batches that were written, or says that the directory is damaged.
 *
 * Thread: any, as long as nobody has the directory open. Touches files only; idempotent, and a
 * crash at any point inside leaves what a repetition finishes. */
#ifndef KRD_LDB_RECOVER_H
#define KRD_LDB_RECOVER_H

#include "base/vfs.h"

/* What was cut. Numbers are those in LevelDB's file names. */
struct ldb_cut {
    bool logs;           /* the log files were cut, the fields below say where */
    uint64_t log_number; /* the last file that was kept, in part or whole */
    uint64_t offset;     /* its size now */
    uint64_t lost_bytes; /* cut from it and from the files behind it */
    unsigned lost_files; /* removed behind it */
    const char *why;     /* static; what stood there. "" when nothing was cut */
    bool manifest;       /* an edit that was never synced was cut from the MANIFEST */
};

/* clean: the last stop was clean, so that nothing may need cutting.
 * KRD_OK: LevelDB may open the directory; *cut is filled. An empty or missing directory is fine.
 * KRD_CORRUPT: no crash explains what was found (*err says where; nothing was changed); the store
 * must be rebuilt. KRD_IO: the disk failed. *err is krd_alloc'd, set unless KRD_OK.
 * What is left may end before the last checkpoint when the disk lost synced bytes: the caller
 * compares. */
KRD_MUST_CHECK enum krd_status ldb_recover(const struct krd_vfs *v, const char *dir, bool clean,
                                           struct ldb_cut *cut, char **err);

#endif
