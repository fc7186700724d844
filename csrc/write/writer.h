/* The writer's inside, for chat.c: token by token, and what its text holds. */
#ifndef WRITER_H
#define WRITER_H
#include "options/options.h"
/* How --temperature and the like sample. */
llmc_sampling writer_sampling(const llmc_options *options);
/* One token further: 1, and a piece that may be empty; 0 at the end. */
int writer_step(llmc_writer *writer, const char **piece, int64_t *size);
/* As if `end` had come: what was held back is the last piece. */
void writer_finish(llmc_writer *writer, int end);
/* Nothing is held any more: the next prompt begins a text. */
void writer_restart(llmc_writer *writer);
/* What was not handed out is taken back: the text is what somebody has seen. */
void writer_settle(llmc_writer *writer);
/* How many ids a prompt would append after that. */
int writer_count(const llmc_writer *writer, const char *text, int64_t size);
llmc_generation *writer_generation(llmc_writer *writer);
const llmc_model *writer_model(const llmc_writer *writer);
/* A chat by a writer, which it frees at its end, or at once if it cannot be made. */
int chat_new(llmc_chat **chat, llmc_writer *writer, const llmc_options *options);
#endif
