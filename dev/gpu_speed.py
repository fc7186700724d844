"""make gpu-check: measures the GPU's limits, whole steps beside PyTorch, generation, and the kernels of a step.

Times are compared only if the losses agree after the first and the tenth step, from the same weights and tokens.
"""

from __future__ import annotations

import re
import shutil
import statistics
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, NamedTuple

from bench_process import Failed, Process, Skip, check_agree, not_measured, say
from gpu_machine import Setting, gpu, run

SCRIPT = "gpu_steps.py"
COMPARED = 10  # steps after which losses are compared
# relative difference of losses allowed; bf16 alone makes 2e-3 where a small batch is learned by heart
TOLERANCE = 5e-3
TOO_LARGE = re.compile("out of memory|OutOfMemory|does not fit")
OWN_PRODUCTS, NO_GRAPHS = {"PYLLMC_CUBLASLT": ""}, {"PYLLMC_GRAPHS": "0"}
PLAIN = {"PYLLMC_EPILOGUES": "0", "PYLLMC_CUBLASLT_CACHE": ""}  # cuBLASLt's first algorithms, BIAS alone


class Case(NamedTuple):
    model: str
    B: int
    T: int
    steps: int  # steps in a turn
    variants: Mapping[str, Mapping[str, str]] = {}  # environments of our other variants

    @property
    def name(self) -> str:
        return f"{self.model} B={self.B} T={self.T}"


# the most important first, because time may run out
CASES = [
    Case("d12", 64, 1024, 10, {"without graphs": NO_GRAPHS, "own products": OWN_PRODUCTS, "plain": PLAIN}),
    Case("d48", 16, 1024, 4),
    Case("d24", 32, 1024, 6),
    Case("d36", 16, 1024, 5),
]
QUICK = [Case("tiny", 2, 16, 2, {"without graphs": NO_GRAPHS})]
ROUNDS, CASE_SECONDS = 5, 120
WORDS = {"batch 1": (1, 256, 3), "batch 64": (64, 256, 2)}  # B, new tokens, calls
QUICK_WORDS = {"batch 1": (1, 4, 1), "batch 2": (2, 4, 1)}


# ---- PyTorch's compiler ----


class Compiling:
    """Compiles PyTorch's models into its cache on disk, two at a time, while nothing is measured."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.notes: dict[str, str] = {}
        self.running: set[Process] = set()
        self.stopped = threading.Event()
        self.pool = ThreadPoolExecutor(2)
        for case in CASES:
            self.pool.submit(self.compile, case)

    def compile(self, case: Case) -> None:
        try:
            if self.stopped.is_set():
                raise Skip("no time was left")
            with start("precompile", case, self.setting) as process:
                self.running.add(process)
                if not self.stopped.is_set():
                    process.ask(steps=1)
                self.running.discard(process)
            self.notes[case.name] = "ended" if self.stopped.is_set() else "done"
        except (Skip, Failed) as error:
            self.notes[case.name] = str(error)[-300:]

    def wait(self, seconds: float) -> dict[str, str]:
        """The outcome of each model. Those that are unfinished by then are ended here; the measured processes compile
        them again."""
        timer = threading.Timer(seconds, self.stop)
        timer.start()
        self.pool.shutdown()
        timer.cancel()
        return self.notes

    def stop(self) -> None:
        self.stopped.set()
        for process in list(self.running):
            process.child.kill()


# ---- whole steps ----


def start(system: str, case: Case, setting: Setting, environment: Mapping[str, str] | None = None) -> Process:
    words = {"model": case.model, "B": case.B, "T": case.T, "device": setting.device}
    return Process(SCRIPT, environment, setting.left, system=system, **words)


class Runner:
    """A system on a case. Its first steps are not timed, but their losses are kept."""

    def __init__(self, case: Case, process: Process) -> None:
        self.case, self.process = case, process
        first = process.ask(steps=COMPARED)["value"]
        self.record: dict[str, Any] = {"losses": first["losses"], "ms": []}
        self.note_memory(first)

    def note_memory(self, value: dict[str, Any]) -> None:
        self.record.update({key: mb for key, mb in value.items() if key.endswith("_mb") and mb is not None})

    def turn(self) -> None:
        """Adds the ms of a step, the mean over a turn."""
        found = self.process.ask(steps=self.case.steps)
        self.record["ms"] += [ms / self.case.steps for ms in found["ms"]]
        self.note_memory(found["value"])


def check_losses(case: Case, records: Mapping[str, dict[str, Any]]) -> None:
    """Compares the first and the tenth loss of all systems; and checks that something was learned."""
    for step in (1, COMPARED):
        losses = {name: [record["losses"][step - 1]] for name, record in records.items()}
        check_agree(f"{case.name}, loss at step {step}", losses, TOLERANCE)
    first, last = (records["pyllmc"]["losses"][i] for i in (0, COMPARED - 1))
    if not last < first:
        raise Failed(f"{case.name}: the loss did not fall, {first} to {last}")


def measure_variant(case: Case, setting: Setting, name: str, ours: dict[str, Any]) -> dict[str, Any]:
    """Measures our steps in another environment, alone; `ours`: the record without it."""
    try:
        with start("pyllmc", case, setting, case.variants[name]) as process:
            runner = Runner(case, process)
            for _ in range(rounds_of(setting)):
                runner.turn()
        check_losses(case, {"pyllmc": ours, name: runner.record})
        return runner.record
    except (Skip, Failed) as reason:
        return dict(not_measured(f"{case.name}, {name}", reason))


def rounds_of(setting: Setting) -> int:
    return 1 if setting.quick else ROUNDS


def begin(case: Case, setting: Setting, stack: ExitStack) -> tuple[dict[str, Runner], dict[str, Any]]:
    """Starts ours and PyTorch's, eager if PyTorch cannot compile; and the record of failures. All draw their weights at
    once."""
    peers = ["eager"] if setting.quick else ["compile", "eager"]
    with ThreadPoolExecutor(2) as pool:
        starts = [pool.submit(start, system, case, setting) for system in ("pyllmc", peers[0])]
    for future in starts:
        if not future.exception():
            stack.callback(future.result().close)
    ours = Runner(case, starts[0].result())
    try:
        return {"pyllmc": ours, peers[0]: Runner(case, starts[1].result())}, {}
    except Failed as reason:
        if peers[0] == "eager" or TOO_LARGE.search(str(reason)):
            raise
        failed = {peers[0]: not_measured(f"{case.name}, {peers[0]}", reason)}
    process = stack.enter_context(start(peers[1], case, setting))
    return {"pyllmc": ours, peers[1]: Runner(case, process)}, failed


def take_turns(case: Case, setting: Setting) -> dict[str, dict[str, Any]]:
    """The records of ours and of PyTorch's; the one that begins changes in each round."""
    with ExitStack() as stack:
        runners, failed = begin(case, setting, stack)
        for i in range(rounds_of(setting)):
            for system in sorted(runners, reverse=i % 2 == 0):
                runners[system].turn()
    return {**{system: runner.record for system, runner in runners.items()}, **failed}


def measure_case(case: Case, setting: Setting) -> dict[str, Any]:
    """The sizes and each system's record; if losses differ, "failed" and records that no table shows."""
    sizes = {"model": case.model, "B": case.B, "T": case.T, "steps": case.steps}
    records = take_turns(case, setting)
    try:
        check_losses(case, {name: record for name, record in records.items() if "ms" in record})
    except Failed as reason:
        return {**sizes, **not_measured(case.name, reason), "records": records}
    for name in case.variants:
        records[f"pyllmc, {name}"] = measure_variant(case, setting, name, records["pyllmc"])
    for name, record in records.items():
        if "ms" in record:
            say(f"  {case.name}, {name}: {statistics.median(record['ms']):.2f} ms")
    return {**sizes, "systems": records}


def fitting(case: Case, setting: Setting) -> dict[str, Any]:
    """Measures with the largest B that fits both, after at most two halvings."""
    setting = setting.within(CASE_SECONDS)
    for B in (case.B, case.B // 2, case.B // 4):
        try:
            return measure_case(case._replace(B=max(B, 1)), setting)
        except Failed as error:
            if not TOO_LARGE.search(str(error)):
                raise
            say(f"  {case.name}: B={B} does not fit")
    raise Skip(f"not even B={case.B // 4} fits")


def steps(setting: Setting) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for case in QUICK if setting.quick else CASES:
        try:
            found[case.name] = fitting(case, setting)
        except (Skip, Failed) as reason:
            found[case.name] = not_measured(case.name, reason)
    return {"cases": found, "note": "every step has its update; a batch of 0.5M tokens would share one"}


# ---- the rest ----


def limits(setting: Setting) -> dict[str, Any]:
    setting.need_gpu()
    with Process("gpu_limits.py", {}, setting.left) as process:
        found = process.ask()["value"]
    return {**found, "gpu_after": gpu()}


def generation(setting: Setting) -> dict[str, Any]:
    found: dict[str, Any] = {}
    model = "tiny" if setting.quick else "d12"
    for name, (B, new, calls) in (QUICK_WORDS if setting.quick else WORDS).items():
        with start("generate", Case(model, B, new, 1), setting) as process:
            process.ask()
            got = process.ask(calls=calls)
        if got["value"] != B * new:
            raise Failed(f"{got['value']} tokens were made, not {B} x {new}")
        found[name] = {"model": model, "B": B, "new": new, "ms": got["ms"]}
    return {"cases": found}


def profile(setting: Setting) -> dict[str, Any]:
    """The kernels of one step of 124M, launched one by one: by PyTorch's profiler, or by ncu if that sees nothing."""
    setting.need_gpu()
    case = CASES[0]
    with start("kernels", case, setting, NO_GRAPHS) as process:
        kernels = process.ask()["value"]
    if not kernels:
        kernels = by_ncu(case, setting)
    return {"case": case.name, "step_ms": sum(us for _, _, us in kernels) / 1e3, "kernels": kernels[:40]}


def by_ncu(case: Case, setting: Setting) -> list[list[Any]]:
    """The same by Nsight Compute, for the first step, whose kernels it measures one by one."""
    program = shutil.which("ncu") or shutil.which("ncu", path="/usr/local/cuda/bin")
    if not program:
        raise Skip("PyTorch's profiler saw no kernels, and there is no ncu")
    words = [f"{key}={value}" for key, value in (("model", case.model), ("B", case.B), ("T", case.T))]
    command = [program, "--clock-control", "none", "--csv", "--metrics", "gpu__time_duration.sum"]
    child = [sys.executable, f"dev/{SCRIPT}", "system=pyllmc", *words, "device=cuda", "turns=1"]
    done = run([*command, *child], setting.left, NO_GRAPHS)
    found: dict[str, list[float]] = {}
    for line in done.text.splitlines():
        cells = re.findall(r'"((?:[^"]|"")*)"', line)
        if "gpu__time_duration.sum" in cells:
            at = cells.index("gpu__time_duration.sum")
            scale = {"ns": 1e-3, "us": 1.0, "ms": 1e3, "nsecond": 1e-3, "usecond": 1.0}[cells[at + 1]]
            found.setdefault(cells[4][:120], []).append(scale * float(cells[at + 2].replace(",", "")))
    if not found:
        raise Failed(f"ncu: {done.text[-500:]}")
    return sorted(([name, len(us), sum(us)] for name, us in found.items()), key=lambda row: -float(row[2]))
