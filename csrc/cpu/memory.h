/* Allocation on the CPU, the same for every instruction set. */
#ifndef MEMORY_H
#define MEMORY_H
#include <stdint.h>
int64_t cpu_memory_available(void);
void *cpu_alloc(int64_t bytes);
void cpu_free(void *memory, int64_t bytes);
#endif
