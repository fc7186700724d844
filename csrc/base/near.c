/* How far a name that nobody knows is from the known ones. */
#include "base/near.h"
#include <string.h>

int near_distance(const char *a, const char *b) {
    int row[64];
    const int n = (int)strlen(b);
    if (n >= 63 || strlen(a) >= 63) return 64;
    for (int j = 0; j <= n; j++) row[j] = j;
    for (int i = 1; *a; i++, a++) {
        int diagonal = row[0];
        row[0] = i;
        for (int j = 1; j <= n; j++) {
            const int change = diagonal + (*a != b[j - 1]), drop = (row[j] < row[j - 1] ? row[j] : row[j - 1]) + 1;
            diagonal = row[j];
            row[j] = change < drop ? change : drop;
        }
    }
    return row[n];
}

int near_enough(const char *name) {
    const int length = (int)strlen(name);
    return length > 3 ? (length + 1) / 3 : 1;
}
