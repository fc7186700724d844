/* cuBLASLt's interface over plain loops: what its documentation says each call does, on memory that the CPU can read. It
 * refuses what the real one would refuse. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { OK = 0, INVALID = 7 };
typedef struct {
    int type;
    uint64_t rows, cols;
    int64_t ld;
} Layout;
typedef struct {
    int compute, scale, transa, transb, epilogue;
    const void *bias;
} Desc;
typedef struct {
    uint64_t algorithm[8];
    size_t workspace;
    int state;
    float waves;
    int reserved[4];
} Heuristic;

int fake_products; /* how many were asked for */

static float number(const void *at, int type, int64_t i) {
    if (type == 0) return ((const float *)at)[i];
    const uint32_t bits = (uint32_t)((const uint16_t *)at)[i] << 16;
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

static void put(void *at, int type, int64_t i, float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    if (type == 0) ((float *)at)[i] = x;
    else ((uint16_t *)at)[i] = x == x ? (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16) : 0x7fff;
}

int cublasLtCreate(void **handle) { return *handle = malloc(1), OK; }
int cublasLtDestroy(void *handle) { return free(handle), OK; }
int cublasLtMatmulDescCreate(void **desc, int compute, int scale) {
    Desc *d = calloc(1, sizeof *d);
    d->compute = compute, d->scale = scale, d->epilogue = 1;
    *desc = d;
    return compute == 68 && scale == 0 ? OK : INVALID;
}
int cublasLtMatmulDescDestroy(void *desc) { return free(desc), OK; }
int cublasLtMatmulDescSetAttribute(void *desc, int attribute, const void *value, size_t size) {
    Desc *d = desc;
    if (size != (attribute == 8 ? sizeof(void *) : 4)) return INVALID;
    if (attribute == 8) memcpy(&d->bias, value, size);
    else if (attribute == 3) memcpy(&d->transa, value, 4);
    else if (attribute == 4) memcpy(&d->transb, value, 4);
    else if (attribute == 7) memcpy(&d->epilogue, value, 4);
    else return INVALID;
    return OK;
}
int cublasLtMatrixLayoutCreate(void **layout, int type, uint64_t rows, uint64_t cols, int64_t ld) {
    Layout *l = malloc(sizeof *l);
    *l = (Layout){type, rows, cols, ld};
    *layout = l;
    return ld >= (int64_t)rows && (type == 0 || type == 14) ? OK : INVALID;
}
int cublasLtMatrixLayoutDestroy(void *layout) { return free(layout), OK; }
int cublasLtMatmulPreferenceCreate(void **preference) { return *preference = malloc(1), OK; }
int cublasLtMatmulPreferenceDestroy(void *preference) { return free(preference), OK; }
int cublasLtMatmulPreferenceSetAttribute(void *preference, int attribute, const void *value, size_t size) {
    (void)preference, (void)value;
    return attribute == 1 && size == sizeof(size_t) ? OK : INVALID;
}

static int fits(const Desc *d, const Layout *a, const Layout *b, const Layout *c) {
    const uint64_t m = d->transa ? a->cols : a->rows, k = d->transa ? a->rows : a->cols;
    const uint64_t k2 = d->transb ? b->cols : b->rows, n = d->transb ? b->rows : b->cols;
    return k == k2 && m == c->rows && n == c->cols && a->type == b->type && (c->type == a->type || c->type == 0);
}

int cublasLtMatmulAlgoGetHeuristic(void *handle, void *desc, void *a, void *b, void *c, void *d, void *preference,
                                   int asked, Heuristic *results, int *found) {
    (void)handle, (void)preference;
    memset(results, 0, sizeof *results);
    *found = asked > 0 && c == d && fits(desc, a, b, c);
    return *found ? OK : INVALID;
}

int cublasLtMatmul(void *handle, void *desc, const void *alpha, const void *a, void *la, const void *b, void *lb,
                   const void *beta, const void *c, void *lc, void *out, void *ld, const uint64_t *algorithm,
                   void *workspace, size_t size, void *stream) {
    (void)handle, (void)algorithm, (void)workspace, (void)size, (void)stream;
    const Desc *d = desc;
    const Layout *A = la, *B = lb, *C = lc;
    if (!fits(d, A, B, C) || lc != ld || (d->epilogue == 4) != (d->bias != NULL)) return INVALID;
    const int64_t K = (int64_t)(d->transa ? A->rows : A->cols);
    fake_products++;
    for (int64_t j = 0; j < (int64_t)C->cols; j++)
        for (int64_t i = 0; i < (int64_t)C->rows; i++) {
            double sum = 0;
            for (int64_t k = 0; k < K; k++)
                sum += (double)number(a, A->type, d->transa ? k + i * A->ld : i + k * A->ld) *
                       number(b, B->type, d->transb ? j + k * B->ld : k + j * B->ld);
            sum *= *(const float *)alpha;
            if (*(const float *)beta != 0) sum += *(const float *)beta * number(c, C->type, i + j * C->ld);
            if (d->epilogue == 4) sum += number(d->bias, C->type, i);
            put(out, C->type, i + j * C->ld, (float)sum);
        }
    return OK;
}
