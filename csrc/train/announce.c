/* What the first event tells: device, model, data, memory, training. */
#include <stdio.h>
#include <string.h>
#include "base/cores.h"
#include "base/error.h"
#include "model/gpt2.h"
#include "train/trainer.h"

/* Empty if there is no data yet, as for a plan that is asked for first. */
static void data_text(const llmc_trainer *t, char *text, size_t size) {
    *text = 0;
    if (t->train)
        snprintf(text, size, "data: %lld token%s in %d shard%s, %lld window%s of %d%s\n",
                 (long long)llmc_loader_tokens(t->train), s_of(llmc_loader_tokens(t->train)),
                 llmc_loader_num_shards(t->train), s_of(llmc_loader_num_shards(t->train)),
                 (long long)llmc_loader_windows(t->train), s_of(llmc_loader_windows(t->train)), t->T,
                 t->val || !t->options.val_every ? "" : "; no validation data");
}

/* Names a device with one kind of kernels once only; names the BLAS, where this build takes the fp32 products from one. */
static void device_text(const Kernels *k, int precision, char *text, size_t size) {
    const int bf16 = precision == LLMC_BF16, named = strcmp(llmc_backend(), k->name) != 0;
    const char *blas = bf16 || !strcmp(k->name, "reference") ? "" : llmc_blas();
    snprintf(text, size, "%s%s%s, %s%s%s", llmc_backend(), named ? ", " : "", named ? k->name : "",
             bf16 ? "bf16" : "fp32", *blas ? ", products by " : "", blas);
}

/* Starts the threads and tells how many there are, and why they are not as many as one might think. */
static int start_threads(const llmc_trainer *t, const Kernels *k, char *text, size_t size) {
    const int cores = cores_here(), asked = (int)t->options.threads, wanted = asked ? asked : llmc_default_threads();
    const int threads = llmc_start_threads(wanted);
    const int n = snprintf(text, size, "%d thread%s", threads, s_of(threads));
    char *why = text + n;
    size -= (size_t)n;
    if (threads < wanted)
        snprintf(why, size, " of %d: the system starts no more (ulimit -u, or its container's limit)", wanted);
    else if (threads > cores) snprintf(why, size, " on %d core%s: more than cores are slower", cores, s_of(cores));
    else if (k->host && !asked && threads < cores) snprintf(why, size, " of %d cores: OMP_NUM_THREADS is set", cores);
    return threads;
}

/* Tells where the weights come from. gpt2 is a size here, and might be taken for OpenAI's weights: then the line says both. */
static void origin_text(const llmc_trainer *t, char *text, size_t size) {
    const char *model = t->options.model;
    const int named_alike = !strncmp(model, "gpt2", 4) && !strchr(model, ':');
    if (*t->weights) snprintf(text, size, ", from %s", setup_weights_name(t));
    else if (named_alike) snprintf(text, size, ", fresh weights (OpenAI's: hub:%.32s, in Python)", model);
    else snprintf(text, size, ", fresh weights");
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
    char working[160], window[32] = "", training[OPTION_TEXT + 256], device[128], origin[OPTION_TEXT + 64];
    const int threads = start_threads(t, k, working, sizeof working);
    TRY(llmc_plan_text(c, &room, threads, memory, sizeof memory));
    TRY(llmc_plan_memory(c, &room, threads, &plan));
    data_text(t, data, sizeof data);
    origin_text(t, origin, sizeof origin);
    device_text(k, precision, device, sizeof device);
    training_text(t, training, sizeof training);
    if (c->window) snprintf(window, sizeof window, " window=%d", c->window);
    snprintf(t->text, TEXT_SIZE,
             "device: %s, %s\nmodel: L=%d NH=%d C=%d T=%d V=%d%s, %.2fM parameters%s\n"
             "%s%s\n%s",
             device, working, c->L, c->NH, c->C, c->maxT, c->V, window, (double)plan.num_params * 1e-6, origin, data,
             memory, training);
    TRY(tell_resume(t, t->text, TEXT_SIZE));
    return LLMC_PLAN;
}
