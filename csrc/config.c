/* Model configurations: the names people use for them, and what may not be. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "error.h"

enum { GPT2_V = 50257, LIMIT = 1 << 24 }; /* no dimension needs more than 16M; products then fit 64 bits */

typedef struct Family { /* descriptors of one prefix: a number gives the rest of the row */
    const char *prefix;
    int number, L, NH, C, maxT;
} Family;

/* llm.c: "gpt2:dN" by depth, "gpt3:cN" by channels; sizes from the GPT-2 and GPT-3 papers (table 2.1) */
static const Family families[] = {
    {"gpt2:d", 6, 6, 6, 384, 1024},       {"gpt2:d", 12, 12, 12, 768, 1024},    {"gpt2:d", 24, 24, 16, 1024, 1024},
    {"gpt2:d", 36, 36, 20, 1280, 1024},   {"gpt2:d", 48, 48, 25, 1600, 1024},   {"gpt2:d", 60, 60, 30, 1920, 1024},
    {"gpt3:c", 384, 6, 6, 384, 2048},     {"gpt3:c", 768, 12, 12, 768, 2048},   {"gpt3:c", 1024, 24, 16, 1024, 2048},
    {"gpt3:c", 1536, 24, 16, 1536, 2048}, {"gpt3:c", 2048, 24, 16, 2048, 2048}, {"gpt3:c", 2560, 32, 32, 2560, 2048},
    {"gpt3:c", 4096, 32, 32, 4096, 2048}, {"gpt3:c", 5120, 40, 40, 5120, 2048}, {"gpt3:c", 12288, 96, 96, 12288, 2048},
};

/* other names for the same, and minGPT's small ones (V 0: taken from the data) */
static const struct Named {
    const char *name;
    int L, NH, C, maxT, V;
} names[] = {
    {"gpt2", 12, 12, 768, 1024, GPT2_V},
    {"gpt2-medium", 24, 16, 1024, 1024, GPT2_V},
    {"gpt2-large", 36, 20, 1280, 1024, GPT2_V},
    {"gpt2-xl", 48, 25, 1600, 1024, GPT2_V},
    {"openai-gpt", 12, 12, 768, 512, 40478},
    {"gopher-44m", 8, 16, 512, 1024, GPT2_V},
    {"gpt-mini", 6, 6, 192, 1024, 0},
    {"gpt-micro", 4, 4, 128, 1024, 0},
    {"gpt-nano", 3, 3, 48, 1024, 0},
    {"demo", 2, 8, 128, 160, 0},
};

static llmc_config make(int L, int NH, int C, int maxT, int V) {
    return (llmc_config){.maxT = maxT, .V = V, .L = L, .NH = NH, .C = C};
}

int llmc_config_parse(llmc_config *config, const char *descriptor) {
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (!strcmp(descriptor, names[i].name)) {
            *config = make(names[i].L, names[i].NH, names[i].C, names[i].maxT, names[i].V);
            return LLMC_OK;
        }
    char full[64];
    snprintf(full, sizeof full, "%s%s", descriptor[0] == 'd' ? "gpt2:" : "", descriptor);
    for (size_t i = 0; i < sizeof families / sizeof *families; i++) {
        char name[64];
        snprintf(name, sizeof name, "%s%d", families[i].prefix, families[i].number);
        if (strcmp(full, name)) continue;
        *config = make(families[i].L, families[i].NH, families[i].C, families[i].maxT, GPT2_V);
        return LLMC_OK;
    }
    FAIL(LLMC_EINVAL,
         "model '%s' is neither a file nor a known size: try d12, gpt2:d48, gpt3:c768, gpt2 ... gpt2-xl, "
         "gpt-nano, gpt-micro, gpt-mini, gopher-44m, or --n_layer --n_head --n_embd",
         descriptor);
}

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
    const double params = 12.0 * c->L * c->C * c->C + ((double)c->V + c->maxT) * c->C;
    CHECK(params < 1e14, LLMC_EINVAL, "n_layer=%d n_embd=%d make %.1e parameters: more than any machine holds", c->L,
          c->C, params);
    CHECK(c->window >= 0, LLMC_EINVAL, "window=%d: 0 means dense attention, w > 0 the last w positions", c->window);
    c->Vp = (c->V + 127) / 128 * 128;
    return LLMC_OK;
}
