/* The gradients' norm, their scaling, AdamW, and what is stored of parameters. Memory bounds each of them, so each makes one
 * pass over it. */
#include <math.h>
#include "element.h"
#include "isa.h"
#include "master.h"
#include "threads.h"

enum { PIECE = 1 << 13 }; /* the elements that a thread takes at once: a multiple of every VL */

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

/* ---- norm ---- */

typedef float half_vf __attribute__((vector_size(VL * 2)));
typedef double vd __attribute__((vector_size(VL * 4))); /* as many doubles as fill a register */

static inline vd load_wide(const float *p) {
    half_vf v;
    memcpy(&v, p, sizeof v);
    return __builtin_convertvector(v, vd);
}

/* The sum is double, because the square of a float above 1.8e19 overflows. */
static double sum_of_squares(const float *x, int64_t n) {
    enum { HALF = VL / 2 };
    vd s[4] = {{0}};
    int64_t i = 0;
    double sum = 0;
    for (; i + 4 * HALF <= n; i += 4 * HALF)
        for (int j = 0; j < 4; j++) {
            const vd v = load_wide(x + i + j * HALF);
            s[j] += v * v;
        }
    for (; i < n; i++) sum += (double)x[i] * x[i];
    const vd total = (s[0] + s[1]) + (s[2] + s[3]);
    for (int j = 0; j < HALF; j++) sum += total[j];
    return sum;
}

enum { CHUNKS = 256 };
typedef struct Squares {
    double *partial;
    const float *grads;
    int64_t N, each;
} Squares;
static void sums_of_chunks(const void *given, Part chunks) {
    const Squares a = *(const Squares *)given;
    for (int64_t k = chunks.from, at = k * a.each; k < chunks.to; k++, at += a.each)
        a.partial[k] = sum_of_squares(a.grads + at, smaller(a.each, a.N - at));
}

/* The chunks do not depend on the number of threads, and their sums are added in order. */
void K(global_norm)(Context *ctx, float *norm, const float *grads, float max_norm, int64_t N) {
    double partial[CHUNKS], sum = 0;
    const int64_t fair = ceil_div(N, CHUNKS), each = fair > PIECE ? fair : PIECE, chunks = ceil_div(N, each);
    parallel_static(threads_for(ctx, N), chunks, sums_of_chunks, &(Squares){partial, grads, N, each});
    for (int64_t k = 0; k < chunks; k++) sum += partial[k];
    norm[0] = (float)sqrt(sum);
    norm[1] = max_norm > 0 && norm[0] + 1e-6f > max_norm ? max_norm / (norm[0] + 1e-6f) : 1;
}

typedef struct Scaled {
    float *x, factor;
    int64_t N;
} Scaled;
static void scale_pieces(const void *given, Part p) {
    const Scaled a = *(const Scaled *)given;
    for (int64_t i = p.from * PIECE, end = smaller(p.to * PIECE, a.N); i < end; i += VL) {
        const int n = LANES(i, end);
        vf_store_n(a.x + i, vf_load_n(a.x + i, n) * a.factor, n);
    }
}

void K(scale)(Context *ctx, float *x, const float *factor, int64_t N) {
    if (factor[0] == 1) return;
    parallel_static(threads_for(ctx, N), ceil_div(N, PIECE), scale_pieces, &(Scaled){x, factor[0], N});
}

/* ---- AdamW ---- */

typedef struct Step { /* struct AdamW's numbers, each in every lane */
    vf grad_scale, beta1, gain1, beta2, gain2, rate, unbias, eps, decay;
} Step;

static Step make_step(const AdamW *s, const float *grad_scale, int decayed) {
    return (Step){
        .grad_scale = vf_set(grad_scale ? grad_scale[0] : 1),
        .beta1 = vf_set(s->beta1),
        .gain1 = vf_set(s->gain1),
        .beta2 = vf_set(s->beta2),
        .gain2 = vf_set(s->gain2),
        .rate = vf_set(s->rate),
        .unbias = vf_set(s->unbias),
        .eps = vf_set(s->eps),
        .decay = vf_set(decayed ? s->decay : 0),
    };
}

INLINE void adamw_lanes(const Master *master, int64_t i, float *m, float *v, const float *grad, const Step *s, int n,
                        const int split) {
    const vf g = vf_load_n(grad, n) * s->grad_scale, p = master_load(master, i, n, split);
    const vf m1 = s->beta1 * vf_load_n(m, n) + s->gain1 * g;
    const vf v1 = s->beta2 * vf_load_n(v, n) + s->gain2 * (g * g);
    const vf step = s->rate * m1 / (vf_sqrt(v1) * s->unbias + s->eps);
    vf_store_n(m, m1, n);
    vf_store_n(v, v1, n);
    master_store(master, i, p - (s->decay * p + step), n, split);
}

typedef struct Moved {
    Master master;
    float *m, *v;
    const float *grad;
    const Step *step;
    int64_t N;
} Moved;
INLINE void move_pieces(const Moved *a, Part p, const int split) {
    const Step step = *a->step;
    for (int64_t i = p.from * PIECE, end = smaller(p.to * PIECE, a->N); i < end; i += VL)
        adamw_lanes(&a->master, i, a->m + i, a->v + i, a->grad + i, &step, LANES(i, end), split);
}
static void whole_pieces(const void *given, Part p) { move_pieces(given, p, 0); }
static void split_pieces(const void *given, Part p) { move_pieces(given, p, 1); }

void K(adamw)(Context *ctx, void *param, floatX *stored, float *m, float *v, const float *grad, const float *grad_scale,
              const AdamW *numbers, int decayed, int64_t N) {
    const Step step = make_step(numbers, grad_scale, decayed);
    parallel_static(threads_for(ctx, N), ceil_div(N, PIECE), ctx->split ? split_pieces : whole_pieces,
                    &(Moved){{param, stored}, m, v, grad, &step, N});
}

typedef struct Stored {
    floatX *stored;
    const float *param;
    int64_t N;
} Stored;
static void store_pieces(const void *given, Part p) {
    const Stored a = *(const Stored *)given;
    for (int64_t i = p.from * PIECE, end = smaller(p.to * PIECE, a.N); i < end; i += VL) {
        const int n = LANES(i, end);
        fx_store_n(a.stored + i, vf_load_n(a.param + i, n), n);
    }
}

void K(store)(Context *ctx, floatX *stored, const float *param, int64_t N) {
    if ((const void *)stored == param) return;
    parallel_static(threads_for(ctx, N), ceil_div(N, PIECE), store_pieces, &(Stored){stored, param, N});
}
