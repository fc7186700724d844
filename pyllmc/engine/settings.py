"""The options of a training or a chat, in the C struct that csrc/options.def makes."""

from __future__ import annotations

import numbers
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pyllmc.base.checks import NotCopied, as_int, as_path, as_word, is_array, refuse
from pyllmc.engine import _ffi
from pyllmc.engine.checkpoint import recorded


class Options(NotCopied):
    """The options of csrc/options.def, by name: those of a trainer, or of a chat."""

    _INSTEAD = "make another with the same options"

    def __init__(self, lib: Any, chat: bool = False) -> None:
        self.lib = self._lib = lib
        self.is_chat = chat
        self._command = f"python -m pyllmc.{'chat' if chat else 'train'}"
        handle = lib.llmc_options_new_chat() if chat else lib.llmc_options_new()
        self.handle = _ffi.ffi().gc(handle, lib.llmc_options_free)

    def set(self, name: str, value: Any) -> None:
        """Set an option. Raises InvalidArgument for an unknown name or an impossible value."""
        text = _ffi.encoded(option_text(as_word("option", name).decode(), value))
        _ffi.check(self._lib, self._lib.llmc_options_set(self.handle, name.encode(), text))

    def get(self, name: str) -> str:
        value = _ffi.ffi().new("char[1024]")
        _ffi.check(self._lib, self._lib.llmc_options_get(self.handle, as_word("option", name), value, 1024))
        return os.fsdecode(_ffi.ffi().string(value))

    def is_given(self, name: str) -> bool:
        """True if the option was set after the defaults."""
        return bool(
            _ffi.check(self._lib, self._lib.llmc_options_is_given(self.handle, as_word("option", name)))
        )

    def set_model_file(self, path: str) -> None:
        """Set the file that is read for --model; see pyllmc.adopt."""
        _ffi.check(
            self._lib, self._lib.llmc_options_set_model_file(self.handle, _ffi.encoded(as_path("path", path)))
        )

    def set_base_file(self, path: str) -> None:
        """Set the file that is read for the base of adapters; see pyllmc.adopt."""
        _ffi.check(
            self._lib, self._lib.llmc_options_set_base_file(self.handle, _ffi.encoded(as_path("path", path)))
        )

    def parse(self, arguments: Sequence[str]) -> str:
        """Read a command line. Return the text that it asks for by --help or --version, else an empty one."""
        if isinstance(arguments, (str, bytes)) or not isinstance(arguments, Sequence):
            refuse("arguments", arguments, "a list of texts")
        encoded = [_ffi.encoded(as_path("argument", argument)) for argument in arguments]
        texts = [_ffi.ffi().new("char[]", argument) for argument in encoded]
        argv = _ffi.ffi().new("char *[]", texts) if texts else _ffi.ffi().NULL
        asked = _ffi.check(self._lib, self._lib.llmc_options_parse(self.handle, len(texts), argv))
        return "" if asked == 0 else self.help() if asked == 1 else self.version()

    def only_write(self) -> bool:
        """True if only text is wanted, no training: --max_steps=0 with a --prompt and neither --data nor --resume."""
        return bool(self._lib.llmc_options_only_write(self.handle))

    def load(self) -> Any:
        """Load the library of the device that the options name."""
        return _ffi.load(self.get("device"), self._precision())

    def _precision(self) -> str:
        """The precision to come: a GPU's library has one, so that of a resumed run must be known before C reads its options."""
        device, precision = str(self.get("device")), str(self.get("precision"))
        resume = "" if self.is_chat else str(self.get("resume"))
        if device in ("auto", "cpu") or not resume or self.is_given("precision"):
            return precision
        path = Path(resume, "last.ckpt") if os.path.isdir(resume) else Path(resume)
        return str(recorded(path)[0].get("precision", precision))

    def version(self) -> str:
        return f"pyllmc {_ffi.text(self._lib.llmc_version())}\n"

    def help(self, command: str = "", width: int = 0) -> str:
        """The text of `command --help`, in lines of `width` columns; 0: the terminal's width."""
        name = as_word("command", command) or self._command.encode()
        columns = as_int("width", width) or shutil.get_terminal_size((100, 24)).columns
        told = self._lib.llmc_options_help
        size = _ffi.check(self._lib, told(self.handle, name, columns, _ffi.ffi().NULL, 0)) + 1
        text = _ffi.ffi().new("char[]", size)
        _ffi.check(self._lib, told(self.handle, name, columns, text, size))
        return _ffi.text(text)


def option_text(name: str, value: Any) -> str:
    """The text of a value on the command line: a number, a flag or a text. csrc/options/options.c then checks its bounds."""
    if isinstance(value, (str, os.PathLike)):
        return as_path(f"--{name}", value)
    if is_array(value) or not isinstance(value, (numbers.Real, np.bool_)):
        refuse(f"--{name}", value, "a number, a flag or a text")
    return str(int(value) if isinstance(value, (bool, np.bool_)) else value)
