#include "server/flags.h"

#include "base/limits.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

enum kind { GROUP, TEXT, COUNT, BYTES, MILLIS, SWITCH };

struct flag {
    enum kind kind;
    const char *name; /* of a GROUP: its heading */
    size_t at;        /* in struct flags */
    const char *fallback;
    uint64_t min, max; /* of numbers */
    const char *help;
};

#define AT(member) offsetof(struct flags, member)
#define KIB        1024ull
#define MIB        (1024 * KIB)
#define GIB        (1024 * MIB)
#define DAY_MS     (24ull * 3600 * 1000)

static const struct flag table[] = {
    {GROUP, "Member", 0, NULL, 0, 0, NULL},
    {TEXT, "id", AT(id), NULL, 0, 0, "name of this member, unique in the cluster; default: -raddr"},
    {TEXT, "haddr", AT(haddr), "localhost:11000", 0, 0, "HTTP address to listen on"},
    {TEXT, "raddr", AT(raddr), "localhost:12000", 0, 0, "Raft address to listen on"},
    {TEXT, "haddr-advertise", AT(haddr_adv), NULL, 0, 0,
     "HTTP address that others are told; default: -haddr"},
    {TEXT, "raddr-advertise", AT(raddr_adv), NULL, 0, 0,
     "Raft address that members use; default: its entry in -initial-cluster, else -raddr"},

    {GROUP, "Cluster (a fresh directory only)", 0, NULL, 0, 0, NULL},
    {TEXT, "initial-cluster", AT(initial_cluster), NULL, 0, 0,
     "all first members: n1=HOST:PORT,n2=HOST:PORT,... (Raft addresses, the same list on each); "
     "without it a fresh directory starts a cluster of one"},
    {TEXT, "cluster-token", AT(cluster_token), "", 0, 0,
     "tells clusters apart that have equal members"},
    {TEXT, "join", AT(join), NULL, 0, 0,
     "HTTP address of a member of a running cluster to join (not available yet)"},

    {GROUP, "HTTP", 0, NULL, 0, 0, NULL},
    {COUNT, "http-threads", AT(http_threads), "1", 1, 64, "event loops that serve clients"},
    {BYTES, "max-request-bytes", AT(max_request_bytes), "1536KiB", 1024, KRD_REQUEST_BYTES_MAX,
     "largest value or transaction"},
    {MILLIS, "request-timeout", AT(request_timeout_ms), "5s", 10, DAY_MS,
     "how long a request is carried through leader changes"},
    {MILLIS, "slow-request", AT(slow_request_ms), "500ms", 0, DAY_MS,
     "requests that take longer are logged; 0: none"},
    {TEXT, "cors", AT(cors), NULL, 0, 0, "Access-Control-Allow-Origin to answer, * for any"},

    {GROUP, "Timing", 0, NULL, 0, 0, NULL},
    {MILLIS, "heartbeat", AT(heartbeat_ms), "100ms", 10, 60000,
     "interval of the leader's heartbeats"},
    {MILLIS, "election-timeout", AT(election_ms), "1s", 50, 600000,
     "silence of the leader before an election, drawn from [this, 2 x this); a crash is noticed "
     "sooner"},

    {GROUP, "Storage", 0, NULL, 0, 0, NULL},
    {MILLIS, "history-age", AT(history_age_ms), "1h", 0, 3650 * DAY_MS,
     "older history is compacted; 0: not by age"},
    {COUNT, "history-revisions", AT(history_revisions), "1000000", 0, INT64_MAX,
     "history beyond so many revisions is compacted; 0: not by count"},
    {BYTES, "log-segment-bytes", AT(segment_bytes), "64MiB", 64 * KIB, GIB,
     "size of the log's files"},
    {BYTES, "log-cache-bytes", AT(log_cache_bytes), "8MiB", 0, 64 * GIB,
     "applied entries kept in memory for slow members"},
    {BYTES, "store-cache-bytes", AT(store_cache_bytes), "16MiB", 64 * KIB, 1024 * GIB,
     "cache of the store's blocks"},
    {BYTES, "store-buffer-bytes", AT(store_buffer_bytes), "8MiB", 64 * KIB, GIB,
     "the store's write buffer; up to two of them are in memory"},

    {GROUP, "Logging", 0, NULL, 0, 0, NULL},
    {TEXT, "log-level", AT(log_level), "info", 0, 0, "debug, info, warn or error"},
    {TEXT, "log-format", AT(log_format), "logfmt", 0, 0, "logfmt or json"},

    {GROUP, "Other", 0, NULL, 0, 0, NULL},
    {SWITCH, "version", AT(version), NULL, 0, 0, "print the version and exit"},
    {SWITCH, "help", AT(help), NULL, 0, 0, "print this and exit"},
};

struct unit {
    const char *name;
    uint64_t factor;
};
static const struct unit byte_units[] = {
    {"", 1},    {"B", 1},   {"KiB", KIB}, {"MiB", MIB}, {"GiB", GIB},
    {"K", KIB}, {"M", MIB}, {"G", GIB},   {NULL, 0},
};
static const struct unit time_units[] = {
    {"", 1}, {"ms", 1}, {"s", 1000}, {"m", 60000}, {"h", 3600000ull}, {"d", 86400000ull}, {NULL, 0},
};
static const struct unit no_units[] = {{"", 1}, {NULL, 0}};

static bool parse_number(const char *text, const struct unit *units, uint64_t *out)
{
    char *end;
    if (!isdigit((unsigned char)text[0]))
        return false;
    errno = 0;
    unsigned long long v = strtoull(text, &end, 10);
    if (errno != 0)
        return false;
    for (const struct unit *u = units; u->name != NULL; u++)
        if (strcmp(end, u->name) == 0)
            return !__builtin_mul_overflow(v, u->factor, out);
    return false;
}

static enum krd_status set_flag(struct flags *f, const struct flag *d, const char *value,
                                const char *source, char **err)
{
    char *slot = (char *)f + d->at;
    if (d->kind == TEXT) {
        memcpy(slot, &value, sizeof value);
        return KRD_OK;
    }
    if (d->kind == SWITCH) {
        bool on = strcmp(value, "false") != 0 && strcmp(value, "0") != 0;
        memcpy(slot, &on, sizeof on);
        return KRD_OK;
    }
    uint64_t v;
    const struct unit *units = d->kind == BYTES    ? byte_units
                               : d->kind == MILLIS ? time_units
                                                   : no_units;
    if (!parse_number(value, units, &v)) {
        *err = krd_asprintf("%s: \"%s\" is no %s", source, value,
                            d->kind == BYTES    ? "size (examples: 4096, 512KiB, 64MiB)"
                            : d->kind == MILLIS ? "duration (examples: 250ms, 5s, 1h)"
                                                : "number");
        return KRD_BAD_REQUEST;
    }
    if (v < d->min || v > d->max) {
        *err = krd_asprintf("%s: %s is out of range: %" PRIu64 " to %" PRIu64 "%s", source, value,
                            d->min, d->max,
                            d->kind == BYTES    ? " bytes"
                            : d->kind == MILLIS ? " ms"
                                                : "");
        return KRD_BAD_REQUEST;
    }
    memcpy(slot, &v, sizeof v);
    return KRD_OK;
}

static const struct flag *find_flag(const char *name, size_t len)
{
    for (size_t i = 0; i < KRD_ARRAY_LEN(table); i++)
        if (table[i].kind != GROUP && strlen(table[i].name) == len &&
            memcmp(table[i].name, name, len) == 0)
            return &table[i];
    return NULL;
}

/* KVRAFTD_HTTP_THREADS for http-threads. */
static void env_name(const struct flag *d, char out[64])
{
    int n = snprintf(out, 64, "KVRAFTD_%s", d->name);
    for (int i = 0; i < n; i++)
        out[i] = out[i] == '-' ? '_' : (char)toupper((unsigned char)out[i]);
}

static enum krd_status parse_defaults(struct flags *f, char **err)
{
    for (size_t i = 0; i < KRD_ARRAY_LEN(table); i++) {
        const struct flag *d = &table[i];
        if (d->kind == GROUP)
            continue;
        char name[64];
        env_name(d, name);
        const char *value = getenv(name);
        const char *source = name;
        if (value == NULL) {
            value = d->fallback;
            source = d->name;
        }
        enum krd_status st = value != NULL ? set_flag(f, d, value, source, err) : KRD_OK;
        if (st != KRD_OK)
            return st;
    }
    return KRD_OK;
}

static enum krd_status parse_args(struct flags *f, int argc, char **argv, char **err)
{
    for (int i = 1; i < argc; i++) {
        const char *a = argv[i];
        if (a[0] != '-' || a[1] == '\0') {
            if (f->dir != NULL) {
                *err = krd_asprintf("more than one data directory: %s and %s", f->dir, a);
                return KRD_BAD_REQUEST;
            }
            f->dir = a;
            continue;
        }
        const char *name = a + (a[1] == '-' ? 2 : 1);
        const char *eq = strchr(name, '=');
        size_t len = eq != NULL ? (size_t)(eq - name) : strlen(name);
        const struct flag *d = find_flag(name, len);
        if (d == NULL) {
            *err = krd_asprintf("unknown flag %s (see kvraftd -help)", a);
            return KRD_BAD_REQUEST;
        }
        const char *value = eq != NULL ? eq + 1 : d->kind == SWITCH ? "true" : argv[++i];
        if (value == NULL) {
            *err = krd_asprintf("flag -%s needs a value", d->name);
            return KRD_BAD_REQUEST;
        }
        char *source = krd_asprintf("-%s", d->name);
        enum krd_status st = set_flag(f, d, value, source, err);
        krd_free(source);
        if (st != KRD_OK)
            return st;
    }
    return KRD_OK;
}

/* --- What belongs together ------------------------------------------------------------------- */

static bool good_name(const char *s, size_t len)
{
    if (len == 0 || len > 63)
        return false;
    for (size_t i = 0; i < len; i++)
        if (!isgraph((unsigned char)s[i]) || s[i] == '=' || s[i] == ',' || s[i] == '"' ||
            s[i] == '\\')
            return false;
    return true;
}

/* "host:port", ":port", "[v6]:port". */
static bool good_address(const char *s, size_t len, bool host_needed)
{
    const char *colon = memrchr(s, ':', len);
    if (colon == NULL || len >= 280 || (host_needed && colon == s))
        return false;
    size_t digits = len - (size_t)(colon + 1 - s);
    if (digits == 0 || digits > 5)
        return false;
    unsigned port = 0;
    for (size_t i = 0; i < digits; i++) {
        if (!isdigit((unsigned char)colon[1 + i]))
            return false;
        port = port * 10 + (unsigned)(colon[1 + i] - '0');
    }
    return port > 0 && port <= 65535;
}

static enum krd_status parse_cluster(struct flags *f, char **err)
{
    size_t cap = 0;
    for (const char *at = f->initial_cluster; *at != '\0';) {
        size_t len = strcspn(at, ",");
        const char *eq = memchr(at, '=', len);
        size_t name_len = eq != NULL ? (size_t)(eq - at) : 0;
        if (eq == NULL || !good_name(at, name_len) ||
            !good_address(eq + 1, len - name_len - 1, true)) {
            *err = krd_asprintf("-initial-cluster: \"%.*s\" is not NAME=HOST:PORT", (int)len, at);
            return KRD_BAD_REQUEST;
        }
        krd_grow(&f->initial, &cap, f->n_initial + 1, sizeof *f->initial);
        struct node_seed_member *m = &f->initial[f->n_initial];
        snprintf(m->name, sizeof m->name, "%.*s", (int)name_len, at);
        snprintf(m->address, sizeof m->address, "%.*s", (int)(len - name_len - 1), eq + 1);
        for (size_t i = 0; i < f->n_initial; i++) {
            if (strcmp(f->initial[i].name, m->name) == 0 ||
                strcmp(f->initial[i].address, m->address) == 0) {
                *err = krd_asprintf("-initial-cluster: \"%.*s\" names a member or an address "
                                    "twice",
                                    (int)len, at);
                return KRD_BAD_REQUEST;
            }
        }
        if (++f->n_initial > KRD_MEMBERS_MAX) {
            *err = krd_asprintf("-initial-cluster: more than %d members", KRD_MEMBERS_MAX);
            return KRD_BAD_REQUEST;
        }
        at += len + (at[len] == ',');
    }
    if (f->n_initial == 0) {
        *err = krd_strdup("-initial-cluster is empty");
        return KRD_BAD_REQUEST;
    }
    return KRD_OK;
}

static const struct node_seed_member *find_self(const struct flags *f)
{
    for (size_t i = 0; i < f->n_initial; i++)
        if (strcmp(f->initial[i].name, f->id) == 0)
            return &f->initial[i];
    return NULL;
}

/* What others are told of an address to listen on; kept for the life of the process. */
static const char *advertised(const char *listen)
{
    static char *made[2];
    if (listen[0] != ':')
        return listen;
    char **slot = &made[made[0] != NULL];
    return *slot = krd_asprintf("localhost%s", listen);
}

static enum krd_status settle_cluster(struct flags *f, char **err)
{
    if (f->initial_cluster == NULL) {
        if (f->raddr_adv == NULL)
            f->raddr_adv = advertised(f->raddr);
        f->initial = krd_zalloc(sizeof *f->initial);
        f->n_initial = 1;
        krd_copy_text(f->initial[0].name, sizeof f->initial[0].name, f->id);
        krd_copy_text(f->initial[0].address, sizeof f->initial[0].address, f->raddr_adv);
        return KRD_OK;
    }
    enum krd_status st = parse_cluster(f, err);
    if (st != KRD_OK)
        return st;
    const struct node_seed_member *self = find_self(f);
    if (self == NULL) {
        *err = krd_asprintf("-initial-cluster does not name this member, %s", f->id);
        return KRD_BAD_REQUEST;
    }
    if (f->raddr_adv == NULL)
        f->raddr_adv = self->address;
    if (strcmp(f->raddr_adv, self->address) != 0) {
        *err = krd_asprintf("-raddr-advertise %s and -initial-cluster %s=%s contradict each other",
                            f->raddr_adv, f->id, self->address);
        return KRD_BAD_REQUEST;
    }
    return KRD_OK;
}

static enum krd_status settle_logging(struct flags *f, char **err)
{
    static const char *const levels[] = {"debug", "info", "warn", "error"};
    size_t i = 0;
    while (i < KRD_ARRAY_LEN(levels) && strcmp(levels[i], f->log_level) != 0)
        i++;
    bool json = strcmp(f->log_format, "json") == 0;
    if (i == KRD_ARRAY_LEN(levels))
        *err = krd_asprintf("-log-level: \"%s\" is not debug, info, warn or error", f->log_level);
    else if (!json && strcmp(f->log_format, "logfmt") != 0)
        *err = krd_asprintf("-log-format: \"%s\" is not logfmt or json", f->log_format);
    if (*err != NULL)
        return KRD_BAD_REQUEST;
    f->level = (enum krd_log_level)i;
    f->format = json ? KRD_LOG_JSON : KRD_LOG_LOGFMT;
    return KRD_OK;
}

static enum krd_status settle(struct flags *f, char **err)
{
    if (f->dir == NULL) {
        *err = krd_strdup("no data directory given: kvraftd [flags] DIR (see kvraftd -help)");
        return KRD_BAD_REQUEST;
    }
    const struct {
        const char *flag, *value;
        bool host_needed;
    } addresses[] = {{"haddr", f->haddr, false},
                     {"raddr", f->raddr, false},
                     {"haddr-advertise", f->haddr_adv, true},
                     {"raddr-advertise", f->raddr_adv, true}};
    for (size_t i = 0; i < KRD_ARRAY_LEN(addresses); i++) {
        const char *v = addresses[i].value;
        if (v == NULL || good_address(v, strlen(v), addresses[i].host_needed))
            continue;
        *err = krd_asprintf("-%s: \"%s\" is not %sPORT", addresses[i].flag, v,
                            addresses[i].host_needed ? "HOST:" : "[HOST]:");
        return KRD_BAD_REQUEST;
    }
    if (f->id == NULL)
        f->id = f->raddr;
    if (!good_name(f->id, strlen(f->id))) {
        *err = krd_asprintf("-id: \"%s\" is not a name of 1 to 63 printable characters without "
                            "space, comma, equals sign, quote or backslash",
                            f->id);
        return KRD_BAD_REQUEST;
    }
    if (f->join != NULL) {
        *err = krd_strdup("-join: joining a running cluster is not available in this version; "
                          "start all members with the same -initial-cluster");
        return KRD_BAD_REQUEST;
    }
    if (f->election_ms < 5 * f->heartbeat_ms) {
        *err = krd_strdup("-election-timeout must be at least five times -heartbeat");
        return KRD_BAD_REQUEST;
    }
    if (f->haddr_adv == NULL)
        f->haddr_adv = advertised(f->haddr);
    enum krd_status st = settle_logging(f, err);
    return st == KRD_OK ? settle_cluster(f, err) : st;
}

enum krd_status flags_parse(struct flags *f, int argc, char **argv, char **err)
{
    *f = (struct flags){0};
    *err = NULL;
    enum krd_status st = parse_defaults(f, err);
    if (st == KRD_OK)
        st = parse_args(f, argc, argv, err);
    if (st != KRD_OK || f->help || f->version)
        return st;
    return settle(f, err);
}

static void print_wrapped(const char *text)
{
    const size_t indent = 26, width = 96;
    size_t at = indent;
    while (*text != '\0') {
        size_t word = strcspn(text, " ");
        if (at + word > width) {
            printf("\n%*s", (int)indent, "");
            at = indent;
        }
        printf("%.*s ", (int)word, text);
        at += word + 1;
        text += word + (text[word] == ' ');
    }
}

void flags_print_help(void)
{
    printf("usage: kvraftd [flags] DIR\n\n"
           "Runs one member of a replicated key-value store; DIR holds its data.\n"
           "Every flag may have one or two dashes, -flag value or -flag=value, and can come from "
           "the\nenvironment: -http-threads is KVRAFTD_HTTP_THREADS.\n\n"
           "A cluster of three on one machine: the same line with n2 and n3, their ports and "
           "directories:\n"
           "  kvraftd -id n1 -haddr 127.0.0.1:11000 -raddr 127.0.0.1:12000 \\\n"
           "    -initial-cluster "
           "n1=127.0.0.1:12000,n2=127.0.0.1:12001,n3=127.0.0.1:12002 data/n1\n");
    for (size_t i = 0; i < KRD_ARRAY_LEN(table); i++) {
        const struct flag *d = &table[i];
        if (d->kind == GROUP) {
            printf("\n%s\n", d->name);
            continue;
        }
        int n = printf("  -%s", d->name);
        printf("%*s", n < 26 ? 26 - n : 1, "");
        char *text = d->fallback != NULL && d->fallback[0] != '\0'
                         ? krd_asprintf("%s (default %s)", d->help, d->fallback)
                         : krd_strdup(d->help);
        print_wrapped(text);
        krd_free(text);
        printf("\n");
    }
}
