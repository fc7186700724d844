"""Matrix products alone: GPT-2's five shapes, forward, dgrad and wgrad, ours beside the libraries.

    python dev/bench.py --rows gemm --shapes few
    python dev/bench_matmul.py system=onednn precision=fp32 threads=2 product=wgrad M=256 C=768 OC=3072 turns=3

Systems: pyllmc; onednn (PyTorch's linear as compiled models call it, and its bf16 mm), openblas (NumPy's), mkl (torch.mm).
Ours adds the bias and sums its gradient up, and the gradients of weights are floats in bf16, too. The others get their operands
in their best layout and only multiply, so their time is that of the product alone.
"""

from __future__ import annotations

import functools
import os
import re
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
from bench_process import (
    TUNED,
    Call,
    Process,
    Skip,
    check_agree,
    measured,
    not_measured,
    one_of,
    say,
    take_turns,
)

from pyllmc.convert.dtypes import narrow, widen

SHAPES = {  # (M = B*T, C, OC); gpt2 has d12's five, the last of which is the head
    "gpt2": [
        (M, C, OC)
        for M in (256, 1024, 4096)
        for C, OC in ((768, 2304), (768, 768), (768, 3072), (3072, 768), (768, 50304))
    ],
    "demo": [(1280, C, OC) for C, OC in ((128, 384), (128, 128), (128, 512), (512, 128), (128, 896))],
    "tiny": [(384, C, OC) for C, OC in ((48, 144), (48, 48), (48, 128), (48, 192), (192, 48))],
    "few": [
        (M, C, OC)
        for M in (1, 2, 4, 8, 16, 32, 48, 64, 96)
        for C, OC in ((768, 2304), (3072, 768), (768, 50304))
    ],
    "quick": [(16, 32, 96), (16, 64, 128)],
}
TOLERANCE = {"fp32": 1e-3, "bf16": 3e-2}  # difference of results allowed
PRODUCTS = ["fwd", "dgrad", "wgrad"]
SYSTEMS = {
    "fp32": ["pyllmc", "onednn", "openblas", "mkl"],
    "bf16": ["pyllmc", "onednn"],
}


def has_avx512() -> bool:
    """True if the CPU has AVX-512: without it OpenBLAS's kernels for it end the process."""
    from pyllmc.engine import _ffi

    return _ffi.load().llmc_kernels(b"avx512", _ffi.load().LLMC_FP32) != _ffi.ffi().NULL


ENVIRONMENT = {
    "pyllmc": {},
    "onednn": TUNED,
    "mkl": TUNED,
    "openblas": {  # idle threads spin for 1 ms, not 26, which would slow the next system's turn
        **(
            {"OPENBLAS_CORETYPE": "SkylakeX"} if has_avx512() else {}
        ),  # OpenBLAS does not choose it on AMD's CPUs by itself
        **{name: os.environ[name] for name in ("OPENBLAS_CORETYPE",) if name in os.environ},
        "OPENBLAS_THREAD_TIMEOUT": "21",
    },
}


# ---- inside the measured process ----


class Engine:
    """The engine's kernels with scratch memory for these sizes; Skip if it lacks this precision."""

    def __init__(self, precision: str, threads: int, B: int, T: int, C: int, NH: int, Vp: int = 128) -> None:
        from pyllmc.engine import _ffi

        self.ffi, lib = _ffi.ffi(), _ffi.load()
        self.precision, element = precision, lib.llmc_precision(precision.encode())
        self.table = lib.llmc_kernels(self.ffi.NULL, element)
        if self.table == self.ffi.NULL:
            raise Skip(_ffi.message(lib))
        context = {"threads": threads, "weight_format": element, "split": self.table.splits}
        self.context = self.ffi.new("Context *", context)
        size = self.table.workspace_bytes(B, T, C, NH, Vp, threads)
        self.scratch = self.ffi.gc(self.table.alloc(size), lambda memory: self.table.free(memory, size))
        self.context.workspace = self.scratch

    def bind(self, entry: str, arrays: list[Any], *sizes: Any) -> Call:
        """A call of a kernel. It keeps the arrays (None: NULL) and the scratch memory alive. An array of floats that the
        kernel takes in bf16 is replaced in the list."""
        kernel, stored = getattr(self.table, entry), self.ffi.typeof("floatX *")
        kinds = self.ffi.typeof(kernel).args[1:]
        for i, (kind, x) in enumerate(zip(kinds, arrays)):
            if self.precision == "bf16" and kind is stored and x is not None and x.dtype == np.float32:
                arrays[i] = rounded(x)
        pointers = [self.ffi.cast(kind, 0 if x is None else x.ctypes.data) for kind, x in zip(kinds, arrays)]
        return lambda: (kernel(self.context, *pointers, *sizes), arrays)


def our_product(precision: str, threads: int, product: str, M: int, C: int, OC: int) -> Call:
    x, w, y = (random_array(*shape) for shape in ((M, C), (OC, C), (M, OC)))
    b = zero_array(OC)
    entry, arrays, sizes = {
        "fwd": ("matmul_forward", [y, x, w, b], (1, M, C, OC)),
        "dgrad": ("matmul_backward_input", [x, y, w], (1, M, C, OC)),
        # written, not added, as in training
        "wgrad": ("matmul_backward_weight", [w, b, y, x], (0, 1, M, C, OC)),
    }[product]
    kernel = Engine(precision, threads, 1, M, C, 1, max(OC, 128)).bind(entry, arrays, *sizes)

    def call() -> Call:
        kernel()
        return lambda: sample(arrays[0])

    return call


def sample(out: Any) -> list[float]:
    """A few numbers of a result, which must be the same for every system."""
    values = out[1, :8]
    return [float(value) for value in (widen(values, "bf16") if out.dtype == np.uint16 else values)]


def zero_array(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    """Zeros that begin at a cache line, as in the engine's arena and PyTorch's tensors. NumPy's own arrays begin at 16
    bytes, so that each of their vectors lies in two lines."""
    size = np.dtype(dtype).itemsize * int(np.prod(shape))
    memory = np.empty(size + 64, np.uint8)
    first = -memory.ctypes.data % 64
    array = memory[first : first + size].view(dtype).reshape(shape)
    array.fill(0)
    return array


def rounded(x: np.ndarray) -> np.ndarray:
    """The same numbers in bf16."""
    array = zero_array(*x.shape, dtype=np.uint16)
    array[...] = narrow(x, "bf16")
    return array


def random_array(*shape: int) -> np.ndarray:
    """Normal numbers; to save time, large arrays repeat a million of them."""
    array = zero_array(*shape)
    array[...] = np.resize(np.random.default_rng(0).standard_normal(1 << 20, dtype=np.float32), shape)
    return array


def operands(
    product: str, M: int, C: int, OC: int
) -> tuple[tuple[int, int], tuple[int, int], tuple[str, str]]:
    """Shapes of the stored operands, and "n" if a product reads them as they are or "t" if transposed."""
    return {
        "fwd": ((M, C), (OC, C), ("n", "t")),
        "dgrad": ((M, OC), (OC, C), ("n", "n")),
        "wgrad": ((M, OC), (M, C), ("t", "n")),
    }[product]


def numpy_product(product: str, M: int, C: int, OC: int) -> Call:
    first, second, how = operands(product, M, C, OC)
    a, b = (x.T if h == "t" else x for x, h in zip((random_array(*first), random_array(*second)), how))
    out = zero_array(a.shape[0], b.shape[1])

    def call() -> Call:
        np.matmul(a, b, out=out)
        return lambda: sample(out)

    return call


def torch_operands(product: str, M: int, C: int, OC: int) -> tuple[Any, Any]:
    import torch

    first, second, how = operands(product, M, C, OC)
    a, b = (torch.from_numpy(random_array(*shape)) for shape in (first, second))
    return a.T if how[0] == "t" else a, b.T if how[1] == "t" else b


def mm_product(dtype: str, product: str, M: int, C: int, OC: int) -> Call:
    """torch.mm: MKL in fp32 (where PyTorch was built with it), oneDNN in bf16."""
    import torch

    a, b = (x.to(getattr(torch, dtype)) for x in torch_operands(product, M, C, OC))
    out = a.new_zeros(a.shape[0], b.shape[1])

    def call() -> Call:
        torch.mm(a, b, out=out)
        return lambda: sample(out)

    return call


def linear_product(product: str, M: int, C: int, OC: int) -> Call:
    """oneDNN in fp32: a (rows of a) x (rows of b). A transposed operand is laid out before the time is taken."""
    import torch

    a, b = torch_operands(product, M, C, OC)
    a, bt = a.contiguous(), b.T  # (n, k), (m, k)

    def call() -> Call:
        out = torch.ops.mkldnn._linear_pointwise(a, bt, None, "none", [], "")
        return lambda: sample(out)

    return call


def openblas_core() -> str:
    """The core type of NumPy's OpenBLAS; Skip if NumPy's library is another one."""
    import ctypes

    maps = open("/proc/self/maps").read() if os.path.exists("/proc/self/maps") else ""
    path = re.search(r"\S*openblas\S*\.so\S*", maps)
    if not path:
        raise Skip("NumPy does not use OpenBLAS here")
    library = ctypes.CDLL(path[0])
    for name in ("scipy_openblas_get_corename64_", "scipy_openblas_get_corename", "openblas_get_corename"):
        if hasattr(library, name):
            entry = getattr(library, name)
            entry.restype = ctypes.c_char_p
            return str(entry().decode())
    return "unknown"


def peer(system: str, precision: str, threads: int) -> Callable[..., Call]:
    if system == "openblas":
        openblas_core()
        return numpy_product
    import torch

    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    if system == "mkl":
        if not torch.backends.mkl.is_available():
            raise Skip("this PyTorch was built without MKL")
        return lambda **request: mm_product("float32", **request)
    if not torch.backends.mkldnn.is_available():
        raise Skip("this PyTorch was built without oneDNN")
    if precision == "fp32":
        return linear_product
    return lambda **request: mm_product("bfloat16", **request)


def check_product(product: str, **sizes: Any) -> None:
    """SystemExit if `product` is none."""
    one_of("product", product, [*PRODUCTS, "core"])
    for name, size in sizes.items():
        one_of("size", name, ("M", "C", "OC"))
        if not isinstance(size, int) or size < 1:
            raise SystemExit(f"{name}={size} is not a whole number of at least 1")


def prepare(system: str, precision: str, threads: int, **shape: Any) -> Callable[..., Call]:
    """choose(product, M, C, OC); the command line may have set them already. The product "core" is the name of
    OpenBLAS's core."""
    one_of("precision", precision, SYSTEMS)
    one_of("system", system, SYSTEMS[precision])
    make: Callable[..., Call]
    if system == "pyllmc":
        Engine(precision, threads, 1, 1, 1, 1)  # raises Skip here if there is none
        make = functools.partial(our_product, precision, threads)
    else:
        make = peer(system, precision, threads)

    def choose(**request: Any) -> Call:
        wanted = {"product": "fwd", "M": 64, "C": 768, "OC": 768, **shape, **request}
        check_product(**wanted)
        return openblas_core if wanted["product"] == "core" else make(**wanted)

    return choose


# ---- in the bench ----


def implementation(system: str, precision: str, threads: int) -> str:
    """The library that really runs: oneDNN's primitive by ONEDNN_VERBOSE, OpenBLAS's core type. Skip if it is another
    one."""
    if system not in ("onednn", "openblas"):
        return ""
    with start(system, precision, threads, ONEDNN_VERBOSE="1") as process:
        if system == "openblas":
            return str(process.ask(product="core")["value"])
        process.ask()
        found = re.findall(r"exec,cpu,(?:matmul|inner_product),([^,]+),", process.printed())
    if not found:
        raise Skip(f"PyTorch does not call oneDNN for {precision} here")
    return str(found[-1])


def start(system: str, precision: str, threads: int, **environment: str) -> Process:
    counts = {name: str(threads) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    environment = {**ENVIRONMENT[system], **counts, **environment}
    return Process("bench_matmul.py", environment, system=system, precision=precision, threads=threads)


def start_all(precision: str, threads: int) -> tuple[dict[str, Process], dict[str, Any]]:
    """The processes of the available systems with the library that each runs, or the reason why it does not."""
    processes: dict[str, Process] = {}
    notes: dict[str, Any] = {}
    for system in SYSTEMS[precision]:
        try:
            notes[system] = implementation(system, precision, threads)
            processes[system] = start(system, precision, threads)
        except Skip as reason:
            if system == "pyllmc":
                raise
            notes[system] = not_measured(f"gemm {precision}, {system}", reason)
    return processes, notes


def measure(precision: str, rounds: int, threads: int, shapes: str) -> dict[str, Any]:
    """Every repeat in ms, by "product M C OC" and system."""
    processes, notes = start_all(precision, threads)
    found = {}
    for M, C, OC in SHAPES[shapes]:
        for product in PRODUCTS:
            name, request = f"{product} {M} {C} {OC}", {"product": product, "M": M, "C": C, "OC": OC}
            values = {system: process.ask(**request)["value"] for system, process in processes.items()}
            check_agree(f"gemm {precision} {name}", values, TOLERANCE[precision])
            found[name] = take_turns(processes, rounds, seconds=0 if shapes == "quick" else 0.05, **request)
            rates = {system: 2e-6 * M * C * OC / statistics.median(ms) for system, ms in found[name].items()}
            text = ", ".join(f"{system} {rate:.0f}" for system, rate in rates.items())
            say(f"  {precision} {product:5} M={M} {C}x{OC}, GFLOP/s: {text}")
    for process in processes.values():
        process.close()
    return {"runs": notes, "ms": found}


if __name__ == "__main__":
    measured(prepare)
