/* The options as a struct, for the code that acts on them */
#ifndef OPTIONS_H
#define OPTIONS_H
#include <stddef.h>
#include "frontends.h"

enum { OPTION_TEXT = 1024 }; /* the most bytes of a STRING */
typedef int64_t OPTION_INT;
typedef int64_t OPTION_FLAG;
typedef double OPTION_FLOAT;
typedef char OPTION_STRING[OPTION_TEXT];

enum { FOR_TRAINING = 1, FOR_CHAT = 2 }; /* the programs */
/* The value of NAME_given: the option was set by the file of --config, or by the call itself; 0: by neither. */
enum { BY_FILE = 1, BY_CALL = 2 };

struct llmc_options {
    int program;
    const llmc_team *team; /* NULL: this process trains alone */
    int examines;          /* the front end scores --eval_tasks */
    /* The --model that the file of --config sets; "" if it sets none. */
    char file_model[OPTION_TEXT];
    /* The file to read for --model, if a front end has converted those weights to our format; "": --model itself. */
    char model_file[OPTION_TEXT];
    /* The file to read for the base of adapters; "": the one that they name. */
    char base_file[OPTION_TEXT];
#define OPTION(type, name, ...) OPTION_##type name;
#include "options.def"
#define OPTION(type, name, ...) unsigned char name##_given;
#include "options.def"
};

enum { IS_INT, IS_FLAG, IS_FLOAT, IS_STRING, IS_HEADING };
typedef struct Option { /* a row of the table */
    const char *name, *initial, *help;
    int type, programs; /* a heading of --help has no program */
    size_t offset, given;
    double least, most;
    int of_call;
} Option;
extern const Option option_table[];
extern const int option_rows;

/* The first row from `o` on that belongs to the program of these options; NULL: none is left. */
const Option *option_from(const llmc_options *options, const Option *o);
#define EACH_OPTION(o, options)                           \
    const Option *o = option_from(options, option_table); \
    o;                                                    \
    o = option_from(options, o + 1)
/* Finds the option of this name. If there is none, the error names the one that was probably meant. */
int option_find(const llmc_options *options, const char *name, const Option **found);
int option_assign(llmc_options *options, const Option *o, const char *value);
void option_value(const llmc_options *options, const Option *o, char text[OPTION_TEXT]);
void option_default(const Option *o, char text[OPTION_TEXT]);
unsigned char *option_given(llmc_options *options, const Option *o);

/* --dropout becomes the value of --embd_pdrop, --attn_pdrop and --resid_pdrop, unless these were given, too. What a file gives
 * counts for less than what the call gives. */
void options_settle_dropout(llmc_options *options);

/* Sets the options that a file names, unless the call set them; all of its lines or none. */
int options_read(llmc_options *options, const char *path);
#define CONFIG_BEGIN "# The options of a run," /* begins the text of options_config */
/* The lines of a run's config.txt. The lines of `history`, given without #, and the options of one call only become
 * comments. NULL if memory ran out; the caller frees the text. The same holds for options_record. */
char *options_config(const llmc_options *options, const char *history);
/* The record in a checkpoint: one line name=value an option, then the lines of `history`, which have their #. */
char *options_record(const llmc_options *options, const char *history);
/* 1 if its value is the table's */
int option_is_default(const llmc_options *options, const Option *o);
/* 1 if the results of a run may depend on it. They do not if it belongs to one call only, or to one machine, as
 * --threads. */
int option_is_of_run(const Option *o);

/* Sets an option from a line of a checkpoint. The line is skipped if the option was given, belongs to one call only, or
 * is unknown, because another version wrote it. An empty value is skipped, too: older versions wrote it for the
 * default. */
int options_adopt(llmc_options *options, const char *name, const char *value);
#endif
