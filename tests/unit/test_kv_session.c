/* A command that comes in twice is applied once, whatever order copies come in, over boots and
 * restarts, with little memory. */
#include "base/rand.h"
#include "kv/session.h"
#include "tests/unit/kv_fixture.h"

#include <stdio.h>
#include <stdlib.h>

static command *from(struct fixture *f, uint64_t origin, uint64_t boot, uint64_t sequence,
                     uint64_t settled, const char *key)
{
    command *c = cmd_put(f, key, "x");
    c->origin = origin;
    c->boot = boot;
    c->sequence = sequence;
    c->settled = settled;
    return c;
}

/* Whether it had an effect. */
static bool took(struct fixture *f, const command *c)
{
    int64_t before = kv_revision(f->s);
    struct kv_result *r = apply_raw(f, c);
    bool effect = kv_revision(f->s) > before;
    if (r != NULL) {
        assert_int_equal(r->status, effect ? KRD_OK : KRD_OUTCOME_UNKNOWN);
        assert_int_equal(r->revision, kv_revision(f->s));
    }
    return effect;
}

static void a_copy_has_no_effect(void **state)
{
    struct fixture *f = *state;
    command *c = from(f, 7, 1, 1, 1, "a");
    assert_true(took(f, c));
    assert_false(took(f, c));
    assert_true(took(f, from(f, 7, 1, 2, 1, "a")));
    assert_false(took(f, c));
    assert_hash_is_true(f);
}

static void order_does_not_matter(void **state)
{
    struct fixture *f = *state;
    static const uint64_t order[] = {5, 3, 300, 1, 2, 64, 63, 4, 65, 128};
    for (size_t round = 0; round < 2; round++) {
        for (size_t i = 0; i < KRD_ARRAY_LEN(order); i++)
            assert_int_equal(took(f, from(f, 7, 1, order[i], 1, "a")), round == 0);
        fixture_reopen(f);
    }
}

static void a_refused_command_is_not_tried_again(void **state)
{
    struct fixture *f = *state;
    command *c = cmd_put_lease(f, "a", "1", 5);
    c->origin = 7;
    c->boot = 1;
    c->sequence = 1;
    assert_int_equal(apply_raw(f, c)->status, KRD_LEASE_NOT_FOUND);
    command *grant = cmd_grant(f, 5, 60);
    grant->origin = 8;
    grant->sequence = 1;
    apply_raw(f, grant);
    assert_int_equal(apply_raw(f, c)->status, KRD_OUTCOME_UNKNOWN); /* now it could */
    assert_int_equal(kv_revision(f->s), 1);
}

static void what_is_settled_never_comes_again(void **state)
{
    struct fixture *f = *state;
    assert_true(took(f, from(f, 7, 1, 100, 90, "a")));
    assert_false(took(f, from(f, 7, 1, 89, 1, "a"))); /* never seen, but given up */
    assert_true(took(f, from(f, 7, 1, 90, 1, "a")));  /* settled does not fall back */
    assert_false(took(f, from(f, 7, 1, 100, 90, "a")));
    assert_false(took(f, from(f, 7, 1, 200, 201, "a"))); /* settled by itself */
}

static void a_new_boot_begins_anew(void **state)
{
    struct fixture *f = *state;
    assert_true(took(f, from(f, 9, 1, 5, 1, "a")));
    assert_true(took(f, from(f, 9, 2, 5, 1, "a")));
    assert_false(took(f, from(f, 9, 2, 5, 1, "a")));
    assert_false(took(f, from(f, 9, 1, 6, 1, "a"))); /* a straggler of the boot before */
    fixture_reopen(f);
    assert_false(took(f, from(f, 9, 1, 7, 1, "a")));
    assert_true(took(f, from(f, 9, 3, 1, 1, "a")));
}

static void origins_do_not_meet(void **state)
{
    struct fixture *f = *state;
    for (uint64_t origin = 1; origin <= 50; origin++)
        assert_true(took(f, from(f, origin, 1, 1, 1, "a")));
    for (uint64_t origin = 1; origin <= 50; origin++)
        assert_false(took(f, from(f, origin, 1, 1, 1, "a")));
}

static void without_an_origin_nothing_is_remembered(void **state)
{
    struct fixture *f = *state;
    for (int i = 0; i < 3; i++)
        assert_true(took(f, from(f, 0, 0, 0, 0, "a")));
    const char *message;
    assert_int_equal(kv_check(from(f, 7, 1, 0, 0, "a"), &message), KRD_BAD_REQUEST);
}

static void results_are_kept_for_our_own_boot_alone(void **state)
{
    struct fixture *f = *state;
    assert_non_null(apply_raw(f, from(f, 7, 1, 1, 1, "a")));
    assert_null(apply_raw(f, from(f, 8, 1, 1, 1, "a")));
    assert_null(apply_raw(f, from(f, 7, 2, 1, 1, "a")));
    assert_null(apply_raw(f, from(f, 0, 0, 0, 0, "a")));
    assert_int_equal(kv_revision(f->s), 5);
}

static void sessions_are_part_of_the_hash(void **state)
{
    struct fixture *f = *state;
    uint64_t index;
    uint8_t before[16], after[16];
    command *c = cmd_delete(f, "none", NULL); /* nothing else changes */
    kv_state_hash(f->s, &index, before);
    apply(f, c);
    kv_state_hash(f->s, &index, after);
    assert_memory_not_equal(before, after, sizeof before);
    assert_hash_is_true(f);
}

static size_t record_bytes(struct fixture *f)
{
    struct kv_engine_options o = {f->dir, 1 << 20, 1 << 20};
    struct kv_engine *e;
    char *err;
    size_t n = 0;
    kv_close(f->s);
    f->s = NULL;
    assert_int_equal(kv_engine_open(&o, &e, &err), KRD_OK);
    struct kv_engine_iter *it = kv_engine_iter_create(e, NULL, false);
    kv_engine_iter_seek(it, slice_str("o"));
    for (; kv_engine_iter_valid(it) && kv_engine_iter_key(it).ptr[0] == 'o';
         kv_engine_iter_next(it))
        n += kv_engine_iter_value(it).len;
    kv_engine_iter_destroy(it);
    kv_engine_close(e);
    struct kv_options so = {.dir = f->dir, .self = f->self, .self_boot = f->boot};
    assert_int_equal(kv_open(&so, &f->s, &err), KRD_OK);
    return n;
}

static void memory_is_what_is_pending(void **state)
{
    struct fixture *f = *state;
    for (uint64_t i = 1; i <= 5000; i++)
        assert_true(took(f, from(f, 7, 1, i, i > 100 ? i - 100 : 1, "a")));
    assert_true(record_bytes(f) <= 16 + 8 * 3);
    assert_false(took(f, from(f, 7, 1, 4950, 1, "a")));
    assert_hash_is_true(f);
}

static void memory_is_bounded(void **state)
{
    struct fixture *f = *state;
    uint64_t far = 3ull * KV_SESSION_WINDOW;
    assert_true(took(f, from(f, 7, 1, 1, 1, "a")));
    assert_true(took(f, from(f, 7, 1, far, 1, "a")));
    assert_true(record_bytes(f) <= 16 + KV_SESSION_WINDOW / 8 + 8);
    uint64_t lowest = far - KV_SESSION_WINDOW + 1;
    assert_false(took(f, from(f, 7, 1, lowest - 1, 1, "a"))); /* pushed out: counts as settled */
    assert_true(took(f, from(f, 7, 1, lowest, 1, "a")));
    assert_false(took(f, from(f, 7, 1, lowest, 1, "a")));
    assert_false(took(f, from(f, 7, 1, far, 1, "a")));
    assert_true(took(f, from(f, 7, 1, UINT64_MAX, 1, "a")));
    assert_false(took(f, from(f, 7, 1, UINT64_MAX, UINT64_MAX, "a")));
    assert_hash_is_true(f);
}

/* The window against a plain set. */
static void the_window_agrees_with_a_set(void **state)
{
    (void)state;
    enum { SPACE = 20000 };
    static bool applied[SPACE];
    struct kv_sessions t;
    struct krd_rand r;
    uint64_t settled = 0, front = 100;
    krd_rand_seed(&r, 5);
    kv_sessions_init(&t);
    for (int i = 0; i < 200000; i++) {
        uint64_t low = front > 700 ? front - 700 : 1;
        uint64_t sequence = low + krd_rand_below(&r, front - low + 1);
        uint64_t say = krd_rand_below(&r, 50) == 0 ? low + krd_rand_below(&r, 600) : 0;
        if (say > settled)
            settled = say;
        bool fresh = sequence >= settled && !applied[sequence];
        applied[sequence] |= fresh;
        enum kv_session_verdict v = kv_sessions_take(&t, 3, 1, sequence, say);
        assert_int_equal(v, fresh ? KV_SESSION_NEW : KV_SESSION_DONE);
        if (i % 10 == 0 && front < SPACE - 1)
            front++;
    }
    assert_true(t.list[0]->n_words < 700 / 64 + 3);
    kv_sessions_deinit(&t);
}

#define T(name) cmocka_unit_test_setup_teardown(name, fixture_up, fixture_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        T(a_copy_has_no_effect),
        T(order_does_not_matter),
        T(a_refused_command_is_not_tried_again),
        T(what_is_settled_never_comes_again),
        T(a_new_boot_begins_anew),
        T(origins_do_not_meet),
        T(without_an_origin_nothing_is_remembered),
        T(results_are_kept_for_our_own_boot_alone),
        T(sessions_are_part_of_the_hash),
        T(memory_is_what_is_pending),
        T(memory_is_bounded),
        T(the_window_agrees_with_a_set),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
