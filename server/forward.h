/* forward.h - what nodes say to each other beside consensus (PEER_FRAME_FORWARD): proposals on
 * their way to the leader, its refusals, who is reached where, how far each member is, and the wish
 * to hand leadership over. All fields little-endian.
 *
 *  0    1        2     4       8
 *  | op | status | 0   | count | items ... | records (PROPOSE only, 8-aligned)
 *
 *  op PROPOSE:  items are count sequences (8 bytes each), then count unsealed records (entry.h)
 *  op REFUSED:  status says why; items are count sequences of the receiver
 *  op HELLO:    items are count bytes: the sender's advertised HTTP address
 *  op PROGRESS: from the leader; items of 32 bytes: id, match, rtt_us, active(1) zero(7)
 *  op TRANSFER: one item of 8 bytes: the member that shall lead, 0 for whoever is furthest */
#ifndef KRD_SERVER_FORWARD_H
#define KRD_SERVER_FORWARD_H

#include "base/buf.h"
#include "raft/raft.h"

enum forward_op {
    FORWARD_PROPOSE = 1,
    FORWARD_REFUSED,
    FORWARD_HELLO,
    FORWARD_PROGRESS,
    FORWARD_TRANSFER,
};

struct forward_progress {
    raft_id id;
    raft_index match;
    uint64_t rtt_us;
    bool active;
};

struct forward_frame {
    enum forward_op op;
    enum krd_status status;
    uint32_t count;
    struct slice items;
    struct slice records;
};

/* Opens a frame; items follow by the caller, exactly count of them. */
void forward_begin(struct krd_buf *out, enum forward_op op, enum krd_status status, uint32_t count);
/* Checks lengths against op and count. KRD_CORRUPT otherwise. */
KRD_MUST_CHECK enum krd_status forward_decode(struct slice body, struct forward_frame *out);
/* Item i of a frame with 8-byte items. */
uint64_t forward_item(const struct forward_frame *f, uint32_t i);
void forward_put_progress(struct krd_buf *out, const struct forward_progress *p);
struct forward_progress forward_progress_item(const struct forward_frame *f, uint32_t i);

#endif
