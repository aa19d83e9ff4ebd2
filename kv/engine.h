/* engine.h - the ordered store below kv/: LevelDB in the product (engine_leveldb.c), a simulated
 * disk's engine in tests and in the simulator.
 *
 * Crash contract: after a crash the content is an exact prefix of the batches written, at or
 * beyond the last checkpoint. Thread: write from one thread; get, iterators and checkpoint from
 * any beside it. */
#ifndef KRD_KV_ENGINE_H
#define KRD_KV_ENGINE_H

#include "base/base.h"

struct kv_engine;
struct kv_engine_batch;
struct kv_engine_iter;
struct kv_engine_snapshot;

struct kv_engine_options {
    const char *dir;
    size_t cache_bytes, write_buffer_bytes;
};

/* LevelDB. After an unclean stop ldb_recover has run inside. KRD_CORRUPT: damaged in a way that no
 * crash explains, nothing was changed. KRD_IO: the disk, or another process has it open. *err is
 * krd_alloc'd, set unless KRD_OK. */
KRD_MUST_CHECK enum krd_status kv_engine_open(const struct kv_engine_options *o,
                                              struct kv_engine **out, char **err);
void kv_engine_close(struct kv_engine *e); /* syncs first: a clean stop; takes NULL */

struct kv_engine_batch *kv_engine_batch_create(struct kv_engine *e);
void kv_engine_batch_put(struct kv_engine_batch *b, struct slice key, struct slice value);
void kv_engine_batch_delete(struct kv_engine_batch *b, struct slice key);
void kv_engine_batch_clear(struct kv_engine_batch *b);
void kv_engine_batch_destroy(struct kv_engine_batch *b);
/* Atomic, not synced. Failure is fatal. */
void kv_engine_write(struct kv_engine *e, struct kv_engine_batch *b);
/* Everything written before the call is durable after it. Failure is fatal. */
void kv_engine_checkpoint(struct kv_engine *e);

/* A fixed state. Used by one thread at a time, for gets (each costs a seek) and one iterator at a
 * time; the latter never fills the cache. Waits for a write under way. Holds memtables and files,
 * so it should not live long. */
struct kv_engine_snapshot *kv_engine_snapshot(struct kv_engine *e);
void kv_engine_snapshot_release(struct kv_engine *e, struct kv_engine_snapshot *s);

/* The value, krd-owned by the caller through kv_engine_free; false when absent. snap may be NULL.
 */
bool kv_engine_get(struct kv_engine *e, struct kv_engine_snapshot *snap, struct slice key,
                   struct slice *value);
void kv_engine_free(struct slice value);

/* Shows the state of the moment, or the snapshot's. fill_cache false for scans. Seek it first. */
struct kv_engine_iter *kv_engine_iter_create(struct kv_engine *e, struct kv_engine_snapshot *snap,
                                             bool fill_cache);
void kv_engine_iter_seek(struct kv_engine_iter *it, struct slice key);        /* first >= key */
void kv_engine_iter_seek_before(struct kv_engine_iter *it, struct slice key); /* last < key */
void kv_engine_iter_next(struct kv_engine_iter *it);
void kv_engine_iter_prev(struct kv_engine_iter *it);
bool kv_engine_iter_valid(struct kv_engine_iter *it); /* damage met on the way is fatal */
struct slice kv_engine_iter_key(struct kv_engine_iter *it);
struct slice kv_engine_iter_value(struct kv_engine_iter *it);
void kv_engine_iter_destroy(struct kv_engine_iter *it);

uint64_t kv_engine_disk_bytes(struct kv_engine *e);

#endif
