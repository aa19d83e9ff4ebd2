/* A line is rendered by its caller into a bounded queue and written by a thread of its own: a
 * terminal or pipe that does not read delays nobody. A full queue drops the line and counts it.
 * Whoever is about to end (stop, a fatal error) waits for such a reader a second, not for ever:
 * while a fatal error waits, the other threads go on.
 *
 * In JSON the logfmt pairs of the message are turned into members: key=value with value bare or
 * in double quotes (backslash escapes as JSON's). */
#include "base/log.h"

#include "base/buf.h"
#include "base/clock.h"

#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdatomic.h>
#include <time.h>
#include <unistd.h>
#include <errno.h>

#define QUEUE_BYTES_MAX  (1u << 20)
#define LINE_BYTES_MAX   4096u
#define LINES_PER_SECOND 10u
#define PATIENCE_MS      1000
#define POLL_MS          100
/* What a pipe that polls as writable takes without blocking. */
#define WRITE_BYTES_MAX 4096u

static struct {
    pthread_mutex_t lock;
    pthread_cond_t more;
    struct krd_buf queue; /* whole lines */
    uint64_t dropped;
    bool running;
    _Atomic bool stop;
    pthread_t thread;
    _Atomic int min;
    enum krd_log_format format;
    char node[64];
} lg = {.lock = PTHREAD_MUTEX_INITIALIZER, .more = PTHREAD_COND_INITIALIZER, .min = KRD_LOG_INFO};

static const char *const level_names[] = {"debug", "info", "warn", "error"};

/* ending: whoever calls waits PATIENCE_MS at most, in all, for the reader; the writer thread waits
 * for ever, until it shall stop. */
static void write_all(const uint8_t *p, size_t n, bool ending)
{
    int waited = 0;
    while (n > 0 && waited < PATIENCE_MS) {
        struct pollfd f = {.fd = STDERR_FILENO, .events = POLLOUT};
        int ready = poll(&f, 1, POLL_MS);
        if (ready <= 0) {
            waited += ready == 0 && (ending || atomic_load(&lg.stop)) ? POLL_MS : 0;
            continue;
        }
        ssize_t w = write(STDERR_FILENO, p, krd_min_size(n, WRITE_BYTES_MAX));
        if (w < 0 && errno != EINTR && errno != EAGAIN)
            return; /* nobody reads any more: there is nowhere to say it */
        p += w > 0 ? w : 0;
        n -= w > 0 ? (size_t)w : 0;
    }
}

static void put_line(struct krd_buf *b, enum krd_log_level level, const char *msg,
                     const char *pairs);

/* Goes round the bound of the queue, else the count could be lost with the line. */
static void queue_dropped(uint64_t dropped)
{
    char pairs[32];
    snprintf(pairs, sizeof pairs, "lines=%" PRIu64, dropped);
    if (krd_log_enabled(KRD_LOG_WARN))
        put_line(&lg.queue, KRD_LOG_WARN,
                 "log lines dropped, the reader of standard error is too slow", pairs);
}

static void *writer(void *arg)
{
    (void)arg;
    struct krd_buf mine = KRD_BUF_INIT;
    pthread_mutex_lock(&lg.lock);
    for (;;) {
        while (lg.queue.len == 0 && !lg.stop)
            pthread_cond_wait(&lg.more, &lg.lock);
        if (lg.queue.len == 0)
            break;
        struct krd_buf swap = mine;
        mine = lg.queue;
        lg.queue = swap;
        uint64_t dropped = lg.dropped;
        lg.dropped = 0;
        pthread_mutex_unlock(&lg.lock);
        write_all(mine.ptr, mine.len, false);
        mine.len = 0;
        pthread_mutex_lock(&lg.lock);
        if (dropped != 0)
            queue_dropped(dropped);
    }
    pthread_mutex_unlock(&lg.lock);
    krd_buf_deinit(&mine);
    return NULL;
}

void krd_log_start(enum krd_log_level min, enum krd_log_format format, const char *node)
{
    pthread_mutex_lock(&lg.lock);
    atomic_store(&lg.min, (int)min);
    lg.format = format;
    snprintf(lg.node, sizeof lg.node, "%s", node);
    lg.stop = false;
    if (!lg.running)
        lg.running = pthread_create(&lg.thread, NULL, writer, NULL) == 0;
    pthread_mutex_unlock(&lg.lock);
}

void krd_log_stop(void)
{
    pthread_mutex_lock(&lg.lock);
    bool running = lg.running;
    lg.stop = true;
    pthread_cond_signal(&lg.more);
    pthread_mutex_unlock(&lg.lock);
    if (!running)
        return;
    pthread_join(lg.thread, NULL);
    pthread_mutex_lock(&lg.lock);
    lg.running = false;
    write_all(lg.queue.ptr, lg.queue.len, true);
    krd_buf_deinit(&lg.queue);
    pthread_mutex_unlock(&lg.lock);
}

void krd_log_flush(void)
{
    /* May be called from anywhere, also with the lock held by a dying thread: try only. */
    if (pthread_mutex_trylock(&lg.lock) != 0)
        return;
    write_all(lg.queue.ptr, lg.queue.len, true);
    lg.queue.len = 0;
    pthread_mutex_unlock(&lg.lock);
}

void krd_log_last_words(const char *line, size_t n)
{
    krd_log_flush();
    write_all((const uint8_t *)line, n, true);
}

bool krd_log_enabled(enum krd_log_level level)
{
    return (int)level >= atomic_load_explicit(&lg.min, memory_order_relaxed);
}

/* True when the line may be written; *left_out: lines suppressed before it. */
static bool admit(struct krd_log_site *site, uint32_t *left_out)
{
    uint64_t second = krd_mono_ms() / 1000;
    *left_out = 0;
    uint64_t window = atomic_load(&site->window);
    if (window != second && atomic_compare_exchange_strong(&site->window, &window, second))
        atomic_store(&site->count, 0);
    if (atomic_fetch_add(&site->count, 1) >= LINES_PER_SECOND) {
        atomic_fetch_add(&site->suppressed, 1);
        return false;
    }
    *left_out = atomic_exchange(&site->suppressed, 0);
    return true;
}

static void put_time(struct krd_buf *b)
{
    uint64_t ms = krd_wall_ms();
    time_t s = (time_t)(ms / 1000);
    struct tm tm;
    gmtime_r(&s, &tm);
    krd_buf_printf(b, "%04d-%02d-%02dT%02d:%02d:%02d.%03dZ", tm.tm_year + 1900, tm.tm_mon + 1,
                   tm.tm_mday, tm.tm_hour, tm.tm_min, tm.tm_sec, (int)(ms % 1000));
}

/* Bytes of the character at s, 0 when it is not UTF-8: JSON's readers refuse the whole line. */
static size_t utf8_bytes(const char *s, size_t left)
{
    const uint8_t *c = (const uint8_t *)s;
    size_t n = c[0] < 0x80 ? 1 : c[0] < 0xc2 ? 0 : c[0] < 0xe0 ? 2 : c[0] < 0xf0 ? 3 : 4;
    if (n == 0 || n > left || c[0] > 0xf4)
        return 0;
    for (size_t i = 1; i < n; i++)
        if ((c[i] & 0xc0) != 0x80)
            return 0;
    bool overlong = (c[0] == 0xe0 && c[1] < 0xa0) || (c[0] == 0xf0 && c[1] < 0x90);
    bool beyond = (c[0] == 0xed && c[1] > 0x9f) || (c[0] == 0xf4 && c[1] > 0x8f);
    return overlong || beyond ? 0 : n;
}

/* Bytes of the escape at s that JSON allows, 0 when there is none. */
static size_t escape_bytes(const char *s, size_t left)
{
    if (left < 2 || s[0] != '\\')
        return 0;
    if (s[1] == 'u')
        return left >= 6 && strspn(s + 2, "0123456789abcdefABCDEF") >= 4 ? 6 : 0;
    return s[1] != '\0' && strchr("\"\\/bfnrt", s[1]) != NULL ? 2 : 0;
}

/* A quoted string, valid in logfmt and in JSON. raw: it holds escapes already. */
static void put_quoted(struct krd_buf *b, const char *s, size_t n, bool raw)
{
    krd_buf_put_u8(b, '"');
    while (n > 0) {
        size_t escape = raw ? escape_bytes(s, n) : 0;
        size_t take = escape != 0 ? escape : utf8_bytes(s, n);
        uint8_t c = (uint8_t)*s;
        if (escape == 0 && (c == '"' || c == '\\'))
            krd_buf_put_u8(b, '\\');
        if (c < 0x20 || c == 0x7f)
            krd_buf_printf(b, "\\u%04x", c);
        else if (take == 0)
            krd_buf_puts(b, "\\ufffd");
        else
            krd_buf_put(b, s, take);
        take = take == 0 ? 1 : take;
        s += take;
        n -= take;
    }
    krd_buf_put_u8(b, '"');
}

/* The end of a value that starts at s: behind its closing quote, or at the next space. */
static const char *value_end(const char *s)
{
    if (*s != '"')
        return s + strcspn(s, " ");
    for (s++; *s != '\0' && *s != '"'; s++)
        if (*s == '\\' && s[1] != '\0')
            s++;
    return *s == '"' ? s + 1 : s;
}

static void put_json_pairs(struct krd_buf *b, const char *s)
{
    while (*s != '\0') {
        s += strspn(s, " ");
        size_t key = strcspn(s, "= ");
        if (key == 0 || s[key] != '=') {
            s += key + (s[key] != '\0');
            continue;
        }
        const char *value = s + key + 1, *end = value_end(value);
        size_t n = (size_t)(end - value);
        krd_buf_put_u8(b, ',');
        put_quoted(b, s, key, false);
        krd_buf_put_u8(b, ':');
        if (n >= 2 && *value == '"' && end[-1] == '"')
            put_quoted(b, value + 1, n - 2, true);
        else if (n > 0 && n < 16 && strspn(value, "0123456789") == n && (*value != '0' || n == 1))
            krd_buf_put(b, value, n);
        else
            put_quoted(b, value, n, false);
        s = end;
    }
}

static void put_line(struct krd_buf *b, enum krd_log_level level, const char *msg,
                     const char *pairs)
{
    bool json = lg.format == KRD_LOG_JSON;
    krd_buf_puts(b, json ? "{\"ts\":\"" : "ts=");
    put_time(b);
    krd_buf_printf(b,
                   json ? "\",\"level\":\"%s\",\"node\":" : " level=%s node=", level_names[level]);
    if (json)
        put_quoted(b, lg.node, strlen(lg.node), false);
    else
        krd_buf_puts(b, lg.node[0] != '\0' ? lg.node : "-");
    krd_buf_puts(b, json ? ",\"msg\":" : " msg=");
    put_quoted(b, msg, strlen(msg), false);
    if (json) {
        put_json_pairs(b, pairs);
        krd_buf_puts(b, "}\n");
        return;
    }
    if (pairs[0] != '\0')
        krd_buf_put_u8(b, ' ');
    for (const char *c = pairs; *c != '\0'; c++)
        krd_buf_put_u8(b, (uint8_t)*c < 0x20 || *c == 0x7f ? ' ' : (uint8_t)*c);
    krd_buf_put_u8(b, '\n');
}

void krd_log_line(struct krd_log_site *site, enum krd_log_level level, const char *msg,
                  const char *fmt, ...)
{
    uint32_t left_out;
    if (!admit(site, &left_out))
        return;
    char pairs[LINE_BYTES_MAX];
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(pairs, sizeof pairs, fmt, ap);
    va_end(ap);
    size_t at = n < 0 ? 0 : krd_min_size((size_t)n, sizeof pairs - 1);
    if (left_out != 0 && at < sizeof pairs)
        snprintf(pairs + at, sizeof pairs - at, " suppressed=%u", left_out);

    pthread_mutex_lock(&lg.lock);
    if (lg.queue.len > QUEUE_BYTES_MAX) {
        lg.dropped++;
    } else {
        put_line(&lg.queue, level, msg, pairs);
        if (lg.running) {
            pthread_cond_signal(&lg.more);
        } else {
            write_all(lg.queue.ptr, lg.queue.len, false);
            lg.queue.len = 0;
        }
    }
    pthread_mutex_unlock(&lg.lock);
}
