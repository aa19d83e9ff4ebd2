/* raft_loop.c - the thread that owns consensus: sockets of peers, timers, the node loop.
 *
 * A turn: wait for sockets, mail or the next tick; hand everything that came to the replica;
 * tick if it is time; replica_turn; write out what was queued to peers. After a stall the inbox
 * speaks first, and at most one tick is counted, so that a slow machine does not depose a leader
 * that it has simply not listened to. Nothing here waits for a disk. */
#include "server/node_internal.h"

#include "base/clock.h"
#include "base/log.h"

#define STATUS_MS   100
#define PROGRESS_MS 500
#define FRESH_MS    50

/* --- From the replica to the world ------------------------------------------------------------ */

static void op_log_append(void *ctx, const struct raft_write *w)
{
    wal_writer_append(((struct node *)ctx)->log, w);
}

static void op_log_fetch(void *ctx, const struct raft_fetch *f)
{
    wal_writer_fetch(((struct node *)ctx)->log, f);
}

static void op_apply(void *ctx, const struct raft_entry *entries, size_t count)
{
    apply_loop_submit(ctx, entries, count);
}

static uint64_t op_applied(void *ctx)
{
    return kv_applied_index(((struct node *)ctx)->store);
}

static void op_send(void *ctx, const struct raft_message *m)
{
    struct node *n = ctx;
    n->frame.len = 0;
    size_t records_len;
    raft_message_encode(m, &n->frame, &records_len);
    /* Appends keep their order among themselves: an empty one that overtook entries would be
     * rejected, and the entries sent again. */
    bool append = m->type == RAFT_MSG_APPEND;
    bool sent = n->net->ops->send(n->net, m->to, append ? PEER_BULK : PEER_CONTROL, PEER_FRAME_RAFT,
                                  krd_buf_slice(&n->frame), append ? m->u.append.entries : NULL,
                                  append ? m->u.append.n_entries : 0);
    if (!sent && append)
        raft_peer_unreachable(n->core, m->to);
}

static bool op_forward(void *ctx, raft_id to, struct slice head, const struct raft_entry *entries,
                       size_t count)
{
    struct node *n = ctx;
    return n->net->ops->send(n->net, to, count > 0 ? PEER_BULK : PEER_CONTROL, PEER_FRAME_FORWARD,
                             head, entries, count);
}

static const char *member_name(struct node *n, raft_id id)
{
    const struct raft_member *m = raft_config_find(raft_config(n->core, NULL), id);
    return m != NULL ? m->name : id == 0 ? "none" : "unknown";
}

static void op_soft_changed(void *ctx, const struct raft_status *st)
{
    struct node *n = ctx;
    const struct raft_status *was = &n->raft_status;
    uint64_t now = krd_mono_ms();
    if (st->leader == 0 && was->leader != 0)
        n->election_started_ms = now;
    if (st->role != was->role && (st->role == RAFT_CANDIDATE || st->role == RAFT_PRE_CANDIDATE))
        krd_info("election started", "role=%s term=%" PRIu64, raft_role_name(st->role), st->term);
    if (st->leader != was->leader && st->leader != 0) {
        atomic_fetch_add(&n->metrics.leader_changes, 1);
        krd_info(st->role == RAFT_LEADER ? "this member leads" : "leader found",
                 "leader=%s term=%" PRIu64 " without_leader_ms=%" PRIu64,
                 member_name(n, st->leader), st->term,
                 n->election_started_ms != 0 ? now - n->election_started_ms : 0);
        n->election_started_ms = 0;
    } else if (st->leader == 0 && was->leader != 0) {
        krd_warn("leader lost", "was=%s term=%" PRIu64, member_name(n, was->leader), st->term);
    }
    atomic_store(&n->leading, st->role == RAFT_LEADER);
    n->next_progress_ms = 0;
    raft_loop_publish(n);
}

const struct replica_ops raft_loop_ops = {
    .log_append = op_log_append,
    .log_fetch = op_log_fetch,
    .apply = op_apply,
    .applied = op_applied,
    .send = op_send,
    .forward = op_forward,
    .soft_changed = op_soft_changed,
};

/* --- The published picture ---------------------------------------------------------------------
 */

static struct member_view *view_of(struct node *n, raft_id id)
{
    for (size_t i = 0; i < n->n_views; i++)
        if (n->views[i].id == id)
            return &n->views[i];
    if (n->n_views == KRD_MEMBERS_MAX)
        return NULL;
    struct member_view *v = &n->views[n->n_views++];
    *v = (struct member_view){.id = id};
    return v;
}

/* The leader tells the operator of members that fall silent, and when they are back; a new leader
 * first gives them an election timeout to answer. */
static void tell_silence(struct node *n, const struct raft_status *st, struct member_view *v)
{
    if (!st->leader_ready || v->active != v->told_silent)
        return;
    v->told_silent = !v->active;
    if (v->active)
        krd_info("member answers again", "member=%s match=%" PRIu64 " last=%" PRIu64,
                 member_name(n, v->id), v->match, st->last);
    else
        krd_warn("member does not answer", "member=%s match=%" PRIu64 " last=%" PRIu64,
                 member_name(n, v->id), v->match, st->last);
}

void raft_loop_publish(struct node *n)
{
    struct raft_status st;
    raft_get_status(n->core, &st);
    if (st.role == RAFT_LEADER) {
        for (uint32_t i = 0; i < st.n_peers; i++) {
            struct member_view *v = view_of(n, st.peers[i].id);
            if (v == NULL)
                continue;
            v->match = st.peers[i].match;
            v->rtt_us = st.peers[i].rtt_us;
            v->active = st.peers[i].recently_active;
            tell_silence(n, &st, v);
        }
    }
    atomic_store(&n->safe_to_cut, st.safe_to_cut);
    pthread_mutex_lock(&n->status_lock);
    bool changed = st.leader != n->raft_status.leader || st.role != n->raft_status.role;
    n->raft_status = st;
    n->config = *raft_config(n->core, NULL);
    memcpy(n->published_views, n->views, sizeof n->views);
    n->n_published_views = n->n_views;
    for (size_t i = 0; i < n->config.n; i++)
        if (!n->net->ops->status(n->net, n->config.members[i].id, &n->peer_status[i]))
            n->peer_status[i] = (struct peer_status){.id = n->config.members[i].id};
    if (changed)
        pthread_cond_broadcast(&n->status_changed);
    pthread_mutex_unlock(&n->status_lock);
}

/* The leader tells the others how far everybody is, so that any node can show it. */
static void send_progress(struct node *n)
{
    const struct raft_config_state *c = raft_config(n->core, NULL);
    struct raft_status st;
    raft_get_status(n->core, &st);
    if (st.role != RAFT_LEADER)
        return;
    n->frame.len = 0;
    forward_begin(&n->frame, FORWARD_PROGRESS, KRD_OK, st.n_peers + 1);
    forward_put_progress(&n->frame, &(struct forward_progress){st.id, st.last, 0, true});
    for (uint32_t i = 0; i < st.n_peers; i++)
        forward_put_progress(
            &n->frame, &(struct forward_progress){st.peers[i].id, st.peers[i].match,
                                                  st.peers[i].rtt_us, st.peers[i].recently_active});
    for (uint32_t i = 0; i < c->n; i++)
        if (c->members[i].id != st.id)
            (void)op_forward(n, c->members[i].id, krd_buf_slice(&n->frame), NULL, 0);
}

static void on_progress(struct node *n, const struct forward_frame *f)
{
    for (uint32_t i = 0; i < f->count; i++) {
        struct forward_progress p = forward_progress_item(f, i);
        struct member_view *v = view_of(n, p.id);
        if (v == NULL)
            continue;
        v->match = p.match;
        v->rtt_us = p.rtt_us;
        v->active = p.active;
    }
}

static void on_hello(struct node *n, raft_id from, const struct forward_frame *f)
{
    struct member_view *v = view_of(n, from);
    if (v == NULL || f->count >= sizeof v->http_address)
        return;
    memcpy(v->http_address, f->items.ptr, f->count);
    v->http_address[f->count] = '\0';
}

/* --- From peers --------------------------------------------------------------------------------
 */

static void on_frame(void *arg, raft_id from, enum peer_frame_kind kind, struct krd_blob *blob,
                     struct slice body)
{
    struct node *n = arg;
    if (kind == PEER_FRAME_RAFT) {
        struct raft_message m;
        if (raft_message_decode(blob, body, &m) == KRD_OK && m.from == from)
            replica_message(n->replica, &m);
        else
            krd_warn("a peer's message is malformed", "from=%s bytes=%zu", member_name(n, from),
                     body.len);
        return;
    }
    struct forward_frame f;
    if (forward_decode(body, &f) != KRD_OK)
        krd_warn("a peer's frame is malformed", "from=%s bytes=%zu", member_name(n, from),
                 body.len);
    else if (f.op == FORWARD_HELLO)
        on_hello(n, from, &f);
    else if (f.op == FORWARD_PROGRESS)
        on_progress(n, &f);
    else
        replica_forward(n->replica, from, blob, &f);
}

static void on_up(void *arg, raft_id peer)
{
    struct node *n = arg;
    krd_info("peer connected", "peer=%s", member_name(n, peer));
    n->frame.len = 0;
    size_t len = strlen(n->http_advertise);
    forward_begin(&n->frame, FORWARD_HELLO, KRD_OK, (uint32_t)len);
    krd_buf_put(&n->frame, n->http_advertise, len);
    (void)op_forward(n, peer, krd_buf_slice(&n->frame), NULL, 0);
    replica_peer_up(n->replica, peer);
}

static void on_down(void *arg, raft_id peer)
{
    struct node *n = arg;
    replica_peer_down(n->replica, peer); /* the transport has said why */
}

static void on_lost(void *arg, raft_id peer)
{
    struct node *n = arg;
    krd_warn("peer process is gone", "peer=%s", member_name(n, peer));
    replica_peer_lost(n->replica, peer);
}

static void on_refused(void *arg, const char *address, const char *reason)
{
    (void)address, (void)reason; /* the transport has said so */
    struct node *n = arg;
    atomic_fetch_add_explicit(&n->metrics.peers_refused, 1, memory_order_relaxed);
}

struct peer_callbacks raft_loop_peer_callbacks(struct node *n)
{
    return (struct peer_callbacks){.arg = n,
                                   .frame = on_frame,
                                   .up = on_up,
                                   .down = on_down,
                                   .lost = on_lost,
                                   .refused = on_refused};
}

/* --- Mail ---------------------------------------------------------------------------------------
 */

void notice_init(struct notice *t, void (*fn)(struct replica *r, uint64_t value))
{
    t->mail.type = NODE_MAIL_NOTICE;
    atomic_init(&t->queued, false);
    atomic_init(&t->value, 0);
    t->fn = fn;
}

void node_notify(struct node *n, struct notice *t, uint64_t value)
{
    atomic_store(&t->value, value);
    if (!atomic_exchange(&t->queued, true))
        krd_mailbox_put(&n->inbox, &t->mail.mail);
}

void node_post(struct node *n, struct node_mail *m, enum node_mail_type type)
{
    m->type = (int)type;
    krd_mailbox_put(&n->inbox, &m->mail);
}

/* All keep-alives of a turn travel as one entry; its result is handed back to each. */
struct renew_fan {
    size_t n;
    struct renew_wait *waits[];
};

static void on_renewed(void *arg, enum krd_status status, struct kv_result *result)
{
    struct renew_fan *fan = arg;
    for (size_t i = 0; i < fan->n; i++) {
        struct renew_wait *w = fan->waits[i];
        struct kv_result *one = NULL;
        if (status == KRD_OK) {
            one = krd_zalloc(sizeof *one);
            one->revision = result->revision;
            one->index = result->index;
            one->term = result->term;
            one->lease_id = w->lease;
            one->lease_ttl =
                result->status == KRD_OK && i < result->n_renewed ? result->renewed_ttl[i] : 0;
            one->status = one->lease_ttl > 0 ? KRD_OK : KRD_LEASE_NOT_FOUND;
            one->message = one->lease_ttl > 0 ? NULL : krd_status_text(KRD_LEASE_NOT_FOUND);
        }
        w->fn(w->arg, status, one);
        krd_free(w);
    }
    kv_result_destroy(result);
    krd_free(fan);
}

static void send_renewals(struct node *n)
{
    if (n->renewals == NULL)
        return;
    size_t count = 0;
    for (struct renew_wait *w = n->renewals; w != NULL; w = (struct renew_wait *)w->mail.mail.next)
        count++;
    struct renew_fan *fan = krd_alloc(sizeof *fan + count * sizeof fan->waits[0]);
    int64_t *ids = krd_calloc(count, sizeof *ids);
    fan->n = count;
    size_t i = 0;
    for (struct renew_wait *w = n->renewals; w != NULL;
         w = (struct renew_wait *)w->mail.mail.next) {
        fan->waits[i] = w;
        ids[i++] = w->lease;
    }
    n->renewals = NULL;
    Etcdserverpb__LeaseRenewRequest renew = ETCDSERVERPB__LEASE_RENEW_REQUEST__INIT;
    renew.n_ids = count;
    renew.ids = ids;
    Etcdserverpb__InternalRaftRequest r = ETCDSERVERPB__INTERNAL_RAFT_REQUEST__INIT;
    r.lease_renew = &renew;
    node_propose(n, &r, 0, on_renewed, fan);
    krd_free(ids);
}

static void on_mail(struct node *n, struct node_mail *m)
{
    switch ((enum node_mail_type)m->type) {
    case NODE_MAIL_PROPOSAL:
        replica_propose(n->replica, KRD_CONTAINER_OF(m, struct proposal, mail));
        break;
    case NODE_MAIL_BARRIER:
        replica_barrier(n->replica, KRD_CONTAINER_OF(m, struct replica_wait, mail));
        break;
    case NODE_MAIL_TRANSFER:
        replica_transfer(n->replica, KRD_CONTAINER_OF(m, struct replica_wait, mail));
        break;
    case NODE_MAIL_RENEW:
        m->mail.next = (struct krd_mail *)n->renewals;
        n->renewals = KRD_CONTAINER_OF(m, struct renew_wait, mail);
        break;
    case NODE_MAIL_OWN_ENTRY: {
        struct own_entry *own = KRD_CONTAINER_OF(m, struct own_entry, mail);
        replica_propose_own(n->replica, &own->entry);
        krd_free(own);
        break;
    }
    case NODE_MAIL_FETCHED: {
        struct fetched *f = KRD_CONTAINER_OF(m, struct fetched, mail);
        replica_fetched(n->replica, f->peer, f->entries, f->n);
        krd_free(f->entries);
        krd_free(f);
        break;
    }
    case NODE_MAIL_NOTICE: {
        struct notice *t = KRD_CONTAINER_OF(m, struct notice, mail);
        atomic_store(&t->queued, false);
        /* A value set between these two lines is read here and has queued the mail again: the
         * second time it is nothing new. */
        uint64_t value = atomic_load(&t->value);
        if (value > t->seen && t->fn != NULL)
            t->fn(n->replica, value);
        t->seen = krd_max_u64(t->seen, value);
        break;
    }
    }
}

static void on_inbox(struct krd_io *io, uint32_t events)
{
    (void)events;
    struct node *n = KRD_CONTAINER_OF(io, struct node, inbox_io);
    for (struct krd_mail *m = krd_mailbox_take(&n->inbox); m != NULL;) {
        struct krd_mail *next = m->next;
        on_mail(n, KRD_CONTAINER_OF(m, struct node_mail, mail));
        m = next;
    }
    send_renewals(n);
}

/* --- The thread ----------------------------------------------------------------------------------
 */

static void on_fresh(void *arg, enum krd_status status)
{
    (void)status;
    krd_free(arg);
}

/* While somebody asks for bounded staleness, a barrier of our own keeps the answer young. */
static void keep_fresh(struct node *n, uint64_t now)
{
    if (atomic_load_explicit(&n->want_fresh_until_ms, memory_order_relaxed) < now ||
        n->next_fresh_ms > now)
        return;
    n->next_fresh_ms = now + FRESH_MS;
    struct replica_wait *w = krd_zalloc(sizeof *w);
    w->fn = on_fresh;
    w->arg = w;
    w->deadline_ms = now + 1000;
    replica_barrier(n->replica, w);
}

static void on_time(struct node *n, uint64_t now)
{
    if (now >= n->next_tick_ms) {
        if (now > n->next_tick_ms + 2 * n->o.tick_ms) {
            atomic_fetch_add_explicit(&n->metrics.heartbeats_late, 1, memory_order_relaxed);
            n->next_tick_ms = now;
        }
        n->next_tick_ms += n->o.tick_ms;
        n->net->ops->tick(n->net, now);
        replica_tick(n->replica);
    }
    if (now >= n->next_status_ms) {
        n->next_status_ms = now + STATUS_MS;
        raft_loop_publish(n);
    }
    if (now >= n->next_progress_ms) {
        n->next_progress_ms = now + PROGRESS_MS;
        send_progress(n);
    }
    keep_fresh(n, now);
}

void raft_loop_init(struct node *n)
{
    notice_init(&n->persisted, replica_persisted);
    notice_init(&n->applied, replica_applied);
    notice_init(&n->compacted, replica_compacted);
    notice_init(&n->wake, NULL);
    n->inbox_io = (struct krd_io){.fd = n->inbox.fd, .events = EPOLLIN, .fn = on_inbox};
    if (krd_loop_add(&n->loop, &n->inbox_io) != KRD_OK)
        krd_fatal("reason=\"epoll refuses the inbox\"");
    n->next_tick_ms = krd_mono_ms() + n->o.tick_ms;
}

static int ms_to_next(struct node *n)
{
    uint64_t now = krd_mono_ms();
    return n->next_tick_ms <= now ? 0 : (int)(n->next_tick_ms - now);
}

void *raft_loop_main(void *arg)
{
    struct node *n = arg;
    pthread_setname_np(pthread_self(), "raft");
    while (!atomic_load_explicit(&n->stop_raft, memory_order_acquire)) {
        krd_loop_wait(&n->loop, ms_to_next(n));
        uint64_t now_us = krd_mono_us(), now = now_us / 1000;
        replica_now(n->replica, now_us);
        krd_loop_dispatch(&n->loop);
        on_time(n, now);
        replica_turn(n->replica);
        n->net->ops->flush(n->net);
        atomic_store_explicit(&n->cluster_time_offset_ms,
                              (int64_t)raft_time_ms(n->core) - (int64_t)now, memory_order_relaxed);
        atomic_store_explicit(&n->fresh_ms, replica_fresh_ms(n->replica), memory_order_relaxed);
    }
    return NULL;
}
