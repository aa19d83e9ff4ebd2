/* lease.c - see lease.h. A lease's way: granted by an entry, renewed by entries, its deadline
 * carried along in its record, so that neither a restart nor a new leader shortens or lengthens
 * it; ended by an entry (revoke, or the leader's expire, which apply holds against the deadline).
 */
#include "kv/lease.h"

#include <uthash.h>

struct kv_lease_row {
    struct kv_lease lease;
    UT_hash_handle hh;
};

void kv_leases_init(struct kv_leases *t)
{
    *t = (struct kv_leases){.by_id = NULL};
}

void kv_leases_deinit(struct kv_leases *t)
{
    struct kv_lease_row *row, *next;
    HASH_ITER (hh, t->by_id, row, next) {
        HASH_DEL(t->by_id, row);
        krd_free(row);
    }
    krd_free(t->heap);
    krd_free(t->touched);
    kv_leases_init(t);
}

/* --- The heap --------------------------------------------------------------------------------- */

static bool earlier(const struct kv_lease *a, const struct kv_lease *b)
{
    if (a->rec.deadline_ms != b->rec.deadline_ms)
        return a->rec.deadline_ms < b->rec.deadline_ms;
    return a->id < b->id;
}

static void place(struct kv_leases *t, size_t i, struct kv_lease *l)
{
    t->heap[i] = l;
    l->heap = i;
}

/* Moves a lease whose deadline has changed to where it belongs. */
static void settle(struct kv_leases *t, struct kv_lease *l)
{
    size_t i = l->heap;
    while (i > 0 && earlier(l, t->heap[(i - 1) / 2])) {
        place(t, i, t->heap[(i - 1) / 2]);
        i = (i - 1) / 2;
    }
    for (;;) {
        size_t child = 2 * i + 1;
        if (child + 1 < t->n && earlier(t->heap[child + 1], t->heap[child]))
            child++;
        if (child >= t->n || !earlier(t->heap[child], l))
            break;
        place(t, i, t->heap[child]);
        i = child;
    }
    place(t, i, l);
}

static void heap_remove(struct kv_leases *t, struct kv_lease *l)
{
    struct kv_lease *last = t->heap[--t->n];
    if (last == l)
        return;
    place(t, l->heap, last);
    settle(t, last);
}

/* --- The table -------------------------------------------------------------------------------- */

struct kv_lease *kv_leases_find(struct kv_leases *t, int64_t id)
{
    struct kv_lease_row *row;
    HASH_FIND(hh, t->by_id, &id, sizeof id, row);
    return row == NULL ? NULL : &row->lease;
}

static struct kv_lease *add(struct kv_leases *t, int64_t id, const struct kv_lease_record *rec)
{
    struct kv_lease_row *row = krd_zalloc(sizeof *row);
    row->lease.id = id;
    row->lease.rec = *rec;
    HASH_ADD(hh, t->by_id, lease.id, sizeof row->lease.id, row);
    krd_grow(&t->heap, &t->heap_cap, t->n + 1, sizeof(struct kv_lease *));
    place(t, t->n, &row->lease);
    t->n++;
    settle(t, &row->lease);
    return &row->lease;
}

static void touch(struct kv_leases *t, int64_t id)
{
    krd_grow(&t->touched, &t->touched_cap, t->n_touched + 1, sizeof t->touched[0]);
    t->touched[t->n_touched++] = id;
}

static void changed(struct kv_leases *t, struct kv_lease *l)
{
    if (l->dirty)
        return;
    l->dirty = true;
    touch(t, l->id);
}

int64_t kv_leases_choose_id(struct kv_leases *t, uint64_t index, uint64_t time_ms)
{
    uint8_t seed[24];
    krd_put_le64(seed, index);
    krd_put_le64(seed + 8, time_ms);
    for (uint64_t attempt = 0;; attempt++) {
        krd_put_le64(seed + 16, attempt);
        int64_t id = (int64_t)(kv_hash_key(slice_of(seed, sizeof seed)) & INT64_MAX);
        if (id != 0 && kv_leases_find(t, id) == NULL)
            return id;
    }
}

static uint64_t deadline_of(int64_t ttl, uint64_t now_ms)
{
    uint64_t lifetime = (uint64_t)ttl * 1000; /* ttl is bounded by kv_check */
    return now_ms > UINT64_MAX - lifetime ? UINT64_MAX : now_ms + lifetime;
}

struct kv_lease *kv_leases_grant(struct kv_leases *t, int64_t id, int64_t ttl, uint64_t now_ms)
{
    KRD_ASSERT(kv_leases_find(t, id) == NULL);
    struct kv_lease_record rec = {.ttl = ttl, .deadline_ms = deadline_of(ttl, now_ms)};
    struct kv_lease *l = add(t, id, &rec);
    changed(t, l);
    return l;
}

void kv_leases_renew(struct kv_leases *t, struct kv_lease *l, uint64_t now_ms)
{
    uint64_t deadline_ms = deadline_of(l->rec.ttl, now_ms);
    if (deadline_ms <= l->rec.deadline_ms)
        return;
    l->rec.deadline_ms = deadline_ms;
    settle(t, l);
    changed(t, l);
}

void kv_leases_attached(struct kv_leases *t, struct kv_lease *l, int64_t more)
{
    l->rec.keys += more;
    KRD_ASSERT(l->rec.keys >= 0);
    changed(t, l);
}

void kv_leases_end(struct kv_leases *t, struct kv_lease *l, struct kv_sum *sum)
{
    KRD_ASSERT(l->rec.keys == 0);
    *sum = kv_sum_subtract(*sum, l->sum);
    if (!l->dirty)
        touch(t, l->id);
    heap_remove(t, l);
    struct kv_lease_row *row = KRD_CONTAINER_OF(l, struct kv_lease_row, lease);
    HASH_DEL(t->by_id, row);
    krd_free(row);
}

/* Deadlines grow towards the leaves: what is not due hides everything below it. */
static size_t collect_due(const struct kv_leases *t, size_t i, uint64_t now_ms, int64_t *ids,
                          size_t n, size_t max, uint64_t *next_ms)
{
    if (i >= t->n)
        return n;
    const struct kv_lease *l = t->heap[i];
    if (l->rec.deadline_ms > now_ms || n == max) {
        *next_ms = krd_min_u64(*next_ms, l->rec.deadline_ms);
        return n;
    }
    ids[n++] = l->id;
    n = collect_due(t, 2 * i + 1, now_ms, ids, n, max, next_ms);
    return collect_due(t, 2 * i + 2, now_ms, ids, n, max, next_ms);
}

size_t kv_leases_due(const struct kv_leases *t, uint64_t now_ms, int64_t *ids, size_t max,
                     uint64_t *next_ms)
{
    *next_ms = UINT64_MAX;
    return collect_due(t, 0, now_ms, ids, 0, max, next_ms);
}

/* --- The records ------------------------------------------------------------------------------ */

void kv_leases_load(struct kv_leases *t, struct kv_engine *engine)
{
    struct kv_engine_iter *it = kv_engine_iter_create(engine, NULL, false);
    kv_engine_iter_seek(it, slice_str("l"));
    for (; kv_engine_iter_valid(it); kv_engine_iter_next(it)) {
        struct slice key = kv_engine_iter_key(it), record = kv_engine_iter_value(it);
        if (key.len != KV_ID_KEY_BYTES || key.ptr[0] != 'l')
            break;
        struct kv_lease_record rec = kv_lease_decode(record);
        struct kv_lease *l = add(t, (int64_t)krd_get_be64(key.ptr + 1), &rec);
        l->sum = kv_hash_item(kv_hash_key(key), record);
    }
    kv_engine_iter_destroy(it);
}

void kv_leases_flush(struct kv_leases *t, struct kv_engine_batch *batch, struct kv_sum *sum)
{
    for (size_t i = 0; i < t->n_touched; i++) {
        uint8_t key_buf[KV_ID_KEY_BYTES], record[KV_LEASE_BYTES];
        struct slice key = kv_raw_id(key_buf, 'l', (uint64_t)t->touched[i]);
        struct kv_lease *l = kv_leases_find(t, t->touched[i]);
        if (l == NULL) {
            kv_engine_batch_delete(batch, key);
            continue;
        }
        if (!l->dirty) /* ended and granted again in one batch: touched twice */
            continue;
        kv_lease_encode(record, &l->rec);
        kv_engine_batch_put(batch, key, slice_of(record, sizeof record));
        struct kv_sum now = kv_hash_item(kv_hash_key(key), slice_of(record, sizeof record));
        *sum = kv_sum_add(kv_sum_subtract(*sum, l->sum), now);
        l->sum = now;
        l->dirty = false;
    }
    t->n_touched = 0;
}
