/* core.h - the state of the consensus core and who inside it does what. Inside raft/ only.
 *
 *   core.c       creation, the term gate, changes of role, ticks, a look inside
 *   election.c   timers, pre-vote, votes, check-quorum, transfer, lost peers
 *   replicate.c  progress of each peer, appends and their answers, heartbeats, commit
 *   read.c       linearizable reads
 *   ready.c      effects: writes, promises, messages, committed entries
 *   log.c        entries and terms
 *   check.c      invariants
 *
 * Handlers and transitions only change state and queue effects; requests to peers (appends,
 * heartbeats) are made when a ready is taken, once for everything that happened since the last. */
#ifndef KRD_RAFT_CORE_H
#define KRD_RAFT_CORE_H

#include "base/rand.h"
#include "raft/log.h"
#include "raft/raft.h"

/* --- Progress ----------------------------------------------------------------------------- */

/* An append on its way: acknowledged when match reaches last. */
struct inflight {
    raft_index last;
    size_t bytes;
};

/* What the leader knows of one member. For its own entry only match counts. */
struct progress {
    raft_id id;
    raft_index match; /* durable in the member's log and equal to ours up to here */
    raft_index next;  /* first entry to send. match < next <= last + 1 */
    enum raft_progress_state state;
    bool paused;            /* RAFT_PROBE: asked, and no answer yet */
    bool ask;               /* send an empty append at next - 1: its answer shows what was lost */
    uint64_t ask_after;     /* tick from which a heartbeat's answer may set `ask` (again) */
    bool appended;          /* an append goes out with the ready that is being made */
    bool fetching;          /* entries were asked of the log; one fetch at a time */
    raft_index told_commit; /* highest commit sent */
    raft_index match_at_heartbeat; /* match when the last heartbeat's answer came */
    uint64_t heard_tick;           /* when it last answered */
    uint64_t round;                /* highest round of leadership confirmation it answered */
    uint64_t rtt_us;

    struct inflight *window; /* ring of options.inflight_messages_max, oldest at head */
    uint32_t window_head, n_inflight;
    size_t inflight_bytes;

    struct raft_entry *fetched; /* from the log, next to send; owned */
    size_t n_fetched;
};

/* --- Effects on their way ----------------------------------------------------------------- */

/* A promise waits for the write that makes it true. */
struct promise {
    uint64_t seq;
    struct raft_message m;
};

/* A write that the disk does not have yet. A truncation lowers `last` of every write before it:
 * what a later write replaces, an earlier completion must not call durable. */
struct pending_write {
    uint64_t seq;
    raft_index last;
};

/* A read that has no index yet. On the leader: from (0: our own host), waiting for `round` (0: none
 * was started for it yet). On a follower: sent to the leader with question `round` (0: not yet). */
struct pending_read {
    raft_id from;
    uint64_t ctx;
    uint64_t round;
    raft_index index;
};

/* A configuration and the entry that brought it. */
struct config_at {
    raft_index index;
    struct raft_config_state *config;
};

/* Copies of entries for one ready. Chunks never move; the largest is kept for the next. */
struct entry_chunk {
    struct entry_chunk *older;
    size_t used, cap;
    struct raft_entry entries[];
};

#define KRD_DEFINE_VEC(name, T) \
    struct name {               \
        T *at;                  \
        size_t n, cap;          \
    }
KRD_DEFINE_VEC(vec_promise, struct promise);
KRD_DEFINE_VEC(vec_write, struct pending_write);
KRD_DEFINE_VEC(vec_read, struct pending_read);
KRD_DEFINE_VEC(vec_config, struct config_at);
KRD_DEFINE_VEC(vec_message, struct raft_message);
KRD_DEFINE_VEC(vec_answer, struct raft_read_ready);
KRD_DEFINE_VEC(vec_fetch, struct raft_fetch);

#define VEC_PUSH(v, ...)                                            \
    do {                                                            \
        krd_grow(&(v)->at, &(v)->cap, (v)->n + 1, sizeof *(v)->at); \
        (v)->at[(v)->n++] = (__VA_ARGS__);                          \
    } while (0)

/* What a ready shows and events add to. There are two: events gather in one while the host still
 * reads the other. */
struct gathered {
    struct vec_message messages;
    struct vec_answer answers;
    struct vec_fetch fetches;
};

/* Entries of the log that already stand in this ready; messages to several peers share them. */
struct copied {
    raft_index first;
    size_t n;
    struct raft_entry *at;
};

/* --- The core ----------------------------------------------------------------------------- */

struct raft {
    struct raft_options options;
    raft_id id;
    struct krd_rand rand;

    enum raft_role role;
    raft_term term;
    raft_id vote;
    raft_id leader;          /* of this term, 0: not known, or believed gone */
    bool hard_state_dirty;   /* term or vote changed since the last write */
    uint64_t hard_state_seq; /* the write that holds the present term and vote */

    struct raft_log log;
    raft_index commit;
    raft_index handed; /* committed entries went out up to here. applied <= handed */
    raft_index safe_to_cut;
    struct vec_config configs; /* the last one counts; older ones in case it is truncated */

    /* Time. Ticks drive elections; the clock only stamps entries. */
    uint64_t now_us;   /* the host's, as last told; 0: never */
    uint64_t clock_us; /* cluster time; follows the leader's, and runs on by itself in between */
    uint64_t entry_time_ms; /* the latest of all entries that were in our log. <= clock */
    uint64_t ticks;
    uint32_t elapsed, timeout; /* of the election timer */
    uint32_t since_leader;     /* ticks since the leader last spoke */
    uint32_t hurry;            /* ticks for which elections are retried quickly */

    /* Candidates. vote[i] is of member i of the configuration. */
    int8_t votes[KRD_MEMBERS_MAX];
    bool vote_transfer;    /* the campaign was asked for by the leader */
    uint64_t own_vote_seq; /* our own vote counts when this write is durable; 0: counted */

    /* Leaders. */
    struct progress progress[KRD_MEMBERS_MAX]; /* progress[i] is of member i */
    raft_index term_start;                     /* index of our no-op */
    uint64_t round, round_confirmed;
    uint32_t heartbeat_elapsed;
    bool heartbeat_due; /* to everyone, with the next ready */
    bool round_due;     /* to voters */
    raft_id transfer_to;
    uint32_t transfer_elapsed;
    bool transfer_told; /* TIMEOUT_NOW went out */
    size_t uncommitted_bytes;

    /* Reads, oldest first. */
    struct vec_read reads;
    uint64_t question_base; /* drawn at creation: answers to an earlier incarnation do not fit */
    uint64_t questions;     /* asked of leaders so far */
    uint32_t question_age;  /* ticks since the last one */
    bool question_due;      /* ask again */

    /* Writes and promises. */
    uint64_t seq_issued, seq_persisted;
    struct vec_write writes;
    struct vec_promise promises;

    struct gathered gathering, given;
    struct entry_chunk *chunk; /* entries of the ready that the host holds */
    struct copied copied[4];
    size_t n_copied;
    enum raft_role told_role;
    raft_term told_term;
    raft_id told_leader;

    uint64_t elections, dropped;
};

static inline const struct raft_config_state *config_of(const struct raft *r)
{
    return r->configs.at[r->configs.n - 1].config;
}

/* core.c: changes of role. Each sets everything that belongs to it. */
void become_follower(struct raft *r, raft_term term, raft_id leader);
void become_pre_candidate(struct raft *r);
void become_candidate(struct raft *r);
void become_leader(struct raft *r);
void set_hard_state(struct raft *r, raft_term term, raft_id vote);
/* This member's place in the present configuration, -1: not in it. */
int member_index(const struct raft *r, raft_id id);
bool is_voter(const struct raft *r, raft_id id); /* in either half */
/* At least this. */
void clock_adopt(struct raft *r, uint64_t time_ms);
/* Exactly this, unless our log knows better: our own estimate may have run ahead of the leader's. */
void clock_follow(struct raft *r, uint64_t time_ms);
/* Appends to the log (takes the reference over) and switches to the configuration it may hold. */
void append_entry(struct raft *r, const struct raft_entry *e);
void truncate_from(struct raft *r, raft_index from);
/* Seals and appends an entry of the leader's. */
void leader_append(struct raft *r, struct raft_entry *e);
void commit_to(struct raft *r, raft_index index); /* does nothing when it is there already */

/* election.c */
void draw_timeout(struct raft *r);
void election_tick(struct raft *r);
void on_prevote(struct raft *r, const struct raft_message *m);
void on_prevote_reply(struct raft *r, const struct raft_message *m);
void on_vote(struct raft *r, const struct raft_message *m);
void on_vote_reply(struct raft *r, const struct raft_message *m);
void on_timeout_now(struct raft *r, const struct raft_message *m);
void own_vote_durable(struct raft *r);
/* While this is true, its requests for votes are refused without a look at their term. */
bool hears_leader_other_than(const struct raft *r, raft_id candidate);
void transfer_proceed(struct raft *r);

/* replicate.c */
struct progress *progress_of(struct raft *r, raft_id id); /* NULL: unknown or ourselves */
void progress_reset_all(struct raft *r);
void progress_reconfigure(struct raft *r, const struct raft_config_state *before);
void progress_release(struct raft *r, struct progress *p);
void progress_probe(struct raft *r, struct progress *p, bool paused);
void own_log_durable(struct raft *r);
void leader_tick(struct raft *r);
void queue_requests(struct raft *r);
void on_append(struct raft *r, struct raft_message *m);
void on_append_reply(struct raft *r, const struct raft_message *m);
void on_heartbeat(struct raft *r, const struct raft_message *m);
void on_heartbeat_reply(struct raft *r, const struct raft_message *m);
bool quorum_is_active(const struct raft *r);

/* read.c */
/* All reads that wait are answered with index 0. */
void reads_refuse(struct raft *r);
void reads_proceed(struct raft *r);
void reads_tick(struct raft *r);
void on_read_index(struct raft *r, const struct raft_message *m);
void on_read_index_reply(struct raft *r, const struct raft_message *m);
bool leader_ready(const struct raft *r);

/* ready.c */
/* A message of ours of this type, in our term. */
struct raft_message message_to(const struct raft *r, enum raft_message_type type, raft_id to);
void send_message(struct raft *r, const struct raft_message *m);
/* Sends once our term and vote, and the log up to index, are durable; at once if they are. */
void send_when_durable(struct raft *r, const struct raft_message *m, raft_index index);
/* Copies of [first, first + n) that live as long as the ready. */
struct raft_entry *entries_for_ready(struct raft *r, raft_index first, size_t n);
struct raft_entry *chunk_take(struct raft *r, size_t n);
void gathered_deinit(struct gathered *g);

#endif
