/* flags.h - kvraftd's command line and environment: one table says name, meaning, default. */
#ifndef KRD_SERVER_FLAGS_H
#define KRD_SERVER_FLAGS_H

#include "base/log.h"
#include "server/node_host.h"

struct flags {
    bool help, version;
    const char *id, *haddr, *raddr, *haddr_adv, *raddr_adv;
    const char *initial_cluster, *cluster_token, *join;
    const char *dir;
    const char *cors;
    uint64_t http_threads, max_request_bytes, request_timeout_ms, slow_request_ms;
    uint64_t heartbeat_ms, election_ms;
    uint64_t history_age_ms, history_revisions;
    uint64_t segment_bytes, log_cache_bytes, store_cache_bytes, store_buffer_bytes;
    const char *log_level, *log_format;
    enum krd_log_level level;
    enum krd_log_format format;
    struct node_seed_member *initial; /* of -initial-cluster, or this member alone */
    size_t n_initial;
};

/* argv, then KVRAFTD_... for what argv does not say, then defaults. Strings point into argv, the
 * environment or are kept for the life of the process. *err: krd_alloc'd sentence. */
KRD_MUST_CHECK enum krd_status flags_parse(struct flags *f, int argc, char **argv, char **err);
void flags_print_help(void);

#endif
