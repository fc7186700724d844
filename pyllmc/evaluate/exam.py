"""An exam: tasks, asked of one model after another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pyllmc.base import live
from pyllmc.base.errors import InvalidArgument
from pyllmc.engine.checkpoint import checkpoint_of, checksum_in
from pyllmc.evaluate.items import Rolling
from pyllmc.evaluate.journal import (
    Journal,
    answers,
    checksum_of,
    digest_of,
    key_of,
    place_for,
    precision_of,
)
from pyllmc.evaluate.scorer import Scorer
from pyllmc.evaluate.task import Task
from pyllmc.evaluate.tasks import TASKS
from pyllmc.evaluate.tasks.hellaswag_bin import HellaSwagBin
from pyllmc.tables.options import meant, one_of

Record = dict[str, Any]
Asked = tuple[Task, list[Any]]
KNOWN: dict[str, Task] = {**TASKS, HellaSwagBin.name: HellaSwagBin()}


def named(words: str) -> list[Task]:
    """The tasks whose names commas separate. Raises InvalidArgument."""
    found = []
    for word in filter(None, (word.strip() for word in words.split(","))):
        if word not in KNOWN:
            near = meant(word, list(KNOWN))
            hint = f"did you mean {one_of(near)}?" if near else f"the tasks are {', '.join(KNOWN)}"
            raise InvalidArgument(f"--tasks: {word!r} is no task: {hint}")
        found.append(KNOWN[word])
    return list(dict.fromkeys(found))


@dataclass(frozen=True)
class Exam:
    """tasks: what is asked. data: the file or folder of their data, None: the hub. limit: the first so many records of each.
    shots: how many examples stand before each question, drawn by `seed`."""

    tasks: Sequence[Task]
    data: str | None = None
    limit: int | None = None
    shots: int = 0
    seed: int = 0

    def run(self, source: str, scorer: Scorer, step: int | None = None) -> Iterator[list[Record]]:
        """Yields the records of each task's scores of the model at `source`, as soon as it is done."""
        file = checkpoint_of(source)
        about = {"model": source, "step": step, "checkpoint": checksum_in(file) if file else None}
        return self.ask(self.asked(scorer), scorer, about, place_for(source))

    def asked(self, scorer: Scorer) -> Iterator[Asked]:
        """Yields each task with what it asks of a model. Raises the errors of Task.read and Task.items, and InvalidArgument for what
        the model cannot be asked."""
        for task in self.tasks:
            items = task.items(task.read(self.data, self.limit), scorer, self.shots, self.seed)
            try:
                scorer.check(items)
            except InvalidArgument as error:
                raise InvalidArgument(f"{task.where}: {error}") from None
            yield task, items

    def ask(
        self, asked: Iterable[Asked], scorer: Scorer, about: Record, place: Path | None
    ) -> Iterator[list[Record]]:
        """Yields the records of each task's scores, which begin with `about`, as soon as it is done. What an interrupted call has found
        out is not computed again: it lies in `place`, None: nowhere, until all tasks are done."""
        journals, checksum = [], checksum_of(scorer.model)
        about = {**about, "weights": f"{checksum:08x}", "precision": precision_of(scorer.model)}
        about |= {"shots": self.shots, "seed": self.seed, "limit": self.limit}
        try:
            for task, items in asked:
                digest = digest_of(items)
                journals.append(Journal(place, f"{task.name}-{key_of(scorer.model, checksum, digest)}"))
                scores = task.score(items, self._results(task, scorer, items, journals[-1]), self.shots)
                fixed = {**about, "data": digest}
                yield [{**fixed, "task": score.name, **_without_name(score)} for score in scores]
        except BaseException:
            for journal in journals:
                journal.close()
            raise
        for journal in journals:
            journal.remove()

    def _results(self, task: Task, scorer: Scorer, items: Sequence[Any], journal: Journal) -> list[Any]:
        what = "text" if isinstance(items[0], Rolling) else "item"
        found = answers(scorer, items, journal)
        return list(live.each(found, f"{task.name}: {what}", len(items)))


def _without_name(score: Any) -> Record:
    fields = asdict(score)
    del fields["name"]
    return fields
