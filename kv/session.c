/* session.c - see session.h. A command's way: its origin's session is found (or begun, or begun
 * anew by a later boot), settled is raised, the sequence's bit is looked at and set. The record is
 * written once a batch, whatever number of commands touched it. */
#include "kv/session.h"
#include "kv/record.h"

void kv_sessions_init(struct kv_sessions *t)
{
    *t = (struct kv_sessions){NULL, 0, 0};
}

void kv_sessions_deinit(struct kv_sessions *t)
{
    for (size_t i = 0; i < t->n; i++) {
        krd_free(t->list[i]->words);
        krd_free(t->list[i]);
    }
    krd_free(t->list);
    kv_sessions_init(t);
}

static struct kv_session *find_or_add(struct kv_sessions *t, uint64_t origin)
{
    for (size_t i = 0; i < t->n; i++) {
        if (t->list[i]->origin == origin)
            return t->list[i];
    }
    struct kv_session *s = krd_zalloc(sizeof *s);
    s->origin = origin;
    krd_grow(&t->list, &t->cap, t->n + 1, sizeof(struct kv_session *));
    t->list[t->n++] = s;
    return s;
}

/* --- The window ------------------------------------------------------------------------------- */

static void trim(struct kv_session *s)
{
    while (s->n_words > 0 && s->words[s->n_words - 1] == 0)
        s->n_words--;
}

static void raise_settled(struct kv_session *s, uint64_t settled)
{
    if (settled <= s->settled)
        return;
    uint64_t gone = settled / 64 - s->settled / 64; /* whole words */
    if (gone >= s->n_words) {
        s->n_words = 0;
    } else if (gone > 0) {
        s->n_words -= gone;
        memmove(s->words, s->words + gone, s->n_words * sizeof s->words[0]);
    }
    s->settled = settled;
    if (s->n_words > 0)
        s->words[0] &= ~0ull << (settled % 64);
    trim(s);
    s->dirty = true;
}

/* Sets the bit of a sequence at or above settled; false when it was set. */
static bool mark(struct kv_session *s, uint64_t sequence)
{
    uint64_t word = sequence / 64 - s->settled / 64;
    KRD_ASSERT(word <= KV_SESSION_WINDOW / 64);
    if (word >= s->n_words) {
        krd_grow(&s->words, &s->cap, word + 1, sizeof s->words[0]);
        memset(s->words + s->n_words, 0, (word + 1 - s->n_words) * sizeof s->words[0]);
        s->n_words = word + 1;
    }
    uint64_t bit = 1ull << (sequence % 64);
    if (s->words[word] & bit)
        return false;
    s->words[word] |= bit;
    s->dirty = true;
    return true;
}

enum kv_session_verdict kv_sessions_take(struct kv_sessions *t, uint64_t origin, uint64_t boot,
                                         uint64_t sequence, uint64_t settled)
{
    KRD_ASSERT(origin != 0 && sequence != 0);
    struct kv_session *s = find_or_add(t, origin);
    if (boot < s->boot)
        return KV_SESSION_DONE;
    if (boot > s->boot) {
        s->boot = boot;
        s->settled = 0;
        s->n_words = 0;
        s->dirty = true;
    }
    raise_settled(s, settled);
    if (sequence < s->settled)
        return KV_SESSION_DONE;
    if (sequence - s->settled >= KV_SESSION_WINDOW)
        raise_settled(s, sequence - KV_SESSION_WINDOW + 1);
    return mark(s, sequence) ? KV_SESSION_NEW : KV_SESSION_DONE;
}

/* --- The record ------------------------------------------------------------------------------- */

bool kv_sessions_load(struct kv_sessions *t, struct kv_engine *engine)
{
    bool good = true;
    struct kv_engine_iter *it = kv_engine_iter_create(engine, NULL, false);
    kv_engine_iter_seek(it, slice_str("o"));
    for (; good && kv_engine_iter_valid(it); kv_engine_iter_next(it)) {
        struct slice key = kv_engine_iter_key(it), record = kv_engine_iter_value(it);
        if (key.ptr[0] != 'o')
            break;
        good = key.len == KV_ID_KEY_BYTES && record.len >= 16 && record.len % 8 == 0 &&
               record.len / 8 - 2 <= KV_SESSION_WINDOW / 64 + 1;
        if (!good)
            break;
        struct kv_session *s = find_or_add(t, krd_get_be64(key.ptr + 1));
        s->boot = krd_get_le64(record.ptr);
        s->settled = krd_get_le64(record.ptr + 8);
        s->n_words = record.len / 8 - 2;
        krd_grow(&s->words, &s->cap, s->n_words, sizeof s->words[0]);
        if (s->n_words > 0)
            memcpy(s->words, record.ptr + 16, s->n_words * sizeof s->words[0]);
        s->sum = kv_hash_item(kv_hash_key(key), record);
    }
    kv_engine_iter_destroy(it);
    return good;
}

void kv_sessions_flush(struct kv_sessions *t, struct kv_engine_batch *batch, struct kv_sum *sum)
{
    struct krd_buf record = KRD_BUF_INIT;
    for (size_t i = 0; i < t->n; i++) {
        struct kv_session *s = t->list[i];
        if (!s->dirty)
            continue;
        uint8_t buf[KV_ID_KEY_BYTES];
        struct slice key = kv_raw_id(buf, 'o', s->origin);
        record.len = 0;
        krd_buf_put_le64(&record, s->boot);
        krd_buf_put_le64(&record, s->settled);
        for (size_t w = 0; w < s->n_words; w++)
            krd_buf_put_le64(&record, s->words[w]);
        kv_engine_batch_put(batch, key, krd_buf_slice(&record));

        struct kv_sum now = kv_hash_item(kv_hash_key(key), krd_buf_slice(&record));
        *sum = kv_sum_add(kv_sum_subtract(*sum, s->sum), now);
        s->sum = now;
        s->dirty = false;
    }
    krd_buf_deinit(&record);
}
