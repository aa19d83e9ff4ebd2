/* wal_model.h - what a log should hold, kept in the plainest way, and one-line builders of writes.
 * A model is a value: copying it remembers a moment. */
#ifndef KRD_TESTS_WAL_MODEL_H
#define KRD_TESTS_WAL_MODEL_H

#include "raft/wal.h"

#define MODEL_ENTRIES_MAX 1024

struct model_entry {
    raft_term term;
    uint32_t length;
    uint8_t type;
};

struct model {
    raft_index base, last;
    struct raft_hard_state hs;
    raft_index checkpoint;
    struct model_entry entries[MODEL_ENTRIES_MAX]; /* by index; [0] is unused */
};

/* The entry as it must be: payload, time and configuration follow from index and term. */
struct raft_entry model_entry(raft_index index, struct model_entry e);
void model_config(raft_index index, raft_term term, struct raft_config_state *out);

/* One write with n entries [first, first + n) of payload length; its entries are made here and
 * released by model_write_deinit. Tells m what it does. */
struct raft_write model_entries(struct model *m, raft_index first, size_t n, raft_term term,
                                uint32_t length);
struct raft_write model_config_entry(struct model *m, raft_index index, raft_term term);
/* Adds the hard state to a write. */
void model_hard_state(struct model *m, struct raft_write *w, raft_term term, raft_id vote,
                      raft_index commit);
void model_write_deinit(struct raft_write *w);

/* The usual step: entries, with the hard state following the term, in one batch of its own. */
void model_append(struct model *m, struct wal *w, raft_index first, size_t n, raft_term term,
                  uint32_t length);

/* NULL, or what is different between the recovered log and the model. A buffer of its own. */
const char *model_difference(const struct model *m, const struct wal_recovered *rec,
                             raft_index keep_after);
/* The same for entries that were read, which must begin at first. */
const char *model_entries_difference(const struct model *m, const struct raft_entry *entries,
                                     size_t n, raft_index first);
/* Reads everything back through wal_read in pieces of about bytes_max. */
const char *model_read_difference(const struct model *m, struct wal *w, size_t bytes_max);

#endif
