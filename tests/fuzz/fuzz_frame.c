/* fuzz_frame.c - libFuzzer on the peer protocol: any bytes, in any pieces, give the same frames;
 * accepted frames encode to the bytes that they came from; no message upsets the decoder; memory
 * stays bounded. `make fuzz-frame`, then build/fuzz/fuzz_frame tests/fuzz/corpus_frame.
 *
 * The first byte of an input says how the rest is cut; an odd one takes the stream as it is, an
 * even one mends the checksums of its frames first, which would otherwise keep the fuzzer out. */
#include "base/crc32c.h"
#include "tests/fuzz/frame_check.h"

#include <stdlib.h>

/* Pieces of pseudo-random lengths, from one byte to a few hundred. */
static size_t cut_random(void *arg)
{
    uint32_t *state = arg;
    *state = *state * 1664525u + 1013904223u;
    return 1 + (*state >> 24);
}

/* Walks the frames by their own lengths and puts right what is between it and the parser. */
static void mend(uint8_t *p, size_t len)
{
    while (len >= PEER_FRAME_HEADER_BYTES) {
        size_t length = krd_get_le32(p + 4), head = krd_get_le32(p + 12);
        if (head > length || length > len - PEER_FRAME_HEADER_BYTES)
            return;
        krd_put_le32(p, krd_crc32c(0, p + 4, PEER_FRAME_HEADER_BYTES - 4 + head));
        size_t total = peer_frame_bytes(length, 0);
        if (total > len)
            return;
        p += total;
        len -= total;
    }
}

static void check_hello(struct slice s)
{
    struct peer_hello h;
    enum krd_status st = peer_hello_decode(s, &h);
    if (st != KRD_OK)
        return;
    uint8_t again[PEER_HELLO_BYTES];
    peer_hello_encode(&h, again);
    KRD_ASSERT(memcmp(again, s.ptr, sizeof again) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size); /* libFuzzer calls it */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 1)
        return 0;
    uint8_t how = data[0];
    size_t len = size - 1;
    uint8_t *stream = malloc(len + 1); /* one more: never a NULL for an empty stream */
    memcpy(stream, data + 1, len);
    check_hello(slice_of(stream, len));
    if (how % 2 == 0)
        mend(stream, len);

    uint32_t state = how;
    struct slice s = slice_of(stream, len);
    struct frame_outcome whole = frame_run(s, 16384, frame_cut_none, NULL);
    struct frame_outcome random = frame_run(s, 16384, cut_random, &state);
    struct frame_outcome bytes = frame_run(s, 65536, frame_cut_bytes, NULL);
    KRD_ASSERT(frame_outcome_eq(&whole, &random));
    KRD_ASSERT(frame_outcome_eq(&whole, &bytes));
    krd_buf_deinit(&whole.again);
    krd_buf_deinit(&random.again);
    krd_buf_deinit(&bytes.again);
    free(stream);
    return 0;
}
