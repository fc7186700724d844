"""The exam of the stories: the share of a text that the grammar accepts, and the share of right names in it.

`python3 -m pyllmc.stories --exam FILE` marks a file, `python -m pyllmc.grade RUN` a trained model. Standard library only.
"""

from __future__ import annotations

import bisect
import math
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from pyllmc.stories.telling import accepts, readings, split_sentences

END_OF_TEXT = "<|endoftext|>"


class Exam(NamedTuple):
    """Marks for sampled stories. All but the first two are shares in 0..1 (0 if there was nothing to count)."""

    stories: int
    sentences: int
    sentences_ok: float  # sentences that the grammar can tell and whose own references agree
    stories_ok: float  # stories that follow a plot from beginning to end and whose references all agree
    right_character: float  # later mentions of the main character, in accepted sentences, by the right name
    copied: float  # stories that are, word for word, in the training text; NaN if that was not given

    def report(self) -> str:
        copied = f"{'unknown':>10}" if math.isnan(self.copied) else f"{self.copied:>10.1%}"
        return "\n".join(
            (
                f"stories read          {self.stories:>10,}",
                f"sentences read        {self.sentences:>10,}",
                f"sentences accepted    {self.sentences_ok:>10.1%}",
                f"whole stories accepted{self.stories_ok:>10.1%}",
                f"right character       {self.right_character:>10.1%}",
                f"copied from training  {copied}",
            )
        )


def _naming(sentences: Sequence[str]) -> tuple[int, int]:
    """(right, all) later mentions of the main character, whom the first sentence introduces.

    A sentence names the main character if all its readings do. It is right if one of them agrees.
    """
    heroes = [[b.get("hero", frozenset()) for b in readings(s).values()] for s in sentences]
    first = heroes[0] if heroes else []
    named = [hero for hero in heroes[1:] if hero and all(len(values) == 1 for values in hero)]
    return sum(any(values in first for values in hero) for hero in named), len(named)


def _is_copy(text: str, cut: bool, training: list[str]) -> bool:
    """True if the text is in the sorted training texts; if cut: if one of them begins with it."""
    at = bisect.bisect_left(training, text)
    found = training[at : at + 1] if text else []
    return any(story.startswith(text) if cut else story == text for story in found)


def exam(texts: Iterable[str], training: Iterable[str] | None = None, *, complete: bool = True) -> Exam:
    """Read stories, for instance sampled ones, and mark them.

    complete=True: every text is a whole story, and an end without an end mark is one more, wrong, sentence.
    complete=False: a limit on tokens cut off every text without an end mark. Its unfinished last sentence is
    ignored, and the sentences before it need only begin a story. Other texts are judged as whole.
    """
    known = None if training is None else sorted(" ".join(text.split()) for text in training)
    stories = sentences = sentences_ok = stories_ok = right = named = copied = 0
    for text in texts:
        parts, rest = split_sentences(text)
        cut = bool(rest) and not complete
        if rest and complete:
            parts = [*parts, rest]
        stories, sentences = stories + 1, sentences + len(parts)
        sentences_ok += sum(bool(readings(part)) for part in parts)
        stories_ok += accepts(parts, cut)
        right, named = (a + b for a, b in zip((right, named), _naming(parts)))
        copied += known is not None and _is_copy(" ".join(text.split()), cut, known)

    def share(part: int, whole: int) -> float:
        return part / whole if whole else 0.0

    return Exam(
        stories,
        sentences,
        share(sentences_ok, sentences),
        share(stories_ok, stories),
        share(right, named),
        math.nan if known is None else share(copied, stories),
    )


def split_texts(text: str) -> list[str]:
    """The stories in a text: separated by <|endoftext|>, or else by blank lines, or else one on each line."""
    if END_OF_TEXT in text:
        parts = text.split(END_OF_TEXT)
    else:
        parts = re.split(r"\n\s*\n", text.strip())
        parts = parts if len(parts) > 1 else text.split("\n")
    return [part for part in parts if part.strip()]
