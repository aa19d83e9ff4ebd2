#include "base/loop.h"

#include <errno.h>
#include <unistd.h>

enum krd_status krd_loop_init(struct krd_loop *l)
{
    l->n_ready = 0;
    l->epfd = epoll_create1(EPOLL_CLOEXEC);
    return l->epfd >= 0 ? KRD_OK : KRD_IO;
}

void krd_loop_deinit(struct krd_loop *l)
{
    close(l->epfd);
    l->epfd = -1;
}

enum krd_status krd_loop_add(struct krd_loop *l, struct krd_io *io)
{
    struct epoll_event ev = {.events = io->events, .data.ptr = io};
    return epoll_ctl(l->epfd, EPOLL_CTL_ADD, io->fd, &ev) == 0 ? KRD_OK : KRD_IO;
}

void krd_loop_mod(struct krd_loop *l, struct krd_io *io, uint32_t events)
{
    if (io->events == events)
        return;
    io->events = events;
    struct epoll_event ev = {.events = events, .data.ptr = io};
    int rv = epoll_ctl(l->epfd, EPOLL_CTL_MOD, io->fd, &ev);
    KRD_ASSERT(rv == 0);
}

void krd_loop_del(struct krd_loop *l, struct krd_io *io)
{
    int rv = epoll_ctl(l->epfd, EPOLL_CTL_DEL, io->fd, NULL);
    KRD_ASSERT(rv == 0);
    for (int i = 0; i < l->n_ready; i++)
        if (l->ready[i] == io)
            l->ready[i] = NULL;
}

int krd_loop_wait(struct krd_loop *l, int timeout_ms)
{
    struct epoll_event events[KRD_ARRAY_LEN(l->ready)];
    KRD_ASSERT(l->n_ready == 0);
    int n = epoll_wait(l->epfd, events, KRD_ARRAY_LEN(events), timeout_ms);
    if (n < 0) {
        KRD_ASSERT(errno == EINTR);
        return 0;
    }
    for (int i = 0; i < n; i++) {
        l->ready[i] = events[i].data.ptr;
        l->ready_events[i] = events[i].events;
    }
    l->n_ready = n;
    return n;
}

void krd_loop_dispatch(struct krd_loop *l)
{
    for (int i = 0; i < l->n_ready; i++)
        if (l->ready[i] != NULL)
            l->ready[i]->fn(l->ready[i], l->ready_events[i]);
    l->n_ready = 0;
}

int krd_loop_run(struct krd_loop *l, int timeout_ms)
{
    int n = krd_loop_wait(l, timeout_ms);
    krd_loop_dispatch(l);
    return n;
}
