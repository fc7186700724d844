"""The One Billion Word benchmark (Chelba et al. 2013): single sentences of news, shuffled."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pyllmc.base.errors import BadFile
from pyllmc.evaluate.detokenize import LM1B
from pyllmc.evaluate.fetch import Part
from pyllmc.evaluate.streams import Words, words_of
from pyllmc.evaluate.task import Records


class OneBillionWords(Words):
    """The GPT-2 paper's protocol (section 3.1): the probability of the de-tokenised text, divided by the words of the original. Sentence
    by sentence, because the lines are shuffled: what stands above a sentence says nothing about it."""

    name = "lm1b"
    protocol = "sentence by sentence, de-tokenised; ppl per word of the original, sentence ends counted (GPT-2 paper, sec. 3.1)"
    record = "sentence"
    detokenizer = LM1B
    test = Part(
        ("news.en.heldout-00000-of-00050",),
        "one tokenised sentence a line",
        "billion-word-benchmark/lm1b",
        "plain_text",
        scripted=True,
    )

    def from_file(self, path: Path) -> Iterable[str]:
        for number, line in enumerate(super().from_file(path), 1):
            if not line.strip():
                raise BadFile(
                    f"{path}:{number}: an empty line, where {self.test.form} was expected: fetch it again"
                )
            yield line

    def texts(self, records: Records) -> Iterable[tuple[str, float, int]]:
        for line in records:
            words = words_of(line)
            yield f"{self.detokenizer.join(words)}\n", len(words) + 1, len(line.encode()) + 1
