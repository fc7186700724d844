/* Whether two tokenizers are the same one. */
#include "text/agree.h"
#include <string.h>

static int same_bytes(const llmc_tokenizer *a, const llmc_tokenizer *b, int id) {
    char x[256], y[256]; /* an id means at most 255 bytes */
    const int n = llmc_tokenizer_decode(a, &id, 1, x, sizeof x), m = llmc_tokenizer_decode(b, &id, 1, y, sizeof y);
    return n == m && n >= 0 && !memcmp(x, y, (size_t)n);
}

int tokenizers_agree(const llmc_tokenizer *a, const llmc_tokenizer *b) {
    const int V = llmc_tokenizer_size(a);
    int same = V == llmc_tokenizer_size(b) && llmc_tokenizer_eot(a) == llmc_tokenizer_eot(b);
    for (int id = 0; same && id < V; id++) same = same_bytes(a, b, id);
    return same;
}
