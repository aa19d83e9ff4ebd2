/* mailbox.h - many producers, one consumer, first in first out, one wake-up for a burst.
 *
 * put: any thread; wait-free but for one compare-and-swap loop. The mailbox owns m from then on.
 * take: the owner only; detaches everything queued, oldest first, linked by next; never blocks.
 * The eventfd becomes readable when the mailbox turns from empty to non-empty; the owner waits for
 * it (poll, epoll) and then calls take, which resets it. Bounds are kept where work is admitted
 * (a completion may never be refused), so the mailbox itself has none. */
#ifndef KRD_MAILBOX_H
#define KRD_MAILBOX_H

#include "base/base.h"
#include <stdatomic.h>

struct krd_mail {
    struct krd_mail *next; /* the mailbox's while queued, the taker's afterwards */
};

struct krd_mailbox {
    _Atomic(struct krd_mail *) head;
    int fd; /* eventfd, non-blocking */
};

/* KRD_IO when no eventfd can be had. */
KRD_MUST_CHECK enum krd_status krd_mailbox_init(struct krd_mailbox *b);
/* Asserts that nothing is queued. The producers must have ended: a put whose mail was taken may
 * still be about to write to the eventfd. */
void krd_mailbox_deinit(struct krd_mailbox *b);
void krd_mailbox_put(struct krd_mailbox *b, struct krd_mail *m);
/* NULL when empty. */
struct krd_mail *krd_mailbox_take(struct krd_mailbox *b);
/* Owner only: blocks until something is queued or timeout_ms passes (-1: for ever). Now and then
 * returns early: a signal, or the late wake-up of a mail that was taken already. */
void krd_mailbox_wait(struct krd_mailbox *b, int timeout_ms);

#endif
