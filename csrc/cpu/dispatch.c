/* Picks the kernels for this machine: the best instruction set it has, or the one $PYLLMC_ISA names. */
#include <stdlib.h>
#include <string.h>
#include "base/cores.h"
#include "base/error.h"
#include "base/pool.h"

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
    llmc_fail(LLMC_EDEVICE,
              "no kernels called '%s': PYLLMC_ISA knows avx512_bf16, avx512, avx2, generic, neon, reference",
              any ? "" : isa);
    return NULL;
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
