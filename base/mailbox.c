/* A stack that many push onto and one detaches as a whole and turns round: first in, first out
 * within what was detached, and whatever was detached earlier was put earlier.
 *
 * Only the push that finds the stack empty writes to the eventfd: a burst wakes the owner once. */
#include "base/mailbox.h"

#include <errno.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

enum krd_status krd_mailbox_init(struct krd_mailbox *b)
{
    atomic_init(&b->head, NULL);
    b->fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    return b->fd >= 0 ? KRD_OK : KRD_IO;
}

void krd_mailbox_deinit(struct krd_mailbox *b)
{
    KRD_ASSERT(atomic_load(&b->head) == NULL);
    close(b->fd);
    b->fd = -1;
}

void krd_mailbox_put(struct krd_mailbox *b, struct krd_mail *m)
{
    struct krd_mail *head = atomic_load_explicit(&b->head, memory_order_relaxed);
    do
        m->next = head;
    while (!atomic_compare_exchange_weak_explicit(&b->head, &head, m, memory_order_acq_rel,
                                                  memory_order_relaxed));
    if (head == NULL) {
        uint64_t one = 1;
        ssize_t n;
        do
            n = write(b->fd, &one, sizeof one);
        while (n < 0 && errno == EINTR);
        /* EAGAIN would mean 2^64 - 1 unread wake-ups: it is readable then anyway. */
        KRD_ASSERT(n == sizeof one || errno == EAGAIN);
    }
}

struct krd_mail *krd_mailbox_take(struct krd_mailbox *b)
{
    /* The eventfd is reset before the stack is detached: a put in between finds the stack not
     * empty and is detached with it, or finds it empty and makes the eventfd readable again. It is
     * reset even when nothing is queued: a put whose mail was taken early writes it late. */
    uint64_t count;
    ssize_t ignored = read(b->fd, &count, sizeof count);
    (void)ignored;
    struct krd_mail *m = atomic_exchange_explicit(&b->head, NULL, memory_order_acq_rel);
    struct krd_mail *first = NULL;
    while (m != NULL) {
        struct krd_mail *next = m->next;
        m->next = first;
        first = m;
        m = next;
    }
    return first;
}

void krd_mailbox_wait(struct krd_mailbox *b, int timeout_ms)
{
    if (atomic_load_explicit(&b->head, memory_order_relaxed) != NULL)
        return;
    struct pollfd p = {.fd = b->fd, .events = POLLIN};
    poll(&p, 1, timeout_ms);
}
