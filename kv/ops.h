/* ops.h - the operations of a command. Each comes in two parts: whether it can be done in the
 * present state (a definite no otherwise, with c->message set and nothing changed), and doing it,
 * which cannot fail any more. `out` is NULL when nobody waits for the result; what it points to
 * lies in c->result's arena. Requests have passed kv_check. Thread: apply. */
#ifndef KRD_KV_OPS_H
#define KRD_KV_OPS_H

#include "kv/command.pb-c.h"
#include "kv/store_internal.h"

/* A put's lease: the one that the same command grants. */
#define KV_LEASE_GRANTED (-1)

enum krd_status kv_put_check(struct kv_command *c, const Etcdserverpb__PutRequest *r);
void kv_put_execute(struct kv_command *c, const Etcdserverpb__PutRequest *r,
                    struct kv_op_result *out);

/* Deletes need no check. */
void kv_delete_execute(struct kv_command *c, const Etcdserverpb__DeleteRangeRequest *r,
                       struct kv_op_result *out);

enum krd_status kv_range_check(struct kv_command *c, const Etcdserverpb__RangeRequest *r);
void kv_range_execute(struct kv_command *c, const Etcdserverpb__RangeRequest *r,
                      struct kv_op_result *out);

/* Which branches are taken: decided for a transaction and all nested ones at once, against the
 * state before, in the order in which they are then executed. Lies in the command's arena. */
struct kv_txn_plan {
    bool *succeeded;
    size_t n, cap;
    int32_t failed_compare; /* of the outermost; -1: none */
};
enum krd_status kv_txn_check(struct kv_command *c, const Etcdserverpb__TxnRequest *r,
                             struct kv_txn_plan *plan);
void kv_txn_execute(struct kv_command *c, const Etcdserverpb__TxnRequest *r,
                    const struct kv_txn_plan *plan, struct kv_op_result *out);
void kv_txn_plan_deinit(struct kv_txn_plan *plan);

#endif
