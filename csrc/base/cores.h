/* How many cores this process may use. */
#ifndef CORES_H
#define CORES_H
/* Those it may run on, or fewer where its control groups grant it less time than that. At least 1. */
int cores_here(void);
/* As many threads, or as $OMP_NUM_THREADS says where that is fewer, which limits the threads of other libraries too. */
int cores_to_use(void);
/* The time that control groups grant, in whole cores, rounded up; 0 if they set no limit. root: "", or a folder that holds
 * proc/ and sys/ as a test makes them. */
int cores_granted(const char *root);
#endif
