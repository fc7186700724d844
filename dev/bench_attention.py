"""Causal attention, forward and backward: ours beside PyTorch's flash attention; and its growth with T.

python dev/bench_attention.py system=torch precision=fp32 threads=2 B=4 T=1024 NH=12 hs=64 turns=3
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from bench_matmul import TOLERANCE, Engine, random_array, sample, zero_array
from bench_process import TUNED, Call, Process, check_agree, measured, need, one_of, say, take_turns

from pyllmc.draw.curves import log_ticks, told

SIZES = {"B": 4, "T": 1024, "NH": 12, "hs": 64}
QUICK = {"B": 1, "T": 32, "NH": 2, "hs": 16}
GROWTH = {"B": 1, "NH": 4, "hs": 32}
LENGTHS, WINDOW = [256, 512, 1024, 2048], 128
QUICK_LENGTHS, QUICK_WINDOW = [32, 64], 8


# ---- inside the measured process ----


def our_attention(precision: str, threads: int, B: int, T: int, NH: int, hs: int, window: int) -> Call:
    C = NH * hs
    engine = Engine(precision, threads, B, T, C, NH)
    qkv, dqkv = random_array(B, T, 3 * C), zero_array(B, T, 3 * C)
    out, dout, lse = zero_array(B, T, C), random_array(B, T, C), zero_array(B, NH, T)
    given, none = [out, lse, qkv], engine.ffi.NULL
    forward = engine.bind("attention_forward", given, none, none, B, T, C, NH, window)
    gradients = [dqkv, dout, *given]
    backward = engine.bind("attention_backward", gradients, none, none, B, T, C, NH, window)

    def call() -> Call:
        forward()
        backward()
        return lambda: sample(given[0][0]) + sample(gradients[0][0])

    return call


def torch_attention(precision: str, threads: int, B: int, T: int, NH: int, hs: int) -> Call:
    """PyTorch's attention with query, key and value in the order that flash attention takes; splitting qkv is not
    timed."""
    import torch

    torch.set_num_threads(threads)
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    shape = (B, T, 3, NH, hs)
    q, k, v = (x.transpose(1, 2) for x in torch.from_numpy(random_array(*shape)).to(dtype).unbind(2))
    q, k, v = (x.contiguous().requires_grad_() for x in (q, k, v))
    dout = torch.from_numpy(random_array(B, T, NH, hs)).to(dtype).transpose(1, 2)

    def call() -> Call:
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        dq, _, _ = torch.autograd.grad(out, (q, k, v), dout)
        return lambda: sample(out[0, 0].detach()) + sample(dq[0, 0])

    return call


def prepare(
    system: str, precision: str, threads: int, B: int, T: int, NH: int, hs: int, window: int = 0
) -> Callable[..., Call]:
    one_of("system", system, ("pyllmc", "torch"))
    one_of("precision", precision, TOLERANCE)
    if system == "pyllmc":
        call = our_attention(precision, threads, B, T, NH, hs, window)
    else:
        call = torch_attention(precision, threads, B, T, NH, hs)
    return lambda: call


# ---- in the bench ----


def start(system: str, precision: str, threads: int, **sizes: int) -> Process:
    environment = {} if system == "pyllmc" else TUNED
    return Process(
        "bench_attention.py", environment, system=system, precision=precision, threads=threads, **sizes
    )


def measure(precision: str, rounds: int, threads: int, quick: bool = False) -> dict[str, Any]:
    """Every repeat in ms, by system."""
    sizes = QUICK if quick else SIZES
    processes = {name: start(name, precision, threads, **sizes) for name in ("pyllmc", "torch")}
    values = {name: process.ask()["value"] for name, process in processes.items()}
    check_agree(f"attention {precision}", values, TOLERANCE[precision])
    ms = take_turns(processes, rounds, seconds=0 if quick else 0.5)
    for process in processes.values():
        process.close()
    say(f"  attention {precision}: " + ", ".join(f"{k} {statistics.median(v):.1f} ms" for k, v in ms.items()))
    return {**sizes, "precision": precision, "ms": ms}


def growth(rounds: int, threads: int, quick: bool = False) -> dict[str, Any]:
    """Our attention's ms, by kind and T."""
    lengths, window = (QUICK_LENGTHS, QUICK_WINDOW) if quick else (LENGTHS, WINDOW)
    found: dict[str, Any] = {**GROWTH, "window": window, "ms": {}}
    for kind, w in (("dense", 0), ("banded", window)):
        for T in lengths:
            with start("pyllmc", "fp32", threads, T=T, window=w, **GROWTH) as process:
                ms = take_turns({kind: process}, rounds, warm=1, seconds=0 if quick else 0.1)[kind]
            found["ms"].setdefault(kind, {})[str(T)] = ms
        say(f"  growth, {kind}: time ~ T^{exponent(found['ms'][kind]):.2f}")
    return found


def exponent(ms_of: dict[str, list[float]]) -> float:
    """p of time ~ T^p: the slope in logarithms."""
    T = np.log([float(length) for length in ms_of])
    return float(np.polyfit(T, np.log([statistics.median(ms) for ms in ms_of.values()]), 1)[0])


def draw(found: dict[str, Any], path: Path) -> None:
    """Draws ms against T, both axes logarithmic, beside lines that grow as T^2 and T*w."""
    need("matplotlib", "plot").use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for kind, ms_of in found["ms"].items():
        T = [int(length) for length in ms_of]
        ms = [statistics.median(values) for values in ms_of.values()]
        power = 2 if kind == "dense" else 1
        label = f"{kind}: T^{exponent(ms_of):.2f}" + (f", w = {found['window']}" if kind == "banded" else "")
        (line,) = axes.loglog(T, ms, "o-", base=2, label=label)
        guide = [ms[-1] * (length / T[-1]) ** power for length in T]
        axes.loglog(T, guide, ":", base=2, color=line.get_color(), label=f"T^{power}" if power > 1 else "T w")
    axes.set_xticks(T, [f"{length:,}" for length in T])
    low, high = axes.get_ylim()
    ticks = log_ticks(low, high)
    axes.set_yticks(ticks, told(ticks))
    axes.minorticks_off()
    axes.grid(color="#e3e7ec")
    axes.set_axisbelow(True)
    axes.set(xlabel="T", ylabel="ms, attention forward + backward")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    measured(prepare)
