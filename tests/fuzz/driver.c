/* Runs a fuzz target without libFuzzer: every input of the named files and folders, then -runs=N mutations of them, the
 * same ones each time for a -seed=S. No coverage guides it. It stops at the first finding (of a sanitizer, of
 * fuzz_expect(), an execution of more than -timeout=S seconds, a leak) and leaves its input in -artifact_prefix=PATH.
 * Flags and words are libFuzzer's. */
#include <dirent.h>
#include <signal.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>
#include "base/crc32.h"
#include "fuzz.h"
#include "base/rng.h"

/* from the sanitizers' run-time library; not every compiler comes with its headers */
size_t __sanitizer_get_current_allocated_bytes(void);
void __sanitizer_set_death_callback(void (*callback)(void));
int __lsan_is_turned_off(void);

enum { MOST = 4096, LONGEST = 1 << 15 };

typedef struct Unit {
    uint8_t *bytes;
    size_t size;
    const char *path;
} Unit;

static Unit corpus[MOST], now; /* now: the input being executed */
static int units;
static const char *program, *prefix = "";
static unsigned long long state = 1, runs, seconds = 5;

/* ---- findings ---- */

static void keep_input(void) {
    char path[4096];
    Crc32 crc;
    crc32_start(&crc, CRC_ZLIB);
    crc32_add(&crc, now.bytes, (int64_t)now.size);
    snprintf(path, sizeof path, "%scrash-%08x", prefix, crc.value);
    if (!now.path) {
        FILE *f = fopen(path, "wb");
        if (f) fwrite(now.bytes, 1, now.size, f), fclose(f);
        now.path = path;
    }
    fprintf(stderr, "input: %s\nreproduce: %s %s\n", now.path, program, now.path);
}

static void too_slow(int signal) {
    static const char text[] = "an execution took too long\n";
    (void)signal;
    if (write(STDERR_FILENO, text, sizeof text - 1) < 0) _exit(1);
    abort();
}

static void execute(Unit unit) {
    uint8_t *exact = malloc(unit.size + !unit.size); /* exactly its size, so that a read past the end is seen */
    if (!exact) abort();
    if (unit.size) memcpy(exact, unit.bytes, unit.size);
    now = (Unit){exact, unit.size, unit.path};
    alarm((unsigned)seconds);
    LLVMFuzzerTestOneInput(exact, unit.size);
    alarm(0);
    free(exact);
}

/* Executes an input again and again if it holds memory. Memory that grows with each execution is a leak; memory that
 * grows once is a buffer that is kept. */
static void execute_and_look(Unit unit) {
    size_t before;
    int times = 0;
    do {
        before = __sanitizer_get_current_allocated_bytes();
        execute(unit);
    } while (__sanitizer_get_current_allocated_bytes() > before && ++times < 4);
    if (times < 4) return;
    fprintf(stderr, "memory leaks: %zu bytes at every execution\n", __sanitizer_get_current_allocated_bytes() - before);
    now = unit;
    abort();
}

/* ---- mutations ---- */

static uint64_t draw(uint64_t n) { /* A number in [0, n); 0 if n is 0. SplitMix64. */
    const uint64_t x = mix64(state += GOLDEN);
    return n ? x % n : 0;
}

static void flip(Unit *u) {
    if (u->size) u->bytes[draw(u->size)] ^= (uint8_t)(1u << draw(8));
}

static void set_byte(Unit *u) {
    if (u->size) u->bytes[draw(u->size)] = (uint8_t)draw(256);
}

static const int64_t interesting[] = {0,         1,          -1,        2,         7,         8,        16,
                                      64,        127,        128,       255,       256,       1024,     4096,
                                      65535,     65536,      16777216,  16777217,  715827883, 1 << 30,  INT32_MAX,
                                      INT32_MIN, UINT32_MAX, INT64_MAX, INT64_MIN, 1ll << 33, 1ll << 52};

/* Replaces an integer of 1 to 8 bytes by one that causes overflows, or by a neighbour. */
static void set_int(Unit *u) {
    const size_t width = (size_t)1 << draw(4);
    int64_t value = 0;
    if (u->size < width) return;
    const size_t at = draw(4) ? draw(u->size / width) * width : draw(u->size - width + 1);
    memcpy(&value, u->bytes + at, width);
    if (draw(2)) value = (int64_t)((uint64_t)value + draw(33) - 16);
    else value = interesting[draw(sizeof interesting / sizeof *interesting)];
    memcpy(u->bytes + at, &value, width);
}

static void cut(Unit *u) { u->size = draw(u->size + 1); }

static void erase(Unit *u) {
    const size_t at = draw(u->size + 1), n = draw(draw(2) ? 9 : u->size - at + 1);
    if (at + n > u->size) return;
    memmove(u->bytes + at, u->bytes + at + n, u->size - at - n);
    u->size -= n;
}

static void insert(Unit *u, const uint8_t *from, size_t n) {
    const size_t at = draw(u->size + 1);
    uint8_t copy[LONGEST];
    if (n > LONGEST - u->size) n = LONGEST - u->size;
    if (n) memcpy(copy, from, n);
    memmove(u->bytes + at + n, u->bytes + at, u->size - at);
    if (n) memcpy(u->bytes + at, copy, n);
    u->size += n;
}

static void duplicate(Unit *u) {
    const size_t from = draw(u->size + 1), n = draw(u->size - from + 1);
    for (uint64_t times = 1 + draw(4); times; times--) insert(u, u->bytes + from, n);
}

static void insert_random(Unit *u) {
    uint8_t bytes[8];
    const size_t n = 1 + draw(sizeof bytes);
    for (size_t i = 0; i < n; i++) bytes[i] = (uint8_t)draw(256);
    insert(u, bytes, n);
}

/* Joins the head of this input and the tail of another. */
static void splice(Unit *u) {
    const Unit *other = &corpus[draw((uint64_t)units)];
    const size_t from = draw(other->size + 1), at = draw(2) ? draw(u->size + 1) : from < u->size ? from : u->size;
    u->size = at;
    const size_t n = other->size - from, room = LONGEST - at;
    memcpy(u->bytes + at, other->bytes + from, n < room ? n : room);
    u->size += n < room ? n : room;
}

static void mutate(Unit *u) {
    static void (*const ways[])(Unit *) = {flip, set_byte, set_int,   set_int,       set_int,
                                           cut,  erase,    duplicate, insert_random, splice};
    for (uint64_t times = 1 + draw(5); times; times--) ways[draw(sizeof ways / sizeof *ways)](u);
}

static void execute_mutations(void) {
    static uint8_t bytes[LONGEST];
    for (unsigned long long i = 0; i < runs && units; i++) {
        const Unit *from = &corpus[draw((uint64_t)units)];
        Unit unit = {bytes, from->size, NULL};
        memcpy(bytes, from->bytes, from->size);
        mutate(&unit);
        execute_and_look(unit);
    }
}

/* ---- the corpus ---- */

static void add_file(const char *path) {
    FILE *f = fopen(path, "rb");
    Unit unit = {malloc(LONGEST), 0, path};
    if (!f || !unit.bytes || units == MOST) {
        fprintf(stderr, "%s cannot be read\n", path);
        exit(2);
    }
    unit.size = fread(unit.bytes, 1, LONGEST, f);
    fclose(f);
    corpus[units++] = unit;
}

static void add(const char *path) {
    struct dirent **names;
    const int n = scandir(path, &names, NULL, alphasort);
    if (n < 0) return add_file(path);
    for (int i = 0; i < n; i++) {
        const size_t size = strlen(path) + strlen(names[i]->d_name) + 2;
        char *full = malloc(size);
        if (!full) abort();
        snprintf(full, size, "%s/%s", path, names[i]->d_name);
        if (names[i]->d_name[0] != '.') add_file(full);
        free(names[i]);
    }
    free(names);
}

static int is_flag(const char *argument, const char *flag, unsigned long long *value) {
    const size_t n = strlen(flag);
    if (strncmp(argument, flag, n)) return 0;
    *value = strtoull(argument + n, NULL, 10);
    return 1;
}

static void parse(const char *argument) {
    if (*argument != '-') add(argument);
    else if (!strncmp(argument, "-artifact_prefix=", 17)) prefix = argument + 17;
    else if (!is_flag(argument, "-runs=", &runs) && !is_flag(argument, "-seed=", &state) &&
             !is_flag(argument, "-timeout=", &seconds)) {
        fprintf(stderr, "%s: unknown\n", argument);
        exit(2);
    }
}

/* UndefinedBehaviorSanitizer may be a library of its own without a callback: it aborts, and the other sanitizer
 * notices. */
const char *__ubsan_default_options(void);
__attribute__((visibility("default"))) const char *__ubsan_default_options(void) {
    return "abort_on_error=1:print_stacktrace=1";
}

/* LeakSanitizer would need ptrace, which not every machine allows. */
__attribute__((visibility("default"))) int __lsan_is_turned_off(void) { return 1; }

int main(int argc, char **argv) {
    program = argv[0];
    for (int i = 1; i < argc; i++) parse(argv[i]);
    signal(SIGALRM, too_slow);
    __sanitizer_set_death_callback(keep_input);
    for (int i = 0; i < units; i++) execute_and_look(corpus[i]);
    execute_mutations();
    fprintf(stderr, "stat::number_of_executed_units: %llu\n", (unsigned long long)units + runs);
    return 0;
}
