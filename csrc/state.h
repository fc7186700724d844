/* A checkpoint's STATE, the loop's own few numbers: lines name=value. */
#ifndef STATE_H
#define STATE_H
/* The number of a line; `otherwise` where there is none. */
double state_number(const char *state, const char *name, double otherwise);
#endif
