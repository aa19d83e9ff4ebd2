/* The life of a request.
 *
 *   h2o calls on_req -> create, dispatch -> a call's function -> read barrier or proposal
 *   -> (node's thread) message -> (loop) on_result -> reply -> h2o sends -> pool disposed -> gone
 *
 * 1. The client leaves while its proposal is under way. h2o disposes of the pool: our chunk in it
 *    says so, h2o becomes NULL, the message that comes later finds nobody and frees the result.
 * 2. The client takes nothing of its answer. h2o 2.2.5 has no timeout for that: a check once a
 *    second looks at what the client's kernel has acknowledged, and shuts the socket down.
 * 3. The node stops. Its callbacks come with KRD_STOPPING, each exactly once. */
#include "http/front.h"

#include "base/clock.h"
#include "base/limits.h"
#include "base/log.h"

#include <linux/tcp.h>
#include <netinet/in.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/socket.h>

#define SPARES_MAX         256
#define BIG_BYTES          (16u * 1024)
#define HEADER_BYTES_MAX   (64u * 1024) /* names and values; the path has its own limit, the key */
#define BARRIER_OVERDUE_MS 10
#define STALL_LOOK_MS      2000

/* --- Create and dispose ----------------------------------------------------------------------- */

static void unlink_if(h2o_linklist_t *node)
{
    if (h2o_linklist_is_linked(node))
        h2o_linklist_unlink(node);
}

static void unref(struct http_req *r)
{
    KRD_ASSERT(r->refs > 0);
    if (--r->refs > 0)
        return;
    struct http_loop *l = r->loop;
    if (r->big || l->n_spare == SPARES_MAX) {
        krd_arena_deinit(&r->arena);
        krd_buf_deinit(&r->out);
        krd_free(r);
        return;
    }
    krd_arena_reset(&r->arena);
    if (r->out.cap > BIG_BYTES)
        krd_buf_deinit(&r->out);
    r->next_spare = l->spare;
    l->spare = r;
    l->n_spare++;
}

void http_req_free_spares(struct http_loop *l)
{
    while (l->spare != NULL) {
        struct http_req *r = l->spare;
        l->spare = r->next_spare;
        krd_arena_deinit(&r->arena);
        krd_buf_deinit(&r->out);
        krd_free(r);
    }
    l->n_spare = 0;
}

/* The pool goes: answered and sent, or the client is gone. */
static void on_pool_dispose(void *slot)
{
    struct http_req *r = *(struct http_req **)slot;
    if (r->on_dispose != NULL)
        r->on_dispose(r);
    unlink_if(&r->active_link);
    unlink_if(&r->turn_link);
    unlink_if(&r->read_link);
    KRD_ASSERT(!h2o_linklist_is_linked(&r->watch_link));
    KRD_ASSERT(!h2o_linklist_is_linked(&r->dirty_link));
    http_conn_unlisten(r->conn);
    r->conn->req = NULL;
    r->h2o = NULL;
    unref(r);
}

static void on_proceed(h2o_generator_t *g, h2o_req_t *q)
{
    (void)q;
    struct http_req *r = KRD_CONTAINER_OF(g, struct http_req, generator);
    r->sending = false;
    r->client_us += krd_mono_us() - r->sent_us;
    r->on_drained(r);
}

/* The pool's disposal, which always follows, does the work. */
static void on_generator_stop(h2o_generator_t *g, h2o_req_t *q)
{
    (void)g;
    (void)q;
}

struct http_req *http_req_create(struct http_loop *l, h2o_req_t *h2o)
{
    struct http_req *r = l->spare;
    if (r != NULL) {
        l->spare = r->next_spare;
        l->n_spare--;
        struct krd_arena arena = r->arena;
        struct krd_buf out = r->out;
        memset(r, 0, offsetof(struct http_req, query));
        r->arena = arena;
        r->out = out;
        r->out.len = 0;
    } else {
        r = krd_zalloc(sizeof *r);
    }
    r->query.n = 0;
    r->loop = l;
    r->h2o = h2o;
    r->conn = http_conn_of(h2o);
    KRD_ASSERT(r->conn->req == NULL);
    r->conn->req = r;
    r->refs = 1;
    r->max_stale_ms = UINT64_MAX;
    r->generator = (h2o_generator_t){on_proceed, on_generator_stop};
    r->start_us = krd_mono_us();
    r->big = h2o->entity.len > BIG_BYTES;
    h2o_linklist_insert(&l->active, &r->active_link);
    struct http_req **slot = h2o_mem_alloc_shared(&h2o->pool, sizeof *slot, on_pool_dispose);
    *slot = r;
    return r;
}

/* --- Counting --------------------------------------------------------------------------------- */

const uint32_t http_bucket_us[HTTP_BUCKETS] = {100,   250,   500,    1000,   2500,    5000,
                                               10000, 25000, 100000, 500000, 2500000, 10000000};

void http_account(struct http_loop *l, enum http_method m, int status)
{
    int class = status / 100;
    KRD_ASSERT(class >= 1 && class <= 5);
    http_count(&l->counters.requests[m][class], 1);
}

static void log_slow(const struct http_req *r, uint64_t us)
{
    char path[160];
    size_t n = krd_min_size(r->h2o->path.len, sizeof path - 1);
    for (size_t i = 0; i < n; i++) {
        char c = r->h2o->path.base[i];
        path[i] = c > ' ' && c < 0x7f && c != '"' && c != '\\' ? c : '?';
    }
    path[n] = '\0';
    krd_warn("slow request", "method=%s path=\"%s\" status=%d ms=%" PRIu64,
             http_method_name(r->method), path, r->status, us / 1000);
}

/* The answer is complete, as far as we are concerned. A watch lasts as long as its client likes. */
static void account(struct http_req *r)
{
    struct http_counters *c = &r->loop->counters;
    http_account(r->loop, r->method, r->status);
    if (r->route.call == HTTP_CALL_WATCH)
        return;
    uint64_t us = krd_mono_us() - r->start_us - r->client_us;
    int bucket = 0;
    while (bucket < HTTP_BUCKETS && us > http_bucket_us[bucket])
        bucket++;
    http_count(&c->duration[bucket], 1);
    http_count(&c->duration_us, (long long)us);
    if (r->loop->o->slow_request_ms != 0 && us / 1000 >= r->loop->o->slow_request_ms) {
        http_count(&c->slow, 1);
        log_slow(r, us);
    }
}

/* --- Answers ---------------------------------------------------------------------------------- */

const char *http_reason(int status)
{
    switch (status) {
    case 200:
        return "OK";
    case 201:
        return "Created";
    case 204:
        return "No Content";
    case 304:
        return "Not Modified";
    case 400:
        return "Bad Request";
    case 404:
        return "Not Found";
    case 405:
        return "Method Not Allowed";
    case 409:
        return "Conflict";
    case 410:
        return "Gone";
    case 412:
        return "Precondition Failed";
    case 413:
        return "Payload Too Large";
    case 417:
        return "Expectation Failed";
    case 429:
        return "Too Many Requests";
    case 431:
        return "Request Header Fields Too Large";
    case 500:
        return "Internal Server Error";
    case 503:
        return "Service Unavailable";
    case 504:
        return "Gateway Timeout";
    case 507:
        return "Insufficient Storage";
    default:
        return "Status";
    }
}

static void header_owned(struct http_req *r, const char *name, const char *value, size_t len)
{
    h2o_add_header_by_str(&r->h2o->pool, &r->h2o->res.headers, name, strlen(name), 0, NULL, value,
                          len);
}

void http_header(struct http_req *r, const char *name, struct slice value)
{
    char *copy = h2o_mem_alloc_pool(&r->h2o->pool, value.len);
    memcpy(copy, value.ptr, value.len);
    header_owned(r, name, copy, value.len);
}

/* Digits at the end of buf; returns where they begin. */
static char *digits(char *end, uint64_t v)
{
    do {
        *--end = (char)('0' + v % 10);
        v /= 10;
    } while (v != 0);
    return end;
}

void http_header_i64(struct http_req *r, const char *name, int64_t value)
{
    char *buf = h2o_mem_alloc_pool(&r->h2o->pool, 24), *end = buf + 24;
    char *at = digits(end, value < 0 ? 0 - (uint64_t)value : (uint64_t)value);
    if (value < 0)
        *--at = '-';
    header_owned(r, name, at, (size_t)(end - at));
}

static void header_etag(struct http_req *r, int64_t mod_revision)
{
    char *buf = h2o_mem_alloc_pool(&r->h2o->pool, 24), *end = buf + 24;
    *--end = '"';
    char *at = digits(end, (uint64_t)mod_revision);
    *--at = '"';
    header_owned(r, "ETag", at, (size_t)(buf + 24 - at));
}

void http_header_pair(struct http_req *r, const struct kv_pair *kv)
{
    header_etag(r, kv->mod_revision);
    http_header_i64(r, "Kv-Create-Revision", kv->create_revision);
    http_header_i64(r, "Kv-Mod-Revision", kv->mod_revision);
    http_header_i64(r, "Kv-Version", kv->version);
    if (kv->lease != 0) {
        char id[17];
        http_format_lease(kv->lease, id);
        http_header(r, "Kv-Lease", slice_of(id, 16));
    }
}

#define EXPOSED \
    "ETag, Kv-Revision, Kv-Create-Revision, Kv-Mod-Revision, Kv-Version, Kv-Lease, Retry-After"

static void begin(struct http_req *r, int status, const char *type)
{
    h2o_req_t *q = r->h2o;
    KRD_ASSERT(!r->replied);
    r->replied = true;
    r->status = status;
    q->res.status = status;
    q->res.reason = http_reason(status);
    if (type != NULL)
        header_owned(r, "Content-Type", type, strlen(type));
    http_header_i64(r, "Kv-Revision",
                    r->revision != 0 ? r->revision : node_revision(r->loop->node));
    if (r->loop->o->cors_origin != NULL) {
        const char *origin = r->loop->o->cors_origin;
        header_owned(r, "Access-Control-Allow-Origin", origin, strlen(origin));
        header_owned(r, "Access-Control-Expose-Headers", EXPOSED, sizeof EXPOSED - 1);
    }
    if (r->loop->stopping)
        q->http1_is_persistent = 0;
    r->progress_ms = r->loop->now_ms;
}

void http_reply(struct http_req *r, int status, const char *type, struct slice body)
{
    h2o_req_t *q = r->h2o;
    begin(r, status, type);
    if (status != 204 && status != 304)
        q->res.content_length = body.len;
    account(r);
    r->finished = true;
    h2o_iovec_t buf = h2o_iovec_init(body.ptr, body.len);
    h2o_start_response(q, &r->generator);
    r->sending = true;
    h2o_send(q, &buf, body.len > 0 && r->method != HTTP_HEAD ? 1 : 0, H2O_SEND_STATE_FINAL);
}

void http_reply_json(struct http_req *r, int status)
{
    krd_buf_put_u8(&r->out, '\n');
    http_reply(r, status, "application/json", krd_buf_slice(&r->out));
}

struct jout http_json(struct http_req *r)
{
    r->out.len = 0;
    struct jout j = jout_into(&r->out);
    j.base64 = r->base64;
    return j;
}

struct slice http_body(const struct http_req *r)
{
    return slice_of(r->h2o->entity.base, r->h2o->entity.len);
}

static void fail_status(struct http_req *r, int status, const char *code, struct slice message,
                        const char *extra, int64_t value)
{
    struct jout j = http_json(r);
    jout_object(&j, NULL);
    jout_object(&j, "error");
    jout_str(&j, "code", code);
    jout_text(&j, "message", message);
    if (extra != NULL)
        jout_i64(&j, extra, value);
    jout_end_object(&j);
    jout_end_object(&j);
    if (status == 503 || status == 429)
        header_owned(r, "Retry-After", "1", 1);
    http_reply_json(r, status);
}

void http_error_json(struct krd_buf *out, const char *code, struct slice message)
{
    struct jout j = jout_into(out);
    jout_object(&j, NULL);
    jout_object(&j, "error");
    jout_str(&j, "code", code);
    jout_text(&j, "message", message);
    jout_end_object(&j);
    jout_end_object(&j);
    krd_buf_put_u8(out, '\n');
}

void http_fail_extra(struct http_req *r, enum krd_status st, const char *message, const char *name,
                     int64_t value)
{
    fail_status(r, krd_status_http(st), krd_status_code(st),
                slice_str(message != NULL ? message : krd_status_text(st)), name, value);
}

void http_fail(struct http_req *r, enum krd_status st, const char *message)
{
    if (st == KRD_COMPACTED)
        http_fail_extra(r, st, message, "oldest_revision", node_compacted_revision(r->loop->node));
    else
        http_fail_extra(r, st, message, NULL, 0);
}

void http_failf(struct http_req *r, enum krd_status st, const char *fmt, ...)
{
    char text[512];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    http_fail(r, st, text);
}

void http_fail_absent(struct http_req *r, struct slice key)
{
    /* Built by hand: a key may hold NUL. */
    struct krd_buf text = KRD_BUF_INIT;
    krd_buf_puts(&text, "key \"");
    krd_buf_put(&text, key.ptr, krd_min_size(key.len, 128));
    krd_buf_puts(&text, key.len > 128 ? "...\" does not exist" : "\" does not exist");
    fail_status(r, 404, krd_status_code(KRD_NOT_FOUND), krd_buf_slice(&text), NULL, 0);
    krd_buf_deinit(&text);
}

/* --- Streams ---------------------------------------------------------------------------------- */

void http_stream_begin(struct http_req *r, const char *type)
{
    begin(r, 200, type);
    /* Without chunks the end of the connection is the end of the answer. */
    if (r->h2o->version < 0x101)
        r->h2o->http1_is_persistent = 0;
    h2o_start_response(r->h2o, &r->generator);
}

void http_stream_send(struct http_req *r, struct slice piece, bool final)
{
    KRD_ASSERT(!r->sending);
    h2o_iovec_t buf = h2o_iovec_init(piece.ptr, piece.len);
    r->sending = true;
    r->sent_us = krd_mono_us();
    r->progress_ms = r->loop->now_ms;
    r->finished = final;
    if (final)
        account(r);
    /* After a final piece the request may be gone. */
    h2o_send(r->h2o, &buf, piece.len > 0 ? 1 : 0,
             final ? H2O_SEND_STATE_FINAL : H2O_SEND_STATE_IN_PROGRESS);
}

void http_next_turn(struct http_req *r)
{
    if (!h2o_linklist_is_linked(&r->turn_link))
        h2o_linklist_insert(&r->loop->turn, &r->turn_link);
    http_kick(r->loop);
}

void http_run_turn(struct http_loop *l)
{
    h2o_linklist_t now;
    h2o_linklist_init_anchor(&now);
    h2o_linklist_insert_list(&now, &l->turn);
    while (!h2o_linklist_is_empty(&now)) {
        struct http_req *r = KRD_CONTAINER_OF(now.next, struct http_req, turn_link);
        h2o_linklist_unlink(&r->turn_link);
        r->on_turn(r);
    }
}

static void check_stalled(struct http_req *r)
{
    struct http_loop *l = r->loop;
    struct tcp_info info = {0};
    socklen_t len = sizeof info;
    if (getsockopt(h2o_socket_get_fd(r->conn->sock), IPPROTO_TCP, TCP_INFO, &info, &len) == 0 &&
        info.tcpi_bytes_acked != r->progress_bytes) {
        r->progress_bytes = info.tcpi_bytes_acked;
        r->progress_ms = l->now_ms;
        return;
    }
    if (l->now_ms - r->progress_ms < l->o->stall_timeout_ms)
        return;
    http_count(&l->counters.stalled, 1);
    krd_info("HTTP client takes nothing of its answer, closed", "ms=%" PRIu64,
             l->now_ms - r->progress_ms);
    http_conn_kill(r->conn);
}

void http_check_stalled(struct http_loop *l)
{
    uint64_t look_ms = krd_min_u64(STALL_LOOK_MS, l->o->stall_timeout_ms);
    for (h2o_linklist_t *at = l->active.next; at != &l->active; at = at->next) {
        struct http_req *r = KRD_CONTAINER_OF(at, struct http_req, active_link);
        if (r->sending && l->now_ms - r->progress_ms >= look_ms)
            check_stalled(r);
    }
}

/* --- Writes ----------------------------------------------------------------------------------- */

static void on_result_msg(struct http_loop *l, struct http_msg *m)
{
    struct http_req *r = KRD_CONTAINER_OF(m, struct http_req, msg);
    struct kv_result *result = r->op_result;
    KRD_ASSERT(l->owed > 0);
    l->owed--;
    r->op_result = NULL;
    if (r->h2o != NULL)
        r->on_result(r, r->op_status, result);
    kv_result_destroy(result);
    unref(r);
}

/* On a thread of the node's: h2o's memory is out of reach, r is held by its reference. */
static void on_write_done(void *arg, enum krd_status st, struct kv_result *result)
{
    struct http_req *r = arg;
    r->op_status = st;
    r->op_result = result;
    http_post(r->loop, &r->msg);
}

static void on_transfer_done(void *arg, enum krd_status st)
{
    on_write_done(arg, st, NULL);
}

static void depart(struct http_req *r, http_result_fn *fn)
{
    r->on_result = fn;
    r->msg = (struct http_msg){.fn = on_result_msg};
    r->refs++;
    r->loop->owed++;
}

void http_propose(struct http_req *r, Etcdserverpb__InternalRaftRequest *cmd, http_result_fn *fn)
{
    const char *message = NULL;
    enum krd_status st = node_check(r->loop->node, cmd, &message);
    if (st != KRD_OK) {
        http_fail(r, st, message);
        return;
    }
    depart(r, fn);
    node_propose(r->loop->node, cmd, r->loop->o->write_timeout_ms, on_write_done, r);
}

void http_keep_alive(struct http_req *r, int64_t lease, http_result_fn *fn)
{
    depart(r, fn);
    node_lease_keep_alive(r->loop->node, lease, on_write_done, r);
}

void http_transfer(struct http_req *r, const char *member, http_result_fn *fn)
{
    depart(r, fn);
    node_transfer(r->loop->node, member, on_transfer_done, r);
}

/* --- Reads ------------------------------------------------------------------------------------ */

struct read_batch {
    struct http_msg msg;
    struct http_loop *loop;
    enum krd_status status;
    h2o_linklist_t reqs; /* http_req.read_link */
};

static void on_barrier_msg(struct http_loop *l, struct http_msg *m)
{
    struct read_batch *b = KRD_CONTAINER_OF(m, struct read_batch, msg);
    l->owed--;
    l->reads.in_flight--;
    while (!h2o_linklist_is_empty(&b->reqs)) {
        struct http_req *r = KRD_CONTAINER_OF(b->reqs.next, struct http_req, read_link);
        h2o_linklist_unlink(&r->read_link);
        if (b->status == KRD_OK)
            r->on_read(r);
        else
            http_fail(r, b->status, NULL);
    }
    krd_free(b);
}

static void on_barrier(void *arg, enum krd_status st)
{
    struct read_batch *b = arg;
    b->status = st;
    http_post(b->loop, &b->msg);
}

/* One barrier at a time is enough while barriers are quick. One that hangs (no leader) must not
 * keep those behind it waiting twice as long: they go ahead on their own. */
void http_reads_flush(struct http_loop *l)
{
    if (h2o_linklist_is_empty(&l->reads.gathering) || http_reads_wait(l, INT32_MAX) > 0)
        return;
    struct read_batch *b = krd_alloc(sizeof *b);
    b->msg = (struct http_msg){.fn = on_barrier_msg};
    b->loop = l;
    h2o_linklist_init_anchor(&b->reqs);
    h2o_linklist_insert_list(&b->reqs, &l->reads.gathering);
    l->reads.in_flight++;
    l->reads.submitted_ms = l->now_ms;
    l->owed++;
    node_read_barrier(l->node, l->o->read_timeout_ms, on_barrier, b);
}

int32_t http_reads_wait(const struct http_loop *l, int32_t max)
{
    if (l->reads.gathering.next == &l->reads.gathering)
        return max;
    uint64_t age = l->now_ms - l->reads.submitted_ms;
    if (l->reads.in_flight == 0 || age >= BARRIER_OVERDUE_MS)
        return 0;
    return BARRIER_OVERDUE_MS - (int32_t)age;
}

void http_read_options(struct http_req *r)
{
    static const char *const words[] = {"linearizable", "serializable", NULL};
    unsigned word = 0;
    bool given = http_query_word(&r->query, "consistency", words, &word);
    r->local = word == 1;
    if (!http_query_ms(&r->query, "max_stale", 24 * 3600 * 1000, &r->max_stale_ms))
        return;
    if (given && word == 0)
        http_query_fail(&r->query, "max_stale is for local reads: consistency=serializable");
    r->local = true;
}

void http_read(struct http_req *r, void (*fn)(struct http_req *r))
{
    r->on_read = fn;
    if (!r->local)
        h2o_linklist_insert(&r->loop->reads.gathering, &r->read_link);
    else if (r->max_stale_ms != UINT64_MAX && node_staleness_ms(r->loop->node) > r->max_stale_ms)
        http_fail(r, KRD_STALE, NULL);
    else
        fn(r);
}

/* --- Dispatch --------------------------------------------------------------------------------- */

bool http_query_done(struct http_req *r)
{
    const char *error = http_query_finish(&r->query);
    if (error != NULL)
        http_fail(r, KRD_BAD_REQUEST, error);
    return error == NULL;
}

void http_encoding(struct http_req *r)
{
    static const char *const words[] = {"auto", "base64", NULL};
    unsigned word = 0;
    http_query_word(&r->query, "encoding", words, &word);
    r->base64 = word == 1;
}

bool http_conditions(struct http_req *r)
{
    r->has_match = r->if_match.ptr != NULL;
    r->has_none_match = r->if_none_match.ptr != NULL;
    if (r->has_match && !http_parse_etags(r->if_match, &r->match)) {
        http_fail(r, KRD_BAD_REQUEST, "If-Match is not \"REVISION\" or *");
        return false;
    }
    if (r->has_none_match && !http_parse_etags(r->if_none_match, &r->none_match)) {
        http_fail(r, KRD_BAD_REQUEST, "If-None-Match is not \"REVISION\" or *");
        return false;
    }
    return true;
}

/* A header may come once only; what it says must not depend on which one we look at. */
static bool take_header(struct http_req *r, const h2o_header_t *h, const char *name,
                        struct slice *out)
{
    if (out->ptr != NULL) {
        http_failf(r, KRD_BAD_REQUEST, "header %s is given twice", name);
        return false;
    }
    *out = slice_of(h->value.len > 0 ? h->value.base : "", h->value.len);
    return true;
}

static bool header_is(const h2o_header_t *h, const char *name)
{
    return h2o_memis(h->name->base, h->name->len, name, strlen(name));
}

static bool take_headers(struct http_req *r)
{
    const h2o_headers_t *headers = &r->h2o->headers;
    size_t bytes = 0;
    for (size_t i = 0; i < headers->size; i++) {
        const h2o_header_t *h = &headers->entries[i];
        bytes += h->name->len + h->value.len;
        if (h->name == &H2O_TOKEN_IF_MATCH->buf) {
            if (!take_header(r, h, "If-Match", &r->if_match))
                return false;
        } else if (h->name == &H2O_TOKEN_IF_NONE_MATCH->buf) {
            if (!take_header(r, h, "If-None-Match", &r->if_none_match))
                return false;
        } else if (h->name == &H2O_TOKEN_ACCEPT->buf) {
            r->accept = slice_of(h->value.base, h->value.len);
        } else if (header_is(h, "last-event-id")) {
            if (!take_header(r, h, "Last-Event-ID", &r->last_event_id))
                return false;
        } else if (header_is(h, "kv-fence") || header_is(h, "idempotency-key")) {
            http_failf(r, KRD_BAD_REQUEST, "header %s is not supported yet",
                       h->name->len == 8 ? "Kv-Fence" : "Idempotency-Key");
            return false;
        }
    }
    if (bytes > HEADER_BYTES_MAX) {
        fail_status(r, 431, krd_status_code(KRD_TOO_LARGE),
                    slice_str("the headers are larger than 65536 bytes"), NULL, 0);
        return false;
    }
    return true;
}

/* Whether a proxy before us may have seen the body end elsewhere than h2o did (request smuggling):
 * a length given twice, or beside chunks. h2o takes one and keeps these headers to itself, but it
 * has made the names lower-case where they stand, between the buffer's beginning and the body. */
static bool framing_is_ambiguous(const struct http_req *r)
{
    static const char length[] = "\ncontent-length:", coding[] = "\ntransfer-encoding:";
    const char *body = r->h2o->entity.base;
    if (body == NULL)
        return false;
    const char *from = r->conn->sock->input->bytes, *one;
    one = memmem(from, (size_t)(body - from), length, sizeof length - 1);
    if (one == NULL)
        return false;
    return memmem(one + 1, (size_t)(body - one - 1), length, sizeof length - 1) != NULL ||
           memmem(from, (size_t)(body - from), coding, sizeof coding - 1) != NULL;
}

/* The target's path and query. "http://host/path", as for proxies, is the same as "/path". */
static void split_target(struct http_req *r, struct slice *path, struct slice *query)
{
    struct slice t = slice_of(r->h2o->path.base, r->h2o->path.len);
    if (t.len >= 7 && memcmp(t.ptr, "http://", 7) == 0) {
        const uint8_t *slash = memchr(t.ptr + 7, '/', t.len - 7);
        t = slash != NULL ? slice_of(slash, t.len - (size_t)(slash - t.ptr)) : slice_str("/");
    }
    const uint8_t *mark = t.len > 0 ? memchr(t.ptr, '?', t.len) : NULL;
    size_t len = mark != NULL ? (size_t)(mark - t.ptr) : t.len;
    *path = slice_of(t.ptr, len);
    *query = mark != NULL ? slice_of(mark + 1, t.len - len - 1) : slice_of(NULL, 0);
}

static bool take_key(struct http_req *r)
{
    struct slice raw = r->route.tail;
    r->key = raw;
    if (raw.len > 0 && memchr(raw.ptr, '%', raw.len) != NULL) {
        uint8_t *dst = krd_arena_alloc(&r->arena, raw.len);
        if (!http_percent_decode(raw, dst, &r->key.len)) {
            http_fail(r, KRD_BAD_REQUEST, "bad percent-encoding in the path");
            return false;
        }
        r->key.ptr = dst;
    }
    if (r->key.len > KRD_KEY_BYTES_MAX) {
        http_failf(r, KRD_TOO_LARGE, "the key is longer than %u bytes", KRD_KEY_BYTES_MAX);
        return false;
    }
    return true;
}

static void header_allow(struct http_req *r)
{
    char allow[HTTP_ALLOW_BYTES];
    size_t n = http_allow_text(r->route.methods, allow);
    http_header(r, "Allow", slice_of(allow, n));
    if (r->loop->o->cors_origin != NULL)
        http_header(r, "Access-Control-Allow-Methods", slice_of(allow, n));
}

static void reply_options(struct http_req *r)
{
    static const char headers[] =
        "Content-Type, If-Match, If-None-Match, Last-Event-ID, Idempotency-Key, Kv-Fence";
    header_allow(r);
    if (r->loop->o->cors_origin != NULL) {
        header_owned(r, "Access-Control-Allow-Headers", headers, sizeof headers - 1);
        header_owned(r, "Access-Control-Max-Age", "86400", 5);
    }
    http_reply(r, 204, NULL, slice_of(NULL, 0));
}

static void call(struct http_req *r)
{
    static void (*const calls[HTTP_CALL_COUNT])(struct http_req *) = {
        [HTTP_CALL_KV] = http_kv,
        [HTTP_CALL_WATCH] = http_watch,
        [HTTP_CALL_TXN] = http_txn,
        [HTTP_CALL_LEASES] = http_leases,
        [HTTP_CALL_LEASE] = http_lease,
        [HTTP_CALL_LEASE_KEEPALIVE] = http_lease_keepalive,
        [HTTP_CALL_CLUSTER] = http_cluster,
        [HTTP_CALL_CLUSTER_LEADER] = http_cluster_leader,
        [HTTP_CALL_COMPACT] = http_compact,
        [HTTP_CALL_HEALTH] = http_ops,
        [HTTP_CALL_LIVEZ] = http_ops,
        [HTTP_CALL_READYZ] = http_ops,
        [HTTP_CALL_VERSION] = http_ops,
        [HTTP_CALL_METRICS] = http_ops,
        [HTTP_CALL_HRAFTD_KEYS] = http_hraftd_keys,
        [HTTP_CALL_HRAFTD_KEY] = http_hraftd_key,
        [HTTP_CALL_HRAFTD_STATUS] = http_hraftd_status,
    };
    calls[r->route.call](r);
}

void http_dispatch(struct http_req *r)
{
    struct slice path, query;
    r->method = http_method_of(slice_of(r->h2o->method.base, r->h2o->method.len));
    split_target(r, &path, &query);
    if (framing_is_ambiguous(r)) {
        r->h2o->http1_is_persistent = 0;
        http_fail(r, KRD_BAD_REQUEST, "the length of the body is given twice");
        return;
    }
    if (!take_headers(r))
        return;
    r->route = http_route_find(path);
    if (r->method == HTTP_OPTIONS && slice_eq(path, slice_str("*"))) {
        r->route.methods = ~0u;
        reply_options(r);
    } else if (r->route.call == HTTP_CALL_NONE) {
        http_fail(r, KRD_NOT_FOUND, "there is nothing at this path");
    } else if ((r->route.methods & (1u << r->method)) == 0) {
        header_allow(r);
        http_fail(r, KRD_METHOD_NOT_ALLOWED, NULL);
    } else if (r->method == HTTP_OPTIONS) {
        reply_options(r);
    } else if (r->h2o->entity.len > r->loop->o->max_request_bytes) {
        http_failf(r, KRD_TOO_LARGE, "the body is larger than %zu bytes",
                   r->loop->o->max_request_bytes);
    } else if (r->loop->stopping) {
        http_fail(r, KRD_STOPPING, NULL);
    } else if (take_key(r)) {
        http_query_parse(&r->query, query, &r->arena);
        call(r);
    }
}
