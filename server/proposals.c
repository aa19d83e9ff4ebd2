#include "server/proposals.h"

#include <pthread.h>

struct proposals {
    pthread_mutex_t lock;
    uint64_t next;    /* sequence for the next one */
    uint64_t settled; /* all below are answered. next - settled <= PROPOSALS_MAX */
    size_t n;
    struct proposal *slot[PROPOSALS_MAX]; /* by sequence; NULL: answered or never used */
};

static struct proposal **slot_of(struct proposals *ps, uint64_t sequence)
{
    return &ps->slot[sequence % PROPOSALS_MAX];
}

struct proposals *proposals_create(void)
{
    struct proposals *ps = krd_zalloc(sizeof *ps);
    pthread_mutex_init(&ps->lock, NULL);
    ps->next = ps->settled = 1;
    return ps;
}

void proposals_destroy(struct proposals *ps)
{
    if (ps == NULL)
        return;
    KRD_ASSERT(ps->n == 0);
    pthread_mutex_destroy(&ps->lock);
    krd_free(ps);
}

struct proposal *proposals_admit(struct proposals *ps, node_write_fn *fn, void *arg,
                                 uint64_t deadline_ms)
{
    struct proposal *p = krd_zalloc(sizeof *p);
    p->fn = fn;
    p->arg = arg;
    p->deadline_ms = deadline_ms;
    atomic_init(&p->refs, 2);
    pthread_mutex_lock(&ps->lock);
    bool room = ps->next - ps->settled < PROPOSALS_MAX;
    if (room) {
        p->sequence = ps->next++;
        *slot_of(ps, p->sequence) = p;
        ps->n++;
    }
    pthread_mutex_unlock(&ps->lock);
    if (room)
        return p;
    krd_free(p);
    return NULL;
}

uint64_t proposals_settled(struct proposals *ps)
{
    pthread_mutex_lock(&ps->lock);
    uint64_t settled = ps->settled;
    pthread_mutex_unlock(&ps->lock);
    return settled;
}

struct proposal *proposals_take(struct proposals *ps, uint64_t sequence)
{
    pthread_mutex_lock(&ps->lock);
    struct proposal *p = *slot_of(ps, sequence);
    if (p != NULL && p->sequence == sequence) {
        *slot_of(ps, sequence) = NULL;
        ps->n--;
        while (ps->settled < ps->next && *slot_of(ps, ps->settled) == NULL)
            ps->settled++;
    } else {
        p = NULL;
    }
    pthread_mutex_unlock(&ps->lock);
    return p;
}

void proposal_answer(struct proposal *p, enum krd_status status, struct kv_result *result)
{
    KRD_ASSERT((status == KRD_OK) == (result != NULL));
    bool before = atomic_exchange(&p->answered, true);
    KRD_ASSERT(!before);
    p->fn(p->arg, status, result);
    proposal_unref(p);
}

void proposal_unref(struct proposal *p)
{
    unsigned before = atomic_fetch_sub(&p->refs, 1);
    KRD_ASSERT(before > 0);
    if (before > 1)
        return;
    KRD_ASSERT(!p->in_list);
    if (p->entry.blob != NULL)
        raft_entry_unref(&p->entry);
    krd_free(p);
}

size_t proposals_pending(struct proposals *ps)
{
    pthread_mutex_lock(&ps->lock);
    size_t n = ps->n;
    pthread_mutex_unlock(&ps->lock);
    return n;
}
