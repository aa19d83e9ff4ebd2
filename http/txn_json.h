/* txn_json.h - a transaction between the contract's JSON and the schema's message.
 *
 *   {"if": [{"key":"a","version":0}], "then": [{"put":{"key":"a","value":"1"}}], "else": []}
 *
 * The message lies in in->arena and points into in's tree: valid until json_in_close. */
#ifndef KRD_HTTP_TXN_JSON_H
#define KRD_HTTP_TXN_JSON_H

#include "http/json_in.h"
#include "http/json_out.h"
#include "kv/command.pb-c.h"
#include "kv/types.h"

/* NULL with in->error set when it is no transaction. */
Etcdserverpb__TxnRequest *txn_json_read(struct json_in *in, json_t *obj);
/* "succeeded", "results", and "failed_compare" when there is one: into the object at hand. Of the
 * message only its shape is looked at, not its bytes. */
void txn_json_write(struct jout *j, const Etcdserverpb__TxnRequest *m,
                    const struct kv_op_result *op);
/* A pair's members: key, value (unless keys_only), revisions, lease. */
void jout_pair_members(struct jout *j, const struct kv_pair *kv, bool keys_only);
/* The same as an object. name NULL: an array's element. */
void jout_pair(struct jout *j, const char *name, const struct kv_pair *kv, bool keys_only);
/* The metadata that a put's answer carries: created, version, revisions, lease, prev. */
void jout_put_result(struct jout *j, const struct kv_op_result *op);

/* Bytes for protobuf-c, which does not know const. */
static inline ProtobufCBinaryData pb_bytes(struct slice s)
{
    return (ProtobufCBinaryData){s.len, (uint8_t *)(uintptr_t)s.ptr};
}
/* The end of the range that a prefix spans, in the arena. Rewrites *key when the prefix is empty.
 */
struct slice txn_prefix_end(struct krd_arena *arena, struct slice *key);

#endif
