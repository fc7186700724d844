/* The choice of cuBLASLt's algorithms. When a shape is first met, the algorithms that the heuristic names are timed once, and
 * the fastest is written to a file. The file decides, for this process and for later ones, so that a machine gives the same
 * bits on every run. If no file can be kept, the heuristic's first algorithm is taken.
 *
 * A line of the file has GPU, library, element and shape; the algorithm's eight words; a checksum. Lines are only added, each
 * in one write, and the first line of a shape counts, so that processes that time at once agree. Lines of another form are
 * skipped. */
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include "cublaslt.cuh"
extern "C" {
#include "../csrc/base/crc32.h"
}

constexpr int ASKED = 8, REPEATS = 5;
constexpr float GAIN = 0.98f; /* a smaller gain is no reason to leave the heuristic's first */
constexpr size_t LINE = 512;

/* ---- the file ---- */

/* A device or a pipe is refused, because to read it might never end. */
static bool may_be_file(const char *path) {
    struct stat is;
    return stat(path, &is) != 0 || S_ISREG(is.st_mode);
}

/* The file is $PYLLMC_CUBLASLT_CACHE, or lies in the user's cache. If the variable is empty there is none, and nothing is
 * timed. */
static bool find_file(char *path, size_t size) {
    const char *named = getenv("PYLLMC_CUBLASLT_CACHE"), *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    int n = 0;
    if (named) n = snprintf(path, size, "%s", named);
    else if (cache && *cache == '/') n = snprintf(path, size, "%s/pyllmc/cublaslt.txt", cache);
    else if (home && *home) n = snprintf(path, size, "%s/.cache/pyllmc/cublaslt.txt", home);
    return n > 0 && (size_t)n < size && may_be_file(path);
}

/* Makes the lowest two folders above the file, at most: the user's cache and ours. */
static void make_folders(const char *path) {
    char folder[4096];
    const char *end = strrchr(path, '/'), *above = end;
    if (!end || end == path || (size_t)(end - path) >= sizeof folder) return;
    while (--above > path && *above != '/') continue;
    for (const char *at : {above, end}) {
        if (at <= path) continue;
        memcpy(folder, path, (size_t)(at - path));
        folder[at - path] = 0;
        mkdir(folder, 0755); /* if this fails, so does the opening of the file */
    }
}

static void write_name(char *name, size_t size, const Handle *h, const Key &k) {
    snprintf(name, size,
             "%s M=%lld N=%lld K=%lld lda=%lld ldb=%lld ta=%d tb=%d sum=%d epilogue=%d align=%d:", h->system,
             (long long)k.M, (long long)k.N, (long long)k.K, (long long)k.lda, (long long)k.ldb, k.ta, k.tb, k.sum,
             k.epilogue, k.align);
}

/* Writes a whole line. Its checksum covers all that stands before it. */
static void write_line(char *line, const char *name, const uint64_t a[8]) {
    Crc32 crc;
    size_t n = (size_t)snprintf(line, LINE, "%s", name);
    for (int i = 0; i < 8; i++) n += (size_t)snprintf(line + n, LINE - n, " %016llx", (unsigned long long)a[i]);
    crc32_start(&crc, CRC_ZLIB);
    crc32_add(&crc, line, (int64_t)n);
    snprintf(line + n, LINE - n, " %08x\n", crc.value);
}

/* Reads a line's words; it is valid if write_line would make the same line from them. */
static bool read_line(const char *line, const char *name, uint64_t a[8]) {
    char again[LINE];
    const size_t n = strlen(name);
    if (strncmp(line, name, n)) return false;
    const char *at = line + n;
    for (int i = 0; i < 8; i++) {
        char *end;
        a[i] = strtoull(at, &end, 16);
        at = end;
    }
    write_line(again, name, a);
    return !strcmp(line, again);
}

static bool look_up(const char *path, const char *name, uint64_t a[8]) {
    char line[LINE];
    FILE *f = fopen(path, "r");
    bool found = false;
    while (f && !found && fgets(line, sizeof line, f)) found = read_line(line, name, a);
    if (f) fclose(f);
    return found;
}

static int open_to_add(const char *path) {
    make_folders(path);
    return open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644);
}

static void add(int file, const char *name, const uint64_t a[8]) {
    char line[LINE + 1] = "\n"; /* an empty line first, in case the last line was cut off */
    write_line(line + 1, name, a);
    const ssize_t written = write(file, line, strlen(line));
    (void)written; /* look_up finds out whether it is there */
}

/* ---- the heuristic ---- */

static bool prefer(const Library *lib, Opaque preference, const Plan *p) {
    const uint32_t in_float = REDUCTION_SCHEME_COMPUTE_TYPE, align = (uint32_t)p->key.align;
    const auto set = [&](int attribute, const void *value, size_t size) {
        return lib->MatmulPreferenceSetAttribute(preference, attribute, value, size) == STATUS_SUCCESS;
    };
    bool good = set(PREF_MAX_WORKSPACE_BYTES, &WORKSPACE, sizeof WORKSPACE);
    good = good && set(PREF_REDUCTION_SCHEME_MASK, &in_float, sizeof in_float);
    for (int i = PREF_MIN_ALIGNMENT_A_BYTES; i <= PREF_MIN_ALIGNMENT_D_BYTES; i++)
        good = good && set(i, &align, sizeof align);
    return good;
}

/* Asks the heuristic for algorithms, fastest first by its estimate, and returns how many there are. */
static int ask(const Library *lib, const Handle *h, const Plan *p, Heuristic each[ASKED]) {
    Opaque preference = NULL;
    int found = 0, kept = 0;
    if (lib->MatmulPreferenceCreate(&preference) != STATUS_SUCCESS) return 0;
    if (prefer(lib, preference, p) && lib->MatmulAlgoGetHeuristic(h->cublas, p->desc, p->a, p->b, p->c, p->c,
                                                                  preference, ASKED, each, &found) != STATUS_SUCCESS)
        found = 0;
    lib->MatmulPreferenceDestroy(preference);
    for (int i = 0; i < found; i++)
        if (each[i].state == STATUS_SUCCESS && each[i].workspace <= WORKSPACE) each[kept++] = each[i];
    return kept;
}

static bool runs(const Library *lib, const Handle *h, const Plan *p, const uint64_t a[8]) {
    Heuristic told = {};
    return lib->MatmulAlgoCheck(h->cublas, p->desc, p->a, p->b, p->c, p->c, a, &told) == STATUS_SUCCESS &&
           told.state == STATUS_SUCCESS && told.workspace <= WORKSPACE;
}

/* ---- time ---- */

/* The ms of REPEATS products; < 0 if the algorithm does not run. */
static float time_of(const Handle *h, const Plan *p, const Gemm *g, void *c, const uint64_t *algorithm,
                     cudaStream_t stream, const cudaEvent_t marks[2]) {
    float ms = -1;
    for (int i = 0; i <= REPEATS; i++) {
        if (i == 1) cudaEventRecord(marks[0], stream); /* not counted: the first run also loads the kernel */
        if (cublaslt_multiply(h, p, g, c, algorithm, stream) != STATUS_SUCCESS) return -1;
    }
    cudaEventRecord(marks[1], stream);
    if (cudaEventSynchronize(marks[1]) != cudaSuccess) return -1;
    return cudaEventElapsedTime(&ms, marks[0], marks[1]) == cudaSuccess ? ms : -1;
}

static int fastest(const Handle *h, const Plan *p, const Gemm *g, void *c, const Heuristic *each, int count,
                   cudaStream_t stream) {
    cudaEvent_t marks[2] = {};
    int best = -1;
    float least = 0;
    const bool ready = cudaEventCreate(&marks[0]) == cudaSuccess && cudaEventCreate(&marks[1]) == cudaSuccess;
    for (int i = 0; ready && i < count; i++) {
        const float ms = time_of(h, p, g, c, each[i].algorithm, stream, marks);
        if (ms >= 0 && (best < 0 || ms < least * GAIN)) best = i, least = ms;
    }
    for (cudaEvent_t mark : marks)
        if (mark) cudaEventDestroy(mark);
    return best;
}

/* Times on g itself, because its results are only written, and are written again afterwards. A sum that accumulates is
 * replaced by scratch memory. */
static int time_each(const Handle *h, const Plan *p, const Gemm *g, const Heuristic *each, int count,
                     cudaStream_t stream) {
    const size_t bytes = (size_t)g->M * (size_t)g->N * sizeof(float);
    void *scratch = NULL, *c = result_of(g, p->key.epilogue);
    if (g->accumulate && cudaMalloc(&scratch, bytes) != cudaSuccess) {
        cudaGetLastError(); /* without room nothing is timed */
        return -1;
    }
    if (scratch) cudaMemsetAsync(c = scratch, 0, bytes, stream);
    const int best = fastest(h, p, g, c, each, count, stream);
    if (scratch) cudaFree(scratch);
    return best;
}

static bool may_wait(cudaStream_t stream) {
    cudaStreamCaptureStatus status;
    return cudaStreamIsCapturing(stream, &status) == cudaSuccess && status == cudaStreamCaptureStatusNone;
}

/* Times the algorithms and writes the best to the file, if both can be done. */
static void settle(const char *path, const char *name, const Handle *h, const Plan *p, const Gemm *g,
                   const Heuristic *each, int count, cudaStream_t stream) {
    const int file = may_wait(stream) ? open_to_add(path) : -1;
    if (file < 0) return;
    const int best = time_each(h, p, g, each, count, stream);
    if (best >= 0) add(file, name, each[best].algorithm);
    close(file);
}

bool cublaslt_choose(Context *ctx, const Handle *h, Plan *p, const Gemm *g) {
    const Library *lib = cublaslt();
    Heuristic each[ASKED];
    uint64_t kept[8];
    char path[4096], name[LINE / 2];
    const int count = ask(lib, h, p, each);
    if (!count) return false;
    memcpy(p->algorithm, each[0].algorithm, sizeof p->algorithm);
    if (count == 1 || !h->choosing || !find_file(path, sizeof path)) return true;
    write_name(name, sizeof name, h, p->key);
    bool known = look_up(path, name, kept);
    if (!known) {
        settle(path, name, h, p, g, each, count, stream_of(ctx));
        known = look_up(path, name, kept);
    }
    if (known && runs(lib, h, p, kept)) memcpy(p->algorithm, kept, sizeof kept);
    return true;
}
