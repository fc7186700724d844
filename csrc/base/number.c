/* Reads and writes numbers in the notation of people: 1e4 is read as a whole number, 0.2 is written as 0.2 and not
 * 0.20000000000000001. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/number.h"

enum { LONGEST = 300 };

typedef struct Decimal {
    int negative, digits, point; /* point: how many digits follow the decimal point */
    int64_t exponent;
    char text[LONGEST + 1]; /* the digits */
} Decimal;

static int is_digit(char c) { return c >= '0' && c <= '9'; }

/* Takes digits from *at on; a single _ may stand between two of them. Returns how many there were. */
static int take_digits(const char **at, Decimal *d) {
    int n = 0;
    for (const char *s = *at; is_digit(*s) || (*s == '_' && n && is_digit(s[1])); *at = ++s)
        if (*s != '_') d->text[d->digits++] = *s, n++;
    return n;
}

static int take_sign(const char **at) {
    const int negative = **at == '-';
    if (negative || **at == '+') ++*at;
    return negative;
}

static int take_exponent(const char **at, Decimal *d) {
    Decimal power = {0};
    ++*at;
    power.negative = take_sign(at);
    if (!take_digits(at, &power)) return -1;
    for (int i = 0; i < power.digits && d->exponent < 100000; i++) d->exponent = 10 * d->exponent + power.text[i] - '0';
    if (power.negative) d->exponent = -d->exponent;
    return 0;
}

static int parse(const char *text, Decimal *d) {
    *d = (Decimal){0};
    if (strlen(text) > LONGEST) return -1;
    d->negative = take_sign(&text);
    take_digits(&text, d);
    if (*text == '.') text++, d->point = take_digits(&text, d);
    if (!d->digits || ((*text == 'e' || *text == 'E') && take_exponent(&text, d) < 0)) return -1;
    return *text ? -1 : 0;
}

int number_whole(const char *text, int64_t *value) {
    Decimal d;
    uint64_t n = 0;
    if (parse(text, &d) < 0) return -1;
    /* zeros to append; a negative number of them must stand at the end and is dropped */
    int64_t zeros = d.exponent - d.point;
    while (d.digits > 1 && zeros < 0 && d.text[d.digits - 1] == '0') d.digits--, zeros++;
    if (d.digits == 1 && *d.text == '0') zeros = 0;
    if (zeros < 0) return -1;
    for (int64_t i = 0; i < d.digits + zeros; i++) {
        const unsigned digit = i < d.digits ? (unsigned)(d.text[i] - '0') : 0;
        if (n > ((uint64_t)INT64_MAX - digit) / 10) return 1;
        n = 10 * n + digit;
        if (!n && i >= d.digits) break;
    }
    *value = d.negative ? -(int64_t)n : (int64_t)n;
    return 0;
}

int number_real(const char *text, double *value) {
    Decimal d;
    char plain[LONGEST + 32];
    if (parse(text, &d) < 0) return -1;
    snprintf(plain, sizeof plain, "%s%.*se%lld", d.negative ? "-" : "", d.digits, d.text,
             (long long)(d.exponent - d.point));
    *value = strtod(plain, NULL);
    const int is_lost = *value == 0 && (int)strspn(d.text, "0") < d.digits;
    return isfinite(*value) && !is_lost ? 0 : 1;
}

void number_text(double value, char text[NUMBER_TEXT]) {
    if (value == floor(value) && fabs(value) < 1e15) { /* written as 250, not 2.5e+02 */
        snprintf(text, NUMBER_TEXT, "%.0f", value);
        return;
    }
    for (int digits = 1; digits <= 17; digits++) {
        snprintf(text, NUMBER_TEXT, "%.*g", digits, value);
        if (strtod(text, NULL) == value) return;
    }
}
