"""Scores of a model in training: --eval_tasks of python -m pyllmc.train and of pyllmc.Trainer."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from pyllmc.base.checks import refuse
from pyllmc.base.errors import InvalidArgument, LlmcError, OutOfMemory, Stopped
from pyllmc.base.values import finite
from pyllmc.engine import _ffi
from pyllmc.engine.checkpoint import RUN, checksum_in
from pyllmc.engine.run_files import read_scores
from pyllmc.evaluate import report
from pyllmc.evaluate.exam import KNOWN, Asked, Exam, Record, named
from pyllmc.evaluate.journal import checksum_of, digest_of
from pyllmc.evaluate.opening import step_of, tokenizer_of, with_room
from pyllmc.evaluate.scorer import Scorer
from pyllmc.model import Model
from pyllmc.tables.layout import GPTConfig
from pyllmc.trainer import Trainer

# Options of pyllmc.evaluate, whose names have eval_ before them in training.
OPTION = re.compile(r"--(tasks|data|limit)\b")


class Examiner:
    """Scores --eval_tasks with a second model, which takes the weights of the one in training.

    So the scores are those of `python -m pyllmc.evaluate` on a checkpoint of that step, to the last bit: the windows are as long as the
    model sees, whatever --T is; the batches are the same; and nothing of the training is touched. It takes the memory of the weights
    and of a batch of some 2,048 tokens. Of several processes rank 0 scores, and the others wait: they meet before each batch, so that
    none counts as lost, and a stop of one is heard.

    Raises InvalidArgument, DataError, BadFile, SystemFailure, MissingDependency, OutOfMemory.
    """

    def __init__(self, trainer: Trainer) -> None:
        if not isinstance(trainer, Trainer):
            refuse("trainer", trainer, "a pyllmc.Trainer, which calls this itself: examiner=pyllmc.Examiner")
        self._trainer, self._team = trainer, trainer.team
        self._asked: list[Asked] = []
        if not self._team or self._team.place.rank == 0:
            self._open()

    def _open(self) -> None:
        """Makes the model, reads the data and encodes it, so that all that can be refused is refused before the first step."""
        o = self._trainer.setting
        try:
            tasks = named(o("eval_tasks"))
            if not tasks:
                raise InvalidArgument(f"--tasks names no task: the tasks are {', '.join(KNOWN)}")
            if o("out"):
                read_scores(o("out"))  # a file that the scores cannot be added to is refused now
            self._exam = Exam(tasks, o("eval_data") or None, int(o("eval_limit")) or None)
            model = model_like(self._trainer)
            tokenizer = tokenizer_of("the data", "", self._trainer.tokenizer_bytes, model.config.vocab_size)
            self._scorer = Scorer(model, tokenizer, between=self._between)
            self._asked = list(self._exam.asked(self._scorer))
        except OutOfMemory as error:
            raise OutOfMemory(
                f"--eval_tasks takes a second model, for which memory is short ({error}): leave the tasks out, and score what --keep "
                "has kept with python -m pyllmc.evaluate --every_checkpoint"
            ) from error
        except LlmcError as error:
            raise type(error)(OPTION.sub(r"--eval_\1", str(error))) from error

    def examine(self, step: int, again: bool) -> str:
        """Scores the model in training, as pyllmc.trainer.Examiner says; "" if the run was stopped meanwhile."""
        if not self._asked:
            self._wait()
            return ""
        line = ""
        with suppress(Stopped):
            line = self._examine(step, again)
        if self._team:
            self._team.sums([0, 0])
        return line

    def _examine(self, step: int, again: bool) -> str:
        trainer, model = self._trainer, self._scorer.model
        folder = Path(trainer.out) if trainer.out else None
        _ffi.check(model._lib, model._lib.llmc_model_copy_weights(model._handle, trainer.model._handle))
        if again and folder and self._is_known(folder, step):
            return ""
        about = {"model": trainer.out, "step": step, "checkpoint": folder and checksum_of_step(folder, step)}
        found: list[Record] = []
        for records in self._exam.ask(self._asked, self._scorer, about, folder):
            values = {r["metric"]: r["value"] for r in records}
            trainer._note(step, {"task": records[0]["task"], "scores": finite(values)})
            if folder:
                report.keep(folder, records)
            found += records
        return report.line(step, found)

    def _is_known(self, folder: Path, step: int) -> bool:
        """True if the run has scored these weights at this step before it was resumed."""
        own = step, f"{checksum_of(self._scorer.model):08x}"
        kept = [r for r in read_scores(folder) if (r.get("step"), r.get("weights")) == own]
        known = [(r["task"], r.get("data")) for r in kept]
        return all((task.name, digest_of(items)) in known for task, items in self._asked)

    # ---- several processes ----

    def _between(self) -> None:
        """Is called before each batch: ends the scoring if the run is to stop."""
        stops = float(self._trainer.stopped)
        if self._team:
            stops = self._team.sums([stops, 1])[0]
        if stops:
            raise Stopped("stopped")

    def _wait(self) -> None:
        """Meets rank 0 before each of its batches, until it says that there is no more."""
        more = 1.0
        while more and self._team:
            _, more = self._team.sums([float(self._trainer.stopped), 0])


def model_like(trainer: Trainer) -> Model:
    """A model of the sizes, device and precision of the one in training, for scoring; its weights are yet to be copied."""
    o = trainer.setting
    names = ("vocab_size", "max_seq_len", "n_layer", "n_head", "n_embd", "window")
    V, T, L, NH, C, window = (int(o(name)) for name in names)
    config = GPTConfig(V, T, L, NH, C, window, o("untied") == "1", o("pattern"))
    how: Any = {"device": o("device"), "precision": o("precision"), "threads": int(o("threads"))}
    return with_room(lambda B: Model(config, B, training=False, keep_logits=False, **how), T)


def checksum_of_step(folder: Path, step: int) -> str | None:
    """The checksum of the run's checkpoint of this step, so that a model card finds the scores; None without one."""
    for path in (folder / name for name in RUN):
        if path.exists() and step_of(str(path)) == step:
            return checksum_in(path)
    return None
