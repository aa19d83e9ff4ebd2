/* peer_tcp.h - what the three files of the TCP transport share: peer_tcp.c (members, liveness, the
 * interface of peer.h), peer_dial.c (our connections to them), peer_accept.c (theirs to us). Nobody
 * else includes it.
 *
 * Lifetimes: callbacks may remove members, and thereby close connections whose handlers are on the
 * stack. What is closed is therefore unlinked at once, but freed at the next tick.
 * Callbacks are only called out of the loop's handlers and tick, never out of send or flush.
 *
 * Thread: one, the loop's. */
#ifndef KRD_RAFT_PEER_TCP_H
#define KRD_RAFT_PEER_TCP_H

#include "base/limits.h"
#include "base/rand.h"
#include "raft/peer.h"
#include "raft/peer_address.h"
#include "raft/peer_frame.h"
#include "raft/peer_sendq.h"

/* A dial that was not answered by TCP: long enough for the second SYN of a lossy link. */
#define PEER_CONNECT_MS 2500
/* A hello that was not sent or not answered. */
#define PEER_HELLO_MS 5000
/* Bytes that were sent and not acknowledged by TCP for so long end a connection. */
#define PEER_UNACKED_MS 10000
/* Dials of one link that do without back-off, because something has happened: so many in so long. A
 * connection that breaks each time it is used does not turn into a storm. */
#define PEER_AT_ONCE_MAX 16
#define PEER_AT_ONCE_MS  1000
/* How often an answer is sought at once when a dial after a loss is reset: a dying process closes
 * its listening socket and its connections one after the other. */
#define PEER_EAGER_DIALS 3
/* Connections that have not said who they are; the oldest one gives way. Twice what a full cluster
 * opens at once. */
#define PEER_STRANGERS_MAX 256
/* No file descriptor left: accepting rests for so long. */
#define PEER_ACCEPT_REST_MS 250

struct peer_tcp;
struct peer_member;

enum peer_link_state {
    LINK_WAITING,    /* until due_ms, then it is dialled */
    LINK_RESOLVING,  /* for the member's name */
    LINK_CONNECTING, /* for TCP */
    LINK_GREETING,   /* for the answer to our hello */
    LINK_UP,
};

/* One of our own connections to a member, or the lack of it. */
struct peer_link {
    struct krd_io io; /* fd -1: RESOLVING, WAITING */
    struct peer_tcp *t;
    struct peer_member *m;
    enum peer_channel channel;
    enum peer_link_state state;
    uint64_t due_ms;               /* when waiting for whatever it is ends */
    struct peer_addresses targets; /* of this attempt */
    size_t at;                     /* the target under way */
    size_t n_refused;              /* targets of this attempt that refused */
    uint8_t answer[PEER_HELLO_BYTES];
    size_t answer_len;
    uint64_t boot;       /* of the process that answered */
    uint64_t up_ms;      /* when it came up last */
    uint64_t at_once_ms; /* since when at_once counts */
    int at_once;         /* dials without back-off */
    uint32_t backoff_ms; /* the last one; 0: a connection has worked since */
    int eager;           /* dials at once that are left after a loss */
    bool was_up;         /* ever */
    bool broken;         /* a write has failed; the loop will report the rest */
    struct peer_sendq out;
};

/* A connection that a member, or a stranger, opened to us. */
struct peer_inbound {
    struct krd_io io;
    struct peer_tcp *t;
    struct peer_member *m; /* NULL: a stranger */
    enum peer_channel channel;
    uint64_t boot;
    uint64_t due_ms; /* a stranger's hello */
    uint8_t hello[PEER_HELLO_BYTES];
    size_t hello_len;
    struct peer_reader reader;
    char address[PEER_ADDRESS_TEXT_BYTES];
    struct peer_inbound *prev, *next; /* strangers, oldest first; next also when closed */
};

struct peer_member {
    struct peer_tcp *t;
    raft_id id;
    char *address;                   /* as configured */
    bool is_name;                    /* has to be resolved */
    bool resolving;                  /* a question is out */
    struct peer_addresses addresses; /* what address was found to mean last */
    struct peer_address good;        /* where we reached it last; len 0: never */
    uint64_t boot;       /* highest one met; 0: none. links and in have it or are down */
    bool suspect;        /* a connection ended; its process has not been heard since */
    bool lost;           /* told so, and not heard since */
    const char *trouble; /* why it cannot be reached, as last logged; NULL: it can */
    struct peer_link links[PEER_CHANNELS];
    struct peer_inbound *in[PEER_CHANNELS];
    bool removed;
    struct peer_member *next; /* when removed */
    uint64_t sent_bytes, received_bytes, send_failures, reconnects;
};

struct peer_tcp {
    struct peer_transport face;
    struct peer_callbacks cb;
    struct krd_loop *loop;
    uint64_t cluster_id;
    raft_id id;
    uint64_t boot;
    size_t queue_bytes_max[PEER_CHANNELS];
    uint32_t reconnect_ms_min, reconnect_ms_max;
    struct krd_rand rand;
    uint64_t now_ms; /* as tick said last */
    struct peer_member *members[KRD_MEMBERS_MAX];
    size_t n_members;
    struct peer_resolver *resolver; /* NULL until there is a name */

    struct krd_io listener;
    uint64_t accept_ms;             /* accepting rests until then; 0: it does not */
    struct peer_inbound *strangers; /* oldest first */
    size_t n_strangers;

    struct peer_inbound *closed; /* to be freed by tick */
    struct peer_member *removed;
};

/* --- peer_tcp.c ----------------------------------------------------------------------------- */

struct peer_member *peer_member_find(struct peer_tcp *t, raft_id id);
/* Its process said hello just now. boot >= m->boot. Closes what belonged to an earlier process. May
 * call down and lost. */
void peer_member_heard(struct peer_member *m, uint64_t boot);
/* A connection to or from it ended without a word. */
void peer_member_suspected(struct peer_member *m);
/* Nobody listens any more where it listened. May call lost. */
void peer_member_refused(struct peer_member *m);
/* Asks what its name means; peer_link_resolved comes later for each link. False: cannot. */
KRD_MUST_CHECK bool peer_member_resolve(struct peer_member *m);
/* Options that both kinds of connection need. */
void peer_socket_options(int fd);
/* A static phrase for an errno. */
const char *peer_errno_text(int err);

/* --- peer_dial.c ---------------------------------------------------------------------------- */

void peer_link_init(struct peer_link *l, struct peer_member *m, enum peer_channel channel);
/* Closes it for good. */
void peer_link_deinit(struct peer_link *l);
/* Starts an attempt now; whatever it was doing ends without a word to anybody. */
void peer_link_dial(struct peer_link *l);
/* Dials it now if it waits, unless that has been done too often lately. */
void peer_link_hurry(struct peer_link *l);
/* It is up, but its process is known to be gone: closes it, calls down and dials anew. */
void peer_link_abandon(struct peer_link *l);
/* The name's addresses, or none. */
void peer_link_resolved(struct peer_link *l, const struct peer_addresses *found, const char *why);
void peer_link_tick(struct peer_link *l);
/* Queues a frame. False: not up, or over the bound. */
bool peer_link_send(struct peer_link *l, enum peer_frame_kind kind, struct slice head,
                    const struct raft_entry *entries, size_t n);
/* Writes what the socket takes. */
void peer_link_flush(struct peer_link *l);

/* --- peer_accept.c -------------------------------------------------------------------------- */

/* KRD_IO: *err is a krd_alloc'd sentence. */
KRD_MUST_CHECK enum krd_status peer_accept_start(struct peer_tcp *t, const char *listen_on,
                                                 char **err);
void peer_accept_stop(struct peer_tcp *t);
void peer_accept_tick(struct peer_tcp *t);
/* Unlinks and closes it; nobody is called. */
void peer_inbound_close(struct peer_inbound *c);

#endif
