/* Picks the kernels for this machine: those of the best instruction set it has, or of the one that $PYLLMC_ISA names. */
#include <stdlib.h>
#include <string.h>
#include "base/cores.h"
#include "base/error.h"
#include "base/pool.h"
#include "isa.h"

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

const Kernels *llmc_kernels(const char *isa) {
    if (!isa || !*isa) isa = getenv("PYLLMC_ISA");
    const int any = !isa || !*isa;
    for (size_t i = 0; i < sizeof best_first / sizeof *best_first; i++) {
        const Kernels *k = best_first[i];
        if (!any && strcmp(isa, k->name)) continue;
        if (k->supported()) return k;
        if (!any) return llmc_fail(LLMC_EDEVICE, "this CPU cannot run %s: unset PYLLMC_ISA", isa), NULL;
    }
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
