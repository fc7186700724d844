/* ./chat_gpt2: talk with a model. It reads lines and shows text; chat.c decides who speaks when. */
#include <sys/select.h>
#include "programs/program.h"

static const char PROGRAM[] = "chat_gpt2";
static volatile sig_atomic_t interrupts; /* how many since the last turn */
static int at_terminal;

static void on_interrupt(int number) {
    (void)number;
    if (++interrupts <= 1) {
        if (!at_terminal) answer_signal("stopping; again to quit now");
        return;
    }
    if (at_terminal && write(STDOUT_FILENO, "\n", 1) < 0) _exit(INTERRUPTED); /* the shell's prompt gets its own line */
    _exit(INTERRUPTED);
}

static void catch_interrupts(void) {
    on_signal(SIGINT, on_interrupt, at_terminal); /* at a terminal an interrupt must not cut what is being shown */
    if (!at_terminal) on_signal(SIGTERM, on_interrupt, 0);
    on_signal(SIGPIPE, SIG_IGN, 0); /* if the reader has gone, a write fails instead */
}

/* Shows what is under way while the model is loaded or reads a long turn. During an answer its text is enough. */
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

/* Shows an answer on one line with its label: 0, an error, or INTERRUPTED. */
static int answer(llmc_chat *chat, const char *text, int64_t size, const char *label) {
    int rc = llmc_chat_say(chat, text, size), shown = 0;
    llmc_wrap *wrap = llmc_wrap_new();
    if (!wrap) return LLMC_ENOMEM;
    if (rc >= 0) shown = show_wrapped(wrap, label, (int64_t)strlen(label));
    while (rc >= 0 && shown == 0 && !interrupts && !ferror(stdout) && (rc = llmc_chat_next(chat, &text, &size)) > 0)
        shown = show_wrapped(wrap, text, size);
    if (shown == 0) shown = show_wrapped(wrap, NULL, 0); /* the word that was held back */
    llmc_wrap_free(wrap);
    if (rc == LLMC_STOPPED) rc = 0;
    if (rc >= 0) show("\n", 1);
    if (rc < 0) return rc;
    if (shown < 0) return shown;
    return interrupts ? INTERRUPTED : 0;
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
    if (interrupts == before && !ferror(stdout)) pselect(STDIN_FILENO + 1, &in, NULL, NULL, NULL, &usual);
    sigprocmask(SIG_SETMASK, &usual, NULL);
    return interrupts == before;
#endif
}

/* Reports a turn that was refused, e.g. because it is too long, and returns its exit code; 0 after any other outcome. The chat
 * goes on. */
static int report_refusal(int rc) { return rc == LLMC_EINVAL ? fail(PROGRAM, rc) : 0; }

static void introduce(const char *about) {
    llmc_wrap *wrap = llmc_wrap_new();
    if (wrap && show_wrapped(wrap, about, (int64_t)strlen(about)) == 0) show_wrapped(wrap, NULL, 0);
    llmc_wrap_free(wrap);
    show("\n\n", 2);
}

static int talk_at_terminal(llmc_chat *chat, char **line, size_t *capacity) {
    ssize_t n = 0;
    int rc;
    introduce(llmc_chat_about(chat));
    for (;;) {
        while (!line_comes(llmc_chat_label(chat, 0))) puts("");
        if (ferror(stdout) || (n = getline(line, capacity, stdin)) < 0) return puts(""), 0;
        interrupts = 0;
        rc = answer(chat, *line, n, llmc_chat_label(chat, 1));
        if (rc < 0 && !report_refusal(rc)) return rc;
    }
}

/* Answers every line. The exit code tells if a turn was refused. */
static int talk_in_a_pipe(llmc_chat *chat, char **line, size_t *capacity) {
    ssize_t n;
    int code = 0;
    while (!interrupts && !ferror(stdout) && (n = getline(line, capacity, stdin)) >= 0) {
        const int rc = answer(chat, *line, n, ""), refused = report_refusal(rc);
        if (rc && !refused) return rc;
        if (refused) code = refused;
    }
    if (interrupts) return INTERRUPTED;
    CHECK(!ferror(stdin), LLMC_EIO, "standard input cannot be read: %s; leave it open, or make it /dev/null",
          strerror(errno));
    return code;
}

static int talk(const llmc_options *options) {
    llmc_chat *chat;
    char prompt[4096], *line = NULL;
    size_t capacity = 0;
    const int one_turn = llmc_options_is_given(options, "prompt");
    at_terminal = !one_turn && isatty(STDIN_FILENO);
    catch_interrupts();
    llmc_on_pulse(on_pulse, NULL);
    int rc = llmc_chat_new(&chat, options);
    if (rc < 0) return rc;
    llmc_options_get(options, "prompt", prompt, sizeof prompt);
    if (one_turn) rc = answer(chat, prompt, (int64_t)strlen(prompt), "");
    else rc = at_terminal ? talk_at_terminal(chat, &line, &capacity) : talk_in_a_pipe(chat, &line, &capacity);
    free(line);
    llmc_chat_free(chat);
    return rc;
}

int main(int argc, char **argv) {
    hold_streams();
    llmc_options *options = llmc_options_new_chat();
    int rc = options ? llmc_options_parse(options, argc - 1, (const char *const *)argv + 1) : LLMC_ENOMEM;
    if (rc > 0) return finish_output(PROGRAM, show_about(rc, "./chat_gpt2", options));
    if (rc == 0) rc = talk(options);
    llmc_options_free(options);
    return finish_output(PROGRAM, rc < 0 ? fail(PROGRAM, rc) : rc);
}
