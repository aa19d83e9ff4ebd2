/* /v1/cluster: who is there, who leads, how far behind everybody is; and handing leadership over.
 * A member's "id" is its name, as on the command line; "member_id" is the number that it has in
 * logs and on disk. */
#include "http/front.h"
#include "http/json_in.h"

static const char *role_of(const struct node_status *s, const struct node_member *m)
{
    if (m->is_self)
        return node_role_name(s->role);
    return m->is_leader ? "leader" : m->voter ? "follower" : "learner";
}

static void put_member(struct jout *j, const struct node_status *s, const struct node_member *m)
{
    jout_object(j, NULL);
    jout_str(j, "id", m->name);
    jout_hex(j, "member_id", m->id);
    jout_str(j, "raddr", m->raft_address);
    jout_str(j, "haddr", m->http_address);
    jout_str(j, "role", role_of(s, m));
    jout_bool(j, "learner", !m->voter);
    jout_bool(j, "healthy", m->healthy);
    if (m->lag >= 0)
        jout_i64(j, "lag", m->lag);
    else
        jout_null(j, "lag"); /* only the leader knows */
    if (m->rtt_us != 0)
        jout_u64(j, "rtt_us", m->rtt_us);
    jout_end_object(j);
}

void http_cluster(struct http_req *r)
{
    struct node_status s;
    if (!http_query_done(r))
        return;
    node_get_status(r->loop->node, &s);
    r->revision = s.revision;
    struct jout j = http_json(r);
    jout_object(&j, NULL);
    jout_hex(&j, "cluster_id", s.cluster_id);
    jout_str(&j, "id", s.name);
    jout_str(&j, "role", node_role_name(s.role));
    if (s.leader_id != 0)
        jout_str(&j, "leader", s.leader_name);
    else
        jout_null(&j, "leader");
    jout_u64(&j, "term", s.term);
    jout_i64(&j, "revision", s.revision);
    jout_i64(&j, "compacted_revision", s.compacted_revision);
    jout_u64(&j, "commit_index", s.commit_index);
    jout_u64(&j, "applied_index", s.applied_index);
    jout_array(&j, "members");
    for (uint32_t i = 0; i < s.n_members; i++)
        put_member(&j, &s, &s.members[i]);
    jout_end_array(&j);
    jout_end_object(&j);
    node_status_deinit(&s);
    http_reply_json(r, 200);
}

static void on_transfer(struct http_req *r, enum krd_status st, struct kv_result *result)
{
    (void)result;
    if (st != KRD_OK) {
        http_fail(r, st,
                  st == KRD_NOT_FOUND ? "there is no such member"
                  : st == KRD_AGAIN   ? "leadership did not change in time"
                                      : NULL);
        return;
    }
    struct node_status s;
    node_get_status(r->loop->node, &s);
    struct jout j = http_json(r);
    jout_object(&j, NULL);
    jout_str(&j, "leader", s.leader_name);
    jout_u64(&j, "term", s.term);
    jout_end_object(&j);
    node_status_deinit(&s);
    http_reply_json(r, 200);
}

void http_cluster_leader(struct http_req *r)
{
    static const char *const names[] = {"id", NULL};
    struct json_in in;
    struct slice id = slice_of(NULL, 0);
    char name[64] = "";
    if (!http_query_done(r))
        return;
    /* Without a body, or an id in it: whoever is furthest. */
    if (http_body(r).len > 0) {
        json_t *root = json_in_open(&in, http_body(r), &r->arena);
        if (root != NULL) {
            json_in_known(&in, root, names);
            if (json_in_text(&in, root, "id", &id) &&
                (id.len == 0 || id.len >= sizeof name || memchr(id.ptr, 0, id.len) != NULL))
                json_in_fail(&in, "\"id\" is a member's name");
        }
        if (in.error == NULL && id.len > 0)
            memcpy(name, id.ptr, id.len);
        json_in_close(&in);
        if (in.error != NULL) {
            http_fail(r, KRD_BAD_REQUEST, in.error);
            return;
        }
    }
    http_transfer(r, name, on_transfer);
}
