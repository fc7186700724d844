/* The engine's threads without Python: ./threads pool | model | forks | refused N | cores ROOT | memory ROOT. Prints each fault and
 * ends with 1; without a fault, with 0. tests/base/ and `make tsan` build and run it. */
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include "base/cores.h"
#include "base/pool.h"
#include "cpu/memory.h"
#include "pyllmc.h"

static _Atomic int wrong;

static void expect(int condition, const char *what, long number) {
    if (condition) return;
    wrong = 1;
    printf("%s (%ld)\n", what, number);
}

/* ---- loops ---- */

enum { MOST = 4099, THREADS = 9 };
typedef struct Loop {
    _Atomic int done[MOST], running[THREADS], inner;
} Loop;

static void count(const void *given, Part part) {
    Loop *loop = (Loop *)given;
    expect(part.thread >= 0 && part.thread < THREADS, "a thread's number", part.thread);
    expect(atomic_fetch_add(&loop->running[part.thread], 1) == 0, "one number twice at a time", part.thread);
    for (int64_t i = part.from; i < part.to; i++) loop->done[i]++;
    atomic_fetch_sub(&loop->running[part.thread], 1);
}

static void add(const void *given, Part part) { *(_Atomic int *)given += (int)(part.to - part.from); }

static void nest(const void *given, Part part) {
    for (int64_t i = part.from; i < part.to; i++) parallel_static(3, 7, add, &((Loop *)given)->inner);
}

static void run_loops(unsigned seed, int loops) {
    typedef void (*Parallel)(int, int64_t, Body, const void *);
    static const Parallel both[] = {parallel_static, parallel_dynamic};
    static const int sizes[] = {0, 1, 2, 3, 7, 8, 9, 64, 1000, MOST};
    Loop *loop = calloc(1, sizeof *loop);
    for (int k = 0; loop && k < loops; k++) {
        seed = seed * 1103515245 + 12345;
        const int n = sizes[seed >> 16 & 7] + (k % 7 == 0 && (seed & 1) ? 900 : 0), threads = 1 + k % THREADS;
        for (int i = 0; i < n; i++) loop->done[i] = 0;
        both[k & 1](threads, n, count, loop);
        for (int i = 0; i < n; i++) expect(loop->done[i] == 1, "an iteration not done once", i);
        loop->inner = 0;
        if (k % 16 == 0) both[k >> 4 & 1](threads, 5, nest, loop);
        expect(loop->inner == (k % 16 ? 0 : 35), "a loop within a loop", loop->inner);
    }
    free(loop);
}

static void *loops_of_a_thread(void *seed) { return run_loops((unsigned)(uintptr_t)seed, 300), NULL; }

static void at_once(int n, void *(*what)(void *)) {
    pthread_t id[8];
    for (int i = 0; i < n; i++) expect(!pthread_create(&id[i], NULL, what, (void *)(uintptr_t)(i + 1)), "a thread", i);
    for (int i = 0; i < n; i++) pthread_join(id[i], NULL);
}

static void pool(void) {
    expect(parallel_start(4) == 4, "threads that start", parallel_start(4));
    run_loops(1, 2000);
    for (int n = 2; n <= 6; n += 2) at_once(n, loops_of_a_thread);
    const int many = parallel_start(MOST_THREADS + 100); /* the system may give fewer */
    expect(many >= 4 && many <= MOST_THREADS, "threads of very many", many);
    run_loops(2, 10);
}

/* ---- a model, whose bits do not depend on the number of threads ---- */

static int tokens[64], first[64];

/* A checksum of the weights, whatever memory they have. */
static uint64_t sum_of_weights(const llmc_model *m) {
    static _Thread_local uint32_t bits[1 << 16];
    uint64_t sum = 0;
    for (int i = 0; i < llmc_num_tensors(); i++) {
        const llmc_tensor *t = llmc_model_tensor(m, i);
        for (int l = 0; t->kind == LLMC_PARAM && t->size && l < (t->layers ? t->layers : 1); l++) {
            const int rc = t->size > 1 << 16 ? -1 : llmc_model_read(m, LLMC_PARAMS, i, l, t->size, bits);
            expect(rc == 0, "weights that are read", i);
            for (int64_t k = 0; k < t->size; k++) sum = sum * 31 + bits[k];
        }
    }
    return sum;
}

enum { LEVELS = 5, KINDS = 2 * LEVELS }; /* --recompute=0 to 4, in fp32 and in bf16 */

/* A checksum of the weights after two steps and of a text; 0 after an error. */
static uint64_t train(int threads, int kind) {
    const int recompute = kind % LEVELS;
    llmc_config config;
    llmc_model *m = NULL;
    const llmc_room room = {.B = 4,
                            .T = 16,
                            .training = 1,
                            .recompute = recompute,
                            .logits = !recompute,
                            .precision = kind < LEVELS ? LLMC_FP32 : LLMC_BF16};
    const llmc_sampling how = {.temperature = 1, .seed = 3};
    const llmc_adamw hyper = {1e-2, 0.9, 0.95, 1e-8, 0.1, 0};
    float norm;
    int out[8] = {0}, rc = llmc_config_parse(&config, "gpt-nano");
    config.V = 300, config.maxT = 16;
    if (rc == 0) rc = llmc_model_create(&m, &config, &room, threads);
    if (rc == 0) rc = llmc_model_init(m, 5, 0);
    for (int step = 0; rc == 0 && step < 2; step++) {
        rc = llmc_model_micro_step(m, tokens, tokens + 1, NULL, 3, 16, 1, 0, NULL);
        if (rc == 0) rc = llmc_model_grad_norm(m, 1, &norm);
        if (rc == 0) rc = llmc_model_update(m, &hyper, 1);
    }
    if (rc == 0 && recompute < 3) rc = llmc_model_generate(m, first, 2, 3, 4, &how, out, -1) < 0;
    expect(rc == 0, llmc_last_error(), rc);
    uint64_t sum = m ? sum_of_weights(m) : 0;
    for (int i = 0; i < 8; i++) sum = sum * 31 + (unsigned)out[i];
    llmc_model_free(m);
    return sum;
}

static uint64_t expected[KINDS];
static void *train_in_a_thread(void *number) {
    const int i = (int)(uintptr_t)number, kind = 4 * i % KINDS;
    expect(train(1 + i, kind) == expected[kind], "bits of a model beside others", i);
    return NULL;
}

static void model(void) {
    for (int kind = 0; kind < KINDS; kind++) expected[kind] = train(1, kind);
    for (int threads = 2; threads <= 6; threads++)
        for (int kind = threads % LEVELS; kind < KINDS; kind += LEVELS)
            expect(train(threads, kind) == expected[kind], "bits", threads);
    at_once(3, train_in_a_thread);
}

/* ---- forks ---- */

static _Atomic int over;
static void *loops_until_over(void *seed) {
    while (!over) run_loops((unsigned)(uintptr_t)seed, 20);
    return NULL;
}

static void *fork_and_loop(void *seed) {
    for (int i = 0; i < 20; i++) {
        const pid_t child = fork();
        if (child == 0) {
            alarm(20);
            run_loops((unsigned)(uintptr_t)seed + (unsigned)i, 40);
            /* half of the children end as an interpreter, which joins its threads; the others as a server's child */
            if (i % 2) exit(wrong);
            _exit(wrong);
        }
        int status = -1;
        expect(child > 0 && waitpid(child, &status, 0) == child && status == 0, "status of a child", status);
    }
    return NULL;
}

static void forks(void) {
    pthread_t busy[2];
    run_loops(1, 50);
    fork_and_loop((void *)7);
    for (int i = 0; i < 2; i++) pthread_create(&busy[i], NULL, loops_until_over, (void *)(uintptr_t)(i + 1));
    at_once(2, fork_and_loop);
    over = 1;
    for (int i = 0; i < 2; i++) pthread_join(busy[i], NULL);
}

/* ---- a system that starts at most N threads ---- */

static _Atomic int left = -1;
int __real_pthread_create(pthread_t *id, const pthread_attr_t *how, void *(*what)(void *), void *given);
int __wrap_pthread_create(pthread_t *id, const pthread_attr_t *how, void *(*what)(void *), void *given);
int __wrap_pthread_create(pthread_t *id, const pthread_attr_t *how, void *(*what)(void *), void *given) {
    if (left == 0) return 11; /* EAGAIN */
    if (left > 0) left--;
    return __real_pthread_create(id, how, what, given);
}

static void refused(int helpers) {
    left = helpers;
    run_loops(1, 100);
    expect(parallel_start(5) == 1 + helpers, "threads beside those refused", parallel_start(5));
    const uint64_t few = train(5, 0);
    left = 10;
    expect(parallel_start(5) == 5, "threads when there are more again", parallel_start(5));
    expect(train(5, 0) == few, "bits with few threads", helpers);
}

int main(int argc, char **argv) {
    const char *what = argc > 1 ? argv[1] : "";
    for (int i = 0; i < 64; i++) tokens[i] = i * 37 % 300, first[i] = i * 11 % 300;
    if (!strcmp(what, "cores") && argc > 2) printf("%d\n", cores_granted(argv[2]));
    else if (!strcmp(what, "memory") && argc > 2) printf("%lld\n", (long long)cpu_memory_granted(argv[2]));
    else if (!strcmp(what, "refused") && argc > 2) refused(atoi(argv[2]));
    else if (!strcmp(what, "pool")) pool();
    else if (!strcmp(what, "model")) model();
    else if (!strcmp(what, "forks")) forks();
    else return 2;
    return wrong;
}
