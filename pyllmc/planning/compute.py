"""The time that one process computes for a micro-step, and how it is known: measured, given, or assumed. Nothing assumed is called
measured."""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pyllmc.base.checkout import of_source
from pyllmc.base.errors import InvalidArgument
from pyllmc.tables import layout
from pyllmc.tables.layout import GPTConfig

RESULTS = of_source("bench/results")
REMEDY = "--step_ms or --tok_s gives its time, --mfu assumes one, and on a machine of the cluster --measure takes it"


class DataSheet(NamedTuple):
    """A GPU by NVIDIA's data sheets."""

    name: str  # how the driver's name for it begins
    tflops: float  # dense, bf16
    memory: float  # bytes


DATA_SHEETS = {
    "h200": DataSheet("NVIDIA H200", 989, 141e9),
    "h100-pcie": DataSheet("NVIDIA H100 PCIe", 756, 80e9),
    "h100": DataSheet("NVIDIA H100", 989, 80e9),
    "a100": DataSheet("NVIDIA A100", 312, 80e9),
}

# the bench's names of models (dev/bench_steps.py)
BENCH_MODELS = {
    "124M": layout.config_of("d12"),
    "demo": layout.config_of("demo", 885),  # V of the stories
    "nano-adder": layout.config_of("gpt-nano", 10),  # minGPT's adder: V is the digits
    "char-10M": GPTConfig(65, 256, 6, 6, 384),  # nanoGPT's Shakespeare by characters
    "tiny": GPTConfig(80, 64, 2, 2, 32),  # for --quick
}


class Compute(NamedTuple):
    """The seconds of a micro-step, and where they come from.

    kind: "measured" in a kept report or just now; "scaled" from a measured row of another size; "given" by the user; or "assumed",
    from a peak and a share of it.
    """

    seconds: float
    kind: str
    source: str


class Work(NamedTuple):
    """A micro-step: the model, the batch and the precision."""

    config: GPTConfig
    B: int
    T: int
    precision: str

    @property
    def flops(self) -> float:
        return self.B * self.T * flops_per_token(self.config, self.T)


def num_params(c: GPTConfig) -> int:
    """The number of parameters as llm.c counts: with the padding of the vocabulary."""
    return sum(row.size for row, _ in layout.parameters(c))


def flops_per_token(c: GPTConfig, T: int) -> float:
    """The formula of llm.c's MFU, (6 N + 6 L C T)."""
    return 6.0 * num_params(c) + 6.0 * c.n_layer * c.n_embd * T


def isa_name() -> str:
    """This CPU's best instruction set, which names its class. It is bf16's, because fp32 has nothing of AMX."""
    from pyllmc.engine import _ffi

    lib = _ffi.load()
    return _ffi.text(lib.llmc_kernels(_ffi.ffi().NULL, lib.LLMC_BF16).name)


def cpu_classes() -> list[str]:
    """The instruction sets that name a class of CPUs, of whatever machine."""
    return re.findall(r"^SET\((\w+)", of_source("csrc/cpu/isas.def").read_text("utf-8"), re.M)


# Bytes a parameter that an update on a CPU must move, 4 for a number: param, m, v read and written, gradient read; and the gradient
# once more for its norm. In bf16 a param is the stored number and the half that this lacks of a float.
UPDATE, NORM = 7 * 4, 4


def update_bytes(c: GPTConfig) -> float:
    """Bytes that an update of a model moves."""
    return float(UPDATE + NORM) * num_params(c)


# ---- measured by make bench ----


class Row(NamedTuple):
    """A measured step of a report."""

    work: Work
    name: str
    seconds: float
    words: str  # the machine and the file
    moved: float  # bytes a parameter that its update moved


def reports(folder: Path = RESULTS) -> dict[str, dict[str, Any]]:
    """The newest whole report of each class of CPUs, by the class's best instruction set; each has its "file"."""
    found = ({**json.loads(path.read_text("utf-8")), "file": path.name} for path in folder.glob("*.json"))
    whole = sorted(
        (r for r in found if r.get("whole") and r.get("kind") != "gpu"), key=lambda r: str(r["date"])
    )
    return {r["machine"]["isa"]: r for r in whole}


def rows_of(report: dict[str, Any]) -> Iterator[Row]:
    """The whole steps of the engine that a report holds."""
    machine = report["machine"]
    words = f"{machine['cpu']}, {machine['isa']}, {report['threads']} threads, bench/results/{report['file']}"
    for part in ("steps", "small"):
        for name, case in report["rows"].get(part, {}).items():
            taken = case.get("systems", {}).get("pyllmc", {}).get("ms")
            if taken and case["model"] in BENCH_MODELS:
                work = Work(BENCH_MODELS[case["model"]], case["B"], case["T"], case["precision"])
                yield Row(
                    work, name, statistics.median(taken) * 1e-3, words, moved_in(report, work.precision)
                )


def moved_in(report: dict[str, Any], precision: str) -> float:
    """The bytes a parameter that the update moved when a report was made, by its profile of a step of this precision; those of today
    where it has none."""
    for case in report["rows"].get("kernels", {}).values():
        adamw = case["kernels"]["adamw"]
        if case["precision"] == precision and "bytes" in adamw:
            return float(adamw["calls"] * adamw["bytes"]) / num_params(BENCH_MODELS[case["model"]]) + NORM
    return UPDATE + NORM


def from_report(report: dict[str, Any], work: Work) -> Compute:
    """The measured time of this very step, else an estimate from that of the nearest one of its precision."""
    rows = [row for row in rows_of(report) if row.work.precision == work.precision]
    if not rows:
        raise InvalidArgument(
            f"{report['file']} has no step in {work.precision}: {REMEDY}, or take another --precision"
        )
    row = min(rows, key=lambda row: (row.work != work, _distance(row.work, work)))
    if row.work == work:
        return Compute(row.seconds, "measured", f"measured: {row.words}")
    seconds = _scaled(row, work, best_update(report))
    return Compute(
        seconds, "scaled", f"an estimate by the FLOPs and bytes of {row.name}; that was measured: {row.words}"
    )


def _distance(a: Work, b: Work) -> float:
    """How unlike two steps are: by their models' sizes and by their tokens."""
    sizes = num_params(a.config) / num_params(b.config), a.B * a.T / (b.B * b.T)
    return sum(abs(math.log(ratio)) for ratio in sizes)


def _scaled(row: Row, work: Work, rate: float) -> float:
    """The update by the bytes that it moves, and all else by FLOPs. rate: bytes a second."""
    updates = row.moved * num_params(row.work.config) / rate, update_bytes(work.config) / rate
    return max(row.seconds - updates[0], 0.0) * work.flops / row.work.flops + updates[1]


def best_update(report: dict[str, Any]) -> float:
    """The best measured rate of updating memory in place, in bytes a second."""
    return 1e9 * float(max(report["limits"]["update"][str(report["threads"])]))


# ---- given, or assumed ----


def assumed(work: Work, mfu: float, tflops: float, device: str) -> Compute:
    """The time by a share of a peak. tflops 0: that of the device's data sheet."""
    sheet = DATA_SHEETS.get(device)
    if not tflops and not sheet:
        known = ", ".join(DATA_SHEETS)
        raise InvalidArgument(
            f"--mfu is a share of a peak, and that of '{device}' is not known ({known} are): give --peak_tflops"
        )
    peak = tflops or (sheet.tflops if sheet else 0.0)
    whose = "--peak_tflops" if tflops else f"the data sheet of {device}, dense bf16"
    seconds = work.flops / (mfu * peak * 1e12)
    return Compute(
        seconds, "assumed", f"ASSUMED, not measured: {mfu:.0%} (--mfu) of {peak:g} TFLOP/s ({whose})"
    )


def given(work: Work, step_ms: float, tok_s: float) -> Compute:
    """The time that the user gives, as milliseconds of a micro-step or as tokens a second of one process."""
    if step_ms:
        return Compute(step_ms * 1e-3, "given", "given (--step_ms)")
    return Compute(
        work.B * work.T / tok_s, "given", f"given ({tok_s:,.0f} tokens a second of one process, --tok_s)"
    )


def of_device(work: Work, device: str, unlike: str = "", folder: Path = RESULTS) -> Compute:
    """The time on a CPU class that a report knows. device: its name, or "cpu" for that of this machine. unlike: how the step
    differs from those of make bench, which train the whole model with the usual options; "": not at all.

    Raises InvalidArgument for a device of which nobody has kept a report.
    """
    found = reports(folder)
    name = isa_name() if device == "cpu" else device
    if name in found:
        taken = from_report(found[name], work)
        source = f"an estimate, because {unlike}; {taken.source}"
        return taken._replace(kind="scaled", source=source) if unlike else taken
    known = f"those measured are {', '.join(found)}" if found else "there are none beside this package"
    what = f"a CPU whose best instruction set is {name}" if device == "cpu" else f"'{device}'"
    raise InvalidArgument(f"no report in bench/results is of {what} ({known}): {REMEDY}")
