/* wal_model.c - see wal_model.h. */
#include "tests/unit/wal_model.h"

#include <inttypes.h>
#include <stdio.h>

static char difference[200];

#define DIFFER(...) (snprintf(difference, sizeof difference, __VA_ARGS__), difference)

void model_config(raft_index index, raft_term term, struct raft_config_state *out)
{
    memset(out, 0, sizeof *out);
    out->n = 1;
    out->members[0].id = index * 1000 + term;
    out->members[0].voter = true;
    snprintf(out->members[0].name, sizeof out->members[0].name, "n%" PRIu64, index);
    snprintf(out->members[0].address, sizeof out->members[0].address, "host:%" PRIu64, term);
}

struct raft_entry model_entry(raft_index index, struct model_entry m)
{
    struct raft_entry e;
    if (m.type == RAFT_ENTRY_CONFIG) {
        struct raft_config_state c;
        struct krd_buf b = KRD_BUF_INIT;
        model_config(index, m.term, &c);
        raft_config_encode(&c, &b);
        e = raft_entry_make(RAFT_ENTRY_CONFIG, krd_buf_slice(&b));
        krd_buf_deinit(&b);
    } else {
        e = raft_entry_begin(m.type, m.length);
        uint8_t *p = e.record + RAFT_RECORD_HEADER_BYTES;
        for (uint32_t i = 0; i < m.length; i++)
            p[i] = (uint8_t)(index * 31 + m.term * 7 + i * 3);
        raft_entry_close(&e);
    }
    raft_entry_seal(&e, index, m.term, index * 10);
    return e;
}

static void model_put(struct model *m, raft_index index, struct model_entry e)
{
    KRD_ASSERT(index > m->base && index <= m->last + 1 && index < MODEL_ENTRIES_MAX);
    m->entries[index] = e;
    m->last = index;
}

struct raft_write model_entries(struct model *m, raft_index first, size_t n, raft_term term,
                                uint32_t length)
{
    struct raft_write w = {.entries = krd_calloc(n, sizeof(struct raft_entry)), .n_entries = n};
    for (size_t i = 0; i < n; i++) {
        struct model_entry e = {term, length, RAFT_ENTRY_COMMAND};
        model_put(m, first + i, e);
        w.entries[i] = model_entry(first + i, e);
    }
    return w;
}

struct raft_write model_config_entry(struct model *m, raft_index index, raft_term term)
{
    struct raft_write w = {.entries = krd_calloc(1, sizeof(struct raft_entry)), .n_entries = 1};
    struct model_entry e = {term, 0, RAFT_ENTRY_CONFIG};
    w.entries[0] = model_entry(index, e);
    e.length = w.entries[0].length;
    model_put(m, index, e);
    return w;
}

void model_hard_state(struct model *m, struct raft_write *w, raft_term term, raft_id vote,
                      raft_index commit)
{
    m->hs = (struct raft_hard_state){term, vote, commit};
    w->has_hard_state = true;
    w->hard_state = m->hs;
}

void model_write_deinit(struct raft_write *w)
{
    for (size_t i = 0; i < w->n_entries; i++)
        raft_entry_unref(&w->entries[i]);
    krd_free(w->entries);
    *w = (struct raft_write){0};
}

void model_append(struct model *m, struct wal *w, raft_index first, size_t n, raft_term term,
                  uint32_t length)
{
    struct raft_write wr = model_entries(m, first, n, term, length);
    if (term > m->hs.term)
        model_hard_state(m, &wr, term, term % 3 + 1, m->hs.commit);
    wal_append(w, &wr, 1);
    model_write_deinit(&wr);
}

const char *model_entries_difference(const struct model *m, const struct raft_entry *entries,
                                     size_t n, raft_index first)
{
    for (size_t i = 0; i < n; i++) {
        const struct raft_entry *e = &entries[i];
        raft_index index = first + i;
        if (e->index != index)
            return DIFFER("entry %" PRIu64 " stands where %" PRIu64 " should", e->index, index);
        const struct model_entry *x = &m->entries[index];
        if (index > m->last || e->term != x->term || e->length != x->length || e->type != x->type)
            return DIFFER("entry %" PRIu64 " has term %" PRIu64 ", should be %" PRIu64, index,
                          e->term, x->term);
        struct raft_entry want = model_entry(index, *x);
        bool same = memcmp(want.record, e->record, raft_record_bytes(e)) == 0;
        raft_entry_unref(&want);
        if (!same)
            return DIFFER("entry %" PRIu64 " has other bytes", index);
    }
    return NULL;
}

static const char *config_difference(const struct model *m, const struct wal_recovered *rec)
{
    raft_index index = m->last;
    while (index > m->base && m->entries[index].type != RAFT_ENTRY_CONFIG)
        index--;
    if (index == m->base)
        return NULL; /* one that has been cut is still known: tests look at it themselves */
    if (rec->config == NULL || rec->config_index != index)
        return DIFFER("configuration %" PRIu64 ", should be %" PRIu64, rec->config_index, index);
    struct raft_config_state want;
    model_config(index, m->entries[index].term, &want);
    if (rec->config->n != want.n || rec->config->members[0].id != want.members[0].id)
        return DIFFER("configuration %" PRIu64 " has another content", index);
    return NULL;
}

static const char *runs_difference(const struct model *m, const struct wal_recovered *rec)
{
    size_t k = 0;
    for (raft_index i = m->base + 1; i <= m->last; i++) {
        if (i > m->base + 1 && m->entries[i].term == m->entries[i - 1].term)
            continue;
        if (k == rec->n_runs || rec->runs[k].first != i || rec->runs[k].term != m->entries[i].term)
            return DIFFER("term run %zu is wrong at entry %" PRIu64, k, i);
        k++;
    }
    return k == rec->n_runs ? NULL : DIFFER("%zu term runs, should be %zu", rec->n_runs, k);
}

const char *model_difference(const struct model *m, const struct wal_recovered *rec,
                             raft_index keep_after)
{
    if (rec->last_index != m->last)
        return DIFFER("last index %" PRIu64 ", should be %" PRIu64, rec->last_index, m->last);
    if (rec->base_index != m->base || rec->base_term != m->entries[m->base].term)
        return DIFFER("base %" PRIu64 " term %" PRIu64 ", should be %" PRIu64, rec->base_index,
                      rec->base_term, m->base);
    if (rec->hard_state.term != m->hs.term || rec->hard_state.vote != m->hs.vote ||
        rec->hard_state.commit != m->hs.commit)
        return DIFFER("hard state %" PRIu64 "/%" PRIu64 "/%" PRIu64 ", should be %" PRIu64,
                      rec->hard_state.term, rec->hard_state.vote, rec->hard_state.commit,
                      m->hs.term);
    if (rec->checkpoint != m->checkpoint)
        return DIFFER("checkpoint %" PRIu64 ", should be %" PRIu64, rec->checkpoint, m->checkpoint);
    if (rec->time_ms != m->last * 10)
        return DIFFER("time %" PRIu64, rec->time_ms);
    raft_index after = krd_min_u64(krd_max_u64(keep_after, m->base), m->last);
    if (rec->n_entries != m->last - after)
        return DIFFER("%zu entries, should be %" PRIu64, rec->n_entries, m->last - after);
    const char *d = runs_difference(m, rec);
    if (d == NULL)
        d = config_difference(m, rec);
    return d != NULL ? d : model_entries_difference(m, rec->entries, rec->n_entries, after + 1);
}

const char *model_read_difference(const struct model *m, struct wal *w, size_t bytes_max)
{
    const char *d = NULL;
    for (raft_index next = m->base + 1; next <= m->last && d == NULL;) {
        struct raft_entry *entries;
        size_t n;
        char *err = NULL;
        enum krd_status st = wal_read(w, next, m->last, bytes_max, &entries, &n, &err);
        if (st != KRD_OK) {
            d = DIFFER("read of %" PRIu64 ": %s", next, err != NULL ? err : krd_status_code(st));
            krd_free(err);
            return d;
        }
        d = n == 0 ? "nothing read" : model_entries_difference(m, entries, n, next);
        for (size_t i = 0; i < n; i++)
            raft_entry_unref(&entries[i]);
        krd_free(entries);
        next += n;
    }
    return d;
}
