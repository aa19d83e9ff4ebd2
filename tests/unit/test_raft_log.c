/* test_raft_log.c - the core's log against a naive twin: an array that never forgets. */
#include "raft/log.h"

#include "base/rand.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

enum { TWIN_MAX = 4096 };

struct twin {
    struct raft_log log;
    raft_term terms[TWIN_MAX]; /* of every index that ever was; [0] is 0 */
    raft_index base, last;
};

static struct raft_entry entry_of(raft_index index, raft_term term, size_t payload)
{
    static const uint8_t bytes[256];
    struct raft_entry e = raft_entry_make(RAFT_ENTRY_COMMAND, slice_of(bytes, payload));
    raft_entry_seal(&e, index, term, 0);
    return e;
}

static void twin_append(struct twin *t, raft_term term, size_t payload)
{
    struct raft_entry e = entry_of(t->last + 1, term, payload);
    log_append(&t->log, &e);
    t->terms[++t->last] = term;
}

static void twin_init(struct twin *t)
{
    static const struct raft_restored nothing;
    memset(t, 0, sizeof *t);
    log_init(&t->log, &nothing);
}

static void all_durable(struct twin *t)
{
    t->log.written = t->log.stable = t->log.last;
}

static raft_index naive_agreement(const struct twin *t, raft_index index, raft_term term)
{
    index = krd_min_u64(index, t->last);
    while (index > t->base && t->terms[index] > term)
        index--;
    return krd_max_u64(index, t->base);
}

static void compare(struct twin *t, struct krd_rand *r)
{
    log_check(&t->log);
    assert_int_equal(t->log.base, t->base);
    assert_int_equal(t->log.last, t->last);
    size_t bytes = 0;
    for (raft_index i = 0; i <= t->last + 2; i++) {
        bool known = i >= t->base && i <= t->last;
        assert_int_equal(log_term(&t->log, i), known ? t->terms[i] : 0);
        if (!log_in_memory(&t->log, i))
            continue;
        assert_int_equal(log_entry(&t->log, i)->index, i);
        assert_int_equal(log_entry(&t->log, i)->term, t->terms[i]);
        if (i <= t->log.applied)
            bytes += raft_record_bytes(log_entry(&t->log, i));
    }
    assert_int_equal(t->log.applied_bytes, bytes);
    for (int k = 0; k < 8; k++) {
        raft_index index = krd_rand_below(r, t->last + 4);
        raft_term term = krd_rand_below(r, t->terms[t->last] + 3);
        assert_int_equal(log_agreement(&t->log, index, term), naive_agreement(t, index, term));
    }
}

static void random_step(struct twin *t, struct krd_rand *r)
{
    struct raft_log *l = &t->log;
    switch (krd_rand_below(r, 8)) {
    case 0:
    case 1:
    case 2:
        for (uint64_t n = krd_rand_below(r, 40); n > 0 && t->last + 1 < TWIN_MAX; n--) {
            raft_term term = t->terms[t->last] + (krd_rand_below(r, 20) == 0);
            twin_append(t, term == 0 ? 1 : term, krd_rand_below(r, 200));
        }
        break;
    case 3:
        if (l->last > l->applied) {
            t->last = l->applied + krd_rand_below(r, l->last - l->applied);
            log_truncate(l, t->last + 1);
        }
        break;
    case 4:
        l->written = l->last;
        l->stable += krd_rand_below(r, l->last - l->stable + 1);
        break;
    case 5:
        log_set_applied(l, l->applied + krd_rand_below(r, l->stable - l->applied + 1));
        break;
    case 6:
        log_evict(l, krd_rand_below(r, 4000));
        break;
    case 7:
        if (krd_rand_below(r, 4) == 0) {
            t->base += krd_rand_below(r, l->applied - t->base + 1);
            log_cut(l, t->base);
        }
        log_free_buried(l);
        break;
    }
}

static void the_log_agrees_with_its_twin(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 150; seed++) {
        struct krd_rand r;
        krd_rand_seed(&r, seed);
        struct twin *t = krd_alloc(sizeof *t);
        twin_init(t);
        for (int step = 0; step < 120; step++) {
            random_step(t, &r);
            if (step % 4 == 0)
                compare(t, &r);
        }
        compare(t, &r);
        log_deinit(&t->log);
        krd_free(t);
    }
}

static void copies_join_over_the_rings_end(void **state)
{
    (void)state;
    struct twin *t = krd_alloc(sizeof *t);
    twin_init(t);
    for (int i = 0; i < 200; i++)
        twin_append(t, 1, 8);
    all_durable(t);
    log_set_applied(&t->log, 190);
    log_evict(&t->log, 0);
    for (int i = 0; i < 200; i++)
        twin_append(t, 1, 8);
    struct raft_entry copy[210];
    log_copy(&t->log, 191, 210, copy);
    for (size_t i = 0; i < 210; i++)
        assert_int_equal(copy[i].index, 191 + i);
    log_deinit(&t->log);
    krd_free(t);
}

static void what_left_the_log_lives_until_it_is_freed(void **state)
{
    (void)state;
    struct twin *t = krd_alloc(sizeof *t);
    twin_init(t);
    twin_append(t, 1, 8);
    twin_append(t, 1, 8);
    struct krd_blob *first = krd_blob_ref(log_entry(&t->log, 1)->blob);
    struct krd_blob *second = krd_blob_ref(log_entry(&t->log, 2)->blob);
    log_truncate(&t->log, 2);
    all_durable(t);
    log_set_applied(&t->log, 1);
    log_evict(&t->log, 0);
    assert_int_equal(atomic_load(&first->refs), 2);
    assert_int_equal(atomic_load(&second->refs), 2);
    log_free_buried(&t->log);
    assert_int_equal(atomic_load(&first->refs), 1);
    assert_int_equal(atomic_load(&second->refs), 1);
    krd_blob_unref(first);
    krd_blob_unref(second);
    log_deinit(&t->log);
    krd_free(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_log_agrees_with_its_twin),
        cmocka_unit_test(copies_join_over_the_rings_end),
        cmocka_unit_test(what_left_the_log_lives_until_it_is_freed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
