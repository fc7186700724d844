/* A head of attention, and how one query of it reads each key and value once, where they lie. */
#ifndef ATTENTION_ONE_H
#define ATTENTION_ONE_H
#include <float.h>
#include "attention_pack.h"

/* One head of one sequence. Its rows of keys and values are `stride` apart. */
typedef struct {
    const floatX *k, *v;
    int64_t stride;
    int hs, window, R; /* attend_one finds position p in row p % R */
    Log2 to_log2;
    const Dropout *dropout; /* NULL: none */
    uint32_t row;           /* the number of its first query among those of all heads */
    const int *offsets;     /* (T); NULL: all rows are of one document */
} Head;

static Head head_at(const floatX *q, int C, int hs, int window) {
    return (Head){q + C, q + 2 * C, 3 * C, hs, window, 0, log2_of_score(hs), NULL, 0, NULL};
}

/* q . k of VL keys, of which n exist. q is padded with zeros. */
static vf scores_of_one(const float *q, const floatX *k, int64_t stride, int n, int hs) {
    vf sum[VL];
    for (int j = 0; j < VL; j++) {
        sum[j] = vf_set(0);
        for (int d = 0; j < n && d < hs; d += VL)
            sum[j] += vf_load(q + d) * fx_load_n(k + j * stride + d, LANES(d, hs));
    }
    vf_transpose(sum);
    for (int j = 1; j < VL; j++) sum[0] += sum[j];
    return sum[0];
}

/* p becomes the scores of q with the keys in rows key.., then -FLT_MAX up to a multiple of VL. Returns the largest score. */
static float scores_of_rows(float *p, const float *q, const Head *h, int key, int keys) {
    vf largest = vf_set(-FLT_MAX);
    for (int j = 0; j < keys; j += VL) {
        const vf x = scores_of_one(q, h->k + (key + j) * h->stride, h->stride, keys - j, h->hs);
        vf_store(p + j, vf_pick(vi_lanes(0) < keys - j, x, vf_set(-FLT_MAX)));
        largest = vf_max(largest, vf_load(p + j));
    }
    return vf_max_of(largest);
}

/* p becomes exp(p - largest). Returns the sum of p. */
static float softmax_of_block(float *p, int keys, float largest, Log2 to_log2) {
    vf sum = vf_set(0);
    for (int j = 0; j < keys; j += VL) {
        const vf x = weight_of(vf_load(p + j) - largest, to_log2, TERMS_OF_SUMS);
        sum += x;
        vf_store(p + j, x);
    }
    return vf_sum(sum);
}

/* sums(n VL) += sum over j of p[j] v[j]. The last of the n vectors has `lanes` numbers. */
INLINE void values_of(float *sums, const float *p, const floatX *v, int64_t stride, int keys, const int n, int lanes) {
    vf sum[NR];
    for (int x = 0; x < n; x++) sum[x] = vf_load(sums + x * VL);
    for (int j = 0; j < keys; j++, v += stride)
        for (int x = 0; x < n; x++) sum[x] += vf_set(p[j]) * fx_load_n(v + x * VL, x < n - 1 ? VL : lanes);
    for (int x = 0; x < n; x++) vf_store(sums + x * VL, sum[x]);
}
static void values_of_rows(float *out, const float *p, const Head *h, int key, int keys) {
    const floatX *v = h->v + key * h->stride;
    for (int d = 0; d < h->hs; d += NR * VL) {
        const int n = min(NR, (h->hs - d + VL - 1) / VL), lanes = LANES(d + (n - 1) * VL, h->hs);
        switch (n) {
        case 1: values_of(out + d, p, v + d, h->stride, keys, 1, lanes); break;
        case 2: values_of(out + d, p, v + d, h->stride, keys, 2, lanes); break;
#if VREGS >= 32
        case 3: values_of(out + d, p, v + d, h->stride, keys, 3, lanes); break;
        case 4: values_of(out + d, p, v + d, h->stride, keys, 4, lanes); break;
#endif
        }
    }
}

/* How many of the positions key.. lie before the end of the ring; the others lie at its beginning. */
static int before_the_end(const Head *h, int key, int keys) { return min(keys, h->R - key % h->R); }

/* scores_of_rows, and values_of_rows, for positions: position key is in row key % R. */
static float scores_of_block(float *p, const float *q, const Head *h, int key, int keys) {
    const int split = before_the_end(h, key, keys);
    const float largest = scores_of_rows(p, q, h, key % h->R, split);
    if (split == keys) return largest;
    vf_store(p + keys, vf_set(-FLT_MAX)); /* the second part fills up to a multiple of VL from its own start */
    return fmaxf(largest, scores_of_rows(p + split, q, h, 0, keys - split));
}

static void values_of_block(float *out, const float *p, const Head *h, int key, int keys) {
    const int split = before_the_end(h, key, keys);
    values_of_rows(out, p, h, key % h->R, split);
    if (split < keys) values_of_rows(out, p + split, h, 0, keys - split);
}
#endif
