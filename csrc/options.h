/* The options as a struct, for whoever acts on them. */
#ifndef OPTIONS_H
#define OPTIONS_H
#include "pyllmc.h"

enum { OPTION_TEXT = 1024 }; /* bytes a STRING may take */
typedef int64_t OPTION_INT;
typedef int64_t OPTION_FLAG;
typedef double OPTION_FLOAT;
typedef char OPTION_STRING[OPTION_TEXT];

enum { FOR_TRAINING = 1, FOR_CHAT = 2 }; /* programs */

struct llmc_options {
    int program;
    char model_file
        [OPTION_TEXT]; /* what is read instead of --model, whose format only a front end knows; "": --model itself */
#define OPTION(type, name, ...) OPTION_##type name;
#include "options.def"
#define OPTION(type, name, ...) unsigned char name##_given;
#include "options.def"
};

/* Takes a line of a checkpoint, unless the option was given, is of one call only, or is of another version; an empty value is
 * the default, as an older version spelt it. */
int options_adopt(llmc_options *options, const char *name, const char *value);
#endif
