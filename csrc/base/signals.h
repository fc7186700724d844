/* <signal.h>, also for WASI, which has no signals: there the header is one of an emulation. Its types and names are enough
 * for us, because nobody calls what needs the emulation's library. */
#ifndef SIGNALS_H
#define SIGNALS_H
#ifdef __wasi__
#define _WASI_EMULATED_SIGNAL
#endif
#include <signal.h>
#endif
