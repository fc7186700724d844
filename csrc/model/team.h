/* A model as one of several that are trained together (llmc_team): the sums of its gradients, and ZeRO-1's shares. */
#ifndef TEAM_H
#define TEAM_H
#include "model/gpt2.h"

/* Begin the sums of gradients that are final: those above all layers; in a layer, those of a matrix with its bias and adapters,
 * and those of the norms; those of the embeddings. */
void team_sum_head(llmc_model *model);
void team_sum_matrix(llmc_model *model, int l, int target);
void team_sum_norms(llmc_model *model, int l);
void team_sum_embeddings(llmc_model *model);
/* Fails because another process was lost: the team says which. */
int team_lost(const llmc_team *team);
/* All processes come here before they move their shares of the moments, each with the status of what it needs for that: if one
 * has failed, all fail, and none waits for another. */
int team_ready(llmc_model *model, int status);
/* True if other processes have moments that a checkpoint needs: they are shared out, or apart. */
static inline int team_has_moments(const llmc_model *model) {
    return model->team && (model->room.shards > 1 || model->room.outer);
}
/* The outer step's momentum, which has as many elements as the gradients. */
static inline float *team_momentum(const llmc_model *model) { return model->outer + model->layout.num_trained; }
/* Gathers the parameters that other processes have updated. */
int team_gather(llmc_model *model);
#endif
