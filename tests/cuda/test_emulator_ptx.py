"""A second test: kernels as nvcc's PTX, inline assembly included, give the same bits on the emulator."""

# ruff: noqa: F401, F811 (fixtures are imported)
from __future__ import annotations

import ctypes
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import test_adamw
import test_attention
import test_matmul
from conftest import Buffers, ffi, not_under_asan
from device import DeviceKernel
from emulated import ROOT, SCHEDULES, Emulator, bf16, libraries, make, plain

pytestmark = not_under_asan
needs_nvcc = pytest.mark.skipif(not shutil.which("nvcc"), reason="nvcc writes the PTX")


class Translated(Emulator):
    """tests/emulator/instructions.cu compiled by nvcc; its kernels are found by their names in the source."""

    def __init__(self, build: Path) -> None:
        super().__init__(build / "libptx.so")
        entries = re.findall(r"\.entry (\w+)\(", (build / "instructions.ptx").read_text())
        self.entries = [name for name in entries if f'"{name}"' in (build / "ptx.cpp").read_text()]
        self.all_entries = entries

    def launch(self, kernel: str, blocks: int, threads: int, out: np.ndarray, *args) -> np.ndarray:
        """Launches a kernel and returns the new content of out. Arrays are passed as pointers, integers as int."""
        [name] = [entry for entry in self.entries if kernel in entry]
        on_device = [self.put(a) if isinstance(a, np.ndarray) else a for a in (out, *args)]
        is_pointer = [isinstance(a, ctypes.c_void_p) for a in on_device]
        words = b"".join(
            struct.pack("Q", a.value) if p else struct.pack("i", a) for a, p in zip(on_device, is_pointer)
        )
        assert is_pointer == sorted(is_pointer, reverse=True), (
            "pointers first, or they would have to be aligned"
        )
        grid, block = ((ctypes.c_uint * 3)(n, 1, 1) for n in (blocks, threads))
        code = self.lib.ptx_launch(name.encode(), grid, block, 0, words, ctypes.c_size_t(len(words)))
        assert code == 0, self.error(code)
        return self.get(on_device[0], out.shape, out.dtype)


@pytest.fixture(scope="session")
def translated(libraries) -> Translated:
    make("ptx")
    return Translated(libraries)


@needs_nvcc
def test_every_kernel_is_translated(translated):
    assert translated.entries == translated.all_entries != []


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.tobytes() == b.tobytes()


@needs_nvcc
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("kind", ["bf16", "f16", "tf32"])
def test_ptx_mma(plain, translated, kind, schedule):
    rng = np.random.default_rng(5)
    words = rng.standard_normal((32, 10)).astype(np.float32).view(np.uint32)
    if kind == "f16":
        words[:, :6] = rng.standard_normal((32, 12)).astype(np.float16).view(np.uint32)
    if kind == "bf16":
        words[:, :6] = bf16(rng.standard_normal((32, 12))).view(np.uint32)
    for emulator in (plain, translated):
        emulator.begin(schedule)
    ours = plain.run("mma", np.zeros((32, 4), np.float32), words, ["bf16", "f16", "tf32"].index(kind))
    ptx = translated.launch(f"_Z{len(kind)}{kind}", 1, 32, np.zeros((32, 4), np.float32), words)
    assert np.isfinite(ours).all() and same_bits(ours, ptx)


@needs_nvcc
@pytest.mark.parametrize("matrices, trans", [(4, 0), (4, 1), (2, 0), (2, 1), (1, 0)])
def test_ptx_ldmatrix(plain, translated, matrices, trans):
    m = np.random.default_rng(matrices).integers(0, 1 << 16, (4, 8, 8)).astype(np.uint16)
    for emulator in (plain, translated):
        emulator.begin("random")
    ours = plain.run("ldmatrix", np.zeros((32, 4), np.uint32), m, matrices, trans)
    assert same_bits(
        ours, translated.launch("ldmatrix", 1, 32, np.zeros((32, 4), np.uint32), m, matrices, trans)
    )


@needs_nvcc
@pytest.mark.parametrize("size", [0, 4, 6, 16])
@pytest.mark.parametrize("groups", [1, 2, 3])
def test_ptx_cp_async(plain, translated, size, groups):
    data = np.arange(1, 2049).astype(np.uint8).reshape(32, 64)
    for emulator in (plain, translated):
        emulator.begin()
    ours = plain.run("copy_async", np.zeros((32, 64), np.uint8), data, size, groups)
    assert same_bits(
        ours, translated.launch("cp_async", 1, 32, np.zeros((32, 64), np.uint8), data, size, groups)
    )


@needs_nvcc
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_ptx_of_everything_else(plain, translated, schedule):
    rng = np.random.default_rng(2)
    x = rng.standard_normal(256).astype(np.float32)
    v = rng.integers(-50, 50, 32).astype(np.int32)
    bits = np.arange(1 << 16, dtype=np.uint16)
    zeros = {n: np.zeros(n, np.uint32) for n in (1024, 512, 16, 41, 960, 2 << 16)}
    for emulator in (plain, translated):
        emulator.begin(schedule)
    pairs_of_results = [
        (
            plain.run("conversions", zeros[1024], x, 256),
            translated.launch("conversions", 1, 256, zeros[1024], x),
        ),
        (
            plain.run("conversions_back", zeros[2 << 16], bits, 1 << 16),
            translated.launch("back", 256, 256, zeros[2 << 16], bits),
        ),
        (plain.run("warp", zeros[512], v), translated.launch("warp", 1, 32, zeros[512], v)),
        (plain.run("atomics", zeros[16], 5), translated.launch("atomic", 5, 64, zeros[16])),
        (plain.run("order", zeros[41], 1, 40), translated.launch("order", 1, 40, zeros[41])),
    ]
    for ours, ptx in pairs_of_results:
        assert ours.any() and same_bits(ours, ptx)


# ---- whole kernels: the tensor cores', GELU and AdamW, in a library made of nvcc's PTX (cuda/emu/ptx_instead.py) ----


def products(k: DeviceKernel, buffers: Buffers) -> None:
    for check in test_matmul.CHECKS:
        for shape in test_matmul.DEVICE_SHAPES[:4]:
            k.workspace(shape[0], shape[1], max(shape[2:]))
            check(k, test_matmul.Case(buffers, *shape, k.stored))


def attention(k: DeviceKernel, buffers: Buffers) -> None:
    for case in (c for c in test_attention.TILES if c.hs == 64):
        test_attention.test_forward(k, buffers, case)
        test_attention.test_backward(k, buffers, case)


def gelu(k: DeviceKernel, buffers: Buffers) -> None:
    test_matmul.test_gelu_again_is_the_same_to_the_bit(k, buffers, 1000)


def adamw(k: DeviceKernel, buffers: Buffers) -> None:
    test_adamw.test_ten_steps(k, buffers, 1009, 0.125, 0.37)
    test_adamw.test_store(k, buffers, 1009)


@pytest.fixture(scope="session")
def replaced() -> Path:
    path = ROOT / "build/libpyllmc_ptx.so"
    command = ["make", "-s", "-C", str(ROOT), "-j2", str(path.relative_to(ROOT)), f"PYTHON={sys.executable}"]
    subprocess.run(command, check=True)
    return path


@needs_nvcc
@pytest.mark.parametrize("layer", [products, attention, gelu, adamw])
def test_whole_kernels_from_ptx_pass_their_layer_s_tests(replaced, buffers, layer):
    threads = ctypes.c_uint64.in_dll(ctypes.CDLL(str(replaced)), "ptx_threads")
    before = threads.value
    layer(DeviceKernel("emu", ffi.dlopen(str(replaced))), buffers)
    assert threads.value - before > 100
