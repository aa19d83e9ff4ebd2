/* sim.c - see sim.h. Readies are described as they are carried out, a line for each effect:
 *
 *   2: follower t1 leader=1                          role, term or leader changed
 *   2: write 3: t1 vote=1 commit=0 [4-6:t1]          goes to the disk as write 3
 *   2->1 append_reply t1 ok 6                        goes to the network
 *   2: commits [4-5:t1]                              goes to the state machine
 *   2: read 7 at 5                                   may be served at index 5
 *   2: fetch for 3: 1-4                              entries that are needed from the log
 */
#include "tests/raft/sim.h"

#include "base/crc32c.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

static void KRD_PRINTF(3, 4) require(bool ok, struct sim *s, const char *fmt, ...)
{
    if (ok || s->unwatched)
        return;
    char text[512];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    fprintf(stderr, "watchdog: %s (seed %llu)\n", text, (unsigned long long)s->seed);
    abort();
}

static unsigned long long llu(uint64_t v)
{
    return v;
}

struct sim_node *sim_node(struct sim *s, raft_id id)
{
    KRD_ASSERT(id >= 1 && id <= s->n);
    return &s->nodes[id - 1];
}

/* --- Words ---------------------------------------------------------------------------------- */

static void describe_entries(const struct raft_entry *e, size_t n, struct krd_buf *out)
{
    krd_buf_puts(out, "[");
    for (size_t i = 0; i < n;) {
        size_t same = 1;
        while (i + same < n && e[i + same].term == e[i].term)
            same++;
        krd_buf_printf(out, "%s%llu", i == 0 ? "" : " ", llu(e[i].index));
        if (same > 1)
            krd_buf_printf(out, "-%llu", llu(e[i + same - 1].index));
        krd_buf_printf(out, ":t%llu", llu(e[i].term));
        i += same;
    }
    krd_buf_puts(out, "]");
}

void sim_describe_message(const struct raft_message *m, struct krd_buf *out)
{
    krd_buf_printf(out, "%llu->%llu %s t%llu", llu(m->from), llu(m->to),
                   raft_message_type_name(m->type), llu(m->term));
    switch (m->type) {
    case RAFT_MSG_PREVOTE:
    case RAFT_MSG_VOTE:
        krd_buf_printf(out, " last=%llu/t%llu%s", llu(m->u.vote.last_index),
                       llu(m->u.vote.last_term), m->u.vote.transfer ? " transfer" : "");
        break;
    case RAFT_MSG_PREVOTE_REPLY:
    case RAFT_MSG_VOTE_REPLY:
        krd_buf_puts(out, m->u.vote_reply.granted ? " yes" : " no");
        break;
    case RAFT_MSG_APPEND:
        krd_buf_printf(out, " prev=%llu/t%llu commit=%llu", llu(m->u.append.prev_index),
                       llu(m->u.append.prev_term), llu(m->u.append.commit));
        if (m->u.append.safe_to_cut > 0)
            krd_buf_printf(out, " cut=%llu", llu(m->u.append.safe_to_cut));
        krd_buf_puts(out, " ");
        describe_entries(m->u.append.entries, m->u.append.n_entries, out);
        break;
    case RAFT_MSG_APPEND_REPLY:
        if (m->u.append_reply.rejected)
            krd_buf_printf(out, " no %llu hint=%llu/t%llu", llu(m->u.append_reply.index),
                           llu(m->u.append_reply.hint), llu(m->u.append_reply.hint_term));
        else
            krd_buf_printf(out, " ok %llu", llu(m->u.append_reply.index));
        break;
    case RAFT_MSG_HEARTBEAT:
        krd_buf_printf(out, " commit=%llu", llu(m->u.heartbeat.commit));
        if (m->u.heartbeat.safe_to_cut > 0)
            krd_buf_printf(out, " cut=%llu", llu(m->u.heartbeat.safe_to_cut));
        krd_buf_printf(out, " round=%llu", llu(m->u.heartbeat.round));
        break;
    case RAFT_MSG_HEARTBEAT_REPLY:
        krd_buf_printf(out, " round=%llu last=%llu", llu(m->u.heartbeat_reply.round),
                       llu(m->u.heartbeat_reply.last_index));
        break;
    case RAFT_MSG_READ_INDEX:
        break; /* the number is random */
    case RAFT_MSG_READ_INDEX_REPLY:
        krd_buf_printf(out, " index=%llu", llu(m->u.read_index_reply.index));
        break;
    case RAFT_MSG_TIMEOUT_NOW:
    case RAFT_MSG_SNAPSHOT:
        break;
    }
}

static void describe_soft(const struct sim_node *node, struct krd_buf *out)
{
    struct raft_status st;
    raft_get_status(node->raft, &st);
    krd_buf_printf(out, "%llu: %s t%llu", llu(st.id), raft_role_name(st.role), llu(st.term));
    if (st.leader != 0 && st.leader != st.id)
        krd_buf_printf(out, " leader=%llu", llu(st.leader));
    krd_buf_puts(out, "\n");
}

static void describe_peer(const struct raft_progress_status *p, struct krd_buf *out)
{
    static const char *const states[] = {"probe", "replicate", "snapshot"};
    krd_buf_printf(out, "   %llu: %s match=%llu next=%llu", llu(p->id), states[p->state],
                   llu(p->match), llu(p->next));
    if (p->inflight > 0)
        krd_buf_printf(out, " inflight=%u", p->inflight);
    krd_buf_puts(out, p->recently_active ? "\n" : " silent\n");
}

void sim_describe_node(struct sim *s, raft_id id, struct krd_buf *out)
{
    const struct sim_node *node = sim_node(s, id);
    if (!node->raft) {
        krd_buf_printf(out, "%llu: down\n", llu(id));
        return;
    }
    struct raft_status st;
    raft_get_status(node->raft, &st);
    krd_buf_printf(out,
                   "%llu: %s t%llu leader=%llu vote=%llu last=%llu/t%llu stable=%llu "
                   "commit=%llu applied=%llu",
                   llu(id), raft_role_name(st.role), llu(st.term), llu(st.leader), llu(st.vote),
                   llu(st.last), llu(raft_term_at(node->raft, st.last)), llu(st.stable),
                   llu(st.commit), llu(st.applied));
    if (st.base > 0)
        krd_buf_printf(out, " base=%llu", llu(st.base));
    if (st.safe_to_cut > 0)
        krd_buf_printf(out, " cut=%llu", llu(st.safe_to_cut));
    if (st.transferring_to != 0)
        krd_buf_printf(out, " transfer=%llu", llu(st.transferring_to));
    krd_buf_puts(out, "\n");
    for (uint32_t i = 0; i < st.n_peers; i++)
        describe_peer(&st.peers[i], out);
}

static void describe_write(raft_id id, const struct raft_write *w, struct krd_buf *out)
{
    krd_buf_printf(out, "%llu: write %llu: t%llu vote=%llu commit=%llu ", llu(id), llu(w->seq),
                   llu(w->hard_state.term), llu(w->hard_state.vote), llu(w->hard_state.commit));
    describe_entries(w->entries, w->n_entries, out);
    krd_buf_puts(out, "\n");
}

/* --- Watchdogs -------------------------------------------------------------------------------- */

static raft_index disk_last(const struct sim_disk *d)
{
    return d->base + d->n;
}

static raft_term disk_term(const struct sim_disk *d, raft_index index)
{
    if (index == d->base)
        return d->base_term;
    if (index < d->base || index > disk_last(d))
        return 0;
    return d->entries[index - d->base - 1].term;
}

static void watch_vote(struct sim *s, const struct raft_message *m)
{
    const struct sim_node *voter = sim_node(s, m->from);
    const struct raft_hard_state *hs = &voter->disk.hard_state;
    require(hs->term >= m->term, s, "%llu votes in t%llu, which is not on its disk", llu(m->from),
            llu(m->term));
    require(hs->term > m->term || hs->vote == m->to, s,
            "%llu votes for %llu in t%llu and its disk does not know", llu(m->from), llu(m->to),
            llu(m->term));
    size_t old = s->votes_cap;
    krd_grow(&s->votes, &s->votes_cap, m->term + 1, sizeof *s->votes);
    if (s->votes_cap > old)
        memset(s->votes + old, 0, (s->votes_cap - old) * sizeof *s->votes);
    raft_id *vote = &s->votes[m->term][m->from - 1];
    require(*vote == 0 || *vote == m->to, s, "%llu votes for %llu and %llu in t%llu", llu(m->from),
            llu(*vote), llu(m->to), llu(m->term));
    *vote = m->to;
}

static void watch_message(struct sim *s, const struct raft_message *m)
{
    const struct sim_node *from = sim_node(s, m->from);
    if (m->type == RAFT_MSG_VOTE_REPLY && m->u.vote_reply.granted)
        watch_vote(s, m);
    if (m->type == RAFT_MSG_APPEND_REPLY && !m->u.append_reply.rejected) {
        require(m->u.append_reply.index <= disk_last(&from->disk), s,
                "%llu acknowledges %llu, its disk ends at %llu", llu(m->from),
                llu(m->u.append_reply.index), llu(disk_last(&from->disk)));
        require(m->term <= from->disk.hard_state.term, s,
                "%llu acknowledges in t%llu, which is not on its disk", llu(m->from), llu(m->term));
    }
}

/* Votes that left, and the leader's own, which must be on its disk like any other. */
static bool elected(struct sim *s, const struct raft_status *st)
{
    const struct raft_config_state *c = raft_config(sim_node(s, st->id)->raft, NULL);
    uint64_t voted[KRD_MEMBERS_MAX];
    for (uint32_t i = 0; i < c->n; i++) {
        raft_id id = c->members[i].id;
        const struct raft_hard_state *hs = &sim_node(s, id)->disk.hard_state;
        if (id == st->id)
            voted[i] = hs->term == st->term && hs->vote == id;
        else
            voted[i] = st->term < s->votes_cap && s->votes[st->term][id - 1] == st->id;
    }
    return raft_config_quorum_value(c, voted) == 1;
}

static void watch_leader(struct sim *s, const struct sim_node *node)
{
    struct raft_status st;
    raft_get_status(node->raft, &st);
    if (st.role != RAFT_LEADER)
        return;
    size_t old = s->leaders_cap;
    krd_grow(&s->leaders, &s->leaders_cap, st.term + 1, sizeof *s->leaders);
    if (s->leaders_cap > old)
        memset(s->leaders + old, 0, (s->leaders_cap - old) * sizeof *s->leaders);
    raft_id *leader = &s->leaders[st.term];
    require(*leader == 0 || *leader == st.id, s, "%llu and %llu lead in t%llu", llu(*leader),
            llu(st.id), llu(st.term));
    if (*leader == st.id)
        return;
    *leader = st.id;
    require(elected(s, &st), s, "%llu leads t%llu without a majority of votes", llu(st.id),
            llu(st.term));
    for (raft_index i = st.base + 1; i <= s->n_committed; i++)
        require(raft_term_at(node->raft, i) == s->committed[i - 1].term, s,
                "%llu leads t%llu without committed entry %llu", llu(st.id), llu(st.term), llu(i));
}

static bool quorum_of_disks(struct sim *s, const struct raft *seen_by, raft_index index,
                            raft_term term)
{
    const struct raft_config_state *c = raft_config(seen_by, NULL);
    uint64_t has[KRD_MEMBERS_MAX];
    for (uint32_t i = 0; i < c->n; i++) {
        const struct sim_disk *d = &sim_node(s, c->members[i].id)->disk;
        has[i] = index <= d->base || disk_term(d, index) == term;
    }
    return raft_config_quorum_value(c, has) == 1;
}

static void watch_committed(struct sim *s, const struct sim_node *node, const struct raft_entry *e)
{
    struct slice payload = raft_payload(e);
    uint32_t crc = krd_crc32c(0, payload.ptr, payload.len);
    require(e->index <= s->n_committed + 1, s, "%llu applies %llu out of order", llu(node->id),
            llu(e->index));
    require(disk_term(&node->disk, e->index) == e->term, s,
            "%llu applies %llu, which is not on its own disk", llu(node->id), llu(e->index));
    if (e->index == s->n_committed + 1) {
        require(quorum_of_disks(s, node->raft, e->index, e->term), s,
                "%llu/t%llu is committed, but not on a quorum's disks", llu(e->index),
                llu(e->term));
        krd_grow(&s->committed, &s->committed_cap, s->n_committed + 1, sizeof *s->committed);
        s->committed[s->n_committed++] = (struct sim_committed){e->term, crc};
        return;
    }
    const struct sim_committed *was = &s->committed[e->index - 1];
    require(was->term == e->term && was->crc == crc, s,
            "%llu applies %llu/t%llu, others applied t%llu", llu(node->id), llu(e->index),
            llu(e->term), llu(was->term));
}

static void watch_read(struct sim *s, struct sim_node *node, const struct raft_read_ready *read)
{
    for (size_t i = 0; i < node->n_reads; i++) {
        if (node->reads[i].ctx != read->ctx)
            continue;
        require(read->index == 0 || read->index >= node->reads[i].at_least, s,
                "read %llu on %llu is served at %llu, %llu was committed before it was asked",
                llu(read->ctx), llu(node->id), llu(read->index), llu(node->reads[i].at_least));
        node->reads[i] = node->reads[--node->n_reads];
        if (read->index == 0)
            node->reads_refused++;
        else
            node->reads_answered++;
        return;
    }
    require(false, s, "read %llu on %llu is answered twice, or was never asked", llu(read->ctx),
            llu(node->id));
}

void sim_check_logs(struct sim *s)
{
    for (size_t a = 0; a < s->n; a++) {
        for (size_t b = a + 1; b < s->n; b++) {
            if (!s->nodes[a].raft || !s->nodes[b].raft)
                continue;
            struct raft_status x, y;
            raft_get_status(s->nodes[a].raft, &x);
            raft_get_status(s->nodes[b].raft, &y);
            bool same = false; /* from the end: once equal, equal all the way down */
            for (raft_index i = krd_min_u64(x.last, y.last); i > krd_max_u64(x.base, y.base); i--) {
                bool equal = raft_term_at(s->nodes[a].raft, i) == raft_term_at(s->nodes[b].raft, i);
                require(equal || !same, s,
                        "logs of %zu and %zu differ at %llu below an equal entry", a + 1, b + 1,
                        llu(i));
                same = equal;
            }
        }
    }
}

/* --- Disks ------------------------------------------------------------------------------------ */

static void disk_truncate(struct sim_disk *d, raft_index from)
{
    while (disk_last(d) >= from)
        raft_entry_unref(&d->entries[--d->n]);
}

static void disk_append(struct sim_disk *d, const struct raft_entry *e)
{
    KRD_ASSERT(e->index == disk_last(d) + 1);
    krd_grow(&d->entries, &d->cap, d->n + 1, sizeof *d->entries);
    d->entries[d->n++] = raft_entry_ref(e);
}

static void disk_complete(struct sim_disk *d, const struct sim_write *w)
{
    if (w->n_entries > 0)
        disk_truncate(d, w->entries[0].index);
    for (size_t i = 0; i < w->n_entries; i++)
        disk_append(d, &w->entries[i]);
    if (w->has_hard_state)
        d->hard_state = w->hard_state;
    KRD_ASSERT(d->hard_state.commit <= disk_last(d));
}

static void write_release(struct sim_write *w)
{
    for (size_t i = 0; i < w->n_entries; i++)
        raft_entry_unref(&w->entries[i]);
    krd_free(w->entries);
}

static void write_queue(struct sim_node *node, const struct raft_write *w)
{
    struct sim_write copy = {.seq = w->seq,
                             .has_hard_state = w->has_hard_state,
                             .hard_state = w->hard_state,
                             .n_entries = w->n_entries};
    copy.entries = krd_calloc(w->n_entries + 1, sizeof *copy.entries);
    for (size_t i = 0; i < w->n_entries; i++)
        copy.entries[i] = raft_entry_ref(&w->entries[i]);
    krd_grow(&node->writes, &node->writes_cap, node->n_writes + 1, sizeof *node->writes);
    node->writes[node->n_writes++] = copy;
}

static void writes_forget(struct sim_node *node, size_t n)
{
    for (size_t i = 0; i < n; i++)
        write_release(&node->writes[i]);
    node->n_writes -= n;
    if (node->n_writes > 0)
        memmove(node->writes, node->writes + n, node->n_writes * sizeof *node->writes);
}

void sim_persist(struct sim *s, raft_id id, size_t n)
{
    struct sim_node *node = sim_node(s, id);
    n = krd_min_size(n, node->n_writes);
    if (n == 0)
        return;
    for (size_t i = 0; i < n; i++)
        disk_complete(&node->disk, &node->writes[i]);
    uint64_t seq = node->writes[n - 1].seq;
    writes_forget(node, n);
    raft_persisted(node->raft, seq);
    raft_check(node->raft);
    watch_leader(s, node);
}

/* --- The network -------------------------------------------------------------------------------
 */

static void post(struct sim *s, const struct raft_message *m)
{
    struct krd_buf head = KRD_BUF_INIT;
    size_t records;
    raft_message_encode(m, &head, &records);
    struct krd_blob *bytes = krd_blob_create(head.len + records);
    memcpy(bytes->data, head.ptr, head.len);
    size_t at = head.len;
    for (uint32_t i = 0; m->type == RAFT_MSG_APPEND && i < m->u.append.n_entries; i++) {
        const struct raft_entry *e = &m->u.append.entries[i];
        memcpy(bytes->data + at, e->record, raft_record_bytes(e));
        at += raft_record_bytes(e);
    }
    KRD_ASSERT(at == bytes->len);
    krd_buf_deinit(&head);
    krd_grow(&s->queue, &s->queue_cap, s->n_queue + 1, sizeof *s->queue);
    s->queue[s->n_queue++] = (struct sim_message){m->from, m->to, m->type, bytes};
}

static struct krd_blob *unqueue(struct sim *s, size_t k)
{
    KRD_ASSERT(k < s->n_queue);
    struct krd_blob *bytes = s->queue[k].bytes;
    s->n_queue--;
    memmove(s->queue + k, s->queue + k + 1, (s->n_queue - k) * sizeof *s->queue);
    return bytes;
}

void sim_deliver(struct sim *s, size_t k)
{
    struct sim_node *to = sim_node(s, s->queue[k].to);
    struct krd_blob *bytes = unqueue(s, k);
    if (to->raft) {
        struct raft_message m;
        enum krd_status st = raft_message_decode(bytes, krd_blob_slice(bytes), &m);
        KRD_ASSERT(st == KRD_OK);
        raft_step(to->raft, &m);
        raft_check(to->raft);
        watch_leader(s, to);
    }
    krd_blob_unref(bytes);
}

void sim_drop(struct sim *s, size_t k)
{
    krd_blob_unref(unqueue(s, k));
}

void sim_duplicate(struct sim *s, size_t k)
{
    struct sim_message copy = s->queue[k];
    krd_blob_ref(copy.bytes);
    krd_grow(&s->queue, &s->queue_cap, s->n_queue + 1, sizeof *s->queue);
    s->queue[s->n_queue++] = copy;
}

/* --- A turn --------------------------------------------------------------------------------------
 */

static void carry_out_messages(struct sim *s, const struct raft_ready *ready)
{
    for (size_t i = 0; i < ready->n_messages; i++) {
        watch_message(s, &ready->messages[i]);
        post(s, &ready->messages[i]);
        if (s->out) {
            sim_describe_message(&ready->messages[i], s->out);
            krd_buf_puts(s->out, "\n");
        }
    }
}

static void carry_out_committed(struct sim *s, struct sim_node *node,
                                const struct raft_ready *ready)
{
    if (ready->n_committed == 0)
        return;
    for (size_t i = 0; i < ready->n_committed; i++) {
        require(ready->committed[i].index == node->applied + 1, s, "%llu is handed %llu after %llu",
                llu(node->id), llu(ready->committed[i].index), llu(node->applied));
        watch_committed(s, node, &ready->committed[i]);
        node->applied++;
    }
    if (s->out) {
        krd_buf_printf(s->out, "%llu: commits ", llu(node->id));
        describe_entries(ready->committed, ready->n_committed, s->out);
        krd_buf_puts(s->out, "\n");
    }
}

static void carry_out_reads(struct sim *s, struct sim_node *node, const struct raft_ready *ready)
{
    for (size_t i = 0; i < ready->n_reads; i++) {
        const struct raft_read_ready *read = &ready->reads[i];
        watch_read(s, node, read);
        if (s->out && read->index == 0)
            krd_buf_printf(s->out, "%llu: read %llu refused\n", llu(node->id), llu(read->ctx));
        else if (s->out)
            krd_buf_printf(s->out, "%llu: read %llu at %llu\n", llu(node->id), llu(read->ctx),
                           llu(read->index));
    }
}

static void carry_out_fetches(struct sim *s, struct sim_node *node, const struct raft_ready *ready)
{
    for (size_t i = 0; i < ready->n_fetches; i++) {
        const struct raft_fetch *f = &ready->fetches[i];
        krd_grow(&node->fetches, &node->fetches_cap, node->n_fetches + 1, sizeof *node->fetches);
        node->fetches[node->n_fetches++] = *f;
        if (s->out)
            krd_buf_printf(s->out, "%llu: fetch for %llu: %llu-%llu\n", llu(node->id), llu(f->peer),
                           llu(f->first), llu(f->last));
    }
}

bool sim_turn(struct sim *s, raft_id id)
{
    struct sim_node *node = sim_node(s, id);
    struct raft_ready ready;
    watch_leader(s, node);
    if (!raft_take_ready(node->raft, &ready))
        return false;
    if (ready.soft_changed && s->out)
        describe_soft(node, s->out);
    if (ready.write.seq != 0) {
        write_queue(node, &ready.write);
        if (s->out)
            describe_write(id, &ready.write, s->out);
    }
    carry_out_messages(s, &ready);
    carry_out_committed(s, node, &ready);
    carry_out_reads(s, node, &ready);
    carry_out_fetches(s, node, &ready);
    raft_applied(node->raft, node->applied);
    return true;
}

void sim_answer_fetch(struct sim *s, raft_id id, size_t max)
{
    struct sim_node *node = sim_node(s, id);
    if (node->n_fetches == 0)
        return;
    struct raft_fetch f = node->fetches[0];
    memmove(node->fetches, node->fetches + 1, --node->n_fetches * sizeof f);
    KRD_ASSERT(f.last <= disk_last(&node->disk) && f.last <= node->applied);
    size_t n = f.first > node->disk.base ? krd_min_size(max, f.last - f.first + 1) : 0;
    struct raft_entry *entries = krd_calloc(n + 1, sizeof *entries);
    size_t bytes = 0, got = 0;
    for (; got < n && bytes <= f.bytes_max; got++) {
        entries[got] = raft_entry_ref(&node->disk.entries[f.first - node->disk.base - 1 + got]);
        bytes += raft_record_bytes(&entries[got]);
    }
    raft_fetched(node->raft, f.peer, entries, got);
    raft_check(node->raft);
    krd_free(entries);
}

enum krd_status sim_propose(struct sim *s, raft_id id, enum raft_entry_type type,
                            struct slice payload)
{
    struct raft_entry e = raft_entry_make(type, payload);
    enum krd_status st = raft_propose(sim_node(s, id)->raft, &e, 1);
    if (st != KRD_OK)
        raft_entry_unref(&e);
    raft_check(sim_node(s, id)->raft);
    return st;
}

enum krd_status sim_read(struct sim *s, raft_id id, uint64_t ctx)
{
    struct sim_node *node = sim_node(s, id);
    enum krd_status st = raft_read(node->raft, ctx);
    if (st != KRD_OK)
        return st;
    krd_grow(&node->reads, &node->reads_cap, node->n_reads + 1, sizeof *node->reads);
    node->reads[node->n_reads++] = (struct sim_read){ctx, s->n_committed};
    return KRD_OK;
}

/* --- Life and death ----------------------------------------------------------------------------
 */

void sim_crash(struct sim *s, raft_id id, size_t survive)
{
    struct sim_node *node = sim_node(s, id);
    survive = krd_min_size(survive, node->n_writes);
    for (size_t i = 0; i < survive; i++)
        disk_complete(&node->disk, &node->writes[i]);
    writes_forget(node, node->n_writes);
    node->n_fetches = 0;
    node->n_reads = 0;
    raft_destroy(node->raft);
    node->raft = NULL;
}

/* The newest configuration at or below index; of the beginning when there is none. */
static void disk_config(struct sim *s, const struct sim_disk *d, raft_index index,
                        struct raft_config_state *c, raft_index *at)
{
    *c = s->config;
    *at = 0;
    for (size_t i = 0; i < d->n && d->entries[i].index <= index; i++) {
        if (d->entries[i].type != RAFT_ENTRY_CONFIG)
            continue;
        enum krd_status st = raft_config_decode(raft_payload(&d->entries[i]), c);
        KRD_ASSERT(st == KRD_OK);
        *at = d->entries[i].index;
    }
}

static size_t disk_runs(const struct sim_disk *d, struct raft_term_run *runs)
{
    size_t n = 0;
    for (size_t i = 0; i < d->n; i++)
        if (i == 0 || d->entries[i].term != d->entries[i - 1].term)
            runs[n++] = (struct raft_term_run){d->entries[i].index, d->entries[i].term};
    return n;
}

void sim_start(struct sim *s, raft_id id)
{
    struct sim_node *node = sim_node(s, id);
    const struct sim_disk *d = &node->disk;
    KRD_ASSERT(!node->raft);
    node->incarnation++;

    struct raft_options o = s->options;
    o.id = id;
    o.seed = s->seed * 1000 + id * 100 + node->incarnation;

    struct raft_config_state config, before;
    raft_index config_index, before_index;
    disk_config(s, d, disk_last(d), &config, &config_index);
    disk_config(s, d, node->applied, &before, &before_index);
    struct raft_term_run *runs = krd_calloc(d->n + 1, sizeof *runs);
    struct raft_restored from = {
        .hard_state = d->hard_state,
        .base_index = d->base,
        .base_term = d->base_term,
        .runs = runs,
        .n_runs = disk_runs(d, runs),
        .last_index = disk_last(d),
        .applied = node->applied,
        .time_ms = d->n > 0 ? d->entries[d->n - 1].time_ms : 0,
        .entries = d->n > 0 ? d->entries + (node->applied - d->base) : NULL,
        .n_entries = disk_last(d) - node->applied,
        .config = &config,
        .config_index = config_index,
        .config_before = &before,
        .config_before_index = before_index,
    };
    node->raft = raft_create(&o, &from);
    krd_free(runs);
    raft_set_now(node->raft, s->now_ms);
}

void sim_set_disk(struct sim *s, raft_id id, const raft_term *terms, size_t n,
                  struct raft_hard_state hard_state)
{
    struct sim_node *node = sim_node(s, id);
    KRD_ASSERT(!node->raft);
    disk_truncate(&node->disk, node->disk.base + 1);
    for (size_t i = 0; i < n; i++) {
        struct raft_entry e = raft_entry_make(RAFT_ENTRY_COMMAND, slice_of(&terms[i], 8));
        raft_entry_seal(&e, node->disk.base + 1 + i, terms[i], 0);
        disk_append(&node->disk, &e);
        raft_entry_unref(&e);
    }
    node->disk.hard_state = hard_state;
}

void sim_compact(struct sim *s, raft_id id, raft_index index)
{
    struct sim_node *node = sim_node(s, id);
    struct sim_disk *d = &node->disk;
    KRD_ASSERT(index <= node->applied && index >= d->base);
    size_t gone = index - d->base;
    raft_term term = disk_term(d, index);
    for (size_t i = 0; i < gone; i++)
        raft_entry_unref(&d->entries[i]);
    d->n -= gone;
    memmove(d->entries, d->entries + gone, d->n * sizeof *d->entries);
    d->base = index;
    d->base_term = term;
    raft_compacted(node->raft, index);
    raft_check(node->raft);
}

static void add_member(struct raft_config_state *c, raft_id id, bool voter)
{
    struct raft_member *m = &c->members[c->n++];
    m->id = id;
    m->voter = voter;
    snprintf(m->name, sizeof m->name, "n%llu", llu(id));
    snprintf(m->address, sizeof m->address, "h%llu:1", llu(id));
}

void sim_init(struct sim *s, const struct raft_options *options, uint64_t seed, size_t voters,
              size_t learners)
{
    KRD_ASSERT(voters + learners <= SIM_NODES_MAX);
    memset(s, 0, sizeof *s);
    s->options = *options;
    s->seed = seed;
    s->now_ms = 1000;
    s->n = voters + learners;
    for (size_t i = 0; i < s->n; i++) {
        s->nodes[i].id = i + 1;
        add_member(&s->config, i + 1, i < voters);
    }
    for (size_t i = 0; i < s->n; i++)
        sim_start(s, i + 1);
}

void sim_deinit(struct sim *s)
{
    for (size_t i = 0; i < s->n; i++) {
        struct sim_node *node = &s->nodes[i];
        sim_crash(s, node->id, 0);
        disk_truncate(&node->disk, node->disk.base + 1);
        krd_free(node->disk.entries);
        krd_free(node->writes);
        krd_free(node->fetches);
        krd_free(node->reads);
    }
    while (s->n_queue > 0)
        sim_drop(s, s->n_queue - 1);
    krd_free(s->queue);
    krd_free(s->committed);
    krd_free(s->leaders);
    krd_free(s->votes);
}
