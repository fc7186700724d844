"""Matrix products alone: GPT-2's five shapes, forward, dgrad and wgrad, ours beside the libraries.

    python dev/bench_matmul.py system=onednn precision=fp32 threads=2 turns=3

Systems: pyllmc; onednn (PyTorch's linear as compiled models call it, and its bf16 mm), openblas (NumPy's), mkl (torch.mm).
Ours adds the bias, sums gradients up and its bf16 reads and writes floats; the others get their operands in the layout and
type they like best and only multiply, so that nothing but the product is held against them.
"""

from __future__ import annotations

import functools
import os
import re
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
from bench_process import TUNED, Call, Process, Skip, check_agree, measured, not_measured, say, take_turns

SHAPES = [
    (768, 2304),
    (768, 768),
    (768, 3072),
    (3072, 768),
    (768, 50304),
]  # (C, OC) of d12: the last is the head
ROWS = [256, 1024, 4096]  # M = B*T
QUICK_SHAPES, QUICK_ROWS = [(32, 96), (64, 128)], [16]
TOLERANCE = {"fp32": 1e-3, "bf16": 3e-2}  # of results; the others write bf16
PRODUCTS = ["fwd", "dgrad", "wgrad"]
SYSTEMS = {
    "fp32": ["pyllmc", "onednn", "openblas", "mkl"],
    "bf16": ["pyllmc", "onednn"],
}
ENVIRONMENT = {
    "pyllmc": {},
    "onednn": TUNED,
    "mkl": TUNED,
    "openblas": {"OPENBLAS_CORETYPE": os.environ.get("OPENBLAS_CORETYPE", "SkylakeX")},
}


# ---- inside the measured process ----


def engine_kernels(precision: str, threads: int, B: int, T: int, C: int, NH: int) -> tuple[Any, Any]:
    """(table, context) of the engine's kernels with scratch for these sizes; Skip if it has none of this precision."""
    from pyllmc import _ffi

    ffi, lib = _ffi.ffi(), _ffi.load()
    table = lib.llmc_kernels(ffi.NULL)
    fields = {"threads": threads}
    if precision != "fp32":
        if "precision" not in dict(ffi.typeof("Context").fields):
            raise Skip(f"the engine's kernels have no {precision} yet")
        fields["precision"] = getattr(lib, f"LLMC_{precision.upper()}")
    context = ffi.new("Context *", fields)
    context.workspace = table.alloc(table.workspace_bytes(B, T, C, NH, 128, threads))
    return table, context


def pointer(x: np.ndarray) -> Any:
    from pyllmc import _ffi

    return _ffi.ffi().cast("float *", x.ctypes.data)


def our_product(kernels: tuple[Any, Any], product: str, M: int, C: int, OC: int) -> Call:
    table, context = kernels
    x, w, y = (random_array(*shape) for shape in ((M, C), (OC, C), (M, OC)))
    b = np.zeros(OC, np.float32)
    entry, arrays = {
        "fwd": (table.matmul_forward, (y, x, w, b)),
        "dgrad": (table.matmul_backward_input, (x, y, w)),
        "wgrad": (table.matmul_backward_weight, (w, b, y, x)),
    }[product]
    arrays[0].fill(0)  # the result: gradients of weights are added to it
    pointers = [pointer(a) for a in arrays]

    def call() -> Call:
        entry(context, *pointers, 1, M, C, OC)
        return lambda: sample(arrays[0])  # which also keeps the arrays alive

    return call


def sample(out: Any) -> list[float]:
    """A few numbers of a result: every system must find the same."""
    return [float(value) for value in out[1, :8]]


def random_array(*shape: int) -> np.ndarray:
    """Normal numbers; in large arrays they recur after a million, for the sake of time."""
    return np.resize(np.random.default_rng(0).standard_normal(1 << 20, dtype=np.float32), shape)


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
    out = np.zeros((a.shape[0], b.shape[1]), np.float32)

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


def prepare(system: str, precision: str, threads: int) -> Callable[..., Call]:
    """choose(product, M, C, OC); without a request, one small product; product "core": the name of OpenBLAS's core."""
    make: Callable[..., Call]
    if system == "pyllmc":
        make = functools.partial(our_product, engine_kernels(precision, threads, 1, 1, 1, 1))
    else:
        make = peer(system, precision, threads)

    def choose(product: str = "fwd", M: int = 64, C: int = 768, OC: int = 768) -> Call:
        return openblas_core if product == "core" else make(product=product, M=M, C=C, OC=OC)

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


def measure(precision: str, rounds: int, threads: int, quick: bool = False) -> dict[str, Any]:
    """Every repeat in ms by "product M C OC" and system."""
    processes, notes = start_all(precision, threads)
    found = {}
    for M in QUICK_ROWS if quick else ROWS:
        for C, OC in QUICK_SHAPES if quick else SHAPES:
            for product in PRODUCTS:
                request = {"product": product, "M": M, "C": C, "OC": OC}
                name = f"{product} {M} {C} {OC}"
                values = {system: process.ask(**request)["value"] for system, process in processes.items()}
                check_agree(f"gemm {precision} {name}", values, TOLERANCE[precision])
                found[name] = ms = take_turns(processes, rounds, seconds=0 if quick else 0.05, **request)
                medians = ", ".join(f"{name} {statistics.median(x):.2f}" for name, x in ms.items())
                say(f"  gemm {precision} {product} M={M} {C}x{OC}: {medians} ms")
    for process in processes.values():
        process.close()
    return {"runs": notes, "ms": found}


if __name__ == "__main__":
    measured(prepare)
