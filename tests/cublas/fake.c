/* cuBLASLt's interface over plain loops: each call does what its documentation says, on memory that the CPU can read.
 * It refuses what the real library would refuse, and the calls that a test names. */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* ---- settings and counts for a test ---- */

int fake_products;       /* products computed */
int fake_epilogues[3];   /* products with GELU, with its slope, and with sums */
int fake_checks;         /* algorithms checked */
char fake_fail[64];      /* the call of this name fails */
int fake_refuse;         /* there is no algorithm for this epilogue */
int fake_wrong;          /* this epilogue is computed wrongly */
int fake_algorithms = 3; /* algorithms that the heuristic has */
int fake_fastest;        /* the fastest algorithm; -1: none */

enum { OK = 0, FAILED = 14, INVALID = 7, NOT_SUPPORTED = 15 };
enum { BIAS = 4, GELU_AUX_BIAS = 164, DGELU = 192, BGRADB = 512, MAGIC = 0x600d };
#define MAY_FAIL \
    if (!strcmp(fake_fail, __func__)) return FAILED

typedef struct {
    int type;
    uint64_t rows, cols;
    int64_t ld;
} Layout;
typedef struct {
    int compute, scale, transa, transb, epilogue;
    void *vector, *aux;
    int64_t aux_ld;
} Desc;
typedef struct {
    size_t workspace;
    uint32_t reduction, align[4];
} Preference;
typedef struct {
    uint64_t algorithm[8]; /* MAGIC, its number, its alignment */
    size_t workspace;
    int state;
    float waves;
    int reserved[4];
} Heuristic;

/* ---- numbers ---- */

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

static double sigmoid_of_gelu(double x) { return 1 / (1 + exp(-1.5957691216057308 * (x + 0.044715 * x * x * x))); }
static double gelu(double x) { return x < -50 ? 0 : x * sigmoid_of_gelu(x); }
static double slope(double x) {
    const double s = sigmoid_of_gelu(x);
    return fabs(x) > 50 ? x > 0 : s + x * s * (1 - s) * 1.5957691216057308 * (1 + 0.134145 * x * x);
}

/* ---- objects ---- */

size_t cublasLtGetVersion(void) { return 130000; }
int cublasLtCreate(void **handle) {
    MAY_FAIL;
    return *handle = malloc(1), OK;
}
int cublasLtDestroy(void *handle) { return free(handle), OK; }
int cublasLtMatmulDescCreate(void **desc, int compute, int scale) {
    MAY_FAIL;
    Desc *d = calloc(1, sizeof *d);
    d->compute = compute, d->scale = scale, d->epilogue = 1;
    *desc = d;
    return compute == 68 && scale == 0 ? OK : INVALID;
}
int cublasLtMatmulDescDestroy(void *desc) { return free(desc), OK; }
int cublasLtMatmulDescSetAttribute(void *desc, int attribute, const void *value, size_t size) {
    MAY_FAIL;
    Desc *d = desc;
    if (size != (attribute == 8 || attribute == 11 || attribute == 12 ? 8 : 4)) return INVALID;
    if (attribute == 3) memcpy(&d->transa, value, 4);
    else if (attribute == 4) memcpy(&d->transb, value, 4);
    else if (attribute == 7) memcpy(&d->epilogue, value, 4);
    else if (attribute == 8) memcpy(&d->vector, value, size);
    else if (attribute == 11) memcpy(&d->aux, value, size);
    else if (attribute == 12) memcpy(&d->aux_ld, value, size);
    else return INVALID;
    return OK;
}
int cublasLtMatrixLayoutCreate(void **layout, int type, uint64_t rows, uint64_t cols, int64_t ld) {
    MAY_FAIL;
    Layout *l = malloc(sizeof *l);
    *l = (Layout){type, rows, cols, ld};
    *layout = l;
    return ld >= (int64_t)rows && (type == 0 || type == 14) ? OK : INVALID;
}
int cublasLtMatrixLayoutDestroy(void *layout) { return free(layout), OK; }
int cublasLtMatmulPreferenceCreate(void **preference) {
    MAY_FAIL;
    Preference *p = calloc(1, sizeof *p);
    for (int i = 0; i < 4; i++) p->align[i] = 256;
    return *preference = p, OK;
}
int cublasLtMatmulPreferenceDestroy(void *preference) { return free(preference), OK; }
int cublasLtMatmulPreferenceSetAttribute(void *preference, int attribute, const void *value, size_t size) {
    MAY_FAIL;
    Preference *p = preference;
    if (size != (attribute == 1 ? sizeof(size_t) : 4)) return INVALID;
    if (attribute == 1) memcpy(&p->workspace, value, size);
    else if (attribute == 3) memcpy(&p->reduction, value, size);
    else if (attribute >= 5 && attribute <= 8) memcpy(&p->align[attribute - 5], value, size);
    else return INVALID;
    return OK;
}

/* ---- algorithms ---- */

static int fits(const Desc *d, const Layout *a, const Layout *b, const Layout *c) {
    const uint64_t m = d->transa ? a->cols : a->rows, k = d->transa ? a->rows : a->cols;
    const uint64_t k2 = d->transb ? b->cols : b->rows, n = d->transb ? b->rows : b->cols;
    const int aux = d->epilogue == GELU_AUX_BIAS || d->epilogue == DGELU;
    const int vector = d->epilogue == GELU_AUX_BIAS || d->epilogue == BIAS || d->epilogue == BGRADB;
    if (d->epilogue != 1 && !aux && !vector) return 0;
    if (aux && (!d->aux || (uintptr_t)d->aux % 16 || d->aux_ld % 8 || d->aux_ld < (int64_t)c->rows)) return 0;
    if (vector != (d->vector != NULL)) return 0;
    return k == k2 && m == c->rows && n == c->cols && a->type == b->type && (c->type == a->type || c->type == 0);
}

int cublasLtMatmulAlgoGetHeuristic(void *handle, void *desc, void *a, void *b, void *c, void *d, void *preference,
                                   int asked, Heuristic *results, int *found) {
    (void)handle;
    MAY_FAIL;
    const Preference *p = preference;
    *found = 0;
    if (c != d || !fits(desc, a, b, c) || !p->workspace || p->reduction != 2) return INVALID;
    if (fake_refuse && ((Desc *)desc)->epilogue == fake_refuse) return NOT_SUPPORTED;
    uint64_t align = 256;
    for (int i = 0; i < 4; i++) align = p->align[i] < align ? p->align[i] : align;
    *found = fake_algorithms < asked ? fake_algorithms : asked;
    for (int i = 0; i < *found; i++) results[i] = (Heuristic){.algorithm = {MAGIC, (uint64_t)i, align}};
    return OK;
}

int cublasLtMatmulAlgoCheck(void *handle, void *desc, void *a, void *b, void *c, void *d, const uint64_t *algorithm,
                            Heuristic *result) {
    (void)handle;
    fake_checks++;
    MAY_FAIL;
    memset(result, 0, sizeof *result);
    return c == d && fits(desc, a, b, c) && algorithm[0] == MAGIC ? OK : NOT_SUPPORTED;
}

/* ---- the product ---- */

typedef struct {
    const Desc *d;
    const void *a, *b;
    const Layout *A, *B;
    int64_t K;
    int last_first; /* adds up from the end, in float */
} Product;

static float first(const Product *p, int64_t i, int64_t k) {
    return number(p->a, p->A->type, p->d->transa ? k + i * p->A->ld : i + k * p->A->ld);
}
static float second(const Product *p, int64_t k, int64_t j) {
    return number(p->b, p->B->type, p->d->transb ? j + k * p->B->ld : k + j * p->B->ld);
}

static double element(const Product *p, int64_t i, int64_t j) {
    double sum = 0;
    float backwards = 0;
    for (int64_t k = 0; k < p->K; k++) sum += (double)first(p, i, k) * second(p, k, j);
    for (int64_t k = p->K; p->last_first && k-- > 0;) backwards += first(p, i, k) * second(p, k, j);
    return p->last_first ? backwards : sum;
}

static void add_rows(const Product *p, const Layout *C) {
    for (int64_t j = 0; j < (int64_t)C->cols; j++) {
        double sum = 0;
        for (int64_t k = 0; k < p->K; k++) sum += second(p, k, j);
        put(p->d->vector, C->type, j, (float)sum);
    }
}

/* GELU takes the exact sum; aux gets the sum as it is stored. */
static double finish(const Desc *d, const Layout *C, double sum, int64_t i, int64_t j) {
    if (d->epilogue == BIAS || d->epilogue == GELU_AUX_BIAS) sum += number(d->vector, C->type, i);
    if (d->epilogue == GELU_AUX_BIAS) put(d->aux, C->type, i + j * d->aux_ld, (float)sum), sum = gelu(sum);
    if (d->epilogue == DGELU) sum *= slope(number(d->aux, C->type, i + j * d->aux_ld));
    return fake_wrong && fake_wrong == d->epilogue ? sum + 0.25 : sum;
}

static void count(int epilogue) {
    fake_products++;
    fake_epilogues[0] += epilogue == GELU_AUX_BIAS;
    fake_epilogues[1] += epilogue == DGELU;
    fake_epilogues[2] += epilogue == BGRADB;
}

static int aligned(const uint64_t *algorithm, const void *a, const void *b, const void *out) {
    return ((uintptr_t)a | (uintptr_t)b | (uintptr_t)out) % algorithm[2] == 0;
}

int cublasLtMatmul(void *handle, void *desc, const void *alpha, const void *a, void *la, const void *b, void *lb,
                   const void *beta, const void *c, void *lc, void *out, void *ld, const uint64_t *algorithm,
                   void *workspace, size_t size, void *stream) {
    (void)handle, (void)workspace, (void)size, (void)stream;
    MAY_FAIL;
    const Desc *d = desc;
    const Layout *A = la, *C = lc;
    const Product p = {d, a, b, A, lb, (int64_t)(d->transa ? A->rows : A->cols), algorithm[1] == 2};
    if (!fits(d, A, lb, C) || lc != ld || algorithm[0] != MAGIC || !aligned(algorithm, a, b, out)) return INVALID;
    if (fake_fastest >= 0 && (int)algorithm[1] != fake_fastest) nanosleep(&(struct timespec){0, 200000}, NULL);
    count(d->epilogue);
    for (int64_t j = 0; j < (int64_t)C->cols; j++)
        for (int64_t i = 0; i < (int64_t)C->rows; i++) {
            double sum = element(&p, i, j) * *(const float *)alpha;
            if (*(const float *)beta != 0) sum += *(const float *)beta * number(c, C->type, i + j * C->ld);
            put(out, C->type, i + j * C->ld, (float)finish(d, C, sum, i, j));
        }
    if (d->epilogue == BGRADB) add_rows(&p, C);
    return OK;
}
