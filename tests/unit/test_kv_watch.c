/* Watchers: exact registration, catching up, slow sinks, compaction, many of them, and threads.
 * Random streams with watchers that start anywhere are in test_kv_model.c. */
#include "base/buf.h"
#include "base/clock.h"
#include "base/rand.h"
#include "kv/watch_hub.h"
#include "kv/watch_index.h"
#include "tests/unit/kv_fixture.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

/* A sink that writes down what it is given: "2:+a=1 3:-a(1) " with the version before in brackets. */
struct log {
    struct krd_buf text;
    struct kv_watch *w;
    size_t calls, events;
    size_t room; /* calls that it takes before it is full */
    int64_t last, compacted;
    bool (*then)(struct log *l); /* what it does when it is called; NULL: nothing */
    struct kv_watch_group *group;
    struct log *other;
};

static bool log_events(void *arg, int64_t revision, const struct kv_event *events, size_t n)
{
    struct log *l = arg;
    assert_true(n > 0);
    assert_true(revision > l->last);
    krd_buf_printf(&l->text, "%" PRId64 ":", revision);
    for (size_t i = 0; i < n; i++) {
        const struct kv_event *e = &events[i];
        assert_int_equal(e->kv.mod_revision, revision);
        krd_buf_printf(&l->text, "%s%.*s", e->type == KV_EVENT_PUT ? "+" : "-", (int)e->kv.key.len,
                       (const char *)e->kv.key.ptr);
        if (e->type == KV_EVENT_PUT)
            krd_buf_printf(&l->text, "=%.*s", (int)e->kv.value.len, (const char *)e->kv.value.ptr);
        if (e->has_prev)
            krd_buf_printf(&l->text, "(%.*s)", (int)e->prev.value.len,
                           (const char *)e->prev.value.ptr);
        krd_buf_puts(&l->text, " ");
    }
    l->last = revision;
    l->calls++;
    l->events += n;
    if (l->then != NULL)
        return l->then(l);
    return l->room == 0 || l->calls % l->room != 0;
}

static void log_compacted(void *arg, int64_t compact_revision)
{
    struct log *l = arg;
    assert_int_equal(l->compacted, 0);
    l->compacted = compact_revision;
}

/* What was logged since the last look. */
static const char *read_log(struct fixture *f, struct log *l)
{
    const char *s = text(f, krd_buf_slice(&l->text));
    l->text.len = 0;
    return s;
}

static void close_log(struct log *l)
{
    kv_watch_close(l->w);
    l->w = NULL;
    krd_buf_deinit(&l->text);
}

static atomic_int wakes;

static void on_wake(void *arg)
{
    (void)arg;
    atomic_fetch_add(&wakes, 1);
}

static struct kv_watch_group *group_of(struct fixture *f)
{
    return kv_watch_group_create(f->s, on_wake, NULL);
}

static struct kv_watch_spec spec(const char *key, const char *end, int64_t from_revision)
{
    return (struct kv_watch_spec){
        .range = {slice_str(key), end != NULL ? slice_str(end) : slice_of(NULL, 0)},
        .from = from_revision};
}

static void watch(struct kv_watch_group *g, struct log *l, struct kv_watch_spec s)
{
    struct kv_watch_sink sink = {l, log_events, log_compacted};
    l->group = g;
    assert_int_equal(kv_watch_open(g, &s, &sink, &l->w), KRD_OK);
}

static void run(struct kv_watch_group *g)
{
    while (kv_watch_run(g))
        ;
}

static void put(struct fixture *f, const char *key, const char *value)
{
    done(f, cmd_put(f, key, value));
}

/* --- The present --------------------------------------------------------------------------------------- */

static void a_watch_begins_right_behind_the_present(void **state)
{
    struct fixture *f = *state;
    struct kv_watch_group *g = group_of(f);
    struct log early = {.w = NULL}, late = {.w = NULL};
    put(f, "a", "0");
    watch(g, &early, spec("a", NULL, 0));
    assert_int_equal(kv_watch_synced_revision(early.w), 2);
    put(f, "a", "1");
    watch(g, &late, spec("a", NULL, 0)); /* the group has not taken in revision 3 yet */
    assert_int_equal(kv_watch_synced_revision(late.w), 3);
    put(f, "a", "2");
    run(g);
    assert_string_equal(read_log(f, &early), "3:+a=1 4:+a=2 ");
    assert_string_equal(read_log(f, &late), "4:+a=2 ");
    assert_int_equal(kv_watch_synced_revision(early.w), 4);
    assert_int_equal(kv_watch_synced_revision(late.w), 4);
    close_log(&early);
    close_log(&late);
    kv_watch_group_destroy(g);
}

static void one_revision_is_one_call_in_order(void **state)
{
    struct fixture *f = *state;
    struct kv_watch_group *g = group_of(f);
    struct log l = {.w = NULL};
    put(f, "c", "0");
    watch(g, &l, spec("a", "z", 0));
    txn_request *t = txn_then(f, txn(f), op_put(f, "d", "1"));
    txn_then(f, t, op_put(f, "~", "beyond"));
    txn_then(f, t, op_delete(f, "c", NULL));
    txn_then(f, t, op_put(f, "b", "2"));
    done(f, cmd_txn(f, t));
    run(g);
    assert_int_equal(l.calls, 1);
    assert_string_equal(read_log(f, &l), "3:+d=1 -c +b=2 ");
    close_log(&l);
    kv_watch_group_destroy(g);
}

static void filters_and_the_version_before(void **state)
{
    struct fixture *f = *state;
    struct kv_watch_group *g = group_of(f);
    struct log puts = {.w = NULL}, deletes = {.w = NULL}, past = {.w = NULL};
    struct kv_watch_spec s = spec("a", NULL, 0);
    s.prev_kv = s.no_delete = true;
    watch(g, &puts, s);
    s.no_delete = false;
    s.no_put = true;
    watch(g, &deletes, s);
    put(f, "a", "1");
    put(f, "a", "2");
    done(f, cmd_delete(f, "a", NULL));
    put(f, "a", "3");
    run(g);
    s.no_put = false;
    s.from = 2;
    watch(g, &past, s);
    run(g);
    assert_string_equal(read_log(f, &puts), "2:+a=1 3:+a=2(1) 5:+a=3 ");
    assert_string_equal(read_log(f, &deletes), "4:-a(2) ");
    assert_string_equal(read_log(f, &past), "2:+a=1 3:+a=2(1) 4:-a(2) 5:+a=3 ");
    close_log(&puts);
    close_log(&deletes);
    close_log(&past);
    kv_watch_group_destroy(g);
}

static void empty_ranges_are_refused(void **state)
{
    struct fixture *f = *state;
    struct kv_watch_group *g = group_of(f);
    struct kv_watch_sink sink = {NULL, log_events, log_compacted};
    struct kv_watch *w;
    struct kv_watch_spec bad[] = {spec("b", "a", 0), spec("b", "b", 0), spec("", NULL, 0),
                                  spec("a", NULL, -1)};
    for (size_t i = 0; i < KRD_ARRAY_LEN(bad); i++)
        assert_int_equal(kv_watch_open(g, &bad[i], &sink, &w), KRD_BAD_REQUEST);
    assert_int_equal(kv_watch_count(g), 0);
    kv_watch_group_destroy(g);
}

static void an_idle_group_is_woken_once(void **state)
{
    struct fixture *f = *state;
    struct kv_watch_group *g = group_of(f);
    struct log l = {.w = NULL};
    put(f, "a", "0");
    atomic_store(&wakes, 0);
    watch(g, &l, spec("a", NULL, 0));
    assert_int_equal(atomic_load(&wakes), 0);
    put(f, "a", "1");
    put(f, "b", "1");
    assert_int_equal(atomic_load(&wakes), 1);
    run(g);
    put(f, "c", "1");
    assert_int_equal(atomic_load(&wakes), 2);
    run(g);
    close_log(&l);
    put(f, "a", "2"); /* nobody is interested */
    assert_int_equal(atomic_load(&wakes), 2);
    l = (struct log){.w = NULL};
    watch(g, &l, spec("a", NULL, 2)); /* there is history to read */
    assert_int_equal(atomic_load(&wakes), 3);
    put(f, "a", "3");
    assert_int_equal(atomic_load(&wakes), 4);
    run(g);
    assert_string_equal(read_log(f, &l), "2:+a=0 3:+a=1 6:+a=2 7:+a=3 ");
    close_log(&l);
    kv_watch_group_destroy(g);
}

/* --- The past and the future ------------------------------------------------------------------------------ */

static void a_watch_starts_anywhere_in_the_past(void **state)
{
    struct fixture *f = *state;
    struct kv_watch_group *g = group_of(f);
    for (int i = 2; i <= 9; i++)
        put(f, i % 2 == 0 ? "a" : "b", "x");
    for (int64_t at = 1; at <= 10; at++) {
        struct log l = {.w = NULL};
        watch(g, &l, spec("a", "c", at));
        assert_int_equal(kv_watch_synced_revision(l.w), at <= 9 ? at - 1 : 9);
        run(g);
        assert_int_equal(l.calls, at == 1 ? 8 : 10 - at);
        assert_int_equal(kv_watch_synced_revision(l.w), 9);
        close_log(&l);
    }
    kv_watch_group_destroy(g);
}

static void the_future_is_waited_for(void **state)
{
    struct fixture *f = *state;
    struct kv_watch_group *g = group_of(f);
    struct log l = {.w = NULL};
    watch(g, &l, spec("a", NULL, 5));
    for (int i = 2; i <= 7; i++) {
        put(f, "a", "x");
        run(g);
        assert_int_equal(l.calls, i < 5 ? 0 : i - 4);
        assert_int_equal(kv_watch_synced_revision(l.w), i);
    }
    close_log(&l);
    kv_watch_group_destroy(g);
}

static void many_slices_join_the_present_exactly(void **state)
{
    struct fixture *f = *state;
    struct kv_watch_group *g = group_of(f);
    struct log l[3] = {{.w = NULL}, {.w = NULL}, {.w = NULL}};
    for (int i = 0; i < 3500; i++)
        put(f, "a", "x");
    watch(g, &l[0], spec("a", NULL, 2));
    watch(g, &l[1], spec("a", "b", 1500));
    bool more = true;
    for (int turns = 0; more || turns < 100; turns++) { /* it writes on meanwhile */
        put(f, "a", "y");
        more = kv_watch_run(g);
        if (turns == 2)
            watch(g, &l[2], spec("a", NULL, 700));
    }
    run(g);
    int64_t now = kv_revision(f->s);
    assert_int_equal(l[0].events, now - 1);
    assert_int_equal(l[1].events, now - 1499);
    assert_int_equal(l[2].events, now - 699);
    for (int i = 0; i < 3; i++)
        close_log(&l[i]);
    kv_watch_group_destroy(g);
}

/* --- Slow sinks ---------------------------------------------------------------------------------------------- */

static void a_full_sink_rests_and_misses_nothing(void **state)
{
    struct fixture *f = *state;
    struct kv_watch_group *g = group_of(f);
    struct log slow = {.room = 1}, quick = {.w = NULL};
    watch(g, &slow, spec("a", NULL, 0));
    watch(g, &quick, spec("a", NULL, 0));
    for (int i = 0; i < 5; i++)
        put(f, "a", krd_arena_printf(&f->arena, "%d", i));
    run(g);
    assert_string_equal(read_log(f, &slow), "2:+a=0 ");
    assert_int_equal(quick.calls, 5); /* nobody waits for the slow one */
    assert_int_equal(kv_watch_synced_revision(slow.w), 2);
    assert_false(kv_watch_is_synced(slow.w));
    for (int i = 1; i < 5; i++) {
        kv_watch_resume(slow.w);
        run(g);
    }
    assert_string_equal(read_log(f, &slow), "3:+a=1 4:+a=2 5:+a=3 6:+a=4 ");
    kv_watch_resume(slow.w);
    run(g);
    assert_true(kv_watch_is_synced(slow.w));
    put(f, "a", "5");
    run(g);
    assert_string_equal(read_log(f, &slow), "7:+a=5 ");
    close_log(&slow);
    close_log(&quick);
    kv_watch_group_destroy(g);
}

static void a_group_that_does_not_run_costs_bounded_memory_and_loses_nothing(void **state)
{
    struct fixture *f = *state;
    struct kv_watch_group *g = group_of(f);
    struct log l = {.w = NULL}, future = {.w = NULL};
    char *value = krd_alloc(100001);
    memset(value, 'v', 100000);
    value[100000] = 0;
    watch(g, &l, spec("a", NULL, 0));
    watch(g, &future, spec("a", NULL, 150));
    for (int i = 0; i < 200; i++) { /* 20 MB, five times what a queue may hold */
        put(f, "a", value);
        krd_arena_reset(&f->arena);
    }
    run(g);
    assert_int_equal(l.calls, 200);
    assert_int_equal(l.last, 201);
    assert_int_equal(future.calls, 52);
    assert_true(kv_watch_is_synced(l.w));
    krd_free(value);
    close_log(&l);
    close_log(&future);
    kv_watch_group_destroy(g);
}

/* --- Compaction ------------------------------------------------------------------------------------------------ */

static void a_watch_from_below_the_compacted_revision_is_told(void **state)
{
    struct fixture *f = *state;
    struct kv_watch_group *g = group_of(f);
    put(f, "a", "1");                  /* 2 */
    put(f, "a", "2");                  /* 3 */
    done(f, cmd_delete(f, "a", NULL)); /* 4 */
    put(f, "b", "1");                  /* 5 */
    done(f, cmd_compact(f, 4));
    for (int round = 0; round < 2; round++) {
        struct log below = {.w = NULL}, at = {.w = NULL}, above = {.w = NULL};
        watch(g, &below, spec("a", "c", 3));
        watch(g, &at, spec("a", "c", 4));
        watch(g, &above, spec("a", "c", 5));
        assert_int_equal(below.compacted, 0); /* not from inside open */
        run(g);
        assert_int_equal(below.compacted, 4);
        assert_int_equal(below.calls, 0);
        assert_string_equal(read_log(f, &at), "4:-a 5:+b=1 "); /* the delete is still there */
        assert_string_equal(read_log(f, &above), "5:+b=1 ");
        close_log(&below);
        close_log(&at);
        close_log(&above);
        maintain(f);
    }
    kv_watch_group_destroy(g);
}

static void compaction_may_overtake_a_slow_watch(void **state)
{
    struct fixture *f = *state;
    struct kv_watch_group *g = group_of(f);
    struct log slow = {.room = 1}, quick = {.w = NULL};
    watch(g, &slow, spec("a", NULL, 0));
    watch(g, &quick, spec("a", NULL, 0));
    for (int i = 0; i < 10; i++)
        put(f, "a", "x"); /* 2 to 11 */
    run(g);
    done(f, cmd_compact(f, 8));
    maintain(f);
    run(g);
    assert_int_equal(slow.compacted, 0); /* it rests and asks for nothing */
    kv_watch_resume(slow.w);
    run(g);
    assert_int_equal(slow.compacted, 8);
    assert_int_equal(slow.calls, 1);
    put(f, "a", "y");
    run(g);
    assert_int_equal(slow.calls, 1); /* dead */
    assert_int_equal(quick.calls, 11);
    assert_int_equal(quick.compacted, 0);
    close_log(&slow);
    close_log(&quick);
    kv_watch_group_destroy(g);
}

/* --- Sinks that act ---------------------------------------------------------------------------------------------- */

static bool close_itself(struct log *l)
{
    close_log(l);
    return true;
}

static bool close_both(struct log *l)
{
    if (l->other->w != NULL)
        close_log(l->other);
    close_log(l);
    return false;
}

static bool open_another(struct log *l)
{
    if (l->other->w == NULL)
        watch(l->group, l->other, spec("a", NULL, 2));
    return true;
}

static void watchers_may_be_closed_from_inside(void **state)
{
    struct fixture *f = *state;
    for (int history = 0; history < 2; history++) {
        struct kv_watch_group *g = group_of(f);
        struct log one = {.then = close_itself}, a = {.then = close_both}, b = {.then = close_both};
        a.other = &b;
        b.other = &a;
        int64_t at = history ? 2 : 0;
        if (history)
            put(f, "a", "x");
        watch(g, &one, spec("a", NULL, at));
        watch(g, &a, spec("a", NULL, at));
        watch(g, &b, spec("a", "b", at));
        put(f, "a", "x");
        put(f, "a", "y");
        run(g);
        assert_int_equal(kv_watch_count(g), 0);
        assert_int_equal(one.calls, 1);
        assert_int_equal(a.calls + b.calls, 1); /* whoever was first closed the other */
        kv_watch_group_destroy(g);
    }
}

static bool replace_itself(struct log *l)
{
    kv_watch_close(l->w);
    l->w = NULL;
    if (l->other->w == NULL)
        watch(l->group, l->other, spec("a", NULL, 0));
    return true;
}

/* The group was without watchers for a moment, in the middle of what it was given. */
static void the_last_watcher_may_be_replaced_from_inside(void **state)
{
    struct fixture *f = *state;
    struct kv_watch_group *g = group_of(f);
    struct log second = {.w = NULL}, first = {.then = replace_itself, .other = &second};
    watch(g, &first, spec("a", NULL, 0));
    put(f, "a", "1");
    put(f, "a", "2");
    run(g);
    assert_int_equal(kv_watch_synced_revision(second.w), 3);
    put(f, "a", "3");
    run(g);
    assert_string_equal(read_log(f, &first), "2:+a=1 ");
    assert_string_equal(read_log(f, &second), "4:+a=3 ");
    krd_buf_deinit(&first.text);
    close_log(&second);
    kv_watch_group_destroy(g);
}

static void watchers_may_be_opened_from_inside(void **state)
{
    struct fixture *f = *state;
    struct kv_watch_group *g = group_of(f);
    struct log second = {.w = NULL}, first = {.then = open_another, .other = &second};
    put(f, "a", "1");
    put(f, "a", "2");
    watch(g, &first, spec("a", NULL, 2));
    put(f, "a", "3");
    run(g);
    put(f, "a", "4");
    run(g);
    assert_string_equal(read_log(f, &first), "2:+a=1 3:+a=2 4:+a=3 5:+a=4 ");
    assert_string_equal(read_log(f, &second), "2:+a=1 3:+a=2 4:+a=3 5:+a=4 ");
    close_log(&first);
    close_log(&second);
    kv_watch_group_destroy(g);
}

/* --- Many --------------------------------------------------------------------------------------------------------- */

static bool count_events(void *arg, int64_t revision, const struct kv_event *events, size_t n)
{
    size_t *counter = arg;
    (void)revision;
    (void)events;
    *counter += n;
    return true;
}

/* A walk over all of them for each event would take a minute. */
static void ten_thousand_watchers_cost_an_event_nothing(void **state)
{
    enum { WATCHERS = 10000, EVENTS = 30000 };
    struct fixture *f = *state;
    struct kv_watch_group *g = group_of(f);
    struct kv_watch **w = krd_calloc(2 * WATCHERS, sizeof *w);
    size_t *counters = krd_calloc(2 * WATCHERS, sizeof *counters);
    for (size_t i = 0; i < 2 * WATCHERS; i++) {
        struct kv_watch_sink sink = {&counters[i], count_events, log_compacted};
        char key[32], end[32];
        snprintf(key, sizeof key, "key/%06zu", i / 2);
        snprintf(end, sizeof end, "key/%06zu~", i / 2);
        struct kv_watch_spec s = spec(key, i % 2 == 0 ? NULL : end, 0);
        assert_int_equal(kv_watch_open(g, &s, &sink, &w[i]), KRD_OK);
    }
    uint64_t spent = 0;
    for (size_t i = 0; i < EVENTS; i++) {
        char key[32];
        snprintf(key, sizeof key, "key/%06zu", i * 7919 % WATCHERS);
        put(f, key, "x");
        krd_arena_reset(&f->arena);
        uint64_t began = krd_mono_us();
        kv_watch_run(g);
        spent += krd_mono_us() - began;
    }
    print_message("20,000 watchers: %" PRIu64 " ns an event\n", spent * 1000 / EVENTS);
    for (size_t i = 0; i < 2 * WATCHERS; i++) {
        assert_int_equal(counters[i], EVENTS / WATCHERS);
        kv_watch_close(w[i]);
    }
    kv_watch_group_destroy(g);
    krd_free(w);
    krd_free(counters);
}

/* All from the same revision: the history is read once, not ten thousand times. */
static void ten_thousand_laggards_share_one_reading(void **state)
{
    enum { WATCHERS = 10000, REVISIONS = 5000 };
    struct fixture *f = *state;
    struct kv_watch_group *g = group_of(f);
    struct kv_watch **w = krd_calloc(WATCHERS, sizeof *w);
    size_t *counters = krd_calloc(WATCHERS, sizeof *counters);
    for (size_t i = 0; i < REVISIONS; i++) {
        put(f, krd_arena_printf(&f->arena, "key/%zu", i % 100), "x");
        krd_arena_reset(&f->arena);
    }
    for (size_t i = 0; i < WATCHERS; i++) {
        struct kv_watch_sink sink = {&counters[i], count_events, log_compacted};
        char key[32];
        snprintf(key, sizeof key, "key/%zu", i % 100);
        struct kv_watch_spec s = spec(key, NULL, 2 + (int64_t)(i % 7));
        assert_int_equal(kv_watch_open(g, &s, &sink, &w[i]), KRD_OK);
    }
    size_t turns = 0;
    while (kv_watch_run(g))
        turns++;
    assert_true(turns < 30);
    for (size_t i = 0; i < WATCHERS; i++) {
        size_t missed = i % 100 < i % 7 ? 1 : 0; /* key/k was first put at revision 2 + k */
        assert_int_equal(counters[i], REVISIONS / 100 - missed);
        kv_watch_close(w[i]);
    }
    kv_watch_group_destroy(g);
    krd_free(w);
    krd_free(counters);
}

/* --- The index ------------------------------------------------------------------------------------------------------ */

struct entry {
    struct kv_index_link link;
    struct kv_range range;
    bool in, matched;
    uint8_t key[3], end[3];
};

static void on_match(void *arg, struct kv_index_link *l)
{
    struct entry *e = KRD_CONTAINER_OF(l, struct entry, link);
    (void)arg;
    assert_false(e->matched);
    e->matched = true;
}

static void the_index_agrees_with_a_walk(void **state)
{
    enum { N = 300 };
    static struct entry all[N];
    struct kv_index ix;
    struct krd_rand r;
    (void)state;
    krd_rand_seed(&r, 3);
    kv_index_init(&ix);
    for (int i = 0; i < 60000; i++) {
        struct entry *e = &all[krd_rand_below(&r, N)];
        if (e->in) {
            kv_index_remove(&ix, &e->link);
        } else {
            size_t len = 1 + krd_rand_below(&r, 3), end = krd_rand_below(&r, 4);
            for (int b = 0; b < 3; b++) {
                e->key[b] = (uint8_t)('a' + krd_rand_below(&r, 4));
                e->end[b] = (uint8_t)('a' + krd_rand_below(&r, 5));
            }
            if (end == 1 && krd_rand_below(&r, 2) == 0)
                e->end[0] = 0; /* open-ended */
            e->range = (struct kv_range){slice_of(e->key, len), slice_of(e->end, end)};
            kv_index_add(&ix, &e->range, &e->link);
        }
        e->in = !e->in;
        uint8_t key[3];
        for (int b = 0; b < 3; b++)
            key[b] = (uint8_t)('a' + krd_rand_below(&r, 5));
        struct slice k = slice_of(key, 1 + krd_rand_below(&r, 3));
        kv_index_match(&ix, k, on_match, NULL);
        for (size_t n = 0; n < N; n++) {
            assert_int_equal(all[n].matched, all[n].in && kv_range_contains(&all[n].range, k));
            all[n].matched = false;
        }
    }
    for (size_t n = 0; n < N; n++) {
        if (all[n].in)
            kv_index_remove(&ix, &all[n].link);
    }
    kv_index_deinit(&ix);
}

/* --- Threads --------------------------------------------------------------------------------------------------------- */

#define WRITES 6000

/* A watcher of everything in another thread: each revision has one event, so it must see them all,
 * one by one, from where it began. */
struct follower {
    struct kv_store *s;
    uint64_t seed;
    int64_t upto;
    int64_t next; /* 0: takes what comes first */
    size_t opened;
    bool full, broken;
    atomic_bool *stop;
};

static bool follow(void *arg, int64_t revision, const struct kv_event *events, size_t n)
{
    struct follower *p = arg;
    if (revision != p->next || n != 1 || events[0].kv.mod_revision != revision)
        p->broken = true;
    p->next = revision + 1;
    p->full = revision % 97 == 0;
    return !p->full;
}

static void lost(void *arg, int64_t compact_revision)
{
    struct follower *p = arg;
    if (p->next >= compact_revision)
        p->broken = true;
    p->next = 0; /* begins anew */
}

static void *follower_main(void *arg)
{
    struct follower *p = arg;
    struct krd_rand r;
    krd_rand_seed(&r, p->seed);
    struct kv_watch_group *g = kv_watch_group_create(p->s, on_wake, NULL);
    while (p->next <= p->upto && !p->broken) {
        struct kv_watch_sink sink = {p, follow, lost};
        struct kv_watch_spec s = {.range = {slice_of("\0", 1), slice_of("\0", 1)}, .from = p->next};
        struct kv_watch *w;
        if (kv_watch_open(g, &s, &sink, &w) != KRD_OK)
            break;
        if (p->next == 0)
            p->next = kv_watch_synced_revision(w) + 1;
        p->opened++;
        uint64_t turns = 1 + krd_rand_below(&r, 60);
        for (uint64_t i = 0; i < turns && p->next != 0 && p->next <= p->upto; i++) {
            kv_watch_run(g);
            if (p->full) {
                p->full = false;
                kv_watch_resume(w);
            }
            if (kv_watch_synced_revision(w) > p->upto)
                p->broken = true;
        }
        kv_watch_close(w); /* and once more, from where it was */
    }
    kv_watch_group_destroy(g);
    return NULL;
}

/* Reads keys beside the writer: what is found is never older than the revision it is true of. */
static void *reader_main(void *arg)
{
    struct follower *p = arg;
    struct krd_rand r;
    struct krd_arena arena = KRD_ARENA_INIT;
    krd_rand_seed(&r, p->seed);
    while (!atomic_load(p->stop) && !p->broken) {
        char key[16];
        struct kv_pair pair, *list;
        size_t n;
        int64_t before = kv_revision(p->s), revision;
        snprintf(key, sizeof key, "k%d", (int)krd_rand_below(&r, 50));
        struct slice k = slice_str(key);
        enum krd_status st = kv_get(p->s, k, 0, &arena, &pair, &revision);
        p->broken |= revision < before || (st == KRD_OK && pair.mod_revision > revision);
        st = kv_get(p->s, k, before, &arena, &pair, &revision);
        p->broken |= st == KRD_FUTURE_REVISION || (st == KRD_OK && pair.mod_revision > before);
        if (kv_history(p->s, k, 20, &arena, &list, &n, &revision) == KRD_OK) {
            for (size_t i = 1; i < n; i++)
                p->broken |= list[i].mod_revision >= list[i - 1].mod_revision;
        }
        struct kv_query q = {.range = {slice_str("k"), slice_str("l")}};
        struct kv_cursor *c;
        if (kv_cursor_open(p->s, &q, &c) != KRD_OK)
            p->broken = true;
        else {
            while (kv_cursor_next(c, &pair))
                p->broken |= pair.mod_revision > kv_cursor_revision(c);
            kv_cursor_close(c);
        }
        p->opened++;
        krd_arena_reset(&arena);
    }
    krd_arena_deinit(&arena);
    return NULL;
}

static void threads_follow_the_writer_without_a_gap(void **state)
{
    enum { FOLLOWERS = 3, READERS = 1 };
    struct fixture *f = *state;
    struct follower p[FOLLOWERS + READERS];
    pthread_t threads[FOLLOWERS + READERS];
    atomic_bool stop = false;
    for (int i = 0; i < FOLLOWERS + READERS; i++) {
        p[i] = (struct follower){.s = f->s,
                                 .seed = (uint64_t)i,
                                 .upto = 1 + WRITES,
                                 .next = i == 0 ? 0 : 2,
                                 .stop = &stop};
        pthread_create(&threads[i], NULL, i < FOLLOWERS ? follower_main : reader_main, &p[i]);
    }
    for (int i = 0; i < WRITES; i++) {
        put(f, krd_arena_printf(&f->arena, "k%d", i * 31 % 50), "x");
        if (i % 1000 == 999)
            done(f, cmd_compact(f, kv_revision(f->s) - 400));
        kv_maintain(f->s);
        krd_arena_reset(&f->arena);
    }
    for (int i = 0; i < FOLLOWERS; i++)
        pthread_join(threads[i], NULL);
    atomic_store(&stop, true);
    pthread_join(threads[FOLLOWERS], NULL);
    for (int i = 0; i < FOLLOWERS + READERS; i++) {
        assert_false(p[i].broken);
        assert_true(p[i].opened > 0);
    }
    assert_hash_is_true(f);
}

/* A key that was there at every revision is found at every revision that is not compacted, whatever
 * is compacted while it is looked for. */
static void *steady_main(void *arg)
{
    struct follower *p = arg;
    struct krd_arena arena = KRD_ARENA_INIT;
    while (!atomic_load(p->stop) && !p->broken) {
        struct kv_pair pair, *list;
        size_t n;
        int64_t now = kv_revision(p->s), revision;
        struct slice k = slice_str("steady");
        enum krd_status st = kv_get(p->s, k, now - 1, &arena, &pair, NULL);
        p->broken |= st != KRD_OK && st != KRD_COMPACTED;
        p->broken |= kv_get(p->s, k, 0, &arena, &pair, &revision) != KRD_OK;
        p->broken |= kv_history(p->s, k, 0, &arena, &list, &n, NULL) != KRD_OK;
        p->opened += st == KRD_OK;
        krd_arena_reset(&arena);
    }
    krd_arena_deinit(&arena);
    return NULL;
}

static void compaction_never_hides_a_key_from_a_reader(void **state)
{
    struct fixture *f = *state;
    atomic_bool stop = false;
    char value[300]; /* so long that it stands apart from its key */
    memset(value, 'v', sizeof value - 1);
    value[sizeof value - 1] = 0;
    put(f, "steady", value);
    put(f, "steady", value);
    struct follower p = {.s = f->s, .stop = &stop};
    pthread_t thread;
    pthread_create(&thread, NULL, steady_main, &p);
    for (int i = 0; i < WRITES; i++) {
        put(f, "steady", value);
        done(f, cmd_compact(f, kv_revision(f->s)));
        kv_maintain(f->s);
        krd_arena_reset(&f->arena);
    }
    atomic_store(&stop, true);
    pthread_join(thread, NULL);
    assert_false(p.broken);
}

#define T(name) cmocka_unit_test_setup_teardown(name, fixture_up, fixture_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        T(a_watch_begins_right_behind_the_present),
        T(one_revision_is_one_call_in_order),
        T(filters_and_the_version_before),
        T(empty_ranges_are_refused),
        T(an_idle_group_is_woken_once),
        T(a_watch_starts_anywhere_in_the_past),
        T(the_future_is_waited_for),
        T(many_slices_join_the_present_exactly),
        T(a_full_sink_rests_and_misses_nothing),
        T(a_group_that_does_not_run_costs_bounded_memory_and_loses_nothing),
        T(a_watch_from_below_the_compacted_revision_is_told),
        T(compaction_may_overtake_a_slow_watch),
        T(watchers_may_be_closed_from_inside),
        T(the_last_watcher_may_be_replaced_from_inside),
        T(watchers_may_be_opened_from_inside),
        T(ten_thousand_watchers_cost_an_event_nothing),
        T(ten_thousand_laggards_share_one_reading),
        T(the_index_agrees_with_a_walk),
        T(threads_follow_the_writer_without_a_gap),
        T(compaction_never_hides_a_key_from_a_reader),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
