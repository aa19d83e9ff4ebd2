/* apply.c - from log entries to the next state.
 *
 *   1. Each entry in turn: decode; ask the session whether it is new; check what depends on state;
 *      change keys in the overlay, leases and sessions in their tables. A command is done whole or
 *      refused whole. Nothing has reached the engine yet.
 *   2. flush: newest versions, changes, leases, sessions and the state record (applied index,
 *      revision, hash) go into one engine batch.
 *   3. The counters that readers see are published, then the changes to the watchers, then the
 *      outcomes to whoever waits, in log order.
 *
 * What comes out is a function of (state, entry): no clock, no randomness, no option is looked at,
 * but for whether a result is kept. However the log is cut into batches, the state is the same.
 *
 * Failures: an entry that does not decode or is not allowed is a definite no, on every node alike.
 * An entry of unknown type was written by a newer program and is fatal, as is any failure of the
 * engine: after a restart the log is applied again from what is durable. */
#include "base/log.h"
#include "kv/ops.h"

#include <inttypes.h>

enum {
    BATCH_SLOTS_MAX = 8192, /* ranges inside commands cost O(slots) */
    BATCH_BYTES_MAX = 4 * 1024 * 1024,
};

/* --- One command ----------------------------------------------------------------------------- */

static void *arena_alloc(void *arena, size_t n)
{
    return krd_arena_alloc(arena, n);
}

static void arena_free(void *arena, void *p)
{
    (void)arena;
    (void)p;
}

static struct kv_op_result *op_result(struct kv_command *c)
{
    if (c->result == NULL)
        return NULL;
    c->result->has_op = true;
    return &c->result->op;
}

static enum krd_status refuse(struct kv_command *c, enum krd_status st, const char *message)
{
    c->message = message;
    return st;
}

/* Decides which ID a grant gets; it is made by grant() once nothing can fail any more. */
static enum krd_status check_grant(struct kv_command *c, const Etcdserverpb__LeaseGrantRequest *r)
{
    struct kv_leases *leases = &c->s->leases;
    if (r->id != 0 && kv_leases_find(leases, r->id) != NULL)
        return refuse(c, KRD_LEASE_EXISTS, "lease already exists");
    c->granted = r->id != 0 ? r->id : kv_leases_choose_id(leases, c->index, c->time_ms);
    return KRD_OK;
}

static void grant(struct kv_command *c, const Etcdserverpb__LeaseGrantRequest *r)
{
    int64_t ttl = krd_max_i64(r->ttl, 1);
    kv_leases_grant(&c->s->leases, c->granted, ttl, c->time_ms);
    if (c->result != NULL) {
        c->result->lease_id = c->granted;
        c->result->lease_ttl = ttl;
    }
}

static enum krd_status apply_put(struct kv_command *c, const Etcdserverpb__InternalRaftRequest *r)
{
    enum krd_status st = kv_put_check(c, r->put);
    if (st != KRD_OK)
        return st;
    if (c->grant_used)
        grant(c, r->lease_grant);
    kv_put_execute(c, r->put, op_result(c));
    return KRD_OK;
}

static enum krd_status apply_txn(struct kv_command *c, const Etcdserverpb__InternalRaftRequest *r)
{
    struct kv_txn_plan plan;
    enum krd_status st = kv_txn_check(c, r->txn, &plan);
    if (st == KRD_OK) {
        if (c->grant_used)
            grant(c, r->lease_grant);
        kv_txn_execute(c, r->txn, &plan, op_result(c));
    }
    kv_txn_plan_deinit(&plan);
    return st;
}

/* Logical: from here on readers below the revision are refused. The data goes later (compact.c). */
static enum krd_status apply_compaction(struct kv_command *c,
                                        const Etcdserverpb__CompactionRequest *r)
{
    struct kv_meta *m = &c->s->meta;
    if (r->revision <= m->compacted)
        return refuse(c, KRD_COMPACTED, "required revision has been compacted");
    if (r->revision > m->revision)
        return refuse(c, KRD_FUTURE_REVISION, "required revision is a future revision");
    m->compacted = r->revision;
    return KRD_OK;
}

static enum krd_status apply_revoke(struct kv_command *c, const Etcdserverpb__LeaseRevokeRequest *r)
{
    struct kv_lease *l = kv_leases_find(&c->s->leases, r->id);
    if (l == NULL)
        return refuse(c, KRD_LEASE_NOT_FOUND, "requested lease not found");
    kv_change_end_leases(c, &l, 1);
    return KRD_OK;
}

static enum krd_status apply_renew(struct kv_command *c, const Etcdserverpb__LeaseRenewRequest *r)
{
    struct kv_result *out = c->result;
    if (out != NULL && r->n_ids > 0) {
        out->renewed_ttl = krd_arena_zalloc(&out->arena, r->n_ids * sizeof out->renewed_ttl[0]);
        out->n_renewed = r->n_ids;
    }
    for (size_t i = 0; i < r->n_ids; i++) {
        struct kv_lease *l = kv_leases_find(&c->s->leases, r->ids[i]);
        if (l == NULL)
            continue;
        kv_leases_renew(&c->s->leases, l, c->time_ms);
        if (out != NULL)
            out->renewed_ttl[i] = l->rec.ttl;
    }
    return KRD_OK;
}

/* The leader saw these leases' time run out; a renewal that came before this entry in the log has
 * moved the deadline, and the lease lives on. */
static enum krd_status apply_expire(struct kv_command *c, const Etcdserverpb__LeaseExpireRequest *r)
{
    struct kv_lease **ending = NULL;
    size_t n = 0;
    if (r->n_ids > 0)
        ending = krd_arena_alloc(&c->s->command_arena, r->n_ids * sizeof(struct kv_lease *));
    for (size_t i = 0; i < r->n_ids; i++) {
        struct kv_lease *l = kv_leases_find(&c->s->leases, r->ids[i]);
        if (l == NULL || l->ending || l->rec.deadline_ms > c->time_ms)
            continue;
        l->ending = true;
        ending[n++] = l;
    }
    kv_change_end_leases(c, ending, n);
    return KRD_OK;
}

static enum krd_status dispatch(struct kv_command *c, const Etcdserverpb__InternalRaftRequest *r)
{
    enum krd_status st = KRD_OK;
    if (r->lease_grant != NULL)
        st = check_grant(c, r->lease_grant);
    if (st != KRD_OK)
        return st;
    if (r->put != NULL)
        return apply_put(c, r);
    if (r->txn != NULL)
        return apply_txn(c, r);
    if (r->delete_range != NULL) {
        kv_delete_execute(c, r->delete_range, op_result(c));
        return KRD_OK;
    }
    if (r->compaction != NULL)
        return apply_compaction(c, r->compaction);
    if (r->lease_revoke != NULL)
        return apply_revoke(c, r->lease_revoke);
    if (r->lease_renew != NULL)
        return apply_renew(c, r->lease_renew);
    if (r->lease_expire != NULL)
        return apply_expire(c, r->lease_expire);
    KRD_ASSERT(r->lease_grant != NULL); /* kv_check */
    grant(c, r->lease_grant);
    return KRD_OK;
}

/* What a command is refused for before it is looked at: it was applied already. */
static enum krd_status check_session(struct kv_command *c,
                                     const Etcdserverpb__InternalRaftRequest *r)
{
    if (r->origin == 0)
        return KRD_OK;
    if (kv_sessions_take(&c->s->sessions, r->origin, r->boot, r->sequence, r->settled) ==
        KV_SESSION_DONE)
        return refuse(c, KRD_OUTCOME_UNKNOWN, "the command was applied or given up before");
    return KRD_OK;
}

static enum krd_status run_command(struct kv_command *c, const Etcdserverpb__InternalRaftRequest *r)
{
    enum krd_status st = check_session(c, r);
    if (st == KRD_OK)
        st = kv_check(r, &c->message);
    if (st == KRD_OK)
        st = dispatch(c, r);
    KRD_ASSERT(st == KRD_OK || c->sub == 0); /* a no changes nothing */
    if (c->sub > 0)
        c->s->meta.revision = c->revision;
    return st;
}

/* --- One entry ------------------------------------------------------------------------------- */

static void close_result(struct kv_command *c, enum krd_status st)
{
    struct kv_result *r = c->result;
    if (r == NULL)
        return;
    r->status = st;
    r->message = c->message != NULL ? c->message : krd_status_text(st);
    r->revision = c->s->meta.revision;
    r->index = c->s->meta.index;
    r->term = c->s->meta.term;
    if (st != KRD_OK)
        r->has_op = false;
}

static void apply_command(struct kv_store *s, const struct kv_entry *e, struct kv_outcome *out)
{
    ProtobufCAllocator allocator = {arena_alloc, arena_free, &s->command_arena};
    Etcdserverpb__InternalRaftRequest *r = NULL;
    if (kv_wire_is_sane(e->command))
        r = etcdserverpb__internal_raft_request__unpack(&allocator, e->command.len, e->command.ptr);
    if (r == NULL) {
        krd_error("an entry holds no command; it has no effect", "index=%" PRIu64, e->index);
        krd_arena_reset(&s->command_arena);
        return;
    }
    struct kv_command c = {.s = s,
                           .revision = s->meta.revision + 1,
                           .index = s->meta.index,
                           .time_ms = s->meta.time_ms};
    out->origin = r->origin;
    out->boot = r->boot;
    out->sequence = r->sequence;
    if (r->origin != 0 && r->origin == s->options.self && r->boot == s->options.self_boot)
        c.result = krd_zalloc(sizeof *c.result);
    enum krd_status st = run_command(&c, r);
    close_result(&c, st);
    out->result = c.result;
    krd_arena_reset(&s->command_arena);
}

static void apply_entry(struct kv_store *s, const struct kv_entry *e)
{
    KRD_ASSERT(e->index == s->meta.index + 1);
    struct kv_outcome out = {.result = NULL};
    s->meta.index = e->index;
    s->meta.term = e->term;
    s->meta.time_ms = krd_max_u64(s->meta.time_ms, e->time_ms);
    if (e->is_command)
        apply_command(s, e, &out);
    krd_grow(&s->outcomes, &s->outcomes_cap, s->n_outcomes + 1, sizeof s->outcomes[0]);
    s->outcomes[s->n_outcomes++] = out;
}

/* --- One batch ------------------------------------------------------------------------------- */

static void put_keys(struct kv_store *s)
{
    for (size_t i = 0; i < s->overlay.n; i++) {
        struct kv_slot *slot = s->overlay.slots[i];
        if (!slot->dirty)
            continue;
        if (!slot->present) {
            kv_engine_batch_delete(s->batch, slot->raw);
            continue;
        }
        kv_engine_batch_put(s->batch, slot->raw, slot->record);
        if (slot->raw.ptr[0] != 'k')
            continue;
        s->sum = kv_sum_subtract(s->sum, slot->before);
        if (kv_head_is_live(slot->record))
            s->sum = kv_sum_add(s->sum, kv_hash_item(slot->hash, slot->record));
    }
    for (size_t i = 0; i < s->changes.n; i++) {
        uint8_t key[KV_CHANGE_KEY_BYTES];
        kv_engine_batch_put(s->batch, kv_raw_change(key, s->changes.list[i].at),
                            s->changes.list[i].record);
    }
}

static void put_meta(struct kv_store *s)
{
    uint8_t record[KV_META_BYTES];
    kv_sum_store(s->meta.sum, s->sum);
    kv_meta_encode(record, &s->meta);
    kv_engine_batch_put(s->batch, slice_str("m"), slice_of(record, sizeof record));
}

static void forget_batch(struct kv_store *s)
{
    bool large = s->overlay.bytes + s->changes.bytes > 4 * BATCH_BYTES_MAX;
    kv_overlay_clear(&s->overlay);
    s->changes.n = 0;
    s->changes.bytes = 0;
    if (large) { /* gives memory back after a huge command */
        krd_arena_deinit(&s->batch_arena);
        krd_arena_deinit(&s->command_arena);
        krd_free(s->changes.list);
        s->changes = (struct kv_changes){.list = NULL};
        kv_engine_batch_destroy(s->batch);
        s->batch = kv_engine_batch_create(s->engine);
    } else {
        krd_arena_reset(&s->batch_arena);
        kv_engine_batch_clear(s->batch);
    }
}

static void flush(struct kv_store *s, kv_outcome_fn *fn, void *arg)
{
    if (s->n_outcomes == 0)
        return;
    put_keys(s);
    kv_leases_flush(&s->leases, s->batch, &s->sum);
    kv_sessions_flush(&s->sessions, s->batch, &s->sum);
    put_meta(s);
    kv_engine_write(s->engine, s->batch);

    kv_store_publish(s);
    kv_hub_publish(s->hub, &s->changes, s->meta.revision);
    forget_batch(s);
    for (size_t i = 0; i < s->n_outcomes; i++) {
        if (fn != NULL)
            fn(arg, &s->outcomes[i]);
        else
            kv_result_destroy(s->outcomes[i].result);
    }
    s->n_outcomes = 0;
}

void kv_apply(struct kv_store *s, const struct kv_entry *entries, size_t n, kv_outcome_fn *fn,
              void *arg)
{
    for (size_t i = 0; i < n; i++) {
        if (entries[i].index <= s->meta.index)
            continue;
        apply_entry(s, &entries[i]);
        if (s->overlay.n >= BATCH_SLOTS_MAX ||
            s->overlay.bytes + s->changes.bytes >= BATCH_BYTES_MAX)
            flush(s, fn, arg);
    }
    flush(s, fn, arg);
}
