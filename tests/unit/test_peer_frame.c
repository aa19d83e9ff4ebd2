/* test_peer_frame.c - the bytes between members: hello, frames, the reader, the queue. */
#include "tests/fuzz/frame_check.h"

#include "base/rand.h"
#include "raft/peer_sendq.h"

#include <dirent.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>

#define BUFFER_BYTES 16384

static const struct peer_hello some_hello = {
    .channel = PEER_BULK,
    .answer = PEER_WELCOME,
    .cluster_id = 0x1122334455667788,
    .sender = 2,
    .receiver = 3,
    .boot = 7,
};

static struct slice pattern(size_t n)
{
    static uint8_t bytes[4 << 20];
    assert_true(n <= sizeof bytes);
    for (size_t i = 0; i < n; i++)
        bytes[i] = (uint8_t)(i * 131 + (i >> 8) * 7 + n);
    return slice_of(bytes, n);
}

static struct raft_entry entry_of(raft_index index, size_t payload)
{
    struct raft_entry e = raft_entry_make(RAFT_ENTRY_COMMAND, pattern(payload));
    raft_entry_seal(&e, index, 1, 1000 + index);
    return e;
}

/* A frame's bytes, by way of the queue. */
static void put_frame(struct krd_buf *out, enum peer_frame_kind kind, struct slice head,
                      const struct raft_entry *entries, size_t n)
{
    struct peer_sendq q = {0};
    struct iovec iov[64];
    size_t records = 0;
    for (size_t i = 0; i < n; i++)
        records += raft_record_bytes(&entries[i]);
    peer_sendq_put(&q, kind, head, entries, n, records);
    int pieces = peer_sendq_iov(&q, iov, 64);
    for (int i = 0; i < pieces; i++)
        krd_buf_put(out, iov[i].iov_base, iov[i].iov_len);
    assert_int_equal(q.bytes, peer_frame_bytes(head.len, records));
    peer_sendq_deinit(&q);
}

static void put_append(struct krd_buf *out, raft_index prev, const size_t *payloads, uint32_t n)
{
    struct raft_entry entries[64];
    for (uint32_t i = 0; i < n; i++)
        entries[i] = entry_of(prev + 1 + i, payloads[i]);
    struct raft_message m = {.type = RAFT_MSG_APPEND, .term = 1, .from = 2, .to = 3};
    m.u.append.prev_index = prev;
    m.u.append.prev_term = prev == 0 ? 0 : 1;
    m.u.append.n_entries = n;
    m.u.append.entries = entries;
    struct krd_buf head = KRD_BUF_INIT;
    size_t records;
    raft_message_encode(&m, &head, &records);
    put_frame(out, PEER_FRAME_RAFT, krd_buf_slice(&head), entries, n);
    krd_buf_deinit(&head);
    for (uint32_t i = 0; i < n; i++)
        raft_entry_unref(&entries[i]);
}

/* Some of everything: 6 frames, 3 of them messages. */
static struct krd_buf some_stream(void)
{
    struct krd_buf s = KRD_BUF_INIT;
    put_append(&s, 0, (size_t[]){0, 1, 8, 13}, 4);
    put_frame(&s, PEER_FRAME_FORWARD, slice_str(""), NULL, 0);
    put_frame(&s, PEER_FRAME_FORWARD, slice_str("odd length"), NULL, 0);
    put_append(&s, 4, NULL, 0);
    put_append(&s, 4, (size_t[]){100}, 1);
    put_frame(&s, PEER_FRAME_FORWARD, slice_str("16 bytes in here"), NULL, 0);
    return s;
}

/* --- hello ---------------------------------------------------------------------------------- */

static void hello_has_its_golden_bytes(void **state)
{
    (void)state;
    static const uint8_t golden[PEER_HELLO_BYTES] = {
        'k',  'v',  'r',  'p',  1,    0,    1,    0,    /* magic, version, channel, answer */
        0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, /* cluster */
        2,    0,    0,    0,    0,    0,    0,    0,    /* sender */
        3,    0,    0,    0,    0,    0,    0,    0,    /* receiver */
        7,    0,    0,    0,    0,    0,    0,    0,    /* boot */
        0x8f, 0x7c, 0x55, 0xe3, 0,    0,    0,    0,    /* checksum, zero */
    };
    uint8_t bytes[PEER_HELLO_BYTES];
    peer_hello_encode(&some_hello, bytes);
    assert_memory_equal(bytes, golden, sizeof bytes);
}

static void hello_survives_the_round_trip(void **state)
{
    (void)state;
    uint8_t bytes[PEER_HELLO_BYTES];
    struct peer_hello h;
    peer_hello_encode(&some_hello, bytes);
    assert_int_equal(peer_hello_decode(slice_of(bytes, sizeof bytes), &h), KRD_OK);
    assert_int_equal(h.version, PEER_PROTOCOL_VERSION);
    assert_int_equal(h.channel, some_hello.channel);
    assert_int_equal(h.answer, some_hello.answer);
    assert_true(h.cluster_id == some_hello.cluster_id && h.sender == some_hello.sender);
    assert_true(h.receiver == some_hello.receiver && h.boot == some_hello.boot);
}

static void hello_needs_all_its_bytes_and_refuses_any_flipped_bit(void **state)
{
    (void)state;
    uint8_t bytes[PEER_HELLO_BYTES];
    struct peer_hello h;
    peer_hello_encode(&some_hello, bytes);
    for (size_t n = 0; n < sizeof bytes; n++)
        assert_int_equal(peer_hello_decode(slice_of(bytes, n), &h), KRD_AGAIN);
    for (size_t bit = 0; bit < 8 * sizeof bytes; bit++) {
        bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
        bool version = bit / 8 == 4 || bit / 8 == 5;
        assert_int_equal(peer_hello_decode(slice_of(bytes, sizeof bytes), &h),
                         version ? KRD_CONFLICT : KRD_CORRUPT);
        bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
    }
}

static void foreign_protocols_are_known_by_their_first_bytes(void **state)
{
    (void)state;
    struct peer_hello h;
    assert_int_equal(peer_hello_decode(slice_str("G"), &h), KRD_CORRUPT);
    assert_int_equal(peer_hello_decode(slice_str("\x16\x03\x01"), &h), KRD_CORRUPT);
    assert_int_equal(peer_hello_decode(slice_str("kvrX"), &h), KRD_CORRUPT);
    assert_int_equal(peer_hello_decode(slice_of("kvrp\x02\x01", 6), &h), KRD_CONFLICT);
    assert_int_equal(h.version, 0x0102);
    for (unsigned a = 0; a < 300; a++)
        assert_non_null(peer_answer_text(a));
}

/* --- frames --------------------------------------------------------------------------------- */

static void frame_has_its_golden_bytes(void **state)
{
    (void)state;
    static const uint8_t golden[24] = {
        0xf5, 0xa3, 0xb8, 0x3e, 3, 0, 0, 0, /* checksum, length */
        2,    0,    0,    0,    3, 0, 0, 0, /* kind, zero, head length */
        'a',  'b',  'c',  0,    0, 0, 0, 0, /* head, zeros */
    };
    struct krd_buf s = KRD_BUF_INIT;
    put_frame(&s, PEER_FRAME_FORWARD, slice_str("abc"), NULL, 0);
    assert_int_equal(s.len, sizeof golden);
    assert_memory_equal(s.ptr, golden, sizeof golden);
    krd_buf_deinit(&s);
}

static size_t cut_at(void *arg)
{
    size_t *first = arg, n = *first;
    *first = SIZE_MAX;
    return n;
}
static size_t cut_every(void *arg)
{
    return *(size_t *)arg;
}

static void every_split_of_a_stream_gives_the_same_frames(void **state)
{
    (void)state;
    struct krd_buf s = some_stream();
    struct frame_outcome whole = frame_run(krd_buf_slice(&s), BUFFER_BYTES, frame_cut_none, NULL);
    assert_int_equal(whole.frames, 6);
    assert_int_equal(whole.messages, 3);
    assert_false(whole.corrupt);
    assert_int_equal(whole.again.len, s.len);

    for (size_t n = 1; n <= s.len; n++) {
        size_t first = n, every = n;
        struct frame_outcome once = frame_run(krd_buf_slice(&s), BUFFER_BYTES, cut_at, &first);
        struct frame_outcome many = frame_run(krd_buf_slice(&s), BUFFER_BYTES, cut_every, &every);
        assert_true(frame_outcome_eq(&whole, &once));
        assert_true(frame_outcome_eq(&whole, &many));
        krd_buf_deinit(&once.again);
        krd_buf_deinit(&many.again);
    }
    krd_buf_deinit(&whole.again);
    krd_buf_deinit(&s);
}

static size_t cut_random(void *arg)
{
    struct krd_rand *r = arg;
    return 1 + krd_rand_below(r, krd_rand_below(r, 4) == 0 ? 40000 : 300);
}

/* Frames of all sizes around those of the buffer, so that they lie across its end in many ways. */
static void long_streams_come_out_whole_however_they_lie_in_the_buffers(void **state)
{
    (void)state;
    struct krd_rand rand;
    krd_rand_seed(&rand, 11);
    for (int round = 0; round < 30; round++) {
        struct krd_buf s = KRD_BUF_INIT;
        for (int i = 0; i < 60; i++) {
            size_t max = i % 7 == 0 ? 60000 : 700;
            size_t sizes[4];
            for (int k = 0; k < 4; k++)
                sizes[k] = krd_rand_below(&rand, max);
            put_append(&s, 10, sizes, (uint32_t)krd_rand_below(&rand, 5));
            put_frame(&s, PEER_FRAME_FORWARD, pattern(krd_rand_below(&rand, max)), NULL, 0);
        }
        struct frame_outcome o = frame_run(krd_buf_slice(&s), BUFFER_BYTES, cut_random, &rand);
        assert_int_equal(o.frames, 120);
        assert_int_equal(o.messages, 60);
        assert_int_equal(o.again.len, s.len);
        krd_buf_deinit(&o.again);
        krd_buf_deinit(&s);
    }
}

static void any_flipped_bit_of_a_frame_is_refused(void **state)
{
    (void)state;
    struct krd_buf s = KRD_BUF_INIT;
    put_append(&s, 3, (size_t[]){21, 0}, 2);
    for (size_t bit = 0; bit < 8 * s.len; bit++) {
        s.ptr[bit / 8] ^= (uint8_t)(1 << bit % 8);
        struct frame_outcome o = frame_run(krd_buf_slice(&s), BUFFER_BYTES, frame_cut_none, NULL);
        /* In the records a frame comes out, but nobody makes a message of it. */
        assert_int_equal(o.messages, 0);
        krd_buf_deinit(&o.again);
        s.ptr[bit / 8] ^= (uint8_t)(1 << bit % 8);
    }
    krd_buf_deinit(&s);
}

static void any_flipped_bit_of_a_frame_without_records_is_refused_by_the_reader(void **state)
{
    (void)state;
    struct krd_buf s = KRD_BUF_INIT;
    put_frame(&s, PEER_FRAME_FORWARD, slice_str("thirteen byte"), NULL, 0);
    for (size_t bit = 0; bit < 8 * s.len; bit++) {
        s.ptr[bit / 8] ^= (uint8_t)(1 << bit % 8);
        struct frame_outcome o = frame_run(krd_buf_slice(&s), BUFFER_BYTES, frame_cut_none, NULL);
        assert_int_equal(o.frames, 0); /* a longer length may let it wait for more */
        krd_buf_deinit(&o.again);
        s.ptr[bit / 8] ^= (uint8_t)(1 << bit % 8);
    }
    krd_buf_deinit(&s);
}

/* A header with any fields, its checksum right for an empty head. */
static const char *fault_of(uint32_t length, uint32_t kind, uint32_t head_len)
{
    static struct peer_reader r;
    struct peer_frame f;
    uint8_t *ptr;
    size_t room;
    peer_reader_init(&r, BUFFER_BYTES);
    assert_int_equal(peer_reader_next(&r, &f), KRD_AGAIN);
    peer_reader_room(&r, &ptr, &room);
    peer_frame_header(PEER_FRAME_RAFT, slice_str(""), 0, ptr);
    krd_put_le32(ptr + 4, length);
    krd_put_le32(ptr + 8, kind);
    krd_put_le32(ptr + 12, head_len);
    peer_reader_filled(&r, PEER_FRAME_HEADER_BYTES);
    enum krd_status st = peer_reader_next(&r, &f);
    const char *fault = r.fault;
    assert_int_equal(st, fault != NULL ? KRD_CORRUPT : KRD_AGAIN);
    if (fault != NULL) /* and it stays so */
        assert_int_equal(peer_reader_next(&r, &f), KRD_CORRUPT);
    peer_reader_deinit(&r);
    return fault;
}

static void absurd_headers_are_refused_before_anything_is_allocated_for_them(void **state)
{
    (void)state;
    assert_string_equal(fault_of(UINT32_MAX, 1, 0), "frame longer than the limit");
    assert_string_equal(fault_of(KRD_FRAME_BYTES_MAX + 1, 1, 0), "frame longer than the limit");
    assert_string_equal(fault_of(8, 0, 8), "unknown kind of frame");
    assert_string_equal(fault_of(8, 3, 8), "unknown kind of frame");
    assert_string_equal(fault_of(8, 1 | 1 << 8, 8), "unknown kind of frame");
    assert_string_equal(fault_of(8, 1, 9), "frame's head longer than the frame");
    assert_string_equal(fault_of(8, 1, UINT32_MAX), "frame's head longer than the frame");
    assert_string_equal(fault_of(48, 1, 4), "frame's records not aligned");
    assert_string_equal(fault_of(47, 1, 8), "frame's records not aligned");
    /* A length that is allowed, but whose checksum is wrong, allocates nothing either. */
    assert_string_equal(fault_of(KRD_FRAME_BYTES_MAX, 1, 0), "frame's checksum is wrong");
    assert_null(fault_of(KRD_FRAME_BYTES_MAX, 1, KRD_FRAME_BYTES_MAX));
}

/* --- reader's memory ------------------------------------------------------------------------ */

static void feed(struct peer_reader *r, struct slice s)
{
    while (s.len > 0) {
        uint8_t *ptr;
        size_t room;
        peer_reader_room(r, &ptr, &room);
        size_t n = krd_min_size(room, s.len);
        memcpy(ptr, s.ptr, n);
        peer_reader_filled(r, n);
        s = slice_of(s.ptr + n, s.len - n);
    }
}

static void small_frames_share_a_blob_and_it_is_used_again_when_nobody_keeps_it(void **state)
{
    (void)state;
    struct krd_buf s = KRD_BUF_INIT;
    put_frame(&s, PEER_FRAME_FORWARD, pattern(100), NULL, 0);
    struct peer_reader r;
    struct peer_frame f;
    peer_reader_init(&r, BUFFER_BYTES);
    struct krd_blob *first = NULL;
    for (int i = 0; i < 1000; i++) { /* far more than one buffer holds */
        assert_int_equal(peer_reader_next(&r, &f), KRD_AGAIN);
        feed(&r, krd_buf_slice(&s));
        assert_int_equal(peer_reader_next(&r, &f), KRD_OK);
        if (first == NULL)
            first = f.blob;
        assert_ptr_equal(f.blob, first);
    }
    peer_reader_deinit(&r);
    krd_buf_deinit(&s);
}

static void bytes_that_somebody_keeps_are_never_written_again(void **state)
{
    (void)state;
    struct peer_reader r;
    struct peer_frame f, kept[300];
    peer_reader_init(&r, BUFFER_BYTES);
    for (size_t i = 0; i < 300; i++) {
        struct krd_buf s = KRD_BUF_INIT;
        put_frame(&s, PEER_FRAME_FORWARD, pattern(10 + i), NULL, 0);
        assert_int_equal(peer_reader_next(&r, &f), KRD_AGAIN);
        feed(&r, krd_buf_slice(&s));
        assert_int_equal(peer_reader_next(&r, &kept[i]), KRD_OK);
        krd_blob_ref(kept[i].blob);
        krd_buf_deinit(&s);
    }
    peer_reader_deinit(&r);
    for (size_t i = 0; i < 300; i++) {
        assert_true(slice_eq(kept[i].body, pattern(10 + i)));
        krd_blob_unref(kept[i].blob);
    }
}

static void a_large_frame_gets_a_blob_of_just_its_size(void **state)
{
    (void)state;
    struct krd_buf s = KRD_BUF_INIT;
    put_frame(&s, PEER_FRAME_FORWARD, pattern(100), NULL, 0);
    put_append(&s, 0, (size_t[]){3u << 20}, 1);
    struct peer_reader r;
    struct peer_frame f;
    peer_reader_init(&r, BUFFER_BYTES);
    size_t at = 0;
    while (peer_reader_next(&r, &f) == KRD_AGAIN || f.kind != PEER_FRAME_RAFT) {
        if (r.end - r.start >= r.need)
            continue;
        uint8_t *ptr;
        size_t room;
        peer_reader_room(&r, &ptr, &room);
        size_t n = krd_min_size(room, s.len - at);
        memcpy(ptr, s.ptr + at, n);
        peer_reader_filled(&r, n);
        at += n;
    }
    assert_int_equal(at, s.len);
    assert_int_equal(f.blob->len, peer_frame_bytes(f.body.len, 0));
    assert_true(frame_is_message(&f));
    peer_reader_deinit(&r);
    krd_buf_deinit(&s);
}

/* --- queue ---------------------------------------------------------------------------------- */

/* The naive twin: one flat buffer. */
static void queue_gives_the_bytes_of_a_flat_buffer_whatever_the_socket_takes(void **state)
{
    (void)state;
    struct krd_rand rand;
    krd_rand_seed(&rand, 5);
    struct peer_sendq q = {0};
    struct krd_buf twin = KRD_BUF_INIT;
    size_t taken = 0;
    for (int step = 0; step < 20000; step++) {
        if (krd_rand_below(&rand, 5) < 2) {
            struct raft_entry e[3];
            size_t n = krd_rand_below(&rand, 4), records = 0;
            struct slice head = pattern(8 * krd_rand_below(&rand, step % 50 == 0 ? 900 : 12));
            head.len -= n == 0 && head.len > 0; /* without records any length will do */
            struct krd_buf flat = KRD_BUF_INIT;
            krd_buf_put_slice(&flat, head);
            for (size_t i = 0; i < n; i++) {
                e[i] = entry_of(i + 1, krd_rand_below(&rand, 500));
                records += raft_record_bytes(&e[i]);
                krd_buf_put(&flat, e[i].record, raft_record_bytes(&e[i]));
            }
            struct slice flat_head = slice_of(flat.ptr, head.len);
            peer_sendq_put(&q, PEER_FRAME_RAFT, flat_head, e, n, records);
            struct peer_frame f = {
                .kind = PEER_FRAME_RAFT, .body = krd_buf_slice(&flat), .head_len = head.len};
            frame_reencode(&f, &twin);
            for (size_t i = 0; i < n; i++)
                raft_entry_unref(&e[i]);
            krd_buf_deinit(&flat);
        } else {
            struct iovec iov[5];
            int n = peer_sendq_iov(&q, iov, 5);
            size_t shown = 0;
            for (int i = 0; i < n; i++) {
                assert_memory_equal(iov[i].iov_base, twin.ptr + taken + shown, iov[i].iov_len);
                shown += iov[i].iov_len;
            }
            size_t take = krd_rand_below(&rand, shown + 1);
            peer_sendq_sent(&q, take);
            taken += take;
        }
        assert_int_equal(q.bytes, twin.len - taken);
        if (taken == twin.len)
            assert_int_equal(q.n, 0);
    }
    peer_sendq_clear(&q);
    assert_int_equal(q.bytes, 0);
    peer_sendq_deinit(&q);
    krd_buf_deinit(&twin);
}

static void heads_without_records_go_out_as_one_piece(void **state)
{
    (void)state;
    struct peer_sendq q = {0};
    struct iovec iov[8];
    for (int i = 0; i < 100; i++)
        peer_sendq_put(&q, PEER_FRAME_RAFT, pattern(72), NULL, 0, 0);
    assert_int_equal(peer_sendq_iov(&q, iov, 8), 1);
    assert_int_equal(iov[0].iov_len, 100 * peer_frame_bytes(72, 0));
    peer_sendq_deinit(&q);
}

/* --- the fuzzer's corpus --------------------------------------------------------------------- */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void the_fuzzer_finds_nothing_in_its_corpus(void **state)
{
    (void)state;
    const char *path = "tests/fuzz/corpus_frame";
    DIR *dir = opendir(path);
    assert_non_null(dir); /* run from the project's root */
    int files = 0;
    for (struct dirent *d; (d = readdir(dir)) != NULL;) {
        if (d->d_name[0] == '.')
            continue;
        char name[512];
        uint8_t bytes[65536];
        snprintf(name, sizeof name, "%s/%s", path, d->d_name);
        FILE *f = fopen(name, "rb");
        assert_non_null(f);
        size_t n = fread(bytes, 1, sizeof bytes, f);
        fclose(f);
        LLVMFuzzerTestOneInput(bytes, n);
        files++;
    }
    closedir(dir);
    assert_true(files >= 5);
}

static void write_seed(const char *name, uint8_t how, struct slice s)
{
    char path[256];
    snprintf(path, sizeof path, "tests/fuzz/corpus_frame/%s", name);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    fputc(how, f);
    fwrite(s.ptr, 1, s.len, f);
    fclose(f);
}

static void write_corpus(void)
{
    struct krd_buf s = some_stream(), one = KRD_BUF_INIT, big = KRD_BUF_INIT;
    uint8_t hello[PEER_HELLO_BYTES], absurd[PEER_FRAME_HEADER_BYTES];
    peer_hello_encode(&some_hello, hello);
    put_frame(&one, PEER_FRAME_FORWARD, slice_str("forwarded"), NULL, 0);
    put_append(&big, 7, (size_t[]){9000, 10}, 2);
    peer_frame_header(PEER_FRAME_RAFT, slice_str(""), KRD_FRAME_BYTES_MAX & ~7u, absurd);
    write_seed("hello", 1, slice_of(hello, sizeof hello));
    write_seed("stream", 3, krd_buf_slice(&s));
    write_seed("stream-mended", 4, krd_buf_slice(&s));
    write_seed("forward", 2, krd_buf_slice(&one));
    write_seed("large", 6, krd_buf_slice(&big));
    write_seed("absurd-length", 1, slice_of(absurd, sizeof absurd));
    krd_buf_deinit(&s);
    krd_buf_deinit(&one);
    krd_buf_deinit(&big);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(hello_has_its_golden_bytes),
        cmocka_unit_test(hello_survives_the_round_trip),
        cmocka_unit_test(hello_needs_all_its_bytes_and_refuses_any_flipped_bit),
        cmocka_unit_test(foreign_protocols_are_known_by_their_first_bytes),
        cmocka_unit_test(frame_has_its_golden_bytes),
        cmocka_unit_test(every_split_of_a_stream_gives_the_same_frames),
        cmocka_unit_test(long_streams_come_out_whole_however_they_lie_in_the_buffers),
        cmocka_unit_test(any_flipped_bit_of_a_frame_is_refused),
        cmocka_unit_test(any_flipped_bit_of_a_frame_without_records_is_refused_by_the_reader),
        cmocka_unit_test(absurd_headers_are_refused_before_anything_is_allocated_for_them),
        cmocka_unit_test(small_frames_share_a_blob_and_it_is_used_again_when_nobody_keeps_it),
        cmocka_unit_test(bytes_that_somebody_keeps_are_never_written_again),
        cmocka_unit_test(a_large_frame_gets_a_blob_of_just_its_size),
        cmocka_unit_test(queue_gives_the_bytes_of_a_flat_buffer_whatever_the_socket_takes),
        cmocka_unit_test(heads_without_records_go_out_as_one_piece),
        cmocka_unit_test(the_fuzzer_finds_nothing_in_its_corpus),
    };
    if (getenv("KRD_WRITE_CORPUS") != NULL) /* once the format has changed */
        write_corpus();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
