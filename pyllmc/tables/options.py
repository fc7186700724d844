"""The options, csrc/options.def, read as text: an argparse parser for the same table that ./train_gpt2 uses."""

from __future__ import annotations

import argparse
import errno
import functools
import os
import re
import sys
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn, Union

from pyllmc import __version__
from pyllmc.base.errors import EXIT_CODES, run_command
from pyllmc.base.files import is_named_pipe
from pyllmc.base.values import at_least, number, unescaped, whole
from pyllmc.tables.help import EXAMPLES, Help
from pyllmc.tables.layout import table_lines

__all__ = ["Parser", "at_least", "number", "unescaped", "whole"]

Value = Union[int, float, str, bool]
WORDS = {word: True for word in ("1", "true", "True", "yes", "on")}
WORDS.update({word: False for word in ("0", "false", "False", "no", "off")})
METAVAR = {"INT": "N", "FLOAT": "X", "STRING": "TEXT"}


MOST_MEANT = 8


class Option(NamedTuple):
    type: str  # INT, FLOAT, STRING or FLAG
    name: str
    default: Value
    least: float  # bounds of a number: least <= value <= most; of an INT they are whole, because a float would round 2^63 - 1
    most: float
    help: str
    group: str = ""  # the option's heading in --help

    def read(self, text: str) -> Value:
        """The value that a text gives the option. Raises argparse.ArgumentTypeError with the reason."""
        if self.type == "STRING":
            return text
        if self.type == "FLAG":
            if text not in WORDS:
                raise argparse.ArgumentTypeError(f"{text!r} is neither yes nor no")
            return WORDS[text]
        value = whole(text) if self.type == "INT" else number(text)
        if not self.least <= value <= self.most:
            below = ": it must be at least 0 and below 1" if self.most < 1 else ""
            form = "d" if self.type == "INT" else ".10g"
            raise argparse.ArgumentTypeError(
                f"{text} is not in {self.least:{form}}..{self.most:{form}}{below}"
            )
        return value


HELP_ROWS = ("ABOUT(", "CHAT_ABOUT(", "EXAMPLE(", "CHAT_EXAMPLE(")
OF_TRAINING = ("OPTION", "CALL", "SHARED", "SHARED_CALL")
OF_ANY = (*OF_TRAINING, "CHAT")
OTHER_ROWS = ("GROUP(", "OF_CHAT(", "ALIAS(", "SYNONYM(", "TEMPLATE(", *HELP_ROWS)
ROW = re.compile(
    r'(OPTION|SHARED|CHAT|CALL|SHARED_CALL)\((\w+), (\w+), ("[^"]*"|[^",]+), ([^",]+), ([^",]+), "([^"]*)"\)'
)


@functools.cache
def options(*kinds: str) -> dict[str, Option]:
    """Options by name, in the table's order: those of training, or those of the given kinds of row."""
    found: dict[str, Option] = {}
    group = ""
    for line in table_lines("options.def"):
        if line.startswith("GROUP("):
            group = line[len('GROUP("') : -len('")')]
        if line.startswith(OTHER_ROWS):
            continue
        row = ROW.fullmatch(line)
        if not row:
            raise ValueError(
                f"options.def: this row is not OPTION(type, name, default, least, most, help): {line}"
            )
        table, kind, name, default, least, most, text = row.groups()
        bound = whole if kind == "INT" else float
        option = Option(kind, name, "", bound(least), bound(most), text, group)
        if table in (kinds or OF_TRAINING):
            found[name] = option._replace(default=option.read(default.strip('"')))
    return found


def _pairs(row: str) -> dict[str, str]:
    found = (re.fullmatch(rf"{row}\((\w+), (\w+)\)", line) for line in table_lines("options.def"))
    return {pair[1]: pair[2] for pair in found if pair}


@functools.cache
def aliases() -> dict[str, str]:
    """An option's name in other trainers -> its name here."""
    return _pairs("ALIAS")


@functools.cache
def synonyms() -> dict[str, str]:
    """A second name of an option in this project -> its name in the table. Every program takes both."""
    return _pairs("SYNONYM")


@functools.cache
def templates() -> dict[str, str]:
    """The templates that have a name -> their line (pyllmc.text.template)."""
    found = (re.fullmatch(r'TEMPLATE\((\w+), "(.*)"\)', line) for line in table_lines("options.def"))
    return {row[1]: row[2].replace("\\\\", "\\") for row in found if row}


def own_name(name: str, names: Container[str]) -> str:
    """The member of `names` that is `name` or means the same; else `name` itself."""
    if name in names:
        return name
    same = [
        ours if name == theirs else theirs for theirs, ours in synonyms().items() if name in (theirs, ours)
    ]
    return next((other for other in same if other in names), name)


def distance(a: str, b: str) -> int:
    """Levenshtein's distance: the fewest letters to insert, delete or replace to make b of a."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a):
        diagonal, row[0] = row[0], i + 1
        for j, y in enumerate(b):
            diagonal, row[j + 1] = row[j + 1], min(diagonal + (x != y), row[j] + 1, row[j + 1] + 1)
    return row[-1]


def is_part(word: str, name: str) -> bool:
    """True if a word is one part of a name, or several parts in a row. _ separates the parts."""
    return len(word) >= 3 and f"_{word}_" in f"_{name}_"


def meant(name: str, names: Sequence[str]) -> list[str]:
    """The members of `names` that a misspelt, foreign or shortened name may mean; csrc/options/options.c finds the same."""
    if name in aliases() and own_name(aliases()[name], names) in names:
        return [own_name(aliases()[name], names)]
    near = min(names, key=lambda other: distance(name, other), default="")
    near_enough = (len(name) + 1) // 3 if len(name) > 3 else 1  # two swapped letters are a distance of 2
    if near and distance(name, near) <= near_enough and name not in aliases():
        return [near]
    return [other for other in names if is_part(name, other)][:MOST_MEANT]


def one_of(names: Sequence[str]) -> str:
    """The names as a choice: a, b or c."""
    return ", ".join(names[:-1]) + " or " + names[-1] if len(names) > 1 else "".join(names)


def did_you_mean(name: str, names: Sequence[str]) -> str:
    """The end of the line that refuses an unknown option."""
    found = [f"--{other}" for other in meant(name, names)]
    return f"did you mean {one_of(found)}?" if found else "--help lists them"


def read_config(path: str, known: Mapping[str, Option]) -> dict[str, str]:
    """The options in a file, by name; csrc/options/optionfile.c reads the same.

    Raises ValueError with file and line, OSError.
    """
    inside = os.path.join(path, "config.txt")  # `path` may be a run's folder
    path = inside if os.path.exists(inside) else path
    if is_named_pipe(path):
        remedy = "it is a named pipe, which nobody may ever write into; name a file, or pipe it into --config=/dev/stdin"
        raise OSError(errno.EINVAL, remedy)
    found: dict[str, str] = {}
    with open(path, "rb") as file:
        content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise ValueError(f"{path} is longer than 1 MiB: this is no file of options")
    for row, line in enumerate(content.decode("utf-8-sig", "surrogateescape").split("\n"), 1):
        try:
            pair = _config_line(line, known)
            if pair and pair[0] in found:
                raise argparse.ArgumentTypeError(f"--{pair[0]} stands here a second time")
            found.update([pair] if pair else [])
        except argparse.ArgumentTypeError as error:
            raise ValueError(f"{path}:{row}: {error}") from None
    return found


LARGEST = 1 << 20  # bytes of a file at most, as in csrc/options/optionfile.c
BLANKS = " \t\r\n"
COMMENT = re.compile(r"(?:^|(?<=[ \t]))#.*", re.S)
QUOTED = re.compile(r'"((?:\\["\\]|[^"])*)"(.*)', re.S)


def _config_line(line: str, known: Mapping[str, Option]) -> tuple[str, str] | None:
    if "\0" in line:
        raise argparse.ArgumentTypeError("a NUL byte: this is no text")
    name, equals, value = (part.strip(BLANKS) for part in line.partition("="))
    if not line.strip(BLANKS) or name.startswith("#"):
        return None
    if not equals:
        raise argparse.ArgumentTypeError(f"'{name[:40]}' is no line name=value")
    if value.startswith('"'):
        quoted = QUOTED.fullmatch(value)
        if not quoted:
            raise argparse.ArgumentTypeError('a closing " is missing')
        if COMMENT.sub("", quoted[2]).strip(BLANKS):
            raise argparse.ArgumentTypeError('nothing but a # comment may stand behind the closing "')
        value = re.sub(r'\\(["\\])', r"\1", quoted[1])
    else:
        value = COMMENT.sub("", value).strip(BLANKS)
    name = own_name(name.replace("-", "_"), known)
    if name == "config":
        raise argparse.ArgumentTypeError("a file of options cannot name another one")
    if name not in known:
        raise argparse.ArgumentTypeError(f"unknown option --{name}: {did_you_mean(name, list(known))}")
    try:
        known[name].read(value)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"--{name}: {error}") from None
    return name, value


def _names_in(args: Sequence[str]) -> frozenset[str]:
    """The options that arguments name."""
    return frozenset(arg[2:].partition("=")[0].removeprefix("no_") for arg in args if arg.startswith("--"))


class Parser(argparse.ArgumentParser):
    """argparse with the manners of ./train_gpt2: --version, and --help that ends with examples and the exit codes.

    --max-steps means --max_steps. If an option is given twice, the last one counts. The error for a misspelt option
    names the right one. Errors are one line and exit code 2. called: the names on the last command line; given: those, and
    the names in its --config.
    """

    given: frozenset[str] = frozenset()
    called: frozenset[str] = frozenset()

    def __init__(
        self, *args: Any, examples: Sequence[str] = (), epilog: str | None = None, **kwargs: Any
    ) -> None:
        shown = "\n".join([EXAMPLES, *(f"    {line}" for line in examples)]) if examples else ""
        ending = "\n\n".join(
            part for part in (shown, epilog if epilog != EXIT_CODES else "", EXIT_CODES) if part
        )
        kwargs.setdefault("formatter_class", Help)
        kwargs["epilog"] = ending
        super().__init__(*args, **kwargs)
        self.add_argument(
            "--version", action="version", version=f"pyllmc {__version__}", help="print the version and exit"
        )

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        args = [self._spelt(arg) for arg in (sys.argv[1:] if args is None else args)]
        for arg in args:
            if arg.startswith(("--help=", "--version=")):
                name = arg.partition("=")[0]
                self.error(f"{name} takes no value: write {name} alone")
        of_file = self._of_config(args)
        known, rest = super().parse_known_args(of_file + args, namespace)
        self.called = _names_in(args)
        self.given = self.called | _names_in(of_file)
        for arg in rest:
            self.error(self._unknown(arg))
        return known, rest

    def _names(self) -> list[str]:
        return list(
            dict.fromkeys(
                a.dest for a in self._actions if a.option_strings and a.dest not in ("help", "version")
            )
        )

    def _of_config(self, args: list[str]) -> list[str]:
        """The lines of the last --config as arguments. Those of the command line follow them, and so overrule them."""
        if "config" not in self._names():
            return []
        path = ""
        for i, arg in enumerate(args):
            name, equals, value = arg.partition("=")
            if name != "--config" or (not equals and i + 1 == len(args)):
                continue
            path = value if equals else args[i + 1]
            if not path:
                self.error("--config is empty: name a file of options or a run's folder")
        try:
            found = read_config(path, options()) if path else {}
        except OSError as error:
            self.exit(5, f"{self.prog}: --config={path} cannot be read: {error.strerror}\n")
        except ValueError as error:
            self.error(str(error))
        return [self._spelt(f"--{name}={value}") for name, value in found.items()]

    def _spelt(self, arg: str) -> str:
        """An argument as the parser spells it: --max-steps=5 -> --max_steps=5, --shuffle=no -> --no_shuffle."""
        if not arg.startswith("--"):
            return arg
        name, equals, value = arg[2:].partition("=")
        name = own_name(name.replace("-", "_"), self._names())
        option = options().get(name)
        if option and option.type == "FLAG" and equals and value in WORDS:
            return f"--{name}" if WORDS[value] else f"--no_{name}"
        return f"--{name}{equals}{value}"

    def _unknown(self, arg: str) -> str:
        if not arg.startswith("--"):
            return f"{arg!r} is not an option: write --name=value; --help lists them"
        name = arg[2:].partition("=")[0]
        return f"unknown option --{name}: {did_you_mean(name, self._names())}"

    def _print_message(self, message: str, file: Any = None) -> None:
        """What --help and --version print. argparse ignores an error there; here it is one as in all other output."""
        if file is not sys.stdout:
            super()._print_message(message, file)
        elif code := run_command(self.prog, lambda: print(message, end="")):
            raise SystemExit(code)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {re.sub('^argument ', '', message)}\n")


def add_option(parser: argparse._ActionsContainer, option: Option, hidden: bool = False) -> None:
    """Add --name=value; for a flag add --name and --no_name. hidden: --help does not show it."""
    flag, text = f"--{option.name}", option.help.replace("%", "%%")
    shown = text if option.default == "" else f"{text} [{option.default}]"
    if option.type == "FLAG":
        off = f"--no_{option.name}"
        text = argparse.SUPPRESS if hidden else f"or {off}: {shown}"
        parser.add_argument(flag, action="store_true", default=option.default, help=text)
        parser.add_argument(off, dest=option.name, action="store_false", help=argparse.SUPPRESS)
    else:
        read: Callable[[str], Value] = option.read
        metavar = METAVAR[option.type]
        shown = argparse.SUPPRESS if hidden else shown
        parser.add_argument(flag, type=read, default=option.default, metavar=metavar, help=shown)


def add_options(
    parser: argparse._ActionsContainer,
    names: Container[str],
    words: Mapping[str, str] | None = None,
    **defaults: Value,
) -> None:
    """Add the options in `names`, of any program. defaults: replace the table's; words: replace texts of --help."""
    for option in options(*OF_ANY).values():
        if option.name in names:
            text = (words or {}).get(option.name, option.help)
            add_option(parser, option._replace(default=defaults.get(option.name, option.default), help=text))


def make_parser(
    prog: str,
    about: str,
    names: Container[str] = (),
    hidden: Container[str] = (),
    examples: Sequence[str] = (),
    words: Mapping[str, str] | None = None,
    **defaults: Value,
) -> Parser:
    """A parser of the options in `names`, or of all options of training under their headings.

    hidden: options that --help does not show, because the program refuses them, or does nothing with them; defaults: replace the table's.
    """
    usage = "%(prog)s [--name=value ...]"
    twice = "If an option is given twice, the last one counts."
    parser = Parser(
        prog=prog, usage=usage, description=about, epilog=twice, allow_abbrev=False, examples=examples
    )
    if names:
        add_options(parser, names, words, **defaults)
        return parser
    groups: dict[str, argparse._ArgumentGroup] = {}
    for option in options().values():
        group = groups.get(option.group) or parser.add_argument_group(option.group)
        groups[option.group] = group
        add_option(
            group, option._replace(default=defaults.get(option.name, option.default)), option.name in hidden
        )
    return parser


def parse(args: Sequence[str] | None = None) -> argparse.Namespace:
    """All options by name. A bad option ends the program with one line and exit code 2."""
    return make_parser("train_gpt2", "").parse_args(args)
