/* Threads that share a loop. Each computes its parts whole and in order, so no result depends on how many there are.
 *
 * They look for work for some microseconds, then sleep. What a thread that was asked to help has not begun when the caller
 * is done with its own part, the caller does itself: on a busy machine nobody waits for a thread that gets no core.
 * Threads of a program that compute at the same time have helpers of their own; a loop within a loop runs alone. After a
 * fork the child starts helpers of its own. Where none can be started the caller does it all. */
#ifndef POOL_H
#define POOL_H
#include <stdint.h>

enum { MOST_THREADS = 1024 };

typedef struct Part { /* iterations [from, to) */
    int64_t from, to;
    int thread; /* 0 .. threads-1: two parts that run at the same time never have the same */
} Part;
typedef void (*Body)(const void *given, Part part);

/* Calls body for parts that make up [0, n), and returns when all are done. Static: equal parts, one for each thread. */
void parallel_static(int threads, int64_t n, Body body, const void *given);
/* Dynamic: one iteration after the other, each to the thread that is free. */
void parallel_dynamic(int threads, int64_t n, Body body, const void *given);
/* Starts what a loop of so many threads needs, now rather than then. Returns how many threads there are, with the caller:
 * fewer than were asked for where the system starts no more. */
int parallel_start(int threads);
#endif
