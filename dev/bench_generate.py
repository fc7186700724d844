"""Greedy generation with random weights: ours beside Hugging Face's generate with its cache.

python dev/bench_generate.py system=hf precision=fp32 threads=2 model=124M B=1 prompt=1 new=256 turns=3
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable
from typing import Any

import bench_limits
from bench_process import (
    TUNED,
    Call,
    Failed,
    Process,
    Skip,
    measured,
    need,
    not_measured,
    one_of,
    say,
    take_turns,
)
from bench_steps import config_of, engine_model, random_ids

CASES = {  # the name of a case: (B, prompt, new)
    "256 tokens": (1, 1, 256),
    "prompt of 512": (1, 512, 1),
    "batch 16": (16, 1, 32),
}
QUICK = {"256 tokens": (1, 1, 8), "prompt of 512": (1, 16, 1), "batch 16": (2, 1, 4)}
PRECISIONS = {"pyllmc": ["fp32", "bf16", "int8"], "hf": ["fp32", "bf16"]}  # formats of the weights


# ---- inside the measured process ----


def our_generate(c: Any, precision: str, threads: int, ids: Any, new: int) -> Call:
    """Our generation. precision: of the weights. A model with weights shorter than fp32 is one of bf16."""
    import numpy as np

    B, prompt = ids.shape
    how = {"B": B, "T": prompt + new, "training": False, "threads": threads, "keep_logits": False}
    m = engine_model(c, precision="fp32" if precision == "fp32" else "bf16", weights=precision, **how)

    def call() -> int:
        return int(np.size(m.generate(ids, max_new_tokens=new, temperature=0)))

    return call


def hf_generate(c: Any, precision: str, threads: int, ids: Any, new: int) -> Call:
    os.environ["HF_HUB_OFFLINE"] = "1"  # nothing is downloaded, because the weights are random
    transformers = need("transformers", "torch")
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=c.vocab_size,
        n_positions=c.max_seq_len,
        n_embd=c.n_embd,
        n_layer=c.n_layer,
        n_head=c.n_head,
        bos_token_id=None,
        eos_token_id=None,
    )
    m = transformers.GPT2LMHeadModel(config).eval()
    m = m.to(torch.float32 if precision == "fp32" else torch.bfloat16)
    prompt = torch.from_numpy(ids).long()
    how = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "use_cache": True}
    mask = torch.ones_like(prompt)

    def call() -> int:
        return int(m.generate(prompt, attention_mask=mask, **how)[:, prompt.shape[1] :].numel())

    return call


def prepare(
    system: str, precision: str, threads: int, model: str, B: int, prompt: int, new: int
) -> Callable[..., Call]:
    one_of("system", system, PRECISIONS)
    one_of("precision", precision, PRECISIONS[system])
    c = config_of(model)
    make = our_generate if system == "pyllmc" else hf_generate
    call = make(c, precision, threads, random_ids(c.vocab_size, B, prompt - 1), new)
    return lambda: call


# ---- in the bench ----


def start_all(
    systems: list[str], precision: str, threads: int, **sizes: Any
) -> tuple[dict[str, Process], dict[str, Any]]:
    """The processes of those systems that are available, and the reasons why others are missing."""
    processes: dict[str, Process] = {}
    notes: dict[str, Any] = {}
    for system in systems:
        environment = TUNED if system == "hf" else {}
        try:
            words = {"system": system, "precision": precision, "threads": threads, **sizes}
            processes[system] = Process("bench_generate.py", environment, **words)
        except Skip as reason:
            if system == "pyllmc":
                raise
            notes[system] = not_measured(f"generate {precision}, {system}", reason)
    return processes, notes


def turns_with_limits(
    processes: dict[str, Process], rounds: int, threads: int, quick: bool
) -> tuple[dict[str, list[float]], list[bench_limits.Limits]]:
    """Milliseconds of each turn, and the limits then: neighbours may leave half of the memory's rate now and all of it
    a minute later."""
    ms: dict[str, list[float]] = {name: [] for name in processes}
    limits = []
    for _ in range(rounds):
        limits.append(bench_limits.measure([threads], quick))
        for name, more in take_turns(processes, 1).items():
            ms[name] += more
    return ms, limits


def measure_case(what: str, precision: str, rounds: int, threads: int, quick: bool) -> dict[str, Any]:
    B, prompt, new = (QUICK if quick else CASES)[what]
    sizes = {"model": "tiny" if quick else "124M", "B": B, "prompt": prompt, "new": new}
    few = quick and what != next(iter(CASES))  # Hugging Face's imports take longest by far
    systems = [
        name for name, kinds in PRECISIONS.items() if precision in kinds and not (few and name == "hf")
    ]
    processes, notes = start_all(systems, precision, threads, **sizes)
    for system, process in processes.items():  # the first call is not counted
        if process.ask()["value"] != B * new:
            raise Failed(f"generate: {system} did not make {B} x {new} tokens")
    ms, limits = turns_with_limits(processes, rounds, threads, quick)
    for process in processes.values():
        process.close()
    medians = ", ".join(f"{k} {statistics.median(v) / new:.2f} ms per token" for k, v in ms.items())
    say(f"  generate {precision}, {what}: {medians}")
    return {**sizes, "precision": precision, "runs": notes, "ms": ms, "limits": limits}


def measure(rounds: int, threads: int, quick: bool = False) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for what in CASES:
        for precision in PRECISIONS["pyllmc"]:
            name = f"{what}, {precision}"
            try:
                found[name] = measure_case(what, precision, rounds, threads, quick)
            except Skip as reason:
                found[name] = not_measured(name, reason)
    return found


if __name__ == "__main__":
    measured(prepare)
