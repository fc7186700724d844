/* Finds the files that --model and --tokenizer name, for training and for writing. */
#ifndef LOCATE_H
#define LOCATE_H
#include "options/options.h"
/* LLMC_EDEVICE if this library was built for another device than --device. */
int locate_check_device(const llmc_options *options);
/* The weight file that --model means: 1 and its path, or 0 if --model is a size. A front end may have converted the file
 * (llmc_options_set_model_file). LLMC_EINVAL: the name is one of the hub, and only Python fetches from there. */
int locate_weight_file(const llmc_options *options, char *path, size_t size);
/* If a file holds adapters, lets it find its base where a front end has converted that to (llmc_options_set_base_file). */
int locate_base(const llmc_options *options, llmc_file *file);
/* Makes a model that has memory for one text, and opens its tokenizer: --tokenizer, else the one that belongs to the weights. The
 * caller sets both to NULL before and frees them, even after an error. line: becomes the template that the file records
 * (template.h), or "". */
int locate_open(const llmc_options *options, llmc_model **model, llmc_tokenizer **tokenizer, char line[OPTION_TEXT]);
#endif
