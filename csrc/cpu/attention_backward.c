/* The gradients of attention. P is computed again from lse. With P = exp(s - lse) and dP = dout V':
 *     dv = P' dout,  ds = P (dP - D) / sqrt(hs),  D = dout . out per query,  dq = ds K,  dk = ds' q
 * Here each lane is a key: keys and values are transposed once for all queries that see them.
 *
 *     p[i][j]  = sum over d of q[i][d] k_t[d][j]              dp[i][j] = sum over d of dout[i][d] v_t[d][j]
 *     dv[j][d] = sum over i of p[i][j] dout[i][d]             dk[j][d] = sum over i of ds[i][j] q[i][d]
 *     dq[i][d] = sum over j of ds[i][j] k[j][d]
 *
 * Keys are taken in segments of SEGMENT, which fit the second cache. A segment's dk and dv are complete when all queries
 * have seen it; dq is the sum of the segments' parts, in their order. Few heads are split: several segments are computed at
 * once, and their parts of dq wait in the workspace for that sum, so the bits are the same. */
#include "attention_amx.h"

enum { SEGMENT = 256, AT_ONCE = 4, FEW_HEADS = 3 }; /* heads are split if there are fewer than FEW_HEADS for a thread */

/* One thread's part of the workspace. */
typedef struct {
    float *k, *k_t, *v_t, *dk, *dv; /* (SEGMENT, hp); k_t and v_t, on tiles dk and dv too, (hp, KB) per block of keys */
    float *dq, *p, *ds, *ds_rows;   /* (QB, hp); (QB, KB) */
    float *q, *dout, *q_pairs, *dout_pairs; /* all queries, packed; on tiles the pairs are (hp, QB/2) per block */
    float *lse, *rest, *D;                  /* (T): lse sqrt(hs), a score, in two parts; D */
} Scratch;

/* The rows of T queries in whole blocks. */
static inline int whole_blocks(int T) { return (T + QB - 1) / QB * QB; }

/* Places a thread's scratch at base and returns its size in floats; base may be NULL. */
static int64_t scratch_at(Scratch *s, float *base, int T, int hs, int bf16) {
    const int64_t hp = padded(hs), rows = whole_blocks(T);
    int64_t used = 0;
    float **keys[] = {&s->k, &s->k_t, &s->v_t, &s->dk, &s->dv}, **block[] = {&s->p, &s->ds, &s->ds_rows};
    float **each[] = {&s->lse, &s->rest, &s->D};
    for (int i = 0; i < 5; i++) *keys[i] = take(base, &used, min(SEGMENT, (int)rows) * hp);
    for (int i = 0; i < 3; i++) *block[i] = take(base, &used, QB * KB), *each[i] = take(base, &used, rows);
    s->dq = take(base, &used, QB * hp);
    s->q_pairs = s->q = take(base, &used, rows * row_length(hs, bf16));
    s->dout_pairs = s->dout = take(base, &used, rows * row_length(hs, bf16));
    if (bf16)
        s->q_pairs = take(base, &used, steps((int)rows, 1) * hp),
        s->dout_pairs = take(base, &used, steps((int)rows, 1) * hp);
    return used;
}

static int split(int64_t heads, int T, int threads) {
    return threads > 1 && T > SEGMENT && heads < FEW_HEADS * (int64_t)threads;
}

/* Enough for `heads` or fewer. Fewer than FEW_HEADS a thread are split and then also need room for parts of dq. */
int64_t K(attention_backward_workspace)(int64_t heads, int T, int hs, int threads) {
    Scratch s;
    const int64_t fp32 = scratch_at(&s, NULL, T, hs, 0), bf16 = HAS_BF16 ? scratch_at(&s, NULL, T, hs, 1) : 0;
    const int64_t own = (fp32 > bf16 ? fp32 : bf16) * threads, few = FEW_HEADS * (int64_t)threads - 1;
    const int64_t parts =
        split(1, T, threads) ? (heads < few ? heads : few) * AT_ONCE * whole_blocks(T) * padded(hs) : 0;
    return (own + parts) * (int64_t)sizeof(float);
}

/* One head of one sequence. Rows of qkv and dqkv are 3C apart, those of out and dout C. */
typedef struct {
    floatX *dqkv;
    const floatX *qkv, *out, *dout;
    const float *lse;
    int T, C, hs, window, bf16;
} Head;

/* Picks one head from all of them. */
static Head head_of(Head all, int64_t head) {
    const int NH = all.C / all.hs;
    const int64_t row = head / NH * all.T, column = head % NH * all.hs;
    all.qkv += row * 3 * all.C + column, all.dqkv += row * 3 * all.C + column;
    all.out += row * all.C + column, all.dout += row * all.C + column;
    all.lse += head * all.T;
    return all;
}

/* The n rows of x from position `at` on. A position has `stride` numbers, 3C or C. */
static Rows rows_at(const Head *h, const floatX *x, int64_t stride, int at, int n) {
    return (Rows){x + at * stride, stride, n, h->hs};
}

/* ---- one block ---- */

/* For the VL keys from j on, p becomes P, and ds, which holds dP, becomes P (dP - D). */
INLINE void gradient_of_lanes(Block b, const Scratch *s, int i, int j, Log2 scale, vf *p, vf *ds, const int masked,
                              const int bf16) {
    const vf x = vf_load(s->p + i * KB + j) - s->lse[i];
    *p = weight_of(bf16 ? x : x - s->rest[i], scale, bf16);
    *ds = *p * (vf_load(s->ds + i * KB + j) - s->D[i]);
    if (!masked) return;
    const vi seen = visible_keys(b, i, j);
    *p = (vf)((vi)*p & seen), *ds = (vf)((vi)*ds & seen);
}

INLINE void fp32_gradient_of_row(Block b, const Scratch *s, int i, Log2 scale, const int masked) {
    const Range r = masked ? in_vectors(keys_of(b, i, i + 1)) : (Range){0, b.keys};
    for (int j = 0; j < b.keys; j += VL) {
        vf p = vf_set(0), ds = vf_set(0);
        if (!masked || (j >= r.from && j < r.to)) gradient_of_lanes(b, s, i, j, scale, &p, &ds, masked, 0);
        vf_store(s->p + i * KB + j, p);
        vf_store(s->ds + i * KB + j, ds);
    }
}

/* Takes two queries, or a last one, and two vectors of keys at a time. A word of p and ds is of two queries, a word of
 * ds_rows of two keys. */
INLINE void bf16_gradient_of_rows(Block b, const Scratch *s, int i, const int rows, Log2 scale, const int masked) {
    const Range r = masked ? in_vectors(keys_of(b, i, i + 2)) : (Range){0, b.keys};
    for (int j = 0; j < summed(b.keys); j += 2 * VL) {
        vf p[2][2] = {{{0}}}, ds[2][2] = {{{0}}};
#pragma GCC unroll 2
        for (int y = 0; y < rows; y++)
#pragma GCC unroll 2
            for (int x = 0; x < 2; x++) {
                const int key = j + x * VL;
                if (!masked || (key >= r.from && key < r.to))
                    gradient_of_lanes(b, s, i + y, key, scale, &p[y][x], &ds[y][x], masked, 1);
            }
#pragma GCC unroll 2
        for (int x = 0; x < 2; x++) {
            const int at = i / 2 * KB + j + x * VL;
            vf_store(s->p + at, (vf)bf16_interleave(p[0][x], p[1][x]));
            vf_store(s->ds + at, (vf)bf16_interleave(ds[0][x], ds[1][x]));
        }
#pragma GCC unroll 2
        for (int y = 0; y < rows; y++)
            vf_store(s->ds_rows + ((i + y) * KB + j) / 2, (vf)bf16_in_order(ds[y][0], ds[y][1]));
    }
}

INLINE void gradient_of_softmax(Block b, const Scratch *s, Log2 scale, const int masked, int bf16) {
    for (int i = 0; bf16 && i < b.queries - 1; i += 2) bf16_gradient_of_rows(b, s, i, 2, scale, masked);
    if (bf16 && b.queries % 2) bf16_gradient_of_rows(b, s, b.queries - 1, 1, scale, masked);
    for (int i = 0; !bf16 && i < b.queries; i++) fp32_gradient_of_row(b, s, i, scale, masked);
    if (on_amx(bf16)) clear_words(s->p, b.queries), clear_words(s->ds, b.queries);
}

/* The products. A strip leaves out the keys that none of its queries sees. */

/* p[i][j] = x[i] . y_t[.][j]. */
static void products(Block b, float *p, const float *x, const float *y_t, int hs, int bf16, Ahead *next) {
    const int length = row_length(hs, bf16);
    if (on_amx(bf16)) {
        amx_scores(p, x, y_t, b, b.queries, keys_of, hs, next);
        return;
    }
    for (int i = 0; i < b.queries; i += MR) {
        const int m = min(MR, b.queries - i);
        const Range r = in_vectors(keys_of(b, i, i + m));
        ask(next);
        strip(p + i * KB + r.from, KB, &(Factor){x + i * length, length, 1}, y_t + r.from, KB, m, (r.to - r.from) / VL,
              steps(hs, bf16), 0, bf16);
    }
}
/* sums[j] += sum over i of p[i][j] x[i]. */
static void sums_over_queries(Block b, float *sums, const float *p, const float *x, int hs, int bf16) {
    const int hp = padded(hs);
    if (on_amx(bf16)) {
        amx_sums(sums, x, p, b, b.keys, queries_of, hs, NULL);
        return;
    }
    for (int j = 0; j < b.keys; j += MR) {
        const int m = min(MR, b.keys - j);
        const Range r = in_steps(queries_of(b, j, j + m), bf16);
        strip(sums + j * hp, hp, &(Factor){p + r.from * KB + j, 1, KB}, x + r.from * hp, hp, m, hp / VL, r.to - r.from,
              1, bf16);
    }
}
/* dq[i] += sum over j of ds[i][j] k[j]. */
static void sums_over_keys(Block b, float *dq, const float *ds, const float *k, int hs, int bf16, Ahead *next) {
    const int hp = padded(hs), length = steps(KB, bf16);
    if (on_amx(bf16)) {
        amx_sums_of_keys(dq, ds, k, b, hs, next);
        return;
    }
    for (int i = 0; i < b.queries; i += MR) {
        const int m = min(MR, b.queries - i);
        const Range r = in_steps(keys_of(b, i, i + m), bf16);
        ask(next);
        strip(dq + i * hp, hp, &(Factor){ds + i * length + r.from, length, 1}, k + r.from * hp, hp, m, hp / VL,
              r.to - r.from, 1, bf16);
    }
}

/* The gradients of one block, whose first key is number `key` of the segment. */
static void block_backward(Block b, const Scratch *s, int key, int hs, int bf16, Ahead next[3]) {
    const int hp = padded(hs);
    const Log2 scale = log2_of_score(hs);
    products(b, s->p, s->q, s->k_t + key * hp, hs, bf16, &next[0]);
    products(b, s->ds, s->dout, s->v_t + key * hp, hs, bf16, &next[1]);
    if (all_visible(b)) gradient_of_softmax(b, s, scale, 0, bf16);
    else gradient_of_softmax(b, s, scale, 1, bf16);
    sums_over_queries(b, s->dv + key * hp, s->p, s->dout_pairs, hs, bf16);
    sums_over_queries(b, s->dk + key * hp, s->ds, s->q_pairs, hs, bf16);
    sums_over_keys(b, s->dq, bf16 ? s->ds_rows : s->ds, s->k + steps(key, bf16) * hp, hs, bf16, &next[2]);
}

/* ---- one segment ---- */

/* D of VL queries, summed in the order in which dP is, so that dP - D is exactly 0 for a query that sees one key. (On AMX's
 * tiles dP is summed in another order, and the difference is about a rounding.) */
static vf dot_of_rows(const Rows *dout, const Rows *out, int i, int bf16) {
    vf D = vf_set(0);
    for (int d = 0; d < out->hs; d += VL) {
        vf x[VL], y[VL];
        for (int l = 0; l < VL; l++) x[l] = vector_of(dout, i + l, d), y[l] = vector_of(out, i + l, d);
        for (int l = 0; bf16 && l < VL; l++) x[l] = bf16_rounded(x[l]);
        vf_transpose(x), vf_transpose(y);
        for (int l = 0; l < VL; l++) D += x[l] * y[l];
    }
    return D;
}

/* Fills in all that the scratch holds of the n queries from `at` on. `at` is a multiple of QB. */
static void load_queries(const Scratch *s, const Head *h, int at, int n) {
    const Rows q = rows_at(h, h->qkv, 3 * h->C, at, n);
    const Rows dout = rows_at(h, h->dout, h->C, at, n), out = rows_at(h, h->out, h->C, at, n);
    const int hp = padded(h->hs), length = row_length(h->hs, h->bf16);
    pack_rows(s->q + (int64_t)at * length, q, h->bf16);
    pack_rows(s->dout + (int64_t)at * length, dout, h->bf16);
    float *const q_pairs = s->q_pairs + (int64_t)at / 2 * hp, *const dout_pairs = s->dout_pairs + (int64_t)at / 2 * hp;
    if (on_amx(h->bf16)) pack_pair_columns(q_pairs, q), pack_pair_columns(dout_pairs, dout);
    else if (h->bf16) pack_pairs(q_pairs, q, 1), pack_pairs(dout_pairs, dout, 1);
    for (int i = 0; i < n; i += VL) vf_store(s->D + at + i, dot_of_rows(&dout, &out, i, h->bf16));
    const double scale = sqrt(h->hs);
    for (int i = at; i < at + n; i++) {
        const double lse = h->lse[i] * scale;
        s->lse[i] = (float)lse;
        s->rest[i] = (float)(lse - (double)s->lse[i]);
    }
}

/* The scratch as seen by the block of queries at `at`: its first query is number 0. */
static Scratch queries_from(Scratch s, const Head *h, int at) {
    const int64_t hp = padded(h->hs), length = row_length(h->hs, h->bf16);
    s.q += at * length, s.dout += at * length;
    s.q_pairs += steps(at, h->bf16) * hp, s.dout_pairs += steps(at, h->bf16) * hp;
    s.lse += at, s.rest += at, s.D += at;
    return s;
}

static void load_keys(const Scratch *s, const Head *h, int from, int n) {
    const int hp = padded(h->hs);
    for (int key = 0; key < n; key += KB) {
        const Rows k = rows_at(h, h->qkv + h->C, 3 * h->C, from + key, min(KB, n - key));
        pack_pairs(s->k + steps(key, h->bf16) * hp, k, h->bf16);
        pack_columns(s->k_t + key * hp, KB, k, h->bf16);
        pack_columns(s->v_t + key * hp, KB, (Rows){k.at + h->C, k.stride, k.n, k.hs}, h->bf16);
    }
    const size_t bytes = (size_t)(n + KB - 1) / KB * KB * hp * sizeof(float);
    memset(s->dk, 0, bytes);
    memset(s->dv, 0, bytes);
}

/* Whether the queries at `at` see keys of the segment that begins at `from`; and whether they see no key before it. */
static int sees(const Head *h, int at, int from) {
    return at >= from && at < h->T && first_key(at, h->window) < from + SEGMENT;
}
static int sees_first(const Head *h, int at, int from) { return first_key(at, h->window) >= from; }

/* dq of the queries at `at` becomes a segment's part, or gets it added if they have seen a segment before. */
static void add_part(const Head *h, const float *part, int at, int from) {
    const int hp = padded(h->hs), n = min(QB, h->T - at), add = !sees_first(h, at, from);
    const float scale = 1 / sqrtf((float)h->hs);
    floatX *dq = h->dqkv + (int64_t)at * 3 * h->C;
    for (int i = 0; i < n; i++, dq += 3 * h->C)
        for (int d = 0; d < h->hs; d += VL) {
            const int lanes = LANES(d, h->hs);
            const vf x = vf_load(part + i * hp + d) * scale;
            vf_store_n(dq + d, add ? vf_load_n(dq + d, lanes) + x : x, lanes);
        }
}

/* Prefetches for the queries at `at`: all of their numbers, or only dq if they were loaded before. */
static void next_queries(Ahead next[3], const Head *h, int at, int from, int parts) {
    const int n = sees(h, at, from) ? min(QB, h->T - at) : 0, first = parts || sees_first(h, at, from);
    next[0] = rows_ahead(rows_at(h, h->qkv, 3 * h->C, at, first ? n : 0));
    next[1] = rows_ahead(rows_at(h, h->dout, h->C, at, first ? n : 0));
    next[2] = first ? rows_ahead(rows_at(h, h->out, h->C, at, n)) : rows_ahead(rows_at(h, h->dqkv, 3 * h->C, at, n));
}

/* Stores dk and dv of a segment. */
static void store_keys(const Scratch *s, const Head *h, int from, int keys) {
    const int stride = 3 * h->C, hp = padded(h->hs);
    const float scale = 1 / sqrtf((float)h->hs);
    floatX *dk = h->dqkv + (int64_t)from * stride + h->C;
    if (!on_amx(h->bf16)) {
        store_rows(dk, stride, s->dk, keys, h->hs, scale);
        store_rows(dk + h->C, stride, s->dv, keys, h->hs, 1);
        return;
    }
    float scales[KB], ones[KB];
    for (int j = 0; j < KB; j++) scales[j] = scale, ones[j] = 1;
    for (int key = 0; key < keys; key += KB, dk += (int64_t)KB * stride) {
        store_columns(dk, stride, s->dk + key * hp, min(KB, keys - key), h->hs, scales);
        store_columns(dk + h->C, stride, s->dv + key * hp, min(KB, keys - key), h->hs, ones);
    }
}

/* Computes dk and dv of the segment's keys and its parts of dq, which are added at once or left in parts(T, hp). */
static void segment_backward(const Scratch *own, const Head *h, int from, float *parts) {
    const int hp = padded(h->hs), keys = min(SEGMENT, h->T - from);
    load_keys(own, h, from, keys);
    for (int at = from; sees(h, at, from); at += QB) {
        const int n = min(QB, h->T - at);
        Scratch s = queries_from(*own, h, at);
        if (parts || sees_first(h, at, from)) load_queries(own, h, at, n);
        if (parts) s.dq = parts + (int64_t)at * hp;
        Ahead next[3];
        next_queries(next, h, at + QB, from, parts != NULL);
        memset(s.dq, 0, (size_t)n * hp * sizeof *s.dq);
        for (int key = 0; key < keys; key += KB) {
            const Block b = {at - from - key, n, min(KB, keys - key), h->window};
            if (!none_visible(b)) block_backward(b, &s, key, h->hs, h->bf16, next);
        }
        if (!parts) add_part(h, s.dq, at, from);
    }
    store_keys(own, h, from, keys);
}

/* ---- all heads ---- */

static Scratch thread_scratch(const Context *ctx, int thread, const Head *h) {
    Scratch s;
    const int64_t size = scratch_at(&s, NULL, h->T, h->hs, h->bf16);
    scratch_at(&s, (float *)ctx->workspace + thread * size, h->T, h->hs, h->bf16);
    return s;
}

typedef struct Heads {
    const Context *ctx;
    const Head *all;
    int64_t heads;
    int from;     /* the first key of the segments computed at once */
    float *parts; /* their parts of dq */
} Heads;

static void segment_tasks(const void *given, Part tasks) { /* the early segments first: most queries see them */
    const Heads a = *(const Heads *)given;
    begin_products(on_amx(a.all->bf16));
    for (int64_t task = tasks.from; task < tasks.to; task++) {
        const Head h = head_of(*a.all, task % a.heads);
        const int at = a.from + (int)(task / a.heads) * SEGMENT;
        const Scratch own = thread_scratch(a.ctx, tasks.thread, &h);
        if (at < h.T) segment_backward(&own, &h, at, a.parts + task * whole_blocks(h.T) * padded(h.hs));
    }
    end_products(on_amx(a.all->bf16));
}

static void add_parts(const void *given, Part tasks) {
    const Heads a = *(const Heads *)given;
    for (int64_t task = tasks.from; task < tasks.to; task++) {
        const Head h = head_of(*a.all, task % a.heads);
        const int at = (int)(task / a.heads) * QB;
        for (int i = 0; i < AT_ONCE; i++) {
            const float *part = a.parts + ((i * a.heads + task % a.heads) * whole_blocks(h.T) + at) * padded(h.hs);
            if (sees(&h, at, a.from + i * SEGMENT)) add_part(&h, part, at, a.from + i * SEGMENT);
        }
    }
}

static void head_tasks(const void *given, Part tasks) {
    const Heads a = *(const Heads *)given;
    begin_products(on_amx(a.all->bf16));
    for (int64_t head = tasks.from; head < tasks.to; head++) {
        const Head h = head_of(*a.all, head);
        const Scratch s = thread_scratch(a.ctx, tasks.thread, &h);
        for (int from = 0; from < h.T; from += SEGMENT) segment_backward(&s, &h, from, NULL);
    }
    end_products(on_amx(a.all->bf16));
}

/* Computes AT_ONCE segments of all heads from `from` on, then adds their parts of dq in order. */
static void split_backward(Context *ctx, const Head *all, int64_t heads, int from) {
    Scratch s;
    const int blocks = (all->T + QB - 1) / QB;
    float *parts = (float *)ctx->workspace + scratch_at(&s, NULL, all->T, all->hs, all->bf16) * ctx->threads;
    const Heads given = {ctx, all, heads, from, parts};
    parallel_dynamic(ctx->threads, heads * AT_ONCE, segment_tasks, &given);
    parallel_static(ctx->threads, heads * blocks, add_parts, &given);
}

void K(attention_backward)(Context *ctx, floatX *dqkv, const floatX *dout, const floatX *out, const float *lse,
                           const floatX *qkv, int B, int T, int C, int NH, int window) {
    const int64_t heads = (int64_t)B * NH;
    const Head all = {dqkv, qkv, out, dout, lse, T, C, C / NH, effective(window, T), USES_BF16(ctx)};
    if (split(heads, T, ctx->threads)) {
        for (int from = 0; from < T; from += AT_ONCE * SEGMENT) split_backward(ctx, &all, heads, from);
        return;
    }
    parallel_dynamic(threads_for(ctx, elements((int64_t)B * T, all.window, C)), heads, head_tasks,
                     &(Heads){ctx, &all, heads, 0, NULL});
}
