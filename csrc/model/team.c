/* A model joins others: its gradients are summed while the backward pass still runs, its parameters gathered after an update. */
#include "model/team.h"
#include "base/error.h"
#include "model/lora.h"

int llmc_model_join(llmc_model *m, const llmc_team *team) {
    TRY(gpt2_need_training(m));
    CHECK(team->rank >= 0 && team->rank < team->world, LLMC_EINVAL, "rank %d is not in 0..%d", team->rank,
          team->world - 1);
    CHECK(m->room.shards <= 1 || (m->room.shards == team->world && m->room.shard == team->rank), LLMC_EINVAL,
          "the model has share %d of %d, the process is number %d of %d", m->room.shard, m->room.shards, team->rank,
          team->world);
    m->team = team;
    m->drop.first = m->drop.micro_step = team->rank, m->drop.others = team->world - 1;
    return LLMC_OK;
}

int team_lost(const llmc_team *team) { return llmc_fail(LLMC_EIO, "%s", team->why(team->self)); }

int team_ready(llmc_model *m, int status) {
    double failed = status < 0;
    if (m->team->sum(m->team->self, &failed, 1) != 0) return status < 0 ? status : team_lost(m->team);
    if (status < 0) return status;
    CHECK(failed == 0, LLMC_EIO, "another process cannot take or send the moments");
    return LLMC_OK;
}

int llmc_model_sum_next(llmc_model *m) {
    CHECK(m->team, LLMC_EINVAL, "this model has joined no others: llmc_model_join comes first");
    return m->summing = 1, LLMC_OK;
}

/* Waits until gradients are final. The end of the micro-step returns an error, because a device tells some errors only once. */
static void wait_for_gradients(llmc_model *m) {
    const int status = m->k->sync(&m->ctx);
    if (m->failed >= 0) m->failed = status;
}

/* Begins the sum of a gradient's first `size` numbers. An error comes again from end_sums, so none is looked at here. */
static void begin_sum_of(llmc_model *m, int i, int l, int64_t size) {
    float *gradient = gradient_of(m, i, l);
    if (gradient && size) m->team->begin_sum(m->team->self, gradient, size);
}
static void begin_sum(llmc_model *m, int i, int l) { begin_sum_of(m, i, l, m->layout.table[i].size); }

void team_sum_head(llmc_model *m) {
    wait_for_gradients(m);
    for (int i = 0; i < NUM_TRAINABLE; i++)
        if (!m->layout.table[i].layers && i != P_wte && i != P_wpe) begin_sum(m, i, 0);
}

/* Begins the sums of four tensors of a layer, as far as they are trained. */
static void sum_four(llmc_model *m, int l, const int rows[4]) {
    int any = 0;
    for (int i = 0; i < 4; i++) any |= gradient_of(m, rows[i], l) && m->layout.table[rows[i]].size;
    if (!any) return;
    wait_for_gradients(m);
    for (int i = 0; i < 4; i++) begin_sum(m, rows[i], l);
}

void team_sum_matrix(llmc_model *m, int l, int target) {
    const int w = lora_matrices[target], A = lora_row_of_A(target);
    sum_four(m, l, (int[]){w, w + 1, A, A + 1});
}

void team_sum_norms(llmc_model *m, int l) { sum_four(m, l, (int[]){P_ln1w, P_ln1b, P_ln2w, P_ln2b}); }

void team_sum_embeddings(llmc_model *m) {
    wait_for_gradients(m);
    begin_sum_of(m, P_wpe, 0, (int64_t)m->room.T * m->config.C); /* no process has trained a position behind T */
    begin_sum(m, P_wte, 0);
}

/* Each process gets the others' shares of a block that has a float, or half of one, for each parameter. */
static int gather(const llmc_model *m, float *block, int halves) {
    const int64_t each = moments_each(m->layout.num_trained, &m->room); /* a multiple of 16 */
    return m->team->gather(m->team->self, block, halves ? each / 2 : each) == 0 ? LLMC_OK : team_lost(m->team);
}

int team_gather(llmc_model *m) {
    TRY(m->k->sync(&m->ctx));
    CHECK(m->team, LLMC_EINVAL, "this model has a share of the moments only: llmc_model_join comes first");
    TRY(gather(m, m->params, m->ctx.split));
    return m->ctx.split ? gather(m, (float *)m->stored, 1) : gpt2_store(m);
}
