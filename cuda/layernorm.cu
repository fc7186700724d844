/* LayerNorm (Ba et al. 2016), alone and fused with the residual addition before it.
 *
 * R threads, a warp or a block, share a row, W elements at a time. Each keeps its HELD vectors in registers, so that memory
 * is read once. Longer rows (HELD = 0), and rows that cannot be read 16 bytes at a time, are read again for every sweep. */
#include "rows.cuh"
#include "dropout.cuh"

/* KEPT: the elements that a thread keeps. */
template <int R_, int W_, int KEPT> struct Split {
    static constexpr int R = R_, W = W_, HELD = KEPT / W_, SLOTS = KEPT ? HELD : 1;
    static constexpr int THREADS = R_ == WARP ? 4 * WARP : R_, ROWS = THREADS / R_; /* in a block */
    /* The blocks that a multiprocessor holds in the backward pass, whose sums fill the registers. */
    static constexpr int BLOCKS = (KEPT == 0 ? 1024 : W_ < 8 ? 256 : KEPT <= 24 ? 512 : 384) / THREADS;
};

/* Calls launch(Split) with the Split for rows of C elements. */
template <class F> static void by_split(bool wide, int C, F launch) {
    if (!wide) launch(Split<WARP, 1, 0>());
    else if (C <= WARP * 24) launch(Split<WARP, WIDE, 24>());
    else if (C <= WARP * 32) launch(Split<WARP, WIDE, 32>());
    else if (C <= 128 * 16) launch(Split<128, WIDE, 16>());
    else if (C <= 128 * 32) launch(Split<128, WIDE, 32>());
    else if (C <= 256 * 32) launch(Split<256, WIDE, 32>());
    else launch(Split<256, WIDE, 0>());
}

/* Calls f(slot, c, live) for each of this thread's vectors. It is at c of the row and is kept in that slot; if it is not
 * live it lies past the row's end. There is no branch, so that loads of one slot need not wait for those of another. */
template <class S, class F> static __device__ __forceinline__ void each_vector(int C, F f) {
    const int first = (int)threadIdx.x % S::R * S::W;
    if constexpr (S::HELD > 0) {
        for (int slot = 0; slot < S::HELD; slot++) {
            const int c = first + slot * S::R * S::W;
            f(slot, c, c < C);
        }
    } else
        for (int c = first; c < C; c += S::R * S::W) f(0, c, true);
}

/* The sum over the threads of a row; all of them get it. */
template <class S> static __device__ __forceinline__ float sum_over_row(float x) {
    if constexpr (S::R == WARP) return warp_sum(x);
    else {
        __shared__ float part[WARP];
        return block_sum(x, part);
    }
}

/* ---- forward ---- */

/* x += addend, times dropout's factors of column c of a row if DROPS, rounded to the stored element. */
template <int W, bool DROPS>
static __device__ __forceinline__ void add_rounded(float (&x)[W], const Packed<W> &addend, const Dropout *dropout,
                                                   int64_t row, int c) {
    float y[W];
    unpack(y, addend);
    if constexpr (DROPS) drop(y, *dropout, row, c);
    for (int j = 0; j < W; j++) x[j] = to_float(from_float<floatX>(x[j] + y[j]));
}

/* x(C) = inp1, or residual = inp1 + inp2. Returns the sum of this thread's elements. All loads come before all stores,
 * because a load may not overtake a store. */
template <class S, bool DROPS>
static __device__ __forceinline__ float load_row(float (&x)[S::SLOTS][S::W], floatX *residual, const floatX *inp1,
                                                 const floatX *inp2, const Dropout *dropout, int64_t bt, int C) {
    constexpr int W = S::W;
    Packed<W> a[S::SLOTS], b[S::SLOTS];
    float sum = 0;
    auto load = [&](int slot, int c, bool live) {
        a[slot] = load_live<W>(inp1 + c, live);
        if (inp2) b[slot] = load_live<W>(inp2 + c, live);
    };
    if (S::HELD > 0) each_vector<S>(C, load);
    each_vector<S>(C, [&](int slot, int c, bool live) {
        if (S::HELD == 0) load(slot, c, live);
        unpack(x[slot], a[slot]);
        if (inp2) {
            add_rounded<W, DROPS>(x[slot], b[slot], dropout, bt, c);
            if (live) store_floats(residual + c, x[slot]);
        }
        for (int j = 0; j < W; j++) sum += x[slot][j];
    });
    return sum;
}

/* If inp2 is NULL the row is inp1, and there is no residual. */
template <class S, bool DROPS>
__global__ void __launch_bounds__(S::THREADS)
    layernorm_forward_kernel(floatX *residual, floatX *out, float *mean, float *rstd, const floatX *inp1,
                             const floatX *inp2, const floatX *__restrict__ weight, const floatX *__restrict__ bias,
                             const Dropout *dropout, int64_t rows, int C) {
    constexpr int W = S::W;
    const int64_t bt = (int64_t)blockIdx.x * S::ROWS + threadIdx.x / S::R, at = bt * C;
    if (bt >= rows) return;
    float x[S::SLOTS][W], squares = 0;
    const float sum = load_row<S, DROPS>(x, residual + at, inp1 + at, inp2 ? inp2 + at : inp2, dropout, bt, C);
    const floatX *row = (inp2 ? residual : inp1) + at;
    const float m = sum_over_row<S>(sum) / (float)C;
    each_vector<S>(C, [&](int slot, int c, bool live) {
        float more = 0;
        if (S::HELD == 0) load_floats(x[slot], row + c);
        for (int j = 0; j < W; j++) more += (x[slot][j] - m) * (x[slot][j] - m);
        squares += live ? more : 0;
    });
    const float s = 1 / sqrtf(sum_over_row<S>(squares) / (float)C + 1e-5f);
    Packed<W> weights[S::SLOTS], biases[S::SLOTS];
    auto load = [&](int slot, int c, bool live) {
        weights[slot] = load_live<W>(weight + c, live);
        biases[slot] = load_live<W>(bias + c, live);
    };
    if (S::HELD > 0) each_vector<S>(C, load);
    each_vector<S>(C, [&](int slot, int c, bool live) {
        float w[W], y[W];
        if (S::HELD == 0) {
            load(slot, c, live);
            load_floats(x[slot], row + c);
        }
        unpack(w, weights[slot]);
        unpack(y, biases[slot]);
        for (int j = 0; j < W; j++) y[j] += (x[slot][j] - m) * s * w[j];
        if (live) store_floats(out + at + c, y);
    });
    if (threadIdx.x % S::R == 0) mean[bt] = m, rstd[bt] = s;
}

void gpu_residual_layernorm_forward(Context *ctx, floatX *residual, floatX *out, float *mean, float *rstd,
                                    const floatX *inp1, const floatX *inp2, const floatX *weight, const floatX *bias,
                                    const Dropout *dropout, int B, int T, int C) {
    const int64_t rows = (int64_t)B * T;
    const bool wide = in_vectors(out, C) && in_vectors(inp1, C) && in_vectors(weight, C) && in_vectors(bias, C) &&
                      in_vectors(residual, C) && in_vectors(inp2, C);
    by_split(wide, C, [&](auto split) {
        typedef decltype(split) S;
        LAUNCH((dropout ? layernorm_forward_kernel<S, true> : layernorm_forward_kernel<S, false>),
               blocks_for(rows, S::ROWS), S::THREADS, 0, stream_of(ctx))
        (residual, out, mean, rstd, inp1, inp2, weight, bias, dropout, rows, C);
    });
}

void gpu_layernorm_forward(Context *ctx, floatX *out, float *mean, float *rstd, const floatX *inp, const floatX *weight,
                           const floatX *bias, int B, int T, int C) {
    gpu_residual_layernorm_forward(ctx, nullptr, out, mean, rstd, inp, nullptr, weight, bias, nullptr, B, T, C);
}

/* ---- backward: with norm = (inp - mean) rstd and dnorm = dout weight
 *      dresidual += rstd (dnorm - mean(dnorm) - norm mean(dnorm norm)), dweight += dout norm, dbias += dout
 * Each block sums dweight and dbias over its own rows; the workspace holds these partial sums, (parts, 2, C). ---- */

constexpr int MAX_PARTS = 2048;

/* The number of blocks: as many as run at once, but no more than the rows need. */
template <class S> static int parts_of(const Context *ctx, int64_t rows) {
    const int64_t fair = divide_up(rows, (int64_t)S::ROWS), room = (int64_t)device_of(ctx)->multiprocessors * S::BLOCKS;
    const int64_t most = room < MAX_PARTS ? room : MAX_PARTS;
    return (int)(fair < most ? fair : most);
}

int64_t gpu_layernorm_workspace(int B, int T, int C) {
    const int64_t rows = (int64_t)B * T;
    return (rows < MAX_PARTS ? rows : MAX_PARTS) * 2 * C * (int64_t)sizeof(float);
}

template <class S> struct Row { /* a thread's part of a row */
    Packed<S::W> inp[S::SLOTS], dout[S::SLOTS], dresidual[S::SLOTS];
};
template <class S> struct Sums { /* a thread's sums over its rows */
    float dweight[S::SLOTS][S::W], dbias[S::SLOTS][S::W];
};

/* Computes norm, dout and dnorm = dout weight. */
template <int W>
static __device__ __forceinline__ void unpack_norm(float (&norm)[W], float (&d)[W], float (&dnorm)[W],
                                                   const Packed<W> &inp, const Packed<W> &dout, const Packed<W> &weight,
                                                   float mean, float rstd) {
    unpack(norm, inp);
    unpack(d, dout);
    unpack(dnorm, weight);
    for (int j = 0; j < W; j++) {
        norm[j] = (norm[j] - mean) * rstd;
        dnorm[j] *= d[j];
    }
}

/* Adds to dresidual(C) of one row, and to the sums if rows are kept. Elements that are not live are 0, except norm, which is
 * only multiplied by zeros. */
template <class S>
static __device__ __forceinline__ void row_backward(floatX *dresidual, Sums<S> &sums, const floatX *dout,
                                                    const floatX *inp, const floatX *__restrict__ weight, float mean,
                                                    float rstd, int C) {
    constexpr int W = S::W;
    Row<S> row;
    float sum = 0, sum_norm = 0, norm[W], d[W], dnorm[W];
    auto load = [&](int slot, int c, bool live) {
        row.inp[slot] = load_live<W>(inp + c, live);
        row.dout[slot] = load_live<W>(dout + c, live);
        row.dresidual[slot] = load_live<W>(dresidual + c, live);
    };
    if (S::HELD > 0) each_vector<S>(C, load);
    each_vector<S>(C, [&](int slot, int c, bool live) {
        if (S::HELD == 0) load(slot, c, live);
        unpack_norm<W>(norm, d, dnorm, row.inp[slot], row.dout[slot], load_live<W>(weight + c, live), mean, rstd);
        for (int j = 0; j < W; j++) {
            sum += dnorm[j];
            sum_norm += dnorm[j] * norm[j];
        }
    });
    const float mean_dnorm = sum_over_row<S>(sum) / (float)C, mean_both = sum_over_row<S>(sum_norm) / (float)C;
    each_vector<S>(C, [&](int slot, int c, bool live) {
        float dx[W];
        if (S::HELD == 0) load(slot, c, live);
        unpack_norm<W>(norm, d, dnorm, row.inp[slot], row.dout[slot], load_live<W>(weight + c, live), mean, rstd);
        unpack(dx, row.dresidual[slot]);
        for (int j = 0; j < W; j++) {
            dx[j] += rstd * (dnorm[j] - mean_dnorm - norm[j] * mean_both);
            sums.dweight[slot][j] += d[j] * norm[j];
            sums.dbias[slot][j] += d[j];
        }
        if (live) store_floats(dresidual + c, dx);
    });
}

/* Stores the block's sums to partial(2, C). If each warp has its own, they are added up one after the other. */
template <class S> static __device__ __forceinline__ void store_partial(float *partial, const Sums<S> &sums, int C) {
    if constexpr (S::ROWS == 1)
        each_vector<S>(C, [&](int slot, int c, bool live) {
            if (live) store_floats(partial + c, sums.dweight[slot]);
            if (live) store_floats(partial + C + c, sums.dbias[slot]);
        });
    else {
        constexpr int ROOM = S::R * S::W * S::HELD;
        __shared__ __align__(16) float total[2 * ROOM];
        float *own = total + (int)threadIdx.x % S::R * S::W;
        for (int i = threadIdx.x; i < 2 * ROOM; i += S::THREADS) total[i] = 0;
        for (int turn = 0; turn < S::ROWS; turn++) {
            __syncthreads();
            if (turn != (int)threadIdx.x / S::R) continue;
            for (int slot = 0; slot < S::HELD; slot++) {
                add_floats(own + slot * S::R * S::W, sums.dweight[slot]);
                add_floats(own + slot * S::R * S::W + ROOM, sums.dbias[slot]);
            }
        }
        __syncthreads();
        for (int c = threadIdx.x; c < C; c += S::THREADS) partial[c] = total[c], partial[C + c] = total[ROOM + c];
    }
}

template <class S>
__global__ void __launch_bounds__(S::THREADS, S::BLOCKS)
    layernorm_backward_kernel(floatX *dresidual, float *partials, const floatX *dout, const floatX *inp,
                              const floatX *__restrict__ weight, const float *mean, const float *rstd, int rows,
                              int C) {
    Sums<S> sums = {};
    int bt = (int)blockIdx.x * S::ROWS + (int)threadIdx.x / S::R;
    for (; bt < rows; bt += (int)gridDim.x * S::ROWS) {
        const int64_t at = (int64_t)bt * C;
        row_backward<S>(dresidual + at, sums, dout + at, inp + at, weight, mean[bt], rstd[bt], C);
    }
    if constexpr (S::HELD > 0) store_partial<S>(partials + (int64_t)blockIdx.x * 2 * C, sums, C);
}

constexpr int COLUMN_THREADS = 128;

/* The partial sums for rows that the kernel above does not keep, by a thread per column. */
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

/* Adds the partial sums to dweight and dbias. Each warp adds up its share for 32 columns, the first adds up the shares. */
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
    float *total = column < C ? dweight : dbias;
    if (total) total[column < C ? column : column - C] += sum;
}

void gpu_layernorm_backward(Context *ctx, floatX *dresidual, float *dweight, float *dbias, const floatX *dout,
                            const floatX *inp, const floatX *weight, const float *mean, const float *rstd, int B, int T,
                            int C) {
    const int rows = B * T;
    float *partials = (float *)ctx->workspace;
    const bool wide = in_vectors(dresidual, C) && in_vectors(dout, C) && in_vectors(inp, C) && in_vectors(weight, C);
    by_split(wide, C, [&](auto split) {
        typedef decltype(split) S;
        const int parts = parts_of<S>(ctx, rows);
        LAUNCH(layernorm_backward_kernel<S>, parts, S::THREADS, 0, stream_of(ctx))
        (dresidual, partials, dout, inp, weight, mean, rstd, rows, C);
        if (S::HELD == 0 && (dweight || dbias))
            LAUNCH(layernorm_columns_kernel, dim3(blocks_for(C, COLUMN_THREADS), parts), COLUMN_THREADS, 0,
                   stream_of(ctx))
        (partials, dout, inp, mean, rstd, rows, C);
        if (!dweight && !dbias) return;
        LAUNCH(layernorm_sum_kernel, blocks_for(2 * (int64_t)C, WARP), SUM_WARPS * WARP, 0, stream_of(ctx))
        (dweight, dbias, partials, parts, C);
    });
}
