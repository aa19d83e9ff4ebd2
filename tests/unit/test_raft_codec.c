/* test_raft_codec.c - bytes of entries, configurations and messages: golden ones, round trips, and
 * that nothing damaged gets through. */
#include "base/crc32c.h"
#include "base/limits.h"
#include "base/rand.h"
#include "raft/config.h"
#include "raft/message.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>

#include <cmocka.h>

/* --- Entries ------------------------------------------------------------------------------------
 */

static struct raft_entry sealed(const char *payload, raft_index index, raft_term term)
{
    struct raft_entry e = raft_entry_make(RAFT_ENTRY_COMMAND, slice_str(payload));
    raft_entry_seal(&e, index, term, 777);
    return e;
}

static void an_entry_has_the_bytes_that_the_header_draws(void **state)
{
    (void)state;
    struct raft_entry e = sealed("abc", 5, 3);
    static const uint8_t after_head_crc[] = {
        3, 0, 0, 0,             /* length */
        5, 0, 0, 0, 0, 0, 0, 0, /* index */
        3, 0, 0, 0, 0, 0, 0, 0, /* term */
        9, 3, 0, 0, 0, 0, 0, 0, /* time: 777 */
        2, 0, 0, 0,             /* command */
    };
    static const uint8_t payload[] = {'a', 'b', 'c', 0, 0, 0, 0, 0};
    assert_int_equal(raft_record_bytes(&e), 48);
    assert_memory_equal(e.record + 4, after_head_crc, sizeof after_head_crc);
    assert_memory_equal(e.record + 40, payload, sizeof payload);
    assert_int_equal(krd_get_le32(e.record), krd_crc32c(0, e.record + 4, 36));
    assert_int_equal(krd_get_le32(e.record + 36), krd_crc32c(0, "abc", 3));
    raft_entry_unref(&e);
}

static void an_entry_survives_the_way(void **state)
{
    (void)state;
    struct raft_entry e = sealed("some payload", 9, 4), got;
    assert_int_equal(raft_entry_parse(e.blob, krd_blob_slice(e.blob), &got), KRD_OK);
    assert_int_equal(got.index, 9);
    assert_int_equal(got.term, 4);
    assert_int_equal(got.time_ms, 777);
    assert_int_equal(got.type, RAFT_ENTRY_COMMAND);
    assert_true(slice_eq(raft_payload(&got), slice_str("some payload")));
    raft_entry_unref(&got);
    raft_entry_unref(&e);
}

/* Forwarded to the leader, it is verified there before it is sealed. */
static void an_unsealed_entry_is_valid(void **state)
{
    (void)state;
    struct raft_entry e = raft_entry_begin(RAFT_ENTRY_COMMAND, 4), got;
    memcpy(e.record + RAFT_RECORD_HEADER_BYTES, "1234", 4);
    raft_entry_close(&e);
    assert_int_equal(raft_entry_parse(e.blob, krd_blob_slice(e.blob), &got), KRD_OK);
    assert_int_equal(got.index, 0);
    raft_entry_unref(&got);
    raft_entry_unref(&e);
}

/* Every bit of a record is covered by one of the two checksums, or must be zero. */
static void no_flipped_bit_gets_through(void **state)
{
    (void)state;
    struct raft_entry e = sealed("0123456789", 12, 2), got;
    for (size_t bit = 0; bit < raft_record_bytes(&e) * 8; bit++) {
        e.record[bit / 8] ^= (uint8_t)(1 << bit % 8);
        enum krd_status st = raft_entry_parse(e.blob, krd_blob_slice(e.blob), &got);
        assert_int_equal(st, KRD_CORRUPT);
        e.record[bit / 8] ^= (uint8_t)(1 << bit % 8);
    }
    raft_entry_unref(&e);
}

static void a_short_record_is_the_end_of_data(void **state)
{
    (void)state;
    struct raft_entry e = sealed("0123456789", 12, 2), got;
    for (size_t len = 0; len < raft_record_bytes(&e); len++)
        assert_int_equal(raft_entry_parse(e.blob, slice_of(e.record, len), &got), KRD_EOF_);
    raft_entry_unref(&e);
}

/* A checksum can be right and the fields absurd: a peer of ours with another idea of the format. */
static void fields_out_of_bounds_are_corrupt(void **state)
{
    (void)state;
    struct raft_entry e = sealed("abc", 1, 1), got;
    krd_put_le32(e.record + 32, 77); /* type */
    krd_put_le32(e.record, krd_crc32c(0, e.record + 4, 36));
    assert_int_equal(raft_entry_parse(e.blob, krd_blob_slice(e.blob), &got), KRD_CORRUPT);
    krd_put_le32(e.record + 32, RAFT_ENTRY_COMMAND);
    krd_put_le32(e.record + 4, KRD_ENTRY_BYTES_MAX + 1); /* length */
    krd_put_le32(e.record, krd_crc32c(0, e.record + 4, 36));
    assert_int_equal(raft_entry_parse(e.blob, krd_blob_slice(e.blob), &got), KRD_CORRUPT);
    raft_entry_unref(&e);
}

/* --- Messages -------------------------------------------------------------------------------- */

static struct krd_blob *encoded(const struct raft_message *m)
{
    struct krd_buf head = KRD_BUF_INIT;
    size_t records;
    raft_message_encode(m, &head, &records);
    assert_int_equal(head.len % 8, 0); /* records start aligned */
    struct krd_blob *b = krd_blob_create(head.len + records);
    memcpy(b->data, head.ptr, head.len);
    size_t at = head.len;
    for (uint32_t i = 0; m->type == RAFT_MSG_APPEND && i < m->u.append.n_entries; i++) {
        size_t n = raft_record_bytes(&m->u.append.entries[i]);
        memcpy(b->data + at, m->u.append.entries[i].record, n);
        at += n;
    }
    assert_int_equal(at, b->len);
    krd_buf_deinit(&head);
    return b;
}

static struct raft_message message(enum raft_message_type type)
{
    struct raft_message m;
    memset(&m, 0, sizeof m);
    m.type = type;
    m.term = 7;
    m.from = 1;
    m.to = 2;
    return m;
}

static struct raft_message decoded(struct krd_blob *b)
{
    struct raft_message m;
    assert_int_equal(raft_message_decode(b, krd_blob_slice(b), &m), KRD_OK);
    return m;
}

static void every_message_survives_the_way(void **state)
{
    (void)state;
    for (int type = RAFT_MSG_PREVOTE; type < RAFT_MSG_SNAPSHOT; type++) {
        if (type == RAFT_MSG_APPEND)
            continue; /* has a test of its own */
        struct raft_message m = message((enum raft_message_type)type);
        switch (m.type) {
        case RAFT_MSG_PREVOTE:
        case RAFT_MSG_VOTE:
            m.u.vote.last_index = 11;
            m.u.vote.last_term = 6;
            m.u.vote.transfer = true;
            break;
        case RAFT_MSG_PREVOTE_REPLY:
        case RAFT_MSG_VOTE_REPLY:
            m.u.vote_reply.granted = true;
            break;
        case RAFT_MSG_APPEND_REPLY:
            m.u.append_reply.rejected = true;
            m.u.append_reply.index = 1ull << 40;
            m.u.append_reply.hint = 5;
            m.u.append_reply.hint_term = 4;
            break;
        case RAFT_MSG_HEARTBEAT:
            m.u.heartbeat.commit = 5;
            m.u.heartbeat.safe_to_cut = 4;
            m.u.heartbeat.round = 3;
            m.u.heartbeat.time_ms = 2;
            m.u.heartbeat.sent_us = 1;
            break;
        case RAFT_MSG_HEARTBEAT_REPLY:
            m.u.heartbeat_reply.round = 3;
            m.u.heartbeat_reply.sent_us = 1;
            m.u.heartbeat_reply.last_index = 9;
            break;
        case RAFT_MSG_READ_INDEX:
            m.u.read_index.ctx = UINT64_MAX;
            break;
        case RAFT_MSG_READ_INDEX_REPLY:
            m.u.read_index_reply.ctx = UINT64_MAX;
            m.u.read_index_reply.index = 8;
            break;
        case RAFT_MSG_APPEND:
        case RAFT_MSG_TIMEOUT_NOW:
        case RAFT_MSG_SNAPSHOT:
            break;
        }
        struct krd_blob *b = encoded(&m);
        struct raft_message got = decoded(b);
        assert_memory_equal(&got, &m, sizeof m);
        krd_blob_unref(b);
    }
}

static struct raft_message append_of(struct raft_entry *entries, uint32_t n)
{
    struct raft_message m = message(RAFT_MSG_APPEND);
    m.u.append.prev_index = 4;
    m.u.append.prev_term = 2;
    m.u.append.commit = 3;
    m.u.append.safe_to_cut = 2;
    m.u.append.time_ms = 99;
    m.u.append.entries = entries;
    m.u.append.n_entries = n;
    return m;
}

static void an_append_shares_the_frames_bytes(void **state)
{
    (void)state;
    struct raft_entry e[] = {sealed("one", 5, 2), sealed("", 6, 7),
                             sealed("three is longer", 7, 7)};
    struct raft_message m = append_of(e, 3);
    struct krd_blob *b = encoded(&m);
    struct raft_message got = decoded(b);
    assert_int_equal(got.u.append.prev_index, 4);
    assert_int_equal(got.u.append.prev_term, 2);
    assert_int_equal(got.u.append.commit, 3);
    assert_int_equal(got.u.append.safe_to_cut, 2);
    assert_int_equal(got.u.append.time_ms, 99);
    assert_int_equal(got.u.append.n_entries, 3);
    for (int i = 0; i < 3; i++) {
        assert_ptr_equal(got.u.append.entries[i].blob, b);
        assert_int_equal(got.u.append.entries[i].index, e[i].index);
        assert_true(slice_eq(raft_payload(&got.u.append.entries[i]), raft_payload(&e[i])));
    }
    raft_message_deinit(&got);
    assert_int_equal(atomic_load(&b->refs), 1);
    krd_blob_unref(b);
    for (int i = 0; i < 3; i++)
        raft_entry_unref(&e[i]);
}

static enum krd_status decode_bytes(struct krd_blob *b, size_t len)
{
    struct raft_message m;
    enum krd_status st = raft_message_decode(b, slice_of(b->data, len), &m);
    if (st == KRD_OK)
        raft_message_deinit(&m);
    return st;
}

static void appends_that_do_not_continue_are_corrupt(void **state)
{
    (void)state;
    struct raft_entry gap[] = {sealed("a", 5, 2), sealed("b", 7, 2)};
    struct raft_entry falling[] = {sealed("a", 5, 3), sealed("b", 6, 2)};
    struct raft_entry early[] = {sealed("a", 5, 1)};  /* below prev_term */
    struct raft_entry future[] = {sealed("a", 5, 8)}; /* above the sender's term */
    struct raft_entry wrong_start[] = {sealed("a", 6, 2)};
    struct {
        struct raft_entry *e;
        uint32_t n;
    } cases[] = {{gap, 2}, {falling, 2}, {early, 1}, {future, 1}, {wrong_start, 1}};
    for (size_t i = 0; i < KRD_ARRAY_LEN(cases); i++) {
        struct raft_message m = append_of(cases[i].e, cases[i].n);
        struct krd_blob *b = encoded(&m);
        assert_int_equal(decode_bytes(b, b->len), KRD_CORRUPT);
        assert_int_equal(atomic_load(&b->refs), 1); /* nothing is held */
        krd_blob_unref(b);
        for (uint32_t k = 0; k < cases[i].n; k++)
            raft_entry_unref(&cases[i].e[k]);
    }
}

static void missing_and_trailing_bytes_are_corrupt(void **state)
{
    (void)state;
    struct raft_entry e[] = {sealed("one", 5, 2), sealed("two", 6, 2)};
    struct raft_message append = append_of(e, 2), heartbeat = message(RAFT_MSG_HEARTBEAT);
    struct krd_blob *all[] = {encoded(&append), encoded(&heartbeat)};
    for (int i = 0; i < 2; i++) {
        for (size_t len = 0; len < all[i]->len; len++)
            assert_int_equal(decode_bytes(all[i], len), KRD_CORRUPT);
        struct krd_blob *longer = krd_blob_create(all[i]->len + 8);
        memset(longer->data, 0, longer->len);
        memcpy(longer->data, all[i]->data, all[i]->len);
        assert_int_equal(decode_bytes(longer, longer->len), KRD_CORRUPT);
        krd_blob_unref(longer);
        krd_blob_unref(all[i]);
    }
    raft_entry_unref(&e[0]);
    raft_entry_unref(&e[1]);
}

static void a_number_of_entries_is_bounded_before_it_is_believed(void **state)
{
    (void)state;
    struct raft_message m = append_of(NULL, 0);
    struct krd_blob *b = encoded(&m);
    krd_put_le32(b->data + 72, UINT32_MAX);
    assert_int_equal(decode_bytes(b, b->len), KRD_CORRUPT);
    krd_blob_unref(b);
}

static void unknown_types_and_nobodys_messages_are_corrupt(void **state)
{
    (void)state;
    struct raft_message m = message(RAFT_MSG_HEARTBEAT);
    struct krd_blob *b = encoded(&m);
    for (int type = 0; type < 256; type++) {
        b->data[0] = (uint8_t)type;
        if (type < RAFT_MSG_PREVOTE || type >= RAFT_MSG_SNAPSHOT)
            assert_int_equal(decode_bytes(b, b->len), KRD_CORRUPT);
    }
    b->data[0] = RAFT_MSG_HEARTBEAT;
    b->data[5] = 1; /* where zeros belong */
    assert_int_equal(decode_bytes(b, b->len), KRD_CORRUPT);
    b->data[5] = 0;
    krd_put_le64(b->data + 16, 0); /* from nobody */
    assert_int_equal(decode_bytes(b, b->len), KRD_CORRUPT);
    krd_blob_unref(b);
}

/* Whatever the bytes, decode answers; with the sanitizers it also shows that it reads no others. */
static void random_bytes_do_no_harm(void **state)
{
    (void)state;
    struct krd_rand r;
    krd_rand_seed(&r, 1);
    struct raft_entry e[] = {sealed("one", 5, 2), sealed("two", 6, 2)};
    struct raft_message m = append_of(e, 2);
    for (int i = 0; i < 20000; i++) {
        struct krd_blob *b = encoded(&m);
        for (uint64_t n = 1 + krd_rand_below(&r, 4); n > 0; n--)
            b->data[krd_rand_below(&r, b->len)] = (uint8_t)krd_rand_u64(&r);
        (void)!decode_bytes(b, krd_rand_below(&r, b->len + 1));
        krd_blob_unref(b);
    }
    raft_entry_unref(&e[0]);
    raft_entry_unref(&e[1]);
}

/* --- Configurations -------------------------------------------------------------------------- */

static struct raft_config_state members(const char *roles)
{
    struct raft_config_state c;
    memset(&c, 0, sizeof c);
    for (const char *role = roles; *role; role++) {
        struct raft_member *m = &c.members[c.n++];
        m->id = c.n * 10;
        m->voter = *role == 'v' || *role == 'b';
        m->voter_outgoing = *role == 'o' || *role == 'b';
        c.joint = c.joint || m->voter_outgoing;
        snprintf(m->name, sizeof m->name, "n%u", c.n);
        snprintf(m->address, sizeof m->address, "10.0.0.%u:7", c.n);
    }
    return c;
}

static void a_configuration_survives_the_way(void **state)
{
    (void)state;
    const char *all[] = {"", "v", "vvvl", "bov"};
    for (size_t i = 0; i < KRD_ARRAY_LEN(all); i++) {
        struct raft_config_state c = members(all[i]), got;
        struct krd_buf bytes = KRD_BUF_INIT;
        raft_config_encode(&c, &bytes);
        memset(&got, 0xff, sizeof got);
        assert_int_equal(raft_config_decode(krd_buf_slice(&bytes), &got), KRD_OK);
        assert_int_equal(got.n, c.n);
        assert_int_equal(got.joint, c.joint);
        for (uint32_t k = 0; k < c.n; k++) {
            assert_int_equal(got.members[k].id, c.members[k].id);
            assert_int_equal(got.members[k].voter, c.members[k].voter);
            assert_int_equal(got.members[k].voter_outgoing, c.members[k].voter_outgoing);
            assert_string_equal(got.members[k].name, c.members[k].name);
            assert_string_equal(got.members[k].address, c.members[k].address);
        }
        krd_buf_deinit(&bytes);
    }
}

static void a_configuration_has_golden_bytes(void **state)
{
    (void)state;
    struct raft_config_state c = members("vl");
    struct krd_buf bytes = KRD_BUF_INIT;
    raft_config_encode(&c, &bytes);
    static const uint8_t golden[] = {
        1,   0,   0,   0,   2,   0,   0, 0,                                            //
        10,  0,   0,   0,   0,   0,   0, 0, 1, 2, 10, 0, 'n', '1', '1', '0', '.', '0', //
        '.', '0', '.', '1', ':', '7',                                                  //
        20,  0,   0,   0,   0,   0,   0, 0, 0, 2, 10, 0, 'n', '2', '1', '0', '.', '0', //
        '.', '0', '.', '2', ':', '7',
    };
    assert_int_equal(bytes.len, sizeof golden);
    assert_memory_equal(bytes.ptr, golden, sizeof golden);
    krd_buf_deinit(&bytes);
}

static void damaged_configurations_are_refused(void **state)
{
    (void)state;
    struct raft_config_state c = members("vvl"), got;
    struct krd_buf bytes = KRD_BUF_INIT;
    raft_config_encode(&c, &bytes);
    for (size_t len = 0; len < bytes.len; len++)
        assert_int_equal(raft_config_decode(slice_of(bytes.ptr, len), &got), KRD_CORRUPT);
    struct {
        size_t at;
        uint8_t value;
    } damage[] = {
        {0, 2},    /* version */
        {1, 2},    /* joint */
        {2, 1},    /* zero */
        {4, 65},   /* more members than there may be */
        {4, 2},    /* bytes left over */
        {8, 0},    /* id 0 */
        {8, 20},   /* an id twice */
        {16, 3},   /* outgoing voter, not joint */
        {16, 8},   /* unknown flag */
        {17, 0},   /* no name */
        {18, 255}, /* address beyond the end */
        {20, 0},   /* NUL in the name */
        {20, 7},   /* not printable */
    };
    for (size_t i = 0; i < KRD_ARRAY_LEN(damage); i++) {
        uint8_t was = bytes.ptr[damage[i].at];
        bytes.ptr[damage[i].at] = damage[i].value;
        assert_int_equal(raft_config_decode(krd_buf_slice(&bytes), &got), KRD_CORRUPT);
        bytes.ptr[damage[i].at] = was;
    }
    krd_buf_put_u8(&bytes, 0);
    assert_int_equal(raft_config_decode(krd_buf_slice(&bytes), &got), KRD_CORRUPT);
    krd_buf_deinit(&bytes);
}

/* v voter, l learner, o outgoing voter, b in both halves. */
static void a_quorum_value_is_what_a_majority_reaches(void **state)
{
    (void)state;
    static const struct {
        const char *roles;
        uint64_t value[8];
        uint64_t expected;
    } table[] = {
        {"", {0}, 0},
        {"l", {9}, 0},
        {"v", {7}, 7},
        {"vv", {7, 3}, 3},
        {"vvv", {7, 3, 5}, 5},
        {"vvv", {7, 7, 0}, 7},
        {"vvvv", {1, 2, 3, 4}, 2},
        {"vvvvv", {1, 2, 3, 4, 5}, 3},
        {"vvvll", {1, 2, 3, 9, 9}, 2}, /* learners do not count */
        {"oov", {5, 5, 9}, 5},         /* the slower half decides */
        {"oov", {5, 2, 9}, 2},
        {"bbvo", {9, 9, 1, 1}, 9},
        {"bvvoo", {9, 5, 4, 3, 2}, 3},
        {"ooo", {9, 9, 9}, 0}, /* nobody comes in */
    };
    for (size_t i = 0; i < KRD_ARRAY_LEN(table); i++) {
        struct raft_config_state c = members(table[i].roles);
        assert_int_equal(raft_config_quorum_value(&c, table[i].value), table[i].expected);
    }
}

static void a_vote_is_won_by_a_majority_of_each_half(void **state)
{
    (void)state;
    static const struct {
        const char *roles;
        int8_t vote[8];
        enum raft_vote_outcome expected;
    } table[] = {
        {"", {0}, RAFT_VOTE_LOST},
        {"l", {1}, RAFT_VOTE_LOST},
        {"v", {0}, RAFT_VOTE_PENDING},
        {"v", {1}, RAFT_VOTE_WON},
        {"vvv", {1, 0, 0}, RAFT_VOTE_PENDING},
        {"vvv", {1, 1, 0}, RAFT_VOTE_WON},
        {"vvv", {1, -1, 0}, RAFT_VOTE_PENDING},
        {"vvv", {1, -1, -1}, RAFT_VOTE_LOST},
        {"vvvv", {1, 1, 0, 0}, RAFT_VOTE_PENDING},
        {"vvvv", {1, 1, -1, -1}, RAFT_VOTE_LOST},
        {"vvvl", {1, 0, 0, 1}, RAFT_VOTE_PENDING},
        {"oov", {1, 0, 1}, RAFT_VOTE_PENDING},
        {"oov", {1, -1, 1}, RAFT_VOTE_LOST},
        {"oov", {1, 1, 1}, RAFT_VOTE_WON},
        {"oov", {1, 1, -1}, RAFT_VOTE_LOST},
    };
    for (size_t i = 0; i < KRD_ARRAY_LEN(table); i++) {
        struct raft_config_state c = members(table[i].roles);
        assert_int_equal(raft_config_vote_outcome(&c, table[i].vote), table[i].expected);
    }
}

/* A slow twin: v is reached if counting the members with at least v gives a majority. */
static bool reached_by_counting(const struct raft_config_state *c, const uint64_t value[],
                                uint64_t v, bool outgoing)
{
    uint32_t voters = 0, reached = 0;
    for (uint32_t i = 0; i < c->n; i++) {
        if (!(outgoing ? c->members[i].voter_outgoing : c->members[i].voter))
            continue;
        voters++;
        reached += value[i] >= v;
    }
    return reached > voters / 2;
}

static void the_quorum_value_agrees_with_counting(void **state)
{
    (void)state;
    struct krd_rand r;
    krd_rand_seed(&r, 2);
    for (int run = 0; run < 5000; run++) {
        char roles[10] = {0};
        uint64_t value[10];
        for (uint64_t n = 1 + krd_rand_below(&r, 9), i = 0; i < n; i++) {
            roles[i] = "vvvlob"[krd_rand_below(&r, 6)];
            value[i] = krd_rand_below(&r, 5);
        }
        struct raft_config_state c = members(roles);
        uint64_t expected = 0;
        for (uint64_t v = 1; v < 5; v++)
            if (reached_by_counting(&c, value, v, false) &&
                (!c.joint || reached_by_counting(&c, value, v, true)))
                expected = v;
        assert_int_equal(raft_config_quorum_value(&c, value), expected);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_entry_has_the_bytes_that_the_header_draws),
        cmocka_unit_test(an_entry_survives_the_way),
        cmocka_unit_test(an_unsealed_entry_is_valid),
        cmocka_unit_test(no_flipped_bit_gets_through),
        cmocka_unit_test(a_short_record_is_the_end_of_data),
        cmocka_unit_test(fields_out_of_bounds_are_corrupt),
        cmocka_unit_test(every_message_survives_the_way),
        cmocka_unit_test(an_append_shares_the_frames_bytes),
        cmocka_unit_test(appends_that_do_not_continue_are_corrupt),
        cmocka_unit_test(missing_and_trailing_bytes_are_corrupt),
        cmocka_unit_test(a_number_of_entries_is_bounded_before_it_is_believed),
        cmocka_unit_test(unknown_types_and_nobodys_messages_are_corrupt),
        cmocka_unit_test(random_bytes_do_no_harm),
        cmocka_unit_test(a_configuration_survives_the_way),
        cmocka_unit_test(a_configuration_has_golden_bytes),
        cmocka_unit_test(damaged_configurations_are_refused),
        cmocka_unit_test(a_quorum_value_is_what_a_majority_reaches),
        cmocka_unit_test(a_vote_is_won_by_a_majority_of_each_half),
        cmocka_unit_test(the_quorum_value_agrees_with_counting),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
