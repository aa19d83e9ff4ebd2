/* check.c - what can be said of a command without the state. The fronts ask before they propose;
 * applying asks again, because an entry is only as good as whoever wrote it. */
#include "base/limits.h"
#include "kv/command.pb-c.h"
#include "kv/types.h"
#include "kv/store.h"

/* etcd bounds each list of a transaction, less what its parents used. Nested lists could still
 * multiply, so all operations of one command together are bounded too: they are compared in pairs.
 */
#define OPS_TOTAL_MAX  1024
#define PATH_MAX_STEPS (2 * KRD_TXN_DEPTH_MAX + 1)

/* Where an operation stands: index in the list, branch, index in that branch's list, ... Two paths
 * that part at a branch exclude one another; all others may both be executed. */
struct path {
    uint16_t steps[PATH_MAX_STEPS];
    size_t n;
};

struct writer {
    struct kv_range range; /* a put's has no end */
    bool put;
    struct path path;
};

struct checker {
    const char *message;
    struct writer *writers;
    size_t n, cap;
    size_t ops;
};

static enum krd_status refuse(struct checker *c, enum krd_status st, const char *message)
{
    c->message = message;
    return st;
}

static struct slice bytes_of(const ProtobufCBinaryData *b)
{
    return slice_of(b->data, b->len);
}

static enum krd_status check_keys(struct checker *c, const ProtobufCBinaryData *key,
                                  const ProtobufCBinaryData *end)
{
    if (key->len == 0)
        return refuse(c, KRD_BAD_REQUEST, "key is not provided");
    if (key->len > KRD_KEY_BYTES_MAX || (end != NULL && end->len > KRD_KEY_BYTES_MAX))
        return refuse(c, KRD_TOO_LARGE, "key is too large");
    return KRD_OK;
}

static enum krd_status check_range(struct checker *c, const Etcdserverpb__RangeRequest *r)
{
    if ((unsigned)r->sort_order > ETCDSERVERPB__RANGE_REQUEST__SORT_ORDER__DESCEND ||
        (unsigned)r->sort_target > ETCDSERVERPB__RANGE_REQUEST__SORT_TARGET__VALUE)
        return refuse(c, KRD_BAD_REQUEST, "invalid sort option");
    return check_keys(c, &r->key, &r->range_end);
}

static enum krd_status check_put(struct checker *c, const Etcdserverpb__PutRequest *r)
{
    if (r->ignore_value && r->value.len != 0)
        return refuse(c, KRD_BAD_REQUEST, "value is provided");
    if (r->ignore_lease && r->lease != 0)
        return refuse(c, KRD_BAD_REQUEST, "lease is provided");
    if (r->value.len > KRD_REQUEST_BYTES_MAX)
        return refuse(c, KRD_TOO_LARGE, "value is too large");
    return check_keys(c, &r->key, NULL);
}

static enum krd_status check_delete(struct checker *c, const Etcdserverpb__DeleteRangeRequest *r)
{
    return check_keys(c, &r->key, &r->range_end);
}

/* --- Transactions --------------------------------------------------------------------------------
 */

static void note_writer(struct checker *c, const struct path *path, bool put,
                        const ProtobufCBinaryData *key, const ProtobufCBinaryData *end)
{
    krd_grow(&c->writers, &c->cap, c->n + 1, sizeof c->writers[0]);
    c->writers[c->n++] = (struct writer){
        {bytes_of(key), end != NULL ? bytes_of(end) : slice_of(NULL, 0)}, put, *path};
}

static enum krd_status check_txn(struct checker *c, const Etcdserverpb__TxnRequest *r,
                                 struct path *path, size_t ops_max, int depth);

static enum krd_status check_op(struct checker *c, const Etcdserverpb__RequestOp *op,
                                struct path *path, size_t ops_max, int depth)
{
    enum krd_status st;
    if (++c->ops > OPS_TOTAL_MAX)
        return refuse(c, KRD_BAD_REQUEST, "too many operations in txn request");
    switch (op->request_case) {
    case ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_RANGE:
        return check_range(c, op->request_range);
    case ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_PUT:
        st = check_put(c, op->request_put);
        if (st == KRD_OK)
            note_writer(c, path, true, &op->request_put->key, NULL);
        return st;
    case ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_DELETE_RANGE:
        st = check_delete(c, op->request_delete_range);
        if (st == KRD_OK)
            note_writer(c, path, false, &op->request_delete_range->key,
                        &op->request_delete_range->range_end);
        return st;
    case ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_TXN:
        return check_txn(c, op->request_txn, path, ops_max, depth + 1);
    default:
        return refuse(c, KRD_BAD_REQUEST, "key not found");
    }
}

static enum krd_status check_branch(struct checker *c, Etcdserverpb__RequestOp **ops, size_t n,
                                    struct path *path, size_t ops_max, int depth)
{
    enum krd_status st = KRD_OK;
    path->n++;
    for (size_t i = 0; i < n && st == KRD_OK; i++) {
        path->steps[path->n - 1] = (uint16_t)i;
        st = check_op(c, ops[i], path, ops_max, depth);
    }
    path->n--;
    return st;
}

static enum krd_status check_txn(struct checker *c, const Etcdserverpb__TxnRequest *r,
                                 struct path *path, size_t ops_max, int depth)
{
    size_t most = krd_max_size(r->n_compare, krd_max_size(r->n_success, r->n_failure));
    if (most > ops_max || depth > KRD_TXN_DEPTH_MAX)
        return refuse(c, KRD_BAD_REQUEST, "too many operations in txn request");
    for (size_t i = 0; i < r->n_compare; i++) {
        enum krd_status st = check_keys(c, &r->compare[i]->key, &r->compare[i]->range_end);
        if (st != KRD_OK)
            return st;
    }
    path->steps[path->n++] = 0; /* the branch */
    enum krd_status st = check_branch(c, r->success, r->n_success, path, ops_max - most, depth);
    path->steps[path->n - 1] = 1;
    if (st == KRD_OK)
        st = check_branch(c, r->failure, r->n_failure, path, ops_max - most, depth);
    path->n--;
    return st;
}

/* Steps stand branch, index, branch, index, ...: even places are branches. */
static bool exclude_one_another(const struct path *a, const struct path *b)
{
    size_t i = 0;
    while (i < a->n && i < b->n && a->steps[i] == b->steps[i])
        i++;
    return i < a->n && i < b->n && i % 2 == 0;
}

/* A key may be written once on any path: put twice, or put and deleted, is refused; deleted twice
 * is not. O(operations squared), bounded above. */
static enum krd_status check_duplicates(struct checker *c)
{
    for (size_t i = 0; i < c->n; i++) {
        const struct writer *put = &c->writers[i];
        if (!put->put)
            continue;
        for (size_t j = 0; j < c->n; j++) {
            const struct writer *other = &c->writers[j];
            if (j != i && kv_range_contains(&other->range, put->range.key) &&
                !exclude_one_another(&put->path, &other->path))
                return refuse(c, KRD_BAD_REQUEST, "duplicate key given in txn request");
        }
    }
    return KRD_OK;
}

static enum krd_status check_whole_txn(struct checker *c, const Etcdserverpb__TxnRequest *r)
{
    struct path path = {.n = 0};
    enum krd_status st = check_txn(c, r, &path, KRD_TXN_OPS_MAX, 1);
    if (st == KRD_OK)
        st = check_duplicates(c);
    krd_free(c->writers);
    return st;
}

/* --- Commands -------------------------------------------------------------------------------- */

static enum krd_status check_grant(struct checker *c, const Etcdserverpb__LeaseGrantRequest *r)
{
    if (r->ttl > KRD_LEASE_TTL_MAX_S)
        return refuse(c, KRD_BAD_REQUEST, "too large lease TTL");
    if (r->id < 0)
        return refuse(c, KRD_BAD_REQUEST, "lease ID is negative");
    return KRD_OK;
}

static enum krd_status check_alone(struct checker *c, const Etcdserverpb__InternalRaftRequest *r)
{
    int set = (r->put != NULL) + (r->delete_range != NULL) + (r->txn != NULL) +
              (r->compaction != NULL) + (r->lease_revoke != NULL) + (r->lease_renew != NULL) +
              (r->lease_expire != NULL);
    bool with_grant = r->put != NULL || r->txn != NULL;
    if (set > 1 || (set == 1 && r->lease_grant != NULL && !with_grant))
        return refuse(c, KRD_BAD_REQUEST, "more than one operation in a command");
    if (set == 0 && r->lease_grant == NULL)
        return refuse(c, KRD_BAD_REQUEST, "no known operation in a command");
    if (r->origin != 0 && r->sequence == 0)
        return refuse(c, KRD_BAD_REQUEST, "a command of an origin has no sequence");
    return KRD_OK;
}

enum krd_status kv_check(const Etcdserverpb__InternalRaftRequest *r, const char **message)
{
    struct checker c = {.message = NULL};
    enum krd_status st = check_alone(&c, r);
    if (st == KRD_OK && r->lease_grant != NULL)
        st = check_grant(&c, r->lease_grant);
    if (st == KRD_OK && r->put != NULL)
        st = check_put(&c, r->put);
    if (st == KRD_OK && r->delete_range != NULL)
        st = check_delete(&c, r->delete_range);
    if (st == KRD_OK && r->txn != NULL)
        st = check_whole_txn(&c, r->txn);
    *message = c.message;
    return st;
}
