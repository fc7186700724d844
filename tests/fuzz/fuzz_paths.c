/* --data: a file, a folder or a glob, in a folder with a few of each ($TMPDIR/fuzz/paths): {split; data}, a line each. */
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>
#include "fuzz.h"
#include "data/shards.h"

static const char *folder;

static void prepare(void) {
    static const char *const names[] = {"paths",
                                        "paths/sub",
                                        "paths/empty",
                                        "paths/a",
                                        "paths/train_0.bin",
                                        "paths/train_1.bin",
                                        "paths/val.bin",
                                        "paths/tokenizer.bin",
                                        "paths/sub/x.bin",
                                        "paths/sub/[y].bin"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        const char *path = fuzz_place(0, names[i]);
        const int fd = i < 3 ? mkdir(path, 0700) : open(path, O_CREAT | O_WRONLY, 0600);
        fuzz_expect(fd >= 0 || i < 3);
        if (i >= 3) close(fd);
    }
    folder = fuzz_place(0, "paths");
}

static void find(const char *name, const char *split) {
    Shards found = {0};
    const size_t size = strlen(folder) + strlen(name) + 2;
    char *path = malloc(size);
    fuzz_expect(path);
    snprintf(path, size, "%s/%s", folder, name);
    const int rc = fuzz_status(shards_find(&found, path, split));
    fuzz_expect(rc < 0 || (shards_check(&found, path, split) == 0) == (found.n > 0));
    for (int i = 1; i < found.n; i++) fuzz_expect(strcmp(found.names[i - 1], found.names[i]) <= 0);
    shards_free(&found);
    free(path);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    Input in = {data, size};
    if (!folder) prepare();
    char *split = take_line(&in), *name = take_line(&in);
    if (!strstr(name, "..")) find(name, split); /* stays in the folder */
    free(split);
    free(name);
    return 0;
}
