/* watch_index.c - see watch_index.h. The tree of intervals is an array sorted by start; the middle
 * of a stretch is its root, and knows the furthest end in the stretch. */
#include "kv/watch_index.h"

#include <stdlib.h>
#include <uthash.h>

struct kv_interest {
    struct kv_index_link *first;
    struct slice id;       /* what it is found by: the key, or the range in one piece; owned */
    struct kv_range range; /* points into id */
    const struct kv_interest *furthest; /* in the stretch of the tree whose root this is */
    UT_hash_handle hh;
};

void kv_index_init(struct kv_index *ix)
{
    *ix = (struct kv_index){.keys = NULL};
}

void kv_index_deinit(struct kv_index *ix)
{
    KRD_ASSERT(ix->keys == NULL && ix->ranges == NULL);
    krd_free(ix->tree);
}

/* --- Adding and removing --------------------------------------------------------------------- */

/* Key alone, or: length of key, key, end. */
static struct slice make_id(const struct kv_range *r, struct kv_range *inside)
{
    bool one = r->range_end.len == 0;
    size_t head = one ? 0 : 4;
    size_t len = head + r->key.len + r->range_end.len;
    uint8_t *p = krd_alloc(len > 0 ? len : 1);
    if (!one)
        krd_put_le32(p, (uint32_t)r->key.len);
    if (r->key.len > 0)
        memcpy(p + head, r->key.ptr, r->key.len);
    if (!one)
        memcpy(p + head + r->key.len, r->range_end.ptr, r->range_end.len);
    *inside = (struct kv_range){slice_of(p + head, r->key.len),
                                slice_of(p + head + r->key.len, r->range_end.len)};
    return slice_of(p, len);
}

void kv_index_add(struct kv_index *ix, const struct kv_range *range, struct kv_index_link *l)
{
    bool one = range->range_end.len == 0;
    struct kv_interest *it, fresh = {.first = NULL};
    fresh.id = make_id(range, &fresh.range);
    if (one)
        HASH_FIND(hh, ix->keys, fresh.id.ptr, fresh.id.len, it);
    else
        HASH_FIND(hh, ix->ranges, fresh.id.ptr, fresh.id.len, it);
    if (it != NULL) {
        krd_free((void *)(uintptr_t)fresh.id.ptr);
    } else {
        it = krd_alloc(sizeof *it);
        *it = fresh;
        if (one) {
            HASH_ADD_KEYPTR(hh, ix->keys, it->id.ptr, it->id.len, it);
        } else {
            HASH_ADD_KEYPTR(hh, ix->ranges, it->id.ptr, it->id.len, it);
            ix->stale = true;
        }
    }
    *l = (struct kv_index_link){it, NULL, it->first};
    if (it->first != NULL)
        it->first->prev = l;
    it->first = l;
}

void kv_index_remove(struct kv_index *ix, struct kv_index_link *l)
{
    struct kv_interest *it = l->interest;
    if (l->next != NULL)
        l->next->prev = l->prev;
    if (l->prev != NULL)
        l->prev->next = l->next;
    else
        it->first = l->next;
    l->interest = NULL;
    if (it->first != NULL)
        return;
    if (it->range.range_end.len == 0) {
        HASH_DEL(ix->keys, it);
    } else {
        HASH_DEL(ix->ranges, it);
        ix->stale = true;
    }
    krd_free((void *)(uintptr_t)it->id.ptr);
    krd_free(it);
}

/* --- The tree -------------------------------------------------------------------------------- */

static bool open_ended(const struct kv_interest *it)
{
    return it->range.range_end.len == 1 && it->range.range_end.ptr[0] == 0;
}

static bool ends_after(const struct kv_interest *it, struct slice key)
{
    return open_ended(it) || slice_cmp(it->range.range_end, key) > 0;
}

static const struct kv_interest *further(const struct kv_interest *a, const struct kv_interest *b)
{
    if (a == NULL || b == NULL)
        return a == NULL ? b : a;
    return open_ended(a) || (!open_ended(b) && ends_after(a, b->range.range_end)) ? a : b;
}

static int by_start(const void *a, const void *b)
{
    const struct kv_interest *const *x = a, *const *y = b;
    return slice_cmp((*x)->range.key, (*y)->range.key);
}

static const struct kv_interest *set_ends(struct kv_index *ix, size_t lo, size_t hi)
{
    if (lo == hi)
        return NULL;
    size_t mid = lo + (hi - lo) / 2;
    const struct kv_interest *left = set_ends(ix, lo, mid), *right = set_ends(ix, mid + 1, hi);
    ix->tree[mid]->furthest = further(ix->tree[mid], further(left, right));
    return ix->tree[mid]->furthest;
}

static void make_tree(struct kv_index *ix)
{
    struct kv_interest *it, *next;
    ix->n_ranges = 0;
    krd_grow(&ix->tree, &ix->cap, HASH_COUNT(ix->ranges), sizeof ix->tree[0]);
    HASH_ITER (hh, ix->ranges, it, next)
        ix->tree[ix->n_ranges++] = it;
    if (ix->n_ranges > 1)
        qsort(ix->tree, ix->n_ranges, sizeof ix->tree[0], by_start);
    set_ends(ix, 0, ix->n_ranges);
    ix->stale = false;
}

/* --- Matching -------------------------------------------------------------------------------- */

struct match {
    struct slice key;
    void (*fn)(void *arg, struct kv_index_link *l);
    void *arg;
};

static void give(const struct match *m, const struct kv_interest *it)
{
    for (struct kv_index_link *l = it->first; l != NULL; l = l->next)
        m->fn(m->arg, l);
}

static void match_ranges(struct kv_index *ix, size_t lo, size_t hi, const struct match *m)
{
    if (lo == hi)
        return;
    size_t mid = lo + (hi - lo) / 2;
    const struct kv_interest *root = ix->tree[mid];
    if (!ends_after(root->furthest, m->key))
        return;
    match_ranges(ix, lo, mid, m);
    if (slice_cmp(root->range.key, m->key) > 0)
        return; /* it and all to its right begin later */
    if (ends_after(root, m->key))
        give(m, root);
    match_ranges(ix, mid + 1, hi, m);
}

void kv_index_match(struct kv_index *ix, struct slice key,
                    void (*fn)(void *arg, struct kv_index_link *l), void *arg)
{
    struct match m = {key, fn, arg};
    struct kv_interest *one;
    HASH_FIND(hh, ix->keys, key.ptr, key.len, one);
    if (one != NULL)
        give(&m, one);
    if (ix->stale)
        make_tree(ix);
    match_ranges(ix, 0, ix->n_ranges, &m);
}
