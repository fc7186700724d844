"""The training loop: the C engine's step machine, pulled event by event."""

from __future__ import annotations

import dataclasses
import numbers
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from pyllmc import _ffi
from pyllmc.adopt import adopt_model
from pyllmc.base.checks import NotCopied, as_flag, as_int, as_path, as_word, is_array, refuse
from pyllmc.base.errors import InvalidArgument
from pyllmc.model import Model
from pyllmc.stories import telling

KINDS = ("done", "plan", "step", "gradients", "eval", "sample", "checkpoint")


@dataclasses.dataclass(frozen=True)
class Event:
    """What just happened.

    kind: "plan" first, before memory is taken; then "step", "eval", "sample", "checkpoint", and "gradients" where asked.
    step, tokens: optimizer steps and tokens done. loss, lr, norm, ms, tok_s, eta_s: of this step; val_loss: the last.
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
    text: str


class Options(NotCopied):
    """The options of csrc/options.def, by name: a trainer's, or a chat's."""

    _INSTEAD = "make another with the same options"

    def __init__(self, lib: Any, chat: bool = False) -> None:
        self.lib = self._lib = lib
        self.is_chat = chat
        self._command = f"python -m pyllmc.{'chat' if chat else 'train'}"
        handle = lib.llmc_options_new_chat() if chat else lib.llmc_options_new()
        self.handle = _ffi.ffi().gc(handle, lib.llmc_options_free)

    def set(self, name: str, value: Any) -> None:
        """Raises InvalidArgument for a name that is none, and a value that cannot be."""
        text = _ffi.encoded(option_text(as_word("option", name).decode(), value))
        _ffi.check(self._lib, self._lib.llmc_options_set(self.handle, name.encode(), text))

    def get(self, name: str) -> str:
        value = _ffi.ffi().new("char[1024]")
        _ffi.check(self._lib, self._lib.llmc_options_get(self.handle, as_word("option", name), value, 1024))
        return os.fsdecode(_ffi.ffi().string(value))

    def is_given(self, name: str) -> bool:
        """Whether it was set since the defaults."""
        return bool(
            _ffi.check(self._lib, self._lib.llmc_options_is_given(self.handle, as_word("option", name)))
        )

    def set_model_file(self, path: str) -> None:
        """What is read for --model; see pyllmc.adopt."""
        _ffi.check(
            self._lib, self._lib.llmc_options_set_model_file(self.handle, _ffi.encoded(as_path("path", path)))
        )

    def parse(self, arguments: Sequence[str]) -> str:
        """Reads a command line; the text that it asks for by --help or --version, else empty."""
        if isinstance(arguments, (str, bytes)) or not isinstance(arguments, Sequence):
            refuse("arguments", arguments, "a list of texts")
        encoded = [_ffi.encoded(as_path("argument", argument)) for argument in arguments]
        texts = [_ffi.ffi().new("char[]", argument) for argument in encoded]
        argv = _ffi.ffi().new("char *[]", texts) if texts else _ffi.ffi().NULL
        asked = _ffi.check(self._lib, self._lib.llmc_options_parse(self.handle, len(texts), argv))
        return "" if asked == 0 else self.help() if asked == 1 else self.version()

    def only_write(self) -> bool:
        """Whether no training is wanted but text: --max_steps=0 with a --prompt and neither --data nor --resume."""
        return bool(self._lib.llmc_options_only_write(self.handle))

    def load(self) -> Any:
        """The library of the device that they name."""
        return _ffi.load(self.get("device"), self.get("precision"))

    def version(self) -> str:
        return f"pyllmc {_ffi.text(self._lib.llmc_version())}\n"

    def help(self, command: str = "", width: int = 0) -> str:
        """What `command --help` tells, in lines of `width` columns: by default those of the terminal."""
        name = as_word("command", command) or self._command.encode()
        columns = as_int("width", width) or shutil.get_terminal_size((100, 24)).columns
        told = self._lib.llmc_options_help
        size = _ffi.check(self._lib, told(self.handle, name, columns, _ffi.ffi().NULL, 0)) + 1
        text = _ffi.ffi().new("char[]", size)
        _ffi.check(self._lib, told(self.handle, name, columns, text, size))
        return _ffi.text(text)


def option_text(name: str, value: Any) -> str:
    """A value as the command line has it: numbers, flags and texts; whether it can be is csrc/options.c's to say."""
    if isinstance(value, (str, os.PathLike)):
        return as_path(f"--{name}", value)
    if is_array(value) or not isinstance(value, (numbers.Real, np.bool_)):
        refuse(f"--{name}", value, "a number, a flag or a text")
    return str(int(value) if isinstance(value, (bool, np.bool_)) else value)


def check_and_make_data(options: Options, lib: Any) -> None:
    """What can be refused is refused first; then, without --data and --resume, the stories are made, once."""
    if not _ffi.check(lib, lib.llmc_trainer_check(options.handle)):
        return
    data = options.get("data")
    print(f"making {data}", file=sys.stderr)
    telling.write_dataset(data)


class Trainer(NotCopied):
    """Training, one event at a time.

    >>> for event in pyllmc.Trainer(data="data/mine", max_steps=100):
    ...     print(event.text)

    Options are those of `python -m pyllmc.train --help`; out="" writes no files. yield_gradients=True adds an event
    when a step's gradients are complete, before they are clipped and applied: change `trainer.model.grads` then.
    Raises InvalidArgument for an option or shape that cannot be, BadFile, OutOfMemory, SystemFailure, NotFinite.
    """

    _INSTEAD = "give it a folder, out=..., and go on from there: pyllmc.Trainer(resume=...)"

    def __init__(
        self,
        options: Options | None = None,
        *,
        yield_gradients: bool = False,
        **named: Any,
    ) -> None:
        if options is not None and not isinstance(options, Options):
            refuse(
                "options",
                options,
                "the Options of pyllmc.trainer; name options singly: pyllmc.Trainer(max_steps=100)",
            )
        self.options = options or Options(_ffi.load())
        if options is None and not {"out", "resume"} & set(named):
            self.options.set("out", "")  # a library call writes nothing unless told where
        for name, value in named.items():
            self.options.set(name, value)
        self._lib = self.options.load()
        adopt_model(self.options)
        check_and_make_data(self.options, self._lib)
        out = _ffi.ffi().new("llmc_trainer **")
        _ffi.check(self._lib, self._lib.llmc_trainer_new(out, self.options.handle))
        self._handle = _ffi.ffi().gc(out[0], self._lib.llmc_trainer_free)
        _ffi.check(
            self._lib,
            self._lib.llmc_trainer_yield_gradients(self._handle, as_flag("yield_gradients", yield_gradients)),
        )

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        event = _ffi.ffi().new("llmc_event *")
        if _ffi.check(self._lib, self._lib.llmc_trainer_next(self._handle, event)) == self._lib.LLMC_DONE:
            raise StopIteration
        fields = {
            f.name: getattr(event, f.name)
            for f in dataclasses.fields(Event)
            if f.name not in ("kind", "text")
        }
        text = bytes(_ffi.ffi().buffer(event.text, event.text_size)).decode(errors="replace")
        return Event(kind=KINDS[event.kind], text=text, **fields)

    def stop(self) -> None:
        """End soon, with a checkpoint from which a resumed run goes on as if it had never been stopped.

        That is at most one micro-step, batch of a validation or token of a sample later. Safe in a signal handler and in
        another thread.
        """
        self._lib.llmc_trainer_stop(self._handle)

    @property
    def stopping(self) -> str:
        """The line that answers a first Ctrl-C, by what is under way."""
        return _ffi.text(self._lib.llmc_trainer_stopping(self._handle))

    def ending(self, program: str, python: str) -> str:
        """What was best, where it is, and what to do next, as commands that call `program` to train and `python`."""
        text = _ffi.ffi().new("char[]", 1 << 15)
        names = _ffi.encoded(as_path("program", program)), _ffi.encoded(as_path("python", python))
        _ffi.check(self._lib, self._lib.llmc_trainer_ending(self._handle, *names, text, 1 << 15))
        return os.fsdecode(_ffi.ffi().string(text))

    @property
    def model(self) -> Model:
        """The model in training; its views change as it trains."""
        pointer = self._lib.llmc_trainer_model(self._handle)
        if pointer == _ffi.ffi().NULL:
            raise InvalidArgument(
                "the model is made after the plan: take the first event before you ask for it"
            )
        return Model._borrow(self._lib, pointer, self._handle)

    @property
    def out(self) -> str:
        """The run folder; empty if nothing is written."""
        return os.fsdecode(_ffi.ffi().string(self._lib.llmc_trainer_out(self._handle)))
