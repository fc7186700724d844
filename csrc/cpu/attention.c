/* Causal attention without a T x T matrix (FlashAttention, Dao et al. 2022): softmax over blocks of keys, the result so far
 * scaled down whenever a larger score turns up. See attention.h for the blocks. */
#include <float.h>
#include <math.h>
#include "attention.h"

int64_t K(attention_workspace)(int T, int C, int NH, int threads) {
    Scratch s;
    return scratch_at(&s, NULL, T, C / NH) * threads * (int64_t)sizeof(float);
}

/* one head of one sequence: rows of keys and values `stride` apart */
typedef struct {
    const floatX *k, *v;
    int64_t stride;
    int hs, window;
} Head;

/* VL queries: p becomes exp(p - largest); the invisible are 0 */
INLINE void softmax_lanes(Block b, Scratch *s, int i, float *shrink, const int masked) {
    const Range r = masked ? keys_of(b, i, i + VL) : (Range){0, b.keys};
    const vf before = vf_load(s->lse + i), low = vf_set(-FLT_MAX);
    vf largest = before, sum = vf_set(0);
    for (int j = 0; j < r.from; j++) vf_store(s->p + j * QB + i, vf_set(0));
    for (int j = r.from; j < r.to; j++) {
        const vf x = vf_load(s->p + j * QB + i);
        largest = vf_max(largest, masked ? vf_pick(visible(b, i, j), x, low) : x);
    }
    for (int j = r.from; j < r.to; j++) {
        vf x = vf_exp_nonpositive(vf_load(s->p + j * QB + i) - largest);
        if (masked) x = (vf)((vi)x & visible(b, i, j));
        sum += x;
        vf_store(s->p + j * QB + i, x);
    }
    for (int j = max(r.from, r.to); j < b.keys; j++) vf_store(s->p + j * QB + i, vf_set(0));
    const vf factor = vf_exp_nonpositive(before - largest);
    vf_store(s->lse + i, largest);
    vf_store(s->sum + i, vf_load(s->sum + i) * factor + sum);
    vf_store(shrink + i, factor);
}

static void softmax(Block b, Scratch *s, int hp) {
    float shrink[QB];
    if (all_visible(b))
        for (int i = 0; i < b.queries; i += VL) softmax_lanes(b, s, i, shrink, 0);
    else
        for (int i = 0; i < b.queries; i += VL) softmax_lanes(b, s, i, shrink, 1);
    for (int i = 0; i < b.queries; i++)
        if (shrink[i] != 1)
            for (int d = 0; d < hp; d += VL) vf_store(s->acc + i * hp + d, vf_load(s->acc + i * hp + d) * shrink[i]);
}

/* out and lse (unless NULL) of `queries` queries from position `at` on; rows of out C apart */
static void attend(Scratch *s, floatX *out, int64_t C, float *lse, Head h, const floatX *q, int at, int queries) {
    const int hp = padded(h.hs), end = at + queries;
    load_transposed(s->q, s->q_t, q, h.stride, queries, h.hs, 1 / sqrtf((float)h.hs));
    memset(s->acc, 0, (size_t)queries * hp * sizeof *s->acc);
    for (int i = 0; i < QB; i++) s->lse[i] = -FLT_MAX, s->sum[i] = 0;
    for (int key = first_key(at, h.window); key < end; key += KB) {
        const Block b = {at - key, queries, min(KB, end - key), h.window};
        load_rows(s->v, h.v + key * h.stride, h.stride, b.keys, h.hs, 1);
        products_of_rows(b, s->p, h.k + key * h.stride, h.stride, s->q_t, h.hs);
        softmax(b, s, hp);
        sums_over_keys(b, s->acc, s->p, s->v, hp);
    }
    for (int i = 0; i < queries; i++) {
        store_rows(out + i * C, C, s->acc + i * hp, 1, h.hs, 1 / s->sum[i]);
        if (lse) lse[i] = s->lse[i] + logf(s->sum[i]);
    }
}

void K(attention_forward)(Context *ctx, floatX *out, float *lse, const floatX *qkv, int B, int T, int C, int NH,
                          int window) {
    const int hs = C / NH, blocks = (T + QB - 1) / QB, seen = effective(window, T);
    const int64_t tasks = (int64_t)B * NH * blocks;
#pragma omp parallel for schedule(dynamic) num_threads(threads_for(ctx, elements((int64_t)B *T, seen, C)))
    for (int64_t task = 0; task < tasks; task++) {
        const int64_t head = task / blocks, b = head / NH, at = (blocks - 1 - task % blocks) * QB;
        const floatX *q = qkv + b * T * 3 * C + head % NH * hs;
        Scratch s = thread_scratch(ctx, T, hs);
        attend(&s, out + (b * T + at) * C + head % NH * hs, C, lse + head * T + at,
               (Head){q + C, q + 2 * C, 3 * C, hs, seen}, q + at * 3 * C, (int)at, min(QB, T - (int)at));
    }
}

/* q . k of VL keys of which n exist; q is zero-padded */
static vf scores_of_one(const float *q, const floatX *k, int64_t stride, int n, int hs) {
    vf sum[VL];
    for (int j = 0; j < VL; j++) {
        sum[j] = vf_set(0);
        for (int d = 0; j < n && d < hs; d += VL)
            sum[j] += vf_load(q + d) * vf_load_n(k + j * stride + d, LANES(d, hs));
    }
    vf_transpose(sum);
    for (int j = 1; j < VL; j++) sum[0] += sum[j];
    return sum[0];
}

/* p = the scores of q with `keys` keys, -FLT_MAX up to a multiple of VL; returns the largest */
static float scores_of_block(float *p, const float *q, const Head *h, int key, int keys) {
    vf largest = vf_set(-FLT_MAX);
    for (int j = 0; j < keys; j += VL) {
        const vf x = scores_of_one(q, h->k + (key + j) * h->stride, h->stride, keys - j, h->hs);
        vf_store(p + j, vf_pick(vi_lanes(0) < keys - j, x, vf_set(-FLT_MAX)));
        largest = vf_max(largest, vf_load(p + j));
    }
    return vf_max_of(largest);
}

/* p = exp(p - largest); returns their sum */
static float softmax_of_block(float *p, int keys, float largest) {
    vf sum = vf_set(0);
    for (int j = 0; j < keys; j += VL) {
        const vf x = vf_exp_nonpositive(vf_load(p + j) - largest);
        sum += x;
        vf_store(p + j, x);
    }
    return vf_sum(sum);
}

/* acc += sum over j of p[j] v[j] */
static void values_of_block(Scratch *s, const Head *h, int key, int keys) {
    const int hp = padded(h->hs);
    const float *v = h->v + key * h->stride;
    int64_t stride = h->stride;
    if (hp != h->hs) {
        load_rows(s->v, v, stride, keys, h->hs, 1);
        v = s->v, stride = hp;
    }
    strip(s->acc, 0, &(Factor){s->p, 0, 1}, v, stride, 1, hp / VL, keys, 1);
}

/* One query reads each key and value once: nothing to reuse, so they are read where they lie. */
static void attend_one(Scratch *s, floatX *out, Head h, const floatX *q, int at) {
    const int hp = padded(h.hs);
    float largest = -FLT_MAX, sum = 0;
    load_rows(s->q, q, 0, 1, h.hs, 1 / sqrtf((float)h.hs));
    memset(s->acc, 0, (size_t)hp * sizeof *s->acc);
    for (int key = first_key(at, h.window); key <= at; key += KB) {
        const int keys = min(KB, at + 1 - key);
        const float here = scores_of_block(s->p, s->q, &h, key, keys), before = largest;
        if (!(here <= largest)) largest = here;
        const float factor = expf(before - largest);
        sum = sum * factor + softmax_of_block(s->p, keys, largest);
        for (int d = 0; d < hp; d += VL) vf_store(s->acc + d, vf_load(s->acc + d) * factor);
        values_of_block(s, &h, key, keys);
    }
    store_rows(out, 0, s->acc, 1, h.hs, 1 / sum);
}

static void store_cache(Context *ctx, floatX *cache, const floatX *qkv, const int *pos, int B, int n, int T, int C) {
    const int64_t rows = (int64_t)B * n;
    (void)ctx; /* without OpenMP */
#pragma omp parallel for num_threads(threads_for(ctx, rows * 3 * C))
    for (int64_t row = 0; row < rows; row++) {
        const int64_t b = row / n, t = row % n;
        memcpy(cache + (b * T + pos[b] + t) * 3 * C, qkv + row * 3 * C, (size_t)3 * C * sizeof *cache);
    }
}

static int furthest(const int *pos, int B) {
    int last = 0;
    for (int b = 0; b < B; b++) last = max(last, pos[b]);
    return last;
}

void K(attention_cached)(Context *ctx, floatX *out, floatX *cache, const floatX *qkv, const int *pos, int B, int n,
                         int T, int C, int NH, int window) {
    enum { FEW = 3 }; /* so few queries are faster one by one than as lanes of a block */
    const int hs = C / NH, rows = n <= FEW ? 1 : QB, blocks = (n + rows - 1) / rows, seen = effective(window, T);
    const int64_t tasks = (int64_t)B * NH * blocks, work = elements((int64_t)B * n, min(seen, furthest(pos, B) + n), C);
    (void)work; /* without OpenMP */
    store_cache(ctx, cache, qkv, pos, B, n, T, C);
#pragma omp parallel for schedule(dynamic) num_threads(threads_for(ctx, rows == 1 ? work * 16 : work))
    for (int64_t task = 0; task < tasks; task++) {
        const int64_t head = task / blocks, b = head / NH, i = (blocks - 1 - task % blocks) * rows, at = pos[b] + i;
        const floatX *q = cache + b * T * 3 * C + head % NH * hs;
        floatX *o = out + (b * n + i) * C + head % NH * hs;
        const Head h = {q + C, q + 2 * C, 3 * C, hs, seen};
        Scratch s = thread_scratch(ctx, T, hs);
        if (rows == 1) attend_one(&s, o, h, q + at * 3 * C, (int)at);
        else attend(&s, o, C, NULL, h, q + at * 3 * C, (int)at, min(QB, n - (int)i));
    }
}
