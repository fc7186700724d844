/* Walks from the control groups of this process up to the roots of their trees. */
#include "base/cgroup.h"
#include <stdio.h>
#include <string.h>

enum { PATH = 4096 };

/* ---- the files of a group ---- */

static FILE *open_in(const char *folder, const char *name) {
    char path[PATH + 64];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return fopen(path, "r");
}

int cgroup_numbers(const char *folder, const char *name, double *first, double *second) {
    FILE *f = open_in(folder, name);
    const int n = f ? fscanf(f, "%lf %lf", first, second) : 0;
    if (f) fclose(f);
    return n;
}

double cgroup_entry(const char *folder, const char *name, const char *key) {
    char line[256];
    double value = 0;
    const size_t n = strlen(key);
    FILE *f = open_in(folder, name);
    while (f && fgets(line, sizeof line, f))
        if (!strncmp(line, key, n) && line[n] == ' ' && sscanf(line + n, "%lf", &value) == 1) break;
    if (f) fclose(f);
    return value;
}

/* ---- the groups of this process ---- */

static double least(double a, double b) { return a > 0 && (b <= 0 || a < b) ? a : b; }

/* The least limit of a group and of all groups above it, up to the mount. A container may not see a part of this path:
 * that part is skipped. */
static double least_up(const char *mount, const char *group, Limit *limit) {
    char path[PATH];
    double found = limit(mount);
    const size_t top = strlen(mount);
    if (snprintf(path, sizeof path, "%s%s", mount, group) >= PATH) return found;
    while (strlen(path) > top) {
        found = least(limit(path), found);
        *strrchr(path, '/') = 0;
    }
    return found;
}

/* 1 if the controller is among these names, which commas separate */
static int has_name(const char *names, const char *controller) {
    const size_t n = strlen(controller);
    for (const char *at = names; (at = strstr(at, controller)); at += n)
        if ((at == names || at[-1] == ',') && (at[n] == 0 || at[n] == ',')) return 1;
    return 0;
}

/* The limit that a line of /proc/self/cgroup leads to: "0::/group" (version 2) or "4:cpu,cpuacct:/group" (version 1) */
static double limit_of_line(const char *root, char *line, const char *controller, Limit *limit) {
    char mount[PATH];
    char *names = strchr(line, ':'), *group = names ? strchr(names + 1, ':') : NULL;
    if (!group || group[1] != '/') return 0;
    names++, *group++ = 0;
    group[strcspn(group, "\n")] = 0;
    if (*names && !has_name(names, controller)) return 0;
    const char *const places[] = {*names ? names : "", *names ? controller : "unified"};
    double found = 0;
    for (int i = 0; i < 2; i++)
        if (snprintf(mount, sizeof mount, "%s/sys/fs/cgroup%s%s", root, *places[i] ? "/" : "", places[i]) < PATH)
            found = least(least_up(mount, group, limit), found);
    return found;
}

double cgroup_limit(const char *root, const char *controller, Limit *limit) {
    char folder[PATH], line[PATH];
    double found = 0;
    if (snprintf(folder, sizeof folder, "%s/proc/self", root) >= PATH) return 0;
    FILE *f = open_in(folder, "cgroup");
    while (f && fgets(line, sizeof line, f)) found = least(limit_of_line(root, line, controller, limit), found);
    if (f) fclose(f);
    return found;
}
