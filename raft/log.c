/* log.c - the ring of entries and the runs of terms.
 *
 * 1. An append puts the entry into its slot and, when the term is new, opens a run.
 * 2. The writer takes [written + 1, last]; stable follows when the disk has it (ready.c).
 * 3. The state machine applies; applied entries stay in the ring for slow followers until there
 *    are too many bytes of them, and are read from disk after that.
 * 4. A conflict removes from the tail: written and stable fall back with it.
 *
 * Runs are few (one for each election that left entries), so a whole log's terms cost a few dozen
 * bytes and no term is ever read from disk. */
#include "raft/log.h"

enum { RING_CAP_MIN = 256 };

static void put(struct raft_log *l, const struct raft_entry *e)
{
    l->ring[e->index & (l->ring_cap - 1)] = *e;
}

void log_init(struct raft_log *l, const struct raft_restored *from)
{
    KRD_ASSERT(from->applied >= from->base_index);
    KRD_ASSERT(from->applied <= from->last_index);
    KRD_ASSERT(from->n_entries == from->last_index - from->applied);

    memset(l, 0, sizeof *l);
    l->base = from->base_index;
    l->base_term = from->base_term;
    l->applied = from->applied;
    l->first = from->applied + 1;
    l->last = l->stable = l->written = from->last_index;

    l->ring_cap = RING_CAP_MIN;
    while (l->ring_cap < from->n_entries + 1)
        l->ring_cap *= 2;
    l->ring = krd_calloc(l->ring_cap, sizeof *l->ring);
    for (size_t i = 0; i < from->n_entries; i++) {
        KRD_ASSERT(from->entries[i].index == l->first + i);
        struct raft_entry e = raft_entry_ref(&from->entries[i]);
        put(l, &e);
    }

    krd_grow(&l->runs, &l->runs_cap, from->n_runs + 1, sizeof *l->runs);
    for (size_t i = 0; i < from->n_runs; i++)
        l->runs[l->n_runs++] = from->runs[i];
    log_check(l);
}

void log_deinit(struct raft_log *l)
{
    for (raft_index i = l->first; i <= l->last; i++)
        krd_blob_unref(log_entry(l, i)->blob);
    log_free_buried(l);
    krd_free(l->ring);
    krd_free(l->runs);
    krd_free(l->buried);
}

/* --- Terms -------------------------------------------------------------------------------- */

/* The run that holds index, which is in (base, last]. */
static size_t run_of(const struct raft_log *l, raft_index index)
{
    KRD_ASSERT(index > l->base && index <= l->last);
    if (l->runs[l->n_runs - 1].first <= index)
        return l->n_runs - 1;
    size_t low = 0, high = l->n_runs - 1; /* runs[low].first <= index < runs[high].first */
    while (high - low > 1) {
        size_t mid = low + (high - low) / 2;
        if (l->runs[mid].first <= index)
            low = mid;
        else
            high = mid;
    }
    return low;
}

raft_term log_term(const struct raft_log *l, raft_index index)
{
    if (index == l->base)
        return l->base_term;
    if (index < l->base || index > l->last)
        return 0;
    return l->runs[run_of(l, index)].term;
}

raft_index log_agreement(const struct raft_log *l, raft_index index, raft_term term)
{
    index = krd_min_u64(index, l->last);
    if (index <= l->base)
        return l->base;
    size_t run = run_of(l, index);
    if (l->runs[run].term <= term)
        return index;
    while (run > 0 && l->runs[run - 1].term > term)
        run--;
    return l->runs[run].first - 1; /* the last entry of the run before, or base */
}

/* --- Entries ------------------------------------------------------------------------------ */

static void grow_ring(struct raft_log *l)
{
    struct raft_entry *old = l->ring;
    size_t old_cap = l->ring_cap;
    l->ring_cap *= 2;
    l->ring = krd_calloc(l->ring_cap, sizeof *l->ring);
    for (raft_index i = l->first; i <= l->last; i++)
        put(l, &old[i & (old_cap - 1)]);
    krd_free(old);
}

void log_copy(const struct raft_log *l, raft_index first, size_t n, struct raft_entry *to)
{
    if (n == 0)
        return;
    KRD_ASSERT(log_in_memory(l, first) && log_in_memory(l, first + n - 1));
    size_t slot = first & (l->ring_cap - 1);
    size_t until_wrap = krd_min_size(n, l->ring_cap - slot);
    memcpy(to, &l->ring[slot], until_wrap * sizeof *to);
    if (n > until_wrap)
        memcpy(to + until_wrap, l->ring, (n - until_wrap) * sizeof *to);
}

void log_append(struct raft_log *l, const struct raft_entry *e)
{
    KRD_ASSERT(e->index == l->last + 1);
    KRD_ASSERT(e->term >= log_last_term(l));
    if (l->last + 1 - l->first == l->ring_cap)
        grow_ring(l);
    l->last = e->index;
    put(l, e);
    if (l->n_runs == 0 || l->runs[l->n_runs - 1].term != e->term) {
        krd_grow(&l->runs, &l->runs_cap, l->n_runs + 1, sizeof *l->runs);
        l->runs[l->n_runs++] = (struct raft_term_run){e->index, e->term};
    }
}

void log_truncate(struct raft_log *l, raft_index from)
{
    KRD_ASSERT(from > l->applied && from <= l->last);
    for (raft_index i = from; i <= l->last; i++)
        log_bury(l, log_entry(l, i)->blob);
    l->last = from - 1;
    l->written = krd_min_u64(l->written, l->last);
    l->stable = krd_min_u64(l->stable, l->last);
    while (l->n_runs > 0 && l->runs[l->n_runs - 1].first > l->last)
        l->n_runs--;
}

void log_set_applied(struct raft_log *l, raft_index index)
{
    KRD_ASSERT(index >= l->applied && index <= l->stable);
    for (raft_index i = l->applied + 1; i <= index; i++)
        l->applied_bytes += raft_record_bytes(log_entry(l, i));
    l->applied = index;
}

static void drop_first(struct raft_log *l)
{
    KRD_ASSERT(l->first <= l->applied);
    struct raft_entry *e = log_entry(l, l->first);
    l->applied_bytes -= raft_record_bytes(e);
    log_bury(l, e->blob);
    l->first++;
}

void log_evict(struct raft_log *l, size_t bytes_max)
{
    while (l->applied_bytes > bytes_max)
        drop_first(l);
}

void log_cut(struct raft_log *l, raft_index index)
{
    KRD_ASSERT(index <= l->applied);
    if (index <= l->base)
        return;
    raft_term term = log_term(l, index);
    while (l->first <= index)
        drop_first(l);

    size_t gone = 0;
    if (index == l->last)
        gone = l->n_runs;
    else
        gone = run_of(l, index + 1);
    memmove(l->runs, l->runs + gone, (l->n_runs - gone) * sizeof *l->runs);
    l->n_runs -= gone;
    if (l->n_runs > 0)
        l->runs[0].first = index + 1;
    l->base = index;
    l->base_term = term;
}

/* --- Burials ------------------------------------------------------------------------------ */

void log_bury(struct raft_log *l, struct krd_blob *blob)
{
    krd_grow(&l->buried, &l->buried_cap, l->n_buried + 1, sizeof *l->buried);
    l->buried[l->n_buried++] = blob;
}

void log_free_buried(struct raft_log *l)
{
    for (size_t i = 0; i < l->n_buried; i++)
        krd_blob_unref(l->buried[i]);
    l->n_buried = 0;
}

void log_check(const struct raft_log *l)
{
    KRD_ASSERT(l->base <= l->applied);
    KRD_ASSERT(l->applied <= l->stable);
    KRD_ASSERT(l->stable <= l->written);
    KRD_ASSERT(l->written <= l->last);
    KRD_ASSERT(l->base < l->first);
    KRD_ASSERT(l->first <= l->applied + 1); /* nothing above applied is ever fetched */
    KRD_ASSERT(l->last + 1 - l->first <= l->ring_cap);
    KRD_ASSERT((l->n_runs == 0) == (l->last == l->base));
    if (l->n_runs > 0) {
        KRD_ASSERT(l->runs[0].first == l->base + 1);
        KRD_ASSERT(l->runs[0].term >= l->base_term);
        KRD_ASSERT(l->runs[l->n_runs - 1].first <= l->last);
    }
    for (size_t i = l->n_runs > 8 ? l->n_runs - 8 : 1; i < l->n_runs; i++) {
        KRD_ASSERT(l->runs[i - 1].first < l->runs[i].first);
        KRD_ASSERT(l->runs[i - 1].term < l->runs[i].term);
    }
    if (l->first <= l->last) {
        KRD_ASSERT(log_entry(l, l->first)->index == l->first);
        KRD_ASSERT(log_entry(l, l->last)->index == l->last);
        KRD_ASSERT(log_entry(l, l->last)->term == log_last_term(l));
    }
}
