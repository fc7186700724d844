"""make gpu-check: runs all checks that need a GPU, in at most 8 minutes, and writes one report.

    python dev/gpu_check.py [--wheels DIR] [--out DIR] [--commit HASH] [--parts build,steps] [--seconds N]
    python dev/gpu_check.py --device emu --quick      the machinery alone, without a GPU
    python dev/gpu_check.py --readme                  writes the newest whole report's tables into docs/gpu.md

It needs Python with torch, numpy, cffi and pytest, nvcc, make and g++, and no network: its first line says what is missing
and how to bring it. Parts run one after the other; if one fails, the report says so and the others go on. The report is
written after each part. Exit status: 0 all is right; 1 a result is wrong or could not be checked; 2 usage, or something is
missing.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import gpu_machine
import gpu_parity
import gpu_speed
from bench_process import ROOT, Failed, Skip, not_measured, say
from gpu_machine import Setting


class Part(NamedTuple):
    run: Callable[[Setting], dict[str, Any]]
    seconds: float  # the most that it may take
    least: float = 0  # seconds that earlier parts must leave for it
    judges: bool = False  # it decides whether the engine is right
    optional: bool = False  # a judge that not every machine has


PARTS = {
    "build": Part(gpu_machine.build, 120),
    "kernels": Part(gpu_parity.kernels, 120, judges=True),
    "model": Part(gpu_parity.model, 60, judges=True),
    "mma": Part(gpu_parity.mma, 30, judges=True),
    "sanitizer": Part(gpu_parity.sanitizer, 45, judges=True, optional=True),
    "limits": Part(gpu_speed.limits, 30, 15),
    "steps": Part(gpu_speed.steps, 300, 100),
    "generation": Part(gpu_speed.generation, 30, 20),
    "profile": Part(gpu_speed.profile, 40, 25),
}
UNTIL_COMPILED = 45  # seconds to wait for PyTorch's compiler before the first measurement


def save(report: dict[str, Any], path: Path) -> None:
    """Writes the whole report or leaves the old one. Folders of this machine are cut out of tools' output."""
    beside, text = path.with_suffix(".part"), json.dumps(report, indent=1)
    for folder in (ROOT, sys.prefix, Path.home()):
        text = text.replace(f"{folder}/", "")
    beside.write_text(text + "\n")
    beside.replace(path)


def run_part(part: Part, name: str, setting: Setting) -> dict[str, Any]:
    """Runs a part: its results, or the reason why there are none, whatever fails in it."""
    start = time.perf_counter()
    try:
        found = part.run(setting.within(part.seconds))
    except (Skip, Failed) as reason:
        found = not_measured(name, reason)
    except Exception as error:  # an error in this part must not cost the others
        found = not_measured(name, Failed(f"{type(error).__name__}: {error}"))
    return {**found, "seconds": round(time.perf_counter() - start, 1)}


def run_parts(names: list[str], setting: Setting, report: dict[str, Any]) -> None:
    """Fills report["parts"], and saves the report after each part."""
    ahead = setting.device == "cuda" and "steps" in names and any(PARTS[name].judges for name in names)
    compiling = None
    for i, name in enumerate(names):
        part = PARTS[name]
        # waits once: the build needs all cores, and a measurement the whole machine
        if ahead and part.judges:
            ahead, compiling = False, gpu_speed.Compiling(setting)
        if compiling and not part.judges:
            report["compiled"], compiling = wait_for(compiling), None
        later = sum(PARTS[other].least for other in names[i + 1 :])
        say(f"{name}:")
        report["parts"][name] = run_part(part, name, setting._replace(deadline=setting.deadline - later))
        report["seconds"] = round(time.monotonic() - setting.deadline + report["allowed_seconds"], 1)
        say(f"  {report['parts'][name]['seconds']} s")
        save(report, setting.out)


def wait_for(compiling: gpu_speed.Compiling) -> dict[str, Any]:
    say("waiting for PyTorch's compiler:")
    start = time.perf_counter()
    notes = compiling.wait(UNTIL_COMPILED)
    return {"models": notes, "waited_seconds": round(time.perf_counter() - start, 1)}


def commit() -> str:
    words = ["git", "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    except OSError:
        return "unknown"
    return done.stdout.strip() or "unknown"


def command() -> str:
    """The command line as it was given, without the names of this machine's folders."""
    pairs = zip(sys.argv, sys.argv[1:])
    words = ["DIR" if before in ("--out", "--wheels") else word for before, word in pairs]
    return " ".join(["python dev/gpu_check.py", *words]) if words else "make gpu-check"


def begin(a: argparse.Namespace) -> dict[str, Any]:
    """Begins the report. Skip if there is no GPU."""
    machine = gpu_machine.facts(a.device)
    return {
        "kind": "gpu",
        "date": datetime.datetime.now().isoformat(timespec="minutes"),
        "command": command(),
        "commit": a.commit or commit(),
        "kernels": gpu_machine.kernels_hash(),
        "whole": a.device == "cuda" and not a.quick and a.parts == list(PARTS),
        "machine": machine,
        "versions": gpu_machine.versions(),
        "allowed_seconds": a.seconds,
        "parts": {},
    }


def path_of(report: dict[str, Any], a: argparse.Namespace) -> Path:
    """GPU-DATE.json in bench/results, which keeps whole reports, or in --out."""
    words = [report["machine"]["name"], report["date"][:10]]
    words += [] if a.parts == list(PARTS) else a.parts
    folder = a.out or ROOT / ("bench/results" if report["whole"] else "build/gpu")
    folder.mkdir(parents=True, exist_ok=True)
    return Path(folder, re.sub(r"\W+", "-", "-".join(words)).lower() + ".json")


def wrong(report: dict[str, Any]) -> list[str]:
    """The parts that judge and found something wrong, or found nothing."""
    found = {name: row for name, row in report["parts"].items() if PARTS[name].judges}
    excused = {name for name, row in found.items() if PARTS[name].optional and "skipped" in row}
    return [name for name, row in found.items() if not row.get("ok") and name not in excused]


def parse(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--parts", default=",".join(PARTS), help="the parts to run, always in this order [%(default)s]"
    )
    parser.add_argument("--device", default="cuda", choices=("cuda", "emu"), help="[%(default)s]")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does every part still run?")
    parser.add_argument("--seconds", type=float, default=480, help="time for the whole run [%(default)g]")
    parser.add_argument("--out", type=Path, help="a folder for the report and mma's bits [bench/results]")
    parser.add_argument("--commit", default="", help="commit for the report, if there is no git")
    parser.add_argument("--wheels", type=Path, help="a folder of wheels, or of packages unpacked from them")
    parser.add_argument(
        "--readme", action="store_true", help="write the newest whole report into docs/gpu.md"
    )
    a = parser.parse_args(words)
    named = a.parts.split(",")
    unknown = [name for name in named if name not in PARTS]
    if unknown:
        parser.error(f"--parts {unknown[0]}: known are {', '.join(PARTS)}")
    if a.device == "emu" and not a.quick:
        parser.error("--device emu is too slow for anything but --quick")
    if a.wheels and not a.wheels.is_dir():
        parser.error(f"--wheels {a.wheels}: no such folder")
    a.parts = [name for name in PARTS if name in named]
    return a


def check(a: argparse.Namespace) -> int:
    import gpu_table  # needs numpy, which --wheels may have brought

    report = begin(a)
    path = path_of(report, a)
    run_parts(a.parts, Setting(a.device, a.quick, time.monotonic() + a.seconds, path), report)
    print(gpu_table.text(report), gpu_table.kernels(report), sep="\n\n")
    print(f"\nevery repeat: {path}")
    for name in wrong(report):
        print(f"{name}: NOT RIGHT: {json.dumps(report['parts'][name])[-2000:]}")
    return int(bool(wrong(report)))


def main() -> int:
    a = parse()
    if a.readme:
        import gpu_table

        gpu_table.write_document()
        return 0
    if a.wheels:
        gpu_machine.use_wheels(a.wheels, ROOT / "build/gpu/wheels")
    lacking = gpu_machine.missing(a.device)
    print(gpu_machine.advice(lacking), flush=True)
    if lacking:
        return 2
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        return check(a)
    except Skip as reason:
        print(f"{reason}; without a GPU: --device emu --quick", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
