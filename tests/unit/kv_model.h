/* kv_model.h - the store's naive twin: a fixed set of keys, every version of each in an array, and
 * the same commands applied in the plainest way. A command that fails half-way is undone. */
#ifndef TESTS_KV_MODEL_H
#define TESTS_KV_MODEL_H

#include "tests/unit/kv_fixture.h"

struct model_version {
    struct slice value;
    int64_t create, mod, version, lease; /* version 0: deleted */
};

struct model_key {
    struct slice key;
    struct model_version *list; /* oldest first */
    size_t n, cap;
};

struct model_event {
    int64_t revision;
    size_t key, version; /* places in the arrays */
};

struct model_lease {
    int64_t id, ttl;
    uint64_t deadline_ms;
};

struct model {
    struct model_key *keys; /* in order */
    size_t n_keys;
    struct model_event *events; /* of all revisions, in order */
    size_t n_events, events_cap;
    uint64_t *times; /* of each revision */
    size_t times_cap;
    struct model_lease *leases;
    size_t n_leases, leases_cap;
    int64_t revision, compacted;
    uint64_t time_ms;
    struct krd_arena arena; /* values */

    /* The command under way: */
    int64_t before; /* revision before it */
    bool changed;
    int64_t granted;
    bool grant_used;
};

/* keys: sorted, copied. */
void model_init(struct model *m, const struct slice *keys, size_t n);
void model_deinit(struct model *m);
/* Applies and says what must come out; pairs lie in out->arena or the model's. A grant of ID 0 must
 * be followed by model_set_granted. */
void model_apply(struct model *m, const command *c, uint64_t time_ms, struct kv_result *out);
void model_set_granted(struct model *m, int64_t id);

/* The version of a key at a revision; NULL: none or deleted. */
const struct model_version *model_at(const struct model *m, size_t key, int64_t revision);
struct kv_pair model_pair(const struct model *m, size_t key, const struct model_version *v);
struct model_lease *model_lease(struct model *m, int64_t id);
size_t model_lease_keys(const struct model *m, int64_t id); /* how many */
/* The first of a key's versions that compaction keeps. */
size_t model_first_kept(const struct model *m, size_t key);

#endif
