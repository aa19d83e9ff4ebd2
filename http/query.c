#include "http/query.h"

#include <stdarg.h>
#include <stdio.h>

static int hex_digit(uint8_t c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    if (c >= 'A' && c <= 'F')
        return c - 'A' + 10;
    return -1;
}

bool http_percent_decode(struct slice src, uint8_t *dst, size_t *dst_len)
{
    size_t n = 0;
    for (size_t i = 0; i < src.len; i++) {
        uint8_t c = src.ptr[i];
        if (c == '%') {
            if (src.len - i < 3)
                return false;
            int hi = hex_digit(src.ptr[i + 1]), lo = hex_digit(src.ptr[i + 2]);
            if (hi < 0 || lo < 0)
                return false;
            c = (uint8_t)(hi << 4 | lo);
            i += 2;
        }
        dst[n++] = c;
    }
    *dst_len = n;
    return true;
}

/* --- Members ---------------------------------------------------------------------------------- */

void http_query_fail(struct http_query *q, const char *fmt, ...)
{
    if (q->error != NULL)
        return;
    char text[256];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    q->error = krd_arena_printf(q->arena, "%s", text);
}

/* Names in messages are cut: they are the client's and may be long. */
static int name_len(struct slice name)
{
    return (int)krd_min_size(name.len, 64);
}

static bool decode_into(struct http_query *q, struct slice raw, struct slice *out)
{
    if (memchr(raw.ptr, '%', raw.len) == NULL) {
        *out = raw;
        return true;
    }
    uint8_t *dst = krd_arena_alloc(q->arena, raw.len);
    if (!http_percent_decode(raw, dst, &out->len)) {
        http_query_fail(q, "bad percent-encoding in the query");
        return false;
    }
    out->ptr = dst;
    return true;
}

static void add_member(struct http_query *q, struct slice raw)
{
    const uint8_t *eq = memchr(raw.ptr, '=', raw.len);
    struct slice name = slice_of(raw.ptr, eq != NULL ? (size_t)(eq - raw.ptr) : raw.len);
    struct slice value = slice_of(NULL, 0);
    if (eq != NULL && (size_t)(eq - raw.ptr) + 1 < raw.len)
        value = slice_of(eq + 1, raw.len - name.len - 1);
    if (!decode_into(q, name, &name) || (value.len > 0 && !decode_into(q, value, &value)))
        return;
    for (unsigned i = 0; i < q->n; i++) {
        if (slice_eq(q->members[i].name, name)) {
            http_query_fail(q, "query member \"%.*s\" is given twice", name_len(name), name.ptr);
            return;
        }
    }
    if (q->n == HTTP_QUERY_MEMBERS_MAX) {
        http_query_fail(q, "too many query members");
        return;
    }
    q->members[q->n].name = name;
    q->members[q->n].value = value;
    q->members[q->n].bare = eq == NULL;
    q->members[q->n].taken = false;
    q->n++;
}

void http_query_parse(struct http_query *q, struct slice raw, struct krd_arena *arena)
{
    q->n = 0;
    q->error = NULL;
    q->arena = arena;
    while (raw.len > 0 && q->error == NULL) {
        const uint8_t *amp = memchr(raw.ptr, '&', raw.len);
        size_t len = amp != NULL ? (size_t)(amp - raw.ptr) : raw.len;
        if (len > 0)
            add_member(q, slice_of(raw.ptr, len));
        size_t skip = amp != NULL ? len + 1 : len;
        raw = slice_of(raw.ptr + skip, raw.len - skip);
    }
}

/* The member's index, or -1. */
static int take(struct http_query *q, const char *name)
{
    struct slice want = slice_str(name);
    for (unsigned i = 0; i < q->n && q->error == NULL; i++) {
        if (slice_eq(q->members[i].name, want)) {
            q->members[i].taken = true;
            return (int)i;
        }
    }
    return -1;
}

bool http_query_flag(struct http_query *q, const char *name)
{
    int i = take(q, name);
    if (i < 0)
        return false;
    struct slice v = q->members[i].value;
    if (q->members[i].bare || slice_eq(v, slice_str("true")) || slice_eq(v, slice_str("1")))
        return true;
    if (!slice_eq(v, slice_str("false")) && !slice_eq(v, slice_str("0")))
        http_query_fail(q, "query member \"%s\" is true or false, or stands alone", name);
    return false;
}

bool http_query_bytes(struct http_query *q, const char *name, struct slice *out)
{
    int i = take(q, name);
    if (i < 0)
        return false;
    if (q->members[i].bare) {
        http_query_fail(q, "query member \"%s\" needs a value", name);
        return false;
    }
    *out = q->members[i].value;
    return true;
}

bool http_query_i64(struct http_query *q, const char *name, int64_t min, int64_t max, int64_t *out)
{
    struct slice s;
    if (!http_query_bytes(q, name, &s))
        return false;
    uint64_t v;
    if (!http_parse_u64(s, &v) || v > INT64_MAX || (int64_t)v < min || (int64_t)v > max) {
        http_query_fail(q, "query member \"%s\" is a whole number from %lld to %lld", name,
                        (long long)min, (long long)max);
        return false;
    }
    *out = (int64_t)v;
    return true;
}

bool http_query_ms(struct http_query *q, const char *name, uint64_t max_ms, uint64_t *out)
{
    struct slice s;
    if (!http_query_bytes(q, name, &s))
        return false;
    if (!http_parse_ms(s, max_ms, out)) {
        http_query_fail(q, "query member \"%s\" is a duration such as 200ms or 30s, at most %llus",
                        name, (unsigned long long)(max_ms / 1000));
        return false;
    }
    return true;
}

bool http_query_lease(struct http_query *q, const char *name, int64_t *out)
{
    struct slice s;
    if (!http_query_bytes(q, name, &s))
        return false;
    if (!http_parse_lease(s, out)) {
        http_query_fail(q, "query member \"%s\" is a lease id: 16 hex digits", name);
        return false;
    }
    return true;
}

bool http_query_word(struct http_query *q, const char *name, const char *const *words,
                     unsigned *out)
{
    struct slice s;
    if (!http_query_bytes(q, name, &s))
        return false;
    for (unsigned i = 0; words[i] != NULL; i++) {
        if (slice_eq(s, slice_str(words[i]))) {
            *out = i;
            return true;
        }
    }
    http_query_fail(q, "query member \"%s\" cannot be \"%.*s\"", name, name_len(s), s.ptr);
    return false;
}

const char *http_query_finish(struct http_query *q)
{
    for (unsigned i = 0; i < q->n; i++) {
        struct slice name = q->members[i].name;
        if (!q->members[i].taken)
            http_query_fail(q, "unknown query member \"%.*s\"", name_len(name), name.ptr);
    }
    return q->error;
}

/* --- Single values ---------------------------------------------------------------------------- */

bool http_parse_u64(struct slice s, uint64_t *out)
{
    uint64_t v = 0;
    if (s.len == 0)
        return false;
    for (size_t i = 0; i < s.len; i++) {
        if (s.ptr[i] < '0' || s.ptr[i] > '9')
            return false;
        uint64_t digit = s.ptr[i] - '0';
        if (v > (UINT64_MAX - digit) / 10)
            return false;
        v = v * 10 + digit;
    }
    *out = v;
    return true;
}

static uint64_t unit_ms(struct slice unit)
{
    static const struct {
        const char *name;
        uint64_t ms;
    } units[] = {{"ms", 1}, {"s", 1000}, {"m", 60 * 1000}, {"h", 3600 * 1000}};
    for (size_t i = 0; i < KRD_ARRAY_LEN(units); i++) {
        if (slice_eq(unit, slice_str(units[i].name)))
            return units[i].ms;
    }
    return 0;
}

bool http_parse_ms(struct slice s, uint64_t max_ms, uint64_t *out)
{
    uint64_t sum = 0;
    size_t at = 0;
    if (s.len == 0)
        return false;
    if (s.len == 1 && s.ptr[0] == '0') {
        *out = 0;
        return true;
    }
    do {
        size_t digits = at, unit;
        while (digits < s.len && s.ptr[digits] >= '0' && s.ptr[digits] <= '9')
            digits++;
        unit = digits;
        while (unit < s.len && s.ptr[unit] >= 'a' && s.ptr[unit] <= 'z')
            unit++;
        uint64_t v, ms = unit_ms(slice_of(s.ptr + digits, unit - digits));
        if (!http_parse_u64(slice_of(s.ptr + at, digits - at), &v) || ms == 0)
            return false;
        if (v > (max_ms - sum) / ms)
            return false;
        sum += v * ms;
        at = unit;
    } while (at < s.len);
    *out = sum;
    return true;
}

bool http_parse_lease(struct slice s, int64_t *out)
{
    uint64_t v = 0;
    if (s.len == 0 || s.len > 16)
        return false;
    for (size_t i = 0; i < s.len; i++) {
        int digit = hex_digit(s.ptr[i]);
        if (digit < 0)
            return false;
        v = v << 4 | (uint64_t)digit;
    }
    if (v == 0 || v > INT64_MAX)
        return false;
    *out = (int64_t)v;
    return true;
}

void http_format_lease(int64_t id, char out[17])
{
    static const char hex[] = "0123456789abcdef";
    uint64_t v = (uint64_t)id;
    for (int i = 15; i >= 0; i--) {
        out[i] = hex[v & 15];
        v >>= 4;
    }
    out[16] = '\0';
}

/* --- Entity tags ------------------------------------------------------------------------------ */

static size_t skip_space(struct slice s, size_t at)
{
    while (at < s.len && (s.ptr[at] == ' ' || s.ptr[at] == '\t'))
        at++;
    return at;
}

/* One tag at *at; leaves *at behind it. */
static bool parse_etag(struct slice s, size_t *at, int64_t *revision)
{
    size_t i = *at;
    if (s.len - i >= 2 && s.ptr[i] == 'W' && s.ptr[i + 1] == '/')
        i += 2;
    if (i == s.len || s.ptr[i] != '"')
        return false;
    size_t start = ++i;
    while (i < s.len && s.ptr[i] != '"')
        i++;
    if (i == s.len)
        return false;
    uint64_t v;
    bool ours = http_parse_u64(slice_of(s.ptr + start, i - start), &v) && v > 0 && v <= INT64_MAX;
    *revision = ours ? (int64_t)v : -1;
    *at = i + 1;
    return true;
}

bool http_parse_etags(struct slice s, struct http_etags *out)
{
    size_t at = skip_space(s, 0);
    memset(out, 0, sizeof *out);
    if (at < s.len && s.ptr[at] == '*') {
        out->any = true;
        return skip_space(s, at + 1) == s.len;
    }
    for (;;) {
        if (out->n == KRD_ARRAY_LEN(out->revisions) || !parse_etag(s, &at, &out->revisions[out->n]))
            return false;
        out->n++;
        at = skip_space(s, at);
        if (at == s.len)
            return true;
        if (s.ptr[at] != ',')
            return false;
        at = skip_space(s, at + 1);
    }
}

bool http_etags_hold(const struct http_etags *t, int64_t mod_revision)
{
    if (t->any)
        return mod_revision > 0;
    for (unsigned i = 0; i < t->n; i++) {
        if (t->revisions[i] == mod_revision)
            return true;
    }
    return false;
}
