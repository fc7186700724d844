r"""Templates: how a turn and its answer become text, in fine-tuning as in a chat.

    {system}\n\nUser: {prompt}\nAssistant: {answer}\n

A template is one line, in which \n, \t, \r and \\ stand for characters. csrc/write/template.h describes it; the engine
parses it by the same rules. It travels in template.txt of a data set or an export, and in the options of a run and its checkpoints.
"""

from __future__ import annotations

import difflib
import os
import re
from typing import NamedTuple

from pyllmc.base.errors import DataError
from pyllmc.base.files import reading
from pyllmc.base.values import ESCAPES
from pyllmc.tables.options import templates
from pyllmc.text.masks import Marked

FILE = "template.txt"
PLACES = ("{system}", "{turn}", "{prompt}", "{answer}")
PART = re.compile(r"(\{system\}|\{turn\}|\{prompt\}|\{answer\})")
MOST = 1023  # bytes of an option's text (csrc/options/options.h)
BLANKS = " \t\r\n"
EXAMPLE = r"as in 'User: {prompt}\nAssistant: {answer}\n'"


class Turn(NamedTuple):
    prompt: str
    answer: str
    learnt: bool = True


class Talk(NamedTuple):
    """A record of a data set: turns and their answers, after a system text that may be empty."""

    system: str
    turns: list[Turn]


class Template(NamedTuple):
    line: str
    opening: tuple[str, str] | None  # before and behind the system text; None: there is no place for one
    before: str  # a prompt
    between: str  # a prompt and its answer, without the spaces before the answer
    spaces: str
    end: str

    @property
    def stop(self) -> str:
        """The text at which an answer is over, even if its end is only a line break, which may also stand within it."""
        return self.end if self.end.strip(BLANKS) else self.end + self.before.rstrip(BLANKS)

    def asked(self, prompt: str) -> str:
        """The text of a first turn up to its answer."""
        return self.before + prompt + self.between

    def render(self, talk: Talk, learn_prompt: bool = False) -> Marked:
        """The text of a talk, of which the answers and their ends are learnt. Raises DataError."""
        parts: list[tuple[str, bool]] = []
        if talk.system and not self.opening:
            raise DataError(
                "a system text, and the template has no {system}: remove it, or choose another --template"
            )
        if talk.system and self.opening:
            parts.append((self.opening[0] + talk.system + self.opening[1], learn_prompt))
        for prompt, answer, learnt in talk.turns:
            parts.append((self.asked(prompt), learn_prompt))
            parts.append((self.spaces + answer + self.end, learnt or learn_prompt))
        return Marked.of(parts)


def _decoded(text: str) -> str:
    def character(found: re.Match[str]) -> str:
        if found[1] not in ESCAPES:
            raise DataError(
                rf"the template has {found[0]}, and knows \n, \t, \r and \\ only: write \\ for a \ "[:-1]
            )
        return ESCAPES[found[1]]

    return re.sub(r"\\(.|$)", character, text)


def parse(line: str) -> Template:
    """The parts of a template. Raises DataError with the remedy."""
    for escape, c in ESCAPES.items():
        line = line if escape == "\\" else line.replace(c, f"\\{escape}")  # as in a file of several lines
    if len(line.encode("utf-8", "replace")) > MOST:
        raise DataError(f"the template is longer than {MOST} bytes: shorten it")
    pieces = PART.split(line)
    names, texts = pieces[1::2], [_decoded(text) for text in pieces[::2]]
    for name in PLACES:
        if names.count(name) > 1:
            raise DataError(f"the template has {name} twice: each place stands once, {EXAMPLE}")
    for name, later in zip(names, names[1:]):
        if PLACES.index(name) > PLACES.index(later):
            raise DataError(f"the template has {later} behind {name}: the order is {', '.join(PLACES)}")
    if names[-2:] != list(PLACES[2:]):
        raise DataError(f"the template needs {{prompt}}, and behind it {{answer}}, {EXAMPLE}")
    if "{turn}" in names and "{system}" not in names:
        raise DataError(
            "the template has {turn} without {system} before it: {turn} ends the part that holds {system}"
        )
    if not texts[-1]:
        raise DataError(
            f"nothing stands behind {{answer}} in the template, so an answer would have no end: add one, {EXAMPLE}"
        )
    *head, before, between, end = texts
    if len(head) == 1:  # {system} without {turn}
        stripped = before.lstrip(BLANKS)
        head, before = [*head, before[: len(before) - len(stripped)]], stripped
    kept = between.rstrip(" ")
    opening = (head[0], head[1]) if head else None
    return Template(line, opening, before, kept, between[len(kept) :], end)


def _spelt(text: str) -> str:
    """The text. Raises DataError if it has a place that is misspelt, which would become a part of every record."""
    for word in re.findall(r"\{\w+\}", text):
        meant = difflib.get_close_matches(word, PLACES, 1, 0.75)
        if word not in PLACES and meant:
            raise DataError(f"the template has {word}: did you mean {meant[0]}?")
    return text


def find(value: str) -> Template:
    """The template that --template means: one by its name, a template itself, or a file that holds one."""
    if value in templates():
        return parse(templates()[value])
    if any(place in value for place in PLACES[2:]):
        return parse(_spelt(value))
    if os.path.isfile(value):
        with reading(value), open(value, encoding="utf-8", errors="replace") as f:
            return parse(_spelt(f.read(1 << 16)))
    raise DataError(
        f"--template={value} is not one of {', '.join(templates())}, nor a template with {{prompt}} and {{answer}}, nor "
        "a file with one"
    )


def beside(path: str | os.PathLike[str]) -> str:
    """The line of template.txt in a folder of weights; "" if there is none."""
    name = os.path.join(path, FILE)
    if not os.path.isfile(name):
        return ""
    with reading(name), open(name, encoding="utf-8", errors="replace") as f:
        return f.readline(1 << 16).strip("\r\n")


def meant(value: str) -> Template | None:
    """The template that an option's value stands for; None: it stands for none, and prompts are taken literally."""
    return None if value in ("auto", "story", "chat") else find(value)
