/* peer_sendq.c - frames that wait for a socket.
 *
 * put copies header and head into the current chunk and adds a piece; if the piece before it lies
 * there as well, that one grows instead, so that a burst of heartbeats and replies is one piece.
 * Every record adds a piece of its own. iov shows the front of the queue to writev, sent takes off
 * what the kernel has accepted, which may end within a piece.
 *
 * A chunk lives as long as pieces lie in it. When the queue has run empty, the chunk is used again
 * from its start: in the steady state nothing is allocated. */
#include "raft/peer_sendq.h"

#define CHUNK_BYTES 16384
/* What an empty queue may keep; a burst's array of pieces is given back. */
#define KEEP_PIECES_MAX 4096

static void give_back(struct peer_sendq *q)
{
    KRD_ASSERT(q->bytes == 0 && q->first == q->n);
    q->first = q->n = 0;
    q->chunk_used = 0; /* all pieces in it are gone */
    if (q->cap > KEEP_PIECES_MAX) {
        krd_free(q->pieces);
        q->pieces = NULL;
        q->cap = 0;
    }
}

void peer_sendq_clear(struct peer_sendq *q)
{
    for (size_t i = q->first; i < q->n; i++)
        krd_blob_unref(q->pieces[i].blob);
    q->first = q->n;
    q->bytes = 0;
    give_back(q);
}

void peer_sendq_deinit(struct peer_sendq *q)
{
    peer_sendq_clear(q);
    krd_blob_unref(q->chunk);
    krd_free(q->pieces);
    *q = (struct peer_sendq){0};
}

/* Takes over the reference of blob. */
static void add_piece(struct peer_sendq *q, const uint8_t *ptr, size_t len, struct krd_blob *blob)
{
    if (q->first > q->n / 2) { /* moves each piece once for every time that it is sent past */
        q->n -= q->first;
        memmove(q->pieces, q->pieces + q->first, q->n * sizeof *q->pieces);
        q->first = 0;
    }
    krd_grow(&q->pieces, &q->cap, q->n + 1, sizeof *q->pieces);
    q->pieces[q->n++] = (struct peer_piece){.ptr = ptr, .len = len, .blob = blob};
}

/* A piece of len bytes for the caller to fill. */
static uint8_t *add_copied(struct peer_sendq *q, size_t len)
{
    if (len > CHUNK_BYTES / 4) { /* would leave much of a chunk unused */
        struct krd_blob *own = krd_blob_create(len);
        add_piece(q, own->data, len, own);
        return own->data;
    }
    if (q->chunk == NULL || len > CHUNK_BYTES - q->chunk_used) {
        krd_blob_unref(q->chunk);
        q->chunk = krd_blob_create(CHUNK_BYTES);
        q->chunk_used = 0;
    }
    uint8_t *at = q->chunk->data + q->chunk_used;
    q->chunk_used += len;

    struct peer_piece *last = q->n > q->first ? &q->pieces[q->n - 1] : NULL;
    if (last != NULL && last->blob == q->chunk) {
        KRD_ASSERT(last->ptr + last->len == at); /* what lies between would be a later piece */
        last->len += len;
    } else {
        add_piece(q, at, len, krd_blob_ref(q->chunk));
    }
    return at;
}

void peer_sendq_put(struct peer_sendq *q, enum peer_frame_kind kind, struct slice head,
                    const struct raft_entry *entries, size_t n, size_t records_len)
{
    size_t total = peer_frame_bytes(head.len, records_len);
    size_t copied = total - records_len; /* header, head and, without records, the padding */
    uint8_t *p = add_copied(q, copied);
    size_t used = PEER_FRAME_HEADER_BYTES + head.len;
    peer_frame_header(kind, head, records_len, p);
    if (head.len > 0)
        memcpy(p + PEER_FRAME_HEADER_BYTES, head.ptr, head.len);
    memset(p + used, 0, copied - used);

    size_t added = 0;
    for (size_t i = 0; i < n; i++) {
        size_t len = raft_record_bytes(&entries[i]);
        add_piece(q, entries[i].record, len, krd_blob_ref(entries[i].blob));
        added += len;
    }
    KRD_ASSERT(added == records_len);
    q->bytes += total;
}

int peer_sendq_iov(const struct peer_sendq *q, struct iovec *iov, int max)
{
    int n = 0;
    for (size_t i = q->first; i < q->n && n < max; i++, n++)
        iov[n] = (struct iovec){.iov_base = (void *)q->pieces[i].ptr, .iov_len = q->pieces[i].len};
    return n;
}

void peer_sendq_sent(struct peer_sendq *q, size_t n)
{
    KRD_ASSERT(n <= q->bytes);
    q->bytes -= n;
    while (n > 0) {
        struct peer_piece *p = &q->pieces[q->first];
        size_t step = krd_min_size(n, p->len);
        p->ptr += step;
        p->len -= step;
        n -= step;
        if (p->len > 0)
            break;
        krd_blob_unref(p->blob);
        q->first++;
    }
    if (q->bytes == 0)
        give_back(q);
}
