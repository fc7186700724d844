/* The part of a generation that only the writer needs. */
#ifndef GENERATE_H
#define GENERATE_H
#include "pyllmc.h"
/* Says that the text will be cut to its first n ids again and again. What banded layers cache there is then kept on the host, so
 * that the n ids are read once. */
void generation_return_to(llmc_generation *generation, int n);
#endif
