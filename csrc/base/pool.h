/* Threads that share a loop. A part is computed whole and in order by one thread, so no result depends on the number of
 * threads.
 *
 * A thread without work looks for it for some microseconds, then sleeps. If a helper has not begun its part when the
 * caller is done with its own, the caller computes that part, too: on a busy machine nobody waits for a thread that
 * gets no core. Callers that compute at the same time have helpers of their own; a loop inside a loop runs alone. After
 * a fork the child starts new helpers. Where no thread can be started, the caller does everything. */
#ifndef POOL_H
#define POOL_H
#include <stdint.h>

enum { MOST_THREADS = 1024 };

typedef struct Part { /* iterations [from, to) */
    int64_t from, to;
    int thread; /* 0 .. threads-1; parts that run at the same time have different numbers */
} Part;
typedef void (*Body)(const void *given, Part part);

/* Calls body for parts that make up [0, n), and returns when all are done. Static: equal parts, one a thread. */
void parallel_static(int threads, int64_t n, Body body, const void *given);
/* Dynamic: single iterations, the next one to the first thread that is free. */
void parallel_dynamic(int threads, int64_t n, Body body, const void *given);
/* Starts the helpers for a loop of `threads` threads now, not at the first loop. Returns the number of threads, with
 * the caller: fewer than `threads` if the system starts no more. */
int parallel_start(int threads);
#endif
