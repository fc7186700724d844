/* Tells int32 ids from pairs of uint16 ids. The upper half of an int32 id is small, and 0 for most vocabularies. If two
 * uint16 ids stand in its place, the upper half is as large as the lower one. */
#include <stddef.h>
#include <string.h>
#include "data/rawids.h"

enum { MOST_HIGH = 15 }; /* the largest upper half of an int32 id, for a vocabulary of at most 2^20 */
enum { FEW_IDS = 1024 }; /* a sample with smaller ids in both halves is pairs of uint16 */

static const struct Foreign {
    const char *start, *what;
    int64_t length;
} foreign[] = {{"\x93NUMPY", "it is a NumPy array", 6},
               {"PK\x03\x04", "it is a zip archive, as .npz and PyTorch's .pt are", 4},
               {"\x1f\x8b", "it is compressed (gzip)", 2}};

static int is_text(const unsigned char *head, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        if ((head[i] < 32 || head[i] > 126) && (!head[i] || !strchr("\t\n\r", head[i]))) return 0;
    return n > 0;
}

static int are_pairs(const unsigned char *head, int64_t n) {
    int64_t large = 0, some = 0;
    int largest = 0;
    for (int64_t i = 0; i < n; i++) {
        const int low = head[4 * i] | head[4 * i + 1] << 8, high = head[4 * i + 2] | head[4 * i + 3] << 8;
        large += high > MOST_HIGH, some += high > 0;
        if (low > largest) largest = low;
    }
    return 4 * large > n || (4 * some > n && largest < FEW_IDS);
}

const char *rawids_kind(const unsigned char *head, int64_t n, int64_t size) {
    for (size_t i = 0; i < sizeof foreign / sizeof *foreign; i++)
        if (n >= foreign[i].length && !memcmp(head, foreign[i].start, (size_t)foreign[i].length))
            return foreign[i].what;
    if (is_text(head, n)) return "it looks like text";
    if (size % 2 == 0 && are_pairs(head, n / 4)) return "uint16";
    return size % 4 ? "" : "int32";
}
