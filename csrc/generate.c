/* Text that goes on from a prompt, one id at a time. */
#include <stdlib.h>
#include <string.h>
#include "error.h"
#include "gpt2.h"
#include "sampler.h"

/* what one generation needs: one allocation, in this order */
typedef struct Scratch {
    Candidate *candidates; /* (V) */
    float *logits;         /* (V) */
    int *text;             /* (T) the tokens held in the cache */
} Scratch;

static int allocate(Scratch *s, int V, int T) {
    s->candidates = malloc((size_t)V * (sizeof *s->candidates + sizeof *s->logits) + (size_t)T * sizeof *s->text);
    CHECK(s->candidates, LLMC_ENOMEM, "no memory to generate with V=%d T=%d", V, T);
    s->logits = (float *)(s->candidates + V);
    s->text = (int *)(s->logits + V);
    return LLMC_OK;
}

/* Appends one id to the text; when it is full, its second half starts a new one, computed afresh: positions are
 * absolute, so cached keys cannot move. Returns how many tokens the cache holds before what is to be fed. */
static int append(int *text, int *held, int T, int id) {
    if (*held < T) {
        text[(*held)++] = id;
        return *held - 1;
    }
    const int keep = T / 2;
    memmove(text, text + T - keep, (size_t)keep * sizeof *text);
    text[keep] = id;
    *held = keep + 1;
    return 0;
}

static int generate(llmc_model *m, const Scratch *s, int held, int max_new, const llmc_sampling *how, int *out,
                    int eot) {
    uint64_t state = (uint64_t)how->seed;
    int cached = 0;
    for (int made = 0; made < max_new; made++) {
        TRY(llmc_model_extend(m, s->text + cached, &cached, 1, held - cached, s->logits));
        const int id = sample(s->logits, m->config.V, how, llmc_coin(&state), s->candidates);
        TRY(id);
        out[made] = id;
        if (id == eot) return made + 1;
        cached = append(s->text, &held, m->room.T, id);
    }
    return max_new;
}

int llmc_model_generate(llmc_model *m, const int *prompt, int n, int max_new, const llmc_sampling *how, int *out,
                        int eot) {
    TRY(sampling_check(how));
    CHECK(n >= 1, LLMC_EINVAL, "an empty prompt: begin with at least one token, such as the end-of-text id");
    CHECK(max_new >= 0, LLMC_EINVAL, "max_new_tokens=%d is negative", max_new);
    for (int i = 0; i < n; i++)
        CHECK(prompt[i] >= 0 && prompt[i] < m->config.V, LLMC_EINVAL,
              "prompt[%d] = %d is not in 0..%d: was it encoded "
              "with another tokenizer?",
              i, prompt[i], m->config.V - 1);
    Scratch s = {0};
    TRY(allocate(&s, m->config.V, m->room.T));
    const int held = n < m->room.T ? n : m->room.T;
    memcpy(s.text, prompt + n - held, (size_t)held * sizeof *s.text);
    const int rc = generate(m, &s, held, max_new, how, out, eot);
    free(s.candidates);
    return rc;
}
