/* fake_node.h - node.h over a map in memory: what the front's tests talk to. One thread answers
 * proposals and barriers, in order; it can be told to hold its answers or to refuse. */
#ifndef KRD_TESTS_FAKE_NODE_H
#define KRD_TESTS_FAKE_NODE_H

#include "server/node.h"

struct node *fake_node_create(size_t max_request_bytes);
void fake_node_destroy(struct node *n); /* answers what is held with KRD_STOPPING first */
void fake_node_hold(struct node *n, bool hold);
size_t fake_node_waiting(struct node *n);                      /* jobs not answered yet */
void fake_node_refuse(struct node *n, enum krd_status status); /* KRD_OK: answer properly */
void fake_node_set_staleness(struct node *n, uint64_t ms);
size_t fake_node_barriers(struct node *n); /* how many there have been */
size_t fake_node_watches(struct node *n);  /* open ones */
size_t fake_node_cursors(struct node *n);  /* open ones */

#endif
