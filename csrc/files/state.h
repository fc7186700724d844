/* STATE of a checkpoint: a few numbers of the training loop, in lines name=value. */
#ifndef STATE_H
#define STATE_H
#include "pyllmc.h"
enum { STATE_TEXT = 4096 };
/* Reads STATE and adds a NUL; "" if the file has none. */
int state_read(const llmc_file *checkpoint, char state[STATE_TEXT]);
/* The same of a file that is not open. */
int state_read_by_path(const char *checkpoint, char state[STATE_TEXT]);
/* The number in the line of this name; `otherwise` if there is no such line. */
double state_number(const char *state, const char *name, double otherwise);
#endif
