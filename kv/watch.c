/* watch.c - groups and their watchers.
 *
 * `taken` is the newest revision that the group has worked through; everything behind it comes from
 * the hub, everything up to it is history. Each watcher is in one state:
 *
 *   LIVE     has been given all up to taken, and gets what comes from the hub (from `next` on)
 *   LAGGING  needs revisions from next <= taken: reads them from the store, a slice a turn
 *   RESTING  its sink is full; next is what it needs when it is resumed
 *   DEAD     what it needed was compacted
 *
 *   open ---> LIVE <---------------> LAGGING ---> DEAD
 *               \  slice reached taken /
 *                `-----> RESTING <----'
 *
 * Exactness: `next` and `taken` are only moved here, on the group's thread, a whole revision at a
 * time. A watcher becomes LIVE at the moment at which next = taken + 1, and the hub's queue then
 * holds exactly what is behind taken: nothing is missed and nothing comes twice. When the hub had
 * to drop the queue, taken jumps to what was published, and all LIVE watchers lag from where they
 * were.
 *
 * Catching up: one slice reads a stretch of history once, for one watcher (the lead) and for all
 * others that need something inside the same stretch. Every other slice is led by the one furthest
 * behind: it gathers those before it as it goes, so that any number of laggards ends in one pass;
 * the slices between go round, so that nobody waits for the one furthest behind.
 *
 * Sinks may open, close and resume watchers from inside their calls. */
#include "kv/watch_hub.h"
#include "kv/watch_index.h"
#include "kv/watch.h"

enum {
    SLICE_REVISIONS = 1000,
    SLICE_BYTES = 1024 * 1024,
    SCRATCH_KEPT = 64 * 1024, /* elements; more is given back after a huge revision */
};

enum state { LIVE, LAGGING, RESTING, DEAD, CLOSED };

struct kv_watch {
    struct kv_watch_group *group;
    struct kv_index_link link;
    struct kv_watch_sink sink;
    enum state state;
    bool prev_kv, no_put, no_delete;
    int64_t next; /* lowest revision that it may still be given; LIVE: or taken + 1 if higher */
    int64_t base; /* opened without `from`: everything up to here does not concern it */
    size_t lagging_at; /* LAGGING: place in the group's list */
    uint64_t slice;    /* the slice of history that it takes part in; 0: none */
    struct kv_watch *all_prev, *all_next;

    /* The revision being given out: */
    struct kv_watch *touched_next;
    size_t first_hit, last_hit; /* in the group's hits; 0: none */
};

struct hit {
    size_t event; /* in the group's events */
    size_t next;  /* of the same watcher; 0: none */
};

/* An event of the revision being given out, and what the version before it was, once asked for. */
struct pending {
    struct kv_event event;
    struct kv_place prev;
    bool prev_read;
    struct slice owned;
};

struct kv_watch_group {
    struct kv_store *store;
    struct kv_feed feed;
    struct kv_index index;
    int64_t taken;
    size_t count;
    struct kv_watch *all;
    struct kv_watch **lagging;
    size_t n_lagging, lagging_cap;
    uint64_t slice;          /* number of the slice of history under way, or of the last one */
    int depth;               /* inside a call that walks watchers: closing waits */
    struct kv_watch *closed; /* to be freed then, linked by touched_next */

    /* The revision being given out; reused. */
    int64_t revision;
    bool history; /* it comes from the store: LAGGING watchers are served, else LIVE ones */
    struct pending *events;
    size_t n_events, events_cap;
    struct hit *hits; /* from 1 */
    size_t n_hits, hits_cap;
    struct kv_watch *touched, *touched_last;
    struct kv_event *out;
    size_t out_cap;
    struct krd_arena arena;
};

static void free_scratch(struct kv_watch_group *g)
{
    krd_free(g->events);
    krd_free(g->hits);
    krd_free(g->out);
    krd_arena_deinit(&g->arena);
    g->events = NULL;
    g->hits = NULL;
    g->out = NULL;
    g->events_cap = g->hits_cap = g->out_cap = 0;
}

struct kv_watch_group *kv_watch_group_create(struct kv_store *s, void (*wake)(void *arg), void *arg)
{
    struct kv_watch_group *g = krd_zalloc(sizeof *g);
    g->store = s;
    g->feed.wake = wake;
    g->feed.arg = arg;
    kv_index_init(&g->index);
    kv_hub_join(s->hub, &g->feed);
    return g;
}

void kv_watch_group_destroy(struct kv_watch_group *g)
{
    if (g == NULL)
        return;
    KRD_ASSERT(g->count == 0 && g->depth == 0);
    kv_hub_leave(g->store->hub, &g->feed);
    kv_index_deinit(&g->index);
    free_scratch(g);
    krd_free(g->lagging);
    krd_free(g);
}

size_t kv_watch_count(const struct kv_watch_group *g)
{
    return g->count;
}

/* --- States ---------------------------------------------------------------------------------- */

static void leave_lagging(struct kv_watch *w)
{
    struct kv_watch_group *g = w->group;
    struct kv_watch *last = g->lagging[--g->n_lagging];
    g->lagging[w->lagging_at] = last;
    last->lagging_at = w->lagging_at;
}

static void become(struct kv_watch *w, enum state state)
{
    struct kv_watch_group *g = w->group;
    KRD_ASSERT(w->state != CLOSED);
    if (w->state == LAGGING && state != LAGGING)
        leave_lagging(w);
    w->slice = 0;
    if (w->state != LAGGING && state == LAGGING) {
        krd_grow(&g->lagging, &g->lagging_cap, g->n_lagging + 1, sizeof g->lagging[0]);
        w->lagging_at = g->n_lagging;
        g->lagging[g->n_lagging++] = w;
    }
    w->state = state;
}

static void become_live_or_lagging(struct kv_watch *w)
{
    become(w, w->next <= w->group->taken ? LAGGING : LIVE);
}

static void free_closed(struct kv_watch_group *g)
{
    while (g->closed != NULL) {
        struct kv_watch *w = g->closed;
        g->closed = w->touched_next;
        krd_free(w);
    }
}

/* --- Giving out one revision ----------------------------------------------------------------- */

/* Whether the revision under way is one that the watcher is to be given now. */
static bool takes_part(const struct kv_watch *w, const struct kv_watch_group *g)
{
    bool served = g->history ? w->state == LAGGING && w->slice == g->slice : w->state == LIVE;
    return served && w->next <= g->revision;
}

static void on_match(void *arg, struct kv_index_link *l)
{
    struct kv_watch_group *g = arg;
    struct kv_watch *w = KRD_CONTAINER_OF(l, struct kv_watch, link);
    size_t event = g->n_events - 1;
    bool put = g->events[event].event.type == KV_EVENT_PUT;
    if (!takes_part(w, g) || (put ? w->no_put : w->no_delete))
        return;
    krd_grow(&g->hits, &g->hits_cap, g->n_hits + 2, sizeof g->hits[0]);
    size_t hit = ++g->n_hits;
    g->hits[hit] = (struct hit){event, 0};
    if (w->first_hit != 0) {
        g->hits[w->last_hit].next = hit;
    } else {
        w->first_hit = hit;
        w->touched_next = NULL;
        if (g->touched == NULL)
            g->touched = w;
        else
            g->touched_last->touched_next = w;
        g->touched_last = w;
    }
    w->last_hit = hit;
}

static struct kv_event event_of(const struct kv_change *c)
{
    struct kv_event e = {.type = KV_EVENT_PUT, .kv = c->pair};
    if (kv_pair_is_tombstone(&c->pair)) {
        e.type = KV_EVENT_DELETE;
        e.kv = (struct kv_pair){.key = c->pair.key, .mod_revision = c->pair.mod_revision};
    }
    return e;
}

/* Adds a change to the revision being given out, if anybody wants it. `copy`: the record does not
 * live until the end of the revision. */
static void add_change(struct kv_watch_group *g, struct kv_place at, struct slice record, bool copy)
{
    struct kv_change change = kv_change_decode(at, record);
    size_t hits = g->n_hits;
    krd_grow(&g->events, &g->events_cap, g->n_events + 1, sizeof g->events[0]);
    struct pending *p = &g->events[g->n_events++];
    *p = (struct pending){.event = event_of(&change), .prev = change.prev};
    kv_index_match(&g->index, change.pair.key, on_match, g);
    if (g->n_hits == hits) {
        g->n_events--;
    } else if (copy) {
        change = kv_change_decode(at, krd_arena_copy(&g->arena, record));
        p->event = event_of(&change);
    }
}

/* The version before, read once however many ask for it. */
static void read_prev(struct kv_watch_group *g, struct pending *p)
{
    struct kv_source source = {g->store->engine, NULL, NULL};
    struct kv_change before;
    if (p->prev_read)
        return;
    p->prev_read = true;
    if (p->prev.revision == 0 || !kv_source_read(&source, p->prev, &before, &p->owned))
        return;
    if (!kv_pair_is_tombstone(&before.pair)) {
        p->event.has_prev = true;
        p->event.prev = before.pair;
    }
}

static void give(struct kv_watch_group *g, struct kv_watch *w, size_t hit)
{
    size_t n = 0;
    for (; hit != 0; hit = g->hits[hit].next) {
        struct pending *p = &g->events[g->hits[hit].event];
        if (w->prev_kv)
            read_prev(g, p);
        krd_grow(&g->out, &g->out_cap, n + 1, sizeof g->out[0]);
        g->out[n] = p->event;
        if (!w->prev_kv)
            g->out[n].has_prev = false;
        n++;
    }
    bool room = w->sink.events(w->sink.arg, g->revision, g->out, n);
    if (w->state == CLOSED)
        return;
    w->next = g->revision + 1;
    if (!room)
        become(w, RESTING);
}

/* All that was added goes to those who wanted it; ready for the next revision. */
static void give_out(struct kv_watch_group *g)
{
    struct kv_watch *w = g->touched;
    g->touched = g->touched_last = NULL;
    while (w != NULL) {
        struct kv_watch *next = w->touched_next;
        size_t hit = w->first_hit;
        w->first_hit = w->last_hit = 0;
        w->touched_next = NULL;
        if (w->state == CLOSED) { /* by a sink that was called before its own */
            w->touched_next = g->closed;
            g->closed = w;
        } else if (takes_part(w, g)) {
            give(g, w, hit);
        }
        w = next;
    }
    for (size_t i = 0; i < g->n_events; i++)
        kv_owned_free(&g->events[i].owned);
    g->n_events = 0;
    g->n_hits = 0;
    krd_arena_reset(&g->arena);
    if (g->hits_cap + g->events_cap > SCRATCH_KEPT)
        free_scratch(g);
}

/* --- What comes from the hub ----------------------------------------------------------------- */

static void give_batch(struct kv_watch_group *g, const struct kv_feed_batch *b)
{
    g->history = false;
    for (size_t i = 0; i < b->n;) {
        g->revision = b->changes[i].at.revision;
        for (; i < b->n && b->changes[i].at.revision == g->revision; i++)
            add_change(g, b->changes[i].at, b->changes[i].record, false);
        give_out(g);
        /* A sink may have closed the last watcher and opened the next first one, which sets taken
         * to what was published; the rest of the batch then concerns nobody. */
        g->taken = krd_max_i64(g->taken, g->revision);
    }
}

/* The queue was dropped: LIVE watchers lag from where they are. O(watchers). */
static void lose(struct kv_watch_group *g, int64_t upto)
{
    int64_t from = g->taken + 1;
    g->taken = krd_max_i64(g->taken, upto);
    for (struct kv_watch *w = g->all; w != NULL; w = w->all_next) {
        if (w->state != LIVE)
            continue;
        w->next = krd_max_i64(w->next, from);
        become_live_or_lagging(w);
    }
}

static void take_in(struct kv_watch_group *g)
{
    struct kv_feed_taken taken;
    kv_hub_take(g->store->hub, &g->feed, &taken);
    for (size_t i = 0; i < taken.n; i++) {
        if (g->count > 0)
            give_batch(g, taken.batches[i]);
        kv_feed_batch_unref(taken.batches[i]);
    }
    krd_free(taken.batches);
    if (taken.lost)
        lose(g, taken.upto);
}

/* --- What comes from history ----------------------------------------------------------------- */

static struct kv_watch *choose_lead(struct kv_watch_group *g)
{
    if (g->slice % 2 == 1)
        return g->lagging[(g->slice / 2) % g->n_lagging];
    struct kv_watch *lead = g->lagging[0];
    for (size_t i = 1; i < g->n_lagging; i++) {
        if (g->lagging[i]->next < lead->next)
            lead = g->lagging[i];
    }
    return lead;
}

/* Gives out history in whole revisions until the slice is full; returns the last revision done. */
static int64_t give_slice(struct kv_watch_group *g, struct kv_engine_iter *it)
{
    size_t revisions = 0, bytes = 0;
    g->history = true;
    g->revision = 0;
    for (; kv_engine_iter_valid(it); kv_engine_iter_next(it)) {
        struct slice raw = kv_engine_iter_key(it), record = kv_engine_iter_value(it);
        if (raw.ptr[0] != 'r')
            break;
        struct kv_place at = kv_place_of_raw(raw);
        if (at.revision > g->taken)
            break;
        if (at.revision != g->revision) {
            if (g->revision != 0)
                give_out(g);
            if (revisions >= SLICE_REVISIONS || bytes >= SLICE_BYTES)
                return at.revision - 1;
            g->revision = at.revision;
            revisions++;
        }
        add_change(g, at, record, true);
        bytes += record.len;
    }
    if (g->revision != 0)
        give_out(g);
    return g->taken;
}

/* Physical compaction may run beside this. It deletes only after the compacted revision was
 * published; so when the iterator, which sees the store as it was when it was made, was there first
 * and the compacted revision, read after, is not beyond the start, nothing is missing from it. */
static void catch_up(struct kv_watch_group *g)
{
    uint8_t raw[KV_CHANGE_KEY_BYTES];
    g->slice++;
    struct kv_watch *lead = choose_lead(g);
    struct kv_engine_iter *it = kv_engine_iter_create(g->store->engine, NULL, false);
    int64_t compacted = kv_compacted_revision(g->store);
    if (lead->next < compacted) {
        become(lead, DEAD);
        lead->sink.compacted(lead->sink.arg, compacted);
    } else {
        for (size_t i = 0; i < g->n_lagging; i++)
            g->lagging[i]->slice = g->lagging[i]->next >= lead->next ? g->slice : 0;
        kv_engine_iter_seek(it, kv_raw_change(raw, (struct kv_place){lead->next, 0}));
        int64_t done = give_slice(g, it);
        for (size_t i = g->n_lagging; i-- > 0;) { /* backwards: those that leave are replaced */
            struct kv_watch *w = g->lagging[i];
            if (w->slice != g->slice)
                continue;
            w->next = krd_max_i64(w->next, done + 1);
            become_live_or_lagging(w);
        }
    }
    kv_engine_iter_destroy(it);
}

bool kv_watch_run(struct kv_watch_group *g)
{
    KRD_ASSERT(g->depth == 0);
    g->depth++;
    take_in(g);
    if (g->n_lagging > 0)
        catch_up(g);
    g->depth--;
    free_closed(g);
    return g->n_lagging > 0;
}

/* --- Watchers -------------------------------------------------------------------------------- */

static bool range_is_empty(const struct kv_range *r)
{
    if (r->range_end.len == 0)
        return r->key.len == 0;
    bool open_ended = r->range_end.len == 1 && r->range_end.ptr[0] == 0;
    return !open_ended && slice_cmp(r->range_end, r->key) <= 0;
}

/* There is history to read: the owner has to run the group. */
static void wake_if_lagging(struct kv_watch *w)
{
    if (w->state == LAGGING)
        w->group->feed.wake(w->group->feed.arg);
}

enum krd_status kv_watch_open(struct kv_watch_group *g, const struct kv_watch_spec *spec,
                              const struct kv_watch_sink *sink, struct kv_watch **out)
{
    if (spec->from < 0 || range_is_empty(&spec->range))
        return KRD_BAD_REQUEST;
    int64_t published = kv_hub_activate(g->store->hub, &g->feed);
    if (g->count == 0)
        g->taken = published;
    struct kv_watch *w = krd_zalloc(sizeof *w);
    w->group = g;
    w->sink = *sink;
    w->prev_kv = spec->prev_kv;
    w->no_put = spec->no_put;
    w->no_delete = spec->no_delete;
    w->base = spec->from == 0 ? published : 0;
    w->next = spec->from == 0 ? published + 1 : spec->from;
    w->state = LIVE;
    w->all_next = g->all;
    if (g->all != NULL)
        g->all->all_prev = w;
    g->all = w;
    g->count++;
    kv_index_add(&g->index, &spec->range, &w->link);
    become_live_or_lagging(w);
    wake_if_lagging(w);
    *out = w;
    return KRD_OK;
}

void kv_watch_resume(struct kv_watch *w)
{
    if (w->state != RESTING)
        return;
    become_live_or_lagging(w);
    wake_if_lagging(w);
}

int64_t kv_watch_synced_revision(const struct kv_watch *w)
{
    return w->state == LIVE ? krd_max_i64(w->group->taken, w->base) : w->next - 1;
}

bool kv_watch_is_synced(const struct kv_watch *w)
{
    return w->state == LIVE;
}

void kv_watch_close(struct kv_watch *w)
{
    if (w == NULL)
        return;
    struct kv_watch_group *g = w->group;
    become(w, CLOSED);
    kv_index_remove(&g->index, &w->link);
    if (w->all_prev != NULL)
        w->all_prev->all_next = w->all_next;
    else
        g->all = w->all_next;
    if (w->all_next != NULL)
        w->all_next->all_prev = w->all_prev;
    if (--g->count == 0)
        kv_hub_deactivate(g->store->hub, &g->feed);
    if (g->depth == 0) {
        krd_free(w);
    } else if (w->first_hit == 0) { /* else it is met once more (give_out) */
        w->touched_next = g->closed;
        g->closed = w;
    }
}
