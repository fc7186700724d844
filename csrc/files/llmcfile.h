/* llm.c's model .bin, and pyllmc's checkpoints, which begin with one.
 *
 *     256 int32: magic, version, maxT, V, L, NH, C, Vp, window, untied, pattern (128 bytes), 0 ...
 *                 (window and what follows it are pyllmc's)
 *     parameters in the order of tensors.def       version 1: float, wte (V,C); 3: float, wte (Vp,C); 5: bf16, wte (Vp,C);
 *                                                  2 and 4: as 1 and 3, but in bf16, only the norms in float;
 *                                                  103: as 3, but of a model that version 3 does not tell: it is untied, or
 *                                                  other layers than the odd ones see the window;
 *                                                  104: as 103, of any model, with the section OUTER;
 *                                                  1000: see adapterfile.h
 *     sections, versions 3, 103, 104 and 1000 only: {char tag[8]; int64 size; payload}; the last is CRC32, over all bytes before it
 *     MOMENTS: m, then v, of all that is trained, in the order of the parameters; OUTER, of a run with --diloco: the momentum of the
 *                 outer step, then the moments of each process but the first, whose moments are MOMENTS */
#ifndef LLMCFILE_H
#define LLMCFILE_H
#include "files/modelfile.h"
/* Whether something lies at `path` that is no folder; llmcfile_open tells whether it is a model. */
int llmcfile_is(const char *path);
/* Checks the header and that every byte is accounted for; reads no weights. */
int llmcfile_open(llmc_file *f, const char *path);
void llmcfile_describe(const llmc_file *f, char *text, size_t size);
#endif
