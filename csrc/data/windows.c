/* Finds the windows in one pass over a token file. It reads only the half of each window in which the next one may
 * begin. */
#include <stdlib.h>
#include "base/error.h"
#include "data/windows.h"

enum { BUFFER_BYTES = 1 << 18 };

typedef struct Scan {
    const IdRange *ids;
    void *buffer;
    int64_t first, end; /* the ids in the buffer */
} Scan;

static int fill_buffer(Scan *scan, int64_t from) {
    const IdRange *r = scan->ids;
    const int64_t most = BUFFER_BYTES / r->width, left = r->n - from, n = left < most ? left : most;
    scan->first = from, scan->end = from + n;
    return binfile_read(r->file, scan->buffer, n * r->width, r->start + from * r->width);
}

static int64_t find2(const uint16_t *ids, int64_t n, int64_t id) {
    for (int64_t i = 0; i < n; i++)
        if (ids[i] == id) return i;
    return n;
}

static int64_t find4(const uint32_t *ids, int64_t n, int64_t id) {
    for (int64_t i = 0; i < n; i++)
        if (ids[i] == id) return i;
    return n;
}

/* Moves *at to the first `eot` in [*at, last), or to `last`. */
static int find_eot(Scan *scan, int64_t *at, int64_t last, int eot) {
    while (*at < last) {
        if (*at < scan->first || *at >= scan->end) TRY(fill_buffer(scan, *at));
        const int64_t skip = *at - scan->first, end = scan->end < last ? scan->end : last, n = end - *at;
        const int64_t i = scan->ids->width == 2 ? find2((uint16_t *)scan->buffer + skip, n, eot)
                                                : find4((uint32_t *)scan->buffer + skip, n, eot);
        *at += i;
        if (i < n) break;
    }
    return LLMC_OK;
}

static int find_all(int64_t *starts, int64_t *count, Scan *scan, int T, int eot) {
    int64_t s = 0, n = 0;
    while (s < scan->ids->n - T) {
        starts[n++] = s;
        const int64_t last = s + T; /* < ids->n, because it is an id of the window just found */
        s += T / 2 + 1;
        TRY(find_eot(scan, &s, last, eot));
    }
    *count = n;
    return LLMC_OK;
}

int windows_find(int64_t **starts, int64_t *count, const IdRange *ids, int T, int eot) {
    Scan scan = {.ids = ids, .buffer = malloc(BUFFER_BYTES)};
    const int64_t most = (ids->n - T - 1) / (T / 2 + 1) + 1;
    *starts = malloc((size_t)most * sizeof **starts);
    int rc = LLMC_OK;
    if (!scan.buffer || !*starts)
        rc = llmc_fail(LLMC_ENOMEM, "%s: no memory for the starts of %lld windows", ids->file->path, (long long)most);
    else rc = find_all(*starts, count, &scan, T, eot);
    free(scan.buffer);
    if (rc < 0) return rc;
    int64_t *fitted = realloc(*starts, (size_t)*count * sizeof **starts);
    if (fitted) *starts = fitted;
    return LLMC_OK;
}

/* Moves *at, an `eot`, to the last one up to `last`. */
static int find_last(Scan *scan, int64_t *at, int64_t last, int eot) {
    for (int64_t next = *at; next <= last;) {
        *at = next++;
        TRY(find_eot(scan, &next, last + 1, eot));
    }
    return LLMC_OK;
}

/* Counts the windows, and writes their starts, at most so many, unless `starts` is NULL. */
static int part_all(int64_t *starts, int64_t most, int64_t *count, int64_t *cut, Scan *scan, int T, int eot, int pack) {
    const int64_t end = scan->ids->n - 1;
    int begins = 1; /* the window starts where a document does */
    *count = *cut = 0;
    for (int64_t s = 0, next; s < end; s = next) {
        const int64_t last = end - s < T ? end : s + T;
        CHECK(!starts || *count < most, LLMC_EFORMAT, "%s changed while it was read; start again",
              scan->ids->file->path);
        if (starts) starts[*count] = s;
        ++*count;
        next = eot >= 0 ? s + 1 : last + 1;
        if (eot >= 0) TRY(find_eot(scan, &next, last + 1, eot));
        const int found = next <= last;
        if (!found) next = last;
        *cut += eot >= 0 && !found && begins && last < end;
        begins = found;
        if (pack && found && end - s <= T) next = end;
        else if (pack && found) TRY(find_last(scan, &next, last, eot));
    }
    if (starts) starts[*count] = end;
    return LLMC_OK;
}

int windows_part(int64_t **starts, int64_t *count, int64_t *cut, const IdRange *ids, int T, int eot, int pack) {
    Scan scan = {.ids = ids, .buffer = malloc(BUFFER_BYTES)};
    int rc = scan.buffer ? part_all(NULL, 0, count, cut, &scan, T, eot, pack) : LLMC_ENOMEM;
    if (rc == 0) *starts = malloc(((size_t)*count + 1) * sizeof **starts);
    if (!scan.buffer || (rc == 0 && !*starts))
        rc = llmc_fail(LLMC_ENOMEM, "%s: no memory for the starts of its windows", ids->file->path);
    if (rc == 0) rc = part_all(*starts, *count, count, cut, &scan, T, eot, pack);
    free(scan.buffer);
    return rc;
}
