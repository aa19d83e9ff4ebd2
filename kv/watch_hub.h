/* watch_hub.h - between the apply thread and the watch groups: what was changed, handed over once.
 *
 * The apply thread makes one immutable, counted feed batch of each engine batch's changes and hangs
 * it into the queue of every group that has watchers; if there is none, it makes nothing. A queue
 * that grows over its bound is dropped and marked, and its group reads the history instead.
 *
 * The lock guards queues and marks only: it is held for a few pointer moves, never across I/O, and
 * while a group's wake function runs (so that a group cannot go away under it). */
#ifndef KRD_KV_WATCH_HUB_H
#define KRD_KV_WATCH_HUB_H

#include "kv/store_internal.h"

#define KV_FEED_QUEUE_BYTES_MAX (4u * 1024 * 1024)

/* The changes of whole revisions, in order; slices point behind the array. */
struct kv_feed_batch {
    atomic_uint refs;
    size_t bytes;
    int64_t last; /* revision */
    size_t n;
    struct kv_logged changes[];
};
void kv_feed_batch_unref(struct kv_feed_batch *b);

/* A group's end of the hub. Members are the hub's, under its lock. */
struct kv_feed {
    struct kv_feed *next;
    void (*wake)(void *arg);
    void *arg;
    struct kv_feed_batch **queue;
    size_t n, cap, bytes;
    bool active; /* has watchers: is fed */
    bool lost;   /* the queue was dropped: read the history */
    bool idle;   /* the owner has taken all there was and waits for wake */
};

void kv_hub_join(struct kv_hub *h, struct kv_feed *f);
void kv_hub_leave(struct kv_hub *h, struct kv_feed *f);
/* From here on the feed gets every change behind the revision that is returned. */
int64_t kv_hub_activate(struct kv_hub *h, struct kv_feed *f);
void kv_hub_deactivate(struct kv_hub *h, struct kv_feed *f);
/* Newest revision that was handed over. */
int64_t kv_hub_published(struct kv_hub *h);

struct kv_feed_taken {
    struct kv_feed_batch **batches; /* the caller's: unref each, krd_free the array */
    size_t n;
    bool lost;    /* there was more than fitted: everything up to `upto` is in the history */
    int64_t upto; /* newest revision handed over until now */
};
void kv_hub_take(struct kv_hub *h, struct kv_feed *f, struct kv_feed_taken *out);

#endif
