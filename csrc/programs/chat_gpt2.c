/* ./chat_gpt2: talk with a model. Reads lines and shows pieces; who speaks when is chat.c's. */
#include <sys/select.h>
#include "programs/program.h"

static const char PROGRAM[] = "chat_gpt2";
static volatile sig_atomic_t interrupts; /* since the last turn */
static int at_terminal;

static void on_interrupt(int number) {
    (void)number;
    if (++interrupts <= 1) return;
    if (at_terminal && write(STDOUT_FILENO, "\n", 1) < 0) _exit(INTERRUPTED); /* the shell's line is its own */
    _exit(INTERRUPTED);
}

static void catch_interrupts(void) {
    on_signal(SIGINT, on_interrupt, at_terminal); /* at a terminal, what is being shown is shown */
    on_signal(SIGPIPE, SIG_IGN, 0);               /* whoever read has gone: a write fails */
}

/* Shows life while the model is loaded or reads a long turn; during an answer its text is enough. */
static int on_pulse(void *context, const char *text) {
    (void)context;
    show_live(text);
    return interrupts != 0;
}

static int show_wrapped(llmc_wrap *wrap, const char *text, int64_t size) {
    const char *out;
    const int rc = llmc_wrap_next(wrap, terminal_columns(STDOUT_FILENO), text, size, &out, &size);
    if (rc == 0) show(out, size);
    return rc;
}

/* Shows an answer behind `label`, on its line: 0, an error, or INTERRUPTED. */
static int answer(llmc_chat *chat, const char *text, int64_t size, const char *label) {
    const char *piece;
    int rc = llmc_chat_say(chat, text, size), shown = 0;
    llmc_wrap *wrap = llmc_wrap_new();
    if (!wrap) return LLMC_ENOMEM;
    if (rc >= 0) shown = show_wrapped(wrap, label, (int64_t)strlen(label));
    while (rc >= 0 && shown == 0 && !interrupts && !ferror(stdout) && (rc = llmc_chat_next(chat, &piece, &size)) > 0)
        shown = show_wrapped(wrap, piece, size);
    if (shown == 0) shown = show_wrapped(wrap, NULL, 0); /* the word that was held back */
    llmc_wrap_free(wrap);
    if (rc == LLMC_STOPPED) rc = 0;
    if (rc >= 0) show("\n", 1);
    return rc < 0 ? rc : shown < 0 ? shown : interrupts ? INTERRUPTED : 0;
}

/* Shows whose turn it is and waits for a line: 1, or 0 after an interrupt, which may come at any moment. */
static int line_comes(const char *label) {
#ifdef __wasi__
    show(label, (int64_t)strlen(label));
    return 1;
#else
    const sig_atomic_t before = interrupts;
    sigset_t interrupt, usual;
    fd_set in;
    FD_ZERO(&in);
    FD_SET(STDIN_FILENO, &in);
    sigemptyset(&interrupt);
    sigaddset(&interrupt, SIGINT);
    show(label, (int64_t)strlen(label));
    sigprocmask(SIG_BLOCK, &interrupt, &usual);
    if (interrupts == before) pselect(STDIN_FILENO + 1, &in, NULL, NULL, NULL, &usual);
    sigprocmask(SIG_SETMASK, &usual, NULL);
    return interrupts == before;
#endif
}

/* A turn that cannot be is no reason to leave whoever sits there, or the turns of a pipe behind it: it is told, and *status
 * is its exit code. */
static int answer_or_tell(llmc_chat *chat, const char *text, int64_t size, const char *label, int *status) {
    const int rc = answer(chat, text, size, label);
    if (rc != LLMC_EINVAL) return rc;
    *status = fail(PROGRAM, rc);
    return 0;
}

static void introduce(const char *about) {
    llmc_wrap *wrap = llmc_wrap_new();
    if (wrap && show_wrapped(wrap, about, (int64_t)strlen(about)) == 0) show_wrapped(wrap, NULL, 0);
    llmc_wrap_free(wrap);
    show("\n\n", 2);
}

static int talk_at_terminal(llmc_chat *chat, char **line, size_t *room) {
    ssize_t n = 0;
    int rc, told;
    introduce(llmc_chat_about(chat));
    for (;;) {
        while (!line_comes(llmc_chat_label(chat, 0))) puts("");
        if ((n = getline(line, room, stdin)) < 0) return puts(""), 0;
        interrupts = 0;
        if ((rc = answer_or_tell(chat, *line, n, llmc_chat_label(chat, 1), &told)) < 0) return rc;
    }
}

static int talk_in_a_pipe(llmc_chat *chat, char **line, size_t *room) {
    ssize_t n;
    int rc = 0, status = 0;
    while (rc == 0 && !ferror(stdout) && (n = getline(line, room, stdin)) >= 0)
        rc = answer_or_tell(chat, *line, n, "", &status);
    return interrupts ? INTERRUPTED : rc < 0 ? rc : status;
}

static int talk(const llmc_options *options) {
    llmc_chat *chat;
    char prompt[4096], *line = NULL;
    size_t room = 0;
    const int one_turn = llmc_options_is_given(options, "prompt");
    at_terminal = !one_turn && isatty(STDIN_FILENO);
    catch_interrupts();
    llmc_on_pulse(on_pulse, NULL);
    int rc = llmc_chat_new(&chat, options);
    if (rc < 0) return rc;
    llmc_options_get(options, "prompt", prompt, sizeof prompt);
    if (one_turn) rc = answer(chat, prompt, (int64_t)strlen(prompt), "");
    else rc = at_terminal ? talk_at_terminal(chat, &line, &room) : talk_in_a_pipe(chat, &line, &room);
    free(line);
    llmc_chat_free(chat);
    return rc;
}

int main(int argc, char **argv) {
    hold_streams();
    llmc_options *options = llmc_options_new_chat();
    int rc = options ? llmc_options_parse(options, argc - 1, (const char *const *)argv + 1) : LLMC_ENOMEM;
    if (rc > 0) return settle_output(PROGRAM, tell_about(rc, "./chat_gpt2", options));
    if (rc == 0) rc = talk(options);
    llmc_options_free(options);
    return settle_output(PROGRAM, rc < 0 ? fail(PROGRAM, rc) : rc);
}
