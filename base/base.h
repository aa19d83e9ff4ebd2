/* base.h - what every room needs and C does not give: status codes, asserts, memory that never
 * fails silently, slices of bytes and little-endian access.
 *
 * Thread: all functions here may be called from any thread. */
#ifndef KRD_BASE_H
#define KRD_BASE_H

#include <inttypes.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define KRD_MUST_CHECK                      __attribute__((warn_unused_result))
#define KRD_PRINTF(f, a)                    __attribute__((format(printf, f, a)))
#define KRD_NORETURN                        __attribute__((noreturn))
#define KRD_UNUSED                          __attribute__((unused))
#define KRD_ARRAY_LEN(a)                    (sizeof(a) / sizeof((a)[0]))
#define KRD_LIKELY(x)                       __builtin_expect(!!(x), 1)
#define KRD_UNLIKELY(x)                     __builtin_expect(!!(x), 0)
#define KRD_CONTAINER_OF(ptr, type, member) ((type *)((char *)(ptr)-offsetof(type, member)))

/* The world's ways of saying no. One table: enum, the code that users see in an error's JSON, the
 * HTTP status, a default text. KRD_OK is 0. */
#define KRD_STATUS_TABLE(X)                                                                  \
    X(OK, "ok", 200, "ok")                                                                   \
    X(BAD_REQUEST, "bad_request", 400, "the request is malformed")                           \
    X(UNAUTHENTICATED, "unauthenticated", 401, "authentication is required")                 \
    X(PERMISSION_DENIED, "permission_denied", 403, "permission denied")                      \
    X(NOT_FOUND, "not_found", 404, "not found")                                              \
    X(METHOD_NOT_ALLOWED, "method_not_allowed", 405, "this method is not allowed here")      \
    X(CONFLICT, "conflict", 409, "the request conflicts with the present state")             \
    X(COMPACTED, "compacted", 410, "required revision has been compacted")                   \
    X(PRECONDITION_FAILED, "precondition_failed", 412, "a precondition does not hold")       \
    X(TOO_LARGE, "too_large", 413, "the request is too large")                               \
    X(IDEMPOTENCY_MISMATCH, "idempotency_mismatch", 422,                                     \
      "the idempotency key was used with a different request")                               \
    X(RATE_LIMITED, "rate_limited", 429, "too many requests")                                \
    X(INTERNAL, "internal", 500, "internal error")                                           \
    X(NO_LEADER, "no_leader", 503, "no leader is known; nothing was written")                \
    X(OVERLOADED, "overloaded", 503, "the node is overloaded; nothing was written")          \
    X(STOPPING, "stopping", 503, "the node is stopping; nothing was written")                \
    X(STALE, "stale", 503, "the local state is older than max_stale allows")                 \
    X(OUTCOME_UNKNOWN, "outcome_unknown", 504, "the write may or may not have been applied") \
    X(NO_SPACE, "no_space", 507, "no space is left for new data")                            \
    /* Not for clients: the disk, the peers and the operator. */                             \
    X(IO, "io", 500, "input/output error")                                                   \
    X(CORRUPT, "corrupt", 500, "stored data is damaged")                                     \
    X(FUTURE_REVISION, "bad_request", 400, "required revision is a future revision")         \
    X(LEASE_NOT_FOUND, "not_found", 404, "requested lease not found")                        \
    X(LEASE_EXISTS, "conflict", 409, "lease already exists")                                 \
    X(NOT_LEADER, "not_leader", 503, "this node is not the leader")                          \
    X(AGAIN, "again", 503, "not now")                                                        \
    X(EOF_, "eof", 500, "end of data")

enum krd_status {
#define KRD_X(name, code, http, text) KRD_##name,
    KRD_STATUS_TABLE(KRD_X)
#undef KRD_X
        KRD_STATUS_COUNT
};

/* The code as it stands in an error's JSON ("not_found"). Static. */
const char *krd_status_code(enum krd_status st);
/* A sentence for humans. Static. */
const char *krd_status_text(enum krd_status st);
/* The HTTP status that the contract gives it. */
int krd_status_http(enum krd_status st);

/* --- Asserts and fatal errors ------------------------------------------------------------- */

/* Our bug: says where and aborts. On in every build. */
#define KRD_ASSERT(cond)                                            \
    do {                                                            \
        if (KRD_UNLIKELY(!(cond)))                                  \
            krd_assert_failed(#cond, __FILE__, __LINE__, __func__); \
    } while (0)
KRD_NORETURN void krd_assert_failed(const char *expr, const char *file, int line, const char *fn);

/* We can no longer keep a promise: logs what happened, where and what the operator can do, drains
 * the log and ends the process with status 70. Never returns. */
KRD_NORETURN void krd_fatal(const char *fmt, ...) KRD_PRINTF(1, 2);

/* --- Memory: never NULL. Running out is fatal. Sizes that peers or clients choose are bounded by
 * the caller first (base/limits.h). ------------------------------------------------------------ */
void *krd_alloc(size_t size);            /* uninitialised */
void *krd_zalloc(size_t size);           /* zeroed */
void *krd_calloc(size_t n, size_t size); /* zeroed, checks n * size */
void *krd_realloc(void *p, size_t size);
void krd_free(void *p); /* takes NULL */
char *krd_strdup(const char *s);
char *krd_asprintf(const char *fmt, ...) KRD_PRINTF(1, 2);
/* Copies as much of the string as fits, always terminated. */
void krd_copy_text(char *to, size_t cap, const char *from);

/* Grows *array so that it holds at least `need` elements of `elem` bytes; *cap is updated. */
void krd_grow(void *array /* T ** */, size_t *cap, size_t need, size_t elem);

/* --- Bytes --------------------------------------------------------------------------------- */

/* A view of bytes that somebody else owns. ptr may be NULL only when len is 0. */
struct slice {
    const uint8_t *ptr;
    size_t len;
};

static inline struct slice slice_of(const void *ptr, size_t len)
{
    return (struct slice){(const uint8_t *)ptr, len};
}
static inline struct slice slice_str(const char *s)
{
    return slice_of(s, strlen(s));
}
static inline bool slice_eq(struct slice a, struct slice b)
{
    return a.len == b.len && (a.len == 0 || memcmp(a.ptr, b.ptr, a.len) == 0);
}
/* memcmp order, the shorter first: the order of keys everywhere. */
static inline int slice_cmp(struct slice a, struct slice b)
{
    size_t n = a.len < b.len ? a.len : b.len;
    int c = n == 0 ? 0 : memcmp(a.ptr, b.ptr, n);
    return c != 0 ? c : (a.len > b.len) - (a.len < b.len);
}
static inline bool slice_has_prefix(struct slice s, struct slice prefix)
{
    return s.len >= prefix.len && (prefix.len == 0 || memcmp(s.ptr, prefix.ptr, prefix.len) == 0);
}

#define KRD_DEFINE_LE(bits)                                        \
    static inline uint##bits##_t krd_get_le##bits(const void *p)   \
    {                                                              \
        uint##bits##_t v;                                          \
        memcpy(&v, p, sizeof v);                                   \
        return v;                                                  \
    }                                                              \
    static inline void krd_put_le##bits(void *p, uint##bits##_t v) \
    {                                                              \
        memcpy(p, &v, sizeof v);                                   \
    }
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "little-endian hosts only");
KRD_DEFINE_LE(16)
KRD_DEFINE_LE(32)
KRD_DEFINE_LE(64)
#undef KRD_DEFINE_LE

static inline uint64_t krd_get_be64(const void *p)
{
    return __builtin_bswap64(krd_get_le64(p));
}
static inline void krd_put_be64(void *p, uint64_t v)
{
    krd_put_le64(p, __builtin_bswap64(v));
}

#define KRD_DEFINE_MINMAX(name, T)           \
    static inline T krd_min_##name(T a, T b) \
    {                                        \
        return a < b ? a : b;                \
    }                                        \
    static inline T krd_max_##name(T a, T b) \
    {                                        \
        return a > b ? a : b;                \
    }
KRD_DEFINE_MINMAX(u64, uint64_t)
KRD_DEFINE_MINMAX(i64, int64_t)
KRD_DEFINE_MINMAX(size, size_t)
#undef KRD_DEFINE_MINMAX

#endif
