/* /v1/watch: changes as they happen.
 *
 * The node's group for this loop gives each watcher its events, one revision at a time; they are
 * rendered behind what waits already (`next`) and sent when h2o has taken the piece before
 * (http_req.out). Several revisions may leave in one piece; none is ever split between pieces'
 * promises: a bookmark is rendered only when nothing waits, so it never overtakes an event.
 *
 * A client that reads slowly: when `next` has grown beyond a bound the sink says "no more", the
 * node rests this watcher, and goes on from history once we have caught up. A client that does not
 * read at all is cut off by the stall check (request.c). Memory for a watcher is about twice the
 * bound and one revision's events.
 *
 * Three forms: NDJSON, Server-Sent Events, and the long poll (once), which is one ordinary answer
 * with its length: the events of the first revision, or a bookmark when the time is over. */
#include "http/front.h"
#include "http/txn_json.h"

#include "base/clock.h"

#include <inttypes.h>

#define NEXT_BYTES_MAX  (256u * 1024)
#define KEEP_BYTES      (16u * 1024) /* a buffer larger than this is given back when it is empty */
#define POLL_DEFAULT_MS (30u * 1000)
#define POLL_MAX_MS     (3600u * 1000)

struct watch {
    struct http_req *r;
    struct node_watch *w; /* NULL once it has ended */
    struct krd_buf next;  /* rendered, not yet given to h2o */
    bool sse, once;
    bool resting; /* the sink has said "no more" */
    bool last;    /* what is in next is the end */
    bool compacted;
    uint64_t queued_ms, deadline_ms;
};

/* --- Rendering -------------------------------------------------------------------------------- */

static struct jout line_begin(struct watch *s, int64_t id)
{
    if (s->sse && id >= 0)
        krd_buf_printf(&s->next, "id: %" PRId64 "\n", id);
    if (s->sse)
        krd_buf_puts(&s->next, "data: ");
    struct jout j = jout_into(&s->next);
    j.base64 = s->r->base64;
    jout_object(&j, NULL);
    return j;
}

static void line_end(struct watch *s, struct jout *j)
{
    jout_end_object(j);
    krd_buf_puts(&s->next, s->sse ? "\n\n" : "\n");
    s->queued_ms = s->r->loop->now_ms;
    struct http_loop *l = s->r->loop;
    if (!h2o_linklist_is_linked(&s->r->dirty_link))
        h2o_linklist_insert(&l->watches.dirty, &s->r->dirty_link);
    http_kick(l);
}

static void put_bookmark(struct watch *s)
{
    int64_t revision = node_watch_synced_revision(s->w);
    struct jout j = line_begin(s, revision);
    jout_str(&j, "type", "bookmark");
    jout_i64(&j, "revision", revision);
    line_end(s, &j);
}

/* The last line of a stream that the server ends. */
static void put_error(struct watch *s, enum krd_status st, const char *name, int64_t value)
{
    struct jout j = line_begin(s, -1);
    jout_str(&j, "type", "error");
    jout_object(&j, "error");
    jout_str(&j, "code", krd_status_code(st));
    jout_str(&j, "message", krd_status_text(st));
    if (name != NULL)
        jout_i64(&j, name, value);
    jout_end_object(&j);
    s->last = true;
    line_end(s, &j);
}

/* A revision's events belong together: only the last of them carries the id that a browser resumes
 * behind, so that a connection that breaks between them brings all of them again. */
static void put_event(struct watch *s, const struct kv_event *e, int64_t id)
{
    struct jout j = line_begin(s, id);
    jout_str(&j, "type", e->type == KV_EVENT_PUT ? "put" : "delete");
    jout_bytes(&j, "key", e->kv.key);
    if (e->type == KV_EVENT_PUT)
        jout_bytes(&j, "value", e->kv.value);
    jout_i64(&j, "mod_revision", e->kv.mod_revision);
    if (e->type == KV_EVENT_PUT) {
        jout_i64(&j, "create_revision", e->kv.create_revision);
        jout_i64(&j, "version", e->kv.version);
        if (e->kv.lease != 0)
            jout_hex(&j, "lease", (uint64_t)e->kv.lease);
    }
    if (e->has_prev)
        jout_pair(&j, "prev", &e->prev, false);
    line_end(s, &j);
}

static bool on_events(void *arg, int64_t revision, const struct kv_event *events, size_t n)
{
    struct watch *s = arg;
    if (s->last)
        return false;
    for (size_t i = 0; i < n; i++)
        put_event(s, &events[i], i + 1 == n ? revision : -1);
    if (s->once)
        s->last = true;
    s->resting = s->last || s->next.len >= NEXT_BYTES_MAX;
    return !s->resting;
}

static void on_compacted(void *arg, int64_t compact_revision)
{
    struct watch *s = arg;
    s->compacted = true;
    if (!s->last)
        put_error(s, KRD_COMPACTED, "oldest_revision", compact_revision);
}

static void run_group(struct http_loop *l)
{
    l->watches.more = true;
    http_kick(l);
}

/* --- Sending ---------------------------------------------------------------------------------- */

static const char *content_type(const struct watch *s)
{
    return s->sse ? "text/event-stream" : "application/x-ndjson";
}

static void end_watch(struct watch *s)
{
    if (s->w != NULL)
        node_watch_close(s->w);
    s->w = NULL;
}

static void flush(struct watch *s)
{
    struct http_req *r = s->r;
    if (r->sending || s->next.len == 0 || (s->once && !s->last))
        return;
    struct krd_buf sent = r->out;
    r->out = s->next;
    s->next = sent;
    s->next.len = 0;
    bool last = s->last;
    if (last && s->w != NULL) {
        r->revision = node_watch_synced_revision(s->w);
        end_watch(s);
    } else if (s->resting && !last) {
        s->resting = false;
        node_watch_resume(s->w);
        run_group(r->loop);
    }
    if (s->once && s->compacted)
        http_fail(r, KRD_COMPACTED, NULL);
    else if (s->once)
        http_reply(r, 200, content_type(s), krd_buf_slice(&r->out));
    else
        http_stream_send(r, krd_buf_slice(&r->out), last);
}

static void on_drained(struct http_req *r)
{
    struct watch *s = r->state;
    r->out.len = 0;
    if (r->out.cap > KEEP_BYTES)
        krd_buf_deinit(&r->out);
    flush(s);
}

static void on_watch_dispose(struct http_req *r)
{
    struct watch *s = r->state;
    struct http_loop *l = r->loop;
    end_watch(s);
    krd_buf_deinit(&s->next);
    h2o_linklist_unlink(&r->watch_link);
    if (h2o_linklist_is_linked(&r->dirty_link))
        h2o_linklist_unlink(&r->dirty_link);
    if (s->once)
        l->watches.polls--;
    http_count(&l->counters.watchers, -1);
}

/* --- Asking ----------------------------------------------------------------------------------- */

/* A browser that reconnects repeats the first URL, from= and all: its Last-Event-ID wins. */
static void take_last_event_id(struct http_req *r, int64_t *from)
{
    uint64_t id;
    if (r->last_event_id.len == 0)
        return;
    if (!http_parse_u64(r->last_event_id, &id) || id >= INT64_MAX)
        http_query_fail(&r->query, "Last-Event-ID is not a revision");
    else
        *from = (int64_t)id + 1;
}

static void take_query(struct http_req *r, struct watch *s, struct node_watch_spec *spec)
{
    struct http_query *q = &r->query;
    uint64_t timeout_ms = POLL_DEFAULT_MS;
    bool prefix = http_query_flag(q, "prefix");
    bool puts = http_query_flag(q, "put"), deletes = http_query_flag(q, "delete");
    http_query_i64(q, "from", 1, INT64_MAX, &spec->from);
    take_last_event_id(r, &spec->from);
    spec->prev_kv = http_query_flag(q, "prev");
    spec->no_put = deletes && !puts;
    spec->no_delete = puts && !deletes;
    s->once = http_query_flag(q, "once");
    if (http_query_ms(q, "timeout", POLL_MAX_MS, &timeout_ms) && !s->once)
        http_query_fail(q, "timeout is for once");
    s->deadline_ms = r->loop->now_ms + timeout_ms;
    http_encoding(r);
    if (r->key.len == 0 && !prefix)
        http_query_fail(q, "the key is empty");
    if (prefix)
        spec->range = kv_range_of_prefix(r->key, krd_arena_alloc(&r->arena, r->key.len + 1));
    else
        spec->range = (struct kv_range){r->key, slice_of(NULL, 0)};
}

static bool wants_sse(const struct http_req *r)
{
    static const char type[] = "text/event-stream";
    return r->accept.len >= sizeof type - 1 &&
           memmem(r->accept.ptr, r->accept.len, type, sizeof type - 1) != NULL;
}

void http_watch(struct http_req *r)
{
    struct http_loop *l = r->loop;
    struct watch *s = krd_arena_zalloc(&r->arena, sizeof *s);
    struct node_watch_spec spec = {.from = 0};
    struct node_watch_sink sink = {s, on_events, on_compacted};
    s->r = r;
    s->sse = wants_sse(r);
    take_query(r, s, &spec);
    if (!http_query_done(r))
        return;
    /* What is known now is told by a status; what is compacted later, by a line. */
    if (spec.from != 0 && spec.from < node_compacted_revision(l->node)) {
        http_fail(r, KRD_COMPACTED, NULL);
        return;
    }
    r->state = s;
    enum krd_status st = node_watch_open(l->watches.group, &spec, &sink, &s->w);
    if (st != KRD_OK || s->compacted) {
        if (st == KRD_OK)
            end_watch(s);
        krd_buf_deinit(&s->next);
        if (h2o_linklist_is_linked(&r->dirty_link))
            h2o_linklist_unlink(&r->dirty_link);
        http_fail(r, st == KRD_OK ? KRD_COMPACTED : st, NULL);
        return;
    }
    h2o_linklist_insert(&l->watches.all, &r->watch_link);
    r->on_dispose = on_watch_dispose;
    r->on_drained = on_drained;
    http_count(&l->counters.watchers, 1);
    l->watches.polls += s->once;
    run_group(l);
    r->revision = node_watch_synced_revision(s->w);
    http_header(r, "Cache-Control", slice_str("no-cache"));
    if (s->once)
        return;
    http_header(r, "X-Accel-Buffering", slice_str("no"));
    http_stream_begin(r, content_type(s));
    if (s->sse)
        krd_buf_puts(&s->next, "retry: 1000\n");
    put_bookmark(s);
}

/* --- The loop's part -------------------------------------------------------------------------- */

static struct watch *watch_of(h2o_linklist_t *link)
{
    return KRD_CONTAINER_OF(link, struct http_req, watch_link)->state;
}

static void on_wake_msg(struct http_loop *l, struct http_msg *m)
{
    (void)m;
    atomic_store(&l->watches.wake_posted, false);
    run_group(l);
}

/* On the node's thread. One message is enough, however often it calls. */
static void wake(void *arg)
{
    struct http_loop *l = arg;
    if (!atomic_exchange(&l->watches.wake_posted, true))
        http_post(l, &l->watches.wake);
}

void http_watches_init(struct http_loop *l)
{
    h2o_linklist_init_anchor(&l->watches.all);
    h2o_linklist_init_anchor(&l->watches.dirty);
    l->watches.wake.fn = on_wake_msg;
    l->watches.group = node_watch_group_create(l->node, wake, l);
}

void http_watches_deinit(struct http_loop *l)
{
    KRD_ASSERT(h2o_linklist_is_empty(&l->watches.all));
    node_watch_group_destroy(l->watches.group);
    /* No wake comes any more; one may be on its way. */
    while (atomic_load(&l->watches.wake_posted))
        (void)h2o_evloop_run(l->ctx.loop, 10);
}

void http_watches_run(struct http_loop *l)
{
    bool more = l->watches.more;
    l->watches.more = false;
    if (more && node_watch_run(l->watches.group))
        run_group(l);
    h2o_linklist_t now;
    h2o_linklist_init_anchor(&now);
    h2o_linklist_insert_list(&now, &l->watches.dirty);
    while (!h2o_linklist_is_empty(&now)) {
        struct http_req *r = KRD_CONTAINER_OF(now.next, struct http_req, dirty_link);
        h2o_linklist_unlink(&r->dirty_link);
        flush(r->state);
    }
}

void http_watches_tick(struct http_loop *l)
{
    for (h2o_linklist_t *at = l->watches.all.next; at != &l->watches.all; at = at->next) {
        struct watch *s = watch_of(at);
        if (s->w == NULL || s->last)
            continue;
        if (s->once && l->now_ms >= s->deadline_ms) {
            put_bookmark(s);
            s->last = true;
        } else if (!s->once && !s->r->sending && s->next.len == 0 &&
                   l->now_ms - s->queued_ms >= l->o->bookmark_ms) {
            put_bookmark(s);
        }
    }
    http_watches_run(l);
}

void http_watches_end(struct http_loop *l)
{
    for (h2o_linklist_t *at = l->watches.all.next; at != &l->watches.all; at = at->next) {
        struct watch *s = watch_of(at);
        if (s->w == NULL || s->last)
            continue;
        put_bookmark(s);
        if (s->once)
            s->last = true;
        else
            put_error(s, KRD_STOPPING, NULL, 0);
        end_watch(s);
    }
    http_watches_run(l);
}
