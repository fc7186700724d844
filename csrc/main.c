/* ./train_gpt2: the trainer on the command line. Prints what the events say; decides nothing. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>
#include "pyllmc.h"

enum { INTERRUPTED = 130 };
static llmc_trainer *trainer;
static volatile sig_atomic_t interrupted;

static void on_signal(int number) {
    interrupted = 1;
    if (trainer) llmc_trainer_stop(trainer); /* the step under way is finished and saved */
    signal(number, SIG_DFL);                 /* a second signal ends at once */
}

static int fail(int status) {
    fprintf(stderr, "train_gpt2: %s\n", llmc_last_error());
    return 1 - status; /* EINVAL 2, ENOMEM 3, EFORMAT 4, EIO 5, EDEVICE 6, ENUMERIC 7 */
}

static int help(void) {
    static char text[1 << 16];
    llmc_options_help(text, sizeof text);
    printf("train a GPT-2: ./train_gpt2 [--name=value ...]\n\n%s", text);
    return 0;
}

/* without --data and --resume: the stories, which python3's standard library makes once */
static int make_default_data(const llmc_options *options) {
    char data[4096], resume[4096], meta[sizeof data + sizeof "/meta.json"];
    llmc_options_get(options, "data", data, sizeof data);
    llmc_options_get(options, "resume", resume, sizeof resume);
    snprintf(meta, sizeof meta, "%s/meta.json", data);
    if (llmc_options_is_given(options, "data") || *resume || access(meta, F_OK) == 0) return 0;
    fprintf(stderr, "making %s\n", data);
    const int status = system("python3 -m pyllmc.stories");
    if (status == 0) return 0;
    if (WIFSIGNALED(status) || WEXITSTATUS(status) == INTERRUPTED)
        return INTERRUPTED; /* Ctrl-C goes to the child too */
    fprintf(stderr, "train_gpt2: %s could not be made: run in the checkout with python3 >= 3.9, or give --data\n",
            data);
    return 5;
}

static void show(int kind, const llmc_event *event) {
    if (!event->text_size) return;
    if (kind == LLMC_SAMPLE) fputs("sample: ", stdout);
    fwrite(event->text, 1, (size_t)event->text_size, stdout);
    putchar('\n');
    fflush(stdout);
}

static int run(const llmc_options *options) {
    llmc_event event;
    int kind = llmc_trainer_new(&trainer, options);
    if (kind < 0) return fail(kind);
    if (interrupted) llmc_trainer_stop(trainer); /* while the data was opened */
    while ((kind = llmc_trainer_next(trainer, &event)) > 0) show(kind, &event);
    return kind < 0 ? fail(kind) : interrupted ? INTERRUPTED : 0;
}

/* OpenMP reads its settings before main: start again with them */
static void settle_threads(char **argv) {
    char count[16];
    if (getenv("GOMP_SPINCOUNT") || getenv("OMP_WAIT_POLICY")) return;
    snprintf(count, sizeof count, "%d", LLMC_SPIN);
    if (setenv("GOMP_SPINCOUNT", count, 1) == 0) execv("/proc/self/exe", argv); /* if that fails, go on as we are */
}

int main(int argc, char **argv) {
    settle_threads(argv);
    llmc_options *options = llmc_options_new();
    const int parsed = options ? llmc_options_parse(options, argc - 1, (const char *const *)argv + 1) : LLMC_ENOMEM;
    if (parsed < 0) return fail(parsed);
    if (parsed == 1) return help();
    signal(SIGINT, on_signal);
    signal(SIGTERM, on_signal);
    signal(SIGPIPE, SIG_IGN); /* whoever read the lines has gone: the run goes on */
#ifdef SIGXFSZ
    signal(SIGXFSZ, SIG_IGN); /* a file-size limit is a write that fails */
#endif
    int code = make_default_data(options);
    if (code == 0) code = run(options);
    llmc_trainer_free(trainer);
    llmc_options_free(options);
    return code;
}
