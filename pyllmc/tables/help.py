"""The layout of --help of the Python commands; csrc/options/optiontext.c lays out that of training and of a chat."""

from __future__ import annotations

import argparse
import re
import shutil
import textwrap

WIDEST = 100  # columns at most
EXAMPLES = "examples:"  # the title of their paragraph


def narrow_example(line: str, width: int) -> str:
    """An example on several lines: a command that can be pasted, broken after backslashes; and below it what it does."""
    command, *what = re.split(r" {2,}", line.strip(), maxsplit=1)
    first, *others = re.findall(r'(?:[^ "]|"[^"]*")+', command)
    lines = [f"    {first}"]
    for i, word in enumerate(others, 1):
        backslash = 2 if i < len(others) else 0  # it may have to follow the word
        if len(lines[-1]) + 1 + len(word) + backslash <= width:
            lines[-1] += f" {word}"
        else:
            lines[-1] += " \\"
            lines.append(f"            {word}")
    return "\n".join(lines + [f"        {words}" for words in what])


class Help(argparse.RawDescriptionHelpFormatter):
    """The layout of --help: as wide as the terminal, at most WIDEST. Indented lines stay as they are.

    Examples that are wider than the terminal take several lines.
    """

    def __init__(self, prog: str) -> None:
        width = min(shutil.get_terminal_size().columns, WIDEST)
        super().__init__(prog, max_help_position=26, width=max(width - 2, 20))
        self._columns = width

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = [self._examples(p) for p in text.strip("\n").split("\n\n")]
        return "\n\n".join(
            p if "\n    " in f"\n{p}" else textwrap.fill(" ".join(p.split()), width) for p in paragraphs
        )

    def _examples(self, paragraph: str) -> str:
        title, *examples = paragraph.split("\n")
        if title != EXAMPLES or max(map(len, examples)) <= self._columns:
            return paragraph
        return "\n".join([title, *(narrow_example(line, self._columns) for line in examples)])
