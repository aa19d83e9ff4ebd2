/* apply_loop.c - the thread that owns the state machine. It takes committed entries in batches as
 * they have gathered, applies each batch as one write to the store, answers the requests that this
 * node took, and tells the raft loop how far it is. In between it does the store's background work
 * in small slices, and, on the leader, looks for leases whose time is over. */
#include "server/node_internal.h"

#include "base/clock.h"
#include "base/log.h"

/* Entries applied as one batch: large enough to spread the cost of the write, small enough not to
 * keep the first one's answer waiting. */
#define BATCH_ENTRIES 1024
/* Leases that one entry ends. */
#define EXPIRE_MAX 1000
/* An expiry that was proposed and not seen is proposed again after this long. */
#define EXPIRE_AGAIN_MS 1000

struct apply_state {
    struct raft_entry *batch;
    struct kv_entry *handed; /* the same, as the store takes them */
    size_t n, cap, handed_cap;
    uint64_t next_expiry_ms;  /* cluster time of the earliest deadline */
    uint64_t expiry_asked_ms; /* monotonic; an expiry is under way */
};

void apply_loop_submit(struct node *n, const struct raft_entry *entries, size_t count)
{
    struct apply_mail *m = krd_alloc(sizeof *m + count * sizeof *entries);
    m->n = count;
    for (size_t i = 0; i < count; i++)
        m->entries[i] = raft_entry_ref(&entries[i]);
    krd_mailbox_put(&n->apply_inbox, &m->mail);
}

static void on_outcome(void *arg, struct kv_outcome *o)
{
    struct node *n = arg;
    if (o->result == NULL)
        return;
    struct proposal *p = proposals_take(n->proposals, o->sequence);
    if (p == NULL) /* its time was over before */
        kv_result_destroy(o->result);
    else
        proposal_answer(p, KRD_OK, o->result);
}

struct kv_entry apply_loop_entry(const struct raft_entry *e)
{
    switch (e->type) {
    case RAFT_ENTRY_COMMAND:
    case RAFT_ENTRY_NOOP:
    case RAFT_ENTRY_CONFIG:
        break;
    default:
        krd_fatal("reason=\"log entry %" PRIu64
                  " has the unknown type %u: it was written by a newer "
                  "kvraftd\" help=\"start this node with that version\"",
                  e->index, e->type);
    }
    return (struct kv_entry){
        .index = e->index,
        .term = e->term,
        .time_ms = e->time_ms,
        .is_command = e->type == RAFT_ENTRY_COMMAND,
        .command = raft_payload(e),
    };
}

static void apply_batch(struct node *n, struct apply_state *s)
{
    if (s->n == 0)
        return;
    uint64_t start = krd_mono_us();
    krd_grow(&s->handed, &s->handed_cap, s->n, sizeof *s->handed);
    for (size_t i = 0; i < s->n; i++)
        s->handed[i] = apply_loop_entry(&s->batch[i]);
    kv_apply(n->store, s->handed, s->n, on_outcome, n);
    uint64_t us = krd_mono_us() - start;
    histogram_add(&n->metrics.apply, us);
    atomic_fetch_add_explicit(&n->metrics.apply_batches, 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&n->metrics.applied_entries, s->n, memory_order_relaxed);
    if (us > 500000)
        krd_warn("applying entries was slow", "entries=%zu ms=%" PRIu64, s->n, us / 1000);
    for (size_t i = 0; i < s->n; i++)
        raft_entry_unref(&s->batch[i]);
    s->n = 0;
    node_notify(n, &n->applied, kv_applied_index(n->store));
}

static bool take_mail(struct node *n, struct apply_state *s)
{
    struct krd_mail *m = krd_mailbox_take(&n->apply_inbox);
    bool any = m != NULL;
    while (m != NULL) {
        struct krd_mail *next = m->next;
        struct apply_mail *a = KRD_CONTAINER_OF(m, struct apply_mail, mail);
        for (size_t i = 0; i < a->n; i++) {
            krd_grow(&s->batch, &s->cap, s->n + 1, sizeof *s->batch);
            s->batch[s->n++] = a->entries[i];
            if (s->n == BATCH_ENTRIES)
                apply_batch(n, s);
        }
        krd_free(a);
        m = next;
    }
    apply_batch(n, s);
    return any;
}

/* Leader only: proposes the end of leases that are due by cluster time. Applying checks each
 * deadline again against the entry's own time, so that a renewal in between wins. */
static void expire_leases(struct node *n, struct apply_state *s)
{
    s->next_expiry_ms = UINT64_MAX;
    if (!atomic_load(&n->leading))
        return;
    uint64_t mono = krd_mono_ms();
    int64_t ids[EXPIRE_MAX];
    size_t count =
        kv_lease_due(n->store, node_cluster_time_ms(n), ids, EXPIRE_MAX, &s->next_expiry_ms);
    if (count == 0)
        return;
    /* Those that are due stay due until the entry is applied: look again then, or in a while. */
    s->next_expiry_ms = node_cluster_time_ms(n) + EXPIRE_AGAIN_MS;
    if (s->expiry_asked_ms != 0 && mono < s->expiry_asked_ms + EXPIRE_AGAIN_MS)
        return;
    s->expiry_asked_ms = mono;
    Etcdserverpb__LeaseExpireRequest expire = ETCDSERVERPB__LEASE_EXPIRE_REQUEST__INIT;
    expire.n_ids = count;
    expire.ids = ids;
    Etcdserverpb__InternalRaftRequest r = ETCDSERVERPB__INTERNAL_RAFT_REQUEST__INIT;
    r.lease_expire = &expire;
    node_propose_own(n, &r);
}

/* Until the next lease is due; followers look now and then, they may be leaders by then. */
static int ms_to_wait(struct node *n, const struct apply_state *s)
{
    const int idle_ms = 500;
    if (s->next_expiry_ms == UINT64_MAX)
        return idle_ms;
    uint64_t now = node_cluster_time_ms(n);
    if (s->next_expiry_ms <= now)
        return 1;
    return (int)krd_min_u64(s->next_expiry_ms - now + 1, (uint64_t)idle_ms);
}

void *apply_loop_main(void *arg)
{
    struct node *n = arg;
    pthread_setname_np(pthread_self(), "apply");
    struct apply_state s = {.next_expiry_ms = UINT64_MAX};
    bool more = false;
    while (!atomic_load_explicit(&n->stop_apply, memory_order_acquire)) {
        if (!more)
            krd_mailbox_wait(&n->apply_inbox, ms_to_wait(n, &s));
        if (take_mail(n, &s))
            s.expiry_asked_ms = 0; /* perhaps it was the expiry that was applied */
        expire_leases(n, &s);
        more = kv_maintain(n->store);
    }
    take_mail(n, &s);
    krd_free(s.batch);
    krd_free(s.handed);
    return NULL;
}
