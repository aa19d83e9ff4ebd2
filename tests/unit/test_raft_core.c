/* test_raft_core.c - the core's interface at its edges: who owns what and for how long, what ends
 * the process, what is the same twice. Situations of the protocol are told in tests/raft/NAME.txt.
 */
#include "tests/raft/sim.h"

#include "base/rand.h"

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

static struct raft_options small_options(void)
{
    struct raft_options o = {.id = 1};
    raft_options_default(&o);
    o.election_ticks = 10;
    o.heartbeat_ticks = 3;
    return o;
}

static void stabilize(struct sim *s)
{
    for (int i = 0; i < 100; i++) {
        for (raft_id id = 1; id <= s->n; id++)
            sim_turn(s, id);
        for (raft_id id = 1; id <= s->n; id++)
            sim_persist(s, id, SIZE_MAX);
        for (size_t n = s->n_queue; n > 0; n--)
            sim_deliver(s, 0);
    }
}

static void let_first_lead(struct sim *s)
{
    struct raft_status st;
    do {
        raft_tick(sim_node(s, 1)->raft);
        raft_get_status(sim_node(s, 1)->raft, &st);
    } while (st.elections == 0);
    stabilize(s);
    raft_get_status(sim_node(s, 1)->raft, &st);
    assert_int_equal(st.role, RAFT_LEADER);
}

static struct raft_entry entry_of(raft_index index, raft_term term, const char *payload)
{
    struct raft_entry e = raft_entry_make(RAFT_ENTRY_COMMAND, slice_str(payload));
    raft_entry_seal(&e, index, term, 0);
    return e;
}

/* An append of one entry, as it comes from the transport. */
static struct raft_message append_of(raft_term term, raft_id from, raft_id to,
                                     raft_index prev_index, raft_term prev_term, raft_index commit,
                                     const char *payload)
{
    struct raft_message m;
    memset(&m, 0, sizeof m);
    m.type = RAFT_MSG_APPEND;
    m.term = term;
    m.from = from;
    m.to = to;
    m.u.append.prev_index = prev_index;
    m.u.append.prev_term = prev_term;
    m.u.append.commit = commit;
    m.u.append.n_entries = 1;
    m.u.append.entries = krd_alloc(sizeof(struct raft_entry));
    m.u.append.entries[0] = entry_of(prev_index + 1, term, payload);
    return m;
}

/* --- What ends the process ------------------------------------------------------------------- */

static bool ends_the_process(void (*what)(void))
{
    fflush(NULL);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        if (!freopen("/dev/null", "w", stderr))
            _exit(0);
        what();
        _exit(0);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    return !WIFEXITED(status) || WEXITSTATUS(status) != 0;
}

/* Member 2 has entry 1 of term 1 committed; somebody says that entry 1 is of term 9. */
static void contradict_what_is_committed(void)
{
    struct sim s;
    struct raft_options o = small_options();
    sim_init(&s, &o, 1, 3, 0);
    let_first_lead(&s);
    struct raft_message m = append_of(9, 3, 2, 0, 0, 0, "other");
    raft_step(sim_node(&s, 2)->raft, &m);
}

static void lead_twice_in_one_term(void)
{
    struct sim s;
    struct raft_options o = small_options();
    sim_init(&s, &o, 1, 3, 0);
    let_first_lead(&s);
    struct raft_message m = append_of(1, 3, 1, 1, 1, 0, "other");
    raft_step(sim_node(&s, 1)->raft, &m);
}

static void follow_two_in_one_term(void)
{
    struct sim s;
    struct raft_options o = small_options();
    sim_init(&s, &o, 1, 3, 0);
    let_first_lead(&s);
    struct raft_message m = append_of(1, 3, 2, 1, 1, 0, "other");
    raft_step(sim_node(&s, 2)->raft, &m);
}

static void start_behind_what_was_committed(void)
{
    struct raft_options o = small_options();
    struct raft_restored from = {.hard_state = {.term = 1, .commit = 5}};
    raft_create(&o, &from);
}

static void persist_what_was_never_written(void)
{
    struct sim s;
    struct raft_options o = small_options();
    sim_init(&s, &o, 1, 3, 0);
    raft_persisted(sim_node(&s, 1)->raft, 1);
}

static void lead_properly(void)
{
    struct sim s;
    struct raft_options o = small_options();
    sim_init(&s, &o, 1, 3, 0);
    let_first_lead(&s);
}

static void broken_safety_ends_the_process(void **state)
{
    (void)state;
    assert_false(ends_the_process(lead_properly)); /* the method itself */
    assert_true(ends_the_process(contradict_what_is_committed));
    assert_true(ends_the_process(lead_twice_in_one_term));
    assert_true(ends_the_process(follow_two_in_one_term));
    assert_true(ends_the_process(start_behind_what_was_committed));
    assert_true(ends_the_process(persist_what_was_never_written));
}

/* --- Ownership ------------------------------------------------------------------------------- */

static void refused_proposals_stay_the_callers(void **state)
{
    (void)state;
    struct sim s;
    struct raft_options o = small_options();
    sim_init(&s, &o, 1, 3, 0);
    struct raft_entry e = raft_entry_make(RAFT_ENTRY_COMMAND, slice_str("x"));
    assert_int_equal(raft_propose(sim_node(&s, 2)->raft, &e, 1), KRD_NOT_LEADER);
    let_first_lead(&s);
    struct raft *leader = sim_node(&s, 1)->raft;

    struct raft_entry two[] = {raft_entry_make(RAFT_ENTRY_COMMAND, slice_str("y")),
                               entry_of(5, 1, "sealed before")};
    struct raft_status before, after;
    raft_get_status(leader, &before);
    assert_int_equal(raft_propose(leader, two, 2), KRD_BAD_REQUEST);
    struct raft_entry bad = raft_entry_make(RAFT_ENTRY_CONFIG, slice_str("no configuration"));
    assert_int_equal(raft_propose(leader, &bad, 1), KRD_BAD_REQUEST);
    raft_get_status(leader, &after);
    assert_int_equal(before.last, after.last); /* not even the first of the two */
    assert_int_equal(two[0].index, 0);
    raft_entry_unref(&two[0]);
    raft_entry_unref(&two[1]);
    raft_entry_unref(&bad);

    assert_int_equal(raft_propose(leader, &e, 1), KRD_OK);
    sim_deinit(&s);
}

static void require_payloads(const struct raft_entry *e, size_t n, const char *payload)
{
    for (size_t i = 0; i < n; i++)
        assert_true(slice_eq(raft_payload(&e[i]), slice_str(payload)));
}

/* The host still holds a ready while the next events replace, evict and add what stands in it. */
static void a_ready_stays_valid_until_the_next(void **state)
{
    (void)state;
    struct raft_options o = small_options();
    o.id = 2;
    o.cache_bytes = 0;
    struct raft_config_state c = {.n = 3};
    for (uint32_t i = 0; i < 3; i++) {
        c.members[i] = (struct raft_member){.id = i + 1, .voter = true, .name = "n"};
    }
    struct raft_restored from = {.config = &c};
    struct raft *r = raft_create(&o, &from);
    struct raft_ready ready;

    struct raft_message m = append_of(1, 1, 2, 0, 0, 0, "one");
    raft_step(r, &m);
    m = append_of(1, 1, 2, 1, 1, 0, "one");
    raft_step(r, &m);
    assert_true(raft_take_ready(r, &ready));
    assert_int_equal(ready.write.n_entries, 2);

    /* Both are replaced, and many more come. */
    m = append_of(2, 3, 2, 0, 0, 0, "two");
    raft_step(r, &m);
    for (raft_index i = 1; i < 2000; i++) {
        m = append_of(2, 3, 2, i, 2, 0, "two");
        raft_step(r, &m);
    }
    require_payloads(ready.write.entries, 2, "one");
    raft_persisted(r, ready.write.seq);

    assert_true(raft_take_ready(r, &ready));
    assert_int_equal(ready.write.n_entries, 2000);
    assert_int_equal(ready.write.entries[0].index, 1);
    raft_persisted(r, ready.write.seq);
    require_payloads(ready.write.entries, 2000, "two");

    /* Committed entries are applied, and with no cache leave memory at once. */
    m = append_of(2, 3, 2, 2000, 2, 2001, "two");
    raft_step(r, &m);
    assert_true(raft_take_ready(r, &ready));
    assert_int_equal(ready.n_committed, 2000);
    raft_persisted(r, ready.write.seq);
    raft_applied(r, 2000);
    raft_compacted(r, 1500);
    require_payloads(ready.committed, 2000, "two");
    struct raft_status st;
    raft_get_status(r, &st);
    assert_int_equal(st.cached_bytes, 0);
    assert_int_equal(raft_term_at(r, 1499), 0);
    assert_int_equal(raft_term_at(r, 1500), 2);
    raft_destroy(r);
}

static void messages_of_a_ready_outlive_new_messages(void **state)
{
    (void)state;
    struct sim s;
    struct raft_options o = small_options();
    sim_init(&s, &o, 1, 3, 0);
    let_first_lead(&s);
    struct raft *leader = sim_node(&s, 1)->raft;
    assert_int_equal(sim_propose(&s, 1, RAFT_ENTRY_COMMAND, slice_str("x")), KRD_OK);
    struct raft_ready ready;
    assert_true(raft_take_ready(leader, &ready));
    assert_int_equal(ready.n_messages, 2);
    for (int i = 0; i < 100; i++) { /* each is answered by a message */
        struct raft_message m = {.type = RAFT_MSG_PREVOTE, .term = 2, .from = 2, .to = 1};
        raft_step(leader, &m);
    }
    for (size_t i = 0; i < 2; i++) {
        assert_int_equal(ready.messages[i].type, RAFT_MSG_APPEND);
        require_payloads(ready.messages[i].u.append.entries, 1, "x");
    }
    /* Both followers and the disk are given the same copy. */
    assert_ptr_equal(ready.messages[0].u.append.entries, ready.messages[1].u.append.entries);
    assert_ptr_equal(ready.messages[0].u.append.entries, ready.write.entries);
    raft_persisted(leader, ready.write.seq);
    sim_deinit(&s);
}

/* --- Other edges ----------------------------------------------------------------------------- */

static void nothing_new_is_no_ready(void **state)
{
    (void)state;
    struct sim s;
    struct raft_options o = small_options();
    sim_init(&s, &o, 1, 3, 0);
    struct raft_ready ready;
    assert_false(raft_take_ready(sim_node(&s, 1)->raft, &ready));
    let_first_lead(&s);
    for (raft_id id = 1; id <= 3; id++)
        assert_false(raft_take_ready(sim_node(&s, id)->raft, &ready));
    sim_deinit(&s);
}

static void a_member_without_a_configuration_waits(void **state)
{
    (void)state;
    struct raft_options o = small_options();
    struct raft_restored from = {.last_index = 0};
    struct raft *r = raft_create(&o, &from);
    struct raft_ready ready;
    for (int i = 0; i < 100; i++)
        raft_tick(r);
    assert_false(raft_take_ready(r, &ready));
    /* A leader may come and tell. */
    struct raft_message m = append_of(3, 7, 1, 0, 0, 0, "x");
    raft_step(r, &m);
    assert_true(raft_take_ready(r, &ready));
    assert_int_equal(ready.write.n_entries, 1);
    raft_destroy(r);
}

static void a_member_that_is_alone_does_not_wait(void **state)
{
    (void)state;
    struct sim s;
    struct raft_options o = small_options();
    sim_init(&s, &o, 1, 1, 0);
    raft_tick(sim_node(&s, 1)->raft);
    stabilize(&s);
    struct raft_status st;
    raft_get_status(sim_node(&s, 1)->raft, &st);
    assert_int_equal(st.role, RAFT_LEADER);
    assert_true(st.leader_ready);
    sim_deinit(&s);
}

static void round_trips_are_measured(void **state)
{
    (void)state;
    struct sim s;
    struct raft_options o = small_options();
    sim_init(&s, &o, 1, 3, 0);
    let_first_lead(&s);
    struct raft *leader = sim_node(&s, 1)->raft;
    for (int i = 0; i < 3; i++)
        raft_tick(leader);
    sim_turn(&s, 1);
    for (size_t n = s.n_queue; n > 0; n--)
        sim_deliver(&s, 0);
    sim_turn(&s, 2);
    raft_set_now_us(leader, s.now_ms * 1000 + 250);
    sim_deliver(&s, 0);
    struct raft_status st;
    raft_get_status(leader, &st);
    assert_int_equal(st.peers[0].id, 2);
    assert_int_equal(st.peers[0].rtt_us, 250);
    assert_int_equal(st.peers[1].rtt_us, 0); /* has not answered */
    sim_deinit(&s);
}

/* --- The same twice -------------------------------------------------------------------------- */

static void live(uint64_t seed, struct krd_buf *out)
{
    struct sim s;
    struct raft_options o = small_options();
    struct krd_rand r;
    krd_rand_seed(&r, seed);
    sim_init(&s, &o, seed, 5, 0);
    s.out = out;
    for (int i = 0; i < 3000; i++) {
        raft_id id = 1 + krd_rand_below(&r, 5);
        uint64_t dice = krd_rand_below(&r, 10);
        if (dice < 4)
            raft_tick(sim_node(&s, id)->raft);
        else if (dice < 6)
            sim_persist(&s, id, 1);
        else if (dice < 7)
            (void)!sim_propose(&s, id, RAFT_ENTRY_COMMAND, slice_str("x"));
        for (uint64_t n = krd_rand_below(&r, 4); n > 0 && s.n_queue > 0; n--)
            sim_deliver(&s, krd_rand_below(&r, 10) == 0 ? s.n_queue - 1 : 0);
        sim_turn(&s, id);
    }
    sim_deinit(&s);
}

static void the_same_history_has_the_same_effects(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 5; seed++) {
        struct krd_buf once = KRD_BUF_INIT, again = KRD_BUF_INIT;
        live(seed, &once);
        live(seed, &again);
        assert_true(once.len > 10000);
        assert_true(slice_eq(krd_buf_slice(&once), krd_buf_slice(&again)));
        krd_buf_deinit(&once);
        krd_buf_deinit(&again);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(broken_safety_ends_the_process),
        cmocka_unit_test(refused_proposals_stay_the_callers),
        cmocka_unit_test(a_ready_stays_valid_until_the_next),
        cmocka_unit_test(messages_of_a_ready_outlive_new_messages),
        cmocka_unit_test(nothing_new_is_no_ready),
        cmocka_unit_test(a_member_without_a_configuration_waits),
        cmocka_unit_test(a_member_that_is_alone_does_not_wait),
        cmocka_unit_test(round_trips_are_measured),
        cmocka_unit_test(the_same_history_has_the_same_effects),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
