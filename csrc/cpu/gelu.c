/* GELU alone, for a backward pass that computes it again instead of keeping it. */
#include "element.h"
#include "gelu.h"
#include "isa.h"
#include "threads.h"

typedef struct Numbers {
    floatX *out;
    const floatX *pre;
    int64_t N;
} Numbers;
static void gelu_of(const void *given, Part vectors) {
    const Numbers a = *(const Numbers *)given;
    for (int64_t i = vectors.from * VL; i < vectors.to * VL; i += VL) {
        const int lanes = LANES(i, a.N);
        fx_store_n(a.out + i, gelu(fx_load_n(a.pre + i, lanes)), lanes);
    }
}

void K(gelu_forward)(Context *ctx, floatX *out, const floatX *pre, int64_t N) {
    parallel_static(threads_for(ctx, N), ceil_div(N, VL), gelu_of, &(Numbers){out, pre, N});
}
