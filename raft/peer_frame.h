/* peer_frame.h - the bytes between members: the hello that opens a connection, the frames that
 * follow it, and the reader that cuts frames out of a stream. Pure: no sockets, no clock.
 *
 * A hello, sent once by the dialler and answered once by the acceptor (all little-endian):
 *
 *  0       4         6         7        8            16       24         32     40       44     48
 *  | magic | version | channel | answer | cluster id | sender | receiver | boot | crc32c | zero |
 *  '--------------------- covered by crc32c -----------------------------------'
 *
 * magic, version and answer keep their places in every later version, so that two versions can at
 * least tell each other that they do not match. answer is 0 in a dialler's hello and, in the
 * acceptor's, an enum peer_answer.
 *
 * A frame, sent by the dialler only:
 *
 *  0        4        8      9         12            16
 *  | crc32c | length | kind | zero(3) | head length | head | records, zeros to 8 bytes
 *           '---------------- covered by crc32c -----------'
 *
 * length counts head and records, not the zeros. A frame begins at a multiple of 8 of the stream
 * and so do, in the receiver's blob, its body and every record in it.
 *
 * The frame's checksum stops at the head: each record carries two checksums of its own
 * (raft/entry.h), which whoever takes the record out of the body must verify anyway. Summing the
 * same bytes again, once for every follower, would be the larger part of sending a big entry. The
 * price: a damaged record is noticed by raft_message_decode instead of here.
 *
 * Thread: a reader belongs to whoever made it. */
#ifndef KRD_RAFT_PEER_FRAME_H
#define KRD_RAFT_PEER_FRAME_H

#include "raft/peer.h"

#define PEER_PROTOCOL_VERSION   1
#define PEER_HELLO_BYTES        48
#define PEER_FRAME_HEADER_BYTES 16

enum peer_answer {
    PEER_WELCOME,
    PEER_REFUSED_VERSION,  /* another protocol version */
    PEER_REFUSED_CLUSTER,  /* another cluster id */
    PEER_REFUSED_RECEIVER, /* the acceptor is not the member that was dialled */
    PEER_REFUSED_SENDER,   /* the acceptor knows no member with the dialler's id */
    PEER_REFUSED_BOOT,     /* the acceptor has met a later start of the dialler */
    PEER_REFUSED_CHANNEL,  /* no such channel */
    PEER_ANSWERS
};
/* A phrase for the operator of the side that was refused. Static. Any number is allowed. */
const char *peer_answer_text(unsigned answer);

struct peer_hello {
    uint16_t version;
    uint8_t channel; /* enum peer_channel */
    uint8_t answer;  /* enum peer_answer, or one of a later version */
    uint64_t cluster_id;
    raft_id sender, receiver;
    uint64_t boot; /* the sender's */
};

/* version is not taken from h: it is always ours. */
void peer_hello_encode(const struct peer_hello *h, uint8_t out[PEER_HELLO_BYTES]);
/* Reads what has come so far of a hello. KRD_AGAIN: more is needed; KRD_CORRUPT: this is not a
 * hello, however it goes on; KRD_CONFLICT: one of another version, of which only version (and
 * answer, PEER_REFUSED_VERSION if it has not come yet) are set in *out. */
KRD_MUST_CHECK enum krd_status peer_hello_decode(struct slice bytes, struct peer_hello *out);

/* What a frame takes on the wire. head_len must be a multiple of 8 if records follow. */
size_t peer_frame_bytes(size_t head_len, size_t records_len);
/* The header of a frame with this head and so many bytes of records after it. The sum of both is
 * at most KRD_FRAME_BYTES_MAX. */
void peer_frame_header(enum peer_frame_kind kind, struct slice head, size_t records_len,
                       uint8_t out[PEER_FRAME_HEADER_BYTES]);

struct peer_frame {
    enum peer_frame_kind kind;
    struct krd_blob *blob; /* the reader's reference: lives until the next peer_reader_room */
    struct slice body;     /* in blob, 8-aligned */
    size_t head_len;       /* of body: what the frame's checksum has covered */
};

/* Cuts a stream into frames. Many small frames share one blob, which is filled by one read after
 * the other; a large frame gets a blob of its own. What was handed out is never written again, so
 * that other threads may read one part of a blob while its rest is being filled. */
struct peer_reader {
    size_t buffer_bytes;   /* of the blob that small frames share */
    struct krd_blob *blob; /* NULL until there is something to read */
    size_t start, end;     /* blob->data[start, end): received, not yet handed out */
    size_t need;           /* bytes from start that the frame there takes, as far as is known */
    bool head_verified;    /* its header and head are here and match their checksum */
    const char *fault;     /* after KRD_CORRUPT: what is wrong. Static. */
};

void peer_reader_init(struct peer_reader *r, size_t buffer_bytes);
void peer_reader_deinit(struct peer_reader *r);
/* Where to put the next bytes of the stream; *len is at least 1. Only after peer_reader_next has
 * returned KRD_AGAIN (or on a fresh reader). */
void peer_reader_room(struct peer_reader *r, uint8_t **ptr, size_t *len);
/* So many bytes were put there. */
void peer_reader_filled(struct peer_reader *r, size_t n);
/* The next whole frame. KRD_AGAIN: more bytes are needed; KRD_CORRUPT: no frame can follow on this
 * stream any more. */
KRD_MUST_CHECK enum krd_status peer_reader_next(struct peer_reader *r, struct peer_frame *out);

#endif
