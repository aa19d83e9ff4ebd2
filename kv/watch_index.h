/* watch_index.h - who is interested in a key? Watchers of one key are found through a hash table;
 * watchers of ranges through a tree of intervals. Watchers with the same range share one entry, so
 * that ten thousand of them on one prefix are found at once.
 *
 * Costs: match O(1) for keys and O(log ranges + matches) for ranges; add and remove O(1), and
 * O(ranges) once before the next match when the set of ranges has changed.
 *
 * Thread: one. Not while a match is under way. */
#ifndef KRD_KV_WATCH_INDEX_H
#define KRD_KV_WATCH_INDEX_H

#include "kv/types.h"

struct kv_interest;

/* Part of a watcher. */
struct kv_index_link {
    struct kv_interest *interest;
    struct kv_index_link *prev, *next; /* others with the same range */
};

struct kv_index {
    struct kv_interest *keys, *ranges; /* uthash */
    struct kv_interest **tree;         /* ranges by start; a balanced tree by position */
    size_t n_ranges, cap;
    bool stale; /* tree and its ends are to be made anew */
};

void kv_index_init(struct kv_index *ix);
void kv_index_deinit(struct kv_index *ix); /* asserts that it is empty */
void kv_index_add(struct kv_index *ix, const struct kv_range *range, struct kv_index_link *l);
void kv_index_remove(struct kv_index *ix, struct kv_index_link *l);
/* Calls fn for every link whose range has the key. */
void kv_index_match(struct kv_index *ix, struct slice key,
                    void (*fn)(void *arg, struct kv_index_link *l), void *arg);

#endif
