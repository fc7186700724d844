/* OpenAI's release of GPT-2: a TensorFlow checkpoint, PREFIX.data-00000-of-00001 with PREFIX.index, read without TensorFlow.
 *
 *     data   float32, little-endian, tensors without gaps, sorted by name as bytes: model/h0/attn/c_attn/b, .../w, ..., h1, h10,
 *            h11, h2, ..., model/ln_f/b, model/ln_f/g, model/wpe, model/wte
 *     index  for each name: type, shape, place, size, checksum (tfindex.h)
 *
 * Without an index the size of the data tells which of the four released sizes it is, or what other L and C fit. hparams.json
 * in the same folder tells the heads; without it they have 64 channels each. */
#ifndef TFBUNDLE_H
#define TFBUNDLE_H
#include "files/modelfile.h"
/* 1 if path is a folder with model.ckpt.*, a prefix, or either file; else 0. */
int tfbundle_is(const char *path);
int tfbundle_open(llmc_file *f, const char *path);
void tfbundle_describe(const llmc_file *f, char *text, size_t size);
#endif
