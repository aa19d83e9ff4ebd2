/* query.h - the text around a request that is not JSON: percent-encoding, the members of a query,
 * numbers, durations, lease ids, entity tags.
 *
 * A query is taken apart once; each route then asks for the members that it knows, by name. What
 * nobody asked for is an error, so that a typing error never passes silently. Errors stick: the
 * first one stays, further calls do nothing, and the caller looks once, at the end.
 *
 * Thread: a query belongs to its request. Memory: everything lies in the arena. */
#ifndef KRD_HTTP_QUERY_H
#define KRD_HTTP_QUERY_H

#include "base/arena.h"
#include "base/base.h"

/* More than any route knows; further members are an error. */
#define HTTP_QUERY_MEMBERS_MAX 24

struct http_query {
    struct {
        struct slice name, value; /* decoded */
        bool bare;                /* without '=' */
        bool taken;
    } members[HTTP_QUERY_MEMBERS_MAX];
    unsigned n;
    const char *error; /* for humans; NULL while all is well */
    struct krd_arena *arena;
};

/* Replaces each %XX by its byte. dst needs src.len bytes. False: a '%' without two hex digits. A
 * plus sign stays a plus sign: names of packages and versions are full of them. */
KRD_MUST_CHECK bool http_percent_decode(struct slice src, uint8_t *dst, size_t *dst_len);

/* raw: what stands behind the '?', empty for none. */
void http_query_parse(struct http_query *q, struct slice raw, struct krd_arena *arena);

/* Each answers whether the member is there (and good) and marks it as known. *out is written only
 * then. */
bool http_query_flag(struct http_query *q, const char *name); /* bare, =true, =1; =false, =0 */
bool http_query_bytes(struct http_query *q, const char *name, struct slice *out);
bool http_query_i64(struct http_query *q, const char *name, int64_t min, int64_t max, int64_t *out);
bool http_query_ms(struct http_query *q, const char *name, uint64_t max_ms, uint64_t *out);
bool http_query_lease(struct http_query *q, const char *name, int64_t *out);
/* One of the words (NULL-terminated list): its index. */
bool http_query_word(struct http_query *q, const char *name, const char *const *words,
                     unsigned *out);
/* Records an error of the caller's own, unless there is one already. */
void http_query_fail(struct http_query *q, const char *fmt, ...) KRD_PRINTF(2, 3);
/* The end of asking: NULL, or what is wrong. */
const char *http_query_finish(struct http_query *q);

/* Decimal digits only. */
KRD_MUST_CHECK bool http_parse_u64(struct slice s, uint64_t *out);
/* Whole numbers with units, largest first or not: 200ms, 30s, 1h30m. */
KRD_MUST_CHECK bool http_parse_ms(struct slice s, uint64_t max_ms, uint64_t *out);
/* 1 to 16 hex digits of a positive 63-bit number. */
KRD_MUST_CHECK bool http_parse_lease(struct slice s, int64_t *out);
/* How a lease id is written: 16 lower-case hex digits. */
void http_format_lease(int64_t id, char out[17]);

/* The value of If-Match or If-None-Match. */
struct http_etags {
    bool any;              /* "*" */
    unsigned n;            /* of revisions; 0 when any */
    int64_t revisions[16]; /* tags that are no revision of ours stand as -1: they match nothing */
};
/* "5", W/"5", "5", "6", *. False: malformed, or more than 16. */
KRD_MUST_CHECK bool http_parse_etags(struct slice s, struct http_etags *out);
bool http_etags_hold(const struct http_etags *t, int64_t mod_revision);

#endif
