/* wal_map.h - what the log holds and where: its ends, its terms, its configurations, and for each
 * entry the segment and roughly the offset at which it can be read. Plain memory; writing and
 * recovery tell it the same story in the same order, so that both end with the same map.
 *
 * Entries are replaced, never removed: a frame whose first index is at or below the last one makes
 * everything from there on invalid, wherever it lies (§5.3). So for each index the youngest place
 * counts, and the map keeps exactly those:
 *
 *   segment 7: before 0    live_last 40    (held 1..60; 41..60 were replaced by segment 8)
 *   segment 8: before 60   live_last 90    low 41
 *   segment 9: before 90   live_last 95    entries (90, 95]
 *
 * and inside a segment the same with points: entries [point.index, next point's index) are read
 * by walking the frames from point.offset on.
 *
 * Thread: one, the writer's. */
#ifndef KRD_RAFT_WAL_MAP_H
#define KRD_RAFT_WAL_MAP_H

#include "raft/wal_format.h"

struct wal_segment {
    uint64_t number;
    uint64_t bytes;           /* length of the file */
    uint64_t end;             /* of its last frame; end <= bytes */
    uint64_t seq;             /* of its opening frame */
    raft_index before;        /* last index of the log when it was opened */
    raft_index low;           /* lowest index written in it; before + 1: none */
    raft_index live_last;     /* entries (previous segment's live_last, this] are read from here */
    struct wal_point *points; /* ascending by index and by offset */
    size_t n_points, cap_points;
};

struct wal_config_at {
    raft_index index;
    uint8_t *payload; /* as in its entry */
    uint32_t length;
};

struct wal_map {
    struct raft_hard_state hs;
    raft_index checkpoint;
    uint64_t first_segment; /* lower numbers have been cut */
    raft_index base_index;  /* entry before the first; <= last_index */
    raft_term base_term;
    raft_index last_index;
    raft_term last_term;
    uint64_t last_time_ms;
    struct raft_term_run *runs; /* of (base_index, last_index] */
    size_t n_runs, cap_runs;
    /* The newest committed configuration and all behind it: an uncommitted one can be rolled
     * back, then the one before counts again. */
    struct wal_config_at *configs;
    size_t n_configs, cap_configs;
    struct wal_segment *segments; /* ascending, without gaps; the last one is written to */
    size_t n_segments, cap_segments;
};

void wal_map_deinit(struct wal_map *m);
/* Term of an entry or of base_index; 0 when the log does not have it. */
raft_term wal_map_term(const struct wal_map *m, raft_index index);
/* A new last segment; no entries are in it yet. */
struct wal_segment *wal_map_open(struct wal_map *m, uint64_t number);
static inline struct wal_segment *wal_map_current(struct wal_map *m)
{
    KRD_ASSERT(m->n_segments > 0);
    return &m->segments[m->n_segments - 1];
}
/* A frame of entries that begins with `first` was written to the last segment at offset. Entries
 * from first on are gone; first is in (base_index, last_index + 1] and > commit. */
void wal_map_frame(struct wal_map *m, raft_index first, uint64_t offset, uint64_t spacing);
/* Then each of its entries, in order. */
void wal_map_entry(struct wal_map *m, const struct raft_entry *e);
/* The hard state as it stands in the newest frame. */
void wal_map_hard_state(struct wal_map *m, const struct raft_hard_state *hs);
void wal_map_put_config(struct wal_map *m, raft_index index, struct slice payload);
void wal_map_put_run(struct wal_map *m, raft_index first, raft_term term);
void wal_map_put_point(struct wal_segment *s, raft_index index, uint64_t offset);
/* Recomputes live_last of all segments from before and low. */
void wal_map_settle(struct wal_map *m);
/* How many of the oldest segments hold nothing above index. Never the last segment. */
size_t wal_map_cuttable(const struct wal_map *m, raft_index index);
/* Moves the base up: runs below are forgotten. index is in [base_index, last_index]. */
void wal_map_rebase(struct wal_map *m, raft_index index);
/* Forgets the oldest n segments. */
void wal_map_drop(struct wal_map *m, size_t n);
/* The segment that holds the index, which must be in (base_index, last_index]; *end is the first
 * index that it does not hold. */
const struct wal_segment *wal_map_find(const struct wal_map *m, raft_index index, raft_index *end);
/* In that segment: the offset at which to start, and *end, the first index that must be looked up
 * again. */
uint64_t wal_segment_find(const struct wal_segment *s, raft_index index, raft_index *end);

#endif
