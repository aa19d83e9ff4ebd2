/* log.h - the log as the core sees it: the newest entries in memory, the terms of all of them.
 * Inside raft/ only.
 *
 *      base           first        applied     stable      last
 *  ... cut | on disk only | in memory, applied | .. durable | not yet durable |
 *          '----------------------- term runs cover all of it ----------------'
 *
 * Entries in memory stand in a ring, entry i in slot i modulo its size. Everything above applied
 * is always in memory. What leaves the ring keeps its reference until log_free_buried: the last
 * ready may still show it. */
#ifndef KRD_RAFT_LOG_H
#define KRD_RAFT_LOG_H

#include "raft/raft.h"

struct raft_log {
    raft_index base; /* last entry that was cut away; its term is still known */
    raft_term base_term;
    raft_index first;   /* first in memory; last + 1: none is. base < first */
    raft_index last;    /* base when empty */
    raft_index applied; /* base <= applied <= stable */
    raft_index stable;  /* durable up to here. stable <= written */
    raft_index written; /* handed to the log writer up to here. written <= last */

    struct raft_entry *ring;
    size_t ring_cap;      /* a power of two; > last - first */
    size_t applied_bytes; /* records of [first, applied]: what may be evicted */

    struct raft_term_run *runs; /* ascending in both; runs[0].first is base + 1 unless empty */
    size_t n_runs, runs_cap;

    struct krd_blob **buried;
    size_t n_buried, buried_cap;
};

void log_init(struct raft_log *l, const struct raft_restored *from);
void log_deinit(struct raft_log *l);

/* 0 when index is 0, cut or beyond the end. O(log runs), at once in the newest run. */
raft_term log_term(const struct raft_log *l, raft_index index);
static inline raft_term log_last_term(const struct raft_log *l)
{
    return log_term(l, l->last);
}

static inline bool log_in_memory(const struct raft_log *l, raft_index index)
{
    return index >= l->first && index <= l->last;
}
/* Must be in memory. Valid until the log changes. */
static inline struct raft_entry *log_entry(const struct raft_log *l, raft_index index)
{
    KRD_ASSERT(log_in_memory(l, index));
    return &l->ring[index & (l->ring_cap - 1)];
}
/* [first, first + n) into an array. No references are taken. */
void log_copy(const struct raft_log *l, raft_index first, size_t n, struct raft_entry *to);

/* The highest index <= `index` whose term is <= `term`: where two logs may still agree, when one
 * holds `term` at `index` and this one does not. At least base. §5.3, end */
raft_index log_agreement(const struct raft_log *l, raft_index index, raft_term term);

/* Takes the reference over. e->index must be last + 1. */
void log_append(struct raft_log *l, const struct raft_entry *e);
/* Removes [from, last]; only for a conflict, never at or below applied. */
void log_truncate(struct raft_log *l, raft_index from);
void log_set_applied(struct raft_log *l, raft_index index);
/* Drops applied entries from memory, oldest first, until those left have at most bytes_max. */
void log_evict(struct raft_log *l, size_t bytes_max);
/* Forgets everything up to index, which is applied. */
void log_cut(struct raft_log *l, raft_index index);
/* Hands a reference to the dead: released by the next log_free_buried. */
void log_bury(struct raft_log *l, struct krd_blob *blob);
void log_free_buried(struct raft_log *l);
void log_check(const struct raft_log *l);

#endif
