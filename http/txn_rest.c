/* /v1/txn and /v1/compact. */
#include "http/front.h"
#include "http/txn_json.h"

/* False and answered when the command failed. */
static bool result_ok(struct http_req *r, enum krd_status st, const struct kv_result *result)
{
    if (st != KRD_OK) {
        http_fail(r, st, NULL);
        return false;
    }
    r->revision = result->revision;
    if (result->status != KRD_OK)
        http_fail(r, result->status, result->message);
    return result->status == KRD_OK;
}

static void on_txn(struct http_req *r, enum krd_status st, struct kv_result *result)
{
    if (!result_ok(r, st, result))
        return;
    KRD_ASSERT(result->has_op && result->op.type == KV_OP_TXN);
    struct jout j = http_json(r);
    jout_object(&j, NULL);
    jout_i64(&j, "revision", result->revision);
    txn_json_write(&j, r->state, &result->op);
    jout_end_object(&j);
    http_reply_json(r, 200);
}

void http_txn(struct http_req *r)
{
    Etcdserverpb__InternalRaftRequest cmd = ETCDSERVERPB__INTERNAL_RAFT_REQUEST__INIT;
    struct json_in in;
    http_encoding(r);
    if (!http_query_done(r))
        return;
    json_t *root = json_in_open(&in, http_body(r), &r->arena);
    if (root != NULL)
        cmd.txn = txn_json_read(&in, root);
    r->state = cmd.txn; /* its shape outlives the tree, its bytes do not */
    if (in.error != NULL)
        http_fail(r, KRD_BAD_REQUEST, in.error);
    else
        http_propose(r, &cmd, on_txn);
    json_in_close(&in);
}

static void on_compact(struct http_req *r, enum krd_status st, struct kv_result *result)
{
    int64_t *revision = r->state;
    if (!result_ok(r, st, result))
        return;
    struct jout j = http_json(r);
    jout_object(&j, NULL);
    jout_i64(&j, "revision", result->revision);
    jout_i64(&j, "compacted_revision", *revision);
    jout_end_object(&j);
    http_reply_json(r, 200);
}

void http_compact(struct http_req *r)
{
    static const char *const names[] = {"revision", NULL};
    Etcdserverpb__InternalRaftRequest cmd = ETCDSERVERPB__INTERNAL_RAFT_REQUEST__INIT;
    Etcdserverpb__CompactionRequest m = ETCDSERVERPB__COMPACTION_REQUEST__INIT;
    struct json_in in;
    if (!http_query_done(r))
        return;
    json_t *root = json_in_open(&in, http_body(r), &r->arena);
    if (root != NULL) {
        json_in_known(&in, root, names);
        if (!json_in_i64(&in, root, "revision", 1, INT64_MAX, &m.revision))
            json_in_fail(&in, "\"revision\" is missing");
    }
    json_in_close(&in);
    if (in.error != NULL) {
        http_fail(r, KRD_BAD_REQUEST, in.error);
        return;
    }
    int64_t *revision = krd_arena_alloc(&r->arena, sizeof *revision);
    *revision = m.revision;
    r->state = revision;
    cmd.compaction = &m;
    http_propose(r, &cmd, on_compact);
}
