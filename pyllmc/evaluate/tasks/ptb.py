"""Penn Treebank as Mikolov prepared it: lower case, no punctuation, 10,000 words, N for numbers, <unk> for the rest."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pyllmc.base.errors import BadFile
from pyllmc.evaluate.detokenize import PTB
from pyllmc.evaluate.fetch import Part, read_lines
from pyllmc.evaluate.streams import HALF, Words


class PennTreebank(Words):
    """The GPT-2 paper's protocol (section 3.1): the probability of the de-tokenised text, divided by the words of the original."""

    name = "ptb"
    protocol = (
        f"de-tokenised; ppl per word of the original, line ends counted (GPT-2 paper, sec. 3.1); {HALF}"
    )
    detokenizer = PTB
    fields = ("sentence",)
    test = Part(
        ("ptb.test.txt",),
        "one lower-case sentence a line, with N and <unk>",
        "ptb-text-only/ptb_text_only",
        "penn_treebank",
        scripted=True,
    )

    def from_file(self, path: Path) -> Iterable[str]:
        """The lines. A file with capitals is another edition of the treebank, whose figures cannot be compared."""
        lines = read_lines(path)
        for number, line in enumerate(lines, 1):
            if any(word not in ("N", "<unk>") and word != word.lower() for word in line.split(" ")):
                raise BadFile(
                    f"{path}:{number}: words with capitals: {self.test.wanted()} was expected, as Mikolov prepared it"
                )
        return lines
