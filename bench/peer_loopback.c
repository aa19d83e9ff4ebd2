/* peer_loopback.c - how many frames a second the peer transport carries between two processes.
 *
 *   make bench-peer && build/release/bench/peer_loopback [payload bytes] [frames] [frames a turn]
 *
 * The parent sends frames of one entry each, so many a turn of its loop, as a leader would; the
 * child decodes each as an append (which verifies the entry's checksums), counts, and answers the
 * count once a turn on the control channel. Also measured: a ping-pong of one frame at a time. */
#include "base/clock.h"
#include "raft/message.h"
#include "raft/peer.h"

#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

struct side {
    struct krd_loop loop;
    struct peer_transport *t;
    bool up, ping;
    uint64_t frames, bytes; /* child: received; parent: as the child says */
};

static void on_child_frame(void *arg, raft_id from, enum peer_frame_kind kind,
                           struct krd_blob *blob, struct slice body)
{
    struct side *s = arg;
    struct raft_message m;
    (void)from;
    if (kind == PEER_FRAME_FORWARD) {
        s->ping = true;
        return;
    }
    if (raft_message_decode(blob, body, &m) != KRD_OK)
        abort();
    raft_message_deinit(&m);
    s->frames++;
}
static void on_parent_frame(void *arg, raft_id from, enum peer_frame_kind kind,
                            struct krd_blob *blob, struct slice body)
{
    struct side *s = arg;
    (void)from, (void)kind, (void)blob;
    s->frames = krd_get_le64(body.ptr);
    s->ping = true;
}
static void on_up(void *arg, raft_id peer)
{
    (void)peer;
    ((struct side *)arg)->up = true;
}
static void on_other(void *arg, raft_id peer)
{
    (void)arg, (void)peer;
}
static void on_refused(void *arg, const char *address, const char *reason)
{
    (void)arg;
    fprintf(stderr, "%s: %s\n", address, reason);
}

static void start(struct side *s, raft_id id, const char *listen_on)
{
    struct peer_tcp_options o;
    char *err;
    peer_tcp_options_default(&o);
    o.loop = &s->loop;
    o.listen = listen_on;
    o.id = id;
    o.boot = o.cluster_id = 1;
    struct peer_callbacks cb = {
        s, id == 1 ? on_parent_frame : on_child_frame, on_up, on_other, on_other, on_refused};
    if (krd_loop_init(&s->loop) != KRD_OK || peer_tcp_create(&o, &cb, &s->t, &err) != KRD_OK) {
        fprintf(stderr, "cannot start\n");
        exit(1);
    }
}

static void turn(struct side *s, int timeout_ms)
{
    s->t->ops->flush(s->t);
    krd_loop_run(&s->loop, timeout_ms);
    s->t->ops->tick(s->t, krd_mono_ms());
}

static void child(const char *listen_on, const char *parent)
{
    struct side s = {0};
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    start(&s, 2, listen_on);
    s.t->ops->set_peer(s.t, 1, parent);
    for (uint64_t told = 0;;) {
        turn(&s, 10);
        if (s.frames == told && !s.ping)
            continue;
        uint64_t now = s.frames;
        if (!s.t->ops->send(s.t, 1, PEER_CONTROL, PEER_FRAME_FORWARD, slice_of(&now, 8), NULL, 0))
            continue; /* our own connections are not up yet */
        told = now;
        s.ping = false;
    }
}

static uint64_t cpu_us(void)
{
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (uint64_t)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) * 1000000 +
           (uint64_t)(u.ru_utime.tv_usec + u.ru_stime.tv_usec);
}

static void stream(struct side *s, size_t payload, uint64_t frames, int a_turn)
{
    uint8_t *bytes = krd_zalloc(payload + 1);
    uint64_t base = s->frames, from = krd_mono_us(), cpu = cpu_us(), sent = 0;
    size_t frame_bytes = 0;
    struct krd_buf head = KRD_BUF_INIT;
    while (s->frames - base < frames) {
        for (int i = 0; i < a_turn && sent < frames; i++) {
            struct raft_entry e = raft_entry_make(RAFT_ENTRY_COMMAND, slice_of(bytes, payload));
            raft_entry_seal(&e, sent + 1, 1, 1);
            struct raft_message m = {.type = RAFT_MSG_APPEND, .term = 1, .from = 1, .to = 2};
            m.u.append.prev_index = sent;
            m.u.append.prev_term = sent > 0;
            m.u.append.n_entries = 1;
            m.u.append.entries = &e;
            size_t records;
            head.len = 0;
            raft_message_encode(&m, &head, &records);
            bool ok =
                s->t->ops->send(s->t, 2, PEER_BULK, PEER_FRAME_RAFT, krd_buf_slice(&head), &e, 1);
            frame_bytes = 16 + head.len + records;
            raft_entry_unref(&e);
            if (!ok)
                break;
            sent++;
        }
        struct peer_status st;
        s->t->ops->status(s->t, 2, &st);
        turn(s, sent == frames || st.queued_bytes > 16u << 20 ? 1 : 0);
    }
    double us = (double)(krd_mono_us() - from);
    printf("%zu-byte payloads, %zu bytes a frame, %d a turn: %.0f frames/s, %.0f MB/s, sender's "
           "cpu %.2f us a frame\n",
           payload, frame_bytes, a_turn, (double)frames / us * 1e6,
           (double)frames * (double)frame_bytes / us, (double)(cpu_us() - cpu) / (double)frames);
    krd_buf_deinit(&head);
    krd_free(bytes);
}

static void ping_pong(struct side *s, int rounds)
{
    uint64_t from = krd_mono_us();
    for (int i = 0; i < rounds; i++) {
        s->ping = false;
        s->t->ops->send(s->t, 2, PEER_CONTROL, PEER_FRAME_FORWARD, slice_str("ping"), NULL, 0);
        while (!s->ping)
            turn(s, 10);
    }
    printf("ping-pong: %.1f us a round\n", (double)(krd_mono_us() - from) / rounds);
}

int main(int argc, char **argv)
{
    size_t payload = argc > 1 ? (size_t)atol(argv[1]) : 300;
    uint64_t frames = argc > 2 ? (uint64_t)atol(argv[2]) : 2000000;
    int a_turn = argc > 3 ? atoi(argv[3]) : 256;
    const char *a = "127.0.0.1:12790", *b = "127.0.0.1:12791";
    if (fork() == 0)
        child(b, a);
    struct side s = {0};
    start(&s, 1, a);
    s.t->ops->set_peer(s.t, 2, b);
    while (!s.up)
        turn(&s, 10);
    ping_pong(&s, 20000);
    stream(&s, payload, frames, a_turn);
    s.t->ops->destroy(s.t);
    return 0;
}
