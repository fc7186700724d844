/* ./train_gpt2: the trainer on the command line. It prints the text of each event and decides nothing. */
#include <fcntl.h>
#include <poll.h>
#ifndef __wasi__
#include <sys/wait.h>
#endif
#include <time.h>
#include "base/quote.h"
#include "programs/program.h"

static const char PROGRAM[] = "train_gpt2";
static llmc_trainer *trainer;
static volatile sig_atomic_t interrupted;

#ifdef __wasi__ /* a system without other processes and signals */
static void pass_on(int number) { (void)number; }
static int is_ignored(int number) { return (void)number, 0; }
#else
static volatile pid_t maker; /* the process that makes the data, or 0 */
static void pass_on(int number) {
    if (maker > 0) kill(maker, number);
}
static int is_ignored(int number) { /* true if the signal was ignored at the start, as under nohup */
    struct sigaction now;
    return sigaction(number, NULL, &now) == 0 && now.sa_handler == SIG_IGN;
}
#endif

/* The first signal is answered and stops the work that is under way. The second ends the program at once. */
static void answer(int number) {
    const int error = errno;
    pass_on(number);
    if (interrupted) {
        clear_live();
        _exit(INTERRUPTED);
    }
    interrupted = 1;
    if (trainer) llmc_trainer_stop(trainer);
    answer_signal(trainer ? llmc_trainer_stopping(trainer) : "stopping; again to quit now");
    errno = error;
}

/* The signals that end a run: Ctrl-C, a system's or a cluster's request (Slurm sends SIGUSR1 where it is told to), a terminal that has
 * gone. */
static const int ENDING[] = {SIGINT, SIGTERM, SIGUSR1, SIGHUP};
enum { NUM_ENDING = sizeof ENDING / sizeof *ENDING };

static void catch_signals(void) {
    for (int i = 0; i < NUM_ENDING; i++)
        if (!is_ignored(ENDING[i])) on_signal(ENDING[i], answer, 1);
    on_signal(SIGPIPE, SIG_IGN, 0); /* if the reader of the lines has gone, the run goes on */
#ifdef SIGXFSZ
    on_signal(SIGXFSZ, SIG_IGN, 0); /* at a file-size limit a write fails instead */
#endif
}

#ifdef __wasi__ /* it has no signals to answer */
static int on_pulse(void *context, const char *text) {
    (void)context;
    show_live(text);
    return interrupted;
}
#else
/* Drops the first line after the answer to a signal, because it may describe work from before the signal. */
static int on_pulse(void *context, const char *text) {
    static int is_answered;
    sigset_t ending, usual;
    (void)context;
    sigemptyset(&ending);
    for (int i = 0; i < NUM_ENDING; i++) sigaddset(&ending, ENDING[i]);
    sigprocmask(SIG_BLOCK, &ending, &usual);
    if (!interrupted || is_answered) show_live(text);
    is_answered = interrupted;
    sigprocmask(SIG_SETMASK, &usual, NULL);
    return interrupted;
}
#endif

/* ---- the default data ---- */

#ifdef __wasi__
static int make_stories(const llmc_options *options, const char *data) {
    (void)options;
    fprintf(stderr, "train_gpt2: there is no %s, and this system starts no program that would make it: give --data\n",
            data);
    return 5;
}
#else
/* Runs the command that makes the stories, with its output going into `out`, in place of this (child) process. */
static void become_maker(int out) {
    dup2(out, STDOUT_FILENO);
    dup2(out, STDERR_FILENO);
    execlp("python3", "python3", "-m", "pyllmc.stories", (char *)NULL);
    fprintf(stderr, "python3: %s\n", strerror(errno));
    _exit(127);
}

/* Reads the output of the child and keeps its last line. Twice a second it shows how long the work has taken. */
static void listen_to_maker(int pipe, const char *data, char *line, size_t size) {
    char text[512];
    const time_t began = time(NULL);
    struct pollfd in = {.fd = pipe, .events = POLLIN};
    size_t n = 0;
    for (;;) {
        char c;
        if (poll(&in, 1, 500) <= 0) {
            snprintf(text, sizeof text, "making %.400s: %ld s", data, (long)(time(NULL) - began));
            show_live(text);
            continue;
        }
        if (read(pipe, &c, 1) <= 0) break;
        if (c == '\n') n = 0; /* an empty line does not replace the one before */
        else if (n + 1 < size) line[n++] = c, line[n] = 0;
    }
    show_live("");
}

/* Runs the maker until it ends. Returns its status as waitpid does, -1 if it cannot be started; and its last line of output. */
static int run_maker(const char *data, char *line, size_t size) {
    int ends[2], status = -1;
    if (pipe(ends) < 0) return -1;
    fcntl(ends[0], F_SETFD, FD_CLOEXEC);
    if ((maker = fork()) == 0) become_maker(ends[1]);
    close(ends[1]);
    if (maker > 0) listen_to_maker(ends[0], data, line, size);
    close(ends[0]);
    while (maker > 0 && waitpid(maker, &status, 0) < 0 && errno == EINTR) {
    }
    maker = 0;
    return status;
}

/* Tells why the stories could not be made, and returns the exit code. The last line of the maker's output is an error of its
 * own, with a reason and a remedy, or it is of a Python that cannot run the maker at all. */
static int tell_maker_failed(const char *data, const char *line, int status) {
    static const char maker_says[] = "pyllmc.stories: ";
    const size_t n = sizeof maker_says - 1;
    const int its_own = status > 0 && !strncmp(line, maker_says, n);
    if (its_own) fprintf(stderr, "train_gpt2: %s, or give --data\n", line + n);
    else
        fprintf(stderr,
                "train_gpt2: %s cannot be made, because python3 -m pyllmc.stories does not run here: run in the "
                "checkout with python3 >= 3.9, or give --data\n",
                data);
    return its_own ? WEXITSTATUS(status) : 1 - LLMC_EIO;
}

/* Makes the stories with python3, unless another process makes them meanwhile. */
static int make_stories(const llmc_options *options, const char *data) {
    char line[4096] = "";
    fprintf(stderr, "making %s\n", data);
    const int status = run_maker(data, line, sizeof line);
    if (interrupted) return INTERRUPTED;
    if (status == 0) return 0;
    if (status > 0 && (WIFSIGNALED(status) || WEXITSTATUS(status) == INTERRUPTED))
        return INTERRUPTED; /* Ctrl-C reaches the child too */
    return llmc_trainer_check(options) ? tell_maker_failed(data, line, status) : 0;
}
#endif

static int check_and_make_data(llmc_options *options) {
    char data[4096];
    const int settled = llmc_options_settle_resume(options);
    if (settled < 0) return fail(PROGRAM, settled);
    if (llmc_options_is_given(options, "resume"))
        return 0; /* the run's data is there, or llmc_trainer_new says that it is not */
    const int needed = llmc_trainer_check(options);
    if (needed < 0) return fail(PROGRAM, needed);
    llmc_options_get(options, "data", data, sizeof data);
    return needed ? make_stories(options, data) : 0;
}

/* ---- training ---- */

static void tell(int kind, const llmc_event *event) {
    if (!event->text_size) return;
    clear_live();
    if (kind == LLMC_SAMPLE) fputs("sample: ", stdout);
    fwrite(event->text, 1, (size_t)event->text_size, stdout);
    show("\n", 1);
}

/* The Python for the commands that are suggested: the one of `make setup` beside the program, else the system's. */
static void find_python(const char *program, char *python, size_t size) {
    const char *slash = strrchr(program, '/');
    const int n = !slash || !strncmp(program, "./", (size_t)(slash - program) + 1) ? 0 : (int)(slash - program) + 1;
    snprintf(python, size, "%.*s.venv/bin/python", n, program);
    if (access(python, X_OK) < 0) snprintf(python, size, "python3");
}

/* Tells the result and what to do next, on stderr, because stdout has the lines of the run itself. */
static void tell_ending(const char *program) {
    char text[1 << 15], python[4096];
    char quoted[2][QUOTED];
    find_python(program, python, sizeof python);
    quote(program, quoted[0]);
    quote(python, quoted[1]);
    if (llmc_trainer_ending(trainer, quoted[0], quoted[1], text, sizeof text) == 0) fputs(text, stderr);
}

static int run(const llmc_options *options, const char *program) {
    llmc_event event;
    int kind = llmc_trainer_new(&trainer, options);
    if (kind < 0) return fail(PROGRAM, kind);
    if (interrupted) llmc_trainer_stop(trainer); /* a signal came while the data was opened */
    while ((kind = llmc_trainer_next(trainer, &event)) > 0) tell(kind, &event);
    clear_live();
    if (kind == 0) tell_ending(program);
    if (kind < 0) return fail(PROGRAM, kind);
    return interrupted ? INTERRUPTED : 0;
}

/* Tells on stderr which checkpoint of a run folder writes, and which other one there is. */
static void tell_weights(const llmc_options *options, const char *program) {
    char model[4096], quoted[QUOTED], before[QUOTED + 16], text[1 << 14];
    llmc_options_get(options, "model", model, sizeof model);
    quote(program, quoted);
    snprintf(before, sizeof before, "%s --model=", quoted);
    if (llmc_run_told(model, before, " --max_steps=0 --prompt=", text, sizeof text) == 0 && *text)
        fprintf(stderr, "%s: %s\n", PROGRAM, text);
}

static int write_text(const llmc_options *options, const char *program) {
    llmc_writer *writer;
    const char *text;
    int64_t size;
    int rc = llmc_writer_open(&writer, options);
    if (rc < 0) return fail(PROGRAM, rc);
    tell_weights(options, program);
    rc = llmc_writer_begin(writer, options);
    while (rc >= 0 && !interrupted && !ferror(stdout) && (rc = llmc_writer_next(writer, &text, &size)) > 0)
        show(text, size);
    if (rc >= 0) show("\n", 1);
    llmc_writer_free(writer);
    if (rc < 0) return fail(PROGRAM, rc);
    return interrupted ? INTERRUPTED : 0;
}

int main(int argc, char **argv) {
    hold_streams();
    llmc_options *options = llmc_options_new();
    const int parsed = options ? llmc_options_parse(options, argc - 1, (const char *const *)argv + 1) : LLMC_ENOMEM;
    if (parsed < 0) return fail(PROGRAM, parsed);
    if (parsed > 0) return finish_output(PROGRAM, show_about(parsed, "./train_gpt2", options));
    catch_signals();
    llmc_on_pulse(on_pulse, NULL);
    int code = 0;
    if (llmc_options_only_write(options)) code = write_text(options, *argv);
    else if ((code = check_and_make_data(options)) == 0) code = run(options, *argv);
    llmc_trainer_free(trainer);
    llmc_options_free(options);
    return finish_output(PROGRAM, code);
}
