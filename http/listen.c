/* A name may stand for several addresses (localhost for ::1 and 127.0.0.1): all are bound, with
 * one port. An address family that this machine lacks is passed over as long as another one
 * works; a port in use is an error even then, or half of the clients would reach somebody else.
 *
 * SO_REUSEPORT is not used: with it a second server of the same user would bind the same port
 * without a word, and take half of the connections. */
#include "http/listen.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#define BACKLOG 4096

bool http_split_address(const char *s, char *host, size_t host_size, char *port, size_t port_size)
{
    const char *colon = strrchr(s, ':');
    if (colon == NULL || colon[1] == '\0')
        return false;
    const char *from = s, *to = colon;
    if (s[0] == '[') {
        if (colon == s || colon[-1] != ']')
            return false;
        from = s + 1;
        to = colon - 1;
    } else if (memchr(s, ':', (size_t)(colon - s)) != NULL) {
        return false; /* an IPv6 address without brackets: where would the port begin? */
    }
    char *end;
    unsigned long number = strtoul(colon + 1, &end, 10);
    if (colon[1] < '0' || colon[1] > '9' || *end != '\0' || number > 65535)
        return false;
    int h = snprintf(host, host_size, "%.*s", (int)(to - from), from);
    int p = snprintf(port, port_size, "%lu", number);
    return h >= 0 && (size_t)h < host_size && p >= 0 && (size_t)p < port_size;
}

static void set_port(struct sockaddr *sa, uint16_t port)
{
    if (sa->sa_family == AF_INET6)
        ((struct sockaddr_in6 *)(void *)sa)->sin6_port = htons(port);
    else
        ((struct sockaddr_in *)(void *)sa)->sin_port = htons(port);
}

static uint16_t bound_port(int fd)
{
    struct sockaddr_storage ss;
    socklen_t len = sizeof ss;
    if (getsockname(fd, (struct sockaddr *)&ss, &len) != 0)
        return 0;
    return ss.ss_family == AF_INET6 ? ntohs(((struct sockaddr_in6 *)(void *)&ss)->sin6_port)
                                    : ntohs(((struct sockaddr_in *)(void *)&ss)->sin_port);
}

/* A listening socket, or -errno. */
static int bind_one(struct addrinfo *ai, bool dual_stack)
{
    int on = 1, off = 0;
    int fd = socket(ai->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -errno;
    (void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (ai->ai_family == AF_INET6)
        (void)setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, dual_stack ? &off : &on, sizeof on);
    if (bind(fd, ai->ai_addr, ai->ai_addrlen) != 0 || listen(fd, BACKLOG) != 0) {
        int e = errno;
        close(fd);
        return -e;
    }
    return fd;
}

static bool family_is_missing(int e)
{
    return e == EAFNOSUPPORT || e == EADDRNOTAVAIL;
}

static enum krd_status bind_all(const char *address, struct addrinfo *list, bool wildcard,
                                struct http_listeners *out, char **err)
{
    int missing = 0;
    for (struct addrinfo *ai = list; ai != NULL && out->n < HTTP_LISTENERS_MAX; ai = ai->ai_next) {
        if (ai->ai_family != AF_INET && ai->ai_family != AF_INET6)
            continue;
        /* :port is one dual-stack socket; IPv4's own is for machines without IPv6. */
        if (wildcard && out->n > 0)
            continue;
        if (out->port != 0)
            set_port(ai->ai_addr, out->port);
        int fd = bind_one(ai, wildcard);
        if (fd < 0 && family_is_missing(-fd)) {
            missing = -fd;
            continue;
        }
        if (fd < 0) {
            *err = krd_asprintf("cannot listen on %s: %s", address, strerror(-fd));
            return KRD_IO;
        }
        out->fds[out->n++] = fd;
        out->port = bound_port(fd);
    }
    if (out->n > 0)
        return KRD_OK;
    *err = krd_asprintf("cannot listen on %s: %s", address,
                        strerror(missing != 0 ? missing : EADDRNOTAVAIL));
    return KRD_IO;
}

/* IPv6 first, so that the wildcard's dual-stack socket comes before IPv4's. */
static struct addrinfo *ipv6_first(struct addrinfo *list)
{
    struct addrinfo *six = NULL, **six_tail = &six, *rest = NULL, **rest_tail = &rest;
    while (list != NULL) {
        struct addrinfo *next = list->ai_next;
        struct addrinfo ***tail = list->ai_family == AF_INET6 ? &six_tail : &rest_tail;
        **tail = list;
        *tail = &list->ai_next;
        list->ai_next = NULL;
        list = next;
    }
    *six_tail = rest;
    return six;
}

enum krd_status http_listen(const char *address, struct http_listeners *out, char **err)
{
    char host[256], port[8];
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE}, *list = NULL;
    *out = (struct http_listeners){.n = 0};
    if (!http_split_address(address, host, sizeof host, port, sizeof port)) {
        *err = krd_asprintf("\"%s\" is not an address to listen on: host:port, :port or [v6]:port",
                            address);
        return KRD_BAD_REQUEST;
    }
    int e = getaddrinfo(host[0] != '\0' ? host : NULL, port, &hints, &list);
    if (e != 0) {
        *err = krd_asprintf("cannot resolve %s: %s", address,
                            e == EAI_SYSTEM ? strerror(errno) : gai_strerror(e));
        return KRD_IO;
    }
    list = ipv6_first(list);
    enum krd_status st = bind_all(address, list, host[0] == '\0', out, err);
    freeaddrinfo(list);
    if (st != KRD_OK)
        http_listeners_close(out);
    return st;
}

void http_listeners_close(struct http_listeners *l)
{
    for (unsigned i = 0; i < l->n; i++)
        close(l->fds[i]);
    l->n = 0;
}
