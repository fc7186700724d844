/* The threads behind pool.h. Callers that compute at the same time have a team each. A caller hands work to a helper
 * through one word of memory, and a helper without work sleeps until that word changes. */
#define _GNU_SOURCE
#include "base/pool.h"
#include "base/cores.h"

#ifdef NO_THREADS
static void run_loop(int threads, int64_t n, int dynamic, Body body, const void *given) {
    (void)threads, (void)dynamic;
    body(given, (Part){0, n, 0});
}
int parallel_start(int threads) { return (void)threads, 1; }
#else
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <time.h>
#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

enum { LINE = 128, STACK = 1 << 20, MOST_HELPERS = MOST_THREADS - 1 };
/* A waiting thread looks at the word for PATIENCE nanoseconds before it sleeps. It reads the clock after every LOOKS
 * looks. */
enum { PATIENCE = 50000, LOOKS = 32 };

typedef _Atomic uint32_t Word;

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

/* Equal parts; where n does not divide, the first parts are one iteration longer. */
static Part nth_part(int64_t n, int threads, int thread) {
    const int64_t each = n / threads, longer = n % threads;
    const int64_t from = thread * each + smaller(thread, longer);
    return (Part){from, from + each + (thread < longer), thread};
}

/* ---- to sleep until a word changes ---- */

#if defined(__linux__)
static void sleep_while(Word *word, uint32_t value) {
    /* may also return without a reason */
    syscall(SYS_futex, (uint32_t *)word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}
static void wake(Word *word) { syscall(SYS_futex, (uint32_t *)word, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0); }
static void forget_sleepers(void) {}
#else
static pthread_mutex_t sleeping = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static void sleep_while(Word *word, uint32_t value) {
    pthread_mutex_lock(&sleeping);
    while (atomic_load(word) == value) pthread_cond_wait(&changed, &sleeping);
    pthread_mutex_unlock(&sleeping);
}
static void wake(Word *word) {
    (void)word;
    pthread_mutex_lock(&sleeping); /* now every thread that saw the old value is waiting */
    pthread_mutex_unlock(&sleeping);
    pthread_cond_broadcast(&changed);
}
static void forget_sleepers(void) {
    pthread_mutex_init(&sleeping, NULL);
    pthread_cond_init(&changed, NULL);
}
#endif

static void pause_briefly(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb" ::: "memory");
#endif
}

static int64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
}

/* Looks at the word for at most `patience` nanoseconds: until it is `value`, or, if `until` is 0, until it is another
 * one. Returns the last value seen. */
static uint32_t look(Word *word, int until, uint32_t value, int64_t patience) {
    uint32_t seen = atomic_load_explicit(word, memory_order_acquire);
    if ((seen == value) == until || patience <= 0) return seen;
    const int64_t end = now() + patience;
    do
        for (int i = 0; i < LOOKS && (seen == value) != until; i++) {
            pause_briefly();
            seen = atomic_load_explicit(word, memory_order_acquire);
        }
    while ((seen == value) != until && now() < end);
    return seen;
}

/* ---- teams ---- */

enum { IDLE, ASLEEP, WORK, STOP }; /* states of a helper */
#define CALLER_SLEEPS (UINT32_C(1) << 31) /* a bit of a team's `left` */

typedef struct Team Team;
typedef struct Helper {
    _Alignas(LINE) Word state;
    int thread; /* the same number in every loop */
    Team *team;
    pthread_t id;
} Helper;

typedef struct Job {
    Body body;
    const void *given;
    int64_t n;
    int threads, dynamic;
    int64_t patience;
} Job;

struct Team { /* a team lives as long as the process */
    Team *next;
    int helpers, refused; /* helpers: threads started; refused: the system would start no more */
    int cores;            /* the cores that were there when the last helper was started */
    Job job;
    _Alignas(LINE) _Atomic int taken;
    _Alignas(LINE) _Atomic int64_t dealt; /* iterations of a dynamic loop that are given out */
    /* helpers that have not finished, and a bit that says whether the caller sleeps */
    _Alignas(LINE) Word left;
    Helper helper[MOST_HELPERS];
};

static _Atomic(Team *) teams;
static _Atomic int closed;       /* the process ends: no thread is started any more */
static _Thread_local Team *mine; /* the team that this thread had last */
static _Thread_local int inside; /* this thread is in a loop */

static void work(Team *team, int thread) {
    const Job job = team->job;
    if (!job.dynamic) {
        job.body(job.given, nth_part(job.n, job.threads, thread));
        return;
    }
    for (int64_t i; (i = atomic_fetch_add_explicit(&team->dealt, 1, memory_order_relaxed)) < job.n;)
        job.body(job.given, (Part){i, i + 1, thread});
}

static int begin(Helper *h) { /* 1 for whoever comes first, the helper or its caller: that one does the work */
    uint32_t expected = WORK;
    return atomic_compare_exchange_strong(&h->state, &expected, IDLE);
}

static void wait_for_work(Helper *h, int64_t patience) {
    uint32_t seen = look(&h->state, 0, IDLE, patience);
    if (seen != IDLE || !atomic_compare_exchange_strong(&h->state, &seen, ASLEEP)) return;
    while (atomic_load(&h->state) == ASLEEP) sleep_while(&h->state, ASLEEP);
}

static void *serve(void *given) {
    Helper *h = given;
    int64_t patience = PATIENCE;
    inside = 1;
    while (atomic_load(&h->state) != STOP) {
        if (begin(h)) {
            patience = h->team->job.patience;
            work(h->team, h->thread);
            if (atomic_fetch_sub(&h->team->left, 1) == CALLER_SLEEPS + 1) wake(&h->team->left);
        }
        wait_for_work(h, patience);
    }
    return NULL;
}

/* Starts a helper. It blocks all signals but those that a thread causes itself, because the program's own threads
 * handle the others. */
static int start_thread(Helper *h) {
    static const int own[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT, SIGSYS, SIGPROF};
    sigset_t blocked, before;
    pthread_attr_t attributes;
    sigfillset(&blocked);
    for (size_t i = 0; i < sizeof own / sizeof *own; i++) sigdelset(&blocked, own[i]);
    if (pthread_attr_init(&attributes)) return 0;
    pthread_attr_setstacksize(&attributes, STACK);
    pthread_sigmask(SIG_BLOCK, &blocked, &before);
    const int failed = pthread_create(&h->id, &attributes, serve, h);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    return !failed;
}

/* Starts helpers until there are enough, or until the system refuses one; then it is not asked again in every loop. */
static void grow(Team *team, int helpers) {
    if (team->helpers < helpers && !team->refused) team->cores = cores_here();
    while (team->helpers < helpers && !team->refused) {
        Helper *h = &team->helper[team->helpers];
        h->team = team, h->thread = team->helpers + 1;
        atomic_store(&h->state, IDLE);
        if (start_thread(h)) team->helpers++;
        else team->refused = 1;
    }
}

/* Runs in the child after a fork. Only the thread that forked exists there, and it was in no loop. */
static void forget_threads(void) {
    forget_sleepers();
    for (Team *t = atomic_load(&teams); t; t = t->next) {
        t->helpers = t->refused = 0;
        atomic_store(&t->left, 0);
        atomic_store(&t->taken, 0);
    }
}

static int watches_forks;
static void watch_forks(void) { watches_forks = pthread_atfork(NULL, NULL, forget_threads) == 0; }

static Team *new_team(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, watch_forks);
    if (!watches_forks) return NULL;
    Team *team = mmap(NULL, sizeof *team, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (team == MAP_FAILED) return NULL;
    atomic_store(&team->taken, 1);
    team->next = atomic_load(&teams);
    while (!atomic_compare_exchange_weak(&teams, &team->next, team)) {
    }
    return team;
}

static int take(Team *team) { return !atomic_load(&team->taken) && !atomic_exchange(&team->taken, 1); }

static Team *take_team(void) {
    if (atomic_load(&closed)) return NULL;
    if (mine && take(mine)) return mine;
    Team *team = atomic_load(&teams);
    while (team && !take(team)) team = team->next;
    return mine = team ? team : new_team();
}

static void give_back(Team *team) { atomic_store_explicit(&team->taken, 0, memory_order_release); }

int parallel_start(int threads) {
    Team *team = inside ? NULL : take_team();
    if (!team) return 1;
    team->refused = 0;
    const int most = (int)smaller(threads, MOST_THREADS);
    grow(team, most - 1);
    const int there = (int)smaller(most, team->helpers + 1);
    give_back(team);
    return there;
}

__attribute__((destructor)) static void end_threads(void) {
    atomic_store(&closed, 1);
    for (Team *team = atomic_load(&teams); team; team = team->next)
        if (take(team)) /* a team that is taken still computes: the process ends without waiting for it */
            for (int i = 0; i < team->helpers; i++) {
                if (atomic_exchange(&team->helper[i].state, STOP) == ASLEEP) wake(&team->helper[i].state);
                pthread_join(team->helper[i].id, NULL);
            }
}

/* ---- a loop ---- */

static void ask_helpers(Team *team, int helpers) {
    atomic_store(&team->dealt, 0);
    atomic_store(&team->left, (uint32_t)helpers);
    for (int i = 0; i < helpers; i++)
        if (atomic_exchange(&team->helper[i].state, WORK) == ASLEEP) wake(&team->helper[i].state);
}

/* Does the parts that helpers have not begun, then waits for the parts that they have. */
static void finish_job(Team *team, int helpers) {
    for (int i = helpers; i-- > 0;)
        if (begin(&team->helper[i])) {
            work(team, i + 1);
            atomic_fetch_sub(&team->left, 1);
        }
    if (look(&team->left, 1, 0, team->job.patience) == 0) return;
    uint32_t left = atomic_fetch_or(&team->left, CALLER_SLEEPS) | CALLER_SLEEPS;
    for (; left != CALLER_SLEEPS; left = atomic_load(&team->left)) sleep_while(&team->left, left);
}

static void run_with(Team *team, const Job *job) {
    team->job = *job;
    inside = 1;
    ask_helpers(team, job->threads - 1);
    work(team, 0);
    finish_job(team, job->threads - 1);
    inside = 0;
}

static void run_loop(int threads, int64_t n, int dynamic, Body body, const void *given) {
    Team *team = threads > 1 && n > 1 && !inside ? take_team() : NULL;
    if (!team) {
        body(given, (Part){0, n, 0});
        return;
    }
    const int useful = (int)smaller(smaller(threads, n), MOST_THREADS);
    grow(team, useful - 1);
    const int there = (int)smaller(useful, team->helpers + 1);
    /* with more threads than cores nobody looks before sleeping, because looking would take a core from a thread that
     * works */
    run_with(team, &(Job){body, given, n, there, dynamic, there <= team->cores ? PATIENCE : 0});
    give_back(team);
}
#endif

void parallel_static(int threads, int64_t n, Body body, const void *given) { run_loop(threads, n, 0, body, given); }
void parallel_dynamic(int threads, int64_t n, Body body, const void *given) { run_loop(threads, n, 1, body, given); }
