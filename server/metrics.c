#include "server/metrics.h"

#include "base/clock.h"
#include "server/node_internal.h"

#include <stdio.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>
#include <dirent.h>

#define FIRST_BOUND_US 100u

void histogram_add(struct histogram *h, uint64_t us)
{
    int i = 0;
    while (i < HISTOGRAM_BUCKETS && us > ((uint64_t)FIRST_BOUND_US << i))
        i++;
    atomic_fetch_add_explicit(&h->bucket[i], 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&h->sum_us, us, memory_order_relaxed);
    atomic_fetch_add_explicit(&h->count, 1, memory_order_relaxed);
}

static void head(struct krd_buf *out, const char *name, const char *help, const char *type)
{
    krd_buf_printf(out, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

void metrics_counter(struct krd_buf *out, const char *name, const char *help, uint64_t value)
{
    head(out, name, help, "counter");
    krd_buf_printf(out, "%s %" PRIu64 "\n", name, value);
}

void metrics_gauge(struct krd_buf *out, const char *name, const char *help, double value)
{
    head(out, name, help, "gauge");
    krd_buf_printf(out, "%s %.17g\n", name, value);
}

void metrics_histogram(struct krd_buf *out, const char *name, const char *help,
                       const struct histogram *h)
{
    head(out, name, help, "histogram");
    uint64_t sum = 0;
    for (int i = 0; i < HISTOGRAM_BUCKETS; i++) {
        sum += atomic_load_explicit(&h->bucket[i], memory_order_relaxed);
        krd_buf_printf(out, "%s_bucket{le=\"%g\"} %" PRIu64 "\n", name,
                       (double)((uint64_t)FIRST_BOUND_US << i) / 1e6, sum);
    }
    sum += atomic_load_explicit(&h->bucket[HISTOGRAM_BUCKETS], memory_order_relaxed);
    krd_buf_printf(out, "%s_bucket{le=\"+Inf\"} %" PRIu64 "\n", name, sum);
    krd_buf_printf(out, "%s_sum %.9g\n%s_count %" PRIu64 "\n", name,
                   (double)atomic_load_explicit(&h->sum_us, memory_order_relaxed) / 1e6, name, sum);
}

static void process_metrics(struct krd_buf *out)
{
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    double cpu = (double)u.ru_utime.tv_sec + (double)u.ru_utime.tv_usec / 1e6 +
                 (double)u.ru_stime.tv_sec + (double)u.ru_stime.tv_usec / 1e6;
    head(out, "process_cpu_seconds_total", "User and system time spent.", "counter");
    krd_buf_printf(out, "process_cpu_seconds_total %.6f\n", cpu);

    long pages = 0, resident = 0;
    FILE *f = fopen("/proc/self/statm", "re");
    if (f != NULL) {
        if (fscanf(f, "%ld %ld", &pages, &resident) != 2)
            resident = 0;
        fclose(f);
    }
    long page = sysconf(_SC_PAGESIZE);
    metrics_gauge(out, "process_resident_memory_bytes", "Resident memory.",
                  (double)resident * (double)page);
    metrics_gauge(out, "process_virtual_memory_bytes", "Virtual memory.",
                  (double)pages * (double)page);
    int fds = 0;
    DIR *d = opendir("/proc/self/fd");
    if (d != NULL) {
        while (readdir(d) != NULL)
            fds++;
        closedir(d);
        fds -= 3; /* ".", ".." and the directory itself */
    }
    metrics_gauge(out, "process_open_fds", "Open file descriptors.", fds);
    struct rlimit l;
    if (getrlimit(RLIMIT_NOFILE, &l) == 0)
        metrics_gauge(out, "process_max_fds", "Limit of open file descriptors.",
                      (double)l.rlim_cur);
}

static void peer_metrics(struct node *n, struct krd_buf *out, const struct node_status *st)
{
    static const struct {
        const char *name, *help;
        size_t at;
    } rows[] = {
        {"etcd_network_peer_sent_bytes_total", "Bytes sent to peers.",
         offsetof(struct peer_status, sent_bytes)},
        {"etcd_network_peer_received_bytes_total", "Bytes received from peers.",
         offsetof(struct peer_status, received_bytes)},
        {"etcd_network_peer_sent_failures_total", "Frames to peers that were dropped.",
         offsetof(struct peer_status, send_failures)},
    };
    for (size_t r = 0; r < KRD_ARRAY_LEN(rows); r++) {
        head(out, rows[r].name, rows[r].help, "counter");
        for (uint32_t i = 0; i < st->n_members; i++) {
            struct peer_status p;
            if (st->members[i].is_self || !node_peer_status(n, st->members[i].id, &p))
                continue;
            uint64_t v;
            memcpy(&v, (const char *)&p + rows[r].at, sizeof v);
            krd_buf_printf(out, "%s{To=\"%016" PRIx64 "\"} %" PRIu64 "\n", rows[r].name,
                           st->members[i].id, v);
        }
    }
    head(out, "kvraftd_peer_round_trip_seconds", "Smoothed heartbeat round trip, leader only.",
         "gauge");
    for (uint32_t i = 0; i < st->n_members; i++)
        if (!st->members[i].is_self && st->members[i].rtt_us != 0)
            krd_buf_printf(out, "kvraftd_peer_round_trip_seconds{To=\"%016" PRIx64 "\"} %.6f\n",
                           st->members[i].id, (double)st->members[i].rtt_us / 1e6);
}

#define LOAD(x) atomic_load_explicit(&(x), memory_order_relaxed)

void node_metrics(struct node *n, struct krd_buf *out)
{
    struct node_metrics *m = &n->metrics;
    struct node_status st;
    node_get_status(n, &st);
    metrics_gauge(out, "etcd_server_has_leader", "Whether a leader is known: 1 or 0.",
                  st.leader_id != 0);
    metrics_gauge(out, "etcd_server_is_leader", "Whether this member leads: 1 or 0.",
                  st.role == NODE_LEADER);
    metrics_counter(out, "etcd_server_leader_changes_seen_total", "Leader changes seen.",
                    LOAD(m->leader_changes));
    metrics_gauge(out, "etcd_server_proposals_committed_total", "Highest committed index.",
                  (double)st.commit_index);
    metrics_gauge(out, "etcd_server_proposals_applied_total", "Highest applied index.",
                  (double)st.applied_index);
    metrics_gauge(out, "etcd_server_proposals_pending", "Proposals under way at this member.",
                  (double)proposals_pending(n->proposals));
    metrics_counter(out, "etcd_server_proposals_failed_total", "Proposals that failed.",
                    LOAD(m->proposals_failed));
    metrics_counter(out, "kvraftd_proposals_total", "Proposals taken.", LOAD(m->proposals));
    metrics_counter(out, "kvraftd_proposals_unknown_total",
                    "Proposals answered with an unknown outcome.", LOAD(m->proposals_unknown));
    metrics_counter(out, "kvraftd_read_barriers_total", "Read barriers asked for.",
                    LOAD(m->read_barriers));
    metrics_counter(out, "etcd_server_slow_read_indexes_total", "Read barriers that failed.",
                    LOAD(m->read_barriers_failed));
    metrics_histogram(out, "etcd_disk_wal_fsync_duration_seconds",
                      "Time of one fdatasync of the log.", &m->fsync);
    metrics_histogram(out, "etcd_disk_backend_commit_duration_seconds",
                      "Time to apply one batch of entries to the store.", &m->apply);
    metrics_histogram(out, "kvraftd_write_seconds", "Time of a write, from request to result.",
                      &m->write);
    metrics_histogram(out, "kvraftd_read_barrier_seconds", "Time of a read barrier.", &m->barrier);
    metrics_histogram(out, "kvraftd_checkpoint_seconds", "Time to make the store durable.",
                      &m->checkpoint);
    metrics_counter(out, "kvraftd_log_batches_total", "Batches written to the log.",
                    LOAD(m->log_batches));
    metrics_counter(out, "kvraftd_log_written_bytes_total", "Bytes written to the log.",
                    LOAD(m->log_bytes));
    metrics_counter(out, "kvraftd_apply_batches_total", "Batches applied.", LOAD(m->apply_batches));
    metrics_counter(out, "kvraftd_applied_entries_total", "Entries applied since the start.",
                    LOAD(m->applied_entries));
    metrics_counter(out, "kvraftd_loop_stalls_total",
                    "Turns of the raft loop that came more than two ticks late.",
                    LOAD(m->heartbeats_late));
    metrics_counter(out, "kvraftd_peer_connections_refused_total",
                    "Connections to the Raft port that were turned away.", LOAD(m->peers_refused));
    metrics_gauge(out, "etcd_mvcc_db_total_size_in_bytes", "Bytes of the store on disk.",
                  (double)st.store_bytes);
    metrics_gauge(out, "kvraftd_log_size_bytes", "Bytes of the log on disk.", (double)st.log_bytes);
    metrics_gauge(out, "etcd_debugging_mvcc_current_revision", "The store's revision.",
                  (double)st.revision);
    metrics_gauge(out, "etcd_debugging_mvcc_compact_revision", "History before it is gone.",
                  (double)st.compacted_revision);
    metrics_gauge(out, "kvraftd_raft_term", "Present term.", (double)st.term);
    peer_metrics(n, out, &st);
    process_metrics(out);
    node_status_deinit(&st);
}
