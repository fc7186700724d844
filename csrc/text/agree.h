/* Whether two tokenizers are the same one, and whether one may be a model's. */
#ifndef AGREE_H
#define AGREE_H
#include "pyllmc.h"
/* True if every id means the same bytes in both, whatever the format of their files. */
int tokenizers_agree(const llmc_tokenizer *a, const llmc_tokenizer *b);
/* True if a model of V rows may belong to a vocabulary of `ids`: some are padded to a multiple of 2, 4, ... or 128. */
int vocabulary_fits(int ids, int V);
#endif
