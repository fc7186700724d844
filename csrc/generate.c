/* Text that goes on from prompts, one id at a time. */
#include <stdlib.h>
#include <string.h>
#include "error.h"
#include "gpt2.h"
#include "sampler.h"

/* b texts of the same length, which grow together */
typedef struct Texts {
    int b, T, held;        /* tokens that each holds */
    int cached;            /* of these, whose keys and values the model holds */
    Candidate *candidates; /* (V) */
    float *logits;         /* (b,V) */
    uint64_t *coins;       /* (b) random states */
    int *ids, *feed, *pos; /* (b,T); (b,T) what the model is to read next; (b) */
    char *ended;           /* (b) */
} Texts;

static int allocate(Texts *x, const llmc_model *m, int b) {
    const size_t V = (size_t)m->config.V, rows = (size_t)b, T = (size_t)m->room.T;
    *x = (Texts){.b = b, .T = m->room.T};
    x->candidates = malloc(V * sizeof *x->candidates);
    x->logits = malloc(rows * V * sizeof *x->logits);
    x->coins = malloc(rows * sizeof *x->coins);
    x->ids = malloc(2 * rows * T * sizeof *x->ids);
    x->pos = malloc(rows * sizeof *x->pos);
    x->ended = calloc(rows, 1);
    CHECK(x->candidates && x->logits && x->coins && x->ids && x->pos && x->ended, LLMC_ENOMEM,
          "no memory to generate %d texts with V=%d T=%d", b, m->config.V, m->room.T);
    x->feed = x->ids + rows * T;
    return LLMC_OK;
}

static void release(Texts *x) {
    free(x->candidates);
    free(x->logits);
    free(x->coins);
    free(x->ids);
    free(x->pos);
    free(x->ended);
}

/* Room for one more id in each text: when they are full, their second halves start new ones, computed afresh:
 * positions are absolute, so cached keys cannot move. */
static void make_room(Texts *x) {
    x->cached = x->held;
    if (x->held < x->T) return;
    const int keep = x->T / 2;
    for (int i = 0; i < x->b; i++)
        memmove(x->ids + i * x->T, x->ids + (i + 1) * x->T - keep, (size_t)keep * sizeof *x->ids);
    x->held = keep, x->cached = 0;
}

static int read_on(llmc_model *m, Texts *x) {
    const int n = x->held - x->cached;
    for (int i = 0; i < x->b; i++) {
        x->pos[i] = x->cached;
        memcpy(x->feed + i * n, x->ids + i * x->T + x->cached, (size_t)n * sizeof *x->feed);
    }
    return llmc_model_extend(m, x->feed, x->pos, x->b, n, x->logits);
}

/* one id for each text; a text that has ended repeats its end. Returns how many go on. */
static int choose(const llmc_model *m, Texts *x, const llmc_sampling *how, int *out, int64_t stride, int eot) {
    const int V = m->config.V;
    int going = 0;
    for (int i = 0; i < x->b; i++) {
        int id = eot;
        if (!x->ended[i]) TRY(id = sample(x->logits + (int64_t)i * V, V, how, llmc_coin(&x->coins[i]), x->candidates));
        out[i * stride] = id;
        x->ended[i] = id == eot;
        going += !x->ended[i];
        x->ids[i * x->T + x->held] = id;
    }
    return going;
}

static int generate(llmc_model *m, Texts *x, int max_new, const llmc_sampling *how, int *out, int eot) {
    for (int made = 0; made < max_new; made++) {
        TRY(read_on(m, x));
        make_room(x);
        const int going = choose(m, x, how, out + made, max_new, eot);
        TRY(going);
        if (!going) return made + 1;
        x->held++;
    }
    return max_new;
}

static int check_prompts(const llmc_model *m, const int *prompts, int b, int n, int max_new) {
    CHECK(b >= 1 && b <= m->room.B, LLMC_EINVAL, "%d prompts do not fit a model made for B=%d", b, m->room.B);
    CHECK(n >= 1, LLMC_EINVAL, "an empty prompt: begin with at least one token, such as the end-of-text id");
    CHECK(max_new >= 0, LLMC_EINVAL, "max_new_tokens=%d is negative", max_new);
    for (int64_t i = 0; i < (int64_t)b * n; i++)
        CHECK(prompts[i] >= 0 && prompts[i] < m->config.V, LLMC_EINVAL,
              "prompt[%lld] = %d is not in 0..%d: was it encoded with another tokenizer?", (long long)i, prompts[i],
              m->config.V - 1);
    return LLMC_OK;
}

int llmc_model_generate(llmc_model *m, const int *prompts, int b, int n, int max_new, const llmc_sampling *how,
                        int *out, int eot) {
    TRY(sampling_check(how));
    TRY(check_prompts(m, prompts, b, n, max_new));
    Texts x;
    int rc = allocate(&x, m, b);
    if (rc == 0) {
        x.held = n < m->room.T ? n : m->room.T;
        for (int i = 0; i < b; i++) {
            x.coins[i] = (uint64_t)how->seed + (uint64_t)i;
            memcpy(x.ids + i * x.T, prompts + (int64_t)(i + 1) * n - x.held, (size_t)x.held * sizeof *x.ids);
        }
        rc = generate(m, &x, max_new, how, out, eot);
    }
    release(&x);
    return rc;
}
