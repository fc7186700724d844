/* A checkpoint's STATE, the loop's own few numbers: lines name=value. */
#ifndef STATE_H
#define STATE_H
#include "pyllmc.h"
enum { STATE_TEXT = 4096 };
/* Reads it, with a NUL behind; "" if the file has none. */
int state_read(const llmc_file *checkpoint, char state[STATE_TEXT]);
/* The number of a line; `otherwise` where there is none. */
double state_number(const char *state, const char *name, double otherwise);
#endif
