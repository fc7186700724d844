"""The C library, bound by reading its own header: csrc/pyllmc.h and what it includes are the only list of functions and types."""

from __future__ import annotations

import functools
import os
import re
import threading
from pathlib import Path
from typing import Any

from cffi import FFI

from pyllmc.base import live
from pyllmc.base.checkout import PACKAGE, is_checkout
from pyllmc.base.checks import encoded as encoded
from pyllmc.base.errors import (  # noqa: F401, callers import the errors from the module that raises them
    ERRORS,
    BadFile,
    InvalidArgument,
    LlmcError,
    NoDevice,
    NotFinite,
    OutOfMemory,
    SystemFailure,
)
from pyllmc.engine import cublas
from pyllmc.tables.layout import definition, tables_cksum

DEVICES = tuple(re.findall(r"^DEVICE\((\w+)", definition("devices.def").read_text(encoding="utf-8"), re.M))


def declarations(path: Path) -> str:
    """The lines between a header's two marks: plain C, which cffi parses without a preprocessor."""
    return "".join(
        re.findall(r"/\* cffi: begin \*/(.*?)/\* cffi: end \*/", path.read_text(encoding="utf-8"), re.S)
    )


@functools.cache
def ffi() -> FFI:
    parser = FFI()
    parser.cdef("typedef struct floatX floatX;")  # behind pointers only: float or bfloat16
    for name in ("kernels.h", "pyllmc.h", "frontends.h"):
        parser.cdef(declarations(definition(name)))
    return parser


def library(device: str, precision: str = "auto") -> str:
    """The file name of a device's library. A GPU's library is built for one stored element, a CPU's for all."""
    stored = "_fp32" if precision == "fp32" else ""
    return "libpyllmc.so" if device == "cpu" else f"libpyllmc_{device}{stored}.so"


def load(device: str = "cpu", precision: str = "auto") -> Any:
    """The library of a device (auto: cpu), loaded once. Raises NoDevice if it was built from other headers than these."""
    device = "cpu" if device == "auto" else device
    if device not in DEVICES:
        raise NoDevice(f"device '{device:.60}' is not one of auto, {', '.join(DEVICES)}")
    return _load(device, library(device, precision))


def how_to_build(device: str) -> str:
    """The remedy for a missing library: make's target, or pip's command if this is no checkout."""
    if is_checkout():
        return "run `make`" if device == "cpu" else f"run `make {device}`"
    devices = "" if device == "cpu" else f"PYLLMC_DEVICES='cpu {device}' "
    return f"run `{devices}pip install --force-reinstall .` in the source of pyllmc"


@functools.cache
def _load(device: str, name: str) -> Any:
    path = Path(os.environ.get("PYLLMC_LIB") or PACKAGE / "lib" / name)
    remedy = how_to_build(device)
    if not path.exists():
        raise NoDevice(f"{path} is not built: {remedy}")
    if device == "cuda":
        cublas.settle()
    try:
        lib = ffi().dlopen(str(path))
    except OSError as error:
        reason = str(error).partition(".  Additionally")[0]  # cffi names further places, too
        raise NoDevice(f"{path.name} cannot be loaded ({reason}): {remedy}") from None
    if not hasattr(lib, "llmc_headers") or text(lib.llmc_headers()) != tables_cksum():
        raise NoDevice(f"{path} was built from other headers than csrc/ has now: {remedy}")
    live.listen(ffi(), lib)
    return lib


class InTurn:
    """A library whose calls wait for each other if several threads make them: those of one model, which share its activations.

    plain: the library itself.
    """

    def __init__(self, plain: Any) -> None:
        self.plain = plain
        self._turn = threading.RLock()  # a handler of signals may call again in the same thread

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.plain, name)
        if callable(found):
            found = in_turn(self._turn, found)
        vars(self)[name] = found
        return found


def taking_turns(lib: Any) -> InTurn:
    """The library itself, if calls of it wait for each other; else one whose do."""
    return lib if isinstance(lib, InTurn) else InTurn(lib)


def in_turn(turn: Any, call: Any) -> Any:
    """The call, made while `turn` is held."""

    def made(*args: Any) -> Any:
        with turn:
            return call(*args)

    return made


def message(lib: Any) -> str:
    return text(lib.llmc_last_error())


def text(pointer: Any) -> str:
    """The str of a C string."""
    return ffi().string(pointer).decode(errors="replace")


def check(lib: Any, status: int) -> int:
    """Return a function's answer, or raise its error. An exception of a signal's handler, raised meanwhile, comes first."""
    live.raise_what_came()
    if status < 0:
        raise failure(lib, status)
    return status


def failure(lib: Any, status: int) -> LlmcError:
    """The exception for the last error of the library."""
    return ERRORS.get(status, LlmcError)(message(lib))
