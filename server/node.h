/* node.h - the node's face: what the fronts (http/) know of the replicated store. Propose a write,
 * wait for a read barrier, read, watch, look at the cluster. Any node takes any call; what must be
 * done by the leader is carried there by the node itself.
 *
 * Threads: every function from any thread unless it says otherwise. Callbacks come once each, on a
 * thread of the node's: they must not block and hand the work to their own thread. A callback may
 * come before the call that asked for it has returned. */
#ifndef KRD_SERVER_NODE_H
#define KRD_SERVER_NODE_H

#include "base/buf.h"
#include "kv/command.pb-c.h"
#include "kv/types.h"

struct node;

/* --- Writes --------------------------------------------------------------------------------- */

/* status KRD_OK: result is the caller's (kv_result_destroy) and says how it went, a definite no
 * included. Otherwise result is NULL, and nothing was written (KRD_NO_LEADER, KRD_OVERLOADED,
 * KRD_STOPPING, ...) unless status is KRD_OUTCOME_UNKNOWN. */
typedef void node_write_fn(void *arg, enum krd_status status, struct kv_result *result);

/* Encodes the command (origin, boot, sequence and settled are the node's to fill), carries it to
 * the leader, through leader changes if need be, and answers when this node has applied it.
 * timeout_ms 0: the node's default. The request's memory is the caller's and free to go at return.
 * The command must have passed node_check. */
void node_propose(struct node *n, Etcdserverpb__InternalRaftRequest *r, uint32_t timeout_ms,
                  node_write_fn *fn, void *arg);
/* kv_check with the node's limits: KRD_BAD_REQUEST or KRD_TOO_LARGE with a static *message. */
KRD_MUST_CHECK enum krd_status
node_check(struct node *n, const Etcdserverpb__InternalRaftRequest *r, const char **message);
/* Renews a lease (gathered with others into one entry). result->lease_ttl is its TTL. */
void node_lease_keep_alive(struct node *n, int64_t lease, node_write_fn *fn, void *arg);

/* --- Reads ---------------------------------------------------------------------------------- */

typedef void node_barrier_fn(void *arg, enum krd_status status);
/* When fn comes with KRD_OK, this node's state holds every write that was answered anywhere before
 * the call: reads below are then linearizable. KRD_NO_LEADER, KRD_STOPPING otherwise. */
void node_read_barrier(struct node *n, uint32_t timeout_ms, node_barrier_fn *fn, void *arg);
/* How far behind this node's state may be, in milliseconds: time since it last knew that it had
 * everything committed. UINT64_MAX: unknown. */
uint64_t node_staleness_ms(struct node *n);

/* Reads of the local state; see kv/store.h for each. */
struct kv_cursor;
struct kv_lease_info;
KRD_MUST_CHECK enum krd_status node_get(struct node *n, struct slice key, int64_t revision,
                                        struct krd_arena *arena, struct kv_pair *out,
                                        int64_t *store_revision);
KRD_MUST_CHECK enum krd_status node_cursor_open(struct node *n, const struct kv_query *q,
                                                struct kv_cursor **out);
bool node_cursor_next(struct kv_cursor *c, struct kv_pair *out);
int64_t node_cursor_revision(const struct kv_cursor *c);
int64_t node_cursor_count_rest(struct kv_cursor *c);
void node_cursor_close(struct kv_cursor *c);
KRD_MUST_CHECK enum krd_status node_history(struct node *n, struct slice key, size_t limit,
                                            struct krd_arena *arena, struct kv_pair **out,
                                            size_t *count, int64_t *store_revision);
int64_t node_revision(struct node *n);
int64_t node_compacted_revision(struct node *n);

struct node_lease {
    int64_t id, ttl;      /* seconds, as granted */
    int64_t remaining_ms; /* by cluster time; may be negative when its end is under way */
    int64_t keys;
};
KRD_MUST_CHECK enum krd_status node_lease_get(struct node *n, int64_t id, struct node_lease *out);
size_t node_lease_list(struct node *n, struct node_lease **out); /* krd_alloc'd, by id */
size_t node_lease_keys(struct node *n, int64_t id, struct krd_arena *arena, struct slice **out);

/* --- Watching: one group per front's thread; see kv/watch.h for each ------------------------- */

struct node_watch_group;
struct node_watch;
struct node_watch_spec {
    struct kv_range range;
    int64_t from; /* 0: from now on */
    bool prev_kv, no_put, no_delete;
};
struct node_watch_sink {
    void *arg;
    /* All matching events of one revision. False: no more for now (these were taken). */
    bool (*events)(void *arg, int64_t revision, const struct kv_event *events, size_t n);
    void (*compacted)(void *arg, int64_t compact_revision);
};
struct node_watch_group *node_watch_group_create(struct node *n, void (*wake)(void *arg),
                                                 void *arg);
void node_watch_group_destroy(struct node_watch_group *g);
bool node_watch_run(struct node_watch_group *g); /* true: call again soon */
KRD_MUST_CHECK enum krd_status node_watch_open(struct node_watch_group *g,
                                               const struct node_watch_spec *spec,
                                               const struct node_watch_sink *sink,
                                               struct node_watch **out);
void node_watch_resume(struct node_watch *w);
int64_t node_watch_synced_revision(const struct node_watch *w);
void node_watch_close(struct node_watch *w);

/* --- The cluster ----------------------------------------------------------------------------- */

enum node_role { NODE_FOLLOWER, NODE_CANDIDATE, NODE_LEADER, NODE_LEARNER };

struct node_member {
    uint64_t id;
    char name[64];
    char raft_address[280];
    char http_address[280]; /* advertised; empty when not known yet */
    bool voter, is_leader, is_self;
    bool healthy;         /* as seen from here: connected and answering */
    int64_t lag;          /* entries behind the leader; -1 unknown (only the leader knows) */
    uint64_t match_index; /* leader only */
    uint64_t rtt_us;      /* leader only; 0 unknown */
};

struct node_status {
    uint64_t cluster_id, member_id;
    char name[64];
    enum node_role role;
    uint64_t leader_id; /* 0: none known */
    char leader_name[64];
    uint64_t term, commit_index, applied_index, last_index, first_index;
    uint64_t log_bytes, store_bytes;
    int64_t revision, compacted_revision;
    uint64_t uptime_ms;
    uint64_t state_hash_index;
    uint8_t state_hash[16];
    bool stopping;
    uint32_t n_members;
    struct node_member *members; /* krd_alloc'd */
};
/* A recent picture (published by the raft loop); cheap enough for every request. */
void node_get_status(struct node *n, struct node_status *out);
void node_status_deinit(struct node_status *s);
const char *node_role_name(enum node_role role);

/* Writes and reads work here: a leader is known and this node keeps up. *reason (may be NULL) is
 * static and says what is wrong otherwise. */
bool node_healthy(struct node *n, const char **reason);

/* Hands leadership to the named member ("" : whoever is furthest); answers when it has happened
 * or failed (KRD_NO_LEADER, KRD_NOT_FOUND, KRD_CONFLICT, KRD_AGAIN: it did not come about in
 * time). Works from any node. */
void node_transfer(struct node *n, const char *name, node_barrier_fn *fn, void *arg);

/* Appends the node's metrics in Prometheus text format (server/metrics.c). */
void node_metrics(struct node *n, struct krd_buf *out);

#endif
