/* What the first event tells: device, model, data, memory, training. */
#include <stdio.h>
#include <string.h>
#include "error.h"
#include "gpt2.h"
#include "trainer.h"

/* of a plan that was asked for before there is any: nothing */
static void data_text(const llmc_trainer *t, char *text, size_t size) {
    *text = 0;
    if (t->train)
        snprintf(text, size, "data: %lld token%s in %d shard%s, %lld window%s of %d%s\n",
                 (long long)llmc_loader_tokens(t->train), s_of(llmc_loader_tokens(t->train)),
                 llmc_loader_num_shards(t->train), s_of(llmc_loader_num_shards(t->train)),
                 (long long)llmc_loader_windows(t->train), s_of(llmc_loader_windows(t->train)), t->T,
                 t->val || !t->options.val_every ? "" : "; no validation data");
}

/* a device that has one kind of kernels is not named twice; a BLAS, where this build takes the fp32 products from one, is */
static void device_text(const Kernels *k, int precision, char *text, size_t size) {
    const int bf16 = precision == LLMC_BF16, named = strcmp(llmc_backend(), k->name) != 0;
    const char *blas = bf16 || !strcmp(k->name, "reference") ? "" : llmc_blas();
    snprintf(text, size, "%s%s%s, %s%s%s", llmc_backend(), named ? ", " : "", named ? k->name : "",
             bf16 ? "bf16" : "fp32", *blas ? ", products by " : "", blas);
}

static void training_text(const llmc_trainer *t, char *text, size_t size) {
    const llmc_options *o = &t->options;
    char from[64];
    snprintf(from, sizeof from, "fresh weights of seed %lld", (long long)o->seed);
    snprintf(text, size, "training: %s with lr %.3g%s, warm-up %lld, schedule %s",
             t->resumed    ? "goes on"
             : *t->weights ? "fine-tunes the weights"
                           : from,
             o->lr, t->gentle ? " (gentle, to keep what they know; --lr changes it)" : "", (long long)o->warmup_steps,
             o->schedule);
}

int trainer_announce_plan(llmc_trainer *t) {
    const llmc_config *c = &t->config;
    const llmc_room room = setup_room(t);
    char memory[1024], data[256];
    llmc_plan plan;
    const Kernels *k = llmc_kernels(NULL);
    if (!k) return LLMC_EDEVICE;
    const int precision = gpt2_precision(k, t->options.precision);
    TRY(precision);
    TRY(llmc_plan_text(c, &room, (int)t->options.threads, memory, sizeof memory));
    TRY(llmc_plan_memory(c, &room, (int)t->options.threads, &plan));
    const int cores = llmc_default_threads(), threads = t->options.threads ? (int)t->options.threads : cores;
    data_text(t, data, sizeof data);
    char crowded[64] = "", window[32] = "", training[OPTION_TEXT + 256], device[128];
    device_text(k, precision, device, sizeof device);
    training_text(t, training, sizeof training);
    if (c->window) snprintf(window, sizeof window, " window=%d", c->window);
    if (threads > cores)
        snprintf(crowded, sizeof crowded, " on %d core%s: more than cores are slower", cores, s_of(cores));
    snprintf(t->text, TEXT_SIZE,
             "device: %s, %d thread%s%s\nmodel: L=%d NH=%d C=%d T=%d V=%d%s, %.2fM parameters%s%s\n"
             "%s%s\n%s",
             device, threads, s_of(threads), crowded, c->L, c->NH, c->C, c->maxT, c->V, window,
             (double)plan.num_params * 1e-6, *t->weights ? ", from " : "", t->weights, data, memory, training);
    return LLMC_PLAN;
}
