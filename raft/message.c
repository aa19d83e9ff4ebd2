/* message.c - the codec of consensus messages. message.h draws the header; the bodies are:
 *
 *  PREVOTE, VOTE          | last index 8 | last term 8 | transfer 1, zero 7 |
 *  ..._REPLY              | granted 1, zero 7 |
 *  APPEND                 | prev index 8 | prev term 8 | commit 8 | safe to cut 8 | time 8 |
 *                         | n entries 4, zero 4 | records ...
 *  APPEND_REPLY           | rejected 1, zero 7 | index 8 | hint 8 | hint term 8 |
 *  HEARTBEAT              | commit 8 | safe to cut 8 | round 8 | time 8 | sent us 8 |
 *  HEARTBEAT_REPLY        | round 8 | sent us 8 | last index 8 |
 *  READ_INDEX             | ctx 8 |
 *  READ_INDEX_REPLY       | ctx 8 | index 8 |
 *  TIMEOUT_NOW            nothing
 *
 * Encode and decode share one list of fields: walk_body visits them in order, a writer puts, a
 * reader gets. What decode refuses never reaches the core: KRD_CORRUPT for an unknown type, bits
 * where zeros belong, missing or trailing bytes, records that do not verify, entries that do not
 * continue each other. */
#include "raft/message.h"

#include "raft/config.h"

enum { HEADER_BYTES = 32, APPEND_BODY_BYTES = 48 };
_Static_assert((HEADER_BYTES + APPEND_BODY_BYTES) % 8 == 0, "records must start aligned");

/* One of the two is set. */
struct walk {
    struct krd_buf *out;
    struct krd_reader *in;
};

static void field_u64(struct walk *w, uint64_t *v)
{
    if (w->out)
        krd_buf_put_le64(w->out, *v);
    else
        *v = krd_read_le64(w->in);
}

static void field_u32_zero(struct walk *w, uint32_t *v)
{
    uint64_t wide = *v;
    field_u64(w, &wide);
    if (w->in && wide > UINT32_MAX)
        w->in->bad = true;
    *v = (uint32_t)wide;
}

static void field_bool(struct walk *w, bool *v)
{
    uint64_t wide = *v;
    field_u64(w, &wide);
    if (w->in && wide > 1)
        w->in->bad = true;
    *v = wide == 1;
}

/* False for a type that has no body to walk. */
static bool walk_body(struct walk *w, struct raft_message *m)
{
    switch (m->type) {
    case RAFT_MSG_PREVOTE:
    case RAFT_MSG_VOTE:
        field_u64(w, &m->u.vote.last_index);
        field_u64(w, &m->u.vote.last_term);
        field_bool(w, &m->u.vote.transfer);
        return true;
    case RAFT_MSG_PREVOTE_REPLY:
    case RAFT_MSG_VOTE_REPLY:
        field_bool(w, &m->u.vote_reply.granted);
        return true;
    case RAFT_MSG_APPEND:
        field_u64(w, &m->u.append.prev_index);
        field_u64(w, &m->u.append.prev_term);
        field_u64(w, &m->u.append.commit);
        field_u64(w, &m->u.append.safe_to_cut);
        field_u64(w, &m->u.append.time_ms);
        field_u32_zero(w, &m->u.append.n_entries);
        return true;
    case RAFT_MSG_APPEND_REPLY:
        field_bool(w, &m->u.append_reply.rejected);
        field_u64(w, &m->u.append_reply.index);
        field_u64(w, &m->u.append_reply.hint);
        field_u64(w, &m->u.append_reply.hint_term);
        return true;
    case RAFT_MSG_HEARTBEAT:
        field_u64(w, &m->u.heartbeat.commit);
        field_u64(w, &m->u.heartbeat.safe_to_cut);
        field_u64(w, &m->u.heartbeat.round);
        field_u64(w, &m->u.heartbeat.time_ms);
        field_u64(w, &m->u.heartbeat.sent_us);
        return true;
    case RAFT_MSG_HEARTBEAT_REPLY:
        field_u64(w, &m->u.heartbeat_reply.round);
        field_u64(w, &m->u.heartbeat_reply.sent_us);
        field_u64(w, &m->u.heartbeat_reply.last_index);
        return true;
    case RAFT_MSG_READ_INDEX:
        field_u64(w, &m->u.read_index.ctx);
        return true;
    case RAFT_MSG_READ_INDEX_REPLY:
        field_u64(w, &m->u.read_index_reply.ctx);
        field_u64(w, &m->u.read_index_reply.index);
        return true;
    case RAFT_MSG_TIMEOUT_NOW:
        return true;
    case RAFT_MSG_SNAPSHOT:
        break;
    }
    return false;
}

void raft_message_encode(const struct raft_message *m, struct krd_buf *out, size_t *records_len)
{
    struct walk w = {.out = out};
    struct raft_message fields = *m;

    krd_buf_reserve(out, HEADER_BYTES + APPEND_BODY_BYTES);
    krd_buf_put_le64(out, (uint64_t)m->type);
    krd_buf_put_le64(out, m->term);
    krd_buf_put_le64(out, m->from);
    krd_buf_put_le64(out, m->to);
    bool known = walk_body(&w, &fields);
    KRD_ASSERT(known);

    *records_len = 0;
    if (m->type == RAFT_MSG_APPEND)
        for (uint32_t i = 0; i < m->u.append.n_entries; i++)
            *records_len += raft_record_bytes(&m->u.append.entries[i]);
}

bool raft_message_entries_ok(const struct raft_message *m)
{
    raft_index index = m->u.append.prev_index;
    raft_term term = m->u.append.prev_term;
    for (uint32_t i = 0; i < m->u.append.n_entries; i++) {
        const struct raft_entry *e = &m->u.append.entries[i];
        if (e->index != ++index || e->term < term || e->term == 0 || e->term > m->term)
            return false;
        if (e->type == RAFT_ENTRY_NOOP && e->length != 0)
            return false;
        term = e->term;
    }
    return true;
}

/* The records behind an append. On failure nothing is held. */
static enum krd_status decode_entries(struct krd_blob *blob, struct slice bytes,
                                      struct raft_message *m)
{
    uint32_t n = m->u.append.n_entries;
    m->u.append.n_entries = 0; /* counts what deinit must release */
    if (n > bytes.len / RAFT_RECORD_HEADER_BYTES)
        return KRD_CORRUPT; /* before the array is allocated: a peer chose n */
    if (n > 0)
        m->u.append.entries = krd_alloc(n * sizeof(struct raft_entry));
    for (uint32_t i = 0; i < n; i++) {
        struct raft_entry *e = &m->u.append.entries[i];
        if (raft_entry_parse(blob, bytes, e) != KRD_OK)
            goto fail;
        m->u.append.n_entries++;
        bytes = slice_of(bytes.ptr + raft_record_bytes(e), bytes.len - raft_record_bytes(e));
    }
    if (bytes.len == 0 && raft_message_entries_ok(m))
        return KRD_OK;
fail:
    raft_message_deinit(m);
    return KRD_CORRUPT;
}

enum krd_status raft_message_decode(struct krd_blob *blob, struct slice bytes,
                                    struct raft_message *m)
{
    struct krd_reader r = krd_reader_of(bytes);
    struct walk w = {.in = &r};
    struct raft_message got;
    memset(&got, 0, sizeof got);

    uint64_t type = krd_read_le64(&r); /* the zeros behind it included */
    got.term = krd_read_le64(&r);
    got.from = krd_read_le64(&r);
    got.to = krd_read_le64(&r);
    if (r.bad || type < RAFT_MSG_PREVOTE || type > RAFT_MSG_SNAPSHOT || got.from == 0)
        return KRD_CORRUPT;
    got.type = (enum raft_message_type)type;
    if (!walk_body(&w, &got) || r.bad)
        return KRD_CORRUPT;

    struct slice rest = slice_of(r.ptr, krd_reader_left(&r));
    if (got.type == RAFT_MSG_APPEND) {
        enum krd_status st = decode_entries(blob, rest, &got);
        if (st != KRD_OK)
            return st;
    } else if (rest.len != 0) {
        return KRD_CORRUPT;
    }
    *m = got;
    return KRD_OK;
}

void raft_message_deinit(struct raft_message *m)
{
    if (m->type != RAFT_MSG_APPEND)
        return;
    for (uint32_t i = 0; i < m->u.append.n_entries; i++)
        raft_entry_unref(&m->u.append.entries[i]);
    krd_free(m->u.append.entries);
    m->u.append.entries = NULL;
    m->u.append.n_entries = 0;
}

const char *raft_message_type_name(enum raft_message_type t)
{
    static const char *const names[] = {
        [RAFT_MSG_PREVOTE] = "prevote",
        [RAFT_MSG_PREVOTE_REPLY] = "prevote_reply",
        [RAFT_MSG_VOTE] = "vote",
        [RAFT_MSG_VOTE_REPLY] = "vote_reply",
        [RAFT_MSG_APPEND] = "append",
        [RAFT_MSG_APPEND_REPLY] = "append_reply",
        [RAFT_MSG_HEARTBEAT] = "heartbeat",
        [RAFT_MSG_HEARTBEAT_REPLY] = "heartbeat_reply",
        [RAFT_MSG_READ_INDEX] = "read_index",
        [RAFT_MSG_READ_INDEX_REPLY] = "read_index_reply",
        [RAFT_MSG_TIMEOUT_NOW] = "timeout_now",
        [RAFT_MSG_SNAPSHOT] = "snapshot",
    };
    return (size_t)t < KRD_ARRAY_LEN(names) && names[t] ? names[t] : "unknown";
}
