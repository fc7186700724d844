/* Dropout: which passes of a model drop, and the numbers that they drop by. */
#include <math.h>
#include "base/error.h"
#include "model/gpt2.h"

/* PLACES: how many kinds of a layer are told apart by the last digit of a place (struct Dropout). */
enum { KINDS = sizeof((llmc_model *)0)->drop.p / sizeof(double), PLACES = LLMC_DROP_LORA };

/* 65536 p to the nearest. The next to last number is the most, so that something is kept. */
static uint32_t threshold_of(double p) {
    const double nearest = rint(p * 65536);
    return (uint32_t)(nearest < 65535 ? nearest : 65535);
}

int llmc_model_set_dropout(llmc_model *m, double embd, double attn, double resid, double lora, int64_t seed) {
    const double p[KINDS] = {embd, attn, resid, resid, lora, lora, lora, lora};
    const char *const names[KINDS] = {"embd", "attn", "resid", "resid", "lora", "lora", "lora", "lora"};
    TRY(gpt2_need_training(m));
    for (int i = 0; i < KINDS; i++)
        CHECK(p[i] >= 0 && p[i] < 1, LLMC_EINVAL, "dropout: %s=%g is not in [0, 1): 0 drops nothing, 0.1 is usual",
              names[i], p[i]);
    CHECK(lora == 0 || m->room.lora_rank, LLMC_EINVAL,
          "dropout: lora=%g is for adapters, and this model has none: create it with a lora_rank", lora);
    for (int i = 0; i < KINDS; i++) m->drop.p[i] = p[i];
    m->drop.seed = seed;
    return LLMC_OK;
}

int llmc_model_drop_in_forward(llmc_model *m, int on) {
    if (on) TRY(gpt2_need_training(m));
    return m->drop.in_forward = on, LLMC_OK;
}

int64_t llmc_model_micro_steps(const llmc_model *m) { return m->drop.micro_step; }
int llmc_model_set_micro_steps(llmc_model *m, int64_t n) {
    CHECK(n >= 0, LLMC_EINVAL, "micro_steps=%lld is negative", (long long)n);
    return m->drop.micro_step = n, LLMC_OK;
}

int gpt2_dropped_kinds(const llmc_model *m) {
    int kinds = 0;
    for (int i = 0; i < KINDS; i++) kinds |= (threshold_of(m->drop.p[i]) > 0) << i;
    return kinds;
}

static Dropout dropout_at(const llmc_model *m, int kind, int l) {
    const uint32_t threshold = threshold_of(m->drop.p[kind]);
    const uint64_t seed = (uint64_t)m->drop.seed;
    const uint32_t adapters = kind < PLACES ? 0 : (uint32_t)1 << 31;
    return (Dropout){.key = {(uint32_t)seed, (uint32_t)(seed >> 32)},
                     .step = (uint32_t)m->step,
                     .place = adapters + (uint32_t)m->drop.micro_step * 4096 + (uint32_t)(l * PLACES + kind % PLACES),
                     .threshold = threshold,
                     .scale = 65536.0f / (float)(65536 - threshold)};
}

void gpt2_begin_dropout(llmc_model *m, int on) {
    Dropout *to = (Dropout *)acts_at(m, 0).dropouts;
    m->drop.dropped = on ? gpt2_dropped_kinds(m) : 0;
    for (int l = 0; m->drop.dropped && l < m->config.L; l++) {
        Dropout rows[KINDS];
        _Static_assert(sizeof *rows == 6 * 4, "tensors.def has room for 6");
        for (int kind = 0; kind < KINDS; kind++) rows[kind] = dropout_at(m, kind, l);
        m->k->copy_in(&m->ctx, to + (int64_t)l * KINDS, rows, sizeof rows);
    }
    if (on) m->drop.micro_step += 1 + m->drop.others;
}

const Dropout *gpt2_dropout(const llmc_model *m, int kind, int l) {
    const Dropout *all = (const Dropout *)acts_at(m, 0).dropouts;
    return m->drop.dropped & 1 << kind ? all + (int64_t)l * KINDS + kind : NULL;
}
