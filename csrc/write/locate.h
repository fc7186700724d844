/* What --model and --tokenizer name, for training and for writing. */
#ifndef SOURCE_H
#define SOURCE_H
#include "options/options.h"
/* LLMC_EDEVICE unless this library was built for it */
int source_check_device(const char *device);
/* Whether `model` names weights rather than a size: their file in path, of a run folder's its best, else last, checkpoint. */
int source_is_file(const char *model, char *path, size_t size);
/* The same of --model, for which a front end may have made a file. LLMC_EINVAL: a name of the hub, which Python fetches. */
int source_find(const llmc_options *options, char *path, size_t size);
/* The tokenizer that travels in a checkpoint; NULL where none does. */
int source_own_tokenizer(llmc_tokenizer **tokenizer, const char *weights);
/* A model to write with, room for one text, and its tokenizer: --tokenizer, else its own, else the one beside it. */
int source_open(const llmc_options *options, llmc_model **model, llmc_tokenizer **tokenizer);
#endif
