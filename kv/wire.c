/* wire.c - a look at a command's bytes before they are decoded. protobuf-c decodes nested messages
 * by recursion, without a bound of its own, and transactions nest: a few megabytes of nothing but
 * nesting would run it out of stack. This walk follows the one path on which the schema recurs
 * (command -> txn -> operation -> txn -> ...), some levels deeper than kv_check allows: what is a
 * little too deep is better refused there, with an answer.
 *
 * O(bytes): each level is walked once by its parent (skipped over) and once itself. */
#include "base/limits.h"
#include "kv/store.h"

#define DEPTH_MAX (4 * KRD_TXN_DEPTH_MAX)

enum wire_type { VARINT = 0, FIXED64 = 1, LENGTH = 2, FIXED32 = 5 };

struct wire {
    const uint8_t *at, *end;
};

static bool read_varint(struct wire *w, uint64_t *v)
{
    *v = 0;
    for (int shift = 0; shift < 70 && w->at < w->end; shift += 7) {
        uint8_t b = *w->at++;
        if (shift < 64)
            *v |= (uint64_t)(b & 127) << shift;
        if (b < 128)
            return true;
    }
    return false;
}

static bool skip(struct wire *w, uint64_t n)
{
    if (n > (uint64_t)(w->end - w->at))
        return false;
    w->at += n;
    return true;
}

/* One field; *body is what a LENGTH field holds. */
static bool read_field(struct wire *w, uint64_t *number, enum wire_type *type, struct wire *body)
{
    uint64_t tag, n;
    if (!read_varint(w, &tag))
        return false;
    *number = tag >> 3;
    *type = (enum wire_type)(tag & 7);
    switch (*type) {
    case VARINT:
        return read_varint(w, &n);
    case FIXED64:
        return skip(w, 8);
    case FIXED32:
        return skip(w, 4);
    case LENGTH:
        if (!read_varint(w, &n))
            return false;
        *body = (struct wire){w->at, w->at};
        if (!skip(w, n))
            return false;
        body->end = w->at;
        return true;
    default:
        return false;
    }
}

enum message { COMMAND, TXN, OPERATION };

static bool nests(enum message m, uint64_t field)
{
    switch (m) {
    case COMMAND:
        return field == 6; /* txn */
    case TXN:
        return field == 2 || field == 3; /* success, failure */
    default:
        return field == 4; /* request_txn */
    }
}

static bool walk(struct wire w, enum message m, int depth)
{
    if (m == TXN && ++depth > DEPTH_MAX)
        return false;
    while (w.at < w.end) {
        uint64_t field;
        enum wire_type type;
        struct wire body;
        if (!read_field(&w, &field, &type, &body))
            return false;
        if (type == LENGTH && nests(m, field) && !walk(body, m == TXN ? OPERATION : TXN, depth))
            return false;
    }
    return true;
}

bool kv_wire_is_sane(struct slice command)
{
    return walk((struct wire){command.ptr, command.ptr + command.len}, COMMAND, 0);
}
