/* What libh2o 2.2.5 refuses by itself, before a handler of ours is called, in the contract's form.
 *
 * 1. A body over the limit, broken chunks, an unknown Expect: h2o answers through its filters, and
 *    ours puts the contract's body in the place of its text.
 * 2. What is no request at all (garbage, too many or too large headers): h2o answers with a fixed
 *    text, past every hook. So the first request of a connection is looked at before h2o sees it,
 *    with h2o's own parser. From the second request on nobody looks: a client that has spoken HTTP
 *    once and then sends garbage gets h2o's "400 Bad Request" without our JSON.
 * 3. After either h2o closes the socket at once. With input unread that makes the kernel send a
 *    reset, which may overtake the answer. So we duplicate the descriptor; when h2o has closed its
 *    own, ours says that no more will be sent and swallows what comes for a moment. */
#include "http/front.h"

#include <fcntl.h>
#include <inttypes.h>
#include <sys/socket.h>

#define LINGER_MS 2000

/* The parser that h2o uses; its header is not installed, and a libh2o might hide it. */
struct phr_header {
    const char *name;
    size_t name_len;
    const char *value;
    size_t value_len;
};
int phr_parse_request(const char *buf, size_t len, const char **method, size_t *method_len,
                      const char **path, size_t *path_len, int *minor_version,
                      struct phr_header *headers, size_t *num_headers, size_t last_len)
    __attribute__((weak));

/* --- Lingering -------------------------------------------------------------------------------- */

struct lingerer {
    h2o_linklist_t link;
    h2o_socket_t *sock;
    uint64_t until_ms;
};

static void end_linger(struct lingerer *g)
{
    h2o_linklist_unlink(&g->link);
    h2o_socket_close(g->sock);
    krd_free(g);
}

static void on_linger_read(h2o_socket_t *sock, const char *err)
{
    h2o_buffer_consume(&sock->input, sock->input->size);
    if (err != NULL)
        end_linger(sock->data);
}

void http_linger(struct http_loop *l, int fd)
{
    struct lingerer *g = krd_zalloc(sizeof *g);
    (void)shutdown(fd, SHUT_WR);
    g->sock = h2o_evloop_socket_create(l->ctx.loop, fd, 0);
    g->sock->data = g;
    g->until_ms = l->now_ms + LINGER_MS;
    h2o_linklist_insert(&l->lingering, &g->link);
    h2o_socket_read_start(g->sock, on_linger_read);
}

void http_linger_check(struct http_loop *l, bool all)
{
    h2o_linklist_t *at = l->lingering.next, *next;
    for (; at != &l->lingering; at = next) {
        struct lingerer *g = KRD_CONTAINER_OF(at, struct lingerer, link);
        next = at->next;
        if (all || g->until_ms <= l->now_ms)
            end_linger(g);
    }
}

static void keep_open(struct http_conn *c)
{
    if (c->linger_fd < 0)
        c->linger_fd = fcntl(h2o_socket_get_fd(c->sock), F_DUPFD_CLOEXEC, 0);
}

/* --- Through the filters ---------------------------------------------------------------------- */

struct refusal {
    h2o_ostream_t super;
    h2o_iovec_t body;
};

static void send_refusal(h2o_ostream_t *self, h2o_req_t *q, h2o_iovec_t *bufs, size_t n,
                         h2o_send_state_t state)
{
    (void)bufs;
    h2o_ostream_send_next(self, q, &((struct refusal *)(void *)self)->body, n > 0 ? 1 : 0, state);
}

static const char *refusal_text(const struct http_loop *l, int status, char *buf, size_t size)
{
    if (status == 413)
        snprintf(buf, size, "the body is larger than %zu bytes", l->o->max_request_bytes);
    else if (status == 417)
        snprintf(buf, size, "of expectations only 100-continue is known");
    else
        snprintf(buf, size, "the body's encoding or length is malformed");
    return buf;
}

static void add_header(h2o_req_t *q, const char *name, const char *value)
{
    h2o_iovec_t copy = h2o_strdup(&q->pool, value, SIZE_MAX);
    h2o_add_header_by_str(&q->pool, &q->res.headers, name, strlen(name), 0, NULL, copy.base,
                          copy.len);
}

static void rewrite_refusal(struct http_loop *l, h2o_req_t *q, h2o_ostream_t **slot)
{
    char text[128], revision[24];
    struct krd_buf out = KRD_BUF_INIT;
    int status = q->res.status;
    enum krd_status code = status == 413   ? KRD_TOO_LARGE
                           : status >= 500 ? KRD_INTERNAL
                                           : KRD_BAD_REQUEST;
    http_error_json(&out, krd_status_code(code),
                    slice_str(refusal_text(l, status, text, sizeof text)));
    struct refusal *f = (void *)h2o_add_ostream(q, sizeof *f, slot);
    f->super.do_send = send_refusal;
    f->body = h2o_strdup(&q->pool, (char *)out.ptr, out.len);
    krd_buf_deinit(&out);
    q->res.headers = (h2o_headers_t){NULL, 0, 0};
    q->res.content_length = f->body.len;
    q->res.reason = http_reason(status);
    snprintf(revision, sizeof revision, "%" PRId64, node_revision(l->node));
    add_header(q, "Content-Type", "application/json");
    add_header(q, "Kv-Revision", revision);
    if (l->o->cors_origin != NULL)
        add_header(q, "Access-Control-Allow-Origin", l->o->cors_origin);
    http_count(&l->counters.refused_input, 1);
    http_account(l, HTTP_OTHER, status);
    keep_open(http_conn_of(q));
}

static void on_setup_ostream(h2o_filter_t *self, h2o_req_t *q, h2o_ostream_t **slot)
{
    (void)self;
    /* Our own answers have a generator with a stop function, h2o's have not. */
    if (q->_generator->stop == NULL) {
        rewrite_refusal(KRD_CONTAINER_OF(q->conn->ctx, struct http_loop, ctx), q, slot);
        slot = &(*slot)->next;
    }
    h2o_setup_next_ostream(q, slot);
}

void http_refusals_register(h2o_pathconf_t *path)
{
    h2o_create_filter(path, sizeof(h2o_filter_t))->on_setup_ostream = on_setup_ostream;
}

/* --- Past the filters ------------------------------------------------------------------------- */

_Static_assert(H2O_MAX_REQLEN == 408 * 1024 && H2O_MAX_HEADERS == 100, "the texts say so");

/* 0: good as far as it goes, *whole says whether it is all there. Otherwise the status. */
static int judge(struct http_conn *c, const h2o_buffer_t *in, bool *whole, const char **message)
{
    struct phr_header headers[H2O_MAX_HEADERS];
    const char *method, *path;
    size_t method_len, path_len, n = H2O_MAX_HEADERS;
    int minor;
    size_t size = krd_min_size(in->size, H2O_MAX_REQLEN); /* h2o looks no further either */
    int len = phr_parse_request(in->bytes, size, &method, &method_len, &path, &path_len, &minor,
                                headers, &n, c->looked);
    c->looked = size;
    *whole = len >= 0;
    if (len == -2 && size == H2O_MAX_REQLEN) {
        *message = "the request's line and headers are larger than 408 KiB";
        return 431;
    }
    if (len >= 0 || len == -2)
        return 0;
    if (n == H2O_MAX_HEADERS) {
        *message = "there are more than 100 headers";
        return 431;
    }
    *message = "this is not an HTTP/1.1 request";
    return 400;
}

static void refuse(struct http_conn *c, int status, const char *message)
{
    struct http_loop *l = c->loop;
    struct krd_buf body = KRD_BUF_INIT, out = KRD_BUF_INIT;
    http_error_json(&body, krd_status_code(status == 431 ? KRD_TOO_LARGE : KRD_BAD_REQUEST),
                    slice_str(message));
    krd_buf_printf(&out,
                   "HTTP/1.1 %d %s\r\nConnection: close\r\nContent-Length: %zu\r\n"
                   "Content-Type: application/json\r\nKv-Revision: %" PRId64 "\r\n\r\n",
                   status, http_reason(status), body.len, node_revision(l->node));
    krd_buf_put_slice(&out, krd_buf_slice(&body));
    /* It is the first thing that is sent here and fits any socket's buffer. */
    (void)!send(h2o_socket_get_fd(c->sock), out.ptr, out.len, MSG_DONTWAIT | MSG_NOSIGNAL);
    krd_buf_deinit(&body);
    krd_buf_deinit(&out);
    http_count(&l->counters.refused_input, 1);
    http_account(l, HTTP_OTHER, status);
    keep_open(c);
    c->h2o_on_read(c->sock, h2o_socket_error_closed); /* h2o closes; c is gone */
}

static void on_first_read(h2o_socket_t *sock, const char *err)
{
    struct http_conn *c = sock->on_close.data;
    bool whole = true;
    const char *message = NULL;
    int status = err == NULL ? judge(c, sock->input, &whole, &message) : 0;
    if (status != 0) {
        refuse(c, status, message);
    } else if (whole) {
        sock->_cb.read = c->h2o_on_read;
        c->h2o_on_read(sock, err);
    }
}

void http_look_at_first(struct http_conn *c)
{
    if (phr_parse_request != NULL)
        h2o_socket_read_start(c->sock, on_first_read);
}
