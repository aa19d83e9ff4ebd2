#include "base/base.h"
#include "base/log.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static const struct {
    const char *code;
    const char *text;
    int http;
} status_table[] = {
#define KRD_X(name, code, http, text) [KRD_##name] = {code, text, http},
    KRD_STATUS_TABLE(KRD_X)
#undef KRD_X
};

static unsigned known(enum krd_status st)
{
    return (unsigned)st < KRD_STATUS_COUNT ? (unsigned)st : KRD_INTERNAL;
}

const char *krd_status_code(enum krd_status st)
{
    return status_table[known(st)].code;
}
const char *krd_status_text(enum krd_status st)
{
    return status_table[known(st)].text;
}
int krd_status_http(enum krd_status st)
{
    return status_table[known(st)].http;
}

void krd_assert_failed(const char *expr, const char *file, int line, const char *fn)
{
    char text[512];
    int n =
        snprintf(text, sizeof text,
                 "level=error msg=\"assertion failed: this is a defect of kvraftd, please report "
                 "it\" at=%s:%d in=%s expression=\"%s\"\n",
                 file, line, fn, expr);
    krd_log_last_words(text, (size_t)n < sizeof text ? (size_t)n : sizeof text - 1);
    abort();
}

void krd_fatal(const char *fmt, ...)
{
    char text[2048];
    int n =
        snprintf(text, sizeof text, "level=error msg=\"fatal: stopping to keep the data safe\" ");
    size_t at = (size_t)n;
    va_list ap;
    va_start(ap, fmt);
    n = vsnprintf(text + at, sizeof text - at - 1, fmt, ap);
    va_end(ap);
    if (n > 0)
        at = at + (size_t)n < sizeof text - 2 ? at + (size_t)n : sizeof text - 2;
    text[at++] = '\n';
    krd_log_last_words(text, at);
    _exit(70);
}

static void *must(void *p)
{
    if (KRD_UNLIKELY(p == NULL))
        krd_fatal("reason=\"out of memory\"");
    return p;
}

void *krd_alloc(size_t size)
{
    return must(malloc(size != 0 ? size : 1));
}
void *krd_zalloc(size_t size)
{
    return must(calloc(1, size != 0 ? size : 1));
}
void *krd_calloc(size_t n, size_t size)
{
    return must(calloc(n != 0 ? n : 1, size != 0 ? size : 1));
}
void *krd_realloc(void *p, size_t size)
{
    return must(realloc(p, size != 0 ? size : 1));
}
void krd_free(void *p)
{
    free(p);
}

char *krd_strdup(const char *s)
{
    size_t n = strlen(s) + 1;
    return memcpy(krd_alloc(n), s, n);
}

char *krd_asprintf(const char *fmt, ...)
{
    char *s = NULL;
    va_list ap;
    va_start(ap, fmt);
    int n = vasprintf(&s, fmt, ap);
    va_end(ap);
    return must(n < 0 ? NULL : s);
}

void krd_copy_text(char *to, size_t cap, const char *from)
{
    KRD_ASSERT(cap > 0);
    size_t n = krd_min_size(strlen(from), cap - 1);
    memcpy(to, from, n);
    to[n] = '\0';
}

void krd_grow(void *array, size_t *cap, size_t need, size_t elem)
{
    if (need <= *cap)
        return;
    size_t cap_new = *cap < 8 ? 8 : *cap;
    while (cap_new < need) {
        KRD_ASSERT(cap_new <= SIZE_MAX / 2 / elem);
        cap_new *= 2;
    }
    void *p;
    memcpy(&p, array, sizeof p);
    p = krd_realloc(p, cap_new * elem);
    memcpy(array, &p, sizeof p);
    *cap = cap_new;
}
