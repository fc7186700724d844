/* The gradients of attention, P recomputed from lse. With P = exp(s - lse) and dP = dout V':
 *     dv = P' dout,  ds = P (dP - D) / sqrt(hs),  D = dout . out per query,  dq = ds K,  dk = ds' q
 * A task is one head, so that dk and dv are summed by one thread in one order. */
#include <math.h>
#include "attention.h"

/* VL queries: p becomes P, ds (which holds dP) becomes P (dP - D); the invisible are 0 */
INLINE void gradient_lanes(Block b, Scratch *s, int i, const int masked) {
    const Range r = masked ? keys_of(b, i, i + VL) : (Range){0, b.keys};
    const vf lse = vf_load(s->lse + i), D = vf_load(s->sum + i), none = vf_set(0);
    for (int j = 0; j < r.from; j++) vf_store(s->p + j * QB + i, none), vf_store(s->ds + j * QB + i, none);
    for (int j = r.from; j < r.to; j++) {
        vf p = vf_exp_nonpositive(vf_load(s->p + j * QB + i) - lse);
        vf ds = p * (vf_load(s->ds + j * QB + i) - D);
        if (masked) p = (vf)((vi)p & visible(b, i, j)), ds = (vf)((vi)ds & visible(b, i, j));
        vf_store(s->p + j * QB + i, p);
        vf_store(s->ds + j * QB + i, ds);
    }
    for (int j = max(r.from, r.to); j < b.keys; j++)
        vf_store(s->p + j * QB + i, none), vf_store(s->ds + j * QB + i, none);
}

static void gradient_of_softmax(Block b, Scratch *s) {
    if (all_visible(b))
        for (int i = 0; i < b.queries; i += VL) gradient_lanes(b, s, i, 0);
    else
        for (int i = 0; i < b.queries; i += VL) gradient_lanes(b, s, i, 1);
}

static void block_backward(Block b, Scratch *s, int key, int hs) {
    const int hp = padded(hs);
    const float *k = s->k + (int64_t)key * hp, *v = s->v + (int64_t)key * hp;
    products_of_rows(b, s->p, k, hp, s->q_t, hs);
    products_of_rows(b, s->ds, v, hp, s->dout_t, hs);
    gradient_of_softmax(b, s);
    sums_over_queries(b, s->dv + (int64_t)key * hp, s->p, s->dout, hp);
    sums_over_queries(b, s->dk + (int64_t)key * hp, s->ds, s->q, hp);
    sums_over_keys(b, s->acc, s->ds, k, hp);
}

/* The block's queries, dout, lse and D; zero beyond its end. D is summed in the order in which dP is, so that dP - D is
 * exactly 0 where a query sees one key. */
static void load_queries(Scratch *s, const floatX *q, const floatX *dout, const floatX *out, const float *lse, int C,
                         int queries, int hs) {
    const float *out_t = s->q_t;
    load_transposed(s->acc, s->q_t, out, C, queries, hs, 1);
    load_transposed(s->dout, s->dout_t, dout, C, queries, hs, 1);
    for (int i = 0; i < queries; i += VL) {
        vf D = vf_set(0);
        for (int d = 0; d < hs; d++) D += vf_load(s->dout_t + d * QB + i) * vf_load(out_t + d * QB + i);
        vf_store(s->sum + i, D);
        vf_store(s->lse + i, vf_load_n(lse + i, LANES(i, queries)));
    }
    load_transposed(s->q, s->q_t, q, 3 * C, queries, hs, 1 / sqrtf((float)hs));
    memset(s->acc, 0, (size_t)queries * padded(hs) * sizeof *s->acc);
}

static void head_backward(Scratch *s, floatX *dqkv, const floatX *dout, const floatX *out, const float *lse,
                          const floatX *qkv, int T, int C, int hs, int window) {
    const int64_t hp = padded(hs);
    load_rows(s->k, qkv + C, 3 * C, T, hs, 1);
    load_rows(s->v, qkv + 2 * C, 3 * C, T, hs, 1);
    memset(s->dk, 0, (size_t)(T * hp) * sizeof *s->dk);
    memset(s->dv, 0, (size_t)(T * hp) * sizeof *s->dv);
    for (int at = 0; at < T; at += QB) {
        const int queries = min(QB, T - at), end = at + queries;
        load_queries(s, qkv + (int64_t)at * 3 * C, dout + (int64_t)at * C, out + (int64_t)at * C, lse + at, C, queries,
                     hs);
        for (int key = first_key(at, window); key < end; key += KB)
            block_backward((Block){at - key, queries, min(KB, end - key), window}, s, key, hs);
        store_rows(dqkv + (int64_t)at * 3 * C, 3 * C, s->acc, queries, hs, 1 / sqrtf((float)hs));
    }
    store_rows(dqkv + C, 3 * C, s->dk, T, hs, 1);
    store_rows(dqkv + 2 * C, 3 * C, s->dv, T, hs, 1);
}

void K(attention_backward)(Context *ctx, floatX *dqkv, const floatX *dout, const floatX *out, const float *lse,
                           const floatX *qkv, int B, int T, int C, int NH, int window) {
    const int hs = C / NH, seen = effective(window, T);
#pragma omp parallel for schedule(dynamic) num_threads(threads_for(ctx, elements((int64_t)B *T, seen, C)))
    for (int64_t head = 0; head < (int64_t)B * NH; head++) {
        const int64_t row = head / NH * T, column = head % NH * hs;
        Scratch s = thread_scratch(ctx, T, hs);
        head_backward(&s, dqkv + row * 3 * C + column, dout + row * C + column, out + row * C + column, lse + head * T,
                      qkv + row * 3 * C + column, T, C, hs, seen);
    }
}
