/* --val_data: one set of validation data, or several with names, of which the first decides what is best. */
#include <ctype.h>
#include <string.h>
#include <unistd.h>
#include "base/error.h"
#include "files/state.h"
#include "train/trainer.h"

#define SPELLING "write --val_data=PATH or --val_data=NAME=PATH,NAME=PATH"

/* Names stand in lines and in metrics.jsonl. */
static int is_name(const char *text, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (!isalnum((unsigned char)text[i]) && !strchr("._-", text[i])) return 0;
    return n > 0 && n < VAL_NAME;
}

/* Names a set by the last part of its path, without .bin. */
static int name_by_path(ValSet *set) {
    size_t n = strlen(set->path);
    while (n > 1 && set->path[n - 1] == '/') n--;
    size_t begin = n;
    while (begin && set->path[begin - 1] != '/') begin--;
    if (n > begin + 4 && !strncmp(set->path + n - 4, ".bin", 4)) n -= 4;
    CHECK(is_name(set->path + begin, n - begin), LLMC_EINVAL,
          "--val_data: %s gives no name of letters, digits, '.', '_' or '-': write NAME=%s", set->path, set->path);
    snprintf(set->name, sizeof set->name, "%.*s", (int)(n - begin), set->path + begin);
    return LLMC_OK;
}

/* Takes NAME=PATH, or PATH if there is no name, or if a file is called so, or if a part of the path holds the '='. */
static int take(ValSet *set, const char *text, size_t n) {
    CHECK(n, LLMC_EINVAL, "--val_data holds an empty part: " SPELLING);
    memcpy(set->path, text, n); /* the rest of it is 0 */
    const char *equals = memchr(text, '=', n);
    const size_t name = equals ? (size_t)(equals - text) : 0;
    if (!name || access(set->path, F_OK) == 0 || memchr(text, '/', name)) return LLMC_OK;
    CHECK(is_name(text, name), LLMC_EINVAL,
          "--val_data: %.*s is no name for a set: take at most %d of the letters a to z, digits, '.', '_' and '-'",
          (int)name, text, VAL_NAME - 1);
    CHECK(name + 1 < n, LLMC_EINVAL, "--val_data: %s names no path: " SPELLING, set->path);
    memcpy(set->name, text, name);
    memset(set->path, 0, n);
    memcpy(set->path, equals + 1, n - name - 1);
    return LLMC_OK;
}

static int check_names(llmc_trainer *t) {
    for (ValSet *set = t->vals; set < t->vals + t->num_vals; set++) {
        if (!*set->name) TRY(name_by_path(set));
        for (const ValSet *other = t->vals; other < set; other++)
            CHECK(strcmp(set->name, other->name), LLMC_EINVAL,
                  "--val_data: two sets are named %s: give them other names, NAME=PATH", set->name);
    }
    return LLMC_OK;
}

/* The length of the first set in a text. A path that is there may hold commas. */
static size_t first_length(const char *text) { return access(text, F_OK) == 0 ? strlen(text) : strcspn(text, ","); }

/* The path of the first set: --data has one of its own where --val_data names none. */
static int first_path(const llmc_options *o, ValSet *set) {
    *set = (ValSet){0};
    if (*o->val_data) return take(set, o->val_data, first_length(o->val_data));
    snprintf(set->path, sizeof set->path, "%s", o->data);
    return LLMC_OK;
}

int64_t valsets_windows(const llmc_trainer *t, const ValSet *set) {
    const int64_t in_all = llmc_loader_windows(set->loader), batches = t->options.val_batches;
    return batches && batches <= in_all / t->unit ? batches * t->unit : in_all;
}

int valsets_same_first(const llmc_trainer *t, const char *state) {
    ValSet before, now;
    const int64_t checksum = state_whole(state, "val_checksum", -1);
    if (!t->num_vals || !t->vals->loader) return 1; /* not open where only memory is planned */
    const int64_t windows = valsets_windows(t, t->vals);
    if (state_whole(state, "val_windows", windows) != windows) return 0;
    if (checksum >= 0) return checksum == t->val_checksum;
    TRY(first_path(t->before, &before)); /* the checkpoint is of a version that kept no checksum */
    TRY(first_path(&t->options, &now));
    return !strcmp(before.path, now.path);
}

int valsets_parse(llmc_trainer *t) {
    const char *text = t->options.val_data;
    if (!*text) return LLMC_OK;
    for (int whole = first_length(text) == strlen(text);; text++) {
        const size_t n = whole ? strlen(text) : strcspn(text, ",");
        CHECK(t->num_vals < MOST_VALS, LLMC_EINVAL, "--val_data names more than %d sets: leave some out", MOST_VALS);
        TRY(take(&t->vals[t->num_vals++], text, n));
        text += n;
        if (!*text) break;
    }
    return t->num_vals > 1 ? check_names(t) : LLMC_OK;
}

void valsets_tell(const llmc_trainer *t, const char *after_first, Growing *text) {
    const char *between = " ";
    for (const ValSet *set = t->vals; set < t->vals + t->num_vals; set++) {
        if (set->loss != set->loss) continue; /* NaN: not known yet */
        growing_add(text, "%s%s%s%.4f%s", between, set->name, *set->name ? " " : "", set->loss,
                    set == t->vals ? after_first : "");
        between = ", ";
    }
}

void valsets_add_metric(const llmc_trainer *t, Growing *line) {
    if (!*t->vals[0].name) return;
    growing_add(line, ", \"val_losses\": {");
    for (const ValSet *set = t->vals; set < t->vals + t->num_vals; set++)
        growing_add(line, "%s\"%s\": %.9g", set == t->vals ? "" : ", ", set->name, set->loss);
    growing_add(line, "}");
}

int llmc_trainer_val(const llmc_trainer *t, int i, const char **name, double *loss) {
    if (i < 0 || i >= t->num_vals) return t->num_vals;
    *name = t->vals[i].name, *loss = t->vals[i].loss;
    return t->num_vals;
}
