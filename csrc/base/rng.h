/* SplitMix64: cheap, well-mixed numbers, for the order of windows and for the sampler's coins */
#ifndef RNG_H
#define RNG_H
#include "pyllmc.h"
#define GOLDEN UINT64_C(0x9E3779B97F4A7C15) /* 2^64 / golden ratio */

/* SplitMix64's finaliser (Steele, Lea, Flood 2014) */
static inline uint64_t mix64(uint64_t z) {
    z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
    return z ^ (z >> 31);
}
/* x[n] as torch.empty(n).uniform_(low, high, generator=...) fills it. */
void rng_uniform(llmc_rng *rng, float *x, int64_t n, float low, float high);
#endif
