/* Counts cores: those the scheduler allows, less where a container has a smaller quota. */
#define _GNU_SOURCE
#include "base/cores.h"
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { PATH = 4096 };

/* ---- control groups ---- */

/* Reads the first one or two words of a file as numbers; returns how many there were. */
static int numbers_in(const char *folder, const char *name, double *first, double *second) {
    char path[PATH + 64];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *f = fopen(path, "r");
    const int n = f ? fscanf(f, "%lf %lf", first, second) : 0;
    if (f) fclose(f);
    return n;
}

/* The quota of this group alone, in cores; 0: none. Version 2 has one file that says "quota period", or "max period"
 * for none; version 1 has a file for each number and says -1 for none. */
static double quota_of(const char *folder) {
    double quota = 0, period = 0, unused;
    if (numbers_in(folder, "cpu.max", &quota, &period) == 2 && quota > 0 && period > 0) return quota / period;
    const int both = numbers_in(folder, "cpu.cfs_quota_us", &quota, &unused) == 1 &&
                     numbers_in(folder, "cpu.cfs_period_us", &period, &unused) == 1;
    return both && quota > 0 && period > 0 ? quota / period : 0;
}

static double least(double a, double b) { return a > 0 && (b <= 0 || a < b) ? a : b; }

/* The least quota of a group and of all groups above it, up to the mount. A container may not see a part of this path:
 * that part is skipped. */
static double quota_up(const char *mount, const char *group) {
    char path[PATH];
    double quota = quota_of(mount);
    const size_t top = strlen(mount);
    if (snprintf(path, sizeof path, "%s%s", mount, group) >= PATH) return quota;
    while (strlen(path) > top) {
        quota = least(quota_of(path), quota);
        *strrchr(path, '/') = 0;
    }
    return quota;
}

/* 1 if "cpu" is among these names, which commas separate */
static int has_cpu(const char *names) {
    for (const char *at = names; (at = strstr(at, "cpu")); at += 3)
        if ((at == names || at[-1] == ',') && (at[3] == 0 || at[3] == ',')) return 1;
    return 0;
}

/* The quota that a line of /proc/self/cgroup leads to: "0::/group" (version 2) or "4:cpu,cpuacct:/group" (version 1) */
static double quota_of_line(const char *root, char *line) {
    char mount[PATH];
    char *names = strchr(line, ':'), *group = names ? strchr(names + 1, ':') : NULL;
    if (!group || group[1] != '/') return 0;
    names++, *group++ = 0;
    group[strcspn(group, "\n")] = 0;
    if (*names && !has_cpu(names)) return 0;
    const char *const places[] = {*names ? names : "", *names ? "cpu" : "unified"};
    double quota = 0;
    for (int i = 0; i < 2; i++)
        if (snprintf(mount, sizeof mount, "%s/sys/fs/cgroup%s%s", root, *places[i] ? "/" : "", places[i]) < PATH)
            quota = least(quota_up(mount, group), quota);
    return quota;
}

int cores_granted(const char *root) {
    char path[PATH], line[PATH];
    double quota = 0;
    if (snprintf(path, sizeof path, "%s/proc/self/cgroup", root) >= PATH) return 0;
    FILE *f = fopen(path, "r");
    while (f && fgets(line, sizeof line, f)) quota = least(quota_of_line(root, line), quota);
    if (f) fclose(f);
    const int whole = quota < 1 << 20 ? (int)quota : 1 << 20;
    return whole + (quota > whole);
}

/* ---- the process ---- */

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
