"""The limits of a GPU: bytes copied, and cuBLASLt's products of GPT-2's shapes, through PyTorch, on random data.

python dev/gpu_limits.py turns=1
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from typing import Any

from bench_process import Call, measured

from pyllmc.tables import layout

COPY_BYTES = 4 << 30
MODELS, TOKENS = ("d12", "d48"), (16384, 32768, 65536)
REPEATS = 10


def shapes() -> Iterator[tuple[int, int, int]]:
    """(M, K, N) of the forward products of each model, for each number of tokens; and of a cube."""
    yield 8192, 8192, 8192
    for M in TOKENS:
        for model in MODELS:
            c = layout.config_of(model)
            for K, N in ((1, 3), (1, 1), (1, 4), (4, 1)):
                yield M, K * c.n_embd, N * c.n_embd
            if M * c.padded_vocab_size < 1 << 32:
                yield M, c.n_embd, c.padded_vocab_size


def timed(call: Callable[[], Any]) -> list[float]:
    """ms of each of REPEATS calls by the stream's events, after two calls that do not count."""
    import torch

    marks = [torch.cuda.Event(enable_timing=True) for _ in range(REPEATS + 1)]
    for _ in range(2):
        call()
    marks[0].record()
    for mark in marks[1:]:
        call()
        mark.record()
    torch.cuda.synchronize()
    return [before.elapsed_time(after) for before, after in zip(marks, marks[1:])]


def copies() -> list[float]:
    """GB/s, where bytes read and bytes written both count."""
    import torch

    source = torch.randint(-(2**31), 2**31 - 1, (COPY_BYTES // 4,), dtype=torch.int32, device="cuda")
    target = torch.empty_like(source)
    return [2 * COPY_BYTES / ms / 1e6 for ms in timed(lambda: target.copy_(source))]


def products(M: int, K: int, N: int) -> list[float]:
    """TFLOP/s of (M,K) (N,K)^T in bf16."""
    import torch

    a = torch.randn(M, K, dtype=torch.bfloat16, device="cuda")
    b = torch.randn(N, K, dtype=torch.bfloat16, device="cuda")
    out = torch.empty(M, N, dtype=torch.bfloat16, device="cuda")
    return [2e-9 * M * K * N / ms for ms in timed(lambda: torch.matmul(a, b.t(), out=out))]


def everything() -> dict[str, Any]:
    import torch

    found: dict[str, Any] = {"copy_gb_s": copies(), "matmul_tflop_s": {}}
    torch.cuda.empty_cache()
    for M, K, N in shapes():
        found["matmul_tflop_s"][f"{M} x {K} x {N}"] = products(M, K, N)
    found["best_tflop_s"] = max(statistics.median(rates) for rates in found["matmul_tflop_s"].values())
    return found


def prepare() -> Callable[..., Call]:
    return lambda: everything


if __name__ == "__main__":
    measured(prepare)
