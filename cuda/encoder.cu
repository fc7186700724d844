/* Token and position embeddings. */
#include "rows.cuh"
#include <utility>

constexpr int WARPS = 8, THREADS = WARPS * WARP;

/* ---- forward: a warp per row ---- */

template <int W>
__global__ void __launch_bounds__(THREADS)
    encoder_forward_kernel(floatX *out, const int *tokens, const floatX *__restrict__ wte,
                           const floatX *__restrict__ wpe, const int *pos, const int *offsets, int rows, int T, int C) {
    const int bt = (int)blockIdx.x * WARPS + (int)threadIdx.x / WARP;
    if (bt >= rows) return;
    const int64_t at = (offsets ? offsets[bt] : bt % T) + (pos ? pos[bt / T] : 0);
    const floatX *token = wte + (int64_t)tokens[bt] * C, *position = wpe + at * C;
    for (int c = (int)threadIdx.x % WARP * W; c < C; c += WARP * W) {
        float x[W], y[W];
        load_floats(x, token + c);
        load_floats(y, position + c);
        for (int j = 0; j < W; j++) x[j] += y[j];
        store_floats(out + (int64_t)bt * C + c, x);
    }
}

void gpu_encoder_forward(Context *ctx, floatX *out, const int *tokens, const floatX *wte, const floatX *wpe,
                         const int *pos, const int *offsets, int B, int T, int C) {
    const int rows = B * T;
    by_width(in_vectors(out, C) && in_vectors(wte, C) && in_vectors(wpe, C), [&](auto W) {
        LAUNCH(encoder_forward_kernel<W>, blocks_for(rows, WARPS), THREADS, 0, stream_of(ctx))
        (out, tokens, wte, wpe, pos, offsets, rows, T, C);
    });
}

/* ---- backward: the positions of each token ----
 * The positions i = b T + t of a token stand together in `sorted`, in ascending order, with their ranks 0, 1, ... The order
 * of the atomics decides where in `sorted` they stand, and which partial sums are the token's; no result depends on it. */

constexpr int PIECE = WARP; /* the positions that are summed at once; a token with more of them is summed in pieces */

struct TokenGroup {        /* the positions of one token */
    int size, at, partial; /* their number; the place of the first in `sorted`; the first row of partial sums */
};
struct Grouping {
    int *rank, *arrived, *sorted; /* (B T): a position's rank; the positions by token, as they came and sorted */
    int *taken;                   /* (2): how much of `sorted` and of the partial sums is taken */
    float *partials;              /* (rows, C) */
    TokenGroup *groups;           /* (Vp); last, because Vp is not known here */
};

/* A group with more than PIECE positions has at most 2 size / PIECE pieces. */
static Grouping lay_out(void *workspace, int64_t N, int C) {
    char *next = (char *)workspace;
    auto take = [&](int64_t bytes) { return std::exchange(next, next + divide_up(bytes, 64) * 64); };
    Grouping w;
    w.rank = (int *)take(N * 4);
    w.arrived = (int *)take(N * 4);
    w.sorted = (int *)take(N * 4);
    w.taken = (int *)take(2 * 4);
    w.partials = (float *)take(2 * N / PIECE * C * 4);
    w.groups = (TokenGroup *)next;
    return w;
}

int64_t gpu_encoder_workspace(int B, int T, int C, int Vp) {
    return (int64_t)((char *)lay_out(nullptr, (int64_t)B * T, C).groups - (char *)nullptr) +
           (Vp > T ? Vp : T) * (int64_t)sizeof(TokenGroup); /* positions are grouped as tokens are */
}

static __device__ __forceinline__ int thread_index() { return (int)(blockIdx.x * blockDim.x + threadIdx.x); }

/* Clears only the groups of tokens that occur, because V is not known. */
__global__ void clear_groups_kernel(Grouping w, const int *tokens, int N) {
    const int i = thread_index();
    if (i < 2) w.taken[i] = 0;
    if (i < N) atomicExch(&w.groups[tokens[i]].size, 0);
}

__global__ void count_kernel(Grouping w, const int *tokens, int N) {
    const int i = thread_index();
    if (i < N) w.rank[i] = atomicAdd(&w.groups[tokens[i]].size, 1);
}

/* The position that came first takes room for its group. */
__global__ void place_groups_kernel(Grouping w, const int *tokens, int N) {
    const int i = thread_index();
    if (i >= N || w.rank[i] > 0) return;
    TokenGroup &group = w.groups[tokens[i]];
    group.at = atomicAdd(&w.taken[0], group.size);
    if (group.size > PIECE) group.partial = atomicAdd(&w.taken[1], divide_up(group.size, PIECE));
}

__global__ void gather_kernel(Grouping w, const int *tokens, int N) {
    const int i = thread_index();
    if (i < N) w.arrived[w.groups[tokens[i]].at + w.rank[i]] = i;
}

__global__ void sort_kernel(Grouping w, const int *tokens, int N) {
    const int i = thread_index();
    if (i >= N) return;
    const TokenGroup group = w.groups[tokens[i]];
    int before = 0;
    for (int k = 0; k < group.size; k++) before += w.arrived[group.at + k] < i;
    w.rank[i] = before;
    w.sorted[group.at + before] = i;
}

/* ---- backward: sums ---- */

constexpr int AT_ONCE = 4; /* the rows that are fetched together */

/* There is a warp per position. Every PIECE-th of a token works: it sums 32 W channels of the PIECE positions from there on.
 * Four blocks leave registers for its rows; by itself ptxas counts on eight blocks, and spills. */
template <int W>
__global__ void __launch_bounds__(THREADS, 4)
    sum_pieces_kernel(float *dwte, Grouping w, const floatX *dout, const int *tokens, int N, int C) {
    const int i = (int)blockIdx.x * WARPS + (int)threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (i >= N || w.rank[i] % PIECE) return;
    const TokenGroup group = w.groups[tokens[i]];
    const int rank = w.rank[i], n = min(PIECE, group.size - rank), c = ((int)blockIdx.y * WARP + lane) * W;
    const int own = lane < n ? w.sorted[group.at + rank + lane] : 0;
    float sum[W] = {}, x[W];
    for (int k = 0; k < n; k += AT_ONCE) {
        Packed<W> rows[AT_ONCE];
        for (int r = 0; r < AT_ONCE; r++) {
            const int64_t row = __shfl_sync(0xffffffffu, own, k + r);
            rows[r] = load_live<W>(dout + row * C + c, k + r < n && c < C);
        }
        for (int r = 0; r < AT_ONCE; r++) {
            unpack(x, rows[r]);
            for (int j = 0; j < W; j++) sum[j] += x[j];
        }
    }
    if (c >= C) return;
    if (group.size <= PIECE) add_floats(dwte + (int64_t)tokens[i] * C + c, sum);
    else store_floats(w.partials + (int64_t)(group.partial + rank / PIECE) * C + c, sum);
}

/* Sums the pieces of a token that has several. There is a warp per position, and a token's first works. */
template <int W>
__global__ void __launch_bounds__(THREADS) add_pieces_kernel(float *dwte, Grouping w, const int *tokens, int N, int C) {
    const int i = (int)blockIdx.x * WARPS + (int)threadIdx.x / WARP;
    const int c = ((int)blockIdx.y * WARP + (int)threadIdx.x % WARP) * W;
    if (i >= N || c >= C || w.rank[i] > 0) return;
    const TokenGroup group = w.groups[tokens[i]];
    if (group.size <= PIECE) return;
    const float *partial = w.partials + (int64_t)group.partial * C + c;
    float sum[W] = {};
    for (int k = 0; k < divide_up(group.size, PIECE); k++) {
        float x[W];
        load_floats(x, partial + (int64_t)k * C);
        for (int j = 0; j < W; j++) sum[j] += x[j];
    }
    add_floats(dwte + (int64_t)tokens[i] * C + c, sum);
}

/* Sums W of the T C channels of all positions over b. Sixteen are summed before they join the others, so that the rounding
 * errors of a large B do not pile up. */
template <int W>
__global__ void __launch_bounds__(THREADS) sum_positions_kernel(float *dwpe, const floatX *dout, int B, int64_t TC) {
    const int64_t i = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * W;
    if (i >= TC) return;
    float total[W] = {};
    for (int first = 0; first < B; first += 16) {
        float sum[W] = {}, d[W];
        for (int b = first; b < min(B, first + 16); b++) {
            load_floats(d, dout + b * TC + i);
            for (int j = 0; j < W; j++) sum[j] += d[j];
        }
        for (int j = 0; j < W; j++) total[j] += sum[j];
    }
    add_floats(dwpe + i, total);
}

static void group_by_token(const Grouping &w, const int *tokens, int N, cudaStream_t stream) {
    const unsigned blocks = blocks_for(N, THREADS);
    LAUNCH(clear_groups_kernel, blocks, THREADS, 0, stream)(w, tokens, N);
    LAUNCH(count_kernel, blocks, THREADS, 0, stream)(w, tokens, N);
    LAUNCH(place_groups_kernel, blocks, THREADS, 0, stream)(w, tokens, N);
    LAUNCH(gather_kernel, blocks, THREADS, 0, stream)(w, tokens, N);
    LAUNCH(sort_kernel, blocks, THREADS, 0, stream)(w, tokens, N);
}

/* Adds each row of dout (N,C) to the row of a table that `ids` (N) names. */
static void add_by_id(const Grouping &w, float *table, const floatX *dout, const int *ids, int N, int C,
                      cudaStream_t stream) {
    group_by_token(w, ids, N, stream);
    by_width(in_vectors(dout, C) && in_vectors(table, C), [&](auto W) {
        const dim3 grid(blocks_for(N, WARPS), blocks_for(C, WARP * W));
        LAUNCH(sum_pieces_kernel<W>, grid, THREADS, 0, stream)(table, w, dout, ids, N, C);
        LAUNCH(add_pieces_kernel<W>, grid, THREADS, 0, stream)(table, w, ids, N, C);
    });
}

void gpu_encoder_backward(Context *ctx, float *dwte, float *dwpe, const floatX *dout, const int *tokens,
                          const int *offsets, int B, int T, int C) {
    const int N = B * T;
    const Grouping w = lay_out(ctx->workspace, N, C);
    const cudaStream_t stream = stream_of(ctx);
    if (dwte) add_by_id(w, dwte, dout, tokens, N, C, stream);
    if (dwpe && offsets) add_by_id(w, dwpe, dout, offsets, N, C, stream);
    else if (dwpe)
        by_width(in_vectors(dout, C) && in_vectors(dwpe, C), [&](auto W) {
            LAUNCH(sum_positions_kernel<W>, blocks_for((int64_t)T * C, THREADS * W), THREADS, 0, stream)
            (dwpe, dout, B, (int64_t)T * C);
        });
}
