/* What operators and their tools ask: health, probes, version, metrics. */
#include "http/front.h"

#include <inttypes.h>

static void reply_health(struct http_req *r)
{
    struct node_status s;
    const char *reason = NULL;
    bool ok = node_healthy(r->loop->node, &reason);
    node_get_status(r->loop->node, &s);
    r->revision = s.revision;
    struct jout j = http_json(r);
    jout_object(&j, NULL);
    jout_bool(&j, "ok", ok);
    jout_bool(&j, "db_rw", ok);
    jout_str(&j, "id", s.name);
    jout_str(&j, "role", node_role_name(s.role));
    if (s.leader_id != 0)
        jout_str(&j, "leader", s.leader_name);
    else
        jout_null(&j, "leader");
    jout_u64(&j, "term", s.term);
    jout_u64(&j, "applied_lag",
             s.commit_index > s.applied_index ? s.commit_index - s.applied_index : 0);
    jout_null(&j, "backup_age_hours"); /* no backup was ever made */
    jout_u64(&j, "uptime_s", s.uptime_ms / 1000);
    if (!ok)
        jout_str(&j, "reason", reason != NULL ? reason : "unknown");
    jout_end_object(&j);
    node_status_deinit(&s);
    if (!ok)
        http_header(r, "Retry-After", slice_str("1"));
    http_reply_json(r, ok ? 200 : 503);
}

static void reply_ready(struct http_req *r)
{
    const char *reason = NULL;
    if (node_healthy(r->loop->node, &reason))
        http_reply(r, 200, "text/plain; charset=utf-8", slice_str("ok\n"));
    else
        http_fail(r, KRD_NO_LEADER, reason);
}

static void reply_version(struct http_req *r)
{
    struct jout j = http_json(r);
    jout_object(&j, NULL);
    jout_str(&j, "version", r->loop->o->version);
    jout_str(&j, "build", r->loop->o->build);
    jout_str(&j, "api", "v1");
    jout_end_object(&j);
    http_reply_json(r, 200);
}

static void reply_metrics(struct http_req *r)
{
    r->out.len = 0;
    node_metrics(r->loop->node, &r->out);
    http_metrics(r->loop->front, &r->out);
    http_reply(r, 200, "text/plain; version=0.0.4; charset=utf-8", krd_buf_slice(&r->out));
}

void http_ops(struct http_req *r)
{
    if (!http_query_done(r))
        return;
    switch (r->route.call) {
    case HTTP_CALL_HEALTH:
        reply_health(r);
        break;
    case HTTP_CALL_READYZ:
        reply_ready(r);
        break;
    case HTTP_CALL_VERSION:
        reply_version(r);
        break;
    case HTTP_CALL_METRICS:
        reply_metrics(r);
        break;
    default: /* alive is whoever answers */
        http_reply(r, 200, "text/plain; charset=utf-8", slice_str("ok\n"));
    }
}
