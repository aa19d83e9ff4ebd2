/* peer_tcp.c - the transport between members over TCP: the table of members and what is known
 * about their processes. Our connections to them are in peer_dial.c, theirs to us in peer_accept.c.
 *
 * A frame's way: send -> the link's queue -> flush -> one sendmsg -> the receiver's buffer ->
 * frame. Each member dials each other one twice, for control and for bulk, and sends only on what
 * it dialled: four connections a pair, none of which ever carries both directions, so that who may
 * close and redial what is never in question.
 *
 * When is a process gone? The failover time hangs on the answer, and a leader's term as well:
 *
 *   what happens                                   what follows
 *   a connection that was up ends (FIN, RST)       suspect; all links that wait are dialled at once
 *   the dial is refused, and the member is         lost, once
 *     suspect
 *   the dial, or the member's own dial to us,      lost (if not told already): that process cannot
 *     shows a higher boot number                   come back; connections of the old one are closed
 *   ... the same boot number                       nothing: a hiccup. Not suspect any more
 *   the dial times out, is unreachable, is reset   nothing: the election timeout serves. Still
 *                                                  suspect, so that a refusal later says lost
 *   a dial is refused, and no connection has       nothing: it may never have been there
 *     ended since the process was heard last
 *
 * Only one of the four connections needs to be noticed: a kernel that closes one of a dead
 * process's connections closes all. There is no probing beyond the dials: redialling a link that is
 * still up, because another one broke, would make the other side see a broken connection in turn,
 * and so on for ever.
 *
 * What can deceive it: a firewall that answers with RST both in an established connection and to a
 * new one. The cluster then loses a pre-vote's time, no more. */
#include "raft/peer_tcp.h"

#include "base/clock.h"
#include "base/log.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/socket.h>

/* How much less may wait on the control channel than on bulk: messages there are short, and old
 * ones worth nothing. */
#define CONTROL_QUEUE_SHARE 16

const char *peer_errno_text(int err)
{
    const char *text = strerrordesc_np(err);
    return text != NULL ? text : "unknown error";
}

void peer_socket_options(int fd)
{
    /* None of these may fail a connection: each makes it better, none is needed to be right. */
    int on = 1, idle_s = 5, interval_s = 2, probes = 3;
    unsigned unacked_ms = PEER_UNACKED_MS;
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    (void)setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
    (void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle_s, sizeof idle_s);
    (void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval_s, sizeof interval_s);
    (void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &probes, sizeof probes);
    (void)setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &unacked_ms, sizeof unacked_ms);
}

/* --- what is known about a member's process -------------------------------------------------- */

struct peer_member *peer_member_find(struct peer_tcp *t, raft_id id)
{
    for (size_t i = 0; i < t->n_members; i++)
        if (t->members[i]->id == id)
            return t->members[i];
    return NULL;
}

static void tell_lost(struct peer_member *m, const char *how)
{
    struct peer_tcp *t = m->t;
    krd_info("peer's process is gone", "peer=%016" PRIx64 " boot=%" PRIu64 " seen_by=\"%s\"", m->id,
             m->boot, how);
    t->cb.lost(t->cb.arg, m->id);
}

/* What an earlier process of the member left behind is dead, whatever our kernel says. */
static void close_older(struct peer_member *m)
{
    for (int ch = 0; ch < PEER_CHANNELS; ch++)
        if (m->in[ch] != NULL && m->in[ch]->boot < m->boot)
            peer_inbound_close(m->in[ch]);
    for (int ch = 0; ch < PEER_CHANNELS && !m->removed; ch++)
        if (m->links[ch].state == LINK_UP && m->links[ch].boot < m->boot)
            peer_link_abandon(&m->links[ch]);
}

void peer_member_heard(struct peer_member *m, uint64_t boot)
{
    KRD_ASSERT(boot >= m->boot); /* earlier ones were turned away */
    bool restarted = m->boot != 0 && boot > m->boot;
    bool told = m->lost;
    m->suspect = m->lost = false;
    m->boot = boot;
    if (!restarted)
        return;
    close_older(m);
    if (!told && !m->removed)
        tell_lost(m, "a later boot number");
}

void peer_member_suspected(struct peer_member *m)
{
    m->suspect = true;
    for (int ch = 0; ch < PEER_CHANNELS && !m->removed; ch++)
        peer_link_hurry(&m->links[ch]);
}

void peer_member_refused(struct peer_member *m)
{
    KRD_ASSERT(m->suspect);
    m->suspect = false;
    if (m->lost)
        return;
    m->lost = true;
    tell_lost(m, "connection refused");
}

/* --- names ---------------------------------------------------------------------------------- */

static void on_resolved(void *arg, uint64_t id, const char *address,
                        const struct peer_addresses *found, const char *why)
{
    struct peer_tcp *t = arg;
    struct peer_member *m = peer_member_find(t, id);
    if (m == NULL || strcmp(m->address, address) != 0)
        return; /* an answer to a question that nobody has any more */
    m->resolving = false;
    if (found != NULL)
        m->addresses = *found;
    for (int ch = 0; ch < PEER_CHANNELS && !m->removed; ch++)
        peer_link_resolved(&m->links[ch], found, why);
}

bool peer_member_resolve(struct peer_member *m)
{
    struct peer_tcp *t = m->t;
    if (t->resolver == NULL)
        t->resolver = peer_resolver_create(t->loop, on_resolved, t);
    if (t->resolver == NULL)
        return false;
    if (!m->resolving)
        peer_resolver_ask(t->resolver, m->id, m->address);
    m->resolving = true;
    return true;
}

/* --- members -------------------------------------------------------------------------------- */

static struct peer_tcp *tcp_of(struct peer_transport *face)
{
    return KRD_CONTAINER_OF(face, struct peer_tcp, face);
}

static struct peer_member *add_member(struct peer_tcp *t, raft_id id)
{
    struct peer_member *m = krd_zalloc(sizeof *m);
    m->t = t;
    m->id = id;
    for (int ch = 0; ch < PEER_CHANNELS; ch++)
        peer_link_init(&m->links[ch], m, (enum peer_channel)ch);
    t->members[t->n_members++] = m;
    return m;
}

static void free_removed(struct peer_tcp *t)
{
    while (t->removed != NULL) {
        struct peer_member *m = t->removed;
        t->removed = m->next;
        krd_free(m->address);
        krd_free(m);
    }
}

static void tcp_remove_peer(struct peer_transport *face, raft_id id)
{
    struct peer_tcp *t = tcp_of(face);
    for (size_t i = 0; i < t->n_members; i++) {
        struct peer_member *m = t->members[i];
        if (m->id != id)
            continue;
        for (int ch = 0; ch < PEER_CHANNELS; ch++) {
            peer_link_deinit(&m->links[ch]);
            if (m->in[ch] != NULL)
                peer_inbound_close(m->in[ch]);
        }
        m->removed = true;
        t->members[i] = t->members[--t->n_members];
        m->next = t->removed;
        t->removed = m;
        return;
    }
}

static void set_address(struct peer_member *m, const char *address)
{
    krd_free(m->address);
    m->address = krd_strdup(address);
    m->addresses.n = 0;
    m->good.len = 0;
    m->resolving = false; /* an answer to the old name will find nobody */
    m->trouble = NULL;
    /* Malformed ones go the way of a name as well, and the reason into the log. */
    m->is_name = peer_address_numeric(address, &m->addresses) != KRD_OK;
    /* The old address can prove nothing now, and callbacks have no place in here. */
    m->suspect = false;
}

static void tcp_set_peer(struct peer_transport *face, raft_id id, const char *address)
{
    struct peer_tcp *t = tcp_of(face);
    if (id == t->id)
        return; /* nobody dials himself */
    struct peer_member *m = peer_member_find(t, id);
    if (m != NULL && strcmp(m->address, address) == 0)
        return;
    if (m == NULL && t->n_members == KRD_MEMBERS_MAX) {
        krd_error("too many members", "peer=%016" PRIx64 " max=%d", id, KRD_MEMBERS_MAX);
        return;
    }
    if (m == NULL)
        m = add_member(t, id);
    set_address(m, address);
    for (int ch = 0; ch < PEER_CHANNELS; ch++) {
        struct peer_link *l = &m->links[ch];
        peer_sendq_clear(&l->out);
        l->backoff_ms = 0;
        l->eager = 0;
        peer_link_dial(l);
    }
}

static bool tcp_status(struct peer_transport *face, raft_id id, struct peer_status *out)
{
    struct peer_member *m = peer_member_find(tcp_of(face), id);
    if (m == NULL)
        return false;
    const struct peer_link *control = &m->links[PEER_CONTROL], *bulk = &m->links[PEER_BULK];
    *out = (struct peer_status){
        .id = id,
        .connected = control->state == LINK_UP && bulk->state == LINK_UP,
        .sent_bytes = m->sent_bytes,
        .received_bytes = m->received_bytes,
        .send_failures = m->send_failures,
        .queued_bytes = control->out.bytes + bulk->out.bytes,
        .reconnects = m->reconnects,
    };
    return true;
}

/* --- the interface --------------------------------------------------------------------------- */

static bool tcp_send(struct peer_transport *face, raft_id to, enum peer_channel ch,
                     enum peer_frame_kind kind, struct slice head, const struct raft_entry *entries,
                     size_t n)
{
    KRD_ASSERT(ch == PEER_CONTROL || ch == PEER_BULK);
    struct peer_member *m = peer_member_find(tcp_of(face), to);
    if (m == NULL)
        return false;
    bool queued = peer_link_send(&m->links[ch], kind, head, entries, n);
    m->send_failures += !queued;
    return queued;
}

static void tcp_flush(struct peer_transport *face)
{
    struct peer_tcp *t = tcp_of(face);
    for (int ch = 0; ch < PEER_CHANNELS; ch++) /* control first, to all */
        for (size_t i = 0; i < t->n_members; i++)
            peer_link_flush(&t->members[i]->links[ch]);
}

static void tcp_tick(struct peer_transport *face, uint64_t now_ms)
{
    struct peer_tcp *t = tcp_of(face);
    t->now_ms = now_ms;
    free_removed(t);
    peer_accept_tick(t);

    struct peer_member *now[KRD_MEMBERS_MAX]; /* callbacks may change the table */
    size_t n = t->n_members;
    memcpy(now, t->members, n * sizeof *now);
    for (size_t i = 0; i < n; i++)
        for (int ch = 0; ch < PEER_CHANNELS && !now[i]->removed; ch++)
            peer_link_tick(&now[i]->links[ch]);
}

static void tcp_destroy(struct peer_transport *face)
{
    if (face == NULL)
        return;
    struct peer_tcp *t = tcp_of(face);
    while (t->n_members > 0)
        tcp_remove_peer(face, t->members[0]->id);
    free_removed(t);
    peer_accept_stop(t);
    peer_resolver_destroy(t->resolver);
    krd_free(t);
}

static const struct peer_transport_ops tcp_ops = {
    .send = tcp_send,
    .flush = tcp_flush,
    .tick = tcp_tick,
    .set_peer = tcp_set_peer,
    .remove_peer = tcp_remove_peer,
    .status = tcp_status,
    .destroy = tcp_destroy,
};

void peer_tcp_options_default(struct peer_tcp_options *o)
{
    *o = (struct peer_tcp_options){
        .queue_bytes_max = 64u * 1024 * 1024,
        .reconnect_ms_min = 10,
        .reconnect_ms_max = 1000,
    };
}

enum krd_status peer_tcp_create(const struct peer_tcp_options *o, const struct peer_callbacks *cb,
                                struct peer_transport **out, char **err)
{
    KRD_ASSERT(o->loop != NULL && o->listen != NULL);
    KRD_ASSERT(o->id != 0 && o->boot != 0);
    KRD_ASSERT(o->reconnect_ms_min > 0 && o->reconnect_ms_min <= o->reconnect_ms_max);
    KRD_ASSERT(cb->frame && cb->up && cb->down && cb->lost && cb->refused);

    struct peer_tcp *t = krd_zalloc(sizeof *t);
    t->face.ops = &tcp_ops;
    t->cb = *cb;
    t->loop = o->loop;
    t->cluster_id = o->cluster_id;
    t->id = o->id;
    t->boot = o->boot;
    t->queue_bytes_max[PEER_BULK] = o->queue_bytes_max;
    t->queue_bytes_max[PEER_CONTROL] = o->queue_bytes_max / CONTROL_QUEUE_SHARE;
    t->reconnect_ms_min = o->reconnect_ms_min;
    t->reconnect_ms_max = o->reconnect_ms_max;
    krd_rand_seed(&t->rand, o->seed);
    t->now_ms = krd_mono_ms();
    t->listener.fd = -1;

    enum krd_status st = peer_accept_start(t, o->listen, err);
    if (st != KRD_OK) {
        tcp_destroy(&t->face);
        return st;
    }
    *out = &t->face;
    return KRD_OK;
}
