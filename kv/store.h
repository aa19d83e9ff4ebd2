/* store.h - the replicated state: keys with history over LevelDB (engine.h), leases, the memory
 * of what each origin's proposals have already done, and the hash of it all.
 *
 * One entry in, one result out: applying is a function of (state, entry) alone. Many entries go
 * into one LevelDB batch together with the applied index, its term, the revision and the hash.
 *
 * Records in LevelDB (record.h draws them byte by byte):
 *   newest version of a key: one point read               'k' key
 *   (a long value stands in its change: a second one)
 *   every revision's changes, in order, whole              'r' revision sub -> key, pair, revision
 *                                                          of the version before, time
 *   leases, keys by lease, origins, meta                   'l', 'a', 'o', 'm'
 * A key's history is the chain of its 'r' records, newest first; a deleted key's 'k' record is a
 * tombstone until its history is compacted away.
 *
 * Threads: "apply" marks what only the apply thread may call; "any" may run on any thread beside
 * it (reads go to LevelDB directly). */
#ifndef KRD_KV_STORE_H
#define KRD_KV_STORE_H

#include "kv/types.h"

struct kv_store;

struct kv_options {
    const char *dir;           /* LevelDB's directory; created when missing */
    uint64_t self;             /* member id: results are kept for its own proposals only */
    uint64_t self_boot;        /* and only of this boot */
    uint64_t checkpoint;       /* the log's newest checkpoint: less than that on disk is damage */
    size_t cache_bytes;        /* LevelDB block cache. default 16 MiB */
    size_t write_buffer_bytes; /* LevelDB memtable. default 8 MiB */
};

struct kv_outcome {
    uint64_t origin, boot, sequence; /* 0 when the entry is not a command */
    struct kv_result *result;        /* moves to the callee; NULL unless it is our own proposal */
};
/* Called on the apply thread after the batch is in LevelDB, in log order. */
typedef void kv_outcome_fn(void *arg, struct kv_outcome *o);

/* Opens; after an unclean stop first cuts LevelDB's log files at the first gap. *err is
 * krd_alloc'd. KRD_CORRUPT: damaged, or older than the checkpoint. */
KRD_MUST_CHECK enum krd_status kv_open(const struct kv_options *o, struct kv_store **out,
                                       char **err);
void kv_close(struct kv_store *s); /* marks a clean stop; takes NULL */

/* --- Applying: apply thread ----------------------------------------------------------------- */

/* Entries must follow the applied index without a gap; those at or below it are skipped. Any
 * failure of LevelDB is fatal (krd_fatal). */
void kv_apply(struct kv_store *s, const struct kv_entry *entries, size_t n, kv_outcome_fn *fn,
              void *arg);
/* A bounded slice of background work (physical compaction). True: there is more. */
bool kv_maintain(struct kv_store *s);
/* Ids of leases whose deadline is at or before now_ms (cluster time), at most max. Returns how
 * many; *next_ms: the earliest deadline that remains (UINT64_MAX: none). apply. */
size_t kv_lease_due(struct kv_store *s, uint64_t now_ms, int64_t *ids, size_t max,
                    uint64_t *next_ms);

/* --- State: any thread ----------------------------------------------------------------------- */

uint64_t kv_applied_index(const struct kv_store *s);
uint64_t kv_applied_term(const struct kv_store *s);
uint64_t kv_applied_time_ms(const struct kv_store *s);   /* cluster time of the applied entry */
int64_t kv_revision(const struct kv_store *s);           /* 1 when empty */
int64_t kv_compacted_revision(const struct kv_store *s); /* 0: nothing was */
/* Incremental 128-bit hash of the logical state (live keys, leases, origins, compact revision)
 * at the applied index, both read as one. */
void kv_state_hash(const struct kv_store *s, uint64_t *index, uint8_t hash[16]);
/* The same by a full scan of a snapshot; for tests, scrubbing and kvraftd -verify. */
KRD_MUST_CHECK enum krd_status kv_state_hash_scan(struct kv_store *s, uint64_t *index,
                                                  uint8_t hash[16]);
/* Makes everything applied until now durable and returns its index. Blocks on the disk: its own
 * thread, beside apply. Failure is fatal. */
uint64_t kv_checkpoint(struct kv_store *s);
/* Lets go of mapped tables' pages when files take more than resident_max bytes of this process's
 * memory (ldb_maps.h). */
void kv_trim_memory(size_t resident_max);
/* Highest revision whose entry was taken at or before time_ms (cluster time); 0: none kept. */
int64_t kv_revision_at_time(struct kv_store *s, uint64_t time_ms);
/* Approximate bytes on disk. */
uint64_t kv_disk_bytes(struct kv_store *s);

/* --- Reading: any thread --------------------------------------------------------------------- */

/* A past revision costs a point read for each newer version of the key, here and in cursors. */

/* One key. *out's slices lie in the arena. KRD_NOT_FOUND; KRD_COMPACTED, KRD_FUTURE_REVISION for
 * a past revision. *revision (may be NULL): the store's revision that the answer is true of. */
KRD_MUST_CHECK enum krd_status kv_get(struct kv_store *s, struct slice key, int64_t revision,
                                      struct krd_arena *arena, struct kv_pair *out,
                                      int64_t *store_revision);

/* A consistent walk over a range at one revision. */
struct kv_cursor;
KRD_MUST_CHECK enum krd_status kv_cursor_open(struct kv_store *s, const struct kv_query *q,
                                              struct kv_cursor **out);
/* Next pair in order; slices live until the next call. False at the end. Damage is fatal. */
bool kv_cursor_next(struct kv_cursor *c, struct kv_pair *out);
int64_t kv_cursor_revision(const struct kv_cursor *c); /* the store's, when it was opened */
/* Counts what is left without reading values. */
int64_t kv_cursor_count_rest(struct kv_cursor *c);
void kv_cursor_close(struct kv_cursor *c); /* takes NULL */

/* A key's kept versions, newest first (tombstones included, version 0); up to limit (0: all).
 * Pairs lie in the arena. KRD_NOT_FOUND: none is kept. Kept are all from the compacted revision on
 * and, unless a tombstone, the newest one below it. */
KRD_MUST_CHECK enum krd_status kv_history(struct kv_store *s, struct slice key, size_t limit,
                                          struct krd_arena *arena, struct kv_pair **out, size_t *n,
                                          int64_t *store_revision);

struct kv_lease_info {
    int64_t id;
    int64_t ttl;          /* granted, seconds */
    uint64_t deadline_ms; /* cluster time */
    int64_t keys;         /* attached */
};
KRD_MUST_CHECK enum krd_status kv_lease_get(struct kv_store *s, int64_t id,
                                            struct kv_lease_info *out);
/* All, by id; krd_alloc'd. */
size_t kv_lease_list(struct kv_store *s, struct kv_lease_info **out);
/* Keys attached to a lease, in order, in the arena. */
size_t kv_lease_keys(struct kv_store *s, int64_t id, struct krd_arena *arena, struct slice **out);

/* --- Schema checks: pure, any thread --------------------------------------------------------- */

struct Etcdserverpb__InternalRaftRequest;
/* Everything about a command that does not depend on state: empty keys, sizes, ranges of numbers,
 * operations' count and nesting, duplicate keys (etcd-api.md §4). Fronts call it before proposing;
 * applying calls it too, so that a bad entry is a definite no on every node. *message is static. */
KRD_MUST_CHECK enum krd_status kv_check(const struct Etcdserverpb__InternalRaftRequest *r,
                                        const char **message);

/* Whether the bytes of an encoded InternalRaftRequest may be given to protobuf-c: well-formed on
 * the path of nested transactions, and not absurdly deep. What fails here has no effect when it is
 * applied, and no result. */
bool kv_wire_is_sane(struct slice command);

#endif
