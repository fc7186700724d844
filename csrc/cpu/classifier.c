/* Softmax and cross-entropy over the V real logits of each row. A row is taken in blocks that stay in the first cache. */
#include <float.h>
#include <math.h>
#include <string.h>
#include "element.h"
#include "isa.h"
#include "threads.h"

enum { BLOCK = 1024 };

static float block_max(const floatX *x, int n) {
    enum { TURNS = 4 }; /* maxima that go on by turns, as one would wait for itself */
    vf max[TURNS];
    for (int l = 0; l < TURNS; l++) max[l] = vf_set(-FLT_MAX);
    int i = 0;
    for (; i + TURNS * VL <= n; i += TURNS * VL)
        UNROLL for (int l = 0; l < TURNS; l++) max[l] = vf_max(max[l], fx_load(x + i + l * VL));
    for (; i < n; i += VL) max[0] = vf_max(max[0], vf_pick(vi_lanes(0) < n - i, fx_load_n(x + i, LANES(i, n)), max[0]));
    return vf_max_of(vf_max(vf_max(max[0], max[1]), vf_max(max[2], max[3])));
}

/* e^x, x <= 0 but for rounding. In bf16 it is 2^(x log2(e)), which is 2 times as fast: the rounding of that product is far
 * below the rounding of the logits themselves. */
INLINE vf exp_of(vf x, const int terms) {
    return sizeof(floatX) == sizeof(float) ? vf_exp(x) : vf_exp2(x * 1.44269504f, terms);
}

/* Returns the sum of exp(x - shift) and stores each term to out, unless out is NULL. */
static inline float block_exp(floatX *out, const floatX *x, float shift, int n) {
    vf sum = {0};
    for (int i = 0; i < n; i += VL) {
        const int lanes = LANES(i, n);
        const vf e = vf_keep_n(exp_of(fx_load_n(x + i, lanes) - shift, TERMS_OF_SUMS), lanes);
        if (out) fx_store_n(out + i, e, lanes);
        sum += e;
    }
    return vf_sum(sum);
}

static int block_size(int at, int V) { return V - at < BLOCK ? V - at : BLOCK; }

/* log sum exp in one pass (Milakov & Gimelshein 2018). The sum is relative to the largest logit so far; it is scaled down
 * when a larger one comes. */
APART double row_lse(const floatX *x, int V) {
    double sum = 0;
    float max = -FLT_MAX;
    for (int at = 0; at < V; at += BLOCK) {
        const int n = block_size(at, V);
        const float here = block_max(x + at, n);
        if (here > max) {
            sum *= exp((double)max - here);
            max = here;
        }
        sum += block_exp(NULL, x + at, max, n);
    }
    return max + log(sum);
}

typedef struct Forward {
    float *losses, *lse;
    const floatX *logits;
    const int *targets;
    int V, Vp;
} Forward;
static void forward_rows(const void *given, Part rows) {
    const Forward a = *(const Forward *)given;
    for (int64_t bt = rows.from; bt < rows.to; bt++) {
        const floatX *x = a.logits + bt * a.Vp;
        const double l = row_lse(x, a.V);
        a.lse[bt] = (float)l;
        a.losses[bt] = a.targets[bt] < 0 ? 0 : (float)(l - fx_load_one(x + a.targets[bt]));
    }
}

void K(classifier_forward)(Context *ctx, float *losses, float *lse, const floatX *logits, const int *targets, int B,
                           int T, int V, int Vp) {
    const int64_t rows = (int64_t)B * T;
    parallel_static(threads_among(ctx, rows, rows * V), rows, forward_rows,
                    &(Forward){losses, lse, logits, targets, V, Vp});
}

/* The numbers are few, so one thread adds them in order. */
void K(loss_mean)(Context *ctx, float *loss, const float *losses, const int *targets, const float *loss_weights,
                  int64_t N) {
    double sum = 0, weight = 0;
    (void)ctx;
    for (int64_t i = 0; i < N; i++)
        if (targets[i] >= 0) {
            sum += (double)loss_weights[i] * losses[i];
            weight += loss_weights[i];
        }
    loss[0] = weight > 0 ? (float)(sum / weight) : 0;
    loss[1] = weight > 0 ? (float)(1 / weight) : 0;
}

#if defined(FLOATX_BF16)
/* exp(x - lse) is stored at once with its factor, because a number that is stored twice is rounded twice. The rounding of lse is
 * far below that of bf16. */
APART void row_backward(floatX *x, float lse, int target, double factor, int V) {
    const float of_target = (float)(expm1((double)fx_load_one(x + target) - lse) * factor), scale = (float)factor;
    for (int i = 0; i < V; i += VL) {
        const int lanes = LANES(i, V);
        fx_store_n(x + i, exp_of(fx_load_n(x + i, lanes) - lse, TERMS) * scale, lanes);
    }
    fx_store_one(x + target, of_target);
}
#else
/* exp(x - lse) sums to 1 up to the rounding of lse, which is large if the logits are. Division by the sum removes it. */
APART void row_backward(float *x, float lse, int target, double factor, int V) {
    double sum = 0;
    for (int at = 0; at < V; at += BLOCK) sum += block_exp(x + at, x + at, lse, block_size(at, V));
    const float scale = (float)(factor / sum), of_target = (float)((x[target] / sum - 1) * factor);
    for (int i = 0; i < V; i += VL) {
        const int lanes = LANES(i, V);
        vf_store_n(x + i, vf_load_n(x + i, lanes) * scale, lanes);
    }
    x[target] = of_target;
}
#endif

typedef struct Backward {
    floatX *logits;
    const float *lse, *loss_weights;
    const int *targets;
    float scale, loss_scale;
    int V, Vp;
} Backward;
static void backward_rows(const void *given, Part rows) {
    const Backward a = *(const Backward *)given;
    for (int64_t bt = rows.from; bt < rows.to; bt++) {
        floatX *x = a.logits + bt * a.Vp;
        const double factor = a.targets[bt] < 0 ? 0 : (double)a.loss_weights[bt] * a.scale * a.loss_scale;
        const int real = factor == 0 ? 0 : a.V; /* the columns with a gradient: none if the target is ignored */
        if (real) row_backward(x, a.lse[bt], a.targets[bt], factor, a.V);
        memset(x + real, 0, (size_t)(a.Vp - real) * sizeof *x);
    }
}

void K(classifier_backward)(Context *ctx, floatX *logits, const float *lse, const int *targets,
                            const float *loss_weights, const float *loss, float scale, int B, int T, int V, int Vp) {
    const int64_t rows = (int64_t)B * T;
    parallel_static(threads_among(ctx, rows, rows * V), rows, backward_rows,
                    &(Backward){logits, lse, loss_weights, targets, scale, loss[1], V, Vp});
}
