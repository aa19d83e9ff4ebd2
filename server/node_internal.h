/* node_internal.h - the running node, for the files that make it up: node.c (start and stop),
 * raft_loop.c, apply_loop.c, upkeep.c, face.c, metrics.c. Nobody else includes it.
 *
 *   fronts --proposal, barrier--> [raft loop] --write--> [log writer] --persisted--> [raft loop]
 *                                     |  ^ \--messages--> peers
 *                                 committed | applied
 *                                     v  |
 *                                 [apply] --result--> fronts
 *                                 [upkeep] checkpoints, cuts the log, compacts history */
#ifndef KRD_SERVER_NODE_INTERNAL_H
#define KRD_SERVER_NODE_INTERNAL_H

#include "base/loop.h"
#include "kv/store.h"
#include "raft/peer.h"
#include "raft/wal.h"
#include "server/identity.h"
#include "server/metrics.h"
#include "server/node_host.h"
#include "server/replica.h"

#include <pthread.h>

/* What mail to the raft loop is. */
enum node_mail_type {
    NODE_MAIL_PROPOSAL,  /* struct proposal */
    NODE_MAIL_BARRIER,   /* struct replica_wait */
    NODE_MAIL_TRANSFER,  /* struct replica_wait */
    NODE_MAIL_RENEW,     /* struct renew_wait */
    NODE_MAIL_OWN_ENTRY, /* struct own_entry */
    NODE_MAIL_FETCHED,   /* struct fetched */
    NODE_MAIL_NOTICE,    /* persisted, applied, compacted: see struct notice */
};

/* A notice is a number that grows: only the newest matters, and one mail serves for ever. */
struct notice {
    struct node_mail mail;
    atomic_bool queued;
    _Atomic uint64_t value;
    uint64_t seen; /* raft loop: the newest that was handed on */
    void (*fn)(struct replica *r, uint64_t value);
};

struct own_entry { /* proposed by this node itself if it leads */
    struct node_mail mail;
    struct raft_entry entry;
};

struct fetched {
    struct node_mail mail;
    raft_id peer;
    struct raft_entry *entries;
    size_t n;
};

struct renew_wait { /* a keep-alive, gathered with others of the same turn */
    struct node_mail mail;
    int64_t lease;
    node_write_fn *fn;
    void *arg;
};

struct apply_mail { /* to the apply thread */
    struct krd_mail mail;
    size_t n;
    struct raft_entry entries[]; /* each with a reference */
};

/* What the leader last said of each member, for /v1/cluster on any node. */
struct member_view {
    raft_id id;
    raft_index match;
    uint64_t rtt_us;
    bool active;
    bool told_silent; /* the operator was told that it does not answer */
    char http_address[280];
};

struct node {
    struct node_options o;
    char *dir, *name, *http_advertise;
    struct identity identity;
    uint64_t started_ms;

    struct kv_store *store;
    struct wal_writer *log;
    struct proposals *proposals;
    struct node_metrics metrics;

    /* raft loop */
    pthread_t raft_thread;
    struct krd_mailbox inbox;
    struct krd_io inbox_io;
    struct krd_loop loop;
    struct peer_transport *net;
    struct replica *replica;
    struct raft *core;
    struct krd_buf frame;
    struct renew_wait *renewals; /* of this turn */
    uint64_t next_tick_ms, next_status_ms, next_progress_ms, next_fresh_ms;
    struct member_view views[KRD_MEMBERS_MAX];
    size_t n_views;
    struct notice persisted, applied, compacted, wake;
    atomic_bool stop_raft;
    uint64_t election_started_ms;

    /* Read by any thread. */
    _Atomic int64_t cluster_time_offset_ms; /* cluster time - monotonic */
    _Atomic uint64_t fresh_ms;              /* monotonic; see replica_fresh_ms */
    _Atomic uint64_t want_fresh_until_ms;
    atomic_bool leading, stopping;
    _Atomic uint64_t safe_to_cut;

    /* The published picture: copied in and out under its lock, nothing else is. */
    pthread_mutex_t status_lock;
    pthread_cond_t status_changed;
    struct raft_status raft_status;
    struct raft_config_state config;
    struct member_view published_views[KRD_MEMBERS_MAX];
    struct peer_status peer_status[KRD_MEMBERS_MAX];
    size_t n_published_views;

    /* apply */
    pthread_t apply_thread;
    struct krd_mailbox apply_inbox;
    atomic_bool stop_apply;

    /* upkeep */
    pthread_t upkeep_thread;
    struct krd_mailbox upkeep_inbox;
    struct krd_mail upkeep_stop;
    atomic_bool stop_upkeep;
};

void notice_init(struct notice *t, void (*fn)(struct replica *r, uint64_t value));
/* Any thread. */
void node_notify(struct node *n, struct notice *t, uint64_t value);
void node_post(struct node *n, struct node_mail *m, enum node_mail_type type);
uint64_t node_cluster_time_ms(struct node *n);
/* Proposes, if this node leads, a command without origin. Any thread. */
void node_propose_own(struct node *n, Etcdserverpb__InternalRaftRequest *r);
struct raft_entry node_encode(Etcdserverpb__InternalRaftRequest *r);
bool node_peer_status(struct node *n, uint64_t id, struct peer_status *out);

/* raft_loop.c */
void raft_loop_init(struct node *n);
void *raft_loop_main(void *node);
extern const struct replica_ops raft_loop_ops; /* but for ctx, which is the node */
void raft_loop_publish(struct node *n);
struct peer_callbacks raft_loop_peer_callbacks(struct node *n);
/* apply_loop.c */
void *apply_loop_main(void *node);
/* As the store takes it; an unknown type ends the process. */
struct kv_entry apply_loop_entry(const struct raft_entry *e);
void apply_loop_submit(struct node *n, const struct raft_entry *entries, size_t count);
/* upkeep.c */
void *upkeep_main(void *node);

#endif
