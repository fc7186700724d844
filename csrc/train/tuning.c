/* What a run trains: all tensors, some of them, or LoRA's adapters. */
#include <string.h>
#include "base/error.h"
#include "files/modelfile.h"
#include "train/trainer.h"
#include "write/locate.h"

/* Refuses names of tensors and of LoRA's targets that do not exist, before data are read. */
static int check_trained(llmc_trainer *t) {
    llmc_config known = t->config;
    llmc_plan plan;
    if (t->options.lora_rank) TRY(t->lora_on = llmc_lora_targets(t->options.lora_on));
    if (!known.V) known.V = 1;
    const llmc_room room = setup_room(t);
    return llmc_plan_memory(&known, &room, 1, &plan);
}

/* The moments of a checkpoint are those of what it trained. */
static int refuse_change(const llmc_trainer *t) {
    const char *const fixed[] = {"train_only", "lora_rank", "lora_alpha", "lora_on"};
    char before[OPTION_TEXT], now[OPTION_TEXT];
    for (size_t i = 0; t->resumed && i < sizeof fixed / sizeof *fixed; i++) {
        const Option *option;
        TRY(option_find(&t->options, fixed[i], &option));
        option_value(t->before, option, before);
        option_value(&t->options, option, now);
        CHECK(!strcmp(before, now), LLMC_EINVAL,
              "--%s=%s, but the run has --%s=%s: leave it out, or begin another run from this one with --model=%s",
              fixed[i], now, fixed[i], before, t->options.resume);
    }
    return LLMC_OK;
}

/* A run that writes nothing may adapt fresh weights, to see how fast it is. */
static int check_base(const llmc_trainer *t) {
    const llmc_options *o = &t->options;
    CHECK(!o->lora_rank || *t->start_file || o->plan || !*o->out, LLMC_EINVAL,
          "LoRA adapts a model that is trained already, and --model=%s is a size: name a weight file or a run folder",
          o->model);
    CHECK(
        !(o->lora_dropout > 0) || o->lora_rank, LLMC_EINVAL,
        "--lora_dropout=%g drops what adapters read, and there are none: give --lora_rank, or --dropout for the whole "
        "model",
        o->lora_dropout);
    return LLMC_OK;
}

/* Adapters are of use only with the weights that they adapt, so these must not go when a run takes the place of another; and the
 * run's folder gives them a second name, unless Python makes the file anew each time. */
static int keep_base(llmc_trainer *t) {
    const llmc_options *o = &t->options;
    const Adapters *a = t->file ? t->file->adapters : NULL;
    const char *base = a ? a->base : t->start_file, *name = a ? a->name : base;
    CHECK(!o->lora_rank || t->in_place || o->plan || !*o->out || !run_replaces(o->out, name), LLMC_EINVAL,
          "the adapters will need %s, which a new run in --out=%s would replace: name another --out", name, o->out);
    const int is_made = !strcmp(base, o->model_file) || !strcmp(base, o->base_file);
    if (o->lora_rank && !is_made) snprintf(t->run.base, sizeof t->run.base, "%s", base);
    return LLMC_OK;
}

int tuning_load(llmc_trainer *t) {
    TRY(llmc_model_load_from(t->model, t->file));
    if (!t->options.lora_rank || llmc_file_adapters(t->file, NULL, 0)) return LLMC_OK;
    TRY(llmc_model_name_base(t->model, sizes_weights_name(t)));
    return llmc_model_init_adapters(t->model, t->options.seed);
}

int tuning_check(llmc_trainer *t) {
    TRY(refuse_change(t));
    TRY(check_base(t));
    if (t->file) TRY(locate_base(&t->options, t->file));
    TRY(keep_base(t));
    return check_trained(t);
}
