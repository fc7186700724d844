/* What control groups grant: Linux limits with them what a container, or a job of a cluster, may use. */
#ifndef CGROUP_H
#define CGROUP_H
/* The limit that one group has by itself, from the files in its folder; 0: none */
typedef double Limit(const char *folder);
/* The least limit of this process's groups and of all groups above them; 0: none. controller: its name in version 1, such as
 * "cpu". root: "", or a folder that holds proc/ and sys/, as a test makes them. */
double cgroup_limit(const char *root, const char *controller, Limit *limit);
/* Reads the first one or two words of a file in a group's folder as numbers; returns how many there were. */
int cgroup_numbers(const char *folder, const char *name, double *first, double *second);
/* The number in the line of a file that begins with `key`; 0 if there is none */
double cgroup_entry(const char *folder, const char *name, const char *key);
#endif
