/* A file that holds LoRA's adapters, and what else was trained, instead of a model:
 *
 *     256 int32 as in llmcfile.h: version 1000, and behind the pattern the bytes of the text that follows
 *     lines name=value: base, checksum, lora_rank, lora_alpha, lora_dropout, lora_on, train_only
 *     what was trained, as float: parameters and adapters in the order of tensors.def, layer after layer
 *     sections, as in llmcfile.h; MOMENTS have the form of what was trained */
#ifndef ADAPTERFILE_H
#define ADAPTERFILE_H
#include "files/modelfile.h"
enum { ADAPTER_VERSION = 1000, ADAPTER_TEXT = 8192 };
/* The name beside the file under which the weights that it adapts are kept, if a run could give them a second one. */
#define ADAPTED_BASE "lora_base.ckpt"
/* Reads the text and works out where everything lies. f->config is set. */
int adapterfile_read(llmc_file *f, int32_t text_bytes);
/* Writes the text for a model; returns its length. LLMC_EINVAL if its base has no name. */
int adapterfile_text(const llmc_model *model, char text[ADAPTER_TEXT]);
#endif
