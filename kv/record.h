/* record.h - the bytes of the store's records in the engine, one place for all of them.
 *
 *   'k' key                newest version:  create 8 | mod 8 | version 8 | lease 8 | sub 4 | far 4 |
 *                                           far 0: value;  else: the value's hash 16
 *   'r' revision 8, sub 4  one change:      time_ms 8 | prev revision 8 | create 8 | version 8 |
 *                                           lease 8 | prev sub 4 | key length 4 | key | value
 *   'l' id 8               lease:           ttl 8 | deadline_ms 8 | keys 8
 *   'a' id 8, key          attached key:    (empty)
 *   'o' origin 8           session:         boot 8 | settled 8 | n words of applied bits
 *   'c'                    compaction done: revision 8 | sub 4 | target 8
 *   'm'                    state:           format 4 | zero 4 | index 8 | term 8 | time_ms 8 |
 *                                           revision 8 | compacted 8 | hash sum 16
 *
 * A value longer than KV_NEAR_VALUE_MAX stands in its change alone; the newest version's record
 * holds its length (far) and hash. Records of one revision after another are written once and move
 * through LevelDB's levels as they are, whereas keys come in any order and are merged again and
 * again: what is merged must be small. It costs a reader of such a value a second point read; all
 * that a put needs of the version before still comes with the first. (Random overwrites of 256-byte
 * values among 740,000 keys, three nodes on 2 cores: 23,000/s with all values near, 33,000/s so.)
 *
 * Integers in engine keys are big-endian, so that the engine's order is theirs; in values they are
 * little-endian. version 0 marks a tombstone. A change that created the key, or whose predecessor
 * had been compacted away, has prev revision 0.
 *
 * Decoding: the engine checks its blocks' checksums; what then does not decode is our bug or
 * damage, and fatal. Thread: any. */
#ifndef KRD_KV_RECORD_H
#define KRD_KV_RECORD_H

#include "kv/types.h"

#define KV_FORMAT 1u

enum {
    KV_HEAD_BYTES = 40, /* before the value, or its hash */
    KV_VALUE_HASH_BYTES = 16,
    KV_NEAR_VALUE_MAX = 128, /* longer values stand in the change only */
    KV_CHANGE_BYTES = 48,    /* before key and value */
    KV_LEASE_BYTES = 24,
    KV_META_BYTES = 64,
    KV_CHANGE_KEY_BYTES = 13, /* 'r' revision sub */
    KV_ID_KEY_BYTES = 9,      /* 'l' id, 'o' origin */
};

/* Where a version stands in history. revision 0: nowhere. */
struct kv_place {
    int64_t revision;
    uint32_t sub;
};

struct kv_head {
    struct kv_pair pair; /* far: value has its length and no bytes; see kv_head_whole */
    uint32_t sub;        /* of the change at pair.mod_revision */
    bool far;
    uint8_t value_hash[KV_VALUE_HASH_BYTES]; /* when far */
};

struct kv_change {
    struct kv_pair pair;
    uint32_t sub;
    struct kv_place prev;
    uint64_t time_ms;
};

struct kv_lease_record {
    int64_t ttl;          /* seconds */
    uint64_t deadline_ms; /* cluster time */
    int64_t keys;
};

struct kv_meta {
    uint64_t index, term, time_ms;
    int64_t revision, compacted;
    uint8_t sum[16];
};

static inline bool kv_pair_is_tombstone(const struct kv_pair *p)
{
    return p->version == 0;
}

/* Engine keys, in the arena. */
struct slice kv_raw_key(struct krd_arena *a, char kind, struct slice key);
struct slice kv_raw_attached(struct krd_arena *a, int64_t lease, struct slice key);
/* Engine keys of fixed length, in the caller's buffer. */
struct slice kv_raw_change(uint8_t buf[KV_CHANGE_KEY_BYTES], struct kv_place at);
struct slice kv_raw_id(uint8_t buf[KV_ID_KEY_BYTES], char kind, uint64_t id);
struct kv_place kv_place_of_raw(struct slice raw); /* of an 'r' key */

/* From a whole pair: h->far and the hash are computed here. */
struct slice kv_head_encode(struct krd_arena *a, const struct kv_head *h);
/* Slices point into key and record. */
struct kv_head kv_head_decode(struct slice key, struct slice record);
/* Is this the far value that the record speaks of? */
bool kv_head_value_matches(const struct kv_head *h, struct slice value);
bool kv_head_is_live(struct slice record);

struct slice kv_change_encode(struct krd_arena *a, const struct kv_change *c);
struct kv_change kv_change_decode(struct kv_place at, struct slice record);

void kv_lease_encode(uint8_t buf[KV_LEASE_BYTES], const struct kv_lease_record *l);
struct kv_lease_record kv_lease_decode(struct slice record);

void kv_meta_encode(uint8_t buf[KV_META_BYTES], const struct kv_meta *m);
/* False: not of this format. */
bool kv_meta_decode(struct slice record, struct kv_meta *m);

/* The part of the engine's key space that a range of keys stands for: [start, end). */
struct kv_raw_range {
    struct slice start, end;
};
struct kv_raw_range kv_raw_range_of(struct krd_arena *a, const struct kv_range *r);

#endif
