/* How many threads a loop is worth. Work is split so that every result is computed whole by one thread, in one order:
 * no result depends on their number.
 *   parallel_static(threads_for(ctx, elements), n, body, given); */
#ifndef THREADS_H
#define THREADS_H
#include "../kernels.h"
#include "base/pool.h"
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

/* how many pieces of a size make up n */
static inline int64_t pieces(int64_t n, int64_t size) { return (n + size - 1) / size; }
#endif
