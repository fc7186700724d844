/* Random numbers: PyTorch's CPU generator, so that one seed gives one set of weights in both, and SplitMix64's coins. */
#include <math.h>
#include "base/pool.h"
#include "base/rng.h"

enum { N = 624, M = 397, CHUNK = 16 };
#define TWO_PI 6.283185307179586

/* ---- MT19937 (Matsumoto and Nishimura 1998) ---- */

void llmc_rng_seed(llmc_rng *rng, int64_t seed) {
    rng->words[0] = (uint32_t)seed;
    for (uint32_t i = 1; i < N; i++) rng->words[i] = 1812433253u * (rng->words[i - 1] ^ (rng->words[i - 1] >> 30)) + i;
    rng->next = N;
    rng->has_normal = 0;
}

static uint32_t twist(uint32_t u, uint32_t v) {
    /* has no branch, so that compilers use vectors */
    return (((u & 0x80000000u) | (v & 0x7fffffffu)) >> 1) ^ (-(v & 1) & 0x9908b0dfu);
}

static void next_state(uint32_t *w) {
    int i = 0;
    for (; i < N - M; i++) w[i] = w[i + M] ^ twist(w[i], w[i + 1]);
    for (; i < N - 1; i++) w[i] = w[i + M - N] ^ twist(w[i], w[i + 1]);
    w[N - 1] = w[M - 1] ^ twist(w[N - 1], w[0]);
}

static uint32_t temper(uint32_t y) {
    y ^= y >> 11;
    y ^= (y << 7) & 0x9d2c5680u;
    y ^= (y << 15) & 0xefc60000u;
    return y ^ (y >> 18);
}

uint32_t llmc_rng_uint32(llmc_rng *rng) {
    if (rng->next == N) next_state(rng->words), rng->next = 0;
    return temper(rng->words[rng->next++]);
}

/* ---- PyTorch's normal_ for float tensors: one way for fewer than 16 numbers, another for more ---- */

/* x[n] in [0, 1), each from 24 bits of one word */
static void uniform24(llmc_rng *rng, float *x, int64_t n) {
    while (n > 0) {
        if (rng->next == N) next_state(rng->words), rng->next = 0;
        const int left = N - rng->next, take = n < left ? (int)n : left;
        for (int i = 0; i < take; i++) x[i] = (float)(int32_t)(temper(rng->words[rng->next + i]) & 0xffffff) * 0x1p-24f;
        rng->next += take, x += take, n -= take;
    }
}

static double uniform53(llmc_rng *rng) {
    const uint64_t high = llmc_rng_uint32(rng);
    return (double)((high << 32 | llmc_rng_uint32(rng)) & ((UINT64_C(1) << 53) - 1)) * 0x1p-53;
}

/* Returns one normal number of a pair; the generator keeps the other for the next call. */
static double normal(llmc_rng *rng) {
    if (rng->has_normal) return rng->has_normal = 0, rng->normal;
    const double u1 = uniform53(rng), u2 = uniform53(rng);
    const double radius = sqrt(-2 * log1p(-u2)), theta = TWO_PI * u1;
    rng->has_normal = 1;
    rng->normal = radius * sin(theta);
    return radius * cos(theta);
}

/* Box-Muller in place: x[j] and x[j+8] become normal from the uniform numbers in them. */
static void box_muller(float *x, float mean, float std) {
    for (int j = 0; j < CHUNK / 2; j++) {
        const float radius = sqrtf(-2 * logf(1 - x[j])), theta = (float)TWO_PI * x[j + CHUNK / 2];
        const float sine = sinf(theta), cosine = cosf(theta);
        x[j] = radius * cosine * std + mean;
        x[j + CHUNK / 2] = radius * sine * std + mean;
    }
}

typedef struct Normal {
    float *x, mean, std;
} Normal;
static void chunks(const void *given, Part p) {
    const Normal a = *(const Normal *)given;
    for (int64_t i = p.from; i < p.to; i++) box_muller(a.x + i * CHUNK, a.mean, a.std);
}

void llmc_rng_normal(llmc_rng *rng, float *x, int64_t n, float mean, float std) {
    if (n < CHUNK) {
        for (int64_t i = 0; i < n; i++) x[i] = (float)(normal(rng) * std + mean);
        return;
    }
    uniform24(rng, x, n);
    parallel_static(n > 1 << 16 ? llmc_default_threads() : 1, n / CHUNK, chunks, &(Normal){x, mean, std});
    if (n % CHUNK == 0) return;
    uniform24(rng, x + n - CHUNK, CHUNK); /* the last 16 are drawn again, as PyTorch does */
    box_muller(x + n - CHUNK, mean, std);
}

void rng_uniform(llmc_rng *rng, float *x, int64_t n, float low, float high) {
    uniform24(rng, x, n);
    for (int64_t i = 0; i < n; i++) x[i] = x[i] * (high - low) + low;
}

/* ---- coins ---- */

double llmc_coin(uint64_t *state) { return (double)(mix64(*state += GOLDEN) >> 11) * 0x1p-53; }
