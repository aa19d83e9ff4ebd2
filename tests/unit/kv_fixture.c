#include "tests/unit/kv_fixture.h"
#include "base/buf.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

/* LevelDB's package is not built with ThreadSanitizer, which therefore does not see the atomics by
 * which its memtable's readers and its writer agree. */
const char *__tsan_default_suppressions(void);
const char *__tsan_default_suppressions(void)
{
    return "race:libleveldb.so\n";
}

static void open_store(struct fixture *f)
{
    struct kv_options o = {.dir = f->dir, .self = f->self, .self_boot = f->boot};
    char *err = NULL;
    enum krd_status st = kv_open(&o, &f->s, &err);
    if (st != KRD_OK)
        fail_msg("%s", err);
}

struct fixture *fixture_create(void)
{
    struct fixture *f = krd_zalloc(sizeof *f);
    snprintf(f->dir, sizeof f->dir, "/tmp/kvtest.XXXXXX");
    assert_non_null(mkdtemp(f->dir));
    f->self = 7;
    f->boot = 1;
    f->time_ms = 1000;
    open_store(f);
    return f;
}

void fixture_destroy(struct fixture *f)
{
    char command_line[96];
    for (size_t i = 0; i < f->n_results; i++)
        kv_result_destroy(f->results[i]);
    krd_free(f->results);
    kv_close(f->s);
    snprintf(command_line, sizeof command_line, "rm -rf %s", f->dir);
    assert_int_equal(system(command_line), 0);
    krd_arena_deinit(&f->arena);
    krd_free(f);
}

int fixture_up(void **state)
{
    *state = fixture_create();
    return 0;
}

int fixture_down(void **state)
{
    fixture_destroy(*state);
    return 0;
}

void fixture_reopen(struct fixture *f)
{
    kv_close(f->s);
    f->boot++;
    f->sequence = 0;
    open_store(f);
}

/* --- Builders ------------------------------------------------------------------------------------- */

static ProtobufCBinaryData bytes(struct fixture *f, const char *s)
{
    ProtobufCBinaryData b = {0, NULL};
    if (s == NULL)
        return b;
    b.len = strlen(s);
    b.data = krd_arena_alloc(&f->arena, b.len + 1);
    memcpy(b.data, s, b.len + 1);
    return b;
}

#define FRESH(f, type, init)                                 \
    ({                                                       \
        type *p_ = krd_arena_alloc(&(f)->arena, sizeof *p_); \
        *p_ = (type)init;                                    \
        p_;                                                  \
    })

command *cmd(struct fixture *f)
{
    return FRESH(f, command, ETCDSERVERPB__INTERNAL_RAFT_REQUEST__INIT);
}

static Etcdserverpb__PutRequest *put_request(struct fixture *f, const char *key, const char *value)
{
    Etcdserverpb__PutRequest *r =
        FRESH(f, Etcdserverpb__PutRequest, ETCDSERVERPB__PUT_REQUEST__INIT);
    r->key = bytes(f, key);
    r->value = bytes(f, value);
    return r;
}

static Etcdserverpb__DeleteRangeRequest *delete_request(struct fixture *f, const char *key,
                                                        const char *end)
{
    Etcdserverpb__DeleteRangeRequest *r =
        FRESH(f, Etcdserverpb__DeleteRangeRequest, ETCDSERVERPB__DELETE_RANGE_REQUEST__INIT);
    r->key = bytes(f, key);
    r->range_end = bytes(f, end);
    return r;
}

command *cmd_put(struct fixture *f, const char *key, const char *value)
{
    command *c = cmd(f);
    c->put = put_request(f, key, value);
    return c;
}

command *cmd_put_lease(struct fixture *f, const char *key, const char *value, int64_t lease)
{
    command *c = cmd_put(f, key, value);
    c->put->lease = lease;
    return c;
}

command *cmd_delete(struct fixture *f, const char *key, const char *end)
{
    command *c = cmd(f);
    c->delete_range = delete_request(f, key, end);
    return c;
}

command *cmd_compact(struct fixture *f, int64_t revision)
{
    command *c = cmd(f);
    c->compaction =
        FRESH(f, Etcdserverpb__CompactionRequest, ETCDSERVERPB__COMPACTION_REQUEST__INIT);
    c->compaction->revision = revision;
    return c;
}

command *cmd_grant(struct fixture *f, int64_t id, int64_t ttl)
{
    command *c = cmd(f);
    c->lease_grant =
        FRESH(f, Etcdserverpb__LeaseGrantRequest, ETCDSERVERPB__LEASE_GRANT_REQUEST__INIT);
    c->lease_grant->id = id;
    c->lease_grant->ttl = ttl;
    return c;
}

command *cmd_revoke(struct fixture *f, int64_t id)
{
    command *c = cmd(f);
    c->lease_revoke =
        FRESH(f, Etcdserverpb__LeaseRevokeRequest, ETCDSERVERPB__LEASE_REVOKE_REQUEST__INIT);
    c->lease_revoke->id = id;
    return c;
}

static int64_t *copy_ids(struct fixture *f, size_t n, const int64_t *ids)
{
    int64_t *p = krd_arena_alloc(&f->arena, n * sizeof *p + 1);
    memcpy(p, ids, n * sizeof *p);
    return p;
}

command *cmd_renew(struct fixture *f, int64_t id)
{
    command *c = cmd(f);
    c->lease_renew =
        FRESH(f, Etcdserverpb__LeaseRenewRequest, ETCDSERVERPB__LEASE_RENEW_REQUEST__INIT);
    c->lease_renew->n_ids = 1;
    c->lease_renew->ids = copy_ids(f, 1, &id);
    return c;
}

command *cmd_expire(struct fixture *f, size_t n, const int64_t *ids)
{
    command *c = cmd(f);
    c->lease_expire =
        FRESH(f, Etcdserverpb__LeaseExpireRequest, ETCDSERVERPB__LEASE_EXPIRE_REQUEST__INIT);
    c->lease_expire->n_ids = n;
    c->lease_expire->ids = copy_ids(f, n, ids);
    return c;
}

command *cmd_txn(struct fixture *f, txn_request *t)
{
    command *c = cmd(f);
    c->txn = t;
    return c;
}

/* --- Transactions ----------------------------------------------------------------------------------- */

txn_request *txn(struct fixture *f)
{
    return FRESH(f, txn_request, ETCDSERVERPB__TXN_REQUEST__INIT);
}

/* O(n) a time: tests are small. */
static void push(struct fixture *f, void *list, size_t *n, void *what)
{
    void **old;
    memcpy(&old, list, sizeof old);
    void **fresh = krd_arena_alloc(&f->arena, (*n + 1) * sizeof *fresh);
    if (*n > 0)
        memcpy(fresh, old, *n * sizeof *fresh);
    fresh[(*n)++] = what;
    memcpy(list, &fresh, sizeof fresh);
}

txn_request *txn_if(struct fixture *f, txn_request *t, comparison *c)
{
    push(f, &t->compare, &t->n_compare, c);
    return t;
}

txn_request *txn_then(struct fixture *f, txn_request *t, operation *op)
{
    push(f, &t->success, &t->n_success, op);
    return t;
}

txn_request *txn_else(struct fixture *f, txn_request *t, operation *op)
{
    push(f, &t->failure, &t->n_failure, op);
    return t;
}

static operation *op_fresh(struct fixture *f, int what)
{
    operation *op = FRESH(f, operation, ETCDSERVERPB__REQUEST_OP__INIT);
    op->request_case = what;
    return op;
}

operation *op_put(struct fixture *f, const char *key, const char *value)
{
    operation *op = op_fresh(f, ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_PUT);
    op->request_put = put_request(f, key, value);
    return op;
}

operation *op_get(struct fixture *f, const char *key, const char *end)
{
    operation *op = op_fresh(f, ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_RANGE);
    op->request_range = FRESH(f, Etcdserverpb__RangeRequest, ETCDSERVERPB__RANGE_REQUEST__INIT);
    op->request_range->key = bytes(f, key);
    op->request_range->range_end = bytes(f, end);
    return op;
}

operation *op_delete(struct fixture *f, const char *key, const char *end)
{
    operation *op = op_fresh(f, ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_DELETE_RANGE);
    op->request_delete_range = delete_request(f, key, end);
    return op;
}

operation *op_txn(struct fixture *f, txn_request *t)
{
    operation *op = op_fresh(f, ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_TXN);
    op->request_txn = t;
    return op;
}

comparison *if_version(struct fixture *f, const char *key, int result, int64_t version)
{
    comparison *c = FRESH(f, comparison, ETCDSERVERPB__COMPARE__INIT);
    c->result = result;
    c->target = ETCDSERVERPB__COMPARE__COMPARE_TARGET__VERSION;
    c->key = bytes(f, key);
    c->target_union_case = ETCDSERVERPB__COMPARE__TARGET_UNION_VERSION;
    c->version = version;
    return c;
}

comparison *if_value(struct fixture *f, const char *key, int result, const char *value)
{
    comparison *c = if_version(f, key, result, 0);
    c->target = ETCDSERVERPB__COMPARE__COMPARE_TARGET__VALUE;
    c->target_union_case = ETCDSERVERPB__COMPARE__TARGET_UNION_VALUE;
    c->value = bytes(f, value);
    return c;
}

/* --- Applying ----------------------------------------------------------------------------------------- */

struct raft_entry entry_of(const command *c, uint64_t index, uint64_t time_ms)
{
    size_t n = etcdserverpb__internal_raft_request__get_packed_size(c);
    struct raft_entry e = raft_entry_begin(RAFT_ENTRY_COMMAND, n);
    etcdserverpb__internal_raft_request__pack(c, (uint8_t *)(uintptr_t)raft_payload(&e).ptr);
    raft_entry_close(&e);
    raft_entry_seal(&e, index, 1, time_ms);
    return e;
}

void apply_entries(struct kv_store *s, const struct raft_entry *entries, size_t n,
                   kv_outcome_fn *fn, void *arg)
{
    struct kv_entry *handed = krd_calloc(n, sizeof *handed);
    for (size_t i = 0; i < n; i++)
        handed[i] = (struct kv_entry){.index = entries[i].index,
                                      .term = entries[i].term,
                                      .time_ms = entries[i].time_ms,
                                      .is_command = entries[i].type == RAFT_ENTRY_COMMAND,
                                      .command = raft_payload(&entries[i])};
    kv_apply(s, handed, n, fn, arg);
    krd_free(handed);
}

static void on_outcome(void *arg, struct kv_outcome *o)
{
    struct fixture *f = arg;
    krd_grow(&f->results, &f->results_cap, f->n_results + 1, sizeof f->results[0]);
    f->results[f->n_results++] = o->result;
}

struct kv_result *apply_raw(struct fixture *f, const command *c)
{
    size_t before = f->n_results;
    struct raft_entry e = entry_of(c, ++f->index, f->time_ms);
    apply_entries(f->s, &e, 1, on_outcome, f);
    raft_entry_unref(&e);
    assert_int_equal(f->n_results, before + 1);
    return f->results[before];
}

struct kv_result *apply(struct fixture *f, command *c)
{
    c->origin = f->self;
    c->boot = f->boot;
    c->sequence = ++f->sequence;
    c->settled = f->sequence;
    struct kv_result *r = apply_raw(f, c);
    assert_non_null(r);
    return r;
}

struct kv_result *done(struct fixture *f, command *c)
{
    struct kv_result *r = apply(f, c);
    if (r->status != KRD_OK)
        fail_msg("%s: %s", krd_status_code(r->status), r->message);
    return r;
}

void maintain(struct fixture *f)
{
    while (kv_maintain(f->s))
        ;
}

/* --- Looking ------------------------------------------------------------------------------------------- */

const char *text(struct fixture *f, struct slice s)
{
    return krd_arena_printf(&f->arena, "%.*s", (int)s.len, s.len > 0 ? (const char *)s.ptr : "");
}

const char *seen(struct fixture *f, const char *key, int64_t revision)
{
    struct kv_pair p;
    enum krd_status st = kv_get(f->s, slice_str(key), revision, &f->arena, &p, NULL);
    if (st != KRD_OK)
        return krd_status_text(st);
    assert_true(slice_eq(p.key, slice_str(key)));
    return krd_arena_printf(&f->arena, "%s@%" PRId64 "/%" PRId64 "/%" PRId64, text(f, p.value),
                            p.create_revision, p.mod_revision, p.version);
}

const char *listed(struct fixture *f, const char *key, const char *end, int64_t revision)
{
    /* "" stands for "\0", which a C string cannot say. */
    struct slice open = slice_of("\0", 1);
    struct kv_query q = {
        .range = {key[0] != 0 ? slice_str(key) : open, end[0] != 0 ? slice_str(end) : open},
        .revision = revision};
    struct kv_cursor *c;
    struct kv_pair p;
    struct krd_buf out = KRD_BUF_INIT;
    enum krd_status st = kv_cursor_open(f->s, &q, &c);
    if (st != KRD_OK)
        return krd_status_text(st);
    while (kv_cursor_next(c, &p))
        krd_buf_printf(&out, "%s=%s ", text(f, p.key), text(f, p.value));
    kv_cursor_close(c);
    const char *s = text(f, krd_buf_slice(&out));
    krd_buf_deinit(&out);
    return s;
}

void assert_hash_is_true(struct fixture *f)
{
    uint64_t index, scanned;
    uint8_t hash[16], scan[16];
    kv_state_hash(f->s, &index, hash);
    assert_int_equal(kv_state_hash_scan(f->s, &scanned, scan), KRD_OK);
    assert_int_equal(index, scanned);
    assert_memory_equal(hash, scan, sizeof hash);
}
