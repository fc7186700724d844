/* Reads STATE of a checkpoint, and one number in it. */
#include "files/state.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/error.h"

int state_read(const llmc_file *checkpoint, char state[STATE_TEXT]) {
    memset(state, 0, STATE_TEXT);
    return llmc_file_section(checkpoint, "STATE   ", state, STATE_TEXT - 1);
}

int state_read_by_path(const char *checkpoint, char state[STATE_TEXT]) {
    llmc_file *file;
    TRY(llmc_file_open(&file, checkpoint));
    const int rc = state_read(file, state);
    llmc_file_free(file);
    return rc;
}

double state_number(const char *state, const char *name, double otherwise) {
    char key[64];
    snprintf(key, sizeof key, "%s=", name);
    const char *at = strstr(state, key);
    while (at && at != state && at[-1] != '\n')
        at = strstr(at + 1, key); /* this was the end of another name: best_val_loss= contains val_loss= */
    return at ? strtod(at + strlen(key), NULL) : otherwise;
}
