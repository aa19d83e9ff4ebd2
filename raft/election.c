/* election.c - how a leader is found, kept and replaced.
 *
 * 1. A follower that hears no leader for its timeout asks whether it could win (pre-vote, thesis
 *    9.6). Nobody's term moves for a question, so a node that was cut off cannot disturb.
 * 2. With a majority of grants it opens a term, votes for itself and asks for votes. Its own vote
 *    counts when it is durable, like any other.
 * 3. With a majority of votes it leads.
 *
 * What can go wrong. Votes split: everybody draws a new timeout. The leader's process dies: the
 * transport says so (raft_peer_lost) and the wait shrinks to a few ticks; those who still hear the
 * leader refuse, so a false alarm costs nothing. The leader is cut off: it notices that no quorum
 * answers and steps down, before or while the others elect. The leader is to be relieved: it tells
 * its successor to skip the question, because it would be refused on the old leader's account. */
#include "raft/core.h"

/* §5.2: spread, so that votes seldom split. After a crash everybody knows at the same moment that
 * the leader is gone, and a few ticks of spread are enough; a candidate waits longer than that, for
 * its votes have to reach disks. */
void draw_timeout(struct raft *r)
{
    uint32_t quick = r->options.crash_delay_ticks;
    uint32_t least, spread;
    if (r->hurry == 0)
        least = spread = r->options.election_ticks;
    else if (r->role == RAFT_CANDIDATE)
        least = spread = 4 * quick;
    else
        least = 1, spread = 2 * quick;
    r->timeout = least + (uint32_t)krd_rand_below(&r->rand, spread);
}

static void restart_timer(struct raft *r)
{
    r->elapsed = 0;
    draw_timeout(r);
}

/* The leader itself is free to ask: it knows best that it does not lead any more. */
bool hears_leader_other_than(const struct raft *r, raft_id candidate)
{
    if (r->role == RAFT_LEADER)
        return true;
    return r->leader != 0 && r->leader != candidate && r->since_leader < r->options.election_ticks;
}

/* §5.4.1: the later term wins, then the longer log. */
static bool up_to_date(const struct raft *r, raft_term last_term, raft_index last_index)
{
    raft_term ours = log_last_term(&r->log);
    return last_term > ours || (last_term == ours && last_index >= r->log.last);
}

/* --- Campaigning -------------------------------------------------------------------------- */

static void ask_voters(struct raft *r, enum raft_message_type type, raft_term term)
{
    const struct raft_config_state *c = config_of(r);
    for (uint32_t i = 0; i < c->n; i++) {
        raft_id id = c->members[i].id;
        if (id == r->id || !is_voter(r, id))
            continue;
        struct raft_message m = message_to(r, type, id);
        m.term = term;
        m.u.vote.last_index = r->log.last;
        m.u.vote.last_term = log_last_term(&r->log);
        m.u.vote.transfer = r->vote_transfer;
        send_message(r, &m);
    }
}

static void count_vote(struct raft *r, raft_id from, bool granted);

static void ask_whether_we_could_win(struct raft *r)
{
    become_pre_candidate(r);
    r->elections++;
    restart_timer(r);
    ask_voters(r, RAFT_MSG_PREVOTE, r->term + 1);
    count_vote(r, r->id, true);
}

static void campaign(struct raft *r, bool transfer)
{
    become_candidate(r);
    r->vote_transfer = transfer;
    restart_timer(r);
    ask_voters(r, RAFT_MSG_VOTE, r->term);
}

/* Any answer, our own included, in either phase. */
static void count_vote(struct raft *r, raft_id from, bool granted)
{
    int member = member_index(r, from);
    KRD_ASSERT(member >= 0);
    r->votes[member] = granted ? 1 : -1;
    switch (raft_config_vote_outcome(config_of(r), r->votes)) {
    case RAFT_VOTE_PENDING:
        break;
    case RAFT_VOTE_LOST:
        become_follower(r, r->term, 0);
        if (r->hurry > 0)
            restart_timer(r); /* the candidate's wait is over */
        break;
    case RAFT_VOTE_WON:
        if (r->role == RAFT_PRE_CANDIDATE)
            campaign(r, false);
        else
            become_leader(r);
        break;
    }
}

void own_vote_durable(struct raft *r)
{
    if (r->own_vote_seq == 0 || r->own_vote_seq > r->seq_persisted)
        return;
    KRD_ASSERT(r->role == RAFT_CANDIDATE);
    r->own_vote_seq = 0;
    count_vote(r, r->id, true);
}

void election_tick(struct raft *r)
{
    r->since_leader++;
    r->hurry -= r->hurry > 0;
    if (++r->elapsed < r->timeout)
        return;
    if (is_voter(r, r->id)) {
        ask_whether_we_could_win(r);
        return;
    }
    /* Learners wait to be led, but need not believe in a leader who is silent. */
    become_follower(r, r->term, 0);
    restart_timer(r);
}

/* --- Answers to candidates ---------------------------------------------------------------- */

void on_prevote(struct raft *r, const struct raft_message *m)
{
    KRD_ASSERT(m->term >= r->term);
    bool could_vote = m->term > r->term || r->vote == m->from || (r->vote == 0 && r->leader == 0);
    bool granted = could_vote && !hears_leader_other_than(r, m->from) &&
                   up_to_date(r, m->u.vote.last_term, m->u.vote.last_index);

    struct raft_message reply = message_to(r, RAFT_MSG_PREVOTE_REPLY, m->from);
    reply.u.vote_reply.granted = granted;
    if (granted)
        reply.term = m->term; /* a yes is about the term asked for, a no carries our own */
    send_message(r, &reply);
}

void on_prevote_reply(struct raft *r, const struct raft_message *m)
{
    if (r->role != RAFT_PRE_CANDIDATE)
        return;
    if (m->u.vote_reply.granted && m->term != r->term + 1)
        return; /* granted for an earlier question */
    count_vote(r, m->from, m->u.vote_reply.granted);
}

/* Learners vote like everybody: the candidate's configuration may be newer than theirs. */
void on_vote(struct raft *r, const struct raft_message *m)
{
    KRD_ASSERT(m->term == r->term);
    bool free_to = r->vote == m->from || (r->vote == 0 && r->leader == 0);
    bool granted = free_to && up_to_date(r, m->u.vote.last_term, m->u.vote.last_index);
    if (granted && r->vote == 0) {
        KRD_ASSERT(r->role == RAFT_FOLLOWER || r->role == RAFT_PRE_CANDIDATE);
        become_follower(r, r->term, 0);
        set_hard_state(r, r->term, m->from);
    }
    if (granted) { /* gives the candidate its time to lead. §5.2 */
        r->hurry = 0;
        restart_timer(r);
    }
    struct raft_message reply = message_to(r, RAFT_MSG_VOTE_REPLY, m->from);
    reply.u.vote_reply.granted = granted;
    send_when_durable(r, &reply, 0);
}

void on_vote_reply(struct raft *r, const struct raft_message *m)
{
    KRD_ASSERT(m->term == r->term);
    if (r->role == RAFT_CANDIDATE)
        count_vote(r, m->from, m->u.vote_reply.granted);
}

/* --- A leader lost, a leader relieved ------------------------------------------------------ */

void raft_peer_lost(struct raft *r, raft_id peer)
{
    if (r->role == RAFT_LEADER) {
        struct progress *p = progress_of(r, peer);
        if (p)
            progress_probe(r, p, true);
        return;
    }
    if (peer == 0 || peer != r->leader)
        return;
    become_follower(r, r->term, 0);
    r->hurry = r->options.election_ticks;
    r->elapsed = 0;
    r->timeout = 1 + (uint32_t)krd_rand_below(&r->rand, r->options.crash_delay_ticks);
}

/* Whom we hear goes before who has more, for he must be told. */
static bool better_successor(const struct raft *r, const struct progress *a,
                             const struct progress *b)
{
    bool a_heard = r->ticks - a->heard_tick < r->options.election_ticks;
    bool b_heard = r->ticks - b->heard_tick < r->options.election_ticks;
    return a_heard != b_heard ? a_heard : a->match > b->match;
}

static raft_id best_successor(const struct raft *r)
{
    const struct progress *best = NULL;
    for (uint32_t i = 0; i < config_of(r)->n; i++) {
        const struct progress *p = &r->progress[i];
        if (p->id == r->id || !config_of(r)->members[i].voter)
            continue;
        if (!best || better_successor(r, p, best))
            best = p;
    }
    return best ? best->id : 0;
}

enum krd_status raft_transfer(struct raft *r, raft_id to)
{
    if (r->role != RAFT_LEADER)
        return KRD_NOT_LEADER;
    if (to == r->id)
        return KRD_OK;
    if (r->transfer_to != 0)
        return KRD_CONFLICT;
    if (to == 0)
        to = best_successor(r);
    const struct raft_member *m = raft_config_find(config_of(r), to);
    if (!m || !m->voter)
        return KRD_NOT_FOUND;
    r->transfer_to = to;
    r->transfer_elapsed = 0;
    r->transfer_told = false;
    transfer_proceed(r);
    return KRD_OK;
}

/* Once the successor has everything (we take no more proposals), it may begin. */
void transfer_proceed(struct raft *r)
{
    if (r->transfer_to == 0 || r->transfer_told)
        return;
    if (progress_of(r, r->transfer_to)->match < r->log.last)
        return;
    struct raft_message m = message_to(r, RAFT_MSG_TIMEOUT_NOW, r->transfer_to);
    send_message(r, &m);
    r->transfer_told = true;
}

void on_timeout_now(struct raft *r, const struct raft_message *m)
{
    KRD_ASSERT(m->term == r->term);
    if (r->role != RAFT_FOLLOWER || m->from != r->leader || !is_voter(r, r->id))
        return;
    r->elections++;
    campaign(r, true);
}
