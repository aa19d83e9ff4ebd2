/* config.c - the bytes of a configuration, and what a majority of it is.
 *
 *  0         1       2      4           8
 *  | version | joint | zero | n members | member ...
 *
 *  member:
 *  0    8       9          10            12     12 + name length
 *  | id | flags | name len | address len | name | address |
 *
 * flags: 1 voter, 2 outgoing voter. Members stand by ascending id, so that one configuration has
 * one encoding. All fields are little-endian. */
#include "raft/config.h"

enum { FORMAT_VERSION = 1, FLAG_VOTER = 1, FLAG_OUTGOING = 2 };

/* Length of a NUL-terminated text in an array of cap bytes; cap when the NUL is missing. */
static size_t text_len(const char *text, size_t cap)
{
    size_t n = 0;
    while (n < cap && text[n] != '\0')
        n++;
    return n;
}

static bool printable(const char *text, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (text[i] < 0x21 || text[i] > 0x7e)
            return false;
    return true;
}

static bool member_ok(const struct raft_member *m)
{
    size_t name = text_len(m->name, sizeof m->name);
    size_t address = text_len(m->address, sizeof m->address);
    return m->id != 0 && name > 0 && name < sizeof m->name && printable(m->name, name) &&
           address < sizeof m->address && printable(m->address, address);
}

/* The one description of a well-formed configuration: encode asserts it, decode demands it. */
static bool config_ok(const struct raft_config_state *c)
{
    if (c->n > KRD_MEMBERS_MAX)
        return false;
    for (uint32_t i = 0; i < c->n; i++) {
        const struct raft_member *m = &c->members[i];
        if (!member_ok(m) || (i > 0 && m[-1].id >= m->id) || (m->voter_outgoing && !c->joint))
            return false;
    }
    return true;
}

void raft_config_encode(const struct raft_config_state *c, struct krd_buf *out)
{
    KRD_ASSERT(config_ok(c));
    krd_buf_put_u8(out, FORMAT_VERSION);
    krd_buf_put_u8(out, c->joint);
    krd_buf_put_le16(out, 0);
    krd_buf_put_le32(out, c->n);
    for (uint32_t i = 0; i < c->n; i++) {
        const struct raft_member *m = &c->members[i];
        size_t name = text_len(m->name, sizeof m->name);
        size_t address = text_len(m->address, sizeof m->address);
        krd_buf_put_le64(out, m->id);
        krd_buf_put_u8(
            out, (uint8_t)((m->voter ? FLAG_VOTER : 0) | (m->voter_outgoing ? FLAG_OUTGOING : 0)));
        krd_buf_put_u8(out, (uint8_t)name);
        krd_buf_put_le16(out, (uint16_t)address);
        krd_buf_put(out, m->name, name);
        krd_buf_put(out, m->address, address);
    }
}

/* len bytes into a zeroed array of cap: too long or with a NUL inside makes the reader bad. */
static void read_text(struct krd_reader *r, size_t len, char *to, size_t cap)
{
    struct slice s = krd_read_bytes(r, len);
    if (s.len >= cap) {
        r->bad = true;
        return;
    }
    if (s.len > 0)
        memcpy(to, s.ptr, s.len);
    if (text_len(to, cap) != s.len)
        r->bad = true;
}

static void read_member(struct krd_reader *r, struct raft_member *m)
{
    m->id = krd_read_le64(r);
    uint8_t flags = krd_read_u8(r);
    size_t name = krd_read_u8(r);
    size_t address = krd_read_le16(r);
    if ((flags & ~(FLAG_VOTER | FLAG_OUTGOING)) != 0)
        r->bad = true;
    m->voter = (flags & FLAG_VOTER) != 0;
    m->voter_outgoing = (flags & FLAG_OUTGOING) != 0;
    read_text(r, name, m->name, sizeof m->name);
    read_text(r, address, m->address, sizeof m->address);
}

enum krd_status raft_config_decode(struct slice s, struct raft_config_state *out)
{
    struct krd_reader r = krd_reader_of(s);
    uint8_t version = krd_read_u8(&r);
    uint8_t joint = krd_read_u8(&r);
    uint16_t zero = krd_read_le16(&r);
    uint32_t n = krd_read_le32(&r);
    if (r.bad || version != FORMAT_VERSION || joint > 1 || zero != 0 || n > KRD_MEMBERS_MAX)
        return KRD_CORRUPT;

    /* Tens of KiB: not on the stack twice. */
    struct raft_config_state *c = krd_zalloc(sizeof *c);
    c->joint = joint == 1;
    c->n = n;
    for (uint32_t i = 0; i < n && !r.bad; i++)
        read_member(&r, &c->members[i]);
    bool ok = !r.bad && krd_reader_left(&r) == 0 && config_ok(c);
    if (ok)
        *out = *c;
    krd_free(c);
    return ok ? KRD_OK : KRD_CORRUPT;
}

const struct raft_member *raft_config_find(const struct raft_config_state *c, raft_id id)
{
    for (uint32_t i = 0; i < c->n; i++)
        if (c->members[i].id == id)
            return &c->members[i];
    return NULL;
}

/* --- Majorities --------------------------------------------------------------------------- */

static bool counts(const struct raft_member *m, bool outgoing)
{
    return outgoing ? m->voter_outgoing : m->voter;
}

/* Of one half: the values of its voters in descending order, then the one that a majority
 * reaches: the second of three, the third of four. O(voters^2), and voters are few. */
static uint64_t half_quorum_value(const struct raft_config_state *c, const uint64_t value[],
                                  bool outgoing)
{
    uint64_t sorted[KRD_MEMBERS_MAX];
    size_t n = 0;
    for (uint32_t i = 0; i < c->n; i++) {
        if (!counts(&c->members[i], outgoing))
            continue;
        size_t at = n++;
        for (; at > 0 && sorted[at - 1] < value[i]; at--)
            sorted[at] = sorted[at - 1];
        sorted[at] = value[i];
    }
    return n == 0 ? 0 : sorted[n / 2];
}

uint64_t raft_config_quorum_value(const struct raft_config_state *c, const uint64_t value[])
{
    uint64_t incoming = half_quorum_value(c, value, false);
    return c->joint ? krd_min_u64(incoming, half_quorum_value(c, value, true)) : incoming;
}

/* Without voters nobody can ever win. */
static enum raft_vote_outcome half_outcome(const struct raft_config_state *c, const int8_t vote[],
                                           bool outgoing)
{
    size_t n = 0, yes = 0, no = 0;
    for (uint32_t i = 0; i < c->n; i++) {
        if (!counts(&c->members[i], outgoing))
            continue;
        n++;
        yes += vote[i] > 0;
        no += vote[i] < 0;
    }
    size_t majority = n / 2 + 1;
    if (n > 0 && yes >= majority)
        return RAFT_VOTE_WON;
    return n - no < majority ? RAFT_VOTE_LOST : RAFT_VOTE_PENDING;
}

enum raft_vote_outcome raft_config_vote_outcome(const struct raft_config_state *c,
                                                const int8_t vote[])
{
    enum raft_vote_outcome in = half_outcome(c, vote, false);
    enum raft_vote_outcome out = c->joint ? half_outcome(c, vote, true) : in;
    if (in == RAFT_VOTE_LOST || out == RAFT_VOTE_LOST)
        return RAFT_VOTE_LOST;
    return in == RAFT_VOTE_WON && out == RAFT_VOTE_WON ? RAFT_VOTE_WON : RAFT_VOTE_PENDING;
}
