/* A model's sizes and precision: found by names that people know, and checked. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/error.h"
#include "model/layout.h"

enum { LIMIT = 1 << 24 }; /* no dimension needs more than 16M; products then fit 64 bits */

static const struct Known {
    const char *name;
    int L, NH, C, maxT, V;
} known[] = {
#define MODEL(name, L, NH, C, maxT, V) {name, L, NH, C, maxT, V},
#include "models.def"
};

/* "d12" is short for "gpt2:d12". */
static int is_name(const struct Known *size, const char *descriptor) {
    return !strcmp(size->name, descriptor) ||
           (*descriptor == 'd' && !strncmp(size->name, "gpt2:", 5) && !strcmp(size->name + 5, descriptor));
}

int llmc_config_parse(llmc_config *config, const char *descriptor) {
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        const struct Known *size = &known[i];
        if (!is_name(size, descriptor)) continue;
        *config = (llmc_config){.maxT = size->maxT, .V = size->V, .L = size->L, .NH = size->NH, .C = size->C};
        return LLMC_OK;
    }
    FAIL(LLMC_EINVAL,
         "model '%s' is neither a file nor a known size: try d12, gpt2:d48, gpt3:c768, gpt2 ... gpt2-xl, "
         "gpt-nano, gpt-micro, gpt-mini, gopher-44m, or --n_layer --n_head --n_embd",
         descriptor);
}

/* ---- the pattern of dense and banded layers ---- */

int llmc_config_set_pattern(llmc_config *c, const char *pattern) {
    CHECK(strlen(pattern) < sizeof c->pattern, LLMC_EINVAL, "pattern=%.20s... has %zu letters: %zu are possible",
          pattern, strlen(pattern), sizeof c->pattern - 1);
    memset(c->pattern, 0, sizeof c->pattern);
    memcpy(c->pattern, pattern, strlen(pattern));
    return LLMC_OK;
}

/* The shortest text that is the same on all layers when it is repeated. */
static int shortest(const char *pattern, int n, int L) {
    for (int p = 1; p < n; p++) {
        int l = p;
        while (l < L && pattern[l % n] == pattern[l % p]) l++;
        if (l >= L) return p;
    }
    return n;
}

/* GPT-3's alternation, as short as it can be said. */
static const char *usual_pattern(const llmc_config *c) { return !c->window ? "" : c->L > 1 ? "DL" : "D"; }
int config_has_usual_pattern(const llmc_config *c) { return !strcmp(c->pattern, usual_pattern(c)); }

static int check_pattern(llmc_config *c) {
    CHECK(memchr(c->pattern, 0, sizeof c->pattern), LLMC_EINVAL, "the pattern has no end");
    if (!*c->pattern) TRY(llmc_config_set_pattern(c, usual_pattern(c)));
    const int n = (int)strlen(c->pattern), good = (int)strspn(c->pattern, "DL");
    CHECK(c->window || !n, LLMC_EINVAL, "pattern=%s without a window: window=w is what its layers L see", c->pattern);
    CHECK(good == n, LLMC_EINVAL, "pattern=%s has the letter '%c': D is a dense layer, L one that sees the window",
          c->pattern, c->pattern[good]);
    CHECK(n <= c->L, LLMC_EINVAL, "pattern=%s has %d letters, but n_layer=%d: give at most one letter a layer",
          c->pattern, n, c->L);
    const int p = shortest(c->pattern, n, c->L);
    memset(c->pattern + p, 0, sizeof c->pattern - (size_t)p);
    return LLMC_OK;
}

/* ---- the check ---- */

int llmc_config_check(llmc_config *c) {
    const struct {
        const char *name;
        int value;
    } dims[] = {{"max_seq_len", c->maxT}, {"vocab_size", c->V}, {"n_layer", c->L}, {"n_head", c->NH}, {"n_embd", c->C}};
    for (size_t i = 0; i < sizeof dims / sizeof *dims; i++)
        CHECK(dims[i].value >= 1 && dims[i].value <= LIMIT, LLMC_EINVAL, "%s=%d is not in 1..%d", dims[i].name,
              dims[i].value, LIMIT);
    CHECK(c->C % c->NH == 0, LLMC_EINVAL, "n_embd=%d is not a multiple of n_head=%d: every head needs the same size",
          c->C, c->NH);
    const double params = 12.0 * c->L * c->C * c->C + ((c->untied ? 2.0 : 1.0) * c->V + c->maxT) * c->C;
    CHECK(params < 1e14, LLMC_EINVAL, "n_layer=%d n_embd=%d make %.1e parameters: more than any machine holds", c->L,
          c->C, params);
    CHECK(c->window >= 0 && c->window <= LIMIT, LLMC_EINVAL,
          "window=%d is not in 0..%d: 0 means dense attention, w > 0 the last w positions", c->window, LIMIT);
    TRY(check_pattern(c));
    CHECK(c->untied == 0 || c->untied == 1, LLMC_EINVAL, "untied=%d is not 0 or 1", c->untied);
    c->Vp = (c->V + 127) / 128 * 128;
    return LLMC_OK;
}

int llmc_precision(const char *name) {
    if (!strcmp(name, "auto")) return LLMC_AUTO;
    if (!strcmp(name, "fp32")) return LLMC_FP32;
    if (!strcmp(name, "bf16")) return LLMC_BF16;
    FAIL(LLMC_EINVAL, "precision '%s' is not one of auto, fp32, bf16", name);
}
