/* read.c - linearizable reads without the log (thesis 6.4).
 *
 * 1. A read that reaches the leader waits for a round of leadership confirmation that starts after
 *    it arrived. All reads of a turn share a round; with two rounds on their way, later reads wait
 *    and share the next one.
 * 2. When a round starts, its reads take the commit index. A quorum that answers the round's
 *    heartbeats in our term shows that nobody had committed more without us.
 * 3. The answer is that index; the host serves the read when it has applied so far.
 *
 * A follower asks its leader: all reads of a turn share one question, and an answer also serves
 * older questions whose answers were lost. An index stays true whatever happens after, a flag
 * "I lead" does not: so nothing here is remembered as permission.
 *
 * Before the leader has committed in its own term it does not know what was committed before; reads
 * wait. When the leader changes, everything that waits is refused and must be asked again. */
#include "raft/core.h"

enum { ROUNDS_OUTSTANDING_MAX = 2 };

bool leader_ready(const struct raft *r)
{
    return r->role == RAFT_LEADER && r->commit >= r->term_start;
}

static void answer(struct raft *r, const struct pending_read *read, raft_index index)
{
    if (read->from == 0) {
        VEC_PUSH(&r->gathering.answers, (struct raft_read_ready){read->ctx, index});
        return;
    }
    struct raft_message m = message_to(r, RAFT_MSG_READ_INDEX_REPLY, read->from);
    m.u.read_index_reply.ctx = read->ctx;
    m.u.read_index_reply.index = index;
    send_message(r, &m);
}

/* Takes the n oldest off the queue. */
static void drop_oldest(struct raft *r, size_t n)
{
    if (n == 0)
        return;
    r->reads.n -= n;
    memmove(r->reads.at, r->reads.at + n, r->reads.n * sizeof *r->reads.at);
}

void reads_refuse(struct raft *r)
{
    for (size_t i = 0; i < r->reads.n; i++)
        answer(r, &r->reads.at[i], 0);
    r->reads.n = 0;
}

enum krd_status raft_read(struct raft *r, uint64_t ctx)
{
    if (r->leader == 0)
        return KRD_NO_LEADER;
    VEC_PUSH(&r->reads, (struct pending_read){.ctx = ctx});
    return KRD_OK;
}

/* --- The leader ---------------------------------------------------------------------------- */

/* New reads stand at the end of the queue, without a round. */
static bool start_round(struct raft *r)
{
    if (!leader_ready(r) || r->reads.n == 0 || r->reads.at[r->reads.n - 1].round != 0)
        return false;
    if (r->round - r->round_confirmed >= ROUNDS_OUTSTANDING_MAX)
        return false;
    r->round++;
    for (size_t i = r->reads.n; i-- > 0 && r->reads.at[i].round == 0;) {
        r->reads.at[i].round = r->round;
        r->reads.at[i].index = r->commit;
    }
    r->round_due = true;
    return true;
}

static void confirm_rounds(struct raft *r)
{
    uint64_t answered[KRD_MEMBERS_MAX];
    for (uint32_t i = 0; i < config_of(r)->n; i++)
        answered[i] = r->progress[i].id == r->id ? r->round : r->progress[i].round;
    uint64_t confirmed = raft_config_quorum_value(config_of(r), answered);
    r->round_confirmed = krd_max_u64(r->round_confirmed, confirmed);

    size_t n = 0;
    for (; n < r->reads.n; n++) {
        const struct pending_read *read = &r->reads.at[n];
        if (read->round == 0 || read->round > r->round_confirmed)
            break;
        answer(r, read, read->index);
    }
    drop_oldest(r, n);
}

/* --- Followers ----------------------------------------------------------------------------- */

/* Numbers the reads that are new; older ones keep theirs, and any later answer serves them. */
static void ask_leader(struct raft *r)
{
    bool new_reads = r->reads.n > 0 && r->reads.at[r->reads.n - 1].round == 0;
    if (r->leader == 0 || !(new_reads || r->question_due))
        return;
    r->questions++;
    r->question_due = false;
    r->question_age = 0;
    for (size_t i = r->reads.n; i-- > 0 && r->reads.at[i].round == 0;)
        r->reads.at[i].round = r->questions;
    struct raft_message m = message_to(r, RAFT_MSG_READ_INDEX, r->leader);
    m.u.read_index.ctx = r->question_base + r->questions;
    send_message(r, &m);
}

/* Once for each ready. */
void reads_proceed(struct raft *r)
{
    if (r->role != RAFT_LEADER) {
        ask_leader(r);
        return;
    }
    confirm_rounds(r);
    if (start_round(r))
        confirm_rounds(r); /* a quorum of one needs no answers */
}

/* Questions and answers get lost: what waits for long is asked again, as a new question. */
void reads_tick(struct raft *r)
{
    if (r->role == RAFT_LEADER || r->reads.n == 0)
        return;
    if (++r->question_age < 2 * r->options.heartbeat_ticks)
        return;
    r->question_due = true;
}

void on_read_index(struct raft *r, const struct raft_message *m)
{
    struct pending_read read = {.from = m->from, .ctx = m->u.read_index.ctx};
    if (r->role == RAFT_LEADER)
        VEC_PUSH(&r->reads, read);
    else
        answer(r, &read, 0);
}

void on_read_index_reply(struct raft *r, const struct raft_message *m)
{
    KRD_ASSERT(m->term == r->term);
    uint64_t question = m->u.read_index_reply.ctx - r->question_base;
    if (r->role != RAFT_FOLLOWER || m->from != r->leader)
        return;
    if (question == 0 || question > r->questions)
        return; /* an earlier incarnation of this process asked */
    size_t n = 0;
    for (; n < r->reads.n; n++) {
        const struct pending_read *read = &r->reads.at[n];
        if (read->round == 0 || read->round > question)
            break;
        answer(r, read, m->u.read_index_reply.index);
    }
    drop_oldest(r, n);
}
