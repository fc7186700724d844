/* --data: a file, a folder or a glob, in a folder with a few of each ($TMPDIR/fuzz_paths): {split; data}, a line each. */
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>
#include "fuzz.h"
#include "paths.h"

enum { FOLDER = 256 };
static char folder[FOLDER];

static void prepare(void) {
    static const char *const names[] = {
        "",         "/sub",           "/empty",     "/a",          "/train_0.bin", "/train_1.bin",
        "/val.bin", "/tokenizer.bin", "/sub/x.bin", "/sub/[y].bin"};
    const char *tmp = getenv("TMPDIR");
    snprintf(folder, sizeof folder - 16, "%s/fuzz_paths", tmp ? tmp : "/tmp");
    const size_t end = strlen(folder);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        strcpy(folder + end, names[i]);
        const int fd = i < 3 ? mkdir(folder, 0700) : open(folder, O_CREAT | O_WRONLY, 0600);
        fuzz_expect(fd >= 0 || i < 3);
        if (i >= 3) close(fd);
    }
    folder[end] = 0;
}

static void find(const char *name, const char *split) {
    Paths found = {0};
    const size_t size = strlen(folder) + strlen(name) + 2;
    char *path = malloc(size);
    fuzz_expect(path);
    snprintf(path, size, "%s/%s", folder, name);
    const int rc = fuzz_status(paths_find(&found, path, split));
    fuzz_expect(rc < 0 || found.n > 0);
    for (int i = 1; i < found.n; i++) fuzz_expect(strcmp(found.names[i - 1], found.names[i]) <= 0);
    paths_free(&found);
    free(path);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    Input in = {data, size};
    if (!*folder) prepare();
    char *split = take_line(&in), *name = take_line(&in);
    if (!strstr(name, "..")) find(name, split); /* nothing outside */
    free(split);
    free(name);
    return 0;
}
