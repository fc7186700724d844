"""GFLOP/s of the engine's matmuls beside PyTorch's and the machine's peak, measured by turns.

    python dev/bench_matmul.py [--isa avx2] [--threads 2] [--shapes demo,gpt2] [--seconds 0.3]

The peak is that of multiply-adds between registers, compiled here with `cc -march=native`.
"""

from __future__ import annotations

import argparse
import ctypes
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Callable

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from pyllmc import _ffi

SHAPES = {  # (B*T, C, OC)
    "demo": [
        (M, C, OC)
        for M in (1024, 2048)
        for C, OC in ((128, 384), (128, 128), (128, 512), (512, 128), (128, 640))
    ],
    "tiny": [
        (M, C, OC) for M in (64, 256) for C, OC in ((48, 144), (48, 48), (48, 10), (48, 192), (192, 48))
    ],
    "gpt2": [
        (M, C, OC) for M in (256, 1024, 4096) for C, OC in ((768, 2304), (768, 768), (768, 3072), (3072, 768))
    ],
    "head": [(M, 768, 50304) for M in (256, 1024)],
    "few": [
        (M, C, OC)
        for M in (1, 2, 4, 8, 16, 32, 48, 64, 96)
        for C, OC in ((768, 2304), (3072, 768), (768, 50304))
    ],
}

PEAK = """
typedef float vf __attribute__((vector_size(%(bytes)d)));
#define EACH(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)
#define START(i) vf c##i = x * (float)i;
#define STEP(i) c##i = c##i * x + y; __asm__ volatile("" : "+%(letter)s"(c##i));
#define SUM(i) s += c##i[0];
float run(long n) {
    vf x, y;
    float s = 0;
    for (int i = 0; i < %(bytes)d / 4; i++) x[i] = 0.999f, y[i] = 0.001f;
    EACH(START)
    for (long k = 0; k < n; k++) { EACH(STEP) }
    EACH(SUM)
    return s;
}
double now(void);
double peak(int threads, long n) {
    double t = now();
    float sum = 0;
    #pragma omp parallel num_threads(threads) reduction(+:sum)
    sum += run(n);
    t = now() - t;
    return sum == 1 ? 0 : threads * (double)n * 12 * %(bytes)d / 4 * 2 / t * 1e-9;
}
#include <time.h>
double now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec + 1e-9 * t.tv_nsec; }
"""


def peak_meter(threads: int) -> Callable[[], float]:
    """A function that measures GFLOP/s of register-only multiply-adds for some milliseconds."""
    wide = "avx512f" in Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else False
    letter = "w" if platform.machine() == "aarch64" else "v" if wide else "x"
    folder = tempfile.mkdtemp()
    source = Path(folder, "peak.c")
    source.write_text(PEAK % {"bytes": 64 if wide else 32 if letter == "x" else 16, "letter": letter})
    command = ["cc", "-O3", "-march=native", "-fopenmp", "-ffp-contract=fast", "-shared", "-fPIC", "-o"]
    subprocess.run([*command, f"{folder}/peak.so", str(source)], check=True)
    peak = ctypes.CDLL(f"{folder}/peak.so").peak
    peak.restype = ctypes.c_double
    return lambda: peak(threads, ctypes.c_long(2_000_000))


def compare(calls: list[Callable[[], object]], peak: Callable[[], float], seconds: float) -> list[float]:
    """Median seconds of each call and the median peak, taking turns: a busy moment hits all of them."""
    rows: list[list[float]] = []
    start = time.perf_counter()
    while len(rows) < 5 or (time.perf_counter() - start < seconds and len(rows) < 400):
        row = []
        for call in calls:
            begin = time.perf_counter()
            call()
            row.append(time.perf_counter() - begin)
        rows.append([*row, peak() if len(rows) % 4 == 0 else np.nan])
    return list(np.nanmedian(np.array(rows[1:]), axis=0))


def pairs(table: Any, context: Any, M: int, C: int, OC: int) -> dict[str, list[Callable[[], object]]]:
    """Ours and PyTorch's call for each product of a linear layer."""
    x, w, b, y = (torch.randn(*shape) for shape in ((M, C), (OC, C), (OC,), (M, OC)))
    out, dx, dw, db = (torch.zeros_like(t) for t in (y, x, w, b))

    def ours(entry: Any, *tensors: torch.Tensor) -> Callable[[], object]:
        pointers = [_ffi.ffi().cast("float *", t.data_ptr()) for t in tensors]
        return lambda: (entry(context, *pointers, 1, M, C, OC), tensors)  # holds the tensors, too

    return {
        "fwd": [ours(table.matmul_forward, out, x, w, b), lambda: torch.addmm(b, x, w.T, out=out)],
        "dgrad": [ours(table.matmul_backward_input, dx, y, w), lambda: torch.mm(y, w, out=dx)],
        "wgrad": [
            ours(table.matmul_backward_weight, dw, db, y, x),
            lambda: (dw.addmm_(y.T, x), db.add_(y.sum(0))),
        ],
    }


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--isa", default="", help="avx512, avx2, generic, neon; default: the best")
    options.add_argument("--threads", type=int, default=torch.get_num_threads())
    options.add_argument("--shapes", default="demo,gpt2", help=", ".join(SHAPES))
    options.add_argument("--seconds", type=float, default=0.3, help="per figure")
    a = options.parse_args()
    torch.set_num_threads(a.threads)
    ffi, lib, peak = _ffi.ffi(), _ffi.load(), peak_meter(a.threads)
    table = lib.llmc_kernels(a.isa.encode())
    if table == ffi.NULL:
        raise SystemExit(_ffi.message(lib))
    size = table.workspace_bytes(1, 1, 1, 1, 128, a.threads)
    context = ffi.new("Context *", {"threads": a.threads, "workspace": table.alloc(size)})
    print(f"{_ffi.text(table.name)}, {a.threads} threads; each: ours GFLOP/s, % of peak, x torch")
    for name in a.shapes.split(","):
        for M, C, OC in SHAPES[name]:
            line = f"{name} M={M:<5}{C:4}x{OC:<6}"
            for product, calls in pairs(table, context, M, C, OC).items():
                ours, theirs, limit = compare(calls, peak, a.seconds)
                rate = 2e-9 * M * C * OC / ours
                line += f" {product} {rate:6.1f} {100 * rate / limit:3.0f}% {theirs / ours:5.2f}x "
            print(line, flush=True)


if __name__ == "__main__":
    main()
