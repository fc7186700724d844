/* The tokenizer that belongs to a file of weights: llmc_file_tokenizer. */
#ifndef FILETOKENIZER_H
#define FILETOKENIZER_H
#include "pyllmc.h"
/* Opens a tokenizer file. It may be another model's, so an error tells if a model of V ids cannot use it. */
int filetokenizer_open(llmc_tokenizer **tokenizer, const char *path, int V);
#endif
