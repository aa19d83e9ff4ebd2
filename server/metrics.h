/* metrics.h - numbers that the node's threads count and Prometheus reads. Each counter is written
 * with relaxed atomics by any thread; rendering reads them without stopping anybody. */
#ifndef KRD_SERVER_METRICS_H
#define KRD_SERVER_METRICS_H

#include "base/buf.h"
#include <stdatomic.h>

#define HISTOGRAM_BUCKETS 15

/* Buckets double from 100 us to 1.6 s, as upper bounds in microseconds; one more for the rest. */
struct histogram {
    _Atomic uint64_t bucket[HISTOGRAM_BUCKETS + 1];
    _Atomic uint64_t sum_us, count;
};
void histogram_add(struct histogram *h, uint64_t us);

struct node_metrics {
    _Atomic uint64_t proposals, proposals_failed, proposals_unknown;
    _Atomic uint64_t applied_entries, apply_batches;
    _Atomic uint64_t read_barriers, read_barriers_failed;
    _Atomic uint64_t leader_changes;
    _Atomic uint64_t log_batches, log_bytes;
    _Atomic uint64_t checkpoints;
    _Atomic uint64_t peers_refused;
    _Atomic uint64_t heartbeats_late; /* turns that came more than two ticks late */
    struct histogram fsync, apply, write, barrier, checkpoint;
};

void metrics_counter(struct krd_buf *out, const char *name, const char *help, uint64_t value);
void metrics_gauge(struct krd_buf *out, const char *name, const char *help, double value);
void metrics_histogram(struct krd_buf *out, const char *name, const char *help,
                       const struct histogram *h);

#endif
