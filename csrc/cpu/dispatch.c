/* Picks the kernels for this machine and an element: those of the best instruction set it has, or of the one that $PYLLMC_ISA
 * names. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif
#include "amx.h"
#include "base/cores.h"
#include "base/error.h"
#include "base/pool.h"
#include "isa.h"

/* ---- Intel's AMX ---- */

/* CPUID rather than __builtin_cpu_supports, because emulators that lack tiles hide them there. */
static int cpu_has_amx(void) {
#if defined(__x86_64__) && defined(__linux__)
    unsigned a, b, c, d;
    const unsigned saves = 1u << 27, bf16 = 1u << 22, tile = 1u << 24, enabled = 3u << 17;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & saves)) return 0;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & (bf16 | tile)) != (bf16 | tile)) return 0;
    __asm__("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
    return (a & enabled) == enabled;
#else
    return 0;
#endif
}
static int may_use_amx(void) { return cpu_has_amx() && amx_request() == 0; }

const char *llmc_refused(void) {
    if (!cpu_has_amx() || amx_request() == 0) return "";
    return errno == ENOSPC ? "no AMX: a thread's stack for signals is too small for it"
                           : "no AMX: the system refuses it";
}

/* ---- Arm's bf16 ---- */

static int cpu_has_arm_bf16(void) {
#if defined(__aarch64__) && defined(__linux__)
    const unsigned long bf16 = 1ul << 14; /* HWCAP2_BF16, which older headers lack */
    return (getauxval(AT_HWCAP2) & bf16) != 0;
#elif defined(__aarch64__) && defined(__APPLE__)
    int has = 0;
    size_t size = sizeof has;
    return sysctlbyname("hw.optional.arm.FEAT_BF16", &has, &size, NULL, 0) == 0 && has;
#else
    return 0;
#endif
}

/* ---- the rows of isas.def: what each requires, and their names ---- */

#if defined(__x86_64__) || defined(__i386__)
#define HAS(feature) __builtin_cpu_supports(feature)
#else
#define HAS(feature) 0
#endif
#define MAY_RUN(name) may_run_##name()
#define SET(name, machines, elements, flags, vl, mr, nr, condition) \
    int may_run_##name(void) { return condition; }
#include "isas.def"

#define SET(name, machines, elements, flags, vl, mr, nr, condition) #name ", "
static const char NAMES[] =
#include "isas.def"
    "reference";

/* ---- the choice ---- */

#define DECLARE(build) extern const Kernels kernels_##build;
#define ADDRESS(build) &kernels_##build,
EACH_BUILD(DECLARE)
static const Kernels *const best_first[] = {EACH_BUILD(ADDRESS)};
enum { BUILDS = sizeof best_first / sizeof *best_first };

/* Intel's CPUs start a VDPBF16PS every second cycle, and two fused multiply-adds in each: there bf16 is faster as floats. */
static int is_slow_here(const Kernels *k) {
#if defined(__x86_64__) || defined(__i386__)
    return !strcmp(k->name, "avx512_bf16") && __builtin_cpu_is("intel");
#else
    return (void)k, 0;
#endif
}

static const Kernels *best_for(int element) {
    for (int i = 0; i < BUILDS; i++) {
        const Kernels *k = best_first[i];
        if (k->element == element && !is_slow_here(k) && k->supported()) return k;
    }
    return NULL; /* never: the reference runs everywhere */
}

/* True if a row of isas.def has this name, although its kernels are not built here. */
static int is_name(const char *isa) {
#define SET(name, machines, elements, flags, vl, mr, nr, condition) \
    if (!strcmp(isa, #name)) return 1;
#include "isas.def"
    return 0;
}

/* The kernels that $PYLLMC_ISA, or a caller, names; NULL, with an error, if there are none. */
static const Kernels *named(const char *isa, int element) {
    const Kernels *k = NULL;
    for (int i = 0; i < BUILDS && !(k && (element == LLMC_AUTO || k->element == element)); i++)
        if (!strcmp(isa, best_first[i]->name)) k = best_first[i];
    if (!k && is_name(isa))
        return llmc_fail(LLMC_EDEVICE, "%s belongs to another kind of machine: unset PYLLMC_ISA", isa), NULL;
    if (!k) return llmc_fail(LLMC_EDEVICE, "no kernels called '%s': PYLLMC_ISA knows %s", isa, NAMES), NULL;
    const char *why = strcmp(isa, "amx") ? "" : llmc_refused();
    if (*why) return llmc_fail(LLMC_EDEVICE, "%s: unset PYLLMC_ISA", why), NULL;
    if (!k->supported()) return llmc_fail(LLMC_EDEVICE, "this CPU cannot run %s: unset PYLLMC_ISA", isa), NULL;
    if (element == LLMC_AUTO || k->element == element) return k;
    return llmc_fail(LLMC_EDEVICE, "%s has kernels for bf16 only: unset PYLLMC_ISA, or choose the precision bf16", isa),
           NULL;
}

const Kernels *llmc_kernels(const char *isa, int element) {
    if (element != LLMC_AUTO && element != LLMC_FP32 && element != LLMC_BF16)
        return llmc_fail(LLMC_EINVAL, "element %d is none of LLMC_AUTO, LLMC_FP32, LLMC_BF16", element), NULL;
    if (!isa || !*isa) isa = getenv("PYLLMC_ISA");
    return isa && *isa ? named(isa, element) : best_for(element == LLMC_AUTO ? LLMC_FP32 : element);
}

const char *llmc_backend(void) { return "cpu"; }

int llmc_default_threads(void) { return cores_to_use(); }
int llmc_start_threads(int threads) { return parallel_start(threads); }

#define AS_TEXT(name) #name
#define TEXT_OF(name) AS_TEXT(name)
const char *llmc_blas(void) {
#ifdef BLAS_NAME
    return TEXT_OF(BLAS_NAME);
#else
    return "";
#endif
}
