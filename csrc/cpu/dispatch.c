/* Picks the kernels for this machine: those of the best instruction set it has, or of the one that $PYLLMC_ISA names. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#if defined(__x86_64__)
#include <cpuid.h>
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

/* ---- the rows of isas.def: what each requires, and their names ---- */

#if defined(__x86_64__) || defined(__i386__)
#define HAS(feature) __builtin_cpu_supports(feature)
#else
#define HAS(feature) 0
#endif
#define MAY_RUN(name) may_run_##name()
#define SET(name, machines, flags, vl, mr, nr, condition) \
    int may_run_##name(void) { return condition; }
#include "isas.def"

#define SET(name, machines, flags, vl, mr, nr, condition) #name ", "
static const char NAMES[] =
#include "isas.def"
    "reference";

/* ---- the choice ---- */

#define DECLARE(isa) extern const Kernels kernels_##isa;
#define ADDRESS(isa) &kernels_##isa,
EACH_ISA(DECLARE)
static const Kernels *const best_first[] = {EACH_ISA(ADDRESS)};

/* True if a row of isas.def has this name, although its kernels are not built here. */
static int is_name(const char *isa) {
#define SET(name, machines, flags, vl, mr, nr, condition) \
    if (!strcmp(isa, #name)) return 1;
#include "isas.def"
    return 0;
}

const Kernels *llmc_kernels(const char *isa) {
    if (!isa || !*isa) isa = getenv("PYLLMC_ISA");
    const int any = !isa || !*isa;
    for (size_t i = 0; i < sizeof best_first / sizeof *best_first; i++) {
        const Kernels *k = best_first[i];
        if (!any && strcmp(isa, k->name)) continue;
        if (k->supported()) return k;
        if (any) continue;
        const char *why = strcmp(isa, "amx") ? "" : llmc_refused();
        if (*why) return llmc_fail(LLMC_EDEVICE, "%s: unset PYLLMC_ISA", why), NULL;
        return llmc_fail(LLMC_EDEVICE, "this CPU cannot run %s: unset PYLLMC_ISA", isa), NULL;
    }
    if (!any && is_name(isa))
        return llmc_fail(LLMC_EDEVICE, "%s belongs to another kind of machine: unset PYLLMC_ISA", isa), NULL;
    return llmc_fail(LLMC_EDEVICE, "no kernels called '%s': PYLLMC_ISA knows %s", any ? "" : isa, NAMES), NULL;
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
