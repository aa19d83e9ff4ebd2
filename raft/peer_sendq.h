/* peer_sendq.h - frames that wait for a socket, as pieces for writev: headers and heads copied one
 * behind the other into chunks, records by reference. Pure: no sockets.
 *
 * Thread: a queue belongs to whoever made it; the records' blobs are shared. */
#ifndef KRD_RAFT_PEER_SENDQ_H
#define KRD_RAFT_PEER_SENDQ_H

#include "raft/peer_frame.h"

#include <sys/uio.h>

/* A stretch of bytes to be sent, and the blob that it lies in. */
struct peer_piece {
    const uint8_t *ptr;
    size_t len;
    struct krd_blob *blob; /* one reference */
};

struct peer_sendq {
    struct peer_piece *pieces; /* [first, n) wait, in order */
    size_t first, n, cap;
    size_t bytes;           /* of all that wait */
    struct krd_blob *chunk; /* where heads go now; NULL when there is none */
    size_t chunk_used;
};

/* All zero is an empty queue. */
void peer_sendq_deinit(struct peer_sendq *q);
/* Drops what waits; whoever reads the stream must not go on with it. */
void peer_sendq_clear(struct peer_sendq *q);
/* One frame: the head's bytes are copied, the entries' records referenced. Bounds as in
 * peer_frame_header; records_len is the sum of raft_record_bytes over the n entries. */
void peer_sendq_put(struct peer_sendq *q, enum peer_frame_kind kind, struct slice head,
                    const struct raft_entry *entries, size_t n, size_t records_len);
/* The first pieces that wait, at most max. Returns how many. */
int peer_sendq_iov(const struct peer_sendq *q, struct iovec *iov, int max);
/* So many bytes from the front have gone. n <= bytes */
void peer_sendq_sent(struct peer_sendq *q, size_t n);

#endif
