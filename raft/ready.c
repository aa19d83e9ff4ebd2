/* ready.c - effects.
 *
 * 1. Events queue messages and answers; promises wait in a list of their own, each with the number
 *    of the write that makes it true: the one that holds our term and vote, and the entries that an
 *    acknowledgement speaks of. There is no way to send a promise but through send_when_durable.
 * 2. raft_take_ready closes a turn: it numbers the write of everything that is not on its way to
 *    the disk yet, makes the requests to peers, and hands out what is committed.
 * 3. raft_persisted reports writes in their order. It frees promises, our own vote, and our own
 *    acknowledgement of entries.
 *
 * The race that the list of writes is for (ABA). A follower hands entry 5 of term 1 to the disk as
 * write 1. Before that is done a new leader replaces it by its own entry 5 (write 2), and before
 * that is done a third leader puts the first one back (write 3). Now write 1 completes. The log in
 * memory holds entry 5 of term 1, and write 1 held the very same; yet a crash between writes 2 and
 * 3 would lose it. So each truncation lowers what earlier writes may claim (truncate_from), and
 * write 1 says nothing about entry 5 any more. */
#include "raft/core.h"

struct raft_message message_to(const struct raft *r, enum raft_message_type type, raft_id to)
{
    struct raft_message m;
    memset(&m, 0, sizeof m);
    m.type = type;
    m.term = r->term;
    m.from = r->id;
    m.to = to;
    return m;
}

/* One acknowledgement says what several before it said. */
static bool merge_ack(struct raft_message *last, const struct raft_message *m)
{
    if (last->type != RAFT_MSG_APPEND_REPLY || m->type != RAFT_MSG_APPEND_REPLY ||
        last->to != m->to || last->term != m->term || last->u.append_reply.rejected ||
        m->u.append_reply.rejected)
        return false;
    last->u.append_reply.index = krd_max_u64(last->u.append_reply.index, m->u.append_reply.index);
    return true;
}

void send_message(struct raft *r, const struct raft_message *m)
{
    KRD_ASSERT(m->to != 0 && m->to != r->id);
    struct vec_message *out = &r->gathering.messages;
    if (out->n > 0 && merge_ack(&out->at[out->n - 1], m))
        return;
    VEC_PUSH(out, *m);
}

/* --- Promises ------------------------------------------------------------------------------ */

/* The write after which our term and vote and the log up to index are on disk; one that was not
 * made yet has the next number, for the next ready makes it. */
static uint64_t seq_that_holds(const struct raft *r, raft_index index)
{
    uint64_t seq = r->hard_state_dirty ? r->seq_issued + 1 : r->hard_state_seq;
    if (index <= r->log.stable)
        return seq;
    if (index > r->log.written)
        return r->seq_issued + 1;
    size_t i = r->writes.n - 1;
    while (i > 0 && r->writes.at[i - 1].last >= index)
        i--;
    return krd_max_u64(seq, r->writes.at[i].seq);
}

void send_when_durable(struct raft *r, const struct raft_message *m, raft_index index)
{
    uint64_t seq = seq_that_holds(r, index);
    if (seq <= r->seq_persisted)
        send_message(r, m);
    else
        VEC_PUSH(&r->promises, (struct promise){seq, *m});
}

static void free_promises(struct raft *r)
{
    size_t kept = 0;
    for (size_t i = 0; i < r->promises.n; i++) {
        const struct promise *p = &r->promises.at[i];
        if (p->m.term < r->term)
            continue; /* nobody listens to an earlier term's answers */
        if (p->seq <= r->seq_persisted)
            send_message(r, &p->m);
        else
            r->promises.at[kept++] = *p;
    }
    r->promises.n = kept;
}

void raft_persisted(struct raft *r, uint64_t seq)
{
    KRD_ASSERT(seq > r->seq_persisted && seq <= r->seq_issued);
    r->seq_persisted = seq;
    size_t done = 0;
    while (done < r->writes.n && r->writes.at[done].seq <= seq)
        done++;
    KRD_ASSERT(done > 0);
    KRD_ASSERT(r->writes.at[done - 1].last <= r->log.written);
    r->log.stable = krd_max_u64(r->log.stable, r->writes.at[done - 1].last);
    r->writes.n -= done;
    memmove(r->writes.at, r->writes.at + done, r->writes.n * sizeof *r->writes.at);

    own_vote_durable(r);
    own_log_durable(r);
    free_promises(r);
}

/* --- Entries of a ready --------------------------------------------------------------------- */

enum { CHUNK_ENTRIES_MIN = 256 };

struct raft_entry *chunk_take(struct raft *r, size_t n)
{
    struct entry_chunk *c = r->chunk;
    if (!c || c->cap - c->used < n) {
        size_t cap = krd_max_size(n, c ? 2 * c->cap : CHUNK_ENTRIES_MIN);
        struct entry_chunk *bigger = krd_alloc(sizeof *c + cap * sizeof c->entries[0]);
        bigger->older = c;
        bigger->used = 0;
        bigger->cap = cap;
        c = r->chunk = bigger;
    }
    struct raft_entry *at = &c->entries[c->used];
    c->used += n;
    return at;
}

/* The largest chunk, which is the newest, serves the next ready. */
static void chunk_reset(struct raft *r)
{
    struct entry_chunk *c = r->chunk;
    r->n_copied = 0;
    if (!c)
        return;
    while (c->older) {
        struct entry_chunk *older = c->older;
        c->older = older->older;
        krd_free(older);
    }
    c->used = 0;
}

struct raft_entry *entries_for_ready(struct raft *r, raft_index first, size_t n)
{
    if (n == 0)
        return NULL;
    for (size_t i = 0; i < r->n_copied; i++) {
        const struct copied *c = &r->copied[i];
        if (first >= c->first && first + n <= c->first + c->n)
            return c->at + (first - c->first);
    }
    struct raft_entry *at = chunk_take(r, n);
    log_copy(&r->log, first, n, at);
    if (r->n_copied < KRD_ARRAY_LEN(r->copied))
        r->copied[r->n_copied++] = (struct copied){first, n, at};
    return at;
}

/* --- Closing a turn --------------------------------------------------------------------------- */

static void take_write(struct raft *r, struct raft_write *w)
{
    memset(w, 0, sizeof *w);
    size_t n = r->log.last - r->log.written;
    if (n == 0 && !r->hard_state_dirty)
        return;
    w->seq = ++r->seq_issued;
    w->has_hard_state = true;
    /* A commit index alone is not worth a write: the leader tells it again. */
    w->hard_state = (struct raft_hard_state){
        .term = r->term,
        .vote = r->vote,
        .commit = krd_min_u64(r->commit, r->log.stable),
    };
    w->entries = entries_for_ready(r, r->log.written + 1, n);
    w->n_entries = n;

    r->log.written = r->log.last;
    if (r->hard_state_dirty)
        r->hard_state_seq = w->seq;
    r->hard_state_dirty = false;
    VEC_PUSH(&r->writes, (struct pending_write){w->seq, r->log.last});
}

/* Only what our own disk has: the state machine must never be ahead of the log beside it. */
static void take_committed(struct raft *r, struct raft_ready *out)
{
    raft_index to = krd_min_u64(r->commit, r->log.stable);
    out->n_committed = to - r->handed;
    out->committed = entries_for_ready(r, r->handed + 1, out->n_committed);
    r->handed = to;
}

static bool take_soft_change(struct raft *r)
{
    bool changed =
        r->role != r->told_role || r->term != r->told_term || r->leader != r->told_leader;
    r->told_role = r->role;
    r->told_term = r->term;
    r->told_leader = r->leader;
    return changed;
}

static void take_gathered(struct raft *r, struct raft_ready *out)
{
    struct gathered full = r->gathering;
    r->gathering = r->given;
    r->given = full;
    out->messages = full.messages.at;
    out->n_messages = full.messages.n;
    out->reads = full.answers.at;
    out->n_reads = full.answers.n;
    out->fetches = full.fetches.at;
    out->n_fetches = full.fetches.n;
    r->gathering.messages.n = r->gathering.answers.n = r->gathering.fetches.n = 0;
}

bool raft_take_ready(struct raft *r, struct raft_ready *out)
{
    chunk_reset(r);
    log_free_buried(&r->log);

    take_write(r, &out->write); /* first: what peers are sent is mostly what is written */
    reads_proceed(r);
    if (r->role == RAFT_LEADER)
        queue_requests(r);
    take_committed(r, out);
    out->soft_changed = take_soft_change(r);
    take_gathered(r, out);
    raft_check(r);
    return out->write.seq != 0 || out->n_messages > 0 || out->n_committed > 0 || out->n_reads > 0 ||
           out->n_fetches > 0 || out->soft_changed;
}

void gathered_deinit(struct gathered *g)
{
    krd_free(g->messages.at);
    krd_free(g->answers.at);
    krd_free(g->fetches.at);
}
