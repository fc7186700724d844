/* A path as one word of a shell command that a person can paste */
#ifndef QUOTE_H
#define QUOTE_H
enum { QUOTED = 4 * 1024 + 3 }; /* bytes of the longest result */
/* Writes the path to `quoted`, which has QUOTED bytes. It is put into single quotes if a shell would give a character
 * of it a meaning. */
void quote(const char *path, char *quoted);
#endif
