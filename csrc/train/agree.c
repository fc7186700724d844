/* Processes that train together must compute the same: what each has is compared by checksums, and the first that differs from
 * rank 0 is named. */
#include <stdlib.h>
#include <string.h>
#include "base/crc32.h"
#include "base/error.h"
#include "base/growing.h"
#include "model/gpt2.h"
#include "train/trainer.h"

typedef struct Item {
    const char *what, *remedy;
    uint32_t crc;
} Item;

static void add_text(Crc32 *crc, const char *text) { crc32_add(crc, text, (int64_t)strlen(text) + 1); }

/* ---- what is compared ---- */

static uint32_t of_version(void) {
    Crc32 crc;
    crc32_start(&crc, CRC_ZLIB);
    add_text(&crc, llmc_version());
    add_text(&crc, llmc_headers());
    return crc.value;
}

/* Kernels of other instruction sets round differently, so the weights of two processes would part. */
static uint32_t of_kernels(const llmc_trainer *t) {
    Crc32 crc;
    crc32_start(&crc, CRC_ZLIB);
    add_text(&crc, llmc_backend());
    add_text(&crc, t->k->name);
    add_text(&crc, t->k->element == LLMC_BF16 ? "bf16" : "fp32");
    return crc.value;
}

/* True for an option that names a file or a folder: machines may have the same under other names. What is in it is compared
 * itself. */
static int is_path(const llmc_trainer *t, const Option *o) {
    const size_t at = o->offset;
    return at == offsetof(llmc_options, data) || at == offsetof(llmc_options, val_data) ||
           at == offsetof(llmc_options, tokenizer) || (at == offsetof(llmc_options, model) && *t->start_file);
}

/* The options that results depend on, and those of the call that decide what the processes do together. */
static uint32_t of_options(const llmc_trainer *t) {
    Crc32 crc;
    char value[OPTION_TEXT];
    const char flags[] = {*t->options.out != 0, t->options.plan != 0, t->options.overwrite != 0, *t->start_file != 0,
                          t->resumed != 0};
    crc32_start(&crc, CRC_ZLIB);
    for (EACH_OPTION(o, &t->options)) {
        if (!option_is_of_run(o) || is_path(t, o)) continue;
        option_value(&t->options, o, value);
        add_text(&crc, value);
    }
    crc32_add(&crc, flags, sizeof flags);
    return crc.value;
}

/* Adds the numbers of a data set, and some of its windows, from its beginning to its end: data may be far larger than memory, so
 * not all of it is read. */
static int add_data(Crc32 *crc, llmc_trainer *t, llmc_loader *d, int *window) {
    enum { LOOKED_AT = 64 };
    const int64_t numbers[] = {llmc_loader_windows(d), llmc_loader_tokens(d), llmc_loader_num_shards(d),
                               llmc_loader_learnt(d)};
    const int64_t n = numbers[0] < LOOKED_AT ? numbers[0] : LOOKED_AT, before = llmc_loader_position(d);
    const int64_t mine = (int64_t)t->team.rank * t->B; /* a batch of this rank begins so far behind the position */
    const int64_t epoch =
        (global_B(t) / numbers[0] + 1) * numbers[0]; /* an epoch whose beginning all ranks can go to */
    crc32_add(crc, numbers, sizeof numbers);
    for (int64_t i = 0; i < n; i++) {
        const int64_t at = n > 1 ? (numbers[0] - 1) / (n - 1) * i : 0;
        TRY(llmc_loader_set_position(d, epoch + at - mine));
        TRY(llmc_loader_next(d, window, window + (int64_t)t->B * t->T));
        crc32_add(crc, window, (int64_t)t->T * (int64_t)sizeof *window);
    }
    return llmc_loader_set_position(d, before);
}

static void add_tokenizer(Crc32 *crc, const llmc_trainer *t) {
    int64_t size = 0;
    const void *bytes = t->tokenizer ? llmc_tokenizer_bytes(t->tokenizer, &size) : NULL;
    crc32_add(crc, bytes, size);
}

static int *new_window(const llmc_trainer *t) {
    int *window = malloc(2 * (size_t)t->B * (size_t)t->T * sizeof *window);
    if (!window) llmc_fail(LLMC_ENOMEM, "no memory for a batch of tokens");
    return window;
}

int agree_on_set(llmc_trainer *t, llmc_loader *d, uint32_t *checksum) {
    Crc32 crc;
    int *window = new_window(t);
    if (!window) return LLMC_ENOMEM;
    crc32_start(&crc, CRC_ZLIB);
    const int rc = add_data(&crc, t, d, window);
    free(window);
    return *checksum = crc.value, rc;
}

static int of_data(llmc_trainer *t, uint32_t *value) {
    Crc32 crc;
    int *window = new_window(t);
    if (!window) return LLMC_ENOMEM;
    crc32_start(&crc, CRC_ZLIB);
    int rc = t->train ? add_data(&crc, t, t->train, window) : LLMC_OK;
    for (int i = 0; t->train && rc == 0 && i < t->num_vals; i++) rc = add_data(&crc, t, t->vals[i].loader, window);
    free(window);
    add_tokenizer(&crc, t);
    return *value = crc.value, rc;
}

enum { AT_A_TIME = 1 << 16 }; /* numbers */

/* Adds layer l of a block's tensor i, all n numbers of it. */
static int add_layer(Crc32 *crc, const llmc_model *m, int block, int i, int l, int64_t n, float *x) {
    for (int64_t from = 0; from < n; from += AT_A_TIME) {
        const int64_t turn = n - from < AT_A_TIME ? n - from : AT_A_TIME;
        TRY(gpt2_read(m, block, i, l, from, turn, x));
        crc32_add(crc, x, turn * (int64_t)sizeof *x);
    }
    return LLMC_OK;
}

static int add_block(Crc32 *crc, const llmc_model *m, int block, float *x) {
    const llmc_tensor *row;
    for (int i = 0; (row = llmc_model_tensor(m, i)) && row->kind <= LLMC_ADAPTER; i++)
        for (int l = 0; row->size && l < layers_stored(row); l++)
            if (block == LLMC_PARAMS || llmc_model_gradient_at(m, i, l) >= 0)
                TRY(add_layer(crc, m, block, i, l, row->size, x));
    return LLMC_OK;
}

/* All parameters, and the moments of a run that goes on, unless each process has a share of them, or its own. */
static int of_weights(const llmc_trainer *t, uint32_t *value) {
    Crc32 crc;
    float *x = malloc(AT_A_TIME * sizeof *x);
    CHECK(x, LLMC_ENOMEM, "no memory to compare weights");
    crc32_start(&crc, CRC_ZLIB);
    const int same_moments = t->resumed && !t->options.zero && !t->options.diloco;
    int rc = add_block(&crc, t->model, LLMC_PARAMS, x);
    for (int block = LLMC_M; rc == 0 && same_moments && block <= LLMC_V; block++)
        rc = add_block(&crc, t->model, block, x);
    free(x);
    const int64_t place[] = {t->step, t->tokens, llmc_loader_position(t->train)};
    crc32_add(&crc, place, sizeof place);
    return *value = crc.value, rc;
}

/* ---- the comparison ---- */

/* Every process gets the checksums of all, world by n of them. */
static int compare(llmc_trainer *t, const Item *items, int n) {
    double *all = calloc((size_t)t->team.world * (size_t)n, sizeof *all);
    CHECK(all, LLMC_ENOMEM, "no memory to compare %d processes", t->team.world);
    for (int i = 0; i < n; i++) all[t->team.rank * n + i] = items[i].crc;
    int rc = meet_sum(t, all, t->team.world * n);
    for (int i = 0; rc == 0 && i < n; i++)
        for (int rank = 1; rc == 0 && rank < t->team.world; rank++)
            if (all[rank * n + i] != all[i])
                rc = llmc_fail(LLMC_EINVAL, "rank %d has %s than rank 0: %s", rank, items[i].what, items[i].remedy);
    free(all);
    return rc;
}

int agree_on_setup(llmc_trainer *t) {
    if (t->team.world == 1) return LLMC_OK;
    Item items[] = {
        {"another version of pyllmc", "install the same everywhere", of_version()},
        {"kernels of another instruction set", "set PYLLMC_ISA, or --device and --precision, to what all machines have",
         of_kernels(t)},
        {"other data", "copy the same files to every machine, or name a folder that all of them see", 0},
        {"other options", "give all processes the same", of_options(t)},
    };
    TRY(meet(t, of_data(t, &items[2].crc)));
    return compare(t, items, sizeof items / sizeof *items);
}

int agree_on_weights(llmc_trainer *t) {
    if (t->team.world == 1) return LLMC_OK;
    Item item = {"other weights", "copy the same file to every machine, or name one that all of them see", 0};
    TRY(meet(t, of_weights(t, &item.crc)));
    return compare(t, &item, 1);
}
