/* /v1/lease: grant, renew, look, end. Ids are 16 hex digits wherever they are seen. */
#include "http/front.h"
#include "http/json_in.h"

#include "base/limits.h"

static bool take_id(struct http_req *r, int64_t *id)
{
    if (http_parse_lease(r->key, id))
        return true;
    http_fail(r, KRD_BAD_REQUEST, "a lease id is 16 hex digits");
    return false;
}

/* --- Grant, renew, end ------------------------------------------------------------------------ */

static void on_grant(struct http_req *r, enum krd_status st, struct kv_result *result)
{
    if (st == KRD_OK && result->status != KRD_OK) {
        http_fail(r, result->status, result->message);
    } else if (st != KRD_OK) {
        http_fail(r, st, NULL);
    } else {
        r->revision = result->revision;
        struct jout j = http_json(r);
        jout_object(&j, NULL);
        jout_hex(&j, "id", (uint64_t)result->lease_id);
        jout_i64(&j, "ttl", result->lease_ttl);
        jout_end_object(&j);
        http_reply_json(r, 200);
    }
}

static void grant(struct http_req *r)
{
    static const char *const names[] = {"ttl", "id", NULL};
    Etcdserverpb__InternalRaftRequest cmd = ETCDSERVERPB__INTERNAL_RAFT_REQUEST__INIT;
    Etcdserverpb__LeaseGrantRequest m = ETCDSERVERPB__LEASE_GRANT_REQUEST__INIT;
    struct json_in in;
    if (!http_query_done(r))
        return;
    json_t *root = json_in_open(&in, http_body(r), &r->arena);
    if (root != NULL) {
        json_in_known(&in, root, names);
        json_in_lease(&in, root, "id", &m.id);
        if (!json_in_i64(&in, root, "ttl", 1, KRD_LEASE_TTL_MAX_S, &m.ttl))
            json_in_fail(&in, "\"ttl\" is missing: a number of seconds");
    }
    json_in_close(&in);
    if (in.error != NULL) {
        http_fail(r, KRD_BAD_REQUEST, in.error);
        return;
    }
    cmd.lease_grant = &m;
    http_propose(r, &cmd, on_grant);
}

static void on_keep_alive(struct http_req *r, enum krd_status st, struct kv_result *result)
{
    if (st == KRD_OK)
        st = result->status;
    if (st == KRD_OK && result->lease_ttl <= 0)
        st = KRD_LEASE_NOT_FOUND;
    if (st != KRD_OK) {
        http_fail(r, st, NULL);
        return;
    }
    struct jout j = http_json(r);
    jout_object(&j, NULL);
    jout_i64(&j, "ttl", result->lease_ttl);
    jout_end_object(&j);
    http_reply_json(r, 200);
}

void http_lease_keepalive(struct http_req *r)
{
    int64_t id;
    if (http_query_done(r) && take_id(r, &id))
        http_keep_alive(r, id, on_keep_alive);
}

static void on_end(struct http_req *r, enum krd_status st, struct kv_result *result)
{
    if (st == KRD_OK)
        st = result->status;
    if (st != KRD_OK) {
        http_fail(r, st, result != NULL ? result->message : NULL);
        return;
    }
    r->revision = result->revision;
    struct jout j = http_json(r);
    jout_object(&j, NULL);
    jout_i64(&j, "revision", result->revision);
    jout_end_object(&j);
    http_reply_json(r, 200);
}

static void end_lease(struct http_req *r)
{
    Etcdserverpb__InternalRaftRequest cmd = ETCDSERVERPB__INTERNAL_RAFT_REQUEST__INIT;
    Etcdserverpb__LeaseRevokeRequest m = ETCDSERVERPB__LEASE_REVOKE_REQUEST__INIT;
    if (!http_query_done(r) || !take_id(r, &m.id))
        return;
    cmd.lease_revoke = &m;
    http_propose(r, &cmd, on_end);
}

/* --- Look ------------------------------------------------------------------------------------- */

static void lease_members(struct jout *j, const struct node_lease *lease)
{
    jout_hex(j, "id", (uint64_t)lease->id);
    jout_i64(j, "ttl", lease->ttl);
    jout_millis(j, "remaining", lease->remaining_ms > 0 ? lease->remaining_ms : 0);
}

static void read_lease(struct http_req *r)
{
    struct node_lease lease;
    struct slice *keys = NULL;
    enum krd_status st = node_lease_get(r->loop->node, *(int64_t *)r->state, &lease);
    if (st != KRD_OK) {
        http_fail(r, st == KRD_NOT_FOUND ? KRD_LEASE_NOT_FOUND : st, NULL);
        return;
    }
    r->big = true;
    size_t n = node_lease_keys(r->loop->node, lease.id, &r->arena, &keys);
    struct jout j = http_json(r);
    jout_object(&j, NULL);
    lease_members(&j, &lease);
    jout_array(&j, "keys");
    for (size_t i = 0; i < n; i++) {
        jout_object(&j, NULL);
        jout_bytes(&j, "key", keys[i]);
        jout_end_object(&j);
    }
    jout_end_array(&j);
    jout_end_object(&j);
    http_reply_json(r, 200);
}

static void read_leases(struct http_req *r)
{
    struct node_lease *leases = NULL;
    size_t n = node_lease_list(r->loop->node, &leases);
    struct jout j = http_json(r);
    jout_object(&j, NULL);
    jout_array(&j, "leases");
    for (size_t i = 0; i < n; i++) {
        jout_object(&j, NULL);
        lease_members(&j, &leases[i]);
        jout_i64(&j, "key_count", leases[i].keys);
        jout_end_object(&j);
    }
    jout_end_array(&j);
    jout_u64(&j, "count", n);
    jout_end_object(&j);
    krd_free(leases);
    http_reply_json(r, 200);
}

void http_lease(struct http_req *r)
{
    int64_t *id = krd_arena_alloc(&r->arena, sizeof *id);
    if (r->method == HTTP_DELETE) {
        end_lease(r);
        return;
    }
    http_read_options(r);
    http_encoding(r);
    r->state = id;
    if (http_query_done(r) && take_id(r, id))
        http_read(r, read_lease);
}

void http_leases(struct http_req *r)
{
    if (r->method == HTTP_POST) {
        grant(r);
        return;
    }
    http_read_options(r);
    if (http_query_done(r))
        http_read(r, read_leases);
}
