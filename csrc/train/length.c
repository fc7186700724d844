/* How long a run is, given in steps, passes over the data or tokens; how large each of its steps is; and its learning rate. */
#include <math.h>
#include "base/error.h"
#include "base/number.h"
#include "files/state.h"
#include "train/trainer.h"

/* Tokens are counted up to here, which no run reaches. */
static const int64_t FOREVER = INT64_MAX / 4;

/* ---- the options ---- */

static int by_call(unsigned char given, int wanted) { return given == BY_CALL && wanted; }

/* Lets the one length that the call gave count instead of those in a file or checkpoint, whose max_steps only followed. */
static int choose_length(llmc_options *o) {
    const int steps = by_call(o->max_steps_given, 1), epochs = by_call(o->epochs_given, o->epochs > 0);
    const int tokens = by_call(o->max_tokens_given, o->max_tokens > 0);
    CHECK(steps + epochs + tokens <= 1, LLMC_EINVAL, "%s and %s both say how long the run is: leave one of them out",
          steps ? "--max_steps" : "--epochs", epochs && steps ? "--epochs" : "--max_tokens");
    if (steps || tokens) o->epochs = 0;
    if (steps || epochs) o->max_tokens = 0;
    CHECK(!(o->epochs > 0 && o->max_tokens), LLMC_EINVAL,
          "epochs=%g and max_tokens=%lld both say how long the run is: give one of them, or set it to 0", o->epochs,
          (long long)o->max_tokens);
    return LLMC_OK;
}

/* Lets the option that the call gave count, if a file or checkpoint gives the other. */
static int choose_batch(llmc_options *o) {
    const int whole = by_call(o->global_batch_given, o->global_batch > 0), own = by_call(o->grad_accum_given, 1);
    if (own && !whole) o->global_batch = 0;
    if (whole && !own) o->grad_accum = 1;
    CHECK(!o->global_batch || o->grad_accum == 1, LLMC_EINVAL,
          "--global_batch=%lld and --grad_accum=%lld both say how large a step is: leave one of them out",
          (long long)o->global_batch, (long long)o->grad_accum);
    CHECK(!o->batch_ramp_tokens || o->grad_accum > 1 || o->global_batch > o->B, LLMC_EINVAL,
          "--batch_ramp_tokens lets a batch grow from 1 micro-step to --grad_accum, which is 1: raise it");
    return LLMC_OK;
}

int length_check(llmc_options *o) {
    TRY(choose_length(o));
    CHECK(!by_call(o->warmup_steps_given, 1) || !by_call(o->warmup_tokens_given, o->warmup_tokens > 0), LLMC_EINVAL,
          "--warmup_steps and --warmup_tokens both say how long the warm-up is: leave one of them out");
    if (by_call(o->warmup_steps_given, 1)) o->warmup_tokens = 0;
    CHECK(!o->overfit_batch || !(o->epochs > 0), LLMC_EINVAL,
          "--overfit_batch trains on one batch, so there are no passes over the data: give --max_steps instead of "
          "--epochs");
    return choose_batch(o);
}

void length_name(const llmc_trainer *t, int64_t factor, char *text, size_t size) {
    const llmc_options *o = &t->options;
    char epochs[NUMBER_TEXT];
    number_text(o->epochs * (double)factor, epochs);
    if (o->epochs > 0) snprintf(text, size, "--epochs=%s", epochs);
    else if (o->max_tokens) snprintf(text, size, "--max_tokens=%lld", (long long)(o->max_tokens * factor));
    else snprintf(text, size, "--max_steps=%lld", (long long)(o->max_steps * factor));
}

/* ---- the size of a step ---- */

enum { MOST_SIZES = 1000000 }; /* also the most micro-steps */

static int64_t ceil_of(int64_t a, int64_t b) { return (a + b - 1) / b; }

/* True if this call says the same of the batch as the run that it resumes, whose command it may be, given once more. */
static int leaves_batch(const llmc_trainer *t) {
    const llmc_options *now = &t->options, *before = t->before;
    return t->resumed && before->B == now->B && before->grad_accum == now->grad_accum &&
           before->global_batch == now->global_batch;
}

/* --B and --grad_accum mean a batch that follows from the number of processes with which the run began. */
static int find_batch(llmc_trainer *t) {
    const llmc_options *o = &t->options;
    char state[STATE_TEXT] = "";
    t->batch = o->B * o->grad_accum * t->team.world;
    if (leaves_batch(t)) TRY(state_read(t->file, state));
    t->batch = state_whole(state, "batch", t->batch);
    CHECK(t->batch > 0 && t->batch < FOREVER && t->batch % o->grad_accum == 0, LLMC_EFORMAT,
          "%s is damaged: its batch of %lld is not made of %lld parts; use an earlier checkpoint", t->start_file,
          (long long)t->batch, (long long)o->grad_accum);
    t->sizes = o->grad_accum, t->unit = t->batch / t->sizes;
    return LLMC_OK;
}

int length_share(llmc_trainer *t) {
    const llmc_options *o = &t->options;
    if (o->global_batch) t->batch = o->global_batch, t->unit = o->B, t->sizes = ceil_of(t->batch, t->unit);
    else TRY(find_batch(t));
    const int64_t together = o->B * t->team.world, most = ceil_of(t->batch, together);
    CHECK(t->sizes <= MOST_SIZES && most <= MOST_SIZES, LLMC_EINVAL,
          "a batch of %lld sequences takes more than %d micro-steps of --B=%lld: raise --B", (long long)t->batch,
          MOST_SIZES, (long long)o->B);
    t->most_micro_steps = (int)most;
    t->B = (int)ceil_of(t->batch, most * t->team.world); /* so that processes have equal parts, as far as they can */
    return LLMC_OK;
}

/* How many units a step has that begins after so many tokens; the last one may be smaller. */
static int64_t size_after(const llmc_trainer *t, int64_t tokens) {
    const int64_t ramp = t->options.batch_ramp_tokens; /* at most 1e12, and `sizes` 1e6, so their product fits */
    return tokens >= ramp ? t->sizes : 1 + (t->sizes - 1) * tokens / ramp;
}

static int64_t windows_of(const llmc_trainer *t, int64_t size) { return size < t->sizes ? size * t->unit : t->batch; }

int64_t length_windows(const llmc_trainer *t) {
    const int64_t full = windows_of(t, size_after(t, t->tokens));
    const int64_t left = t->last_window - t->position;
    return t->last_window && left < full ? left : full;
}

int length_micro_steps(const llmc_trainer *t, int64_t windows) { return (int)ceil_of(windows, global_B(t)); }

typedef struct Walk {
    int64_t steps, tokens;
} Walk;

/* The tokens after which steps are no longer as large as those that begin now. */
static int64_t end_of_size(const llmc_trainer *t, int64_t size) {
    return size < t->sizes ? ceil_of(size * t->options.batch_ramp_tokens, t->sizes - 1) : FOREVER;
}

/* Goes from one place of a run to the first step at or behind either end; all steps of one size are taken at once. */
static Walk walk(const llmc_trainer *t, Walk at, int64_t last_step, int64_t last_token) {
    while (at.steps < last_step && at.tokens < last_token) {
        const int64_t size = size_after(t, at.tokens), each = windows_of(t, size) * t->T;
        const int64_t size_ends = end_of_size(t, size), end = size_ends < last_token ? size_ends : last_token;
        int64_t n = ceil_of(end - at.tokens, each);
        if (n > last_step - at.steps) n = last_step - at.steps;
        at.steps += n, at.tokens += n * each;
    }
    return at;
}

/* ---- the run ---- */

/* Where the run begins: not at 0 if it goes on from a checkpoint. */
static int find_beginning(const llmc_trainer *t, Walk *begin, int64_t *position) {
    char state[STATE_TEXT];
    *begin = (Walk){0, 0}, *position = 0;
    if (!t->resumed) return LLMC_OK;
    TRY(state_read(t->file, state));
    *begin = (Walk){state_whole(state, "step", 0), state_whole(state, "tokens", 0)};
    *position = state_whole(state, "position", 0);
    return LLMC_OK;
}

/* The end of whole passes. Their last step takes the windows that are left, so that each is seen as often as any other. */
static Walk end_of_epochs(llmc_trainer *t, Walk begin, int64_t position) {
    t->last_window = (int64_t)ceil(t->options.epochs * (double)llmc_loader_windows(t->train));
    const int64_t left = t->last_window > position ? t->last_window - position : 0;
    const int64_t last_token = begin.tokens + left * t->T;
    return (Walk){walk(t, begin, FOREVER, last_token).steps, last_token};
}

static int is_tuning(const llmc_trainer *t) { return *t->start_file && !t->resumed; }

/* A fine-tuning run often has only a few hundred steps. */
static int64_t tuning_warmup(const llmc_options *o) {
    return o->warmup_steps < o->max_steps / 10 ? o->warmup_steps : o->max_steps / 10;
}

int length_counts_tokens(const llmc_options *o) { return o->warmup_tokens || o->decay_tokens || o->batch_ramp_tokens; }

int length_settle(llmc_trainer *t) {
    llmc_options *o = &t->options;
    Walk begin;
    int64_t position;
    TRY(find_beginning(t, &begin, &position));
    const Walk end = o->epochs > 0 && t->train ? end_of_epochs(t, begin, position)
                     : o->max_tokens           ? walk(t, begin, FOREVER, o->max_tokens)
                                               : walk(t, begin, o->max_steps, FOREVER);
    if (o->max_tokens || t->last_window) o->max_steps = end.steps;
    if (is_tuning(t) && !o->warmup_steps_given) o->warmup_steps = tuning_warmup(o);
    t->all_tokens = end.tokens;
    t->warmup = o->warmup_tokens ? o->warmup_tokens : walk(t, (Walk){0, 0}, o->warmup_steps, FOREVER).tokens;
    t->decay_end = o->decay_tokens ? o->decay_tokens : t->all_tokens;
    return LLMC_OK;
}

int length_rate(llmc_trainer *t) {
    const llmc_options *o = &t->options;
    const double final = o->final_lr_frac, decay = o->decay_frac;
    if (!length_counts_tokens(o))
        return llmc_schedule_lr(&t->lr, o->schedule, t->step, 1, o->max_steps, o->warmup_steps, o->lr, final, decay);
    return llmc_schedule_lr(&t->lr, o->schedule, t->tokens, t->windows * t->T, t->decay_end, t->warmup, o->lr, final,
                            decay);
}
