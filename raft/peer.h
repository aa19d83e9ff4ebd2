/* peer.h - the transport between members, behind an interface: TCP now (peer_tcp.c), UDP with its
 * own encryption and a simulated one later.
 *
 * Two channels to each member, so that heartbeats are never stuck behind bulk data: what is sent
 * on CONTROL overtakes what waits on BULK. Within a channel order is kept while a connection
 * lives; a lost connection loses what was on it, and senders must cope.
 *
 * The wire (peer_frame.h draws it): a handshake with magic, protocol version, cluster id, sender's
 * and receiver's member id, the sender's boot number and channel; then frames of
 * | crc32c | length | kind | zero | head length | body |, the body 8-aligned in the receiver's
 * blob.
 *
 * Thread: all calls and all callbacks on the loop's thread. Nothing blocks. Callbacks come out of
 * the loop's handlers and out of tick, never out of the other calls, and may themselves call all of
 * them but tick and destroy. */
#ifndef KRD_RAFT_PEER_H
#define KRD_RAFT_PEER_H

#include "base/blob.h"
#include "base/loop.h"
#include "raft/entry.h"

enum peer_channel { PEER_CONTROL, PEER_BULK, PEER_CHANNELS };

enum peer_frame_kind {
    PEER_FRAME_RAFT = 1,    /* a raft_message */
    PEER_FRAME_FORWARD = 2, /* the node's own: proposals and their refusals, see server/ */
};

struct peer_transport;

struct peer_callbacks {
    void *arg;
    /* A whole frame. body lies in blob, 8-aligned; take a reference to keep it. The head that was
     * sent is verified; records behind it carry checksums of their own, to be verified by whoever
     * parses them (raft_entry_parse, raft_message_decode). */
    void (*frame)(void *arg, raft_id from, enum peer_frame_kind kind, struct krd_blob *blob,
                  struct slice body);
    /* Our own connections to this member are up (both channels): queued messages flow. */
    void (*up)(void *arg, raft_id peer);
    /* One of our own connections to it broke; messages on it may be lost. May come once for each
     * channel before the next up. */
    void (*down)(void *arg, raft_id peer);
    /* The member's process is gone: a connection was reset or closed and a new one at once
     * refused, or it came back with a higher boot number. */
    void (*lost)(void *arg, raft_id peer);
    /* Somebody was turned away: another cluster, a wrong id, a wrong version, garbage, a damaged
     * frame. Strangers decide how often: do no work here that they should not cause. */
    void (*refused)(void *arg, const char *address, const char *reason);
};

struct peer_status {
    raft_id id;
    bool connected;
    uint64_t sent_bytes, received_bytes;
    uint64_t send_failures; /* frames dropped: not connected, or over the queue's bound */
    uint64_t queued_bytes;
    uint64_t reconnects;
};

struct peer_transport_ops {
    /* Queues one frame: head is copied, then the records of n entries follow (references are
     * taken, bytes are not copied). False: dropped (unknown, not connected, queue full). */
    bool (*send)(struct peer_transport *t, raft_id to, enum peer_channel ch,
                 enum peer_frame_kind kind, struct slice head, const struct raft_entry *entries,
                 size_t n);
    /* Writes out what was queued in this turn, one writev per connection. */
    void (*flush)(struct peer_transport *t);
    /* Reconnects that are due, hello and idle timeouts. now_ms: monotonic. */
    void (*tick)(struct peer_transport *t, uint64_t now_ms);
    /* Adds a member or changes its address ("host:port", resolved off the loop). A changed one
     * drops what was queued to it. Our own id: ignored. */
    void (*set_peer)(struct peer_transport *t, raft_id id, const char *address);
    void (*remove_peer)(struct peer_transport *t, raft_id id);
    /* False when unknown. */
    bool (*status)(struct peer_transport *t, raft_id id, struct peer_status *out);
    void (*destroy)(struct peer_transport *t);
};
struct peer_transport {
    const struct peer_transport_ops *ops;
};

struct peer_tcp_options {
    struct krd_loop *loop;
    const char *listen; /* "host:port", "[::1]:12000", ":12000" (all addresses) */
    uint64_t cluster_id;
    raft_id id;
    uint64_t boot;             /* grows with every start of this member */
    size_t queue_bytes_max;    /* per connection; default 64 MiB on bulk; control: a 16th of it */
    uint32_t reconnect_ms_min; /* default 10, doubled with jitter up to reconnect_ms_max */
    uint32_t reconnect_ms_max; /* default 1000 */
    uint64_t seed;
};
void peer_tcp_options_default(struct peer_tcp_options *o);
/* KRD_IO with a krd_alloc'd sentence in *err (address in use, cannot resolve, ...). */
KRD_MUST_CHECK enum krd_status peer_tcp_create(const struct peer_tcp_options *o,
                                               const struct peer_callbacks *cb,
                                               struct peer_transport **out, char **err);

#endif
