/* The machine's limits, measured with nothing in the way: multiply-adds that never leave the registers (GFLOP/s), and
 * reading memory (GB/s). Prints both for the number of threads given. Built with -march=native by dev/bench.py. */
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#if defined(__AVX512F__)
#define VL 16
#elif defined(__AVX__)
#define VL 8
#else
#define VL 4
#endif
enum { CHAINS = 12, READ_FLOATS = 1 << 26 };
typedef float vf __attribute__((vector_size(VL * 4)));

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static float multiply_add(long rounds) {
    vf c[CHAINS], a, b;
    for (int i = 0; i < VL; i++) a[i] = 0.999f, b[i] = 1e-3f;
    for (int j = 0; j < CHAINS; j++) c[j] = a * (float)j;
    for (long k = 0; k < rounds; k++) {
#pragma GCC unroll 12
        for (int j = 0; j < CHAINS; j++) c[j] = c[j] * a + b;
    }
    float sum = 0;
    for (int j = 0; j < CHAINS; j++) sum += c[j][0];
    return sum;
}

static double flops(int threads) {
    const long rounds = 8000000;
    float sink = 0;
    const double start = now();
#pragma omp parallel num_threads(threads) reduction(+ : sink)
    sink += multiply_add(rounds);
    const double seconds = now() - start;
    return sink == 0.5f ? 0 : 2e-9 * VL * CHAINS * (double)rounds * threads / seconds;
}

static double bandwidth(const float *data, int threads) {
    float sink = 0;
    const double start = now();
#pragma omp parallel for simd num_threads(threads) reduction(+ : sink)
    for (long i = 0; i < READ_FLOATS; i++) sink += data[i];
    return sink == 0.5f ? 0 : 4e-9 * READ_FLOATS / (now() - start);
}

int main(int argc, char **argv) {
    const int threads = argc > 1 ? atoi(argv[1]) : 1, repeats = 7;
    float *data = malloc(4l * READ_FLOATS);
    if (!data) return 1;
#pragma omp parallel for num_threads(threads)
    for (long i = 0; i < READ_FLOATS; i++) data[i] = (float)(i % 1000) * 1e-3f;
    for (int i = 0; i < repeats; i++) printf("%.2f %.2f\n", flops(threads), bandwidth(data, threads));
    free(data);
    return 0;
}
