"""Shared by the tests of cuda/emu: the libraries of tests/emulator/*.cu, and device memory as numpy arrays."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "tests/emulator"
SCHEDULES = ["in_order", "reversed", "random"]


class Emulator:
    """A library of tests/emulator/*.cu with the emulator, plain or checked."""

    def __init__(self, path: Path) -> None:
        self.lib = ctypes.CDLL(str(path))
        self.lib.device_alloc.restype = ctypes.c_void_p
        self.lib.error_text.restype = ctypes.c_char_p
        for name in ("read_after_copy", "source_reused", "two_streams", "replay"):
            if hasattr(self.lib, name):
                getattr(self.lib, name).restype = ctypes.c_float

    def begin(self, schedule: str = "in_order", seed: int = 1, defer: bool = False, workers: int = 1) -> None:
        self.lib.reset()
        self.lib.skip_barrier(None)
        self.lib.workers(workers)
        assert self.lib.options(schedule.encode(), ctypes.c_uint64(seed), int(defer)) == 0
        self.reports()

    def reports(self) -> list[str]:
        text = ctypes.create_string_buffer(1 << 16)
        count = self.lib.report(text, ctypes.c_size_t(len(text)))
        lines = text.value.decode().splitlines()
        assert count in (-1, len(lines))
        return lines

    def error(self, code: int) -> str:
        return self.lib.error_text(code).decode()

    def empty(self, size: int) -> ctypes.c_void_p:
        return ctypes.c_void_p(self.lib.device_alloc(ctypes.c_size_t(size)))

    def put(self, array: np.ndarray) -> ctypes.c_void_p:
        array = np.ascontiguousarray(array)
        p = self.empty(array.nbytes)
        assert self.lib.copy_in(p, array.ctypes.data_as(ctypes.c_void_p), ctypes.c_size_t(array.nbytes)) == 0
        return p

    def get(self, p: ctypes.c_void_p, shape, dtype) -> np.ndarray:
        array = np.empty(shape, dtype)
        code = self.lib.copy_out(array.ctypes.data_as(ctypes.c_void_p), p, ctypes.c_size_t(array.nbytes))
        assert code == 0, self.error(code)
        return array

    def run(self, name: str, out: np.ndarray, *args) -> np.ndarray:
        """Calls name(out, args...) with arrays on the device; returns the new content of out."""
        on_device = [self.put(a) if isinstance(a, np.ndarray) else a for a in (out, *args)]
        code = getattr(self.lib, name)(*on_device)
        assert code == 0, self.error(code)
        return self.get(on_device[0], out.shape, out.dtype)


BUILD = ROOT / "build/emulator"


def make(*targets: str) -> None:
    command = ["make", "--no-print-directory", "-j2", "-f", SOURCES / "Makefile", f"BUILD={BUILD}", *targets]
    subprocess.run([*command, f"PYTHON={sys.executable}"], cwd=ROOT, check=True)


@pytest.fixture(scope="session")
def libraries() -> Path:
    if not shutil.which("g++"):
        pytest.skip("the emulator is compiled with g++")
    make()
    return BUILD


@pytest.fixture(scope="session")
def plain(libraries) -> Emulator:
    return Emulator(libraries / "libemu.so")


@pytest.fixture(scope="session")
def checked(libraries) -> Emulator:
    return Emulator(libraries / "libcheck.so")


@pytest.fixture(params=["plain", "checked"])
def emulator(request) -> Emulator:
    return request.getfixturevalue(request.param)


# ---- numbers ----


def bf16(x: np.ndarray) -> np.ndarray:
    """The bits of float32 rounded to the nearest bf16, ties to even."""
    u = np.ascontiguousarray(x, np.float32).view(np.uint32).astype(np.uint64)
    return ((u + 0x7FFF + ((u >> 16) & 1)) >> 16).astype(np.uint16)


def bf16_value(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def pairs(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    return low.astype(np.uint32) | high.astype(np.uint32) << 16
