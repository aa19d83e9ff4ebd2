#include "http/route.h"

#define BIT(m) (1u << (m))
#define READ   (BIT(HTTP_GET) | BIT(HTTP_HEAD))

/* TAIL: everything that follows is the user's. ID: one segment, then perhaps `after`. */
enum shape { EXACT, TAIL, ID };

static const struct {
    const char *path;
    enum shape shape;
    const char *after; /* ID: what must follow the segment */
    enum http_call call;
    unsigned methods;
} routes[] = {
    /* The first one that fits; the busiest stand first. */
    {"/v1/kv/", TAIL, "", HTTP_CALL_KV, READ | BIT(HTTP_PUT) | BIT(HTTP_DELETE)},
    {"/v1/kv", EXACT, "", HTTP_CALL_KV, READ | BIT(HTTP_PUT) | BIT(HTTP_DELETE)},
    {"/v1/watch/", TAIL, "", HTTP_CALL_WATCH, BIT(HTTP_GET)},
    {"/v1/watch", EXACT, "", HTTP_CALL_WATCH, BIT(HTTP_GET)},
    {"/v1/txn", EXACT, "", HTTP_CALL_TXN, BIT(HTTP_POST)},
    {"/v1/lease", EXACT, "", HTTP_CALL_LEASES, READ | BIT(HTTP_POST)},
    {"/v1/lease/", ID, "/keepalive", HTTP_CALL_LEASE_KEEPALIVE, BIT(HTTP_POST)},
    {"/v1/lease/", ID, "", HTTP_CALL_LEASE, READ | BIT(HTTP_DELETE)},
    {"/v1/cluster", EXACT, "", HTTP_CALL_CLUSTER, READ},
    {"/v1/cluster/leader", EXACT, "", HTTP_CALL_CLUSTER_LEADER, BIT(HTTP_POST)},
    {"/v1/compact", EXACT, "", HTTP_CALL_COMPACT, BIT(HTTP_POST)},
    {"/health", EXACT, "", HTTP_CALL_HEALTH, READ},
    {"/livez", EXACT, "", HTTP_CALL_LIVEZ, READ},
    {"/readyz", EXACT, "", HTTP_CALL_READYZ, READ},
    {"/version", EXACT, "", HTTP_CALL_VERSION, READ},
    {"/metrics", EXACT, "", HTTP_CALL_METRICS, READ},
    {"/key", EXACT, "", HTTP_CALL_HRAFTD_KEYS, BIT(HTTP_POST)},
    {"/key/", TAIL, "", HTTP_CALL_HRAFTD_KEY, READ | BIT(HTTP_DELETE)},
    {"/status", EXACT, "", HTTP_CALL_HRAFTD_STATUS, READ},
};

static const char *const method_names[] = {"GET",    "HEAD",    "PUT",  "POST",
                                           "DELETE", "OPTIONS", "other"};

enum http_method http_method_of(struct slice s)
{
    for (int m = 0; m < HTTP_OTHER; m++) {
        if (slice_eq(s, slice_str(method_names[m])))
            return (enum http_method)m;
    }
    return HTTP_OTHER;
}

const char *http_method_name(enum http_method m)
{
    return method_names[m];
}

static bool fits(size_t i, struct slice path, struct slice *tail)
{
    struct slice fixed = slice_str(routes[i].path), after = slice_str(routes[i].after);
    if (!slice_has_prefix(path, fixed))
        return false;
    *tail = slice_of(path.ptr + fixed.len, path.len - fixed.len);
    if (routes[i].shape == EXACT)
        return tail->len == 0;
    if (routes[i].shape == TAIL)
        return true;
    const uint8_t *slash = tail->len > 0 ? memchr(tail->ptr, '/', tail->len) : NULL;
    size_t len = slash != NULL ? (size_t)(slash - tail->ptr) : tail->len;
    bool match = slice_eq(slice_of(tail->ptr + len, tail->len - len), after);
    tail->len = len;
    return match;
}

struct http_route http_route_find(struct slice path)
{
    for (size_t i = 0; i < KRD_ARRAY_LEN(routes); i++) {
        struct slice tail;
        if (fits(i, path, &tail))
            return (struct http_route){routes[i].call, routes[i].methods | BIT(HTTP_OPTIONS), tail};
    }
    return (struct http_route){HTTP_CALL_NONE, 0, slice_of(NULL, 0)};
}

size_t http_allow_text(unsigned methods, char *buf)
{
    size_t n = 0;
    for (int m = 0; m < HTTP_OTHER; m++) {
        if ((methods & BIT(m)) == 0)
            continue;
        size_t len = strlen(method_names[m]);
        if (n > 0) {
            memcpy(buf + n, ", ", 2);
            n += 2;
        }
        memcpy(buf + n, method_names[m], len);
        n += len;
    }
    return n;
}
