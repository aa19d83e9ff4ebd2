/* types.h - the plain values that the store takes and gives: pairs, queries, results, events.
 * Commands that travel through the log are protobuf (kv/rpc.proto, kv/command.proto, generated as
 * kv/rpc.pb-c.h, kv/command.pb-c.h) with etcd's names and field numbers. Results never travel:
 * each node computes them by applying. */
#ifndef KRD_KV_TYPES_H
#define KRD_KV_TYPES_H

#include "base/arena.h"
#include "base/base.h"

/* What the log hands to the store: a committed entry, in order. The store knows nothing of how it
 * was agreed upon. */
struct kv_entry {
    uint64_t index, term;
    uint64_t time_ms;     /* cluster time at which it was taken; never falls */
    bool is_command;      /* false: only advances the applied index */
    struct slice command; /* an encoded InternalRaftRequest */
};

/* A key's version. For a tombstone (history only) version is 0 and value empty. */
struct kv_pair {
    struct slice key, value;
    int64_t create_revision; /* revision of the put that created the key */
    int64_t mod_revision;    /* revision of this version */
    int64_t version;         /* 1 at creation, +1 a put */
    int64_t lease;           /* 0: none */
};

/* Which keys: one (range_end empty), [key, range_end), or all >= key (range_end = "\0").
 * As etcd: key "\0" with range_end "\0" is everything. */
struct kv_range {
    struct slice key, range_end;
};
/* The range of all keys with this prefix; an empty prefix means every key. The end is written to
 * end_buf, which needs prefix.len + 1 bytes. */
struct kv_range kv_range_of_prefix(struct slice prefix, uint8_t *end_buf);
bool kv_range_contains(const struct kv_range *r, struct slice key);

struct kv_query {
    struct kv_range range;
    int64_t revision; /* <= 0: the newest */
    bool descending;
    bool keys_only;
};

/* --- Results of an applied command. Slices point into the result's arena. ------------------- */

enum kv_op_type { KV_OP_RANGE, KV_OP_PUT, KV_OP_DELETE, KV_OP_TXN };

struct kv_op_result {
    enum kv_op_type type;
    union {
        struct {
            struct kv_pair *kvs;
            size_t n;
            int64_t count; /* keys in the range, whatever the limit */
            bool more;
        } range;
        struct {
            struct kv_pair kv; /* as stored; its value is left empty */
            bool has_prev;     /* prev_kv was asked for and the key existed */
            struct kv_pair prev;
        } put;
        struct {
            int64_t deleted;
            struct kv_pair *prev; /* when prev_kv was asked for; in key order */
            size_t n_prev;
        } del;
        struct {
            bool succeeded;
            struct kv_op_result *results;
            size_t n;
            int32_t failed_compare; /* index of the first top-level compare that did not hold, -1 */
        } txn;
    } u;
};

/* What a command came to. Created by the store, owned by the waiter. */
struct kv_result {
    enum krd_status status; /* KRD_OK, or a definite no: nothing was changed */
    const char *message;    /* for humans when status is not OK; in the arena or static */
    int64_t revision;       /* of this command if it wrote, else the store's current one */
    uint64_t index, term;   /* of the log entry */
    bool has_op;
    struct kv_op_result op; /* put, delete_range, txn */
    int64_t lease_id;       /* lease_grant */
    int64_t lease_ttl;      /* lease_grant: seconds */
    int64_t *renewed_ttl;   /* lease_renew: each ID's TTL in seconds, in order; 0: no such lease */
    size_t n_renewed;
    struct krd_arena arena;
};
void kv_result_destroy(struct kv_result *r); /* takes NULL */

/* --- Events ------------------------------------------------------------------------------- */

enum kv_event_type { KV_EVENT_PUT, KV_EVENT_DELETE };

struct kv_event {
    enum kv_event_type type;
    struct kv_pair kv; /* of a delete: key and mod_revision only */
    bool has_prev;     /* the version before; absent for creations or when compacted */
    struct kv_pair prev;
};

#endif
