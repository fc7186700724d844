/* OpenAI's release of GPT-2: a TensorFlow checkpoint, PREFIX.data-00000-of-00001 with PREFIX.index, read without TensorFlow.
 *
 *     data   float32, little-endian, tensors without gaps, sorted by name as bytes: model/h0/attn/c_attn/b, .../w, ..., h1, h10,
 *            h11, h2, ..., model/ln_f/b, model/ln_f/g, model/wpe, model/wte
 *     index  for each name: type, shape, offset, size, checksum (tfindex.h)
 *
 * If there is no index, the size of the data tells which of the four released models it is, or which other L and C fit.
 * hparams.json in the same folder tells the number of heads; without it every head has 64 channels. */
#ifndef TFBUNDLE_H
#define TFBUNDLE_H
#include "files/modelfile.h"
/* 1 if `path` is a folder with model.ckpt.*, a prefix, the index or the data; else 0. */
int tfbundle_is(const char *path);
/* Works out where each tensor lies, and checks that the tensors fill the data; reads no weights. */
int tfbundle_open(llmc_file *f, const char *path);
void tfbundle_describe(const llmc_file *f, char *text, size_t size);
#endif
