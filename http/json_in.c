#include "http/json_in.h"

#include "http/query.h"

#include <stdarg.h>
#include <stdio.h>

void json_in_fail(struct json_in *in, const char *fmt, ...)
{
    if (in->error != NULL)
        return;
    char text[256];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    if (in->where_len > 0)
        in->error = krd_arena_printf(in->arena, "%s: %s", in->where, text);
    else
        in->error = krd_arena_printf(in->arena, "%s", text);
}

json_t *json_in_open(struct json_in *in, struct slice body, struct krd_arena *arena)
{
    *in = (struct json_in){.arena = arena};
    json_error_t e;
    in->root = json_loadb(body.len > 0 ? (const char *)body.ptr : "", body.len,
                          JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL | JSON_DECODE_ANY, &e);
    if (in->root == NULL)
        json_in_fail(in, "the body is not JSON: %.120s (line %d, column %d)", e.text, e.line,
                     e.column);
    else if (!json_is_object(in->root))
        json_in_fail(in, "the body is not a JSON object");
    return in->error == NULL ? in->root : NULL;
}

void json_in_close(struct json_in *in)
{
    json_decref(in->root);
    in->root = NULL;
}

size_t json_in_enter(struct json_in *in, const char *name, long index)
{
    size_t mark = in->where_len, left = sizeof in->where - mark;
    int n = snprintf(in->where + mark, left, "%s%s", mark > 0 ? "." : "", name);
    if (index >= 0 && n >= 0 && (size_t)n < left)
        n += snprintf(in->where + mark + n, left - (size_t)n, "[%ld]", index);
    in->where_len = strlen(in->where);
    return mark;
}

void json_in_leave(struct json_in *in, size_t mark)
{
    in->where_len = mark;
    in->where[mark] = '\0';
}

void json_in_known(struct json_in *in, json_t *obj, const char *const *names)
{
    const char *name;
    json_t *value;
    json_object_foreach(obj, name, value)
    {
        bool known = false;
        for (size_t i = 0; names[i] != NULL && !known; i++)
            known = strcmp(names[i], name) == 0;
        if (!known)
            json_in_fail(in, "unknown member \"%.64s\"", name);
    }
}

bool json_in_as_i64(struct json_in *in, const char *name, json_t *v, int64_t min, int64_t max,
                    int64_t *out)
{
    if (!json_is_integer(v) || json_integer_value(v) < min || json_integer_value(v) > max) {
        json_in_fail(in, "\"%s\" is a whole number from %lld to %lld", name, (long long)min,
                     (long long)max);
        return false;
    }
    *out = json_integer_value(v);
    return true;
}

static bool as_text(struct json_in *in, const char *name, json_t *v, struct slice *out)
{
    if (!json_is_string(v)) {
        json_in_fail(in, "\"%s\" is a string", name);
        return false;
    }
    *out = slice_of(json_string_value(v), json_string_length(v));
    return true;
}

bool json_in_as_bytes(struct json_in *in, const char *name, json_t *v, bool base64,
                      struct slice *out)
{
    struct slice text;
    if (!as_text(in, name, v, &text))
        return false;
    if (!base64) {
        *out = text;
        return true;
    }
    uint8_t *dst = krd_arena_alloc(in->arena, text.len);
    if (!json_base64_decode(text, dst, &out->len)) {
        json_in_fail(in, "\"%s\" is not base64", name);
        return false;
    }
    out->ptr = dst;
    return true;
}

bool json_in_as_lease(struct json_in *in, const char *name, json_t *v, int64_t *out)
{
    struct slice s;
    if (!as_text(in, name, v, &s))
        return false;
    if (!http_parse_lease(s, out)) {
        json_in_fail(in, "\"%s\" is a lease id: 16 hex digits", name);
        return false;
    }
    return true;
}

bool json_in_i64(struct json_in *in, json_t *obj, const char *name, int64_t min, int64_t max,
                 int64_t *out)
{
    json_t *v = json_object_get(obj, name);
    return v != NULL && json_in_as_i64(in, name, v, min, max, out);
}

bool json_in_bool(struct json_in *in, json_t *obj, const char *name, bool *out)
{
    json_t *v = json_object_get(obj, name);
    if (v == NULL)
        return false;
    if (!json_is_boolean(v)) {
        json_in_fail(in, "\"%s\" is true or false", name);
        return false;
    }
    *out = json_is_true(v);
    return true;
}

bool json_in_text(struct json_in *in, json_t *obj, const char *name, struct slice *out)
{
    json_t *v = json_object_get(obj, name);
    return v != NULL && as_text(in, name, v, out);
}

bool json_in_bytes(struct json_in *in, json_t *obj, const char *name, struct slice *out)
{
    char name64[64];
    snprintf(name64, sizeof name64, "%s_base64", name);
    json_t *plain = json_object_get(obj, name), *coded = json_object_get(obj, name64);
    if (plain != NULL && coded != NULL) {
        json_in_fail(in, "\"%s\" and \"%s\" stand side by side", name, name64);
        return false;
    }
    if (coded != NULL)
        return json_in_as_bytes(in, name64, coded, true, out);
    return plain != NULL && json_in_as_bytes(in, name, plain, false, out);
}

bool json_in_lease(struct json_in *in, json_t *obj, const char *name, int64_t *out)
{
    json_t *v = json_object_get(obj, name);
    return v != NULL && json_in_as_lease(in, name, v, out);
}

static int digit64(uint8_t c)
{
    if (c >= 'A' && c <= 'Z')
        return c - 'A';
    if (c >= 'a' && c <= 'z')
        return c - 'a' + 26;
    if (c >= '0' && c <= '9')
        return c - '0' + 52;
    if (c == '+' || c == '-')
        return 62;
    if (c == '/' || c == '_')
        return 63;
    return -1;
}

bool json_base64_decode(struct slice src, uint8_t *dst, size_t *dst_len)
{
    size_t n = src.len, out = 0;
    if (n % 4 == 0 && n > 0 && src.ptr[n - 1] == '=')
        n -= src.ptr[n - 2] == '=' ? 2 : 1;
    if (n % 4 == 1)
        return false;
    uint32_t bits = 0;
    unsigned held = 0; /* bits that wait for their byte to be whole */
    for (size_t i = 0; i < n; i++) {
        int d = digit64(src.ptr[i]);
        if (d < 0)
            return false;
        bits = bits << 6 | (uint32_t)d;
        held += 6;
        if (held >= 8) {
            held -= 8;
            dst[out++] = (uint8_t)(bits >> held);
        }
    }
    *dst_len = out;
    /* What is left over must be zero, or two texts would stand for the same bytes. */
    return (bits & ((1u << held) - 1)) == 0;
}
