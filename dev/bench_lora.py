"""python dev/bench_lora.py: a step of LoRA beside one of full fine-tuning, at 124M with B=4, T=256 and rank 8.

Each is a process of its own, because peak memory is a process's. They take turns, step by step, so that both see the same
machine. The weights are fresh, which changes neither time nor memory.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from typing import IO, Any

B, T, RANK, VOCAB = 4, 256, 8, 50257
LEAST_SPEED, MOST_MEMORY = 1.35, 0.45  # what LoRA shall reach, as factors of full fine-tuning


def serve(precision: str, rank: int) -> None:
    """The measured process: takes a step for each line of its input, and answers its seconds, those of all its
    threads together, and the peak memory so far."""
    import numpy as np

    import pyllmc

    m = pyllmc.Model("d12", B, T, precision=precision, recompute=2, keep_logits=False, lora_rank=rank)
    ids = np.random.default_rng(0).integers(0, VOCAB, (B, T + 1))
    for _ in sys.stdin:
        start, work = time.perf_counter(), time.process_time()
        m.micro_step(ids[:, :-1], ids[:, 1:], accumulate=False)
        m.clip_grad_norm(1.0)
        m.update()
        seconds, work = time.perf_counter() - start, time.process_time() - work
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({"seconds": seconds, "work": work, "peak": peak, "isa": m.isa}), flush=True)


def ask(process: subprocess.Popen[str]) -> dict[str, Any]:
    given: IO[str] | None = process.stdin
    answers: IO[str] | None = process.stdout
    assert given
    assert answers
    print("step", file=given, flush=True)
    return dict(json.loads(answers.readline()))


def compare(precision: str, steps: int) -> bool:
    words = [sys.executable, __file__, "--serve", precision]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    both = [subprocess.Popen([*words, str(rank)], **pipes) for rank in (0, RANK)]  # type: ignore[call-overload]
    for process in both:
        ask(process)  # the first step takes its memory from the system
    taken = [[ask(process) for process in both] for _ in range(steps)]
    for process in both:
        process.stdin.close()
        process.wait()
    full, lora = (min(turn[i]["seconds"] for turn in taken) for i in (0, 1))
    busy, light = (min(turn[i]["work"] for turn in taken) for i in (0, 1))
    big, small = (max(turn[i]["peak"] for turn in taken) for i in (0, 1))
    print(
        f"{precision} ({taken[0][0]['isa']}): full {full * 1e3:.0f} ms, {big * 1e-6:.0f} MB; LoRA of rank {RANK} "
        f"{lora * 1e3:.0f} ms, {small * 1e-6:.0f} MB: {full / lora:.2f} times as fast ({busy / light:.2f} times by the time "
        f"of all threads), {small / big:.0%} of the memory"
    )
    return full / lora >= LEAST_SPEED and small / big <= MOST_MEMORY


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=8, help="steps of each; the fastest counts [8]")
    parser.add_argument("--serve", nargs=2, metavar=("PRECISION", "RANK"), help=argparse.SUPPRESS)
    o = parser.parse_args()
    if o.serve:
        serve(o.serve[0], int(o.serve[1]))
        return 0
    return 0 if all([compare(precision, o.steps) for precision in ("fp32", "bf16")]) else 1


if __name__ == "__main__":
    sys.exit(main())
