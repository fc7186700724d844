/* The terminal of the programs: its width, and a line that shows what is under way. */
#ifndef TERMINAL_H
#define TERMINAL_H

/* Shows `text`, which a pulse tells (llmc_on_pulse), on a line that is rewritten each time; "" takes the line away. */
void show_live(const char *text);
/* Takes the line away before anything else is shown. A signal handler may call it. */
void clear_live(void);
/* Answers a first Ctrl-C, on a line of its own. A signal handler may call it. */
void answer_signal(const char *text);
/* The present width of the terminal at a descriptor; 0 if it is no terminal. */
int terminal_columns(int descriptor);
/* The width of --help: $COLUMNS, else that of the terminal, else 100. */
int help_columns(void);
#endif
