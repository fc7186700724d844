/* The memory that a model takes, for kernels that are known, of the room's precision. The public functions ask for those
 * themselves. */
#ifndef PLAN_H
#define PLAN_H
#include "model/layout.h"

/* The threads that a number asks for: 0 asks for as many as the process may use cores. */
static inline int threads_asked(int asked) { return asked > 0 ? asked : llmc_default_threads(); }

/* True if a model's masters are split: a bf16, which kernels read, and what it lacks of a float. */
static inline int plan_splits(const Kernels *k, const llmc_room *room) { return k->splits && !room->whole; }

int plan_make(llmc_plan *plan, const Kernels *k, const llmc_config *config, const llmc_room *room, int threads);
/* plan_make, then LLMC_ENOMEM if the device has less memory than the plan; the message says which sizes would fit. */
int plan_check(llmc_plan *plan, const Kernels *k, const llmc_config *config, const llmc_room *room, int threads);
/* The same, and the plan in one line, with the largest B that would fit. */
int plan_text(llmc_plan *plan, const Kernels *k, const llmc_config *config, const llmc_room *room, int threads,
              char *text, size_t size);
#endif
