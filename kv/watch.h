/* watch.h - watchers: ordered, gap-free, duplicate-free, atomic by revision, bounded in memory.
 *
 * The apply thread publishes each revision's events once, as one shared immutable batch, to every
 * group. A group belongs to one consumer thread (an HTTP loop) and holds that thread's watchers:
 * matching, catching up and slow consumers cost nobody else anything. A watcher whose sink is full,
 * or that starts in the past, reads history from the store in bounded slices until it has caught
 * up exactly with what was published, and is then moved over (no gap, no duplicate: each watcher
 * knows the next revision that it needs and never takes another).
 *
 * Registration is exact: a new watcher without `from` starts right behind the newest revision that
 * the apply thread has published, which is at or beyond every write that was answered before; that
 * revision is what kv_watch_synced_revision says then. */
#ifndef KRD_KV_WATCH_H
#define KRD_KV_WATCH_H

#include "kv/store.h"

struct kv_watch_group;
struct kv_watch;

struct kv_watch_spec {
    struct kv_range range;
    int64_t from; /* first revision wanted; 0: from now on */
    bool prev_kv; /* the version before stands in each event, when it is still there */
    bool no_put, no_delete;
};

/* Calls on the group's thread, from inside kv_watch_run. events: all of one revision that match, in
 * order. The memory is the group's; what is kept must be copied. Return false when no more can be
 * taken for now (these events were taken): the watcher rests until kv_watch_resume. Watchers may be
 * opened, resumed and closed from inside, the one that is called included. */
struct kv_watch_sink {
    void *arg;
    bool (*events)(void *arg, int64_t revision, const struct kv_event *events, size_t n);
    /* What it needs was compacted: the watcher is dead; close it. */
    void (*compacted)(void *arg, int64_t compact_revision);
};

/* wake asks the owner to call kv_watch_run on its own thread. It is called on the apply thread when
 * something was published to an idle group (it must not block, nor call in here), and on the
 * group's own thread by kv_watch_open and kv_watch_resume when there is history to read. */
struct kv_watch_group *kv_watch_group_create(struct kv_store *s, void (*wake)(void *arg),
                                             void *arg);
void kv_watch_group_destroy(struct kv_watch_group *g); /* asserts that no watcher is left */
/* Takes in what was published and lets watchers catch up, a bounded slice. True: call again soon
 * (catch-up has more to read). */
bool kv_watch_run(struct kv_watch_group *g);

/* KRD_BAD_REQUEST: the range is empty, or from is negative. A `from` below the compacted revision
 * is told by sink->compacted, from kv_watch_run. */
KRD_MUST_CHECK enum krd_status kv_watch_open(struct kv_watch_group *g,
                                             const struct kv_watch_spec *spec,
                                             const struct kv_watch_sink *sink,
                                             struct kv_watch **out);
void kv_watch_resume(struct kv_watch *w);
/* Everything up to this revision has been given to the sink: what a bookmark may promise. */
int64_t kv_watch_synced_revision(const struct kv_watch *w);
/* At the newest revision that the group has taken in. */
bool kv_watch_is_synced(const struct kv_watch *w);
void kv_watch_close(struct kv_watch *w);
size_t kv_watch_count(const struct kv_watch_group *g);

#endif
