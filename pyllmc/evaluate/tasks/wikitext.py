"""WikiText-2 and WikiText-103 (Merity et al. 2016): articles of Wikipedia, tokenised, rare words replaced by <unk>."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pyllmc.base.errors import BadFile
from pyllmc.evaluate.detokenize import WIKITEXT
from pyllmc.evaluate.fetch import Part, read_lines
from pyllmc.evaluate.streams import HALF, Stream, Words
from pyllmc.evaluate.task import Records


class WikiText(Words):
    """The GPT-2 paper's protocol (section 3.1): the probability of the de-tokenised text, divided by the words of the original."""

    protocol = (
        f"de-tokenised; ppl per word of the original, line ends counted (GPT-2 paper, sec. 3.1); {HALF}"
    )
    detokenizer = WIKITEXT

    def __init__(self, size: int) -> None:
        self.name = f"wikitext{size}"
        form = "tokenised text with <unk>, @-@ and = headings ="
        self.test = Part(
            (f"wikitext-{size}/wiki.test.tokens",), form, "Salesforce/wikitext", f"wikitext-{size}-v1"
        )

    def from_file(self, path: Path) -> Iterable[str]:
        lines = read_lines(path)
        if not any(line.startswith(" = ") for line in lines):
            raise BadFile(
                f"{path} has no line like ' = Title = ': is this WikiText? {self.test.wanted()} was expected"
            )
        return lines


class LmEval(Stream):
    """lm-eval's task wikitext: WikiText-2 with its rare words (raw), article by article, each from its own beginning on."""

    name = "wikitext2_lm_eval"
    metrics = ("ppl", "bpb", "loss")
    protocol = "lm-eval's wikitext: raw, article by article, its de-tokenizer; ppl per word of the original; disjoint windows of T tokens"
    record = "article"
    fields = ("page",)
    disjoint = True
    test = Part(
        ("wikitext-2-raw/wiki.test.raw", "wiki.test.raw"),
        "tokenised text with @-@ and = headings =, no <unk>",
        "EleutherAI/wikitext_document_level",
        "wikitext-2-raw-v1",
    )

    def from_file(self, path: Path) -> Iterable[str]:
        """The articles, each from its line " = Title = " to the next."""
        page: list[str] = []
        for line in read_lines(path):
            if re.fullmatch(r" = [^=].* = ?", line) and any(map(str.strip, page)):
                yield "\n".join(page)
                page = []
            page.append(line)
        yield "\n".join(page)

    def from_row(self, row: dict[str, Any]) -> str:
        return str(row["page"])

    def texts(self, records: Records) -> Iterable[tuple[str, float, int]]:
        for page in records:
            yield lm_eval_text(page), len(re.split(r"\s+", page)), len(page.encode())


TOGETHER = [(f" {mark} ", f"{mark} ") for mark in ":;.!?,"]
INFIXES = [(f" @{mark}@ ", mark) for mark in "-,."]
BRACKETS = (r"\(\)", r"\[\]", "{}", '""', "''")
LAST = [
    ("= = = =", "===="),
    ("= = =", "==="),
    ("= =", "=="),
    (" ° ", "°"),
    (" \n", "\n"),
    ("\n ", "\n"),
    (" N ", " 1 "),
    (" 's", "'s"),
]


def lm_eval_text(page: str) -> str:
    """lm-eval's clean-up of an article (its tasks/wikitext/preprocess_wikitext.py), step by step. It cannot be undone."""
    page = re.sub(r"/' [0-9]/", r"/'[0-9]/", page.replace("s '", "s'"))
    page = _replaced(page, [*INFIXES, *TOGETHER])
    for left, right in ((pair[: len(pair) // 2], pair[len(pair) // 2 :]) for pair in BRACKETS):
        page = re.sub(rf"({left})\s*([^{right}]*?)\s*({right})", r"\1\2\3", page)
    return _replaced(page, LAST)


def _replaced(text: str, pairs: Iterable[tuple[str, str]]) -> str:
    for old, new in pairs:
        text = text.replace(old, new)
    return text
