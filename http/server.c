/* Loops, listeners and connections.
 *
 * http_start binds once; each loop polls a duplicate of every listening socket and takes what it
 * gets. A loop is a thread with an h2o event loop and context of its own, built and torn down on
 * that thread (libh2o keeps buffers per thread). One turn of a loop: sockets and inbox (h2o), then
 * slices of long answers, watches, timers (on_work), then one barrier for the reads that came.
 *
 * Stopping: http_stop posts one message to each loop. The loop closes its listeners, ends its
 * watches, closes connections as they become idle and the rest when patience ends, and leaves when
 * no connection is left and the node owes it no callback. */
#include "http/front.h"

#include "base/clock.h"
#include "base/limits.h"
#include "base/log.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#define ACCEPT_BATCH 64
#define TICK_MS      1000
#define POLL_TICK_MS 50

struct http_front {
    struct http_options o;
    char *cors_origin;
    h2o_globalconf_t conf;
    struct http_listeners listeners;
    unsigned n;
    sem_t ready; /* posted by each loop that has started */
    struct http_loop loops[];
};

/* --- Inbox ------------------------------------------------------------------------------------ */

void http_post(struct http_loop *l, struct http_msg *m)
{
    h2o_multithread_send_message(&l->inbox, &m->super);
}

static void on_inbox(h2o_multithread_receiver_t *receiver, h2o_linklist_t *messages)
{
    struct http_loop *l = KRD_CONTAINER_OF(receiver, struct http_loop, inbox);
    while (!h2o_linklist_is_empty(messages)) {
        struct http_msg *m = KRD_CONTAINER_OF(messages->next, struct http_msg, super.link);
        h2o_linklist_unlink(&m->super.link);
        m->fn(l, m);
    }
}

/* --- Connections ------------------------------------------------------------------------------ */

static void on_accept(h2o_socket_t *listener, const char *err);

static void accept_start(struct http_loop *l)
{
    for (size_t i = 0; i < KRD_ARRAY_LEN(l->listeners) && l->listeners[i] != NULL; i++)
        h2o_socket_read_start(l->listeners[i], on_accept);
    l->accepting = true;
}

static void accept_pause(struct http_loop *l)
{
    for (size_t i = 0; i < KRD_ARRAY_LEN(l->listeners) && l->listeners[i] != NULL; i++)
        h2o_socket_read_stop(l->listeners[i]);
    l->accepting = false;
}

struct http_conn *http_conn_of(h2o_req_t *h2o)
{
    return h2o->conn->callbacks->get_socket(h2o->conn)->on_close.data;
}

void http_conn_kill(struct http_conn *c)
{
    (void)shutdown(h2o_socket_get_fd(c->sock), SHUT_RDWR);
}

/* --- Clients that leave while they wait -------------------------------------------------------
 *
 * h2o 2.2.5 stops reading while a request is being answered. For answers that come later that
 * costs two epoll_ctl calls a request, and a client that has left is noticed only when something is
 * written to it. So we ask to be told, without reading (the request still lies in the buffer), and
 * look what it is: more requests wait for their turn; a reset ends the request at once, and so does
 * the end of input on a watch, which nobody half-closes on purpose. Anybody else who has closed
 * his side may still be waiting for his answer. */

static void on_sign(h2o_socket_t *sock, const char *err)
{
    struct http_conn *c = sock->on_close.data;
    char byte;
    ssize_t n = err == NULL ? recv(h2o_socket_get_fd(sock), &byte, 1, MSG_PEEK | MSG_DONTWAIT) : -1;
    if (n < 0 && err == NULL && (errno == EAGAIN || errno == EINTR))
        return;
    bool gone = n < 0 || (n == 0 && c->req->route.call == HTTP_CALL_WATCH);
    http_conn_unlisten(c);
    h2o_socket_read_stop(sock);
    if (gone)
        c->h2o_on_read(sock, h2o_socket_error_closed);
}

static void listen_for_signs(struct http_conn *c)
{
    c->listening = true;
    h2o_socket_dont_read(c->sock, 1);
    h2o_socket_read_start(c->sock, on_sign);
}

void http_conn_unlisten(struct http_conn *c)
{
    if (c->listening)
        h2o_socket_dont_read(c->sock, 0);
    c->listening = false;
}

/* h2o has closed the socket; its request is disposed of already. */
static void on_conn_close(void *data)
{
    struct http_conn *c = data;
    struct http_loop *l = c->loop;
    KRD_ASSERT(c->req == NULL);
    h2o_linklist_unlink(&c->link);
    http_count(&l->counters.connections, -1);
    if (c->linger_fd >= 0)
        http_linger(l, c->linger_fd);
    krd_free(c);
}

static void on_connection(struct http_loop *l, h2o_socket_t *sock)
{
    struct http_conn *c = krd_zalloc(sizeof *c);
    c->loop = l;
    c->sock = sock;
    c->linger_fd = -1;
    h2o_linklist_insert(&l->conns, &c->link);
    sock->on_close.cb = on_conn_close;
    sock->on_close.data = c;
    /* A peer that is switched off acknowledges nothing any more: the kernel gives up before its
     * usual quarter of an hour. (One that is alive and takes nothing is request.c's.) */
    unsigned dead_ms = l->o->stall_timeout_ms + 30 * 1000;
    (void)setsockopt(h2o_socket_get_fd(sock), IPPROTO_TCP, TCP_USER_TIMEOUT, &dead_ms,
                     sizeof dead_ms);
    http_count(&l->counters.accepted, 1);
    http_count(&l->counters.connections, 1);
    h2o_accept(&l->accept_ctx, sock);
    c->h2o_on_read = sock->_cb.read;
    http_look_at_first(c);
}

static void on_accept(h2o_socket_t *listener, const char *err)
{
    struct http_loop *l = listener->data;
    if (err != NULL)
        return;
    for (int i = 0; i < ACCEPT_BATCH; i++) {
        h2o_socket_t *sock = h2o_evloop_socket_accept(listener);
        if (sock != NULL) {
            on_connection(l, sock);
            continue;
        }
        if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
            /* Clients wait in the kernel's queue until the next tick. */
            if (!l->fd_shortage_logged)
                krd_warn("cannot accept HTTP connections for now", "error=\"%s\"", strerror(errno));
            l->fd_shortage_logged = true;
            accept_pause(l);
        }
        return;
    }
}

static int on_req(h2o_handler_t *self, h2o_req_t *q)
{
    (void)self;
    struct http_req *r = http_req_create(KRD_CONTAINER_OF(q->conn->ctx, struct http_loop, ctx), q);
    http_dispatch(r);
    if (!r->finished)
        listen_for_signs(r->conn);
    return 0;
}

/* --- A loop's life ---------------------------------------------------------------------------- */

static void on_work(h2o_timeout_entry_t *entry);

static void loop_init(struct http_loop *l)
{
    h2o_linklist_init_anchor(&l->conns);
    h2o_linklist_init_anchor(&l->lingering);
    h2o_linklist_init_anchor(&l->active);
    h2o_linklist_init_anchor(&l->turn);
    h2o_linklist_init_anchor(&l->reads.gathering);
    l->now_ms = l->ticked_ms = krd_mono_ms();
    l->work.cb = on_work;
    h2o_context_init(&l->ctx, h2o_evloop_create(), &l->front->conf);
    l->accept_ctx = (h2o_accept_ctx_t){.ctx = &l->ctx, .hosts = l->front->conf.hosts};
    h2o_multithread_register_receiver(l->ctx.queue, &l->inbox, on_inbox);
    for (unsigned i = 0; i < l->front->listeners.n; i++) {
        int fd = fcntl(l->front->listeners.fds[i], F_DUPFD_CLOEXEC, 0);
        if (fd < 0)
            krd_fatal("http: cannot duplicate the listening socket: %s", strerror(errno));
        l->listeners[i] = h2o_evloop_socket_create(l->ctx.loop, fd, H2O_SOCKET_FLAG_DONT_READ);
        l->listeners[i]->data = l;
    }
    http_watches_init(l);
    accept_start(l);
}

static void close_listeners(struct http_loop *l)
{
    for (size_t i = 0; i < KRD_ARRAY_LEN(l->listeners) && l->listeners[i] != NULL; i++) {
        h2o_socket_close(l->listeners[i]);
        l->listeners[i] = NULL;
    }
    l->accepting = false;
}

/* libh2o 2.2.5 frees neither its queue, nor the epoll descriptor, nor what its allocators keep per
 * thread. Threads of ours end, so all three would be leaks. */
static void give_back_what_h2o_keeps(h2o_multithread_queue_t *queue, h2o_evloop_t *loop)
{
    struct epoll_like {
        h2o_evloop_t super;
        int epfd;
    };
    int epfd = ((struct epoll_like *)(void *)loop)->epfd;
    h2o_evloop_destroy(loop);
    close(epfd);
    free(queue);

    /* Buffers of sockets: the recycler is public. */
    h2o_mem_recycle_t *r = &h2o_socket_buffer_prototype.allocator;
    while (r->cnt > 0)
        free(h2o_mem_alloc_recycle(r, 1));
    /* Chunks of pools: the recycler is not. It holds 16 at most; a pool that takes 16 gets them
     * all, and a chunk begins with the pointer to the next. */
    h2o_mem_pool_t pool;
    h2o_mem_init_pool(&pool);
    for (int i = 0; i < 16 * 4; i++)
        (void)h2o_mem_alloc_pool(&pool, 1008);
    for (void *chunk = pool.chunks, *next; chunk != NULL; chunk = next) {
        next = *(void **)chunk;
        free(chunk);
    }
}

static void loop_deinit(struct http_loop *l)
{
    KRD_ASSERT(h2o_linklist_is_empty(&l->active));
    http_watches_deinit(l);
    h2o_timeout_unlink(&l->work);
    http_req_free_spares(l);
    h2o_multithread_unregister_receiver(l->ctx.queue, &l->inbox);
    h2o_multithread_queue_t *queue = l->ctx.queue;
    h2o_evloop_t *loop = l->ctx.loop;
    h2o_context_dispose(&l->ctx);
    give_back_what_h2o_keeps(queue, loop);
}

static void on_stop(struct http_loop *l, struct http_msg *m)
{
    (void)m;
    l->stopping = true;
    l->stop_at_ms = l->now_ms + l->o->drain_ms;
    l->ctx.shutdown_requested = 1; /* answers carry Connection: close from now on */
    close_listeners(l);
    http_linger_check(l, true);
    http_watches_end(l);
}

/* Idle connections are closed; at the end of patience all are. A request that the node still owes
 * an answer lives on until that has come. */
static void drain(struct http_loop *l)
{
    bool all = l->now_ms >= l->stop_at_ms;
    for (h2o_linklist_t *at = l->conns.next; at != &l->conns; at = at->next) {
        struct http_conn *c = KRD_CONTAINER_OF(at, struct http_conn, link);
        if (all)
            http_conn_kill(c);
        else if (c->req == NULL)
            (void)shutdown(h2o_socket_get_fd(c->sock), SHUT_RD);
    }
    http_linger_check(l, true);
}

static bool drained(const struct http_loop *l)
{
    return l->stopping && l->owed == 0 && l->conns.next == &l->conns &&
           l->lingering.next == &l->lingering;
}

static bool poll_due(const struct http_loop *l)
{
    return l->watches.polls > 0 && l->now_ms - l->polled_ms >= POLL_TICK_MS;
}

static bool tick_due(const struct http_loop *l)
{
    return l->now_ms - l->ticked_ms >= TICK_MS;
}

static void tick(struct http_loop *l)
{
    bool due = tick_due(l);
    if (due || poll_due(l)) {
        l->polled_ms = l->now_ms;
        http_watches_tick(l);
    }
    if (!due)
        return;
    l->ticked_ms = l->now_ms;
    http_check_stalled(l);
    http_linger_check(l, false);
    if (!l->accepting && !l->stopping)
        accept_start(l);
    else
        l->fd_shortage_logged = false;
}

/* --- Turns ------------------------------------------------------------------------------------
 *
 * Answers are written inside h2o's own turn, never beside it: a write that ends at once is
 * completed later in the same turn. Done between turns, h2o 2.2.5 would find the socket "writing"
 * when it brings epoll up to date, complete the write, and still be polling for it: its next event
 * trips an assertion. So our part of a turn is the callback of a zero timeout, which h2o runs when
 * the sockets and the inbox have had theirs. Work that is asked for during our part is for the next
 * turn, or h2o would call us again and again in this one. */

void http_kick(struct http_loop *l)
{
    if (l->working)
        l->again = true;
    else if (!h2o_timeout_is_linked(&l->work))
        h2o_timeout_link(l->ctx.loop, &l->ctx.zero_timeout, &l->work);
}

static void on_work(h2o_timeout_entry_t *entry)
{
    struct http_loop *l = KRD_CONTAINER_OF(entry, struct http_loop, work);
    l->working = true;
    l->now_ms = krd_mono_ms();
    http_run_turn(l);
    http_watches_run(l);
    tick(l);
    if (l->stopping)
        drain(l);
    l->working = false;
}

static void prepare_turn(struct http_loop *l)
{
    bool work = l->again || l->stopping || tick_due(l) || poll_due(l);
    /* h2o's clock is the wall's: set back, it would keep us waiting until it is where it was. */
    if (h2o_timeout_is_linked(&l->work)) {
        h2o_timeout_unlink(&l->work);
        work = true;
    }
    l->again = false;
    if (work)
        http_kick(l);
}

static int32_t wait_ms(const struct http_loop *l)
{
    return http_reads_wait(l, l->stopping || l->watches.polls > 0 ? POLL_TICK_MS : TICK_MS);
}

static void *run(void *arg)
{
    struct http_loop *l = arg;
    loop_init(l);
    sem_post(&l->front->ready);
    while (!drained(l)) {
        prepare_turn(l);
        (void)h2o_evloop_run(l->ctx.loop, wait_ms(l));
        l->now_ms = krd_mono_ms();
        http_reads_flush(l);
    }
    loop_deinit(l);
    return NULL;
}

/* --- Start and stop --------------------------------------------------------------------------- */

void http_options_init(struct http_options *o)
{
    *o = (struct http_options){
        .threads = 1,
        .max_request_bytes = KRD_REQUEST_BYTES_DEFAULT,
        .request_timeout_ms = 60 * 1000,
        .stall_timeout_ms = 60 * 1000,
        .bookmark_ms = 5000,
        .drain_ms = 5000,
        .slow_request_ms = 500,
        .version = "0.0.0",
        .build = "unknown",
    };
}

unsigned http_loop_count(const struct http_front *f)
{
    return f->n;
}

struct http_counters *http_loop_counters(struct http_front *f, unsigned i)
{
    return &f->loops[i].counters;
}

uint16_t http_port(const struct http_front *f)
{
    return f->listeners.port;
}

/* 10,000 idle connections are nothing to us; the default limit of 1024 descriptors is. */
static void raise_fd_limit(void)
{
    struct rlimit r;
    if (getrlimit(RLIMIT_NOFILE, &r) != 0 || r.rlim_cur >= r.rlim_max)
        return;
    r.rlim_cur = r.rlim_max;
    if (setrlimit(RLIMIT_NOFILE, &r) != 0)
        krd_warn("cannot raise the limit of open files", "error=\"%s\"", strerror(errno));
}

static void configure(struct http_front *f)
{
    h2o_config_init(&f->conf);
    f->conf.server_name = h2o_iovec_init("", 0);
    f->conf.http1.upgrade_to_http2 = 0;
    f->conf.http1.req_timeout = f->o.request_timeout_ms;
    /* h2o refuses a chunked body of exactly this size, and one with a length only above it. */
    f->conf.max_request_entity_size = f->o.max_request_bytes + 1;
    h2o_hostconf_t *host =
        h2o_config_register_host(&f->conf, h2o_iovec_init(H2O_STRLIT("default")), 65535);
    h2o_create_handler(&host->fallback_path, sizeof(h2o_handler_t))->on_req = on_req;
    http_refusals_register(&host->fallback_path);
}

static void start_loop(struct http_front *f, struct http_loop *l)
{
    /* Signals are main's. */
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    l->front = f;
    l->node = f->o.node;
    l->o = &f->o;
    l->stop_msg.fn = on_stop;
    int e = pthread_create(&l->thread, NULL, run, l);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (e != 0)
        krd_fatal("http: cannot start a thread: %s", strerror(e));
}

enum krd_status http_start(const struct http_options *o, struct http_front **out, char **err)
{
    KRD_ASSERT(o->threads >= 1 && o->threads <= 64);
    struct http_listeners listeners;
    enum krd_status st = http_listen(o->listen, &listeners, err);
    if (st != KRD_OK)
        return st;
    (void)signal(SIGPIPE, SIG_IGN); /* a client that went away is an error of its write */
    raise_fd_limit();
    struct http_front *f = krd_zalloc(sizeof *f + o->threads * sizeof f->loops[0]);
    f->o = *o;
    f->o.listen = NULL;
    f->o.cors_origin = f->cors_origin = o->cors_origin != NULL ? krd_strdup(o->cors_origin) : NULL;
    f->listeners = listeners;
    f->n = o->threads;
    configure(f);
    sem_init(&f->ready, 0, 0);
    for (unsigned i = 0; i < f->n; i++) {
        start_loop(f, &f->loops[i]);
        while (sem_wait(&f->ready) != 0)
            ;
    }
    http_listeners_close(&f->listeners);
    *out = f;
    return KRD_OK;
}

void http_stop(struct http_front *f)
{
    if (f == NULL)
        return;
    for (unsigned i = 0; i < f->n; i++)
        http_post(&f->loops[i], &f->loops[i].stop_msg);
    for (unsigned i = 0; i < f->n; i++)
        pthread_join(f->loops[i].thread, NULL);
    h2o_config_dispose(&f->conf);
    sem_destroy(&f->ready);
    krd_free(f->cors_origin);
    krd_free(f);
}
