/* frame_check.h - what must hold of the peer protocol's reader for any bytes whatever, cut into
 * pieces in any way. Shared by the fuzzer (fuzz_frame.c) and the unit test, which runs it over the
 * corpus and over every split. */
#ifndef KRD_TESTS_FRAME_CHECK_H
#define KRD_TESTS_FRAME_CHECK_H

#include "base/buf.h"
#include "base/limits.h"
#include "raft/message.h"
#include "raft/peer_frame.h"

/* How a stream is cut: the next piece's length, at least 1. */
typedef size_t frame_cut_fn(void *arg);

struct frame_outcome {
    size_t frames;        /* that came out */
    size_t messages;      /* of these, what raft_message_decode took */
    struct krd_buf again; /* the frames, encoded once more: a prefix of the stream */
    bool corrupt;         /* the stream ended in an error */
};

/* Whatever a message decodes to is released again; its bytes must not upset anybody. */
static inline bool frame_is_message(const struct peer_frame *f)
{
    struct raft_message m;
    if (f->kind != PEER_FRAME_RAFT || raft_message_decode(f->blob, f->body, &m) != KRD_OK)
        return false;
    raft_message_deinit(&m);
    return true;
}

static inline void frame_reencode(const struct peer_frame *f, struct krd_buf *out)
{
    uint8_t header[PEER_FRAME_HEADER_BYTES];
    static const uint8_t zeros[8];
    peer_frame_header(f->kind, slice_of(f->body.ptr, f->head_len), f->body.len - f->head_len,
                      header);
    krd_buf_put(out, header, sizeof header);
    krd_buf_put_slice(out, f->body);
    krd_buf_put(out, zeros, peer_frame_bytes(f->body.len, 0) - sizeof header - f->body.len);
}

/* Runs a stream through a reader, in pieces, and checks what it must keep to meanwhile. */
static inline struct frame_outcome frame_run(struct slice stream, size_t buffer_bytes,
                                             frame_cut_fn *cut, void *arg)
{
    struct frame_outcome o = {.again = KRD_BUF_INIT};
    struct peer_reader r;
    size_t at = 0, piece = cut(arg);
    peer_reader_init(&r, buffer_bytes);
    for (;;) {
        struct peer_frame f;
        enum krd_status st = peer_reader_next(&r, &f);
        if (st == KRD_OK) {
            KRD_ASSERT(((uintptr_t)f.body.ptr & 7) == 0);
            KRD_ASSERT(f.body.ptr >= f.blob->data);
            KRD_ASSERT(f.body.ptr + f.body.len <= f.blob->data + f.blob->len);
            o.frames++;
            o.messages += frame_is_message(&f);
            frame_reencode(&f, &o.again);
            continue;
        }
        o.corrupt = st == KRD_CORRUPT;
        if (o.corrupt || at == stream.len)
            break;
        uint8_t *ptr;
        size_t room;
        peer_reader_room(&r, &ptr, &room);
        KRD_ASSERT(r.blob->len <= buffer_bytes + KRD_FRAME_BYTES_MAX + PEER_FRAME_HEADER_BYTES);
        size_t n = krd_min_size(krd_min_size(piece, room), stream.len - at);
        memcpy(ptr, stream.ptr + at, n);
        peer_reader_filled(&r, n);
        at += n;
        piece -= n;
        if (piece == 0)
            piece = cut(arg);
    }
    KRD_ASSERT(o.again.len <= stream.len);
    KRD_ASSERT(o.again.len == 0 || memcmp(o.again.ptr, stream.ptr, o.again.len) == 0);
    peer_reader_deinit(&r);
    return o;
}

static inline bool frame_outcome_eq(const struct frame_outcome *a, const struct frame_outcome *b)
{
    return a->frames == b->frames && a->messages == b->messages && a->corrupt == b->corrupt &&
           slice_eq(krd_buf_slice(&a->again), krd_buf_slice(&b->again));
}

static inline size_t frame_cut_none(void *arg)
{
    (void)arg;
    return SIZE_MAX;
}
static inline size_t frame_cut_bytes(void *arg)
{
    (void)arg;
    return 1;
}

#endif
