/* STATE of a checkpoint: a few numbers of the training loop, in lines name=value. If a name stands twice, its first line counts. */
#ifndef STATE_H
#define STATE_H
#include "pyllmc.h"
enum { STATE_TEXT = 16384 };
/* Reads STATE and adds a NUL; "" if the file has none. LLMC_EFORMAT if it is longer than any that is written. */
int state_read(const llmc_file *checkpoint, char state[STATE_TEXT]);
/* The same of a file that is not open. */
int state_read_by_path(const char *checkpoint, char state[STATE_TEXT]);
/* The value in the line of this name, up to the end of the line; NULL if there is no such line. */
const char *state_value(const char *state, const char *name);
/* The number in that line; `otherwise` if there is none. */
double state_number(const char *state, const char *name, double otherwise);
int64_t state_whole(const char *state, const char *name, int64_t otherwise);
#endif
