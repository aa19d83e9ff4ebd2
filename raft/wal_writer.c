/* wal_writer.c - the thread that makes writes durable, and its helper that keeps house.
 *
 * A turn of the writer:
 *   1. Everything that came by mail is taken: writes, fetches, checkpoint, cut.
 *   2. Writes become frames, each with one fdatasync, as many writes in each as wait (up to
 *      GROUP_BYTES, so that the first of many does not wait for megabytes); after each the loop
 *      is told. What arrives meanwhile is the next turn's group: the slower the disk, the larger
 *      the groups.
 *   3. One cut and one fetch at most, then the mail again: a follower that catches up delays
 *      nobody by more than one read.
 *   4. If nothing was written for MARK_IDLE_MS, the last batch is proven by a marker (wal_mark).
 *
 * The keeper does what takes milliseconds and can wait: it fills the next segment's file with
 * zeros and removes segments that were cut. It touches no state of the log: it is told numbers
 * and sends back an open file. When it cannot (disk full), it says so once a second, and
 * wal_writer_starved tells the node to refuse writes; what is under way still has at least the
 * rest of the present segment.
 *
 * If the keeper is late, the writer makes a short segment itself: a pause of some 25 ms, and nothing
 * worse. Stopping: the queue is emptied, the last batch proven, the
 * keeper joined, the files closed. */
#include "raft/wal_internal.h"

#include "base/clock.h"
#include "base/log.h"
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>

#define GROUP_BYTES    (4u * 1024 * 1024)
#define MARK_IDLE_MS   75
#define RETRY_MS       1000
#define SLICE_PAUSE_MS 2 /* between two slices of zeros: the writer's syncs come first */
#define SPARE_NAME     "spare.tmp"

enum letter_kind { APPEND, FETCH, CHECKPOINT, CUT, SPARE, REMOVE, STOP };

struct letter {
    struct krd_mail mail;
    enum letter_kind kind;
    union {
        struct raft_write write; /* APPEND; its entries are those below */
        struct raft_fetch fetch;
        raft_index index; /* CHECKPOINT, CUT */
        struct wal_spare spare;
        struct {
            uint64_t from, to;
        } remove;
    };
    struct raft_entry entries[];
};

struct keeper {
    const struct krd_vfs *vfs;
    const char *dir; /* the log's; lives longer */
    uint64_t segment_bytes;
    struct krd_mailbox box;    /* SPARE: make one. REMOVE, STOP */
    struct krd_mailbox *reply; /* the writer's */
    atomic_bool stopping;
    atomic_bool starved;
    pthread_t thread;
};

struct wal_writer {
    struct wal *w;
    struct wal_writer_callbacks cb;
    struct krd_mailbox box;
    pthread_t thread;
    struct keeper keeper;
    /* The thread's own. */
    struct letter **appends; /* taken, not yet written */
    size_t n_appends, cap_appends;
    struct raft_write *group;
    size_t cap_group;
    struct krd_mail *fetches, **fetches_end; /* letters that wait, oldest first */
    raft_index cut;                          /* asked for and not yet tried; 0: none */
    bool spare_ordered;
    bool stopping;
    uint64_t written_ms; /* when the last batch was written */
    /* For anyone. */
    _Atomic uint64_t first_index, bytes;
};

static struct letter *letter_create(enum letter_kind kind, size_t n_entries)
{
    struct letter *l = krd_alloc(sizeof *l + n_entries * sizeof l->entries[0]);
    memset(l, 0, sizeof *l);
    l->kind = kind;
    return l;
}

static void letter_destroy(struct letter *l)
{
    if (l->kind == APPEND)
        for (size_t i = 0; i < l->write.n_entries; i++)
            raft_entry_unref(&l->entries[i]);
    krd_free(l);
}

static struct letter *letter_of(struct krd_mail *m)
{
    return m == NULL ? NULL : KRD_CONTAINER_OF(m, struct letter, mail);
}

static void post(struct krd_mailbox *box, struct letter *l)
{
    krd_mailbox_put(box, &l->mail);
}

/* --- The keeper --------------------------------------------------------------------------- */

static bool keeper_pause(void *arg)
{
    struct keeper *k = arg;
    krd_mailbox_wait(&k->box, SLICE_PAUSE_MS);
    return !atomic_load(&k->stopping);
}

static bool keeper_make_spare(struct keeper *k)
{
    const char *step = "";
    struct wal_spare spare;
    int r = wal_spare_make(k->vfs, k->dir, SPARE_NAME, k->segment_bytes, keeper_pause, k, &spare,
                           &step);
    if (r < 0) {
        if (!atomic_load(&k->stopping)) {
            atomic_store(&k->starved, true);
            krd_error("cannot prepare the log's next segment; writes are refused until it works",
                      "step=\"%s\" dir=\"%s\" bytes=%" PRIu64 " error=\"%s\"", step, k->dir,
                      k->segment_bytes, strerror(-r));
        }
        return false;
    }
    if (atomic_exchange(&k->starved, false))
        krd_info("the log's next segment is prepared", "dir=\"%s\"", k->dir);
    struct letter *l = letter_create(SPARE, 0);
    l->spare = spare;
    post(k->reply, l);
    return true;
}

static void keeper_remove(struct keeper *k, uint64_t from, uint64_t to)
{
    for (uint64_t number = from; number < to; number++) {
        char name[WAL_NAME_BYTES];
        wal_segment_name(number, name);
        char *path = krd_asprintf("%s/%s", k->dir, name);
        int r = k->vfs->unlink(k->vfs->ctx, path);
        if (r < 0) /* harmless: it is tried again at the next start */
            krd_warn("cannot remove an old log segment", "file=\"%s\" error=\"%s\"", path,
                     strerror(-r));
        krd_free(path);
    }
}

static void *keeper_main(void *arg)
{
    struct keeper *k = arg;
    bool wanted = false, stop = false;
    while (!stop) {
        krd_mailbox_wait(&k->box, wanted ? RETRY_MS : -1);
        struct letter *next;
        for (struct letter *l = letter_of(krd_mailbox_take(&k->box)); l != NULL; l = next) {
            next = letter_of(l->mail.next);
            wanted |= l->kind == SPARE;
            stop |= l->kind == STOP;
            if (l->kind == REMOVE)
                keeper_remove(k, l->remove.from, l->remove.to);
            letter_destroy(l);
        }
        if (wanted && !stop)
            wanted = !keeper_make_spare(k);
    }
    return NULL;
}

/* --- The writer --------------------------------------------------------------------------- */

/* Sorts the mail; everything keeps its order within its kind. */
static void take_mail(struct wal_writer *t)
{
    struct letter *next;
    for (struct letter *l = letter_of(krd_mailbox_take(&t->box)); l != NULL; l = next) {
        next = letter_of(l->mail.next);
        switch (l->kind) {
        case APPEND:
            krd_grow(&t->appends, &t->cap_appends, t->n_appends + 1, sizeof(*t->appends));
            t->appends[t->n_appends++] = l;
            continue;
        case FETCH:
            l->mail.next = NULL;
            *t->fetches_end = &l->mail;
            t->fetches_end = &l->mail.next;
            continue;
        case SPARE:
            KRD_ASSERT(t->w->spare.path == NULL);
            t->w->spare = l->spare;
            t->spare_ordered = false;
            break;
        case CHECKPOINT:
            wal_checkpoint(t->w, l->index, false);
            break;
        case CUT:
            t->cut = krd_max_u64(t->cut, l->index);
            break;
        case STOP:
            t->stopping = true;
            break;
        case REMOVE: /* the keeper's */
            KRD_ASSERT(false);
        }
        letter_destroy(l);
    }
}

static void order_spare(struct wal_writer *t)
{
    const struct wal_segment *s = wal_map_current(&t->w->map);
    bool hasty = s->bytes < t->w->segment_bytes; /* see make_in_time_of_need */
    if (t->w->spare.path != NULL || t->spare_ordered || (!hasty && s->end < s->bytes / 4))
        return;
    t->spare_ordered = true;
    post(&t->keeper.box, letter_create(SPARE, 0));
}

/* After anything that may have written a frame. */
static void tell_sync(struct wal_writer *t, uint64_t seq_before)
{
    if (t->w->next_seq == seq_before)
        return;
    t->written_ms = krd_mono_ms();
    if (t->cb.synced != NULL)
        t->cb.synced(t->cb.arg, t->w->sync_us, t->w->sync_bytes);
}

static size_t write_bytes(const struct raft_write *w)
{
    size_t n = 0;
    for (size_t i = 0; i < w->n_entries; i++)
        n += raft_record_bytes(&w->entries[i]);
    return n;
}

/* Writes appends [from, ...) as one batch; returns where the next one begins. */
static size_t write_group(struct wal_writer *t, size_t from)
{
    size_t n = 0, bytes = 0;
    uint64_t seq = 0;
    for (size_t i = from; i < t->n_appends; i++) {
        const struct raft_write *w = &t->appends[i]->write;
        bytes += write_bytes(w);
        if (n > 0 && bytes > GROUP_BYTES)
            break;
        krd_grow(&t->group, &t->cap_group, n + 1, sizeof(*t->group));
        t->group[n++] = *w;
        seq = krd_max_u64(seq, w->seq);
    }
    uint64_t before = t->w->next_seq;
    wal_append(t->w, t->group, n);
    tell_sync(t, before);
    if (seq > 0)
        t->cb.persisted(t->cb.arg, seq);
    for (size_t i = from; i < from + n; i++)
        letter_destroy(t->appends[i]);
    return from + n;
}

static void write_all(struct wal_writer *t)
{
    for (size_t at = 0; at < t->n_appends;) {
        at = write_group(t, at);
        order_spare(t);
    }
    t->n_appends = 0;
}

static void serve_cut(struct wal_writer *t)
{
    uint64_t from, to;
    if (t->cut == 0)
        return;
    if (wal_cut_begin(t->w, t->cut, &from, &to)) {
        struct letter *l = letter_create(REMOVE, 0);
        l->remove.from = from;
        l->remove.to = to;
        post(&t->keeper.box, l);
    }
    t->cut = 0;
}

static void serve_fetch(struct wal_writer *t)
{
    struct letter *l = letter_of(t->fetches);
    if (l == NULL)
        return;
    t->fetches = l->mail.next;
    if (t->fetches == NULL)
        t->fetches_end = &t->fetches;
    struct raft_entry *entries = NULL;
    size_t n = 0;
    char *err = NULL;
    enum krd_status st =
        wal_read(t->w, l->fetch.first, l->fetch.last, l->fetch.bytes_max, &entries, &n, &err);
    if (err != NULL)
        krd_error("cannot read the log", "peer=%016" PRIx64 " reason=\"%s\"", l->fetch.peer, err);
    krd_free(err);
    t->cb.fetched(t->cb.arg, l->fetch.peer, st == KRD_OK ? entries : NULL, st == KRD_OK ? n : 0);
    letter_destroy(l);
}

static bool wants_mark(const struct wal_writer *t)
{
    return t->w->unproven || t->w->checkpoint_waits;
}

static int wait_ms(const struct wal_writer *t)
{
    if (t->fetches != NULL || t->stopping)
        return 0;
    if (!wants_mark(t))
        return -1;
    uint64_t now = krd_mono_ms(), due = t->written_ms + MARK_IDLE_MS;
    return due > now ? (int)(due - now) : 0;
}

static void mark_when_idle(struct wal_writer *t)
{
    if (!wants_mark(t) || krd_mono_ms() < t->written_ms + MARK_IDLE_MS)
        return;
    uint64_t before = t->w->next_seq;
    wal_mark(t->w);
    tell_sync(t, before);
}

static void publish(struct wal_writer *t)
{
    atomic_store_explicit(&t->first_index, wal_first_index(t->w), memory_order_relaxed);
    atomic_store_explicit(&t->bytes, wal_bytes(t->w), memory_order_relaxed);
}

static void *writer_main(void *arg)
{
    struct wal_writer *t = arg;
    while (!t->stopping || t->fetches != NULL) {
        int timeout = wait_ms(t);
        if (timeout != 0)
            krd_mailbox_wait(&t->box, timeout);
        take_mail(t);
        write_all(t);
        serve_cut(t);
        serve_fetch(t);
        mark_when_idle(t);
        order_spare(t);
        publish(t);
    }
    wal_mark(t->w);
    return NULL;
}

/* --- Outside ------------------------------------------------------------------------------ */

static void start_thread(pthread_t *thread, void *(*fn)(void *), void *arg, const char *name)
{
    /* Signals are the main thread's. */
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int r = pthread_create(thread, NULL, fn, arg);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (r != 0)
        krd_fatal("cannot start the thread %s: %s. Raise the limit on processes and threads", name,
                  strerror(r));
    pthread_setname_np(*thread, name);
}

struct wal_writer *wal_writer_start(struct wal *w, const struct wal_writer_callbacks *cb)
{
    struct wal_writer *t = krd_zalloc(sizeof *t);
    struct keeper *k = &t->keeper;
    t->w = w;
    t->cb = *cb;
    t->fetches_end = &t->fetches;
    k->vfs = w->vfs;
    k->dir = w->dir;
    k->segment_bytes = w->segment_bytes;
    k->reply = &t->box;
    if (krd_mailbox_init(&t->box) != KRD_OK || krd_mailbox_init(&k->box) != KRD_OK)
        krd_fatal("cannot make an eventfd for the log writer: %s. Raise the limit on open files",
                  strerror(errno));
    publish(t);
    start_thread(&k->thread, keeper_main, k, "wal-keeper");
    start_thread(&t->thread, writer_main, t, "wal-writer");
    return t;
}

void wal_writer_stop(struct wal_writer *t)
{
    post(&t->box, letter_create(STOP, 0));
    pthread_join(t->thread, NULL);
    atomic_store(&t->keeper.stopping, true);
    post(&t->keeper.box, letter_create(STOP, 0));
    pthread_join(t->keeper.thread, NULL);
    take_mail(t); /* a spare that was finished too late; wal_close removes it */
    KRD_ASSERT(t->n_appends == 0 && t->fetches == NULL); /* nobody may write any more */
    krd_mailbox_deinit(&t->keeper.box);
    krd_mailbox_deinit(&t->box);
    wal_close(t->w);
    krd_free(t->appends);
    krd_free(t->group);
    krd_free(t);
}

void wal_writer_append(struct wal_writer *t, const struct raft_write *write)
{
    struct letter *l = letter_create(APPEND, write->n_entries);
    l->write = *write;
    l->write.entries = l->entries;
    for (size_t i = 0; i < write->n_entries; i++)
        l->entries[i] = raft_entry_ref(&write->entries[i]);
    post(&t->box, l);
}

void wal_writer_fetch(struct wal_writer *t, const struct raft_fetch *fetch)
{
    struct letter *l = letter_create(FETCH, 0);
    l->fetch = *fetch;
    post(&t->box, l);
}

void wal_writer_checkpoint(struct wal_writer *t, raft_index index)
{
    struct letter *l = letter_create(CHECKPOINT, 0);
    l->index = index;
    post(&t->box, l);
}

void wal_writer_cut(struct wal_writer *t, raft_index index)
{
    struct letter *l = letter_create(CUT, 0);
    l->index = index;
    post(&t->box, l);
}

raft_index wal_writer_first_index(const struct wal_writer *t)
{
    return atomic_load_explicit(&t->first_index, memory_order_relaxed);
}

uint64_t wal_writer_bytes(const struct wal_writer *t)
{
    return atomic_load_explicit(&t->bytes, memory_order_relaxed);
}

bool wal_writer_starved(const struct wal_writer *t)
{
    return atomic_load(&t->keeper.starved);
}
