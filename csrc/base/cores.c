/* Counts cores: those the scheduler allows, less where a container has a smaller quota. */
#define _GNU_SOURCE
#include "base/cores.h"
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>
#include "base/cgroup.h"

/* The quota of a group, in cores. Version 2 has one file that says "quota period", or "max period" for none; version 1 has a
 * file for each number and says -1 for none. */
static double quota_of(const char *folder) {
    double quota = 0, period = 0, unused;
    if (cgroup_numbers(folder, "cpu.max", &quota, &period) == 2 && quota > 0 && period > 0) return quota / period;
    const int both = cgroup_numbers(folder, "cpu.cfs_quota_us", &quota, &unused) == 1 &&
                     cgroup_numbers(folder, "cpu.cfs_period_us", &period, &unused) == 1;
    return both && quota > 0 && period > 0 ? quota / period : 0;
}

int cores_granted(const char *root) {
    const double quota = cgroup_limit(root, "cpu", quota_of);
    const int whole = quota < 1 << 20 ? (int)quota : 1 << 20;
    return whole + (quota > whole);
}

static int cores_allowed(void) {
#if defined(__linux__)
    /* the kernel does not say how many cores a set must hold, so larger ones are tried */
    for (int most = 1024; most <= 1 << 20; most *= 4) {
        cpu_set_t *set = CPU_ALLOC((size_t)most);
        if (!set) break;
        const int known = sched_getaffinity(0, CPU_ALLOC_SIZE((size_t)most), set) == 0;
        const int n = known ? CPU_COUNT_S(CPU_ALLOC_SIZE((size_t)most), set) : 0;
        CPU_FREE(set);
        if (known) return n;
    }
#endif
#if defined(_SC_NPROCESSORS_ONLN)
    return (int)sysconf(_SC_NPROCESSORS_ONLN);
#else
    return 1;
#endif
}

/* Reads the control groups once, because they seldom change. */
static int granted_here(void) {
    static _Atomic int known = -1;
    if (known < 0) known = cores_granted("");
    return known;
}

int cores_here(void) {
    const int granted = granted_here(), allowed = cores_allowed();
    const int cores = granted > 0 && granted < allowed ? granted : allowed;
    return cores > 0 ? cores : 1;
}

int cores_to_use(void) {
    const char *said = getenv("OMP_NUM_THREADS");
    const int most = said ? atoi(said) : 0, cores = cores_here();
    return most > 0 && most < cores ? most : cores;
}
