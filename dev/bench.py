"""make bench: this engine, PyTorch eager fp32 and the machine's own limit, measured in one run on random data.

Each measurement is a whole optimizer step (forward, backward, clip, AdamW) in a process of its own; the two systems
take turns, and medians are compared. PyTorch runs with its malloc tuned, which makes it faster. Results, with every
repeat, go to bench/results/<cpu>-<date>.json; the table is printed as the README shows it.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TUNED = {  # what makes PyTorch fastest: no page faults on every large tensor
    "GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=8589934592:glibc.malloc.trim_threshold=17179869184",
    "THP_MEM_ALLOC_ENABLE": "1",
}
CASES: dict[
    str, tuple[str, int, int, int, int]
] = {  # name: model, vocabulary, B, T, timed steps of a process
    "demo": ("demo", 885, 8, 256, 20),
    "124M, T=64": ("d12", 50257, 4, 64, 3),
    "124M, T=1024": ("d12", 50257, 4, 1024, 2),
}


def time_steps(step: Callable[[], Any], steps: int) -> list[float]:
    """Milliseconds of each step, after one that is not counted."""
    step()
    out = []
    for _ in range(steps):
        start = time.perf_counter()
        step()
        out.append((time.perf_counter() - start) * 1e3)
    return out


def our_step(model: str, V: int, B: int, T: int) -> Callable[[], Any]:
    import numpy as np

    import pyllmc

    rng = np.random.default_rng(0)
    ids = rng.integers(0, V, (B, T + 1), dtype=np.int32)
    m = pyllmc.Model(model, B=B, T=T, vocab_size=V)

    def step() -> None:
        m.zero_grad()
        m.forward(ids[:, :-1], ids[:, 1:])
        m.backward()
        m.clip_grad_norm(1.0)
        m.update(lr=1e-4)

    return step


def torch_step(model: str, V: int, B: int, T: int) -> Callable[[], Any]:
    import torch

    sys.path.insert(0, str(ROOT))
    import train_gpt2
    from pyllmc import layout

    torch.manual_seed(0)
    m = train_gpt2.GPT(layout.config_of(model, V), seed=42)
    optimizer = m.optimizer(lr=1e-4, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    ids = torch.randint(V, (B, T + 1))

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        _, loss = m(ids[:, :-1], ids[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(m.parameters(), 1.0)
        optimizer.step()

    return step


def worker(system: str, case: str) -> None:
    """One process: prints the times of its steps and its peak memory as JSON."""
    model, V, B, T, steps = CASES[case]
    step = {"pyllmc": our_step, "torch": torch_step}[system](model, V, B, T)
    ms = time_steps(step, steps)
    print(json.dumps({"ms": ms, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))


def run_worker(system: str, case: str) -> dict[str, Any]:
    environment = {**os.environ, **(TUNED if system == "torch" else {})}
    command = [sys.executable, __file__, "--worker", system, case]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"bench: {system} failed on {case}:\n{done.stderr[-2000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def measure_peak(threads: int) -> dict[str, list[float]]:
    """GFLOP/s of a register-only multiply-add loop and GB/s of a read, several times."""
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "peak"
        flags = ["-O3", "-march=native", "-ffast-math", "-fopenmp"]  # reordering is what this loop is for
        subprocess.run(["cc", *flags, str(ROOT / "dev/peak.c"), "-o", str(program)], check=True)
        lines = subprocess.run([program, str(threads)], check=True, capture_output=True, text=True).stdout
    rows = [[float(x) for x in line.split()] for line in lines.splitlines()]
    return {"gflops": [row[0] for row in rows], "gbs": [row[1] for row in rows]}


def step_gflop(case: str) -> float:
    """Multiply-adds of a step's matrix products and causal attention, times two: forward 1, backward 2."""
    from pyllmc import layout

    model, V, B, T, _ = CASES[case]
    c = layout.config_of(model, V)
    weights = c.n_layer * 12 * c.n_embd**2 + c.padded_vocab_size * c.n_embd
    return 6e-9 * B * T * (weights + c.n_layer * c.n_embd * T)


def measure_case(case: str, rounds: int) -> dict[str, Any]:
    results: dict[str, Any] = {"pyllmc": [], "torch": []}
    for _ in range(rounds):
        for system in results:
            results[system].append(run_worker(system, case))
            print(
                f"  {case}, {system}: {statistics.median(results[system][-1]['ms']):.1f} ms", file=sys.stderr
            )
    return results


def summary(case: str, results: dict[str, Any], peak: float) -> dict[str, float]:
    _, _, B, T, _ = CASES[case]
    out = {"gflop": step_gflop(case)}
    for system, runs in results.items():
        ms = statistics.median(x for run in runs for x in run["ms"])
        out[f"{system}_ms"] = ms
        out[f"{system}_tok_s"] = B * T / ms * 1e3
        out[f"{system}_share"] = out["gflop"] / (min(x for run in runs for x in run["ms"]) * 1e-3) / peak
        out[f"{system}_mb"] = statistics.median(run["peak_mb"] for run in runs)
        out[f"{system}_best_ms"] = min(x for run in runs for x in run["ms"])
    out["ratio"] = out["torch_ms"] / out["pyllmc_ms"]
    out["best_ratio"] = (
        out["torch_best_ms"] / out["pyllmc_best_ms"]
    )  # what neighbours on the machine disturb least
    return out


def table(report: dict[str, Any]) -> str:
    """Markdown, as in the README."""
    lines = [
        "| whole step, fp32 | pyllmc | PyTorch eager | ratio of medians (of bests) | best's share of FMA peak, ours / PyTorch's | peak memory, ours / PyTorch's |",
        "|---|---|---|---|---|---|",
    ]
    for case, s in report["summary"].items():
        lines.append(
            f"| {case} | {s['pyllmc_ms']:.1f} ms, {s['pyllmc_tok_s']:,.0f} tok/s | {s['torch_ms']:.1f} ms, "
            f"{s['torch_tok_s']:,.0f} tok/s | **{s['ratio']:.2f}×** ({s['best_ratio']:.2f}×) | {s['pyllmc_share']:.0%} / {s['torch_share']:.0%} "
            f"| {s['pyllmc_mb']:,.0f} / {s['torch_mb']:,.0f} MB |"
        )
    peak = max(report["peak"]["gflops"])
    lines.append("")
    lines.append(
        f"{report['cpu']}, {report['threads']} threads, FMA peak {peak:.0f} GFLOP/s in that run, {report['isa']}; "
        f"{report['date']}, PyTorch {report['torch']}, `{report['command']}`"
    )
    return "\n".join(lines)


def cpu_name() -> str:
    try:
        found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def commit() -> str:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True
    )
    return done.stdout.strip() or "unknown"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--case", action="append", choices=CASES, help="only this one; may be repeated")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each system per case [3]")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(*arguments.worker)
        return
    import torch

    from pyllmc import _ffi

    threads = _ffi.load().llmc_default_threads()
    before = measure_peak(threads)
    raw = {case: measure_case(case, arguments.rounds) for case in arguments.case or CASES}
    after = measure_peak(threads)  # machines are shared: the peak of the run is that of both ends
    peak = {key: before[key] + after[key] for key in before}
    limit = max(peak["gflops"])  # the limit is what the machine can do, not what its neighbours leave
    report = {
        "date": datetime.date.today().isoformat(),
        "command": "make bench" if len(sys.argv) == 1 else f"python dev/bench.py {' '.join(sys.argv[1:])}",
        "commit": commit(),
        "cpu": cpu_name(),
        "threads": threads,
        "isa": _ffi.text(_ffi.load().llmc_kernels(_ffi.ffi().NULL).name),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "peak": peak,
        "raw": raw,
        "summary": {case: summary(case, results, limit) for case, results in raw.items()},
    }
    name = re.sub(r"\W+", "-", f"{report['cpu']}-{report['date']}").strip("-").lower()
    path = ROOT / "bench/results" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")
    print(table(report))
    print(f"\nraw repeats: {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
