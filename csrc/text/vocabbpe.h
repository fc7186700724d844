/* OpenAI's vocab.bpe: the merges from which all of GPT-2's pieces follow. */
#ifndef VOCABBPE_H
#define VOCABBPE_H
#include <stdint.h>

int vocabbpe_is(const char *text, int64_t size); /* does it begin as one? */
/* As the bytes of a tokenizer.bin of kind gpt2, to be freed. `name` is what errors call it. */
int vocabbpe_convert(char **out, int64_t *out_size, const char *text, int64_t size, const char *name);
#endif
