"""LAMBADA (Paperno et al. 2016): the last word of a passage that only the whole passage tells."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pyllmc.base.errors import BadFile, counted
from pyllmc.evaluate.detokenize import BOOKS
from pyllmc.evaluate.fetch import Part, read_hub, read_json_lines, read_lines
from pyllmc.evaluate.items import Score, Word
from pyllmc.evaluate.stopwords import STOP_WORDS
from pyllmc.evaluate.task import Records, Task, cited, following, perplexity, ratio

BLANK = "____. ->"  # GPT-3's form of a question: Brown et al. 2020, section 3.1.2 and appendix G
HEAD = "Fill in blank:\n\n"


class Passage(NamedTuple):
    """A passage. tokenised: it has spaces before its marks, as the data set's plain text has them."""

    text: str
    tokenised: bool


class Lambada(Task):
    """The GPT-2 paper's protocol (section 3.3): the whole last word, with a stop-word filter, on the text without preprocessing."""

    name = "lambada"
    metrics = ("acc", "ppl")
    protocol = "last word, its tokens all the likeliest ones after a stop-word filter (GPT-2 paper, sec. 3.3); ppl per word"
    record = "passage"
    test = Part(
        ("lambada_test.jsonl", "lambada_test_plain_text.txt"),
        "OpenAI's JSON lines with a field text, or one tokenised passage a line",
        "EleutherAI/lambada_openai",
        "default",
    )
    train = Part(
        ("lambada_development.jsonl", "lambada_development_plain_text.txt"),
        "JSON lines with a field text, or one tokenised passage a line",
        "cimec/lambada",
        split="validation",
    )
    filtered = True

    def from_file(self, path: Path) -> Iterable[Passage]:
        """A file of JSON lines is OpenAI's text; plain text is tokenised."""
        if path.suffix in (".jsonl", ".json"):
            texts = [record["text"] for record in read_json_lines(path, self.fields)]
        else:
            texts = read_lines(path)
        for number, text in enumerate(texts, 1):
            if not isinstance(text, str) or len(text.split()) < 2:
                raise BadFile(
                    f"{path}:{number}: no passage of two words or more: is the file cut short? Fetch it again"
                )
            yield Passage(text, path.suffix not in (".jsonl", ".json"))

    def from_hub(self, part: Part) -> Iterable[Passage]:
        """The hub's test part is OpenAI's text; its development part is tokenised."""
        return (Passage(row["text"], part is self.train) for row in read_hub(part, self.name, self.fields))

    def written(self, passage: Passage) -> str:
        """The passage as a person writes it."""
        return BOOKS.join(passage.text.split()) if passage.tokenised else passage.text.rstrip()

    def items(self, records: Records, scorer: Any, shots: int = 0, seed: int = 0) -> list[Word]:
        """With examples: GPT-3's cloze form, "Alice went to visit her friend ____. -> Bob", without the filter."""
        shown = self.examples(records, shots, seed)
        head = HEAD + cited([f"{self.question(p)}{self.parts(p)[1]}" for p in shown])
        banned = stop_ids(scorer) if self.filtered and not shown else None
        found = []
        for passage in records:
            before, word = self.parts(passage)
            context = head + self.question(passage) if shown else before
            found.append(self.item(*following(scorer, context, word), banned))
        return found

    def item(self, context: np.ndarray, target: np.ndarray, banned: np.ndarray | None) -> Word:
        return Word(context, target, banned)

    def parts(self, passage: Passage) -> tuple[str, str]:
        """What stands before the last word, with the space behind it, and that word."""
        text = self.written(passage)
        word = text.split()[-1]
        return text[: -len(word)], word

    def question(self, passage: Passage) -> str:
        return f"{self.parts(passage)[0].rstrip()} {BLANK} "

    def score(
        self, items: Sequence[Word], results: Sequence[tuple[float, bool]], shots: int = 0
    ) -> list[Score]:
        """The error of the perplexity is the mean log-probability's, by the delta method; lm-eval's bootstrap tends to the same."""
        logs = [log for log, _ in results]
        loss, error = ratio([-log for log in logs], [1.0] * len(logs))
        accuracy = self.accuracy("acc", [right for _, right in results], shots)
        return [accuracy, self.told("ppl", *perplexity(loss, error), len(logs), shots)]

    def told_with(self, shots: int) -> str:
        """With examples the protocol is GPT-3's."""
        form = f"GPT-3's cloze form (sec. 3.1.2), last word, no filter; after {counted(shots, 'example')}"
        return form if shots else self.protocol


def stop_ids(scorer: Any) -> np.ndarray:
    """The tokens that are a stop word with a space before it: the first token of a prediction may be none of them."""
    ids = [scorer.encode(f" {word}") for word in STOP_WORDS]
    return np.unique(np.concatenate([np.zeros(0, np.int32), *(one for one in ids if len(one) == 1)]))


class LastToken(Lambada):
    """The same with the last token in place of the last word: those who reproduced the paper's accuracy came nearest to it so
    (github.com/openai/gpt-2, issue 131; github.com/EleutherAI/gpt-neo, pull request 29)."""

    name = "lambada_token"
    protocol = "last token of the passage instead of its last word (github.com/openai/gpt-2, issue 131), no filter; ppl per token"
    filtered = False

    def item(self, context: np.ndarray, target: np.ndarray, banned: np.ndarray | None) -> Word:
        return Word(np.concatenate([context, target[:-1]]), target[-1:], banned)


class LmEval(Lambada):
    """lm-eval's lambada_openai, or with the plain text, which stays tokenised, lambada_standard."""

    name = "lambada_lm_eval"
    protocol = (
        "lm-eval's lambada_openai (plain text: lambada_standard): whole last word, no filter; ppl per word"
    )
    filtered = False

    def parts(self, passage: Passage) -> tuple[str, str]:
        """Divided at the last space, even if a line ends behind it."""
        before, space, word = passage.text.rpartition(" ")
        return before + space, word
