"""HellaSwag (Zellers et al. 2019): which of four endings goes on with a text about an everyday activity."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from pyllmc.base.errors import BadFile
from pyllmc.evaluate.fetch import Part, read_json_lines
from pyllmc.evaluate.items import Choice
from pyllmc.evaluate.task import Questions, Records, choice, cited

FORM = "JSON lines with ind, activity_label, ctx_a, ctx_b, ctx, endings, label"
CHOICES = 4


class Question(NamedTuple):
    """A context and its endings, as one protocol writes them; the right one's number."""

    context: str
    endings: list[str]
    answer: int


class HellaSwag(Questions):
    """llm.c's protocol (hellaswag.py): the context and the endings as they are; the ending with the smallest mean loss of a token
    is chosen (acc_norm), or with the smallest sum (acc)."""

    name = "hellaswag"
    metrics = ("acc_norm", "acc")
    protocol = "llm.c's: validation part as it is; acc_norm: smallest mean loss per token of the ending"
    record = "question"
    fields = ("activity_label", "ctx_a", "ctx_b", "ctx", "endings", "label")
    context: tuple[str, ...] = ("ctx",)  # the fields that the context is written of
    test = Part(("hellaswag_val.jsonl",), FORM, "Rowan/hellaswag", split="validation")
    train = Part(("hellaswag_train.jsonl",), FORM, "Rowan/hellaswag", split="train")

    def from_file(self, path: Path) -> Iterable[Question]:
        for number, row in enumerate(read_json_lines(path, self.fields), 1):
            yield self.checked(row, f"{path}, record {number}")

    def from_row(self, row: dict[str, Any]) -> Question:
        return self.checked(row, "a row of the hub")

    def checked(self, row: dict[str, Any], where: str) -> Question:
        """The question of a record. Raises BadFile."""
        for name in self.context:
            if not isinstance(row[name], str):
                raise BadFile(f"{where}: the field {name!r} is no text: fetch the file again")
        endings, label = row["endings"], str(row["label"])
        if not isinstance(endings, list) or len(endings) != CHOICES or not all(map(_is_text, endings)):
            raise BadFile(f"{where}: {CHOICES} endings were expected: fetch the file again")
        if label not in map(str, range(CHOICES)):
            raise BadFile(
                f"{where}: label {label!r} is not 0 to {CHOICES - 1}: is this the test file, which has none?"
            )
        return self.written(row, int(label))

    def written(self, row: dict[str, Any], answer: int) -> Question:
        """The texts as the protocol has them."""
        return Question(row["ctx"], list(row["endings"]), answer)

    def lengths(self, q: Question, item: Choice) -> list[float]:
        """What acc_norm divides by: the tokens of each ending."""
        return [float(len(ids)) for ids in item.choices]

    def items(self, records: Records, scorer: Any, shots: int = 0, seed: int = 0) -> list[Choice]:
        """Examples are contexts with their right endings (Brown et al. 2020, appendix G)."""
        head = cited([f"{q.context} {q.endings[q.answer]}" for q in self.examples(records, shots, seed)])
        found = []
        for q in records:
            endings = [f" {ending}" for ending in q.endings]
            item = choice(scorer, head + q.context, endings, q.answer, [], cut=not shots)
            found.append(Choice(item.context, item.choices, item.answer, self.lengths(q, item)))
        return found


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


class LmEval(HellaSwag):
    """lm-eval's task hellaswag: the activity's name before the context, WikiHow's brackets removed; the sum of an ending is divided by its
    characters."""

    name = "hellaswag_lm_eval"
    protocol = "lm-eval's hellaswag: activity: context, brackets removed; acc_norm: largest log-probability per character of the ending"
    context = ("activity_label", "ctx_a", "ctx_b")

    def written(self, row: dict[str, Any], answer: int) -> Question:
        context = f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}"
        return Question(cleaned(context), [cleaned(ending) for ending in row["endings"]], answer)

    def lengths(self, q: Question, item: Choice) -> list[float]:
        """The characters of each ending, without the space before it."""
        return [float(len(ending)) for ending in q.endings]


def cleaned(text: str) -> str:
    """A text without the marks of WikiHow's pages, such as [title] and [step] (lm-eval's tasks/hellaswag/utils.py)."""
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")
