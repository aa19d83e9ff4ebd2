/* peer_address.h - "host:port" to socket addresses: numbers at once, names by a thread of their own
 * because getaddrinfo blocks.
 *
 * Thread: functions without a resolver, any; a resolver, the thread of its loop, where answers
 * arrive as well. */
#ifndef KRD_RAFT_PEER_ADDRESS_H
#define KRD_RAFT_PEER_ADDRESS_H

#include "base/loop.h"

#include <netdb.h>
#include <sys/socket.h>

#define PEER_ADDRESSES_MAX      8  /* of one name; further ones are not tried */
#define PEER_ADDRESS_TEXT_BYTES 80 /* "[v6 with scope]:port" and its zero */

struct peer_address {
    struct sockaddr_storage sa;
    socklen_t len; /* 0: none */
};
struct peer_addresses {
    struct peer_address at[PEER_ADDRESSES_MAX]; /* in the order in which to try them */
    size_t n;
};

/* KRD_OK: host is a number, *out holds its address. KRD_AGAIN: it is a name. KRD_BAD_REQUEST:
 * neither "host:port" nor "[v6]:port" with a host and a port of 1 to 65535. */
KRD_MUST_CHECK enum krd_status peer_address_numeric(const char *host_port,
                                                    struct peer_addresses *out);
/* Where to listen; the host may be empty (all addresses, the first of *out is IPv6's) and the port
 * 0. Blocks if it is a name. KRD_IO, KRD_BAD_REQUEST: *why is a static phrase. */
KRD_MUST_CHECK enum krd_status peer_address_listen(const char *host_port,
                                                   struct peer_addresses *out, const char **why);
bool peer_address_eq(const struct peer_address *a, const struct peer_address *b);
/* "192.0.2.1:12000", "[2001:db8::1]:12000"; an IPv4 address that came in by an IPv6 socket as
 * IPv4. */
void peer_address_text(const struct peer_address *a, char out[PEER_ADDRESS_TEXT_BYTES]);

/* addresses: NULL if there are none, and why says so then. All live for the call only. */
typedef void peer_resolved_fn(void *arg, uint64_t ticket, const char *host_port,
                              const struct peer_addresses *addresses, const char *why);

struct peer_resolver;
/* NULL when no thread or eventfd can be had. */
struct peer_resolver *peer_resolver_create(struct krd_loop *loop, peer_resolved_fn *fn, void *arg);
/* fn is not called any more. A look-up under way may outlive this; it cleans up after itself. */
void peer_resolver_destroy(struct peer_resolver *r); /* takes NULL */
/* fn will be called once with this ticket and host_port, from the loop. O(one look-up at a time):
 * a name whose server is silent delays those behind it. */
void peer_resolver_ask(struct peer_resolver *r, uint64_t ticket, const char *host_port);

#endif
