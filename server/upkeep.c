/* upkeep.c - the thread for work that may wait for the disk: checkpoints of the store, cutting the
 * log behind them, and, on the leader, compacting history that is older or longer than kept.
 *
 * 1. A checkpoint makes everything applied durable in the store (kv_checkpoint), then records its
 *    index in the log. It runs when enough log has gathered or enough time has passed.
 * 2. The log is cut behind the checkpoint, as far as every member holds the entries durably
 *    itself (safe_to_cut). A member that is down keeps the log on the others until it is back.
 * 3. Memory that only maps files is given back when it grows (kv_trim_memory).
 * 4. Compaction is a replicated command like any other; only the leader proposes it. */
#include "server/node_internal.h"

#include "base/clock.h"
#include "base/log.h"

#define TURN_MS                1000
#define CHECKPOINT_ENTRIES     50000u
#define CHECKPOINT_INTERVAL_MS 10000
#define COMPACT_INTERVAL_MS    5000
/* History within this share of the bound is left alone, so that compaction comes in useful
 * portions: 1/16. */
#define COMPACT_SLACK_SHIFT 4
/* The store's mapped files may take so much of this process's memory; the page cache has them too. */
#define MAPPED_BYTES_MAX (48u << 20)
#define TRIM_INTERVAL_MS 5000

struct upkeep {
    raft_index checkpoint; /* newest recorded */
    uint64_t checkpoint_ms, compact_ms, trim_ms;
};

static void checkpoint(struct node *n, struct upkeep *u, uint64_t now)
{
    raft_index applied = kv_applied_index(n->store);
    bool due = applied > u->checkpoint && (applied - u->checkpoint >= CHECKPOINT_ENTRIES ||
                                           now - u->checkpoint_ms >= CHECKPOINT_INTERVAL_MS);
    if (!due)
        return;
    uint64_t start = krd_mono_us();
    u->checkpoint = kv_checkpoint(n->store);
    histogram_add(&n->metrics.checkpoint, krd_mono_us() - start);
    atomic_fetch_add_explicit(&n->metrics.checkpoints, 1, memory_order_relaxed);
    u->checkpoint_ms = now;
    wal_writer_checkpoint(n->log, u->checkpoint);
    raft_index cut = krd_min_u64(u->checkpoint, atomic_load(&n->safe_to_cut));
    if (cut > 0) {
        wal_writer_cut(n->log, cut);
        node_notify(n, &n->compacted, cut);
    }
}

static int64_t history_floor(struct node *n, int64_t revision)
{
    int64_t floor = 0;
    if (n->o.history_revisions > 0)
        floor = revision - n->o.history_revisions;
    uint64_t now = node_cluster_time_ms(n);
    if (n->o.history_age_ms > 0 && now > n->o.history_age_ms)
        floor = krd_max_i64(floor, kv_revision_at_time(n->store, now - n->o.history_age_ms));
    return floor;
}

static void compact_history(struct node *n, struct upkeep *u, uint64_t now)
{
    if (!atomic_load(&n->leading) || now - u->compact_ms < COMPACT_INTERVAL_MS)
        return;
    u->compact_ms = now;
    int64_t revision = kv_revision(n->store), compacted = kv_compacted_revision(n->store);
    int64_t floor = history_floor(n, revision);
    int64_t slack = krd_max_i64((revision - compacted) >> COMPACT_SLACK_SHIFT, 1);
    if (floor < compacted + slack)
        return;
    Etcdserverpb__CompactionRequest c = ETCDSERVERPB__COMPACTION_REQUEST__INIT;
    c.revision = floor;
    Etcdserverpb__InternalRaftRequest r = ETCDSERVERPB__INTERNAL_RAFT_REQUEST__INIT;
    r.compaction = &c;
    node_propose_own(n, &r);
    krd_info("history is compacted", "before_revision=%" PRId64 " revision=%" PRId64, floor,
             revision);
}

/* Not at every turn: under a load of reads the pages come back at once, a fault for each. */
static void trim_memory(struct upkeep *u, uint64_t now)
{
    if (now - u->trim_ms < TRIM_INTERVAL_MS)
        return;
    u->trim_ms = now;
    kv_trim_memory(MAPPED_BYTES_MAX);
}

void *upkeep_main(void *arg)
{
    struct node *n = arg;
    pthread_setname_np(pthread_self(), "upkeep");
    uint64_t now = krd_mono_ms();
    struct upkeep u = {.checkpoint_ms = now, .compact_ms = now};
    u.checkpoint = kv_applied_index(n->store);
    while (!atomic_load(&n->stop_upkeep)) {
        krd_mailbox_wait(&n->upkeep_inbox, TURN_MS);
        krd_mailbox_take(&n->upkeep_inbox);
        now = krd_mono_ms();
        checkpoint(n, &u, now);
        compact_history(n, &u, now);
        trim_memory(&u, now);
    }
    return NULL;
}
