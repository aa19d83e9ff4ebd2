/* entry.h - the one encoding of a log entry. The node that takes a request makes the record with
 * room for the header; the leader seals it with index, term and time; the same bytes then go into
 * its log, onto the wire and into the followers' logs.
 *
 *  0          4          8         16        24        32     33        36         40
 *  | head crc | length   | index   | term    | time_ms | type | zero(3) | body crc | payload, zeros
 *             '---------------- covered by head crc --------------------------'      to 8 bytes
 *
 * length is the payload's, without padding. body crc covers the payload and is computed once, by
 * the origin; head crc covers bytes 4..40 and thereby, through body crc, the payload. All fields
 * are little-endian. Whoever reads a record, from disk or from a peer, verifies both.
 *
 * Thread: an entry is a value; the blob inside is shared and immutable once sealed. */
#ifndef KRD_RAFT_ENTRY_H
#define KRD_RAFT_ENTRY_H

#include "base/base.h"
#include "base/blob.h"

typedef uint64_t raft_index; /* 1 is the first entry; 0 means none */
typedef uint64_t raft_term;  /* 0 before any election */
typedef uint64_t raft_id;    /* a member's; never 0, used once and for ever */

enum raft_entry_type {
    RAFT_ENTRY_NOOP = 1,    /* a leader's first entry of its term; empty payload */
    RAFT_ENTRY_COMMAND = 2, /* payload: for the state machine (kv's schema) */
    RAFT_ENTRY_CONFIG = 3,  /* payload: an encoded struct raft_config_state (raft/config.h) */
};

#define RAFT_RECORD_HEADER_BYTES 40

struct raft_entry {
    raft_index index;
    raft_term term;
    uint64_t time_ms;      /* cluster time at which the leader took it; never falls in the log */
    struct krd_blob *blob; /* one reference; holds record */
    uint8_t *record;       /* header and payload, inside blob; 8-aligned */
    uint32_t length;       /* payload bytes */
    uint8_t type;          /* enum raft_entry_type */
};

static inline size_t raft_record_bytes_for(size_t payload_len)
{
    return RAFT_RECORD_HEADER_BYTES + ((payload_len + 7) & ~(size_t)7);
}
static inline size_t raft_record_bytes(const struct raft_entry *e)
{
    return raft_record_bytes_for(e->length);
}
static inline struct slice raft_payload(const struct raft_entry *e)
{
    return slice_of(e->record + RAFT_RECORD_HEADER_BYTES, e->length);
}

/* An unsealed record (index, term and time 0) with a copy of the payload and its checksum. The
 * entry owns one reference of a fresh blob. payload.len <= KRD_ENTRY_BYTES_MAX. */
struct raft_entry raft_entry_make(enum raft_entry_type type, struct slice payload);
/* As raft_entry_make, but the payload is written by the caller at raft_payload(&e) and then closed
 * with raft_entry_close, which computes the body's checksum. */
struct raft_entry raft_entry_begin(enum raft_entry_type type, size_t payload_len);
void raft_entry_close(struct raft_entry *e);
/* The leader's part: fills index, term and time into the record and its head checksum. The blob
 * must not be shared with another thread yet. */
void raft_entry_seal(struct raft_entry *e, raft_index index, raft_term term, uint64_t time_ms);
/* Reads one record at the start of `bytes`, which lie inside blob (aligned to 8). On KRD_OK *e
 * holds a new reference of blob. KRD_EOF_: fewer bytes than the record needs; KRD_CORRUPT: a
 * checksum, the type or the length is wrong. */
KRD_MUST_CHECK enum krd_status raft_entry_parse(struct krd_blob *blob, struct slice bytes,
                                                struct raft_entry *e);
static inline struct raft_entry raft_entry_ref(const struct raft_entry *e)
{
    krd_blob_ref(e->blob);
    return *e;
}
static inline void raft_entry_unref(struct raft_entry *e)
{
    krd_blob_unref(e->blob);
    e->blob = NULL;
}

#endif
