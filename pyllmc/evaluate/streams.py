"""Tasks that score whole texts: perplexity, bits per byte, bits per character."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pyllmc.evaluate.detokenize import Detokenizer
from pyllmc.evaluate.fetch import Part, read_hub, read_lines
from pyllmc.evaluate.items import Rolling, Score
from pyllmc.evaluate.task import Records, Task, beginning, perplexity, ratio

HALF = "windows of T tokens that move by T / 2"  # common practice: the paper names no stride


class Stream(Task):
    """A task that scores texts. Its first metric is ppl (per word), bpb or bpc, each by the item's units."""

    disjoint = False  # windows without common tokens, as lm-eval has them

    def texts(self, records: Records) -> Iterable[tuple[str, float, int]]:
        """For each stream: the text that is scored, the units that the figure divides by, and the bytes of the original."""
        raise NotImplementedError

    def items(self, records: Records, scorer: Any, shots: int = 0, seed: int = 0) -> list[Rolling]:
        """Each text begins with the token that ends documents; without one, its first token is context only."""
        self.examples(records, shots, seed)
        stride = scorer.T if self.disjoint else max(1, scorer.T // 2)
        head = beginning(scorer)
        found = []
        for text, units, size in self.texts(records):
            ids = np.concatenate([head, scorer.encode(text)])
            found.append(Rolling(ids, stride, None, 1, units, size))
        return found

    def units(self, items: Sequence[Rolling], tokens: Sequence[float]) -> dict[str, Sequence[float]]:
        """The units that each metric divides by, for each text."""
        own = [item.units for item in items]
        return {"loss": tokens, "bpb": [item.bytes for item in items], self.metrics[0]: own}

    def score(self, items: Sequence[Rolling], results: Sequence[np.ndarray], shots: int = 0) -> list[Score]:
        """Errors: texts are the samples; where there is one alone, its tokens are, as if they were independent."""
        units = self.units(items, [len(logs) for logs in results])
        return [
            self.told(metric, *_as(metric, *_per_unit(results, units[metric])), round(sum(units[metric])))
            for metric in self.metrics
        ]


def _as(metric: str, loss: float, error: float | None) -> tuple[float, float | None]:
    """A loss in nats as a metric has it: exp for ppl, bits for bpb and bpc."""
    if metric.startswith("ppl"):
        return perplexity(loss, error)
    bit = 1.0 if metric == "loss" else math.log(2)
    return loss / bit, None if error is None else error / bit


def _per_unit(results: Sequence[np.ndarray], units: Sequence[float]) -> tuple[float, float | None]:
    if len(results) == 1:
        logs = results[0]
        return ratio(-logs, np.full(len(logs), units[0] / len(logs)))
    return ratio([-logs.sum() for logs in results], units)


class Words(Stream):
    """A tokenised text whose lines are one stream: perplexity per word, the end of a line counted as one (<eos>), as language models
    of words count it. The lines are de-tokenised."""

    metrics = ("ppl", "bpb", "loss")
    record = "line"
    detokenizer: Detokenizer

    def from_file(self, path: Path) -> Iterable[str]:
        return read_lines(path)

    def from_hub(self, part: Part) -> Iterable[str]:
        return (str(row[self.fields[0]]).rstrip("\n") for row in read_hub(part, self.name, self.fields))

    def texts(self, records: Records) -> Iterable[tuple[str, float, int]]:
        lines = [words_of(line) for line in records]
        text = "".join(f"{self.detokenizer.join(words)}\n" for words in lines)
        yield text, sum(len(words) + 1 for words in lines), sum(len(line.encode()) + 1 for line in records)


def words_of(line: str) -> list[str]:
    return [word for word in line.split(" ") if word]
