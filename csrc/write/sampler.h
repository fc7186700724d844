/* Samples with scratch memory of the caller, who samples many ids. */
#ifndef SAMPLER_H
#define SAMPLER_H
#include "pyllmc.h"

typedef struct Candidate {
    float logit, weight; /* weight: exp((logit - largest) / temperature) */
    int id;
} Candidate;
int sampling_check(const llmc_sampling *how);
/* As llmc_sample, with scratch[V]. `how` has been checked by sampling_check. */
int sampler_draw(const float *logits, int V, const llmc_sampling *how, double coin, Candidate *scratch);
/* The probabilities p[V] with which sampler_draw draws each id; they are 0 for the ids that it leaves out. */
int sampler_chances(const float *logits, int V, const llmc_sampling *how, Candidate *scratch, float *p);
#endif
