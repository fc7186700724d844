"""Writes the tables of the kept reports into README.md and docs/speed.md: the newest whole report of each CPU class."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

from bench_process import ROOT, Failed
from bench_table import PLOT, Report, machine_line, markdown, medians, part, ratios, text, times

from pyllmc.planning.compute import RESULTS, reports

# in a document: the names of the reports' files, then their tables
BLOCK = "<!-- bench: {} -->\n{}\n<!-- bench: end -->"


def kept() -> list[str]:
    """The files of the newest whole reports, one for each CPU's best instruction set, the newest first."""
    newest = sorted(reports(RESULTS).values(), key=lambda report: str(report["date"]), reverse=True)
    return [report["file"] for report in newest]


def machine_name(report: Report) -> str:
    return f"{report['machine']['cpu']}, {report['machine']['isa']}"


def headline(reports: list[Report]) -> str:
    """Whole steps on each CPU, as tokens a second and as a ratio to PyTorch's, and the machines."""
    columns = []
    for report in reports:
        steps, faster = {**part(report, "steps"), **part(report, "small")}, ratios(report)
        speed = {
            name: case["B"] * case["T"] / medians(case["systems"])["pyllmc"] * 1e3
            for name, case in steps.items()
        }
        columns.append({name: f"{speed[name]:,.0f}, {times(faster[name])}" for name in steps})
    names = list(dict.fromkeys(name for column in columns for name in column))
    head = ["whole step: tok/s, and times as fast as PyTorch", *map(machine_name, reports)]
    table = markdown(head, ([name, *(column.get(name, "–") for column in columns)] for name in names))
    return "\n\n".join([table, *map(machine_line, reports)])


def every(reports: list[Report]) -> str:
    """All tables of each CPU. The plot is the newest report's."""
    parts = [f"## {machine_name(report)}\n\n{text(report)}" for report in reports]
    return "\n\n".join([parts[0], *(other.replace(PLOT, "") for other in parts[1:])])


DOCUMENTS = {"README.md": headline, "docs/speed.md": every}


def with_table(document: str, names: str, show: Callable[[list[Report]], str]) -> str:
    """A document with the tables of files in bench/results/, as "a.json,b.json", between its two marks."""
    pattern = re.escape(BLOCK).replace(r"\{\}", "{}").format(r"\S+", ".*?")
    reports = [json.loads((RESULTS / name).read_text()) for name in names.split(",")]
    found, count = re.subn(pattern, lambda _: BLOCK.format(names, show(reports)), document, flags=re.S)
    if count != 1:
        raise Failed(f"it needs one block {BLOCK.format('FILE', '...')!r}")
    return found


def write_documents(root: Path = ROOT) -> None:
    names = ",".join(kept())
    for file, show in DOCUMENTS.items():
        path = root / file
        path.write_text(with_table(path.read_text(encoding="utf-8"), names, show), encoding="utf-8")
