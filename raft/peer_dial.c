/* peer_dial.c - our own connections to a member: one for each channel, dialled for ever.
 *
 * The way to a connection:
 *   WAITING    until the back-off is over,
 *   RESOLVING  if the address is a name (peer_address.c's thread),
 *   CONNECTING to one target after the other,
 *   GREETING   hello out, answer in: cluster, ids, channel and boot number are what we expect,
 *   UP         frames go out; nothing but the end of the stream ever comes in.
 *
 * A frame's way: send copies its head and takes references of its records into the queue, flush
 * gives the queue to the kernel once per turn of the loop, as many pieces a call as it takes; what
 * does not fit waits for the socket to be writable.
 *
 * Failures, and who notices:
 *   the peer's process dies        its kernel ends the stream (FIN or RST); we dial again at once,
 *                                  at the address that worked, and are refused: peer_tcp.c is told
 *   a connection is reset          the same, but the dial succeeds and finds the same process
 *   the peer's machine dies        TCP_USER_TIMEOUT ends the connection, dials time out; nothing is
 *                                  concluded, the core's election timeout serves
 *   the peer's process is stopped  the kernel connects for it; the hello is not answered in time
 *   somebody else answers          the reason is logged, and dialled again only slowly
 *   a write fails                  the handler is called with EPOLLHUP and ends the connection
 * Each attempt that fails doubles the wait before the next, with jitter; a connection that has
 * lived for a while starts again from the shortest. */
#include "raft/peer_tcp.h"

#include "base/log.h"

#include <errno.h>
#include <sys/socket.h>
#include <unistd.h>

/* Pieces that go to the kernel in one call: its limit, UIO_MAXIOV. */
#define IOV_MAX_PIECES 1024
/* What one flush writes at most on one connection, lest a fast reader keep us from the others. */
#define FLUSH_BYTES_MAX (8u * 1024 * 1024)

static void on_link(struct krd_io *io, uint32_t events);
static void connect_next(struct peer_link *l);

static const char *channel_name(enum peer_channel c)
{
    return c == PEER_CONTROL ? "control" : "bulk";
}

/* --- closing and waiting -------------------------------------------------------------------- */

static void close_socket(struct peer_link *l)
{
    if (l->io.fd < 0)
        return;
    krd_loop_del(l->t->loop, &l->io);
    close(l->io.fd);
    l->io.fd = -1;
}

static void wait_ms(struct peer_link *l, uint32_t ms)
{
    close_socket(l);
    l->state = LINK_WAITING;
    l->eager = 0;
    l->due_ms = l->t->now_ms + ms / 2 + krd_rand_below(&l->t->rand, ms / 2 + 1);
}

static void back_off(struct peer_link *l)
{
    const struct peer_tcp *t = l->t;
    uint64_t next = l->backoff_ms == 0 ? t->reconnect_ms_min : 2 * (uint64_t)l->backoff_ms;
    l->backoff_ms = (uint32_t)krd_min_u64(next, t->reconnect_ms_max);
    wait_ms(l, l->backoff_ms);
}

/* Logs a reason once, not with every attempt: both links meet the same one, again and again. why
 * must be static. */
static void note_trouble(struct peer_link *l, const char *why)
{
    struct peer_member *m = l->m;
    if (m->trouble != NULL && strcmp(m->trouble, why) == 0)
        return;
    m->trouble = why;
    krd_warn("peer cannot be reached, will keep trying",
             "peer=%016" PRIx64 " address=\"%s\" channel=%s reason=\"%s\"", m->id, m->address,
             channel_name(l->channel), why);
}

/* An attempt came to nothing. was_reset: somebody took the call and hung up. */
static void attempt_failed(struct peer_link *l, const char *why, bool was_reset)
{
    note_trouble(l, why);
    if (was_reset && l->m->suspect && l->eager > 0) {
        l->eager--;
        peer_link_dial(l);
        return;
    }
    back_off(l);
}

/* Somebody answered who is not the one we want, or does not want us: a matter for the operator. */
static void turned_away(struct peer_link *l, const char *why)
{
    note_trouble(l, why);
    l->backoff_ms = l->t->reconnect_ms_max;
    wait_ms(l, l->backoff_ms);
}

/* --- dialling ------------------------------------------------------------------------------- */

void peer_link_dial(struct peer_link *l)
{
    struct peer_member *m = l->m;
    close_socket(l);
    l->at = l->n_refused = 0;
    l->state = LINK_CONNECTING;
    if (l->eager > 0 && m->good.len > 0) {
        /* After a loss the only question is whether anybody is left where the process was. */
        l->targets = (struct peer_addresses){.n = 1};
        l->targets.at[0] = m->good;
        connect_next(l);
    } else if (!m->is_name) {
        l->targets = m->addresses;
        connect_next(l);
    } else {
        l->state = LINK_RESOLVING;
        l->due_ms = UINT64_MAX; /* peer_link_resolved comes, sooner or later */
        if (!peer_member_resolve(m))
            attempt_failed(l, "no thread can be had to resolve its name", false);
    }
}

void peer_link_resolved(struct peer_link *l, const struct peer_addresses *found, const char *why)
{
    if (l->state != LINK_RESOLVING)
        return;
    if (found == NULL) {
        attempt_failed(l, why, false);
        return;
    }
    l->state = LINK_CONNECTING;
    l->targets = *found;
    connect_next(l);
}

/* Is it certain now that nobody listens where the member did? A name's other addresses, which it
 * never used, prove nothing. */
static bool nobody_there(const struct peer_link *l)
{
    const struct peer_address *target = &l->targets.at[l->at];
    return l->m->good.len > 0 ? peer_address_eq(target, &l->m->good) : l->n_refused == l->targets.n;
}

/* The target did not take the call. True: the attempt is over. */
static bool target_failed(struct peer_link *l, int err)
{
    close_socket(l);
    if (err == ECONNREFUSED) {
        l->n_refused++;
        if (nobody_there(l) && l->m->suspect) {
            note_trouble(l, peer_errno_text(err));
            back_off(l); /* before the callback, which may remove the member */
            peer_member_refused(l->m);
            return true;
        }
    }
    if (++l->at < l->targets.n)
        return false;
    attempt_failed(l, peer_errno_text(err), err == ECONNRESET);
    return true;
}

/* A socket that is connecting to the target, or errno. */
static int start_connect(struct peer_link *l)
{
    const struct peer_address *to = &l->targets.at[l->at];
    int fd = socket(to->sa.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return errno;
    peer_socket_options(fd);
    if (connect(fd, (const struct sockaddr *)&to->sa, to->len) != 0 && errno != EINPROGRESS) {
        int err = errno;
        close(fd);
        return err;
    }
    l->io = (struct krd_io){.fd = fd, .events = EPOLLOUT, .fn = on_link};
    if (krd_loop_add(l->t->loop, &l->io) != KRD_OK) {
        close(fd);
        l->io.fd = -1;
        return ENOMEM;
    }
    return 0;
}

static void connect_next(struct peer_link *l)
{
    for (;;) {
        int err = start_connect(l);
        if (err == 0)
            break;
        if (target_failed(l, err))
            return;
    }
    l->state = LINK_CONNECTING;
    l->due_ms = l->t->now_ms + PEER_CONNECT_MS;
}

static void target_failed_then_next(struct peer_link *l, int err)
{
    if (!target_failed(l, err))
        connect_next(l);
}

static int socket_error(int fd)
{
    int err = 0;
    socklen_t len = sizeof err;
    if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &err, &len) != 0)
        err = errno;
    return err;
}

static void on_connected(struct peer_link *l)
{
    int err = socket_error(l->io.fd);
    if (err != 0) {
        target_failed_then_next(l, err);
        return;
    }
    uint8_t hello[PEER_HELLO_BYTES];
    peer_hello_encode(&(struct peer_hello){.channel = (uint8_t)l->channel,
                                           .answer = PEER_WELCOME,
                                           .cluster_id = l->t->cluster_id,
                                           .sender = l->t->id,
                                           .receiver = l->m->id,
                                           .boot = l->t->boot},
                      hello);
    /* A new socket's buffer takes 48 bytes whole, or the connection is broken already. */
    if (send(l->io.fd, hello, sizeof hello, MSG_NOSIGNAL) != (ssize_t)sizeof hello) {
        attempt_failed(l, "connection ended during the handshake", true);
        return;
    }
    l->state = LINK_GREETING;
    l->due_ms = l->t->now_ms + PEER_HELLO_MS;
    l->answer_len = 0;
    krd_loop_mod(l->t->loop, &l->io, EPOLLIN);
}

/* --- greeting ------------------------------------------------------------------------------- */

/* Why whoever answered is not the process that we want; NULL: he is. */
static const char *stranger(const struct peer_link *l, const struct peer_hello *h)
{
    if (h->cluster_id != l->t->cluster_id)
        return peer_answer_text(PEER_REFUSED_CLUSTER);
    if (h->sender != l->m->id)
        return peer_answer_text(PEER_REFUSED_RECEIVER);
    if (h->receiver != l->t->id || h->channel != l->channel)
        return "its answer was meant for somebody else";
    if (h->boot < l->m->boot)
        return "an earlier start of this member answers: who else uses its id?";
    return NULL;
}

static bool both_up(const struct peer_member *m)
{
    return m->links[PEER_CONTROL].state == LINK_UP && m->links[PEER_BULK].state == LINK_UP;
}

static void come_up(struct peer_link *l, uint64_t boot)
{
    struct peer_tcp *t = l->t;
    struct peer_member *m = l->m;
    KRD_ASSERT(l->out.bytes == 0); /* nothing is queued on a link that is not up */

    l->state = LINK_UP;
    l->due_ms = UINT64_MAX;
    l->boot = boot;
    l->up_ms = t->now_ms;
    l->eager = 0;
    l->broken = false;
    m->good = l->targets.at[l->at];
    m->trouble = NULL;
    m->reconnects += l->was_up;
    l->was_up = true;
    if (!both_up(m))
        return;
    krd_debug("peer connected", "peer=%016" PRIx64 " address=\"%s\" boot=%" PRIu64, m->id, m->address,
              boot);
    t->cb.up(t->cb.arg, m->id);
}

static void on_answer(struct peer_link *l)
{
    ssize_t n = recv(l->io.fd, l->answer + l->answer_len, PEER_HELLO_BYTES - l->answer_len, 0);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n <= 0) {
        attempt_failed(l, "connection ended during the handshake", true);
        return;
    }
    l->answer_len += (size_t)n;

    struct peer_hello h;
    enum krd_status st = peer_hello_decode(slice_of(l->answer, l->answer_len), &h);
    if (st == KRD_AGAIN)
        return;
    if (st == KRD_CONFLICT) {
        turned_away(l, peer_answer_text(PEER_REFUSED_VERSION));
        return;
    }
    if (st != KRD_OK) {
        turned_away(l, "whoever answers there is not a member of any cluster");
        return;
    }
    const char *why = stranger(l, &h);
    if (why != NULL) {
        turned_away(l, why);
        return;
    }
    peer_member_heard(l->m, h.boot); /* even if it refuses us, that is what answers there */
    if (l->m->removed || l->state != LINK_GREETING)
        return; /* a callback wanted it so */
    if (h.answer != PEER_WELCOME)
        turned_away(l, peer_answer_text(h.answer));
    else
        come_up(l, h.boot);
}

/* --- up ------------------------------------------------------------------------------------- */

/* The end of a connection that was up: what was on it is gone. */
static void drop(struct peer_link *l, const char *why)
{
    struct peer_tcp *t = l->t;
    struct peer_member *m = l->m;
    KRD_ASSERT(l->state == LINK_UP);

    krd_info("peer connection ended", "peer=%016" PRIx64 " channel=%s unsent_bytes=%zu reason=\"%s\"",
             m->id, channel_name(l->channel), l->out.bytes, why);
    peer_sendq_clear(&l->out);
    if (t->now_ms - l->up_ms >= t->reconnect_ms_max)
        l->backoff_ms = 0;
    back_off(l);
    t->cb.down(t->cb.arg, m->id);
}

void peer_link_hurry(struct peer_link *l)
{
    uint64_t now = l->t->now_ms;
    if (l->state != LINK_WAITING)
        return;
    if (now - l->at_once_ms >= PEER_AT_ONCE_MS) {
        l->at_once_ms = now;
        l->at_once = 0;
    }
    if (l->at_once == PEER_AT_ONCE_MAX)
        return;
    l->at_once++;
    l->eager = PEER_EAGER_DIALS;
    l->backoff_ms = 0; /* if nobody listens there now, somebody soon may */
    peer_link_dial(l);
}

void peer_link_abandon(struct peer_link *l)
{
    drop(l, "the member's process was started again");
    if (!l->m->removed)
        peer_link_hurry(l);
}

static void on_end(struct peer_link *l, const char *why)
{
    struct peer_member *m = l->m;
    drop(l, why);
    if (!m->removed)
        peer_member_suspected(m);
}

static void on_up(struct peer_link *l, uint32_t events)
{
    if (events & (EPOLLERR | EPOLLHUP)) {
        int err = socket_error(l->io.fd);
        on_end(l, err != 0 ? peer_errno_text(err) : "connection reset");
        return;
    }
    if (events & EPOLLIN) {
        uint8_t byte;
        ssize_t n = recv(l->io.fd, &byte, sizeof byte, 0);
        if (n == 0) {
            on_end(l, "connection closed");
            return;
        }
        if (n > 0 || (errno != EAGAIN && errno != EINTR)) {
            on_end(l, n > 0 ? "unexpected bytes" : peer_errno_text(errno));
            return;
        }
    }
    if (events & EPOLLOUT)
        peer_link_flush(l);
}

static void on_link(struct krd_io *io, uint32_t events)
{
    struct peer_link *l = KRD_CONTAINER_OF(io, struct peer_link, io);
    switch (l->state) {
    case LINK_CONNECTING:
        on_connected(l);
        break;
    case LINK_GREETING:
        on_answer(l);
        break;
    case LINK_UP:
        on_up(l, events);
        break;
    case LINK_WAITING:
    case LINK_RESOLVING:
        KRD_ASSERT(!"a link without a socket has no events");
    }
}

void peer_link_tick(struct peer_link *l)
{
    if (l->t->now_ms < l->due_ms)
        return;
    if (l->state == LINK_WAITING)
        peer_link_dial(l);
    else if (l->state == LINK_CONNECTING)
        target_failed_then_next(l, ETIMEDOUT);
    else if (l->state == LINK_GREETING)
        attempt_failed(l, "it does not answer our hello", false);
}

/* --- sending -------------------------------------------------------------------------------- */

bool peer_link_send(struct peer_link *l, enum peer_frame_kind kind, struct slice head,
                    const struct raft_entry *entries, size_t n)
{
    if (l->state != LINK_UP || l->broken)
        return false;
    size_t records = 0;
    for (size_t i = 0; i < n; i++)
        records += raft_record_bytes(&entries[i]);
    /* An empty queue takes any frame, or one larger than the bound could never be sent. */
    if (l->out.bytes > 0 &&
        l->out.bytes + peer_frame_bytes(head.len, records) > l->t->queue_bytes_max[l->channel])
        return false;
    peer_sendq_put(&l->out, kind, head, entries, n, records);
    return true;
}

static void want_writable(struct peer_link *l, bool want)
{
    uint32_t events = want ? EPOLLIN | EPOLLOUT : EPOLLIN;
    if (l->io.events != events)
        krd_loop_mod(l->t->loop, &l->io, events);
}

void peer_link_flush(struct peer_link *l)
{
    if (l->state != LINK_UP || l->broken || l->out.bytes == 0)
        return;
    struct iovec iov[IOV_MAX_PIECES];
    size_t written = 0;
    while (l->out.bytes > 0 && written < FLUSH_BYTES_MAX) {
        struct msghdr msg = {.msg_iov = iov};
        msg.msg_iovlen = (size_t)peer_sendq_iov(&l->out, iov, IOV_MAX_PIECES);
        ssize_t n = sendmsg(l->io.fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n >= 0) {
            written += (size_t)n;
            peer_sendq_sent(&l->out, (size_t)n);
        } else if (errno == EAGAIN || errno == ENOBUFS || errno == ENOMEM) {
            break;
        } else if (errno != EINTR) {
            /* Reported by the loop, where callbacks are allowed; the shutdown makes sure of it. */
            l->broken = true;
            shutdown(l->io.fd, SHUT_RDWR);
            return;
        }
    }
    l->m->sent_bytes += written;
    want_writable(l, l->out.bytes > 0);
}

/* --- life ----------------------------------------------------------------------------------- */

void peer_link_init(struct peer_link *l, struct peer_member *m, enum peer_channel channel)
{
    *l = (struct peer_link){
        .io = {.fd = -1}, .t = m->t, .m = m, .channel = channel, .state = LINK_WAITING};
}

void peer_link_deinit(struct peer_link *l)
{
    close_socket(l);
    peer_sendq_deinit(&l->out);
    l->state = LINK_WAITING;
    l->due_ms = UINT64_MAX;
}
