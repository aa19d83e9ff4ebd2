/* /v1/kv: one key's bytes, lists of keys, a key's history.
 *
 * GET KEY: barrier, one point read, the value straight out of the arena. GET ?prefix: a cursor,
 * read and sent piece by piece: the next piece is read when the client has taken the one before,
 * one piece a turn of the loop. PUT, DELETE: one command; with preconditions a transaction of one
 * comparison, whose other branch fetches the key's present state for the 412. */
#include "http/front.h"
#include "http/txn_json.h"

#include "base/limits.h"

#define PIECE_BYTES      (64u * 1024)
#define COUNT_BEYOND_MAX 10000 /* keys behind the limit that a list still counts */
#define COUNT_SLICE      1000  /* of them in one turn */
#define HISTORY_DEFAULT  100

/* --- Reading one key -------------------------------------------------------------------------- */

struct get {
    int64_t revision;
    size_t limit; /* of a history */
};

static void reply_pair(struct http_req *r, const struct kv_pair *kv)
{
    if (r->has_match && !http_etags_hold(&r->match, kv->mod_revision)) {
        http_header_pair(r, kv);
        http_fail_extra(r, KRD_PRECONDITION_FAILED, NULL, "mod_revision", kv->mod_revision);
        return;
    }
    http_header_pair(r, kv);
    http_header(r, "Cache-Control", slice_str("no-cache"));
    if (r->has_none_match && http_etags_hold(&r->none_match, kv->mod_revision))
        http_reply(r, 304, NULL, slice_of(NULL, 0));
    else
        http_reply(r, 200, "application/octet-stream", kv->value);
}

static void read_key(struct http_req *r)
{
    struct get *g = r->state;
    struct kv_pair kv;
    enum krd_status st = node_get(r->loop->node, r->key, g->revision, &r->arena, &kv, &r->revision);
    if (st == KRD_OK) {
        r->big = r->big || kv.value.len > 16 * 1024;
        reply_pair(r, &kv);
    } else if (st == KRD_NOT_FOUND && r->has_match) {
        http_fail(r, KRD_PRECONDITION_FAILED, NULL);
    } else if (st == KRD_NOT_FOUND) {
        http_fail_absent(r, r->key);
    } else {
        http_fail(r, st, NULL);
    }
}

static void read_history(struct http_req *r)
{
    struct get *g = r->state;
    struct kv_pair *kvs = NULL;
    size_t n = 0;
    r->big = true;
    /* One more than asked for tells whether there is more. */
    enum krd_status st =
        node_history(r->loop->node, r->key, g->limit + 1, &r->arena, &kvs, &n, &r->revision);
    if (st == KRD_NOT_FOUND || (st == KRD_OK && n == 0)) {
        http_fail_absent(r, r->key);
        return;
    }
    if (st != KRD_OK) {
        http_fail(r, st, NULL);
        return;
    }
    size_t shown = krd_min_size(n, g->limit);
    struct jout j = http_json(r);
    jout_object(&j, NULL);
    jout_i64(&j, "revision", r->revision);
    jout_array(&j, "kvs");
    for (size_t i = 0; i < shown; i++) {
        if (kvs[i].version != 0) {
            jout_pair(&j, NULL, &kvs[i], false);
            continue;
        }
        jout_object(&j, NULL);
        jout_bytes(&j, "key", kvs[i].key);
        jout_bool(&j, "deleted", true);
        jout_i64(&j, "mod_revision", kvs[i].mod_revision);
        jout_end_object(&j);
    }
    jout_end_array(&j);
    jout_u64(&j, "count", shown);
    jout_bool(&j, "more", n > shown);
    jout_end_object(&j);
    http_reply_json(r, 200);
}

/* --- Lists ------------------------------------------------------------------------------------ */

enum list_phase { LIST_PAIRS, LIST_COUNT, LIST_DONE };

struct list {
    struct kv_query q;
    struct kv_cursor *cursor;
    struct jout j;
    enum list_phase phase;
    bool keys_only, empty; /* empty: the range is, without looking */
    int64_t limit;         /* INT64_MAX: none */
    int64_t shown, beyond; /* keys written; keys seen behind the limit */
    bool uncounted;        /* there are more than we count */
};

static void on_list_dispose(struct http_req *r)
{
    struct list *s = r->state;
    if (s->cursor != NULL)
        node_cursor_close(s->cursor);
}

static void list_pairs(struct http_req *r, struct list *s)
{
    struct kv_pair kv;
    while (r->out.len < PIECE_BYTES) {
        if (s->empty || !node_cursor_next(s->cursor, &kv)) {
            s->phase = LIST_DONE;
            return;
        }
        if (s->shown == s->limit) {
            s->beyond = 1;
            s->phase = LIST_COUNT;
            return;
        }
        jout_pair(&s->j, NULL, &kv, s->keys_only);
        s->shown++;
    }
}

/* Counting what the limit cut off is bounded: nobody who turns pages over a large range should pay
 * for all of it on each page. Beyond the bound "count" is left out. */
static void list_count(struct list *s)
{
    struct kv_pair kv;
    for (int i = 0; i < COUNT_SLICE; i++) {
        if (!node_cursor_next(s->cursor, &kv)) {
            s->phase = LIST_DONE;
            return;
        }
        if (++s->beyond > COUNT_BEYOND_MAX) {
            s->uncounted = true;
            s->phase = LIST_DONE;
            return;
        }
    }
}

static void list_end(struct list *s)
{
    jout_end_array(&s->j);
    if (!s->uncounted)
        jout_i64(&s->j, "count", s->shown + s->beyond);
    jout_bool(&s->j, "more", s->beyond > 0);
    jout_end_object(&s->j);
}

/* One piece. */
static void on_list_turn(struct http_req *r)
{
    struct list *s = r->state;
    if (s->phase == LIST_PAIRS)
        list_pairs(r, s);
    else if (s->phase == LIST_COUNT)
        list_count(s);
    if (s->phase == LIST_DONE)
        list_end(s);
    if (s->phase == LIST_DONE && !r->replied) {
        http_reply_json(r, 200); /* it all fitted in one piece: with its length */
        return;
    }
    if (s->phase == LIST_DONE)
        krd_buf_put_u8(&r->out, '\n');
    if (s->phase != LIST_DONE && r->out.len < PIECE_BYTES) {
        http_next_turn(r);
        return;
    }
    if (!r->replied)
        http_stream_begin(r, "application/json");
    http_stream_send(r, krd_buf_slice(&r->out), s->phase == LIST_DONE);
}

static void on_list_drained(struct http_req *r)
{
    r->out.len = 0;
    http_next_turn(r);
}

static void read_list(struct http_req *r)
{
    struct list *s = r->state;
    if (!s->empty) {
        enum krd_status st = node_cursor_open(r->loop->node, &s->q, &s->cursor);
        if (st != KRD_OK) {
            http_fail(r, st, NULL);
            return;
        }
        r->revision = node_cursor_revision(s->cursor);
    } else {
        r->revision = node_revision(r->loop->node);
    }
    if (r->method == HTTP_HEAD) {
        http_reply(r, 200, "application/json", slice_of(NULL, 0));
        return;
    }
    s->j = http_json(r);
    jout_object(&s->j, NULL);
    jout_i64(&s->j, "revision", r->revision);
    jout_array(&s->j, "kvs");
    r->on_turn = on_list_turn;
    r->on_drained = on_list_drained;
    on_list_turn(r);
}

/* after=KEY: the range begins (or, descending, ends) right behind it. */
static void list_after(struct http_req *r, struct list *s, struct slice after)
{
    struct kv_range *range = &s->q.range;
    bool open_end = range->range_end.len == 1 && range->range_end.ptr[0] == 0;
    if (s->q.descending) {
        if (slice_cmp(after, range->key) <= 0)
            s->empty = true;
        else if (open_end || slice_cmp(after, range->range_end) < 0)
            range->range_end = after;
        return;
    }
    if (slice_cmp(after, range->key) < 0)
        return;
    uint8_t *next = krd_arena_alloc(&r->arena, after.len + 1);
    memcpy(next, after.ptr, after.len);
    next[after.len] = 0;
    range->key = slice_of(next, after.len + 1);
    if (!open_end && slice_cmp(range->key, range->range_end) >= 0)
        s->empty = true;
}

static void get_list(struct http_req *r)
{
    static const char *const orders[] = {"asc", "desc", NULL};
    struct list *s = krd_arena_zalloc(&r->arena, sizeof *s);
    struct slice after;
    unsigned order = 0;
    uint8_t *end = krd_arena_alloc(&r->arena, r->key.len + 1);
    s->q.range = kv_range_of_prefix(r->key, end);
    s->limit = INT64_MAX;
    http_query_i64(&r->query, "limit", 1, INT64_MAX, &s->limit);
    http_query_i64(&r->query, "revision", 1, INT64_MAX, &s->q.revision);
    http_query_word(&r->query, "order", orders, &order);
    s->q.descending = order == 1;
    s->keys_only = s->q.keys_only = http_query_flag(&r->query, "keys");
    if (http_query_bytes(&r->query, "after", &after)) {
        if (after.len == 0)
            http_query_fail(&r->query, "query member \"after\" is empty");
        else
            list_after(r, s, after);
    }
    if (r->if_match.ptr != NULL || r->if_none_match.ptr != NULL)
        http_query_fail(&r->query, "If-Match and If-None-Match are for single keys");
    if (!http_query_done(r))
        return;
    r->state = s;
    r->on_dispose = on_list_dispose;
    http_read(r, read_list);
}

static void get_kv(struct http_req *r)
{
    http_read_options(r);
    if (http_query_flag(&r->query, "prefix")) {
        get_list(r);
        return;
    }
    struct get *g = krd_arena_zalloc(&r->arena, sizeof *g);
    bool history = http_query_flag(&r->query, "history");
    int64_t limit = HISTORY_DEFAULT;
    if (history)
        http_query_i64(&r->query, "limit", 1, 1000 * 1000, &limit);
    else
        http_query_i64(&r->query, "revision", 1, INT64_MAX, &g->revision);
    g->limit = (size_t)limit;
    if (r->key.len == 0)
        http_query_fail(&r->query, "the key is empty");
    if (!http_query_done(r) || !http_conditions(r))
        return;
    r->state = g;
    http_read(r, history ? read_history : read_key);
}

/* --- Writes ----------------------------------------------------------------------------------- */

/* A write of one key that may stand under a condition. The branches live in the caller's frame:
 * the command is encoded before http_propose returns. */
struct conditional {
    Etcdserverpb__TxnRequest txn;
    Etcdserverpb__Compare compare[2];
    Etcdserverpb__Compare *compares[2];
    Etcdserverpb__RequestOp op, look;
    Etcdserverpb__RequestOp *ops[1], *looks[1];
    Etcdserverpb__RangeRequest range;
};

static void add_compare(struct http_req *r, struct conditional *c, const struct http_etags *t,
                        bool must_match)
{
    Etcdserverpb__Compare *m = &c->compare[c->txn.n_compare];
    etcdserverpb__compare__init(m);
    m->key = pb_bytes(r->key);
    if (t->any) { /* version 0: the key does not exist */
        m->target = ETCDSERVERPB__COMPARE__COMPARE_TARGET__VERSION;
        m->target_union_case = ETCDSERVERPB__COMPARE__TARGET_UNION_VERSION;
        m->version = 0;
        m->result = must_match ? ETCDSERVERPB__COMPARE__COMPARE_RESULT__GREATER
                               : ETCDSERVERPB__COMPARE__COMPARE_RESULT__EQUAL;
    } else {
        m->target = ETCDSERVERPB__COMPARE__COMPARE_TARGET__MOD;
        m->target_union_case = ETCDSERVERPB__COMPARE__TARGET_UNION_MOD_REVISION;
        m->mod_revision = t->revisions[0];
        m->result = must_match ? ETCDSERVERPB__COMPARE__COMPARE_RESULT__EQUAL
                               : ETCDSERVERPB__COMPARE__COMPARE_RESULT__NOT_EQUAL;
    }
    c->compares[c->txn.n_compare++] = m;
}

static bool is_conditional(const struct http_req *r)
{
    return r->has_match || r->has_none_match;
}

/* Wraps c->op, which the caller has filled in. */
static void make_conditional(struct http_req *r, struct conditional *c,
                             Etcdserverpb__InternalRaftRequest *cmd)
{
    etcdserverpb__txn_request__init(&c->txn);
    c->txn.compare = c->compares;
    if (r->has_match)
        add_compare(r, c, &r->match, true);
    if (r->has_none_match)
        add_compare(r, c, &r->none_match, false);
    c->ops[0] = &c->op;
    c->txn.n_success = 1;
    c->txn.success = c->ops;
    etcdserverpb__range_request__init(&c->range);
    c->range.key = pb_bytes(r->key);
    c->range.keys_only = 1;
    etcdserverpb__request_op__init(&c->look);
    c->look.request_case = ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_RANGE;
    c->look.request_range = &c->range;
    c->looks[0] = &c->look;
    c->txn.n_failure = 1;
    c->txn.failure = c->looks;
    cmd->txn = &c->txn;
}

static void reply_not_held(struct http_req *r, const struct kv_op_result *op)
{
    KRD_ASSERT(op->u.txn.n == 1 && op->u.txn.results[0].type == KV_OP_RANGE);
    const struct kv_op_result *look = &op->u.txn.results[0];
    if (look->u.range.n == 0) {
        http_fail(r, KRD_PRECONDITION_FAILED, "a precondition does not hold: no such key");
        return;
    }
    http_header_pair(r, &look->u.range.kvs[0]);
    http_fail_extra(r, KRD_PRECONDITION_FAILED, NULL, "mod_revision",
                    look->u.range.kvs[0].mod_revision);
}

/* What the write itself came to, or NULL after an answer was given. */
static const struct kv_op_result *op_of(struct http_req *r, enum krd_status st,
                                        const struct kv_result *result)
{
    if (st != KRD_OK) {
        http_fail(r, st, NULL);
        return NULL;
    }
    r->revision = result->revision;
    if (result->status != KRD_OK) {
        http_fail(r, result->status, result->message);
        return NULL;
    }
    KRD_ASSERT(result->has_op);
    if (result->op.type != KV_OP_TXN)
        return &result->op;
    if (!result->op.u.txn.succeeded) {
        reply_not_held(r, &result->op);
        return NULL;
    }
    KRD_ASSERT(result->op.u.txn.n == 1);
    return &result->op.u.txn.results[0];
}

static void on_put(struct http_req *r, enum krd_status st, struct kv_result *result)
{
    const struct kv_op_result *op = op_of(r, st, result);
    if (op == NULL)
        return;
    KRD_ASSERT(op->type == KV_OP_PUT);
    http_header_pair(r, &op->u.put.kv);
    struct jout j = http_json(r);
    jout_object(&j, NULL);
    jout_i64(&j, "revision", result->revision);
    jout_put_result(&j, op);
    jout_end_object(&j);
    http_reply_json(r, op->u.put.kv.version == 1 ? 201 : 200);
}

static void on_delete(struct http_req *r, enum krd_status st, struct kv_result *result)
{
    const struct kv_op_result *op = op_of(r, st, result);
    bool *prefix = r->state;
    if (op == NULL)
        return;
    KRD_ASSERT(op->type == KV_OP_DELETE);
    if (!*prefix && op->u.del.deleted == 0) {
        http_fail_absent(r, r->key);
        return;
    }
    struct jout j = http_json(r);
    jout_object(&j, NULL);
    jout_i64(&j, "revision", result->revision);
    jout_i64(&j, "deleted", op->u.del.deleted);
    if (!*prefix && op->u.del.n_prev == 1)
        jout_pair(&j, "prev", &op->u.del.prev[0], false);
    if (*prefix && op->u.del.n_prev > 0) {
        jout_array(&j, "prev");
        for (size_t i = 0; i < op->u.del.n_prev; i++)
            jout_pair(&j, NULL, &op->u.del.prev[i], false);
        jout_end_array(&j);
    }
    jout_end_object(&j);
    http_reply_json(r, 200);
}

/* One comparison holds one revision: a list of them would be an "or", which a transaction has not.
 */
static bool write_conditions(struct http_req *r)
{
    if (!http_conditions(r))
        return false;
    if ((r->has_match && r->match.n > 1) || (r->has_none_match && r->none_match.n > 1)) {
        http_fail(r, KRD_BAD_REQUEST, "a write takes one entity tag in If-Match or If-None-Match");
        return false;
    }
    return true;
}

static void put_kv(struct http_req *r)
{
    Etcdserverpb__InternalRaftRequest cmd = ETCDSERVERPB__INTERNAL_RAFT_REQUEST__INIT;
    Etcdserverpb__LeaseGrantRequest grant = ETCDSERVERPB__LEASE_GRANT_REQUEST__INIT;
    Etcdserverpb__PutRequest put = ETCDSERVERPB__PUT_REQUEST__INIT;
    struct conditional c = {0};
    bool lease = http_query_lease(&r->query, "lease", &put.lease);
    bool ttl = http_query_i64(&r->query, "ttl", 1, KRD_LEASE_TTL_MAX_S, &grant.ttl);
    put.prev_kv = http_query_flag(&r->query, "prev");
    if (lease && ttl)
        http_query_fail(&r->query, "lease and ttl exclude one another");
    if (r->key.len == 0)
        http_query_fail(&r->query, "the key is empty");
    if (!http_query_done(r) || !write_conditions(r))
        return;
    put.key = pb_bytes(r->key);
    put.value = pb_bytes(http_body(r));
    if (ttl) {
        cmd.lease_grant = &grant;
        put.lease = -1; /* the lease granted beside it */
    }
    if (is_conditional(r)) {
        etcdserverpb__request_op__init(&c.op);
        c.op.request_case = ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_PUT;
        c.op.request_put = &put;
        make_conditional(r, &c, &cmd);
    } else {
        cmd.put = &put;
    }
    http_propose(r, &cmd, on_put);
}

static void delete_kv(struct http_req *r)
{
    Etcdserverpb__InternalRaftRequest cmd = ETCDSERVERPB__INTERNAL_RAFT_REQUEST__INIT;
    Etcdserverpb__DeleteRangeRequest del = ETCDSERVERPB__DELETE_RANGE_REQUEST__INIT;
    struct conditional c = {0};
    bool *prefix = krd_arena_alloc(&r->arena, sizeof *prefix);
    *prefix = http_query_flag(&r->query, "prefix");
    del.prev_kv = http_query_flag(&r->query, "prev");
    if (r->key.len == 0 && !*prefix)
        http_query_fail(&r->query, "the key is empty");
    if (*prefix && (r->if_match.ptr != NULL || r->if_none_match.ptr != NULL))
        http_query_fail(&r->query, "If-Match and If-None-Match are for single keys");
    if (!http_query_done(r) || !write_conditions(r))
        return;
    r->state = prefix;
    struct slice key = r->key;
    if (*prefix)
        del.range_end = pb_bytes(txn_prefix_end(&r->arena, &key));
    del.key = pb_bytes(key);
    if (is_conditional(r)) {
        etcdserverpb__request_op__init(&c.op);
        c.op.request_case = ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_DELETE_RANGE;
        c.op.request_delete_range = &del;
        make_conditional(r, &c, &cmd);
    } else {
        cmd.delete_range = &del;
    }
    http_propose(r, &cmd, on_delete);
}

void http_kv(struct http_req *r)
{
    http_encoding(r);
    if (r->method == HTTP_PUT)
        put_kv(r);
    else if (r->method == HTTP_DELETE)
        delete_kv(r);
    else
        get_kv(r);
}
