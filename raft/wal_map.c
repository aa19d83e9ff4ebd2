/* wal_map.c - see wal_map.h. For every frame of entries, in the order of the log:
 *
 * 1. wal_map_frame forgets what the frame replaces: runs, configurations, points, and in older
 *    segments the tail of what is live. It notes where the frame stands, but only now and then:
 *    one point per `spacing` bytes bounds both memory and the walk of a read. A frame that
 *    replaces something always gets a point, because the frames before it must not be walked
 *    beyond its first index.
 * 2. wal_map_entry adds each entry: a run when the term changes, a configuration if it is one.
 * 3. wal_map_hard_state: configurations that a commit made final release those before them. */
#include "raft/wal_map.h"

void wal_map_deinit(struct wal_map *m)
{
    for (size_t i = 0; i < m->n_configs; i++)
        krd_free(m->configs[i].payload);
    for (size_t i = 0; i < m->n_segments; i++)
        krd_free(m->segments[i].points);
    krd_free(m->runs);
    krd_free(m->configs);
    krd_free(m->segments);
    *m = (struct wal_map){0};
}

raft_term wal_map_term(const struct wal_map *m, raft_index index)
{
    if (index == m->base_index)
        return m->base_term;
    if (index < m->base_index || index > m->last_index)
        return 0;
    size_t lo = 0, hi = m->n_runs; /* runs[lo].first <= index < runs[hi].first */
    while (hi - lo > 1) {
        size_t mid = lo + (hi - lo) / 2;
        if (m->runs[mid].first <= index)
            lo = mid;
        else
            hi = mid;
    }
    KRD_ASSERT(m->n_runs > 0 && m->runs[lo].first <= index);
    return m->runs[lo].term;
}

struct wal_segment *wal_map_open(struct wal_map *m, uint64_t number)
{
    KRD_ASSERT(m->n_segments == 0 || number == wal_map_current(m)->number + 1);
    krd_grow(&m->segments, &m->cap_segments, m->n_segments + 1, sizeof *m->segments);
    struct wal_segment *s = &m->segments[m->n_segments++];
    *s = (struct wal_segment){
        .number = number,
        .before = m->last_index,
        .low = m->last_index + 1,
        .live_last = m->last_index,
    };
    return s;
}

static void truncate_from(struct wal_map *m, raft_index first)
{
    while (m->n_runs > 0 && m->runs[m->n_runs - 1].first >= first)
        m->n_runs--;
    while (m->n_configs > 0 && m->configs[m->n_configs - 1].index >= first)
        krd_free(m->configs[--m->n_configs].payload);
    for (size_t i = m->n_segments; i > 0 && m->segments[i - 1].live_last >= first; i--)
        m->segments[i - 1].live_last = first - 1;
    struct wal_segment *s = wal_map_current(m);
    while (s->n_points > 0 && s->points[s->n_points - 1].index >= first)
        s->n_points--;
    m->last_term = wal_map_term(m, first - 1);
    m->last_index = first - 1;
}

void wal_map_frame(struct wal_map *m, raft_index first, uint64_t offset, uint64_t spacing)
{
    KRD_ASSERT(first > m->base_index && first <= m->last_index + 1);
    bool replaces = first <= m->last_index;
    if (replaces)
        truncate_from(m, first);
    struct wal_segment *s = wal_map_current(m);
    s->low = krd_min_u64(s->low, first);
    if (replaces || s->n_points == 0 || offset - s->points[s->n_points - 1].offset >= spacing)
        wal_map_put_point(s, first, offset);
}

void wal_map_entry(struct wal_map *m, const struct raft_entry *e)
{
    KRD_ASSERT(e->index == m->last_index + 1);
    KRD_ASSERT(e->term >= m->last_term);
    if (m->n_runs == 0 || e->term != m->last_term)
        wal_map_put_run(m, e->index, e->term);
    if (e->type == RAFT_ENTRY_CONFIG)
        wal_map_put_config(m, e->index, raft_payload(e));
    m->last_index = e->index;
    m->last_term = e->term;
    m->last_time_ms = e->time_ms;
    wal_map_current(m)->live_last = e->index;
}

void wal_map_hard_state(struct wal_map *m, const struct raft_hard_state *hs)
{
    m->hs = *hs;
    size_t final = 0; /* configurations that a newer committed one has made history */
    while (final + 1 < m->n_configs && m->configs[final + 1].index <= hs->commit)
        krd_free(m->configs[final++].payload);
    if (final == 0)
        return;
    m->n_configs -= final;
    memmove(m->configs, m->configs + final, m->n_configs * sizeof *m->configs);
}

void wal_map_put_config(struct wal_map *m, raft_index index, struct slice payload)
{
    KRD_ASSERT(m->n_configs == 0 || m->configs[m->n_configs - 1].index < index);
    krd_grow(&m->configs, &m->cap_configs, m->n_configs + 1, sizeof *m->configs);
    uint8_t *copy = krd_alloc(payload.len + 1);
    if (payload.len > 0)
        memcpy(copy, payload.ptr, payload.len);
    m->configs[m->n_configs++] = (struct wal_config_at){index, copy, (uint32_t)payload.len};
}

void wal_map_put_run(struct wal_map *m, raft_index first, raft_term term)
{
    KRD_ASSERT(m->n_runs == 0 || m->runs[m->n_runs - 1].first < first);
    krd_grow(&m->runs, &m->cap_runs, m->n_runs + 1, sizeof *m->runs);
    m->runs[m->n_runs++] = (struct raft_term_run){first, term};
}

void wal_map_put_point(struct wal_segment *s, raft_index index, uint64_t offset)
{
    KRD_ASSERT(s->n_points == 0 || (s->points[s->n_points - 1].index < index &&
                                    s->points[s->n_points - 1].offset < offset));
    krd_grow(&s->points, &s->cap_points, s->n_points + 1, sizeof *s->points);
    s->points[s->n_points++] = (struct wal_point){index, offset};
}

void wal_map_settle(struct wal_map *m)
{
    raft_index last = m->last_index;
    for (size_t i = m->n_segments; i > 0; i--) {
        struct wal_segment *s = &m->segments[i - 1];
        s->live_last = last;
        last = krd_min_u64(krd_min_u64(last, s->before), s->low - 1);
    }
}

size_t wal_map_cuttable(const struct wal_map *m, raft_index index)
{
    size_t n = 0;
    while (n + 1 < m->n_segments && m->segments[n].live_last <= index)
        n++;
    return n;
}

void wal_map_rebase(struct wal_map *m, raft_index index)
{
    KRD_ASSERT(index >= m->base_index && index <= m->last_index);
    raft_term term = wal_map_term(m, index);
    size_t gone = 0; /* runs that end at or below index */
    while (gone < m->n_runs &&
           (gone + 1 < m->n_runs ? m->runs[gone + 1].first - 1 : m->last_index) <= index)
        gone++;
    m->n_runs -= gone;
    if (m->n_runs > 0) {
        memmove(m->runs, m->runs + gone, m->n_runs * sizeof *m->runs);
        m->runs[0].first = krd_max_u64(m->runs[0].first, index + 1);
    }
    m->base_index = index;
    m->base_term = term;
}

void wal_map_drop(struct wal_map *m, size_t n)
{
    KRD_ASSERT(n < m->n_segments);
    for (size_t i = 0; i < n; i++)
        krd_free(m->segments[i].points);
    m->n_segments -= n;
    memmove(m->segments, m->segments + n, m->n_segments * sizeof *m->segments);
}

const struct wal_segment *wal_map_find(const struct wal_map *m, raft_index index, raft_index *end)
{
    KRD_ASSERT(index > m->base_index && index <= m->last_index);
    size_t lo = 0, hi = m->n_segments - 1; /* the first one whose live_last >= index */
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        if (m->segments[mid].live_last >= index)
            hi = mid;
        else
            lo = mid + 1;
    }
    *end = m->segments[lo].live_last + 1;
    return &m->segments[lo];
}

uint64_t wal_segment_find(const struct wal_segment *s, raft_index index, raft_index *end)
{
    size_t i = s->n_points;
    while (i > 0 && s->points[i - 1].index > index)
        i--;
    KRD_ASSERT(i > 0); /* every segment's first frame of entries has a point */
    if (i < s->n_points)
        *end = krd_min_u64(*end, s->points[i].index);
    return s->points[i - 1].offset;
}
