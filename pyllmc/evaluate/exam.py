"""An exam: tasks, asked of one model after another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pyllmc.base import live
from pyllmc.base.errors import InvalidArgument
from pyllmc.engine.checkpoint import checkpoint_of, checksum_in
from pyllmc.evaluate.items import Rolling
from pyllmc.evaluate.journal import Journal, answers, checksum_of, key_of, place_for
from pyllmc.evaluate.scorer import Scorer
from pyllmc.evaluate.task import Task
from pyllmc.evaluate.tasks import TASKS
from pyllmc.evaluate.tasks.hellaswag_bin import HellaSwagBin
from pyllmc.tables.options import meant, one_of

Record = dict[str, Any]
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
        """Yields the records of each task's scores of one model, as soon as it is done. What an interrupted call has found
        out is not computed again; its files go when all tasks are done."""
        journals, checksum = [], checksum_of(scorer.model)
        file = checkpoint_of(source)
        model = {"model": source, "step": step, "weights": f"{checksum:08x}"}
        model["checkpoint"] = checksum_in(file) if file else None
        asked = {"shots": self.shots, "seed": self.seed, "limit": self.limit}
        try:
            for task in self.tasks:
                items = task.items(task.read(self.data, self.limit), scorer, self.shots, self.seed)
                place = f"{task.name}-{key_of(scorer.model, checksum, items)}"
                journals.append(Journal(place_for(source), place))
                scores = task.score(items, self._results(task, scorer, items, journals[-1]), self.shots)
                yield [{**model, **asked, "task": score.name, **_without_name(score)} for score in scores]
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
