/* main.c - kvraftd: flags, the node, its front, and a clean end.
 *
 * SIGTERM or SIGINT: leadership is handed over, the front finishes what is in flight, the node
 * makes everything durable, exit 0. A second signal ends at once. Exit 2: wrong flags; 1: cannot
 * start; 70: stopped to keep the data safe (krd_fatal). */
#include "base/log.h"
#include "http/http.h"
#include "server/flags.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <unistd.h>

#ifndef KRD_VERSION
#error "the build says which version this is"
#endif

#define STEP_ASIDE_MS 2000

static int complain(int code, char *err)
{
    fprintf(stderr, "kvraftd: %s\n", err);
    krd_free(err);
    return code;
}

static void raise_file_limit(void)
{
    struct rlimit l;
    if (getrlimit(RLIMIT_NOFILE, &l) == 0 && l.rlim_cur < l.rlim_max) {
        l.rlim_cur = l.rlim_max;
        setrlimit(RLIMIT_NOFILE, &l);
    }
}

/* Signals are taken by main's sigwait alone; all threads inherit the mask. */
static sigset_t block_signals(void)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    signal(SIGPIPE, SIG_IGN);
    return set;
}

static enum krd_status start_node(const struct flags *f, struct node **node, char **err)
{
    struct node_options o;
    node_options_default(&o);
    o.dir = f->dir;
    o.name = f->id;
    o.raft_listen = f->raddr;
    o.raft_advertise = f->raddr_adv;
    o.http_advertise = f->haddr_adv;
    o.initial = f->initial;
    o.n_initial = f->n_initial;
    o.initial_given = f->initial_cluster != NULL;
    o.cluster_token = f->cluster_token;
    o.heartbeat_ms = (uint32_t)f->heartbeat_ms;
    o.election_ms = (uint32_t)f->election_ms;
    o.request_timeout_ms = (uint32_t)f->request_timeout_ms;
    o.max_request_bytes = f->max_request_bytes;
    o.segment_bytes = f->segment_bytes;
    o.log_cache_bytes = f->log_cache_bytes;
    o.store_cache_bytes = f->store_cache_bytes;
    o.store_buffer_bytes = f->store_buffer_bytes;
    o.history_age_ms = f->history_age_ms;
    o.history_revisions = (int64_t)f->history_revisions;
    return node_start(&o, node, err);
}

static enum krd_status start_front(const struct flags *f, struct node *node,
                                   struct http_front **front, char **err)
{
    struct http_options o;
    http_options_init(&o);
    o.node = node;
    o.listen = f->haddr;
    o.threads = (unsigned)f->http_threads;
    o.cors_origin = f->cors;
    o.max_request_bytes = f->max_request_bytes;
    o.slow_request_ms = (uint32_t)f->slow_request_ms;
    o.version = KRD_VERSION;
    o.build = KRD_BUILD;
    return http_start(&o, front, err);
}

static void wait_for_signal(const sigset_t *set)
{
    int sig;
    do
        sig = 0;
    while (sigwait(set, &sig) != 0);
    krd_info("stopping", "signal=%s", sig == SIGTERM ? "TERM" : "INT");
    pthread_sigmask(SIG_UNBLOCK, set, NULL); /* the next one ends the process */
}

int main(int argc, char **argv)
{
    struct flags f;
    char *err = NULL;
    if (flags_parse(&f, argc, argv, &err) != KRD_OK)
        return complain(2, err);
    if (f.help) {
        flags_print_help();
        return 0;
    }
    if (f.version) {
        printf("kvraftd %s (%s)\n", KRD_VERSION, KRD_BUILD);
        return 0;
    }
    sigset_t signals = block_signals();
    raise_file_limit();
    krd_log_start(f.level, f.format, f.id);
    krd_info("kvraftd starts", "version=%s build=%s dir=\"%s\" http=%s raft=%s members=%zu",
             KRD_VERSION, KRD_BUILD, f.dir, f.haddr, f.raddr, f.n_initial);

    struct node *node;
    if (start_node(&f, &node, &err) != KRD_OK) {
        krd_log_stop();
        return complain(1, err);
    }
    struct http_front *front;
    if (start_front(&f, node, &front, &err) != KRD_OK) {
        node_stop(node);
        krd_log_stop();
        return complain(1, err);
    }
    krd_info("serving", "http=%s", f.haddr);
    wait_for_signal(&signals);

    node_step_aside(node, STEP_ASIDE_MS);
    http_stop(front);
    node_stop(node);
    krd_info("stopped", "");
    krd_log_stop();
    krd_free(f.initial);
    return 0;
}
