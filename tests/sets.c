/* The matrix products, attention and AdamW of instruction sets in bf16, compared with the reference, without Python: an emulator
 * of another CPU runs this program. ./sets ISA... prints each kernel whose error is larger than allowed and ends with 1;
 * without such an error, with 0. tests/house/test_build.py builds and runs it. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/bf16.h"
#include "pyllmc.h"

enum { BUFFERS = 16, LARGEST = 1 << 19, SCRATCH = 1 << 26, BF16 = 2, FLOAT = 4 };
typedef struct Set {
    const Kernels *k;
    Context ctx;
    void *at[BUFFERS]; /* a kernel's operands; those of a set and of the reference begin with the same bytes */
} Set;
static Set reference, fast;
static int wrong;

static double number(const void *x, int bytes, int64_t i) {
    const uint32_t bits = bytes == FLOAT ? ((const uint32_t *)x)[i] : (uint32_t)((const uint16_t *)x)[i] << 16;
    float y;
    memcpy(&y, &bits, sizeof y);
    return (double)y;
}

static void *allocate(size_t bytes) {
    void *at = aligned_alloc(64, bytes);
    if (!at) exit(2);
    memset(at, 0xff, bytes); /* NaN */
    return at;
}

static void open_set(Set *s, const char *isa) {
    *s = (Set){.k = llmc_kernels(isa, LLMC_BF16), .ctx = {.threads = 2, .weight_format = LLMC_BF16}};
    if (!s->k) fprintf(stderr, "%s\n", llmc_last_error()), exit(2);
    s->ctx.workspace = allocate(SCRATCH);
    for (int i = 0; i < BUFFERS; i++) s->at[i] = allocate(LARGEST * FLOAT);
}
static void close_set(Set *s) {
    free(s->ctx.workspace);
    for (int i = 0; i < BUFFERS; i++) free(s->at[i]);
}

/* Both sets get n random numbers in (-scale, scale) in buffer i. */
static void fill(int i, int bytes, int64_t n, float scale) {
    static uint32_t seed = 1;
    float *x = allocate(LARGEST * FLOAT);
    for (int64_t j = 0; j < n; j++) {
        seed = seed * 1664525 + 1013904223;
        x[j] = ((float)(seed >> 8) / 8388608.f - 1) * scale;
    }
    if (bytes == FLOAT) memcpy(reference.at[i], x, (size_t)n * FLOAT);
    else reference.k->store(&reference.ctx, reference.at[i], x, n);
    memcpy(fast.at[i], reference.at[i], (size_t)(n * bytes));
    free(x);
}

/* Buffer i's n numbers may differ by a rounding to bf16, if that is what they are, and by `share` of the largest. */
static void compare(const char *what, int i, int bytes, int64_t n, double share) {
    double largest = 0, worst = 0;
    for (int64_t j = 0; j < n; j++) {
        const double size = fabs(number(reference.at[i], bytes, j));
        if (size > largest) largest = size;
    }
    for (int64_t j = 0; j < n; j++) {
        const double want = number(reference.at[i], bytes, j), error = fabs(number(fast.at[i], bytes, j) - want);
        const double rounding = bytes == FLOAT ? 0 : fabs(want) / 128;
        const double ratio = error / (rounding + share * largest + 1e-30);
        if (!(ratio <= worst)) worst = isnan(ratio) ? INFINITY : ratio;
    }
    if (worst <= 1) return;
    wrong = 1;
    printf("%s: %s: %.3g times the error allowed\n", fast.k->name, what, worst);
}

/* Calls a kernel of both sets; s is the set. */
#define CALL(kernel, ...)                                              \
    for (Set *s = &reference; s; s = s == &reference ? &fast : NULL) { \
        s->k->kernel(&s->ctx, __VA_ARGS__);                            \
    }

static const double PRODUCT = 1e-5, ATTENTION = 0x1p-8;

static void products(int T, int C, int OC) {
    enum { INP, WEIGHT, BIAS, DOUT, PRE, DWEIGHT, DBIAS, OUT, GELU, DINP, INT8, AGAIN };
    const int64_t inp = (int64_t)T * C, out = (int64_t)T * OC, weight = (int64_t)OC * C;
    fill(INP, BF16, inp, 1), fill(WEIGHT, BF16, weight, 1), fill(BIAS, BF16, OC, 1), fill(DOUT, BF16, out, 1);
    fill(PRE, BF16, inp, 4), fill(DWEIGHT, FLOAT, weight, 1), fill(DBIAS, FLOAT, OC, 1);
    CALL(matmul_forward, s->at[OUT], s->at[INP], s->at[WEIGHT], s->at[BIAS], 1, T, C, OC)
    compare("matmul_forward", OUT, BF16, out, PRODUCT);
    CALL(matmul_gelu_forward, s->at[GELU], s->at[OUT], s->at[INP], s->at[WEIGHT], s->at[BIAS], 1, T, C, OC)
    compare("matmul_gelu_forward", OUT, BF16, out, PRODUCT);
    memcpy(reference.at[OUT], fast.at[OUT], (size_t)out * BF16); /* GELU of what is stored */
    reference.k->gelu_forward(&reference.ctx, reference.at[GELU], reference.at[OUT], out);
    compare("gelu", GELU, BF16, out, PRODUCT);
    fast.k->gelu_forward(&fast.ctx, fast.at[AGAIN], fast.at[OUT], out);
    if (memcmp(fast.at[AGAIN], fast.at[GELU], (size_t)out * BF16)) wrong = 1, printf("GELU has other bits again\n");
    CALL(matmul_backward_input, s->at[DINP], s->at[DOUT], s->at[WEIGHT], 1, T, C, OC)
    compare("matmul_backward_input", DINP, BF16, inp, PRODUCT);
    CALL(matmul_gelu_backward_input, s->at[DINP], s->at[DOUT], s->at[WEIGHT], s->at[PRE], 1, T, C, OC)
    compare("matmul_gelu_backward_input", DINP, BF16, inp, PRODUCT);
    for (int accumulate = 1; accumulate >= 0; accumulate--) {
        CALL(matmul_backward_weight, s->at[DWEIGHT], s->at[DBIAS], s->at[DOUT], s->at[INP], accumulate, 1, T, C, OC)
        compare("matmul_backward_weight", DWEIGHT, FLOAT, weight, PRODUCT);
        compare("dbias", DBIAS, FLOAT, OC, PRODUCT);
    }
    fill(DWEIGHT, FLOAT, weight, 1);
    CALL(compress, s->at[INT8], s->at[DWEIGHT], LLMC_INT8, OC, C)
    if (memcmp(reference.at[INT8], fast.at[INT8], (size_t)OC * (C + 4))) wrong = 1, printf("int8 differs\n");
    reference.ctx.weight_format = fast.ctx.weight_format = LLMC_INT8;
    CALL(matmul_forward, s->at[OUT], s->at[INP], s->at[INT8], s->at[BIAS], 1, T, C, OC)
    compare("matmul_forward of int8", OUT, BF16, out, PRODUCT);
    reference.ctx.weight_format = fast.ctx.weight_format = LLMC_BF16;
}

static void attention(int B, int T, int C, int NH, int window) {
    enum { QKV, DOUT, OUT, LSE, DQKV, CACHE, NEW };
    const int64_t out = (int64_t)B * T * C;
    fill(QKV, BF16, 3 * out, 2), fill(DOUT, BF16, out, 1);
    CALL(attention_forward, s->at[OUT], s->at[LSE], s->at[QKV], NULL, NULL, B, T, C, NH, window)
    compare("attention_forward", OUT, BF16, out, ATTENTION);
    compare("lse", LSE, FLOAT, (int64_t)B * NH * T, PRODUCT);
    memcpy(fast.at[OUT], reference.at[OUT], (size_t)out * BF16);
    CALL(attention_backward, s->at[DQKV], s->at[DOUT], s->at[OUT], s->at[LSE], s->at[QKV], NULL, NULL, B, T, C, NH,
         window)
    compare("attention_backward", DQKV, BF16, 3 * out, ATTENTION);
    for (int n = 1; n <= T && n < 40; n = 3 * n + 1) { /* the last n rows are new */
        int pos[8];
        for (int b = 0; b < B; b++) pos[b] = T - n;
        fill(CACHE, BF16, 3 * out, 2), fill(NEW, BF16, (int64_t)3 * B * n * C, 2);
        CALL(attention_cached, s->at[OUT], s->at[CACHE], NULL, s->at[NEW], pos, B, n, T, T, C, NH, window)
        compare("attention_cached", OUT, BF16, (int64_t)B * n * C, ATTENTION);
    }
}

/* A step of AdamW on whole masters, compared with the reference's, and on masters in two halves, which must get the same bits. */
static void update(int64_t n) {
    enum { WHOLE, STORED, M, V, GRAD, UPPER, LOWER, M_OF_HALVES, V_OF_HALVES };
    static const AdamW step = {0.9f, 0.1f, 0.95f, 0.05f, 1e-2f, 4, 1e-8f, 1e-3f};
    fill(WHOLE, FLOAT, n, 1), fill(M, FLOAT, n, 1), fill(V, FLOAT, n, 1), fill(GRAD, FLOAT, n, 1);
    for (int64_t i = 0; i < n; i++) ((float *)reference.at[V])[i] = fabsf(((float *)reference.at[V])[i]);
    memcpy(fast.at[V], reference.at[V], (size_t)n * FLOAT);
    memcpy(fast.at[M_OF_HALVES], fast.at[M], (size_t)n * FLOAT),
        memcpy(fast.at[V_OF_HALVES], fast.at[V], (size_t)n * FLOAT);
    uint16_t *const upper = fast.at[UPPER], *const lower = fast.at[LOWER];
    for (int64_t i = 0; i < n; i++) bf16_split(((float *)fast.at[WHOLE])[i], upper + i, lower + i);
    CALL(adamw, s->at[WHOLE], s->at[STORED], s->at[M], s->at[V], s->at[GRAD], NULL, &step, 1, n)
    compare("adamw", WHOLE, FLOAT, n, 1e-6);
    fast.ctx.split = 1;
    fast.k->adamw(&fast.ctx, lower, fast.at[UPPER], fast.at[M_OF_HALVES], fast.at[V_OF_HALVES], fast.at[GRAD], NULL,
                  &step, 1, n);
    fast.ctx.split = 0;
    int differ = memcmp(fast.at[M], fast.at[M_OF_HALVES], (size_t)n * FLOAT) != 0;
    for (int64_t i = 0; i < n; i++) differ |= bf16_join(upper[i], lower[i]) != ((float *)fast.at[WHOLE])[i];
    if (differ) wrong = 1, printf("%s: halves of masters get other bits\n", fast.k->name);
}

/* The numbers that rounding could spoil are stored as what they are. */
static void special_numbers(void) {
    static const float given[] = {0,         -0.f,      INFINITY,       -INFINITY, 3.4e38f,
                                  0x1.01p0f, 0x1.03p0f, -0x1.010002p0f, 0x1p-126f};
    enum { N = sizeof given / sizeof *given };
    CALL(store, s->at[0], given, N)
    if (memcmp(reference.at[0], fast.at[0], N * BF16)) wrong = 1, printf("%s stores other bits\n", fast.k->name);
    const float nan[] = {NAN, -NAN};
    fast.k->store(&fast.ctx, fast.at[0], nan, 2);
    for (int i = 0; i < 2; i++)
        if (!isnan(number(fast.at[0], BF16, i))) wrong = 1, printf("%s stores no NaN\n", fast.k->name);
}

int main(int argc, char **argv) {
    static const int shapes[][3] = {{1, 1, 1},     {37, 1, 53},   {33, 23, 1},   {67, 113, 59},
                                    {24, 385, 97}, {131, 20, 50}, {1, 768, 40},  {8, 515, 24},
                                    {64, 520, 17}, {65, 520, 18}, {389, 31, 29}, {7, 9, 13}};
    for (int set = 1; set < argc; set++) {
        open_set(&reference, "reference"), open_set(&fast, argv[set]);
        for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) products(shapes[i][0], shapes[i][1], shapes[i][2]);
        attention(1, 1, 1, 1, 0), attention(1, 7, 3, 1, 0), attention(2, 65, 26, 2, 0), attention(1, 131, 40, 2, 33);
        attention(1, 200, 64, 1, 0);
        update(1), update(1003);
        special_numbers();
        close_set(&reference), close_set(&fast);
        if (!wrong) printf("%s agrees with the reference\n", argv[set]);
    }
    return wrong;
}
