/* config.h - who votes. The set of members as the log holds it (RAFT_ENTRY_CONFIG), with room for
 * joint consensus (§6): while `outgoing` is not empty, every decision needs a majority of both.
 *
 * A configuration counts from the moment it is appended, and is rolled back when its entry is
 * truncated. Plain values; no thread. */
#ifndef KRD_RAFT_CONFIG_H
#define KRD_RAFT_CONFIG_H

#include "base/buf.h"
#include "base/limits.h"
#include "raft/entry.h"

enum raft_member_role {
    RAFT_LEARNER = 0, /* receives the log, does not count */
    RAFT_VOTER = 1,
};

struct raft_member {
    raft_id id;
    bool voter;          /* in the (incoming) voters */
    bool voter_outgoing; /* joint consensus only: also in the outgoing voters */
    char name[64];       /* "n1": 1 to 63 printable bytes, NUL-terminated */
    char address[280];   /* advertised "host:port" of its raft transport */
};

struct raft_config_state {
    bool joint;                                  /* some decisions need both majorities */
    uint32_t n;                                  /* <= KRD_MEMBERS_MAX */
    struct raft_member members[KRD_MEMBERS_MAX]; /* by ascending id */
};

/* Members must have distinct non-zero ids, names and addresses within bounds. */
void raft_config_encode(const struct raft_config_state *c, struct krd_buf *out);
/* KRD_CORRUPT on anything that encode could not have written. */
KRD_MUST_CHECK enum krd_status raft_config_decode(struct slice s, struct raft_config_state *out);
const struct raft_member *raft_config_find(const struct raft_config_state *c, raft_id id);

/* value[i] belongs to members[i]. The highest v such that a majority (of both, when joint) has
 * value >= v. 0 without voters. §5.3, §6 */
uint64_t raft_config_quorum_value(const struct raft_config_state *c, const uint64_t value[]);

enum raft_vote_outcome { RAFT_VOTE_PENDING, RAFT_VOTE_WON, RAFT_VOTE_LOST };
/* vote[i]: 1 granted, -1 refused, 0 no answer yet. §5.2 */
enum raft_vote_outcome raft_config_vote_outcome(const struct raft_config_state *c,
                                                const int8_t vote[]);

#endif
