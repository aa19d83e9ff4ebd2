/* route.h - which call a method and a path mean. Pure: no request, no server.
 *
 * The fixed part of a path is compared as it stands; only what is the user's (a key, an id) is
 * percent-decoded later, by whoever takes it. */
#ifndef KRD_HTTP_ROUTE_H
#define KRD_HTTP_ROUTE_H

#include "base/base.h"

enum http_method {
    HTTP_GET,
    HTTP_HEAD,
    HTTP_PUT,
    HTTP_POST,
    HTTP_DELETE,
    HTTP_OPTIONS,
    HTTP_OTHER
};

enum http_call {
    HTTP_CALL_NONE,
    HTTP_CALL_KV,
    HTTP_CALL_WATCH,
    HTTP_CALL_TXN,
    HTTP_CALL_LEASES,          /* /v1/lease */
    HTTP_CALL_LEASE,           /* /v1/lease/ID */
    HTTP_CALL_LEASE_KEEPALIVE, /* /v1/lease/ID/keepalive */
    HTTP_CALL_CLUSTER,
    HTTP_CALL_CLUSTER_LEADER,
    HTTP_CALL_COMPACT,
    HTTP_CALL_HEALTH,
    HTTP_CALL_LIVEZ,
    HTTP_CALL_READYZ,
    HTTP_CALL_VERSION,
    HTTP_CALL_METRICS,
    HTTP_CALL_HRAFTD_KEYS, /* /key */
    HTTP_CALL_HRAFTD_KEY,  /* /key/K */
    HTTP_CALL_HRAFTD_STATUS,
    HTTP_CALL_COUNT
};

struct http_route {
    enum http_call call; /* HTTP_CALL_NONE: 404 */
    unsigned methods;    /* bits 1 << http_method that the call knows; OPTIONS is always one */
    struct slice tail;   /* the user's part, still encoded: KEY, ID; may be empty */
};

enum http_method http_method_of(struct slice s);
const char *http_method_name(enum http_method m);
/* path: from its '/' on, without the query. */
struct http_route http_route_find(struct slice path);
/* "GET, HEAD, OPTIONS" for Allow. buf needs HTTP_ALLOW_BYTES. */
#define HTTP_ALLOW_BYTES 48
size_t http_allow_text(unsigned methods, char *buf);

#endif
