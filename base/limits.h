/* limits.h - every bound that a client or a peer can run into, with its reason, in one place. */
#ifndef KRD_LIMITS_H
#define KRD_LIMITS_H

/* A key: the HTTP contract's 64 KiB. */
#define KRD_KEY_BYTES_MAX (64u * 1024)
/* Default of --max-request-bytes: values and transactions, as etcd's 1.5 MiB. */
#define KRD_REQUEST_BYTES_DEFAULT (1536u * 1024)
/* What --max-request-bytes may be raised to. */
#define KRD_REQUEST_BYTES_MAX (64u * 1024 * 1024)
/* One log entry's payload: the largest request plus room for its envelope (keys, compares). */
#define KRD_ENTRY_BYTES_MAX (KRD_REQUEST_BYTES_MAX + 1024u * 1024)
/* One frame between peers: one largest entry, or a batch of small ones. */
#define KRD_FRAME_BYTES_MAX (KRD_ENTRY_BYTES_MAX + 64u * 1024)
/* Entries gathered into one append message, unless a single one is larger. */
#define KRD_APPEND_BYTES_MAX (1024u * 1024)
/* Members a cluster can have, learners included. Quorum arithmetic is O(members). */
#define KRD_MEMBERS_MAX 64
/* Operations in one transaction, nested ones included: etcd's --max-txn-ops. */
#define KRD_TXN_OPS_MAX 128
/* Depth of nested transactions: each level needs an operation of its parent. */
#define KRD_TXN_DEPTH_MAX 8
/* Lease TTL in seconds: etcd's upper bound; the lower one is kept by the node. */
#define KRD_LEASE_TTL_MAX_S 9000000000ll

_Static_assert(KRD_FRAME_BYTES_MAX > KRD_ENTRY_BYTES_MAX, "a frame must hold any entry");

#endif
