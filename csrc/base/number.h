/* Numbers in the notation of people */
#ifndef NUMBER_H
#define NUMBER_H
#include <stddef.h>
#include <stdint.h>

enum { NUMBER_TEXT = 32 }; /* bytes of the longest text that number_text makes */

/* Both read [+-]digits[.digits][e[+-]digits], where a single _ may stand between two digits; pyllmc/base/values.py
 * follows the same rule. They return 0; -1 if the text is no such number (1.5 and 1e-1 are not whole, 1.5e3 is); 1 if the
 * type cannot hold the number: it is too large, or too small a fraction to differ from 0. */
int number_whole(const char *text, int64_t *value);
int number_real(const char *text, double *value);
/* The shortest decimal that reads back as the same number. */
void number_text(double value, char text[NUMBER_TEXT]);
#endif
