/* proposals.h - writes that this node took and has not answered yet.
 *
 * Each gets a sequence number of this boot. The replicated state applies a (member, boot,
 * sequence) once, so that the node may send a proposal again whenever it is in doubt. A proposal is
 * answered exactly once: by the apply thread, when its entry is applied here, or by the raft loop,
 * when its time is over or it was refused.
 *
 * Threads: admit on any, take on any; the table's lock is held for a few instructions only. The
 * list and the fields under "raft loop" belong to the raft loop. */
#ifndef KRD_SERVER_PROPOSALS_H
#define KRD_SERVER_PROPOSALS_H

#include "base/mailbox.h"
#include "raft/entry.h"
#include "server/node.h"

/* Writes under way at once on one node; one more is answered "overloaded". */
#define PROPOSALS_MAX (1u << 17)

/* Mail to the raft loop says what it is. */
struct node_mail {
    struct krd_mail mail;
    int type; /* node.c's enum */
};

struct proposal {
    struct node_mail mail;
    uint64_t sequence;
    uint64_t deadline_ms; /* monotonic */
    node_write_fn *fn;
    void *arg;
    atomic_uint refs; /* the table's and the raft loop's */
    atomic_bool answered;

    /* raft loop */
    struct raft_entry entry; /* as encoded; its bytes are shared once entry_used */
    bool entry_used;         /* given to the core or to the transport: copy it the next time */
    struct proposal *next, *prev;
    bool in_list;
    bool sent;       /* given to the present leader (or to the core) */
    uint32_t copies; /* sent and not refused: any of them may be in a log */
};

struct proposals;
struct proposals *proposals_create(void);
void proposals_destroy(struct proposals *ps);

/* A proposal with the next sequence, in the table; two references: the table's and the caller's,
 * which goes with it to the raft loop. NULL: PROPOSALS_MAX are under way. */
struct proposal *proposals_admit(struct proposals *ps, node_write_fn *fn, void *arg,
                                 uint64_t deadline_ms);
/* Every sequence below this one has been answered. */
uint64_t proposals_settled(struct proposals *ps);
/* Takes it out of the table: the caller has the table's reference and must answer. NULL: somebody
 * else has answered it. */
struct proposal *proposals_take(struct proposals *ps, uint64_t sequence);
/* Calls fn, once, and drops the reference. */
void proposal_answer(struct proposal *p, enum krd_status status, struct kv_result *result);
void proposal_unref(struct proposal *p);
size_t proposals_pending(struct proposals *ps);

#endif
