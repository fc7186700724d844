/* A table of code points: ranges in ascending order that do not overlap, each with a value. */
#ifndef RANGES_H
#define RANGES_H
#include <stddef.h>
#include <stdint.h>

typedef struct Range {
    uint32_t first, last;
    int value;
} Range;

/* The value of a code point, or `otherwise` if it lies in none of the n ranges; n is at least 1. */
static inline int value_in(const Range *ranges, size_t n, uint32_t code, int otherwise) {
    size_t lo = 0, hi = n; /* the last range that begins at `code` or before it lies in [lo, hi) */
    while (hi - lo > 1) {
        const size_t middle = (lo + hi) / 2;
        if (ranges[middle].first <= code) lo = middle;
        else hi = middle;
    }
    return code >= ranges[lo].first && code <= ranges[lo].last ? ranges[lo].value : otherwise;
}
#endif
