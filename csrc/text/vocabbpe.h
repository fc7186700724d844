/* OpenAI's vocab.bpe: the list of merges that all of GPT-2's pieces follow from */
#ifndef VOCABBPE_H
#define VOCABBPE_H
#include <stdint.h>

int vocabbpe_is(const char *text, int64_t size); /* 1 if the text begins as a vocab.bpe */
/* Makes the bytes of a tokenizer.bin of kind gpt2; the caller frees them. Errors call the file `name`. */
int vocabbpe_convert(char **out, int64_t *out_size, const char *text, int64_t size, const char *name);
#endif
