/* Whether two tokenizers are the same one. */
#ifndef AGREE_H
#define AGREE_H
#include "pyllmc.h"
/* True if every id means the same bytes in both, whatever the format of their files. */
int tokenizers_agree(const llmc_tokenizer *a, const llmc_tokenizer *b);
#endif
