"""The options, csrc/options.def, read as text: what ./train_gpt2 parses with, as an argparse parser."""

from __future__ import annotations

import argparse
import functools
import re
import sys
from collections.abc import Callable, Container, Sequence
from typing import Any, NamedTuple, NoReturn, Union

from pyllmc.layout import table_lines

Value = Union[int, float, str, bool]
WORDS = {word: True for word in ("1", "true", "True", "yes", "on")}
WORDS.update({word: False for word in ("0", "false", "False", "no", "off")})
METAVAR = {"INT": "N", "FLOAT": "X", "STRING": "TEXT"}


class Option(NamedTuple):
    type: str  # INT, FLOAT, STRING or FLAG
    name: str
    default: Value
    least: float  # bounds of a number
    most: float
    help: str
    group: str = ""  # the heading of --help that it stands under

    def read(self, text: str) -> Value:
        """The value of a text; raises argparse.ArgumentTypeError with the reason."""
        if self.type == "STRING":
            return text
        if self.type == "FLAG":
            if text not in WORDS:
                raise argparse.ArgumentTypeError(f"{text!r} is neither yes nor no")
            return WORDS[text]
        kind, what = (int, "a whole number") if self.type == "INT" else (float, "a number")
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not {what}") from None
        if not self.least <= value <= self.most:
            below = ": it must be below 1" if self.most < 1 else ""
            bounds = (
                f"{self.least:.10g}..{self.most:.10g}"
                if kind is float
                else f"{self.least:.0f}..{self.most:.0f}"
            )
            raise argparse.ArgumentTypeError(f"{text} is not in {bounds}{below}")
        return value


OF_TRAINING = ("OPTION", "CALL", "SHARED", "SHARED_CALL")
OF_ANY = (*OF_TRAINING, "CHAT")
ROW = re.compile(
    r'(OPTION|SHARED|CHAT|CALL|SHARED_CALL)\((\w+), (\w+), ("[^"]*"|[^",]+), ([^",]+), ([^",]+), "([^"]*)"\)'
)


@functools.cache
def options(*kinds: str) -> dict[str, Option]:
    """Options by name, in the table's order: training's, or those of the given kinds of row."""
    found: dict[str, Option] = {}
    group = ""
    for line in table_lines("options.def"):
        if line.startswith("GROUP("):
            group = line[len('GROUP("') : -len('")')]
        if line.startswith(("GROUP(", "OF_CHAT(", "ALIAS(")):
            continue
        row = ROW.fullmatch(line)
        if not row:
            raise ValueError(
                f"options.def: this row is not OPTION(type, name, default, least, most, help): {line}"
            )
        table, kind, name, default, least, most, text = row.groups()
        option = Option(kind, name, "", float(least), float(most), text, group)
        if table in (kinds or OF_TRAINING):
            found[name] = option._replace(default=option.read(default.strip('"')))
    return found


@functools.cache
def aliases() -> dict[str, str]:
    """What other trainers call an option -> what it is called here."""
    rows = (re.fullmatch(r"ALIAS\((\w+), (\w+)\)", line) for line in table_lines("options.def"))
    return {row[1]: row[2] for row in rows if row}


def distance(a: str, b: str) -> int:
    """Levenshtein's."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a):
        diagonal, row[0] = row[0], i + 1
        for j, y in enumerate(b):
            diagonal, row[j + 1] = row[j + 1], min(diagonal + (x != y), row[j] + 1, row[j + 1] + 1)
    return row[-1]


def meant(name: str, names: Sequence[str]) -> str | None:
    """The one of `names` that a misspelt or foreign one may stand for: as csrc/options.c finds it."""
    if name in aliases():
        return aliases()[name] if aliases()[name] in names else None
    near = min(names, key=lambda other: distance(name, other), default="")
    near_enough = (len(name) + 1) // 3 if len(name) > 3 else 1  # two swapped letters count as two
    return near if distance(name, near) <= near_enough else None


class Parser(argparse.ArgumentParser):
    """argparse with the manners of ./train_gpt2.

    --max-steps is --max_steps, of an option given twice the last counts, a misspelt one gets the right one
    named; errors are one line and exit code 2.
    """

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        args = [self._spelt(arg) for arg in (sys.argv[1:] if args is None else args)]
        known, rest = super().parse_known_args(args, namespace)
        for arg in rest:
            self.error(self._unknown(arg))
        return known, rest

    @staticmethod
    def _spelt(arg: str) -> str:
        """--max-steps=5 -> --max_steps=5, --shuffle=no -> --no_shuffle."""
        if not arg.startswith("--"):
            return arg
        name, equals, value = arg[2:].partition("=")
        name = name.replace("-", "_")
        option = options().get(name)
        if option and option.type == "FLAG" and equals and value in WORDS:
            return f"--{name}" if WORDS[value] else f"--no_{name}"
        return f"--{name}{equals}{value}"

    def _unknown(self, arg: str) -> str:
        if not arg.startswith("--"):
            return f"{arg!r} is not an option: write --name=value; --help lists them"
        name = arg[2:].partition("=")[0]
        near = meant(name, [a.dest for a in self._actions if a.option_strings and a.dest != "help"])
        return f"unknown option --{name}: " + (f"did you mean --{near}?" if near else "--help lists them")

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {re.sub('^argument ', '', message)}\n")


def at_least(low: int) -> Callable[[str], int]:
    """An argument's type: a whole number from `low` on."""

    def read(text: str) -> int:
        if not text.removeprefix("-").isdecimal() or int(text) < low:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {low}")
        return int(text)

    return read


ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\"}
ESCAPE = re.compile(r"\\(?:([ntr\\])|x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|)")


def unescaped(text: str) -> str:
    r"""The one rule for text in options: \n \t \r \\ \xHH \uHHHH mean a character, no other backslash may stand there.

    Two \uHHHH may be the two halves of one character, as in JSON. Raises argparse.ArgumentTypeError.
    """

    def character(found: re.Match[str]) -> str:
        letter, x, u = found.groups()
        if letter is None and not x and not u:
            at = text[found.start() : found.start() + 2]
            raise argparse.ArgumentTypeError(
                f"{at!r} in {text!r} is no escape: there are \\n \\t \\r \\xHH \\uHHHH, and \\\\ for a backslash"
                if at != "\\"
                else f"{text!r} ends within an escape: write \\\\ for a backslash"
            )
        return ESCAPES[letter] if letter else chr(int(x or u, 16))

    decoded = ESCAPE.sub(character, text)
    if "\\u" not in text:
        return decoded
    try:  # halves of a character become one
        return decoded.encode("utf-16-le", "surrogatepass").decode("utf-16-le")
    except UnicodeDecodeError:
        raise argparse.ArgumentTypeError(
            f"{text!r} holds half a character: \\uD800 to \\uDFFF come in pairs"
        ) from None


def add_option(parser: argparse._ActionsContainer, option: Option, hidden: bool = False) -> None:
    """--name=value; --name and --no_name for a flag. hidden: not told by --help."""
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


def add_options(parser: argparse.ArgumentParser, names: Container[str], **defaults: Value) -> None:
    """Those of `names`, of whatever program, with these defaults instead of the table's."""
    for option in options(*OF_ANY).values():
        if option.name in names:
            add_option(parser, option._replace(default=defaults.get(option.name, option.default)))


def make_parser(
    prog: str, about: str, names: Container[str] = (), hidden: Container[str] = (), **defaults: Value
) -> Parser:
    """A parser of those options in `names`, or of all of training's under their headings.

    hidden: those that --help does not tell, as the program only refuses them; defaults: instead of the table's.
    """
    usage = "%(prog)s [--name=value ...]"
    twice = "Of an option given twice the last counts."
    parser = Parser(prog=prog, usage=usage, description=about, epilog=twice, allow_abbrev=False)
    if names:
        add_options(parser, names, **defaults)
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
    """All options by name; exits with code 2 and one line for a bad one."""
    return make_parser("train_gpt2", "").parse_args(args)
