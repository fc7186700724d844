"""The C library, bound by reading its own header: csrc/pyllmc.h is the only list of functions and types there is."""

from __future__ import annotations

import functools
import os
import re
from pathlib import Path
from typing import Any

from cffi import FFI

from pyllmc.errors import (  # noqa: F401, the others are here by the name of what raises them
    ERRORS,
    BadFile,
    InvalidArgument,
    LlmcError,
    NoDevice,
    NotFinite,
    OutOfMemory,
    SystemFailure,
)

HERE = Path(__file__).resolve().parent
LIBRARIES = {"cpu": "libpyllmc.so", "cuda": "libpyllmc_cuda.so"}


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
