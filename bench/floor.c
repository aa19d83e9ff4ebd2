/* floor.c - the machine's own floor for a replicated commit: three processes, raw sockets, one
 * record at a time. The first sends it to the other two and writes it itself; each writes it into
 * zero-filled, preallocated space and fdatasyncs; the commit is when the first has its own write
 * and one answer (a majority). Nothing else is done: no consensus, no HTTP, no store.
 *
 *   floor [-n COMMITS] [-s BYTES] [DIR]        default 5000 commits of 512 bytes, in . */
#include "base/base.h"
#include "base/clock.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <unistd.h>

#define FILE_BYTES (64u << 20)

static size_t record_bytes = 512;

static void die(const char *what)
{
    fprintf(stderr, "floor: %s: %s\n", what, strerror(errno));
    exit(1);
}

static int open_log(const char *dir, int i)
{
    char *path = krd_asprintf("%s/floor-%d.tmp", dir, i);
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0)
        die(path);
    unlink(path);
    krd_free(path);
    static const uint8_t zeros[1 << 16];
    for (size_t at = 0; at < FILE_BYTES; at += sizeof zeros)
        if (pwrite(fd, zeros, sizeof zeros, (off_t)at) != (ssize_t)sizeof zeros)
            die("preallocate");
    if (fsync(fd) != 0)
        die("fsync");
    return fd;
}

static void persist(int fd, const void *record, uint64_t n)
{
    off_t at = (off_t)(n * record_bytes % (FILE_BYTES - record_bytes));
    if (pwrite(fd, record, record_bytes, at) != (ssize_t)record_bytes || fdatasync(fd) != 0)
        die("write");
}

static void transfer(int fd, void *p, size_t n, ssize_t (*fn)(int, void *, size_t))
{
    for (size_t at = 0; at < n;) {
        ssize_t got = fn(fd, (uint8_t *)p + at, n - at);
        if (got <= 0)
            exit(got == 0 ? 0 : 1);
        at += (size_t)got;
    }
}

static ssize_t send_some(int fd, void *p, size_t n)
{
    return send(fd, p, n, MSG_NOSIGNAL);
}
static ssize_t recv_some(int fd, void *p, size_t n)
{
    return recv(fd, p, n, 0);
}

static void follower(int sock, const char *dir, int i)
{
    int log = open_log(dir, i);
    uint8_t *record = krd_zalloc(record_bytes), ack = 1;
    transfer(sock, &ack, 1, send_some); /* ready */
    for (uint64_t n = 0;; n++) {
        transfer(sock, record, record_bytes, recv_some);
        persist(log, record, n);
        transfer(sock, &ack, 1, send_some);
    }
}

static void tcp_pair(int out[2])
{
    int l = socket(AF_INET, SOCK_STREAM, 0), one = 1;
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof a;
    if (bind(l, (struct sockaddr *)&a, len) != 0 || listen(l, 1) != 0 ||
        getsockname(l, (struct sockaddr *)&a, &len) != 0)
        die("listen");
    out[0] = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(out[0], (struct sockaddr *)&a, len) != 0)
        die("connect");
    out[1] = accept(l, NULL, NULL);
    close(l);
    for (int i = 0; i < 2; i++)
        setsockopt(out[i], IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
}

static int by_value(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

int main(int argc, char **argv)
{
    uint64_t commits = 5000;
    int opt;
    while ((opt = getopt(argc, argv, "n:s:")) != -1) {
        if (opt == 'n')
            commits = strtoull(optarg, NULL, 10);
        else if (opt == 's')
            record_bytes = strtoull(optarg, NULL, 10);
        else
            return 2;
    }
    if (commits == 0 || record_bytes == 0 || record_bytes > FILE_BYTES / 2)
        return 2;
    const char *dir = optind < argc ? argv[optind] : ".";
    struct pollfd peer[2];
    for (int i = 0; i < 2; i++) {
        int pair[2];
        tcp_pair(pair);
        if (fork() == 0) {
            close(pair[0]);
            follower(pair[1], dir, i + 1);
        }
        close(pair[1]);
        peer[i] = (struct pollfd){.fd = pair[0], .events = POLLIN};
    }
    int log = open_log(dir, 0);
    uint8_t *record = krd_zalloc(record_bytes), ack;
    for (int i = 0; i < 2; i++)
        transfer(peer[i].fd, &ack, 1, recv_some);

    uint64_t *us = krd_calloc(commits, sizeof *us), *disk = krd_calloc(commits, sizeof *disk);
    int behind[2] = {0, 0}; /* answers owed */
    for (uint64_t n = 0; n < commits; n++) {
        uint64_t start = krd_mono_us();
        for (int i = 0; i < 2; i++, behind[i - 1]++)
            transfer(peer[i].fd, record, record_bytes, send_some);
        persist(log, record, n);
        disk[n] = krd_mono_us() - start;
        while (behind[0] > 0 && behind[1] > 0) { /* until one of them has answered this one */
            poll(peer, 2, -1);
            for (int i = 0; i < 2; i++)
                if (peer[i].revents & POLLIN) {
                    transfer(peer[i].fd, &ack, 1, recv_some);
                    behind[i]--;
                }
        }
        us[n] = krd_mono_us() - start;
    }
    qsort(us, commits, sizeof *us, by_value);
    qsort(disk, commits, sizeof *disk, by_value);
    printf("replicated commit of %zu bytes: p50 %" PRIu64 " us, p90 %" PRIu64 " us, p99 %" PRIu64
           " us; own disk alone p50 %" PRIu64 " us\n",
           record_bytes, us[commits / 2], us[commits * 9 / 10], us[commits * 99 / 100],
           disk[commits / 2]);
    for (int i = 0; i < 2; i++)
        close(peer[i].fd);
    while (wait(NULL) > 0)
        ;
    return 0;
}
