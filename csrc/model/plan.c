/* The memory plan: how many bytes a model takes, and what would fit if there are not so many. Allocates nothing. */
#include <stdio.h>
#include "base/error.h"
#include "model/plan.h"

typedef struct Sizes { /* all that a plan depends on */
    const Kernels *k;
    const llmc_config *config;
    llmc_room room;
    int threads;
} Sizes;

/* The bytes of a block, rounded up so that the next one begins at a multiple of 64. */
static int64_t bytes_of(int64_t elements, int64_t each) { return (elements * each + 63) / 64 * 64; }

int plan_make(llmc_plan *plan, const Kernels *k, const llmc_config *config, const llmc_room *room, int threads) {
    Layout layout;
    TRY(layout_make(&layout, config, room));
    const int64_t Vp = layout.table[P_wte].shape[0];
    plan->params = bytes_of(layout.num_weights, master_bytes(plan_splits(k, room)));
    plan->stored = k->element == LLMC_FP32 ? 0 : bytes_of(layout.num_weights, element_bytes(k->element));
    plan->trained = layout.num_trained;
    plan->grads = bytes_of(layout.num_trained, 4);
    plan->moments = 2 * bytes_of(layout.num_moments, 4);
    plan->outer = room->outer ? 2 * bytes_of(layout.num_trained, 4) : 0;
    plan->acts = bytes_of(layout.num_acts, 4);
    plan->workspace = k->workspace_bytes(room->B, room->T, config->C, config->NH, (int)Vp, threads);
    plan->total =
        plan->params + plan->stored + plan->grads + plan->moments + plan->outer + plan->acts + plan->workspace;
    plan->num_params = layout.num_params - (Vp - config->V) * config->C * (config->untied ? 2 : 1);
    return LLMC_OK;
}

/* ---- what would fit ---- */

static int fits(const Sizes *s, int64_t available) {
    llmc_plan plan;
    return plan_make(&plan, s->k, s->config, &s->room, s->threads) == 0 && plan.total <= available;
}

/* The largest B that fits with T and recompute unchanged. room.B itself must fit. */
static int largest_batch(Sizes s, int64_t available) {
    int least = s.room.B, most = s.room.B;
    for (; most < 1 << 24; least = most) {
        s.room.B = most = 2 * least;
        if (!fits(&s, available)) break;
    }
    while (most - least > 1) {
        s.room.B = least + (most - least) / 2;
        if (fits(&s, available)) least = s.room.B;
        else most = s.room.B;
    }
    return least;
}

/* The least recomputation that fits if all else stays; -1 if none does. */
static int recompute_that_fits(Sizes s, int64_t available) {
    for (; s.room.training && s.room.recompute <= RECOMPUTE_MOST; s.room.recompute++)
        if (fits(&s, available)) return s.room.recompute;
    return -1;
}

/* Halves T, and for each T B, until they fit; 0 if none do. */
static int batch_that_fits(Sizes *s, int64_t available) {
    const int B = s->room.B;
    for (; s->room.T >= 1; s->room.T /= 2)
        for (s->room.B = B; s->room.B >= 1; s->room.B /= 2)
            if (fits(s, available)) return 1;
    return 0;
}

/* ---- the answer ---- */

static int plan_line(const llmc_plan *p, const llmc_room *room, char *line, size_t size) {
    const double MB = 1e-6;
    char outer[64] = "";
    if (p->outer) snprintf(outer, sizeof outer, "outer step %.1f, ", p->outer * MB);
    return snprintf(line, size,
                    "memory plan: params %.1f MB, grads %.1f, moments %.1f, %sactivations %.1f, workspace %.1f; "
                    "total %.1f MB for B=%d T=%d recompute=%d",
                    (p->params + p->stored) * MB, p->grads * MB, p->moments * MB, outer, p->acts * MB,
                    p->workspace * MB, p->total * MB, room->B, room->T, room->recompute);
}

/* Refuses a plan, and names what would fit: a higher recompute, or a smaller batch. */
static int refuse(Sizes s, const llmc_plan *plan, int64_t available) {
    const double MB = (double)available * 1e-6;
    char line[512], batch[64] = "";
    plan_line(plan, &s.room, line, sizeof line);
    const int recompute = recompute_that_fits(s, available);
    if (batch_that_fits(&s, available)) snprintf(batch, sizeof batch, "B=%d T=%d", s.room.B, s.room.T);
    CHECK(recompute < 0, LLMC_ENOMEM, "%s, but %.0f MB are available; recompute=%d would fit%s%s", line, MB, recompute,
          *batch ? ", or " : "", batch);
    CHECK(*batch, LLMC_ENOMEM, "%s, but %.0f MB are available; take a smaller model", line, MB);
    FAIL(LLMC_ENOMEM, "%s, but %.0f MB are available; %s would fit", line, MB, batch);
}

/* The plan, and the bytes that are available now, -1 if the device does not know; an error if they are too few. */
static int check(llmc_plan *plan, const Sizes *s, int64_t *available) {
    TRY(plan_make(plan, s->k, s->config, &s->room, s->threads));
    *available = s->k->memory_available();
    if (*available >= 0 && s->room.neighbours > 1) *available /= s->room.neighbours;
    return *available < 0 || plan->total <= *available ? LLMC_OK : refuse(*s, plan, *available);
}

int plan_check(llmc_plan *plan, const Kernels *k, const llmc_config *config, const llmc_room *room, int threads) {
    int64_t available;
    return check(plan, &(Sizes){k, config, *room, threads}, &available);
}

int plan_text(llmc_plan *plan, const Kernels *k, const llmc_config *config, const llmc_room *room, int threads,
              char *text, size_t size) {
    const Sizes s = {k, config, *room, threads};
    int64_t available;
    char line[512], fit[64] = "";
    TRY(check(plan, &s, &available));
    plan_line(plan, room, line, sizeof line);
    if (available >= 0)
        snprintf(fit, sizeof fit, "; fits in %.0f MB, with B up to %d", (double)available * 1e-6,
                 largest_batch(s, available));
    snprintf(text, size, "%s%s", line, fit);
    return LLMC_OK;
}

/* ---- the same for whoever has no kernels in hand ---- */

int llmc_plan_memory(const llmc_config *config, const llmc_room *room, int threads, llmc_plan *plan) {
    llmc_room settled = *room;
    const Kernels *k;
    TRY(layout_kernels(&k, &settled));
    return plan_make(plan, k, config, &settled, threads_asked(threads));
}

int llmc_plan_text(const llmc_config *config, const llmc_room *room, int threads, char *text, size_t size) {
    llmc_room settled = *room;
    const Kernels *k;
    llmc_plan plan;
    TRY(layout_kernels(&k, &settled));
    return plan_text(&plan, k, config, &settled, threads_asked(threads), text, size);
}
