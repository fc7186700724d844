"""Makes the tables that are printed, and that the README shows, from a report of the bench. Nothing here is measured.

A report's ratios are those of medians; a share is the roofline's time over the median.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import bench_limits as limits
from bench_aims import aims_of
from bench_attention import exponent
from bench_steps import config_of

PLOT = "![attention's time against T](growth.png)\n\n"
Report = dict[str, Any]
median = statistics.median


def markdown(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    lines = [head, ["---"] * len(head), *map(list, rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def ms_text(ms: float) -> str:
    return f"{ms:,.0f} ms" if ms >= 100 else f"{ms:.1f} ms" if ms >= 10 else f"{ms:.2f} ms"


def share(floor: float, ms: float) -> str:
    return f"{floor / ms:.0%}" if floor else "–"


def times(ratio: float) -> str:
    return f"**{ratio:.2f}×**"


def medians(systems: dict[str, Any]) -> dict[str, float]:
    """Milliseconds of each measured system."""
    return {name: median(record["ms"]) for name, record in systems.items() if record.get("ms")}


def best_peer(ms: dict[str, float], peers: Iterable[str]) -> str:
    """The fastest of the peers that were measured; "" if there is none."""
    return min((name for name in peers if name in ms), key=ms.__getitem__, default="")


def measured(rows: dict[str, Any]) -> dict[str, Any]:
    """The rows without those that were skipped."""
    return {name: row for name, row in rows.items() if "skipped" not in row and "failed" not in row}


# ---- one function for each row of the bench: its table, or "" ----


def steps(report: Report, rows: dict[str, Any]) -> str:
    lines = []
    for name, case in measured(rows).items():
        ms = medians(case["systems"])
        ours, peer = ms["pyllmc"], best_peer(ms, ("eager", "compile"))
        floor = step_floor(report, case)
        speed = f"{case['B'] * case['T'] / ours * 1e3:,.0f} tok/s"
        lines.append(
            [
                name,
                ms_text(floor) if floor else "–",
                f"{ms_text(ours)}, {speed}",
                f"{ms_text(ms[peer])} ({peer})",
            ]
            + [times(ms[peer] / ours), f"{share(floor, ours)} / {share(floor, ms[peer])}"]
        )
    head = [
        "whole step",
        "roofline",
        "pyllmc",
        "PyTorch, the better",
        "ratio",
        "share of roofline, ours / its",
    ]
    return markdown(head, lines) if lines else ""


def step_floor(report: Report, case: dict[str, Any]) -> float:
    """The least ms; 0 if the report lacks a limit."""
    if not limits.best(report["limits"], "update", report["threads"]):
        return 0.0
    sizes = (case["B"], case["T"], case["precision"])
    return limits.step_floor(config_of(case["model"]), *sizes, report["limits"], report["threads"])


def gemm(report: Report, rows: dict[str, Any]) -> str:
    """One line for each M and product: the geometric mean over the shapes, and the worst of them."""
    lines = []
    for precision, found in measured(rows).items():
        groups: dict[str, dict[str, list[tuple[float, float]]]] = {}
        for name, ms in found["ms"].items():
            product, M, C, OC = name.split()
            pair = product_ratio(report, precision, int(M) * int(C) * int(OC), ms)
            groups.setdefault(M, {}).setdefault(product, []).append(pair)
        for M, products in groups.items():
            lines.append([f"{precision}, M={M}", *(gemm_cell(pairs) for pairs in products.values())])
    head = ["matrix product", "forward", "dgrad", "wgrad"]
    return markdown(head, lines) if lines else ""


def product_ratio(
    report: Report, precision: str, size: int, ms: dict[str, list[float]]
) -> tuple[float, float]:
    """(our share of the peak, the best library's time over ours; nan without one)"""
    of = {name: median(values) for name, values in ms.items()}
    peer = best_peer(of, ("onednn", "openblas"))
    peak = limits.flops_peak(report["limits"], precision, report["threads"])
    return 2e-6 * size / of["pyllmc"] / peak, of[peer] / of["pyllmc"] if peer else math.nan


def gemm_cell(pairs: list[tuple[float, float]]) -> str:
    shares, ratios = zip(*pairs)
    mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
    return f"{sum(shares) / len(shares):.0%} of peak, {times(mean)} (worst {min(ratios):.2f}×)"


def attention(report: Report, rows: dict[str, Any]) -> str:
    lines = []
    for precision, case in measured(rows).items():
        ms = {name: median(values) for name, values in case["ms"].items()}
        pairs = limits.visible(case["T"], 0)
        flops = 7 * 2.0 * case["B"] * case["NH"] * case["hs"] * pairs
        floor = 1e-6 * flops / limits.flops_peak(report["limits"], precision, report["threads"])
        name = f"B={case['B']} T={case['T']} NH={case['NH']} {precision}"
        line = [name, ms_text(ms["pyllmc"]), ms_text(ms["torch"]), times(ms["torch"] / ms["pyllmc"])]
        lines.append([*line, f"{share(floor, ms['pyllmc'])} / {share(floor, ms['torch'])}"])
    head = ["attention, forward + backward", "pyllmc", "PyTorch flash", "ratio", "share of peak, ours / its"]
    return markdown(head, lines) if lines else ""


def generate(report: Report, rows: dict[str, Any]) -> str:
    lines = []
    for name, case in measured(rows).items():
        ms = {system: median(values) for system, values in case["ms"].items()}
        tokens = case["B"] * (case["new"] if case["new"] > 1 else case["prompt"])
        cells = [f"{tokens / ms[s] * 1e3:,.0f} tok/s" if s in ms else "–" for s in ("pyllmc", "hf")]
        ratio = times(ms["hf"] / ms["pyllmc"]) if "hf" in ms else "–"
        lines.append([name, *cells, ratio, f"{written_share(report, case):.0%}"])
    head = ["generation, 124M", "pyllmc", "Hugging Face", "ratio", "our share of the roofline"]
    return markdown(head, lines) if lines else ""


def written_share(report: Report, case: dict[str, Any]) -> float:
    """Our share of the roofline in generation: the median over the turns, each with its own limits."""
    ours = case["ms"]["pyllmc"]
    found: Any = case.get("limits", report["limits"])
    # earlier reports have one for all turns
    turns = found if isinstance(found, list) else [found] * len(ours)
    floors = [limits.generate_floor(config_of(case["model"]), case, of, report["threads"]) for of in turns]
    return median([floor / ms for floor, ms in zip(floors, ours)])


def memory(report: Report, rows: dict[str, Any]) -> str:
    lines = []
    for name, peaks in measured(rows).items():
        ours = peaks["pyllmc"]
        others = [f"{system} {mb:,.0f} MiB" for system, mb in peaks.items() if system != "pyllmc"]
        least = min(mb for system, mb in peaks.items() if system != "pyllmc")
        lines.append([name, f"{ours:,.0f} MiB", ", ".join(others), f"{ours / least:.0%}"])
    head = ["peak memory", "pyllmc", "PyTorch", "ours, of the lesser"]
    return markdown(head, lines) if lines else ""


def threads(report: Report, rows: dict[str, Any]) -> str:
    lines = []
    for name, case in measured(rows).items():
        ms = {int(n): median(values) for n, values in case["threads"].items()}
        low, high = min(ms), max(ms)
        peaks = [limits.best(report["limits"], "fma", n) for n in (low, high)]
        limit = f"{peaks[1] / peaks[0]:.2f}×" if all(peaks) else "–"
        cells = [f"{n}: {ms_text(value)}" for n, value in sorted(ms.items())]
        lines.append([name, ", ".join(cells), times(ms[low] / ms[high]), limit])
    head = ["threads", "whole step", "faster", "the FMA peak itself"]
    return markdown(head, lines) if lines else ""


def share_of_limit(report: Report, case: dict[str, Any], of: dict[str, Any]) -> str:
    """The share that a call's least time, of its FLOPs or of its bytes, has of the time with all threads."""
    if "bytes" not in of:
        return "–"
    n, known = report["threads"], report["limits"]
    flops = of["flops"] / limits.flops_peak(known, case["precision"], n)
    moved = of["bytes"] / limits.best(known, "update", n)
    return (
        f"{1e-6 * max(flops, moved) / median(of['ms'][str(n)]):.0%} {'FLOPs' if flops > moved else 'bytes'}"
    )


def kernels(report: Report, rows: dict[str, Any]) -> str:
    """The kernels of each step, the most expensive first; then their sum, to be compared with the whole step."""
    return "\n\n".join(kernels_of(report, name, case) for name, case in measured(rows).items())


def kernels_of(report: Report, name: str, case: dict[str, Any]) -> str:
    lines = []
    spent = {
        kernel: [of["calls"] * median(of["ms"][str(n)]) for n in (1, report["threads"])]
        for kernel, of in case["kernels"].items()
    }
    slow, fast = (sum(ms) for ms in zip(*spent.values()))
    for kernel, (one, all_) in sorted(spent.items(), key=lambda item: -item[1][1]):
        share = share_of_limit(report, case, case["kernels"][kernel])
        lines.append([kernel, ms_text(one), ms_text(all_), times(one / all_), f"{all_ / fast:.1%}", share])
    lines.append([f"all of {name}", ms_text(slow), ms_text(fast), times(slow / fast), "", ""])
    all_threads = f"{report['threads']} threads"
    return markdown(
        ["kernel, all its calls in a step", "1 thread", all_threads, "faster", "of all", "of its limit"],
        lines,
    )


def growth(report: Report, rows: dict[str, Any]) -> str:
    if "ms" not in rows:
        return ""
    grown = [f"{kind} as T^{exponent(of):.2f}" for kind, of in rows["ms"].items()]
    return f"{PLOT if report['whole'] else ''}Attention, forward + backward, grows: {', '.join(grown)} (window {rows['window']})."


TABLES: dict[str, Callable[[Report, Any], str]] = {
    "steps": steps,
    "small": steps,
    "memory": memory,
    "gemm": gemm,
    "attention": attention,
    "generate": generate,
    "threads": threads,
    "kernels": kernels,
    "growth": growth,
}


# ---- what is aimed at, and what of it is reached ----


def part(report: Report, row: str) -> dict[str, Any]:
    """The cases of a row that were measured."""
    return measured(measured(report["rows"]).get(row, {}))


def ratios(report: Report) -> dict[str, float]:
    """The best peer's time over ours, and ours over ours in another setting, by AIMS' names."""
    found = {}
    for name, case in {**part(report, "steps"), **part(report, "small")}.items():
        ms = medians(case["systems"])
        found[name] = ms[best_peer(ms, ("eager", "compile"))] / ms["pyllmc"]
    for precision, case in part(report, "gemm").items():
        pairs = [product_ratio(report, precision, 1, ms)[1] for ms in case["ms"].values()]
        found[f"matrix product {precision}, mean of all shapes"] = statistics.geometric_mean(pairs)
        found[f"matrix product {precision}, worst shape"] = min(pairs)
    for precision, case in part(report, "attention").items():
        found[f"attention {precision}"] = median(case["ms"]["torch"]) / median(case["ms"]["pyllmc"])
    written = {name: case["ms"] for name, case in part(report, "generate").items()}
    for name, ms in written.items():
        if "hf" in ms:
            found[name] = median(ms["hf"]) / median(ms["pyllmc"])
    if all("hf" in written.get(f"prompt of 512, {kind}", {}) for kind in ("fp32", "bf16")):
        theirs = min(median(written[f"prompt of 512, {kind}"]["hf"]) for kind in ("fp32", "bf16"))
        found["prompt of 512, int8"] = theirs / median(written["prompt of 512, int8"]["pyllmc"])
    bf16, int8 = (written.get(f"256 tokens, {kind}") for kind in ("bf16", "int8"))
    if bf16 and int8:
        found["256 tokens, int8 against bf16"] = median(bf16["pyllmc"]) / median(int8["pyllmc"])
    for case in part(report, "threads").values():
        slow, fast = (median(case["threads"][str(n)]) for n in (1, report["threads"]))
        found[f"{report['threads']} threads against 1"] = slow / fast
    return found


def shares(report: Report) -> dict[str, float]:
    """The roofline's time over ours, by AIMS' names."""
    found = {}
    for name, case in part(report, "steps").items():
        found[name] = step_floor(report, case) / medians(case["systems"])["pyllmc"]
    for name, case in part(report, "generate").items():
        found[name] = written_share(report, case)
    return found


def memory_spared(report: Report) -> dict[str, float]:
    """The share of PyTorch's least memory that we do not need."""
    found = {}
    for name, peaks in part(report, "memory").items():
        found[name] = 1 - peaks["pyllmc"] / min(mb for system, mb in peaks.items() if system != "pyllmc")
    return found


def state(value: float, least: float, goal: float) -> str:
    if value >= goal:
        return "goal reached"
    return "**missed**" if value < least else "reached" if least else "**goal missed**"


def aims(report: Report) -> str:
    """Every aim and the figure that a whole run reached."""
    lines = []
    aimed = aims_of(report["machine"]["isa"])
    for (told, wanted), found in zip(aimed.items(), (ratios(report), shares(report), memory_spared(report))):
        for what, least, goal in wanted:
            if what in found:
                cells = [told.format(x) if x else "–" for x in (least, goal, found[what])]
                lines.append([what, *cells, state(found[what], least, goal)])
    head = ["what is aimed at", "at least", "goal", "measured", "so"]
    return markdown(head, lines) if lines else ""


# ---- all of it ----


def limit_line(report: Report) -> str:
    names = {
        "fma": "fp32 FMA {} GFLOP/s",
        "bf16": "VDPBF16PS {} GFLOP/s",
        "amx": "AMX {} GFLOP/s",
        "read": "read {} GB/s",
    }
    names["update"] = "in-place update {} GB/s"
    words = []
    for what, text in names.items():
        of = report["limits"].get(what, {})
        if of:
            words.append(text.format(" / ".join(f"{max(of[n]):,.0f}" for n in sorted(of, key=int))))
    counts = sorted({n for of in report["limits"].values() for n in of}, key=int)
    return f"Limits with {' / '.join(counts)} threads: {', '.join(words)}."


def machine_line(report: Report) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    note = f" {report['note']}" if "note" in report else ""
    return (
        f"{report['machine']['cpu']}, {report['threads']} threads, {report['machine']['isa']}; {report['date'][:10]}, "
        f"{versions}; `{report['command']}` at {report['commit']}.{note}"
    )


def gaps(node: Any, name: str = "") -> Iterator[tuple[str, str, str]]:
    """(kind, reason, case) of each entry in a report's rows that has no figures."""
    for key, value in node.items() if isinstance(node, dict) else ():
        if key in ("skipped", "failed"):
            yield key, " ".join(value.split()), name
        elif key not in ("systems", "runs"):
            yield from gaps(value, f"{name}, {key}" if name else key)
        else:
            for system, record in value.items():
                yield from gaps(record, f"{name}, {system}")


def missing(rows: dict[str, Any]) -> str:
    """Every reason with the cases that it kept from being measured."""
    found: dict[tuple[str, str], list[str]] = {}
    for kind, reason, what in gaps(rows):
        found.setdefault((kind, reason), []).append(what)
    lines = [f"* {'; '.join(what)}: {kind}, {reason}" for (kind, reason), what in found.items()]
    return "\n".join(["Not measured:", "", *lines]) if lines else ""


def text(report: Report) -> str:
    """Markdown: every table, the limits, the machine, and the cases that could not be measured."""
    rows = report["rows"]
    tables = [
        TABLES[name](report, rows[name]) for name in TABLES if name in rows and measured({name: rows[name]})
    ]
    whole = aims(report) if report["whole"] else ""
    return "\n\n".join(
        filter(None, [*tables, whole, limit_line(report), machine_line(report), missing(rows)])
    )
