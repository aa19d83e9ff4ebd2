/* replicate.c - the log's way to the followers, and the commit index's way back.
 *
 * 1. The leader appends; with the next ready every follower in RAFT_REPLICATE is sent what is new,
 *    ahead of its answers, as far as its window allows. The leader's own disk writes meanwhile.
 * 2. A follower checks that the entry before is the same (§5.3), appends, and promises: the answer
 *    leaves when its disk has the entries.
 * 3. Answers move match; an index that a quorum holds, and whose entry is of our term, is committed
 *    (§5.4.2). Followers learn it with the next append, or at once by a notice when none goes out.
 *
 * Failures. A follower whose log differs rejects with a hint, and the leader goes back by whole
 * terms, one probe at a time. A lost append shows as a gap at the next one. When the last append,
 * or an answer, is lost and nothing follows, match stands still: a heartbeat's answer then makes
 * the leader ask with an empty append at the end of what was sent. Appends travel in order, so a
 * follower that has the rest says so, and one that has not rejects; a slow one is never sent the
 * same megabytes twice on suspicion. Entries that left memory are read from disk by the host
 * (raft_fetch). A follower that needs entries which are cut away waits for a snapshot. */
#include "raft/core.h"

/* --- Progress ------------------------------------------------------------------------------ */

struct progress *progress_of(struct raft *r, raft_id id)
{
    int i = member_index(r, id);
    if (r->role != RAFT_LEADER || i < 0 || id == r->id)
        return NULL;
    KRD_ASSERT(r->progress[i].id == id);
    return &r->progress[i];
}

static void drop_fetched(struct raft *r, struct progress *p)
{
    for (size_t i = 0; i < p->n_fetched; i++)
        log_bury(&r->log, p->fetched[i].blob);
    krd_free(p->fetched);
    p->fetched = NULL;
    p->n_fetched = 0;
}

static void clear_window(struct raft *r, struct progress *p)
{
    p->window_head = p->n_inflight = 0;
    p->inflight_bytes = 0;
    p->ask = false;
    drop_fetched(r, p);
}

void progress_release(struct raft *r, struct progress *p)
{
    clear_window(r, p);
    krd_free(p->window);
    memset(p, 0, sizeof *p);
}

static void progress_start(struct raft *r, struct progress *p, raft_id id)
{
    *p = (struct progress){
        .id = id,
        .next = r->log.last + 1,
        .state = RAFT_PROBE,
        .heard_tick = r->ticks,
    };
    p->window = krd_calloc(r->options.inflight_messages_max, sizeof *p->window);
}

/* What we know of ourselves: as much as our disk has. */
static void own_progress(struct raft *r, struct progress *p)
{
    KRD_ASSERT(p->id == r->id);
    p->match = r->log.stable;
    p->next = p->match + 1;
}

void progress_reset_all(struct raft *r)
{
    const struct raft_config_state *c = config_of(r);
    for (uint32_t i = 0; i < c->n; i++) {
        progress_start(r, &r->progress[i], c->members[i].id);
        if (c->members[i].id == r->id)
            own_progress(r, &r->progress[i]);
    }
}

/* Members that stay keep what is known of them. */
void progress_reconfigure(struct raft *r, const struct raft_config_state *before)
{
    const struct raft_config_state *c = config_of(r);
    struct progress *old = krd_alloc(sizeof r->progress);
    memcpy(old, r->progress, sizeof r->progress);
    memset(r->progress, 0, sizeof r->progress);
    for (uint32_t i = 0; i < c->n; i++) {
        const struct raft_member *was = raft_config_find(before, c->members[i].id);
        if (!was) {
            progress_start(r, &r->progress[i], c->members[i].id);
            continue;
        }
        r->progress[i] = old[was - before->members];
        memset(&old[was - before->members], 0, sizeof *old);
    }
    for (uint32_t i = 0; i < before->n; i++)
        progress_release(r, &old[i]);
    krd_free(old);
}

void progress_probe(struct raft *r, struct progress *p, bool paused)
{
    if (p->state == RAFT_SNAPSHOT)
        return;
    clear_window(r, p);
    if (p->state == RAFT_REPLICATE)
        p->next = p->match + 1; /* what was sent beyond may be lost */
    p->state = RAFT_PROBE;
    p->paused = paused;
    p->ask_after = r->ticks;
}

static void progress_replicate(struct raft *r, struct progress *p)
{
    clear_window(r, p);
    p->state = RAFT_REPLICATE;
    p->next = p->match + 1;
    p->match_at_heartbeat = p->match;
    p->ask_after = r->ticks + r->options.heartbeat_ticks;
}

static bool window_full(const struct raft *r, const struct progress *p)
{
    return p->n_inflight >= r->options.inflight_messages_max ||
           p->inflight_bytes >= r->options.inflight_bytes_max;
}

static void window_push(struct raft *r, struct progress *p, raft_index last, size_t bytes)
{
    KRD_ASSERT(p->n_inflight < r->options.inflight_messages_max);
    uint32_t slot = (p->window_head + p->n_inflight) % r->options.inflight_messages_max;
    p->window[slot] = (struct inflight){last, bytes};
    p->n_inflight++;
    p->inflight_bytes += bytes;
}

static void window_free(struct raft *r, struct progress *p, raft_index index)
{
    while (p->n_inflight > 0 && p->window[p->window_head].last <= index) {
        p->inflight_bytes -= p->window[p->window_head].bytes;
        p->window_head = (p->window_head + 1) % r->options.inflight_messages_max;
        p->n_inflight--;
    }
}

/* --- Requests: made once for each ready ---------------------------------------------------- */

/* Entries from p->next on for one append: as many as its byte limit allows, at least one. NULL:
 * they are not in memory (yet). */
static struct raft_entry *next_entries(struct raft *r, struct progress *p, size_t *n, size_t *bytes)
{
    *n = *bytes = 0;
    if (p->n_fetched > 0) {
        KRD_ASSERT(p->fetched[0].index == p->next);
        struct raft_entry *copy = chunk_take(r, p->n_fetched);
        memcpy(copy, p->fetched, p->n_fetched * sizeof *copy);
        *n = p->n_fetched;
        for (size_t i = 0; i < *n; i++)
            *bytes += raft_record_bytes(&copy[i]);
        drop_fetched(r, p); /* references live on until the next ready */
        return copy;
    }
    if (!log_in_memory(&r->log, p->next))
        return NULL;
    for (raft_index i = p->next; i <= r->log.last; i++) {
        size_t more = raft_record_bytes(log_entry(&r->log, i));
        if (*n > 0 && *bytes + more > r->options.append_bytes_max)
            break;
        *bytes += more;
        (*n)++;
    }
    return entries_for_ready(r, p->next, *n);
}

static void ask_for_fetch(struct raft *r, struct progress *p)
{
    if (p->fetching)
        return;
    p->fetching = true;
    VEC_PUSH(&r->gathering.fetches, (struct raft_fetch){
                                        .peer = p->id,
                                        .first = p->next,
                                        .last = krd_min_u64(r->log.first - 1, r->log.applied),
                                        .bytes_max = r->options.append_bytes_max,
                                    });
}

static void send_append(struct raft *r, struct progress *p, struct raft_entry *entries, size_t n)
{
    struct raft_message m = message_to(r, RAFT_MSG_APPEND, p->id);
    m.u.append.prev_index = p->next - 1;
    m.u.append.prev_term = log_term(&r->log, p->next - 1);
    m.u.append.commit = r->commit;
    m.u.append.safe_to_cut = r->safe_to_cut;
    m.u.append.time_ms = r->clock_us / 1000;
    m.u.append.n_entries = (uint32_t)n;
    m.u.append.entries = entries;
    send_message(r, &m);
    p->appended = true;
    p->told_commit = krd_max_u64(p->told_commit, krd_min_u64(r->commit, p->next - 1 + n));
}

/* One append, then silence until it is answered. The first probe carries entries, for it mostly
 * succeeds; what is asked again after silence does not. */
static void send_probe(struct raft *r, struct progress *p)
{
    bool nothing_to_learn = p->next > r->log.last && p->match == p->next - 1;
    if (p->paused || (nothing_to_learn && !p->ask))
        return;
    size_t n = 0, bytes;
    struct raft_entry *entries = NULL;
    if (!p->ask && p->next <= r->log.last)
        entries = next_entries(r, p, &n, &bytes);
    send_append(r, p, entries, n);
    p->ask = false;
    p->paused = true;
    p->ask_after = r->ticks + r->options.heartbeat_ticks;
}

static void send_stream(struct raft *r, struct progress *p)
{
    while (p->next <= r->log.last && !window_full(r, p)) {
        size_t n, bytes;
        struct raft_entry *entries = next_entries(r, p, &n, &bytes);
        if (!entries) {
            ask_for_fetch(r, p);
            break;
        }
        send_append(r, p, entries, n);
        p->next += n;
        window_push(r, p, p->next - 1, bytes);
    }
    if (p->ask && !p->appended)
        send_append(r, p, NULL, 0);
    p->ask = false;
}

static void replicate_to(struct raft *r, struct progress *p)
{
    p->appended = false;
    if (p->next <= r->log.base && p->state != RAFT_SNAPSHOT) {
        progress_probe(r, p, false); /* cut away meanwhile; it may have got that far */
        p->next = r->log.base + 1;
    }
    if (p->state == RAFT_PROBE)
        send_probe(r, p);
    else if (p->state == RAFT_REPLICATE)
        send_stream(r, p);
}

/* round 0: a notice of commit that wants no answer. */
static void send_heartbeat(struct raft *r, struct progress *p, uint64_t round)
{
    struct raft_message m = message_to(r, RAFT_MSG_HEARTBEAT, p->id);
    /* Never more than what is known to match, so that it may be adopted unseen. */
    m.u.heartbeat.commit = krd_min_u64(r->commit, p->match);
    m.u.heartbeat.safe_to_cut = r->safe_to_cut;
    m.u.heartbeat.round = round;
    m.u.heartbeat.time_ms = r->clock_us / 1000;
    m.u.heartbeat.sent_us = r->now_us;
    send_message(r, &m);
    p->told_commit = krd_max_u64(p->told_commit, m.u.heartbeat.commit);
}

void queue_requests(struct raft *r)
{
    const struct raft_config_state *c = config_of(r);
    for (uint32_t i = 0; i < c->n; i++) {
        struct progress *p = &r->progress[i];
        if (p->id == r->id)
            continue;
        replicate_to(r, p);
        bool for_round = r->round_due && is_voter(r, p->id);
        if (r->heartbeat_due || for_round)
            send_heartbeat(r, p, r->round);
        else if (krd_min_u64(r->commit, p->match) > p->told_commit)
            send_heartbeat(r, p, 0);
    }
    r->heartbeat_due = r->round_due = false;
}

/* --- The leader's clockwork ----------------------------------------------------------------- */

bool quorum_is_active(const struct raft *r)
{
    uint64_t heard[KRD_MEMBERS_MAX];
    for (uint32_t i = 0; i < config_of(r)->n; i++)
        heard[i] = r->progress[i].id == r->id ? r->ticks : r->progress[i].heard_tick;
    return r->ticks - raft_config_quorum_value(config_of(r), heard) < r->options.election_ticks;
}

void leader_tick(struct raft *r)
{
    if (!quorum_is_active(r)) { /* the others may have elected somebody. §6.2 of the thesis */
        become_follower(r, r->term, 0);
        return;
    }
    if (++r->heartbeat_elapsed >= r->options.heartbeat_ticks) {
        r->heartbeat_elapsed = 0;
        r->heartbeat_due = true;
    }
    if (r->transfer_to != 0 && ++r->transfer_elapsed >= r->options.election_ticks)
        r->transfer_to = 0; /* the successor is too slow; we go on */
}

/* --- Commit ---------------------------------------------------------------------------------- */

/* §5.3, §5.4.2: an index that a quorum holds counts only if its entry is of our term. Those before
 * it are committed with it; counted by themselves they could still be replaced (Figure 8). */
static void maybe_commit(struct raft *r)
{
    uint64_t match[KRD_MEMBERS_MAX];
    uint64_t everywhere = UINT64_MAX;
    for (uint32_t i = 0; i < config_of(r)->n; i++) {
        match[i] = r->progress[i].match;
        everywhere = krd_min_u64(everywhere, match[i]);
    }
    uint64_t index = raft_config_quorum_value(config_of(r), match);
    if (index > r->commit && log_term(&r->log, index) == r->term)
        commit_to(r, index);
    r->safe_to_cut = krd_max_u64(r->safe_to_cut, krd_min_u64(everywhere, r->commit));
}

void own_log_durable(struct raft *r)
{
    int i = member_index(r, r->id);
    if (r->role != RAFT_LEADER || i < 0)
        return;
    own_progress(r, &r->progress[i]);
    maybe_commit(r);
}

/* --- Followers -------------------------------------------------------------------------------- */

/* An append or heartbeat of our term is the leader's word, whatever else it says.
 *
 * Of cluster time, too. Members' clocks begin at different moments (a fresh cluster's were started
 * one after the other) and run at different speeds; if the fastest estimate survived, time would
 * leap with the next leader and leases would end early. So a new leader's first word and every
 * heartbeat set our clock, back as well; an append, which may have waited behind bulk data, only
 * moves it forward. */
static void leader_spoke(struct raft *r, raft_id leader, uint64_t time_ms, bool timely)
{
    bool news = r->role != RAFT_FOLLOWER || r->leader != leader;
    KRD_ASSERT(r->role != RAFT_LEADER); /* else two leaders share a term */
    KRD_ASSERT(r->leader == 0 || r->leader == leader);
    if (news) {
        become_follower(r, r->term, leader);
        r->hurry = 0;
        draw_timeout(r); /* the election that we may have been in is over */
    }
    r->elapsed = 0;
    r->since_leader = 0;
    if (news || timely)
        clock_follow(r, time_ms);
    else
        clock_adopt(r, time_ms);
}

static void adopt_safe_to_cut(struct raft *r, raft_index index)
{
    index = krd_min_u64(index, krd_min_u64(r->commit, r->log.stable));
    r->safe_to_cut = krd_max_u64(r->safe_to_cut, index);
}

static void reject(struct raft *r, const struct raft_message *m)
{
    struct raft_message reply = message_to(r, RAFT_MSG_APPEND_REPLY, m->from);
    raft_index agree = log_agreement(&r->log, m->u.append.prev_index, m->u.append.prev_term);
    agree = krd_max_u64(agree, r->commit); /* so far every leader agrees */
    reply.u.append_reply.rejected = true;
    reply.u.append_reply.index = m->u.append.prev_index;
    reply.u.append_reply.hint = agree;
    reply.u.append_reply.hint_term = log_term(&r->log, agree);
    send_when_durable(r, &reply, 0);
}

/* Entries [0, n) of the message are in our log already, or below it. The log is cut only where a
 * term differs: a delayed duplicate of an older append must not remove what came after it. */
static uint32_t count_known(const struct raft *r, const struct raft_message *m)
{
    uint32_t n = 0;
    for (; n < m->u.append.n_entries; n++) {
        const struct raft_entry *e = &m->u.append.entries[n];
        if (e->index > r->log.last)
            break;
        if (e->index > r->log.base && log_term(&r->log, e->index) != e->term)
            break;
    }
    return n;
}

static void merge_entries(struct raft *r, struct raft_message *m)
{
    uint32_t n = m->u.append.n_entries;
    uint32_t known = count_known(r, m);
    for (uint32_t i = 0; i < known; i++)
        raft_entry_unref(&m->u.append.entries[i]);
    if (known < n && m->u.append.entries[known].index <= r->log.last)
        truncate_from(r, m->u.append.entries[known].index);
    for (uint32_t i = known; i < n; i++)
        append_entry(r, &m->u.append.entries[i]);
    m->u.append.n_entries = 0; /* all references have gone their way */
}

void on_append(struct raft *r, struct raft_message *m)
{
    KRD_ASSERT(m->term == r->term);
    leader_spoke(r, m->from, m->u.append.time_ms, false);

    raft_index prev = m->u.append.prev_index;
    bool below_base = prev < r->log.base; /* cut, hence committed, hence the same */
    if (!below_base && (prev > r->log.last || log_term(&r->log, prev) != m->u.append.prev_term)) {
        reject(r, m);
        return;
    }
    /* Only what this very message verified: more of our log may still be another leader's. */
    raft_index verified = prev + m->u.append.n_entries;
    merge_entries(r, m);
    commit_to(r, krd_min_u64(m->u.append.commit, verified));
    adopt_safe_to_cut(r, m->u.append.safe_to_cut);

    struct raft_message reply = message_to(r, RAFT_MSG_APPEND_REPLY, m->from);
    reply.u.append_reply.index = verified;
    send_when_durable(r, &reply, verified);
}

void on_heartbeat(struct raft *r, const struct raft_message *m)
{
    KRD_ASSERT(m->term == r->term);
    leader_spoke(r, m->from, m->u.heartbeat.time_ms, true);
    /* The leader has seen us acknowledge so much. If we do not have it, our disk forgot; adopting
     * it could commit another term's entries. */
    if (m->u.heartbeat.commit <= r->log.last)
        commit_to(r, m->u.heartbeat.commit);
    else
        r->dropped++;
    adopt_safe_to_cut(r, m->u.heartbeat.safe_to_cut);
    if (m->u.heartbeat.round == 0)
        return;
    struct raft_message reply = message_to(r, RAFT_MSG_HEARTBEAT_REPLY, m->from);
    reply.u.heartbeat_reply.round = m->u.heartbeat.round;
    reply.u.heartbeat_reply.sent_us = m->u.heartbeat.sent_us;
    reply.u.heartbeat_reply.last_index = r->log.last;
    send_message(r, &reply);
}

/* --- Answers -----------------------------------------------------------------------------------
 */

static void on_accepted(struct raft *r, struct progress *p, raft_index index)
{
    if (index > r->log.last) {
        r->dropped++; /* we never sent that */
        return;
    }
    p->match = krd_max_u64(p->match, index);
    if (p->next <= p->match) { /* an answer to what was sent before we began again */
        p->next = p->match + 1;
        drop_fetched(r, p);
    }
    window_free(r, p, p->match);
    if (p->state == RAFT_PROBE || (p->state == RAFT_SNAPSHOT && p->match >= r->log.base))
        progress_replicate(r, p);
    maybe_commit(r);
    transfer_proceed(r);
}

/* index: the entry before, which did not fit. Next to try is the last entry that both logs may
 * have: at most the hint, and of a term that the follower can have there. §5.3, end */
static void on_rejected(struct raft *r, struct progress *p, const struct raft_message *m)
{
    raft_index index = m->u.append_reply.index;
    if (index <= p->match || index >= p->next)
        return; /* overtaken by a later answer, or by what we learned since */
    if (p->state == RAFT_SNAPSHOT || (p->state == RAFT_PROBE && index != p->next - 1))
        return;
    raft_index agree = log_agreement(&r->log, m->u.append_reply.hint, m->u.append_reply.hint_term);
    raft_index next = krd_max_u64(p->match + 1, krd_min_u64(agree + 1, index));
    bool probed = p->state == RAFT_PROBE;
    progress_probe(r, p, false);
    p->next = krd_max_u64(next, r->log.base + 1);
    if (probed && index <= r->log.base)
        p->state = RAFT_SNAPSHOT; /* it does not even join our oldest entry */
}

void on_append_reply(struct raft *r, const struct raft_message *m)
{
    KRD_ASSERT(m->term == r->term);
    struct progress *p = progress_of(r, m->from);
    if (!p)
        return;
    p->heard_tick = r->ticks;
    if (m->u.append_reply.rejected)
        on_rejected(r, p, m);
    else
        on_accepted(r, p, m->u.append_reply.index);
}

static void note_round_trip(const struct raft *r, struct progress *p, uint64_t sent_us)
{
    if (sent_us == 0 || sent_us > r->now_us)
        return;
    uint64_t sample = r->now_us - sent_us;
    p->rtt_us = p->rtt_us == 0 ? sample : (7 * p->rtt_us + sample) / 8;
}

/* A follower lives. If it owes us an answer and match stands still, ask what it has. */
static void revive(struct raft *r, struct progress *p)
{
    if (p->state == RAFT_SNAPSHOT)
        return;
    if (p->match != p->match_at_heartbeat) {
        p->match_at_heartbeat = p->match;
        p->ask_after = r->ticks + r->options.heartbeat_ticks;
        return;
    }
    bool waits = p->state == RAFT_PROBE ? p->paused : p->match < p->next - 1;
    if (!waits || r->ticks < p->ask_after)
        return;
    p->ask = true;
    p->paused = false;
    p->ask_after = r->ticks + r->options.heartbeat_ticks;
}

void on_heartbeat_reply(struct raft *r, const struct raft_message *m)
{
    KRD_ASSERT(m->term == r->term);
    struct progress *p = progress_of(r, m->from);
    if (!p)
        return;
    p->heard_tick = r->ticks;
    note_round_trip(r, p, m->u.heartbeat_reply.sent_us);
    if (m->u.heartbeat_reply.round <= r->round)
        p->round = krd_max_u64(p->round, m->u.heartbeat_reply.round);
    revive(r, p);
}

/* --- What the transport and the log tell --------------------------------------------------------
 */

void raft_peer_unreachable(struct raft *r, raft_id peer)
{
    struct progress *p = progress_of(r, peer);
    if (p && p->state == RAFT_REPLICATE)
        progress_probe(r, p, true);
}

void raft_fetched(struct raft *r, raft_id peer, struct raft_entry *entries, size_t n)
{
    struct progress *p = progress_of(r, peer);
    bool wanted = p && p->state == RAFT_REPLICATE && p->n_fetched == 0;
    if (p)
        p->fetching = false;
    if (wanted && n == 0)
        progress_probe(r, p, true); /* unreadable now; a heartbeat's answer starts it again */
    if (!wanted || n == 0 || entries[0].index != p->next) {
        for (size_t i = 0; i < n; i++)
            raft_entry_unref(&entries[i]);
        return;
    }
    KRD_ASSERT(entries[n - 1].index == entries[0].index + n - 1);
    KRD_ASSERT(log_term(&r->log, entries[n - 1].index) == entries[n - 1].term);
    p->fetched = krd_calloc(n, sizeof *p->fetched);
    memcpy(p->fetched, entries, n * sizeof *entries);
    p->n_fetched = n;
}
