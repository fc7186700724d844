/* Token and position embeddings. */
#include "threads.h"
#include "weights.h"

/* sum = a + b, where a is a row of weights. */
INLINE void add_embeddings(floatX *sum, const void *a, const floatX *b, int C, const int format) {
    const float scale = weight_scale(a, format);
    for (int c = 0; c < C; c += VL) {
        const int n = LANES(c, C);
        fx_store_n(sum + c, weights_at(a, c, n, format) * scale + fx_load_n(b + c, n), n);
    }
}

typedef struct Forward {
    floatX *out;
    const int *tokens, *pos, *offsets;
    const floatX *wte, *wpe;
    int T, C, format;
} Forward;
static void forward_rows(const void *given, Part rows) {
    const Forward a = *(const Forward *)given;
    for (int64_t bt = rows.from; bt < rows.to; bt++) {
        const int64_t at = (a.offsets ? a.offsets[bt] : bt % a.T) + (a.pos ? a.pos[bt / a.T] : 0);
        const void *row = weight_row(a.wte, a.format, a.C, a.tokens[bt]);
        FOR_FORMAT(a.format, add_embeddings(a.out + bt * a.C, row, a.wpe + at * a.C, a.C, F));
    }
}

void K(encoder_forward)(Context *ctx, floatX *out, const int *tokens, const floatX *wte, const floatX *wpe,
                        const int *pos, const int *offsets, int B, int T, int C) {
    const int64_t rows = (int64_t)B * T;
    parallel_static(threads_among(ctx, rows, rows * C), rows, forward_rows,
                    &(Forward){out, tokens, pos, offsets, wte, wpe, T, C, ctx->weight_format});
}

/* n channels at one position. Every sequence's gradient goes to its token's row of dwte, and their sum to dwpe. Sixteen
 * gradients are summed before they join the others, so that the rounding errors of a large B do not pile up. */
static inline void scatter(float *dwte, float *dwpe, const floatX *dout, const int *tokens, int B, int T, int C,
                           int n) {
    vf total = {0};
    for (int first = 0; first < B; first += 16) {
        const int last = first + 16 < B ? first + 16 : B;
        vf sum = {0};
        for (int b = first; b < last; b++) {
            const vf d = fx_load_n(dout + (int64_t)b * T * C, n);
            float *row = dwte ? dwte + (int64_t)tokens[(int64_t)b * T] * C : NULL;
            if (row) vf_store_n(row, vf_load_n(row, n) + d, n);
            sum += d;
        }
        total += sum;
    }
    if (dwpe) vf_store_n(dwpe, vf_load_n(dwpe, n) + total, n);
}

/* The same for one row, which joins those of its position in other documents of the window. */
static inline void scatter_row(float *dwte, float *dwpe, const floatX *dout, int n) {
    const vf d = fx_load_n(dout, n);
    if (dwte) vf_store_n(dwte, vf_load_n(dwte, n) + d, n);
    if (dwpe) vf_store_n(dwpe, vf_load_n(dwpe, n) + d, n);
}

enum { LINE = 16 };
typedef struct Backward {
    float *dwte, *dwpe;
    const floatX *dout;
    const int *tokens, *offsets;
    int B, T, C;
} Backward;
static void backward_documents(const void *given, Part lines) {
    const Backward a = *(const Backward *)given;
    for (int64_t row = 0; row < (int64_t)a.B * a.T; row++)
        for (int64_t c = lines.from * LINE; c < lines.to * LINE && c < a.C; c += VL)
            scatter_row(a.dwte ? a.dwte + (int64_t)a.tokens[row] * a.C + c : NULL,
                        a.dwpe ? a.dwpe + (int64_t)a.offsets[row] * a.C + c : NULL, a.dout + row * a.C + c,
                        LANES(c, a.C));
}
static void backward_lines(const void *given, Part lines) {
    const Backward a = *(const Backward *)given;
    for (int64_t t = 0; t < a.T; t++)
        for (int64_t c = lines.from * LINE; c < lines.to * LINE && c < a.C; c += VL)
            scatter(a.dwte ? a.dwte + c : NULL, a.dwpe ? a.dwpe + t * a.C + c : NULL, a.dout + t * a.C + c,
                    a.tokens + t, a.B, a.T, a.C, LANES(c, a.C));
}

/* A token may come more than once, so threads share out the columns instead of the rows. A thread gets whole cache lines. */
void K(encoder_backward)(Context *ctx, float *dwte, float *dwpe, const floatX *dout, const int *tokens,
                         const int *offsets, int B, int T, int C) {
    const int64_t lines = ceil_div(C, LINE);
    parallel_static(threads_among(ctx, lines, (int64_t)B * T * C), lines, offsets ? backward_documents : backward_lines,
                    &(Backward){dwte, dwpe, dout, tokens, offsets, B, T, C});
}
