/* Token and position embeddings. */
#include "threads.h"
#include "weights.h"

/* sum = a, a row of weights, + b */
INLINE void add_embeddings(float *sum, const void *a, const float *b, int C, const int format) {
    const float scale = weight_scale(a, format);
    for (int c = 0; c < C; c += VL) {
        const int n = LANES(c, C);
        vf_store_n(sum + c, weights_at(a, c, n, format) * scale + vf_load_n(b + c, n), n);
    }
}

void K(encoder_forward)(Context *ctx, floatX *out, const int *tokens, const floatX *wte, const floatX *wpe,
                        const int *pos, int B, int T, int C) {
    const int64_t rows = (int64_t)B * T;
#pragma omp parallel for num_threads(threads_among(ctx, rows, rows *C))
    for (int64_t bt = 0; bt < rows; bt++) {
        const int64_t at = bt % T + (pos ? pos[bt / T] : 0);
        const void *row = weight_row(wte, ctx->weights, C, tokens[bt]);
        FOR_FORMAT(ctx->weights, add_embeddings(out + bt * C, row, wpe + at * C, C, F));
    }
}

/* n channels at position t: every sequence's gradient goes to its token's row, their sum to dwpe's. Sixteen are
 * summed before they join the others, so that the rounding errors of a large B do not pile up. */
static inline void scatter(float *dwte, float *dwpe, const float *dout, const int *tokens, int B, int T, int C, int n) {
    vf total = {0};
    for (int first = 0; first < B; first += 16) {
        const int last = first + 16 < B ? first + 16 : B;
        vf sum = {0};
        for (int b = first; b < last; b++) {
            const vf d = vf_load_n(dout + (int64_t)b * T * C, n);
            float *row = dwte + (int64_t)tokens[(int64_t)b * T] * C;
            vf_store_n(row, vf_load_n(row, n) + d, n);
            sum += d;
        }
        total += sum;
    }
    vf_store_n(dwpe, vf_load_n(dwpe, n) + total, n);
}

/* A token may come more than once, so the threads share out the columns, not the rows: by cache lines. */
void K(encoder_backward)(Context *ctx, float *dwte, float *dwpe, const floatX *dout, const int *tokens, int B, int T,
                         int C) {
    enum { LINE = 16 };
    const int64_t lines = (C + LINE - 1) / LINE;
    const int parts = threads_among(ctx, lines, (int64_t)B * T * C);
#pragma omp parallel for num_threads(parts)
    for (int part = 0; part < parts; part++) {
        const int64_t first = lines * part / parts * LINE, end = lines * (part + 1) / parts * LINE;
        for (int64_t t = 0; t < T; t++)
            for (int64_t c = first; c < end && c < C; c += VL)
                scatter(dwte + c, dwpe + t * C + c, dout + t * C + c, tokens + t, B, T, C, LANES(c, C));
    }
}
