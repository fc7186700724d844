/* Measures the limits of the machine with nothing in the way. GFLOP/s: multiply-adds that never leave the registers, in
 * fp32 and, on CPUs with VDPBF16PS, in bf16; on AMX, tiles of random numbers that come from the first cache, because tiles
 * of zeros are multiplied faster. GB/s: reading memory, and updating it in place, where bytes read and bytes
 * written both count. `peak THREADS MIB REPEATS MILLIONS` prints "name value" lines. dev/bench_limits.py builds it with
 * -march=native. Each loop works on vectors, not on scalars, so that -O3 need not reorder sums. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include "base/pool.h"
#include "cpu/amx.h"

#if defined(__AVX512F__)
#define VL 16
#elif defined(__AVX__)
#define VL 8
#else
#define VL 4
#endif
enum { CHAINS = 12 }; /* independent sums: more than latency times issue width */
typedef float vf __attribute__((vector_size(VL * 4)));

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static float sum_of(const vf *c, int n) {
    float sum = 0;
    for (int j = 0; j < n; j++)
        for (int i = 0; i < VL; i++) sum += c[j][i];
    return sum;
}

/* c0 .. c11, each a chain of dependent steps that stays in its register */
#define EACH(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)
#define START(i) vf c##i = a * (float)i;
#define END(i) c##i,
#define LOOP(name, STEP)                                    \
    static float name(long rounds) {                        \
        const vf a = (vf){0} + 0.999f, b = (vf){0} + 1e-3f; \
        EACH(START)                                         \
        for (long k = 0; k < rounds; k++) {                 \
            EACH(STEP)                                      \
        }                                                   \
        const vf c[] = {EACH(END)};                         \
        return sum_of(c, CHAINS) + b[0];                    \
    }
#define FMA(i) c##i = c##i * a + b;
LOOP(fma_loop, FMA)
#ifdef __AVX512BF16__
#define DPBF16(i) __asm__ volatile("vdpbf16ps %1, %1, %0" : "+v"(c##i) : "v"(a));
LOOP(bf16_loop, DPBF16)
#endif

static volatile float sink; /* takes the results, so that no compiler drops the loops */

typedef struct Loops {
    float (*loop)(long);
    long rounds;
} Loops;
static void run_loops(const void *given, Part p) {
    const Loops *a = given;
    for (long t = p.from; t < p.to; t++) sink = a->loop(a->rounds);
}

/* GFLOP/s of a loop that does `flops` per round and chain */
static double rate(float (*loop)(long), long rounds, double flops, int threads) {
    const double start = now();
    parallel_static(threads, threads, run_loops, &(Loops){loop, rounds});
    const double seconds = now() - start;
    return sink == 0.5f ? 0 : 1e-9 * flops * CHAINS * (double)rounds * threads / seconds;
}

#ifdef __AMX_BF16__

/* A round is a step of 2 x 2 tiles of sums: four loads, four multiplications. */
static void amx_rounds(const void *given, Part p) {
    const long rounds = *(const long *)given;
    char numbers[4 * TILE_BYTES] __attribute__((aligned(64)));
    for (long t = p.from; t < p.to; t++) {
        uint16_t *bits = (uint16_t *)numbers;
        for (int i = 0; i < 2 * TILE_BYTES; i++)
            bits[i] = (uint16_t)((0x3f00 + i * 2654435761u % 251) | (i % 3 ? 0 : 0x8000));
        amx_begin();
        AMX_ZERO(0);
        AMX_ZERO(1);
        AMX_ZERO(2);
        AMX_ZERO(3);
        for (long k = 0; k < rounds; k++) {
            AMX_LOAD(4, numbers, 64);
            AMX_LOAD(6, numbers + TILE_BYTES, 64);
            AMX_DOT(0, 4, 6);
            AMX_LOAD(7, numbers + 2 * TILE_BYTES, 64);
            AMX_DOT(1, 4, 7);
            AMX_LOAD(5, numbers + 3 * TILE_BYTES, 64);
            AMX_DOT(2, 5, 6);
            AMX_DOT(3, 5, 7);
        }
        amx_end();
    }
}

static double amx_rate(long rounds, int threads) {
    const double start = now();
    parallel_static(threads, threads, amx_rounds, &rounds);
    return 1e-9 * 4 * 2 * TILE * TILE * DEPTH * (double)rounds * threads / (now() - start);
}
#endif

/* Reads a part; asks the second cache for the vectors `ahead` of it, as the engine does where it reads weights once. */
static float read_part(const vf *data, long n, long ahead) {
    vf c[8] = {{0}};
    for (long i = 0; i + 8 <= n; i += 8) {
#pragma GCC unroll 8
        for (int j = 0; j < 8; j++) {
            __builtin_prefetch(data + (i + j + ahead < n ? i + j + ahead : n - 1), 0, 2);
            c[j] += data[i + j];
        }
    }
    return sum_of(c, 8);
}

/* Reads 16 rows of 3 KiB, 8 side by side, and asks for the next 16: as the engine reads weights for one token. */
static float read_rows(const vf *data, long n, long row) {
    vf c[8] = {{0}};
    for (long i = 0; i + 16 * row <= n; i += 8 * row)
        for (long k = i; k < i + row; k++)
#pragma GCC unroll 8
            for (int j = 0; j < 8; j++) {
                __builtin_prefetch(data + (k + (j + 16) * row < n ? k + (j + 16) * row : n - 1), 0, 2);
                c[j] += data[k + j * row];
            }
    return sum_of(c, 8);
}

typedef struct Reads {
    float (*read)(const vf *, long, long);
    const vf *data;
    long part, how;
} Reads;
static void read_parts(const void *given, Part p) {
    const Reads *a = given;
    for (long t = p.from; t < p.to; t++) sink = a->read(a->data + t * a->part, a->part, a->how);
}

static double read_rate(float (*read)(const vf *, long, long), const vf *data, long part, int threads, long how) {
    const double start = now();
    parallel_static(threads, threads, read_parts, &(Reads){read, data, part, how});
    return sink == 0.5f ? 0 : 1e-9 * sizeof(vf) * (double)part * threads / (now() - start);
}

typedef struct Parts {
    vf *data;
    long part;
} Parts;
static void fill_parts(const void *given, Part p) {
    const Parts a = *(const Parts *)given;
    for (long i = p.from * a.part; i < p.to * a.part; i++) a.data[i] = (vf){0} + 1.0f;
}
static void update_parts(const void *given, Part p) {
    const Parts a = *(const Parts *)given;
    for (long i = p.from * a.part; i < p.to * a.part; i++) a.data[i] = a.data[i] * 0.999f;
}

static double update_rate(vf *data, long part, int threads) {
    const double start = now();
    parallel_static(threads, threads, update_parts, &(Parts){data, part});
    return 2e-9 * sizeof(vf) * (double)part * threads / (now() - start);
}

int main(int argc, char **argv) {
    if (argc != 5) return 2;
    const int threads = atoi(argv[1]), repeats = atoi(argv[3]);
    const long part = atol(argv[2]) * (1l << 20) / (long)sizeof(vf) / threads, rounds = atol(argv[4]) * 1000000;
    const long aheads[] = {0, 16 << 10, 128 << 10}; /* in bytes; the best one depends on the machine */
    vf *data = aligned_alloc(1 << 21, (size_t)atol(argv[2]) << 20);
    if (!data || part < 8) return 1;
    parallel_static(threads, threads, fill_parts, &(Parts){data, part});
    for (int i = 0; i < repeats; i++) {
        printf("fma %.2f\n", rate(fma_loop, rounds, 2 * VL, threads));
#ifdef __AVX512BF16__
        printf("bf16 %.2f\n", rate(bf16_loop, rounds, 4 * VL, threads));
#endif
#ifdef __AMX_BF16__
        if (amx_request() == 0) printf("amx %.2f\n", amx_rate(rounds / 4, threads));
#endif
        for (int k = 0; k < 3; k++)
            printf("read %.2f\n", read_rate(read_part, data, part, threads, aheads[k] / (long)sizeof(vf)));
        printf("read %.2f\n", read_rate(read_rows, data, part, threads, (3 << 10) / (long)sizeof(vf)));
        printf("update %.2f\n", update_rate(data, part, threads));
    }
    free(data);
    return 0;
}
