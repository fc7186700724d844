/* The arena's memory on the CPU: how much is available, how it is taken and given back. */
#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>
#ifdef __linux__
#include <sys/mman.h> /* MADV_HUGEPAGE, which is Linux's alone */
#endif
#include <unistd.h>
#include "base/cgroup.h"
#include "memory.h"
#include "threads.h"

enum { HUGE_PAGE = 2 << 20 };

/* The bytes that a control group has left, at least 1; 0: it has no limit. The files that it keeps in memory are not counted,
 * because the system gives those up. Version 1 has other names, and a limit that no machine reaches if there is none. */
static double left_in(const char *folder) {
    const double most = 1ull << 60;
    double limit = 0, used = 0, unused;
    const int is_2 = cgroup_numbers(folder, "memory.max", &limit, &unused) == 1;
    if (!is_2 && cgroup_numbers(folder, "memory.limit_in_bytes", &limit, &unused) != 1) return 0;
    if (cgroup_numbers(folder, is_2 ? "memory.current" : "memory.usage_in_bytes", &used, &unused) != 1) return 0;
    const double files = cgroup_entry(folder, "memory.stat", is_2 ? "inactive_file" : "total_inactive_file");
    const double left = limit - used + files;
    return limit >= most ? 0 : left < 1 ? 1 : left;
}

int64_t cpu_memory_granted(const char *root) {
    const double left = cgroup_limit(root, "memory", left_in);
    return left > 0 ? (int64_t)left : -1;
}

/* The memory that the operating system would give without swapping, within the limits of control groups. */
int64_t cpu_memory_available(void) {
    const double kib = cgroup_entry("/proc", "meminfo", "MemAvailable:");
    const int64_t room = kib > 0 ? (int64_t)(kib * 1024) : -1, granted = cpu_memory_granted("");
    return room < 0 || (granted >= 0 && granted < room) ? granted : room;
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
