/* The gradients of one block of queries and keys: what attention_backward.c does again and again. */
#ifndef ATTENTION_GRADIENT_H
#define ATTENTION_GRADIENT_H
#include "attention_amx.h"
#include "dropout.h"

/* One thread's part of the workspace. */
typedef struct {
    /* (keys of a segment, hp); k_t and v_t, on tiles dk and dv too, (hp, KB) per block of keys */
    float *k, *k_t, *v_t, *dk, *dv;
    float *dq, *p, *ds, *ds_rows;           /* (QB, hp); (QB, KB) */
    float *dq_sum;                          /* (T, hp): the parts of dq so far */
    float *q, *dout, *q_pairs, *dout_pairs; /* all queries, packed; on tiles the pairs are (hp, QB/2) per block */
    float *lse, *rest, *D;                  /* (T): lse sqrt(hs), a score, in two parts; D */
    const Dropout *dropout;                 /* NULL: none */
    uint32_t row;                           /* the number of a block's first query among those of all heads */
    int at;                                 /* its position */
    const int *own;                         /* the offsets of a block's queries; NULL: all rows are of one document */
} Scratch;

/* The factors of dropout for query i and the keys of a block. */
INLINE void drop_row(float factors[KB], Block b, const Scratch *s, int i) {
    factors_of_row(s->dropout, s->row + (uint32_t)i, (uint32_t)(s->at - b.shift) / 8, factors);
}

/* The block as query i sees it, whose document may begin within it. */
INLINE Block seen_by(Block b, const Scratch *s, int i) {
    if (s->own) b.window = min(b.window, s->own[i] + 1);
    return b;
}

/* For the VL keys from j on, p becomes P, and ds, which holds dP, becomes P (dP - D). With dropout, P and dP are multiplied by
 * the factors; and a query that sees one key is left out, because dP is not exactly D then. */
INLINE void gradient_of_lanes(Block b, const Scratch *s, int i, int j, Log2 scale, vf *p, vf *ds, const float *factors,
                              const int masked) {
    const vf x = vf_load(s->p + i * KB + j) - s->lse[i];
    *p = weight_of(TERMS == 6 ? x - s->rest[i] : x, scale, TERMS);
    if (factors) {
        const vf kept = vf_load(factors + j), rest = vf_load(s->ds + i * KB + j) * kept - s->D[i];
        *ds = s->at + i == 0 || b.window == 1 ? vf_set(0) : *p * rest;
        *p *= kept;
    } else *ds = *p * (vf_load(s->ds + i * KB + j) - s->D[i]);
    if (!masked) return;
    const vi seen = visible_keys(b, i, j);
    *p = (vf)((vi)*p & seen), *ds = (vf)((vi)*ds & seen);
}

INLINE void gradient_of_row(Block b, const Scratch *s, int i, Log2 scale, const int masked, const int drops,
                            const int documents) {
    if (documents) b = seen_by(b, s, i);
    const Range r = masked ? in_vectors(keys_of(b, i, i + 1)) : (Range){0, b.keys};
    float factors[KB];
    if (drops) drop_row(factors, b, s, i);
    for (int j = 0; j < b.keys; j += VL) {
        vf p = vf_set(0), ds = vf_set(0);
        if (!masked || (j >= r.from && j < r.to))
            gradient_of_lanes(b, s, i, j, scale, &p, &ds, drops ? factors : NULL, masked);
        vf_store(s->p + i * KB + j, p);
        vf_store(s->ds + i * KB + j, ds);
    }
}

/* Takes two queries, or a last one, and two vectors of keys at a time. A word of p and ds is of two queries, a word of
 * ds_rows of two keys. */
INLINE void gradient_of_rows(Block b, const Scratch *s, int i, const int rows, Log2 scale, const int masked,
                             const int drops, const int documents) {
    const Range r = masked ? in_vectors(keys_of(b, i, i + 2)) : (Range){0, b.keys};
    float factors[2][KB];
    for (int y = 0; drops && y < rows; y++) drop_row(factors[y], b, s, i + y);
    for (int j = 0; j < summed(b.keys); j += 2 * VL) {
        vf p[2][2] = {{{0}}}, ds[2][2] = {{{0}}};
#pragma GCC unroll 2
        for (int y = 0; y < rows; y++)
#pragma GCC unroll 2
            for (int x = 0; x < 2; x++) {
                const int key = j + x * VL;
                if (!masked || (key >= r.from && key < r.to))
                    gradient_of_lanes(documents ? seen_by(b, s, i + y) : b, s, i + y, key, scale, &p[y][x], &ds[y][x],
                                      drops ? factors[y] : NULL, masked);
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

INLINE void gradient_of_softmax(Block b, const Scratch *s, Log2 scale, const int masked, const int drops,
                                const int documents) {
    for (int i = 0; HAS_BF16 && i < b.queries - 1; i += 2)
        gradient_of_rows(b, s, i, 2, scale, masked, drops, documents);
    if (HAS_BF16 && b.queries % 2) gradient_of_rows(b, s, b.queries - 1, 1, scale, masked, drops, documents);
    for (int i = 0; !HAS_BF16 && i < b.queries; i++) gradient_of_row(b, s, i, scale, masked, drops, documents);
    if (HAS_AMX) clear_words(s->p, b.queries), clear_words(s->ds, b.queries);
}
/* One version serves all blocks here: a mask costs little beside the random numbers. */
APART void gradient_of_dropped(Block b, const Scratch *s, Log2 scale) { gradient_of_softmax(b, s, scale, 1, 1, 1); }
/* A block that a boundary between documents crosses. */
APART void gradient_of_documents(Block b, const Scratch *s, Log2 scale) { gradient_of_softmax(b, s, scale, 1, 0, 1); }

/* The products. A strip leaves out the keys that none of its queries sees. */

/* p[i][j] = x[i] . y_t[.][j]. */
static void products(Block b, float *p, const float *x, const float *y_t, int hs, Ahead *next) {
    const int length = row_length(hs);
    if (HAS_AMX) {
        amx_scores(p, x, y_t, b, b.queries, keys_of, hs, next);
        return;
    }
    for (int i = 0; i < b.queries; i += MR) {
        const int m = min(MR, b.queries - i);
        const Range r = in_vectors(keys_of(b, i, i + m));
        ask(next);
        strip(p + i * KB + r.from, KB, &(Factor){x + i * length, length, 1}, y_t + r.from, KB, m, (r.to - r.from) / VL,
              steps(hs), 0);
    }
}
/* sums[j] += sum over i of p[i][j] x[i]. */
static void sums_over_queries(Block b, float *sums, const float *p, const float *x, int hs) {
    const int hp = padded(hs);
    if (HAS_AMX) {
        amx_sums(sums, x, p, b, b.keys, queries_of, hs, NULL);
        return;
    }
    for (int j = 0; j < b.keys; j += MR) {
        const int m = min(MR, b.keys - j);
        const Range r = in_steps(queries_of(b, j, j + m));
        strip(sums + j * hp, hp, &(Factor){p + r.from * KB + j, 1, KB}, x + r.from * hp, hp, m, hp / VL, r.to - r.from,
              1);
    }
}
/* dq[i] += sum over j of ds[i][j] k[j]. */
static void sums_over_keys(Block b, float *dq, const float *ds, const float *k, int hs, Ahead *next) {
    const int hp = padded(hs), length = steps(KB);
    if (HAS_AMX) {
        amx_sums_of_keys(dq, ds, k, b, hs, next);
        return;
    }
    for (int i = 0; i < b.queries; i += MR) {
        const int m = min(MR, b.queries - i);
        const Range r = in_steps(keys_of(b, i, i + m));
        ask(next);
        strip(dq + i * hp, hp, &(Factor){ds + i * length + r.from, length, 1}, k + r.from * hp, hp, m, hp / VL,
              r.to - r.from, 1);
    }
}

/* The gradients of one block, whose first key is number `key` of the segment. */
static void block_backward(Block b, const Scratch *s, int key, int hs, Ahead next[3]) {
    const int hp = padded(hs);
    const Log2 scale = log2_of_score(hs);
    products(b, s->p, s->q, s->k_t + key * hp, hs, &next[0]);
    products(b, s->ds, s->dout, s->v_t + key * hp, hs, &next[1]);
    if (s->dropout) gradient_of_dropped(b, s, scale);
    else if (has_boundary(s->own, b)) gradient_of_documents(b, s, scale);
    else if (all_visible(b)) gradient_of_softmax(b, s, scale, 0, 0, 0);
    else gradient_of_softmax(b, s, scale, 1, 0, 0);
    sums_over_queries(b, s->dv + key * hp, s->p, s->dout_pairs, hs);
    sums_over_queries(b, s->dk + key * hp, s->ds, s->q_pairs, hs);
    sums_over_keys(b, s->dq, HAS_BF16 ? s->ds_rows : s->ds, s->k + steps(key) * hp, hs, &next[2]);
}
#endif
