"""Makes the text that is printed, and that docs/gpu.md shows, from a report of make gpu-check. Nothing here is
measured."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench_process import ROOT, Failed
from bench_table import markdown, ms_text, times
from gpu_machine import kernels_hash, peak
from gpu_steps import sizes_of

from pyllmc.planning.compute import flops_per_token

RESULTS = ROOT / "bench/results"
BLOCK = "<!-- gpu: {} -->\n{}\n<!-- gpu: end -->"  # in docs/gpu.md: the report's file or "none", its text
NONE = "No figures have been measured on a GPU yet: `make gpu-check` makes them, in one run of at most 8 minutes."
STALE = "**Stale**: the kernels have changed since these figures were measured."
Report = dict[str, Any]
median = statistics.median


def part(report: Report, name: str) -> dict[str, Any]:
    """The findings of a part; {} if it did not run."""
    found = report["parts"].get(name, {})
    return {} if "failed" in found or "skipped" in found else found


def percent(rate: float, of: float) -> str:
    return f"{rate / of:.1%}" if of else "–"


# ---- one function for each table: its text, or "" ----


def parity(report: Report) -> str:
    words = []
    for name in ("kernels", "model", "mma", "sanitizer"):
        found = report["parts"].get(name)
        if found is not None:
            words.append(f"{name}: {verdict(found)}")
    return f"Correctness: {'; '.join(words)}." if words else ""


def verdict(found: dict[str, Any]) -> str:
    if "failed" in found or "skipped" in found:
        return "not run"
    counts = ", ".join(f"{n} {what}" for what, n in found.get("counts", {}).items())
    return ("right" if found["ok"] else "**wrong**") + (f" ({counts})" if counts else "")


def steps(report: Report) -> str:
    lines = []
    for name, case in part(report, "steps").get("cases", {}).items():
        if "systems" not in case:
            continue
        for system, record in case["systems"].items():
            if record.get("ms"):
                lines.append([name, *step_cells(report, case, system, record)])
    head = [
        "whole step, bf16",
        "system",
        "a step",
        "tok/s",
        "MFU",
        "of the best rate here",
        "peak memory",
        "ratio",
    ]
    return markdown(head, lines) if lines else ""


def step_cells(report: Report, case: dict[str, Any], system: str, record: dict[str, Any]) -> list[str]:
    """Cells of a table. ratio: how many times as fast as PyTorch."""
    ms, ours = median(record["ms"]), system.startswith("pyllmc")
    rate = case["B"] * case["T"] / ms * 1e3
    tflops = rate * flops_per_token(sizes_of(case["model"]), case["T"]) / 1e12
    shares = [percent(tflops, peak(report["machine"]["name"])), percent(tflops, best_rate(report))]
    memory = f"{record['device_mb']:,.0f} MiB" if "device_mb" in record else "–"
    peers = [r["ms"] for name, r in case["systems"].items() if not name.startswith("pyllmc") and r.get("ms")]
    ratio = times(median(peers[0]) / ms) if ours and peers else "–"
    return [system, ms_text(ms), f"{rate:,.0f}", *shares, memory, ratio]


def best_rate(report: Report) -> float:
    return float(part(report, "limits").get("best_tflop_s", 0))


def limits(report: Report) -> str:
    found = part(report, "limits")
    if not found:
        return ""
    rates = {shape: median(values) for shape, values in found["matmul_tflop_s"].items()}
    words = ", ".join(
        f"{shape} {rate:,.0f}" for shape, rate in sorted(rates.items(), key=lambda row: -row[1])[:3]
    )
    return (
        f"Limits measured: copying {median(found['copy_gb_s']):,.0f} GB/s read and written; products by cuBLASLt, bf16, "
        f"random data, at best {best_rate(report):,.0f} TFLOP/s (M x K x N {words})."
    )


def generation(report: Report) -> str:
    lines = []
    for name, case in part(report, "generation").get("cases", {}).items():
        ms = median(case["ms"])
        tokens = f"{case['B'] * case['new'] / ms * 1e3:,.0f} tok/s"
        lines.append([f"{case['model']}, {name}, {case['new']} tokens", ms_text(ms), tokens])
    return markdown(["generation, bf16", "all of it", "tok/s"], lines) if lines else ""


def kernels(report: Report) -> str:
    """The kernels of one step; not in the document."""
    found = part(report, "profile")
    if not found:
        return ""
    total = sum(us for _, _, us in found["kernels"])
    lines = [
        [f"`{name.split('(')[0][:70]}`", str(n), f"{us / 1e3:.2f} ms", f"{us / total:.1%}"]
        for name, n, us in found["kernels"][:20]
    ]
    return markdown([f"kernel, {found['case']}", "launches", "time", "share"], lines)


# ---- all of it ----


def machine_line(report: Report) -> str:
    machine, versions = report["machine"], ", ".join(f"{k} {v}" for k, v in report["versions"].items())
    driver = f", driver {machine['driver']}" if "driver" in machine else ""
    power = f", {machine['power_limit_w']:.0f} W" if "power_limit_w" in machine else ""
    power += f", cuBLASLt: {machine['cublaslt']}" if "cublaslt" in machine else ""
    return (
        f"{machine['name']}{driver}{power}; {report['date'][:10]}, {versions}; `{report['command']}` at "
        f"{report['commit']}, kernels {report['kernels']}."
    )


def gaps(node: Any, name: str) -> Iterator[str]:
    """A line for each entry without figures: the last line of its output, where Python writes the error."""
    for key, value in node.items() if isinstance(node, dict) else ():
        if key in ("skipped", "failed") and isinstance(value, str):
            yield f"* {name}: {key}, {value.strip().splitlines()[-1][-300:]}"
        elif isinstance(value, dict):
            yield from gaps(value, f"{name}, {key}" if name else key)


def missing(report: Report) -> str:
    lines = list(gaps(report["parts"], ""))
    return "\n".join(["Not measured:", "", *lines]) if lines else ""


SHOWN: tuple[Callable[[Report], str], ...] = (parity, steps, generation, limits, machine_line, missing)


def text(report: Report) -> str:
    """Markdown for docs/gpu.md."""
    stale = "" if report["kernels"] == kernels_hash() else STALE
    return "\n\n".join(filter(None, [stale, *(show(report) for show in SHOWN)]))


def newest() -> str:
    """The file of the newest whole report, or "none"."""
    found = []
    for path in RESULTS.glob("*.json"):
        report = json.loads(path.read_text())
        if report.get("kind") == "gpu" and report["whole"]:
            found.append((str(report["date"]), path.name))
    return max(found)[1] if found else "none"


def with_table(document: str, name: str) -> str:
    """The document with the text of bench/results/NAME between its two marks."""
    said = NONE if name == "none" else text(json.loads((RESULTS / name).read_text()))
    pattern = re.escape(BLOCK).replace(r"\{\}", "{}").format(r"\S+", ".*?")
    found, count = re.subn(pattern, lambda _: BLOCK.format(name, said), document, flags=re.S)
    if count != 1:
        raise Failed(f"docs/gpu.md needs one block {BLOCK.format('FILE', '...')!r}")
    return found


def write_document(path: Path = ROOT / "docs/gpu.md") -> None:
    path.write_text(with_table(path.read_text(encoding="utf-8"), newest()), encoding="utf-8")
