"""Any questions of the user's own with several answers, of which the likeliest is chosen."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, NamedTuple

from pyllmc.base.errors import BadFile, InvalidArgument, counted
from pyllmc.evaluate.fetch import Folder, read_json_lines
from pyllmc.evaluate.items import Choice
from pyllmc.evaluate.task import Questions, Records, choice, cited

FIELDS = ("context", "choices", "answer")


class Question(NamedTuple):
    """choices: what may follow the context, with the space before it."""

    context: str
    choices: list[str]
    answer: int


class OwnChoices(Questions):
    """Lines {"context": text, "choices": [text, ...], "answer": number of the right one, from 0}. A space stands between the context and a
    choice, unless there is white space already."""

    metrics = ("acc", "acc_norm")
    protocol = "acc: the choice with the largest log-probability; acc_norm: per byte of the choice"
    record = "question"
    own = True

    def __init__(self, path: str) -> None:
        self.path, self.name = Path(path), Path(path).name

    @property
    def where(self) -> str:
        return str(self.path)

    def read(self, folder: Folder = None, limit: int | None = None) -> Records:
        """The first `limit` questions of the file. Raises BadFile, SystemFailure."""
        lines = enumerate(read_json_lines(self.path, FIELDS, own=True), 1)
        found = Records((question_of(line, f"{self.path}, record {i}") for i, line in lines), None)
        return Records(found[:limit], None)

    def items(self, records: Records, scorer: Any, shots: int = 0, seed: int = 0) -> list[Choice]:
        """Examples are questions of the same file, which are then not asked."""
        if shots >= len(records):
            raise InvalidArgument(
                f"{self.name}: {counted(shots, 'example')} of {counted(len(records), 'question')} leave none to ask: "
                "give fewer --shots"
            )
        drawn = random.Random(seed).sample(range(len(records)), shots)
        head = cited([records[i].context + records[i].choices[records[i].answer] for i in drawn])
        return [
            choice(scorer, head + q.context, q.choices, q.answer, lengths_of(q), cut=False)
            for i, q in enumerate(records)
            if i not in drawn
        ]


def question_of(line: dict[str, Any], where: str) -> Question:
    """The question of a line. Raises BadFile."""
    context, choices, answer = (line[name] for name in FIELDS)
    if not isinstance(context, str):
        raise BadFile(
            f"{where}: the context is no text: write {{'context': '...', 'choices': [...], 'answer': 0}}"
        )
    if (
        not isinstance(choices, list)
        or len(choices) < 2
        or not all(isinstance(c, str) and c for c in choices)
    ):
        raise BadFile(f"{where}: choices must be a list of two or more texts, none of them empty")
    if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < len(choices):
        raise BadFile(
            f"{where}: answer {answer!r:.40} is not the number of a choice, 0 to {len(choices) - 1}"
        )
    gap = "" if not context or context[-1].isspace() else " "
    return Question(context, [c if c[0].isspace() else gap + c for c in choices], answer)


def lengths_of(q: Question) -> list[float]:
    """UTF-8 bytes of each choice, without the space before it."""
    return [float(len(c.strip().encode()) or 1) for c in q.choices]
