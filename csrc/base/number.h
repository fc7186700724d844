/* Numbers as people write them. */
#ifndef NUMBER_H
#define NUMBER_H
#include <stddef.h>
#include <stdint.h>

enum { NUMBER_TEXT = 32 }; /* bytes of the longest that number_text makes */

/* Both take [+-]digits[.digits][e[+-]digits], where single _ may part the digits; pyllmc/base/values.py holds to the same rule. They
 * return 0; -1 if it is no such number (1.5 and 1e-1 are no whole one, 1.5e3 is); 1 if the type cannot hold it: it is too
 * large, or too small a fraction to differ from 0. */
int number_whole(const char *text, int64_t *value);
int number_real(const char *text, double *value);
/* The shortest decimal that reads back as the same number. */
void number_text(double value, char text[NUMBER_TEXT]);
#endif
