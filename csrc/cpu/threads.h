/* How many threads a loop is worth. Work is split so that every result is computed whole by one thread, in one order:
 * no result depends on their number.
 *   #pragma omp parallel for num_threads(threads_for(ctx, elements)) */
#ifndef THREADS_H
#define THREADS_H
#include "../kernels.h"
#if defined(_OPENMP)
#include <omp.h>
#endif
enum { WORTH_A_THREAD = 1 << 14 }; /* elements: below this, waking another thread costs more than it brings */

static inline int threads_for(const Context *ctx, int64_t elements) {
    const int64_t useful = elements / WORTH_A_THREAD + 1;
    return useful < ctx->threads ? (int)useful : ctx->threads;
}

/* the same where the elements come in parts that are not split, such as rows */
static inline int threads_among(const Context *ctx, int64_t parts, int64_t elements) {
    const int threads = threads_for(ctx, elements);
    return threads < parts ? threads : (int)parts;
}

static inline int this_thread(void) { /* of those of the loop it is in */
#if defined(_OPENMP)
    return omp_get_thread_num();
#else
    return 0;
#endif
}
#endif
