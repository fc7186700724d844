/* The events that the checked build is told of (emu_check.cpp). Without EMU_CHECK these functions are empty. */
#pragma once
#include "emu_worker.h"

namespace emu {
#ifdef EMU_CHECK
void check_launch(const Launch &launch);
void check_block(Worker &w);
void check_barrier(Worker &w);                                  /* orders all accesses of the block */
void check_warp_sync(Worker &w, unsigned warp, unsigned lanes); /* orders those of some lanes of a warp */
void check_fence(Worker &w);
void check_allocated(void *p, size_t bytes);
void check_freed(void *p);
void check_written(void *p, size_t bytes); /* by the host */
void check_pending(void *p, size_t bytes); /* the target of a copy under way: nobody may read it */
void note_at(const void *address, unsigned bytes, Access kind, Place at);
#else
inline void check_launch(const Launch &) {}
inline void check_block(Worker &) {}
inline void check_barrier(Worker &) {}
inline void check_warp_sync(Worker &, unsigned, unsigned) {}
inline void check_fence(Worker &) {}
inline void check_allocated(void *, size_t) {}
inline void check_freed(void *) {}
inline void check_written(void *, size_t) {}
inline void check_pending(void *, size_t) {}
inline void note_at(const void *, unsigned, Access, Place) {}
#endif
} // namespace emu
