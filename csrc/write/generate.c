/* Generates texts that continue prompts, one id at a time. */
#include <stdlib.h>
#include <string.h>
#include "base/error.h"
#include "model/gpt2.h"
#include "base/pulse.h"
#include "write/generate.h"
#include "write/sampler.h"

/* b texts of the same length, which grow together. */
struct llmc_generation {
    llmc_model *model;
    llmc_sampling how;
    int b, T, held; /* held: the tokens of each text */
    int cached;     /* how many leading tokens have cached keys and values, unless the model did something else since */
    int again;      /* the ids that the text is cut to again and again */
    int saved;      /* as many, if `rings` holds what banded layers cached there; else 0 */
    void *rings;
    int has_drawn;         /* logits, own and drawn are those of a step */
    Candidate *candidates; /* (V) */
    float *logits;         /* (b,V): what ids are drawn by */
    float *own;            /* (b,V): the model's logits before the penalty; `logits` itself if there is no penalty */
    float *unpunished;     /* (T) */
    uint64_t *coins;       /* (b) random states */
    int *ids, *feed;       /* (b,T) each; feed: the ids that the model reads next */
    int *pos, *drawn;      /* (b) */
};

static int has_penalty(const llmc_generation *g) {
    return g->how.repetition_penalty != 0 && g->how.repetition_penalty != 1;
}

static int allocate(llmc_generation *g, const llmc_model *m, int b) {
    const size_t V = (size_t)m->config.V, rows = (size_t)b, T = (size_t)m->room.T;
    g->candidates = malloc(V * sizeof *g->candidates);
    g->logits = malloc(rows * V * sizeof *g->logits);
    g->own = has_penalty(g) ? malloc(rows * V * sizeof *g->own) : g->logits;
    g->unpunished = malloc(T * sizeof *g->unpunished);
    g->coins = malloc(rows * sizeof *g->coins);
    g->ids = malloc(2 * rows * T * sizeof *g->ids);
    g->pos = malloc(2 * rows * sizeof *g->pos);
    CHECK(g->candidates && g->logits && g->own && g->unpunished && g->coins && g->ids && g->pos, LLMC_ENOMEM,
          "no memory to generate %d texts with V=%d T=%d", b, m->config.V, m->room.T);
    g->feed = g->ids + rows * T;
    g->drawn = g->pos + rows;
    return LLMC_OK;
}

int llmc_generation_new(llmc_generation **out, llmc_model *m, int b, const llmc_sampling *how) {
    *out = NULL;
    TRY(sampling_check(how));
    CHECK(b >= 1 && b <= m->room.B, LLMC_EINVAL, "%d prompts do not fit a model made for B=%d", b, m->room.B);
    llmc_generation *g = calloc(1, sizeof *g);
    CHECK(g, LLMC_ENOMEM, "no memory to generate %d texts", b);
    *g = (llmc_generation){.model = m, .how = *how, .b = b, .T = m->room.T};
    const int rc = allocate(g, m, b);
    if (rc < 0) return llmc_generation_free(g), rc;
    llmc_generation_reseed(g, how->seed);
    return *out = g, LLMC_OK;
}

void llmc_generation_free(llmc_generation *g) {
    if (!g) return;
    free(g->candidates);
    if (g->own != g->logits) free(g->own);
    free(g->logits);
    free(g->unpunished);
    free(g->coins);
    free(g->ids);
    free(g->pos);
    free(g->rings);
    free(g);
}

const int *llmc_generation_ids(const llmc_generation *g, int i, int *n) {
    return *n = g->held, g->ids + (int64_t)i * g->T;
}

/* ---- what is held ---- */

/* Takes ids [from, to) out of every text. The ids after them are read again, because positions are absolute: cached keys
 * cannot move. */
static void cut(llmc_generation *g, int from, int to) {
    for (int i = 0; i < g->b; i++) {
        int *ids = g->ids + (int64_t)i * g->T;
        memmove(ids + from, ids + to, (size_t)(g->held - to) * sizeof *ids);
    }
    g->held -= to - from;
    if (g->cached > from) g->cached = from;
    if (g->saved > from) g->saved = 0;
}

void generation_return_to(llmc_generation *g, int n) { g->again = n; }

int llmc_generation_cut(llmc_generation *g, int from, int to) {
    CHECK(0 <= from && from <= to && to <= g->held, LLMC_EINVAL, "ids %d..%d are not among the %d held", from, to,
          g->held);
    return cut(g, from, to), LLMC_OK;
}

int llmc_generation_feed(llmc_generation *g, const int *ids, int n) {
    const int V = g->model->config.V, fresh = n < g->T ? n : g->T, keep = g->T / 2 > fresh ? g->T / 2 : fresh;
    CHECK(n >= 0, LLMC_EINVAL, "%d ids to feed", n);
    for (int64_t i = 0; i < (int64_t)g->b * n; i++)
        CHECK(ids[i] >= 0 && ids[i] < V, LLMC_EINVAL,
              "prompt[%lld] = %d is not in 0..%d: was it encoded with another tokenizer?", (long long)i, ids[i], V - 1);
    if (g->held + fresh > g->T) cut(g, 0, g->held + fresh - keep);
    for (int i = 0; i < g->b; i++)
        memcpy(g->ids + (int64_t)i * g->T + g->held, ids + (int64_t)(i + 1) * n - fresh, (size_t)fresh * sizeof *ids);
    g->held += fresh;
    return LLMC_OK;
}

/* ---- one id for each text ---- */

static int remembers(const llmc_generation *g) {
    for (int i = 0; i < g->b; i++)
        if (!gpt2_remembers(g->model, i, g->cached)) return 0;
    return 1;
}

/* Finds from where the ids must be read. */
static int find_cached(llmc_generation *g) {
    const llmc_model *m = g->model;
    if (m->cache_of != g || m->state != EMPTY)
        g->cached = g->saved = 0;          /* the keys are those of another text, or a forward pass overwrote them */
    if (g->cached == g->held) g->cached--; /* the last id is read again for its logits */
    if (remembers(g)) return LLMC_OK;
    g->cached = g->saved <= g->cached ? g->saved : 0;
    return g->cached ? gpt2_load_rings(g->model, g->b, g->saved, g->rings) : LLMC_OK;
}

static int save_rings(llmc_generation *g) {
    const int64_t bytes = gpt2_ring_bytes(g->model, g->b);
    if (!g->rings) g->rings = malloc((size_t)bytes);
    CHECK(g->rings, LLMC_ENOMEM, "no memory to keep %lld bytes of what banded layers cache", (long long)bytes);
    TRY(gpt2_save_rings(g->model, g->b, g->rings));
    return g->saved = g->again, LLMC_OK;
}

/* Reads the ids up to `end`. */
static int read_to(llmc_generation *g, int end) {
    llmc_model *m = g->model;
    const int n = end - g->cached;
    for (int i = 0; i < g->b; i++) {
        g->pos[i] = g->cached;
        memcpy(g->feed + (int64_t)i * n, g->ids + (int64_t)i * g->T + g->cached, (size_t)n * sizeof *g->feed);
    }
    TRY(llmc_model_extend(m, g->feed, g->pos, g->b, n, g->logits));
    m->cache_of = g;
    return g->cached = end, LLMC_OK;
}

static int read_on(llmc_generation *g) {
    TRY(find_cached(g));
    if (g->cached < g->again && g->again < g->held && gpt2_ring_bytes(g->model, g->b)) {
        TRY(read_to(g, g->again));
        TRY(save_rings(g));
    }
    return read_to(g, g->held);
}

/* Applies the penalty of CTRL (Keskar et al. 2019, section 4.1) as Hugging Face does: a negative logit is multiplied, and an id
 * is penalized once, however often it occurs. */
static void penalize(float *logits, const int *ids, int n, float penalty, float *before) {
    for (int i = 0; i < n; i++) before[i] = logits[ids[i]];
    for (int i = 0; i < n; i++) logits[ids[i]] = before[i] > 0 ? before[i] / penalty : before[i] * penalty;
}

static int draw(llmc_generation *g, int i) {
    const int V = g->model->config.V, *ids = g->ids + (int64_t)i * g->T;
    float *logits = g->logits + (int64_t)i * V;
    if (has_penalty(g)) {
        memcpy(g->own + (int64_t)i * V, logits, (size_t)V * sizeof *logits);
        penalize(logits, ids, g->held, g->how.repetition_penalty, g->unpunished);
    }
    return sampler_draw(logits, V, &g->how, llmc_coin(&g->coins[i]), g->candidates);
}

int llmc_generation_next(llmc_generation *g, int *ids) {
    CHECK(g->held >= 1, LLMC_EINVAL, "an empty prompt: begin with at least one token, such as the end-of-text id");
    g->has_drawn = 0;
    TRY(read_on(g));
    for (int i = 0; i < g->b; i++) TRY(g->drawn[i] = draw(g, i));
    if (g->held == g->T)
        cut(g, 0, g->T - g->T / 2); /* the context is full: its second half starts a new one, computed afresh */
    for (int i = 0; i < g->b; i++) ids[i] = g->ids[(int64_t)i * g->T + g->held] = g->drawn[i];
    g->held++;
    return g->has_drawn = 1, LLMC_OK;
}

int llmc_generation_last(const llmc_generation *g, int i, float *own, float *chances) {
    const int V = g->model->config.V;
    const int64_t row = (int64_t)i * V;
    const llmc_sampling plain = {.temperature = 1};
    CHECK(0 <= i && i < g->b, LLMC_EINVAL, "text %d is not among the %d", i, g->b);
    CHECK(g->has_drawn, LLMC_EINVAL, "no id was drawn yet");
    TRY(sampler_chances(g->own + row, V, &plain, g->candidates, own));
    TRY(sampler_chances(g->logits + row, V, &g->how, g->candidates, chances));
    return g->drawn[i];
}

void llmc_generation_reseed(llmc_generation *g, int64_t seed) {
    g->how.seed = seed;
    for (int i = 0; i < g->b; i++) g->coins[i] = (uint64_t)seed + (uint64_t)i;
}

/* ---- all at once ---- */

/* Writes column `made` of out; a text that has ended repeats its end. Returns how many texts go on. */
static int put(const llmc_generation *g, const int *ids, int *out, int made, int max_new, int eot) {
    int going = 0;
    for (int i = 0; i < g->b; i++) {
        int *at = out + (int64_t)i * max_new + made;
        *at = made && at[-1] == eot ? eot : ids[i];
        going += *at != eot;
    }
    return going;
}

static int generate(llmc_generation *g, int max_new, int *out, int eot) {
    for (int made = 0; made < max_new; made++) {
        TRY(pulse("writing: token %d of at most %d", made + 1, max_new));
        TRY(llmc_generation_next(g, g->drawn));
        if (!put(g, g->drawn, out, made, max_new, eot)) return made + 1;
    }
    return max_new;
}

int llmc_model_generate(llmc_model *m, const int *prompts, int b, int n, int max_new, const llmc_sampling *how,
                        int *out, int eot) {
    llmc_generation *g;
    CHECK(max_new >= 0, LLMC_EINVAL, "max_new_tokens=%d is negative", max_new);
    TRY(llmc_generation_new(&g, m, b, how));
    int rc = llmc_generation_feed(g, prompts, n);
    if (rc == 0) rc = generate(g, max_new, out, eot);
    pulse("%s", "");
    llmc_generation_free(g);
    return rc;
}
