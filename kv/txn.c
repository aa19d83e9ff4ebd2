/* txn.c - transactions. Three passes over the tree of operations, all in the same order:
 *   1. decide: compares of the outermost and of every nested transaction on the way, against the
 *      state before the command;
 *   2. check: each operation on the path taken; any no ends it with nothing changed;
 *   3. execute: in order, all in one revision; a range sees what was written before it. */
#include "kv/ops.h"

/* --- Compares -------------------------------------------------------------------------------- */

static int compare_i64(int64_t a, int64_t b)
{
    return (a > b) - (a < b);
}

/* How the pair relates to what the compare gives. A value given for another target counts as 0. */
static int relation(const Etcdserverpb__Compare *cmp, const struct kv_pair *p)
{
    switch (cmp->target) {
    case ETCDSERVERPB__COMPARE__COMPARE_TARGET__VERSION:
        return compare_i64(p->version,
                           cmp->target_union_case == ETCDSERVERPB__COMPARE__TARGET_UNION_VERSION
                               ? cmp->version
                               : 0);
    case ETCDSERVERPB__COMPARE__COMPARE_TARGET__CREATE:
        return compare_i64(p->create_revision,
                           cmp->target_union_case ==
                                   ETCDSERVERPB__COMPARE__TARGET_UNION_CREATE_REVISION
                               ? cmp->create_revision
                               : 0);
    case ETCDSERVERPB__COMPARE__COMPARE_TARGET__MOD:
        return compare_i64(p->mod_revision, cmp->target_union_case ==
                                                    ETCDSERVERPB__COMPARE__TARGET_UNION_MOD_REVISION
                                                ? cmp->mod_revision
                                                : 0);
    case ETCDSERVERPB__COMPARE__COMPARE_TARGET__VALUE:
        return slice_cmp(p->value,
                         cmp->target_union_case == ETCDSERVERPB__COMPARE__TARGET_UNION_VALUE
                             ? slice_of(cmp->value.data, cmp->value.len)
                             : slice_of(NULL, 0));
    case ETCDSERVERPB__COMPARE__COMPARE_TARGET__LEASE:
        return compare_i64(
            p->lease,
            cmp->target_union_case == ETCDSERVERPB__COMPARE__TARGET_UNION_LEASE ? cmp->lease : 0);
    default:
        return 0;
    }
}

static bool pair_holds(const Etcdserverpb__Compare *cmp, const struct kv_pair *p)
{
    int c = relation(cmp, p);
    switch (cmp->result) {
    case ETCDSERVERPB__COMPARE__COMPARE_RESULT__EQUAL:
        return c == 0;
    case ETCDSERVERPB__COMPARE__COMPARE_RESULT__GREATER:
        return c > 0;
    case ETCDSERVERPB__COMPARE__COMPARE_RESULT__LESS:
        return c < 0;
    case ETCDSERVERPB__COMPARE__COMPARE_RESULT__NOT_EQUAL:
        return c != 0;
    default: /* etcd takes what it does not know as true */
        return true;
    }
}

/* Nothing there: no value to compare, and all numbers are 0. */
static bool absence_holds(const Etcdserverpb__Compare *cmp)
{
    struct kv_pair none = {.version = 0};
    return cmp->target != ETCDSERVERPB__COMPARE__COMPARE_TARGET__VALUE && pair_holds(cmp, &none);
}

/* Of a version that lives; its value is fetched only to be compared. */
static bool head_holds(struct kv_command *c, const Etcdserverpb__Compare *cmp,
                       const struct kv_head *head)
{
    if (cmp->target != ETCDSERVERPB__COMPARE__COMPARE_TARGET__VALUE)
        return pair_holds(cmp, &head->pair);
    struct kv_source source = {c->s->engine, NULL, &c->s->changes};
    struct slice owned;
    struct kv_pair pair;
    bool found = kv_head_whole(&source, head, &pair, &owned);
    KRD_ASSERT(found); /* the newest version's change is never compacted */
    bool holds = pair_holds(cmp, &pair);
    kv_owned_free(&owned);
    return holds;
}

static bool range_holds(struct kv_command *c, const Etcdserverpb__Compare *cmp)
{
    struct kv_store *s = c->s;
    struct kv_range range = {slice_of(cmp->key.data, cmp->key.len),
                             slice_of(cmp->range_end.data, cmp->range_end.len)};
    struct kv_raw_range raw_range = kv_raw_range_of(&s->command_arena, &range);
    struct kv_walk w;
    struct slice raw, record;
    struct kv_slot *slot;
    bool holds = true, any = false;
    kv_walk_open(&w, &s->overlay, raw_range.start, raw_range.end);
    while (holds && kv_walk_next(&w, &raw, &record, &slot)) {
        struct kv_head head = kv_head_decode(slice_of(raw.ptr + 1, raw.len - 1), record);
        if (kv_pair_is_tombstone(&head.pair))
            continue;
        any = true;
        holds = head_holds(c, cmp, &head);
    }
    kv_walk_close(&w);
    return any ? holds : absence_holds(cmp);
}

static bool compare_holds(struct kv_command *c, const Etcdserverpb__Compare *cmp)
{
    struct kv_head head;
    if (cmp->range_end.len > 0)
        return range_holds(c, cmp);
    if (!kv_slot_head(kv_command_head(c, slice_of(cmp->key.data, cmp->key.len), &head), &head))
        return absence_holds(cmp);
    return head_holds(c, cmp, &head);
}

/* --- Decide and check ------------------------------------------------------------------------ */

struct branch {
    Etcdserverpb__RequestOp **ops;
    size_t n;
};

static struct branch branch_of(const Etcdserverpb__TxnRequest *r, bool succeeded)
{
    return succeeded ? (struct branch){r->success, r->n_success}
                     : (struct branch){r->failure, r->n_failure};
}

static void decide(struct kv_command *c, const Etcdserverpb__TxnRequest *r,
                   struct kv_txn_plan *plan)
{
    bool outermost = plan->n == 0, succeeded = true;
    size_t i = 0;
    while (i < r->n_compare && compare_holds(c, r->compare[i]))
        i++;
    succeeded = i == r->n_compare;
    if (outermost)
        plan->failed_compare = succeeded ? -1 : (int32_t)i;
    krd_grow(&plan->succeeded, &plan->cap, plan->n + 1, sizeof plan->succeeded[0]);
    plan->succeeded[plan->n++] = succeeded;

    struct branch b = branch_of(r, succeeded);
    for (i = 0; i < b.n; i++) {
        if (b.ops[i]->request_case == ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_TXN)
            decide(c, b.ops[i]->request_txn, plan);
    }
}

static enum krd_status check(struct kv_command *c, const Etcdserverpb__TxnRequest *r,
                             const struct kv_txn_plan *plan, size_t *at)
{
    struct branch b = branch_of(r, plan->succeeded[(*at)++]);
    enum krd_status st = KRD_OK;
    for (size_t i = 0; i < b.n && st == KRD_OK; i++) {
        switch (b.ops[i]->request_case) {
        case ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_RANGE:
            st = kv_range_check(c, b.ops[i]->request_range);
            break;
        case ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_PUT:
            st = kv_put_check(c, b.ops[i]->request_put);
            break;
        case ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_TXN:
            st = check(c, b.ops[i]->request_txn, plan, at);
            break;
        default:
            break;
        }
    }
    return st;
}

enum krd_status kv_txn_check(struct kv_command *c, const Etcdserverpb__TxnRequest *r,
                             struct kv_txn_plan *plan)
{
    size_t at = 0;
    *plan = (struct kv_txn_plan){.failed_compare = -1};
    decide(c, r, plan);
    enum krd_status st = check(c, r, plan, &at);
    KRD_ASSERT(st != KRD_OK || at == plan->n);
    return st;
}

void kv_txn_plan_deinit(struct kv_txn_plan *plan)
{
    krd_free(plan->succeeded);
    *plan = (struct kv_txn_plan){.n = 0};
}

/* --- Execute --------------------------------------------------------------------------------- */

static void execute(struct kv_command *c, const Etcdserverpb__TxnRequest *r,
                    const struct kv_txn_plan *plan, size_t *at, struct kv_op_result *out)
{
    bool outermost = *at == 0;
    bool succeeded = plan->succeeded[(*at)++];
    struct branch b = branch_of(r, succeeded);
    struct kv_op_result *results = NULL;
    if (out != NULL) {
        if (b.n > 0)
            results = krd_arena_zalloc(&c->result->arena, b.n * sizeof *results);
        *out = (struct kv_op_result){.type = KV_OP_TXN};
        out->u.txn.succeeded = succeeded;
        out->u.txn.results = results;
        out->u.txn.n = b.n;
        out->u.txn.failed_compare = outermost ? plan->failed_compare : -1;
    }
    for (size_t i = 0; i < b.n; i++) {
        struct kv_op_result *result = results != NULL ? &results[i] : NULL;
        switch (b.ops[i]->request_case) {
        case ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_RANGE:
            kv_range_execute(c, b.ops[i]->request_range, result);
            break;
        case ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_PUT:
            kv_put_execute(c, b.ops[i]->request_put, result);
            break;
        case ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_DELETE_RANGE:
            kv_delete_execute(c, b.ops[i]->request_delete_range, result);
            break;
        case ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_TXN:
            execute(c, b.ops[i]->request_txn, plan, at, result);
            break;
        default:
            KRD_ASSERT(!"an operation that kv_check let through");
        }
    }
}

void kv_txn_execute(struct kv_command *c, const Etcdserverpb__TxnRequest *r,
                    const struct kv_txn_plan *plan, struct kv_op_result *out)
{
    size_t at = 0;
    execute(c, r, plan, &at, out);
}
