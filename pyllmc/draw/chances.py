"""The steps of a generation as lines for a terminal: the likeliest tokens of each step, with bars."""

from __future__ import annotations

import shutil
import sys
import textwrap
import unicodedata
from collections.abc import Iterator

from pyllmc.engine.steps import Alternative, Step
from pyllmc.text.tokenizer import shown

WIDEST_TOKEN = 24  # columns
LONGEST_BAR = 40  # columns


def heading(changes: str) -> str:
    """What the numbers of the steps are. changes: the options that make probabilities differ from the model's own; "": none."""
    two = f"as drawn ({changes}), then the model's own" if changes else "the model's own, as drawn"
    text = f"each step: the likeliest tokens, > the one that was drawn, and probabilities: {two}"
    return textwrap.fill(text, max(shutil.get_terminal_size().columns, 20))


def lines_of(step: Step, number: int, plain: bool, width: int = 0, block: str = "") -> Iterator[str]:
    """The lines of one step, at most `width` columns if those hold the numbers.

    number: the step's, from 1. plain: the model's own probability is the one that counts, and is not shown twice.
    width: 0 means the terminal's, or 80 for a file or a pipe. block: what bars are made of; "": whatever the output holds.
    """
    width, block = width or shutil.get_terminal_size().columns, block or block_for(sys.stdout.encoding)
    rows = list(step.alternatives)
    if all(row.id != step.id for row in rows):
        rows.append(Alternative(*step[:4]))
    names = [clipped(quoted(row)) for row in rows]
    longest = max(map(columns, names))
    for i, (row, name) in enumerate(zip(rows, names)):
        mark = ">" if row.id == step.id else " "
        own = "" if plain else f" {percent(row.own)}"
        line = f"{number if i == 0 else '':>5} {mark} {name}{' ' * (longest - columns(name))} {percent(row.probability)}{own}"
        room = min(LONGEST_BAR, width - columns(line) - 2)
        yield f"{line} {block * round(max(room, 0) * row.probability)}".rstrip()


def percent(p: float) -> str:
    return f"{p:7.2%}"


def quoted(row: Alternative) -> str:
    """The token's text in quotes; its number if nothing is known of its text."""
    return f"'{shown(row.text.encode())}'" if row.text else f"id {row.id}"


def block_for(encoding: str | None) -> str:
    try:
        return "\u2588".encode(encoding or "ascii").decode(encoding or "ascii")
    except UnicodeError:
        return "#"


def columns(text: str) -> int:
    """The columns of a terminal that a text takes: two for a wide character of East Asia, none for an accent."""
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return len(text) + wide - sum(unicodedata.combining(c) > 0 for c in text)


def clipped(name: str) -> str:
    while columns(name) > WIDEST_TOKEN:
        name = name.removesuffix("..")[:-1] + ".."
    return name
