/* log.h - what an operator reads. One line an event, logfmt or JSON, to standard error.
 *
 *   krd_info("election won", "term=%" PRIu64 " votes=%d", term, votes);
 *   ts=2026-01-02T03:04:05.678Z level=info node=n1 msg="election won" term=4 votes=2
 *
 * The format after the message is a printf format that yields logfmt pairs; values that may hold
 * spaces stand in double quotes in the format itself: path=\"%s\". Never blocks the caller: a
 * full queue drops the line, counts it, and the count is logged when there is room again. Repeated
 * lines of one call site are limited (10 a second, then a count of those suppressed).
 * Thread: any. */
#ifndef KRD_LOG_H
#define KRD_LOG_H
#include "base/base.h"
#include <inttypes.h>

enum krd_log_level { KRD_LOG_DEBUG, KRD_LOG_INFO, KRD_LOG_WARN, KRD_LOG_ERROR };
enum krd_log_format { KRD_LOG_LOGFMT, KRD_LOG_JSON };

/* Starts the writer thread. Before that (and after stop) lines are written directly.
 * node: stands in each line; copied. */
void krd_log_start(enum krd_log_level min, enum krd_log_format format, const char *node);
/* Writes what is queued and joins the thread; gives up when a slow reader has cost a second.
 * Called twice: the second does nothing. */
void krd_log_stop(void);
/* Writes out what is queued from whatever thread; gives up as krd_log_stop does. */
void krd_log_flush(void);
/* The same, then a line as it is: for a process that is about to end. */
void krd_log_last_words(const char *line, size_t n);
bool krd_log_enabled(enum krd_log_level level);

/* Per call site: how many lines this second. Static storage, zeroed. */
struct krd_log_site {
    _Atomic uint64_t window;     /* second, monotonic */
    _Atomic uint32_t count;      /* lines in it */
    _Atomic uint32_t suppressed; /* lines left out since the last one written */
};
void krd_log_line(struct krd_log_site *site, enum krd_log_level level, const char *msg,
                  const char *fmt, ...) KRD_PRINTF(4, 5);

#define KRD_LOG(level, msg, ...)                               \
    do {                                                       \
        static struct krd_log_site krd_site_;                  \
        if (krd_log_enabled(level))                            \
            krd_log_line(&krd_site_, level, msg, __VA_ARGS__); \
    } while (0)
/* Each takes a message and then a format with its arguments ("" for none). */
#define krd_debug(msg, ...) KRD_LOG(KRD_LOG_DEBUG, msg, __VA_ARGS__)
#define krd_info(msg, ...)  KRD_LOG(KRD_LOG_INFO, msg, __VA_ARGS__)
#define krd_warn(msg, ...)  KRD_LOG(KRD_LOG_WARN, msg, __VA_ARGS__)
#define krd_error(msg, ...) KRD_LOG(KRD_LOG_ERROR, msg, __VA_ARGS__)

#endif
