/* test_http_query.c - routes, queries, percent-encoding, numbers, durations, tags, addresses. */
#include "http/listen.h"
#include "http/query.h"
#include "http/route.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>

static struct krd_arena arena;

static int drop_arena(void **state)
{
    (void)state;
    krd_arena_deinit(&arena);
    return 0;
}

static struct http_query query_of(const char *raw)
{
    struct http_query q;
    http_query_parse(&q, slice_str(raw), &arena);
    return q;
}

static void assert_slice(struct slice have, const void *want, size_t len)
{
    assert_int_equal(have.len, len);
    if (len > 0)
        assert_memory_equal(have.ptr, want, len);
}

/* --- Percent-encoding ------------------------------------------------------------------------- */

static void any_byte_can_be_percent_encoded(void **state)
{
    (void)state;
    char text[3 * 256 + 1];
    uint8_t out[256];
    size_t len = 0;
    for (int upper = 0; upper < 2; upper++) {
        for (int i = 0; i < 256; i++)
            snprintf(text + i * 3, 4, upper ? "%%%02X" : "%%%02x", (unsigned)i);
        assert_true(http_percent_decode(slice_of(text, 768), out, &len));
        assert_int_equal(len, 256);
        for (int i = 0; i < 256; i++)
            assert_int_equal(out[i], i);
    }
}

static void a_plus_sign_and_a_slash_stand_for_themselves(void **state)
{
    (void)state;
    uint8_t out[8];
    size_t len = 0;
    assert_true(http_percent_decode(slice_str("g++/x"), out, &len));
    assert_slice(slice_of(out, len), "g++/x", 5);
}

static void a_broken_escape_is_an_error_wherever_it_stands(void **state)
{
    (void)state;
    static const char *const bad[] = {"%", "%4", "a%", "a%4", "%zz", "%4g", "%g4", "%%41", "a%4"};
    uint8_t out[8];
    size_t len;
    for (size_t i = 0; i < KRD_ARRAY_LEN(bad); i++)
        assert_false(http_percent_decode(slice_str(bad[i]), out, &len));
}

/* --- Members ---------------------------------------------------------------------------------- */

static void members_are_found_by_name_and_decoded(void **state)
{
    (void)state;
    struct http_query q = query_of("prefix&limit=10&after=a%00b&order=desc&k%65ys");
    static const char *const orders[] = {"asc", "desc", NULL};
    int64_t limit = 0;
    struct slice after;
    unsigned order = 9;
    assert_true(http_query_flag(&q, "prefix"));
    assert_true(http_query_i64(&q, "limit", 1, 100, &limit));
    assert_int_equal(limit, 10);
    assert_true(http_query_bytes(&q, "after", &after));
    assert_slice(after, "a\0b", 3);
    assert_true(http_query_word(&q, "order", orders, &order));
    assert_int_equal(order, 1);
    assert_true(http_query_flag(&q, "keys"));
    assert_false(http_query_flag(&q, "absent"));
    assert_null(http_query_finish(&q));
}

static void a_flag_says_yes_or_no_or_stands_alone(void **state)
{
    (void)state;
    struct http_query q = query_of("a&b=true&c=1&d=false&e=0");
    assert_true(http_query_flag(&q, "a"));
    assert_true(http_query_flag(&q, "b"));
    assert_true(http_query_flag(&q, "c"));
    assert_false(http_query_flag(&q, "d"));
    assert_false(http_query_flag(&q, "e"));
    assert_null(http_query_finish(&q));
    q = query_of("a=yes");
    assert_false(http_query_flag(&q, "a"));
    assert_non_null(http_query_finish(&q));
}

static void an_unknown_member_is_named(void **state)
{
    (void)state;
    struct http_query q = query_of("prefix&limt=10");
    assert_true(http_query_flag(&q, "prefix"));
    const char *error = http_query_finish(&q);
    assert_non_null(error);
    assert_non_null(strstr(error, "\"limt\""));
}

static void a_member_given_twice_is_an_error_whoever_asks(void **state)
{
    (void)state;
    struct http_query q = query_of("limit=1&limit=2");
    int64_t limit = 7;
    assert_false(http_query_i64(&q, "limit", 1, 10, &limit));
    assert_int_equal(limit, 7);
    assert_non_null(strstr(http_query_finish(&q), "twice"));
}

static void the_first_error_stays(void **state)
{
    (void)state;
    struct http_query q = query_of("limit=x&revision=y");
    int64_t v;
    assert_false(http_query_i64(&q, "limit", 1, 10, &v));
    assert_false(http_query_i64(&q, "revision", 1, 10, &v));
    http_query_fail(&q, "later");
    assert_non_null(strstr(http_query_finish(&q), "\"limit\""));
}

static void empty_pieces_and_bad_encoding_do_no_harm(void **state)
{
    (void)state;
    struct http_query q = query_of("&&a&&b=&");
    struct slice b = slice_str("x");
    assert_true(http_query_flag(&q, "a"));
    assert_true(http_query_bytes(&q, "b", &b));
    assert_int_equal(b.len, 0);
    assert_null(http_query_finish(&q));
    q = query_of("a=%4");
    assert_non_null(http_query_finish(&q));
    q = query_of("%zz=1");
    assert_non_null(http_query_finish(&q));
}

static void more_members_than_any_call_knows_are_refused(void **state)
{
    (void)state;
    char raw[512] = "";
    for (int i = 0; i <= HTTP_QUERY_MEMBERS_MAX; i++)
        snprintf(raw + strlen(raw), sizeof raw - strlen(raw), "m%d&", i);
    struct http_query q = query_of(raw);
    assert_int_equal(q.n, HTTP_QUERY_MEMBERS_MAX);
    assert_non_null(http_query_finish(&q));
}

/* --- Single values ---------------------------------------------------------------------------- */

static void numbers_are_exact_up_to_64_bits(void **state)
{
    (void)state;
    static const char *const bad[] = {"",
                                      "-1",
                                      "+1",
                                      " 1",
                                      "1 ",
                                      "0x1",
                                      "1e3",
                                      "1.0",
                                      "18446744073709551616",
                                      "99999999999999999999"};
    uint64_t v = 0;
    assert_true(http_parse_u64(slice_str("0"), &v) && v == 0);
    assert_true(http_parse_u64(slice_str("9223372036854775807"), &v) && v == INT64_MAX);
    assert_true(http_parse_u64(slice_str("18446744073709551615"), &v) && v == UINT64_MAX);
    for (size_t i = 0; i < KRD_ARRAY_LEN(bad); i++)
        assert_false(http_parse_u64(slice_str(bad[i]), &v));
    struct http_query q = query_of("revision=9223372036854775808");
    int64_t revision;
    assert_false(http_query_i64(&q, "revision", 1, INT64_MAX, &revision));
}

static void durations_carry_a_unit(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        uint64_t ms;
    } good[] = {{"200ms", 200}, {"30s", 30000}, {"2m", 120000},   {"1h30m", 5400000},
                {"0", 0},       {"0s", 0},      {"1s500ms", 1500}};
    static const char *const bad[] = {"",
                                      "10",
                                      "s",
                                      "1.5s",
                                      "-1s",
                                      "1d",
                                      "1S",
                                      "1 s",
                                      "1s 1",
                                      "1s1",
                                      "ms1",
                                      "25h",
                                      "99999999999999999999s",
                                      "18446744073709551615h"};
    uint64_t ms = 0;
    for (size_t i = 0; i < KRD_ARRAY_LEN(good); i++) {
        assert_true(http_parse_ms(slice_str(good[i].text), 24 * 3600 * 1000, &ms));
        assert_int_equal(ms, good[i].ms);
    }
    for (size_t i = 0; i < KRD_ARRAY_LEN(bad); i++)
        assert_false(http_parse_ms(slice_str(bad[i]), 24 * 3600 * 1000, &ms));
}

static void a_lease_id_is_a_positive_63_bit_hex_number(void **state)
{
    (void)state;
    static const char *const bad[] = {"",
                                      "0",
                                      "0000000000000000",
                                      "ffffffffffffffff",
                                      "8000000000000000",
                                      "12345678901234567",
                                      "xyz",
                                      "-1",
                                      "0x1"};
    int64_t id = 0;
    char text[17];
    assert_true(http_parse_lease(slice_str("7fffffffffffffff"), &id) && id == INT64_MAX);
    assert_true(http_parse_lease(slice_str("FF"), &id) && id == 255);
    http_format_lease(id, text);
    assert_string_equal(text, "00000000000000ff");
    for (size_t i = 0; i < KRD_ARRAY_LEN(bad); i++)
        assert_false(http_parse_lease(slice_str(bad[i]), &id));
}

static void entity_tags_are_quoted_revisions(void **state)
{
    (void)state;
    struct http_etags t;
    assert_true(http_parse_etags(slice_str("\"5\""), &t));
    assert_true(http_etags_hold(&t, 5));
    assert_false(http_etags_hold(&t, 6));
    assert_true(http_parse_etags(slice_str(" \"5\" , W/\"7\",\"abc\" "), &t));
    assert_int_equal(t.n, 3);
    assert_true(http_etags_hold(&t, 7));
    assert_false(http_etags_hold(&t, 0));
    assert_true(http_parse_etags(slice_str("*"), &t));
    assert_true(http_etags_hold(&t, 1));
    assert_false(http_etags_hold(&t, 0)); /* absent */
    static const char *const bad[] = {"", "5", "\"5", "5\"", "\"5\",", "\"5\" \"6\"", "* x", "W/5"};
    for (size_t i = 0; i < KRD_ARRAY_LEN(bad); i++)
        assert_false(http_parse_etags(slice_str(bad[i]), &t));
}

/* --- Routes ----------------------------------------------------------------------------------- */

static void paths_lead_to_calls(void **state)
{
    (void)state;
    static const struct {
        const char *path;
        enum http_call call;
        const char *tail;
    } table[] = {
        {"/v1/kv/a", HTTP_CALL_KV, "a"},
        {"/v1/kv/", HTTP_CALL_KV, ""},
        {"/v1/kv", HTTP_CALL_KV, ""},
        {"/v1/kv/a/b//c", HTTP_CALL_KV, "a/b//c"},
        {"/v1/kv//", HTTP_CALL_KV, "/"},
        {"/v1/kv/..", HTTP_CALL_KV, ".."},
        {"/v1/kvx", HTTP_CALL_NONE, ""},
        {"/v1/watch/a", HTTP_CALL_WATCH, "a"},
        {"/v1/lease", HTTP_CALL_LEASES, ""},
        {"/v1/lease/ff", HTTP_CALL_LEASE, "ff"},
        {"/v1/lease/ff/keepalive", HTTP_CALL_LEASE_KEEPALIVE, "ff"},
        {"/v1/lease/ff/keepalives", HTTP_CALL_NONE, ""},
        {"/v1/lease/ff/", HTTP_CALL_NONE, ""},
        {"/v1/lease/a/b/keepalive", HTTP_CALL_NONE, ""},
        {"/v1/cluster/leader", HTTP_CALL_CLUSTER_LEADER, ""},
        {"/v1/cluster/", HTTP_CALL_NONE, ""},
        {"/key", HTTP_CALL_HRAFTD_KEYS, ""},
        {"/key/x", HTTP_CALL_HRAFTD_KEY, "x"},
        {"/keys", HTTP_CALL_NONE, ""},
        {"/health", HTTP_CALL_HEALTH, ""},
        {"/healthz", HTTP_CALL_NONE, ""},
        {"/", HTTP_CALL_NONE, ""},
        {"", HTTP_CALL_NONE, ""},
    };
    for (size_t i = 0; i < KRD_ARRAY_LEN(table); i++) {
        struct http_route r = http_route_find(slice_str(table[i].path));
        if (r.call != table[i].call)
            fail_msg("%s", table[i].path);
        assert_slice(r.tail, table[i].tail, strlen(table[i].tail));
    }
}

static void a_call_knows_its_methods(void **state)
{
    (void)state;
    char allow[HTTP_ALLOW_BYTES];
    struct http_route r = http_route_find(slice_str("/v1/kv/a"));
    assert_slice(slice_of(allow, http_allow_text(r.methods, allow)),
                 "GET, HEAD, PUT, DELETE, OPTIONS", 31);
    r = http_route_find(slice_str("/v1/txn"));
    assert_slice(slice_of(allow, http_allow_text(r.methods, allow)), "POST, OPTIONS", 13);
    assert_true(http_allow_text(~0u, allow) < sizeof allow);
    assert_int_equal(http_method_of(slice_str("DELETE")), HTTP_DELETE);
    assert_int_equal(http_method_of(slice_str("delete")), HTTP_OTHER);
    assert_int_equal(http_method_of(slice_str("")), HTTP_OTHER);
}

/* --- Addresses -------------------------------------------------------------------------------- */

static void addresses_are_split_at_the_port(void **state)
{
    (void)state;
    static const struct {
        const char *text, *host, *port;
    } good[] = {{"localhost:11000", "localhost", "11000"},
                {":11000", "", "11000"},
                {"[::1]:80", "::1", "80"},
                {"10.0.0.1:0", "10.0.0.1", "0"}};
    static const char *const bad[] = {"",     "localhost", "localhost:",    "::1:80", "[::1]",
                                      ":x",   ":70000",    ":-1",           ":80x",   "[::1:80",
                                      ": 80", ":+80",      "localhost:http"};
    char host[64], port[8];
    for (size_t i = 0; i < KRD_ARRAY_LEN(good); i++) {
        assert_true(http_split_address(good[i].text, host, sizeof host, port, sizeof port));
        assert_string_equal(host, good[i].host);
        assert_string_equal(port, good[i].port);
    }
    for (size_t i = 0; i < KRD_ARRAY_LEN(bad); i++)
        assert_false(http_split_address(bad[i], host, sizeof host, port, sizeof port));
}

#define TEST(f) cmocka_unit_test_teardown(f, drop_arena)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(any_byte_can_be_percent_encoded),
        TEST(a_plus_sign_and_a_slash_stand_for_themselves),
        TEST(a_broken_escape_is_an_error_wherever_it_stands),
        TEST(members_are_found_by_name_and_decoded),
        TEST(a_flag_says_yes_or_no_or_stands_alone),
        TEST(an_unknown_member_is_named),
        TEST(a_member_given_twice_is_an_error_whoever_asks),
        TEST(the_first_error_stays),
        TEST(empty_pieces_and_bad_encoding_do_no_harm),
        TEST(more_members_than_any_call_knows_are_refused),
        TEST(numbers_are_exact_up_to_64_bits),
        TEST(durations_carry_a_unit),
        TEST(a_lease_id_is_a_positive_63_bit_hex_number),
        TEST(entity_tags_are_quoted_revisions),
        TEST(paths_lead_to_calls),
        TEST(a_call_knows_its_methods),
        TEST(addresses_are_split_at_the_port),
    };
    return cmocka_run_group_tests_name("http_query", tests, NULL, NULL);
}
