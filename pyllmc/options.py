"""The options, csrc/options.def, read as text: what ./train_gpt2 parses with, as an argparse parser."""

from __future__ import annotations

import argparse
import difflib
import functools
import re
import sys
from collections.abc import Callable, Container, Sequence
from typing import Any, NamedTuple, NoReturn, Optional, Union

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
            raise argparse.ArgumentTypeError(f"{text} is not in {self.least:.17g}..{self.most:.17g}")
        return value


ROW = re.compile(r'OPTION\((\w+), (\w+), ("[^"]*"|[^",]+), ([^",]+), ([^",]+), "([^"]*)"\)')


@functools.cache
def options() -> dict[str, Option]:
    """Every option by name, in the table's order."""
    found: dict[str, Option] = {}
    for line in table_lines("options.def"):
        row = ROW.fullmatch(line)
        if not row:
            raise ValueError(
                f"options.def: this row is not OPTION(type, name, default, least, most, help): {line}"
            )
        kind, name, default, least, most, text = row.groups()
        option = Option(kind, name, "", float(least), float(most), text)
        found[name] = option._replace(default=option.read(default.strip('"')))
    return found


class Parser(argparse.ArgumentParser):
    """argparse with the manners of ./train_gpt2.

    --max-steps is --max_steps, an option is given once, a misspelt one gets the right one named; errors are
    one line and exit code 2.
    """

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        args = [self._spelt(arg) for arg in (sys.argv[1:] if args is None else args)]
        names = [arg.partition("=")[0].replace("--no_", "--") for arg in args if arg.startswith("--")]
        known, rest = super().parse_known_args(args, namespace)
        for arg in rest:
            self.error(self._unknown(arg))
        for name in names:
            if names.count(name) > 1:
                self.error(f"{name} is given twice")
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
        name = arg.partition("=")[0]
        near = difflib.get_close_matches(name, [o for a in self._actions for o in a.option_strings], 1)
        return f"unknown option {name}: " + (f"did you mean {near[0]}?" if near else "--help lists them")

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {re.sub('^argument ', '', message)}\n")


def add_options(parser: argparse.ArgumentParser, names: Optional[Container[str]] = None) -> None:
    """Adds the table's options, or those of `names`, to a parser."""
    for option in options().values():
        if names is not None and option.name not in names:
            continue
        flag, text = "--" + option.name, option.help.replace("%", "%%")
        shown = f"{text} [{option.default}]" if option.default != "" else text
        if option.type == "FLAG":
            parser.add_argument(
                flag, action="store_true", default=option.default, help=f"--no_{option.name}: not; {shown}"
            )
            parser.add_argument(
                "--no_" + option.name, dest=option.name, action="store_false", help=argparse.SUPPRESS
            )
        else:
            read: Callable[[str], Value] = option.read
            parser.add_argument(
                flag, type=read, default=option.default, metavar=METAVAR[option.type], help=shown
            )


def make_parser(prog: str, description: str, names: Optional[Container[str]] = None) -> Parser:
    parser = Parser(prog=prog, description=description, allow_abbrev=False)
    add_options(parser, names)
    return parser


def parse(
    args: Optional[Sequence[str]] = None, prog: str = "train_gpt2", description: str = ""
) -> argparse.Namespace:
    """All options by name; exits with code 2 and one line for a bad one."""
    return make_parser(prog, description).parse_args(args)
