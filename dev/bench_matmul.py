"""Matrix products alone: GPT-2's five shapes, forward, dgrad and wgrad, ours beside the libraries.

    python dev/bench.py --rows gemm --shapes few
    python dev/bench_matmul.py system=onednn precision=fp32 threads=2 product=wgrad M=256 C=768 OC=3072 turns=3

Systems: pyllmc; onednn (PyTorch's linear as compiled models call it, and its bf16 mm), openblas (NumPy's), mkl (torch.mm).
Ours adds the bias, sums its gradient up, and its bf16 reads and writes floats; the others get their operands in the layout and
type they like best and only multiply, so that nothing but the product is held against them.
"""

from __future__ import annotations

import functools
import os
import re
import statistics
from collections.abc import Callable, Sequence
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

SHAPES = {  # (M = B*T, C, OC); gpt2 are d12's five, the last of which is the head
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
TOLERANCE = {"fp32": 1e-3, "bf16": 3e-2}  # of results; the others write bf16
PRODUCTS = ["fwd", "dgrad", "wgrad"]
SYSTEMS = {
    "fp32": ["pyllmc", "onednn", "openblas", "mkl"],
    "bf16": ["pyllmc", "onednn"],
}


def has_avx512() -> bool:
    """OpenBLAS's kernels for it are an illegal instruction elsewhere."""
    from pyllmc.engine import _ffi

    return _ffi.load().llmc_kernels(b"avx512") != _ffi.ffi().NULL


ENVIRONMENT = {
    "pyllmc": {},
    "onednn": TUNED,
    "mkl": TUNED,
    "openblas": {  # its idle threads spin for 1 ms, not 26, in which they would slow the system whose turn is next
        **(
            {"OPENBLAS_CORETYPE": "SkylakeX"} if has_avx512() else {}
        ),  # OpenBLAS does not choose it on AMD's CPUs
        **{name: os.environ[name] for name in ("OPENBLAS_CORETYPE",) if name in os.environ},
        "OPENBLAS_THREAD_TIMEOUT": "21",
    },
}


# ---- inside the measured process ----


class Engine:
    """The engine's kernels with scratch for these sizes; Skip if it has none of this precision."""

    def __init__(self, precision: str, threads: int, B: int, T: int, C: int, NH: int, Vp: int = 128) -> None:
        from pyllmc.engine import _ffi

        self.ffi, lib = _ffi.ffi(), _ffi.load()
        fields = {"threads": threads}
        if precision != "fp32":
            if "precision" not in dict(self.ffi.typeof("Context").fields):
                raise Skip(f"the engine's kernels have no {precision} yet")
            fields["precision"] = getattr(lib, f"LLMC_{precision.upper()}")
        self.table = lib.llmc_kernels(self.ffi.NULL)
        self.context = self.ffi.new("Context *", fields)
        size = self.table.workspace_bytes(B, T, C, NH, Vp, threads)
        self.scratch = self.ffi.gc(self.table.alloc(size), lambda memory: self.table.free(memory, size))
        self.context.workspace = self.scratch

    def bind(self, entry: str, arrays: Sequence[np.ndarray | None], *sizes: float) -> Call:
        """A call of a kernel, which keeps the arrays (None: NULL) and the scratch alive."""
        kernel = getattr(self.table, entry)
        kinds = self.ffi.typeof(kernel).args[1:]
        pointers = [self.ffi.cast(kind, 0 if x is None else x.ctypes.data) for kind, x in zip(kinds, arrays)]
        return lambda: (kernel(self.context, *pointers, *sizes), arrays)


def our_product(precision: str, threads: int, product: str, M: int, C: int, OC: int) -> Call:
    x, w, y = (random_array(*shape) for shape in ((M, C), (OC, C), (M, OC)))
    b = zero_array(OC)
    entry, arrays, sizes = {
        "fwd": ("matmul_forward", (y, x, w, b), (1, M, C, OC)),
        "dgrad": ("matmul_backward_input", (x, y, w), (1, M, C, OC)),
        "wgrad": ("matmul_backward_weight", (w, b, y, x), (0, 1, M, C, OC)),  # written, as in training
    }[product]
    kernel = Engine(precision, threads, 1, M, C, 1, max(OC, 128)).bind(entry, arrays, *sizes)

    def call() -> Call:
        kernel()
        return lambda: sample(arrays[0])

    return call


def sample(out: Any) -> list[float]:
    """A few numbers of a result: every system must find the same."""
    return [float(value) for value in out[1, :8]]


def zero_array(*shape: int) -> np.ndarray:
    """Zeros from the beginning of a cache line on, where the engine's arena and PyTorch's tensors begin: NumPy's arrays begin
    at 16 bytes, and each vector of theirs is in two lines."""
    numbers = np.empty(int(np.prod(shape)) + 16, np.float32)
    first = -numbers.ctypes.data % 64 // 4
    array = numbers[first : first + numbers.size - 16].reshape(shape)
    array.fill(0)
    return array


def random_array(*shape: int) -> np.ndarray:
    """Normal numbers; in large arrays they recur after a million, for the sake of time."""
    array = zero_array(*shape)
    array[...] = np.resize(np.random.default_rng(0).standard_normal(1 << 20, dtype=np.float32), shape)
    return array


def operands(
    product: str, M: int, C: int, OC: int
) -> tuple[tuple[int, int], tuple[int, int], tuple[str, str]]:
    """Shapes of the stored operands and whether a product reads them as they are ("n") or transposed ("t")."""
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
    """oneDNN in fp32: a (rows of a) x (rows of b); a transposed operand is laid out beforehand, outside of the time."""
    import torch

    a, b = torch_operands(product, M, C, OC)
    a, bt = a.contiguous(), b.T  # (n, k), (m, k)

    def call() -> Call:
        out = torch.ops.mkldnn._linear_pointwise(a, bt, None, "none", [], "")
        return lambda: sample(out)

    return call


def openblas_core() -> str:
    """The core type that NumPy's OpenBLAS took; Skip if NumPy's library is another one."""
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
    """SystemExit if there is no such product."""
    one_of("product", product, [*PRODUCTS, "core"])
    for name, size in sizes.items():
        one_of("size", name, ("M", "C", "OC"))
        if not isinstance(size, int) or size < 1:
            raise SystemExit(f"{name}={size} is not a whole number of at least 1")


def prepare(system: str, precision: str, threads: int, **shape: Any) -> Callable[..., Call]:
    """choose(product, M, C, OC), where the command line has not said so; product "core": the name of OpenBLAS's core."""
    one_of("precision", precision, SYSTEMS)
    one_of("system", system, SYSTEMS[precision])
    make: Callable[..., Call]
    if system == "pyllmc":
        Engine(precision, threads, 1, 1, 1, 1)  # or Skip
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
    """What truly runs: oneDNN's primitive as ONEDNN_VERBOSE tells, OpenBLAS's core type. Skip if it is not that library."""
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
    """The processes of the systems there are, and what each of them runs, or why it does not."""
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
    """Every repeat in ms by "product M C OC" and system."""
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
