/* ./train_gpt2: the trainer on the command line. Prints what the events say; decides nothing. */
#include <sys/wait.h>
#include "program.h"

static const char PROGRAM[] = "train_gpt2";
static llmc_trainer *trainer;
static volatile sig_atomic_t interrupted;

static void on_signal(int number) {
    interrupted = 1;
    if (trainer) llmc_trainer_stop(trainer); /* the step under way is finished and saved */
    signal(number, SIG_DFL);                 /* a second signal ends at once */
}

/* The stories, which python3's standard library makes. What it says is kept for the one line that tells of a failure. */
static int make_stories(const char *data) {
    char line[512], reason[512] = "";
    fprintf(stderr, "making %s\n", data);
    FILE *maker = popen("python3 -m pyllmc.stories 2>&1", "r");
    while (maker && fgets(line, sizeof line, maker))
        if (*line != '\n') snprintf(reason, sizeof reason, "%s", line);
    const int status = maker ? pclose(maker) : -1;
    if (status == 0) return 0;
    if (status > 0 && (WIFSIGNALED(status) || WEXITSTATUS(status) == INTERRUPTED))
        return INTERRUPTED; /* Ctrl-C goes to the child too */
    reason[strcspn(reason, "\n")] = 0;
    fprintf(stderr, "train_gpt2: %s could not be made%s%s%s: run in the checkout with python3 >= 3.9, or give --data\n",
            data, *reason ? " (" : "", reason, *reason ? ")" : "");
    return 5;
}

static int check_and_make_data(const llmc_options *options) {
    char data[4096];
    const int needed = llmc_trainer_check(options);
    if (needed < 0) return fail(PROGRAM, needed);
    llmc_options_get(options, "data", data, sizeof data);
    return needed ? make_stories(data) : 0;
}

static void tell(int kind, const llmc_event *event) {
    if (!event->text_size) return;
    if (kind == LLMC_SAMPLE) fputs("sample: ", stdout);
    fwrite(event->text, 1, (size_t)event->text_size, stdout);
    show("\n", 1);
}

static int run(const llmc_options *options) {
    llmc_event event;
    int kind = llmc_trainer_new(&trainer, options);
    if (kind < 0) return fail(PROGRAM, kind);
    if (interrupted) llmc_trainer_stop(trainer); /* while the data was opened */
    while ((kind = llmc_trainer_next(trainer, &event)) > 0) tell(kind, &event);
    return kind < 0 ? fail(PROGRAM, kind) : interrupted ? INTERRUPTED : 0;
}

static int write_text(const llmc_options *options) {
    llmc_writer *writer;
    char prompt[4096];
    const char *piece;
    int64_t size;
    int rc = llmc_writer_open(&writer, options);
    if (rc < 0) return fail(PROGRAM, rc);
    llmc_options_get(options, "prompt", prompt, sizeof prompt);
    rc = llmc_writer_prompt(writer, prompt, (int64_t)strlen(prompt), 1);
    while (rc >= 0 && !interrupted && !ferror(stdout) && (rc = llmc_writer_next(writer, &piece, &size)) > 0)
        show(piece, size);
    if (rc >= 0) show("\n", 1);
    llmc_writer_free(writer);
    return rc < 0 ? fail(PROGRAM, rc) : interrupted ? INTERRUPTED : 0;
}

int main(int argc, char **argv) {
    settle_threads(argv);
    llmc_options *options = llmc_options_new();
    const int parsed = options ? llmc_options_parse(options, argc - 1, (const char *const *)argv + 1) : LLMC_ENOMEM;
    if (parsed < 0) return fail(PROGRAM, parsed);
    if (parsed > 0) return settle_output(PROGRAM, tell_about(parsed, "./train_gpt2", options));
    signal(SIGINT, on_signal);
    signal(SIGTERM, on_signal);
    signal(SIGPIPE, SIG_IGN); /* whoever read the lines has gone: the run goes on */
#ifdef SIGXFSZ
    signal(SIGXFSZ, SIG_IGN); /* a file-size limit is a write that fails */
#endif
    int code = 0;
    if (llmc_options_only_write(options)) code = write_text(options);
    else if ((code = check_and_make_data(options)) == 0) code = run(options);
    llmc_trainer_free(trainer);
    llmc_options_free(options);
    return settle_output(PROGRAM, code);
}
