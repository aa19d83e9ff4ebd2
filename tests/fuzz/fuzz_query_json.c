/* fuzz_query_json.c - libFuzzer on what the HTTP front reads: routes, percent-encoding, queries,
 * numbers, durations, entity tags, JSON bodies, transactions. No input may upset a parser (that is
 * the sanitizers' part), and what we write must be JSON that another reader understands as the same
 * bytes. `make fuzz-http`, then build/fuzz/fuzz_query_json tests/fuzz/corpus_http.
 *
 * The first byte of an input picks the parser. */
#include "http/listen.h"
#include "http/query.h"
#include "http/route.h"
#include "http/txn_json.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct krd_arena arena;
static struct krd_buf out;

static void fuzz_query(struct slice s)
{
    static const char *const words[] = {"asc", "desc", NULL};
    struct http_query q;
    struct slice bytes;
    int64_t i = 0;
    uint64_t ms = 0;
    unsigned word = 0;
    http_query_parse(&q, s, &arena);
    http_query_flag(&q, "prefix");
    if (http_query_i64(&q, "limit", 1, 1000, &i))
        KRD_ASSERT(i >= 1 && i <= 1000);
    if (http_query_ms(&q, "timeout", 60000, &ms))
        KRD_ASSERT(ms <= 60000);
    if (http_query_lease(&q, "lease", &i))
        KRD_ASSERT(i > 0);
    if (http_query_word(&q, "order", words, &word))
        KRD_ASSERT(word <= 1);
    if (http_query_bytes(&q, "after", &bytes))
        KRD_ASSERT(bytes.len <= s.len);
    (void)http_query_finish(&q);
}

static void fuzz_small(struct slice s)
{
    struct http_etags tags;
    uint64_t v;
    int64_t id;
    char host[64], port[8], allow[HTTP_ALLOW_BYTES], *text = krd_arena_alloc(&arena, s.len + 1);
    if (http_parse_etags(s, &tags))
        KRD_ASSERT(tags.any || tags.n >= 1);
    if (http_parse_ms(s, 1000, &v))
        KRD_ASSERT(v <= 1000);
    if (http_parse_lease(s, &id)) {
        char back[17];
        int64_t again;
        http_format_lease(id, back);
        KRD_ASSERT(http_parse_lease(slice_of(back, 16), &again) && again == id);
    }
    struct http_route r = http_route_find(s);
    KRD_ASSERT(r.tail.len <= s.len);
    KRD_ASSERT(http_allow_text(r.methods, allow) <= sizeof allow);
    memcpy(text, s.len > 0 ? s.ptr : (const uint8_t *)"", s.len);
    text[s.len] = '\0';
    if (http_split_address(text, host, sizeof host, port, sizeof port))
        KRD_ASSERT(port[0] >= '0' && port[0] <= '9');
}

/* Written, then read back by jansson: the same bytes. */
static void fuzz_bytes(struct slice s)
{
    struct jout j = jout_into(&out);
    struct json_in in;
    struct slice back;
    jout_object(&j, NULL);
    jout_bytes(&j, "v", s);
    jout_text(&j, "t", s);
    jout_end_object(&j);
    json_t *root = json_in_open(&in, krd_buf_slice(&out), &arena);
    KRD_ASSERT(root != NULL);
    KRD_ASSERT(json_in_bytes(&in, root, "v", &back) && slice_eq(back, s));
    KRD_ASSERT(json_is_string(json_object_get(root, "t")));
    json_in_close(&in);
}

static void fuzz_txn(struct slice s)
{
    struct json_in in;
    json_t *root = json_in_open(&in, s, &arena);
    Etcdserverpb__TxnRequest *m = root != NULL ? txn_json_read(&in, root) : NULL;
    KRD_ASSERT((m == NULL) == (in.error != NULL));
    if (m != NULL) {
        size_t n = etcdserverpb__txn_request__get_packed_size(m);
        uint8_t *packed = krd_arena_alloc(&arena, n);
        KRD_ASSERT(etcdserverpb__txn_request__pack(m, packed) == n);
    } else {
        struct jout j = jout_into(&out);
        jout_str(&j, NULL, in.error);
        KRD_ASSERT(jout_utf8_valid(krd_buf_slice(&out)));
    }
    json_in_close(&in);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static void (*const parsers[])(struct slice) = {fuzz_query, fuzz_small, fuzz_bytes, fuzz_txn};
    if (size == 0)
        return 0;
    /* A copy of its own size, so that reading beyond it is seen. */
    uint8_t *copy = krd_alloc(size > 1 ? size - 1 : 1);
    memcpy(copy, data + 1, size - 1);
    parsers[data[0] % KRD_ARRAY_LEN(parsers)](slice_of(copy, size - 1));
    krd_free(copy);
    krd_arena_reset(&arena);
    out.len = 0;
    return 0;
}
