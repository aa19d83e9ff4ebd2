/* test_http_json.c - JSON in, JSON out, and transactions between the two. */
#include "base/limits.h"
#include "base/rand.h"
#include "http/txn_json.h"

#include <dirent.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>

static struct krd_arena arena;
static struct krd_buf out;

static int drop(void **state)
{
    (void)state;
    krd_arena_deinit(&arena);
    krd_buf_deinit(&out);
    return 0;
}

static void assert_out(const char *want)
{
    krd_buf_put_u8(&out, 0);
    assert_string_equal((char *)out.ptr, want);
    out.len = 0;
}

/* --- Out -------------------------------------------------------------------------------------- */

static void members_get_their_commas(void **state)
{
    (void)state;
    struct jout j = jout_into(&out);
    jout_object(&j, NULL);
    jout_i64(&j, "a", INT64_MIN);
    jout_array(&j, "b");
    jout_u64(&j, NULL, UINT64_MAX);
    jout_object(&j, NULL);
    jout_end_object(&j);
    jout_null(&j, NULL);
    jout_end_array(&j);
    jout_bool(&j, "c", true);
    jout_millis(&j, "d", 1005);
    jout_millis(&j, "e", -7);
    jout_hex(&j, "f", 255);
    jout_end_object(&j);
    assert_out("{\"a\":-9223372036854775808,\"b\":[18446744073709551615,{},null],\"c\":true,"
               "\"d\":1.005,\"e\":-0.007,\"f\":\"00000000000000ff\"}");
}

static void text_is_escaped_and_nothing_else(void **state)
{
    (void)state;
    struct jout j = jout_into(&out);
    jout_bytes(&j, "v", slice_of("a\"b\\c\n\r\t\x01\0\x7f/\xc3\xa9", 14));
    assert_out("\"v\":\"a\\\"b\\\\c\\n\\r\\t\\u0001\\u0000\x7f/\xc3\xa9\"");
}

static void what_is_not_utf8_becomes_base64(void **state)
{
    (void)state;
    struct jout j = jout_into(&out);
    jout_bytes(&j, "v", slice_of("\xff\x00", 2));
    j.base64 = true;
    jout_bytes(&j, "w", slice_str("abc"));
    jout_bytes(&j, "x", slice_of(NULL, 0));
    assert_out("\"v_base64\":\"/wA=\",\"w_base64\":\"YWJj\",\"x_base64\":\"\"");
}

static void messages_replace_what_is_not_utf8(void **state)
{
    (void)state;
    struct jout j = jout_into(&out);
    jout_text(&j, "m", slice_of("a\xff\xc3(\xe2\x82", 6));
    assert_out("\"m\":\"a\xef\xbf\xbd\xef\xbf\xbd(\xef\xbf\xbd\xef\xbf\xbd\"");
}

static void utf8_is_unicodes_own(void **state)
{
    (void)state;
    static const char *const good[] = {"",
                                       "a",
                                       "\xc2\x80",
                                       "\xdf\xbf",
                                       "\xe0\xa0\x80",
                                       "\xed\x9f\xbf",
                                       "\xee\x80\x80",
                                       "\xf0\x90\x80\x80",
                                       "\xf4\x8f\xbf\xbf",
                                       ("12345678\xc3\xa9"
                                        "12345678")};
    static const char *const bad[] = {"\x80",
                                      "\xbf",
                                      "\xc0\x80",
                                      "\xc1\xbf",
                                      "\xc2",
                                      "\xe0\x80\x80",
                                      "\xe0\x9f\xbf",
                                      "\xed\xa0\x80",
                                      "\xed\xbf\xbf",
                                      "\xe2\x82",
                                      "\xf0\x80\x80\x80",
                                      "\xf0\x8f\xbf\xbf",
                                      "\xf4\x90\x80\x80",
                                      "\xf5\x80\x80\x80",
                                      "\xff",
                                      "\xf0\x90\x80",
                                      "12345678\xff",
                                      ("1234567\xc3"
                                       "1")};
    for (size_t i = 0; i < KRD_ARRAY_LEN(good); i++)
        assert_true(jout_utf8_valid(slice_str(good[i])));
    for (size_t i = 0; i < KRD_ARRAY_LEN(bad); i++)
        assert_false(jout_utf8_valid(slice_str(bad[i])));
}

/* jansson judges by its own rules: two implementations must agree on random bytes. */
static void any_bytes_come_back_from_our_json(void **state)
{
    (void)state;
    struct krd_rand rand;
    krd_rand_seed(&rand, 1);
    for (int round = 0; round < 20000; round++) {
        uint8_t bytes[24], back[64];
        static const uint8_t pool[] = {0,    'a',  '"',  '\\', 0x80, 0xbf, 0xc2, 0xe0, 0xa0,
                                       0xed, 0x9f, 0xf0, 0x90, 0xf4, 0x8f, 0xff, 0x1f, 0x7f};
        size_t n = krd_rand_below(&rand, sizeof bytes), len = 0;
        for (size_t i = 0; i < n; i++)
            bytes[i] = pool[krd_rand_below(&rand, sizeof pool)];
        out.len = 0;
        struct jout j = jout_into(&out);
        jout_object(&j, NULL);
        jout_bytes(&j, "v", slice_of(bytes, n));
        jout_end_object(&j);
        json_t *root = json_loadb((char *)out.ptr, out.len, JSON_ALLOW_NUL, NULL);
        assert_non_null(root);
        json_t *v = json_object_get(root, "v"), *coded = json_object_get(root, "v_base64");
        if (v != NULL) {
            assert_int_equal(json_string_length(v), n);
            assert_memory_equal(json_string_value(v), bytes, n);
        } else {
            assert_true(json_base64_decode(
                slice_of(json_string_value(coded), json_string_length(coded)), back, &len));
            assert_int_equal(len, n);
            assert_memory_equal(back, bytes, n);
        }
        json_decref(root);
    }
}

/* --- In --------------------------------------------------------------------------------------- */

static void base64_is_read_in_all_its_spellings(void **state)
{
    (void)state;
    static const char *const bad[] = {
        "a",    "abcde", "ab=c",  "=",    "====", "a===",
        "ab c", "a!==",  "YQ=\n", "YR==", "YWJ="}; /* the last two: stray bits */
    uint8_t back[16];
    size_t len = 9;
    assert_true(json_base64_decode(slice_str(""), back, &len) && len == 0);
    assert_true(json_base64_decode(slice_str("+/8="), back, &len) && len == 2);
    assert_memory_equal(back, "\xfb\xff", 2);
    assert_true(json_base64_decode(slice_str("-_8"), back, &len) && len == 2);
    assert_memory_equal(back, "\xfb\xff", 2);
    assert_true(json_base64_decode(slice_str("YQ=="), back, &len) && len == 1);
    assert_true(json_base64_decode(slice_str("YWJj"), back, &len) && len == 3);
    for (size_t i = 0; i < KRD_ARRAY_LEN(bad); i++) {
        if (json_base64_decode(slice_str(bad[i]), back, &len))
            fail_msg("%s", bad[i]);
    }
}

static const char *error_of(const char *body)
{
    struct json_in in;
    json_in_open(&in, slice_str(body), &arena);
    json_in_close(&in);
    return in.error;
}

static void a_body_is_one_json_object(void **state)
{
    (void)state;
    static const char *const bad[] = {"",
                                      "{",
                                      "[]",
                                      "1",
                                      "\"a\"",
                                      "null",
                                      "{} x",
                                      "{}{}",
                                      "{\"a\":}",
                                      "{'a':1}",
                                      "{\"a\":1,\"a\":2}",
                                      "{\"a\":1,}",
                                      "\xff",
                                      "{\"a\":\"\xff\"}",
                                      "{\"a\":99999999999999999999}",
                                      "{\"a\":\"\\ud800\"}"};
    assert_null(error_of("{}"));
    assert_null(error_of(" {\"a\":[1,{}]}\n"));
    for (size_t i = 0; i < KRD_ARRAY_LEN(bad); i++) {
        if (error_of(bad[i]) == NULL)
            fail_msg("%s", bad[i]);
    }
}

static void a_deep_body_is_refused_without_harm(void **state)
{
    (void)state;
    enum { DEEP = 1 << 20 };
    char *body = krd_alloc(DEEP + 1);
    memset(body, '[', DEEP);
    body[DEEP] = '\0';
    assert_non_null(error_of(body));
    memcpy(body, "{\"a\":", 5);
    assert_non_null(error_of(body));
    krd_free(body);
}

static void members_are_read_by_type(void **state)
{
    (void)state;
    struct json_in in;
    json_t *o = json_in_open(&in,
                             slice_str("{\"n\":9223372036854775807,\"b\":true,\"s\":\"x\\u0000y\","
                                       "\"t_base64\":\"/w==\",\"l\":\"ff\"}"),
                             &arena);
    int64_t n = 0, l = 0;
    bool b = false;
    struct slice s, t;
    assert_true(json_in_i64(&in, o, "n", 0, INT64_MAX, &n) && n == INT64_MAX);
    assert_true(json_in_bool(&in, o, "b", &b) && b);
    assert_true(json_in_bytes(&in, o, "s", &s) && slice_eq(s, slice_of("x\0y", 3)));
    assert_true(json_in_bytes(&in, o, "t", &t) && slice_eq(t, slice_of("\xff", 1)));
    assert_true(json_in_lease(&in, o, "l", &l) && l == 255);
    assert_false(json_in_i64(&in, o, "absent", 0, 1, &n));
    assert_null(in.error);
    static const char *const known[] = {"n", "b", "s", "l", NULL};
    json_in_known(&in, o, known);
    assert_non_null(strstr(in.error, "\"t_base64\""));
    json_in_close(&in);
}

static void a_wrong_type_or_range_is_named(void **state)
{
    (void)state;
    struct json_in in;
    json_t *o;
    int64_t n;
    bool b;
    struct slice s;
    o = json_in_open(&in, slice_str("{\"n\":1.0}"), &arena);
    assert_false(json_in_i64(&in, o, "n", 0, 10, &n));
    assert_non_null(strstr(in.error, "\"n\""));
    json_in_close(&in);
    o = json_in_open(&in, slice_str("{\"n\":11}"), &arena);
    assert_false(json_in_i64(&in, o, "n", 0, 10, &n));
    assert_non_null(in.error);
    json_in_close(&in);
    o = json_in_open(&in, slice_str("{\"b\":1}"), &arena);
    assert_false(json_in_bool(&in, o, "b", &b));
    assert_non_null(in.error);
    json_in_close(&in);
    o = json_in_open(&in, slice_str("{\"s\":\"x\",\"s_base64\":\"eA==\"}"), &arena);
    assert_false(json_in_bytes(&in, o, "s", &s));
    assert_non_null(strstr(in.error, "side by side"));
    json_in_close(&in);
}

/* --- Transactions ----------------------------------------------------------------------------- */

/* NULL with *error set; the tree is kept until the end of the test in `in`. */
static struct json_in in;

static Etcdserverpb__TxnRequest *txn_of(const char *body)
{
    json_t *root = json_in_open(&in, slice_str(body), &arena);
    return root != NULL ? txn_json_read(&in, root) : NULL;
}

static void a_transaction_is_read_whole(void **state)
{
    (void)state;
    Etcdserverpb__TxnRequest *t = txn_of(
        "{\"if\":[{\"key\":\"a\",\"version\":0},{\"key\":\"b\",\"value\":\"7\"},"
        "{\"mod_revision\":{\"gt\":4},\"key\":\"c\"},{\"key\":\"d\",\"value_base64\":{\"ne\":\"/"
        "w==\"}},"
        "{\"key\":\"e\",\"lease\":{\"eq\":\"ff\"}},{\"key\":\"f\",\"create_revision\":{\"lt\":9}},"
        "{\"key_base64\":\"/w==\",\"lease\":\"\"}],"
        "\"then\":[{\"put\":{\"key\":\"a\",\"value\":\"1\",\"lease\":\"ff\",\"prev\":true}},"
        "{\"get\":{\"key\":\"b\",\"prefix\":true,\"limit\":5,\"keys\":true,\"order\":\"desc\","
        "\"revision\":3}},{\"delete\":{\"key\":\"d\",\"prefix\":true,\"prev\":true}},"
        "{\"txn\":{\"then\":[{\"get\":{\"key\":\"z\"}}]}}],"
        "\"else\":[{\"get\":{\"key\":\"\",\"prefix\":true}}]}");
    assert_null(in.error);
    assert_int_equal(t->n_compare, 7);
    assert_int_equal(t->compare[1]->target, ETCDSERVERPB__COMPARE__COMPARE_TARGET__VALUE);
    assert_memory_equal(t->compare[1]->value.data, "7", 1);
    assert_int_equal(t->compare[2]->result, ETCDSERVERPB__COMPARE__COMPARE_RESULT__GREATER);
    assert_int_equal(t->compare[2]->mod_revision, 4);
    assert_int_equal(t->compare[3]->result, ETCDSERVERPB__COMPARE__COMPARE_RESULT__NOT_EQUAL);
    assert_memory_equal(t->compare[3]->value.data, "\xff", 1);
    assert_int_equal(t->compare[4]->lease, 255);
    assert_int_equal(t->compare[5]->result, ETCDSERVERPB__COMPARE__COMPARE_RESULT__LESS);
    assert_int_equal(t->compare[5]->create_revision, 9);
    assert_int_equal(t->compare[6]->lease, 0);
    assert_memory_equal(t->compare[6]->key.data, "\xff", 1);
    assert_int_equal(t->n_success, 4);
    assert_int_equal(t->success[0]->request_put->lease, 255);
    assert_true(t->success[0]->request_put->prev_kv);
    Etcdserverpb__RangeRequest *get = t->success[1]->request_range;
    assert_memory_equal(get->range_end.data, "c", 1);
    assert_int_equal(get->limit, 5);
    assert_true(get->keys_only);
    assert_int_equal(get->sort_order, ETCDSERVERPB__RANGE_REQUEST__SORT_ORDER__DESCEND);
    assert_int_equal(get->revision, 3);
    assert_memory_equal(t->success[2]->request_delete_range->range_end.data, "e", 1);
    assert_int_equal(t->success[3]->request_txn->n_success, 1);
    assert_int_equal(t->failure[0]->request_range->key.len, 1); /* every key: "\0" to "\0" */
    json_in_close(&in);
}

static void a_bad_transaction_is_refused_with_the_place(void **state)
{
    (void)state;
    static const struct {
        const char *body, *place;
    } bad[] = {
        {"{\"iff\":[]}", "\"iff\""},
        {"{\"if\":{}}", "\"if\""},
        {"{\"if\":[1]}", "if[0]"},
        {"{\"if\":[{\"key\":\"a\"}]}", "if[0]"},
        {"{\"if\":[{\"version\":1}]}", "if[0]"},
        {"{\"if\":[{\"key\":\"\",\"version\":1}]}", "if[0]"},
        {"{\"if\":[{\"key\":\"a\",\"version\":1,\"lease\":\"\"}]}", "if[0]"},
        {"{\"if\":[{\"key\":\"a\",\"key_base64\":\"YQ==\"}]}", "if[0]"},
        {"{\"if\":[{\"key\":\"a\",\"version\":\"1\"}]}", "if[0]"},
        {"{\"if\":[{\"key\":\"a\",\"version\":{\"ge\":1}}]}", "if[0]"},
        {"{\"if\":[{\"key\":\"a\",\"version\":{\"gt\":1,\"lt\":3}}]}", "if[0]"},
        {"{\"if\":[{\"key\":\"a\",\"version\":{}}]}", "if[0]"},
        {"{\"if\":[{\"key\":\"a\",\"version\":-1}]}", "if[0]"},
        {"{\"if\":[{\"key\":\"a\",\"value\":1}]}", "if[0]"},
        {"{\"if\":[{\"key\":\"a\",\"lease\":\"xyz\"}]}", "if[0]"},
        {"{\"then\":[{}]}", "then[0]"},
        {"{\"then\":[{\"put\":{},\"get\":{}}]}", "then[0]"},
        {"{\"then\":[{\"pet\":{}}]}", "\"pet\""},
        {"{\"then\":[{\"put\":1}]}", "then[0]"},
        {"{\"then\":[{\"put\":{\"key\":\"a\"}}]}", "then[0].put"},
        {"{\"then\":[{\"put\":{\"key\":\"\",\"value\":\"\"}}]}", "then[0].put"},
        {"{\"then\":[{\"put\":{\"key\":\"a\",\"value\":\"\",\"x\":1}}]}", "\"x\""},
        {"{\"then\":[{\"put\":{\"key\":\"a\",\"value\":\"\",\"lease\":1}}]}", "then[0].put"},
        {"{\"then\":[{\"get\":{\"key\":\"\"}}]}", "then[0].get"},
        {"{\"then\":[{\"get\":{\"key\":\"a\",\"limit\":0}}]}", "then[0].get"},
        {"{\"then\":[{\"get\":{\"key\":\"a\",\"order\":\"up\"}}]}", "then[0].get"},
        {"{\"else\":[{\"get\":{\"key\":\"a\"}},{\"delete\":{\"prefix\":true}}]}", "else[1].delete"},
        {"{\"then\":[{\"txn\":{\"then\":[{\"put\":{\"key\":1,\"value\":\"\"}}]}}]}",
         "then[0].txn.then[0].put"},
    };
    for (size_t i = 0; i < KRD_ARRAY_LEN(bad); i++) {
        assert_null(txn_of(bad[i].body));
        if (strstr(in.error, bad[i].place) == NULL)
            fail_msg("%s: %s", bad[i].body, in.error);
        json_in_close(&in);
    }
}

static void too_many_operations_and_too_deep_ones_are_refused(void **state)
{
    (void)state;
    struct krd_buf body = KRD_BUF_INIT;
    krd_buf_puts(&body, "{\"then\":[");
    for (int i = 0; i <= KRD_TXN_OPS_MAX; i++)
        krd_buf_printf(&body, "%s{\"get\":{\"key\":\"k%d\"}}", i > 0 ? "," : "", i);
    krd_buf_puts(&body, "]}");
    krd_buf_put_u8(&body, 0);
    assert_null(txn_of((char *)body.ptr));
    json_in_close(&in);
    body.len = 0;
    for (int i = 0; i <= KRD_TXN_DEPTH_MAX; i++)
        krd_buf_puts(&body, "{\"then\":[{\"txn\":");
    krd_buf_puts(&body, "{}");
    for (int i = 0; i <= KRD_TXN_DEPTH_MAX; i++)
        krd_buf_puts(&body, "}]}");
    krd_buf_put_u8(&body, 0);
    assert_null(txn_of((char *)body.ptr));
    assert_non_null(strstr(in.error, "deeper"));
    json_in_close(&in);
    krd_buf_deinit(&body);
}

static void results_mirror_the_operations(void **state)
{
    (void)state;
    Etcdserverpb__TxnRequest *t = txn_of(
        "{\"then\":[{\"put\":{\"key\":\"a\",\"value\":\"1\"}},{\"get\":{\"key\":\"a\",\"keys\":"
        "true}},{\"delete\":{\"key\":\"a\",\"prev\":true}},{\"txn\":{}}]}");
    struct kv_pair kv = {.key = slice_str("a"),
                         .value = slice_str("1"),
                         .create_revision = 2,
                         .mod_revision = 3,
                         .version = 2,
                         .lease = 255};
    struct kv_op_result results[4] = {
        {.type = KV_OP_PUT, .u.put = {.kv = kv}},
        {.type = KV_OP_RANGE, .u.range = {.kvs = &kv, .n = 1, .count = 1}},
        {.type = KV_OP_DELETE, .u.del = {.deleted = 1, .prev = &kv, .n_prev = 1}},
        {.type = KV_OP_TXN, .u.txn = {.succeeded = true, .failed_compare = -1}},
    };
    struct kv_op_result op = {
        .type = KV_OP_TXN,
        .u.txn = {.succeeded = true, .results = results, .n = 4, .failed_compare = -1}};
    struct jout j = jout_into(&out);
    txn_json_write(&j, t, &op);
#define META \
    "\"create_revision\":2,\"mod_revision\":3,\"version\":2,\"lease\":\"00000000000000ff\"}"
    assert_out("\"succeeded\":true,\"results\":[{\"put\":{\"created\":false," META
               "},{\"get\":{\"kvs\":[{\"key\":\"a\"," META "],\"count\":1,\"more\":false}},"
               "{\"delete\":{\"deleted\":1,\"prev\":[{\"key\":\"a\",\"value\":\"1\"," META "]}},"
               "{\"txn\":{\"succeeded\":true,\"results\":[]}}]");
    json_in_close(&in);
}

/* --- The fuzzer's corpus ---------------------------------------------------------------------- */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void the_fuzzer_finds_nothing_in_its_corpus(void **state)
{
    (void)state;
    const char *path = "tests/fuzz/corpus_http";
    DIR *dir = opendir(path);
    assert_non_null(dir); /* run from the project's root */
    int files = 0;
    for (struct dirent *d; (d = readdir(dir)) != NULL;) {
        if (d->d_name[0] == '.')
            continue;
        char name[512];
        uint8_t bytes[65536];
        snprintf(name, sizeof name, "%s/%s", path, d->d_name);
        FILE *f = fopen(name, "rb");
        assert_non_null(f);
        size_t n = fread(bytes, 1, sizeof bytes, f);
        fclose(f);
        LLVMFuzzerTestOneInput(bytes, n);
        files++;
    }
    closedir(dir);
    assert_true(files >= 10);
}

#define TEST(f) cmocka_unit_test_teardown(f, drop)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(members_get_their_commas),
        TEST(text_is_escaped_and_nothing_else),
        TEST(what_is_not_utf8_becomes_base64),
        TEST(messages_replace_what_is_not_utf8),
        TEST(utf8_is_unicodes_own),
        TEST(any_bytes_come_back_from_our_json),
        TEST(base64_is_read_in_all_its_spellings),
        TEST(a_body_is_one_json_object),
        TEST(a_deep_body_is_refused_without_harm),
        TEST(members_are_read_by_type),
        TEST(a_wrong_type_or_range_is_named),
        TEST(a_transaction_is_read_whole),
        TEST(a_bad_transaction_is_refused_with_the_place),
        TEST(too_many_operations_and_too_deep_ones_are_refused),
        TEST(results_mirror_the_operations),
        TEST(the_fuzzer_finds_nothing_in_its_corpus),
    };
    return cmocka_run_group_tests_name("http_json", tests, NULL, NULL);
}
