/* base/: bytes, memory, checksums, random numbers, mailboxes, the loop, and what ends a process. */
#include "base/arena.h"
#include "base/blob.h"
#include "base/buf.h"
#include "base/clock.h"
#include "base/crc32c.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/loop.h"
#include "base/mailbox.h"
#include "base/rand.h"
#include "base/vfs.h"
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

/* --- Bytes and memory ----------------------------------------------------------------------------
 */

static void every_status_has_a_code_a_text_and_an_http_status(void **state)
{
    (void)state;
    for (int st = 0; st < KRD_STATUS_COUNT; st++) {
        assert_true(strlen(krd_status_code((enum krd_status)st)) > 0);
        assert_true(strlen(krd_status_text((enum krd_status)st)) > 0);
        int http = krd_status_http((enum krd_status)st);
        assert_true(http >= 200 && http < 600);
    }
    assert_int_equal(KRD_OK, 0);
    assert_int_equal(krd_status_http(KRD_NOT_FOUND), 404);
    assert_string_equal(krd_status_code(KRD_OUTCOME_UNKNOWN), "outcome_unknown");
    assert_string_equal(krd_status_code((enum krd_status)999), "internal");
}

static void slices_are_ordered_as_keys(void **state)
{
    (void)state;
    static const struct slice order[] = {{NULL, 0},
                                         {(const uint8_t *)"\0", 1},
                                         {(const uint8_t *)"a", 1},
                                         {(const uint8_t *)"a\0", 2},
                                         {(const uint8_t *)"ab", 2},
                                         {(const uint8_t *)"b", 1},
                                         {(const uint8_t *)"\x80", 1},
                                         {(const uint8_t *)"\xff\xff", 2}};
    for (size_t i = 0; i < KRD_ARRAY_LEN(order); i++) {
        for (size_t j = 0; j < KRD_ARRAY_LEN(order); j++) {
            int c = slice_cmp(order[i], order[j]);
            assert_int_equal((c > 0) - (c < 0), (i > j) - (i < j));
            assert_int_equal(slice_eq(order[i], order[j]), i == j);
        }
        assert_true(slice_has_prefix(order[i], order[0]));
    }
    assert_true(slice_has_prefix(order[4], order[2]));
    assert_false(slice_has_prefix(order[2], order[4]));
}

static void integers_lie_in_bytes_as_their_names_say(void **state)
{
    (void)state;
    uint8_t b[8];
    krd_put_le64(b, 0x0102030405060708ull);
    assert_memory_equal(b, "\x08\x07\x06\x05\x04\x03\x02\x01", 8);
    assert_true(krd_get_le64(b) == 0x0102030405060708ull);
    assert_int_equal(krd_get_le16(b), 0x0708);
    krd_put_be64(b, 0x0102030405060708ull);
    assert_memory_equal(b, "\x01\x02\x03\x04\x05\x06\x07\x08", 8);
    assert_true(krd_get_be64(b) == 0x0102030405060708ull);
}

static void growing_keeps_what_was_there(void **state)
{
    (void)state;
    uint32_t *a = NULL;
    size_t cap = 0;
    for (uint32_t i = 0; i < 1000; i++) {
        krd_grow(&a, &cap, i + 1, sizeof *a);
        assert_true(cap > i);
        a[i] = i;
    }
    for (uint32_t i = 0; i < 1000; i++)
        assert_int_equal(a[i], i);
    size_t before = cap;
    krd_grow(&a, &cap, 5, sizeof *a);
    assert_int_equal(cap, before);
    krd_free(a);
}

static void a_reader_reads_what_a_buffer_wrote(void **state)
{
    (void)state;
    struct krd_buf b = KRD_BUF_INIT;
    krd_buf_put_u8(&b, 0xab);
    krd_buf_put_le16(&b, 0x1234);
    krd_buf_put_le32(&b, 0x12345678);
    krd_buf_put_le64(&b, UINT64_MAX - 1);
    krd_buf_put_be64(&b, 42);
    krd_buf_put(&b, NULL, 0);
    krd_buf_put_slice(&b, slice_str("tail"));

    struct krd_reader r = krd_reader_of(krd_buf_slice(&b));
    assert_int_equal(krd_read_u8(&r), 0xab);
    assert_int_equal(krd_read_le16(&r), 0x1234);
    assert_int_equal(krd_read_le32(&r), 0x12345678);
    assert_true(krd_read_le64(&r) == UINT64_MAX - 1);
    assert_int_equal(krd_read_be64(&r), 42);
    assert_int_equal(krd_reader_left(&r), 4);
    assert_true(slice_eq(krd_read_bytes(&r, 4), slice_str("tail")));
    assert_int_equal(krd_read_bytes(&r, 0).len, 0);
    assert_false(r.bad);
    krd_buf_deinit(&b);
    krd_buf_deinit(&b); /* of nothing */
}

static void a_reader_that_ran_out_stays_bad(void **state)
{
    (void)state;
    struct krd_reader r = krd_reader_of(slice_of("\1\2\3", 3));
    assert_int_equal(krd_read_le32(&r), 0);
    assert_true(r.bad);
    assert_int_equal(krd_read_u8(&r), 0); /* though a byte would be there */
    assert_int_equal(krd_read_bytes(&r, 0).len, 0);
    assert_true(r.bad);
    r = krd_reader_of(slice_of("\1", 1));
    assert_int_equal(krd_read_bytes(&r, SIZE_MAX).len, 0);
    assert_true(r.bad);
    r = krd_reader_of(slice_of(NULL, 0));
    assert_int_equal(krd_reader_left(&r), 0);
    assert_int_equal(krd_read_u8(&r), 0);
    assert_true(r.bad);
}

static void digits_are_those_of_printf(void **state)
{
    (void)state;
    static const uint64_t cases[] = {0,          9,
                                     10,         99,
                                     100,        UINT32_MAX,
                                     INT64_MAX,  (uint64_t)INT64_MAX + 1,
                                     UINT64_MAX, 1000000000000000000ull};
    struct krd_buf b = KRD_BUF_INIT, want = KRD_BUF_INIT;
    for (size_t i = 0; i < KRD_ARRAY_LEN(cases); i++) {
        krd_buf_put_u64(&b, cases[i]);
        krd_buf_put_i64(&b, (int64_t)cases[i]);
        krd_buf_printf(&want, "%" PRIu64 "%" PRId64, cases[i], (int64_t)cases[i]);
    }
    assert_true(slice_eq(krd_buf_slice(&b), krd_buf_slice(&want)));
    krd_buf_deinit(&b);
    krd_buf_deinit(&want);
}

static void printf_into_a_buffer_grows_it(void **state)
{
    (void)state;
    struct krd_buf b = KRD_BUF_INIT;
    char *text = krd_asprintf("%05000d", 7);
    krd_buf_puts(&b, "x");
    krd_buf_printf(&b, "%s", text);
    krd_buf_printf(&b, "%s", "");
    assert_int_equal(b.len, 5001);
    assert_memory_equal(b.ptr + 1, text, 5000);
    krd_free(text);
    krd_buf_deinit(&b);
}

static void arena_memory_is_aligned_and_apart(void **state)
{
    (void)state;
    struct krd_arena a = KRD_ARENA_INIT;
    struct krd_rand r;
    uint8_t *p[2000];
    size_t n[2000];
    krd_rand_seed(&r, 1);
    for (int round = 0; round < 3; round++) {
        for (unsigned i = 0; i < KRD_ARRAY_LEN(p); i++) {
            n[i] = krd_rand_below(&r, i % 100 == 0 ? 100000 : 100);
            p[i] = krd_arena_alloc(&a, n[i]);
            assert_non_null(p[i]);
            assert_int_equal((uintptr_t)p[i] % 16, 0);
            memset(p[i], (int)i, n[i]);
        }
        for (unsigned i = 0; i < KRD_ARRAY_LEN(p); i++)
            for (size_t j = 0; j < n[i]; j++)
                assert_int_equal(p[i][j], (uint8_t)i);
        uint8_t *z = krd_arena_zalloc(&a, 500); /* over dirty memory in later rounds */
        for (size_t j = 0; j < 500; j++)
            assert_int_equal(z[j], 0);
        krd_arena_reset(&a);
    }
    krd_arena_deinit(&a);
    krd_arena_deinit(&a);
    krd_arena_reset(&a);
}

static void an_arena_keeps_a_chunk_but_no_giant(void **state)
{
    (void)state;
    struct krd_arena a = KRD_ARENA_INIT;
    void *p = krd_arena_alloc(&a, 100);
    krd_arena_reset(&a);
    assert_ptr_equal(krd_arena_alloc(&a, 100), p);
    krd_arena_alloc(&a, 64u << 20);
    krd_arena_reset(&a);
    assert_null(a.chunks);
    assert_true(slice_eq(krd_arena_copy(&a, slice_str("abc")), slice_str("abc")));
    assert_int_equal(krd_arena_copy(&a, slice_of(NULL, 0)).len, 0);
    assert_string_equal(krd_arena_printf(&a, "%d-%s", 5, "x"), "5-x");
    char *text = krd_asprintf("%09000d", 7);
    assert_string_equal(krd_arena_printf(&a, "%s", text), text);
    krd_free(text);
    krd_arena_deinit(&a);
}

static void *ref_and_unref(void *arg)
{
    for (int i = 0; i < 100000; i++)
        krd_blob_unref(krd_blob_ref(arg));
    krd_blob_unref(arg);
    return NULL;
}

static void a_blob_lives_until_the_last_thread_lets_go(void **state)
{
    (void)state;
    pthread_t threads[3];
    struct krd_blob *b = krd_blob_copy(slice_str("shared"));
    for (int i = 0; i < 3; i++) {
        krd_blob_ref(b);
        assert_int_equal(pthread_create(&threads[i], NULL, ref_and_unref, b), 0);
    }
    for (int i = 0; i < 3; i++)
        pthread_join(threads[i], NULL);
    assert_int_equal(atomic_load(&b->refs), 1);
    assert_true(slice_eq(krd_blob_slice(b), slice_str("shared")));
    krd_blob_unref(b); /* the sanitizer would tell of a leak */
    krd_blob_unref(NULL);
    b = krd_blob_copy(slice_of(NULL, 0));
    assert_int_equal(b->len, 0);
    krd_blob_unref(b);
}

/* --- Checksums and random numbers ------------------------------------------------------------ */

static void crc32c_has_the_published_values(void **state)
{
    (void)state;
    uint8_t up[32], down[32], zeros[32] = {0}, ones[32];
    for (int i = 0; i < 32; i++) {
        up[i] = (uint8_t)i;
        down[i] = (uint8_t)(31 - i);
        ones[i] = 0xff;
    }
    /* RFC 3720, B.4, and the check value of the catalogue of CRCs. */
    const struct {
        const void *p;
        size_t n;
        uint32_t crc;
    } cases[] = {{zeros, 32, 0x8a9136aa}, {ones, 32, 0x62a8ab43},       {up, 32, 0x46dd794e},
                 {down, 32, 0x113fdb5c},  {"123456789", 9, 0xe3069283}, {"", 0, 0}};
    for (size_t i = 0; i < KRD_ARRAY_LEN(cases); i++) {
        assert_int_equal(krd_crc32c(0, cases[i].p, cases[i].n), cases[i].crc);
        assert_int_equal(krd_crc32c_software(0, cases[i].p, cases[i].n), cases[i].crc);
    }
}

static void crc32c_in_hardware_in_software_and_in_pieces_is_one(void **state)
{
    (void)state;
    uint8_t bytes[400];
    struct krd_rand r;
    krd_rand_seed(&r, 3);
    for (size_t i = 0; i < sizeof bytes; i++)
        bytes[i] = (uint8_t)krd_rand_u64(&r);
    for (size_t from = 0; from < 9; from++) {
        for (size_t n = 0; n < 300; n++) {
            uint32_t crc = krd_crc32c(0, bytes + from, n);
            size_t cut = krd_rand_below(&r, n + 1);
            assert_int_equal(crc, krd_crc32c_software(0, bytes + from, n));
            uint32_t first = krd_crc32c(0, bytes + from, cut);
            assert_int_equal(crc, krd_crc32c(first, bytes + from + cut, n - cut));
            assert_int_equal(crc, krd_crc32c_software(first, bytes + from + cut, n - cut));
        }
    }
}

static void random_numbers_are_those_of_xoshiro(void **state)
{
    (void)state;
    /* The authors' own code, from the state 1, 2, 3, 4. */
    struct krd_rand r = {{1, 2, 3, 4}}, again;
    assert_true(krd_rand_u64(&r) == 11520);
    assert_true(krd_rand_u64(&r) == 0);
    assert_true(krd_rand_u64(&r) == 1509978240);
    assert_true(krd_rand_u64(&r) == 1215971899390074240ull);
    krd_rand_seed(&r, 5);
    krd_rand_seed(&again, 5);
    for (int i = 0; i < 100; i++)
        assert_true(krd_rand_u64(&r) == krd_rand_u64(&again));
    krd_rand_seed(&again, 6);
    assert_true(krd_rand_u64(&r) != krd_rand_u64(&again));
}

static void random_numbers_below_n_reach_all_and_nothing_else(void **state)
{
    (void)state;
    struct krd_rand r;
    krd_rand_seed(&r, 0);
    for (uint64_t n = 1; n <= 20; n++) {
        unsigned seen[20] = {0};
        for (int i = 0; i < 2000; i++) {
            uint64_t v = krd_rand_below(&r, n);
            assert_true(v < n);
            seen[v]++;
        }
        for (uint64_t v = 0; v < n; v++)
            assert_true(seen[v] > 1000 / n);
    }
    assert_true(krd_rand_below(&r, UINT64_MAX) < UINT64_MAX);
    uint8_t a[32] = {0}, b[32] = {0};
    krd_random_bytes(a, sizeof a);
    krd_random_bytes(b, sizeof b);
    assert_memory_not_equal(a, b, sizeof a);
}

static void monotonic_time_does_not_go_back(void **state)
{
    (void)state;
    uint64_t last = krd_mono_ns();
    for (int i = 0; i < 1000; i++) {
        uint64_t now = krd_mono_ns();
        assert_true(now >= last);
        last = now;
    }
    assert_true(krd_wall_ms() > 1600000000000ull); /* after 2020, in milliseconds */
}

/* --- Mailbox --------------------------------------------------------------------------------- */

struct letter {
    struct krd_mail mail; /* first */
    unsigned from, number;
};

static bool readable(int fd)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};
    return poll(&p, 1, 0) == 1;
}

static void mail_comes_in_order_and_wakes_once_a_burst(void **state)
{
    (void)state;
    struct krd_mailbox b;
    struct letter l[100];
    assert_int_equal(krd_mailbox_init(&b), KRD_OK);
    assert_null(krd_mailbox_take(&b));
    assert_false(readable(b.fd));
    for (int round = 0; round < 3; round++) {
        for (unsigned i = 0; i < 100; i++) {
            l[i].number = i;
            krd_mailbox_put(&b, &l[i].mail);
        }
        assert_true(readable(b.fd));
        if (round == 2) {
            uint64_t wakes;
            assert_int_equal(read(b.fd, &wakes, sizeof wakes), sizeof wakes);
            assert_int_equal(wakes, 1);
        }
        unsigned n = 0;
        for (struct krd_mail *m = krd_mailbox_take(&b); m != NULL; m = m->next)
            assert_int_equal(((struct letter *)m)->number, n++);
        assert_int_equal(n, 100);
        assert_null(krd_mailbox_take(&b));
        assert_false(readable(b.fd));
    }
    krd_mailbox_deinit(&b);
}

static void waiting_ends_with_mail_or_with_time(void **state)
{
    (void)state;
    struct krd_mailbox b;
    struct letter l;
    assert_int_equal(krd_mailbox_init(&b), KRD_OK);
    uint64_t start = krd_mono_ms();
    krd_mailbox_wait(&b, 20);
    assert_true(krd_mono_ms() - start >= 19);
    krd_mailbox_put(&b, &l.mail);
    krd_mailbox_wait(&b, -1); /* for ever, but for the mail */
    assert_ptr_equal(krd_mailbox_take(&b), &l.mail);
    krd_mailbox_deinit(&b);
}

enum { SENDERS = 4, LETTERS = 30000 };

struct sender {
    struct krd_mailbox *to;
    unsigned number;
    struct letter *letters;
};

static void *send_letters(void *arg)
{
    struct sender *s = arg;
    for (unsigned i = 0; i < LETTERS; i++) {
        s->letters[i].from = s->number;
        s->letters[i].number = i;
        krd_mailbox_put(s->to, &s->letters[i].mail);
        if (i % 64 == 0)
            sched_yield(); /* so that the owner often finds it empty */
    }
    return NULL;
}

static void many_producers_lose_nothing_and_keep_their_order(void **state)
{
    (void)state;
    struct krd_mailbox b;
    struct sender s[SENDERS];
    pthread_t threads[SENDERS];
    unsigned next[SENDERS] = {0}, got = 0;
    assert_int_equal(krd_mailbox_init(&b), KRD_OK);
    for (unsigned i = 0; i < SENDERS; i++) {
        s[i] = (struct sender){&b, i, krd_calloc(LETTERS, sizeof(struct letter))};
        assert_int_equal(pthread_create(&threads[i], NULL, send_letters, &s[i]), 0);
    }
    while (got < SENDERS * LETTERS) {
        uint64_t start = krd_mono_ms();
        krd_mailbox_wait(&b, 10000);
        assert_true(krd_mono_ms() - start < 10000); /* no wake-up was lost */
        for (struct krd_mail *m = krd_mailbox_take(&b); m != NULL; m = m->next, got++) {
            struct letter *l = (struct letter *)m;
            assert_int_equal(l->number, next[l->from]++);
        }
    }
    for (unsigned i = 0; i < SENDERS; i++) {
        pthread_join(threads[i], NULL);
        krd_free(s[i].letters);
    }
    assert_null(krd_mailbox_take(&b));
    krd_mailbox_deinit(&b);
}

/* --- Loop
 * ---------------------------------------------------------------------------------------------------
 */

struct bell {
    struct krd_io io; /* first */
    struct krd_loop *loop;
    struct bell *removes; /* when it rings */
    unsigned rang;
    uint32_t events;
};

static void on_bell(struct krd_io *io, uint32_t events)
{
    struct bell *b = (struct bell *)io;
    b->rang++;
    b->events = events;
    if (b->removes != NULL)
        krd_loop_del(b->loop, &b->removes->io);
    b->removes = NULL;
}

static struct bell bell_of(struct krd_loop *l)
{
    return (struct bell){.io = {eventfd(0, EFD_NONBLOCK), EPOLLIN, on_bell}, .loop = l};
}

static void ring(struct bell *b)
{
    uint64_t one = 1;
    assert_int_equal(write(b->io.fd, &one, sizeof one), sizeof one);
}

static void the_loop_calls_whoever_is_ready(void **state)
{
    (void)state;
    struct krd_loop l;
    assert_int_equal(krd_loop_init(&l), KRD_OK);
    struct bell a = bell_of(&l), b = bell_of(&l);
    assert_int_equal(krd_loop_add(&l, &a.io), KRD_OK);
    assert_int_equal(krd_loop_add(&l, &b.io), KRD_OK);
    assert_int_equal(krd_loop_run(&l, 0), 0);
    ring(&a);
    assert_int_equal(krd_loop_run(&l, -1), 1);
    assert_int_equal(a.rang, 1);
    assert_int_equal(a.events, EPOLLIN);
    assert_int_equal(b.rang, 0);
    krd_loop_mod(&l, &a.io, 0); /* still readable, but nobody asks */
    assert_int_equal(krd_loop_run(&l, 0), 0);
    krd_loop_mod(&l, &a.io, EPOLLIN | EPOLLOUT);
    assert_int_equal(krd_loop_run(&l, 0), 1);
    assert_int_equal(a.events, EPOLLIN | EPOLLOUT);
    krd_loop_del(&l, &a.io);
    assert_int_equal(krd_loop_run(&l, 0), 0);
    assert_int_not_equal(krd_loop_add(&l, &b.io), KRD_OK); /* it is there already */
    close(a.io.fd);
    close(b.io.fd);
    krd_loop_deinit(&l);
}

static void whoever_was_removed_is_not_called_any_more(void **state)
{
    (void)state;
    struct krd_loop l;
    assert_int_equal(krd_loop_init(&l), KRD_OK);
    struct bell a = bell_of(&l), b = bell_of(&l);
    a.removes = &b; /* whichever comes first removes the other */
    b.removes = &a;
    assert_int_equal(krd_loop_add(&l, &a.io), KRD_OK);
    assert_int_equal(krd_loop_add(&l, &b.io), KRD_OK);
    ring(&a);
    ring(&b);
    assert_int_equal(krd_loop_run(&l, 0), 2);
    assert_int_equal(a.rang + b.rang, 1);
    struct bell *left = a.rang == 1 ? &a : &b;
    left->removes = left; /* itself */
    assert_int_equal(krd_loop_run(&l, 0), 1);
    assert_int_equal(krd_loop_run(&l, 0), 0);
    close(a.io.fd);
    close(b.io.fd);
    krd_loop_deinit(&l);
}

static void a_hundred_ready_at_once_are_all_served(void **state)
{
    (void)state;
    struct krd_loop l;
    struct bell b[100];
    assert_int_equal(krd_loop_init(&l), KRD_OK);
    for (int i = 0; i < 100; i++) {
        b[i] = bell_of(&l);
        assert_int_equal(krd_loop_add(&l, &b[i].io), KRD_OK);
        ring(&b[i]);
    }
    assert_true(krd_loop_run(&l, 0) > 0);
    assert_true(krd_loop_run(&l, 0) > 0); /* those that did not fit come first now */
    for (int i = 0; i < 100; i++) {
        assert_true(b[i].rang > 0);
        close(b[i].io.fd);
    }
    krd_loop_deinit(&l);
}

/* --- The log
 * -------------------------------------------------------------------------------------------------
 */

/* Standard error goes into a pipe until capture_end. */
static int saved_stderr, capture_fd;

static void capture(void)
{
    int fds[2];
    assert_int_equal(pipe(fds), 0);
    saved_stderr = dup(STDERR_FILENO);
    dup2(fds[1], STDERR_FILENO);
    close(fds[1]);
    capture_fd = fds[0];
}

static void capture_end(void)
{
    dup2(saved_stderr, STDERR_FILENO);
    close(saved_stderr);
    close(capture_fd);
}

/* Adds what is there, waiting up to timeout_ms for a first byte. False: nothing came. */
static bool read_more(struct krd_buf *b, int timeout_ms)
{
    struct pollfd p = {.fd = capture_fd, .events = POLLIN};
    if (poll(&p, 1, timeout_ms) != 1)
        return false;
    krd_buf_reserve(b, 65537);
    ssize_t n = read(capture_fd, b->ptr + b->len, 65536);
    assert_true(n >= 0);
    b->len += (size_t)n;
    b->ptr[b->len] = '\0';
    return n > 0;
}

static unsigned count_of(const struct krd_buf *b, const char *text)
{
    unsigned n = 0;
    if (b->len == 0)
        return 0;
    for (const char *at = (const char *)b->ptr; (at = strstr(at, text)) != NULL; at++)
        n++;
    return n;
}

static void line(enum krd_log_level level, const char *msg, const char *pairs)
{
    struct krd_log_site site = {0}; /* a new one each time: no limit */
    if (krd_log_enabled(level))
        krd_log_line(&site, level, msg, "%s", pairs);
}

static void log_lines_are_logfmt(void **state)
{
    (void)state;
    struct krd_buf out = KRD_BUF_INIT;
    capture();
    krd_log_start(KRD_LOG_INFO, KRD_LOG_LOGFMT, "n1");
    krd_info("election won", "term=%d votes=%d", 4, 2);
    krd_debug("not seen", "%s", "");
    line(KRD_LOG_WARN, "bare \"quoted\"", "");
    line(KRD_LOG_ERROR, "tricks", "a=\"x\ny\x1b[31m\"");
    krd_log_stop();
    krd_log_stop();
    while (read_more(&out, 0))
        ;
    capture_end();
    char *s = (char *)out.ptr;
    assert_int_equal(count_of(&out, "\n"), 3);
    int year, ms;
    assert_int_equal(sscanf(s, "ts=%4d-%*2d-%*2dT%*2d:%*2d:%*2d.%3dZ ", &year, &ms), 2);
    assert_non_null(strstr(s, "Z level=info node=n1 msg=\"election won\" term=4 votes=2\n"));
    assert_non_null(strstr(s, "Z level=warn node=n1 msg=\"bare \\\"quoted\\\"\"\n"));
    assert_non_null(strstr(s, "Z level=error node=n1 msg=\"tricks\" a=\"x y [31m\"\n"));
    assert_null(strstr(s, "not seen"));
    krd_buf_deinit(&out);
}

static void log_lines_are_json_whatever_is_in_them(void **state)
{
    (void)state;
    struct krd_buf out = KRD_BUF_INIT;
    static const char *const pairs[] = {
        "",
        "a=1 b=x c=\"d e\" id=007 big=18446744073709551615 neg=-5",
        "path=\"C:\\dir\\u12\" q=\"say \\\"hi\\\"\" t=\"a\tb\"",
        "cut=\"ends with an escape\\\"",
        "cut=\"ends with\\",
        "bad=\"quote \"inside\" of\" it=1",
        "bytes=\"\xff\xc3\x28\xed\xa0\x80\" utf8=\"gr\xc3\xbc\xc3\x9f \xf0\x9f\x90\x9e\"",
        "novalue = =x k= \x01=\x02",
        "\"a\"=\"b\"",
    };
    capture();
    krd_log_start(KRD_LOG_DEBUG, KRD_LOG_JSON, "n\"1");
    for (size_t i = 0; i < KRD_ARRAY_LEN(pairs); i++)
        line(KRD_LOG_INFO, "a \\ \"message\" \xfe\n", pairs[i]);
    krd_log_stop();
    while (read_more(&out, 0))
        ;
    capture_end();
    char *at = (char *)out.ptr;
    for (size_t i = 0; i < KRD_ARRAY_LEN(pairs); i++) {
        char *end = strchr(at, '\n');
        json_error_t error;
        json_t *o = json_loadb(at, (size_t)(end - at), 0, &error);
        if (o == NULL)
            fail_msg("%s: %.*s", error.text, (int)(end - at), at);
        assert_string_equal(json_string_value(json_object_get(o, "node")), "n\"1");
        assert_string_equal(json_string_value(json_object_get(o, "msg")),
                            "a \\ \"message\" \xef\xbf\xbd\n");
        if (i == 1) {
            assert_int_equal(json_integer_value(json_object_get(o, "a")), 1);
            assert_string_equal(json_string_value(json_object_get(o, "c")), "d e");
            assert_string_equal(json_string_value(json_object_get(o, "id")), "007");
        }
        if (i == 2) {
            assert_string_equal(json_string_value(json_object_get(o, "path")), "C:\\dir\\u12");
            assert_string_equal(json_string_value(json_object_get(o, "q")), "say \"hi\"");
        }
        if (i == 6)
            assert_string_equal(json_string_value(json_object_get(o, "utf8")),
                                "gr\xc3\xbc\xc3\x9f \xf0\x9f\x90\x9e");
        json_decref(o);
        at = end + 1;
    }
    krd_buf_deinit(&out);
}

static void one_call_site_is_limited_and_says_so_later(void **state)
{
    (void)state;
    struct krd_log_site site = {0};
    struct krd_buf out = KRD_BUF_INIT;
    capture();
    krd_log_start(KRD_LOG_INFO, KRD_LOG_LOGFMT, "n1");
    uint64_t second = krd_mono_ms() / 1000;
    for (int i = 0; i < 1000; i++)
        krd_log_line(&site, KRD_LOG_INFO, "again", "i=%d", i);
    bool one_second = krd_mono_ms() / 1000 == second;
    while (count_of(&out, "suppressed=") == 0) { /* until the next second's first line */
        krd_log_line(&site, KRD_LOG_INFO, "again", "i=%d", -1);
        read_more(&out, 1);
        assert_true(krd_mono_ms() / 1000 < second + 10);
    }
    krd_log_stop();
    assert_true(count_of(&out, "i=-1") <= 10);
    assert_true(count_of(&out, "again") - count_of(&out, "i=-1") <= (one_second ? 10u : 20u));
    capture_end();
    krd_buf_deinit(&out);
}

static void a_reader_that_does_not_read_delays_nobody(void **state)
{
    (void)state;
    enum { LINES = 3000 };
    char pairs[1000];
    struct krd_buf out = KRD_BUF_INIT;
    memset(pairs, 'x', sizeof pairs);
    memcpy(pairs, "flood=", 6);
    pairs[sizeof pairs - 1] = '\0';
    capture();
    krd_log_start(KRD_LOG_INFO, KRD_LOG_LOGFMT, "n1");
    uint64_t start = krd_mono_ms();
    for (int i = 0; i < LINES; i++) /* 3 MB: the pipe and the queue are full long before */
        line(KRD_LOG_INFO, "line", pairs);
    assert_true(krd_mono_ms() - start < 5000);
    while (count_of(&out, "log lines dropped") == 0)
        assert_true(read_more(&out, 10000));
    krd_log_stop();
    while (read_more(&out, 0))
        ;
    capture_end();
    /* Said once or more often, depending on how far the writer was when the queue filled again. */
    unsigned lines = 0, some;
    krd_buf_put_u8(&out, '\0');
    for (const char *at = (char *)out.ptr; (at = strstr(at, "lines=")) != NULL; at++) {
        assert_int_equal(sscanf(at, "lines=%u", &some), 1);
        assert_true(some > 0);
        lines += some;
    }
    assert_true(lines > 0);
    assert_int_equal(count_of(&out, "flood=") + lines, LINES);
    krd_buf_deinit(&out);
}

static void stopping_does_not_wait_for_ever_for_the_reader(void **state)
{
    (void)state;
    char pairs[4000];
    memset(pairs, 'x', sizeof pairs);
    pairs[sizeof pairs - 1] = '\0';
    capture();
    krd_log_start(KRD_LOG_INFO, KRD_LOG_LOGFMT, "n1");
    for (int i = 0; i < 100; i++)
        line(KRD_LOG_INFO, "line", pairs);
    krd_log_stop();
    capture_end();
}

/* --- Ends
 * ------------------------------------------------------------------------------------------------------
 */

/* Runs fn in a child with standard error captured; returns wait's status and what was said. */
static int in_child(void (*fn)(void), struct krd_buf *said)
{
    capture();
    pid_t child = fork();
    if (child == 0) {
        fn();
        _exit(0);
    }
    dup2(saved_stderr, STDERR_FILENO);
    while (read_more(said, 20000))
        ;
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    close(saved_stderr);
    close(capture_fd);
    return status;
}

static void die_fatally(void)
{
    krd_log_start(KRD_LOG_INFO, KRD_LOG_LOGFMT, "n1");
    krd_info("before", "%s", "");
    krd_fatal("reason=\"disk on fire\" where=%s", "/data");
}

static void fail_an_assert(void)
{
    signal(SIGABRT, SIG_DFL);
    KRD_ASSERT(1 + 1 == 3);
}

/* Nobody reads the last words. */
static void die_unheard(void)
{
    int fds[2];
    char block[4096] = {0};
    if (pipe(fds) != 0 || fcntl(fds[1], F_SETFL, O_NONBLOCK) != 0)
        _exit(1);
    while (write(fds[1], block, sizeof block) > 0)
        ;
    fcntl(fds[1], F_SETFL, 0);
    dup2(fds[1], STDERR_FILENO);
    krd_log_start(KRD_LOG_INFO, KRD_LOG_LOGFMT, "n1");
    for (int i = 0; i < 100; i++)
        line(KRD_LOG_INFO, "line", block);
    krd_fatal("reason=\"disk on fire\"");
}

static void fatal_says_why_after_all_else_and_exits_with_70(void **state)
{
    (void)state;
    struct krd_buf said = KRD_BUF_INIT;
    int status = in_child(die_fatally, &said);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 70);
    char *why = strstr((char *)said.ptr, "reason=\"disk on fire\" where=/data\n");
    assert_non_null(why);
    char *before = strstr((char *)said.ptr, "msg=\"before\"");
    assert_non_null(before);
    krd_buf_deinit(&said);
}

static void a_failed_assert_says_where_and_aborts(void **state)
{
    (void)state;
    struct krd_buf said = KRD_BUF_INIT;
    int status = in_child(fail_an_assert, &said);
    assert_true(WIFSIGNALED(status));
    assert_int_equal(WTERMSIG(status), SIGABRT);
    assert_non_null(strstr((char *)said.ptr, "1 + 1 == 3"));
    assert_non_null(strstr((char *)said.ptr, "test_base.c"));
    assert_non_null(strstr((char *)said.ptr, "in=fail_an_assert"));
    krd_buf_deinit(&said);
}

static void fatal_ends_the_process_though_nobody_reads(void **state)
{
    (void)state;
    struct krd_buf said = KRD_BUF_INIT;
    int status = in_child(die_unheard, &said);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 70);
    krd_buf_deinit(&said);
}

/* --- Files
 * -------------------------------------------------------------------------------------------------------
 */

static void a_file_is_replaced_whole(void **state)
{
    (void)state;
    const struct krd_vfs *v = krd_vfs_posix();
    char dir[] = "/tmp/krd-base-XXXXXX";
    assert_non_null(mkdtemp(dir));
    char *path = krd_asprintf("%s/f", dir), *tmp = krd_asprintf("%s/f.tmp", dir);
    uint8_t *p;
    size_t n;
    assert_int_equal(krd_vfs_read_file(v, path, 100, &p, &n), -ENOENT);
    for (size_t len = 90; len <= 90; len -= 45) { /* shorter and shorter */
        char text[90];
        memset(text, 'a' + (int)(len / 45), sizeof text);
        assert_int_equal(krd_vfs_write_file_atomic(v, dir, "f", text, len), 0);
        assert_int_equal(krd_vfs_read_file(v, path, 100, &p, &n), 0);
        assert_int_equal(n, len);
        assert_memory_equal(p, text, len);
        krd_free(p);
    }
    assert_int_equal(access(tmp, F_OK), -1);
    assert_int_equal(krd_vfs_write_file_atomic(v, dir, "f", "abc", 3), 0);
    assert_int_equal(krd_vfs_read_file(v, path, 2, &p, &n), -EFBIG);
    assert_int_equal(krd_vfs_write_file_atomic(v, "/nonexistent", "f", "abc", 3), -ENOENT);
    unlink(path);
    rmdir(dir);
    krd_free(path);
    krd_free(tmp);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_status_has_a_code_a_text_and_an_http_status),
        cmocka_unit_test(slices_are_ordered_as_keys),
        cmocka_unit_test(integers_lie_in_bytes_as_their_names_say),
        cmocka_unit_test(growing_keeps_what_was_there),
        cmocka_unit_test(a_reader_reads_what_a_buffer_wrote),
        cmocka_unit_test(a_reader_that_ran_out_stays_bad),
        cmocka_unit_test(digits_are_those_of_printf),
        cmocka_unit_test(printf_into_a_buffer_grows_it),
        cmocka_unit_test(arena_memory_is_aligned_and_apart),
        cmocka_unit_test(an_arena_keeps_a_chunk_but_no_giant),
        cmocka_unit_test(a_blob_lives_until_the_last_thread_lets_go),
        cmocka_unit_test(crc32c_has_the_published_values),
        cmocka_unit_test(crc32c_in_hardware_in_software_and_in_pieces_is_one),
        cmocka_unit_test(random_numbers_are_those_of_xoshiro),
        cmocka_unit_test(random_numbers_below_n_reach_all_and_nothing_else),
        cmocka_unit_test(monotonic_time_does_not_go_back),
        cmocka_unit_test(mail_comes_in_order_and_wakes_once_a_burst),
        cmocka_unit_test(waiting_ends_with_mail_or_with_time),
        cmocka_unit_test(many_producers_lose_nothing_and_keep_their_order),
        cmocka_unit_test(the_loop_calls_whoever_is_ready),
        cmocka_unit_test(whoever_was_removed_is_not_called_any_more),
        cmocka_unit_test(a_hundred_ready_at_once_are_all_served),
        cmocka_unit_test(log_lines_are_logfmt),
        cmocka_unit_test(log_lines_are_json_whatever_is_in_them),
        cmocka_unit_test(one_call_site_is_limited_and_says_so_later),
        cmocka_unit_test(a_reader_that_does_not_read_delays_nobody),
        cmocka_unit_test(stopping_does_not_wait_for_ever_for_the_reader),
        cmocka_unit_test(fatal_says_why_after_all_else_and_exits_with_70),
        cmocka_unit_test(a_failed_assert_says_where_and_aborts),
        cmocka_unit_test(fatal_ends_the_process_though_nobody_reads),
        cmocka_unit_test(a_file_is_replaced_whole),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
