/* peer_accept.c - the connections that members open to us.
 *
 * 1. accept: a stranger, with a few seconds to say hello. He gets no buffer but the hello's.
 * 2. Its hello is checked: version, cluster, receiver (us), sender (a member), boot number,
 *    channel. We answer with our own hello, which names the first thing that is wrong, if any.
 * 3. The connection is the member's now and replaces the one that it had on this channel: that one
 *    is dead, even if our kernel has not heard of it yet.
 * 4. Bytes are read, many frames a call; each whole frame goes to callbacks.frame.
 *
 * Failures, and who notices: garbage, silence and foreigners are closed, with callbacks.refused for
 * the operator's sake; a damaged frame ends the connection, and the sender, who sees that, starts
 * over; the end of a member's connection makes its process suspect (peer_tcp.c), whatever the
 * reason. Too many strangers: the oldest gives way, so that silent ones cannot lock members out.
 * No file descriptor left: accepting rests a while instead of being woken again and again. */
#include "raft/peer_tcp.h"

#include "base/log.h"

#include <errno.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>
#include <utlist.h>

#define LISTEN_BACKLOG 512
/* Connections taken, and bytes read from one connection, before others have their turn. */
#define ACCEPTS_PER_TURN    64
#define READ_BYTES_PER_TURN (2u * 1024 * 1024)
/* Heartbeats and replies are short and kept by nobody; appends come in long bursts and entries stay
 * in the core's memory, a buffer's worth at a time. */
#define CONTROL_BUFFER_BYTES (64u * 1024)
#define BULK_BUFFER_BYTES    (256u * 1024)

/* --- closing -------------------------------------------------------------------------------- */

void peer_inbound_close(struct peer_inbound *c)
{
    struct peer_tcp *t = c->t;
    krd_loop_del(t->loop, &c->io);
    close(c->io.fd);
    c->io.fd = -1;
    if (c->m == NULL) {
        DL_DELETE(t->strangers, c);
        t->n_strangers--;
    } else {
        KRD_ASSERT(c->m->in[c->channel] == c);
        c->m->in[c->channel] = NULL;
    }
    c->next = t->closed;
    t->closed = c;
}

static bool is_closed(const struct peer_inbound *c)
{
    return c->io.fd < 0;
}

static void turn_away(struct peer_inbound *c, const char *reason)
{
    struct peer_tcp *t = c->t;
    krd_warn("connection on the peer port refused", "address=%s reason=\"%s\"", c->address, reason);
    peer_inbound_close(c);
    t->cb.refused(t->cb.arg, c->address, reason);
}

/* --- hello ---------------------------------------------------------------------------------- */

static enum peer_answer judge(struct peer_tcp *t, const struct peer_hello *h)
{
    if (h->cluster_id != t->cluster_id)
        return PEER_REFUSED_CLUSTER;
    if (h->receiver != t->id)
        return PEER_REFUSED_RECEIVER;
    struct peer_member *m = peer_member_find(t, h->sender);
    if (m == NULL)
        return PEER_REFUSED_SENDER;
    if (h->boot < m->boot)
        return PEER_REFUSED_BOOT;
    if (h->channel >= PEER_CHANNELS)
        return PEER_REFUSED_CHANNEL;
    return PEER_WELCOME;
}

/* The same judgement in words for our own operator. */
static const char *judgement_text(enum peer_answer a)
{
    static const char *const texts[PEER_ANSWERS] = {
        [PEER_WELCOME] = "welcome",
        [PEER_REFUSED_VERSION] = "it speaks another version of the peer protocol",
        [PEER_REFUSED_CLUSTER] = "it belongs to another cluster",
        [PEER_REFUSED_RECEIVER] = "it takes us for another member",
        [PEER_REFUSED_SENDER] = "its id is not one of our members'",
        [PEER_REFUSED_BOOT] = "a later start of this member was here: who else uses its id?",
        [PEER_REFUSED_CHANNEL] = "it wants a channel that does not exist",
    };
    return texts[a];
}

static bool send_answer(struct peer_inbound *c, const struct peer_hello *h, enum peer_answer answer)
{
    uint8_t bytes[PEER_HELLO_BYTES];
    peer_hello_encode(&(struct peer_hello){.channel = h->channel,
                                           .answer = (uint8_t)answer,
                                           .cluster_id = c->t->cluster_id,
                                           .sender = c->t->id,
                                           .receiver = h->sender,
                                           .boot = c->t->boot},
                      bytes);
    return send(c->io.fd, bytes, sizeof bytes, MSG_NOSIGNAL) == (ssize_t)sizeof bytes;
}

static void refuse(struct peer_inbound *c, const struct peer_hello *h, enum peer_answer answer)
{
    (void)send_answer(c, h, answer); /* he may be gone; we do not want him anyway */
    turn_away(c, judgement_text(answer));
}

static void welcome(struct peer_inbound *c, const struct peer_hello *h)
{
    struct peer_tcp *t = c->t;
    struct peer_member *m = peer_member_find(t, h->sender);
    enum peer_channel ch = (enum peer_channel)h->channel;
    if (!send_answer(c, h, PEER_WELCOME)) {
        peer_inbound_close(c); /* gone again; he will come back if he wants something */
        return;
    }
    if (m->in[ch] != NULL)
        peer_inbound_close(m->in[ch]);
    DL_DELETE(t->strangers, c);
    t->n_strangers--;
    c->m = m;
    c->channel = ch;
    c->boot = h->boot;
    m->in[ch] = c;
    peer_reader_init(&c->reader, ch == PEER_CONTROL ? CONTROL_BUFFER_BYTES : BULK_BUFFER_BYTES);
    peer_member_heard(m, h->boot);
    for (int i = 0; i < PEER_CHANNELS && !m->removed; i++)
        peer_link_hurry(&m->links[i]); /* who dials has begun to listen before */
}

static void on_hello(struct peer_inbound *c)
{
    ssize_t n = recv(c->io.fd, c->hello + c->hello_len, PEER_HELLO_BYTES - c->hello_len, 0);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n <= 0) {
        if (c->hello_len == 0)
            peer_inbound_close(c); /* a port check: no news */
        else
            turn_away(c, "it hung up in the middle of the handshake");
        return;
    }
    c->hello_len += (size_t)n;

    struct peer_hello h;
    enum krd_status st = peer_hello_decode(slice_of(c->hello, c->hello_len), &h);
    if (st == KRD_AGAIN)
        return;
    if (st == KRD_CONFLICT) {
        refuse(c, &h, PEER_REFUSED_VERSION);
        return;
    }
    if (st != KRD_OK) {
        turn_away(c, "it does not speak the peer protocol");
        return;
    }
    enum peer_answer answer = judge(c->t, &h);
    if (answer == PEER_WELCOME)
        welcome(c, &h);
    else
        refuse(c, &h, answer);
}

/* --- frames --------------------------------------------------------------------------------- */

static void on_end(struct peer_inbound *c)
{
    struct peer_member *m = c->m;
    peer_inbound_close(c);
    peer_member_suspected(m);
}

/* Gives away what is whole. False: c is closed. */
static bool deliver(struct peer_inbound *c)
{
    const struct peer_callbacks *cb = &c->t->cb;
    raft_id from = c->m->id;
    struct peer_frame f;
    enum krd_status st;
    while ((st = peer_reader_next(&c->reader, &f)) == KRD_OK) {
        cb->frame(cb->arg, from, f.kind, f.blob, f.body);
        if (is_closed(c)) /* the callback has removed the member */
            return false;
    }
    if (st == KRD_AGAIN)
        return true;
    turn_away(c, c->reader.fault);
    return false;
}

static void on_bytes(struct peer_inbound *c)
{
    for (size_t total = 0; total < READ_BYTES_PER_TURN;) {
        uint8_t *ptr;
        size_t room;
        peer_reader_room(&c->reader, &ptr, &room);
        ssize_t n = recv(c->io.fd, ptr, room, 0);
        if (n < 0 && (errno == EAGAIN || errno == EINTR))
            return;
        if (n <= 0) {
            on_end(c);
            return;
        }
        peer_reader_filled(&c->reader, (size_t)n);
        c->m->received_bytes += (uint64_t)n;
        total += (size_t)n;
        if (!deliver(c) || (size_t)n < room)
            return;
    }
}

static void on_inbound(struct krd_io *io, uint32_t events)
{
    (void)events; /* an error or a hang-up shows in the read, behind what came before it */
    struct peer_inbound *c = KRD_CONTAINER_OF(io, struct peer_inbound, io);
    if (c->m == NULL)
        on_hello(c);
    else
        on_bytes(c);
}

/* --- accepting ------------------------------------------------------------------------------ */

static void rest(struct peer_tcp *t, const char *why)
{
    krd_error("connections on the peer port cannot be accepted for a while",
              "rest_ms=%d reason=\"%s\"", PEER_ACCEPT_REST_MS, why);
    krd_loop_mod(t->loop, &t->listener, 0);
    t->accept_ms = t->now_ms + PEER_ACCEPT_REST_MS;
}

static void take_in(struct peer_tcp *t, int fd, const struct peer_address *from)
{
    struct peer_inbound *c = krd_zalloc(sizeof *c);
    c->t = t;
    c->io = (struct krd_io){.fd = fd, .events = EPOLLIN, .fn = on_inbound};
    c->due_ms = t->now_ms + PEER_HELLO_MS;
    peer_address_text(from, c->address);
    peer_socket_options(fd);
    if (krd_loop_add(t->loop, &c->io) != KRD_OK) {
        close(fd);
        krd_free(c);
        return;
    }
    DL_APPEND(t->strangers, c);
    t->n_strangers++;
    if (t->n_strangers > PEER_STRANGERS_MAX)
        turn_away(t->strangers, "too many connections without a hello, this is the oldest");
}

static void on_listener(struct krd_io *io, uint32_t events)
{
    (void)events;
    struct peer_tcp *t = KRD_CONTAINER_OF(io, struct peer_tcp, listener);
    for (int i = 0; i < ACCEPTS_PER_TURN; i++) {
        struct peer_address from = {.len = sizeof from.sa};
        int fd =
            accept4(io->fd, (struct sockaddr *)&from.sa, &from.len, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd >= 0) {
            take_in(t, fd, &from);
            continue;
        }
        if (errno == EAGAIN)
            return;
        if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
            rest(t, peer_errno_text(errno));
            return;
        }
        /* Others are about the one connection that was about to be taken: on to the next. */
    }
}

/* A listening socket for one address, or -1 and errno. */
static int listen_at(const struct peer_address *a)
{
    int fd = socket(a->sa.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -1;
    int on = 1, off = 0;
    (void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    const struct sockaddr_in6 *v6 = (const struct sockaddr_in6 *)&a->sa;
    if (a->sa.ss_family == AF_INET6 && IN6_IS_ADDR_UNSPECIFIED(&v6->sin6_addr))
        (void)setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off); /* both families */
    if (bind(fd, (const struct sockaddr *)&a->sa, a->len) != 0 || listen(fd, LISTEN_BACKLOG) != 0) {
        int err = errno;
        close(fd);
        errno = err;
        return -1;
    }
    return fd;
}

enum krd_status peer_accept_start(struct peer_tcp *t, const char *listen_on, char **err)
{
    struct peer_addresses where;
    const char *why = NULL;
    if (peer_address_listen(listen_on, &where, &why) != KRD_OK) {
        *err = krd_asprintf("cannot listen for peers on \"%s\": %s", listen_on, why);
        return KRD_IO;
    }
    int fd = -1, last = 0;
    for (size_t i = 0; i < where.n && fd < 0; i++) {
        fd = listen_at(&where.at[i]);
        last = fd < 0 ? errno : 0;
        if (last != 0 && last != EAFNOSUPPORT && last != EADDRNOTAVAIL)
            break; /* a port in use must not lead to half of the addresses */
    }
    t->listener = (struct krd_io){.fd = fd, .events = EPOLLIN, .fn = on_listener};
    if (fd >= 0 && krd_loop_add(t->loop, &t->listener) == KRD_OK)
        return KRD_OK;
    if (fd >= 0) {
        last = errno;
        close(fd);
        t->listener.fd = -1;
    }
    *err = krd_asprintf("cannot listen for peers on \"%s\": %s", listen_on, peer_errno_text(last));
    return KRD_IO;
}

static void free_closed(struct peer_tcp *t)
{
    while (t->closed != NULL) {
        struct peer_inbound *c = t->closed;
        t->closed = c->next;
        peer_reader_deinit(&c->reader);
        krd_free(c);
    }
}

void peer_accept_stop(struct peer_tcp *t)
{
    if (t->listener.fd >= 0) {
        krd_loop_del(t->loop, &t->listener);
        close(t->listener.fd);
        t->listener.fd = -1;
    }
    while (t->strangers != NULL)
        peer_inbound_close(t->strangers);
    free_closed(t);
}

void peer_accept_tick(struct peer_tcp *t)
{
    free_closed(t);
    while (t->strangers != NULL && t->now_ms >= t->strangers->due_ms) /* oldest first */
        turn_away(t->strangers, "it did not say hello in time");
    if (t->accept_ms != 0 && t->now_ms >= t->accept_ms) {
        t->accept_ms = 0;
        krd_loop_mod(t->loop, &t->listener, EPOLLIN);
    }
}
