/* The store's rules, one by one; each name is a claim. Random streams are in test_kv_model.c. */
#include "base/limits.h"
#include "kv/engine.h"
#include "kv/hash.h"
#include "tests/unit/kv_fixture.h"

#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#define assert_seen(f, key, revision, want) assert_string_equal(seen(f, key, revision), want)
#define assert_status(result, want, words)       \
    do {                                         \
        struct kv_result *r_ = (result);         \
        assert_int_equal(r_->status, want);      \
        assert_string_equal(r_->message, words); \
    } while (0)

static const char *const compacted_text = "required revision has been compacted";
static const char *const future_text = "required revision is a future revision";

/* --- Revisions ---------------------------------------------------------------------------------------- */

static void an_empty_store_has_revision_1(void **state)
{
    struct fixture *f = *state;
    uint64_t index;
    uint8_t hash[16];
    assert_int_equal(kv_revision(f->s), 1);
    assert_int_equal(kv_compacted_revision(f->s), 0);
    assert_int_equal(kv_applied_index(f->s), 0);
    assert_seen(f, "a", 0, "not found");
    assert_string_equal(listed(f, "", "", 0), "");
    kv_state_hash(f->s, &index, hash);
    assert_int_equal(index, 0);
    assert_hash_is_true(f);
}

static void each_write_adds_one_to_the_revision(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(done(f, cmd_put(f, "a", "1"))->revision, 2);
    assert_int_equal(done(f, cmd_put(f, "b", "1"))->revision, 3);
    assert_int_equal(done(f, cmd_delete(f, "a", NULL))->revision, 4);
    assert_int_equal(kv_revision(f->s), 4);
}

static void a_put_of_the_same_value_is_a_new_version(void **state)
{
    struct fixture *f = *state;
    done(f, cmd_put(f, "a", "1"));
    done(f, cmd_put(f, "a", "1"));
    assert_seen(f, "a", 0, "1@2/3/2");
}

static void a_delete_ends_the_count_of_versions(void **state)
{
    struct fixture *f = *state;
    done(f, cmd_put(f, "a", "1"));
    done(f, cmd_put(f, "a", "2"));
    done(f, cmd_delete(f, "a", NULL));
    assert_seen(f, "a", 0, "not found");
    done(f, cmd_put(f, "a", "3"));
    assert_seen(f, "a", 0, "3@5/5/1");
    assert_seen(f, "a", 4, "not found");
    assert_seen(f, "a", 3, "2@2/3/2");
}

static void what_changes_nothing_leaves_the_revision(void **state)
{
    struct fixture *f = *state;
    done(f, cmd_put(f, "a", "1"));
    struct kv_result *r = done(f, cmd_delete(f, "zz", NULL));
    assert_int_equal(r->op.u.del.deleted, 0);
    assert_int_equal(r->revision, 2);
    assert_int_equal(done(f, cmd_delete(f, "x", "z"))->revision, 2);
    r = done(f, cmd_txn(f, txn_then(f, txn(f), op_get(f, "a", NULL))));
    assert_int_equal(r->revision, 2);
    r = done(f, cmd_txn(f, txn_then(f, txn_if(f, txn(f), if_version(f, "a", 0, 9)),
                                    op_put(f, "a", "2"))));
    assert_false(r->op.u.txn.succeeded);
    assert_int_equal(r->op.u.txn.failed_compare, 0);
    assert_int_equal(r->revision, 2);
    assert_int_equal(done(f, cmd_grant(f, 5, 60))->revision, 2);
    assert_int_equal(done(f, cmd_renew(f, 5))->revision, 2);
    assert_int_equal(done(f, cmd_revoke(f, 5))->revision, 2);
    assert_int_equal(done(f, cmd_compact(f, 2))->revision, 2);
    assert_int_equal(kv_revision(f->s), 2);
}

static void a_transaction_has_one_revision(void **state)
{
    struct fixture *f = *state;
    done(f, cmd_put(f, "c", "0"));
    txn_request *t = txn_then(f, txn(f), op_put(f, "a", "1"));
    txn_then(f, t, op_put(f, "b", "2"));
    txn_then(f, t, op_delete(f, "c", NULL));
    struct kv_result *r = done(f, cmd_txn(f, t));
    assert_int_equal(r->revision, 3);
    assert_int_equal(r->op.u.txn.n, 3);
    assert_int_equal(r->op.u.txn.failed_compare, -1);
    assert_seen(f, "a", 0, "1@3/3/1");
    assert_seen(f, "b", 0, "2@3/3/1");
    assert_seen(f, "c", 0, "not found");
    assert_string_equal(listed(f, "", "", 2), "c=0 ");
}

static void a_range_is_deleted_in_one_revision(void **state)
{
    struct fixture *f = *state;
    done(f, cmd_put(f, "a", "1"));
    done(f, cmd_put(f, "b", "2"));
    done(f, cmd_put(f, "c", "3"));
    done(f, cmd_put(f, "d", "4"));
    command *c = cmd_delete(f, "b", "d");
    c->delete_range->prev_kv = true;
    struct kv_result *r = done(f, c);
    assert_int_equal(r->revision, 6);
    assert_int_equal(r->op.u.del.deleted, 2);
    assert_int_equal(r->op.u.del.n_prev, 2);
    assert_string_equal(text(f, r->op.u.del.prev[0].key), "b");
    assert_string_equal(text(f, r->op.u.del.prev[0].value), "2");
    assert_string_equal(text(f, r->op.u.del.prev[1].key), "c");
    assert_string_equal(listed(f, "", "", 0), "a=1 d=4 ");
    assert_string_equal(listed(f, "", "", 5), "a=1 b=2 c=3 d=4 ");
}

/* --- Puts ---------------------------------------------------------------------------------------------- */

static void a_put_tells_what_it_replaced(void **state)
{
    struct fixture *f = *state;
    command *c = cmd_put(f, "a", "1");
    c->put->prev_kv = true;
    struct kv_result *r = done(f, c);
    assert_false(r->op.u.put.has_prev);
    assert_int_equal(r->op.u.put.kv.create_revision, 2);
    assert_int_equal(r->op.u.put.kv.version, 1);
    c = cmd_put(f, "a", "2");
    c->put->prev_kv = true;
    r = done(f, c);
    assert_true(r->op.u.put.has_prev);
    assert_string_equal(text(f, r->op.u.put.prev.value), "1");
    assert_int_equal(r->op.u.put.prev.mod_revision, 2);
    assert_false(done(f, cmd_put(f, "a", "3"))->op.u.put.has_prev); /* not asked for */
}

static void ignore_value_keeps_the_value(void **state)
{
    struct fixture *f = *state;
    done(f, cmd_grant(f, 5, 60));
    done(f, cmd_put(f, "a", "kept"));
    command *c = cmd_put_lease(f, "a", "", 5);
    c->put->ignore_value = true;
    done(f, c);
    assert_seen(f, "a", 0, "kept@2/3/2");
    c = cmd_put_lease(f, "none", "", 5);
    c->put->ignore_value = true;
    assert_status(apply(f, c), KRD_NOT_FOUND, "key not found");
    c = cmd_put(f, "a", "given");
    c->put->ignore_value = true;
    assert_status(apply(f, c), KRD_BAD_REQUEST, "value is provided");
}

static void ignore_lease_keeps_the_lease(void **state)
{
    struct fixture *f = *state;
    struct kv_lease_info info;
    done(f, cmd_grant(f, 5, 60));
    done(f, cmd_put_lease(f, "a", "1", 5));
    command *c = cmd_put(f, "a", "2");
    c->put->ignore_lease = true;
    done(f, c);
    assert_int_equal(kv_lease_get(f->s, 5, &info), KRD_OK);
    assert_int_equal(info.keys, 1);
    c = cmd_put(f, "none", "");
    c->put->ignore_lease = true;
    assert_status(apply(f, c), KRD_NOT_FOUND, "key not found");
    c = cmd_put_lease(f, "a", "", 5);
    c->put->ignore_lease = true;
    assert_status(apply(f, c), KRD_BAD_REQUEST, "lease is provided");
}

static void keys_and_values_are_any_bytes(void **state)
{
    struct fixture *f = *state;
    uint8_t all[256], big_key[KRD_KEY_BYTES_MAX];
    for (int i = 0; i < 256; i++)
        all[i] = (uint8_t)i;
    memset(big_key, 0xff, sizeof big_key);
    struct slice keys[] = {slice_of("\0", 1), slice_of(all, 256), slice_of("\xff", 1),
                           slice_of(big_key, sizeof big_key)};
    for (size_t i = 0; i < KRD_ARRAY_LEN(keys); i++) {
        command *c = cmd_put(f, "", "");
        c->put->key = (ProtobufCBinaryData){keys[i].len, (uint8_t *)(uintptr_t)keys[i].ptr};
        c->put->value = (ProtobufCBinaryData){256, all};
        done(f, c);
    }
    struct kv_query q = {.range = {slice_of("\0", 1), slice_of("\0", 1)}};
    struct kv_cursor *c;
    struct kv_pair p;
    assert_int_equal(kv_cursor_open(f->s, &q, &c), KRD_OK);
    for (size_t i = 0; i < KRD_ARRAY_LEN(keys); i++) {
        assert_true(kv_cursor_next(c, &p));
        assert_true(slice_eq(p.key, keys[i]));
        assert_true(slice_eq(p.value, slice_of(all, 256)));
    }
    assert_false(kv_cursor_next(c, &p));
    kv_cursor_close(c);
    assert_hash_is_true(f);
}

static void an_empty_value_is_a_value(void **state)
{
    struct fixture *f = *state;
    done(f, cmd_put(f, "a", ""));
    assert_seen(f, "a", 0, "@2/2/1");
}

/* --- Compares ------------------------------------------------------------------------------------------- */

enum { EQUAL, GREATER, LESS, NOT_EQUAL };

static bool holds(struct fixture *f, comparison *c)
{
    struct kv_result *r =
        done(f, cmd_txn(f, txn_then(f, txn_if(f, txn(f), c), op_get(f, "a", NULL))));
    return r->op.u.txn.succeeded;
}

static comparison *if_number(struct fixture *f, const char *key, int target, int result, int64_t v)
{
    comparison *c = if_version(f, key, result, v);
    c->target = target;
    static const int members[] = {ETCDSERVERPB__COMPARE__TARGET_UNION_VERSION,
                                  ETCDSERVERPB__COMPARE__TARGET_UNION_CREATE_REVISION,
                                  ETCDSERVERPB__COMPARE__TARGET_UNION_MOD_REVISION, 0,
                                  ETCDSERVERPB__COMPARE__TARGET_UNION_LEASE};
    c->target_union_case = members[target];
    c->version = v; /* all numbers share the place */
    return c;
}

static void compares_hold_as_numbers_do(void **state)
{
    struct fixture *f = *state;
    done(f, cmd_grant(f, 4, 60));
    done(f, cmd_put(f, "x", "0"));
    done(f, cmd_put(f, "a", "1"));
    done(f, cmd_put_lease(f, "a", "2", 4)); /* version 2, create 3, mod 4, lease 4 */
    static const int64_t have[] = {2, 3, 4, 0, 4};
    for (int target = 0; target < 5; target++) {
        if (target == ETCDSERVERPB__COMPARE__COMPARE_TARGET__VALUE)
            continue;
        for (int64_t d = -1; d <= 1; d++) {
            int64_t v = have[target] + d;
            assert_int_equal(holds(f, if_number(f, "a", target, EQUAL, v)), d == 0);
            assert_int_equal(holds(f, if_number(f, "a", target, NOT_EQUAL, v)), d != 0);
            assert_int_equal(holds(f, if_number(f, "a", target, GREATER, v)), d < 0);
            assert_int_equal(holds(f, if_number(f, "a", target, LESS, v)), d > 0);
        }
    }
    assert_true(holds(f, if_value(f, "a", EQUAL, "2")));
    assert_true(holds(f, if_value(f, "a", GREATER, "1zzz")));
    assert_true(holds(f, if_value(f, "a", LESS, "20")));
    assert_false(holds(f, if_value(f, "a", NOT_EQUAL, "2")));
}

static void a_missing_key_has_numbers_0_and_no_value(void **state)
{
    struct fixture *f = *state;
    for (int target = 0; target < 5; target++) {
        if (target == ETCDSERVERPB__COMPARE__COMPARE_TARGET__VALUE)
            continue;
        assert_true(holds(f, if_number(f, "none", target, EQUAL, 0)));
        assert_true(holds(f, if_number(f, "none", target, LESS, 1)));
        assert_false(holds(f, if_number(f, "none", target, GREATER, 0)));
    }
    for (int result = EQUAL; result <= NOT_EQUAL; result++) {
        assert_false(holds(f, if_value(f, "none", result, "")));
        assert_false(holds(f, if_value(f, "none", result, "x")));
    }
    done(f, cmd_put(f, "none", "x"));
    done(f, cmd_delete(f, "none", NULL));
    assert_true(holds(f, if_version(f, "none", EQUAL, 0)));
    assert_false(holds(f, if_value(f, "none", EQUAL, "x")));
}

static void a_range_compare_holds_for_every_key(void **state)
{
    struct fixture *f = *state;
    done(f, cmd_put(f, "a", "1"));
    done(f, cmd_put(f, "b", "1"));
    done(f, cmd_put(f, "b", "1"));
    comparison *c = if_version(f, "a", GREATER, 0);
    c->range_end = (ProtobufCBinaryData){1, (uint8_t *)"z"};
    assert_true(holds(f, c));
    c->result = ETCDSERVERPB__COMPARE__COMPARE_RESULT__EQUAL;
    c->version = 1;
    assert_false(holds(f, c));
    c->key = (ProtobufCBinaryData){1, (uint8_t *)"p"}; /* nothing there */
    c->version = 0;
    assert_true(holds(f, c));
    c = if_value(f, "p", NOT_EQUAL, "1");
    c->range_end = (ProtobufCBinaryData){1, (uint8_t *)"z"};
    assert_false(holds(f, c));
}

static void a_value_given_for_another_target_counts_as_0(void **state)
{
    struct fixture *f = *state;
    comparison *c = if_version(f, "none", EQUAL, 7);
    c->target_union_case = ETCDSERVERPB__COMPARE__TARGET_UNION_LEASE;
    assert_true(holds(f, c));
    c->target_union_case = ETCDSERVERPB__COMPARE__TARGET_UNION_VERSION;
    assert_false(holds(f, c));
}

/* --- Transactions ------------------------------------------------------------------------------------------ */

static void a_transaction_takes_one_branch(void **state)
{
    struct fixture *f = *state;
    for (int round = 0; round < 2; round++) {
        txn_request *t = txn_if(f, txn(f), if_version(f, "a", EQUAL, 0));
        txn_then(f, t, op_put(f, "a", "new"));
        txn_else(f, t, op_get(f, "a", NULL));
        struct kv_result *r = done(f, cmd_txn(f, t));
        assert_int_equal(r->op.u.txn.succeeded, round == 0);
        assert_int_equal(r->op.u.txn.results[0].type, round == 0 ? KV_OP_PUT : KV_OP_RANGE);
    }
    assert_seen(f, "a", 0, "new@2/2/1");
}

static void a_range_sees_the_transactions_earlier_writes(void **state)
{
    struct fixture *f = *state;
    done(f, cmd_put(f, "a", "old"));
    txn_request *t = txn_then(f, txn(f), op_get(f, "a", "z"));
    txn_then(f, t, op_put(f, "b", "new"));
    txn_then(f, t, op_delete(f, "a", NULL));
    txn_then(f, t, op_get(f, "a", "z"));
    operation *past = op_get(f, "a", "z");
    past->request_range->revision = 2;
    txn_then(f, t, past);
    struct kv_result *r = done(f, cmd_txn(f, t));
    struct kv_op_result *ops = r->op.u.txn.results;
    assert_int_equal(ops[0].u.range.n, 1);
    assert_string_equal(text(f, ops[0].u.range.kvs[0].value), "old");
    assert_int_equal(ops[3].u.range.n, 1);
    assert_string_equal(text(f, ops[3].u.range.kvs[0].value), "new");
    assert_int_equal(ops[3].u.range.kvs[0].mod_revision, 3);
    assert_int_equal(ops[4].u.range.n, 1); /* at revision 2 nothing of it has happened */
    assert_string_equal(text(f, ops[4].u.range.kvs[0].value), "old");
}

static void all_compares_are_made_against_the_state_before(void **state)
{
    struct fixture *f = *state;
    txn_request *inner = txn_if(f, txn(f), if_version(f, "a", EQUAL, 0));
    txn_then(f, inner, op_put(f, "seen", "before"));
    txn_else(f, inner, op_put(f, "seen", "after"));
    txn_request *t = txn_then(f, txn(f), op_put(f, "a", "1"));
    txn_then(f, t, op_txn(f, inner));
    struct kv_result *r = done(f, cmd_txn(f, t));
    assert_true(r->op.u.txn.results[1].u.txn.succeeded);
    assert_seen(f, "seen", 0, "before@2/2/1");
}

static void an_error_in_a_branch_undoes_all_of_it(void **state)
{
    struct fixture *f = *state;
    done(f, cmd_put(f, "a", "1"));
    done(f, cmd_compact(f, 2));
    operation *bad[4];
    bad[0] = op_put(f, "x", "1");
    bad[0]->request_put->lease = 99;
    bad[1] = op_put(f, "x", "");
    bad[1]->request_put->ignore_value = true;
    bad[2] = op_get(f, "a", NULL);
    bad[2]->request_range->revision = 1;
    bad[3] = op_get(f, "a", NULL);
    bad[3]->request_range->revision = 3;
    static const enum krd_status want[] = {KRD_LEASE_NOT_FOUND, KRD_NOT_FOUND, KRD_COMPACTED,
                                           KRD_FUTURE_REVISION};
    for (size_t i = 0; i < 4; i++) {
        txn_request *deep = txn_then(f, txn_then(f, txn(f), op_put(f, "c", "2")), bad[i]);
        txn_request *t = txn_then(f, txn_then(f, txn(f), op_put(f, "b", "2")), op_txn(f, deep));
        struct kv_result *r = apply(f, cmd_txn(f, t));
        assert_int_equal(r->status, want[i]);
        assert_false(r->has_op);
        assert_int_equal(r->revision, 2);
    }
    assert_string_equal(listed(f, "", "", 0), "a=1 ");
    /* On the branch that is not taken nothing matters. */
    txn_request *t = txn_if(f, txn(f), if_version(f, "a", EQUAL, 1));
    txn_then(f, t, op_put(f, "b", "2"));
    for (size_t i = 0; i < 4; i++) {
        if (i != 1) /* the same key twice is refused wherever it stands */
            txn_else(f, t, bad[i]);
    }
    done(f, cmd_txn(f, t));
    assert_hash_is_true(f);
}

static void ranges_in_transactions_sort_filter_and_cut(void **state)
{
    struct fixture *f = *state;
    static const char *const keys[] = {"a", "b", "c", "d"};
    static const char *const values[] = {"4", "2", "3", "1"};
    for (int i = 0; i < 4; i++)
        done(f, cmd_put(f, keys[i], values[i]));
    done(f, cmd_put(f, "a", "5")); /* a: version 2, mod 6 */
    operation *op[6];
    for (int i = 0; i < 6; i++)
        op[i] = op_get(f, "a", "z");
    op[0]->request_range->limit = 2;
    op[1]->request_range->sort_target = ETCDSERVERPB__RANGE_REQUEST__SORT_TARGET__VALUE;
    op[1]->request_range->limit = 3;
    op[2]->request_range->sort_target = ETCDSERVERPB__RANGE_REQUEST__SORT_TARGET__MOD;
    op[2]->request_range->sort_order = ETCDSERVERPB__RANGE_REQUEST__SORT_ORDER__DESCEND;
    op[2]->request_range->keys_only = true;
    op[3]->request_range->min_mod_revision = 4;
    op[3]->request_range->max_mod_revision = 5;
    op[3]->request_range->limit = 2;
    op[4]->request_range->count_only = true;
    op[4]->request_range->limit = 1;
    op[5]->request_range->sort_order = ETCDSERVERPB__RANGE_REQUEST__SORT_ORDER__DESCEND;
    op[5]->request_range->limit = 1;
    txn_request *t = txn(f);
    for (int i = 0; i < 6; i++)
        txn_then(f, t, op[i]);
    struct kv_result *result = done(f, cmd_txn(f, t));
    static const char *const want[] = {"ab", "dbc", "adcb", "cd", "", "d"};
    static const bool more[] = {true, true, false, false, false, true};
    for (int i = 0; i < 6; i++) {
        struct kv_op_result *r = &result->op.u.txn.results[i];
        char got[8] = "";
        for (size_t k = 0; k < r->u.range.n; k++) {
            strcat(got, text(f, r->u.range.kvs[k].key));
            assert_int_equal(r->u.range.kvs[k].value.len, i == 2 ? 0 : 1);
        }
        assert_string_equal(got, want[i]);
        assert_int_equal(r->u.range.count, 4);
        assert_int_equal(r->u.range.more, more[i]);
    }
}

/* --- Schema checks ------------------------------------------------------------------------------------------ */

static void assert_refused(struct fixture *f, command *c, enum krd_status want, const char *words)
{
    const char *message = NULL;
    int64_t revision = kv_revision(f->s);
    assert_int_equal(kv_check(c, &message), want);
    assert_string_equal(message, words);
    assert_status(apply(f, c), want, words); /* in the log it is a definite no as well */
    assert_int_equal(kv_revision(f->s), revision);
}

static void bad_commands_are_refused_and_change_nothing(void **state)
{
    struct fixture *f = *state;
    uint8_t *big = krd_arena_zalloc(&f->arena, KRD_KEY_BYTES_MAX + 1);
    command *c;
    assert_refused(f, cmd_put(f, "", "1"), KRD_BAD_REQUEST, "key is not provided");
    assert_refused(f, cmd_delete(f, "", "z"), KRD_BAD_REQUEST, "key is not provided");
    c = cmd_put(f, "", "1");
    c->put->key = (ProtobufCBinaryData){KRD_KEY_BYTES_MAX + 1, big};
    assert_refused(f, c, KRD_TOO_LARGE, "key is too large");
    c = cmd_delete(f, "a", NULL);
    c->delete_range->range_end = (ProtobufCBinaryData){KRD_KEY_BYTES_MAX + 1, big};
    assert_refused(f, c, KRD_TOO_LARGE, "key is too large");
    assert_refused(f, cmd(f), KRD_BAD_REQUEST, "no known operation in a command");
    c = cmd_put(f, "a", "1");
    c->delete_range = cmd_delete(f, "b", NULL)->delete_range;
    assert_refused(f, c, KRD_BAD_REQUEST, "more than one operation in a command");
    c = cmd_delete(f, "a", NULL);
    c->lease_grant = cmd_grant(f, 1, 1)->lease_grant;
    assert_refused(f, c, KRD_BAD_REQUEST, "more than one operation in a command");
    assert_refused(f, cmd_grant(f, 1, KRD_LEASE_TTL_MAX_S + 1), KRD_BAD_REQUEST,
                   "too large lease TTL");
    assert_refused(f, cmd_grant(f, -3, 1), KRD_BAD_REQUEST, "lease ID is negative");
    operation *op = op_get(f, "a", NULL);
    op->request_range->sort_target = 5;
    assert_refused(f, cmd_txn(f, txn_then(f, txn(f), op)), KRD_BAD_REQUEST, "invalid sort option");
    op->request_range->sort_target = 0;
    op->request_range->sort_order = -1;
    assert_refused(f, cmd_txn(f, txn_else(f, txn(f), op)), KRD_BAD_REQUEST, "invalid sort option");
    assert_refused(f, cmd_txn(f, txn_if(f, txn(f), if_version(f, "", EQUAL, 0))), KRD_BAD_REQUEST,
                   "key is not provided");
    op = op_get(f, "a", NULL);
    op->request_case = ETCDSERVERPB__REQUEST_OP__REQUEST__NOT_SET;
    assert_refused(f, cmd_txn(f, txn_then(f, txn(f), op)), KRD_BAD_REQUEST, "key not found");
    assert_hash_is_true(f);
}

static command *txn_of_puts(struct fixture *f, size_t n)
{
    txn_request *t = txn(f);
    for (size_t i = 0; i < n; i++)
        txn_then(f, t, op_put(f, krd_arena_printf(&f->arena, "%zu", i), ""));
    return cmd_txn(f, t);
}

static void a_transaction_has_at_most_128_operations_a_list(void **state)
{
    struct fixture *f = *state;
    const char *const words = "too many operations in txn request";
    done(f, txn_of_puts(f, 128));
    assert_refused(f, txn_of_puts(f, 129), KRD_BAD_REQUEST, words);
    /* A nested one may use what its parent left. */
    txn_request *t = txn_then(f, txn(f), op_txn(f, txn_of_puts(f, 127)->txn));
    done(f, cmd_txn(f, t));
    t = txn_then(f, txn(f), op_txn(f, txn_of_puts(f, 128)->txn));
    assert_refused(f, cmd_txn(f, t), KRD_BAD_REQUEST, words);
}

static void transactions_nest_eight_deep(void **state)
{
    struct fixture *f = *state;
    txn_request *t = txn_then(f, txn(f), op_put(f, "deep", "1"));
    for (int depth = 2; depth <= KRD_TXN_DEPTH_MAX; depth++)
        t = txn_then(f, txn(f), op_txn(f, t));
    done(f, cmd_txn(f, t));
    assert_seen(f, "deep", 0, "1@2/2/1");
    t = txn_then(f, txn(f), op_txn(f, t));
    assert_refused(f, cmd_txn(f, t), KRD_BAD_REQUEST, "too many operations in txn request");
}

static void a_key_is_written_once_on_any_path(void **state)
{
    struct fixture *f = *state;
    const char *const words = "duplicate key given in txn request";
    txn_request *t = txn_then(f, txn_then(f, txn(f), op_put(f, "a", "")), op_put(f, "a", ""));
    assert_refused(f, cmd_txn(f, t), KRD_BAD_REQUEST, words);
    t = txn_then(f, txn_then(f, txn(f), op_put(f, "b", "")), op_delete(f, "a", "c"));
    assert_refused(f, cmd_txn(f, t), KRD_BAD_REQUEST, words);
    t = txn_then(f, txn_then(f, txn(f), op_delete(f, "b", NULL)), op_put(f, "b", ""));
    assert_refused(f, cmd_txn(f, t), KRD_BAD_REQUEST, words);
    txn_request *inner = txn_else(f, txn(f), op_put(f, "a", ""));
    t = txn_then(f, txn_then(f, txn(f), op_txn(f, inner)), op_put(f, "a", ""));
    assert_refused(f, cmd_txn(f, t), KRD_BAD_REQUEST, words);

    /* Branches exclude one another; deletes may overlap; ranges do not count. */
    t = txn_then(f, txn_else(f, txn(f), op_put(f, "a", "else")), op_put(f, "a", "then"));
    txn_then(f, t, op_get(f, "a", "z"));
    txn_then(f, t, op_delete(f, "b", "d"));
    txn_then(f, t, op_delete(f, "c", "e"));
    inner = txn_then(f, txn_else(f, txn(f), op_put(f, "x", "")), op_put(f, "x", ""));
    done(f, cmd_txn(f, txn_then(f, t, op_txn(f, inner))));
}

static void what_does_not_decode_is_a_definite_no(void **state)
{
    struct fixture *f = *state;
    done(f, cmd_put(f, "a", "1"));
    struct raft_entry e = raft_entry_make(RAFT_ENTRY_COMMAND, slice_str("\xff\xff\xff garbage"));
    raft_entry_seal(&e, ++f->index, 1, f->time_ms);
    apply_entries(f->s, &e, 1, NULL, NULL);
    raft_entry_unref(&e);
    assert_int_equal(kv_applied_index(f->s), f->index);
    assert_int_equal(kv_revision(f->s), 2);
    assert_hash_is_true(f);
}

/* Deeper than any stack, in a few megabytes: lengths first, then read inside out. */
static void absurd_nesting_does_not_crash(void **state)
{
    struct fixture *f = *state;
    size_t levels = 300000, cap = levels * 12 + 64, at = cap;
    uint8_t *p = krd_alloc(cap);
    for (size_t i = 0; i <= 2 * levels; i++) {
        /* InternalRaftRequest.txn = 6; TxnRequest.success = 2; RequestOp.request_txn = 4 */
        size_t len = cap - at;
        uint8_t tag = i == 2 * levels ? 6 << 3 | 2 : i % 2 == 0 ? 2 << 3 | 2 : 4 << 3 | 2;
        uint8_t head[8];
        size_t n = 0;
        head[n++] = tag;
        do {
            head[n++] = (uint8_t)((len & 127) | (len > 127 ? 128 : 0));
            len >>= 7;
        } while (len > 0);
        at -= n;
        memcpy(p + at, head, n);
    }
    struct raft_entry e = raft_entry_make(RAFT_ENTRY_COMMAND, slice_of(p + at, cap - at));
    krd_free(p);
    raft_entry_seal(&e, ++f->index, 1, f->time_ms);
    apply_entries(f->s, &e, 1, NULL, NULL);
    raft_entry_unref(&e);
    assert_int_equal(kv_applied_index(f->s), f->index);
    assert_int_equal(kv_revision(f->s), 1);
}

static void entries_without_commands_move_the_index_alone(void **state)
{
    struct fixture *f = *state;
    struct raft_entry e = raft_entry_make(RAFT_ENTRY_NOOP, slice_of(NULL, 0));
    raft_entry_seal(&e, ++f->index, 5, 777);
    apply_entries(f->s, &e, 1, NULL, NULL);
    assert_int_equal(kv_applied_index(f->s), 1);
    assert_int_equal(kv_applied_term(f->s), 5);
    assert_int_equal(kv_applied_time_ms(f->s), 777);
    assert_int_equal(kv_revision(f->s), 1);
    apply_entries(f->s, &e, 1, NULL, NULL); /* again: skipped */
    raft_entry_unref(&e);
    assert_int_equal(kv_applied_index(f->s), 1);
}

/* --- Reads ----------------------------------------------------------------------------------------------- */

static void the_past_is_read_as_it_was(void **state)
{
    struct fixture *f = *state;
    done(f, cmd_put(f, "a", "1"));
    done(f, cmd_put(f, "b", "2"));
    done(f, cmd_put(f, "a", "3"));
    done(f, cmd_delete(f, "b", NULL));
    assert_string_equal(listed(f, "", "", 1), "");
    assert_string_equal(listed(f, "", "", 2), "a=1 ");
    assert_string_equal(listed(f, "", "", 3), "a=1 b=2 ");
    assert_string_equal(listed(f, "", "", 4), "a=3 b=2 ");
    assert_string_equal(listed(f, "", "", 5), "a=3 ");
    assert_string_equal(listed(f, "", "", 6), future_text);
    assert_seen(f, "a", 6, future_text);
    assert_seen(f, "b", 4, "2@3/3/1");
}

static void a_cursor_sees_nothing_that_came_after_it(void **state)
{
    struct fixture *f = *state;
    done(f, cmd_put(f, "a", "1"));
    done(f, cmd_put(f, "b", "1"));
    struct kv_query q = {.range = {slice_str("a"), slice_str("z")}};
    struct kv_cursor *c;
    struct kv_pair p;
    assert_int_equal(kv_cursor_open(f->s, &q, &c), KRD_OK);
    done(f, cmd_put(f, "b", "2"));
    done(f, cmd_delete(f, "a", NULL));
    done(f, cmd_put(f, "c", "2"));
    done(f, cmd_compact(f, kv_revision(f->s)));
    maintain(f);
    assert_true(kv_cursor_next(c, &p));
    assert_string_equal(text(f, p.value), "1");
    assert_true(kv_cursor_next(c, &p));
    assert_string_equal(text(f, p.value), "1");
    assert_false(kv_cursor_next(c, &p));
    assert_false(kv_cursor_next(c, &p));
    assert_int_equal(kv_cursor_revision(c), 3);
    kv_cursor_close(c);
}

static void a_prefix_ends_before_its_neighbour(void **state)
{
    struct fixture *f = *state;
    uint8_t end[8];
    struct kv_range r = kv_range_of_prefix(slice_str("ab"), end);
    assert_true(slice_eq(r.range_end, slice_str("ac")));
    r = kv_range_of_prefix(slice_str("a\xff\xff"), end);
    assert_true(slice_eq(r.key, slice_str("a\xff\xff")));
    assert_true(slice_eq(r.range_end, slice_str("b")));
    r = kv_range_of_prefix(slice_str("\xff\xff"), end);
    assert_true(slice_eq(r.range_end, slice_of("\0", 1)));
    assert_true(kv_range_contains(&r, slice_str("\xff\xff\xff")));
    assert_false(kv_range_contains(&r, slice_str("\xff")));
    r = kv_range_of_prefix(slice_of(NULL, 0), end);
    done(f, cmd_put(f, "a", "1"));
    struct kv_query q = {.range = r};
    struct kv_cursor *c;
    assert_int_equal(kv_cursor_open(f->s, &q, &c), KRD_OK);
    assert_int_equal(kv_cursor_count_rest(c), 1);
    kv_cursor_close(c);
}

static void history_tells_every_kept_version(void **state)
{
    struct fixture *f = *state;
    struct kv_pair *list;
    size_t n;
    int64_t revision;
    done(f, cmd_put(f, "a", "1"));
    done(f, cmd_put(f, "a", "2"));
    done(f, cmd_delete(f, "a", NULL));
    done(f, cmd_put(f, "a", "3"));
    struct slice a = slice_str("a");
    assert_int_equal(kv_history(f->s, a, 0, &f->arena, &list, &n, &revision), KRD_OK);
    assert_int_equal(revision, 5);
    assert_int_equal(n, 4);
    static const int64_t versions[] = {1, 0, 2, 1};
    for (size_t i = 0; i < n; i++) {
        assert_int_equal(list[i].mod_revision, 5 - (int64_t)i);
        assert_int_equal(list[i].version, versions[i]);
    }
    assert_int_equal(kv_history(f->s, a, 2, &f->arena, &list, &n, &revision), KRD_OK);
    assert_int_equal(n, 2);
    assert_int_equal(kv_history(f->s, slice_str("b"), 0, &f->arena, &list, &n, &revision),
                     KRD_NOT_FOUND);
}

static void a_time_stands_for_the_newest_revision_until_then(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(kv_revision_at_time(f->s, UINT64_MAX), 0);
    for (int i = 0; i < 100; i++) {
        f->time_ms =
            1000 + (uint64_t)(i / 2) * 10; /* revisions 2 and 3: 1000, 4 and 5: 1010, ... */
        done(f, cmd_put(f, "a", "1"));
    }
    assert_int_equal(kv_revision_at_time(f->s, 999), 0);
    assert_int_equal(kv_revision_at_time(f->s, 1000), 3);
    assert_int_equal(kv_revision_at_time(f->s, 1009), 3);
    assert_int_equal(kv_revision_at_time(f->s, 1010), 5);
    assert_int_equal(kv_revision_at_time(f->s, 9999), 101);
    done(f, cmd_compact(f, 50)); /* time 1240 */
    maintain(f);
    assert_int_equal(kv_revision_at_time(f->s, 1239), 0);
    assert_int_equal(kv_revision_at_time(f->s, 1240), 51);
    assert_int_equal(kv_revision_at_time(f->s, 9999), 101);
}

/* --- Leases ------------------------------------------------------------------------------------------------ */

static const char *lease_keys(struct fixture *f, int64_t id)
{
    struct slice *keys;
    size_t n = kv_lease_keys(f->s, id, &f->arena, &keys);
    const char *s = "";
    for (size_t i = 0; i < n; i++)
        s = krd_arena_printf(&f->arena, "%s%s ", s, text(f, keys[i]));
    struct kv_lease_info info;
    if (kv_lease_get(f->s, id, &info) == KRD_OK)
        assert_int_equal(info.keys, n);
    return s;
}

static void a_lease_is_granted_once(void **state)
{
    struct fixture *f = *state;
    struct kv_lease_info info;
    struct kv_result *r = done(f, cmd_grant(f, 5, 60));
    assert_int_equal(r->lease_id, 5);
    assert_int_equal(r->lease_ttl, 60);
    assert_status(apply(f, cmd_grant(f, 5, 60)), KRD_LEASE_EXISTS, "lease already exists");
    assert_int_equal(kv_lease_get(f->s, 5, &info), KRD_OK);
    assert_int_equal(info.ttl, 60);
    assert_int_equal(info.deadline_ms, f->time_ms + 60000);
    assert_int_equal(kv_lease_get(f->s, 6, &info), KRD_LEASE_NOT_FOUND);
}

static void a_ttl_is_at_least_1_and_bounded(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(done(f, cmd_grant(f, 1, 0))->lease_ttl, 1);
    assert_int_equal(done(f, cmd_grant(f, 2, INT64_MIN))->lease_ttl, 1);
    assert_int_equal(done(f, cmd_grant(f, 3, KRD_LEASE_TTL_MAX_S))->lease_ttl, KRD_LEASE_TTL_MAX_S);
    assert_int_equal(apply(f, cmd_grant(f, 4, INT64_MAX))->status, KRD_BAD_REQUEST);
    assert_int_equal(done(f, cmd_grant(f, INT64_MAX, 5))->lease_id, INT64_MAX);
    done(f, cmd_put_lease(f, "a", "1", INT64_MAX));
    done(f, cmd_revoke(f, INT64_MAX));
    assert_seen(f, "a", 0, "not found");
}

static void the_store_chooses_a_positive_free_id(void **state)
{
    struct fixture *f = *state;
    int64_t seen_ids[200];
    for (size_t i = 0; i < 200; i++) {
        seen_ids[i] = done(f, cmd_grant(f, 0, 60))->lease_id;
        assert_true(seen_ids[i] > 0);
        for (size_t j = 0; j < i; j++)
            assert_true(seen_ids[i] != seen_ids[j]);
    }
}

static void a_put_needs_its_lease_to_exist(void **state)
{
    struct fixture *f = *state;
    assert_status(apply(f, cmd_put_lease(f, "a", "1", 5)), KRD_LEASE_NOT_FOUND,
                  "requested lease not found");
    assert_status(apply(f, cmd_put_lease(f, "a", "1", -1)), KRD_LEASE_NOT_FOUND,
                  "requested lease not found");
    assert_int_equal(kv_revision(f->s), 1);
}

static void a_key_follows_its_last_put(void **state)
{
    struct fixture *f = *state;
    done(f, cmd_grant(f, 5, 60));
    done(f, cmd_grant(f, 6, 60));
    done(f, cmd_put_lease(f, "a", "1", 5));
    done(f, cmd_put_lease(f, "b", "1", 5));
    done(f, cmd_put_lease(f, "c", "1", 5));
    done(f, cmd_put_lease(f, "d", "1", 5));
    assert_string_equal(lease_keys(f, 5), "a b c d ");
    done(f, cmd_put_lease(f, "a", "2", 6)); /* moves */
    done(f, cmd_put(f, "b", "2"));          /* lets go */
    done(f, cmd_delete(f, "c", NULL));      /* gone */
    done(f, cmd_put_lease(f, "d", "2", 5)); /* stays */
    assert_string_equal(lease_keys(f, 5), "d ");
    assert_string_equal(lease_keys(f, 6), "a ");
    fixture_reopen(f);
    assert_string_equal(lease_keys(f, 5), "d ");
    done(f, cmd_revoke(f, 5));
    assert_string_equal(listed(f, "", "", 0), "a=2 b=2 ");
    assert_hash_is_true(f);
}

static void a_revoke_deletes_all_keys_in_one_revision(void **state)
{
    struct fixture *f = *state;
    done(f, cmd_grant(f, 5, 60));
    done(f, cmd_put_lease(f, "b", "1", 5));
    done(f, cmd_put_lease(f, "a", "1", 5));
    assert_int_equal(done(f, cmd_revoke(f, 5))->revision, 4);
    assert_string_equal(listed(f, "", "", 3), "a=1 b=1 ");
    assert_string_equal(listed(f, "", "", 4), "");
    assert_status(apply(f, cmd_revoke(f, 5)), KRD_LEASE_NOT_FOUND, "requested lease not found");
    assert_string_equal(lease_keys(f, 5), "");
}

static void expiry_ends_only_what_is_due(void **state)
{
    struct fixture *f = *state;
    struct kv_lease_info info;
    int64_t ids[] = {1, 2, 3, 2, 99};
    f->time_ms = 10000;
    done(f, cmd_grant(f, 1, 5)); /* until 15000 */
    done(f, cmd_grant(f, 2, 5));
    done(f, cmd_grant(f, 3, 5));
    done(f, cmd_put_lease(f, "c", "1", 1));
    done(f, cmd_put_lease(f, "a", "1", 3));
    done(f, cmd_put_lease(f, "b", "1", 2));
    f->time_ms = 12000;
    done(f, cmd_renew(f, 1)); /* until 17000 */
    f->time_ms = 14999;
    assert_int_equal(done(f, cmd_expire(f, 5, ids))->revision, 4);
    assert_string_equal(listed(f, "", "", 0), "a=1 b=1 c=1 ");
    f->time_ms = 15000;
    assert_int_equal(done(f, cmd_expire(f, 5, ids))->revision, 5); /* both in one */
    assert_string_equal(listed(f, "", "", 0), "c=1 ");
    assert_int_equal(kv_lease_get(f->s, 2, &info), KRD_LEASE_NOT_FOUND);
    assert_int_equal(kv_lease_get(f->s, 1, &info), KRD_OK);
    assert_int_equal(info.deadline_ms, 17000);
}

static void cluster_time_never_goes_back(void **state)
{
    struct fixture *f = *state;
    struct kv_lease_info info;
    f->time_ms = 5000;
    done(f, cmd_put(f, "a", "1"));
    f->time_ms = 4000;
    done(f, cmd_grant(f, 5, 10));
    assert_int_equal(kv_applied_time_ms(f->s), 5000);
    assert_int_equal(kv_lease_get(f->s, 5, &info), KRD_OK);
    assert_int_equal(info.deadline_ms, 15000);
}

static void a_renewal_tells_the_ttl_or_0(void **state)
{
    struct fixture *f = *state;
    done(f, cmd_grant(f, 5, 60));
    struct kv_result *r = done(f, cmd_renew(f, 5));
    assert_int_equal(r->n_renewed, 1);
    assert_int_equal(r->renewed_ttl[0], 60);
    assert_int_equal(done(f, cmd_renew(f, 6))->renewed_ttl[0], 0);
}

static void deadlines_are_kept_in_order_and_over_a_restart(void **state)
{
    struct fixture *f = *state;
    int64_t ids[10];
    uint64_t next;
    assert_int_equal(kv_lease_due(f->s, UINT64_MAX, ids, 10, &next), 0);
    assert_true(next == UINT64_MAX);
    for (int64_t i = 1; i <= 100; i++)
        done(f, cmd_grant(f, i, 1 + (i * 37) % 101)); /* at 1000: due at 3000 .. 102000 */
    for (int round = 0; round < 2; round++) {
        assert_int_equal(kv_lease_due(f->s, 1999, ids, 10, &next), 0);
        uint64_t first = next;
        assert_int_equal(kv_lease_due(f->s, first, ids, 10, &next), 1);
        assert_true(next > first);
        assert_int_equal(kv_lease_due(f->s, 7000, ids, 10, &next), 5);
        assert_int_equal(kv_lease_due(f->s, UINT64_MAX, ids, 10, &next), 10);
        fixture_reopen(f);
    }
    for (int64_t i = 1; i <= 100; i += 2)
        done(f, cmd_revoke(f, i));
    struct kv_lease_info *list;
    size_t n = kv_lease_list(f->s, &list);
    assert_int_equal(n, 50);
    for (size_t i = 0; i < n; i++)
        assert_int_equal(list[i].id, 2 * i + 2);
    krd_free(list);
    assert_hash_is_true(f);
}

static void a_put_can_bring_its_own_lease(void **state)
{
    struct fixture *f = *state;
    command *c = cmd_put_lease(f, "a", "1", -1);
    c->lease_grant = cmd_grant(f, 0, 30)->lease_grant;
    struct kv_result *r = done(f, c);
    assert_true(r->lease_id > 0);
    assert_int_equal(r->lease_ttl, 30);
    assert_int_equal(r->op.u.put.kv.lease, r->lease_id);
    assert_string_equal(lease_keys(f, r->lease_id), "a ");
}

static void a_grant_beside_a_put_that_does_not_take_it_is_not_made(void **state)
{
    struct fixture *f = *state;
    struct kv_lease_info info;
    command *c = cmd_put(f, "a", "1");
    c->lease_grant = cmd_grant(f, 5, 30)->lease_grant;
    assert_int_equal(done(f, c)->lease_id, 0);
    assert_int_equal(kv_lease_get(f->s, 5, &info), KRD_LEASE_NOT_FOUND);
}

/* Else every refused attempt would leave a lease behind that nobody knows. */
static void a_grant_that_no_put_takes_is_not_made(void **state)
{
    struct fixture *f = *state;
    struct kv_lease_info info;
    txn_request *t = txn_if(f, txn(f), if_version(f, "a", EQUAL, 0));
    operation *op = op_put(f, "a", "mine");
    op->request_put->lease = -1;
    command *c = cmd_txn(f, txn_then(f, t, op));
    c->lease_grant = cmd_grant(f, 5, 30)->lease_grant;
    struct kv_result *r = done(f, c);
    assert_true(r->op.u.txn.succeeded);
    assert_int_equal(r->lease_id, 5);
    c->lease_grant = cmd_grant(f, 6, 30)->lease_grant;
    r = done(f, c);
    assert_false(r->op.u.txn.succeeded);
    assert_int_equal(r->lease_id, 0);
    assert_int_equal(kv_lease_get(f->s, 6, &info), KRD_LEASE_NOT_FOUND);
    /* Nor when something else fails. */
    op = op_put(f, "b", "");
    op->request_put->lease = -1;
    operation *bad = op_put(f, "c", "");
    bad->request_put->lease = 99;
    c = cmd_txn(f, txn_then(f, txn_then(f, txn(f), op), bad));
    c->lease_grant = cmd_grant(f, 7, 30)->lease_grant;
    assert_int_equal(apply(f, c)->status, KRD_LEASE_NOT_FOUND);
    assert_int_equal(kv_lease_get(f->s, 7, &info), KRD_LEASE_NOT_FOUND);
    assert_hash_is_true(f);
}

/* --- Compaction --------------------------------------------------------------------------------------------- */

static void compaction_forgets_what_lies_before(void **state)
{
    struct fixture *f = *state;
    done(f, cmd_put(f, "a", "1")); /* 2 */
    done(f, cmd_put(f, "a", "2")); /* 3 */
    done(f, cmd_put(f, "b", "1")); /* 4 */
    done(f, cmd_put(f, "a", "3")); /* 5 */
    assert_status(apply(f, cmd_compact(f, 6)), KRD_FUTURE_REVISION, future_text);
    assert_status(apply(f, cmd_compact(f, 0)), KRD_COMPACTED, compacted_text);
    done(f, cmd_compact(f, 4));
    assert_status(apply(f, cmd_compact(f, 4)), KRD_COMPACTED, compacted_text);
    for (int round = 0; round < 2; round++) { /* before and after the data is gone */
        assert_seen(f, "a", 3, compacted_text);
        assert_string_equal(listed(f, "", "", 3), compacted_text);
        assert_seen(f, "a", 4, "2@2/3/2");
        assert_string_equal(listed(f, "", "", 4), "a=2 b=1 ");
        assert_seen(f, "a", 0, "3@2/5/3");
        struct kv_pair *list;
        size_t n;
        assert_int_equal(kv_history(f->s, slice_str("a"), 0, &f->arena, &list, &n, NULL), KRD_OK);
        assert_int_equal(n, 2);
        assert_hash_is_true(f);
        maintain(f);
    }
    fixture_reopen(f);
    assert_int_equal(kv_compacted_revision(f->s), 4);
    assert_seen(f, "a", 3, compacted_text);
}

static uint64_t records(struct fixture *f)
{
    /* Through a second look at the engine's directory: the store is closed meanwhile. */
    struct kv_engine_options o = {f->dir, 1 << 20, 1 << 20};
    struct kv_engine *e;
    char *err;
    uint64_t n = 0;
    kv_close(f->s);
    f->s = NULL;
    assert_int_equal(kv_engine_open(&o, &e, &err), KRD_OK);
    struct kv_engine_iter *it = kv_engine_iter_create(e, NULL, false);
    for (kv_engine_iter_seek(it, slice_of(NULL, 0)); kv_engine_iter_valid(it);
         kv_engine_iter_next(it))
        n += kv_engine_iter_key(it).ptr[0] == 'k' || kv_engine_iter_key(it).ptr[0] == 'r';
    kv_engine_iter_destroy(it);
    kv_engine_close(e);
    struct kv_options so = {.dir = f->dir, .self = f->self, .self_boot = ++f->boot};
    f->sequence = 0;
    assert_int_equal(kv_open(&so, &f->s, &err), KRD_OK);
    return n;
}

static void compaction_gives_the_space_back(void **state)
{
    struct fixture *f = *state;
    for (int i = 0; i < 2000; i++)
        done(f, cmd_put(f, i % 2 == 0 ? "a" : "b", "x"));
    done(f, cmd_delete(f, "b", NULL));
    assert_int_equal(records(f), 2 + 2001);
    done(f, cmd_compact(f, kv_revision(f->s)));
    assert_true(kv_maintain(f->s)); /* in slices */
    fixture_reopen(f);              /* and on after a stop */
    maintain(f);
    assert_int_equal(records(f), 2 + 2); /* b's end is at the compacted revision: it stays */
    done(f, cmd_put(f, "c", "1"));
    done(f, cmd_compact(f, kv_revision(f->s)));
    maintain(f);
    assert_int_equal(records(f), 2 + 2); /* a and c */
    assert_hash_is_true(f);
}

static void a_key_that_came_back_survives_the_end_of_its_tombstone(void **state)
{
    struct fixture *f = *state;
    done(f, cmd_put(f, "a", "1"));     /* 2 */
    done(f, cmd_delete(f, "a", NULL)); /* 3 */
    done(f, cmd_put(f, "b", "1"));     /* 4 */
    done(f, cmd_compact(f, 4));
    done(f, cmd_put(f, "a", "2")); /* 5, before the tombstone is gone */
    maintain(f);
    assert_seen(f, "a", 0, "2@5/5/1");
    assert_seen(f, "a", 4, "not found");
    assert_int_equal(records(f), 2 + 2);
}

static void a_wholly_forgotten_key_has_no_history(void **state)
{
    struct fixture *f = *state;
    struct kv_pair *list;
    size_t n;
    done(f, cmd_put(f, "a", "1"));     /* 2 */
    done(f, cmd_delete(f, "a", NULL)); /* 3 */
    done(f, cmd_put(f, "b", "1"));     /* 4 */
    done(f, cmd_compact(f, 3));
    maintain(f);
    assert_int_equal(kv_history(f->s, slice_str("a"), 0, &f->arena, &list, &n, NULL), KRD_OK);
    assert_int_equal(n, 1); /* the delete at the compacted revision itself */
    done(f, cmd_compact(f, 4));
    assert_int_equal(kv_history(f->s, slice_str("a"), 0, &f->arena, &list, &n, NULL),
                     KRD_NOT_FOUND);
    maintain(f);
    assert_int_equal(kv_history(f->s, slice_str("a"), 0, &f->arena, &list, &n, NULL),
                     KRD_NOT_FOUND);
}

/* --- Opening ------------------------------------------------------------------------------------------------ */

static void a_store_goes_on_where_it_stopped(void **state)
{
    struct fixture *f = *state;
    done(f, cmd_put(f, "a", "1"));
    f->time_ms = 5000;
    done(f, cmd_put(f, "b", "1"));
    assert_int_equal(kv_checkpoint(f->s), 2);
    fixture_reopen(f);
    assert_int_equal(kv_applied_index(f->s), 2);
    assert_int_equal(kv_applied_term(f->s), 1);
    assert_int_equal(kv_applied_time_ms(f->s), 5000);
    assert_int_equal(kv_revision(f->s), 3);
    done(f, cmd_put(f, "a", "2"));
    assert_seen(f, "a", 0, "2@2/4/2");
    assert_hash_is_true(f);
    assert_true(kv_disk_bytes(f->s) > 0);
}

static enum krd_status open_with(struct fixture *f, uint64_t checkpoint)
{
    struct kv_options o = {.dir = f->dir, .checkpoint = checkpoint};
    char *err = NULL;
    struct kv_store *s;
    enum krd_status st = kv_open(&o, &s, &err);
    if (st == KRD_OK)
        kv_close(s);
    else
        assert_non_null(err);
    krd_free(err);
    return st;
}

static void a_huge_batch_and_a_huge_delete_are_whole(void **state)
{
    enum { KEYS = 20000 };
    struct fixture *f = *state;
    struct raft_entry *log = krd_calloc(KEYS, sizeof *log);
    for (int i = 0; i < KEYS; i++)
        log[i] = entry_of(cmd_put(f, krd_arena_printf(&f->arena, "key/%05d", i), "x"),
                          (uint64_t)i + 1, 1);
    apply_entries(f->s, log, KEYS, NULL, NULL);
    f->index = KEYS;
    for (int i = 0; i < KEYS; i++)
        raft_entry_unref(&log[i]);
    krd_free(log);
    assert_int_equal(kv_revision(f->s), KEYS + 1);
    assert_int_equal(kv_applied_index(f->s), KEYS);
    assert_hash_is_true(f);
    struct kv_result *r = done(f, cmd_delete(f, "key/00010", "key/19990"));
    assert_int_equal(r->op.u.del.deleted, KEYS - 20);
    assert_int_equal(r->revision, KEYS + 2);
    assert_string_equal(listed(f, "key/00008", "key/19992", 0),
                        "key/00008=x key/00009=x key/19990=x key/19991=x ");
    assert_hash_is_true(f);
}

/* As after kill -9: nothing is closed, and the page cache is there. */
static void a_killed_process_leaves_what_it_applied(void **state)
{
    struct fixture *f = *state;
    int status;
    kv_close(f->s);
    f->s = NULL;
    pid_t child = fork();
    if (child == 0) {
        struct kv_options o = {.dir = f->dir, .self = f->self, .self_boot = f->boot};
        char *err;
        if (kv_open(&o, &f->s, &err) != KRD_OK)
            _exit(1);
        for (int i = 0; i < 500; i++)
            done(f, cmd_put(f, krd_arena_printf(&f->arena, "%d", i % 100), "x"));
        done(f, cmd_grant(f, 5, 60));
        _exit(0);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    struct kv_options o = {.dir = f->dir, .self = f->self, .self_boot = ++f->boot};
    char *err;
    assert_int_equal(kv_open(&o, &f->s, &err), KRD_OK);
    f->index = kv_applied_index(f->s);
    assert_int_equal(f->index, 501);
    assert_int_equal(kv_revision(f->s), 501);
    assert_hash_is_true(f);
    done(f, cmd_put_lease(f, "a", "1", 5));
}

static void a_store_older_than_its_checkpoint_is_refused(void **state)
{
    struct fixture *f = *state;
    done(f, cmd_put(f, "a", "1"));
    done(f, cmd_put(f, "a", "2"));
    kv_close(f->s);
    f->s = NULL;
    assert_int_equal(open_with(f, 2), KRD_OK);
    assert_int_equal(open_with(f, 3), KRD_CORRUPT);
}

static void change_engine(struct fixture *f, const char *key, const char *value)
{
    struct kv_engine_options o = {f->dir, 1 << 20, 1 << 20};
    struct kv_engine *e;
    char *err;
    assert_int_equal(kv_engine_open(&o, &e, &err), KRD_OK);
    struct kv_engine_batch *b = kv_engine_batch_create(e);
    if (value == NULL)
        kv_engine_batch_delete(b, slice_str(key));
    else
        kv_engine_batch_put(b, slice_str(key), slice_str(value));
    kv_engine_write(e, b);
    kv_engine_batch_destroy(b);
    kv_engine_close(e);
}

static void a_store_of_another_format_is_refused(void **state)
{
    struct fixture *f = *state;
    done(f, cmd_put(f, "a", "1"));
    kv_close(f->s);
    f->s = NULL;
    change_engine(f, "m", "something else");
    assert_int_equal(open_with(f, 0), KRD_CORRUPT);
    change_engine(f, "m", NULL); /* data, but no state record */
    assert_int_equal(open_with(f, 0), KRD_CORRUPT);
}

static void the_hash_tells_a_rotten_key(void **state)
{
    struct fixture *f = *state;
    uint64_t index;
    uint8_t hash[16], scan[16];
    done(f, cmd_put(f, "a", "1"));
    done(f, cmd_put(f, "b", "1"));
    kv_close(f->s);
    f->s = NULL;
    change_engine(f, "kb", NULL);
    struct kv_options o = {.dir = f->dir};
    char *err;
    assert_int_equal(kv_open(&o, &f->s, &err), KRD_OK);
    kv_state_hash(f->s, &index, hash);
    assert_int_equal(kv_state_hash_scan(f->s, &index, scan), KRD_OK);
    assert_memory_not_equal(hash, scan, sizeof hash);
}

/* --- Determinism --------------------------------------------------------------------------------------------- */

/* A fixed log: puts, deletes by range, transactions, leases, compactions, retries, garbage. */
static struct raft_entry *fixed_log(struct fixture *f, size_t n)
{
    struct raft_entry *log = krd_calloc(n, sizeof *log);
    uint64_t x = 88172645463325252ull, time_ms = 0; /* a small generator of its own: xorshift */
    for (size_t i = 0; i < n; i++) {
        x ^= x << 13, x ^= x >> 7, x ^= x << 17;
        char *key = krd_arena_printf(&f->arena, "key/%" PRIu64, x >> 8 & 63);
        char *end = krd_arena_printf(&f->arena, "key/%" PRIu64, x >> 16 & 63);
        char *value = krd_arena_printf(&f->arena, "%" PRIx64, x * 3);
        int64_t lease = (int64_t)(x >> 24 & 7) + 1, ids[] = {1, 2, 3, 4, 5, 6, 7, 8};
        command *c = cmd_put(f, key, value);
        switch (x >> 32 & 15) {
        case 0:
            c = cmd_delete(f, key, NULL);
            break;
        case 1:
            c = cmd_delete(f, key, end);
            break;
        case 2:
        case 3:
            c = cmd_txn(f, txn_then(f, txn_if(f, txn(f), if_version(f, key, GREATER, 1)),
                                    op_delete(f, key, NULL)));
            txn_else(f, c->txn, op_put(f, key, value));
            txn_else(f, c->txn, op_get(f, key, end));
            break;
        case 4:
            c = cmd_grant(f, lease, (int64_t)(x >> 40 & 3));
            break;
        case 5:
        case 6:
            c->put->lease = lease;
            break;
        case 7:
            c = cmd_expire(f, 8, ids);
            break;
        case 8:
            c = cmd_renew(f, lease);
            break;
        case 9:
            if ((x >> 40 & 7) == 0)
                c = cmd_compact(f, (int64_t)i / 2);
            break;
        case 10:
            if ((x >> 40 & 7) == 0)
                c = cmd_grant(f, 0, 3);
            break;
        default:
            break;
        }
        time_ms += x >> 48 & 255;
        c->origin = 7 + i % 3;
        c->boot = 1 + i / 1500;
        c->sequence = (x >> 60) == 0 ? i / 2 + 1 : i + 1; /* some come twice */
        c->settled = i > 100 ? i - 100 : 1;
        log[i] = entry_of(c, i + 1, time_ms);
    }
    return log;
}

struct digest {
    uint64_t results; /* of what came out, order included */
    size_t n;
};

static void digest_outcome(void *arg, struct kv_outcome *o)
{
    struct digest *d = arg;
    uint64_t v = o->origin ^ o->sequence << 8;
    if (o->result != NULL)
        v ^= (uint64_t)o->result->status << 40 ^ (uint64_t)o->result->revision << 20 ^
             (uint64_t)o->result->lease_id ^ o->result->index;
    d->results = (d->results ^ v) * 0x9e3779b97f4a7c15ull;
    d->n++;
    kv_result_destroy(o->result);
}

#define LOG_ENTRIES 4000

static struct digest run_log(struct raft_entry *log, size_t batch, bool maintaining,
                             uint8_t hash[16], int64_t *revision)
{
    struct fixture *f = fixture_create();
    struct digest d = {0, 0};
    uint64_t index;
    for (size_t i = 0; i < LOG_ENTRIES; i += batch) {
        size_t n = LOG_ENTRIES - i < batch ? LOG_ENTRIES - i : batch;
        apply_entries(f->s, log + i, n, digest_outcome, &d);
        if (maintaining)
            kv_maintain(f->s);
    }
    kv_state_hash(f->s, &index, hash);
    *revision = kv_revision(f->s);
    assert_int_equal(index, LOG_ENTRIES);
    assert_int_equal(d.n, LOG_ENTRIES);
    assert_hash_is_true(f);
    fixture_destroy(f);
    return d;
}

static void the_state_does_not_depend_on_how_the_log_is_cut(void **state)
{
    struct fixture *f = *state;
    struct raft_entry *log = fixed_log(f, LOG_ENTRIES);
    static const size_t batches[] = {1, 2, 7, 64, 1000, LOG_ENTRIES};
    struct digest first = {0, 0};
    uint8_t first_hash[16], hash[16];
    int64_t revision = 0;
    for (size_t i = 0; i < KRD_ARRAY_LEN(batches); i++) {
        struct digest d = run_log(log, batches[i], i % 2 == 0, hash, &revision);
        if (i == 0) {
            first = d;
            memcpy(first_hash, hash, sizeof hash);
        }
        assert_true(d.results == first.results);
        assert_memory_equal(hash, first_hash, sizeof hash);
    }
    /* The same on every compiler, at every level of optimisation, and next year. */
    static const uint8_t golden[16] = {0xf6, 0x46, 0x6e, 0x53, 0x01, 0xce, 0x69, 0x60,
                                       0xbc, 0x43, 0xf1, 0x4c, 0xe0, 0x50, 0x61, 0xe7};
    assert_int_equal(revision, 2441);
    assert_memory_equal(first_hash, golden, sizeof golden);
    for (size_t i = 0; i < LOG_ENTRIES; i++)
        raft_entry_unref(&log[i]);
    krd_free(log);
}

/* Everything in the engine but the progress of compaction. */
static uint64_t digest_of_records(struct fixture *f)
{
    struct kv_engine_options o = {f->dir, 1 << 20, 1 << 20};
    struct kv_engine *e;
    char *err;
    uint64_t d = 0;
    kv_close(f->s);
    f->s = NULL;
    assert_int_equal(kv_engine_open(&o, &e, &err), KRD_OK);
    struct kv_engine_iter *it = kv_engine_iter_create(e, NULL, false);
    for (kv_engine_iter_seek(it, slice_str("d")); kv_engine_iter_valid(it);
         kv_engine_iter_next(it)) {
        d = (d ^ kv_hash_key(kv_engine_iter_key(it))) * 0x9e3779b97f4a7c15ull;
        struct slice record = kv_engine_iter_value(it);
        if (record.len > 0)
            d = (d ^ kv_hash_key(record)) * 0x9e3779b97f4a7c15ull;
    }
    kv_engine_iter_destroy(it);
    kv_engine_close(e);
    return d;
}

/* Nodes compact at their own pace; once they are through, they hold the same records. */
static void the_records_do_not_depend_on_the_pace_of_compaction(void **state)
{
    struct fixture *f = *state;
    struct raft_entry *log = fixed_log(f, LOG_ENTRIES);
    uint64_t first = 0;
    for (int pace = 0; pace < 3; pace++) {
        struct fixture *node = fixture_create();
        for (size_t i = 0; i < LOG_ENTRIES; i++) {
            apply_entries(node->s, &log[i], 1, NULL, NULL);
            if (pace == 1 || (pace == 2 && i % 500 == 0))
                kv_maintain(node->s);
        }
        maintain(node);
        uint64_t d = digest_of_records(node);
        if (pace == 0)
            first = d;
        assert_true(d == first);
        fixture_destroy(node);
    }
    for (size_t i = 0; i < LOG_ENTRIES; i++)
        raft_entry_unref(&log[i]);
    krd_free(log);
}

#define T(name) cmocka_unit_test_setup_teardown(name, fixture_up, fixture_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        T(an_empty_store_has_revision_1),
        T(each_write_adds_one_to_the_revision),
        T(a_put_of_the_same_value_is_a_new_version),
        T(a_delete_ends_the_count_of_versions),
        T(what_changes_nothing_leaves_the_revision),
        T(a_transaction_has_one_revision),
        T(a_range_is_deleted_in_one_revision),
        T(a_put_tells_what_it_replaced),
        T(ignore_value_keeps_the_value),
        T(ignore_lease_keeps_the_lease),
        T(keys_and_values_are_any_bytes),
        T(an_empty_value_is_a_value),
        T(compares_hold_as_numbers_do),
        T(a_missing_key_has_numbers_0_and_no_value),
        T(a_range_compare_holds_for_every_key),
        T(a_value_given_for_another_target_counts_as_0),
        T(a_transaction_takes_one_branch),
        T(a_range_sees_the_transactions_earlier_writes),
        T(all_compares_are_made_against_the_state_before),
        T(an_error_in_a_branch_undoes_all_of_it),
        T(ranges_in_transactions_sort_filter_and_cut),
        T(bad_commands_are_refused_and_change_nothing),
        T(a_transaction_has_at_most_128_operations_a_list),
        T(transactions_nest_eight_deep),
        T(a_key_is_written_once_on_any_path),
        T(what_does_not_decode_is_a_definite_no),
        T(absurd_nesting_does_not_crash),
        T(entries_without_commands_move_the_index_alone),
        T(the_past_is_read_as_it_was),
        T(a_cursor_sees_nothing_that_came_after_it),
        T(a_prefix_ends_before_its_neighbour),
        T(history_tells_every_kept_version),
        T(a_time_stands_for_the_newest_revision_until_then),
        T(a_lease_is_granted_once),
        T(a_ttl_is_at_least_1_and_bounded),
        T(the_store_chooses_a_positive_free_id),
        T(a_put_needs_its_lease_to_exist),
        T(a_key_follows_its_last_put),
        T(a_revoke_deletes_all_keys_in_one_revision),
        T(expiry_ends_only_what_is_due),
        T(a_renewal_tells_the_ttl_or_0),
        T(deadlines_are_kept_in_order_and_over_a_restart),
        T(a_put_can_bring_its_own_lease),
        T(a_grant_that_no_put_takes_is_not_made),
        T(a_grant_beside_a_put_that_does_not_take_it_is_not_made),
        T(cluster_time_never_goes_back),
        T(compaction_forgets_what_lies_before),
        T(compaction_gives_the_space_back),
        T(a_key_that_came_back_survives_the_end_of_its_tombstone),
        T(a_wholly_forgotten_key_has_no_history),
        T(a_store_goes_on_where_it_stopped),
        T(a_huge_batch_and_a_huge_delete_are_whole),
        T(a_killed_process_leaves_what_it_applied),
        T(a_store_older_than_its_checkpoint_is_refused),
        T(a_store_of_another_format_is_refused),
        T(the_hash_tells_a_rotten_key),
        T(the_state_does_not_depend_on_how_the_log_is_cut),
        T(the_records_do_not_depend_on_the_pace_of_compaction),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
