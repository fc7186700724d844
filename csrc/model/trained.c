/* What is trained: the tensors that --train_only names, and LoRA's adapters. All else is frozen: it has neither a gradient nor
 * moments. */
#include <fnmatch.h>
#include <stdio.h>
#include <string.h>
#include "base/error.h"
#include "base/near.h"
#include "model/layout.h"

enum {
    NAME = 128,             /* a pattern's longest text */
    MOST_RANK = 256,        /* the kernels of adapters keep a row of so many numbers */
    TRAIN_ONLY_TEXT = 2048, /* an adapter file has room for so many bytes beside a path */
};

/* ---- names ---- */

/* Takes the next of the words that commas separate, without spaces around it. Returns what follows it; NULL: there was none. */
static const char *next_word(const char *text, char word[NAME]) {
    while (*text == ' ' || *text == ',') text++;
    size_t n = strcspn(text, ",");
    const char *rest = text + n;
    while (n && text[n - 1] == ' ') n--;
    if (!n) return NULL;
    snprintf(word, NAME, "%.*s", (int)(n < NAME - 1 ? n : NAME - 1), text);
    return rest;
}

/* The names of layer l of a tensor: ours, PyTorch's, and PyTorch's without "transformer." */
enum { NAMES = 3 };
static void names_of(const llmc_tensor *t, int l, char names[NAMES][NAME]) {
    const char *torch_name = t->torch_name, prefix[] = "transformer.";
    const size_t n = strlen(prefix);
    if (t->layers) snprintf(names[0], NAME, "h.%d.%s", l, t->name);
    else snprintf(names[0], NAME, "%s", t->name);
    snprintf(names[1], NAME, torch_name, l);
    snprintf(names[2], NAME, strncmp(torch_name, prefix, n) ? torch_name : torch_name + n, l);
}

static int matches(const char *pattern, const llmc_tensor *t, int l) {
    char names[NAMES][NAME];
    if (!t->size) return 0; /* the model has no such tensor */
    names_of(t, l, names);
    for (int i = 0; i < NAMES; i++)
        if (fnmatch(pattern, names[i], 0) == 0) return 1;
    return 0;
}

static const char *patterns_of(const llmc_room *room) { return room->train_only ? room->train_only : ""; }

int layout_trains(const Layout *layout, const llmc_room *room, int i, int l) {
    const llmc_tensor *t = &layout->table[i];
    char pattern[NAME];
    const char *rest = patterns_of(room);
    if (!t->size || t->kind == LLMC_ADAPTER) return t->size > 0;
    if (!*rest) return !room->lora_rank;
    while ((rest = next_word(rest, pattern)))
        if (matches(pattern, t, l)) return 1;
    return 0;
}

/* ---- patterns that name nothing ---- */

static int names_something(const Layout *layout, const char *pattern) {
    for (int i = 0; i < NUM_PARAM_TENSORS; i++)
        for (int l = 0; l < layers_stored(&layout->table[i]); l++)
            if (matches(pattern, &layout->table[i], l)) return 1;
    return 0;
}

/* The name that is spelt most like the pattern. */
static void find_nearest(const Layout *layout, const char *pattern, char nearest[NAME]) {
    char names[NAMES][NAME];
    int least = 64;
    for (int i = 0; i < NUM_PARAM_TENSORS; i++)
        for (int l = 0; layout->table[i].size && l < layers_stored(&layout->table[i]); l++) {
            names_of(&layout->table[i], l, names);
            for (int n = 0; n < NAMES; n++) {
                const int d = near_distance(pattern, names[n]);
                if (d < least) least = d, memcpy(nearest, names[n], NAME);
            }
        }
    if (least > near_enough(pattern)) *nearest = 0;
}

static int refuse_pattern(const Layout *layout, const char *pattern) {
    const llmc_tensor *t = layout->table;
    const int last = t[P_qkvw].layers - 1;
    char nearest[NAME] = "";
    find_nearest(layout, pattern, nearest);
    CHECK(!*nearest, LLMC_EINVAL, "train_only: no tensor is called '%s': did you mean %s?", pattern, nearest);
    FAIL(LLMC_EINVAL,
         "train_only: no tensor is called '%s': names are wte, wpe, h.0.ln1w ... h.%d.fcprojb, lnfw, lnfb, or "
         "PyTorch's, "
         "and * stands for any letters",
         pattern, last);
}

static int check_patterns(const Layout *layout, const llmc_room *room) {
    char pattern[NAME];
    int words = 0;
    CHECK(strlen(patterns_of(room)) < TRAIN_ONLY_TEXT, LLMC_EINVAL,
          "train_only has %zu bytes, and a checkpoint records at most %d: name many tensors by a pattern, as h.*.attn*",
          strlen(patterns_of(room)), TRAIN_ONLY_TEXT - 1);
    for (const char *rest = patterns_of(room); (rest = next_word(rest, pattern)); words++)
        if (!names_something(layout, pattern)) return refuse_pattern(layout, pattern);
    CHECK(words || !*patterns_of(room), LLMC_EINVAL, "train_only='%s' holds no pattern of names", room->train_only);
    return LLMC_OK;
}

int layout_check_trained(const Layout *layout, const llmc_room *room) {
    CHECK(room->lora_rank >= 0 && room->lora_rank <= MOST_RANK, LLMC_EINVAL, "lora_rank=%d is not in 0..%d",
          room->lora_rank, MOST_RANK);
    CHECK(room->lora_rank <= layout->table[P_lnfw].shape[0], LLMC_EINVAL,
          "lora_rank=%d is more than the model's %lld channels: adapters of so many rows save nothing", room->lora_rank,
          (long long)layout->table[P_lnfw].shape[0]);
    CHECK(!room->lora_rank || room->lora_on, LLMC_EINVAL,
          "lora_on is empty: name the matrices that get adapters, such as qkv,attproj,fc,fcproj");
    CHECK(!room->lora_rank || (room->lora_alpha > 0 && room->lora_alpha < 1e9f), LLMC_EINVAL,
          "lora_alpha=%g is not > 0", (double)room->lora_alpha);
    return room->training ? check_patterns(layout, room) : LLMC_OK;
}

/* ---- LoRA's targets ---- */

enum { TARGETS = (NUM_TRAINABLE - NUM_PARAM_TENSORS) / 2 };
static const char *const adapters[] = {
#define PARAM(...)
#define ADAPTER(name, ...) #name,
#include "tensors.def"
};

/* The number of a target, whose name is its A's without the last letter; -1: there is none of this name. */
static int find_target(const char *word) {
    for (int i = 0; i < TARGETS; i++)
        if (strlen(word) + 1 == strlen(adapters[2 * i]) && !strncmp(word, adapters[2 * i], strlen(word))) return i;
    return -1;
}

int llmc_lora_targets(const char *names) {
    char word[NAME];
    int bits = 0;
    while ((names = next_word(names, word))) {
        const int target = find_target(word);
        CHECK(target >= 0, LLMC_EINVAL, "lora_on: '%s' has no adapters: choose among qkv, attproj, fc, fcproj", word);
        bits |= 1 << target;
    }
    CHECK(bits, LLMC_EINVAL, "lora_on is empty: name the matrices that get adapters, such as qkv,attproj,fc,fcproj");
    return bits;
}

void layout_target_names(int lora_on, char *text, size_t size) {
    size_t n = 0;
    *text = 0;
    for (int i = 0; i < TARGETS; i++)
        if (lora_on >> i & 1)
            n += (size_t)snprintf(text + n, size - n, "%s%.*s", n ? "," : "", (int)strlen(adapters[2 * i]) - 1,
                                  adapters[2 * i]);
}
