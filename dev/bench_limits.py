"""Measures the limits of the machine (dev/peak.c). The roofline follows from them: the least time of a step or of a
token."""

from __future__ import annotations

import functools
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from bench_process import ROOT, Failed

from pyllmc.planning.compute import update_bytes
from pyllmc.tables import layout
from pyllmc.tables.layout import GPTConfig

Limits = dict[
    str, dict[str, list[float]]
]  # limit: threads: every repeat; GFLOP/s of fma, bf16 and amx, GB/s of read and update


def measure(counts: list[int], quick: bool = False) -> Limits:
    """Measures every limit for each number of threads, several times."""
    MIB, repeats, millions = (8, 1, 1) if quick else (512, 5, 6)
    limits: Limits = {}
    program = str(Path(built().name) / "peak")
    for threads in sorted(set(counts)):
        for line in command([program, *map(str, (threads, MIB, repeats, millions))]).splitlines():
            what, value = line.split()
            limits.setdefault(what, {}).setdefault(str(threads), []).append(float(value))
    return limits


@functools.cache
def built() -> tempfile.TemporaryDirectory[str]:
    """Compiles dev/peak.c for this machine, once a process. The folder is removed when the process ends."""
    folder = tempfile.TemporaryDirectory()
    flags = ["-O3", "-march=native", "-ffp-contract=fast", "-pthread", f"-I{ROOT / 'csrc'}"]
    base = (f"csrc/base/{name}.c" for name in ("pool", "cores", "cgroup"))
    sources = [str(ROOT / name) for name in ("dev/peak.c", *base)]
    command(["cc", *flags, *sources, "-o", str(Path(folder.name) / "peak")])
    return folder


def command(words: list[str]) -> str:
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise Failed(f"{Path(words[0]).name}: exit {done.returncode} {done.stderr[-500:]}")
    return done.stdout


def add(limits: Limits, more: Limits) -> None:
    """Adds repeats from another moment of the same run."""
    for what, of_threads in more.items():
        for threads, values in of_threads.items():
            limits.setdefault(what, {}).setdefault(threads, []).extend(values)


def best(limits: Limits, what: str, threads: int) -> float:
    """The best repeat of the run, because slower ones measure the machine's neighbours; 0 if not measured."""
    return max(limits.get(what, {}).get(str(threads), []), default=0.0)


def flops_peak(limits: Limits, precision: str, threads: int) -> float:
    """GFLOP/s of the instruction that multiplies in this precision: bf16 by the fastest, which is VDPBF16PS on AMD, AMX or
    fp32's on Intel (csrc/cpu/dispatch.c takes the same)."""
    return max(
        best(limits, what, threads) for what in ("fma", *(("amx", "bf16") if precision != "fp32" else ()))
    )


# ---- the roofline ----


def visible(T: int, window: int) -> int:
    """Pairs (query, key) of one causal head: sum over t of min(t + 1, window)."""
    w = min(window or T, T)
    return w * (w + 1) // 2 + (T - w) * w


def weights(c: GPTConfig) -> int:
    """The number of elements in the matrices that every token is multiplied with; the head is the embedding."""
    return sum(row.size for row, _ in layout.parameters(c) if len(row.shape) == 2 and row.name != "wpe")


def attention_flops(c: GPTConfig, B: int, T: int) -> float:
    """FLOPs of attention: 2 products over the visible pairs forward; 5 backward, because the scores are computed again,
    not kept."""
    return sum(7 * 2.0 * B * c.n_embd * visible(T, c.window_of(layer)) for layer in range(c.n_layer))


def step_flops(c: GPTConfig, B: int, T: int) -> float:
    """FLOPs of an optimizer step in matrix products (forward 1, backward 2) and attention; a multiply-add is 2."""
    return 6.0 * B * T * weights(c) + attention_flops(c, B, T)


def step_bytes(c: GPTConfig, B: int, T: int, precision: str) -> float:
    """Bytes that the rest of a step must read and write once.

    AdamW's are those of update_bytes. The others are numbers of the precision. LayerNorm, 2L + 1 of them: two inputs,
    residual and output forward, dout, residual, and dresidual twice backward: 8. GELU, 4C wide: pre and output written
    forward; pre, gradient in and out backward: 5. Classifier: logits written, read, written as gradient: 3.
    """
    C, L = c.n_embd, c.n_layer
    per_token = 8 * (2 * L + 1) * C + 5 * L * 4 * C + 3 * c.padded_vocab_size
    return update_bytes(c) + float(BYTES[precision]) * B * T * per_token


def step_floor(c: GPTConfig, B: int, T: int, precision: str, limits: Limits, threads: int) -> float:
    """The least ms of a whole optimizer step at the measured limits: the time of its FLOPs plus that of its bytes."""
    flops = step_flops(c, B, T) / flops_peak(limits, precision, threads)
    return 1e-6 * (flops + step_bytes(c, B, T, precision) / best(limits, "update", threads))


BYTES = {"fp32": 4, "bf16": 2, "int8": 1}


def pass_floor(
    c: GPTConfig, B: int, past: int, n: int, precision: str, limits: Limits, threads: int
) -> float:
    """The least ms to append n tokens to B sequences of `past` and compute the last logits: FLOPs or bytes, the longer of the two.

    Bytes: the weights once, and the cached keys and values, which are floats in fp32 and else bf16.
    """
    C, L = c.n_embd, c.n_layer
    pairs = n * past + n * (n + 1) // 2
    head = c.padded_vocab_size * C
    flops = 2.0 * B * ((weights(c) - head) * n + head + 2 * L * C * pairs)
    cached = 2.0 * BYTES["fp32" if precision == "fp32" else "bf16"] * B * L * C * (past + n)
    size = float(BYTES[precision]) * weights(c) + cached
    return 1e-6 * max(flops / flops_peak(limits, precision, threads), size / best(limits, "read", threads))


def generate_floor(c: GPTConfig, s: dict[str, Any], limits: Limits, threads: int) -> float:
    """The least ms of a prompt and the tokens after it, one at a time."""
    sizes = [(0, s["prompt"]), *((s["prompt"] + i, 1) for i in range(s["new"] - 1))]
    return sum(pass_floor(c, s["B"], past, n, s["precision"], limits, threads) for past, n in sizes)
