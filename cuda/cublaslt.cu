/* Finds and loads cuBLASLt. */
#include <dlfcn.h>
#include "cublaslt.cuh"

/* $PYLLMC_CUBLASLT is the library's path, which Python finds in NVIDIA's packages; if it is empty, none is loaded. */
static void *open_file(void) {
    const char *path = getenv("PYLLMC_CUBLASLT"),
               *names[] = {"libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"};
    if (path) return *path ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : NULL;
    for (const char *name : names)
        if (void *file = dlopen(name, RTLD_NOW | RTLD_LOCAL)) return file;
    return NULL;
}

static Library open_library(void) {
    Library lib = {};
    lib.file = open_file();
    bool whole = lib.file;
#define FIND(result, name, arguments)                                             \
    if (whole) lib.name = (result(*) arguments)dlsym(lib.file, "cublasLt" #name); \
    whole = whole && lib.name;
    EACH_FUNCTION(FIND)
    if (!whole) lib.file = NULL;
    return lib;
}

/* The library is loaded once per process. */
const Library *cublaslt(void) {
    static const Library lib = open_library();
    return lib.file ? &lib : NULL;
}
