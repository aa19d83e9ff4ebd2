/* kv_apply.c - how many puts a second the state machine takes on its one thread, without raft and
 * HTTP: entries are made beforehand, batch by batch, and given to kv_apply.
 *
 *   build/release/bench/kv_apply DIR [PUTS [BATCH [random|sequential|hot]]]
 *
 * random: new keys in random order; sequential: new keys in order; hot: 10,000 keys overwritten. */
#include "base/clock.h"
#include "base/rand.h"
#include "kv/command.pb-c.h"
#include "kv/store.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { VALUE_BYTES = 256, HOT_KEYS = 10000 };

static uint64_t thread_cpu_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

static void print_memory(void)
{
    char line[128];
    FILE *f = fopen("/proc/self/status", "r");
    while (f != NULL && fgets(line, sizeof line, f) != NULL) {
        if (strncmp(line, "VmRSS", 5) == 0 || strncmp(line, "RssAnon", 7) == 0)
            fputs(line, stdout);
    }
    if (f != NULL)
        fclose(f);
}

static struct kv_entry make_put(uint64_t index, uint64_t key_number, struct krd_rand *rand)
{
    char key[64];
    uint8_t value[VALUE_BYTES];
    Etcdserverpb__InternalRaftRequest r = ETCDSERVERPB__INTERNAL_RAFT_REQUEST__INIT;
    Etcdserverpb__PutRequest put = ETCDSERVERPB__PUT_REQUEST__INIT;
    for (size_t i = 0; i < sizeof value; i += 8)
        krd_put_le64(value + i, krd_rand_u64(rand));
    put.key.len = (size_t)snprintf(key, sizeof key, "bench/%020" PRIu64, key_number);
    put.key.data = (uint8_t *)key;
    put.value = (ProtobufCBinaryData){sizeof value, value};
    r.put = &put;
    r.origin = r.boot = 1;
    r.sequence = index;
    r.settled = index > 256 ? index - 256 : 1;
    size_t len = etcdserverpb__internal_raft_request__get_packed_size(&r);
    uint8_t *command = krd_alloc(len);
    etcdserverpb__internal_raft_request__pack(&r, command);
    return (struct kv_entry){.index = index,
                             .term = 1,
                             .time_ms = index,
                             .is_command = true,
                             .command = slice_of(command, len)};
}

static void on_outcome(void *arg, struct kv_outcome *o)
{
    size_t *done = arg;
    *done += o->result != NULL && o->result->status == KRD_OK;
    kv_result_destroy(o->result);
}

int main(int argc, char **argv)
{
    size_t puts_wanted = argc > 2 ? strtoul(argv[2], NULL, 10) : 740000;
    size_t batch = argc > 3 ? strtoul(argv[3], NULL, 10) : 64;
    const char *keys = argc > 4 ? argv[4] : "random";
    if (argc < 2 || batch == 0) {
        fprintf(stderr, "usage: kv_apply DIR [PUTS [BATCH [random|sequential|hot]]]\n");
        return 2;
    }
    struct kv_options o = {.dir = argv[1], .self = 1, .self_boot = 1};
    struct kv_store *s;
    char *err;
    uint64_t began = krd_mono_us();
    if (kv_open(&o, &s, &err) != KRD_OK) {
        fprintf(stderr, "%s\n", err);
        return 1;
    }
    printf("open: %" PRIu64 " us\n", krd_mono_us() - began);

    struct krd_rand rand;
    struct kv_entry *entries = krd_calloc(batch, sizeof *entries);
    uint64_t index = kv_applied_index(s), wall = 0, cpu = 0, slowest = 0;
    size_t done = 0;
    krd_rand_seed(&rand, 1);
    for (size_t made = 0; made < puts_wanted;) {
        size_t n = 0;
        for (; n < batch && made < puts_wanted; n++, made++) {
            uint64_t k = keys[0] == 's'   ? made
                         : keys[0] == 'h' ? krd_rand_below(&rand, HOT_KEYS)
                                          : krd_rand_u64(&rand);
            entries[n] = make_put(++index, k, &rand);
        }
        uint64_t t = krd_mono_us(), c = thread_cpu_us();
        kv_apply(s, entries, n, on_outcome, &done);
        t = krd_mono_us() - t;
        cpu += thread_cpu_us() - c;
        wall += t;
        slowest = krd_max_u64(slowest, t);
        for (size_t i = 0; i < n; i++)
            krd_free((void *)(uintptr_t)entries[i].command.ptr);
    }
    printf("%zu puts of %d bytes (%s keys, batches of %zu), %zu done\n", puts_wanted, VALUE_BYTES,
           keys, batch, done);
    printf("apply: %.0f puts/s by the clock, %.0f puts/s by its thread's processor time\n",
           (double)puts_wanted / ((double)wall / 1e6), (double)puts_wanted / ((double)cpu / 1e6));
    printf("slowest batch: %" PRIu64 " us; on disk: %" PRIu64 " MiB\n", slowest,
           kv_disk_bytes(s) >> 20);
    print_memory();
    krd_free(entries);
    kv_close(s);
    return 0;
}
