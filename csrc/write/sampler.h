/* Sampling with the caller's scratch, for whoever samples many ids. */
#ifndef SAMPLER_H
#define SAMPLER_H
#include "pyllmc.h"

typedef struct Candidate {
    float logit, weight; /* weight: exp((logit - largest) / temperature) */
    int id;
} Candidate;
int sampling_check(const llmc_sampling *how);
/* scratch[V]; how is checked */
int sample(const float *logits, int V, const llmc_sampling *how, double coin, Candidate *scratch);
#endif
