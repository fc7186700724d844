/* A path as a word of a command that can be pasted. */
#ifndef QUOTE_H
#define QUOTE_H
enum { QUOTED = 4 * 1024 + 3 }; /* bytes it may take */
/* As it is, or in single quotes where a shell would read something into it; `quoted` has QUOTED bytes. */
void quote(const char *path, char *quoted);
#endif
