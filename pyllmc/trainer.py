"""The training loop: the C engine's step machine, pulled event by event."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from pyllmc.adopt import adopt_model
from pyllmc.base.checks import NotCopied, as_flag, as_path, as_word, refuse
from pyllmc.base.errors import InvalidArgument
from pyllmc.distributed.team import Team
from pyllmc.engine import _ffi
from pyllmc.engine.settings import Options
from pyllmc.model import Model
from pyllmc.stories import telling

KINDS = ("done", "plan", "step", "gradients", "eval", "sample", "checkpoint", "exam")
MOST_NOTED = 1024  # bytes of a line of metrics.jsonl, which the engine reads back (csrc/train/run.c)


class Examiner(Protocol):
    """Scores --eval_tasks. It is made once all that training needs is checked, and refuses then what it cannot score."""

    def examine(self, step: int, again: bool) -> str:
        """Scores the model in training: the line to print. again: the run was resumed at this step, and may have scored it before;
        then "" if it has."""


@dataclasses.dataclass(frozen=True)
class Event:
    """One event of a run.

    kind: "plan" first, before memory is taken; then "step", "eval", "sample", "checkpoint", "exam" (--eval_tasks), and
    "gradients" if asked for.
    step, tokens: optimizer steps and tokens done. loss, lr, norm, ms, tok_s, eta_s: this step's; val_loss: the last one, of
    the first validation set. skipped: this step changed nothing, because the z-score of its loss or norm is above
    skip_outliers: z = (x - mean) / std over the last 128 steps, this one among them, as llm.c's outlier_detector.h has it.
    text: the line that the command line prints, or the sample; may be empty.
    """

    kind: str
    step: int
    tokens: int
    loss: float
    val_loss: float
    lr: float
    norm: float
    ms: float
    tok_s: float
    eta_s: float
    skipped: bool
    text: str


def turns_of(team: Team | None) -> Callable[[Callable[[], Any]], Any]:
    """Calls what it gets: on several processes on one after another."""
    return team.in_turn if team else lambda work: work()


def prepare(options: Options, team: Team | None) -> Any:
    """Returns the library of the options' device, after a check of all that can be refused first.

    Reads weights of formats that the engine does not know, and makes the stories, once, if neither --data nor --resume is
    given. Several processes do so one after another, so that what the first writes is there for the others."""
    if team:
        _ffi.check(options.lib, options.lib.llmc_options_set_team(options.handle, team.pointer))
    in_turn = turns_of(team)
    in_turn(lambda: _ffi.check(options.lib, options.lib.llmc_options_settle_resume(options.handle)))
    lib = options.load()
    in_turn(lambda: adopt_model(options))
    missing = _ffi.check(lib, lib.llmc_trainer_check(options.handle))
    in_turn(lambda: telling.make_default(options.get("data")) if missing else None)
    return lib


class Trainer(NotCopied):
    """Training, one event at a time.

    >>> for event in pyllmc.Trainer(data="data/mine", max_steps=100):
    ...     print(event.text)

    Options are those of `python -m pyllmc.train --help`; out="" writes no files. yield_gradients=True adds an event
    when a step's gradients are complete, before they are clipped and applied: change `trainer.model.grads` then.
    team: pyllmc.distributed.join(options) where torchrun has started several processes, which then train together.
    examiner: pyllmc.Examiner, for eval_tasks="lambada,..."; it is called with the trainer.
    Raises InvalidArgument for an impossible option or shape, BadFile, OutOfMemory, SystemFailure, NotFinite.
    """

    _INSTEAD = "give it a folder, out=..., and go on from there: pyllmc.Trainer(resume=...)"

    def __init__(
        self,
        options: Options | None = None,
        *,
        yield_gradients: bool = False,
        team: Team | None = None,
        examiner: Callable[[Trainer], Examiner] | None = None,
        **named: Any,
    ) -> None:
        if options is not None and not isinstance(options, Options):
            refuse(
                "options",
                options,
                "the Options of pyllmc.trainer; name options singly: pyllmc.Trainer(max_steps=100)",
            )
        if team is not None and not isinstance(team, Team):
            refuse("team", team, "what pyllmc.distributed.join(options) returns")
        if examiner is not None and not callable(examiner):
            refuse("examiner", examiner, "pyllmc.Examiner")
        self.options = options or Options(_ffi.load())
        if options is None and not {"out", "resume"} & set(named):
            self.options.set("out", "")  # a library call writes nothing unless it is told where
        for name, value in named.items():
            self.options.set(name, value)
        self.team = team  # C calls it as long as the trainer lives
        _ffi.check(
            self.options.lib, self.options.lib.llmc_options_examine(self.options.handle, examiner is not None)
        )
        self._lib = _ffi.InTurn(prepare(self.options, team))  # calls of its model wait for its own
        out = _ffi.ffi().new("llmc_trainer **")
        _ffi.check(self._lib, self._lib.llmc_trainer_new(out, self.options.handle))
        self._handle = _ffi.ffi().gc(out[0], self._lib.plain.llmc_trainer_free)
        _ffi.check(
            self._lib,
            self._lib.llmc_trainer_yield_gradients(self._handle, as_flag("yield_gradients", yield_gradients)),
        )
        self.stopped = False  # True: the run shall end soon
        self._has_stepped = False
        self._examiner = self._make(examiner) if examiner is not None and self.setting("eval_tasks") else None

    def _make(self, examiner: Callable[[Trainer], Examiner]) -> Examiner | None:
        """Makes the examiner; several processes do so one after another."""
        made: list[Examiner] = []
        if self.setting("plan") == "0":
            turns_of(self.team)(lambda: made.append(examiner(self)))
        return made[0] if made else None

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        while True:
            event = self._next()
            self._has_stepped |= event.kind == "step"
            if event.kind != "exam":
                return event
            if self._examiner and (line := self._examiner.examine(event.step, not self._has_stepped)):
                return dataclasses.replace(event, text=line)

    def _next(self) -> Event:
        event = _ffi.ffi().new("llmc_event *")
        if _ffi.check(self._lib, self._lib.llmc_trainer_next(self._handle, event)) == self._lib.LLMC_DONE:
            raise StopIteration
        fields = {
            f.name: getattr(event, f.name)
            for f in dataclasses.fields(Event)
            if f.name not in ("kind", "text", "skipped")
        }
        text = bytes(_ffi.ffi().buffer(event.text, event.text_size)).decode(errors="replace")
        return Event(kind=KINDS[event.kind], text=text, skipped=bool(event.skipped), **fields)

    def stop(self) -> None:
        """Ends the run soon, with a checkpoint from which a resumed run goes on as if it had never been stopped.

        At most one micro-step, one batch of a validation or one token of a sample is still computed. The call is safe in a
        signal handler and in another thread.
        """
        self.stopped = True
        self._lib.plain.llmc_trainer_stop(self._handle)  # without a turn: the step under way has it

    def setting(self, name: str) -> str:
        """The value of an option as the run has it: that of the checkpoint it goes on from, and the sizes of its model."""
        value = _ffi.ffi().new("char[1024]")
        told = self._lib.llmc_trainer_option
        _ffi.check(self._lib, told(self._handle, as_word("option", name), value, 1024))
        return os.fsdecode(_ffi.ffi().string(value))

    def _note(self, step: int, values: dict[str, Any]) -> None:
        """Writes a line of JSON into metrics.jsonl, if the run has a folder. Raises InvalidArgument for one of 1,024 bytes or more,
        SystemFailure."""
        line = _ffi.encoded(json.dumps({"step": step, **values}) + "\n")
        if len(line) >= MOST_NOTED:
            raise InvalidArgument(
                f"a line of {len(line)} bytes for metrics.jsonl: note less than {MOST_NOTED} at once"
            )
        _ffi.check(self._lib, self._lib.llmc_trainer_note(self._handle, line))

    @property
    def tokenizer_bytes(self) -> bytes:
        """The tokenizer.bin of the data or of the weights, which the run's checkpoints carry; b"" without one."""
        tokenizer, size = self._lib.llmc_trainer_tokenizer(self._handle), _ffi.ffi().new("int64_t *")
        if tokenizer == _ffi.ffi().NULL:
            return b""
        data = self._lib.llmc_tokenizer_bytes(tokenizer, size)
        return bytes(_ffi.ffi().buffer(data, size[0]))

    @property
    def stopping(self) -> str:
        """The line that answers a first Ctrl-C; it says what is under way."""
        return _ffi.text(self._lib.plain.llmc_trainer_stopping(self._handle))

    def ending(self, program: str, python: str) -> str:
        """The end of a run in words: its best result, the file of it, and next commands, by `program` and `python`."""
        text = _ffi.ffi().new("char[]", 1 << 15)
        names = _ffi.encoded(as_path("program", program)), _ffi.encoded(as_path("python", python))
        _ffi.check(self._lib, self._lib.llmc_trainer_ending(self._handle, *names, text, 1 << 15))
        return os.fsdecode(_ffi.ffi().string(text))

    @property
    def val_losses(self) -> dict[str, float]:
        """The last loss (nats per token) of each validation set, by its name, as val_data gives them; NaN before its first
        validation. The name is "" if there is one set without a name. The first decides what is best; a resumed run knows its
        loss from the checkpoint."""
        name, loss = _ffi.ffi().new("char **"), _ffi.ffi().new("double *")
        found = {}
        for i in range(self._lib.llmc_trainer_val(self._handle, -1, name, loss)):
            self._lib.llmc_trainer_val(self._handle, i, name, loss)
            found[_ffi.text(name[0])] = float(loss[0])
        return found

    @property
    def model(self) -> Model:
        """The model in training; its views change as it trains."""
        pointer = self._lib.llmc_trainer_model(self._handle)
        if pointer == _ffi.ffi().NULL:
            raise InvalidArgument(
                "the model is made after the plan: take the first event before you ask for it"
            )
        model = Model._borrow(self._lib, pointer, self._handle)
        model._tokenizer = self.tokenizer_bytes
        return model

    @property
    def out(self) -> str:
        """The run folder; empty if nothing is written."""
        return os.fsdecode(_ffi.ffi().string(self._lib.llmc_trainer_out(self._handle)))
