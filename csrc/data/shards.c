/* Makes a sorted list of token files from --data. */
#include <dirent.h>
#include <errno.h>
#include <glob.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include "base/binfile.h"
#include "base/error.h"
#include "data/shards.h"
#define NO_DATA "make the data with python -m pyllmc.prepro, or check the path"

static int shards_add(Shards *shards, const char *folder, const char *name) {
    if ((size_t)shards->n == shards->capacity) {
        const size_t capacity = shards->capacity ? 2 * shards->capacity : 16;
        char **names = realloc(shards->names, capacity * sizeof *names);
        CHECK(names, LLMC_ENOMEM, "no memory for a list of files");
        shards->names = names, shards->capacity = capacity;
    }
    const size_t size = strlen(folder) + strlen(name) + 2;
    char *path = malloc(size);
    CHECK(path, LLMC_ENOMEM, "no memory for a list of files");
    snprintf(path, size, "%s%s%s", folder, *folder && folder[strlen(folder) - 1] != '/' ? "/" : "", name);
    shards->names[shards->n++] = path;
    return LLMC_OK;
}

static int is_bin(const char *name, const char *split) {
    const size_t n = strlen(name), prefix = strlen(split);
    return n >= prefix + 4 && !strncmp(name, split, prefix) && !strcmp(name + n - 4, ".bin");
}

static int list_folder(Shards *shards, const char *folder, const char *split) {
    DIR *dir = opendir(folder);
    CHECK(dir, LLMC_EIO, "the folder %s cannot be read: %s%s", folder, strerror(errno), remedy_for(errno));
    int rc = LLMC_OK;
    for (struct dirent *entry; rc == 0 && (entry = readdir(dir));) {
        if (is_bin(entry->d_name, split)) rc = shards_add(shards, folder, entry->d_name);
        else if (is_bin(entry->d_name, "") && strcmp(entry->d_name, "tokenizer.bin"))
            snprintf(shards->other, sizeof shards->other, "%.200s", entry->d_name);
    }
    closedir(dir);
    return rc;
}

static int list_glob(Shards *shards, const char *pattern) {
    glob_t found;
    int rc = LLMC_OK;
    const int failed = glob(pattern, GLOB_NOSORT, NULL, &found);
    CHECK(failed != GLOB_NOSPACE, LLMC_ENOMEM, "no memory for the files that match %s", pattern);
    if (failed == 0) {
        for (size_t i = 0; rc == 0 && i < found.gl_pathc; i++)
            if (!is_folder(found.gl_pathv[i])) rc = shards_add(shards, "", found.gl_pathv[i]);
        globfree(&found);
    }
    return rc;
}

static int by_bytes(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

int shards_find(Shards *shards, const char *data, const char *split) {
    struct stat s;
    CHECK(*data, LLMC_EINVAL, "no data is named: " NO_DATA);
    if (is_folder(data)) TRY(list_folder(shards, data, split));
    else if (stat(data, &s) == 0) TRY(shards_add(shards, "", data));
    else TRY(list_glob(shards, data));
    if (shards->n) qsort(shards->names, (size_t)shards->n, sizeof *shards->names, by_bytes);
    return LLMC_OK;
}

int shards_check(const Shards *shards, const char *data, const char *split) {
    CHECK(shards->n || !*shards->other, LLMC_EIO, "%s has no %s*.bin; it has %s: name the files with a glob instead",
          data, split, shards->other);
    CHECK(shards->n || !is_folder(data), LLMC_EIO, "%s has no %s*.bin: " NO_DATA, data, split);
    CHECK(shards->n, LLMC_EIO, "no token file matches %s: " NO_DATA, data);
    return LLMC_OK;
}

void shards_free(Shards *shards) {
    for (int i = 0; i < shards->n; i++) free(shards->names[i]);
    free(shards->names);
}
