/* What the programs show on a terminal. */
#ifndef TERMINAL_H
#define TERMINAL_H

/* Rewrites one line of the terminal with what a pulse tells (llmc_on_pulse); "" takes it away. */
void show_live(const char *text);
/* Takes it away, before anything else is shown; also from a signal handler. */
void clear_live(void);
/* The answer to a first Ctrl-C, on a line of its own; also from a signal handler. */
void answer_signal(const char *text);
/* How wide the terminal behind a descriptor is now; 0: it is none. */
int terminal_columns(int descriptor);
/* How wide --help is to be: $COLUMNS, or the terminal, or what reads well. */
int help_columns(void);
#endif
