/* test_wal_format.c - the log's bytes: golden ones, round trips, and what each kind of harm to a
 * sector looks like. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "raft/wal_format.h"

enum { CLUSTER = 0x1111, MEMBER = 0x22, SEGMENT = 3 };

static void names_are_sixteen_digits(void **state)
{
    (void)state;
    char name[WAL_NAME_BYTES];
    uint64_t n = 0;
    wal_segment_name(42, name);
    assert_string_equal(name, "0000000000000042.wal");
    assert_true(wal_segment_number(name, &n) && n == 42);
    wal_segment_name(9999999999999999u, name);
    assert_true(wal_segment_number(name, &n) && n == 9999999999999999u);
    const char *others[] = {"0000000000000000.wal",
                            "000000000000042.wal",
                            "00000000000000042.wal",
                            "000000000000004x.wal",
                            "0000000000000042.wa",
                            "0000000000000042.wal~",
                            "0000000000000042.wal.tmp",
                            "",
                            ".wal"};
    for (size_t i = 0; i < KRD_ARRAY_LEN(others); i++)
        assert_false(wal_segment_number(others[i], &n));
}

/* A frame of 3 sectors: a body of 1000 bytes. */
static struct wal_frame make_frame(struct wal_frame_buf *b, uint32_t *chain)
{
    uint8_t body[1000];
    for (size_t i = 0; i < sizeof body; i++)
        body[i] = (uint8_t)(i * 7 + 1);
    struct wal_frame h = {.prev_chain = 0x01020304,
                          .segment = SEGMENT,
                          .seq = 77,
                          .kind = WAL_FRAME_BATCH,
                          .n_entries = 2,
                          .first_index = 1000,
                          .term = 5,
                          .vote = 6,
                          .commit = 999,
                          .checkpoint = 900,
                          .synced_seq = 76};
    wal_frame_begin(b, sizeof body);
    wal_frame_put(b, body, 10); /* in pieces, as entries come */
    wal_frame_put(b, body + 10, 700);
    wal_frame_put(b, body + 710, 290);
    *chain = wal_frame_finish(b, &h, wal_seed(CLUSTER, MEMBER, SEGMENT), 4096);
    assert_int_equal(b->n_sectors, 3);
    return h;
}

static void a_frame_has_its_golden_bytes(void **state)
{
    (void)state;
    struct wal_frame_buf b = {0};
    uint32_t chain;
    make_frame(&b, &chain);
    static const uint8_t golden[WAL_FRAME_HEADER_BYTES] = {
        'k',  'w',  'l',  '1',  4,    3, 2, 1, 3, 0, 0, 0, 0, 0, 0, 0, /* segment */
        77,   0,    0,    0,    0,    0, 0, 0,                         /* seq */
        2,    0,    0,    0,    0xe8, 3, 0, 0,                         /* kind, bytes */
        0x73, 0x2c, 0x71, 0x0c,                                        /* body sum */
        2,    0,    0,    0,    0xe8, 3, 0, 0, 0, 0, 0, 0,             /* entries */
        5,    0,    0,    0,    0,    0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0, /* term, vote */
        0xe7, 3,    0,    0,    0,    0, 0, 0,                         /* commit */
        0x84, 3,    0,    0,    0,    0, 0, 0,                         /* checkpoint */
        76,   0,    0,    0,    0,    0, 0, 0,                         /* synced */
    };
    static const uint8_t trailers[3][8] = {{0x3f, 0x31, 0x54, 0x40, 0x4d, 0x00, 0x00, 0xa7},
                                           {0x77, 0x97, 0xdb, 0x4f, 0x4d, 0x00, 0x00, 0xb6},
                                           {0xa7, 0xfe, 0x1b, 0xde, 0x4d, 0x00, 0x00, 0xb6}};
    assert_memory_equal(b.ptr, golden, sizeof golden);
    for (size_t i = 0; i < 3; i++)
        assert_memory_equal(b.ptr + i * 512 + 504, trailers[i], 8);
    assert_int_equal(chain, krd_get_le32(trailers[0]));
    wal_frame_buf_deinit(&b);
}

static void a_frame_comes_back(void **state)
{
    (void)state;
    struct wal_frame_buf b = {0};
    uint32_t chain;
    struct wal_frame h = make_frame(&b, &chain), back;
    assert_int_equal(wal_frame_decode(b.ptr, &back), KRD_OK);
    assert_memory_equal(&h, &back, sizeof h);
    assert_int_equal(wal_body_sum(b.ptr, 3), h.body_sum);
    uint8_t content[3 * WAL_CONTENT_BYTES];
    wal_contents(b.ptr, 3, content);
    for (size_t i = 0; i < 1000; i++)
        assert_int_equal(content[WAL_FRAME_HEADER_BYTES + i], (uint8_t)(i * 7 + 1));
    assert_true(wal_is_zero(content + WAL_FRAME_HEADER_BYTES + 1000,
                            sizeof content - WAL_FRAME_HEADER_BYTES - 1000));
    wal_frame_buf_deinit(&b);
}

static void sizes_end_at_sectors(void **state)
{
    (void)state;
    assert_int_equal(wal_frame_disk_bytes(0), 512);
    assert_int_equal(wal_frame_disk_bytes(504 - 88), 512);
    assert_int_equal(wal_frame_disk_bytes(504 - 88 + 1), 1024);
    struct wal_frame_buf b = {0};
    for (size_t n = 0; n < 3000; n += 13) {
        uint8_t body[3000] = {1};
        struct wal_frame h = {.segment = 1, .seq = 1, .kind = WAL_FRAME_BATCH};
        wal_frame_begin(&b, n);
        wal_frame_put(&b, body, n);
        wal_frame_finish(&b, &h, 1, 0);
        assert_int_equal(wal_frame_buf_bytes(&b), wal_frame_disk_bytes(n));
    }
    wal_frame_buf_deinit(&b);
}

static void no_kind_of_harm_passes_for_a_whole_sector(void **state)
{
    (void)state;
    struct wal_frame_buf b = {0};
    uint32_t chain, seed = wal_seed(CLUSTER, MEMBER, SEGMENT);
    make_frame(&b, &chain);
    for (size_t s = 0; s < 3; s++) {
        uint8_t *p = b.ptr + s * 512;
        uint64_t no = 8 + s, seq;
        bool first;
        assert_true(wal_sector_verify(p, seed, no, 77, &seq, &first));
        assert_true(seq == 77 && first == (s == 0));
        for (size_t bit = 0; bit < 512 * 8; bit++) {
            p[bit / 8] ^= (uint8_t)(1 << bit % 8);
            assert_false(wal_sector_verify(p, seed, no, 77, &seq, &first));
            p[bit / 8] ^= (uint8_t)(1 << bit % 8);
        }
        /* the wrong place, segment, member, cluster, or 2^24 frames away */
        assert_false(wal_sector_verify(p, seed, no + 1, 77, &seq, &first));
        assert_false(wal_sector_verify(p, wal_seed(CLUSTER, MEMBER, 4), no, 77, &seq, &first));
        assert_false(wal_sector_verify(p, wal_seed(CLUSTER, 1, SEGMENT), no, 77, &seq, &first));
        assert_false(wal_sector_verify(p, wal_seed(1, MEMBER, SEGMENT), no, 77, &seq, &first));
        assert_false(wal_sector_verify(p, seed, no, 77 + (1 << 24), &seq, &first));
    }
    wal_frame_buf_deinit(&b);
}

static void sequence_numbers_are_completed_by_nearness(void **state)
{
    (void)state;
    static const uint64_t seqs[] = {1, 0xfffffe, 0xffffff, 0x1000000, 0x1000001, 0x123456789a};
    uint8_t p[512] = {1, 2, 3};
    for (size_t i = 0; i < KRD_ARRAY_LEN(seqs); i++)
        for (int64_t off = -5; off <= 5; off++) {
            uint64_t seq;
            bool first;
            wal_sector_seal(p, 9, 0, seqs[i], false);
            if ((int64_t)seqs[i] + off < 0)
                continue;
            assert_true(wal_sector_verify(p, 9, 0, seqs[i] + (uint64_t)off, &seq, &first));
            assert_true(seq == seqs[i] && !first);
        }
}

static void every_tear_is_known_as_one(void **state)
{
    (void)state;
    struct wal_frame_buf b = {0};
    uint32_t chain, seed = wal_seed(CLUSTER, MEMBER, SEGMENT);
    make_frame(&b, &chain);
    uint8_t torn[512] = {0};
    assert_false(wal_sector_torn(torn, seed, 8, 77, true, slice_of(b.ptr, WAL_PREFIX_BYTES)));
    for (size_t s = 0; s < 3; s++) {
        struct slice prefix = s == 0 ? slice_of(b.ptr, WAL_PREFIX_BYTES) : slice_of(NULL, 0);
        for (size_t n = 1; n < 512; n++) {
            uint64_t seq;
            bool first;
            memset(torn, 0, sizeof torn);
            memcpy(torn, b.ptr + s * 512, n);
            assert_true(wal_sector_torn(torn, seed, 8 + s, 77, s == 0, prefix));
            assert_false(wal_sector_verify(torn, seed, 8 + s, 77, &seq, &first));
        }
        assert_false(wal_sector_torn(b.ptr + s * 512, seed, 8 + s, 77, s == 0, prefix));
    }
    /* What does not begin like the frame, or has part of a wrong checksum, is no tear. */
    memset(torn, 0, sizeof torn);
    memcpy(torn, b.ptr, 100);
    torn[9] ^= 4;
    assert_false(wal_sector_torn(torn, seed, 8, 77, true, slice_of(b.ptr, WAL_PREFIX_BYTES)));
    memcpy(torn, b.ptr + 512, 506);
    torn[100] ^= 4;
    assert_false(wal_sector_torn(torn, seed, 9, 77, false, slice_of(NULL, 0)));
    wal_frame_buf_deinit(&b);
}

static void a_speck_is_at_most_eight_bytes_wide(void **state)
{
    (void)state;
    uint8_t p[512] = {0};
    assert_false(wal_sector_speck(p));
    for (size_t at = 0; at + 9 < 512; at++) {
        p[at] = 1;
        assert_true(wal_sector_speck(p));
        p[at + 7] = 1;
        assert_true(wal_sector_speck(p));
        p[at + 8] = 1;
        assert_false(wal_sector_speck(p));
        memset(p, 0, sizeof p);
    }
}

static void zeros_are_seen_at_any_length(void **state)
{
    (void)state;
    uint8_t p[300] = {0};
    for (size_t n = 0; n < sizeof p; n++) {
        assert_true(wal_is_zero(p, n));
        for (size_t at = 0; at < n; at++) {
            p[at] = 0x80;
            assert_false(wal_is_zero(p, n));
            p[at] = 0;
        }
    }
}

static void impossible_headers_are_refused(void **state)
{
    (void)state;
    struct wal_frame ok = {.magic = WAL_MAGIC, .kind = WAL_FRAME_BATCH}, back;
    struct wal_frame bad[] = {ok, ok, ok, ok, ok, ok, ok};
    bad[0].magic++;
    bad[1].kind = 0;
    bad[2].kind = 4;
    bad[3].body_bytes = WAL_BODY_BYTES_MAX + 1;
    bad[4].n_entries = 1; /* without a first index */
    bad[5].first_index = 1;
    bad[6].kind = WAL_FRAME_BASE;
    bad[6].n_entries = bad[6].first_index = 1;
    uint8_t p[WAL_SECTOR_BYTES] = {0};
    wal_frame_encode(&ok, p);
    assert_int_equal(wal_frame_decode(p, &back), KRD_OK);
    for (size_t i = 0; i < KRD_ARRAY_LEN(bad); i++) {
        wal_frame_encode(&bad[i], p);
        assert_int_equal(wal_frame_decode(p, &back), KRD_CORRUPT);
    }
}

static void an_opening_comes_back(void **state)
{
    (void)state;
    struct wal_opening o;
    uint8_t *raw = (uint8_t *)&o;
    for (size_t i = 0; i < sizeof o; i++)
        raw[i] = (uint8_t)(i * 13 + 5);
    struct krd_buf b = KRD_BUF_INIT;
    wal_opening_put(&o, &b);
    assert_int_equal(b.len, WAL_OPENING_FIXED_BYTES);
    struct krd_reader r = krd_reader_of(krd_buf_slice(&b));
    struct wal_opening back = wal_opening_read(&r);
    assert_memory_equal(&o, &back, sizeof o);
    assert_false(r.bad);
    krd_buf_deinit(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names_are_sixteen_digits),
        cmocka_unit_test(a_frame_has_its_golden_bytes),
        cmocka_unit_test(a_frame_comes_back),
        cmocka_unit_test(sizes_end_at_sectors),
        cmocka_unit_test(no_kind_of_harm_passes_for_a_whole_sector),
        cmocka_unit_test(sequence_numbers_are_completed_by_nearness),
        cmocka_unit_test(every_tear_is_known_as_one),
        cmocka_unit_test(a_speck_is_at_most_eight_bytes_wide),
        cmocka_unit_test(zeros_are_seen_at_any_length),
        cmocka_unit_test(impossible_headers_are_refused),
        cmocka_unit_test(an_opening_comes_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
