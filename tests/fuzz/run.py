"""Builds the fuzz targets under AddressSanitizer and UndefinedBehaviorSanitizer, runs them, and prints their findings.

    python tests/fuzz/run.py --seconds=60             libFuzzer (clang), guided by coverage; new inputs are kept
    python tests/fuzz/run.py --executions=1000000     the same, for so many executions of each target
    python tests/fuzz/run.py --runs=5000 model        gcc suffices: the corpus, then so many mutations of it

Without names: every target. Exit status: 0 nothing found, 1 something, 2 usage.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
SANITIZE = "-fsanitize=address,undefined -fno-sanitize-recover=undefined"
TARGETS = sorted(path.stem[len("fuzz_") :] for path in Path(__file__).parent.glob("fuzz_*.c"))
CORPUS = Path(__file__).parent / "corpus"
SECONDS_EACH = 5  # seconds; a longer execution is a finding


class Outcome(NamedTuple):
    target: str
    found: bool
    executions: int
    seconds: float
    output: str

    def __str__(self) -> str:
        rate = self.executions / max(self.seconds, 1e-9)
        told = "FOUND" if self.found else "nothing found"
        return f"{self.target:10} {self.executions:>10,} executions  {rate:>8,.0f}/s  {told}"


def has_libfuzzer(compiler: str) -> bool:
    source = "int LLVMFuzzerTestOneInput(const char *p, unsigned long n) { return !p && n; }"
    command = [compiler, "-fsanitize=fuzzer", "-xc", "-", "-o", os.devnull]
    return (
        bool(shutil.which(compiler))
        and not subprocess.run(command, input=source.encode(), capture_output=True).returncode
    )


def build(folder: Path, guided: bool, targets: list[str], root: Path = ROOT) -> None:
    """Builds the targets as folder/fuzz_<target>, with the engine's plain kernels only, because no parser needs fast
    ones."""
    extra = f"{SANITIZE} -DFUZZING -DNO_THREADS" + (" -fsanitize=fuzzer-no-link" if guided else "")
    settings = ["UNGUIDED=-fno-sanitize-coverage=trace-cmp"] if guided else []
    settings += [
        "OPT=-O1",
        "COMPUTING=-O2 -fno-sanitize=undefined",
        "ISAS=",
        f"EXTRA={extra}",
        f"LDFLAGS={SANITIZE}",
        f"BUILD={folder}",
    ]
    settings += ["CC=clang"] if guided else [f"FUZZ_MAIN={folder}/driver.o"]
    made = [f"{folder}/fuzz_{target}" for target in targets]
    done = subprocess.run(["make", "-C", str(root), *settings, *made], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stdout[-2000:] + done.stderr[-2000:])


def run(folder: Path, target: str, *flags: str, kept: Path | None = None) -> Outcome:
    """Runs one target over its corpus; `kept`: a folder for the inputs that libFuzzer adds."""
    folders = [kept] if kept else []
    folders.append(CORPUS / target)
    if not folders[-1].exists():
        raise SystemExit(f"{folders[-1]} is missing: python tests/fuzz/make_corpus.py")
    command = [
        folder / f"fuzz_{target}",
        *flags,
        f"-timeout={SECONDS_EACH}",
        f"-artifact_prefix={folder}/{target}-",
    ]
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as tmp:
        done = subprocess.run(
            [*command, *folders],
            env={**os.environ, "TMPDIR": tmp},
            capture_output=True,
            text=True,
            errors="replace",
        )
    executions = re.search(r"^stat::number_of_executed_units: (\d+)", done.stderr, re.M)
    count = int(executions[1]) if executions else 0
    return Outcome(target, done.returncode != 0, count, time.monotonic() - begin, done.stderr)


def run_guided(folder: Path, target: str, limit: str) -> Outcome:
    """Runs libFuzzer. `limit`: its flag that ends the run."""
    kept = folder / "learnt" / target
    kept.mkdir(parents=True, exist_ok=True)
    flags = [limit, "-rss_limit_mb=1024", "-print_final_stats=1", "-max_len=8192"]
    outcome = run(folder, target, *flags, kept=kept)
    input_ = re.search(r"Test unit written to (.*)", outcome.output)
    told = f"\ninput: {input_[1]}\nreproduce: {folder}/fuzz_{target} {input_[1]}\n" if input_ else ""
    return outcome._replace(output=outcome.output + told)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}; default: all")
    parser.add_argument("--seconds", type=int, default=60, help="for each target, with libFuzzer [60]")
    parser.add_argument("--executions", type=int, help="instead: so many of each target, with libFuzzer")
    parser.add_argument(
        "--runs", type=int, help="instead: so many mutations for each target, without libFuzzer"
    )
    asked = parser.parse_args()
    targets = asked.targets or TARGETS
    if unknown := set(targets) - set(TARGETS):
        parser.error(f"no target is called {', '.join(sorted(unknown))}: {', '.join(TARGETS)}")
    guided = asked.runs is None
    if guided and not has_libfuzzer("clang"):
        parser.error("clang with libFuzzer is missing: apt-get install clang; --runs=5000 needs gcc only")
    limit = f"-runs={asked.executions}" if asked.executions else f"-max_total_time={asked.seconds}"
    folder = ROOT / "build" / ("fuzz" if guided else "fuzz_gcc")
    build(folder, guided, targets)
    found = False
    for target in targets:
        outcome = run_guided(folder, target, limit) if guided else run(folder, target, f"-runs={asked.runs}")
        print(outcome.output[-6000:] if outcome.found else "", outcome, sep="", flush=True)
        found |= outcome.found
    return int(found)


if __name__ == "__main__":
    sys.exit(main())
