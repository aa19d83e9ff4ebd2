/* sim.h - a small cluster in one process, driven step by step: real cores, messages through the
 * real codec, disks that are arrays, a network that is a list. Nothing happens by itself. What a
 * node's ready holds is carried out as raft.h demands: writes wait for sim_persist, messages for
 * sim_deliver, committed entries are applied at once.
 *
 * Watchdogs run all the time and abort with a sentence: one vote per term and only after it is on
 * disk, acknowledgements only for what is on disk, one leader per term and only with a majority's
 * votes, a leader has everything that was ever committed, nothing is committed that a quorum's
 * disks do not hold, all members apply the same, reads are never older than what was committed when
 * they were asked. */
#ifndef KRD_TESTS_RAFT_SIM_H
#define KRD_TESTS_RAFT_SIM_H

#include "base/buf.h"
#include "raft/raft.h"

enum { SIM_NODES_MAX = 8 };

/* A write that the disk has not completed. */
struct sim_write {
    uint64_t seq;
    bool has_hard_state;
    struct raft_hard_state hard_state;
    struct raft_entry *entries; /* references held */
    size_t n_entries;
};

struct sim_disk {
    struct raft_hard_state hard_state;
    raft_index base;
    raft_term base_term;
    struct raft_entry *entries; /* [base + 1, base + n], references held */
    size_t n, cap;
};

struct sim_read {
    uint64_t ctx;
    raft_index at_least; /* what was committed anywhere when it was asked */
};

struct sim_node {
    raft_id id;
    struct raft *raft; /* NULL: crashed */
    uint64_t incarnation;
    struct sim_disk disk;
    raft_index applied; /* survives crashes */
    struct sim_write *writes;
    size_t n_writes, writes_cap;
    struct raft_fetch *fetches;
    size_t n_fetches, fetches_cap;
    struct sim_read *reads; /* waiting */
    size_t n_reads, reads_cap;
    size_t reads_answered, reads_refused;
};

struct sim_message {
    raft_id from, to;
    enum raft_message_type type;
    struct krd_blob *bytes;
};

/* What was committed at an index, as the first member to apply it saw it. */
struct sim_committed {
    raft_term term;
    uint32_t crc;
};

struct sim {
    struct raft_options options; /* id and seed are set for each node */
    uint64_t seed;
    uint64_t now_ms;
    struct raft_config_state config; /* of the beginning */
    size_t n;
    struct sim_node nodes[SIM_NODES_MAX]; /* node id i is nodes[i - 1] */
    struct sim_message *queue;            /* in the order in which they were sent */
    size_t n_queue, queue_cap;
    struct krd_buf *out; /* where effects are described; NULL: nowhere */
    bool unwatched;      /* stories in which members lie: the watchdogs would bark */

    struct sim_committed *committed; /* [0] is of index 1 */
    size_t n_committed, committed_cap;
    raft_id *leaders; /* by term */
    size_t leaders_cap;
    raft_id (*votes)[SIM_NODES_MAX]; /* [term][voter - 1]: whom it voted for */
    size_t votes_cap;
};

/* A cluster of voters, then learners, all with an empty log, all started. */
void sim_init(struct sim *s, const struct raft_options *options, uint64_t seed, size_t voters,
              size_t learners);
void sim_deinit(struct sim *s);
struct sim_node *sim_node(struct sim *s, raft_id id);

/* Takes and carries out one ready of a node that is up. False: there was nothing in it. */
bool sim_turn(struct sim *s, raft_id id);
/* Completes the oldest n writes that wait (all there are, when fewer), without a turn. */
void sim_persist(struct sim *s, raft_id id, size_t n);
/* Gives message k of the queue to its receiver (dropped if that is down), without a turn. */
void sim_deliver(struct sim *s, size_t k);
void sim_drop(struct sim *s, size_t k);
void sim_duplicate(struct sim *s, size_t k);
/* Answers the oldest fetch, with at most max entries (0: it fails), without a turn. */
void sim_answer_fetch(struct sim *s, raft_id id, size_t max);
/* Loses memory and all writes that wait but the first `survive`. */
void sim_crash(struct sim *s, raft_id id, size_t survive);
void sim_start(struct sim *s, raft_id id);
/* Replaces a disk's log by entries of these terms. The node must be down. */
void sim_set_disk(struct sim *s, raft_id id, const raft_term *terms, size_t n,
                  struct raft_hard_state hard_state);
/* Cuts the log of a running node up to index, on disk and in the core. */
void sim_compact(struct sim *s, raft_id id, raft_index index);
KRD_MUST_CHECK enum krd_status sim_propose(struct sim *s, raft_id id, enum raft_entry_type type,
                                           struct slice payload);
KRD_MUST_CHECK enum krd_status sim_read(struct sim *s, raft_id id, uint64_t ctx);
/* Log matching between all members that are up. §5.3 */
void sim_check_logs(struct sim *s);

/* State, a line; on a leader a line more for each peer. */
void sim_describe_node(struct sim *s, raft_id id, struct krd_buf *out);
void sim_describe_message(const struct raft_message *m, struct krd_buf *out);

#endif
