/* test_http_server.c - the whole front on real sockets, over a node in memory (fake_node.c): what
 * the contract promises, and what happens to clients that leave, dribble, stall or send garbage. */
#include "tests/unit/fake_node.h"

#include "base/clock.h"
#include "http/http.h"

#include <arpa/inet.h>
#include <errno.h>
#include <jansson.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>
#include <cmocka.h>

#define PATIENCE_MS 20000

/* --- A server and its client ------------------------------------------------------------------ */

static struct node *node;
static struct http_front *front;
static struct http_options options;
static struct krd_buf text; /* the answer at hand: headers and body, each NUL-terminated */

static int make_node(void **state)
{
    (void)state;
    http_options_init(&options);
    node = fake_node_create(options.max_request_bytes);
    options.node = node;
    options.listen = "127.0.0.1:0";
    return 0;
}

static void start(void)
{
    char *err = NULL;
    assert_int_equal(http_start(&options, &front, &err), KRD_OK);
}

static int setup(void **state)
{
    make_node(state);
    start();
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    fake_node_hold(node, false);
    http_stop(front);
    fake_node_destroy(node);
    front = NULL;
    node = NULL;
    krd_buf_deinit(&text);
    return 0;
}

struct client {
    int fd;
    struct krd_buf in; /* received, not yet taken */
};

static struct client dial_small(int receive_bytes)
{
    struct client c = {.fd = socket(AF_INET, SOCK_STREAM, 0)};
    struct sockaddr_in sa = {.sin_family = AF_INET, .sin_port = htons(http_port(front))};
    sa.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int on = 1;
    setsockopt(c.fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (receive_bytes > 0)
        setsockopt(c.fd, SOL_SOCKET, SO_RCVBUF, &receive_bytes, sizeof receive_bytes);
    assert_int_equal(connect(c.fd, (struct sockaddr *)&sa, sizeof sa), 0);
    return c;
}

static struct client dial(void)
{
    return dial_small(0);
}

static void hang_up(struct client *c)
{
    close(c->fd);
    krd_buf_deinit(&c->in);
}

/* With a reset instead of an orderly end. */
static void vanish(struct client *c)
{
    struct linger now = {1, 0};
    setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
    hang_up(c);
}

static void say_bytes(struct client *c, const void *p, size_t n)
{
    while (n > 0) {
        ssize_t w = send(c->fd, p, n, MSG_NOSIGNAL);
        if (w <= 0)
            return; /* refused: what was answered is looked at */
        p = (const char *)p + w;
        n -= (size_t)w;
    }
}

static void say(struct client *c, const char *s)
{
    say_bytes(c, s, strlen(s));
}

/* False at the end of the connection. */
static bool receive(struct client *c)
{
    struct pollfd p = {c->fd, POLLIN, 0};
    if (poll(&p, 1, PATIENCE_MS) != 1)
        fail_msg("nothing came");
    krd_buf_reserve(&c->in, 65536);
    ssize_t n = recv(c->fd, c->in.ptr + c->in.len, 65536, 0);
    if (n > 0)
        c->in.len += (size_t)n;
    return n > 0;
}

static void drop(struct client *c, size_t n)
{
    memmove(c->in.ptr, c->in.ptr + n, c->in.len - n);
    c->in.len -= n;
}

/* Next line without its end, or NULL at the end of the connection. */
static char *hear_line(struct client *c)
{
    static char line[65536];
    const uint8_t *nl;
    while ((nl = c->in.len > 0 ? memchr(c->in.ptr, '\n', c->in.len) : NULL) == NULL) {
        if (!receive(c))
            return NULL;
    }
    size_t n = (size_t)(nl - c->in.ptr);
    assert_true(n < sizeof line);
    memcpy(line, c->in.ptr, n);
    line[n] = '\0';
    if (n > 0 && line[n - 1] == '\r')
        line[n - 1] = '\0';
    drop(c, n + 1);
    return line;
}

struct answer {
    int status; /* 0: the connection ended */
    const char *headers, *body;
    size_t body_len;
};

static void hear_bytes(struct client *c, size_t n)
{
    while (c->in.len < n)
        assert_true(receive(c));
    krd_buf_put(&text, c->in.ptr, n);
    drop(c, n);
}

static void hear_chunks(struct client *c)
{
    for (;;) {
        char *line = hear_line(c);
        assert_non_null(line);
        size_t n = strtoul(line, NULL, 16);
        hear_bytes(c, n);
        assert_string_equal(hear_line(c), "");
        if (n == 0)
            return;
    }
}

/* Headers only: for streams. Returns the status. */
static int hear_head(struct client *c)
{
    char *line = hear_line(c);
    text.len = 0;
    if (line == NULL)
        return 0;
    int status = atoi(line + 9);
    while ((line = hear_line(c)) != NULL && line[0] != '\0')
        krd_buf_printf(&text, "%s\n", line);
    krd_buf_put_u8(&text, 0);
    return status;
}

static struct answer hear(struct client *c, bool head_only)
{
    struct answer a = {.status = hear_head(c)};
    if (a.status == 0)
        return a;
    size_t at = text.len;
    const char *length = strcasestr((char *)text.ptr, "Content-Length: ");
    if (head_only || a.status == 204 || a.status == 304)
        ;
    else if (length != NULL)
        hear_bytes(c, strtoul(length + 16, NULL, 10));
    else if (strcasestr((char *)text.ptr, "Transfer-Encoding: chunked") != NULL)
        hear_chunks(c);
    else
        while (receive(c) || c->in.len > 0)
            hear_bytes(c, c->in.len);
    a.body_len = text.len - at;
    krd_buf_put_u8(&text, 0);
    a.headers = (char *)text.ptr;
    a.body = (char *)text.ptr + at;
    return a;
}

static struct answer ask(struct client *c, const char *request)
{
    say(c, request);
    return hear(c, strncmp(request, "HEAD ", 5) == 0);
}

/* "METHOD TARGET", further headers, a body. */
static struct answer call_full(const char *line, const char *headers, const void *body, size_t len)
{
    struct client c = dial();
    struct krd_buf b = KRD_BUF_INIT;
    krd_buf_printf(&b, "%s HTTP/1.1\r\nHost: x\r\n%s", line, headers);
    if (body != NULL)
        krd_buf_printf(&b, "Content-Length: %zu\r\n", len);
    krd_buf_puts(&b, "\r\n");
    krd_buf_put(&b, body, len);
    say_bytes(&c, b.ptr, b.len);
    krd_buf_deinit(&b);
    struct answer a = hear(&c, strncmp(line, "HEAD ", 5) == 0);
    hang_up(&c);
    return a;
}

static struct answer call(const char *line, const char *body)
{
    return call_full(line, "", body, body != NULL ? strlen(body) : 0);
}

static void assert_header(struct answer a, const char *line)
{
    char want[256];
    snprintf(want, sizeof want, "%s\n", line);
    if (strstr(a.headers, want) == NULL)
        fail_msg("no \"%s\" in:\n%s", line, a.headers);
}

static void assert_error(struct answer a, int status, const char *code)
{
    char want[64];
    snprintf(want, sizeof want, "{\"error\":{\"code\":\"%s\",", code);
    if (a.status != status || strncmp(a.body, want, strlen(want)) != 0)
        fail_msg("wanted %d %s, have %d %s", status, code, a.status, a.body);
    assert_header(a, "Content-Type: application/json");
    assert_non_null(strstr(a.headers, "Kv-Revision: "));
}

static void await_size(size_t (*fn)(struct node *), size_t want)
{
    for (int i = 0; i < PATIENCE_MS && fn(node) != want; i++)
        usleep(1000);
    assert_int_equal(fn(node), want);
}

static uint64_t metric(const char *name)
{
    struct krd_buf b = KRD_BUF_INIT;
    http_metrics(front, &b);
    krd_buf_put_u8(&b, 0);
    char want[128];
    snprintf(want, sizeof want, "\n%s ", name);
    const char *at = strstr((char *)b.ptr, want);
    uint64_t v = at != NULL ? strtoull(at + strlen(want), NULL, 10) : UINT64_MAX;
    krd_buf_deinit(&b);
    return v;
}

static void await_metric(const char *name, uint64_t want)
{
    for (int i = 0; i < PATIENCE_MS && metric(name) != want; i++)
        usleep(1000);
    assert_int_equal(metric(name), want);
}

/* --- Keys ------------------------------------------------------------------------------------- */

static void a_value_comes_back_with_its_revisions(void **state)
{
    (void)state;
    struct answer a = call("PUT /v1/kv/a", "one");
    assert_int_equal(a.status, 201);
    assert_string_equal(a.body, "{\"revision\":2,\"created\":true,\"create_revision\":2,"
                                "\"mod_revision\":2,\"version\":1}\n");
    assert_header(a, "ETag: \"2\"");
    assert_header(a, "Kv-Revision: 2");
    assert_int_equal(call("PUT /v1/kv/b", "").status, 201);
    a = call("PUT /v1/kv/a?prev", "two");
    assert_int_equal(a.status, 200);
    assert_non_null(strstr(a.body, "\"prev\":{\"key\":\"a\",\"value\":\"one\""));
    a = call("GET /v1/kv/a", NULL);
    assert_int_equal(a.status, 200);
    assert_string_equal(a.body, "two");
    assert_header(a, "Content-Type: application/octet-stream");
    assert_header(a, "Content-Length: 3");
    assert_header(a, "ETag: \"4\"");
    assert_header(a, "Kv-Create-Revision: 2");
    assert_header(a, "Kv-Mod-Revision: 4");
    assert_header(a, "Kv-Version: 2");
    a = call("HEAD /v1/kv/a", NULL);
    assert_int_equal(a.status, 200);
    assert_header(a, "Content-Length: 3");
    a = call("GET /v1/kv/a?revision=2", NULL);
    assert_string_equal(a.body, "one");
    assert_int_equal(call("GET /v1/kv/b", NULL).body_len, 0);
    assert_error(call("GET /v1/kv/a?revision=99", NULL), 400, "bad_request");
}

static void a_missing_key_is_404_to_read_and_to_delete(void **state)
{
    (void)state;
    assert_error(call("GET /v1/kv/a", NULL), 404, "not_found");
    assert_error(call("DELETE /v1/kv/a", NULL), 404, "not_found");
    assert_int_equal(call("HEAD /v1/kv/a", NULL).status, 404);
    call("PUT /v1/kv/a", "1");
    struct answer a = call("DELETE /v1/kv/a?prev", NULL);
    assert_int_equal(a.status, 200);
    assert_non_null(strstr(a.body, "\"deleted\":1,\"prev\":{\"key\":\"a\",\"value\":\"1\""));
    a = call("DELETE /v1/kv/?prefix", NULL);
    assert_int_equal(a.status, 200);
    assert_string_equal(a.body, "{\"revision\":3,\"deleted\":0}\n");
}

static void any_bytes_are_a_key(void **state)
{
    (void)state;
    assert_int_equal(call_full("PUT /v1/kv/%00%2F/%ff+", "", "\0\xff", 2).status, 201);
    struct answer a = call("GET /v1/kv/%00//%FF%2b", NULL);
    assert_int_equal(a.status, 200);
    assert_int_equal(a.body_len, 2);
    assert_memory_equal(a.body, "\0\xff", 2);
    a = call("GET /v1/kv/?prefix", NULL);
    assert_non_null(strstr(a.body, "\"key_base64\":\"AC8v/ys=\",\"value_base64\":\"AP8=\""));
    call("PUT /v1/kv/x", "y");
    a = call("GET /v1/kv/x?prefix&encoding=base64", NULL);
    assert_non_null(strstr(a.body, "\"key_base64\":\"eA==\",\"value_base64\":\"eQ==\""));
    assert_error(call("PUT /v1/kv/", "1"), 400, "bad_request");
    assert_error(call("GET /v1/kv/", NULL), 400, "bad_request");
    assert_error(call("GET /v1/kv/%4", NULL), 400, "bad_request");
}

static void dots_and_double_slashes_are_parts_of_a_key(void **state)
{
    (void)state;
    call("PUT /v1/kv/a/../b//./c", "1");
    assert_int_equal(call("GET /v1/kv/b", NULL).status, 404);
    assert_string_equal(call("GET /v1/kv/a/../b//./c", NULL).body, "1");
    assert_string_equal(call("GET http://host/v1/kv/a%2f../b//./c", NULL).body, "1");
}

static void a_key_may_be_64_kib_and_no_longer(void **state)
{
    (void)state;
    struct krd_buf line = KRD_BUF_INIT;
    krd_buf_puts(&line, "PUT /v1/kv/");
    for (int i = 0; i < 65536; i++)
        krd_buf_puts(&line, "%41");
    krd_buf_put_u8(&line, 0);
    assert_int_equal(call((char *)line.ptr, "1").status, 201);
    line.len--;
    krd_buf_puts(&line, "A");
    krd_buf_put_u8(&line, 0);
    assert_error(call((char *)line.ptr, "1"), 413, "too_large");
    krd_buf_deinit(&line);
}

static void conditions_hold_or_nothing_happens(void **state)
{
    (void)state;
    assert_int_equal(call_full("PUT /v1/kv/a", "If-None-Match: *\r\n", "1", 1).status, 201);
    struct answer a = call_full("PUT /v1/kv/a", "If-None-Match: *\r\n", "2", 1);
    assert_error(a, 412, "precondition_failed");
    assert_header(a, "ETag: \"2\"");
    assert_int_equal(call_full("PUT /v1/kv/a", "If-Match: \"2\"\r\n", "3", 1).status, 200);
    assert_error(call_full("PUT /v1/kv/a", "If-Match: \"2\"\r\n", "4", 1), 412,
                 "precondition_failed");
    assert_error(call_full("DELETE /v1/kv/a", "If-Match: \"2\"\r\n", NULL, 0), 412,
                 "precondition_failed");
    assert_error(call_full("PUT /v1/kv/b", "If-Match: *\r\n", "5", 1), 412, "precondition_failed");
    assert_string_equal(call("GET /v1/kv/a", NULL).body, "3");
    a = call_full("GET /v1/kv/a", "If-None-Match: \"3\"\r\n", NULL, 0);
    assert_int_equal(a.status, 304);
    assert_header(a, "ETag: \"3\"");
    assert_string_equal(call_full("GET /v1/kv/a", "If-None-Match: \"2\"\r\n", NULL, 0).body, "3");
    assert_error(call_full("GET /v1/kv/a", "If-Match: \"2\"\r\n", NULL, 0), 412,
                 "precondition_failed");
    assert_int_equal(call_full("DELETE /v1/kv/a", "If-Match: \"3\"\r\n", NULL, 0).status, 200);
    assert_error(call_full("PUT /v1/kv/a", "If-Match: 3\r\n", "x", 1), 400, "bad_request");
    assert_error(call_full("PUT /v1/kv/a", "If-Match: \"1\", \"2\"\r\n", "x", 1), 400,
                 "bad_request");
    assert_error(call_full("DELETE /v1/kv/?prefix", "If-Match: \"3\"\r\n", NULL, 0), 400,
                 "bad_request");
    assert_error(call_full("PUT /v1/kv/a", "If-Match: \"3\"\r\nIf-Match: \"4\"\r\n", "x", 1), 400,
                 "bad_request");
}

static void what_is_not_supported_yet_is_refused(void **state)
{
    (void)state;
    assert_error(call_full("PUT /v1/kv/a", "Kv-Fence: l=4\r\n", "1", 1), 400, "bad_request");
    assert_error(call_full("PUT /v1/kv/a", "Idempotency-Key: x\r\n", "1", 1), 400, "bad_request");
    assert_error(call("GET /v1/kv/a", NULL), 404, "not_found");
}

static void a_put_may_bring_its_own_lease(void **state)
{
    (void)state;
    struct answer a = call("PUT /v1/kv/a?ttl=10", "1");
    assert_int_equal(a.status, 201);
    assert_header(a, "Kv-Lease: 0000000000001000");
    a = call_full("PUT /v1/kv/b?ttl=10", "If-None-Match: *\r\n", "1", 1);
    assert_header(a, "Kv-Lease: 0000000000001001");
    assert_int_equal(call("PUT /v1/kv/c?lease=1001", "1").status, 201);
    a = call("GET /v1/lease/1001", NULL);
    assert_string_equal(a.body, "{\"id\":\"0000000000001001\",\"ttl\":10,\"remaining\":9.500,"
                                "\"keys\":[{\"key\":\"b\"},{\"key\":\"c\"}]}\n");
    assert_error(call("PUT /v1/kv/c?lease=ff", "1"), 404, "not_found");
    assert_error(call("PUT /v1/kv/c?lease=1001&ttl=5", "1"), 400, "bad_request");
    assert_error(call("PUT /v1/kv/c?ttl=0", "1"), 400, "bad_request");
    assert_error(call("PUT /v1/kv/c?lease=-1", "1"), 400, "bad_request");
}

static void history_is_newest_first_with_deletions(void **state)
{
    (void)state;
    call("PUT /v1/kv/a", "1");
    call("PUT /v1/kv/a", "2");
    call("DELETE /v1/kv/a", NULL);
    struct answer a = call("GET /v1/kv/a?history", NULL);
    assert_string_equal(
        a.body, "{\"revision\":4,\"kvs\":[{\"key\":\"a\",\"deleted\":true,\"mod_revision\":4},"
                "{\"key\":\"a\",\"value\":\"2\",\"create_revision\":2,\"mod_revision\":3,"
                "\"version\":2},{\"key\":\"a\",\"value\":\"1\",\"create_revision\":2,"
                "\"mod_revision\":2,\"version\":1}],\"count\":3,\"more\":false}\n");
    a = call("GET /v1/kv/a?history&limit=1", NULL);
    assert_non_null(strstr(a.body, "\"count\":1,\"more\":true}"));
    assert_error(call("GET /v1/kv/b?history", NULL), 404, "not_found");
}

/* --- Lists ------------------------------------------------------------------------------------ */

static void put_many(int n, size_t value_len)
{
    char *value = krd_alloc(value_len), line[64];
    struct client c = dial();
    memset(value, 'v', value_len);
    for (int i = 0; i < n; i++) {
        snprintf(line, sizeof line, "PUT /v1/kv/k%06d HTTP/1.1\r\nContent-Length: %zu\r\n\r\n", i,
                 value_len);
        say(&c, line);
        say_bytes(&c, value, value_len);
        assert_int_equal(hear(&c, false).status, 201);
    }
    hang_up(&c);
    krd_free(value);
}

static json_t *parsed(struct answer a)
{
    json_t *root = json_loadb(a.body, a.body_len, 0, NULL);
    if (root == NULL)
        fail_msg("not JSON: %d %.200s", a.status, a.body);
    return root;
}

static void a_list_of_any_length_is_whole(void **state)
{
    (void)state;
    put_many(300, 2000);
    struct answer a = call("GET /v1/kv/k?prefix", NULL);
    assert_int_equal(a.status, 200);
    assert_non_null(strstr(a.headers, "chunked"));
    json_t *root = parsed(a), *kvs = json_object_get(root, "kvs");
    assert_int_equal(json_array_size(kvs), 300);
    for (size_t i = 0; i < 300; i++) {
        char key[16];
        snprintf(key, sizeof key, "k%06zu", i);
        json_t *kv = json_array_get(kvs, i);
        assert_string_equal(json_string_value(json_object_get(kv, "key")), key);
        assert_int_equal(json_string_length(json_object_get(kv, "value")), 2000);
    }
    assert_int_equal(json_integer_value(json_object_get(root, "count")), 300);
    assert_true(json_is_false(json_object_get(root, "more")));
    json_decref(root);
    a = call("GET /v1/kv/nothing?prefix", NULL);
    assert_int_equal(a.status, 200);
    assert_string_equal(a.body, "{\"revision\":301,\"kvs\":[],\"count\":0,\"more\":false}\n");
    assert_int_equal(call("HEAD /v1/kv/k?prefix", NULL).status, 200);
    await_size(fake_node_cursors, 0);
}

/* Page by page, in one order; each key exactly once. */
static void turn_pages(const char *order, int from, int step)
{
    char line[128], after[32] = "";
    for (int page = 0; page < 4; page++) {
        snprintf(line, sizeof line, "GET /v1/kv/k?prefix&keys&limit=3&order=%s%s%s", order,
                 after[0] != '\0' ? "&after=" : "", after);
        struct answer a = call(line, NULL);
        json_t *root = parsed(a), *kvs = json_object_get(root, "kvs");
        assert_int_equal(json_array_size(kvs), page < 3 ? 3 : 1);
        assert_int_equal(json_is_true(json_object_get(root, "more")), page < 3);
        assert_int_equal(json_integer_value(json_object_get(root, "count")), 10 - page * 3);
        for (size_t i = 0; i < json_array_size(kvs); i++, from += step) {
            json_t *kv = json_array_get(kvs, i);
            assert_null(json_object_get(kv, "value"));
            snprintf(after, sizeof after, "k%06d", from);
            assert_string_equal(json_string_value(json_object_get(kv, "key")), after);
        }
        json_decref(root);
    }
    snprintf(line, sizeof line, "GET /v1/kv/k?prefix&order=%s&after=%s", order, after);
    assert_non_null(strstr(call(line, NULL).body, "\"kvs\":[],\"count\":0,\"more\":false"));
}

static void pages_cover_a_range_once_in_both_orders(void **state)
{
    (void)state;
    put_many(10, 1);
    call("PUT /v1/kv/j", "before");
    call("PUT /v1/kv/l", "behind");
    turn_pages("asc", 0, 1);
    turn_pages("desc", 9, -1);
    assert_error(call("GET /v1/kv/k?prefix&limit=0", NULL), 400, "bad_request");
    assert_error(call("GET /v1/kv/k?prefix&order=up", NULL), 400, "bad_request");
    assert_error(call("GET /v1/kv/k?prefix&after=", NULL), 400, "bad_request");
    assert_error(call("GET /v1/kv/k?limit=5", NULL), 400, "bad_request");
}

static void a_list_waits_for_its_reader(void **state)
{
    (void)state;
    put_many(400, 20000); /* 8 MB: more than any socket buffer here */
    struct client c = dial_small(32768);
    say(&c, "GET /v1/kv/k?prefix HTTP/1.1\r\n\r\n");
    await_size(fake_node_cursors, 1);
    /* Others are served meanwhile, and the list stays open. */
    for (int i = 0; i < 50; i++)
        assert_int_equal(call("GET /v1/kv/k000001", NULL).status, 200);
    assert_int_equal(fake_node_cursors(node), 1);
    struct answer a = hear(&c, false);
    json_t *root = parsed(a);
    assert_int_equal(json_array_size(json_object_get(root, "kvs")), 400);
    json_decref(root);
    hang_up(&c);
    await_size(fake_node_cursors, 0);
}

static void http_1_0_gets_a_list_that_ends_with_the_connection(void **state)
{
    (void)state;
    put_many(100, 2000);
    struct client c = dial();
    struct answer a = ask(&c, "GET /v1/kv/k?prefix HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    assert_header(a, "Connection: close");
    json_t *root = parsed(a);
    assert_int_equal(json_array_size(json_object_get(root, "kvs")), 100);
    json_decref(root);
    hang_up(&c);
}

/* --- Reads and barriers ----------------------------------------------------------------------- */

static void reads_of_one_moment_share_a_barrier(void **state)
{
    (void)state;
    enum { N = 50 };
    struct client c[N];
    call("PUT /v1/kv/a", "1");
    for (int i = 0; i < N; i++)
        c[i] = dial();
    await_metric("kvraftd_http_connections", N);
    size_t before = fake_node_barriers(node);
    fake_node_hold(node, true);
    for (int i = 0; i < N; i++)
        say(&c[i], "GET /v1/kv/a HTTP/1.1\r\n\r\n");
    usleep(50 * 1000); /* not awaited: only so that most of them have come */
    fake_node_hold(node, false);
    for (int i = 0; i < N; i++) {
        assert_string_equal(hear(&c[i], false).body, "1");
        hang_up(&c[i]);
    }
    assert_true(fake_node_barriers(node) - before < N / 2);
}

static void a_read_starts_its_barrier_after_it_came(void **state)
{
    (void)state;
    struct client one = dial(), two = dial();
    fake_node_hold(node, true);
    say(&one, "GET /v1/kv/a HTTP/1.1\r\n\r\n");
    await_size(fake_node_waiting, 1);
    /* The second read comes while the first barrier hangs: it needs one of its own. */
    say(&two, "GET /v1/kv/a HTTP/1.1\r\n\r\n");
    await_size(fake_node_waiting, 2);
    fake_node_hold(node, false);
    assert_int_equal(hear(&one, false).status, 404);
    assert_int_equal(hear(&two, false).status, 404);
    hang_up(&one);
    hang_up(&two);
}

static void local_reads_need_no_barrier_but_freshness(void **state)
{
    (void)state;
    call("PUT /v1/kv/a", "1");
    size_t before = fake_node_barriers(node);
    fake_node_set_staleness(node, 300);
    assert_string_equal(call("GET /v1/kv/a?consistency=serializable", NULL).body, "1");
    assert_string_equal(call("GET /v1/kv/a?max_stale=500ms", NULL).body, "1");
    struct answer a = call("GET /v1/kv/a?max_stale=200ms", NULL);
    assert_error(a, 503, "stale");
    assert_header(a, "Retry-After: 1");
    assert_int_equal(fake_node_barriers(node), before);
    assert_error(call("GET /v1/kv/a?max_stale=1s&consistency=linearizable", NULL), 400,
                 "bad_request");
    assert_error(call("GET /v1/kv/a?consistency=strong", NULL), 400, "bad_request");
}

static void a_node_that_refuses_is_told_apart(void **state)
{
    (void)state;
    fake_node_refuse(node, KRD_NO_LEADER);
    struct answer a = call("GET /v1/kv/a", NULL);
    assert_error(a, 503, "no_leader");
    assert_header(a, "Retry-After: 1");
    assert_error(call("PUT /v1/kv/a", "1"), 503, "no_leader");
    assert_error(call("GET /readyz", NULL), 503, "no_leader");
    assert_int_equal(call("GET /health", NULL).status, 503);
    assert_int_equal(call("GET /livez", NULL).status, 200);
    fake_node_refuse(node, KRD_OUTCOME_UNKNOWN);
    assert_error(call("PUT /v1/kv/a", "1"), 504, "outcome_unknown");
    fake_node_refuse(node, KRD_OVERLOADED);
    assert_error(call("POST /v1/txn", "{}"), 503, "overloaded");
    fake_node_refuse(node, KRD_NO_SPACE);
    assert_error(call("PUT /v1/kv/a", "1"), 507, "no_space");
    fake_node_refuse(node, KRD_OK);
    assert_error(call("GET /v1/kv/a", NULL), 404, "not_found");
}

/* --- HTTP itself ------------------------------------------------------------------------------ */

static void pipelined_requests_are_answered_in_order(void **state)
{
    (void)state;
    struct client c = dial();
    say(&c,
        "PUT /v1/kv/a HTTP/1.1\r\nContent-Length: 1\r\n\r\n1"
        "GET /v1/kv/a HTTP/1.1\r\n\r\n"
        "HEAD /v1/kv/a HTTP/1.1\r\n\r\n"
        "PUT /v1/kv/a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n"
        "GET /v1/kv/a HTTP/1.1\r\n\r\n"
        "GET /v1/kv/none HTTP/1.1\r\nConnection: close\r\n\r\n");
    assert_int_equal(hear(&c, false).status, 201);
    assert_string_equal(hear(&c, false).body, "1");
    assert_int_equal(hear(&c, true).status, 200);
    assert_int_equal(hear(&c, false).status, 200);
    assert_string_equal(hear(&c, false).body, "abc");
    assert_int_equal(hear(&c, false).status, 404);
    assert_int_equal(hear(&c, false).status, 0);
    hang_up(&c);
}

static void a_request_in_single_bytes_and_half_closed_is_answered(void **state)
{
    (void)state;
    static const char request[] = "PUT /v1/kv/a HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc";
    struct client c = dial();
    for (const char *p = request; *p != '\0'; p++) {
        say_bytes(&c, p, 1);
        usleep(100);
    }
    shutdown(c.fd, SHUT_WR);
    assert_int_equal(hear(&c, false).status, 201);
    hang_up(&c);
    /* Closed long before the answer is ready. */
    c = dial();
    fake_node_hold(node, true);
    say(&c, "GET /v1/kv/a HTTP/1.1\r\n\r\n");
    shutdown(c.fd, SHUT_WR);
    await_size(fake_node_waiting, 1);
    usleep(20 * 1000);
    fake_node_hold(node, false);
    assert_string_equal(hear(&c, false).body, "abc");
    hang_up(&c);
}

static void a_body_over_the_limit_is_refused_before_it_comes(void **state)
{
    (void)state;
    struct client c = dial();
    /* Not a byte of it was sent. */
    struct answer a = ask(&c, "PUT /v1/kv/a HTTP/1.1\r\nContent-Length: 1000000000\r\n\r\n");
    assert_error(a, 413, "too_large");
    assert_header(a, "Connection: close");
    hang_up(&c);
    c = dial();
    a = ask(&c, "PUT /v1/kv/a HTTP/1.1\r\nContent-Length: 1000000000\r\nExpect: "
                "100-continue\r\n\r\n");
    assert_error(a, 413, "too_large");
    hang_up(&c);
}

/* The answer must survive that the rest of the body arrives at a closed connection. */
static void a_refused_body_that_comes_anyway_does_not_hide_the_answer(void **state)
{
    (void)state;
    size_t n = 3 * 1024 * 1024;
    char *body = krd_zalloc(n), chunk[64];
    assert_error(call_full("PUT /v1/kv/a", "", body, n), 413, "too_large");
    struct client c = dial();
    snprintf(chunk, sizeof chunk, "%zx\r\n", n);
    say(&c, "PUT /v1/kv/a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n");
    say(&c, chunk);
    say_bytes(&c, body, n);
    assert_error(hear(&c, false), 413, "too_large");
    hang_up(&c);
    krd_free(body);
}

static void the_limit_itself_is_allowed_however_it_is_framed(void **state)
{
    (void)state;
    size_t n = options.max_request_bytes;
    char *body = krd_zalloc(n + 1), chunk[64];
    assert_int_equal(call_full("PUT /v1/kv/a", "", body, n).status, 201);
    assert_error(call_full("PUT /v1/kv/a", "", body, n + 1), 413, "too_large");
    for (size_t extra = 0; extra < 2; extra++) {
        struct client c = dial();
        snprintf(chunk, sizeof chunk, "%zx\r\n", n + extra);
        say(&c, "PUT /v1/kv/a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n");
        say(&c, chunk);
        say_bytes(&c, body, n + extra);
        say(&c, "\r\n0\r\n\r\n");
        assert_int_equal(hear(&c, false).status, extra == 0 ? 200 : 413);
        hang_up(&c);
    }
    krd_free(body);
}

static void expect_100_continue_is_answered(void **state)
{
    (void)state;
    struct client c = dial();
    say(&c, "PUT /v1/kv/a HTTP/1.1\r\nContent-Length: 1\r\nExpect: 100-continue\r\n\r\n");
    assert_string_equal(hear_line(&c), "HTTP/1.1 100 Continue");
    assert_string_equal(hear_line(&c), "");
    say(&c, "1");
    assert_int_equal(hear(&c, false).status, 201);
    hang_up(&c);
    assert_error(call_full("PUT /v1/kv/a", "Expect: miracles\r\n", "1", 1), 417, "bad_request");
}

static void malformed_framing_is_refused_in_json(void **state)
{
    (void)state;
    static const char *const bad[] = {
        "PUT /v1/kv/a HTTP/1.1\r\nContent-Length: x\r\n\r\n",
        "PUT /v1/kv/a HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        "PUT /v1/kv/a HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n",
        "PUT /v1/kv/a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        "PUT /v1/kv/a HTTP/1.1\r\nContent-Length: 1\r\nCONTENT-LENGTH: 2\r\n\r\n12",
        "PUT /v1/kv/a HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"
        "0\r\n\r\n",
        "PUT /v1/kv/a HTTP/1.1\r\ntransfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n"
        "0\r\n\r\n",
    };
    for (size_t i = 0; i < KRD_ARRAY_LEN(bad); i++) {
        struct client c = dial();
        assert_error(ask(&c, bad[i]), 400, "bad_request");
        assert_int_equal(hear(&c, false).status, 0);
        hang_up(&c);
    }
}

static void garbage_is_refused_and_the_server_lives(void **state)
{
    (void)state;
    static const char *const bad[] = {"\x16\x03\x01\x02\x01\x01\n\n", "GET\r\n\r\n",
                                      "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "GET / HTTP/9.9\r\n\r\n",
                                      "GET /v1/kv/a HTTP/1.1\r\nno colon\r\n\r\n"};
    for (size_t i = 0; i < KRD_ARRAY_LEN(bad); i++) {
        struct client c = dial();
        assert_error(ask(&c, bad[i]), 400, "bad_request");
        assert_int_equal(hear(&c, false).status, 0);
        hang_up(&c);
    }
    /* Behind a good request h2o answers by itself. */
    struct client c = dial();
    assert_int_equal(ask(&c, "GET /livez HTTP/1.1\r\n\r\n").status, 200);
    assert_int_equal(ask(&c, "\x01\r\n\r\n").status, 400);
    assert_int_equal(hear(&c, false).status, 0);
    hang_up(&c);
}

static void headers_over_the_limit_are_refused(void **state)
{
    (void)state;
    struct krd_buf headers = KRD_BUF_INIT;
    for (int i = 0; i < 99; i++)
        krd_buf_printf(&headers, "X-%d: y\r\n", i);
    krd_buf_put_u8(&headers, 0);
    assert_int_equal(call_full("GET /livez", (char *)headers.ptr, NULL, 0).status, 200);
    headers.len--;
    krd_buf_puts(&headers, "X: 1\r\nX: 2\r\n");
    krd_buf_put_u8(&headers, 0);
    assert_error(call_full("GET /livez", (char *)headers.ptr, NULL, 0), 431, "too_large");
    /* Beyond our limit, then beyond h2o's. */
    static const int sizes[] = {70 * 1000, 500 * 1000};
    for (int i = 0; i < 2; i++) {
        headers.len = 0;
        krd_buf_puts(&headers, "X: ");
        for (int n = 0; n < sizes[i]; n++)
            krd_buf_put_u8(&headers, 'x');
        krd_buf_puts(&headers, "\r\n");
        krd_buf_put_u8(&headers, 0);
        assert_error(call_full("GET /livez", (char *)headers.ptr, NULL, 0), 431, "too_large");
    }
    krd_buf_deinit(&headers);
}

static void a_method_that_does_not_fit_is_405_with_allow(void **state)
{
    (void)state;
    struct answer a = call("POST /v1/kv/a", "1");
    assert_error(a, 405, "method_not_allowed");
    assert_header(a, "Allow: GET, HEAD, PUT, DELETE, OPTIONS");
    assert_error(call("BREW /v1/txn", NULL), 405, "method_not_allowed");
    assert_error(call("GET /v1/nothing", NULL), 404, "not_found");
    a = call("OPTIONS /v1/txn", NULL);
    assert_int_equal(a.status, 204);
    assert_header(a, "Allow: POST, OPTIONS");
    assert_int_equal(call("OPTIONS *", NULL).status, 204);
    assert_null(strstr(a.headers, "Access-Control"));
}

static void cors_is_answered_when_it_is_asked_for(void **state)
{
    (void)state;
    options.cors_origin = "https://example.org";
    start();
    struct answer a = call("OPTIONS /v1/kv/a", NULL);
    assert_header(a, "Access-Control-Allow-Origin: https://example.org");
    assert_header(a, "Access-Control-Allow-Methods: GET, HEAD, PUT, DELETE, OPTIONS");
    a = call("GET /v1/kv/a", NULL);
    assert_header(a, "Access-Control-Allow-Origin: https://example.org");
}

static void an_idle_connection_is_closed(void **state)
{
    (void)state;
    options.request_timeout_ms = 200;
    start();
    struct client idle = dial(), dribbler = dial();
    say(&dribbler, "GET /v1/kv/a HT");
    assert_int_equal(hear(&idle, false).status, 0);
    assert_int_equal(hear(&dribbler, false).status, 0);
    hang_up(&idle);
    hang_up(&dribbler);
}

static void a_client_that_takes_nothing_is_cut_off(void **state)
{
    (void)state;
    options.stall_timeout_ms = 300;
    start();
    put_many(400, 20000);
    struct client c = dial_small(32768);
    say(&c, "GET /v1/kv/k?prefix HTTP/1.1\r\n\r\n");
    await_size(fake_node_cursors, 1);
    await_size(fake_node_cursors, 0);
    assert_int_equal(metric("kvraftd_http_stalled_clients_total"), 1);
    hang_up(&c);
}

static void a_client_that_leaves_costs_nothing_afterwards(void **state)
{
    (void)state;
    fake_node_hold(node, true);
    for (int i = 0; i < 20; i++) {
        struct client put = dial(), get = dial(), list = dial(), watch = dial();
        say(&put, "PUT /v1/kv/a HTTP/1.1\r\nContent-Length: 1\r\n\r\n1");
        say(&get, "GET /v1/kv/a HTTP/1.1\r\n\r\n");
        say(&list, "GET /v1/kv/?prefix HTTP/1.1\r\n\r\n");
        say(&watch, "GET /v1/watch/?prefix HTTP/1.1\r\n\r\n");
        assert_int_equal(hear_head(&watch), 200);
        vanish(&put);
        vanish(&get);
        vanish(&list);
        vanish(&watch);
    }
    /* All are noticed while their answers are still owed. */
    await_metric("kvraftd_http_connections", 0);
    assert_int_equal(metric("kvraftd_http_watchers"), 0);
    assert_int_equal(fake_node_watches(node), 0);
    assert_true(fake_node_waiting(node) > 0);
    fake_node_hold(node, false);
    await_size(fake_node_waiting, 0);
    call("PUT /v1/kv/b", "still there");
    assert_int_equal(fake_node_cursors(node), 0);
}

static void a_watch_ends_when_its_client_hangs_up(void **state)
{
    (void)state;
    options.bookmark_ms = 3600 * 1000; /* nothing is written that could fail */
    start();
    struct client stream = dial(), polling = dial();
    say(&stream, "GET /v1/watch/a HTTP/1.1\r\n\r\n");
    assert_int_equal(hear_head(&stream), 200);
    say(&polling, "GET /v1/watch/a?once&timeout=1h HTTP/1.1\r\n\r\n");
    await_size(fake_node_watches, 2);
    hang_up(&stream);
    hang_up(&polling);
    await_size(fake_node_watches, 0);
    await_metric("kvraftd_http_connections", 0);
}

/* --- Watches ---------------------------------------------------------------------------------- */

/* Lines of a chunked stream. */
struct stream {
    struct client c;
    size_t chunk; /* bytes left of the present one */
};

static struct stream watch(const char *target, const char *headers)
{
    struct stream s = {.c = dial()};
    char request[512];
    snprintf(request, sizeof request, "GET %s HTTP/1.1\r\n%s\r\n", target, headers);
    say(&s.c, request);
    assert_int_equal(hear_head(&s.c), 200);
    return s;
}

/* NULL at the stream's proper end. */
static char *next_line(struct stream *s)
{
    static char line[65536];
    size_t n = 0;
    for (;;) {
        if (s->chunk == 0) {
            char *size = hear_line(&s->c);
            assert_non_null(size);
            s->chunk = strtoul(size, NULL, 16);
            if (s->chunk == 0)
                return NULL;
        }
        while (s->c.in.len == 0)
            assert_true(receive(&s->c));
        size_t have = krd_min_size(s->chunk, s->c.in.len);
        const uint8_t *nl = memchr(s->c.in.ptr, '\n', have);
        size_t take = nl != NULL ? (size_t)(nl - s->c.in.ptr) + 1 : have;
        assert_true(n + take <= sizeof line);
        memcpy(line + n, s->c.in.ptr, take);
        n += take;
        s->chunk -= take;
        drop(&s->c, take);
        if (s->chunk == 0)
            assert_string_equal(hear_line(&s->c), "");
        if (nl != NULL) {
            line[n - 1] = '\0';
            return line;
        }
    }
}

#define BOOKMARK(n) "{\"type\":\"bookmark\",\"revision\":" #n "}"

static void a_watch_tells_what_happens_from_then_on(void **state)
{
    (void)state;
    call("PUT /v1/kv/a", "0");
    struct stream s = watch("/v1/watch/a", "");
    assert_non_null(strstr((char *)text.ptr, "application/x-ndjson"));
    assert_string_equal(next_line(&s), BOOKMARK(2));
    call("PUT /v1/kv/a", "1");
    call("PUT /v1/kv/ab", "not watched");
    call("DELETE /v1/kv/a", NULL);
    assert_string_equal(next_line(&s), "{\"type\":\"put\",\"key\":\"a\",\"value\":\"1\","
                                       "\"mod_revision\":3,\"create_revision\":2,\"version\":2}");
    assert_string_equal(next_line(&s), "{\"type\":\"delete\",\"key\":\"a\",\"mod_revision\":5}");
    hang_up(&s.c);
}

static void a_watch_resumes_from_any_revision(void **state)
{
    (void)state;
    call("PUT /v1/kv/p/a", "1");
    call("POST /key", "{\"p/b\":\"2\",\"q\":\"x\",\"p/c\":\"3\"}");
    call("DELETE /v1/kv/p/a", NULL);
    struct stream s = watch("/v1/watch/p/?prefix&from=3&prev", "");
    assert_string_equal(next_line(&s), BOOKMARK(2));
    assert_non_null(strstr(next_line(&s), "\"key\":\"p/b\""));
    assert_non_null(strstr(next_line(&s), "\"key\":\"p/c\""));
    assert_string_equal(next_line(&s),
                        "{\"type\":\"delete\",\"key\":\"p/a\",\"mod_revision\":4,\"prev\":{\"key\":"
                        "\"p/a\",\"value\":\"1\",\"create_revision\":2,\"mod_revision\":2,"
                        "\"version\":1}}");
    hang_up(&s.c);
    s = watch("/v1/watch/?prefix&from=1&delete", "");
    assert_string_equal(next_line(&s), BOOKMARK(0));
    assert_string_equal(next_line(&s), "{\"type\":\"delete\",\"key\":\"p/a\",\"mod_revision\":4}");
    hang_up(&s.c);
    call("POST /v1/compact", "{\"revision\":3}");
    struct answer a = call("GET /v1/watch/a?from=2", NULL);
    assert_error(a, 410, "compacted");
    assert_non_null(strstr(a.body, "\"oldest_revision\":3"));
    assert_error(call("GET /v1/watch/a?from=x", NULL), 400, "bad_request");
    assert_error(call("GET /v1/watch/", NULL), 400, "bad_request");
    assert_error(call("GET /v1/watch/a?timeout=5s", NULL), 400, "bad_request");
}

static void bookmarks_come_while_nothing_happens(void **state)
{
    (void)state;
    options.bookmark_ms = 100;
    start();
    struct stream s = watch("/v1/watch/a", "");
    assert_string_equal(next_line(&s), BOOKMARK(1));
    call("PUT /v1/kv/b", "elsewhere");
    char *line;
    do
        line = next_line(&s);
    while (strcmp(line, BOOKMARK(1)) == 0);
    assert_string_equal(line, BOOKMARK(2));
    hang_up(&s.c);
}

static void a_browser_resumes_behind_whole_revisions(void **state)
{
    (void)state;
    struct stream s = watch("/v1/watch/?prefix", "Accept: text/event-stream\r\n");
    assert_non_null(strstr((char *)text.ptr, "text/event-stream"));
    assert_string_equal(next_line(&s), "retry: 1000");
    assert_string_equal(next_line(&s), "id: 1");
    assert_string_equal(next_line(&s), "data: " BOOKMARK(1));
    assert_string_equal(next_line(&s), "");
    call("POST /key", "{\"a\":\"1\",\"b\":\"2\"}");
    assert_non_null(strstr(next_line(&s), "data: {\"type\":\"put\",\"key\":\"a\""));
    assert_string_equal(next_line(&s), "");
    assert_string_equal(next_line(&s), "id: 2"); /* with the revision's last event only */
    assert_non_null(strstr(next_line(&s), "data: {\"type\":\"put\",\"key\":\"b\""));
    assert_string_equal(next_line(&s), "");
    hang_up(&s.c);
    /* The URL of the first time is repeated; the header wins. */
    s = watch("/v1/watch/?prefix&from=9", "Accept: text/event-stream\r\nLast-Event-ID: 1\r\n");
    assert_string_equal(next_line(&s), "retry: 1000");
    assert_string_equal(next_line(&s), "id: 1");
    next_line(&s);
    next_line(&s);
    assert_non_null(strstr(next_line(&s), "\"key\":\"a\""));
    hang_up(&s.c);
}

static void a_long_poll_answers_once(void **state)
{
    (void)state;
    struct answer a = call("GET /v1/watch/a?once&timeout=100ms", NULL);
    assert_int_equal(a.status, 200);
    assert_string_equal(a.body, BOOKMARK(1) "\n");
    call("POST /key", "{\"a\":\"1\",\"b\":\"2\"}");
    call("PUT /v1/kv/a", "2");
    a = call("GET /v1/watch/?prefix&once&from=2", NULL);
    assert_non_null(strstr(a.headers, "Content-Length: "));
    assert_non_null(strstr(a.body, "\"key\":\"a\""));
    assert_non_null(strstr(a.body, "\"key\":\"b\""));
    assert_null(strstr(a.body, "\"mod_revision\":3"));
    struct client c = dial();
    say(&c, "GET /v1/watch/c?once HTTP/1.1\r\n\r\n");
    await_size(fake_node_watches, 1);
    call("PUT /v1/kv/c", "3");
    a = hear(&c, false);
    assert_non_null(strstr(a.body, "\"value\":\"3\""));
    /* The connection serves on. */
    assert_string_equal(ask(&c, "GET /v1/kv/c HTTP/1.1\r\n\r\n").body, "3");
    hang_up(&c);
}

static void a_slow_watcher_rests_and_misses_nothing(void **state)
{
    (void)state;
    struct stream s = {.c = dial_small(32768)};
    say(&s.c, "GET /v1/watch/k?prefix HTTP/1.1\r\n\r\n");
    assert_int_equal(hear_head(&s.c), 200);
    assert_string_equal(next_line(&s), BOOKMARK(1));
    put_many(600, 20000); /* 12 MB that nobody reads */
    for (int i = 0; i < 600; i++) {
        char want[48];
        snprintf(want, sizeof want, "{\"type\":\"put\",\"key\":\"k%06d\",", i);
        char *line = next_line(&s);
        if (strncmp(line, want, strlen(want)) != 0)
            fail_msg("%s: %.60s", want, line);
    }
    hang_up(&s.c);
}

/* --- Stopping --------------------------------------------------------------------------------- */

static void *stop(void *arg)
{
    (void)arg;
    http_stop(front);
    return NULL;
}

static void stopping_finishes_what_is_in_flight(void **state)
{
    (void)state;
    struct client put = dial(), idle = dial(), poll_client = dial();
    struct stream s = watch("/v1/watch/a", "");
    pthread_t t;
    assert_string_equal(next_line(&s), BOOKMARK(1));
    assert_int_equal(ask(&idle, "GET /livez HTTP/1.1\r\n\r\n").status, 200);
    say(&poll_client, "GET /v1/watch/zz?once HTTP/1.1\r\n\r\n");
    await_size(fake_node_watches, 2);
    fake_node_hold(node, true);
    say(&put, "PUT /v1/kv/a HTTP/1.1\r\nContent-Length: 1\r\n\r\n1");
    await_size(fake_node_waiting, 1);
    pthread_create(&t, NULL, stop, NULL);
    assert_string_equal(next_line(&s), BOOKMARK(1));
    assert_non_null(strstr(next_line(&s), "\"code\":\"stopping\""));
    assert_null(next_line(&s));
    assert_string_equal(hear(&poll_client, false).body, BOOKMARK(1) "\n");
    assert_int_equal(hear(&idle, false).status, 0);
    fake_node_hold(node, false);
    struct answer a = hear(&put, false);
    assert_int_equal(a.status, 201);
    assert_header(a, "Connection: close");
    pthread_join(t, NULL);
    hang_up(&put);
    hang_up(&idle);
    hang_up(&poll_client);
    hang_up(&s.c);
    front = NULL; /* teardown has nothing left to stop */
}

static void stopping_does_not_wait_for_those_who_do_not_read(void **state)
{
    (void)state;
    options.drain_ms = 200;
    start();
    put_many(400, 20000);
    struct client c = dial_small(32768);
    say(&c, "GET /v1/kv/k?prefix HTTP/1.1\r\n\r\n");
    await_size(fake_node_cursors, 1);
    uint64_t began = krd_mono_ms();
    http_stop(front);
    front = NULL;
    assert_true(krd_mono_ms() - began < PATIENCE_MS / 2);
    assert_int_equal(fake_node_cursors(node), 0);
    hang_up(&c);
}

/* --- Starting --------------------------------------------------------------------------------- */

static void a_bad_address_is_one_clear_sentence(void **state)
{
    (void)state;
    struct http_front *second = NULL;
    char *err = NULL, address[32];
    snprintf(address, sizeof address, "127.0.0.1:%u", http_port(front));
    options.listen = address;
    assert_int_equal(http_start(&options, &second, &err), KRD_IO);
    assert_non_null(strstr(err, "Address already in use"));
    krd_free(err);
    options.listen = "nonsense";
    assert_int_equal(http_start(&options, &second, &err), KRD_BAD_REQUEST);
    assert_non_null(strstr(err, "nonsense"));
    krd_free(err);
    options.listen = "no-such-host.invalid:80";
    assert_int_equal(http_start(&options, &second, &err), KRD_IO);
    assert_non_null(strstr(err, "no-such-host.invalid"));
    krd_free(err);
}

static void a_bare_port_takes_ipv4_and_several_loops_share_it(void **state)
{
    (void)state;
    options.listen = ":0";
    options.threads = 3;
    start();
    call("PUT /v1/kv/a", "1");
    for (int i = 0; i < 60; i++)
        assert_string_equal(call("GET /v1/kv/a", NULL).body, "1");
}

static void many_idle_connections_are_no_burden(void **state)
{
    (void)state;
    enum { N = 2000 };
    static struct client c[N];
    for (int i = 0; i < N; i++)
        c[i] = dial();
    await_metric("kvraftd_http_connections", N);
    assert_int_equal(ask(&c[N - 1], "GET /livez HTTP/1.1\r\n\r\n").status, 200);
    for (int i = 0; i < N; i++)
        hang_up(&c[i]);
    await_metric("kvraftd_http_connections", 0);
}

/* --- The other calls -------------------------------------------------------------------------- */

static void a_transaction_is_carried_out_or_refused(void **state)
{
    (void)state;
    struct answer a = call(
        "POST /v1/txn", "{\"if\":[{\"key\":\"a\",\"version\":0}],\"then\":[{\"put\":{\"key\":\"a\","
                        "\"value\":\"1\"}}],\"else\":[{\"get\":{\"key\":\"a\"}}]}");
    assert_int_equal(a.status, 200);
    assert_string_equal(a.body, "{\"revision\":2,\"succeeded\":true,\"results\":[{\"put\":{"
                                "\"created\":true,\"create_revision\":2,\"mod_revision\":2,"
                                "\"version\":1}}]}\n");
    a = call("POST /v1/txn", "{\"if\":[{\"key\":\"a\",\"value\":{\"lt\":\"1\"}}],"
                             "\"else\":[{\"get\":{\"key\":\"a\"}}]}");
    assert_non_null(strstr(a.body,
                           "\"succeeded\":false,\"failed_compare\":0,\"results\":[{\"get\":{"
                           "\"kvs\":[{\"key\":\"a\",\"value\":\"1\""));
    assert_error(call("POST /v1/txn", "{\"if\":[{\"key\":\"a\"}]}"), 400, "bad_request");
    assert_error(call("POST /v1/txn", ""), 400, "bad_request");
    assert_error(call("POST /v1/txn?x", "{}"), 400, "bad_request");
    assert_int_equal(call("POST /v1/txn", "{}").status, 200);
}

static void leases_are_granted_renewed_and_ended(void **state)
{
    (void)state;
    struct answer a = call("POST /v1/lease", "{\"ttl\":10}");
    assert_string_equal(a.body, "{\"id\":\"0000000000001000\",\"ttl\":10}\n");
    assert_int_equal(call("POST /v1/lease", "{\"ttl\":10,\"id\":\"abc\"}").status, 200);
    assert_error(call("POST /v1/lease", "{\"ttl\":10,\"id\":\"abc\"}"), 409, "conflict");
    assert_string_equal(call("POST /v1/lease/abc/keepalive", NULL).body, "{\"ttl\":10}\n");
    assert_error(call("POST /v1/lease/abd/keepalive", NULL), 404, "not_found");
    assert_error(call("POST /v1/lease/xyz/keepalive", NULL), 400, "bad_request");
    assert_non_null(strstr(call("GET /v1/lease", NULL).body, "\"count\":2"));
    assert_string_equal(call("DELETE /v1/lease/abc", NULL).body, "{\"revision\":1}\n");
    assert_error(call("DELETE /v1/lease/abc", NULL), 404, "not_found");
    assert_error(call("GET /v1/lease/abc", NULL), 404, "not_found");
    assert_error(call("POST /v1/lease", "{}"), 400, "bad_request");
    assert_error(call("POST /v1/lease", "{\"ttl\":0}"), 400, "bad_request");
    assert_error(call("POST /v1/lease", "{\"ttl\":\"10\"}"), 400, "bad_request");
    assert_error(call("POST /v1/lease", "{\"ttl\":10,\"tll\":1}"), 400, "bad_request");
}

static void hraftds_clients_are_at_home(void **state)
{
    (void)state;
    struct answer a = call("POST /key", "{\"k\":\"v\",\"l\":\"w\"}");
    assert_int_equal(a.status, 200);
    assert_int_equal(a.body_len, 0);
    assert_header(a, "Kv-Revision: 2");
    assert_string_equal(call("GET /key/k", NULL).body, "{\"k\":\"v\"}");
    assert_string_equal(call("GET /key/none", NULL).body, "{\"none\":\"\"}");
    assert_int_equal(call("DELETE /key/k", NULL).status, 200);
    assert_int_equal(call("DELETE /key/k", NULL).status, 200);
    assert_error(call("POST /key", "{\"k\":1}"), 400, "bad_request");
    assert_error(call("POST /key", "[]"), 400, "bad_request");
    assert_error(call("GET /key/", NULL), 400, "bad_request");
    a = call("GET /status", NULL);
    assert_string_equal(a.body, "{\"me\":{\"id\":\"n1\",\"address\":\"127.0.0.1:12000\"},"
                                "\"leader\":{\"id\":\"n1\",\"address\":\"127.0.0.1:12000\"},"
                                "\"followers\":[{\"id\":\"n2\",\"address\":\"127.0.0.1:12001\"}]}");
    assert_error(call("POST /join", "{}"), 404, "not_found");
}

static void operators_are_told(void **state)
{
    (void)state;
    struct answer a = call("GET /health", NULL);
    assert_int_equal(a.status, 200);
    assert_string_equal(a.body, "{\"ok\":true,\"db_rw\":true,\"id\":\"n1\",\"role\":\"leader\","
                                "\"leader\":\"n1\",\"term\":3,\"applied_lag\":0,"
                                "\"backup_age_hours\":null,\"uptime_s\":61}\n");
    assert_string_equal(call("GET /readyz", NULL).body, "ok\n");
    assert_non_null(strstr(call("GET /version", NULL).body, "\"version\":\"0.0.0\""));
    a = call("GET /metrics", NULL);
    assert_non_null(strstr(a.body, "fake_metric 1\n"));
    assert_non_null(strstr(a.body, "kvraftd_http_requests_total{method=\"GET\",code=\"2xx\"} 3"));
    json_t *root = parsed(call("GET /v1/cluster", NULL));
    assert_int_equal(json_array_size(json_object_get(root, "members")), 2);
    json_decref(root);
    assert_string_equal(call("POST /v1/cluster/leader", "{\"id\":\"n1\"}").body,
                        "{\"leader\":\"n1\",\"term\":3}\n");
    assert_error(call("POST /v1/cluster/leader", "{\"id\":\"n9\"}"), 404, "not_found");
    assert_error(call("POST /v1/cluster/leader", "{\"id\":9}"), 400, "bad_request");
    assert_error(call("POST /v1/compact", "{\"revision\":9}"), 400, "bad_request");
    assert_error(call("POST /v1/compact", "{}"), 400, "bad_request");
}

#define TEST(f)  cmocka_unit_test_setup_teardown(f, setup, teardown)
#define TUNED(f) cmocka_unit_test_setup_teardown(f, make_node, teardown)

int main(int argc, char **argv)
{
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    const struct CMUnitTest tests[] = {
        TEST(a_value_comes_back_with_its_revisions),
        TEST(a_missing_key_is_404_to_read_and_to_delete),
        TEST(any_bytes_are_a_key),
        TEST(dots_and_double_slashes_are_parts_of_a_key),
        TEST(a_key_may_be_64_kib_and_no_longer),
        TEST(conditions_hold_or_nothing_happens),
        TEST(what_is_not_supported_yet_is_refused),
        TEST(a_put_may_bring_its_own_lease),
        TEST(history_is_newest_first_with_deletions),
        TEST(a_list_of_any_length_is_whole),
        TEST(pages_cover_a_range_once_in_both_orders),
        TEST(a_list_waits_for_its_reader),
        TEST(http_1_0_gets_a_list_that_ends_with_the_connection),
        TEST(reads_of_one_moment_share_a_barrier),
        TEST(a_read_starts_its_barrier_after_it_came),
        TEST(local_reads_need_no_barrier_but_freshness),
        TEST(a_node_that_refuses_is_told_apart),
        TEST(pipelined_requests_are_answered_in_order),
        TEST(a_request_in_single_bytes_and_half_closed_is_answered),
        TEST(a_body_over_the_limit_is_refused_before_it_comes),
        TEST(a_refused_body_that_comes_anyway_does_not_hide_the_answer),
        TEST(the_limit_itself_is_allowed_however_it_is_framed),
        TEST(expect_100_continue_is_answered),
        TEST(malformed_framing_is_refused_in_json),
        TEST(garbage_is_refused_and_the_server_lives),
        TEST(headers_over_the_limit_are_refused),
        TEST(a_method_that_does_not_fit_is_405_with_allow),
        TUNED(cors_is_answered_when_it_is_asked_for),
        TUNED(an_idle_connection_is_closed),
        TUNED(a_client_that_takes_nothing_is_cut_off),
        TEST(a_client_that_leaves_costs_nothing_afterwards),
        TUNED(a_watch_ends_when_its_client_hangs_up),
        TEST(a_watch_tells_what_happens_from_then_on),
        TEST(a_watch_resumes_from_any_revision),
        TUNED(bookmarks_come_while_nothing_happens),
        TEST(a_browser_resumes_behind_whole_revisions),
        TEST(a_long_poll_answers_once),
        TEST(a_slow_watcher_rests_and_misses_nothing),
        TEST(stopping_finishes_what_is_in_flight),
        TUNED(stopping_does_not_wait_for_those_who_do_not_read),
        TEST(a_bad_address_is_one_clear_sentence),
        TUNED(a_bare_port_takes_ipv4_and_several_loops_share_it),
        TEST(many_idle_connections_are_no_burden),
        TEST(a_transaction_is_carried_out_or_refused),
        TEST(leases_are_granted_renewed_and_ended),
        TEST(hraftds_clients_are_at_home),
        TEST(operators_are_told),
    };
    return cmocka_run_group_tests_name("http_server", tests, NULL, NULL);
}
