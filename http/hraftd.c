/* hraftd's own paths, with its answers: clients of that demo work unchanged. What differs: any
 * node takes every call, reads are linearizable, several pairs in one POST change in one revision,
 * keys may hold slashes, and errors have the contract's JSON instead of an empty body. */
#include "http/front.h"
#include "http/json_in.h"
#include "http/txn_json.h"

static void on_write(struct http_req *r, enum krd_status st, struct kv_result *result)
{
    if (st == KRD_OK)
        st = result->status;
    if (st != KRD_OK) {
        http_fail(r, st, result != NULL ? result->message : NULL);
        return;
    }
    r->revision = result->revision;
    http_reply(r, 200, NULL, slice_of(NULL, 0)); /* a missing key is no error when deleting */
}

static void read_pairs(struct json_in *in, json_t *root, Etcdserverpb__TxnRequest *txn)
{
    size_t n = json_object_size(root);
    Etcdserverpb__RequestOp *ops = krd_arena_alloc(in->arena, n * sizeof *ops);
    Etcdserverpb__PutRequest *puts = krd_arena_alloc(in->arena, n * sizeof *puts);
    txn->success = krd_arena_alloc(in->arena, n * sizeof *txn->success);
    const char *name;
    json_t *value;
    size_t i = 0;
    json_object_foreach(root, name, value)
    {
        if (name[0] == '\0' || !json_is_string(value)) {
            json_in_fail(in, name[0] == '\0' ? "a key is empty" : "\"%.64s\" is not a string",
                         name);
            return;
        }
        etcdserverpb__put_request__init(&puts[i]);
        puts[i].key = pb_bytes(slice_str(name));
        puts[i].value = pb_bytes(slice_of(json_string_value(value), json_string_length(value)));
        etcdserverpb__request_op__init(&ops[i]);
        ops[i].request_case = ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_PUT;
        ops[i].request_put = &puts[i];
        txn->success[i] = &ops[i];
        i++;
    }
    txn->n_success = i;
}

void http_hraftd_keys(struct http_req *r)
{
    Etcdserverpb__InternalRaftRequest cmd = ETCDSERVERPB__INTERNAL_RAFT_REQUEST__INIT;
    Etcdserverpb__TxnRequest txn = ETCDSERVERPB__TXN_REQUEST__INIT;
    struct json_in in;
    if (!http_query_done(r))
        return;
    json_t *root = json_in_open(&in, http_body(r), &r->arena);
    if (root != NULL)
        read_pairs(&in, root, &txn);
    if (txn.n_success == 1)
        cmd.put = txn.success[0]->request_put;
    else
        cmd.txn = &txn;
    if (in.error != NULL)
        http_fail(r, KRD_BAD_REQUEST, in.error);
    else if (txn.n_success == 0)
        http_reply(r, 200, NULL, slice_of(NULL, 0));
    else
        http_propose(r, &cmd, on_write);
    json_in_close(&in);
}

static void read_key(struct http_req *r)
{
    struct kv_pair kv = {.value = slice_of(NULL, 0)};
    enum krd_status st = node_get(r->loop->node, r->key, 0, &r->arena, &kv, &r->revision);
    if (st != KRD_OK && st != KRD_NOT_FOUND) {
        http_fail(r, st, NULL);
        return;
    }
    r->big = r->big || kv.value.len > 16 * 1024;
    struct jout j = http_json(r);
    jout_object(&j, NULL);
    jout_text_member(&j, r->key, st == KRD_OK ? kv.value : slice_of(NULL, 0));
    jout_end_object(&j);
    http_reply(r, 200, "application/json", krd_buf_slice(&r->out));
}

void http_hraftd_key(struct http_req *r)
{
    Etcdserverpb__InternalRaftRequest cmd = ETCDSERVERPB__INTERNAL_RAFT_REQUEST__INIT;
    Etcdserverpb__DeleteRangeRequest del = ETCDSERVERPB__DELETE_RANGE_REQUEST__INIT;
    if (r->method != HTTP_DELETE)
        http_read_options(r);
    if (r->key.len == 0)
        http_query_fail(&r->query, "the key is empty");
    if (!http_query_done(r))
        return;
    if (r->method != HTTP_DELETE) {
        http_read(r, read_key);
        return;
    }
    del.key = pb_bytes(r->key);
    cmd.delete_range = &del;
    http_propose(r, &cmd, on_write);
}

static void put_node(struct jout *j, const char *name, const struct node_member *m)
{
    jout_object(j, name);
    jout_str(j, "id", m != NULL ? m->name : "");
    jout_str(j, "address", m != NULL ? m->raft_address : "");
    jout_end_object(j);
}

void http_hraftd_status(struct http_req *r)
{
    struct node_status s;
    const struct node_member *me = NULL, *leader = NULL;
    if (!http_query_done(r))
        return;
    node_get_status(r->loop->node, &s);
    for (uint32_t i = 0; i < s.n_members; i++) {
        if (s.members[i].is_self)
            me = &s.members[i];
        if (s.members[i].is_leader)
            leader = &s.members[i];
    }
    struct jout j = http_json(r);
    jout_object(&j, NULL);
    put_node(&j, "me", me);
    put_node(&j, "leader", leader);
    jout_array(&j, "followers");
    for (uint32_t i = 0; i < s.n_members; i++) {
        if (!s.members[i].is_leader)
            put_node(&j, NULL, &s.members[i]);
    }
    jout_end_array(&j);
    jout_end_object(&j);
    node_status_deinit(&s);
    http_reply(r, 200, "application/json", krd_buf_slice(&r->out));
}
