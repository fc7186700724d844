/* A template: how a turn and its answer become text, in fine-tuning (pyllmc/text/template.py) and in a chat alike. It is one
 * line, in which \n, \t, \r and \\ stand for characters:
 *
 *     {system}\n\nUser: {prompt}\nAssistant: {answer}\n
 *     |opening  |before        |between     |end of the answer
 *
 * The opening stands once, before the first turn, if there is a system text. It ends at {turn}, which stands for nothing; in a
 * template without {turn}, behind the blanks that follow {system}. The spaces before {answer} belong to the answer, because a
 * word and the space before it are one token in most vocabularies. */
#ifndef TEMPLATE_H
#define TEMPLATE_H
#include "base/growing.h"
#include "options/options.h"

typedef struct Template {
    char text[OPTION_TEXT]; /* its characters without the {places}, whose offsets follow */
    int system, turn, prompt, spaces, answer,
        n; /* system -1: there is none; spaces: those before the answer; n: the end */
} Template;
/* What a value of --template means: auto, chat, story; or a template, whose text `line` is set to. */
enum { TEMPLATE_STORY, TEMPLATE_CHAT, TEMPLATE_AUTO, TEMPLATE_TEXT };
int template_kind(const char *value, const char **line);
int template_parse(Template *t, const char *line);
/* Refuses a value of --template that means nothing. */
int template_check(const char *value);
/* Makes the text that a sample begins with: the prompt, as a turn up to its answer if `value` is a template and the prompt is not
 * empty; and the stop of its answer, "" without a template. The caller frees both, which are NULL after an error. */
int template_prompt(const char *value, const char *prompt, char **text, char **stop);
/* Append what stands before and behind the system text, before and behind a prompt, and behind an answer. */
void template_add_opening(const Template *t, Growing *text, const char *system);
void template_add_before(const Template *t, Growing *text);
void template_add_between(const Template *t, Growing *text);
void template_add_end(const Template *t, Growing *text);
/* Appends the text at which an answer is over, even if its end is only a line break, which may also stand within it. */
void template_add_stop(const Template *t, Growing *text);
/* Sets `line` to the template that the options in a checkpoint record; to "" if they record none. */
int template_of_file(const llmc_file *file, char line[OPTION_TEXT]);
#endif
