"""make bench: this engine, its peers and the machine's own limits, measured in one run on random data.

    python dev/bench.py [--rows steps,gemm] [--rounds N] [--quick] [--out FILE]
    python dev/bench.py --readme

Each system runs in processes of its own (bench_process.py). They take turns, and their medians are compared. PyTorch is
the better of eager and torch.compile; a tuned malloc and the fused AdamW make it faster. A report with every repeat goes
to bench/results/. The tables of a report are printed; --readme writes those of each CPU class's newest whole report into README.md
and docs/speed.md.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # finds pyllmc of this checkout

from pyllmc.base.errors import begin_command, line_of, run_command

if __name__ == "__main__":
    begin_command("numpy", "cffi")

import bench_attention
import bench_documents
import bench_generate
import bench_kernels
import bench_limits
import bench_matmul
import bench_process
import bench_steps
import bench_table
from bench_process import ROOT, Failed, Skip, not_measured, say
from bench_steps import Case

from pyllmc.tables.options import Parser, options

PACKAGES = ("torch", "numpy", "transformers")


class Plan(NamedTuple):
    rounds: int
    threads: int
    quick: bool
    shapes: str  # the shapes that the row gemm takes
    plot: Path  # the file for the plot of the row attention


def steps(plan: Plan, done: dict[str, Any]) -> dict[str, Any]:
    if plan.quick:
        return bench_steps.measure_cases(bench_steps.QUICK, plan.rounds, plan.threads, ["eager"])
    return bench_steps.measure_cases(bench_steps.STEPS, plan.rounds, plan.threads)


def small(plan: Plan, done: dict[str, Any]) -> dict[str, Any]:
    if plan.quick:
        return bench_steps.measure_cases(bench_steps.QUICK[:1], plan.rounds, plan.threads, ["eager"])
    return bench_steps.measure_cases(bench_steps.SMALL, plan.rounds, plan.threads)


def memory(plan: Plan, done: dict[str, Any]) -> dict[str, Any]:
    """Memory for the longest cases of the row steps: from the processes of that row if it ran, else from new ones."""
    cases = bench_steps.QUICK if plan.quick else [case for case in bench_steps.STEPS if case.T == 1024]
    found = done.get("steps", {})
    if not all(case.name in found for case in cases):
        systems = ["eager"] if plan.quick else bench_steps.TORCH
        found = bench_steps.measure_cases(cases, 1, plan.threads, systems)
    peaks: dict[str, Any] = {}
    for case in cases:
        systems = found[case.name].get("systems", {})
        peaks[case.name] = {
            name: record["peak_mb"] for name, record in systems.items() if "peak_mb" in record
        }
        if not systems:
            peaks[case.name] = found[case.name]
    return peaks


def per_precision(measure: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for precision in ("fp32", "bf16"):
        try:
            found[precision] = measure(precision)
        except Skip as reason:
            found[precision] = not_measured(precision, reason)
    return found


def gemm(plan: Plan, done: dict[str, Any]) -> dict[str, Any]:
    shapes = "quick" if plan.quick else plan.shapes
    return per_precision(lambda precision: bench_matmul.measure(precision, plan.rounds, plan.threads, shapes))


def attention(plan: Plan, done: dict[str, Any]) -> dict[str, Any]:
    return per_precision(
        lambda precision: bench_attention.measure(precision, plan.rounds, plan.threads, plan.quick)
    )


def generate(plan: Plan, done: dict[str, Any]) -> dict[str, Any]:
    return bench_generate.measure(plan.rounds, plan.threads, plan.quick)


def compared(plan: Plan) -> tuple[Case, list[int]]:
    """The step that the rows threads and kernels measure, and the numbers of threads that they try."""
    if plan.threads < 2:
        raise Skip("one thread has nothing to be compared with")
    return bench_steps.QUICK[0] if plan.quick else Case("124M", 4, 256, "fp32", 1), [1, plan.threads]


def threads(plan: Plan, done: dict[str, Any]) -> dict[str, Any]:
    case, counts = compared(plan)
    return {case.name: bench_steps.scaling(case, plan.rounds, counts)}


def kernels(plan: Plan, done: dict[str, Any]) -> dict[str, Any]:
    case, counts = compared(plan)
    long = [] if plan.quick else [Case("124M", 4, 1024, "bf16", 1)]
    return {each.name: bench_kernels.measure(each, plan.rounds, counts, plan.quick) for each in [case, *long]}


def growth(plan: Plan, done: dict[str, Any]) -> dict[str, Any]:
    found = bench_attention.growth(plan.rounds, plan.threads, plan.quick)
    bench_attention.draw(found, plan.plot)
    say(f"  growth: drawn in {plan.plot}")
    return found


ROWS: dict[str, Callable[[Plan, dict[str, Any]], dict[str, Any]]] = {
    "steps": steps,
    "gemm": gemm,
    "attention": attention,
    "small": small,
    "generate": generate,
    "memory": memory,
    "threads": threads,
    "kernels": kernels,
    "growth": growth,
}


def run_rows(names: list[str], plan: Plan) -> tuple[bench_limits.Limits, dict[str, Any]]:
    """Measures the rows, and the limits between all of them."""
    counts = [1, plan.threads]
    limits = bench_limits.measure(counts, plan.quick)
    rows: dict[str, Any] = {}
    for name in names:
        say(f"{name}:")
        start = time.perf_counter()
        try:
            rows[name] = ROWS[name](plan, rows)
        except (Skip, Failed) as reason:
            rows[name] = not_measured(name, reason)
        bench_limits.add(limits, bench_limits.measure(counts, plan.quick))
        say(f"  {time.perf_counter() - start:.0f} s")
    return limits, rows


def versions() -> dict[str, str]:
    found = {"Python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            pass
    return found


def commit() -> str:
    words = ["git", "describe", "--always", "--dirty"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def is_whole(names: list[str], quick: bool, shapes: str) -> bool:
    return not quick and shapes == "gpt2" and set(names) >= set(ROWS)


def make_report(names: list[str], plan: Plan) -> dict[str, Any]:
    measured = commit()  # asked before a new plot changes the checkout
    limits, rows = run_rows([name for name in ROWS if name in names], plan)
    command = " ".join(["python", "dev/bench.py", *sys.argv[1:]])
    return {
        "date": datetime.datetime.now().isoformat(timespec="minutes"),
        "command": "make bench" if len(sys.argv) == 1 else command,
        "commit": measured,
        "whole": is_whole(names, plan.quick, plan.shapes),
        "machine": bench_process.machine(),
        "versions": versions(),
        "threads": plan.threads,
        "limits": limits,
        "rows": rows,
    }


def default_path(report: dict[str, Any]) -> Path:
    """<machine>-<instruction set>-<date>.json for a whole run; for a part, the name also has its rows. Machines that call their CPU
    by the same name may differ in its instructions."""
    words = [
        report["machine"]["cpu"],
        report["machine"]["isa"],
        report["date"][:10],
        *([] if report["whole"] else report["rows"]),
    ]
    name = re.sub(r"\W+", "-", "-".join(words)).strip("-").lower()
    return bench_documents.RESULTS / f"{name or 'limits'}.json"


def parse(words: list[str] | None = None) -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog="bench.py", description=__doc__, allow_abbrev=False, formatter_class=raw)
    known = ["limits", *ROWS]
    parser.add_argument(
        "--rows", default=",".join(known), help="rows; limits are measured always [%(default)s]"
    )
    parser.add_argument("--rounds", type=int, default=2, help="turns of each system [%(default)s]")
    parser.add_argument(
        "--threads", type=options()["threads"].read, default=0, help="0: the cores that it may use"
    )
    parser.add_argument(
        "--shapes", default="gpt2", choices=bench_matmul.SHAPES, help="for the row gemm [%(default)s]"
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does every row still run?")
    parser.add_argument(
        "--out", type=Path, help="the report [bench/results/MACHINE-ISA-DATE.json; none with --quick]"
    )
    parser.add_argument(
        "--readme",
        action="store_true",
        help="write the tables of each CPU class's newest whole report into README.md and docs/speed.md",
    )
    a = parser.parse_args(words)
    a.rows = a.rows.split(",")
    for fault in faults(a, known):
        parser.error(fault)
    return a


def faults(a: argparse.Namespace, known: list[str]) -> Iterator[str]:
    """The faults of the options, found before an hour of measurements and not after it."""
    for name in a.rows:
        if name not in known:
            yield f"--rows: {name!r} is not one of {', '.join(known)}"
    if a.rounds < 1:
        yield f"--rounds: {a.rounds} is not at least 1"
    if a.out and a.out.is_dir():
        yield f"--out: {a.out} is a folder: name a file, as {a.out / 'report.json'}"
    elif a.out:
        try:
            a.out.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            yield f"--out: {line_of(error)}"


def plot_of(a: argparse.Namespace) -> Path:
    """The file for the plot of growth. A part of a run must not replace the plot in docs/, because the tables there
    would contradict it."""
    if not a.out and is_whole(a.rows, a.quick, a.shapes):
        return ROOT / "docs/growth.png"
    return Path(a.out or Path(tempfile.gettempdir()) / "bench").with_suffix(".png")


def main() -> int:
    a = parse()
    if a.readme:
        bench_documents.write_documents()
        return 0
    plan = Plan(a.rounds, a.threads or bench_process.default_threads(), a.quick, a.shapes, plot_of(a))
    report = make_report(a.rows, plan)
    print(bench_table.text(report))
    path = a.out or (None if a.quick else default_path(report))
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report, indent=1) + "\n")
        print(f"\nevery repeat: {path}")
    return int(any(kind == "failed" for kind, _, _ in bench_table.gaps(report["rows"])))


if __name__ == "__main__":
    sys.exit(run_command("bench.py", main))
