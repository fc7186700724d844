#!/usr/bin/env python3
r"""Write csrc/text/unicode.def: the characters that \p{L}, \p{N} and \s match when GPT-2 splits text.

    python dev/unicode_table.py            writes the table
    python dev/unicode_table.py --check    tells whether the installed tiktoken would make the same table

tiktoken itself is asked: an encoding with one class as its pattern keeps the characters of that class and drops the
others. Releases of tiktoken differ in their version of Unicode, which the first line of the table names.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))

from pyllmc.base.errors import EXIT_CODES, DataError, begin_command, need, run_command
from pyllmc.base.files import writing
from pyllmc.tables.options import Parser

PROG = "unicode_table.py"
PATH = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "csrc", "text", "unicode.def")
CLASSES = {"L": r"\p{L}", "N": r"\p{N}", "S": r"\s"}
EVERY_CHARACTER = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x110000)]))
WIDTH = 118


def matched(pattern: str) -> set[int]:
    """The code points that tiktoken's regular expressions match."""
    tiktoken = need("tiktoken", "the table of characters")
    ranks = {bytes([b]): b for b in range(256)}
    encoding = tiktoken.Encoding("one class", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    return set(map(ord, encoding.decode(encoding.encode_ordinary(EVERY_CHARACTER))))


def unicode_version() -> str:
    """The newest version of Unicode whose characters tiktoken knows."""
    for version in (f"{major}.{minor}" for major in range(30, 12, -1) for minor in (1, 0)):
        try:
            matched(rf"\p{{age:{version}}}")
        except ValueError:
            continue
        return version
    raise DataError("tiktoken knows no version of Unicode")


def ranges(codes: Iterable[int]) -> list[tuple[int, int]]:
    """The first and last number of each run of successive numbers."""
    runs: list[list[int]] = []
    for code in sorted(codes):
        if runs and runs[-1][1] == code - 1:
            runs[-1][1] = code
        else:
            runs.append([code, code])
    return [(first, last) for first, last in runs]


def filled(head: list[str], entries: Iterable[str]) -> str:
    """The text of a table: its first lines, then the entries, with as many in a line as fit."""
    lines = list(head)
    for entry in entries:
        if len(lines[-1]) + 1 + len(entry) > WIDTH or len(lines) == len(head):
            lines.append(entry)
        else:
            lines[-1] += " " + entry
    return "\n".join(lines) + "\n"


def table() -> str:
    """The text of csrc/text/unicode.def."""
    found = [(first, last, name) for name, p in CLASSES.items() for first, last in ranges(matched(p))]
    lines = [
        f"/* Unicode {unicode_version()}: ranges of letters, numbers and white space in the order of their",
        " * code points, as tiktoken has them. Made by dev/unicode_table.py. */",
        "",
    ]
    return filled(lines, (f"{name}({first:#x}, {last:#x})" for first, last, name in sorted(found)))


def run(path: str, text: str, maker: str, check: bool) -> int:
    if not check:
        with writing(path), open(path, "w", encoding="ascii") as f:
            f.write(text)
        return 0
    with open(path, encoding="ascii") as f:
        same = f.read() == text
    print(f"{os.path.relpath(path)} is {'' if same else 'not '}what this {maker} makes of it")
    return 0 if same else 1


def command(
    prog: str, about: str | None, path: str, table: Callable[[], str], maker: str, argv: list[str] | None
) -> int:
    """The command that writes the file of a table, or with --check compares it; maker: whose table it is."""
    parser = Parser(prog=prog, description=about, epilog=EXIT_CODES, allow_abbrev=False)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if it differs")
    args = parser.parse_args(argv)
    return run_command(prog, lambda: run(path, table(), maker, args.check))


def main(argv: list[str] | None = None) -> int:
    return command(PROG, __doc__, PATH, table, "tiktoken", argv)


if __name__ == "__main__":
    begin_command()
    sys.exit(main())
