/* The options as a struct, for whoever acts on them. */
#ifndef OPTIONS_H
#define OPTIONS_H
#include <stddef.h>
#include "pyllmc.h"

enum { OPTION_TEXT = 1024 }; /* bytes a STRING may take */
typedef int64_t OPTION_INT;
typedef int64_t OPTION_FLAG;
typedef double OPTION_FLOAT;
typedef char OPTION_STRING[OPTION_TEXT];

enum { FOR_TRAINING = 1, FOR_CHAT = 2 }; /* programs */
/* The value of NAME_given, if that option was given: in the file of --config, or in the call itself. */
enum { BY_FILE = 1, BY_CALL = 2 };

struct llmc_options {
    int program;
    /* --model as the file of --config has it; "" if it has none. */
    char file_model[OPTION_TEXT];
    /* The file to read for --model, if a front end has converted that to our format; "": --model itself. */
    char model_file[OPTION_TEXT];
#define OPTION(type, name, ...) OPTION_##type name;
#include "options.def"
#define OPTION(type, name, ...) unsigned char name##_given;
#include "options.def"
};

enum { IS_INT, IS_FLAG, IS_FLOAT, IS_STRING, IS_HEADING };
typedef struct Option { /* a row of the table */
    const char *name, *initial, *help;
    int type, programs; /* a heading of --help is of no program */
    size_t offset, given;
    double least, most;
    int of_call;
} Option;
extern const Option option_table[];
extern const int option_rows;

/* The first row from `o` on that is of the program these options are for; NULL: there is none left. */
const Option *option_from(const llmc_options *options, const Option *o);
#define EACH_OPTION(o, options)                           \
    const Option *o = option_from(options, option_table); \
    o;                                                    \
    o = option_from(options, o + 1)
/* The option of this name, or the error that says which is meant. */
int option_find(const llmc_options *options, const char *name, const Option **found);
int option_assign(llmc_options *options, const Option *o, const char *value);
void option_value(const llmc_options *options, const Option *o, char text[OPTION_TEXT]);
void option_default(const Option *o, char text[OPTION_TEXT]);
unsigned char *option_given(llmc_options *options, const Option *o);

/* Takes the lines of a file for what was not given by a call; all of them or none. */
int options_read(llmc_options *options, const char *path);
/* The lines of a run's config.txt; `history`, lines without their #, and what is of one call only are comments. NULL without
 * memory; the caller frees it, as the next. */
char *options_config(const llmc_options *options, const char *history);
/* name=value, a line each: a checkpoint's record, behind which come lines of `history`, each with its #. */
char *options_record(const llmc_options *options, const char *history);
/* Whether its value is the table's. */
int option_is_default(const llmc_options *options, const Option *o);
/* Whether what a run computes may depend on it: not if it is of one call only, or of one machine, as --threads. */
int option_is_of_run(const Option *o);

/* Takes a line of a checkpoint, unless the option was given, is of one call only, or is of another version; an empty value is
 * the default, as an older version spelt it. */
int options_adopt(llmc_options *options, const char *name, const char *value);
#endif
