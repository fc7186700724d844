"""What a task is: where its records come from, what a model is asked about them, and what the answers score."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Union

import numpy as np

from pyllmc.base.checks import as_count
from pyllmc.base.errors import DataError, InvalidArgument, counted
from pyllmc.evaluate.fetch import Folder, Part, locate, read_hub
from pyllmc.evaluate.items import Choice, Rolling, Score, Word
from pyllmc.evaluate.paper import published

Item = Union[Rolling, Choice, Word]


class Records(list):
    """The records of a task's test part, and the folder that they, and those of the other part, come from; None: the hub."""

    def __init__(self, records: Iterable[Any], folder: Folder) -> None:
        super().__init__(records)
        self.folder = folder


class Task:
    """One benchmark by one protocol.

    name: what --tasks calls it. metrics: of its scores, the published one first. protocol: a sentence that is printed beside the scores.
    test: its data; train: where examples (shots) are drawn from, None if it has none. record: what --limit counts. fields: what each row
    of the hub must have. own: True for a user's own file, whatever it is called, which nobody has published figures of.
    """

    name: str
    metrics: tuple[str, ...]
    protocol: str
    test: Part
    train: Part | None = None
    record: str = "item"
    fields: tuple[str, ...] = ("text",)
    own: bool = False

    @property
    def where(self) -> str:
        """The name that messages begin with."""
        return self.name

    def read(self, folder: Folder = None, limit: int | None = None) -> Records:
        """The first `limit` records of the test part: from a file, or from one in a folder; None: from the hub.

        Raises DataError, which says what to put where, BadFile, SystemFailure, MissingDependency.
        """
        if limit is not None and as_count("limit", limit) == 0:
            raise InvalidArgument("limit=0 leaves no record: give at least 1")
        records = Records(self._part(self.test, folder, limit), folder)
        if not records:
            raise DataError(f"{self.name}: the data holds no {self.record}: fetch it again")
        return records

    def _part(self, part: Part, folder: Folder, limit: int | None) -> list[Any]:
        found = self.from_hub(part) if folder is None else self.from_file(locate(part, folder, self.name))
        return list(islice(found, limit))

    def from_hub(self, part: Part) -> Iterable[Any]:
        """The records among the rows of the hub."""
        return map(self.from_row, read_hub(part, self.name, self.fields))

    def from_file(self, path: Path) -> Iterable[Any]:
        """The records of a file in the published format."""
        raise NotImplementedError

    def from_row(self, row: dict[str, Any]) -> Any:
        """The record of a row of the hub."""
        raise NotImplementedError

    def items(self, records: Records, scorer: Any, shots: int = 0, seed: int = 0) -> list[Any]:
        """What the model is asked, in the order of the records.

        shots: how many examples, drawn by `seed`, stand before each question. Raises InvalidArgument, DataError.
        """
        raise NotImplementedError

    def score(self, items: Sequence[Any], results: Sequence[Any], shots: int = 0) -> list[Score]:
        """The scores of the scorer's answers to the items, in order. shots: how many examples stood before each."""
        raise NotImplementedError

    # ---- what tasks share ----

    def examples(self, records: Records, shots: int, seed: int) -> list[Any]:
        """`shots` records of the other part, drawn without replacement; the same for every question."""
        if not as_count("shots", shots):
            return []
        if self.train is None:
            raise InvalidArgument(f"{self.name} scores a text and takes no examples: leave --shots out")
        if records.folder is not None and Path(records.folder).is_file():
            raise InvalidArgument(
                f"{self.name}: examples are drawn from {self.train.wanted()}: name the folder that holds both files"
            )
        pool = self._part(self.train, records.folder, None)
        if len(pool) < shots:
            raise InvalidArgument(
                f"{self.name}: {counted(shots, 'example')} of {len(pool)}: give at most {len(pool)} --shots"
            )
        return random.Random(seed).sample(pool, shots)

    def told(self, metric: str, value: float, error: float | None, n: int, shots: int = 0) -> Score:
        """A score of this task. The published figures are those without examples."""
        paper = None if shots or self.own else published(self.name, metric)
        return Score(self.name, metric, value, error, n, self.told_with(shots), paper)

    def told_with(self, shots: int) -> str:
        """The protocol, with the number of examples."""
        return f"{self.protocol}; after {counted(shots, 'example')}" if shots else self.protocol

    def accuracy(self, metric: str, right: Sequence[bool], shots: int = 0) -> Score:
        """The share of right answers. Its error is that of a mean, as in lm-eval: sqrt(p (1 - p) / (n - 1))."""
        return self.told(metric, *ratio(right, [1.0] * len(right)), len(right), shots)


class Questions(Task):
    """A task that asks which of several texts goes on with a context. acc: the one with the largest log-probability; acc_norm: with the
    largest one divided by the item's lengths."""

    def score(
        self, items: Sequence[Choice], results: Sequence[list[np.ndarray]], shots: int = 0
    ) -> list[Score]:
        sums = [np.array([logs.sum() for logs in result]) for result in results]
        normed = [s / np.array(item.lengths) for s, item in zip(sums, items)]
        compared = {"acc": sums, "acc_norm": normed}
        return [
            self.accuracy(
                metric, [int(s.argmax()) == item.answer for s, item in zip(compared[metric], items)], shots
            )
            for metric in self.metrics
        ]


def ratio(sums: Any, units: Any) -> tuple[float, float | None]:
    """sum(sums) / sum(units), arrays of one length, and its standard error over the samples; None for a single one.

    With equal units that is the standard error of a mean; otherwise the usual linear estimate of a ratio's.
    """
    s, u = np.asarray(sums, np.float64), np.asarray(units, np.float64)
    mean, n = s.sum() / u.sum(), len(s)
    if n < 2:
        return float(mean), None
    return float(mean), float(np.sqrt(((s - mean * u) ** 2).sum() * n / (n - 1)) / u.sum())


def perplexity(loss: float, error: float | None) -> tuple[float, float | None]:
    """exp(loss), and its standard error by the delta method: exp(loss) times that of the loss."""
    value = math.exp(loss) if loss < 700 else math.inf
    return value, None if error is None else value * error


def beginning(scorer: Any) -> np.ndarray:
    """The token that ends documents, and therefore begins them; nothing if the tokenizer has none."""
    return np.array([scorer.eot] if scorer.eot >= 0 else [], np.int32)


def following(scorer: Any, context: str, text: str) -> tuple[np.ndarray, np.ndarray]:
    """The ids of a context and of the text that goes on with it, as lm-eval divides them (`_encode_pair`): spaces at the end of
    the context belong to the text, and the whole is encoded at once."""
    bare = context.rstrip()
    before, whole = scorer.encode(bare), scorer.encode(context + text)
    return (before, whole[len(before) :]) if len(before) else (beginning(scorer), whole)


def choice(
    scorer: Any, context: str, texts: Sequence[str], answer: int, lengths: Sequence[float], cut: bool
) -> Choice:
    """A question with the texts that may follow it. cut: a context too long for the model loses its beginning, as in lm-eval."""
    pairs = [following(scorer, context, text) for text in texts]
    before, choices = pairs[0][0], [ids for _, ids in pairs]
    if cut:
        before = before[-max(1, scorer.T + 1 - max(map(len, choices))) :]
    return Choice(before, choices, answer, list(lengths))


def cited(texts: Sequence[str]) -> str:
    """Examples before a question, with an empty line behind each (Brown et al. 2020, appendix G)."""
    return "".join(f"{text}\n\n" for text in texts)
