/* Operands in the form that amx.h multiplies. A panel is 32 rows of A, or 32 columns of B; a step of it is 32 products deep
 * and consists of two tiles of 1 KiB, one after the other:
 *
 *   A    16 rows of 32 numbers each; the upper 16 rows, then the lower
 *   B    16 rows of 16 words; word n of row k holds the numbers 2k and 2k + 1 of column n; the left 16 columns, then the right
 *
 * Numbers past the edge of an operand are zeros. */
#ifndef GEMM_AMX_PACK_H
#define GEMM_AMX_PACK_H
#include "gemm_block.h"
#include "amx.h"

enum { PANEL = 2 * TILE, STEP_BYTES = 2 * TILE_BYTES };

/* Panel i begins at at + i * stride, and its steps follow each other. */
typedef struct Panels {
    char *at;
    int64_t stride;
} Panels;

static inline char *step_of(Panels p, int64_t panel, int64_t step) {
    return p.at + panel * p.stride + step * STEP_BYTES;
}

/* Places VL vectors of words in a tile, in the rows from `row` on and the words from `word` on; transposed if turned. */
INLINE void place_words(char *tile, int row, int word, vf r[VL], const int turned) {
    if (turned) vf_transpose(r);
    for (int i = 0; i < VL; i++)
        vf_store((float *)tile + ((turned ? word : row) + i) * TILE + (turned ? row : word), r[i]);
}

/* A step whose numbers lie in rows that become a panel's rows, or its columns if turned: the rows i..i+rows, the numbers
 * k..K of them, at most 32. */
INLINE void step_of_rows(char *dst, const Operand *x, int64_t i, int rows, int64_t k, int64_t K, const int turned,
                         const int format) {
    for (int row = 0; row < PANEL; row += VL) UNROLL for (int word = 0; word < TILE; word += VL) {
            vf r[VL];
            UNROLL for (int l = 0; l < VL; l++) {
                const int64_t from = k + 2 * word;
                const void *at = weight_row(x->at, format, x->ld, i + row + l);
                r[l] = row + l < rows && from < K ? (vf)weight_pairs(at, from, K, format) : (vf){0};
            }
            place_words(dst + row / TILE * TILE_BYTES, row % TILE, word, r, turned);
        }
}

/* A step whose numbers lie in rows k, k + 1, ... that are multiplied in turn: rows k..K, at most 32, of which the numbers
 * j..j+cols become the columns of B, or the rows of A if turned. */
INLINE void step_of_columns(char *dst, const Operand *x, int64_t k, int64_t K, int64_t j, int cols, const int turned) {
    for (int pair = 0; pair < TILE; pair += VL)
        for (int col = 0; col < PANEL; col += VL) {
            vf r[VL];
            UNROLL for (int l = 0; l < VL; l++) {
                const int64_t row = k + 2 * (pair + l);
                const floatX *at = x->at + row * x->ld + j + col;
                const int lanes = col < cols ? LANES(col, cols) : 0;
                const vh even = row < K && lanes ? vh_load_n(at, lanes) : (vh){0};
                const vh odd = row + 1 < K && lanes ? vh_load_n(at + x->ld, lanes) : (vh){0};
                r[l] = (vf)vh_interleave(even, odd);
            }
            place_words(dst + col / TILE * TILE_BYTES, pair, col % TILE, r, turned);
        }
}

/* The same with the sizes of a whole step as constants. */
#define WHOLE_OR(is_whole, whole, part) \
    do {                                \
        if (is_whole) whole;            \
        else part;                      \
    } while (0)

APART void pack_rows(char *dst, const Operand *x, int64_t i, int rows, int64_t k, int64_t K, int turned) {
    const int whole = rows == PANEL && K - k >= DEPTH;
#define STEP(F, T)                                                      \
    WHOLE_OR(whole, step_of_rows(dst, x, i, PANEL, k, k + DEPTH, T, F), \
             step_of_rows(dst, x, i, rows, k, smaller(K, k + DEPTH), T, F))
    if (!turned) STEP(LLMC_BF16, 0);
    else FOR_FORMAT(x->format, STEP(F, 1));
#undef STEP
}

APART void pack_columns(char *dst, const Operand *x, int64_t k, int64_t K, int64_t j, int cols, int turned) {
    const int whole = cols == PANEL && K - k >= DEPTH;
#define STEP(T)                                                         \
    WHOLE_OR(whole, step_of_columns(dst, x, k, k + DEPTH, j, PANEL, T), \
             step_of_columns(dst, x, k, smaller(K, k + DEPTH), j, cols, T))
    if (turned) STEP(1);
    else STEP(0);
#undef STEP
}

/* One step of panel `panel`: of A's rows, or of B's columns if `columns`. The operand has `count` rows (columns), and K
 * numbers in each. */
static inline void pack_step(char *dst, const Operand *x, int columns, int64_t panel, int64_t count, int64_t k,
                             int64_t K) {
    const int64_t i = panel * PANEL;
    const int n = (int)smaller(PANEL, count - i);
    if (x->transposed == columns) pack_rows(dst, x, i, n, k, K, columns);
    else pack_columns(dst, x, k, K, i, n, !columns);
}
#endif
