/* replica.h - the node loop: the order of persist, send, apply and answer around the consensus
 * core. The same object runs in kvraftd, driven by node.c's thread, and in the simulator; all it
 * knows of the world is struct replica_ops.
 *
 * One turn (replica_turn) after any number of inputs:
 *   inputs: messages, notices of the log and of the apply thread, proposals, read barriers, ticks
 *   1. proposals: into the core when we lead, as one batch; to the leader otherwise
 *   2. read barriers: one read of the core for all that came in this turn
 *   3. the core's ready: log, then messages, then apply, then reads (raft.h, duties 3 to 7)
 *
 * Proposals that were not answered are sent again to every new leader and whenever the connection
 * to the leader was re-made: the replicated state applies each once.
 *
 * Thread: one, the raft loop's. */
#ifndef KRD_SERVER_REPLICA_H
#define KRD_SERVER_REPLICA_H

#include "raft/raft.h"
#include "server/forward.h"
#include "server/proposals.h"

struct replica;

struct replica_ops {
    void *ctx;
    void (*log_append)(void *ctx, const struct raft_write *w);
    void (*log_fetch)(void *ctx, const struct raft_fetch *f);
    /* Entries to apply, in order; the callee takes references. */
    void (*apply)(void *ctx, const struct raft_entry *entries, size_t n);
    uint64_t (*applied)(void *ctx); /* what the state machine has applied by now */
    /* Dropped when not connected. */
    void (*send)(void *ctx, const struct raft_message *m);
    bool (*forward)(void *ctx, raft_id to, struct slice head, const struct raft_entry *entries,
                    size_t n);
    /* Role, term or leader changed. */
    void (*soft_changed)(void *ctx, const struct raft_status *st);
};

/* A wait for linearizability, or for a transfer; lives in the caller's memory until fn is called.
 */
struct replica_wait {
    struct node_mail mail;
    raft_id transfer_to; /* of a transfer */
    node_barrier_fn *fn;
    void *arg;
    uint64_t deadline_ms;
    struct replica_wait *next; /* the replica's */
};

struct replica *replica_create(struct raft *core, struct proposals *ps,
                               const struct replica_ops *ops);
void replica_destroy(struct replica *r);
struct raft *replica_core(struct replica *r);

/* --- Inputs; effects come with replica_turn --------------------------------------------------- */
void replica_now(struct replica *r, uint64_t now_us); /* monotonic; before each batch of inputs */
/* Takes over the message's entries. */
void replica_message(struct replica *r, struct raft_message *m);
/* A forward frame of op PROPOSE, REFUSED or TRANSFER; the records lie in blob. */
void replica_forward(struct replica *r, raft_id from, struct krd_blob *blob,
                     const struct forward_frame *f);
void replica_persisted(struct replica *r, uint64_t seq);
void replica_fetched(struct replica *r, raft_id peer, struct raft_entry *entries, size_t n);
void replica_applied(struct replica *r, raft_index index);
void replica_peer_up(struct replica *r, raft_id peer);
void replica_peer_down(struct replica *r, raft_id peer);
void replica_peer_lost(struct replica *r, raft_id peer);
void replica_compacted(struct replica *r, raft_index index);
/* Takes the caller's reference. */
void replica_propose(struct replica *r, struct proposal *p);
/* The leader's own (lease expiry, compaction): dropped when we do not lead. Takes the entry. */
void replica_propose_own(struct replica *r, struct raft_entry *e);
/* fn is called from a later call of the replica's, or from this one. */
void replica_barrier(struct replica *r, struct replica_wait *w);
void replica_transfer(struct replica *r, struct replica_wait *w);
/* One tick of the core, and deadlines. */
void replica_tick(struct replica *r);

void replica_turn(struct replica *r);
/* Answers everything that waits with KRD_STOPPING or, where it may be in a log,
 * KRD_OUTCOME_UNKNOWN. */
void replica_fail_all(struct replica *r);
/* When this node last knew that it had applied everything committed anywhere (monotonic ms). */
uint64_t replica_fresh_ms(const struct replica *r);

#endif
