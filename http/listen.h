/* listen.h - from an address as the operator wrote it to listening sockets. */
#ifndef KRD_HTTP_LISTEN_H
#define KRD_HTTP_LISTEN_H

#include "base/base.h"

#define HTTP_LISTENERS_MAX 8

struct http_listeners {
    int fds[HTTP_LISTENERS_MAX]; /* non-blocking, close-on-exec */
    unsigned n;
    uint16_t port;
};

/* Splits host:port, :port (host ""), [v6]:port; both copied out. False: not of this form. */
KRD_MUST_CHECK bool http_split_address(const char *s, char *host, size_t host_size, char *port,
                                       size_t port_size);
/* Binds every address that the name has; ":port" is IPv6 and IPv4 in one socket. *err is one
 * sentence, krd_alloc'd. */
KRD_MUST_CHECK enum krd_status http_listen(const char *address, struct http_listeners *out,
                                           char **err);
void http_listeners_close(struct http_listeners *l);

#endif
