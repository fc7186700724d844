/* A chat: {u8 how; u8 seed; u8 most tokens of an answer; u8 pieces read of one; --user; --bot; --system; some turns}, a
 * line each. how & STORY: the other template. No answer contains a line of either speaker, however often the context is
 * full. */
#define _GNU_SOURCE
#include <stdio.h>
#include <string.h>
#include "base/binfile.h"
#include "fuzz.h"
#include "model/gpt2.h"
#include "options/options.h"
#include "write/writer.h"

enum { STORY = 1, T = 48, BYTES = 128, MOST = 24, TURNS = 8 };

static llmc_model *model, as_made;
static llmc_tokenizer *tokenizer;

/* Fills the weights from a few bytes, so that the state before does not matter, and so that lines that begin like a
 * speaker's are common. */
static void fill(llmc_model *m) {
    float *wte = m->params, *lnfb = m->params + m->layout.num_params - m->config.C;
    memset(m->params, 0, (size_t)m->layout.num_params * sizeof *m->params);
    for (int i = 0; i < BYTES; i++) wte[i * m->config.C] = i && strchr("AB:\n x", i) ? 9 : -9;
    lnfb[0] = 1;
}

/* Makes a model of ASCII's bytes, and their tokenizer. Both are only read, except for the results of a forward pass. */
static void prepare(void) {
    const llmc_config config = {.maxT = T, .V = BYTES, .L = 1, .NH = 1, .C = 2};
    const int32_t head[HEADER_INTS] = {TOKENIZER_MAGIC, 2, BYTES, -1, 1};
    uint8_t file[HEADER_BYTES + 2 * BYTES];
    memcpy(file, head, HEADER_BYTES);
    for (int i = 0; i < BYTES; i++) file[HEADER_BYTES + 2 * i] = 1, file[HEADER_BYTES + 2 * i + 1] = (uint8_t)i;
    fuzz_expect(fuzz_status(llmc_tokenizer_read(&tokenizer, file, sizeof file, "tokenizer.bin")) == 0);
    fuzz_expect(fuzz_status(llmc_model_create(&model, &config, &(llmc_room){.B = 1, .T = T}, 1)) == 0);
    fill(model);
    as_made = *model;
}

static void set_line(llmc_options *options, Input *in, const char *name) {
    char *line = take_line(in);
    fuzz_status(llmc_options_set(options, name, line));
    free(line);
}

/* A speaker's line may only begin an answer, never follow in it. */
static void expect_no_line_of(const char *name, const char *answer, size_t size) {
    char line[OPTION_TEXT + 4];
    const int n = snprintf(line, sizeof line, "\n%s:", name);
    fuzz_expect(!memmem(answer, size, line, (size_t)n));
}

static void listen(llmc_chat *chat, const llmc_options *o, int pieces, int dialogue) {
    char answer[8 * MOST];
    const char *piece;
    int64_t n, size = 0;
    int rc = 1;
    while (pieces-- && (rc = fuzz_status(llmc_chat_next(chat, &piece, &n))) > 0) {
        fuzz_expect(n > 0 && (!dialogue || size + n <= (int64_t)sizeof answer));
        if (dialogue) memcpy(answer + size, piece, (size_t)n);
        size += n;
    }
    fuzz_expect(rc >= 0 && (rc || llmc_chat_end(chat) != LLMC_GOING_ON));
    if (!dialogue) return;
    expect_no_line_of(o->user, answer, (size_t)size);
    expect_no_line_of(o->bot, answer, (size_t)size);
}

static void talk(llmc_chat *chat, const llmc_options *o, Input in, int pieces, int dialogue) {
    for (int turns = 0; in.left && turns < TURNS; turns++) {
        char *turn = take_line(&in);
        if (fuzz_status(llmc_chat_say(chat, turn, (int64_t)strlen(turn))) == 0) listen(chat, o, pieces, dialogue);
        free(turn);
    }
}

static llmc_chat *open_chat(const llmc_options *o) {
    const llmc_sampling how = writer_sampling(o);
    llmc_writer *writer;
    llmc_chat *chat;
    if (!model) prepare();
    *model = as_made; /* the cache is empty */
    fuzz_expect(fuzz_status(llmc_writer_new(&writer, model, tokenizer, &how, o->sample_tokens)) == 0);
    return fuzz_status(chat_new(&chat, writer, o)) == 0 ? chat : NULL;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    Input in = {data, size < 512 ? size : 512};
    llmc_options *o = fuzz_options(1);
    const int how = take_byte(&in);
    strcpy(o->template, how & STORY ? "story" : "chat");
    o->seed = take_byte(&in), o->sample_tokens = take_byte(&in) % MOST + 1, o->temperature = 1;
    const int pieces = take_byte(&in) % (2 * MOST);
    set_line(o, &in, "user");
    set_line(o, &in, "bot");
    set_line(o, &in, "system");
    llmc_chat *chat = open_chat(o);
    if (chat) talk(chat, o, in, pieces, !(how & STORY));
    llmc_chat_free(chat);
    free(o);
    return 0;
}
