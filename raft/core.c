/* core.c - the life of an event.
 *
 * 1. The host calls raft_step, raft_tick, raft_propose, ... (raft.h). A message first passes the
 *    term gate below: afterwards its term is ours, or its handler knows that it may not be.
 * 2. The handler of its type changes state and queues effects.
 * 3. raft_take_ready (ready.c) turns what changed into writes and messages.
 *
 * Who notices what goes wrong: messages for others and malformed ones are counted and dropped
 * here; a leader that was deposed learns it from the term in any answer; a leader that is cut off
 * notices by itself (check-quorum, election.c); a follower that lost entries is found by the
 * consistency check of the next append (replicate.c). */
#include "raft/core.h"

void raft_options_default(struct raft_options *o)
{
    raft_id id = o->id;
    uint64_t seed = o->seed;
    *o = (struct raft_options){
        .id = id,
        .seed = seed,
        .election_ticks = 100,
        .heartbeat_ticks = 10,
        .crash_delay_ticks = 3,
        .inflight_messages_max = 256,
        .inflight_bytes_max = 8u << 20,
        .append_bytes_max = KRD_APPEND_BYTES_MAX,
        .uncommitted_bytes_max = 64u << 20,
        .cache_bytes = 64u << 20,
    };
}

/* --- Creation ----------------------------------------------------------------------------- */

static void push_config(struct raft *r, raft_index index, const struct raft_config_state *from)
{
    struct raft_config_state *c = krd_zalloc(sizeof *c);
    if (from)
        *c = *from;
    VEC_PUSH(&r->configs, (struct config_at){index, c});
}

/* The newest configuration alone when it can no longer be rolled back; otherwise all those that
 * entries after applied brought, on top of the one before. */
static void restore_configs(struct raft *r, const struct raft_restored *from)
{
    if (from->config && from->config_index <= from->applied) {
        push_config(r, from->config_index, from->config);
        return;
    }
    push_config(r, from->config_before_index, from->config_before);
    for (size_t i = 0; i < from->n_entries; i++) {
        const struct raft_entry *e = &from->entries[i];
        if (e->type != RAFT_ENTRY_CONFIG)
            continue;
        push_config(r, e->index, NULL);
        enum krd_status st =
            raft_config_decode(raft_payload(e), r->configs.at[r->configs.n - 1].config);
        KRD_ASSERT(st == KRD_OK); /* the log's reader verified the record */
    }
}

static void check_options(const struct raft_options *o)
{
    KRD_ASSERT(o->id != 0);
    KRD_ASSERT(o->heartbeat_ticks > 0 && o->election_ticks > o->heartbeat_ticks);
    KRD_ASSERT(o->crash_delay_ticks > 0);
    KRD_ASSERT(o->inflight_messages_max > 0 && o->inflight_bytes_max > 0);
}

struct raft *raft_create(const struct raft_options *o, const struct raft_restored *from)
{
    check_options(o);
    struct raft *r = krd_zalloc(sizeof *r);
    r->options = *o;
    r->id = o->id;
    krd_rand_seed(&r->rand, o->seed);
    r->question_base = krd_rand_u64(&r->rand);

    log_init(&r->log, from);
    r->term = from->hard_state.term;
    r->vote = from->hard_state.vote;
    if (r->term <
        log_last_term(&r->log)) /* a log that was made, not written by us: a new cluster */
        set_hard_state(r, log_last_term(&r->log), 0);
    r->commit = krd_max_u64(from->hard_state.commit, from->applied);
    KRD_ASSERT(r->commit <= r->log.last); /* else durable entries were lost */
    r->handed = from->applied;
    r->clock_us = from->time_ms * 1000;
    r->entry_time_ms = from->time_ms;
    restore_configs(r, from);

    r->role = r->told_role = RAFT_FOLLOWER;
    r->told_term = r->term;
    draw_timeout(r);
    if (config_of(r)->n == 1 && is_voter(r, r->id))
        r->timeout = 1; /* nobody else can lead: why wait */
    raft_check(r);
    return r;
}

void raft_destroy(struct raft *r)
{
    if (!r)
        return;
    for (size_t i = 0; i < KRD_MEMBERS_MAX; i++)
        progress_release(r, &r->progress[i]);
    for (size_t i = 0; i < r->configs.n; i++)
        krd_free(r->configs.at[i].config);
    krd_free(r->configs.at);
    krd_free(r->reads.at);
    krd_free(r->writes.at);
    krd_free(r->promises.at);
    gathered_deinit(&r->gathering);
    gathered_deinit(&r->given);
    while (r->chunk) {
        struct entry_chunk *older = r->chunk->older;
        krd_free(r->chunk);
        r->chunk = older;
    }
    log_deinit(&r->log);
    krd_free(r);
}

/* --- Configuration and log ---------------------------------------------------------------- */

int member_index(const struct raft *r, raft_id id)
{
    const struct raft_member *m = raft_config_find(config_of(r), id);
    return m ? (int)(m - config_of(r)->members) : -1;
}

bool is_voter(const struct raft *r, raft_id id)
{
    const struct raft_member *m = raft_config_find(config_of(r), id);
    return m && (m->voter || m->voter_outgoing);
}

void append_entry(struct raft *r, const struct raft_entry *e)
{
    log_append(&r->log, e);
    clock_adopt(r, e->time_ms);
    r->entry_time_ms = krd_max_u64(r->entry_time_ms, e->time_ms);
    if (e->type != RAFT_ENTRY_CONFIG)
        return;
    push_config(r, e->index, NULL);
    struct config_at *now = &r->configs.at[r->configs.n - 1];
    enum krd_status st = raft_config_decode(raft_payload(e), now->config);
    KRD_ASSERT(st == KRD_OK); /* entries_acceptable, raft_propose */
    if (r->role == RAFT_LEADER)
        progress_reconfigure(r, now[-1].config);
}

void truncate_from(struct raft *r, raft_index from)
{
    KRD_ASSERT(r->role != RAFT_LEADER); /* leaders never remove their own entries. §5.3 */
    KRD_ASSERT(from > r->commit);       /* what is committed stays */
    log_truncate(&r->log, from);
    for (size_t i = 0; i < r->writes.n; i++)
        r->writes.at[i].last = krd_min_u64(r->writes.at[i].last, from - 1);
    while (r->configs.n > 1 && r->configs.at[r->configs.n - 1].index >= from)
        krd_free(r->configs.at[--r->configs.n].config);
}

void commit_to(struct raft *r, raft_index index)
{
    if (index <= r->commit)
        return;
    KRD_ASSERT(index <= r->log.last);
    if (r->role == RAFT_LEADER)
        for (raft_index i = r->commit + 1; i <= index; i++)
            r->uncommitted_bytes -= raft_record_bytes(log_entry(&r->log, i));
    r->commit = index;

    /* Configurations below one that is committed can no longer come back. */
    size_t keep = r->configs.n - 1;
    while (keep > 0 && r->configs.at[keep].index > index)
        keep--;
    for (size_t i = 0; i < keep; i++)
        krd_free(r->configs.at[i].config);
    memmove(r->configs.at, r->configs.at + keep, (r->configs.n - keep) * sizeof *r->configs.at);
    r->configs.n -= keep;
}

/* --- Changes of role ---------------------------------------------------------------------- */

void set_hard_state(struct raft *r, raft_term term, raft_id vote)
{
    KRD_ASSERT(term > r->term || (term == r->term && r->vote == 0)); /* one vote per term */
    r->term = term;
    r->vote = vote;
    r->hard_state_dirty = true;
}

/* What only the role that ends had use for. */
static void leave_role(struct raft *r)
{
    if (r->role == RAFT_LEADER) {
        for (size_t i = 0; i < KRD_MEMBERS_MAX; i++)
            progress_release(r, &r->progress[i]);
        r->transfer_to = 0;
        r->uncommitted_bytes = 0;
        r->heartbeat_due = r->round_due = false;
        r->elapsed = 0;
        draw_timeout(r);
    }
    r->own_vote_seq = 0;
    r->vote_transfer = false;
    memset(r->votes, 0, sizeof r->votes);
}

void become_follower(struct raft *r, raft_term term, raft_id leader)
{
    KRD_ASSERT(term >= r->term);
    KRD_ASSERT(leader != r->id);
    bool led = r->role == RAFT_LEADER;
    bool same_leader = leader != 0 && leader == r->leader && term == r->term;

    leave_role(r);
    if (term > r->term)
        set_hard_state(r, term, 0);
    r->role = RAFT_FOLLOWER;
    r->leader = leader;
    /* The election timer runs on: a term alone is no sign of a leader. §5.2 */
    if (led || !same_leader)
        reads_refuse(r);
}

void become_pre_candidate(struct raft *r)
{
    KRD_ASSERT(r->role != RAFT_LEADER);
    KRD_ASSERT(is_voter(r, r->id));
    leave_role(r);
    r->role = RAFT_PRE_CANDIDATE;
    r->leader = 0;
    reads_refuse(r);
}

void become_candidate(struct raft *r)
{
    KRD_ASSERT(r->role != RAFT_LEADER);
    KRD_ASSERT(is_voter(r, r->id));
    leave_role(r);
    r->role = RAFT_CANDIDATE;
    r->leader = 0;
    set_hard_state(r, r->term + 1, r->id);
    r->own_vote_seq = r->seq_issued + 1;
    reads_refuse(r);
}

void become_leader(struct raft *r)
{
    KRD_ASSERT(r->role == RAFT_CANDIDATE);
    KRD_ASSERT(r->vote == r->id);
    leave_role(r);
    r->role = RAFT_LEADER;
    r->leader = r->id;
    r->hurry = 0;
    r->heartbeat_elapsed = 0;
    r->round++; /* never starts again: an answer to an earlier term's round proves nothing */
    r->round_confirmed = r->round;
    r->uncommitted_bytes = 0;
    for (raft_index i = r->commit + 1; i <= r->log.last; i++)
        r->uncommitted_bytes += raft_record_bytes(log_entry(&r->log, i));
    progress_reset_all(r);

    /* Entries of earlier terms commit with the first of ours, and reads wait for it. §8 */
    r->term_start = r->log.last + 1;
    struct raft_entry noop = raft_entry_make(RAFT_ENTRY_NOOP, slice_of(NULL, 0));
    leader_append(r, &noop);
}

/* --- Messages in -------------------------------------------------------------------------- */

static bool is_reply(enum raft_message_type t)
{
    return t == RAFT_MSG_PREVOTE_REPLY || t == RAFT_MSG_VOTE_REPLY || t == RAFT_MSG_APPEND_REPLY ||
           t == RAFT_MSG_HEARTBEAT_REPLY;
}

static bool comes_from_leader(enum raft_message_type t)
{
    return t == RAFT_MSG_APPEND || t == RAFT_MSG_HEARTBEAT || t == RAFT_MSG_TIMEOUT_NOW;
}

/* Configurations must be readable before they are let into the log. */
static bool configs_readable(const struct raft_message *m)
{
    for (uint32_t i = 0; i < m->u.append.n_entries; i++) {
        const struct raft_entry *e = &m->u.append.entries[i];
        struct raft_config_state c;
        if (e->type == RAFT_ENTRY_CONFIG && raft_config_decode(raft_payload(e), &c) != KRD_OK)
            return false;
    }
    return true;
}

/* Requests are served whoever sends them: a leader or candidate may be in a configuration that we
 * have not received yet, and must be heard to send it (thesis 4.1.2). Answers only make sense from
 * members that we asked. */
static bool acceptable(const struct raft *r, const struct raft_message *m)
{
    if (m->to != r->id || m->from == 0 || m->from == r->id)
        return false;
    if (m->type < RAFT_MSG_PREVOTE || m->type >= RAFT_MSG_SNAPSHOT)
        return false;
    if (is_reply(m->type) && member_index(r, m->from) < 0)
        return false;
    return m->type != RAFT_MSG_APPEND || (raft_message_entries_ok(m) && configs_readable(m));
}

/* A newer term makes us a follower of it, with three exceptions. True: go on to the handler. */
static bool settle_newer(struct raft *r, const struct raft_message *m)
{
    if (m->type == RAFT_MSG_PREVOTE)
        return true; /* nobody is in that term yet. thesis 9.6 */
    if (m->type == RAFT_MSG_PREVOTE_REPLY && m->u.vote_reply.granted)
        return true; /* the term that we asked about */
    if (m->type == RAFT_MSG_VOTE && !m->u.vote.transfer && hears_leader_other_than(r, m->from))
        return false; /* somebody who was cut off may not depose a leader that works. §6, end */
    become_follower(r, m->term, comes_from_leader(m->type) ? m->from : 0);
    return true;
}

/* A message of an older term is answered where that helps the sender forward, else dropped. */
static bool settle_older(struct raft *r, const struct raft_message *m)
{
    struct raft_message reply;
    switch (m->type) {
    case RAFT_MSG_APPEND:
    case RAFT_MSG_HEARTBEAT:
        /* A deposed leader, or one whom a node with a higher term must be able to depose. The
         * round is 0: in our term this answer confirms nothing. */
        reply = message_to(r, RAFT_MSG_HEARTBEAT_REPLY, m->from);
        reply.u.heartbeat_reply.last_index = r->log.last;
        send_when_durable(r, &reply, 0);
        return false;
    case RAFT_MSG_PREVOTE:
        reply = message_to(r, RAFT_MSG_PREVOTE_REPLY, m->from);
        send_when_durable(r, &reply, 0);
        return false;
    case RAFT_MSG_VOTE:
        reply = message_to(r, RAFT_MSG_VOTE_REPLY, m->from);
        send_when_durable(r, &reply, 0);
        return false;
    case RAFT_MSG_READ_INDEX:
        return true; /* a reader's term does not matter to the read */
    default:
        r->dropped++;
        return false;
    }
}

static void handle(struct raft *r, struct raft_message *m)
{
    switch (m->type) {
    case RAFT_MSG_PREVOTE:
        on_prevote(r, m);
        break;
    case RAFT_MSG_PREVOTE_REPLY:
        on_prevote_reply(r, m);
        break;
    case RAFT_MSG_VOTE:
        on_vote(r, m);
        break;
    case RAFT_MSG_VOTE_REPLY:
        on_vote_reply(r, m);
        break;
    case RAFT_MSG_APPEND:
        on_append(r, m);
        break;
    case RAFT_MSG_APPEND_REPLY:
        on_append_reply(r, m);
        break;
    case RAFT_MSG_HEARTBEAT:
        on_heartbeat(r, m);
        break;
    case RAFT_MSG_HEARTBEAT_REPLY:
        on_heartbeat_reply(r, m);
        break;
    case RAFT_MSG_READ_INDEX:
        on_read_index(r, m);
        break;
    case RAFT_MSG_READ_INDEX_REPLY:
        on_read_index_reply(r, m);
        break;
    case RAFT_MSG_TIMEOUT_NOW:
        on_timeout_now(r, m);
        break;
    case RAFT_MSG_SNAPSHOT:
        break; /* acceptable() refused it */
    }
}

void raft_step(struct raft *r, struct raft_message *m)
{
    bool go_on = acceptable(r, m);
    if (!go_on)
        r->dropped++;
    else if (m->term > r->term)
        go_on = settle_newer(r, m);
    else if (m->term < r->term)
        go_on = settle_older(r, m);
    if (go_on)
        handle(r, m);
    raft_message_deinit(m);
}

/* --- Other events ------------------------------------------------------------------------- */

void raft_tick(struct raft *r)
{
    r->ticks++;
    if (r->role == RAFT_LEADER)
        leader_tick(r);
    else
        election_tick(r);
    reads_tick(r);
}

void raft_set_now_us(struct raft *r, uint64_t now_us)
{
    KRD_ASSERT(now_us >= r->now_us);
    if (r->now_us != 0)
        r->clock_us += now_us - r->now_us;
    r->now_us = now_us;
}

void raft_set_now(struct raft *r, uint64_t now_ms)
{
    raft_set_now_us(r, now_ms * 1000);
}

void clock_adopt(struct raft *r, uint64_t time_ms)
{
    if (time_ms <= UINT64_MAX / 1000)
        r->clock_us = krd_max_u64(r->clock_us, time_ms * 1000);
}

void clock_follow(struct raft *r, uint64_t time_ms)
{
    if (time_ms <= UINT64_MAX / 1000)
        r->clock_us = krd_max_u64(r->entry_time_ms, time_ms) * 1000;
}

void leader_append(struct raft *r, struct raft_entry *e)
{
    KRD_ASSERT(r->role == RAFT_LEADER);
    raft_entry_seal(e, r->log.last + 1, r->term, r->clock_us / 1000);
    r->uncommitted_bytes += raft_record_bytes(e);
    append_entry(r, e);
}

/* One at a time, and none before this leader knows what is committed (thesis 4.1, and the bug in
 * it that was found in 2015). */
static bool may_change_config(const struct raft *r)
{
    return leader_ready(r) && r->configs.at[r->configs.n - 1].index <= r->log.applied;
}

static enum krd_status check_proposal(const struct raft *r, const struct raft_entry *entries,
                                      size_t n)
{
    size_t bytes = 0;
    for (size_t i = 0; i < n; i++) {
        if (entries[i].index != 0)
            return KRD_BAD_REQUEST; /* sealed before: these bytes may be in somebody's log */
        bytes += raft_record_bytes(&entries[i]);
        if (entries[i].type != RAFT_ENTRY_CONFIG)
            continue;
        struct raft_config_state c;
        if (n != 1 || raft_config_decode(raft_payload(&entries[i]), &c) != KRD_OK)
            return KRD_BAD_REQUEST;
        if (!may_change_config(r))
            return KRD_AGAIN;
    }
    /* One proposal passes whatever its size when nothing else waits. */
    if (r->uncommitted_bytes > 0 && r->uncommitted_bytes + bytes > r->options.uncommitted_bytes_max)
        return KRD_OVERLOADED;
    return KRD_OK;
}

enum krd_status raft_propose(struct raft *r, struct raft_entry *entries, size_t n)
{
    if (r->role != RAFT_LEADER)
        return KRD_NOT_LEADER;
    if (r->transfer_to != 0)
        return KRD_AGAIN;
    enum krd_status st = check_proposal(r, entries, n);
    if (st != KRD_OK)
        return st;
    for (size_t i = 0; i < n; i++)
        leader_append(r, &entries[i]);
    return KRD_OK;
}

void raft_applied(struct raft *r, raft_index index)
{
    KRD_ASSERT(index <= r->handed);
    log_set_applied(&r->log, index);
    log_evict(&r->log, r->options.cache_bytes);
}

void raft_compacted(struct raft *r, raft_index index)
{
    log_cut(&r->log, index);
}

/* --- Looking in --------------------------------------------------------------------------- */

static struct raft_progress_status progress_status(const struct raft *r, const struct progress *p)
{
    return (struct raft_progress_status){
        .id = p->id,
        .match = p->match,
        .next = p->next,
        .state = p->state,
        .recently_active = r->ticks - p->heard_tick < r->options.election_ticks,
        .inflight = p->n_inflight,
        .rtt_us = p->rtt_us,
    };
}

void raft_get_status(const struct raft *r, struct raft_status *out)
{
    memset(out, 0, sizeof *out);
    out->id = r->id;
    out->leader = r->leader;
    out->role = r->role;
    out->term = r->term;
    out->vote = r->vote;
    out->base = r->log.base;
    out->last = r->log.last;
    out->stable = r->log.stable;
    out->commit = r->commit;
    out->applied = r->log.applied;
    out->safe_to_cut = r->safe_to_cut;
    out->transferring_to = r->transfer_to;
    out->leader_ready = leader_ready(r);
    out->time_ms = r->clock_us / 1000;
    out->elections = r->elections;
    out->dropped = r->dropped;
    out->cached_bytes = r->log.applied_bytes;
    out->uncommitted_bytes = r->uncommitted_bytes;
    if (r->role != RAFT_LEADER)
        return;
    for (uint32_t i = 0; i < config_of(r)->n; i++)
        if (r->progress[i].id != r->id)
            out->peers[out->n_peers++] = progress_status(r, &r->progress[i]);
}

const struct raft_config_state *raft_config(const struct raft *r, raft_index *index)
{
    if (index)
        *index = r->configs.at[r->configs.n - 1].index;
    return config_of(r);
}

uint64_t raft_time_ms(const struct raft *r)
{
    return r->clock_us / 1000;
}

raft_term raft_term_at(const struct raft *r, raft_index index)
{
    return log_term(&r->log, index);
}

const char *raft_role_name(enum raft_role role)
{
    static const char *const names[] = {"follower", "pre-candidate", "candidate", "leader"};
    return names[role];
}
