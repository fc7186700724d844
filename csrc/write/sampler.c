/* Samples one id from logits. The candidates have one order: the likelier first, and among equals the lower id. Temperature 0,
 * top_k and top_p all keep the first candidates of this order. The last one to keep is found in O(V), without sorting. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "base/error.h"
#include "write/sampler.h"

int sampling_check(const llmc_sampling *how) {
    CHECK(how->temperature >= 0 && isfinite(how->temperature), LLMC_EINVAL,
          "temperature=%g: 0 takes the likeliest token, 1 the model's own distribution", how->temperature);
    CHECK(how->top_k >= 0, LLMC_EINVAL, "top_k=%d: the number of tokens to choose from; 0: all", how->top_k);
    CHECK(how->top_p >= 0 && how->top_p <= 1, LLMC_EINVAL,
          "top_p=%g is not in 0..1: the share of the probability to keep; "
          "0 or 1: all",
          how->top_p);
    CHECK(how->repetition_penalty >= 0 && isfinite(how->repetition_penalty), LLMC_EINVAL,
          "repetition_penalty=%g: above 1 what is there already becomes less likely; 0 or 1: no penalty",
          how->repetition_penalty);
    CHECK(how->vocab >= 0, LLMC_EINVAL, "vocab=%d: only ids below it are drawn; 0: all", how->vocab);
    return LLMC_OK;
}

static int before(const Candidate *a, const Candidate *b) {
    return a->logit > b->logit || (a->logit == b->logit && a->id < b->id);
}

/* ---- the likeliest ---- */

static int likeliest(const float *logits, int V, int *best) {
    *best = 0;
    for (int i = 0; i < V; i++) {
        CHECK(!isnan(logits[i]) && logits[i] != INFINITY, LLMC_ENUMERIC,
              "the logit of id %d is %g: the model's weights are "
              "broken; go back to an earlier checkpoint",
              i, logits[i]);
        if (logits[i] > logits[*best]) *best = i;
    }
    CHECK(isfinite(logits[*best]), LLMC_ENUMERIC, "all %d logits are -inf: no token is possible", V);
    return LLMC_OK;
}

/* ---- the last candidate to keep: a quickselect that looks for a sum ---- */

static void swap(Candidate *a, Candidate *b) {
    const Candidate t = *a;
    *a = *b, *b = t;
}

/* Partitions c[lo..hi) around its middle candidate, and returns where that candidate is then. */
static int64_t partition(Candidate *c, int64_t lo, int64_t hi) {
    swap(&c[lo + (hi - lo) / 2], &c[hi - 1]);
    int64_t at = lo;
    for (int64_t i = lo; i < hi - 1; i++)
        if (before(&c[i], &c[hi - 1])) swap(&c[at++], &c[i]);
    swap(&c[at], &c[hi - 1]);
    return at;
}

/* The number of candidates, or the sum of their weights. */
static double measure(const Candidate *c, int64_t n, int count) {
    if (count) return (double)n;
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += c[i].weight;
    return sum;
}

/* Counts the likeliest candidates of c[0..n) that are needed to reach `want` > 0, and moves them to the front of c, in any
 * order. */
static int64_t select_first(Candidate *c, int64_t n, double want, int count) {
    int64_t lo = 0, hi = n;
    while (lo < hi && want > 0) {
        const int64_t at = partition(c, lo, hi);
        const double sum = measure(c + lo, at - lo, count);
        if (sum >= want) {
            hi = at;
        } else {
            want -= sum + measure(c + at, 1, count);
            lo = at + 1;
        }
    }
    return lo;
}

/* ---- the draw ---- */

/* Collects the candidates up to `last` (NULL: all), in the order of ids. */
static int64_t fill(Candidate *c, const float *logits, int V, float largest, float temperature, const Candidate *last) {
    int64_t n = 0;
    for (int id = 0; id < V; id++) {
        c[n] = (Candidate){logits[id], 0, id};
        if (last && before(last, &c[n])) continue;
        c[n].weight = expf((logits[id] - largest) / temperature);
        n += c[n].weight > 0;
    }
    return n;
}

/* Finds the last candidate that top_k and top_p keep. */
static Candidate last_kept(Candidate *c, int64_t n, const llmc_sampling *how) {
    if (how->top_k) n = select_first(c, n, how->top_k, 1);
    if (how->top_p > 0 && how->top_p < 1) n = select_first(c, n, how->top_p * measure(c, n, 0), 0);
    Candidate last = c[0];
    for (int64_t i = 1; i < n; i++)
        if (before(&last, &c[i])) last = c[i];
    return last;
}

/* Collects the ids that may be drawn, in their order, with their weights; returns how many there are. */
static int64_t candidates(const float *logits, int V, const llmc_sampling *how, Candidate *c) {
    int best;
    if (how->vocab && how->vocab < V) V = how->vocab;
    TRY(likeliest(logits, V, &best));
    if (how->temperature == 0) return c[0] = (Candidate){logits[best], 1, best}, 1;
    int64_t n = fill(c, logits, V, logits[best], how->temperature, NULL);
    if (how->top_k || (how->top_p > 0 && how->top_p < 1)) {
        const Candidate last = last_kept(c, n, how);
        n = fill(c, logits, V, logits[best], how->temperature, &last);
    }
    return n;
}

int sampler_draw(const float *logits, int V, const llmc_sampling *how, double coin, Candidate *c) {
    const int64_t n = candidates(logits, V, how, c);
    TRY((int)n);
    const double goal = coin * measure(c, n, 0);
    double sum = 0;
    for (int64_t i = 0; i < n; i++)
        if ((sum += c[i].weight) > goal) return c[i].id;
    return c[n - 1].id; /* `goal` was rounded up to the whole sum */
}

int sampler_chances(const float *logits, int V, const llmc_sampling *how, Candidate *c, float *p) {
    const int64_t n = candidates(logits, V, how, c);
    TRY((int)n);
    const double sum = measure(c, n, 0);
    memset(p, 0, (size_t)V * sizeof *p);
    for (int64_t i = 0; i < n; i++) p[c[i].id] = (float)(c[i].weight / sum);
    return LLMC_OK;
}

int llmc_sample(const float *logits, int V, const llmc_sampling *how, double coin) {
    TRY(sampling_check(how));
    CHECK(V >= 1, LLMC_EINVAL, "V=%d: there is nothing to sample from", V);
    CHECK(coin >= 0 && coin < 1, LLMC_EINVAL, "coin=%g is not in [0, 1)", coin);
    Candidate *scratch = malloc((size_t)V * sizeof *scratch);
    CHECK(scratch, LLMC_ENOMEM, "no memory to sample from %d tokens", V);
    const int id = sampler_draw(logits, V, how, coin, scratch);
    free(scratch);
    return id;
}
