/* watch_hub.c - see watch_hub.h. */
#include "kv/watch_hub.h"

struct kv_hub {
    pthread_mutex_t lock;
    struct kv_feed *feeds;
    int64_t published;
    atomic_size_t n_active; /* written under the lock; read without, as a hint */
};

struct kv_hub *kv_hub_create(int64_t revision)
{
    struct kv_hub *h = krd_zalloc(sizeof *h);
    pthread_mutex_init(&h->lock, NULL);
    h->published = revision;
    return h;
}

void kv_hub_destroy(struct kv_hub *h)
{
    if (h == NULL)
        return;
    KRD_ASSERT(h->feeds == NULL);
    pthread_mutex_destroy(&h->lock);
    krd_free(h);
}

/* --- Batches --------------------------------------------------------------------------------- */

static struct kv_feed_batch *make_batch(const struct kv_changes *changes)
{
    size_t head = sizeof(struct kv_feed_batch) + changes->n * sizeof(struct kv_logged);
    struct kv_feed_batch *b = krd_alloc(head + changes->bytes);
    uint8_t *p = (uint8_t *)b + head;
    atomic_init(&b->refs, 1);
    b->bytes = head + changes->bytes;
    b->n = changes->n;
    b->last = changes->list[changes->n - 1].at.revision;
    for (size_t i = 0; i < changes->n; i++) {
        struct slice record = changes->list[i].record;
        memcpy(p, record.ptr, record.len);
        b->changes[i] = (struct kv_logged){changes->list[i].at, slice_of(p, record.len)};
        p += record.len;
    }
    KRD_ASSERT(p == (uint8_t *)b + b->bytes);
    return b;
}

void kv_feed_batch_unref(struct kv_feed_batch *b)
{
    if (b != NULL && atomic_fetch_sub(&b->refs, 1) == 1)
        krd_free(b);
}

static void drop_queue(struct kv_feed *f)
{
    for (size_t i = 0; i < f->n; i++)
        kv_feed_batch_unref(f->queue[i]);
    f->n = 0;
    f->bytes = 0;
}

/* --- Feeds ----------------------------------------------------------------------------------- */

void kv_hub_join(struct kv_hub *h, struct kv_feed *f)
{
    pthread_mutex_lock(&h->lock);
    f->idle = true;
    f->next = h->feeds;
    h->feeds = f;
    pthread_mutex_unlock(&h->lock);
}

void kv_hub_leave(struct kv_hub *h, struct kv_feed *f)
{
    pthread_mutex_lock(&h->lock);
    KRD_ASSERT(!f->active);
    struct kv_feed **at = &h->feeds;
    while (*at != f)
        at = &(*at)->next;
    *at = f->next;
    drop_queue(f);
    pthread_mutex_unlock(&h->lock);
    krd_free(f->queue);
}

int64_t kv_hub_activate(struct kv_hub *h, struct kv_feed *f)
{
    pthread_mutex_lock(&h->lock);
    int64_t published = h->published;
    if (!f->active) {
        f->active = true;
        f->idle = true; /* its owner may have dropped a wake that came while it had no watcher */
        atomic_fetch_add(&h->n_active, 1);
    }
    pthread_mutex_unlock(&h->lock);
    return published;
}

void kv_hub_deactivate(struct kv_hub *h, struct kv_feed *f)
{
    pthread_mutex_lock(&h->lock);
    KRD_ASSERT(f->active);
    f->active = false;
    f->lost = false;
    drop_queue(f);
    atomic_fetch_sub(&h->n_active, 1);
    pthread_mutex_unlock(&h->lock);
}

int64_t kv_hub_published(struct kv_hub *h)
{
    pthread_mutex_lock(&h->lock);
    int64_t published = h->published;
    pthread_mutex_unlock(&h->lock);
    return published;
}

void kv_hub_take(struct kv_hub *h, struct kv_feed *f, struct kv_feed_taken *out)
{
    pthread_mutex_lock(&h->lock);
    *out = (struct kv_feed_taken){f->queue, f->n, f->lost, h->published};
    f->queue = NULL;
    f->n = f->cap = f->bytes = 0;
    f->lost = false;
    f->idle = true;
    pthread_mutex_unlock(&h->lock);
}

/* --- Publishing ------------------------------------------------------------------------------ */

static void feed_one(struct kv_feed *f, struct kv_feed_batch *b)
{
    if (b == NULL || f->lost || f->bytes + b->bytes > KV_FEED_QUEUE_BYTES_MAX) {
        drop_queue(f);
        f->lost = true;
    } else {
        krd_grow(&f->queue, &f->cap, f->n + 1, sizeof f->queue[0]);
        atomic_fetch_add(&b->refs, 1);
        f->queue[f->n++] = b;
        f->bytes += b->bytes;
    }
    if (f->idle) {
        f->idle = false;
        f->wake(f->arg);
    }
}

/* The hint may miss a feed that becomes active in between. Its watchers have then been told a
 * revision before this batch; with no batch to give, the feed is marked as lost, and they read the
 * history. */
void kv_hub_publish(struct kv_hub *h, const struct kv_changes *changes, int64_t revision)
{
    if (changes->n == 0)
        return;
    struct kv_feed_batch *b = atomic_load(&h->n_active) > 0 ? make_batch(changes) : NULL;
    pthread_mutex_lock(&h->lock);
    h->published = revision;
    for (struct kv_feed *f = h->feeds; f != NULL; f = f->next) {
        if (f->active)
            feed_one(f, b);
    }
    pthread_mutex_unlock(&h->lock);
    kv_feed_batch_unref(b);
}
