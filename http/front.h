/* front.h - what the files of http/ share: a loop, a connection, a request and its life.
 *
 * Everything here belongs to one loop's thread. A node's callback, on whatever thread it comes,
 * does one thing: it posts a message to the loop's inbox. */
#ifndef KRD_HTTP_FRONT_H
#define KRD_HTTP_FRONT_H

#include "base/arena.h"
#include "base/base.h"
#include "base/buf.h"
#include "http/http.h"
#include "http/json_out.h"
#include "http/listen.h"
#include "http/query.h"
#include "http/route.h"
#include "kv/command.pb-c.h"
#include "kv/types.h"
#include "server/node.h"

#include <h2o.h>
#include <stdatomic.h>

struct http_loop;
struct http_req;

/* --- Messages to a loop ----------------------------------------------------------------------- */

/* Zeroed before it is posted; belongs to the inbox until fn is called, on the loop's thread. */
struct http_msg {
    h2o_multithread_message_t super;
    void (*fn)(struct http_loop *l, struct http_msg *m);
};
void http_post(struct http_loop *l, struct http_msg *m); /* any thread */

/* --- Counters: written by one loop, read by any thread ---------------------------------------- */

#define HTTP_BUCKETS 12 /* of the histogram of durations */
extern const uint32_t http_bucket_us[HTTP_BUCKETS];

struct http_counters {
    atomic_ullong requests[HTTP_OTHER + 1][6]; /* by method and class: 1xx .. 5xx at [1..5] */
    atomic_ullong duration[HTTP_BUCKETS + 1];  /* not cumulative; the last one: longer */
    atomic_ullong duration_us;
    atomic_ullong slow, accepted, connections, watchers, stalled, refused_input;
};
/* One writer: no read-modify-write is needed. */
static inline void http_count(atomic_ullong *c, long long by)
{
    unsigned long long v = atomic_load_explicit(c, memory_order_relaxed);
    atomic_store_explicit(c, v + (unsigned long long)by, memory_order_relaxed);
}

/* --- A loop ----------------------------------------------------------------------------------- */

/* Reads that wait for a barrier. Those of one turn share one; while a barrier is under way,
 * new ones gather for the next, which therefore starts after they came. */
struct http_reads {
    h2o_linklist_t gathering; /* http_req.read_link */
    unsigned in_flight;       /* barriers */
    uint64_t submitted_ms;    /* the latest of them */
};

struct http_watches {
    struct node_watch_group *group;
    h2o_linklist_t all;   /* http_req.watch_link */
    h2o_linklist_t dirty; /* have rendered lines to send: http_req.dirty_link */
    unsigned polls;       /* of them with a deadline */
    struct http_msg wake;
    atomic_bool wake_posted;
    bool more; /* the group asked to be run again */
};

struct http_loop {
    struct http_front *front;
    struct node *node;
    const struct http_options *o; /* the front's */
    h2o_context_t ctx;
    h2o_accept_ctx_t accept_ctx;
    h2o_multithread_receiver_t inbox;
    h2o_socket_t *listeners[HTTP_LISTENERS_MAX];
    bool accepting, fd_shortage_logged;
    h2o_linklist_t conns;     /* http_conn.link */
    h2o_linklist_t lingering; /* struct lingerer: refused bodies that are still coming in */
    h2o_linklist_t active;    /* requests that h2o has not disposed of: http_req.active_link */
    h2o_linklist_t turn;      /* requests that go on in the next turn: http_req.turn_link */
    struct http_req *spare;   /* used ones, to be used again */
    unsigned n_spare;
    struct http_reads reads;
    struct http_watches watches;
    h2o_timeout_entry_t work; /* our part of a turn (server.c) */
    bool working, again;
    size_t owed;                           /* messages that the node's callbacks will still post */
    uint64_t now_ms, ticked_ms, polled_ms; /* monotonic */
    uint64_t stop_at_ms;                   /* end of the drain's patience */
    bool stopping;
    struct http_msg stop_msg;
    struct http_counters counters;
    pthread_t thread;
    bool started;
};

struct http_conn {
    h2o_linklist_t link;
    struct http_loop *loop;
    h2o_socket_t *sock;
    struct http_req *req; /* the one being answered, or NULL */
    size_t looked;        /* bytes of the first request seen to be incomplete (refuse.c) */
    bool listening;       /* for signs that the client has left (server.c) */
    h2o_socket_cb h2o_on_read;
    int linger_fd; /* -1, or a duplicate that outlives h2o's (refuse.c) */
};

/* --- A request --------------------------------------------------------------------------------
 *
 * Two ends, two references: h2o's pool holds one and gives it back when the request is disposed
 * of (answered, or the client is gone); what is in flight at the node holds the other. h2o is
 * NULL from the moment of disposal: an answer that comes later is dropped. */
struct http_req {
    struct http_msg msg; /* what the node answers travels in here */
    enum krd_status op_status;
    struct kv_result *op_result;
    void (*on_result)(struct http_req *r, enum krd_status st, struct kv_result *result);

    unsigned refs;
    struct http_loop *loop;
    struct http_conn *conn;
    h2o_req_t *h2o; /* NULL: nobody waits any more */
    struct http_req *next_spare;
    h2o_linklist_t active_link, turn_link, read_link, watch_link, dirty_link;

    enum http_method method;
    struct http_route route;
    struct slice key;                                            /* the route's tail, decoded */
    struct slice if_match, if_none_match, last_event_id, accept; /* ptr NULL: not sent */
    struct http_etags match, none_match;                         /* parsed by http_conditions */
    bool has_match, has_none_match;

    bool local;            /* no barrier */
    uint64_t max_stale_ms; /* of a local read. UINT64_MAX: whatever it is */
    void (*on_read)(struct http_req *r);

    struct krd_arena arena; /* whatever lives as long as the request */
    struct krd_buf out;     /* the body being written; not touched while h2o sends it */
    bool big;               /* its memory is not worth keeping for the next request */
    bool base64;
    int64_t revision;                       /* for Kv-Revision; 0: ask the node when answering */
    void *state;                            /* of the call at hand, in the arena */
    void (*on_dispose)(struct http_req *r); /* frees what state owns */
    void (*on_turn)(struct http_req *r);    /* see http_next_turn */
    void (*on_drained)(struct http_req *r); /* a stream's last piece has left */

    h2o_generator_t generator;
    bool replied;            /* the answer was begun */
    bool finished;           /* its last piece was given to h2o */
    bool sending;            /* h2o holds bytes of ours */
    uint64_t start_us;       /* monotonic */
    uint64_t sent_us;        /* a stream's latest piece */
    uint64_t client_us;      /* what its pieces waited for the client, all told */
    uint64_t progress_ms;    /* when the client was last seen to take something */
    uint64_t progress_bytes; /* what it had acknowledged by then */
    int status;

    struct http_query query; /* last: large, and never cleared as a whole */
};

/* request.c: life */
struct http_req *http_req_create(struct http_loop *l, h2o_req_t *h2o);
void http_req_free_spares(struct http_loop *l);
void http_dispatch(struct http_req *r);

/* request.c: the node. result is freed after on_result has returned; on_result is not called when
 * the client is gone. */
typedef void http_result_fn(struct http_req *r, enum krd_status st, struct kv_result *result);
/* Checks first: a bad command is answered at once. */
void http_propose(struct http_req *r, Etcdserverpb__InternalRaftRequest *cmd, http_result_fn *fn);
void http_keep_alive(struct http_req *r, int64_t lease, http_result_fn *fn);
void http_transfer(struct http_req *r, const char *member, http_result_fn *fn);
/* consistency= and max_stale= of the query. */
void http_read_options(struct http_req *r);
/* Calls fn, now or later, when reads of the local state are as fresh as the request asks; answers
 * otherwise. */
void http_read(struct http_req *r, void (*fn)(struct http_req *r));
void http_reads_flush(struct http_loop *l);
/* Milliseconds until http_reads_flush is needed again, at most max. */
int32_t http_reads_wait(const struct http_loop *l, int32_t max);
/* on_turn is called in the loop's next turn: long work goes in slices, one a turn. */
void http_next_turn(struct http_req *r);
void http_run_turn(struct http_loop *l);

/* request.c: answers. The memory of names and content types is static; values are copied. */
void http_header(struct http_req *r, const char *name, struct slice value);
void http_header_i64(struct http_req *r, const char *name, int64_t value);
void http_header_pair(struct http_req *r, const struct kv_pair *kv); /* ETag, Kv-... */
/* body: lies in r->out, r->arena or static. type NULL: no body and no type. */
void http_reply(struct http_req *r, int status, const char *type, struct slice body);
void http_reply_json(struct http_req *r, int status); /* r->out */
/* An error in the contract's form. message NULL: the status's own text. */
void http_fail(struct http_req *r, enum krd_status st, const char *message);
void http_failf(struct http_req *r, enum krd_status st, const char *fmt, ...) KRD_PRINTF(3, 4);
/* With one member more in the error. */
void http_fail_extra(struct http_req *r, enum krd_status st, const char *message, const char *name,
                     int64_t value);
/* key "a" does not exist */
void http_fail_absent(struct http_req *r, struct slice key);
/* The query must have been asked for everything: false and answered when something is wrong. */
KRD_MUST_CHECK bool http_query_done(struct http_req *r);
void http_encoding(struct http_req *r); /* encoding= of the query */
/* Parses If-Match and If-None-Match: false and answered when they are malformed. */
KRD_MUST_CHECK bool http_conditions(struct http_req *r);
struct jout http_json(struct http_req *r); /* into r->out, emptied; base64 as asked */
struct slice http_body(const struct http_req *r);

/* request.c: streams. Begun with a status and a type, then pieces one at a time: the next one when
 * on_drained was called. A piece's memory stays untouched until then. */
void http_stream_begin(struct http_req *r, const char *type);
void http_stream_send(struct http_req *r, struct slice piece, bool final);

/* request.c: reason phrases; the error's JSON on its own, for h2o's own refusals */
const char *http_reason(int status);
void http_error_json(struct krd_buf *out, const char *code, struct slice message);
void http_account(struct http_loop *l, enum http_method m, int status);
void http_check_stalled(struct http_loop *l);

/* server.c: our part of a turn is run, in this one or, when it is under way already, the next */
void http_kick(struct http_loop *l);
struct http_conn *http_conn_of(h2o_req_t *h2o);
/* Closes whatever it is doing; h2o notices and disposes of its request. */
void http_conn_kill(struct http_conn *c);
void http_conn_unlisten(struct http_conn *c);
unsigned http_loop_count(const struct http_front *f);
struct http_counters *http_loop_counters(struct http_front *f, unsigned i);

/* refuse.c: what h2o refuses by itself, in the contract's form */
void http_refusals_register(h2o_pathconf_t *path);
void http_look_at_first(struct http_conn *c); /* right after h2o_accept */
/* Takes over a duplicate of a connection that h2o has closed with input unread. */
void http_linger(struct http_loop *l, int fd);
void http_linger_check(struct http_loop *l, bool all); /* those whose time is over, or all */

/* The calls. Each answers, now or later. */
void http_kv(struct http_req *r);
void http_watch(struct http_req *r);
void http_txn(struct http_req *r);
void http_leases(struct http_req *r);
void http_lease(struct http_req *r);
void http_lease_keepalive(struct http_req *r);
void http_compact(struct http_req *r);
void http_cluster(struct http_req *r);
void http_cluster_leader(struct http_req *r);
void http_hraftd_keys(struct http_req *r);
void http_hraftd_key(struct http_req *r);
void http_hraftd_status(struct http_req *r);
void http_ops(struct http_req *r);

/* watch_rest.c, for the loop */
void http_watches_init(struct http_loop *l);
void http_watches_deinit(struct http_loop *l);
void http_watches_run(struct http_loop *l);
void http_watches_tick(struct http_loop *l); /* bookmarks and deadlines */
void http_watches_end(struct http_loop *l);  /* the last lines, at stop */

#endif
