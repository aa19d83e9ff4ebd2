/* check.c - what is true of any state, a sentence per line. What is true between two states is
 * asserted where the change is made: one vote per term (set_hard_state), commit never falls
 * (commit_to), nothing committed is removed (truncate_from). */
#include "raft/core.h"

static void check_order(const struct raft *r)
{
    KRD_ASSERT(r->commit <= r->log.last);
    KRD_ASSERT(r->log.applied <= r->handed);
    KRD_ASSERT(r->handed <= r->commit);
    KRD_ASSERT(r->handed <= r->log.stable); /* nothing is applied that our disk has not */
    KRD_ASSERT(r->safe_to_cut <= r->commit);
    KRD_ASSERT(r->safe_to_cut <= r->log.stable || r->role == RAFT_LEADER);
    KRD_ASSERT(log_last_term(&r->log) <= r->term);
}

static void check_writes(const struct raft *r)
{
    KRD_ASSERT(r->seq_persisted <= r->seq_issued);
    KRD_ASSERT(r->seq_issued - r->seq_persisted == r->writes.n); /* each write is pending or done */
    for (size_t i = 0; i < r->writes.n; i++) {
        KRD_ASSERT(r->writes.at[i].seq == r->seq_persisted + 1 + i);
        KRD_ASSERT(r->writes.at[i].last <= r->log.written);
        KRD_ASSERT(i == 0 || r->writes.at[i - 1].last <= r->writes.at[i].last);
    }
    for (size_t i = 0; i < r->promises.n; i++) {
        KRD_ASSERT(r->promises.at[i].seq > r->seq_persisted);
        KRD_ASSERT(r->promises.at[i].seq <= r->seq_issued + 1);
    }
}

static void check_progress(const struct raft *r, const struct progress *p)
{
    KRD_ASSERT(p->match < p->next);
    KRD_ASSERT(p->next <= r->log.last + 1);
    KRD_ASSERT(p->n_inflight <= r->options.inflight_messages_max);
    KRD_ASSERT(p->state == RAFT_REPLICATE || p->n_inflight == 0);
    KRD_ASSERT(p->state == RAFT_REPLICATE || p->n_fetched == 0);
    KRD_ASSERT(p->n_fetched == 0 || p->fetched[0].index == p->next);
    KRD_ASSERT(p->round <= r->round);
    if (p->id == r->id)
        KRD_ASSERT(p->match == r->log.stable); /* we count ourselves when our disk has it */
}

static void check_leader(const struct raft *r)
{
    const struct raft_config_state *c = config_of(r);
    KRD_ASSERT(r->leader == r->id);
    KRD_ASSERT(r->term_start <= r->log.last);
    KRD_ASSERT(log_term(&r->log, r->term_start) == r->term || r->term_start < r->log.base);
    KRD_ASSERT(r->round_confirmed <= r->round);
    KRD_ASSERT((r->uncommitted_bytes == 0) == (r->commit == r->log.last));
    for (uint32_t i = 0; i < c->n; i++) {
        KRD_ASSERT(r->progress[i].id == c->members[i].id);
        check_progress(r, &r->progress[i]);
    }
}

static void check_role(const struct raft *r)
{
    switch (r->role) {
    case RAFT_FOLLOWER:
        KRD_ASSERT(r->leader != r->id);
        break;
    case RAFT_PRE_CANDIDATE:
        KRD_ASSERT(r->leader == 0);
        break;
    case RAFT_CANDIDATE:
        KRD_ASSERT(r->leader == 0);
        KRD_ASSERT(r->vote == r->id);
        break;
    case RAFT_LEADER:
        KRD_ASSERT(r->vote == r->id);
        check_leader(r);
        break;
    }
    KRD_ASSERT(r->own_vote_seq == 0 || r->role == RAFT_CANDIDATE);
    KRD_ASSERT(r->transfer_to == 0 || r->role == RAFT_LEADER);
}

void raft_check(const struct raft *r)
{
    log_check(&r->log);
    check_order(r);
    check_writes(r);
    check_role(r);
    KRD_ASSERT(r->configs.n > 0);
    KRD_ASSERT(r->configs.at[r->configs.n - 1].index <= r->log.last);
}
