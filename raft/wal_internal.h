/* wal_internal.h - the log's insides, shared by wal.c (writing), wal_recover.c (opening),
 * wal_read.c (reading) and wal_writer.c (the thread); tests look in as well. */
#ifndef KRD_RAFT_WAL_INTERNAL_H
#define KRD_RAFT_WAL_INTERNAL_H

#include "raft/wal.h"
#include "raft/wal_map.h"
#include "raft/wal_scan.h"

/* A file that waits to become the next segment: long enough, all zeros, synced, and under a
 * temporary name. */
struct wal_spare {
    char *path; /* NULL: none */
    struct krd_file *file;
    uint64_t bytes;
};

struct wal {
    const struct krd_vfs *vfs;
    char *dir;
    uint64_t cluster_id;
    raft_id member_id;
    uint64_t segment_bytes;

    struct wal_map map;
    struct krd_file *file; /* the last segment, open for writing; NULL only before there is one */
    uint32_t seed;         /* of its sectors */
    uint64_t next_seq;     /* of the next frame */
    uint32_t chain;        /* its prev_chain */
    uint64_t older_bytes;  /* length of all segments but the last */
    bool unproven;         /* no later frame proves that the last batch was synced */
    bool checkpoint_waits; /* map.checkpoint is newer than the last frame */

    struct wal_spare spare;
    struct wal_frame_buf frame;
    const struct raft_entry **batch; /* entries of the frame in the making */
    size_t n_batch, cap_batch;

    struct wal_scan scan;       /* for wal_read */
    struct krd_file *read_file; /* an older segment, kept open between reads */
    uint64_t read_segment;      /* its number; 0: none */

    uint64_t sync_us;    /* how long the last write and fdatasync took */
    uint64_t sync_bytes; /* and how much it was */
};

/* --- wal.c -------------------------------------------------------------------------------- */

char *wal_path(const struct wal *w, const char *name);
char *wal_segment_path(const struct wal *w, uint64_t number);
/* Makes a spare under dir/name. pause (may be NULL) is called between slices of zeros and says
 * whether to go on; -ECANCELED when not. On failure nothing is left behind and *step says what
 * did not work. Needs no struct wal: any thread. */
KRD_MUST_CHECK int wal_spare_make(const struct krd_vfs *vfs, const char *dir, const char *name,
                                  uint64_t bytes, bool (*pause)(void *arg), void *arg,
                                  struct wal_spare *out, const char **step);
/* Closes and removes it; for one that is not needed any more. */
void wal_spare_discard(const struct krd_vfs *vfs, struct wal_spare *spare);
/* Begins the next segment, from the spare if there is one. -errno, *step as above. */
KRD_MUST_CHECK int wal_next_segment(struct wal *w, const char **step);
/* The durable half of wal_cut: says that segments [*from, *to) may be unlinked, in any order, by
 * anyone. False: none. */
bool wal_cut_begin(struct wal *w, raft_index index, uint64_t *from, uint64_t *to);
/* How far points are apart: see wal_map.h. */
static inline uint64_t wal_point_spacing(const struct wal *w)
{
    return w->segment_bytes / 64;
}

/* --- wal_recover.c: the decision table ----------------------------------------------------- */

/* The sector in which the next frame should begin. */
enum wal_first {
    WAL_FIRST_VALID,   /* a frame that continues the log begins here */
    WAL_FIRST_ZERO,    /* never written */
    WAL_FIRST_TORN,    /* the beginning of such a frame's first sector, then zeros */
    WAL_FIRST_SPECK,   /* zeros but for a few bytes */
    WAL_FIRST_GARBAGE, /* anything else */
    WAL_FIRST_COUNT,
};
/* What follows: after VALID the frame's other sectors, else everything to the end of the file. */
enum wal_rest {
    WAL_REST_WHOLE,   /* VALID: all there. Else: all zeros */
    WAL_REST_MISSING, /* VALID: some zero or torn. Else: some sectors of this very frame */
    WAL_REST_DAMAGED, /* VALID: some that no crash leaves. Else: bytes that belong to nothing */
    WAL_REST_COUNT,
};
enum wal_verdict {
    WAL_ACCEPT,  /* take the frame, go on behind it */
    WAL_END,     /* the log ends here */
    WAL_CUT,     /* the log ends here, and a frame that was never synced is given up */
    WAL_CORRUPT, /* stop and tell the operator */
};
enum wal_verdict wal_judge(enum wal_first first, enum wal_rest rest, bool later);

#endif
