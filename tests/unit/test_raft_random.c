/* test_raft_random.c - thousands of short histories in which everything may happen: messages are
 * lost, doubled and reordered, disks are late, members crash and lose what their disks had not
 * completed, transports cry wolf. sim.c's watchdogs judge every step. Then the faults end and the
 * cluster must agree, apply everything everywhere and serve reads.
 *
 * A failure prints its seed: KRD_SEED=n ./test_raft_random runs that history alone, KRD_RUNS=n
 * more or fewer of them. */
#include "tests/raft/sim.h"

#include "base/rand.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

struct history {
    struct sim sim;
    struct krd_rand rand;
    uint64_t ctx;
    uint64_t proposed;
    /* How bad it gets, in thousandths of all steps. Some histories are nearly calm: with every
     * fault at once, nothing is ever agreed that could be lost. */
    uint64_t drops, doubles, reorders, crashes, alarms, splits;
    bool side[SIM_NODES_MAX]; /* of the cut through the network, by id - 1 */
    uint64_t split_steps;     /* how much longer there is one */
    uint64_t ticks;           /* of a hundred events; with many, leaders are short-lived */
    raft_id slow_clock;       /* a member that hardly notices time pass; 0: none */
    uint64_t disk_speed;      /* of a hundred steps, those in which a disk completes something */
    uint64_t net_speed; /* messages that arrive in a step, about half as many for each member */
};

/* What the histories contained, to see that they test something. */
static struct {
    uint64_t committed, leaders, refused, answered, crashes, fetches, compactions, transfers, cut;
} seen;

static uint64_t below(struct history *h, uint64_t n)
{
    return krd_rand_below(&h->rand, n);
}

static raft_id any_node(struct history *h)
{
    return 1 + below(h, h->sim.n);
}

static bool up(struct history *h, raft_id id)
{
    return sim_node(&h->sim, id)->raft != NULL;
}

/* Whom a random member takes for the leader; anybody when it knows of none. Faults that meet leaders
 * are the interesting ones. */
static raft_id somebodys_leader(struct history *h)
{
    raft_id id = any_node(h);
    struct raft_status st = {.leader = 0};
    if (up(h, id))
        raft_get_status(sim_node(&h->sim, id)->raft, &st);
    return st.leader != 0 ? st.leader : any_node(h);
}

static void split_network(struct history *h)
{
    if (h->split_steps > 0) {
        h->split_steps--;
        return;
    }
    if (below(h, 1000) >= h->splits)
        return;
    h->split_steps = 20 + below(h, 150);
    raft_id alone = below(h, 2) == 0 ? somebodys_leader(h) : 0;
    for (size_t i = 0; i < h->sim.n; i++)
        h->side[i] = alone != 0 ? i + 1 == alone : below(h, 2) == 0;
}

static bool cut_off(const struct history *h, const struct sim_message *m)
{
    return h->split_steps > 0 && h->side[m->from - 1] != h->side[m->to - 1];
}

static void deliver_some(struct history *h)
{
    for (uint64_t n = 1 + below(h, h->net_speed * h->sim.n); n > 0 && h->sim.n_queue > 0; n--) {
        size_t k = below(h, 1000) < h->reorders ? below(h, h->sim.n_queue) : 0;
        if (cut_off(h, &h->sim.queue[k]) || below(h, 1000) < h->drops)
            sim_drop(&h->sim, k);
        else if (below(h, 1000) < h->doubles)
            sim_duplicate(&h->sim, k);
        else
            sim_deliver(&h->sim, k);
    }
}

static void read_somewhere(struct history *h, raft_id id)
{
    enum krd_status st = sim_read(&h->sim, id, ++h->ctx);
    assert_true(st == KRD_OK || st == KRD_NO_LEADER);
}

static void propose_somewhere(struct history *h, raft_id id)
{
    uint8_t payload[200];
    memset(payload, (int)h->proposed++, sizeof payload);
    enum krd_status st =
        sim_propose(&h->sim, id, RAFT_ENTRY_COMMAND, slice_of(payload, below(h, sizeof payload)));
    assert_true(st == KRD_OK || st == KRD_NOT_LEADER || st == KRD_OVERLOADED || st == KRD_AGAIN);
}

static void compact_somewhere(struct history *h, raft_id id)
{
    struct raft_status st;
    raft_get_status(sim_node(&h->sim, id)->raft, &st);
    raft_index to = krd_min_u64(st.safe_to_cut, st.applied);
    if (to <= st.base)
        return;
    sim_compact(&h->sim, id, st.base + 1 + below(h, to - st.base));
    seen.compactions++;
}

static void transfer_somewhere(struct history *h, raft_id id)
{
    enum krd_status st = raft_transfer(sim_node(&h->sim, id)->raft, below(h, h->sim.n + 1));
    seen.transfers += st == KRD_OK;
}

static void fetch_somewhere(struct history *h, raft_id id)
{
    seen.fetches += sim_node(&h->sim, id)->n_fetches > 0;
    sim_answer_fetch(&h->sim, id, below(h, 5));
}

/* Of one member about another, or of all about one at once: then it may be deposed while it lives. */
static void false_alarm(struct history *h, struct raft *r)
{
    raft_id about = somebodys_leader(h);
    uint64_t dice = below(h, 3);
    if (dice == 0)
        raft_peer_unreachable(r, about);
    else if (dice == 1)
        raft_peer_lost(r, about);
    else
        for (raft_id id = 1; id <= h->sim.n; id++)
            if (id != about && up(h, id))
                raft_peer_lost(sim_node(&h->sim, id)->raft, about);
}

/* One event at a member that is up. */
static void event(struct history *h, raft_id id)
{
    struct raft *r = sim_node(&h->sim, id)->raft;
    if (below(h, 100) < h->ticks) {
        if (id != h->slow_clock || below(h, 10) == 0)
            raft_tick(r);
        return;
    }
    uint64_t dice = below(h, 100);
    if (dice < 35)
        propose_somewhere(h, id);
    else if (dice < 65)
        read_somewhere(h, id);
    else if (dice < 67)
        transfer_somewhere(h, id);
    else if (dice < 93)
        fetch_somewhere(h, id);
    else if (dice < 97)
        compact_somewhere(h, id);
    else
        raft_set_now(r, h->sim.now_ms += below(h, 50));
    raft_check(r);
}

static void tell_of_crash(struct history *h, raft_id gone)
{
    for (raft_id id = 1; id <= h->sim.n; id++)
        if (id != gone && up(h, id) && below(h, 2) == 0)
            raft_peer_lost(sim_node(&h->sim, id)->raft, gone);
}

static void crash_somewhere(struct history *h, raft_id id)
{
    if (below(h, 2) == 0)
        id = somebodys_leader(h);
    if (!up(h, id))
        return;
    sim_crash(&h->sim, id, below(h, 3));
    seen.crashes++;
    tell_of_crash(h, id);
}

static void something_at(struct history *h, raft_id id)
{
    if (!up(h, id)) {
        if (below(h, 50) == 0)
            sim_start(&h->sim, id);
    } else if (below(h, 1000) < h->crashes)
        crash_somewhere(h, id);
    else if (below(h, 1000) < h->alarms)
        false_alarm(h, sim_node(&h->sim, id)->raft);
    else
        event(h, id);
}

static void chaos(struct history *h)
{
    split_network(h);
    for (raft_id id = 1; id <= h->sim.n; id++) {
        if (below(h, 2) == 0)
            something_at(h, id);
        if (up(h, id) && below(h, 100) < h->disk_speed)
            sim_persist(&h->sim, id, 1 + below(h, 3));
        if (up(h, id) && below(h, 2) == 0) /* often several events share a turn */
            sim_turn(&h->sim, id);
    }
    deliver_some(h);
}

/* All members run, every message arrives, every write completes. */
static void calm(struct history *h)
{
    bool busy = true;
    while (busy) {
        busy = h->sim.n_queue > 0;
        while (h->sim.n_queue > 0)
            sim_deliver(&h->sim, 0);
        for (raft_id id = 1; id <= h->sim.n; id++) {
            while (sim_node(&h->sim, id)->n_fetches > 0)
                sim_answer_fetch(&h->sim, id, SIZE_MAX);
            sim_persist(&h->sim, id, SIZE_MAX);
            busy = sim_turn(&h->sim, id) || busy;
        }
    }
}

/* The leader, if there is one that everybody follows. */
static raft_id agreed_leader(struct history *h)
{
    struct raft_status first, st;
    raft_get_status(sim_node(&h->sim, 1)->raft, &first);
    for (raft_id id = 2; id <= h->sim.n; id++) {
        raft_get_status(sim_node(&h->sim, id)->raft, &st);
        if (st.leader != first.leader || st.term != first.term)
            return 0;
    }
    return first.leader;
}

static bool everything_everywhere(struct history *h)
{
    for (raft_id id = 1; id <= h->sim.n; id++)
        if (sim_node(&h->sim, id)->applied != h->sim.n_committed)
            return false;
    return true;
}

static void require_progress(struct history *h, bool ok, const char *what)
{
    if (ok)
        return;
    print_error("seed %llu: %s\n", (unsigned long long)h->sim.seed, what);
    for (raft_id id = 1; id <= h->sim.n; id++) {
        struct krd_buf out = KRD_BUF_INIT;
        sim_describe_node(&h->sim, id, &out);
        print_error("%.*s", (int)out.len, (const char *)out.ptr);
        krd_buf_deinit(&out);
    }
    fail();
}

static void must_progress(struct history *h)
{
    for (raft_id id = 1; id <= h->sim.n; id++)
        if (!up(h, id))
            sim_start(&h->sim, id);
    size_t before = 0;
    raft_id leader = 0;
    for (int t = 0; t < 300; t++) {
        for (raft_id id = 1; id <= h->sim.n; id++)
            raft_tick(sim_node(&h->sim, id)->raft);
        calm(h);
        leader = agreed_leader(h);
        if (t > 60 && leader != 0)
            break;
    }
    require_progress(h, leader != 0, "no leader");

    before = h->sim.n_committed;
    enum krd_status st =
        sim_propose(&h->sim, leader, RAFT_ENTRY_COMMAND, slice_str("after the storm"));
    require_progress(h, st == KRD_OK, "the leader takes no proposals");
    for (raft_id id = 1; id <= h->sim.n; id++) {
        sim_node(&h->sim, id)->reads_answered = 0;
        read_somewhere(h, id);
    }
    for (int t = 0; t < 30; t++) {
        for (raft_id id = 1; id <= h->sim.n; id++)
            raft_tick(sim_node(&h->sim, id)->raft);
        calm(h);
    }
    require_progress(h, h->sim.n_committed > before, "nothing commits");
    require_progress(h, everything_everywhere(h), "somebody does not apply everything");
    for (raft_id id = 1; id <= h->sim.n; id++)
        require_progress(h, sim_node(&h->sim, id)->reads_answered > 0, "a read is not answered");
}

static void count_what_was_seen(struct history *h)
{
    seen.committed += h->sim.n_committed;
    for (size_t t = 0; t < h->sim.leaders_cap; t++)
        seen.leaders += h->sim.leaders[t] != 0;
    for (raft_id id = 1; id <= h->sim.n; id++) {
        seen.refused += sim_node(&h->sim, id)->reads_refused;
        seen.answered += sim_node(&h->sim, id)->reads_answered;
        seen.cut += sim_node(&h->sim, id)->disk.base > 0;
    }
}

static void live_through(uint64_t seed, size_t voters, size_t learners)
{
    struct history h = {.ctx = 0};
    krd_rand_seed(&h.rand, seed);
    struct raft_options o = {
        .election_ticks = 10,
        .heartbeat_ticks = 2,
        .crash_delay_ticks = 2,
        .inflight_messages_max = 1 + (uint32_t)below(&h, 4),
        .inflight_bytes_max = 200 + below(&h, 2000),
        .append_bytes_max = below(&h, 1000),
        .uncommitted_bytes_max = 500 + below(&h, 5000),
        .cache_bytes = below(&h, 600),
    };
    h.drops = below(&h, 60) * below(&h, 2);
    h.doubles = below(&h, 60) * below(&h, 2);
    h.reorders = below(&h, 300) * below(&h, 2);
    h.crashes = below(&h, 15) * below(&h, 2);
    h.alarms = below(&h, 60) * below(&h, 2);
    h.splits = below(&h, 40) * below(&h, 3);
    h.disk_speed = 2 + below(&h, 60);
    h.net_speed = 1 + below(&h, 20);
    h.ticks = 20 + below(&h, 60);
    h.slow_clock = below(&h, voters + 1);
    sim_init(&h.sim, &o, seed, voters, learners);
    for (uint64_t steps = 200 + below(&h, 600); steps > 0; steps--) {
        chaos(&h);
        if (steps % 16 == 0)
            sim_check_logs(&h.sim);
    }
    count_what_was_seen(&h);
    must_progress(&h);
    sim_check_logs(&h.sim);
    sim_deinit(&h.sim);
}

static void live_through_many(size_t voters, size_t learners)
{
    const char *seed = getenv("KRD_SEED");
    const char *runs = getenv("KRD_RUNS");
    uint64_t first = seed ? strtoull(seed, NULL, 10) : 1;
    uint64_t n = seed ? 1 : runs ? strtoull(runs, NULL, 10) : 1500;
    memset(&seen, 0, sizeof seen);
    for (uint64_t i = 0; i < n; i++)
        live_through(first + i, voters, learners);
    print_message("%llu entries committed, %llu leaders, %llu reads answered, %llu refused, "
                  "%llu crashes, %llu fetches, %llu compactions, %llu transfers\n",
                  (unsigned long long)seen.committed, (unsigned long long)seen.leaders,
                  (unsigned long long)seen.answered, (unsigned long long)seen.refused,
                  (unsigned long long)seen.crashes, (unsigned long long)seen.fetches,
                  (unsigned long long)seen.compactions, (unsigned long long)seen.transfers);
    if (!seed && n >= 100) { /* histories without events would prove nothing */
        assert_true(seen.committed > n);
        assert_true(seen.leaders > n);
        assert_true(seen.answered > n / 10);
        assert_true(seen.crashes > n / 10);
        assert_true(seen.fetches > n / 10 || voters == 1);
        assert_true(seen.compactions > n / 10);
    }
}

static void three_members_keep_every_promise(void **state)
{
    (void)state;
    live_through_many(3, 0);
}

static void five_members_keep_every_promise(void **state)
{
    (void)state;
    live_through_many(5, 0);
}

static void four_voters_and_a_learner_keep_every_promise(void **state)
{
    (void)state;
    live_through_many(4, 1);
}

static void a_single_member_keeps_every_promise(void **state)
{
    (void)state;
    live_through_many(1, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(three_members_keep_every_promise),
        cmocka_unit_test(five_members_keep_every_promise),
        cmocka_unit_test(four_voters_and_a_learner_keep_every_promise),
        cmocka_unit_test(a_single_member_keeps_every_promise),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
