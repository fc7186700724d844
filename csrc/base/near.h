/* How far a name that nobody knows is from the known ones, for "did you mean ...?". */
#ifndef NEAR_H
#define NEAR_H
/* Levenshtein's distance of two words: letters to change, drop or add. 64 if a word has 63 letters or more. */
int near_distance(const char *a, const char *b);
/* The largest distance at which another name is worth mentioning. Two swapped letters count as two changes. */
int near_enough(const char *name);
#endif
