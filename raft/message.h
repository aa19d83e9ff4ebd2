/* message.h - what members say to each other about consensus: one tagged union, one codec.
 *
 * The bytes of a message (all little-endian):
 *
 *  0      1        4      8      16    24     32
 *  | type | zero(3)| zero | term | from | to   | body by type ...
 *
 * An append's body ends with the entries' records, exactly as they stand in the log, and starts at
 * a multiple of 8, so that entries are parsed in place and share the frame's blob. The frame around
 * it (length, checksum, channel) belongs to the transport (peer.h). */
#ifndef KRD_RAFT_MESSAGE_H
#define KRD_RAFT_MESSAGE_H

#include "base/buf.h"
#include "raft/entry.h"

enum raft_message_type {
    RAFT_MSG_PREVOTE = 1,
    RAFT_MSG_PREVOTE_REPLY,
    RAFT_MSG_VOTE,
    RAFT_MSG_VOTE_REPLY,
    RAFT_MSG_APPEND,
    RAFT_MSG_APPEND_REPLY,
    RAFT_MSG_HEARTBEAT,
    RAFT_MSG_HEARTBEAT_REPLY,
    RAFT_MSG_READ_INDEX,
    RAFT_MSG_READ_INDEX_REPLY,
    RAFT_MSG_TIMEOUT_NOW,
    RAFT_MSG_SNAPSHOT, /* reserved: the body is defined when snapshots are */
};

struct raft_message {
    enum raft_message_type type;
    raft_term term; /* the sender's; for a pre-vote the term it would campaign in */
    raft_id from, to;
    union {
        struct { /* PREVOTE, VOTE. §5.2, thesis 9.6 */
            raft_index last_index;
            raft_term last_term;
            bool transfer; /* asked for by the leader: the grace of check-quorum does not apply */
        } vote;
        struct { /* PREVOTE_REPLY, VOTE_REPLY */
            bool granted;
        } vote_reply;
        struct { /* APPEND. §5.3. In order with other appends, see raft.h */
            raft_index prev_index;
            raft_term prev_term;
            raft_index commit;
            raft_index safe_to_cut; /* every member's log holds entries up to here, durably */
            uint64_t time_ms;       /* the leader's cluster time */
            uint32_t n_entries;
            struct raft_entry *entries; /* contiguous from prev_index + 1. When sent: owned by the
                                           core until the next raft_take_ready. When received:
                                           each with a reference that raft_step takes over. */
        } append;
        struct { /* APPEND_REPLY */
            bool rejected;
            raft_index index;    /* accepted: prev_index + n_entries of the request that was
                                    verified and is durable; rejected: its prev_index */
            raft_index hint;     /* rejected: last index at which the logs may still agree */
            raft_term hint_term; /* rejected: the term of hint in the follower's log */
        } append_reply;
        struct { /* HEARTBEAT: liveness, commit and read rounds; never carries entries */
            raft_index commit; /* min(commit, what is known to match): safe to adopt as it is */
            raft_index safe_to_cut;
            uint64_t round;   /* of leadership confirmation; grows within a term. 0: a notice of
                                 commit that wants no answer */
            uint64_t time_ms; /* the leader's cluster time */
            uint64_t sent_us; /* echoed, for round-trip times */
        } heartbeat;
        struct { /* HEARTBEAT_REPLY */
            uint64_t round;
            uint64_t sent_us;
            raft_index last_index; /* of the follower's log: shows that it lost or lags entries */
        } heartbeat_reply;
        struct {          /* READ_INDEX: a follower asks on behalf of its clients. thesis 6.4 */
            uint64_t ctx; /* the asker's */
        } read_index;
        struct {
            uint64_t ctx;
            raft_index index; /* 0: refused (no entry of this term committed yet, not leader) */
        } read_index_reply;
    } u;
};

/* Appends the message's bytes without entries to out, and the number of bytes of records that
 * must follow it on the wire (0 but for appends) to *records_len. */
void raft_message_encode(const struct raft_message *m, struct krd_buf *out, size_t *records_len);
/* Bytes lie in blob at 8-aligned address. On KRD_OK the entries of an append are krd_alloc'd, each
 * with its own reference of blob; give them to raft_step or to raft_message_deinit. KRD_CORRUPT:
 * malformed in any way, entries not contiguous, trailing bytes. */
KRD_MUST_CHECK enum krd_status raft_message_decode(struct krd_blob *blob, struct slice bytes,
                                                   struct raft_message *m);
/* Of an append: entries continue prev_index one by one, terms never fall and stay within the
 * message's, a no-op is empty. decode and the core both demand it. */
bool raft_message_entries_ok(const struct raft_message *m);
/* Releases a received append's entries (references and array). Others: nothing. */
void raft_message_deinit(struct raft_message *m);
const char *raft_message_type_name(enum raft_message_type t);

#endif
