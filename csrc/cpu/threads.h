/* How many threads a loop is worth. One thread computes each result whole, in one order, so that no result depends on the
 * number of threads.
 *   parallel_static(threads_for(ctx, elements), n, body, given); */
#ifndef THREADS_H
#define THREADS_H
#include "../kernels.h"
#include "base/pool.h"
enum { WORTH_A_THREAD = 1 << 14 }; /* for fewer elements, to wake another thread costs more time than it saves */

static inline int threads_for(const Context *ctx, int64_t elements) {
    const int64_t useful = elements / WORTH_A_THREAD + 1;
    return useful < ctx->threads ? (int)useful : ctx->threads;
}

/* The same for elements in parts that are not split, such as rows. */
static inline int threads_among(const Context *ctx, int64_t parts, int64_t elements) {
    const int threads = threads_for(ctx, elements);
    return threads < parts ? threads : (int)parts;
}

/* How many of a size make up n; the last may be smaller. */
static inline int64_t ceil_div(int64_t n, int64_t size) { return (n + size - 1) / size; }
#endif
