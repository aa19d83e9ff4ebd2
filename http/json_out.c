#include "http/json_out.h"

/* Length of the UTF-8 sequence at p, 0 when it is none. (Unicode 15, table 3-7.) */
static size_t utf8_sequence(const uint8_t *p, size_t left)
{
    uint8_t c = p[0];
    if (c < 0x80)
        return 1;
    if (c < 0xc2)
        return 0;
    if (c < 0xe0)
        return left >= 2 && (p[1] & 0xc0) == 0x80 ? 2 : 0;
    if (left < 3 || (p[2] & 0xc0) != 0x80)
        return 0;
    if (c < 0xf0) {
        uint8_t low = c == 0xe0 ? 0xa0 : 0x80, high = c == 0xed ? 0x9f : 0xbf;
        return p[1] >= low && p[1] <= high ? 3 : 0;
    }
    if (c > 0xf4 || left < 4 || (p[3] & 0xc0) != 0x80)
        return 0;
    uint8_t low = c == 0xf0 ? 0x90 : 0x80, high = c == 0xf4 ? 0x8f : 0xbf;
    return p[1] >= low && p[1] <= high ? 4 : 0;
}

bool jout_utf8_valid(struct slice s)
{
    size_t i = 0;
    while (i < s.len) {
        /* Eight bytes of plain ASCII at once: most keys and values are just that. */
        if (s.len - i >= 8 && (krd_get_le64(s.ptr + i) & 0x8080808080808080ull) == 0) {
            i += 8;
            continue;
        }
        size_t n = utf8_sequence(s.ptr + i, s.len - i);
        if (n == 0)
            return false;
        i += n;
    }
    return true;
}

void jout_base64(struct krd_buf *b, struct slice s)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    krd_buf_reserve(b, (s.len + 2) / 3 * 4);
    uint8_t *dst = b->ptr + b->len;
    for (size_t i = 0; i < s.len; i += 3) {
        size_t left = s.len - i;
        uint32_t v = (uint32_t)s.ptr[i] << 16 | (left > 1 ? (uint32_t)s.ptr[i + 1] << 8 : 0) |
                     (left > 2 ? s.ptr[i + 2] : 0u);
        *dst++ = (uint8_t)digits[v >> 18];
        *dst++ = (uint8_t)digits[v >> 12 & 63];
        *dst++ = left > 1 ? (uint8_t)digits[v >> 6 & 63] : '=';
        *dst++ = left > 2 ? (uint8_t)digits[v & 63] : '=';
    }
    b->len += (s.len + 2) / 3 * 4;
}

static void put_escape(struct krd_buf *b, uint8_t c)
{
    static const char hex[] = "0123456789abcdef";
    char u[6] = {'\\', 'u', '0', '0', hex[c >> 4], hex[c & 15]};
    switch (c) {
    case '"':
        krd_buf_put(b, "\\\"", 2);
        return;
    case '\\':
        krd_buf_put(b, "\\\\", 2);
        return;
    case '\n':
        krd_buf_put(b, "\\n", 2);
        return;
    case '\r':
        krd_buf_put(b, "\\r", 2);
        return;
    case '\t':
        krd_buf_put(b, "\\t", 2);
        return;
    default:
        krd_buf_put(b, u, sizeof u);
    }
}

static bool needs_escape(uint8_t c)
{
    return c < 0x20 || c == '"' || c == '\\';
}

/* A quoted string. What is not UTF-8 becomes U+FFFD, unless the caller knows that it is. */
static void put_string(struct krd_buf *b, struct slice s, bool known_valid)
{
    krd_buf_reserve(b, s.len + 2);
    krd_buf_put_u8(b, '"');
    size_t from = 0, i = 0;
    while (i < s.len) {
        uint8_t c = s.ptr[i];
        size_t n = known_valid || c < 0x80 ? 1 : utf8_sequence(s.ptr + i, s.len - i);
        if (n > 0 && !needs_escape(c)) {
            i += n;
            continue;
        }
        krd_buf_put(b, s.ptr + from, i - from);
        if (n == 0)
            krd_buf_put(b, "\xef\xbf\xbd", 3);
        else
            put_escape(b, c);
        from = ++i;
    }
    krd_buf_put(b, s.ptr + from, i - from);
    krd_buf_put_u8(b, '"');
}

static void put_name(struct jout *j, const char *name, const char *suffix)
{
    if (j->comma)
        krd_buf_put_u8(j->buf, ',');
    j->comma = true;
    if (name == NULL)
        return;
    krd_buf_put_u8(j->buf, '"');
    krd_buf_puts(j->buf, name);
    krd_buf_puts(j->buf, suffix);
    krd_buf_put(j->buf, "\":", 2);
}

void jout_object(struct jout *j, const char *name)
{
    put_name(j, name, "");
    krd_buf_put_u8(j->buf, '{');
    j->comma = false;
}

void jout_end_object(struct jout *j)
{
    krd_buf_put_u8(j->buf, '}');
    j->comma = true;
}

void jout_array(struct jout *j, const char *name)
{
    put_name(j, name, "");
    krd_buf_put_u8(j->buf, '[');
    j->comma = false;
}

void jout_end_array(struct jout *j)
{
    krd_buf_put_u8(j->buf, ']');
    j->comma = true;
}

void jout_i64(struct jout *j, const char *name, int64_t v)
{
    put_name(j, name, "");
    krd_buf_put_i64(j->buf, v);
}

void jout_u64(struct jout *j, const char *name, uint64_t v)
{
    put_name(j, name, "");
    krd_buf_put_u64(j->buf, v);
}

void jout_bool(struct jout *j, const char *name, bool v)
{
    put_name(j, name, "");
    krd_buf_puts(j->buf, v ? "true" : "false");
}

void jout_null(struct jout *j, const char *name)
{
    put_name(j, name, "");
    krd_buf_puts(j->buf, "null");
}

void jout_millis(struct jout *j, const char *name, int64_t v)
{
    put_name(j, name, "");
    uint64_t abs = v < 0 ? 0 - (uint64_t)v : (uint64_t)v;
    krd_buf_printf(j->buf, "%s%llu.%03u", v < 0 ? "-" : "", (unsigned long long)(abs / 1000),
                   (unsigned)(abs % 1000));
}

void jout_text(struct jout *j, const char *name, struct slice v)
{
    put_name(j, name, "");
    put_string(j->buf, v, false);
}

void jout_str(struct jout *j, const char *name, const char *v)
{
    jout_text(j, name, slice_str(v));
}

void jout_hex(struct jout *j, const char *name, uint64_t v)
{
    put_name(j, name, "");
    krd_buf_printf(j->buf, "\"%016llx\"", (unsigned long long)v);
}

void jout_bytes(struct jout *j, const char *name, struct slice v)
{
    if (!j->base64 && jout_utf8_valid(v)) {
        put_name(j, name, "");
        put_string(j->buf, v, true);
        return;
    }
    put_name(j, name, "_base64");
    krd_buf_put_u8(j->buf, '"');
    jout_base64(j->buf, v);
    krd_buf_put_u8(j->buf, '"');
}

void jout_text_member(struct jout *j, struct slice name, struct slice v)
{
    if (j->comma)
        krd_buf_put_u8(j->buf, ',');
    j->comma = true;
    put_string(j->buf, name, false);
    krd_buf_put_u8(j->buf, ':');
    put_string(j->buf, v, false);
}
