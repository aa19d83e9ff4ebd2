/* node_host.h - starting and stopping a node: for main and for tests, not for the fronts. */
#ifndef KRD_SERVER_NODE_HOST_H
#define KRD_SERVER_NODE_HOST_H

#include "server/node.h"

struct node_seed_member {
    char name[64];
    char address[280]; /* advertised "host:port" of its raft transport */
};

struct node_options {
    const char *dir;
    const char *name;           /* 1 to 63 printable bytes */
    const char *raft_listen;    /* "host:port" */
    const char *raft_advertise; /* "host:port" as the others reach it */
    const char *http_advertise;
    const struct node_seed_member *initial; /* the members of a fresh cluster, this one included */
    size_t n_initial;
    bool initial_given;          /* named by the user: a directory of another cluster is refused */
    const char *cluster_token;   /* tells clusters of equal members apart */
    uint32_t tick_ms;            /* default 10 */
    uint32_t heartbeat_ms;       /* default 100 */
    uint32_t election_ms;        /* default 1000: timeouts are drawn from [this, 2 * this) */
    uint32_t request_timeout_ms; /* default 5000 */
    size_t max_request_bytes;
    uint64_t segment_bytes;
    size_t log_cache_bytes; /* applied entries kept in memory for slow followers */
    size_t store_cache_bytes, store_buffer_bytes;
    uint64_t history_age_ms;   /* older history is compacted; 0: not by age */
    int64_t history_revisions; /* history beyond so many revisions is compacted; 0: not by count */
};
void node_options_default(struct node_options *o);

/* Opens the data, starts the threads. *err is krd_alloc'd, one sentence. */
KRD_MUST_CHECK enum krd_status node_start(const struct node_options *o, struct node **out,
                                          char **err);
/* Hands leadership over if it has it, so that the others go on at once; at most timeout_ms. The
 * node serves on. */
void node_step_aside(struct node *n, uint32_t timeout_ms);
/* Answers what is under way, makes everything durable, joins all threads, frees. No front may use
 * the node any more. */
void node_stop(struct node *n);

#endif
