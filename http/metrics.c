/* The front's counters, summed over its loops, in Prometheus' text format. */
#include "http/front.h"

#include <inttypes.h>

static uint64_t sum(struct http_front *f, size_t offset)
{
    uint64_t v = 0;
    for (unsigned i = 0; i < http_loop_count(f); i++) {
        atomic_ullong *c = (void *)((char *)http_loop_counters(f, i) + offset);
        v += atomic_load_explicit(c, memory_order_relaxed);
    }
    return v;
}
#define SUM(f, member) sum(f, offsetof(struct http_counters, member))

static void head(struct krd_buf *out, const char *name, const char *type, const char *help)
{
    krd_buf_printf(out, "# HELP kvraftd_http_%s %s\n# TYPE kvraftd_http_%s %s\n", name, help, name,
                   type);
}

static void one(struct krd_buf *out, const char *name, const char *type, const char *help,
                uint64_t v)
{
    head(out, name, type, help);
    krd_buf_printf(out, "kvraftd_http_%s %" PRIu64 "\n", name, v);
}

static void put_requests(struct http_front *f, struct krd_buf *out)
{
    head(out, "requests_total", "counter", "Requests answered, by method and class of status.");
    for (int m = 0; m <= HTTP_OTHER; m++) {
        for (int class = 1; class <= 5; class ++) {
            uint64_t v = sum(f, offsetof(struct http_counters, requests) +
                                    ((size_t)m * 6 + (size_t) class) * sizeof(atomic_ullong));
            if (v != 0)
                krd_buf_printf(
                    out, "kvraftd_http_requests_total{method=\"%s\",code=\"%dxx\"} %" PRIu64 "\n",
                    http_method_name((enum http_method)m), class, v);
        }
    }
}

static void put_durations(struct http_front *f, struct krd_buf *out)
{
    uint64_t count = 0;
    head(out, "request_duration_seconds", "histogram",
         "From a whole request to its answer; watches left out.");
    for (int i = 0; i <= HTTP_BUCKETS; i++) {
        count +=
            sum(f, offsetof(struct http_counters, duration) + (size_t)i * sizeof(atomic_ullong));
        if (i < HTTP_BUCKETS)
            krd_buf_printf(out,
                           "kvraftd_http_request_duration_seconds_bucket{le=\"%g\"} %" PRIu64 "\n",
                           http_bucket_us[i] / 1e6, count);
    }
    krd_buf_printf(out,
                   "kvraftd_http_request_duration_seconds_bucket{le=\"+Inf\"} %" PRIu64 "\n"
                   "kvraftd_http_request_duration_seconds_sum %.6f\n"
                   "kvraftd_http_request_duration_seconds_count %" PRIu64 "\n",
                   count, (double)SUM(f, duration_us) / 1e6, count);
}

void http_metrics(struct http_front *f, struct krd_buf *out)
{
    put_requests(f, out);
    put_durations(f, out);
    one(out, "connections", "gauge", "Open client connections.", SUM(f, connections));
    one(out, "connections_accepted_total", "counter", "Client connections taken.",
        SUM(f, accepted));
    one(out, "watchers", "gauge", "Open watches.", SUM(f, watchers));
    one(out, "slow_requests_total", "counter", "Requests slower than --slow-request-ms.",
        SUM(f, slow));
    one(out, "stalled_clients_total", "counter",
        "Connections closed because the client took nothing of its answer.", SUM(f, stalled));
    one(out, "refused_bodies_total", "counter", "Bodies too large or malformed.",
        SUM(f, refused_input));
}
