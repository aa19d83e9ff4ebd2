/* identity.h - whose data a directory holds, and that nobody else uses it.
 *
 *   DIR/LOCK       flock'd for the life of the process
 *   DIR/identity   format version, cluster id, member id and name; text, written once
 *   DIR/boot       how often this member was started; text, replaced at each start
 *   DIR/log/       the log (raft/wal.h)
 *   DIR/state/     LevelDB (kv/engine.h)
 *
 * Thread: at start, one. */
#ifndef KRD_SERVER_IDENTITY_H
#define KRD_SERVER_IDENTITY_H

#include "base/base.h"

#define IDENTITY_FORMAT 1

struct identity {
    uint64_t cluster_id;
    uint64_t member_id;
    char name[64];
    uint64_t boot;
    bool fresh; /* nothing was in the directory: the caller fills the ids and calls save */
    int lock_fd;
};

/* Creates the directory when missing, locks it and reads who it belongs to; fresh directories keep
 * ids of 0. *err is krd_alloc'd. */
KRD_MUST_CHECK enum krd_status identity_open(const char *dir, struct identity *out, char **err);
/* Writes a fresh directory's identity. */
KRD_MUST_CHECK enum krd_status identity_save(const char *dir, const struct identity *id,
                                             char **err);
/* Counts this start, durably, before anything is sent under its number. */
KRD_MUST_CHECK enum krd_status identity_count_boot(const char *dir, struct identity *id,
                                                   char **err);
void identity_close(struct identity *id);

#endif
