/* Reads STATE of a checkpoint, and one number in it. */
#include "files/state.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/error.h"
#include "files/modelfile.h"

int state_read(const llmc_file *checkpoint, char state[STATE_TEXT]) {
    const int64_t size = checkpoint->sections[STATE].size;
    CHECK(size < STATE_TEXT, LLMC_EFORMAT,
          "%s is damaged: its section STATE has %lld bytes, expected at most %d; use another copy or an earlier "
          "checkpoint",
          checkpoint->path, (long long)size, STATE_TEXT - 1);
    return modelfile_section(checkpoint, STATE, state, STATE_TEXT);
}

int state_read_by_path(const char *checkpoint, char state[STATE_TEXT]) {
    llmc_file *file;
    TRY(llmc_file_open(&file, checkpoint));
    const int rc = state_read(file, state);
    llmc_file_free(file);
    return rc;
}

const char *state_value(const char *state, const char *name) {
    const size_t n = strlen(name);
    for (const char *line = state; line; line = strchr(line, '\n'), line = line ? line + 1 : NULL)
        if (!strncmp(line, name, n) && line[n] == '=') return line + n + 1;
    return NULL;
}

double state_number(const char *state, const char *name, double otherwise) {
    const char *value = state_value(state, name);
    return value ? strtod(value, NULL) : otherwise;
}

int64_t state_whole(const char *state, const char *name, int64_t otherwise) {
    const char *value = state_value(state, name);
    return value ? strtoll(value, NULL, 10) : otherwise;
}
