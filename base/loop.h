/* loop.h - the few lines around epoll that the raft loop needs: handlers for file descriptors.
 * One loop belongs to one thread. */
#ifndef KRD_LOOP_H
#define KRD_LOOP_H
#include "base/base.h"
#include <sys/epoll.h>

struct krd_io;
/* events: EPOLLIN, EPOLLOUT, EPOLLERR, EPOLLHUP as epoll reports them. */
typedef void krd_io_fn(struct krd_io *io, uint32_t events);

struct krd_io {
    int fd;          /* -1: not in a loop */
    uint32_t events; /* what is asked for */
    krd_io_fn *fn;
};

struct krd_loop {
    int epfd;
    struct krd_io *ready[64]; /* the batch being dispatched; removed handlers become NULL */
    uint32_t ready_events[64];
    int n_ready;
};

KRD_MUST_CHECK enum krd_status krd_loop_init(struct krd_loop *l);
void krd_loop_deinit(struct krd_loop *l);
/* io->fd, io->events and io->fn are set by the caller; io stays the caller's and must live until
 * krd_loop_del. */
KRD_MUST_CHECK enum krd_status krd_loop_add(struct krd_loop *l, struct krd_io *io);
void krd_loop_mod(struct krd_loop *l, struct krd_io *io, uint32_t events);
/* Removes it, also from the batch under way: fn is not called any more. Does not close the fd. */
void krd_loop_del(struct krd_loop *l, struct krd_io *io);
/* Waits up to timeout_ms (-1: for ever, 0: not at all); returns how many are ready. */
int krd_loop_wait(struct krd_loop *l, int timeout_ms);
/* Calls the handlers of what krd_loop_wait found. */
void krd_loop_dispatch(struct krd_loop *l);
/* Both. Returns how many were ready. */
int krd_loop_run(struct krd_loop *l, int timeout_ms);

#endif
