/* raft.h - the consensus core. A pure function in the sense that matters: events go in through
 * the functions below, effects come out of raft_take_ready. No clock, no randomness but the seeded
 * generator inside, no I/O, no thread, no global. Same history of calls, same bytes out.
 *
 * References are to the extended Raft paper (§) and Ongaro's thesis (thesis n.n).
 *
 * The host's duties, in this order, once per turn of its loop:
 *   1. give the core everything that arrived (messages first, then persisted and applied
 *      notices, then proposals and reads, and ticks last: after a stall the inbox speaks before
 *      the election timer does);
 *   2. raft_take_ready;
 *   3. hand ready.write (if any) to the log writer: truncation, hard state and entries become
 *      durable as one write, in the order of their sequence numbers; call raft_persisted(seq) when
 *      the disk has them. Writes complete in order;
 *   4. send ready.messages. Promises (granted votes, append replies, our own vote and
 *      acknowledgement) never appear there before the write they depend on was reported by
 *      raft_persisted: the core holds them back itself, so that a host cannot send one early.
 *      Appends to one peer travel in order, those without entries among them: they ask whether
 *      what was sent before has arrived, and must not overtake it. All else may overtake;
 *   5. hand ready.committed to the apply thread, in order; call raft_applied as it progresses;
 *   6. answer ready.reads when the applied index has reached them;
 *   7. read ready.fetches from the log and return them by raft_fetched.
 *
 * Memory: everything in struct raft_ready belongs to the core and is valid until the next call of
 * raft_take_ready (entries: take a reference to keep one). Thread: one, the caller's. */
#ifndef KRD_RAFT_H
#define KRD_RAFT_H

#include "raft/config.h"
#include "raft/entry.h"
#include "raft/message.h"

struct raft;

enum raft_role { RAFT_FOLLOWER, RAFT_PRE_CANDIDATE, RAFT_CANDIDATE, RAFT_LEADER };

struct raft_hard_state {
    raft_term term;
    raft_id vote;      /* 0: none in this term */
    raft_index commit; /* a hint: <= last durable index; commit is re-learned from the leader */
};

/* A stretch of the log in which all entries have one term: [first, next run's first). */
struct raft_term_run {
    raft_index first;
    raft_term term;
};

struct raft_options {
    raft_id id;
    uint64_t seed;                  /* of the core's own generator */
    uint32_t election_ticks;        /* timeout is drawn from [this, 2 * this). default 100 */
    uint32_t heartbeat_ticks;       /* default 10: 100 ms at 10 ms a tick */
    uint32_t crash_delay_ticks;     /* after raft_peer_lost(leader): pre-vote within
                                       [1, this]. default 3 */
    uint32_t inflight_messages_max; /* appends on the way to one follower. default 256 */
    size_t inflight_bytes_max;      /* and their bytes. default 8 MiB */
    size_t append_bytes_max;        /* entries of one append, unless one is larger */
    size_t uncommitted_bytes_max;   /* proposals beyond are refused. default 64 MiB */
    size_t cache_bytes;             /* applied entries kept in memory for slow followers */
};
/* Fills every member but id and seed with its default. */
void raft_options_default(struct raft_options *o);

/* What the log held when the process started. */
struct raft_restored {
    struct raft_hard_state hard_state;
    raft_index base_index;            /* entry before the first one in the log; 0: from the start */
    raft_term base_term;              /* its term */
    const struct raft_term_run *runs; /* of [base_index + 1, last], ascending; copied */
    size_t n_runs;
    raft_index last_index;
    raft_index applied;               /* what the state machine has; >= base_index */
    uint64_t time_ms;                 /* time of the last entry, or of the state machine */
    const struct raft_entry *entries; /* [applied + 1, last_index], contiguous; refs are taken */
    size_t n_entries;
    const struct raft_config_state *config; /* newest in the log (or snapshot); copied */
    raft_index config_index;                /* where it stands */
    /* Only when config_index > applied, so that it may still be rolled back: the newest at or below
     * applied. NULL: there was none. */
    const struct raft_config_state *config_before;
    raft_index config_before_index;
};

struct raft *raft_create(const struct raft_options *o, const struct raft_restored *from);
void raft_destroy(struct raft *r); /* takes NULL */

/* --- Events ------------------------------------------------------------------------------- */

/* now_ms: the host's monotonic clock, for cluster time and for nothing else: elections count
 * ticks. Before every batch of events; never runs backwards. */
void raft_set_now(struct raft *r, uint64_t now_ms);
/* The same in microseconds: round-trip times are measured with it. */
void raft_set_now_us(struct raft *r, uint64_t now_us);
void raft_tick(struct raft *r);
/* Takes over a received append's entries, whatever the outcome. Messages that are not for us or
 * malformed, and answers of unknown senders, are ignored (counted in raft_status.dropped). Requests
 * of unknown senders are served: the configuration that names them may be what they bring. */
void raft_step(struct raft *r, struct raft_message *m);
/* Appends entries (made, not sealed) to the leader's log; their references move on KRD_OK only.
 * KRD_NOT_LEADER; KRD_OVERLOADED: uncommitted_bytes_max; KRD_AGAIN: leadership is being
 * transferred, or a configuration is proposed before the last one was applied; KRD_BAD_REQUEST: an
 * entry was sealed before, or is an unreadable configuration. On anything but KRD_OK nothing was
 * proposed. A configuration is proposed alone. */
KRD_MUST_CHECK enum krd_status raft_propose(struct raft *r, struct raft_entry *entries, size_t n);
/* The log has everything up to write `seq` on disk. */
void raft_persisted(struct raft *r, uint64_t seq);
/* The state machine has applied up to index. */
void raft_applied(struct raft *r, raft_index index);
/* Asks for an index at which a read is linearizable. ctx comes back in ready.reads. On a follower
 * it travels to the leader and back; the answer may never come (leader lost): the host keeps its
 * own deadline and asks again with another ctx. KRD_NO_LEADER: nobody to ask. thesis 6.4 */
KRD_MUST_CHECK enum krd_status raft_read(struct raft *r, uint64_t ctx);
/* Leader only: hand leadership to `to` (0: the voter that is furthest). thesis 3.10.
 * KRD_NOT_LEADER; KRD_CONFLICT: one is under way; KRD_NOT_FOUND: not a voter, or there is no other.
 * To ourselves: KRD_OK, and nothing happens. Ends by losing
 * leadership, or by itself after an election timeout. */
KRD_MUST_CHECK enum krd_status raft_transfer(struct raft *r, raft_id to);
/* The transport knows that this member's process is gone: its connection was reset and a new one
 * was refused, or it answers as a new incarnation. If it led, an election starts within
 * crash_delay_ticks; a hiccup does not come here. */
void raft_peer_lost(struct raft *r, raft_id peer);
/* A message to this member was dropped by the transport: probe instead of streaming. */
void raft_peer_unreachable(struct raft *r, raft_id peer);
/* The answer to a fetch: entries [first, ...) contiguous, possibly fewer than asked for (at least
 * one), references move to the core. n = 0: could not be read. */
void raft_fetched(struct raft *r, raft_id peer, struct raft_entry *entries, size_t n);
/* The log was cut: entries up to index are gone from disk (index <= applied). */
void raft_compacted(struct raft *r, raft_index index);

/* --- Effects ------------------------------------------------------------------------------ */

struct raft_write {
    uint64_t seq; /* ascending from 1; 0: nothing to write */
    bool has_hard_state;
    struct raft_hard_state hard_state;
    /* entries[0].index may be at or below what was written before: then the log from there on is
     * replaced (a conflict, §5.3). Never at or below commit. */
    struct raft_entry *entries;
    size_t n_entries;
};

struct raft_read_ready {
    uint64_t ctx;
    raft_index index; /* 0: refused, ask again (leader changed) */
};

struct raft_fetch { /* entries that left memory and that a slow follower needs */
    raft_id peer;
    raft_index first, last; /* inclusive; all are durable and committed */
    size_t bytes_max;
};

struct raft_ready {
    struct raft_write write;
    struct raft_message *messages;
    size_t n_messages;
    struct raft_entry *committed; /* contiguous, each handed out once per incarnation */
    size_t n_committed;
    struct raft_read_ready *reads;
    size_t n_reads;
    struct raft_fetch *fetches;
    size_t n_fetches;
    bool soft_changed; /* role, term or leader differ from the last ready's: see raft_status */
};

/* False when there is nothing at all in it. */
bool raft_take_ready(struct raft *r, struct raft_ready *out);

/* --- Looking in --------------------------------------------------------------------------- */

enum raft_progress_state { RAFT_PROBE, RAFT_REPLICATE, RAFT_SNAPSHOT };

struct raft_progress_status {
    raft_id id;
    raft_index match, next;
    enum raft_progress_state state;
    bool recently_active; /* answered within the last election timeout */
    uint32_t inflight;
    uint64_t rtt_us; /* of heartbeats, smoothed; 0 unknown */
};

struct raft_status {
    raft_id id, leader; /* leader 0: none known */
    enum raft_role role;
    raft_term term;
    raft_id vote;
    raft_index base, last, stable, commit, applied;
    raft_index safe_to_cut; /* every member holds the log up to here, durably */
    raft_id transferring_to;
    bool leader_ready;  /* leader with a committed entry of its own term */
    uint64_t time_ms;   /* cluster time now, by this node's estimate */
    uint64_t elections; /* campaigns started */
    uint64_t dropped;   /* messages refused: wrong id, malformed, too old */
    size_t cached_bytes, uncommitted_bytes;
    uint32_t n_peers; /* leader: members other than itself */
    struct raft_progress_status peers[KRD_MEMBERS_MAX];
};
void raft_get_status(const struct raft *r, struct raft_status *out);
const struct raft_config_state *raft_config(const struct raft *r, raft_index *index);
/* Cluster time: never falls in the log, runs on across leaders, stands while the cluster is down.
 * A follower's is an estimate that each heartbeat corrects, back as well. */
uint64_t raft_time_ms(const struct raft *r);
/* Term of an entry; 0 when unknown (beyond the log, or cut). */
raft_term raft_term_at(const struct raft *r, raft_index index);
const char *raft_role_name(enum raft_role role);

/* Every invariant that is true of any state; asserts. Runs after every event in tests and in the
 * simulator, and once per ready in the product. */
void raft_check(const struct raft *r);

#endif
