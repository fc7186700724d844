/* GELU alone, where the backward pass computes it again rather than keep it. */
#include "gelu.h"
#include "isa.h"
#include "threads.h"

void K(gelu_forward)(Context *ctx, floatX *out, const floatX *pre, int64_t N) {
    (void)ctx; /* unused without OpenMP */
#pragma omp parallel for schedule(static) num_threads(threads_for(ctx, N))
    for (int64_t i = 0; i < N; i += VL) {
        const int lanes = LANES(i, N);
        vf_store_n(out + i, gelu(vf_load_n(pre + i, lanes)), lanes);
    }
}
