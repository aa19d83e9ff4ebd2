/* One table per kind of object says which members it may have; everything else is 400 with the
 * path of the offender. Depth and counts are bounded here already, so that a small body cannot ask
 * for a large tree of messages. */
#include "http/txn_json.h"

#include "base/limits.h"

#include <string.h>

static Etcdserverpb__TxnRequest *read_txn(struct json_in *in, json_t *obj, unsigned depth);

struct slice txn_prefix_end(struct krd_arena *arena, struct slice *key)
{
    uint8_t *end = krd_arena_alloc(arena, key->len + 1);
    struct kv_range r = kv_range_of_prefix(*key, end);
    *key = r.key;
    return r.range_end;
}

/* "key" and, when it is true, "prefix". An empty prefix is every key; an empty key is none. */
static void read_range(struct json_in *in, json_t *obj, ProtobufCBinaryData *key,
                       ProtobufCBinaryData *range_end)
{
    struct slice k = slice_of(NULL, 0);
    bool prefix = false;
    if (!json_in_bytes(in, obj, "key", &k))
        json_in_fail(in, "\"key\" is missing");
    json_in_bool(in, obj, "prefix", &prefix);
    if (k.len == 0 && !prefix)
        json_in_fail(in, "the key is empty");
    if (prefix && in->error == NULL)
        *range_end = pb_bytes(txn_prefix_end(in->arena, &k));
    *key = pb_bytes(k);
}

static Etcdserverpb__PutRequest *read_put(struct json_in *in, json_t *obj)
{
    static const char *const names[] = {"key",   "key_base64", "value", "value_base64",
                                        "lease", "prev",       NULL};
    Etcdserverpb__PutRequest *m = krd_arena_alloc(in->arena, sizeof *m);
    etcdserverpb__put_request__init(m);
    json_in_known(in, obj, names);
    struct slice key = slice_of(NULL, 0), value = slice_of(NULL, 0);
    bool prev = false;
    if (!json_in_bytes(in, obj, "key", &key) || key.len == 0)
        json_in_fail(in, "\"key\" is missing or empty");
    if (!json_in_bytes(in, obj, "value", &value))
        json_in_fail(in, "\"value\" is missing");
    json_in_lease(in, obj, "lease", &m->lease);
    if (json_in_bool(in, obj, "prev", &prev))
        m->prev_kv = prev;
    m->key = pb_bytes(key);
    m->value = pb_bytes(value);
    return m;
}

static Etcdserverpb__RangeRequest *read_get(struct json_in *in, json_t *obj)
{
    static const char *const names[] = {"key",  "key_base64", "prefix",   "limit",
                                        "keys", "order",      "revision", NULL};
    Etcdserverpb__RangeRequest *m = krd_arena_alloc(in->arena, sizeof *m);
    etcdserverpb__range_request__init(m);
    json_in_known(in, obj, names);
    read_range(in, obj, &m->key, &m->range_end);
    json_in_i64(in, obj, "limit", 1, INT64_MAX, &m->limit);
    json_in_i64(in, obj, "revision", 1, INT64_MAX, &m->revision);
    bool keys = false;
    if (json_in_bool(in, obj, "keys", &keys))
        m->keys_only = keys;
    struct slice order;
    if (json_in_text(in, obj, "order", &order)) {
        if (slice_eq(order, slice_str("desc")))
            m->sort_order = ETCDSERVERPB__RANGE_REQUEST__SORT_ORDER__DESCEND;
        else if (!slice_eq(order, slice_str("asc")))
            json_in_fail(in, "\"order\" is asc or desc");
    }
    return m;
}

static Etcdserverpb__DeleteRangeRequest *read_delete(struct json_in *in, json_t *obj)
{
    static const char *const names[] = {"key", "key_base64", "prefix", "prev", NULL};
    Etcdserverpb__DeleteRangeRequest *m = krd_arena_alloc(in->arena, sizeof *m);
    etcdserverpb__delete_range_request__init(m);
    json_in_known(in, obj, names);
    read_range(in, obj, &m->key, &m->range_end);
    bool prev = false;
    if (json_in_bool(in, obj, "prev", &prev))
        m->prev_kv = prev;
    return m;
}

static Etcdserverpb__RequestOp *read_op(struct json_in *in, json_t *obj, unsigned depth)
{
    Etcdserverpb__RequestOp *op = krd_arena_alloc(in->arena, sizeof *op);
    etcdserverpb__request_op__init(op);
    void *iter = json_is_object(obj) ? json_object_iter(obj) : NULL;
    if (iter == NULL || json_object_size(obj) != 1) {
        json_in_fail(in, "an operation is an object with one of \"put\", \"get\", \"delete\", "
                         "\"txn\"");
        return op;
    }
    const char *name = json_object_iter_key(iter);
    json_t *args = json_object_iter_value(iter);
    if (!json_is_object(args)) {
        json_in_fail(in, "\"%.64s\" is an object", name);
        return op;
    }
    size_t mark = json_in_enter(in, name, -1);
    if (strcmp(name, "put") == 0) {
        op->request_case = ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_PUT;
        op->request_put = read_put(in, args);
    } else if (strcmp(name, "get") == 0) {
        op->request_case = ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_RANGE;
        op->request_range = read_get(in, args);
    } else if (strcmp(name, "delete") == 0) {
        op->request_case = ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_DELETE_RANGE;
        op->request_delete_range = read_delete(in, args);
    } else if (strcmp(name, "txn") == 0) {
        op->request_case = ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_TXN;
        op->request_txn = read_txn(in, args, depth + 1);
    } else {
        json_in_leave(in, mark);
        json_in_fail(in, "unknown operation \"%.64s\"", name);
        return op;
    }
    json_in_leave(in, mark);
    return op;
}

/* --- Comparisons ------------------------------------------------------------------------------ */

/* A comparison's operand: what stands under the target's name (eq), or in an object with one
 * operator there. */
static json_t *read_operator(struct json_in *in, const char *name, json_t *v,
                             Etcdserverpb__Compare__CompareResult *result)
{
    static const struct {
        const char *name;
        Etcdserverpb__Compare__CompareResult result;
    } ops[] = {{"eq", ETCDSERVERPB__COMPARE__COMPARE_RESULT__EQUAL},
               {"ne", ETCDSERVERPB__COMPARE__COMPARE_RESULT__NOT_EQUAL},
               {"lt", ETCDSERVERPB__COMPARE__COMPARE_RESULT__LESS},
               {"gt", ETCDSERVERPB__COMPARE__COMPARE_RESULT__GREATER}};
    if (!json_is_object(v))
        return v;
    void *iter = json_object_iter(v);
    for (size_t i = 0; i < KRD_ARRAY_LEN(ops) && json_object_size(v) == 1; i++) {
        if (strcmp(ops[i].name, json_object_iter_key(iter)) == 0) {
            *result = ops[i].result;
            return json_object_iter_value(iter);
        }
    }
    json_in_fail(in, "\"%s\" holds one operator: eq, ne, lt or gt", name);
    return v;
}

static Etcdserverpb__Compare *read_compare(struct json_in *in, json_t *obj)
{
    static const char *const names[] = {
        "key",     "key_base64",   "value",           "value_base64",
        "version", "mod_revision", "create_revision", "lease",
        NULL};
    Etcdserverpb__Compare *m = krd_arena_alloc(in->arena, sizeof *m);
    etcdserverpb__compare__init(m);
    if (!json_is_object(obj)) {
        json_in_fail(in, "a comparison is an object");
        return m;
    }
    json_in_known(in, obj, names);
    struct slice key = slice_of(NULL, 0), value = slice_of(NULL, 0);
    if (!json_in_bytes(in, obj, "key", &key) || key.len == 0)
        json_in_fail(in, "\"key\" is missing or empty");
    m->key = pb_bytes(key);
    if (json_object_size(obj) != 2) {
        json_in_fail(in, "a comparison has a key and one of value, version, create_revision, "
                         "mod_revision, lease");
        return m;
    }
    void *iter = json_object_iter(obj);
    if (strncmp(json_object_iter_key(iter), "key", 3) == 0)
        iter = json_object_iter_next(obj, iter);
    const char *name = json_object_iter_key(iter);
    json_t *v = read_operator(in, name, json_object_iter_value(iter), &m->result);
    if (strcmp(name, "value") == 0 || strcmp(name, "value_base64") == 0) {
        m->target = ETCDSERVERPB__COMPARE__COMPARE_TARGET__VALUE;
        m->target_union_case = ETCDSERVERPB__COMPARE__TARGET_UNION_VALUE;
        json_in_as_bytes(in, name, v, name[5] != '\0', &value);
        m->value = pb_bytes(value);
    } else if (strcmp(name, "version") == 0) {
        m->target = ETCDSERVERPB__COMPARE__COMPARE_TARGET__VERSION;
        m->target_union_case = ETCDSERVERPB__COMPARE__TARGET_UNION_VERSION;
        json_in_as_i64(in, name, v, 0, INT64_MAX, &m->version);
    } else if (strcmp(name, "create_revision") == 0) {
        m->target = ETCDSERVERPB__COMPARE__COMPARE_TARGET__CREATE;
        m->target_union_case = ETCDSERVERPB__COMPARE__TARGET_UNION_CREATE_REVISION;
        json_in_as_i64(in, name, v, 0, INT64_MAX, &m->create_revision);
    } else if (strcmp(name, "mod_revision") == 0) {
        m->target = ETCDSERVERPB__COMPARE__COMPARE_TARGET__MOD;
        m->target_union_case = ETCDSERVERPB__COMPARE__TARGET_UNION_MOD_REVISION;
        json_in_as_i64(in, name, v, 0, INT64_MAX, &m->mod_revision);
    } else {
        /* "" is no lease, as a lease's absence in answers. */
        m->target = ETCDSERVERPB__COMPARE__COMPARE_TARGET__LEASE;
        m->target_union_case = ETCDSERVERPB__COMPARE__TARGET_UNION_LEASE;
        if (!json_is_string(v) || json_string_length(v) > 0)
            json_in_as_lease(in, name, v, &m->lease);
    }
    return m;
}

/* --- The whole -------------------------------------------------------------------------------- */

static json_t *read_array(struct json_in *in, json_t *obj, const char *name, size_t *n)
{
    json_t *v = json_object_get(obj, name);
    *n = 0;
    if (v == NULL)
        return NULL;
    if (!json_is_array(v)) {
        json_in_fail(in, "\"%s\" is an array", name);
        return NULL;
    }
    if (json_array_size(v) > KRD_TXN_OPS_MAX) {
        json_in_fail(in, "\"%s\" has more than %d elements", name, KRD_TXN_OPS_MAX);
        return NULL;
    }
    *n = json_array_size(v);
    return v;
}

static Etcdserverpb__RequestOp **read_ops(struct json_in *in, json_t *obj, const char *name,
                                          unsigned depth, size_t *n)
{
    json_t *v = read_array(in, obj, name, n);
    Etcdserverpb__RequestOp **ops = krd_arena_alloc(in->arena, *n * sizeof *ops);
    for (size_t i = 0; i < *n; i++) {
        size_t mark = json_in_enter(in, name, (long)i);
        ops[i] = read_op(in, json_array_get(v, i), depth);
        json_in_leave(in, mark);
    }
    return ops;
}

static Etcdserverpb__TxnRequest *read_txn(struct json_in *in, json_t *obj, unsigned depth)
{
    static const char *const names[] = {"if", "then", "else", NULL};
    Etcdserverpb__TxnRequest *m = krd_arena_alloc(in->arena, sizeof *m);
    etcdserverpb__txn_request__init(m);
    if (depth > KRD_TXN_DEPTH_MAX) {
        json_in_fail(in, "transactions are nested deeper than %d", KRD_TXN_DEPTH_MAX);
        return m;
    }
    json_in_known(in, obj, names);
    json_t *compares = read_array(in, obj, "if", &m->n_compare);
    m->compare = krd_arena_alloc(in->arena, m->n_compare * sizeof *m->compare);
    for (size_t i = 0; i < m->n_compare; i++) {
        size_t mark = json_in_enter(in, "if", (long)i);
        m->compare[i] = read_compare(in, json_array_get(compares, i));
        json_in_leave(in, mark);
    }
    m->success = read_ops(in, obj, "then", depth, &m->n_success);
    m->failure = read_ops(in, obj, "else", depth, &m->n_failure);
    return m;
}

Etcdserverpb__TxnRequest *txn_json_read(struct json_in *in, json_t *obj)
{
    Etcdserverpb__TxnRequest *m = read_txn(in, obj, 1);
    return in->error == NULL ? m : NULL;
}

/* --- Answers ---------------------------------------------------------------------------------- */

void jout_pair_members(struct jout *j, const struct kv_pair *kv, bool keys_only)
{
    jout_bytes(j, "key", kv->key);
    if (!keys_only)
        jout_bytes(j, "value", kv->value);
    jout_i64(j, "create_revision", kv->create_revision);
    jout_i64(j, "mod_revision", kv->mod_revision);
    jout_i64(j, "version", kv->version);
    if (kv->lease != 0)
        jout_hex(j, "lease", (uint64_t)kv->lease);
}

void jout_pair(struct jout *j, const char *name, const struct kv_pair *kv, bool keys_only)
{
    jout_object(j, name);
    jout_pair_members(j, kv, keys_only);
    jout_end_object(j);
}

void jout_put_result(struct jout *j, const struct kv_op_result *op)
{
    const struct kv_pair *kv = &op->u.put.kv;
    jout_bool(j, "created", kv->version == 1);
    jout_i64(j, "create_revision", kv->create_revision);
    jout_i64(j, "mod_revision", kv->mod_revision);
    jout_i64(j, "version", kv->version);
    if (kv->lease != 0)
        jout_hex(j, "lease", (uint64_t)kv->lease);
    if (op->u.put.has_prev)
        jout_pair(j, "prev", &op->u.put.prev, false);
}

static void write_pairs(struct jout *j, const char *name, const struct kv_pair *kvs, size_t n,
                        bool keys_only)
{
    jout_array(j, name);
    for (size_t i = 0; i < n; i++)
        jout_pair(j, NULL, &kvs[i], keys_only);
    jout_end_array(j);
}

static void write_op(struct jout *j, const Etcdserverpb__RequestOp *m,
                     const struct kv_op_result *op)
{
    static const char *const names[] = {"get", "put", "delete", "txn"};
    jout_object(j, NULL);
    jout_object(j, names[op->type]);
    switch (op->type) {
    case KV_OP_RANGE:
        write_pairs(j, "kvs", op->u.range.kvs, op->u.range.n, m->request_range->keys_only);
        jout_i64(j, "count", op->u.range.count);
        jout_bool(j, "more", op->u.range.more);
        break;
    case KV_OP_PUT:
        jout_put_result(j, op);
        break;
    case KV_OP_DELETE:
        jout_i64(j, "deleted", op->u.del.deleted);
        if (m->request_delete_range->prev_kv)
            write_pairs(j, "prev", op->u.del.prev, op->u.del.n_prev, false);
        break;
    case KV_OP_TXN:
        txn_json_write(j, m->request_txn, op);
        break;
    }
    jout_end_object(j);
    jout_end_object(j);
}

void txn_json_write(struct jout *j, const Etcdserverpb__TxnRequest *m,
                    const struct kv_op_result *op)
{
    Etcdserverpb__RequestOp **ops = op->u.txn.succeeded ? m->success : m->failure;
    KRD_ASSERT(op->u.txn.n == (op->u.txn.succeeded ? m->n_success : m->n_failure));
    jout_bool(j, "succeeded", op->u.txn.succeeded);
    if (!op->u.txn.succeeded && op->u.txn.failed_compare >= 0)
        jout_i64(j, "failed_compare", op->u.txn.failed_compare);
    jout_array(j, "results");
    for (size_t i = 0; i < op->u.txn.n; i++)
        write_op(j, ops[i], &op->u.txn.results[i]);
    jout_end_array(j);
}
