/* kv_fixture.h - a store in a directory of its own, and one-line builders of commands for it. What
 * is built lives until the fixture ends; so do results. */
#ifndef TESTS_KV_FIXTURE_H
#define TESTS_KV_FIXTURE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "kv/command.pb-c.h"
#include "kv/store.h"
#include "raft/entry.h"
#include "kv/watch.h"

typedef Etcdserverpb__InternalRaftRequest command;
typedef Etcdserverpb__RequestOp operation;
typedef Etcdserverpb__TxnRequest txn_request;
typedef Etcdserverpb__Compare comparison;

struct fixture {
    char dir[64];
    struct kv_store *s;
    uint64_t self, boot; /* whose commands they are, and whose results are kept */
    uint64_t index, time_ms, sequence;
    struct krd_arena arena;
    struct kv_result **results; /* all of them, in order */
    size_t n_results, results_cap;
};

/* cmocka fixtures: *state becomes a struct fixture. */
int fixture_up(void **state);
int fixture_down(void **state);
struct fixture *fixture_create(void);
void fixture_destroy(struct fixture *f);
void fixture_reopen(struct fixture *f); /* a clean stop and a start */

/* Fresh commands. Strings are keys and values without their 0. end: NULL for one key. */
command *cmd(struct fixture *f);
command *cmd_put(struct fixture *f, const char *key, const char *value);
command *cmd_put_lease(struct fixture *f, const char *key, const char *value, int64_t lease);
command *cmd_delete(struct fixture *f, const char *key, const char *end);
command *cmd_compact(struct fixture *f, int64_t revision);
command *cmd_grant(struct fixture *f, int64_t id, int64_t ttl);
command *cmd_revoke(struct fixture *f, int64_t id);
command *cmd_renew(struct fixture *f, int64_t id);
command *cmd_expire(struct fixture *f, size_t n, const int64_t *ids);
command *cmd_txn(struct fixture *f, txn_request *t);

txn_request *txn(struct fixture *f);
txn_request *txn_if(struct fixture *f, txn_request *t, comparison *c);
txn_request *txn_then(struct fixture *f, txn_request *t, operation *op);
txn_request *txn_else(struct fixture *f, txn_request *t, operation *op);
operation *op_put(struct fixture *f, const char *key, const char *value);
operation *op_get(struct fixture *f, const char *key, const char *end);
operation *op_delete(struct fixture *f, const char *key, const char *end);
operation *op_txn(struct fixture *f, txn_request *t);
comparison *if_version(struct fixture *f, const char *key, int result, int64_t version);
comparison *if_value(struct fixture *f, const char *key, int result, const char *value);

/* Entries of the log, given to the store as the apply thread does. */
void apply_entries(struct kv_store *s, const struct raft_entry *entries, size_t n,
                   kv_outcome_fn *fn, void *arg);
/* An entry, sealed. */
struct raft_entry entry_of(const command *c, uint64_t index, uint64_t time_ms);
/* Applies one command as our own, the next one of this boot, and returns its result. */
struct kv_result *apply(struct fixture *f, command *c);
/* The same when it has to be done. */
struct kv_result *done(struct fixture *f, command *c);
/* Applies it as it stands (origin, boot, sequence included). NULL: no result was kept. */
struct kv_result *apply_raw(struct fixture *f, const command *c);
void maintain(struct fixture *f); /* until nothing is left to do */

/* What a key holds at a revision (0: now), as "value@create/mod/version", or the status' code. */
const char *seen(struct fixture *f, const char *key, int64_t revision);
/* A range as "key=value key=value ". */
const char *listed(struct fixture *f, const char *key, const char *end, int64_t revision);
const char *text(struct fixture *f, struct slice s);
void assert_hash_is_true(struct fixture *f); /* the incremental hash is the scan's */

#endif
