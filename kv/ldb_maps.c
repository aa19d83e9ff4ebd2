/* ldb_maps.c - see ldb_maps.h.
 *
 * LevelDB gets its mappings from mmap and gives them back to munmap; both are bound to the
 * functions below, because the program's own symbols come before the C library's. They do what
 * those do, and remember shared read-only mappings of files. Only with such a list is it safe to
 * advise the kernel about another library's memory: an address taken from /proc might have become
 * somebody else's meanwhile, and MADV_DONTNEED on anonymous memory would lose data. A mapping
 * leaves the list, under the lock, before its address can be used again.
 *
 * Sanitizers have an mmap of their own; in their builds nothing is remembered or trimmed. */
#include "kv/ldb_maps.h"

#include <stdio.h>
#include <unistd.h>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED 1
#endif
#endif

#ifdef SANITIZED

void ldb_maps_trim(size_t resident_max)
{
    (void)resident_max;
}

#else

#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>

struct map {
    void *at;
    size_t len;
};

static struct {
    pthread_mutex_t lock;
    struct map *list;
    size_t n, cap;
} maps = {.lock = PTHREAD_MUTEX_INITIALIZER};

void *mmap(void *addr, size_t len, int prot, int flags, int fd, off_t offset)
{
    void *at = (void *)syscall(SYS_mmap, addr, len, prot, flags, fd, offset);
    if (at == MAP_FAILED || prot != PROT_READ || !(flags & MAP_SHARED) || fd < 0)
        return at;
    pthread_mutex_lock(&maps.lock);
    krd_grow(&maps.list, &maps.cap, maps.n + 1, sizeof maps.list[0]);
    maps.list[maps.n++] = (struct map){at, len};
    pthread_mutex_unlock(&maps.lock);
    return at;
}

int munmap(void *addr, size_t len)
{
    pthread_mutex_lock(&maps.lock);
    for (size_t i = 0; i < maps.n; i++) {
        if (maps.list[i].at == addr) {
            maps.list[i] = maps.list[--maps.n];
            break;
        }
    }
    int rv = (int)syscall(SYS_munmap, addr, len);
    pthread_mutex_unlock(&maps.lock);
    return rv;
}

/* Resident pages of files and shared memory: the third number of statm. */
static size_t resident_of_files(void)
{
    long pages = 0;
    FILE *f = fopen("/proc/self/statm", "re");
    if (f == NULL)
        return 0;
    if (fscanf(f, "%*d %*d %ld", &pages) != 1)
        pages = 0;
    fclose(f);
    return (size_t)pages * (size_t)sysconf(_SC_PAGESIZE);
}

void ldb_maps_trim(size_t resident_max)
{
    if (resident_of_files() <= resident_max)
        return;
    pthread_mutex_lock(&maps.lock);
    for (size_t i = 0; i < maps.n; i++)
        (void)madvise(maps.list[i].at, maps.list[i].len,
                      MADV_DONTNEED); /* advice: may be refused */
    pthread_mutex_unlock(&maps.lock);
}

#endif
