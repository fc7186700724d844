/* The number of cores that this process may use */
#ifndef CORES_H
#define CORES_H
/* The cores that it may run on, or fewer if its control groups grant less time. At least 1. */
int cores_here(void);
/* The threads to start: cores_here(), or $OMP_NUM_THREADS if that is fewer. Other libraries obey the same variable. */
int cores_to_use(void);
/* The time that control groups grant, in whole cores, rounded up; 0: no limit. root: "", or a folder that holds proc/
 * and sys/, as a test makes them. */
int cores_granted(const char *root);
#endif
