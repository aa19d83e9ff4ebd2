/* peer_address.c - "host:port" to socket addresses.
 *
 * A name's way: ask copies it into a question for the thread's mailbox; the thread looks it up and
 * puts the same question, answered, into the loop's mailbox; the loop's handler calls back. The
 * thread knows nothing but its two mailboxes, which it shares with the resolver by a count of
 * references: getaddrinfo may hang for half a minute, and who shuts down does not wait for it. */
#include "raft/peer_address.h"

#include "base/mailbox.h"

#include <netinet/in.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

/* How long a resolver's end waits for its thread: an idle one is gone at once. */
#define JOIN_MS 100

/* --- text ----------------------------------------------------------------------------------- */

struct host_port {
    char host[256]; /* without brackets; "" if there was none */
    char port[6];
};

static bool port_ok(const char *s)
{
    size_t n = strlen(s);
    return n >= 1 && n <= 5 && strspn(s, "0123456789") == n && atoi(s) <= 65535;
}

static bool split(const char *text, struct host_port *out)
{
    const char *host = text, *colon = strrchr(text, ':');
    if (colon == NULL || !port_ok(colon + 1))
        return false;
    size_t len = (size_t)(colon - host);
    if (len > 0 && host[0] == '[') {
        if (len < 3 || colon[-1] != ']')
            return false;
        host++;
        len -= 2;
    } else if (memchr(host, ':', len) != NULL) {
        return false; /* IPv6 without brackets: where does the port begin? */
    }
    if (len >= sizeof out->host)
        return false;
    memcpy(out->host, host, len);
    out->host[len] = '\0';
    snprintf(out->port, sizeof out->port, "%s", colon + 1);
    return true;
}

/* getaddrinfo's number, 0 if it found something. */
static int look_up(const char *host, const char *port, int flags, struct peer_addresses *out)
{
    struct addrinfo hints = {
        .ai_family = AF_UNSPEC,
        .ai_socktype = SOCK_STREAM,
        .ai_flags = flags | AI_NUMERICSERV,
    };
    struct addrinfo *list = NULL;
    int rc = getaddrinfo(host, port, &hints, &list);
    if (rc != 0)
        return rc;
    struct peer_addresses found = {.n = 0};
    for (struct addrinfo *a = list; a != NULL && found.n < PEER_ADDRESSES_MAX; a = a->ai_next) {
        if (a->ai_addrlen > sizeof found.at[0].sa)
            continue;
        memcpy(&found.at[found.n].sa, a->ai_addr, a->ai_addrlen);
        found.at[found.n++].len = a->ai_addrlen;
    }
    freeaddrinfo(list);
    if (found.n == 0)
        return EAI_NONAME;
    *out = found;
    return 0;
}

enum krd_status peer_address_numeric(const char *host_port, struct peer_addresses *out)
{
    struct host_port hp;
    if (!split(host_port, &hp) || hp.host[0] == '\0' || atoi(hp.port) == 0)
        return KRD_BAD_REQUEST;
    return look_up(hp.host, hp.port, AI_NUMERICHOST, out) == 0 ? KRD_OK : KRD_AGAIN;
}

static void any_address(uint16_t port, struct peer_addresses *out)
{
    struct sockaddr_in6 v6 = {
        .sin6_family = AF_INET6, .sin6_port = htons(port), .sin6_addr = IN6ADDR_ANY_INIT};
    struct sockaddr_in v4 = {.sin_family = AF_INET, .sin_port = htons(port)};
    *out = (struct peer_addresses){.n = 2};
    memcpy(&out->at[0].sa, &v6, sizeof v6);
    out->at[0].len = sizeof v6;
    memcpy(&out->at[1].sa, &v4, sizeof v4);
    out->at[1].len = sizeof v4;
}

enum krd_status peer_address_listen(const char *host_port, struct peer_addresses *out,
                                    const char **why)
{
    struct host_port hp;
    if (!split(host_port, &hp)) {
        *why = "not an address of the form host:port, [ipv6]:port or :port";
        return KRD_BAD_REQUEST;
    }
    if (hp.host[0] == '\0') {
        any_address((uint16_t)atoi(hp.port), out);
        return KRD_OK;
    }
    int rc = look_up(hp.host, hp.port, AI_PASSIVE, out);
    if (rc != 0)
        *why = gai_strerror(rc);
    return rc == 0 ? KRD_OK : KRD_IO;
}

bool peer_address_eq(const struct peer_address *a, const struct peer_address *b)
{
    return a->len == b->len && memcmp(&a->sa, &b->sa, a->len) == 0;
}

void peer_address_text(const struct peer_address *a, char out[PEER_ADDRESS_TEXT_BYTES])
{
    char host[64], port[8];
    int rc = getnameinfo((const struct sockaddr *)&a->sa, a->len, host, sizeof host, port,
                         sizeof port, NI_NUMERICHOST | NI_NUMERICSERV);
    if (rc != 0)
        snprintf(out, PEER_ADDRESS_TEXT_BYTES, "unknown");
    else if (strncmp(host, "::ffff:", 7) == 0 && strchr(host, '.') != NULL)
        snprintf(out, PEER_ADDRESS_TEXT_BYTES, "%s:%s", host + 7, port);
    else if (a->sa.ss_family == AF_INET6)
        snprintf(out, PEER_ADDRESS_TEXT_BYTES, "[%s]:%s", host, port);
    else
        snprintf(out, PEER_ADDRESS_TEXT_BYTES, "%s:%s", host, port);
}

/* --- resolver ------------------------------------------------------------------------------- */

/* A question on its way to the thread, and its answer on the way back. */
struct lookup {
    struct krd_mail mail;
    uint64_t ticket;
    struct peer_addresses found;
    const char *why; /* NULL: found something */
    bool stop;       /* the thread shall end */
    char host_port[];
};

/* What the thread and the loop's side share; the last one of them frees it. */
struct shared {
    atomic_uint refs;
    struct krd_mailbox questions, answers;
};

struct peer_resolver {
    struct krd_io io; /* on answers */
    struct krd_loop *loop;
    peer_resolved_fn *fn;
    void *arg;
    pthread_t thread;
    struct shared *shared;
};

static void drain(struct krd_mailbox *b)
{
    struct krd_mail *next;
    for (struct krd_mail *m = krd_mailbox_take(b); m != NULL; m = next) {
        next = m->next;
        krd_free(KRD_CONTAINER_OF(m, struct lookup, mail));
    }
}

static void shared_unref(struct shared *s)
{
    if (atomic_fetch_sub_explicit(&s->refs, 1, memory_order_acq_rel) != 1)
        return;
    drain(&s->questions);
    drain(&s->answers);
    krd_mailbox_deinit(&s->questions);
    krd_mailbox_deinit(&s->answers);
    krd_free(s);
}

static void answer(struct lookup *q)
{
    struct host_port hp;
    if (!split(q->host_port, &hp)) {
        q->why = "not an address of the form host:port or [ipv6]:port";
        return;
    }
    int rc = look_up(hp.host, hp.port, 0, &q->found);
    q->why = rc == 0 ? NULL : gai_strerror(rc);
}

static void *resolver_main(void *arg)
{
    struct shared *s = arg;
    bool stop = false;
    while (!stop) {
        struct krd_mail *next;
        krd_mailbox_wait(&s->questions, -1);
        for (struct krd_mail *m = krd_mailbox_take(&s->questions); m != NULL; m = next) {
            next = m->next;
            struct lookup *q = KRD_CONTAINER_OF(m, struct lookup, mail);
            stop = stop || q->stop;
            if (!stop)
                answer(q);
            krd_mailbox_put(&s->answers, m); /* the loop, or the last reference, frees it */
        }
    }
    shared_unref(s);
    return NULL;
}

static void on_answers(struct krd_io *io, uint32_t events)
{
    (void)events;
    struct peer_resolver *r = KRD_CONTAINER_OF(io, struct peer_resolver, io);
    struct krd_mail *next;
    for (struct krd_mail *m = krd_mailbox_take(&r->shared->answers); m != NULL; m = next) {
        next = m->next;
        struct lookup *q = KRD_CONTAINER_OF(m, struct lookup, mail);
        r->fn(r->arg, q->ticket, q->host_port, q->why == NULL ? &q->found : NULL, q->why);
        krd_free(q);
    }
}

static struct shared *shared_create(void)
{
    struct shared *s = krd_zalloc(sizeof *s);
    atomic_init(&s->refs, 1);
    if (krd_mailbox_init(&s->questions) != KRD_OK) {
        krd_free(s);
        return NULL;
    }
    if (krd_mailbox_init(&s->answers) != KRD_OK) {
        krd_mailbox_deinit(&s->questions);
        krd_free(s);
        return NULL;
    }
    return s;
}

struct peer_resolver *peer_resolver_create(struct krd_loop *loop, peer_resolved_fn *fn, void *arg)
{
    struct shared *s = shared_create();
    if (s == NULL)
        return NULL;
    struct peer_resolver *r = krd_zalloc(sizeof *r);
    r->loop = loop;
    r->fn = fn;
    r->arg = arg;
    r->shared = s;
    r->io = (struct krd_io){.fd = s->answers.fd, .events = EPOLLIN, .fn = on_answers};
    if (krd_loop_add(loop, &r->io) != KRD_OK)
        goto fail;
    atomic_store(&s->refs, 2); /* the thread's */
    if (pthread_create(&r->thread, NULL, resolver_main, s) != 0) {
        atomic_store(&s->refs, 1);
        krd_loop_del(loop, &r->io);
        goto fail;
    }
    return r;
fail:
    shared_unref(s);
    krd_free(r);
    return NULL;
}

static void ask(struct peer_resolver *r, uint64_t ticket, const char *host_port, bool stop)
{
    size_t bytes = strlen(host_port) + 1;
    struct lookup *q = krd_zalloc(sizeof *q + bytes);
    q->ticket = ticket;
    q->stop = stop;
    memcpy(q->host_port, host_port, bytes);
    krd_mailbox_put(&r->shared->questions, &q->mail);
}

void peer_resolver_ask(struct peer_resolver *r, uint64_t ticket, const char *host_port)
{
    ask(r, ticket, host_port, false);
}

void peer_resolver_destroy(struct peer_resolver *r)
{
    if (r == NULL)
        return;
    krd_loop_del(r->loop, &r->io);
    ask(r, 0, "", true);
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += JOIN_MS * 1000000L;
    if (until.tv_nsec >= 1000000000L) {
        until.tv_nsec -= 1000000000L;
        until.tv_sec++;
    }
    if (pthread_timedjoin_np(r->thread, NULL, &until) != 0)
        pthread_detach(r->thread);
    shared_unref(r->shared);
    krd_free(r);
}
