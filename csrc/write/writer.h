/* The inside of a writer, for chat.c. */
#ifndef WRITER_H
#define WRITER_H
#include "options/options.h"
/* How to sample, by --temperature and the other options. */
llmc_sampling writer_sampling(const llmc_options *options);
/* Ends the text now, with this `end`. The next step hands out the bytes that were held back. */
void writer_finish(llmc_writer *writer, int end);
/* Forgets the text but its first n ids, behind which the next prompt follows; 0: it begins a text. */
void writer_restart(llmc_writer *writer, int n);
/* Drops the bytes that were not handed out, so that the context is the text that somebody has seen. */
void writer_drop_unseen(llmc_writer *writer);
/* A text that ends with EOT is rid of this ending before it. A stop string must begin with it; the text outlives the writer. */
void writer_end_with(llmc_writer *writer, const char *ending, int64_t size);
/* How many ids a prompt would append, after writer_drop_unseen. next: the prompt comes next, so that it would begin with the first
 * bytes of a token that was cut; 0: it comes after another one. */
int writer_count(const llmc_writer *writer, const char *text, int64_t size, int next);
/* The template that --template asks for: with auto the one that the weight file records, if llmc_writer_open has opened one that
 * does. */
const char *writer_template(const llmc_writer *writer, const llmc_options *options);
const llmc_model *writer_model(const llmc_writer *writer);
/* Makes a chat that talks through `writer`. The chat frees the writer, even if it cannot be made. */
int chat_new(llmc_chat **chat, llmc_writer *writer, const llmc_options *options);
#endif
