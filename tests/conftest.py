"""Shared by all tests of the engine: the library, its instruction sets, and the measure of parity."""

from __future__ import annotations

import locale
import os
import re
import signal
import sys

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # PyTorch's threads would starve others
os.environ.pop("CI", None)  # with it, pytest explains two unequal tensors in full, which takes hours
os.environ["PYLLMC_CUBLASLT_CACHE"] = ""  # a user's file is neither read nor written

from collections.abc import Iterator
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch
from narrow import Narrow, address, base_of, to_bf16

from pyllmc.base.errors import DataError, NoDevice
from pyllmc.engine import _ffi
from pyllmc.parity import yardstick
from pyllmc.text import dataset, vocabularies

# How long an example takes says nothing on a busy machine, and what was found once is written down as a test.
hypothesis.settings.register_profile("pyllmc", deadline=None, database=None)
hypothesis.settings.load_profile("pyllmc")

# another PyTorch as the yardstick: see tests/paths.py
if os.environ.get("PYLLMC_TORCH") == "lucky":
    import lucky

    lucky.begin()
elif os.environ.get("PYLLMC_TORCH") == "no_onednn":
    torch.backends.mkldnn.enabled = False

# a shell's background jobs ignore Ctrl-C, and so would the programs that these tests interrupt
signal.signal(signal.SIGINT, signal.default_int_handler)
ROOT = Path(__file__).resolve().parents[1]
ffi, lib = _ffi.ffi(), _ffi.load()
# only the builds for emulation have these
ffi.cdef("int emu_options(const char *schedule, uint64_t seed, int defer);")
ffi.cdef("void emu_statistics(uint64_t counts[6]);")


def pytest_configure(config) -> None:
    """Starts pytest again in UTF-8 if the locale is another one, because the tests write and read texts of every
    script."""
    if sys.flags.utf8_mode or locale.getpreferredencoding(False).lower().replace("-", "") == "utf8":
        return
    config.pluginmanager.getplugin("capturemanager").stop_global_capturing()
    words = [sys.executable, "-m", "pytest", *config.invocation_params.args]
    os.execve(sys.executable, words, {**os.environ, "PYTHONUTF8": "1"})


def _sets_with(element: int) -> list[str]:
    """The instruction sets that this machine can run with an element, the reference first, the best last."""
    names = "reference", *reversed(list(KNOWN_ISAS))
    return [isa for isa in names if lib.llmc_kernels(isa.encode(), element) != ffi.NULL]


def _device_libraries() -> dict[str, object]:
    """The builds for GPUs that can run here. Their kernels have to pass the same tests."""
    found = {}
    for device in (name for name in _ffi.DEVICES if name != "cpu"):
        for name, precision in ((f"{device}_fp32", "fp32"), (device, "bf16")):
            if not (_ffi.PACKAGE / "lib" / _ffi.library(device, precision)).exists():
                continue  # not built; one that is built but cannot be loaded is an error
            try:
                library = _ffi.load(device, precision)
            except NoDevice:
                if device == "cuda":
                    continue  # built from older sources: tests/cuda/test_cuda_build.py builds it again
                raise
            ours = _ffi.text(library.llmc_backend()) == device  # $PYLLMC_LIB may name another
            if ours and library.llmc_kernels(ffi.NULL, lib.LLMC_AUTO) != ffi.NULL:
                found[name] = library
    return found


DEVICES = _device_libraries()
KNOWN_ISAS = {  # VL, MR, NR of each, best first
    name: tuple(map(int, sizes.split(",")))
    for name, sizes in re.findall(
        r'^SET\((\w+), (?:"[^"]*", ){3}([\d, ]+),', (ROOT / "csrc/cpu/isas.def").read_text(), re.M
    )
}
ISAS = _sets_with(lib.LLMC_FP32)
BF16_ISAS = _sets_with(lib.LLMC_BF16)
# names for make_kernels
CPU_KERNELS = [*ISAS, *(f"{isa}-bf16" for isa in BF16_ISAS)]
# HAS_BF16 of csrc/cpu/simd.h
MULTIPLY_BF16 = [isa for isa in BF16_ISAS if isa not in ISAS]
# the environment of programs that a sanitizer's library would hang: ps, pgrep
PLAIN = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
# with `make asan`, whose library is another build than the programs, and is loaded into every child
not_under_asan = pytest.mark.skipif(
    "libasan" in os.environ.get("LD_PRELOAD", ""), reason="runs other builds, or limits memory"
)
PRECISIONS = {"fp32": lib.LLMC_FP32, "bf16": lib.LLMC_BF16}
GUARD = 32  # elements around every buffer that no kernel may touch
CANARY = np.float32(-(2.0**112))  # the same in bfloat16


class Buffers:
    """Float32 arrays for a kernel: guarded on both sides, outputs filled with NaN. An odd guard makes them
    unaligned."""

    def __init__(self, guard: int = GUARD) -> None:
        self.guard = guard
        self.held: list[tuple[np.ndarray, int]] = []

    def guarded(self, data: np.ndarray) -> np.ndarray:
        flat = np.full(data.size + 2 * self.guard, CANARY if data.dtype == np.float32 else -77, data.dtype)
        inside = flat[self.guard : self.guard + data.size]
        inside[:] = data.ravel()
        self.held.append((flat, data.size))
        return inside.reshape(data.shape)

    def out(self, *shape: int) -> np.ndarray:
        return self.guarded(np.full(shape, np.nan, np.float32))

    def check(self) -> None:
        for flat, size in self.held:
            canary = CANARY if flat.dtype == np.float32 else -77
            assert (flat[: self.guard] == canary).all(), "written before the buffer"
            assert (flat[self.guard + size :] == canary).all(), "written past the buffer"


KERNELS_H = (ROOT / "csrc/kernels.h").read_text()
# the arguments of each kernel behind the context: True for those that kernels.h makes const
ONLY_READ = {
    name: [argument.startswith("const ") for argument in re.split(r",\s*", arguments)]
    for name, arguments in re.findall(r"void \(\*(\w+)\)\(Context \*ctx,\s*([^;]*)\);", KERNELS_H)
}


class Unchanged:
    """The arrays of a call that a kernel may only read, as they were before it, rounded to what it stores."""

    def __init__(self, name: str, stored: str, args: tuple) -> None:
        self.name, self.stored = name, stored
        arrays = [(a, read) for a, read in zip(args, ONLY_READ[name]) if isinstance(a, np.ndarray)]
        written = [a for a, read in arrays if not read]
        self.read = [a for a, read in arrays if read and not any(np.may_share_memory(a, w) for w in written)]
        self.before = [self.bits(a) for a in self.read]

    def bits(self, array: np.ndarray) -> bytes:
        narrow = self.stored == "bfloat16" and array.dtype == np.float32
        return (to_bf16(array) if narrow else array).tobytes()

    def check(self) -> None:
        for number, (array, before) in enumerate(zip(self.read, self.before)):
            assert self.bits(array) == before, f"{self.name} changed array {number} of those it only reads"


def stored_by(table) -> str:
    """PyTorch's name of the element that kernels store."""
    return "float32" if table.element == lib.LLMC_FP32 else "bfloat16"


def make_kernels(name: str, threads: int = 2) -> Kernel:
    """The kernels of an instruction set, as in avx2 and avx2-bf16, or of a build for GPUs."""
    if name in DEVICES:
        from device import DeviceKernel  # noqa: PLC0415, it imports this module

        return DeviceKernel(name, DEVICES[name])
    isa, _, precision = name.partition("-")
    return Kernel(isa, threads, precision or "fp32")


class Kernel:
    """The kernels of one instruction set: kernels.matmul_forward(out, inp, weight, bias, B, T, C, OC) on numpy
    arrays. Arrays stay float32 where the kernels store bf16."""

    def __init__(self, isa: str, threads: int = 2, precision: str = "fp32") -> None:
        self.isa, self.precision = isa, precision
        self.table = lib.llmc_kernels(isa.encode(), PRECISIONS[precision])
        self.stored = stored_by(self.table)
        self.context = ffi.new("Context *", {"threads": threads, "weight_format": self.table.element})

    def workspace(self, B: int, T: int, C: int, NH: int = 1, Vp: int = 128) -> None:
        size = self.table.workspace_bytes(B, T, C, NH, Vp, self.context.threads)
        self.scratch = np.full(size // 4 + 64 + GUARD, np.nan, np.float32)
        skip = -self.scratch.ctypes.data % 64 // 4
        self.scratch[skip + size // 4 :] = CANARY
        self.past = self.scratch[skip + (size + 3) // 4 :]
        self.context.workspace = ffi.cast("void *", self.scratch.ctypes.data + skip * 4)

    def __getattr__(self, name: str):
        entry = getattr(self.table, name)
        assert entry != ffi.NULL, f"{name} is missing from {self.isa}"
        types = ffi.typeof(entry).args

        def call(*args):
            copies, unchanged = {}, Unchanged(name, self.stored, args)
            entry(self.context, *(self.argument(t, a, copies) for a, t in zip(args, types[1:])))
            for copy in copies.values():
                copy.fetch()
            unchanged.check()
            if getattr(self, "past", None) is not None:
                assert (self.past == CANARY).all(), "written past the workspace"

        return call

    def argument(self, kind, value, copies: dict[int, Narrow]):
        if not isinstance(value, np.ndarray):
            return ffi.NULL if value is None else value
        if "floatX" not in kind.cname or self.stored == "float32":
            return ffi.cast(kind, address(value))
        base = base_of(value)
        copy = copies.get(address(base)) or copies.setdefault(address(base), Narrow(base))
        return ffi.cast(kind, copy.address_of(value))


@pytest.fixture(params=[*CPU_KERNELS, *DEVICES])
def kernels(request) -> Kernel:
    return make_kernels(request.param)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A small data set of letters, with validation data."""
    out = tmp_path_factory.mktemp("data") / "letters"
    dataset.write_dataset(
        ["the cat sat on the mat", "a dog ran"] * 60, out, tokenizer="char", val_fraction=0.1
    )
    return out


@pytest.fixture(scope="session")
def vocab_bpe() -> bytes:
    """OpenAI's file with GPT-2's merges."""
    try:
        folder = vocabularies.ensure_gpt2_vocabulary()
    except DataError as e:
        pytest.skip(str(e))
    return next(data for path in Path(folder).iterdir() if (data := path.read_bytes())[:8] == b"#version")


@pytest.fixture
def buffers():
    held = Buffers()
    yield held
    held.check()


@pytest.fixture
def unaligned():
    """Buffers at addresses where no kernel may read 16 bytes at a time."""
    held = Buffers(GUARD + 1)
    yield held
    held.check()


def in_every_way(kernels: Kernel) -> Iterator[Kernel]:
    """The same kernels in all ways that must not change a bit: numbers of threads, schedules of the emulation; on a
    real GPU, a second time."""
    if kernels.isa not in DEVICES:
        for threads in (1, 2, 3, 5):
            yield Kernel(kernels.isa, threads, kernels.precision)
    elif "emu" not in kernels.isa:
        yield from [kernels] * 4
    else:
        for schedule in ("reversed", "random", os.environ.get("PYLLMC_EMU_SCHEDULE", "in_order")):
            assert DEVICES[kernels.isa].emu_options(schedule.encode(), 7, 0) == 0
            yield kernels


def storable(kernels: Kernel, x: np.ndarray) -> np.ndarray:
    """The nearest numbers that the library can store."""
    return torch.from_numpy(x).to(getattr(torch, kernels.stored)).float().numpy()


# the relative error of rounding a number to the stored element
ROUNDING = {"float32": 0.0, "bfloat16": 2.0**-8}


def assert_parity(
    ours,
    torch32,
    torch64,
    what: str = "",
    floor: float = 2e-7,
    times: float = 2,
    stored: str = "float32",
) -> None:
    """Allows twice float32's own distance from the float64 answer (FlashAttention's rule). torch32 comes from
    pyllmc.parity.yardstick, so that the measure does not depend on this CPU's libraries.

    All three hold the same shape. `floor` times the largest value is allowed for one rounding, in case PyTorch
    happens to be exact. Each number may be further away by one rounding to the element `stored`.
    """
    ours, torch64 = (np.asarray(x, dtype=np.float64) for x in (ours, torch64))
    assert ours.shape == torch64.shape, f"{what}: shape {ours.shape}, expected {torch64.shape}"
    assert np.isfinite(ours).all(), f"{what}: not finite where PyTorch is"
    if not ours.size:
        return
    for single in torch32.each() if isinstance(torch32, yardstick.Single) else [np.asarray(torch32)]:
        allowed = times * np.abs(single.astype(np.float64) - torch64).max() + floor * np.abs(torch64).max()
        error = (np.abs(ours - torch64) - ROUNDING[stored] * (np.abs(torch64) + allowed)).max()
        if error <= allowed:
            return
        if 0 < allowed * yardstick.LUCK < error:
            break
    raise AssertionError(f"{what}: error {error:.3g}, allowed {allowed:.3g}")
