/* The text of the first event: device, model, data, memory, training. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/cores.h"
#include "base/error.h"
#include "base/growing.h"
#include "model/plan.h"
#include "train/trainer.h"

/* True if nobody asked for fp32, and this CPU multiplies bf16 by instructions that were measured to be faster (docs/speed.md). */
static int has_fast_bf16(const llmc_trainer *t) {
    if (t->k->element == LLMC_BF16 || !t->k->host || strcmp(t->options.precision, "auto")) return 0;
    const Kernels *bf16 = llmc_kernels(NULL, LLMC_BF16);
    return bf16 && (!strcmp(bf16->name, "amx") || !strcmp(bf16->name, "avx512_bf16"));
}

/* Names a device with one kind of kernels only once. Names the BLAS library if this build's fp32 products come from one. */
static void add_device(Growing *text, const llmc_trainer *t) {
    const char *device = llmc_backend(), *isa = t->k->name;
    const int bf16 = t->k->element == LLMC_BF16;
    const char *blas = bf16 || !strcmp(isa, "reference") ? "" : llmc_blas();
    growing_add(text, "device: %s", device);
    if (strcmp(device, isa)) growing_add(text, ", %s", isa);
    growing_add(text, ", %s", bf16 ? "bf16" : "fp32");
    if (has_fast_bf16(t)) growing_add(text, " (--precision=bf16 is faster here)");
    if (bf16 && !getenv("PYLLMC_ISA") && *llmc_refused()) growing_add(text, " (%s)", llmc_refused());
    if (*blas) growing_add(text, ", products by %s", blas);
}

/* Starts the threads, and tells how many there are; if that is not one for each core, also why. */
static void start_threads(Growing *text, llmc_trainer *t) {
    const int cores = cores_here(), asked = (int)t->options.threads, local = t->team.local;
    const int share = cores_here() / local > 0 ? cores_here() / local : 1;
    const int each = cores_to_use() < share ? cores_to_use() : share; /* OMP_NUM_THREADS counts for each process */
    const int wanted = !asked && local > 1 ? each : threads_asked(asked);
    const int threads = t->threads = llmc_start_threads(wanted);
    growing_add(text, ", %d thread%s", threads, s_of(threads));
    if (threads < wanted)
        growing_add(text, " of %d: the system starts no more (ulimit -u, or its container's limit)", wanted);
    else if (local > 1 && !asked)
        growing_add(text, " of %d core%s, which %d processes share", cores, s_of(cores), local);
    else if (threads > cores) growing_add(text, " on %d core%s: more than cores are slower", cores, s_of(cores));
    else if (t->k->host && !asked && threads < cores) growing_add(text, " of %d cores: OMP_NUM_THREADS is set", cores);
    growing_add(text, "\n");
}

/* How much of the model is trained, if that is not all of it. */
static void add_trained(Growing *text, const llmc_trainer *t, const llmc_plan *plan) {
    const llmc_options *o = &t->options;
    if (!o->lora_rank && !*o->train_only) return;
    growing_add(text, ", of which %.3fM are trained (", (double)plan->trained * 1e-6);
    if (o->lora_rank) growing_add(text, "LoRA of rank %lld on %s", (long long)o->lora_rank, o->lora_on);
    if (o->lora_dropout > 0) growing_add(text, " with dropout %g", o->lora_dropout);
    if (*o->train_only) growing_add(text, "%s%s", o->lora_rank ? ", and " : "", o->train_only);
    growing_add(text, ")");
}

/* Sizes of banded layers, and why they change nothing if they do not. */
static void add_window(Growing *text, const llmc_config *c, int T) {
    if (c->window) growing_add(text, " window=%d", c->window);
    if (!config_has_usual_pattern(c)) growing_add(text, " pattern=%s", c->pattern);
    if (c->window && !strchr(c->pattern, 'L')) growing_add(text, " (no layer is banded: the window has no effect)");
    else if (c->window >= T) growing_add(text, " (no text is longer than %d: the window has no effect)", T);
}

/* A bare gpt2 is only a size, but might be taken for OpenAI's weights: the line then says how to get those. */
static void add_model(Growing *text, const llmc_trainer *t, const llmc_plan *plan) {
    const llmc_config *c = &t->config;
    const char *model = t->options.model;
    growing_add(text, "model: L=%d NH=%d C=%d T=%d V=%d", c->L, c->NH, c->C, c->maxT, c->V);
    add_window(text, c, t->T);
    if (c->untied) growing_add(text, " untied");
    growing_add(text, ", %.2fM parameters", (double)plan->num_params * 1e-6);
    add_trained(text, t, plan);
    if (*t->start_file) growing_add(text, ", from %s", sizes_weights_name(t));
    else growing_add(text, ", fresh weights");
    if (!*t->start_file && !strncmp(model, "gpt2", 4) && !strchr(model, ':'))
        growing_add(text, " (OpenAI's: hub:%.32s, in Python)", model);
    growing_add(text, "\n");
}

/* What a loss mask leaves to learn, and what the windows cut. */
static void add_mask(Growing *text, const llmc_trainer *t) {
    const int64_t learnt = llmc_loader_learnt(t->train), cut = llmc_loader_cut(t->train);
    if (learnt >= 0) growing_add(text, "mask: %lld target%s to learn", (long long)learnt, s_of(learnt));
    if (cut)
        growing_add(text,
                    "; %lld document%s longer than T=%d, and cut: raise T, or leave them out with prepro --max_len",
                    (long long)cut, cut == 1 ? " is" : "s are", t->T);
    if (learnt >= 0) growing_add(text, "\n");
}

/* Nothing if there is no data yet: --plan may run before any is made. */
static void add_data(Growing *text, const llmc_trainer *t) {
    if (!t->train) return;
    const int64_t tokens = llmc_loader_tokens(t->train), windows = llmc_loader_windows(t->train);
    const int shards = llmc_loader_num_shards(t->train);
    growing_add(text, "data: %lld token%s in %d shard%s, %lld window%s of %d%s\n", (long long)tokens, s_of(tokens),
                shards, s_of(shards), (long long)windows, s_of(windows), t->T,
                t->num_vals || !t->options.val_every ? "" : "; no validation data");
    add_mask(text, t);
}

/* Lists validation data of several names. */
static void add_validation(Growing *text, const llmc_trainer *t) {
    if (!t->train || !*t->vals[0].name) return;
    for (const ValSet *set = t->vals; set < t->vals + t->num_vals; set++) {
        const int64_t windows = llmc_loader_windows(set->loader);
        growing_add(text, "%s %s, %lld window%s%s", set == t->vals ? "validation:" : ";", set->name, (long long)windows,
                    s_of(windows), set == t->vals ? " (decides what is best)" : "");
    }
    growing_add(text, "\n");
}

/* What a plain run, of so many steps of one size, does not have. */
static void add_course(Growing *text, const llmc_trainer *t) {
    const llmc_options *o = &t->options;
    const int64_t each = t->unit * t->T;
    char length[64];
    length_name(t, 1, length, sizeof length);
    if ((o->epochs > 0 && t->train) || o->max_tokens)
        growing_add(text, "; %s makes %lld step%s", length, (long long)o->max_steps, s_of(o->max_steps));
    if (o->batch_ramp_tokens)
        growing_add(text, "; batches grow from %lld to %lld tokens over the first %lld", (long long)each,
                    (long long)(t->batch * t->T), (long long)o->batch_ramp_tokens);
    if (o->overfit_batch) growing_add(text, "; on the first batch alone (--overfit_batch)");
}

static void add_training(Growing *text, const llmc_trainer *t) {
    const llmc_options *o = &t->options;
    growing_add(text, "training: ");
    if (t->resumed) growing_add(text, "goes on");
    else if (*t->start_file) growing_add(text, "fine-tunes the weights");
    else growing_add(text, "fresh weights of seed %lld", (long long)o->seed);
    growing_add(text, " with lr %.3g%s, ", o->lr,
                t->gentle ? " (gentle, to keep what they know; --lr changes it)" : "");
    if (length_counts_tokens(o))
        growing_add(text, "warm-up %lld tokens, schedule %s up to %lld tokens", (long long)t->warmup, o->schedule,
                    (long long)t->decay_end);
    else growing_add(text, "warm-up %lld, schedule %s", (long long)o->warmup_steps, o->schedule);
    add_course(text, t);
    if (o->embd_pdrop > 0 || o->attn_pdrop > 0 || o->resid_pdrop > 0)
        growing_add(text, "; dropout of embeddings %g, attention %g, residual %g", o->embd_pdrop, o->attn_pdrop,
                    o->resid_pdrop);
    if (o->separate_documents) growing_add(text, "; documents do not see each other");
    if (o->diloco)
        growing_add(text, "; DiLoCo: an exchange after every %lld steps, outer lr %g, momentum %g",
                    (long long)o->diloco, o->diloco_lr, o->diloco_momentum);
}

/* The batch, and what a process computes of it at once. */
static void add_step(Growing *text, const llmc_trainer *t) {
    const int uneven = t->batch < global_B(t) * t->most_micro_steps;
    growing_add(text, "a step takes %lld windows, %lld tokens: %s%d", (long long)t->batch, (long long)(t->batch * t->T),
                uneven ? "at most " : "", t->B);
    if (t->most_micro_steps > 1) growing_add(text, " x %d", t->most_micro_steps);
}

/* The same for a process that computes alone what its options do not say: a batch of more processes, or --global_batch. */
static void add_batch(Growing *text, const llmc_trainer *t) {
    if (t->team.world > 1 || !trainer_has_other_batch(t)) return;
    growing_add(text, "batch: ");
    add_step(text, t);
    growing_add(text, "\n");
}

/* The processes, if there are several, and the batch that they share. */
static void add_processes(Growing *text, const llmc_trainer *t) {
    const llmc_options *o = &t->options;
    if (t->team.world == 1) return;
    growing_add(text, "processes: %d, %d of them on this machine; ", t->team.world, t->team.local);
    add_step(text, t);
    growing_add(text, " in each process; %s in %s%s; --timeout=%lld s\n",
                o->diloco ? "changes of weights are averaged" : "gradients are summed", o->reduce_precision,
                o->zero ? ", and the moments are shared out" : "", (long long)o->timeout);
}

static int add_all(Growing *text, llmc_trainer *t) {
    const llmc_room room = setup_room(t);
    char memory[1024];
    llmc_plan plan;
    add_processes(text, t);
    add_batch(text, t);
    add_device(text, t);
    start_threads(text, t);
    TRY(plan_text(&plan, t->k, &t->config, &room, t->threads, memory, sizeof memory));
    add_model(text, t, &plan);
    add_data(text, t);
    add_validation(text, t);
    growing_add(text, "%s%s\n", t->team.world > 1 ? "each process: " : "", memory);
    add_training(text, t);
    return tell_resume(t, text);
}

int trainer_announce_plan(llmc_trainer *t) {
    Growing growing = {0};
    int rc = add_all(&growing, t);
    char *text = growing_end(&growing);
    if (rc >= 0) rc = text ? tell_text(t, text) : LLMC_ENOMEM;
    free(text);
    return rc < 0 ? rc : LLMC_PLAN;
}
