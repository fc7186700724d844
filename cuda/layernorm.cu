/* LayerNorm (Ba et al. 2016), alone and fused with the residual addition before it.
 *
 * A row is shared out among R threads, a warp or a block, W elements at a time; each keeps its HELD vectors in registers,
 * so that memory is read once. Longer rows (HELD = 0) are read again for every sweep, and so are those that cannot be
 * read 16 bytes at a time. */
#include "rows.cuh"

template <int R_, int W_, int HELD_> struct Split {
    static constexpr int R = R_, W = W_, HELD = HELD_, SLOTS = HELD_ ? HELD_ : 1;
    static constexpr int THREADS = R_ == WARP ? 4 * WARP : R_, ROWS = THREADS / R_; /* of a block */
};
constexpr int KEPT = 32; /* elements of a row that a thread keeps */

/* launch(Split) with the one for rows of C elements */
template <class F> static void by_split(bool wide, int C, F launch) {
    if (!wide) launch(Split<WARP, 1, 0>());
    else if (C <= WARP * KEPT) launch(Split<WARP, WIDE, KEPT / WIDE>());
    else if (C <= 128 * KEPT) launch(Split<128, WIDE, KEPT / WIDE>());
    else if (C <= 256 * KEPT) launch(Split<256, WIDE, KEPT / WIDE>());
    else launch(Split<256, WIDE, 0>());
}

/* f(slot, c) for each of this thread's vectors, which is at c of the row and is kept in that slot */
template <class S, class F> static __device__ __forceinline__ void each_vector(int C, F f) {
    const int first = (int)threadIdx.x % S::R * S::W;
    if constexpr (S::HELD > 0) {
        for (int slot = 0; slot < S::HELD; slot++)
            if (first + slot * S::R * S::W < C) f(slot, first + slot * S::R * S::W);
    } else
        for (int c = first; c < C; c += S::R * S::W) f(0, c);
}

/* over the threads of a row; all of them get it */
template <class S> static __device__ __forceinline__ float sum_over_row(float x) {
    if constexpr (S::R == WARP) return warp_sum(x);
    else {
        __shared__ float part[WARP];
        return block_sum(x, part);
    }
}

/* ---- forward ---- */

/* sum = a + b, rounded as it is stored */
template <int W>
static __device__ __forceinline__ void add_residual(float (&x)[W], floatX *sum, const floatX *a, const floatX *b) {
    float y[W];
    load_floats(x, a);
    load_floats(y, b);
    for (int j = 0; j < W; j++) x[j] = to_float(from_float<floatX>(x[j] + y[j]));
    store_floats(sum, x);
}

/* inp2 == NULL: the row is inp1, and there is no residual */
template <class S>
__global__ void __launch_bounds__(S::THREADS)
    layernorm_forward_kernel(floatX *residual, floatX *out, float *mean, float *rstd, const floatX *inp1,
                             const floatX *inp2, const floatX *weight, const floatX *bias, int64_t rows, int C) {
    constexpr int W = S::W;
    const int64_t bt = (int64_t)blockIdx.x * S::ROWS + threadIdx.x / S::R, at = bt * C;
    if (bt >= rows) return;
    float x[S::SLOTS][W], sum = 0, squares = 0;
    const floatX *row = inp2 ? residual : inp1;
    each_vector<S>(C, [&](int slot, int c) {
        if (inp2) add_residual(x[slot], residual + at + c, inp1 + at + c, inp2 + at + c);
        else load_floats(x[slot], inp1 + at + c);
        for (int j = 0; j < W; j++) sum += x[slot][j];
    });
    const float m = sum_over_row<S>(sum) / (float)C;
    each_vector<S>(C, [&](int slot, int c) {
        if (S::HELD == 0) load_floats(x[slot], row + at + c);
        for (int j = 0; j < W; j++) squares += (x[slot][j] - m) * (x[slot][j] - m);
    });
    const float s = 1 / sqrtf(sum_over_row<S>(squares) / (float)C + 1e-5f);
    each_vector<S>(C, [&](int slot, int c) {
        float w[W], b[W];
        load_floats(w, weight + c);
        load_floats(b, bias + c);
        if (S::HELD == 0) load_floats(x[slot], row + at + c);
        for (int j = 0; j < W; j++) b[j] += (x[slot][j] - m) * s * w[j];
        store_floats(out + at + c, b);
    });
    if (threadIdx.x % S::R == 0) mean[bt] = m, rstd[bt] = s;
}

void gpu_residual_layernorm_forward(Context *ctx, floatX *residual, floatX *out, float *mean, float *rstd,
                                    const floatX *inp1, const floatX *inp2, const floatX *weight, const floatX *bias,
                                    int B, int T, int C) {
    const int64_t rows = (int64_t)B * T;
    const bool wide = in_vectors(out, C) && in_vectors(inp1, C) && in_vectors(weight, C) && in_vectors(bias, C) &&
                      in_vectors(residual, C) && in_vectors(inp2, C);
    by_split(wide, C, [&](auto split) {
        typedef decltype(split) S;
        LAUNCH(layernorm_forward_kernel<S>, blocks_for(rows, S::ROWS), S::THREADS, 0, stream_of(ctx))
        (residual, out, mean, rstd, inp1, inp2, weight, bias, rows, C);
    });
}

void gpu_layernorm_forward(Context *ctx, floatX *out, float *mean, float *rstd, const floatX *inp, const floatX *weight,
                           const floatX *bias, int B, int T, int C) {
    gpu_residual_layernorm_forward(ctx, nullptr, out, mean, rstd, inp, nullptr, weight, bias, B, T, C);
}

/* ---- backward: with norm = (inp - mean) rstd and dnorm = dout weight
 *      dresidual += rstd (dnorm - mean(dnorm) - norm mean(dnorm norm)), dweight += dout norm, dbias += dout
 * Each block sums dweight and dbias over its own rows; the workspace holds these partial sums, (parts, 2, C). ---- */

constexpr int MAX_PARTS = 512; /* the same on every GPU, and so are the bits */

static int parts_of(int64_t rows, int each) {
    const int64_t fair = divide_up(rows, (int64_t)each);
    return (int)(fair < MAX_PARTS ? fair : MAX_PARTS);
}

int64_t gpu_layernorm_workspace(int B, int T, int C) {
    return parts_of((int64_t)B * T, 1) * 2 * (int64_t)C * (int64_t)sizeof(float);
}

/* what a thread keeps of a row */
template <class S> struct Kept {
    Packed<S::W> x, d; /* inp, dout */
};

/* norm and dout */
template <int W>
static __device__ __forceinline__ void unpack_norm(float (&norm)[W], float (&d)[W], const Packed<W> &x,
                                                   const Packed<W> &dout, float mean, float rstd) {
    unpack(norm, x);
    unpack(d, dout);
    for (int j = 0; j < W; j++) norm[j] = (norm[j] - mean) * rstd;
}

/* dresidual(C) of one row */
template <class S>
static __device__ __forceinline__ void row_backward(floatX *dresidual, Kept<S> (&kept)[S::SLOTS], const floatX *dout,
                                                    const floatX *inp, const floatX *weight, float mean, float rstd,
                                                    int C) {
    constexpr int W = S::W;
    float sum = 0, sum_norm = 0, w[W], norm[W], d[W];
    auto load = [&](Kept<S> &k, int c) { k = {load_packed<W>(inp + c), load_packed<W>(dout + c)}; };
    each_vector<S>(C, [&](int slot, int c) { load(kept[slot], c); });
    each_vector<S>(C, [&](int slot, int c) {
        if (S::HELD == 0) load(kept[slot], c);
        unpack_norm<W>(norm, d, kept[slot].x, kept[slot].d, mean, rstd);
        load_floats(w, weight + c);
        for (int j = 0; j < W; j++) {
            sum += d[j] * w[j];
            sum_norm += d[j] * w[j] * norm[j];
        }
    });
    const float mean_dnorm = sum_over_row<S>(sum) / (float)C, mean_both = sum_over_row<S>(sum_norm) / (float)C;
    each_vector<S>(C, [&](int slot, int c) {
        float dx[W];
        if (S::HELD == 0) load(kept[slot], c);
        unpack_norm<W>(norm, d, kept[slot].x, kept[slot].d, mean, rstd);
        load_floats(dx, dresidual + c);
        load_floats(w, weight + c);
        for (int j = 0; j < W; j++) dx[j] += rstd * (d[j] * w[j] - mean_dnorm - norm[j] * mean_both);
        store_floats(dresidual + c, dx);
    });
}

/* the block's sums to partial(2, C); where each warp has its own they are added up one after the other */
template <class S>
static __device__ __forceinline__ void store_partial(float *partial, const float (&dw)[S::SLOTS][S::W],
                                                     const float (&db)[S::SLOTS][S::W], int C) {
    if constexpr (S::ROWS == 1)
        each_vector<S>(C, [&](int slot, int c) {
            store_floats(partial + c, dw[slot]);
            store_floats(partial + C + c, db[slot]);
        });
    else {
        __shared__ __align__(16) float total[2][S::R * KEPT];
        for (int i = threadIdx.x; i < 2 * S::R * KEPT; i += S::THREADS) total[0][i] = 0;
        for (int turn = 0; turn < S::ROWS; turn++) {
            __syncthreads();
            if (turn == (int)threadIdx.x / S::R)
                each_vector<S>(C, [&](int slot, int c) {
                    add_floats(total[0] + c, dw[slot]);
                    add_floats(total[1] + c, db[slot]);
                });
        }
        __syncthreads();
        for (int c = threadIdx.x; c < C; c += S::THREADS) partial[c] = total[0][c], partial[C + c] = total[1][c];
    }
}

template <class S>
__global__ void __launch_bounds__(S::THREADS, sizeof(floatX) == 2 ? 512 / S::THREADS : 1)
    layernorm_backward_kernel(floatX *dresidual, float *partials, const floatX *dout, const floatX *inp,
                              const floatX *weight, const float *mean, const float *rstd, int64_t rows, int C) {
    float dw[S::SLOTS][S::W] = {}, db[S::SLOTS][S::W] = {};
    Kept<S> kept[S::SLOTS];
    int64_t bt = (int64_t)blockIdx.x * S::ROWS + threadIdx.x / S::R;
    for (; bt < rows; bt += (int64_t)gridDim.x * S::ROWS) {
        const int64_t at = bt * C;
        row_backward<S>(dresidual + at, kept, dout + at, inp + at, weight, mean[bt], rstd[bt], C);
        if (S::HELD > 0)
            each_vector<S>(C, [&](int slot, int) {
                float norm[S::W], d[S::W];
                unpack_norm<S::W>(norm, d, kept[slot].x, kept[slot].d, mean[bt], rstd[bt]);
                for (int j = 0; j < S::W; j++) {
                    dw[slot][j] += d[j] * norm[j];
                    db[slot][j] += d[j];
                }
            });
    }
    if constexpr (S::HELD > 0) store_partial<S>(partials + (int64_t)blockIdx.x * 2 * C, dw, db, C);
}

constexpr int COLUMN_THREADS = 128;

/* the partial sums where the kernel above keeps no rows: a thread per column */
__global__ void __launch_bounds__(COLUMN_THREADS)
    layernorm_columns_kernel(float *partials, const floatX *dout, const floatX *inp, const float *mean,
                             const float *rstd, int64_t rows, int C) {
    const int c = (int)(blockIdx.x * COLUMN_THREADS + threadIdx.x);
    if (c >= C) return;
    float dw = 0, db = 0;
    for (int64_t bt = blockIdx.y; bt < rows; bt += gridDim.y) {
        const float d = to_float(dout[bt * C + c]);
        dw += d * ((to_float(inp[bt * C + c]) - mean[bt]) * rstd[bt]);
        db += d;
    }
    float *partial = partials + (int64_t)blockIdx.y * 2 * C;
    partial[c] = dw, partial[C + c] = db;
}

constexpr int SUM_WARPS = 16;

/* dweight and dbias += the sum of their partial sums: each warp adds up its share of 32 columns, the first the warps' */
__global__ void __launch_bounds__(SUM_WARPS *WARP)
    layernorm_sum_kernel(float *dweight, float *dbias, const float *partials, int parts, int C) {
    __shared__ float shares[SUM_WARPS][WARP];
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const int64_t column = (int64_t)blockIdx.x * WARP + lane;
    float sum = 0;
    if (column < 2 * (int64_t)C)
        for (int k = warp; k < parts; k += SUM_WARPS) sum += partials[k * 2 * (int64_t)C + column];
    shares[warp][lane] = sum;
    __syncthreads();
    if (warp > 0 || column >= 2 * (int64_t)C) return;
    for (int k = 1; k < SUM_WARPS; k++) sum += shares[k][lane];
    if (column < C) dweight[column] += sum;
    else dbias[column - C] += sum;
}

void gpu_layernorm_backward(Context *ctx, floatX *dresidual, float *dweight, float *dbias, const floatX *dout,
                            const floatX *inp, const floatX *weight, const float *mean, const float *rstd, int B, int T,
                            int C) {
    const int64_t rows = (int64_t)B * T;
    float *partials = (float *)ctx->workspace;
    const bool wide = in_vectors(dresidual, C) && in_vectors(dout, C) && in_vectors(inp, C) && in_vectors(weight, C);
    by_split(wide, C, [&](auto split) {
        typedef decltype(split) S;
        const int parts = parts_of(rows, S::ROWS);
        LAUNCH(layernorm_backward_kernel<S>, parts, S::THREADS, 0, stream_of(ctx))
        (dresidual, partials, dout, inp, weight, mean, rstd, rows, C);
        if (S::HELD == 0)
            LAUNCH(layernorm_columns_kernel, dim3(blocks_for(C, COLUMN_THREADS), parts), COLUMN_THREADS, 0,
                   stream_of(ctx))
        (partials, dout, inp, mean, rstd, rows, C);
        LAUNCH(layernorm_sum_kernel, blocks_for(2 * (int64_t)C, WARP), SUM_WARPS * WARP, 0, stream_of(ctx))
        (dweight, dbias, partials, parts, C);
    });
}
