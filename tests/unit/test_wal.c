/* test_wal.c - the log as its users see it: what was appended is there, whatever was replaced, cut,
 * closed and opened in between. Crashes and damage: test_wal_crash.c. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "base/rand.h"
#include "raft/wal_internal.h"
#include "tests/unit/simdisk.h"
#include "tests/unit/wal_model.h"

#include <errno.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#define CLUSTER 0x1111
#define MEMBER  0x22

struct fixture {
    struct simdisk *disk;
    struct wal_options options;
    struct wal *w; /* NULL: closed */
    struct model m;
};

static int setup(void **state)
{
    struct fixture *f = krd_zalloc(sizeof *f);
    f->disk = simdisk_create();
    f->options = (struct wal_options){.vfs = simdisk_vfs(f->disk),
                                      .dir = "log",
                                      .cluster_id = CLUSTER,
                                      .member_id = MEMBER,
                                      .segment_bytes = 16 * 1024};
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    wal_close(f->w);
    simdisk_destroy(f->disk);
    krd_free(f);
    return 0;
}

/* (Re)opens the log; everything must be as the model says. */
static void reopen_after(struct fixture *f, raft_index keep_after)
{
    struct wal_recovered rec;
    char *err = NULL;
    wal_close(f->w);
    f->w = NULL;
    enum krd_status st = wal_open(&f->options, keep_after, &f->w, &rec, &err);
    if (st != KRD_OK)
        fail_msg("open: %s", err);
    const char *d = model_difference(&f->m, &rec, keep_after);
    if (d != NULL)
        fail_msg("%s", d);
    assert_false(rec.torn_tail);
    wal_recovered_deinit(&rec);
}

static void reopen(struct fixture *f)
{
    reopen_after(f, 0);
}

static void expect_readable(struct fixture *f, size_t bytes_max)
{
    const char *d = model_read_difference(&f->m, f->w, bytes_max);
    if (d != NULL)
        fail_msg("%s", d);
}

/* Opening must fail; returns the sentence, to be freed. */
static char *expect_refused(const struct wal_options *o)
{
    struct wal *w;
    struct wal_recovered rec;
    char *err = NULL;
    assert_int_equal(wal_open(o, 0, &w, &rec, &err), KRD_CORRUPT);
    assert_non_null(err);
    return err;
}

static void expect_sentence(const struct wal_options *o, const char *part)
{
    char *err = expect_refused(o);
    if (strstr(err, part) == NULL)
        fail_msg("\"%s\" should be in: %s", part, err);
    krd_free(err);
}

static size_t segments(const struct fixture *f)
{
    return f->w->map.n_segments;
}

static void commit_to(struct fixture *f, raft_index commit)
{
    struct raft_write wr = {0};
    model_hard_state(&f->m, &wr, f->m.hs.term, f->m.hs.vote, commit);
    wal_append(f->w, &wr, 1);
}

static void cut_to(struct fixture *f, raft_index index)
{
    wal_cut(f->w, index);
    f->m.base = wal_first_index(f->w) - 1;
    assert_true(f->m.base <= index);
}

/* --- What users see ----------------------------------------------------------------------- */

static void a_new_log_is_empty_and_says_so(void **state)
{
    struct fixture *f = *state;
    struct wal_recovered rec;
    char *err = NULL;
    assert_int_equal(wal_open(&f->options, 0, &f->w, &rec, &err), KRD_OK);
    assert_true(rec.created);
    assert_null(model_difference(&f->m, &rec, 0));
    assert_null(rec.config);
    wal_recovered_deinit(&rec);
    assert_int_equal(wal_first_index(f->w), 1);
    assert_true(wal_bytes(f->w) == 16 * 1024);
    wal_close(f->w);
    f->w = NULL;
    assert_int_equal(wal_open(&f->options, 0, &f->w, &rec, &err), KRD_OK);
    assert_false(rec.created);
    wal_recovered_deinit(&rec);
}

static void entries_are_found_again(void **state)
{
    struct fixture *f = *state;
    reopen(f);
    model_append(&f->m, f->w, 1, 1, 1, 0);
    model_append(&f->m, f->w, 2, 3, 1, 100);
    model_append(&f->m, f->w, 5, 1, 1, 376); /* fills its sector to the last byte */
    model_append(&f->m, f->w, 6, 1, 1, 377);
    reopen(f);
    expect_readable(f, 1);
    model_append(&f->m, f->w, 7, 1, 3, 3000);
    reopen(f);
    reopen(f);
    expect_readable(f, SIZE_MAX);
}

static void many_writes_become_one_batch(void **state)
{
    struct fixture *f = *state;
    reopen(f);
    uint64_t seq = f->w->next_seq;
    struct raft_write writes[5] = {{0}};
    writes[0] = model_entries(&f->m, 1, 9, 1, 50);
    writes[1] = model_entries(&f->m, 7, 2, 2, 60); /* replaces 7 to 9 */
    writes[2] = model_entries(&f->m, 9, 1, 2, 60);
    model_hard_state(&f->m, &writes[1], 2, 3, 0);
    model_hard_state(&f->m, &writes[3], 2, 3, 6);
    wal_append(f->w, writes, 5);
    for (size_t i = 0; i < 5; i++)
        model_write_deinit(&writes[i]);
    assert_int_equal(f->w->next_seq, seq + 1);
    reopen(f);
    expect_readable(f, 100);
}

static void a_write_of_nothing_writes_nothing(void **state)
{
    struct fixture *f = *state;
    reopen(f);
    uint64_t seq = f->w->next_seq;
    struct raft_write nothing = {.seq = 1};
    wal_append(f->w, &nothing, 1);
    wal_append(f->w, NULL, 0);
    assert_int_equal(f->w->next_seq, seq);
}

static void hard_state_alone_is_durable(void **state)
{
    struct fixture *f = *state;
    reopen(f);
    for (raft_term term = 1; term < 60; term++) { /* across several segments */
        struct raft_write wr = {0};
        model_hard_state(&f->m, &wr, term, term % 5, 0);
        wal_append(f->w, &wr, 1);
    }
    assert_true(segments(f) > 1);
    reopen(f);
}

static void a_conflict_replaces_the_tail(void **state)
{
    struct fixture *f = *state;
    reopen(f);
    model_append(&f->m, f->w, 1, 10, 1, 40);
    model_append(&f->m, f->w, 5, 3, 2, 41); /* 5..7, gone are 8..10 */
    reopen(f);
    expect_readable(f, 1);
    model_append(&f->m, f->w, 8, 4, 2, 42);
    model_append(&f->m, f->w, 6, 1, 3, 43);
    reopen(f);
    expect_readable(f, 1);
    model_append(&f->m, f->w, 1, 1, 4, 44); /* everything */
    reopen(f);
    expect_readable(f, SIZE_MAX);
}

static void a_conflict_reaches_into_older_segments(void **state)
{
    struct fixture *f = *state;
    reopen(f);
    for (raft_index i = 1; i <= 100; i++)
        model_append(&f->m, f->w, i, 1, 1, 600);
    assert_true(segments(f) >= 6);
    model_append(&f->m, f->w, 30, 2, 2, 10);
    expect_readable(f, 2000);
    reopen(f);
    expect_readable(f, 2000);
    for (raft_index i = 32; i <= 90; i++)
        model_append(&f->m, f->w, i, 1, 3, 600);
    model_append(&f->m, f->w, 29, 1, 4, 10);
    reopen(f);
    expect_readable(f, 500);
}

static void configurations_are_rolled_back_with_their_entries(void **state)
{
    struct fixture *f = *state;
    reopen(f);
    struct raft_write wr = model_config_entry(&f->m, 1, 1);
    wal_append(f->w, &wr, 1);
    model_write_deinit(&wr);
    commit_to(f, 1);
    model_append(&f->m, f->w, 2, 3, 1, 20);
    wr = model_config_entry(&f->m, 5, 1);
    wal_append(f->w, &wr, 1);
    model_write_deinit(&wr);
    reopen(f);
    for (raft_index i = 6; i < 60; i++) /* roll, so that openings carry both configurations */
        model_append(&f->m, f->w, i, 1, 1, 600);
    assert_true(segments(f) > 1);
    reopen_after(f, 58);
    model_append(&f->m, f->w, 4, 1, 2, 20); /* takes 5 away: 1 counts again */
    reopen_after(f, 58);
    reopen(f);
}

static void a_configuration_outlives_its_entry(void **state)
{
    struct fixture *f = *state;
    reopen(f);
    struct raft_write wr = model_config_entry(&f->m, 1, 1);
    wal_append(f->w, &wr, 1);
    model_write_deinit(&wr);
    for (raft_index i = 2; i < 100; i++)
        model_append(&f->m, f->w, i, 1, 1, 600);
    commit_to(f, 99);
    cut_to(f, 90);
    assert_true(f->m.base > 1);
    wal_close(f->w);
    f->w = NULL;
    struct wal_recovered rec;
    char *err;
    assert_int_equal(wal_open(&f->options, 95, &f->w, &rec, &err), KRD_OK);
    assert_non_null(rec.config);
    assert_int_equal(rec.config_index, 1);
    assert_int_equal(rec.config->members[0].id, 1001);
    wal_recovered_deinit(&rec);
}

static void checkpoints_travel_with_batches_or_alone(void **state)
{
    struct fixture *f = *state;
    reopen(f);
    model_append(&f->m, f->w, 1, 10, 1, 20);
    wal_checkpoint(f->w, 4, false);
    reopen(f); /* not flushed: not there */
    wal_checkpoint(f->w, 5, true);
    f->m.checkpoint = 5;
    reopen(f);
    wal_checkpoint(f->w, 7, false);
    model_append(&f->m, f->w, 11, 1, 1, 20);
    f->m.checkpoint = 7;
    reopen(f);
    wal_checkpoint(f->w, 8, false);
    wal_mark(f->w);
    f->m.checkpoint = 8;
    reopen(f);
    uint64_t seq = f->w->next_seq;
    wal_checkpoint(f->w, 8, true); /* known already */
    assert_int_equal(f->w->next_seq, seq);
}

static void a_marker_is_written_once(void **state)
{
    struct fixture *f = *state;
    reopen(f);
    uint64_t seq = f->w->next_seq;
    wal_mark(f->w);
    assert_int_equal(f->w->next_seq, seq);
    model_append(&f->m, f->w, 1, 1, 1, 20);
    wal_mark(f->w);
    wal_mark(f->w);
    assert_int_equal(f->w->next_seq, seq + 2);
    reopen(f);
    wal_mark(f->w);
    assert_int_equal(f->w->next_seq, seq + 2);
    model_append(&f->m, f->w, 2, 1, 1, 20);
    reopen(f);
    wal_mark(f->w); /* also after a restart */
    assert_int_equal(f->w->next_seq, seq + 4);
    reopen(f);
}

static void old_segments_are_cut_and_stay_cut(void **state)
{
    struct fixture *f = *state;
    reopen(f);
    for (raft_index i = 1; i <= 100; i++)
        model_append(&f->m, f->w, i, 1, i / 20 + 1, 600);
    size_t before = segments(f);
    uint64_t bytes = wal_bytes(f->w);
    cut_to(f, 0);
    assert_int_equal(segments(f), before);
    cut_to(f, 55);
    assert_true(segments(f) < before && wal_bytes(f->w) < bytes);
    assert_true(f->m.base >= 30);
    reopen(f);
    reopen_after(f, 99);
    expect_readable(f, 1000);
    struct raft_entry *e;
    size_t n;
    char *err;
    assert_int_equal(wal_read(f->w, f->m.base, 90, 1, &e, &n, &err), KRD_NOT_FOUND);
    assert_int_equal(wal_read(f->w, 101, 101, 1, &e, &n, &err), KRD_NOT_FOUND);
    cut_to(f, 100); /* never the segment that is written to */
    assert_int_equal(segments(f), 1);
    reopen(f);
    model_append(&f->m, f->w, 101, 1, 9, 10);
    reopen(f);
    expect_readable(f, 1);
    char name[40];
    uint64_t size;
    for (uint64_t s = 1; s < f->w->map.segments[0].number; s++) {
        snprintf(name, sizeof name, "log/%016u.wal", (unsigned)s);
        assert_false(simdisk_size(f->disk, name, &size));
    }
}

static void opening_reads_only_what_is_needed(void **state)
{
    struct fixture *f = *state;
    reopen(f);
    for (raft_index i = 1; i <= 100; i++)
        model_append(&f->m, f->w, i, 1, i / 30 + 1, 600);
    for (raft_index keep = 0; keep <= 103; keep++)
        reopen_after(f, keep);
    expect_readable(f, 1);
    /* Damage in an old segment is not seen at start, but when it is read. */
    uint8_t x = 0xee;
    assert_true(simdisk_poke(f->disk, "log/0000000000000001.wal", 2048, &x, 1));
    reopen_after(f, 90);
    struct raft_entry *e;
    size_t n;
    char *err = NULL;
    assert_int_equal(wal_read(f->w, 1, 50, 100000, &e, &n, &err), KRD_CORRUPT);
    assert_non_null(strstr(err, "log/0000000000000001.wal at byte "));
    krd_free(err);
    expect_sentence(&f->options, "log/0000000000000001.wal at byte ");
}

static void reads_respect_their_bounds(void **state)
{
    struct fixture *f = *state;
    reopen(f);
    for (raft_index i = 1; i <= 60; i += 3)
        model_append(&f->m, f->w, i, 3, 1, 200);
    size_t record = raft_record_bytes_for(200);
    for (raft_index first = 1; first <= 60; first++) {
        for (size_t want = 0; want <= 4; want++) {
            struct raft_entry *e;
            size_t n;
            char *err;
            assert_int_equal(wal_read(f->w, first, 60, want * record, &e, &n, &err), KRD_OK);
            assert_int_equal(n, krd_min_u64(want == 0 ? 1 : want, 61 - first));
            assert_null(model_entries_difference(&f->m, e, n, first));
            for (size_t i = 0; i < n; i++)
                raft_entry_unref(&e[i]);
            krd_free(e);
            assert_int_equal(wal_read(f->w, first, first, SIZE_MAX, &e, &n, &err), KRD_OK);
            assert_int_equal(n, 1);
            raft_entry_unref(e);
            krd_free(e);
        }
    }
}

static void an_entry_larger_than_a_segment_fits(void **state)
{
    struct fixture *f = *state;
    reopen(f);
    model_append(&f->m, f->w, 1, 1, 1, 40000);
    model_append(&f->m, f->w, 2, 1, 1, 10);
    model_append(&f->m, f->w, 3, 1, 1, 100000);
    model_append(&f->m, f->w, 4, 3, 2, 30000);
    reopen(f);
    expect_readable(f, 1);
    reopen_after(f, 2);
    model_append(&f->m, f->w, 7, 1, 2, 100);
    reopen(f);
}

static void an_opening_alone_tells_everything(void **state)
{
    struct fixture *f = *state;
    reopen(f);
    struct raft_write wr = model_config_entry(&f->m, 1, 1);
    wal_append(f->w, &wr, 1);
    model_write_deinit(&wr);
    model_append(&f->m, f->w, 2, 4, 1, 30);
    model_append(&f->m, f->w, 6, 4, 3, 30);
    commit_to(f, 7);
    wal_checkpoint(f->w, 6, true);
    f->m.checkpoint = 6;
    model_append(&f->m, f->w, 8, 1, 4, 30);
    const char *step;
    for (int i = 0; i < 3; i++) {
        assert_int_equal(wal_next_segment(f->w, &step), 0);
        for (raft_index keep = 0; keep <= 9; keep++)
            reopen_after(f, keep);
        expect_readable(f, 1);
    }
    cut_to(f, 8);
    assert_int_equal(f->m.base, 8);
    reopen(f);
    model_append(&f->m, f->w, 9, 1, 4, 30);
    reopen(f);
}

/* A long life, drawn by lot, against the model. */
static void any_history_is_found_again(void **state)
{
    struct fixture *f = *state;
    struct krd_rand rng;
    for (uint64_t seed = 1; seed <= 60; seed++) {
        krd_rand_seed(&rng, seed);
        simdisk_destroy(f->disk);
        f->disk = simdisk_create();
        f->options.vfs = simdisk_vfs(f->disk);
        f->options.segment_bytes = 512u << krd_rand_below(&rng, 11);
        memset(&f->m, 0, sizeof f->m);
        reopen(f);
        for (int step = 0; step < 120; step++) {
            raft_index lowest = krd_max_u64(f->m.hs.commit, f->m.base) + 1;
            raft_index first = f->m.last + 1;
            uint64_t what = krd_rand_below(&rng, 20);
            if (what == 0 && lowest <= f->m.last)
                first = lowest + krd_rand_below(&rng, f->m.last - lowest + 1);
            size_t n = 1 + krd_rand_below(&rng, 6);
            uint32_t length = (uint32_t)krd_rand_below(&rng, 900);
            if (what < 12 && f->m.last < MODEL_ENTRIES_MAX - 10)
                model_append(&f->m, f->w, first, n, krd_max_u64(f->m.hs.term, 1) + (what <= 1),
                             length);
            else if (what < 14)
                commit_to(f, lowest - 1 + krd_rand_below(&rng, f->m.last + 2 - lowest));
            else if (what < 15) {
                wal_checkpoint(f->w, f->m.hs.commit, true);
                f->m.checkpoint = krd_max_u64(f->m.checkpoint, f->m.hs.commit);
            } else if (what < 16)
                cut_to(f, f->m.hs.commit);
            else if (what < 17)
                wal_mark(f->w);
            else if (what < 18)
                reopen_after(f, krd_rand_below(&rng, f->m.last + 2));
            else
                expect_readable(f, krd_rand_below(&rng, 5000));
        }
        reopen(f);
        expect_readable(f, 3000);
        wal_close(f->w);
        f->w = NULL;
    }
}

/* --- What is refused ---------------------------------------------------------------------- */

static void foreign_logs_are_refused(void **state)
{
    struct fixture *f = *state;
    reopen(f);
    model_append(&f->m, f->w, 1, 3, 1, 10);
    wal_close(f->w);
    f->w = NULL;
    struct wal_options o = f->options;
    o.cluster_id++;
    expect_sentence(&o, "belongs to cluster 0000000000001111, this node to cluster");
    o = f->options;
    o.member_id++;
    expect_sentence(&o, "belongs to member 0000000000000022, this node is member");
    reopen(f);
}

static void rename_file(struct fixture *f, const char *from, const char *to)
{
    assert_int_equal(f->options.vfs->rename(f->options.vfs->ctx, from, to), 0);
}

static void misplaced_segments_are_refused(void **state)
{
    struct fixture *f = *state;
    const char *one = "log/0000000000000001.wal", *two = "log/0000000000000002.wal";
    const char *three = "log/0000000000000003.wal", *elsewhere = "else/x";
    reopen(f);
    for (raft_index i = 1; i <= 80; i++)
        model_append(&f->m, f->w, i, 1, 1, 600);
    wal_close(f->w);
    f->w = NULL;
    /* missing */
    rename_file(f, two, elsewhere);
    expect_sentence(&f->options, "log/0000000000000002.wal is missing");
    rename_file(f, elsewhere, two);
    reopen(f);
    wal_close(f->w);
    f->w = NULL;
    rename_file(f, one, elsewhere);
    expect_sentence(&f->options, "log/0000000000000001.wal is missing");
    rename_file(f, elsewhere, one);
    /* swapped */
    rename_file(f, two, elsewhere);
    rename_file(f, three, two);
    rename_file(f, elsewhere, three);
    expect_sentence(&f->options, "under a wrong name");
    rename_file(f, three, elsewhere);
    rename_file(f, two, three);
    rename_file(f, elsewhere, two);
    reopen(f);
    /* The newest one lost: its place in the sequence is free, nothing is missing, and the log is
     * shorter. No file that is left can know; a checkpoint of the state machine does. */
}

/* Two logs of one member that went different ways, as after a backup was put back: the same
 * positions, the same sequence numbers, every sector sound. */
static void parts_of_another_history_are_refused(void **state)
{
    struct fixture *f = *state;
    const char *one = "log/0000000000000001.wal", *two = "log/0000000000000002.wal";
    enum { BYTES = 16 * 1024 };
    static uint8_t first[2][BYTES], second[2][BYTES];
    uint64_t frame = 0;
    for (int history = 0; history < 2; history++) {
        simdisk_destroy(f->disk);
        f->disk = simdisk_create();
        f->options.vfs = simdisk_vfs(f->disk);
        memset(&f->m, 0, sizeof f->m);
        reopen(f);
        model_append(&f->m, f->w, 1, 1, 1, 100);
        frame = f->w->map.segments[0].end;
        model_append(&f->m, f->w, 2, 1, history == 0 ? 1 : 2, 600); /* they part here */
        if (history == 0) { /* and say again what they have in common */
            f->m.hs.term = 2;
            struct raft_write wr = {0};
            model_hard_state(&f->m, &wr, 2, 3, 0);
            wal_append(f->w, &wr, 1);
        } else {
            commit_to(f, 0);
        }
        for (raft_index i = 3; i <= 30; i++)
            model_append(&f->m, f->w, i, 1, 2, 600);
        assert_int_equal(segments(f), 2);
        wal_close(f->w);
        f->w = NULL;
        assert_true(simdisk_peek(f->disk, one, 0, first[history], BYTES));
        assert_true(simdisk_peek(f->disk, two, 0, second[history], BYTES));
    }
    reopen(f);
    wal_close(f->w);
    f->w = NULL;
    /* a frame's later sector; all frames behind the one in which they part; a segment */
    assert_true(simdisk_poke(f->disk, one, frame + 512, first[0] + frame + 512, 512));
    expect_sentence(&f->options, "a batch fails its checksums");
    assert_true(simdisk_poke(f->disk, one, frame + 512, first[1] + frame + 512, 512));
    reopen(f);
    wal_close(f->w);
    f->w = NULL;
    uint64_t behind = frame + 1024;
    assert_true(simdisk_poke(f->disk, one, behind, first[0] + behind, BYTES - behind));
    expect_sentence(&f->options, "0000000000000001.wal at byte 2048: a batch fails its checksums");
    assert_true(simdisk_poke(f->disk, one, behind, first[1] + behind, BYTES - behind));
    assert_true(simdisk_poke(f->disk, two, 0, second[0], BYTES));
    expect_sentence(&f->options, "does not continue segment 1");
}

static void a_newer_format_is_refused_by_name(void **state)
{
    struct fixture *f = *state;
    reopen(f);
    uint8_t version = '2';
    assert_true(simdisk_poke(f->disk, "log/0000000000000001.wal", 3, &version, 1));
    wal_close(f->w);
    f->w = NULL;
    expect_sentence(&f->options, "format version '2'");
}

static void strange_files_do_no_harm(void **state)
{
    struct fixture *f = *state;
    reopen(f);
    model_append(&f->m, f->w, 1, 3, 1, 10);
    const char *names[] = {"log/spare.tmp", "log/0000000000000002.wal.tmp", "log/notes",
                           "log/1.wal", "log/000000000000000x.wal"};
    for (size_t i = 0; i < KRD_ARRAY_LEN(names); i++) {
        struct krd_file *file;
        assert_int_equal(f->options.vfs->open(f->options.vfs->ctx, names[i],
                                              KRD_OPEN_WRITE | KRD_OPEN_CREATE, &file),
                         0);
        f->options.vfs->close(file);
    }
    reopen(f);
    uint64_t size;
    assert_false(simdisk_size(f->disk, names[0], &size)); /* leftovers are removed */
    assert_false(simdisk_size(f->disk, names[1], &size));
    assert_true(simdisk_size(f->disk, names[2], &size)); /* others are nobody's business */
}

struct countdown {
    int calls; /* so many go well */
    enum simdisk_op failed;
};

static int fail_from_now_on(void *arg, enum simdisk_op op, const char *path)
{
    struct countdown *c = arg;
    (void)path;
    if (c->calls-- > 0)
        return 0;
    c->failed = op;
    return -EIO;
}

static void a_disk_that_fails_at_start_is_reported(void **state)
{
    struct fixture *f = *state;
    reopen(f);
    for (raft_index i = 1; i <= 50; i++)
        model_append(&f->m, f->w, i, 1, 1, 900);
    assert_true(segments(f) > 3);
    unsigned reported = 0;
    for (int calls = 0;; calls++) { /* each call of an opening, in turn */
        struct countdown c = {.calls = calls};
        struct wal_recovered rec;
        char *err = NULL;
        wal_close(f->w);
        f->w = NULL;
        simdisk_set_hook(f->disk, fail_from_now_on, &c);
        enum krd_status st = wal_open(&f->options, 20, &f->w, &rec, &err);
        simdisk_set_hook(f->disk, NULL, NULL);
        if (st == KRD_OK) {
            wal_recovered_deinit(&rec);
            break;
        }
        assert_int_equal(st, KRD_IO);
        assert_non_null(strstr(err, "Input/output error"));
        assert_non_null(strstr(err, "log"));
        krd_free(err);
        reported++;
    }
    assert_true(reported > 15);
    reopen(f);
}

static void a_disk_that_fails_at_birth_is_reported(void **state)
{
    struct fixture *f = *state;
    for (int calls = 0;; calls++) {
        struct countdown c = {.calls = calls};
        struct wal_recovered rec;
        char *err = NULL;
        simdisk_set_hook(f->disk, fail_from_now_on, &c);
        enum krd_status st = wal_open(&f->options, 0, &f->w, &rec, &err);
        simdisk_set_hook(f->disk, NULL, NULL);
        if (st == KRD_OK) {
            assert_true(calls > 6);
            wal_recovered_deinit(&rec);
            break;
        }
        assert_int_equal(st, KRD_IO);
        krd_free(err);
        reopen(f); /* whatever is left of the attempt is no hindrance */
        wal_close(f->w);
        f->w = NULL;
        simdisk_destroy(f->disk);
        f->disk = simdisk_create();
        f->options.vfs = simdisk_vfs(f->disk);
    }
}

static void a_disk_that_fails_a_read_is_reported(void **state)
{
    struct fixture *f = *state;
    reopen(f);
    for (raft_index i = 1; i <= 50; i++)
        model_append(&f->m, f->w, i, 1, 1, 900);
    for (int calls = 0;; calls++) {
        struct countdown c = {.calls = calls};
        struct raft_entry *e;
        size_t n;
        char *err = NULL;
        simdisk_set_hook(f->disk, fail_from_now_on, &c);
        enum krd_status st = wal_read(f->w, 1, 50, SIZE_MAX, &e, &n, &err);
        simdisk_set_hook(f->disk, NULL, NULL);
        if (st == KRD_OK) {
            assert_int_equal(n, 50);
            assert_true(calls > 4);
            for (size_t i = 0; i < n; i++)
                raft_entry_unref(&e[i]);
            krd_free(e);
            break;
        }
        assert_int_equal(st, KRD_IO);
        assert_non_null(strstr(err, "Input/output error"));
        krd_free(err);
    }
    expect_readable(f, 1); /* and it is not held against the disk */
}

static int fail_unlink(void *arg, enum simdisk_op op, const char *path)
{
    (void)arg;
    (void)path;
    return op == SIMDISK_UNLINK ? -EIO : 0;
}

static void a_segment_that_cannot_be_removed_is_tried_again(void **state)
{
    struct fixture *f = *state;
    reopen(f);
    for (raft_index i = 1; i <= 50; i++)
        model_append(&f->m, f->w, i, 1, 1, 900);
    simdisk_set_hook(f->disk, fail_unlink, NULL);
    cut_to(f, 40);
    reopen(f);
    simdisk_set_hook(f->disk, NULL, NULL);
    uint64_t size;
    assert_true(simdisk_size(f->disk, "log/0000000000000001.wal", &size));
    reopen(f);
    assert_false(simdisk_size(f->disk, "log/0000000000000001.wal", &size));
}

struct full_disk {
    int calls_that_fail;
};

static int no_space(void *arg, enum simdisk_op op, const char *path)
{
    struct full_disk *full = arg;
    (void)path;
    return op == SIMDISK_GROW && full->calls_that_fail-- > 0 ? -ENOSPC : 0;
}

static void a_full_disk_gets_a_shorter_segment(void **state)
{
    struct fixture *f = *state;
    f->options.segment_bytes = 1024 * 1024;
    struct full_disk full = {1};
    simdisk_set_hook(f->disk, no_space, &full);
    reopen(f);
    assert_int_equal(wal_bytes(f->w), 256 * 1024);
    for (raft_index i = 1; i <= 100; i++)
        model_append(&f->m, f->w, i, 1, 1, 4000);
    assert_true(segments(f) == 2 && wal_bytes(f->w) == 1280 * 1024);
    reopen(f);
    expect_readable(f, 50000);
}

static void a_disk_without_any_space_is_reported(void **state)
{
    struct fixture *f = *state;
    struct full_disk full = {1000};
    struct wal_recovered rec;
    char *err = NULL;
    simdisk_set_hook(f->disk, no_space, &full);
    assert_int_equal(wal_open(&f->options, 0, &f->w, &rec, &err), KRD_NO_SPACE);
    assert_non_null(strstr(err, "reserve space log: No space left on device"));
    krd_free(err);
    simdisk_set_hook(f->disk, NULL, NULL);
    reopen(f);
}

/* --- Failures of the disk end the process -------------------------------------------------- */

static int sync_fails(void *arg, enum simdisk_op op, const char *path)
{
    (void)path;
    return op == *(enum simdisk_op *)arg ? -EIO : 0;
}

/* Runs one append in a child whose disk fails at op; how it ended. */
static int append_in_a_child(struct fixture *f, enum simdisk_op op)
{
    fflush(NULL);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        if (freopen("/dev/null", "w", stderr) == NULL)
            _exit(1);
        simdisk_set_hook(f->disk, sync_fails, &op);
        model_append(&f->m, f->w, f->m.last + 1, 1, f->m.hs.term, 100);
        _exit(0);
    }
    int status;
    assert_true(waitpid(pid, &status, 0) == pid);
    return status;
}

static void a_failed_write_or_sync_ends_the_process(void **state)
{
    struct fixture *f = *state;
    reopen(f);
    model_append(&f->m, f->w, 1, 1, 1, 10);
    int status = append_in_a_child(f, SIMDISK_READ);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0); /* appending reads nothing */
    enum simdisk_op ops[] = {SIMDISK_WRITE, SIMDISK_SYNC};
    for (size_t i = 0; i < KRD_ARRAY_LEN(ops); i++) {
        status = append_in_a_child(f, ops[i]);
        assert_true(WIFEXITED(status));
        assert_int_equal(WEXITSTATUS(status), 70);
    }
}

/* --- The thread --------------------------------------------------------------------------- */

struct listener {
    int pipe[2];
    uint64_t persisted;
    struct raft_entry *entries;
    size_t n_entries;
    uint64_t syncs, fetches;
};

/* What the calling thread wrote and has not synced. */
static _Thread_local bool unsynced;
static _Thread_local unsigned writes;

static int watched_pwrite(struct krd_file *f, const void *p, size_t n, uint64_t offset)
{
    unsynced = true;
    writes++;
    return krd_vfs_posix()->pwrite(f, p, n, offset);
}

static int watched_fdatasync(struct krd_file *f)
{
    unsynced = false;
    return krd_vfs_posix()->fdatasync(f);
}

static void on_persisted(void *arg, uint64_t seq)
{
    struct listener *l = arg;
    KRD_ASSERT(writes > 0 && !unsynced); /* not cmocka's: this is the writer's thread */
    writes = 0;
    assert_true(write(l->pipe[1], &seq, sizeof seq) == sizeof seq);
}

static void on_fetched(void *arg, raft_id peer, struct raft_entry *entries, size_t n)
{
    struct listener *l = arg;
    l->entries = entries;
    l->n_entries = n;
    l->fetches++;
    uint64_t tag = UINT64_MAX - peer;
    assert_true(write(l->pipe[1], &tag, sizeof tag) == sizeof tag);
}

static void on_synced(void *arg, uint64_t us, uint64_t bytes)
{
    struct listener *l = arg;
    assert_true(bytes > 0 && bytes % 512 == 0 && us < 60000000);
    l->syncs++;
}

/* Waits until a callback has said at least this. */
static void await(struct listener *l, uint64_t tag)
{
    bool fetch = tag > UINT64_MAX / 2;
    for (uint64_t got = 0; fetch ? got != tag : l->persisted < tag;) {
        assert_true(read(l->pipe[0], &got, sizeof got) == sizeof got);
        if (got <= UINT64_MAX / 2) {
            assert_true(got > l->persisted);
            l->persisted = got;
        }
    }
}

static void release(struct listener *l)
{
    for (size_t i = 0; i < l->n_entries; i++)
        raft_entry_unref(&l->entries[i]);
    krd_free(l->entries);
    l->entries = NULL;
    l->n_entries = 0;
}

static void the_writer_persists_in_order_and_fetches(void **state)
{
    struct fixture *f = *state;
    char dir[] = "/tmp/test_wal_XXXXXX";
    assert_non_null(mkdtemp(dir));
    struct krd_vfs vfs = *krd_vfs_posix();
    vfs.pwrite = watched_pwrite;
    vfs.fdatasync = watched_fdatasync;
    f->options.vfs = &vfs;
    f->options.dir = dir;
    f->options.segment_bytes = 32 * 1024;
    reopen(f);
    struct listener l = {0};
    assert_int_equal(pipe(l.pipe), 0);
    struct wal_writer_callbacks cb = {&l, on_persisted, on_fetched, on_synced};
    struct wal_writer *t = wal_writer_start(f->w, &cb);
    f->w = NULL;
    uint64_t seq = 0;
    for (raft_index i = 1; i <= 900; i += 3) {
        struct raft_write wr = model_entries(&f->m, i, 3, 1, 200);
        if (i % 100 == 1)
            model_hard_state(&f->m, &wr, 1, 1, i);
        wr.seq = ++seq;
        wal_writer_append(t, &wr);
        model_write_deinit(&wr);
        if (seq % 20 == 0)
            await(&l, seq); /* else all of it might become one batch, in one segment */
    }
    await(&l, seq);
    assert_true(l.syncs > 0 && l.syncs <= seq);

    wal_writer_fetch(t,
                     &(struct raft_fetch){.peer = 7, .first = 5, .last = 800, .bytes_max = 9000});
    await(&l, UINT64_MAX - 7);
    assert_true(l.n_entries > 30);
    assert_null(model_entries_difference(&f->m, l.entries, l.n_entries, 5));
    release(&l);
    wal_writer_checkpoint(t, 700);
    f->m.checkpoint = 700;
    wal_writer_cut(t, 700);
    wal_writer_fetch(t, &(struct raft_fetch){.peer = 8, .first = 1, .last = 9, .bytes_max = 1});
    await(&l, UINT64_MAX - 8); /* the cut came first */
    assert_int_equal(l.n_entries, 0);
    struct raft_write wr = model_entries(&f->m, 901, 1, 2, 10);
    model_hard_state(&f->m, &wr, 2, 2, 800);
    wr.seq = ++seq;
    wal_writer_append(t, &wr);
    model_write_deinit(&wr);
    await(&l, seq);
    assert_true(wal_writer_first_index(t) > 500);
    assert_true(wal_writer_bytes(t) >= 32 * 1024);
    assert_false(wal_writer_starved(t));
    f->m.base = wal_writer_first_index(t) - 1;
    l.fetches = 0;
    for (raft_id peer = 1; peer <= 3; peer++) /* beyond the end: nothing to release */
        wal_writer_fetch(t, &(struct raft_fetch){.peer = peer, .first = 9999, .last = 9999});
    wr = model_entries(&f->m, 902, 1, 2, 10);
    wr.seq = ++seq;
    wal_writer_append(t, &wr);
    model_write_deinit(&wr);
    wal_writer_stop(t); /* answers everything first */
    assert_int_equal(l.fetches, 3);
    await(&l, seq);

    reopen(f);
    expect_readable(f, 4000);
    assert_false(f->w->unproven); /* a clean stop proves its last batch */
    close(l.pipe[0]);
    close(l.pipe[1]);
    wal_close(f->w);
    f->w = NULL;
    char command[64];
    snprintf(command, sizeof command, "rm -r %s", dir);
    assert_int_equal(system(command), 0);
}

static atomic_bool disk_is_full;

static int fallocate_or_not(struct krd_file *f, uint64_t offset, uint64_t len)
{
    return atomic_load(&disk_is_full) ? -ENOSPC : krd_vfs_posix()->fallocate(f, offset, len);
}

static void await_starved(const struct wal_writer *t, bool starved)
{
    for (int i = 0; i < 2000 && wal_writer_starved(t) != starved; i++)
        poll(NULL, 0, 5);
    assert_int_equal(wal_writer_starved(t), starved);
}

static void a_full_disk_is_met_before_a_batch_needs_it(void **state)
{
    struct fixture *f = *state;
    char dir[] = "/tmp/test_wal_XXXXXX";
    assert_non_null(mkdtemp(dir));
    struct krd_vfs vfs = *krd_vfs_posix();
    vfs.fallocate = fallocate_or_not;
    vfs.pwrite = watched_pwrite;
    vfs.fdatasync = watched_fdatasync;
    f->options.vfs = &vfs;
    f->options.dir = dir;
    f->options.segment_bytes = 64 * 1024;
    reopen(f);
    atomic_store(&disk_is_full, true);
    struct listener l = {0};
    assert_int_equal(pipe(l.pipe), 0);
    struct wal_writer_callbacks cb = {&l, on_persisted, on_fetched, NULL};
    struct wal_writer *t = wal_writer_start(f->w, &cb);
    f->w = NULL;
    struct raft_write wr = model_entries(&f->m, 1, 3, 1, 8000); /* above a quarter: order a spare */
    model_hard_state(&f->m, &wr, 1, 1, 0);
    wr.seq = 1;
    wal_writer_append(t, &wr);
    model_write_deinit(&wr);
    await(&l, 1);
    await_starved(t, true);
    wr = model_entries(&f->m, 4, 2, 1, 8000); /* what is under way still fits */
    wr.seq = 2;
    wal_writer_append(t, &wr);
    model_write_deinit(&wr);
    await(&l, 2);
    atomic_store(&disk_is_full, false);
    await_starved(t, false);
    wal_writer_stop(t);
    reopen(f);
    wal_close(f->w);
    f->w = NULL;
    close(l.pipe[0]);
    close(l.pipe[1]);
    char command[64];
    snprintf(command, sizeof command, "rm -r %s", dir);
    assert_int_equal(system(command), 0);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(a_new_log_is_empty_and_says_so),
        T(entries_are_found_again),
        T(many_writes_become_one_batch),
        T(a_write_of_nothing_writes_nothing),
        T(hard_state_alone_is_durable),
        T(a_conflict_replaces_the_tail),
        T(a_conflict_reaches_into_older_segments),
        T(configurations_are_rolled_back_with_their_entries),
        T(a_configuration_outlives_its_entry),
        T(checkpoints_travel_with_batches_or_alone),
        T(a_marker_is_written_once),
        T(old_segments_are_cut_and_stay_cut),
        T(opening_reads_only_what_is_needed),
        T(reads_respect_their_bounds),
        T(an_entry_larger_than_a_segment_fits),
        T(an_opening_alone_tells_everything),
        T(any_history_is_found_again),
        T(foreign_logs_are_refused),
        T(misplaced_segments_are_refused),
        T(parts_of_another_history_are_refused),
        T(a_newer_format_is_refused_by_name),
        T(strange_files_do_no_harm),
        T(a_disk_that_fails_at_start_is_reported),
        T(a_disk_that_fails_at_birth_is_reported),
        T(a_disk_that_fails_a_read_is_reported),
        T(a_segment_that_cannot_be_removed_is_tried_again),
        T(a_full_disk_gets_a_shorter_segment),
        T(a_disk_without_any_space_is_reported),
        T(a_failed_write_or_sync_ends_the_process),
        T(the_writer_persists_in_order_and_fetches),
        T(a_full_disk_is_met_before_a_batch_needs_it),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
