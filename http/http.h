/* http.h - the HTTP front's face for main: start, stop, count.
 *
 * http_start binds the address and starts the loops; http_stop stops accepting, lets what is in
 * flight finish, ends watches with a last line, and joins the loops. The node must be up before
 * and stay up until http_stop has returned: each of its callbacks that is still owed comes first.
 *
 * Thread: main's alone, but http_metrics, which any thread may call. */
#ifndef KRD_HTTP_HTTP_H
#define KRD_HTTP_HTTP_H

#include "base/base.h"
#include "base/buf.h"

struct node;
struct http_front;

struct http_options {
    struct node *node;
    const char *listen;          /* host:port, :port, [::1]:port; names are resolved */
    unsigned threads;            /* loops. 1..64 */
    const char *cors_origin;     /* NULL: no CORS; "*" or one origin */
    size_t max_request_bytes;    /* of a body */
    uint32_t request_timeout_ms; /* until a request is whole, idle time before it included */
    uint32_t stall_timeout_ms;   /* a client that takes nothing of its answer is cut off */
    uint32_t bookmark_ms;        /* between bookmarks of an idle watch */
    uint32_t drain_ms;           /* http_stop: time for what is in flight */
    uint32_t read_timeout_ms;    /* of a read barrier. 0: the node's default */
    uint32_t write_timeout_ms;   /* of a proposal. 0: the node's default */
    uint32_t slow_request_ms;    /* longer ones are logged. 0: none */
    const char *version;         /* for /version: "0.1.0" and "v0.1.0-3-gabc"; both outlive it */
    const char *build;
};
/* Everything but node and listen set to its default. */
void http_options_init(struct http_options *o);

/* On failure *err (krd_alloc'd, the caller's) is one sentence for the operator. The strings of
 * *o but version and build need not outlive the call. */
KRD_MUST_CHECK enum krd_status http_start(const struct http_options *o, struct http_front **out,
                                          char **err);
void http_stop(struct http_front *f); /* takes NULL */
/* The port that was bound: the one asked for, or the system's choice for port 0. */
uint16_t http_port(const struct http_front *f);
/* The front's own metrics in Prometheus' text format. */
void http_metrics(struct http_front *f, struct krd_buf *out);

#endif
