#include "server/replica.h"

#include "base/log.h"

/* A barrier's read that was not answered is asked again after so many ticks: its message, or the
 * leader's answer, was lost. */
#define READ_RETRY_TICKS 20
/* Proposals that could not be sent, or were refused for now, are tried again at this pace. */
#define RESEND_TICKS 3
/* Deadlines are looked at every so many ticks. */
#define SWEEP_TICKS 5
/* One forwarded frame carries records up to about this many bytes. */
#define FORWARD_BYTES (256u * 1024)

struct wait_list {
    struct replica_wait *first, **tail;
};

/* Barriers that share one read of the core. */
struct read_batch {
    uint64_t ctx;
    raft_index index; /* 0: not known yet */
    uint32_t asked_ticks;
    uint64_t asked_ms;
    struct wait_list waits;
    struct read_batch *next;
};

struct replica {
    struct raft *core;
    struct proposals *ps;
    struct replica_ops ops;
    uint64_t now_ms;
    uint64_t ticks;

    /* What the last soft_changed said. */
    raft_id leader;
    raft_term term;
    enum raft_role role;

    struct proposal *first, *last; /* not yet answered, in order of arrival */
    bool unsent;                   /* some proposal in the list is not sent */

    struct wait_list arrived; /* barriers of this turn, not asked yet */
    struct read_batch *reads, **reads_tail;
    uint64_t next_ctx;
    uint64_t fresh_ms;

    struct replica_wait *transfer; /* one at a time */
    raft_id transfer_to;
    raft_id transfer_from;

    /* Reused from turn to turn. */
    struct raft_entry *batch;
    struct proposal **batch_of;
    size_t n_batch, cap_batch, cap_batch_of;
    struct krd_buf head;
};

static void wait_list_init(struct wait_list *l)
{
    l->first = NULL;
    l->tail = &l->first;
}

static void wait_list_add(struct wait_list *l, struct replica_wait *w)
{
    w->next = NULL;
    *l->tail = w;
    l->tail = &w->next;
}

static void wait_list_join(struct wait_list *to, struct wait_list *from)
{
    if (from->first == NULL)
        return;
    *to->tail = from->first;
    to->tail = from->tail;
    wait_list_init(from);
}

static void wait_list_answer(struct wait_list *l, enum krd_status st)
{
    struct replica_wait *w = l->first;
    wait_list_init(l);
    while (w != NULL) {
        struct replica_wait *next = w->next;
        w->fn(w->arg, st); /* w may be gone now */
        w = next;
    }
}

/* Answers those whose time is over; the others stay. */
static void wait_list_expire(struct wait_list *l, uint64_t now_ms, enum krd_status st)
{
    struct wait_list keep, over;
    wait_list_init(&keep);
    wait_list_init(&over);
    for (struct replica_wait *w = l->first; w != NULL;) {
        struct replica_wait *next = w->next;
        wait_list_add(w->deadline_ms <= now_ms ? &over : &keep, w);
        w = next;
    }
    wait_list_init(l);
    wait_list_join(l, &keep);
    wait_list_answer(&over, st);
}

struct replica *replica_create(struct raft *core, struct proposals *ps,
                               const struct replica_ops *ops)
{
    struct replica *r = krd_zalloc(sizeof *r);
    r->core = core;
    r->ps = ps;
    r->ops = *ops;
    r->reads_tail = &r->reads;
    r->next_ctx = 1;
    wait_list_init(&r->arrived);
    return r;
}

void replica_destroy(struct replica *r)
{
    if (r == NULL)
        return;
    KRD_ASSERT(r->first == NULL && r->reads == NULL && r->arrived.first == NULL);
    krd_buf_deinit(&r->head);
    krd_free(r->batch);
    krd_free(r->batch_of);
    krd_free(r);
}

struct raft *replica_core(struct replica *r)
{
    return r->core;
}
uint64_t replica_fresh_ms(const struct replica *r)
{
    return r->fresh_ms;
}

/* --- Proposals ------------------------------------------------------------------------------ */

static void list_add(struct replica *r, struct proposal *p)
{
    p->in_list = true;
    p->next = NULL;
    p->prev = r->last;
    if (r->last != NULL)
        r->last->next = p;
    else
        r->first = p;
    r->last = p;
}

static void list_remove(struct replica *r, struct proposal *p)
{
    KRD_ASSERT(p->in_list);
    if (p->prev != NULL)
        p->prev->next = p->next;
    else
        r->first = p->next;
    if (p->next != NULL)
        p->next->prev = p->prev;
    else
        r->last = p->prev;
    p->in_list = false;
    proposal_unref(p);
}

/* Takes it from whoever else might answer, answers, forgets it. */
static void fail_proposal(struct replica *r, struct proposal *p, enum krd_status st)
{
    struct proposal *mine = proposals_take(r->ps, p->sequence);
    if (mine != NULL)
        proposal_answer(mine, st, NULL);
    list_remove(r, p);
}

static void drop_answered_head(struct replica *r)
{
    while (r->first != NULL && atomic_load_explicit(&r->first->answered, memory_order_acquire))
        list_remove(r, r->first);
}

void replica_propose(struct replica *r, struct proposal *p)
{
    list_add(r, p);
    p->sent = false;
    r->unsent = true;
}

/* Everything not answered goes to the leader again. */
static void mark_all_unsent(struct replica *r)
{
    for (struct proposal *p = r->first; p != NULL; p = p->next)
        p->sent = false;
    r->unsent = r->first != NULL;
}

static void batch_clear(struct replica *r)
{
    r->n_batch = 0;
}

/* The entry to hand out: the original the first time, later a fresh copy of its payload (the
 * original's bytes may be sealed and on their way to a disk). */
static struct raft_entry entry_to_send(struct proposal *p)
{
    if (p->entry_used)
        return raft_entry_make(RAFT_ENTRY_COMMAND, raft_payload(&p->entry));
    p->entry_used = true;
    return raft_entry_ref(&p->entry);
}

static void batch_add(struct replica *r, struct proposal *p)
{
    krd_grow(&r->batch, &r->cap_batch, r->n_batch + 1, sizeof *r->batch);
    krd_grow(&r->batch_of, &r->cap_batch_of, r->n_batch + 1, sizeof(struct proposal *));
    r->batch[r->n_batch] = entry_to_send(p);
    r->batch_of[r->n_batch++] = p;
}

static void batch_unref(struct replica *r)
{
    for (size_t i = 0; i < r->n_batch; i++)
        raft_entry_unref(&r->batch[i]);
    batch_clear(r);
}

/* Our own log refused the batch: nothing of it was proposed. Overload is an answer for those that
 * no other log may hold; the others, and all during a transfer, are tried again at a later tick. */
static void batch_refused_here(struct replica *r, enum krd_status st)
{
    batch_unref(r);
    if (st != KRD_OVERLOADED)
        return;
    for (struct proposal *p = r->first; p != NULL;) {
        struct proposal *next = p->next;
        if (!p->sent && p->copies == 0)
            fail_proposal(r, p, KRD_OVERLOADED);
        p = next;
    }
}

static void propose_here(struct replica *r)
{
    batch_clear(r);
    for (struct proposal *p = r->first; p != NULL; p = p->next)
        if (!p->sent && !atomic_load(&p->answered))
            batch_add(r, p);
    r->unsent = false;
    if (r->n_batch == 0)
        return;
    enum krd_status st = raft_propose(r->core, r->batch, r->n_batch);
    if (st != KRD_OK) {
        batch_refused_here(r, st);
        return;
    }
    for (size_t i = 0; i < r->n_batch; i++) {
        r->batch_of[i]->sent = true;
        r->batch_of[i]->copies++;
    }
    batch_clear(r); /* the core has the references */
}

/* Sends what the batch holds as one frame; false when the transport dropped it. */
static bool forward_batch(struct replica *r)
{
    r->head.len = 0;
    forward_begin(&r->head, FORWARD_PROPOSE, KRD_OK, (uint32_t)r->n_batch);
    for (size_t i = 0; i < r->n_batch; i++)
        krd_buf_put_le64(&r->head, r->batch_of[i]->sequence);
    bool ok = r->ops.forward(r->ops.ctx, r->leader, krd_buf_slice(&r->head), r->batch, r->n_batch);
    for (size_t i = 0; ok && i < r->n_batch; i++) {
        r->batch_of[i]->sent = true;
        r->batch_of[i]->copies++;
    }
    batch_unref(r);
    return ok;
}

static void propose_to_leader(struct replica *r)
{
    batch_clear(r);
    size_t bytes = 0;
    bool ok = true;
    for (struct proposal *p = r->first; p != NULL && ok; p = p->next) {
        if (p->sent || atomic_load(&p->answered))
            continue;
        batch_add(r, p);
        bytes += raft_record_bytes(&p->entry);
        if (bytes >= FORWARD_BYTES) {
            ok = forward_batch(r);
            bytes = 0;
        }
    }
    if (ok && r->n_batch > 0)
        ok = forward_batch(r);
    r->unsent = !ok; /* not connected: again when it is, and every few ticks */
}

static void send_proposals(struct replica *r)
{
    if (!r->unsent || r->leader == 0)
        return;
    if (r->role == RAFT_LEADER)
        propose_here(r);
    else
        propose_to_leader(r);
}

void replica_propose_own(struct replica *r, struct raft_entry *e)
{
    if (r->role != RAFT_LEADER || raft_propose(r->core, e, 1) != KRD_OK)
        raft_entry_unref(e);
}

static void sweep_deadlines(struct replica *r)
{
    for (struct proposal *p = r->first; p != NULL;) {
        struct proposal *next = p->next;
        if (atomic_load_explicit(&p->answered, memory_order_acquire))
            list_remove(r, p);
        else if (p->deadline_ms <= r->now_ms)
            fail_proposal(r, p, p->copies > 0 ? KRD_OUTCOME_UNKNOWN : KRD_NO_LEADER);
        p = next;
    }
}

/* --- What other nodes forward to us ---------------------------------------------------------- */

static void refuse(struct replica *r, raft_id to, const struct forward_frame *f,
                   enum krd_status why)
{
    r->head.len = 0;
    forward_begin(&r->head, FORWARD_REFUSED, why, f->count);
    krd_buf_put_slice(&r->head, f->items);
    (void)r->ops.forward(r->ops.ctx, to, krd_buf_slice(&r->head), NULL, 0);
}

static void on_forwarded_proposals(struct replica *r, raft_id from, struct krd_blob *blob,
                                   const struct forward_frame *f)
{
    batch_clear(r);
    struct slice left = f->records;
    for (uint32_t i = 0; i < f->count; i++) {
        krd_grow(&r->batch, &r->cap_batch, r->n_batch + 1, sizeof *r->batch);
        struct raft_entry *e = &r->batch[r->n_batch];
        if (raft_entry_parse(blob, left, e) != KRD_OK)
            break;
        r->n_batch++;
        size_t used = raft_record_bytes(e);
        left = slice_of(left.ptr + used, left.len - used);
        if (e->index != 0 || e->type != RAFT_ENTRY_COMMAND)
            break;
    }
    bool whole = r->n_batch == f->count && left.len == 0 &&
                 (f->count == 0 || (r->batch[f->count - 1].index == 0 &&
                                    r->batch[f->count - 1].type == RAFT_ENTRY_COMMAND));
    if (!whole) {
        krd_warn("forwarded proposals are malformed", "from=%016" PRIx64 " count=%u", from,
                 f->count);
        batch_unref(r);
        refuse(r, from, f, KRD_BAD_REQUEST);
        return;
    }
    enum krd_status st = raft_propose(r->core, r->batch, r->n_batch);
    if (st == KRD_OK) {
        batch_clear(r);
        return;
    }
    batch_unref(r);
    refuse(r, from, f, st);
}

/* The leader did not take them: at the next leader, or at a later tick, they go out again. Only
 * overload is an answer, for those that no other log may hold. The sequences come in the order in
 * which we sent them, which is the list's: one walk finds all. */
static void on_refused(struct replica *r, const struct forward_frame *f)
{
    struct proposal *p = r->first;
    for (uint32_t i = 0; i < f->count; i++) {
        uint64_t sequence = forward_item(f, i);
        struct proposal *start = p;
        while (p != NULL && p->sequence != sequence)
            p = p->next;
        if (p == NULL) { /* answered meanwhile, and gone */
            p = start;
            continue;
        }
        struct proposal *refused = p;
        p = p->next;
        refused->sent = false;
        if (refused->copies > 0)
            refused->copies--;
        if (f->status == KRD_OVERLOADED && refused->copies == 0)
            fail_proposal(r, refused, KRD_OVERLOADED);
    }
}

void replica_forward(struct replica *r, raft_id from, struct krd_blob *blob,
                     const struct forward_frame *f)
{
    switch (f->op) {
    case FORWARD_PROPOSE:
        on_forwarded_proposals(r, from, blob, f);
        break;
    case FORWARD_REFUSED:
        on_refused(r, f);
        break;
    case FORWARD_TRANSFER:
        if (raft_transfer(r->core, forward_item(f, 0)) != KRD_OK)
            krd_info("a forwarded wish to transfer leadership was not followed", "from=%016" PRIx64,
                     from);
        break;
    default:
        break;
    }
}

/* --- Read barriers ---------------------------------------------------------------------------- */

void replica_barrier(struct replica *r, struct replica_wait *w)
{
    wait_list_add(&r->arrived, w);
}

static void ask(struct replica *r, struct read_batch *b)
{
    b->ctx = r->next_ctx++;
    b->asked_ticks = 0;
    b->asked_ms = r->now_ms;
    b->index = 0;
    /* Without a leader it waits: the next leader, or the deadline, comes. */
    if (raft_read(r->core, b->ctx) != KRD_OK)
        b->ctx = 0;
}

static void ask_arrived(struct replica *r)
{
    if (r->arrived.first == NULL)
        return;
    struct read_batch *b = krd_zalloc(sizeof *b);
    wait_list_init(&b->waits);
    wait_list_join(&b->waits, &r->arrived);
    *r->reads_tail = b;
    r->reads_tail = &b->next;
    ask(r, b);
}

static void ask_again(struct replica *r, bool all)
{
    for (struct read_batch *b = r->reads; b != NULL; b = b->next)
        if (b->index == 0 && (all || b->ctx == 0 || b->asked_ticks >= READ_RETRY_TICKS))
            ask(r, b);
}

static void on_read(struct replica *r, const struct raft_read_ready *read)
{
    for (struct read_batch *b = r->reads; b != NULL; b = b->next) {
        if (b->ctx != read->ctx || b->index != 0)
            continue;
        if (read->index == 0)
            b->ctx = 0; /* refused: asked again at the next tick or leader */
        b->index = read->index;
        return;
    }
}

/* Answers every batch whose index has been applied; batches may become ready out of order. */
static void answer_reads(struct replica *r)
{
    if (r->reads == NULL)
        return;
    uint64_t applied = r->ops.applied(r->ops.ctx);
    struct read_batch **at = &r->reads;
    while (*at != NULL) {
        struct read_batch *b = *at;
        bool ready = b->index != 0 && b->index <= applied;
        if (ready) {
            r->fresh_ms = krd_max_u64(r->fresh_ms, b->asked_ms);
            wait_list_answer(&b->waits, KRD_OK);
        }
        if (ready || b->waits.first == NULL) {
            *at = b->next;
            krd_free(b);
        } else {
            at = &b->next;
        }
    }
    r->reads_tail = at;
}

static void sweep_reads(struct replica *r)
{
    for (struct read_batch *b = r->reads; b != NULL; b = b->next)
        wait_list_expire(&b->waits, r->now_ms, KRD_NO_LEADER);
}

/* --- Leadership ------------------------------------------------------------------------------- */

static void transfer_ends(struct replica *r, enum krd_status st)
{
    struct replica_wait *w = r->transfer;
    if (w == NULL)
        return;
    r->transfer = NULL;
    w->fn(w->arg, st);
}

void replica_transfer(struct replica *r, struct replica_wait *w)
{
    raft_id to = w->transfer_to;
    enum krd_status st = KRD_OK;
    const struct raft_config_state *config = raft_config(r->core, NULL);
    const struct raft_member *m = to != 0 ? raft_config_find(config, to) : NULL;
    if (r->transfer != NULL)
        st = KRD_CONFLICT;
    else if (to != 0 && (m == NULL || !m->voter))
        st = KRD_NOT_FOUND;
    else if (r->leader == 0)
        st = KRD_NO_LEADER;
    if (st != KRD_OK || to == r->leader) {
        w->fn(w->arg, st);
        return;
    }
    if (r->role == RAFT_LEADER) {
        st = raft_transfer(r->core, to);
    } else {
        r->head.len = 0;
        forward_begin(&r->head, FORWARD_TRANSFER, KRD_OK, 1);
        krd_buf_put_le64(&r->head, to);
        if (!r->ops.forward(r->ops.ctx, r->leader, krd_buf_slice(&r->head), NULL, 0))
            st = KRD_NO_LEADER;
    }
    if (st != KRD_OK) {
        w->fn(w->arg, st);
        return;
    }
    r->transfer = w;
    r->transfer_to = to;
    r->transfer_from = r->leader;
}

static void watch_transfer(struct replica *r)
{
    if (r->transfer == NULL)
        return;
    bool done = r->leader != 0 &&
                (r->transfer_to != 0 ? r->leader == r->transfer_to : r->leader != r->transfer_from);
    if (done)
        transfer_ends(r, KRD_OK);
    else if (r->transfer->deadline_ms <= r->now_ms)
        transfer_ends(r, KRD_AGAIN);
}

static void on_soft_changed(struct replica *r)
{
    struct raft_status st;
    raft_get_status(r->core, &st);
    bool other_leader = st.leader != r->leader || st.term != r->term || st.role != r->role;
    r->leader = st.leader;
    r->role = st.role;
    r->term = st.term;
    r->ops.soft_changed(r->ops.ctx, &st);
    if (other_leader && st.leader != 0) {
        mark_all_unsent(r);
        ask_again(r, true);
    }
    watch_transfer(r);
}

/* --- Other inputs ------------------------------------------------------------------------------
 */

void replica_now(struct replica *r, uint64_t now_us)
{
    r->now_ms = now_us / 1000;
    raft_set_now_us(r->core, now_us);
}

void replica_message(struct replica *r, struct raft_message *m)
{
    raft_step(r->core, m);
}
void replica_persisted(struct replica *r, uint64_t seq)
{
    raft_persisted(r->core, seq);
}
void replica_fetched(struct replica *r, raft_id peer, struct raft_entry *entries, size_t n)
{
    raft_fetched(r->core, peer, entries, n);
}
void replica_applied(struct replica *r, raft_index index)
{
    raft_applied(r->core, index);
}
void replica_compacted(struct replica *r, raft_index index)
{
    raft_compacted(r->core, index);
}
void replica_peer_lost(struct replica *r, raft_id peer)
{
    raft_peer_lost(r->core, peer);
}
void replica_peer_down(struct replica *r, raft_id peer)
{
    raft_peer_unreachable(r->core, peer);
}

void replica_peer_up(struct replica *r, raft_id peer)
{
    if (peer != r->leader)
        return;
    /* What was under way on the old connection may be lost. */
    mark_all_unsent(r);
    ask_again(r, true);
}

void replica_tick(struct replica *r)
{
    raft_tick(r->core);
    r->ticks++;
    for (struct read_batch *b = r->reads; b != NULL; b = b->next)
        b->asked_ticks++;
    if (r->ticks % RESEND_TICKS == 0) {
        for (struct proposal *p = r->first; p != NULL && !r->unsent; p = p->next)
            r->unsent = !p->sent;
        ask_again(r, false);
    }
    if (r->ticks % SWEEP_TICKS == 0) {
        sweep_deadlines(r);
        sweep_reads(r);
        watch_transfer(r);
    }
}

/* --- The turn ----------------------------------------------------------------------------------
 */

static void take_ready(struct replica *r)
{
    struct raft_ready ready;
    if (!raft_take_ready(r->core, &ready))
        return;
    /* Our own disk works while the messages travel (thesis 10.2.1). What a message promises is
     * durable already: the core holds back the rest. */
    if (ready.write.seq != 0)
        r->ops.log_append(r->ops.ctx, &ready.write);
    for (size_t i = 0; i < ready.n_messages; i++)
        r->ops.send(r->ops.ctx, &ready.messages[i]);
    if (ready.n_committed > 0)
        r->ops.apply(r->ops.ctx, ready.committed, ready.n_committed);
    for (size_t i = 0; i < ready.n_fetches; i++)
        r->ops.log_fetch(r->ops.ctx, &ready.fetches[i]);
    for (size_t i = 0; i < ready.n_reads; i++)
        on_read(r, &ready.reads[i]);
    if (ready.soft_changed)
        on_soft_changed(r);
}

void replica_turn(struct replica *r)
{
    drop_answered_head(r);
    send_proposals(r);
    ask_arrived(r);
    take_ready(r);
    /* A leader that this ready brought sets free what waited for one. */
    if (r->unsent && r->leader != 0) {
        send_proposals(r);
        take_ready(r);
    }
    answer_reads(r);
}

void replica_fail_all(struct replica *r)
{
    while (r->first != NULL)
        fail_proposal(r, r->first, r->first->copies > 0 ? KRD_OUTCOME_UNKNOWN : KRD_STOPPING);
    wait_list_answer(&r->arrived, KRD_STOPPING);
    for (struct read_batch *b = r->reads; b != NULL; b = b->next)
        wait_list_answer(&b->waits, KRD_STOPPING);
    answer_reads(r);
    transfer_ends(r, KRD_STOPPING);
}
