/* test_wal_crash.c - what the log is after power failed, and after bytes rotted.
 *
 * Two different questions. A crash image holds any subset of what was not synced, one sector of it
 * perhaps torn: recovery must succeed and yield what was acknowledged, or that and the batch in
 * flight, whole. Damage changes bytes that were synced: recovery must refuse, unless the damage
 * cannot be told from a crash of the very last batch, or is in unused space.
 *
 * Everything runs on a disk in memory. The program prints how many images it judged. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "base/log.h"
#include "base/rand.h"
#include "raft/wal_internal.h"
#include "tests/unit/simdisk.h"
#include "tests/unit/wal_model.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

/* Under a sanitizer everything takes ten times as long, and a sample finds what it can find. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED 1
#endif
#endif
#ifdef SANITIZED
enum { BYTE_STRIDE = 29, SAMPLES = 12, SUBSETS_UP_TO = 5 };
#else
enum { BYTE_STRIDE = 1, SAMPLES = 60, SUBSETS_UP_TO = 10 };
#endif

enum { PENDING_MAX = 512 };

static struct wal_options options_on(struct simdisk *d, uint64_t segment_bytes)
{
    return (struct wal_options){.vfs = simdisk_vfs(d),
                                .dir = "log",
                                .cluster_id = 0x1111,
                                .member_id = 0x22,
                                .segment_bytes = segment_bytes};
}

static void segment_path(uint64_t number, char out[40])
{
    snprintf(out, 40, "log/%016u.wal", (unsigned)number);
}

static struct wal *open_new(struct simdisk *d, uint64_t segment_bytes)
{
    struct wal_options o = options_on(d, segment_bytes);
    struct wal_recovered rec;
    struct wal *w;
    char *err = NULL;
    if (wal_open(&o, 0, &w, &rec, &err) != KRD_OK)
        fail_msg("%s", err);
    wal_recovered_deinit(&rec);
    return w;
}

/* --- The table ---------------------------------------------------------------------------- */

static void every_combination_has_its_verdict(void **state)
{
    (void)state;
    /* Written down again, combination by combination: Accept, End, Cut, or - corrupt.
     * Columns: whole, missing, damaged; without later frames, then with. */
    static const char *expected[WAL_FIRST_COUNT] = {
        [WAL_FIRST_VALID] = "AC-A--", [WAL_FIRST_ZERO] = "ECE---",    [WAL_FIRST_TORN] = "CCC---",
        [WAL_FIRST_SPECK] = "E-E---", [WAL_FIRST_GARBAGE] = "------",
    };
    static const char letters[] = {
        [WAL_ACCEPT] = 'A', [WAL_END] = 'E', [WAL_CUT] = 'C', [WAL_CORRUPT] = '-'};
    for (int later = 0; later <= 1; later++)
        for (int first = 0; first < WAL_FIRST_COUNT; first++)
            for (int rest = 0; rest < WAL_REST_COUNT; rest++)
                assert_int_equal(letters[wal_judge(first, rest, later)],
                                 expected[first][later * WAL_REST_COUNT + rest]);
}

/* --- Damage at rest ----------------------------------------------------------------------- */

/* A complete, synced log of two segments, and what recovery may make of it. */
struct reference {
    struct simdisk *pristine, *disk;
    struct wal_options options;
    uint64_t segment_bytes;
    uint64_t end[3];     /* of the frames in segment 1 and 2 */
    uint64_t last_frame; /* where the last frame of segment 2 begins */
    struct model whole, before_last;
    struct {
        uint64_t end;
        struct model m;
    } steps[200]; /* frames of segment 2, and what the log was after each */
    size_t n_steps;
    uint64_t judged;
};

static int count_writes(void *arg, enum simdisk_op op, const char *path)
{
    (void)path;
    if (op != SIMDISK_OPEN && op != SIMDISK_READ && op != SIMDISK_LIST)
        ++*(unsigned *)arg;
    return 0;
}

/* After each batch: where it ended, if it is in the second segment. */
static void note_step(struct reference *r, const struct wal *w, const struct model *m)
{
    const struct wal_segment *s = &w->map.segments[w->map.n_segments - 1];
    r->end[s->number] = s->end;
    if (s->number == 2 && r->n_steps == 0) /* the log as it was when segment 2 began */
        r->steps[r->n_steps++].end = s->end - w->sync_bytes;
    if (s->number == 1)
        r->steps[0].m = *m;
    if (s->number != 2)
        return;
    KRD_ASSERT(r->n_steps < KRD_ARRAY_LEN(r->steps));
    r->steps[r->n_steps].end = s->end;
    r->steps[r->n_steps++].m = *m;
}

static void build_reference(struct reference *r, uint64_t segment_bytes, bool marked)
{
    struct model *m = &r->whole;
    r->segment_bytes = segment_bytes;
    r->disk = simdisk_create();
    r->pristine = simdisk_create();
    r->options = options_on(r->disk, segment_bytes);
    struct wal *w = open_new(r->disk, segment_bytes);
    struct raft_write wr = model_config_entry(m, 1, 1);
    model_hard_state(m, &wr, 1, 1, 0);
    wal_append(w, &wr, 1);
    model_write_deinit(&wr);
    struct krd_rand rng;
    krd_rand_seed(&rng, 7);
    while (w->map.n_segments < 2 || wal_map_current(&w->map)->end < segment_bytes - 8192) {
        raft_index first = m->last + 1;
        bool conflict = krd_rand_below(&rng, 10) == 0 && first > m->hs.commit + 3;
        if (conflict)
            first -= 2;
        static const uint32_t lengths[] = {0, 10, 200, 376, 900, 3000};
        size_t n = 1 + krd_rand_below(&rng, 3);
        uint32_t length = lengths[krd_rand_below(&rng, KRD_ARRAY_LEN(lengths))];
        model_append(m, w, first, n, m->hs.term + conflict, length);
        note_step(r, w, m);
        if (krd_rand_below(&rng, 4) == 0) {
            wr = (struct raft_write){0};
            model_hard_state(m, &wr, m->hs.term, m->hs.vote, m->last);
            wal_append(w, &wr, 1);
            note_step(r, w, m);
        }
    }
    r->before_last = *m;
    r->last_frame = wal_map_current(&w->map)->end;
    if (marked)
        wal_mark(w);
    else
        model_append(m, w, m->last + 1, 2, m->hs.term + 1, 700);
    note_step(r, w, m);
    assert_int_equal(w->map.n_segments, 2);
    assert_true(r->end[2] + 2048 < segment_bytes);
    wal_close(w);
    simdisk_copy(r->pristine, r->disk);
}

static void reference_destroy(struct reference *r)
{
    simdisk_destroy(r->disk);
    simdisk_destroy(r->pristine);
    krd_free(r);
}

/* What an image may become, as bits. */
enum { WHOLE = 1, SHORTER = 2, REFUSED = 4, PREFIX = 8 };

static void append_and_reopen(struct simdisk *d, struct wal *w, const struct model *was);

/* Opens what is on r->disk and puts the disk back as it was; which outcome it is. */
static int outcome(struct reference *r, const struct model *prefix)
{
    struct wal_recovered rec;
    struct wal *w;
    char *err = NULL;
    unsigned writes = 0;
    r->judged++;
    simdisk_set_hook(r->disk, count_writes, &writes);
    enum krd_status st = wal_open(&r->options, 0, &w, &rec, &err);
    simdisk_set_hook(r->disk, NULL, NULL);
    if (st != KRD_OK) {
        assert_int_equal(st, KRD_CORRUPT);
        assert_int_equal(writes, 0); /* a refusal changes nothing */
        bool named = strstr(err, "log/000000000000000") != NULL &&
                     strstr(err, " at byte ") != NULL && strstr(err, "entries ") != NULL;
        if (!named && strstr(err, "format version") == NULL && strstr(err, "wrong name") == NULL)
            fail_msg("the sentence names no place: %s", err);
        krd_free(err);
        return REFUSED;
    }
    int result = 0;
    if (model_difference(&r->whole, &rec, 0) == NULL)
        result |= WHOLE;
    if (model_difference(&r->before_last, &rec, 0) == NULL)
        result |= SHORTER;
    if (prefix != NULL && model_difference(prefix, &rec, 0) == NULL)
        result |= PREFIX;
    if (r->judged % 16 == 0 && rec.last_index == r->whole.last)
        append_and_reopen(r->disk, w, &r->whole);
    else
        wal_close(w);
    wal_recovered_deinit(&rec);
    simdisk_copy(r->disk, r->pristine);
    return result;
}

/* What the frames of segment 2 that end at or before this byte make. */
static const struct model *model_before(const struct reference *r, uint64_t at)
{
    size_t i = 0;
    while (i + 1 < r->n_steps && r->steps[i + 1].end <= at)
        i++;
    return &r->steps[i].m;
}

/* Bytes [at, at + n) of a segment become p. */
static void expect_after_damage(struct reference *r, uint64_t segment, uint64_t at, const void *p,
                                size_t n, int allowed)
{
    char path[40];
    uint8_t before[8 * WAL_SECTOR_BYTES];
    segment_path(segment, path);
    assert_true(n <= sizeof before && simdisk_peek(r->disk, path, at, before, n));
    if (memcmp(before, p, n) == 0)
        return;
    assert_true(simdisk_poke(r->disk, path, at, p, n));
    int got = outcome(r, allowed & PREFIX ? model_before(r, at) : NULL);
    if ((got & allowed) == 0)
        fail_msg("segment %u bytes %u to %u: outcome %d, allowed %d (last frame %u to %u)",
                 (unsigned)segment, (unsigned)at, (unsigned)(at + n), got, allowed,
                 (unsigned)r->last_frame, (unsigned)r->end[2]);
    assert_true(simdisk_poke(r->disk, path, at, before, n));
}

static int byte_verdict(const struct reference *r, uint64_t segment, uint64_t at, uint8_t value)
{
    if (at >= r->end[segment])
        return WHOLE; /* unused space */
    if (segment == 1 || at < r->last_frame)
        return REFUSED;
    /* The last batch: a zero in the place of a sector's mark is how a torn sector ends. */
    return at % WAL_SECTOR_BYTES == WAL_SECTOR_BYTES - 1 && value == 0 ? SHORTER : REFUSED;
}

static void damage_every_byte(struct reference *r)
{
    char path[40];
    for (uint64_t segment = 1; segment <= 2; segment++) {
        segment_path(segment, path);
        for (uint64_t at = 0; at < r->segment_bytes; at += BYTE_STRIDE) {
            uint8_t byte, values[10] = {0x00, 0xff};
            assert_true(simdisk_peek(r->disk, path, at, &byte, 1));
            for (int bit = 0; bit < 8; bit++)
                values[2 + bit] = byte ^ (uint8_t)(1 << bit);
            for (size_t i = 0; i < sizeof values; i++)
                expect_after_damage(r, segment, at, &values[i], 1,
                                    byte_verdict(r, segment, at, values[i]));
        }
    }
}

static struct reference *reference_create(bool marked)
{
    struct reference *r = krd_zalloc(sizeof *r);
    build_reference(r, 32 * 1024, marked);
    return r;
}

static void every_damaged_byte_is_noticed(void **state)
{
    (void)state;
    struct reference *r = reference_create(false);
    damage_every_byte(r);
    print_message("%u damages judged\n", (unsigned)r->judged);
    reference_destroy(r);
}

static void behind_a_marker_no_batch_is_given_up(void **state)
{
    (void)state;
    struct reference *r = reference_create(true);
    /* Both differ in nothing but the marker, so SHORTER is WHOLE: no damage of the last real
     * batch may pass any more. */
    char path[40];
    segment_path(2, path);
    uint64_t batch = r->steps[r->n_steps - 2].end;
    uint64_t from = r->steps[r->n_steps - 3].end;
    for (uint64_t at = from; at < batch; at++) {
        uint8_t byte, zero = 0;
        assert_true(simdisk_peek(r->disk, path, at, &byte, 1));
        expect_after_damage(r, 2, at, &zero, 1, REFUSED);
        byte ^= 1;
        expect_after_damage(r, 2, at, &byte, 1, REFUSED);
    }
    for (uint64_t at = from; at < batch; at += WAL_SECTOR_BYTES) {
        static const uint8_t zeros[WAL_SECTOR_BYTES];
        expect_after_damage(r, 2, at, zeros, sizeof zeros, REFUSED);
    }
    reference_destroy(r);
}

/* A stretch of whole sectors. */
static int stretch_verdict(const struct reference *r, uint64_t segment, uint64_t at, size_t n,
                           const uint8_t *p)
{
    bool zero = wal_is_zero(p, n);
    if (at >= r->end[segment]) /* the sector behind the end may be a frame that rotted */
        return segment == 2 && at == r->end[2] && !zero ? REFUSED : WHOLE;
    /* Zeros from within a batch to the end of the log are a log that ended before. */
    if (segment == 2 && zero && at < r->last_frame && at + n >= r->end[2])
        return PREFIX;
    if (segment == 1 || at < r->last_frame)
        return REFUSED;
    return zero ? SHORTER : REFUSED;
}

static bool some_zero(const uint8_t *p, size_t n)
{
    for (size_t at = 0; at < n; at += WAL_SECTOR_BYTES)
        if (wal_is_zero(p + at, WAL_SECTOR_BYTES))
            return true;
    return false;
}

static void damage_every_stretch(struct reference *r, size_t bytes)
{
    struct krd_rand rng;
    krd_rand_seed(&rng, 11);
    uint8_t p[8 * WAL_SECTOR_BYTES];
    for (uint64_t segment = 1; segment <= 2; segment++) {
        for (uint64_t at = 0; at < r->segment_bytes; at += bytes) {
            memset(p, 0, bytes);
            expect_after_damage(r, segment, at, p, bytes,
                                stretch_verdict(r, segment, at, bytes, p));
            for (int i = 0; i < 8; i++) {
                for (size_t k = 0; k < bytes; k++)
                    p[k] = (uint8_t)krd_rand_u64(&rng);
                p[WAL_SECTOR_BYTES - 1] |= 1; /* a zero there could pass for tearing */
                expect_after_damage(r, segment, at, p, bytes,
                                    stretch_verdict(r, segment, at, bytes, p));
            }
            for (int i = 0; i < 8; i++) { /* misdirected: what should stand elsewhere */
                char path[40];
                uint64_t from = krd_rand_below(&rng, r->segment_bytes / bytes) * bytes;
                segment_path(i < 4 ? segment : 3 - segment, path);
                assert_true(simdisk_peek(r->pristine, path, from, p, bytes));
                int allowed = stretch_verdict(r, segment, at, bytes, p);
                if (segment == 2 && at + bytes >= r->end[2] && at < r->end[2] &&
                    some_zero(p, bytes))
                    allowed |= PREFIX | REFUSED; /* no witness need be left */
                expect_after_damage(r, segment, at, p, bytes, allowed);
            }
        }
    }
}

static void every_damaged_sector_is_noticed(void **state)
{
    (void)state;
    struct reference *r = reference_create(false);
    damage_every_stretch(r, WAL_SECTOR_BYTES);
    damage_every_stretch(r, 8 * WAL_SECTOR_BYTES);
    print_message("%u damages judged\n", (unsigned)r->judged);
    reference_destroy(r);
}

static void pairs_of_damages_are_noticed(void **state)
{
    (void)state;
    struct reference *r = reference_create(false);
    struct krd_rand rng;
    krd_rand_seed(&rng, 13);
    for (int i = 0; i < 1000 * SAMPLES; i++) {
        bool acknowledged = false, last = false;
        for (int k = 0; k < 2; k++) {
            char path[40];
            uint64_t segment = 1 + krd_rand_below(&rng, 2);
            uint64_t at = krd_rand_below(&rng, r->segment_bytes);
            if (krd_rand_below(&rng, 2) == 0) { /* near the end, where it is delicate */
                segment = 2;
                at = r->last_frame - 512 + krd_rand_below(&rng, 4096);
            }
            size_t n = krd_rand_below(&rng, 2) == 0 ? 1 : WAL_SECTOR_BYTES;
            at -= n > 1 ? at % n : 0;
            uint8_t p[WAL_SECTOR_BYTES], before[WAL_SECTOR_BYTES];
            uint8_t fill = krd_rand_below(&rng, 3) == 0 ? 0 : (uint8_t)krd_rand_u64(&rng);
            memset(p, fill, n);
            segment_path(segment, path);
            assert_true(simdisk_peek(r->disk, path, at, before, n));
            assert_true(simdisk_poke(r->disk, path, at, p, n));
            if (memcmp(before, p, n) == 0)
                continue;
            bool used = at < r->end[segment];
            acknowledged |= used && (segment == 1 || at < r->last_frame);
            last |= used && segment == 2 && at >= r->last_frame;
        }
        /* Never a silent loss: refused if anything before the last batch is hit. */
        int allowed = acknowledged ? REFUSED : REFUSED | WHOLE | (last ? SHORTER : 0);
        int got = outcome(r, NULL);
        if ((got & allowed) == 0)
            fail_msg("pair %d: outcome %d, allowed %d", i, got, allowed);
        simdisk_copy(r->disk, r->pristine);
    }
    reference_destroy(r);
}

/* A shorter file is never what a crash leaves: its length was durable before its name was. */
static void every_byte_cut_is_noticed(void **state)
{
    (void)state;
    struct reference *r = reference_create(false);
    char path[40];
    for (uint64_t segment = 1; segment <= 2; segment++) {
        segment_path(segment, path);
        for (uint64_t len = r->segment_bytes; len > BYTE_STRIDE; len -= BYTE_STRIDE) {
            assert_true(simdisk_shorten(r->disk, path, len - 1));
            assert_int_equal(outcome(r, NULL), REFUSED);
        }
        assert_true(simdisk_shorten(r->disk, path, 0));
        assert_int_equal(outcome(r, NULL), REFUSED);
        simdisk_copy(r->disk, r->pristine);
    }
    reference_destroy(r);
}

/* Everything from a byte on is zero, as if it had never been written. In the last segment that is
 * a log that ends earlier; in an older one it is damage. */
static void every_zeroed_tail_ends_the_log_at_a_batch(void **state)
{
    (void)state;
    struct reference *r = reference_create(false);
    static const uint8_t zeros[32 * 1024];
    char path[40];
    for (uint64_t segment = 1; segment <= 2; segment++) {
        segment_path(segment, path);
        uint64_t opening = r->steps[0].end;
        for (uint64_t at = segment == 2 ? opening : 0; at < r->segment_bytes; at += BYTE_STRIDE) {
            assert_true(simdisk_poke(r->disk, path, at, zeros, r->segment_bytes - at));
            const struct model *m = &r->whole;
            if (segment == 2)
                m = model_before(r, at);
            int want = segment == 1 && at < r->end[1] ? REFUSED : PREFIX;
            int got = outcome(r, m);
            if ((got & want) == 0)
                fail_msg("segment %u zero from %u on: outcome %d", (unsigned)segment, (unsigned)at,
                         got);
            simdisk_copy(r->disk, r->pristine);
        }
    }
    for (uint64_t at = 0; at < 512; at++) { /* a segment's opening was durable before its name */
        assert_true(simdisk_poke(r->disk, path, at, zeros, r->segment_bytes - at));
        assert_int_equal(outcome(r, NULL), REFUSED);
        simdisk_copy(r->disk, r->pristine);
    }
    reference_destroy(r);
}

/* --- Crash images ------------------------------------------------------------------------- */

struct lab {
    struct simdisk *disk;                    /* the workload runs here */
    struct simdisk *image, *image2, *image3; /* scratch */
    uint64_t segment_bytes;
    struct model acked, next; /* what must be there; what may be there whole */
    struct krd_rand rng;
    uint64_t images, recoveries;
    /* The recovery that is being interrupted. */
    const struct model *decided;
    unsigned depth;
};

static enum krd_status open_image(struct lab *lab, struct simdisk *d, struct wal **w,
                                  struct wal_recovered *rec)
{
    struct wal_options o = options_on(d, lab->segment_bytes);
    char *err = NULL;
    lab->recoveries++;
    enum krd_status st = wal_open(&o, 0, w, rec, &err);
    if (st != KRD_OK)
        fail_msg("a crash image was refused: %s", err);
    return st;
}

/* Recovers d and says which of the two it is; *w stays open. */
static const struct model *recover_image(struct lab *lab, struct simdisk *d, struct wal **w)
{
    struct wal_recovered rec;
    open_image(lab, d, w, &rec);
    const struct model *m = &lab->acked;
    const char *why = model_difference(m, &rec, 0);
    if (why != NULL) {
        m = &lab->next;
        const char *why_not_next = model_difference(m, &rec, 0);
        if (why_not_next != NULL) {
            why = model_difference(&lab->acked, &rec, 0);
            fail_msg("neither what was acknowledged nor that and the batch in flight: %s", why);
        }
    }
    wal_recovered_deinit(&rec);
    return m;
}

static void expect_exactly(struct lab *lab, struct simdisk *d, const struct model *m)
{
    struct wal *w;
    struct wal_recovered rec;
    open_image(lab, d, &w, &rec);
    const char *why = model_difference(m, &rec, 0);
    if (why != NULL)
        fail_msg("recovered twice, differently: %s", why);
    wal_recovered_deinit(&rec);
    wal_close(w);
}

/* After any recovery the log must take more, and keep it. Closes w. */
static void append_and_reopen(struct simdisk *d, struct wal *w, const struct model *was)
{
    static struct model m; /* large */
    struct wal_options o = options_on(d, w->segment_bytes);
    m = *was;
    model_append(&m, w, m.last + 1, 2, m.hs.term + 1, 30);
    model_append(&m, w, m.last + 1, 1, m.hs.term, 1500);
    wal_close(w);
    struct wal_recovered rec;
    char *err = NULL;
    if (wal_open(&o, 0, &w, &rec, &err) != KRD_OK)
        fail_msg("after recovery and more appends: %s", err);
    const char *why = model_difference(&m, &rec, 0);
    if (why != NULL)
        fail_msg("after recovery and more appends: %s", why);
    assert_false(rec.torn_tail);
    wal_recovered_deinit(&rec);
    wal_close(w);
}

static void random_keep(struct lab *lab, uint8_t *keep, size_t n)
{
    uint64_t odds = 1 + krd_rand_below(&lab->rng, 9);
    for (size_t i = 0; i < n; i++)
        keep[i] = krd_rand_below(&lab->rng, 10) < odds;
}

static void crash_at_random(struct lab *lab, struct simdisk *d)
{
    uint8_t keep[PENDING_MAX];
    size_t n = simdisk_pending(d);
    assert_true(n <= PENDING_MAX);
    random_keep(lab, keep, n);
    size_t torn = n > 0 ? krd_rand_below(&lab->rng, n) : SIMDISK_NOT_TORN;
    simdisk_crash(d, keep, torn, krd_rand_below(&lab->rng, WAL_SECTOR_BYTES + 1));
}

/* At each call of a recovery: power fails here. What the next recovery finds must be what the
 * first one would have found. */
static int interrupt(void *arg, enum simdisk_op op, const char *path)
{
    struct lab *lab = arg;
    (void)path;
    if (op == SIMDISK_OPEN || op == SIMDISK_READ || op == SIMDISK_LIST)
        return 0;
    for (int i = 0; i < 2; i++) {
        simdisk_copy(lab->image3, lab->image2);
        crash_at_random(lab, lab->image3);
        expect_exactly(lab, lab->image3, lab->decided);
    }
    return 0;
}

static void interrupted_recovery_changes_nothing(struct lab *lab, const struct model *decided)
{
    struct wal *w;
    struct wal_recovered rec;
    lab->decided = decided;
    simdisk_copy(lab->image2, lab->image);
    simdisk_set_hook(lab->image2, interrupt, lab);
    open_image(lab, lab->image2, &w, &rec);
    simdisk_set_hook(lab->image2, NULL, NULL);
    wal_recovered_deinit(&rec);
    wal_close(w);
}

static void judge_image(struct lab *lab, const uint8_t *keep, size_t torn, size_t torn_bytes)
{
    struct wal *w;
    lab->images++;
    simdisk_copy(lab->image, lab->disk);
    simdisk_crash(lab->image, keep, torn, torn_bytes);
    bool deep = lab->images % 16 == 0;
    if (deep)
        simdisk_copy(lab->image2, lab->image);
    const struct model *m = recover_image(lab, lab->image, &w);
    if (lab->images % 4 == 0)
        append_and_reopen(lab->image, w, m);
    else
        wal_close(w);
    if (deep) {
        simdisk_copy(lab->image, lab->image2);
        interrupted_recovery_changes_nothing(lab, m);
    }
}

static void judge_torn(struct lab *lab, const uint8_t *keep, size_t n)
{
    static const size_t lengths[] = {1, 4, 23, 24, 60, 88, 300, 504, 505, 508, 511};
    judge_image(lab, keep, SIMDISK_NOT_TORN, 0);
    if (n == 0)
        return;
    size_t torn = krd_rand_below(&lab->rng, n);
    if (keep[torn] && simdisk_is_sector(lab->disk, torn))
        judge_image(lab, keep, torn, lengths[krd_rand_below(&lab->rng, KRD_ARRAY_LEN(lengths))]);
}

/* All subsets of what is pending, or as many as stand for all. */
static void judge_images(struct lab *lab)
{
    uint8_t keep[PENDING_MAX] = {0};
    size_t n = simdisk_pending(lab->disk);
    assert_true(n <= PENDING_MAX);
    if (n <= SUBSETS_UP_TO) {
        for (size_t subset = 0; subset < (size_t)1 << n; subset++) {
            for (size_t i = 0; i < n; i++)
                keep[i] = subset >> i & 1;
            judge_torn(lab, keep, n);
        }
        return;
    }
    for (size_t k = 0; k <= n; k++) { /* prefixes; single omissions; single arrivals */
        for (size_t i = 0; i < n; i++)
            keep[i] = i < k;
        judge_torn(lab, keep, n);
        for (size_t i = 0; i < n; i++)
            keep[i] = i != k;
        judge_torn(lab, keep, n);
        for (size_t i = 0; i < n; i++)
            keep[i] = i == k;
        judge_torn(lab, keep, n);
    }
    for (int s = 0; s < SAMPLES; s++) {
        random_keep(lab, keep, n);
        judge_torn(lab, keep, n);
    }
}

static int answer(void *arg, enum simdisk_op op, const char *path)
{
    (void)op;
    (void)path;
    return *(int *)arg;
}

/* Only the process died (or a sync failed and it ended itself): the next one reads what the kernel
 * holds, relies on it, and then power fails. */
static void judge_process_crash(struct lab *lab, const char *unsyncable)
{
    simdisk_copy(lab->image, lab->disk);
    if (unsyncable != NULL) {
        int eio = -EIO;
        struct krd_file *f;
        const struct krd_vfs *v = simdisk_vfs(lab->image);
        if (v->open(v->ctx, unsyncable, KRD_OPEN_WRITE, &f) != 0)
            return;
        simdisk_set_hook(lab->image, answer, &eio);
        assert_int_equal(v->fdatasync(f), -EIO);
        simdisk_set_hook(lab->image, NULL, NULL);
        v->close(f);
    }
    struct wal *w;
    static struct model m; /* large */
    lab->images++;
    m = *recover_image(lab, lab->image, &w);
    for (int appended = 0; appended < 2; appended++) {
        for (int i = 0; i < 2; i++) {
            simdisk_copy(lab->image2, lab->image);
            crash_at_random(lab, lab->image2);
            expect_exactly(lab, lab->image2, &m);
        }
        if (appended == 0)
            model_append(&m, w, m.last + 1, 1, m.hs.term + 1, 700);
    }
    wal_close(w);
}

static int at_boundary(void *arg, enum simdisk_op op, const char *path)
{
    struct lab *lab = arg;
    if (op == SIMDISK_OPEN || op == SIMDISK_READ || op == SIMDISK_LIST)
        return 0;
    judge_images(lab);
    judge_process_crash(lab, NULL);
    if (op == SIMDISK_SYNC)
        judge_process_crash(lab, path);
    return 0;
}

/* One step of the workload: next is set before, acked after. */
#define STEP(lab, action)           \
    do {                            \
        action;                     \
        (lab)->acked = (lab)->next; \
    } while (0)

static void hard_state_step(struct lab *lab, struct wal *w, raft_term term, raft_index commit)
{
    struct raft_write wr = {0};
    model_hard_state(&lab->next, &wr, term, term + 1, commit);
    STEP(lab, wal_append(w, &wr, 1));
}

static void append_step(struct lab *lab, struct wal *w, raft_index first, size_t n, raft_term term,
                        uint32_t length)
{
    STEP(lab, model_append(&lab->next, w, first, n, term, length));
}

static void cut_step(struct lab *lab, struct wal *w, raft_index index)
{
    size_t n = wal_map_cuttable(&w->map, index);
    if (n > 0)
        lab->next.base = w->map.segments[n - 1].live_last;
    STEP(lab, wal_cut(w, index));
    assert_int_equal(wal_first_index(w), lab->acked.base + 1);
}

static void config_step(struct lab *lab, struct wal *w)
{
    struct raft_write wr = model_config_entry(&lab->next, lab->next.last + 1, lab->next.hs.term);
    STEP(lab, wal_append(w, &wr, 1));
    model_write_deinit(&wr);
}

static void checkpoint_step(struct lab *lab, struct wal *w, raft_index index)
{
    lab->next.checkpoint = index;
    STEP(lab, wal_checkpoint(w, index, true));
}

static bool carry_on(void *arg)
{
    (void)arg;
    return true;
}

/* As the keeper does it, while the writer writes: here at least between two batches. */
static void prepare_spare(struct lab *lab, struct wal *w)
{
    const char *step;
    if (w->spare.path == NULL)
        assert_int_equal(wal_spare_make(w->vfs, w->dir, "spare.tmp", lab->segment_bytes, carry_on,
                                        NULL, &w->spare, &step),
                         0);
}

static void run_workload(struct lab *lab, uint64_t segment_bytes)
{
    lab->segment_bytes = segment_bytes;
    struct wal *w = open_new(lab->disk, segment_bytes); /* the first segment's birth included */
    hard_state_step(lab, w, 1, 0);
    config_step(lab, w);
    append_step(lab, w, 2, 1, 1, 100);
    append_step(lab, w, 3, 3, 1, 500);
    hard_state_step(lab, w, 1, 4);
    wal_mark(w);
    append_step(lab, w, 5, 1, 2, 60); /* a conflict */
    append_step(lab, w, 6, 2, 2, 1400);
    append_step(lab, w, 8, 1, 2, 376);
    append_step(lab, w, 9, 1, 2, 377);
    append_step(lab, w, 7, 2, 3, 900); /* a conflict that may reach into an older segment */
    hard_state_step(lab, w, 3, 8);
    checkpoint_step(lab, w, 8);
    config_step(lab, w);
    cut_step(lab, w, 8);
    append_step(lab, w, 10, 1, 3, segment_bytes > 4096 ? 3000 : 6000);
    append_step(lab, w, 11, 4, 3, 200);
    prepare_spare(lab, w);
    hard_state_step(lab, w, 4, 12);
    cut_step(lab, w, 12);
    append_step(lab, w, 15, 2, 4, 1000);
    prepare_spare(lab, w);
    append_step(lab, w, 17, 2, 4, 1000);
    append_step(lab, w, 13, 1, 5, 10); /* a conflict takes 13 to 18 away */
    wal_mark(w);
    wal_close(w);
}

/* Any life at all. */
static void run_random_workload(struct lab *lab, uint64_t segment_bytes)
{
    struct krd_rand rng;
    krd_rand_seed(&rng, krd_rand_u64(&lab->rng));
    lab->segment_bytes = segment_bytes;
    struct wal *w = open_new(lab->disk, segment_bytes);
    hard_state_step(lab, w, 1, 0);
    for (int step = 0; step < 14; step++) {
        const struct model *m = &lab->acked;
        raft_index lowest = krd_max_u64(m->hs.commit, m->base) + 1;
        uint64_t what = krd_rand_below(&rng, 16);
        bool conflict = what < 3 && lowest <= m->last;
        raft_index first =
            conflict ? lowest + krd_rand_below(&rng, m->last + 1 - lowest) : m->last + 1;
        size_t n = 1 + krd_rand_below(&rng, 3);
        if (what < 8)
            append_step(lab, w, first, n, m->hs.term + conflict, krd_rand_below(&rng, 1200));
        else if (what < 10)
            hard_state_step(lab, w, m->hs.term + krd_rand_below(&rng, 2), m->last);
        else if (what < 11)
            config_step(lab, w);
        else if (what < 12)
            checkpoint_step(lab, w, m->checkpoint + 1);
        else if (what < 14)
            cut_step(lab, w, m->hs.commit);
        else if (what < 15)
            prepare_spare(lab, w);
        else
            wal_mark(w);
    }
    wal_close(w);
}

static void run_lab(uint64_t seed, uint64_t segment_bytes, void (*workload)(struct lab *, uint64_t))
{
    struct lab *lab = krd_zalloc(sizeof *lab);
    lab->disk = simdisk_create();
    lab->image = simdisk_create();
    lab->image2 = simdisk_create();
    lab->image3 = simdisk_create();
    lab->segment_bytes = segment_bytes;
    krd_rand_seed(&lab->rng, seed);
    simdisk_set_hook(lab->disk, at_boundary, lab);
    workload(lab, segment_bytes);
    simdisk_set_hook(lab->disk, NULL, NULL);
    print_message("seed %u, segments of %u bytes: %u images, %u recoveries\n", (unsigned)seed,
                  (unsigned)segment_bytes, (unsigned)lab->images, (unsigned)lab->recoveries);
    simdisk_destroy(lab->disk);
    simdisk_destroy(lab->image);
    simdisk_destroy(lab->image2);
    simdisk_destroy(lab->image3);
    krd_free(lab);
}

static void every_crash_leaves_what_was_acknowledged(void **state)
{
    (void)state;
    run_lab(17, 2048, run_workload);
    run_lab(18, 4096, run_workload);
    run_lab(19, 8192, run_workload);
    for (uint64_t seed = 100; seed < 100 + SAMPLES / 6; seed++)
        run_lab(seed, 1024u << seed % 3, run_random_workload);
}

int main(void)
{
    krd_log_start(KRD_LOG_ERROR, KRD_LOG_LOGFMT, "test");
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_combination_has_its_verdict),
        cmocka_unit_test(every_damaged_byte_is_noticed),
        cmocka_unit_test(behind_a_marker_no_batch_is_given_up),
        cmocka_unit_test(every_damaged_sector_is_noticed),
        cmocka_unit_test(pairs_of_damages_are_noticed),
        cmocka_unit_test(every_byte_cut_is_noticed),
        cmocka_unit_test(every_zeroed_tail_ends_the_log_at_a_batch),
        cmocka_unit_test(every_crash_leaves_what_was_acknowledged),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    krd_log_stop();
    return failed;
}
