/* The arena's memory on the CPU: how much is available, how it is taken and given back. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#ifdef __linux__
#include <sys/mman.h> /* MADV_HUGEPAGE, which is Linux's alone */
#endif
#include <unistd.h>
#include "memory.h"
#include "threads.h"

enum { HUGE_PAGE = 2 << 20 };

static int64_t number_after(const char *path, const char *format) {
    long long value = -1;
    char line[256];
    FILE *f = fopen(path, "r");
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, format, &value) == 1) break;
    if (f) fclose(f);
    return value;
}

/* The memory that the operating system would give without swapping, within the control group's limit. */
int64_t cpu_memory_available(void) {
    const int64_t kib = number_after("/proc/meminfo", "MemAvailable: %lld kB");
    const int64_t limit = number_after("/sys/fs/cgroup/memory.max", "%lld");
    const int64_t used = number_after("/sys/fs/cgroup/memory.current", "%lld");
    const int64_t cache = number_after("/sys/fs/cgroup/memory.stat", "inactive_file %lld"); /* the system gives it up */
    const int64_t left = limit - used + (cache > 0 ? cache : 0);
    int64_t room = kib < 0 ? -1 : kib * 1024;
    if (limit >= 0 && used >= 0 && (room < 0 || left < room)) room = left;
    return room;
}

void *cpu_alloc(int64_t bytes) {
    const size_t align = bytes >= HUGE_PAGE ? HUGE_PAGE : 64;
    void *memory = NULL;
    if (posix_memalign(&memory, align, ((size_t)bytes + align - 1) / align * align)) return NULL;
#ifdef MADV_HUGEPAGE
    if (bytes >= HUGE_PAGE) madvise(memory, (size_t)bytes, MADV_HUGEPAGE); /* fewer page faults and TLB misses */
#endif
    return memory;
}

void cpu_free(void *memory, int64_t bytes) {
    (void)bytes;
    free(memory);
}

/* Starts the threads. There may be fewer than were asked for, and a model plans its scratch for those there are. */
int cpu_open(Context *ctx) {
    ctx->threads = parallel_start(ctx->threads);
    return 0;
}

void cpu_close(Context *ctx) { (void)ctx; }

int cpu_sync(Context *ctx) {
    (void)ctx; /* every kernel has finished when it returns */
    return 0;
}

int cpu_replay(Context *ctx, const int64_t key[4]) {
    (void)ctx, (void)key; /* calls are not recorded, because on the CPU a call costs nothing */
    return 0;
}

void cpu_recorded(Context *ctx) { (void)ctx; }

enum { PIECE = 1 << 20 }; /* bytes */
typedef struct Filled {
    char *dst;
    int byte;
    int64_t bytes;
} Filled;
static void fill(const void *given, Part p) {
    const Filled a = *(const Filled *)given;
    const int64_t from = p.from * PIECE, end = p.to * PIECE < a.bytes ? p.to * PIECE : a.bytes;
    memset(a.dst + from, a.byte, (size_t)(end - from));
}

/* Fills piece by piece, so that each thread is the first to touch the pages that it will mostly use. */
void cpu_fill(Context *ctx, void *dst, int byte, int64_t bytes) {
    parallel_static(bytes > PIECE ? ctx->threads : 1, ceil_div(bytes, PIECE), fill, &(Filled){dst, byte, bytes});
}

void cpu_copy(Context *ctx, void *dst, const void *src, int64_t bytes) {
    (void)ctx;
    memcpy(dst, src, (size_t)bytes);
}
