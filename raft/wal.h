/* wal.h - the durable log. Segment files, preallocated, one writer thread, one fdatasync for all
 * that wait.
 *
 * Two faces. `struct wal` is the log itself, without a thread: recover, append, read, cut; tests
 * and the simulator drive it. `struct wal_writer` is the thread around it: takes writes from the
 * raft loop, gathers all that wait into one batch with one fdatasync, and reports.
 *
 * A failed write or sync ends the process (krd_fatal) with what, where and what to do; nothing is
 * ever retried. Damage that is not a tail that was never synced is KRD_CORRUPT with file and
 * offset in `err`. wal.c opens with what each crash leaves and what is then done. */
#ifndef KRD_RAFT_WAL_H
#define KRD_RAFT_WAL_H

#include "base/mailbox.h"
#include "base/vfs.h"
#include "raft/raft.h"

struct wal;

struct wal_options {
    const struct krd_vfs *vfs;
    const char *dir;     /* must exist; holds nothing but the log */
    uint64_t cluster_id; /* stands in every segment; another one is refused */
    raft_id member_id;
    uint64_t segment_bytes; /* default 64 MiB; tests use a few KiB */
};

/* What was found. Entries are those after `keep_after` (see wal_open), the rest stays on disk. */
struct wal_recovered {
    struct raft_hard_state hard_state;
    raft_index base_index; /* entry before the first in the log */
    raft_term base_term;
    raft_index last_index;
    struct raft_term_run *runs;
    size_t n_runs;
    struct raft_entry *entries; /* (keep_after, last_index], one reference each */
    size_t n_entries;
    struct raft_config_state *config; /* newest configuration in the log; NULL: none */
    raft_index config_index;
    uint64_t time_ms;      /* of the last entry */
    raft_index checkpoint; /* newest recorded by wal_checkpoint; 0: none */
    bool created;          /* there was no log; the caller knows whether that can be */
    bool torn_tail;        /* an unsynced tail was cut off */
    uint64_t torn_offset;  /* where */
    char torn_file[256];
};
void wal_recovered_deinit(struct wal_recovered *rec); /* releases entries, runs, config */

/* Opens or creates the log and recovers it. Only segments that hold entries after keep_after are
 * read in full (older ones are verified when read), so that start-up does not grow with the log.
 * On failure *err is a krd_alloc'd sentence for the operator: file, offset, what to do. */
KRD_MUST_CHECK enum krd_status wal_open(const struct wal_options *o, raft_index keep_after,
                                        struct wal **out, struct wal_recovered *rec, char **err);
void wal_close(struct wal *w); /* takes NULL */

/* Appends one batch, made of many writes in order, and makes it durable with one fdatasync.
 * Entries at or below the present last index replace the log from there on. Ends the process on
 * failure. Thread: the writer. */
void wal_append(struct wal *w, const struct raft_write *writes, size_t n_writes);
/* Records durably that the state machine is safe on its own up to index. With the next batch, or
 * at once when flush. */
void wal_checkpoint(struct wal *w, raft_index index, bool flush);
/* Proves the last batch synced by a small one behind it, if that has not happened yet: what a crash
 * may leave and what would be damage can then be told apart. For moments of idleness. */
void wal_mark(struct wal *w);
/* Removes whole segments of which every entry is at or below index. Thread: the writer. */
void wal_cut(struct wal *w, raft_index index);
/* Reads entries [first, last] until bytes_max is passed (at least one); verifies each. *entries is
 * krd_alloc'd, the caller owns array and references. KRD_NOT_FOUND: not in the log (any more);
 * KRD_CORRUPT, KRD_IO with *err as in wal_open. Thread: the writer. */
KRD_MUST_CHECK enum krd_status wal_read(struct wal *w, raft_index first, raft_index last,
                                        size_t bytes_max, struct raft_entry **entries, size_t *n,
                                        char **err);
raft_index wal_first_index(const struct wal *w); /* base_index + 1 */
uint64_t wal_bytes(const struct wal *w);         /* of all segment files */

/* --- The thread --------------------------------------------------------------------------- */

struct wal_writer;

/* Called on the writer's thread after each batch: everything up to seq is durable. */
struct wal_writer_callbacks {
    void *arg;
    void (*persisted)(void *arg, uint64_t seq);
    /* The answer to wal_writer_fetch; the callee owns array and references. n 0: unreadable. */
    void (*fetched)(void *arg, raft_id peer, struct raft_entry *entries, size_t n);
    /* One observation per fdatasync, microseconds; and the bytes of the batch. */
    void (*synced)(void *arg, uint64_t us, uint64_t bytes);
};

/* Takes over w; wal_writer_stop returns after everything queued is durable and closes it. */
struct wal_writer *wal_writer_start(struct wal *w, const struct wal_writer_callbacks *cb);
void wal_writer_stop(struct wal_writer *t);
/* Any thread. References to the entries are taken; the arrays are copied. */
void wal_writer_append(struct wal_writer *t, const struct raft_write *write);
void wal_writer_fetch(struct wal_writer *t, const struct raft_fetch *fetch);
void wal_writer_checkpoint(struct wal_writer *t, raft_index index);
/* The files are removed by a thread of their own; wal_writer_first_index tells when the log has
 * become shorter. */
void wal_writer_cut(struct wal_writer *t, raft_index index);
/* As of the last turn of the writer. Any thread. */
raft_index wal_writer_first_index(const struct wal_writer *t);
uint64_t wal_writer_bytes(const struct wal_writer *t);
/* True while the next segment cannot be prepared (disk full): what is there still takes what is
 * under way, but users' writes should be refused now. Any thread. */
bool wal_writer_starved(const struct wal_writer *t);

#endif
