#!/usr/bin/env python3
"""Write csrc/base/width.def: the characters that take two columns of a terminal, and those that take none, by Python's own table.

python dev/width_table.py            writes the table
python dev/width_table.py --check    tells whether this Python would make the same table
"""

from __future__ import annotations

import os
import sys
import unicodedata

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from unicode_table import begin_command, command, filled, ranges

PROG = "width_table.py"
PATH = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "csrc", "base", "width.def")


def columns_of(c: str) -> int:
    """The columns of a character: 0 if it is drawn over the one before it, or is a mark of formatting."""
    if unicodedata.category(c) in ("Mn", "Me", "Cf") and c != "\u00ad":
        return 0
    return 2 if unicodedata.east_asian_width(c) in "WF" else 1


def table() -> str:
    """The text of csrc/base/width.def."""
    found = []
    for columns in (0, 2):
        codes = [code for code in range(128, 0x110000) if columns_of(chr(code)) == columns]
        found += [(first, last, columns) for first, last in ranges(codes)]
    lines = [
        f"/* Unicode {unicodedata.unidata_version}: the characters that take no column of a terminal, or two. Made by",
        " * dev/width_table.py. */",
        "",
    ]
    return filled(
        lines, (f"COLUMNS({columns}, {first:#x}, {last:#x})" for first, last, columns in sorted(found))
    )


def main(argv: list[str] | None = None) -> int:
    return command(PROG, __doc__, PATH, table, "Python", argv)


if __name__ == "__main__":
    begin_command()
    sys.exit(main())
