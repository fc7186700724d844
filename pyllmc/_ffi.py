"""The C library, bound by reading its own header: csrc/pyllmc.h is the only list of functions and types there is."""

from __future__ import annotations

import functools
import os
import re
from pathlib import Path
from typing import Any

from cffi import FFI

HERE = Path(__file__).resolve().parent
LIBRARIES = {"cpu": "libpyllmc.so", "cuda": "libpyllmc_cuda.so"}


class LlmcError(Exception):
    """Any failure of the engine; the message says why and what to do."""


class InvalidArgument(LlmcError, ValueError):
    """An argument, option or shape that cannot be."""


class OutOfMemory(LlmcError, MemoryError):
    """The memory plan does not fit."""


class BadFile(LlmcError, ValueError):
    """A file that is not what it should be."""


class SystemFailure(LlmcError, OSError):
    """The system would not read or write."""


class NoDevice(LlmcError, RuntimeError):
    """No such device or instruction set here."""


class NotFinite(LlmcError, ArithmeticError):
    """A loss or gradient that is NaN or infinite."""


ERRORS: dict[int, type[LlmcError]] = {
    -1: InvalidArgument,
    -2: OutOfMemory,
    -3: BadFile,
    -4: SystemFailure,
    -5: NoDevice,
    -6: NotFinite,
}


def headers() -> list[Path]:
    """kernels.h and pyllmc.h: beside an installed library, or in csrc/ of a checkout."""
    for folder in (HERE / "lib", HERE.parent / "csrc"):
        if (folder / "pyllmc.h").exists():
            return [folder / "kernels.h", folder / "pyllmc.h"]
    raise LlmcError("csrc/pyllmc.h is missing: run pyllmc from a checkout, or reinstall the package")


def declarations(path: Path) -> str:
    """What lies between a header's two marks: plain C, which cffi parses without a preprocessor."""
    return "".join(re.findall(r"/\* cffi: begin \*/(.*?)/\* cffi: end \*/", path.read_text(), re.S))


@functools.cache
def ffi() -> FFI:
    parser = FFI()
    for path in headers():
        parser.cdef(declarations(path))
    return parser


@functools.cache
def load(device: str = "cpu") -> Any:
    """The library of a device, loaded once."""
    if device not in LIBRARIES:
        raise InvalidArgument(f"device '{device}' is not one of {', '.join(LIBRARIES)}")
    path = Path(os.environ.get("PYLLMC_LIB") or HERE / "lib" / LIBRARIES[device])
    try:
        return ffi().dlopen(str(path))
    except OSError as error:
        target = "make" if device == "cpu" else f"make {device}"
        raise NoDevice(f"{path.name} cannot be loaded ({error}); build it with `{target}`") from None


def message(lib: Any) -> str:
    return text(lib.llmc_last_error())


def text(pointer: Any) -> str:
    """A C string as str."""
    return ffi().string(pointer).decode(errors="replace")


def check(lib: Any, status: int) -> int:
    """A function's answer, or its error as an exception."""
    if status < 0:
        raise ERRORS.get(status, LlmcError)(message(lib))
    return status


def exit_code(error: Exception) -> int:
    """What a command exits with: 1 - status, as ./train_gpt2 does; 2 for what is no error of the engine."""
    return next((1 - status for status, kind in ERRORS.items() if isinstance(error, kind)), 2)
