/* Memory on the CPU. It is the same for every instruction set. */
#ifndef MEMORY_H
#define MEMORY_H
#include "../kernels.h"
int64_t cpu_memory_available(void);
/* The bytes that the control groups of this process have left; -1: no limit. root: as that of cgroup_limit */
int64_t cpu_memory_granted(const char *root);
void *cpu_alloc(int64_t bytes);
void cpu_free(void *memory, int64_t bytes);
int cpu_open(Context *ctx);
void cpu_close(Context *ctx);
int cpu_sync(Context *ctx);
int cpu_replay(Context *ctx, const int64_t key[4]);
void cpu_recorded(Context *ctx);
void cpu_fill(Context *ctx, void *dst, int byte, int64_t bytes);
void cpu_copy(Context *ctx, void *dst, const void *src, int64_t bytes);

/* The entries of struct Kernels that are the same for every instruction set. */
#define CPU_MEMORY                                                                                                 \
    .host = 1, .memory_available = cpu_memory_available, .open = cpu_open, .close = cpu_close, .alloc = cpu_alloc, \
    .free = cpu_free, .sync = cpu_sync, .replay = cpu_replay, .recorded = cpu_recorded, .fill = cpu_fill,          \
    .copy_in = cpu_copy, .copy_out = cpu_copy
#endif
