"""The plan of a cluster, told in words and as a table, from the dictionary that report.py makes."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from pyllmc.base.errors import counted
from pyllmc.planning.report import BF16_OPTION, MOST, ZERO_OPTION
from pyllmc.planning.steptime import BF16

WIDTH = 100
NOTE = (
    "Not in these figures: what a message costs besides its bytes, which shows in rings of hundreds; the cores' time to move "
    "bytes; the embeddings' gradients, which are final last; loading of data, checkpoints, neighbours. With larger batches or "
    "with DiLoCo a model may need more tokens for the same loss."
)


def rate_text(rate: float) -> str:
    """A rate as networks are named: 1.25e9 bytes a second are 10 Gbit."""
    bits = 8 * rate
    for each, unit in ((1e9, "Gbit"), (1e6, "Mbit"), (1e3, "kbit")):
        if bits >= each:
            return f"{bits / each:,.3g} {unit}" if bits < 1e12 else f"{bits / each:,.0f} {unit}"
    return f"{bits:.3g} bit"


def ms(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}" if value >= 1 else f"{value:.2f}"


def mb(size: float) -> str:
    return f"{size * 1e-6:,.1f} MB" if size < 1e10 else f"{size * 1e-9:,.1f} GB"


def share(value: float) -> str:
    return f"{value:.0%}" if value >= 0.1 or not value else f"{value:.1%}"


def text(found: dict[str, Any]) -> str:
    return "\n".join([*_head(found), "", *_table(found), "", *_worth(found), *textwrap.wrap(NOTE, WIDTH)])


def _wrapped(line: str, indent: int) -> str:
    return textwrap.fill(
        line, WIDTH, subsequent_indent=" " * indent, break_on_hyphens=False, break_long_words=False
    )


def _head(found: dict[str, Any]) -> Iterator[str]:
    for line in (_model(found), *_memory(found), _compute(found), _network(found)):
        yield _wrapped(line, 4)


def _model(found: dict[str, Any]) -> str:
    m, b = found["model"], found["batch"]
    sizes = f"L={m['n_layer']} NH={m['n_head']} C={m['n_embd']} V={m['vocab_size']}"
    step = f"{counted(b['grad_accum'], 'micro-step')} a step"
    if b["global_batch"]:
        step = f"{counted(b['global_batch'], 'sequence')} a step of all processes"
    batch = f"B={b['B']} T={b['T']}, {step}"
    return f"model: {sizes}, {m['parameters'] * 1e-6:.2f}M parameters; {batch}"


def _memory(found: dict[str, Any]) -> Iterator[str]:
    memory, gpu = found["memory"], found["gpu"]
    parts = {
        "params": memory["params"] + memory["stored"],
        "grads": memory["grads"],
        "moments": memory["moments"],
    }
    parts.update(activations=memory["acts"], workspace=memory["workspace"])
    told = ", ".join(f"{name} {mb(size)}" for name, size in parts.items())
    by = (
        " (by the CPU's plan, because no library for GPUs is built here)"
        if gpu and memory["device"] == "cpu"
        else ""
    )
    yield f"memory of a process: {told}; total {mb(memory['total'])}{by}"
    if memory["of_process"] != memory["total"]:
        yield f"    with {ways(found['way'])}: {mb(memory['of_process'])} on each of {found['processes']:,}"
    if memory["limit"] and memory["of_process"] > memory["limit"]:
        yield f"    THIS DOES NOT FIT into {mb(memory['limit'])}: lower --B, or raise --recompute"


def _compute(found: dict[str, Any]) -> str:
    compute, tokens = found["compute"], found["batch"]["B"] * found["batch"]["T"]
    return (
        f"compute: {ms(compute['micro_step_ms'])} ms a micro-step of {tokens:,} tokens, {compute['source']}"
    )


def _network(found: dict[str, Any]) -> str:
    network, way = found["network"], ways(found["way"])
    return f"network: {rate_text(network['rate'])} each way; {mb(network['reduced_bytes'])} are averaged" + (
        f", {way}" if way else " in fp32"
    )


def ways(way: dict[str, Any]) -> str:
    """The options that are not the usual ones."""
    told = {
        BF16_OPTION: way["reduced"] == BF16,
        ZERO_OPTION: way["zero"],
        f"--diloco={way['diloco']}": way["diloco"],
    }
    return " ".join(name for name, on in told.items() if on)


def _table(found: dict[str, Any]) -> Iterator[str]:
    yield f"{'':65}{'efficiency with':>15}  {'to reach ' + share(found['aim']):>18}"
    heads = (
        "processes",
        "tokens a step",
        "reduce ms",
        "step ms",
        "tok/s",
        "efficiency",
        "bf16",
        "zero=1",
        "batch" if found["batch"]["global_batch"] else "grad_accum",
        "diloco",
    )
    yield _line(heads)
    for r in found["rows"]:
        mark = "* " if r["processes"] == found["processes"] else ""
        counts = f"{mark}{r['processes']:,}", f"{r['tokens']:,}"
        times = ms(r["reduce_ms"]), ms(r["step_ms"]), f"{r['tok_s']:,.0f}"
        told = [r["efficiency"], *(r["efficiency_with"].get(name) for name in (BF16_OPTION, ZERO_OPTION))]
        shares = ("" if value is None else share(value) for value in told)
        yield _line((*counts, *times, *shares, f"{r['batch_for_aim']:,}", f"{r['diloco_for_aim']:,}"))


def _line(cells: Sequence[str]) -> str:
    return "".join(f"{cell:>{width}}" for cell, width in zip(cells, (9, 14, 10, 10, 12, 11, 7, 7, 12, 8)))


def _worth(found: dict[str, Any]) -> Iterator[str]:
    if not found["worth"]:
        return
    yield f"is it worth it, with {counted(found['processes'], 'process')}?"
    for name, tell in TELLERS.items():
        verdict = {True: "yes", False: "no", None: "?"}[found["worth"][name]["worth"]]
        yield _wrapped(f"  {verdict:<4}{tell(found, found['worth'][name])}", 6)
    yield ""


def _accumulation(found: dict[str, Any], w: dict[str, Any]) -> str:
    aim, has, rate = share(found["aim"]), share(w["efficiency"]), w["not_needed_from_rate"]
    told = f"a larger batch: {has} is reached without, and the aim, {aim}, from {_rate(rate)} on"
    if w["worth"]:
        told = f"a larger batch: {w['option']} brings {has} to {aim}, with {w['tokens']:,} tokens a step"
        told += f"; it is not needed from {_rate(rate)} on" if rate else ""
    if w["evenness"] < 1:
        even = f"a multiple of {w['even_batch']:,} sequences is shared evenly"
        told += f"; {share(1 - w['evenness'])} is lost because the shares are uneven: {even}"
    return told


def _bf16(found: dict[str, Any], w: dict[str, Any]) -> str:
    step, rates, first = w["step_ms"], w["hidden_from_rate"], w["first_waiting_processes"]
    hidden = f"fp32 hides behind the backward pass from {_rate(rates['fp32'])} on, bf16 from {_rate(rates['bf16'])}"
    begins = (
        f"at this rate waiting begins with {_first(first['fp32'])} in fp32, {_first(first['bf16'])} in bf16"
    )
    if not w["worth"]:
        return f"{BF16_OPTION}: no process waits for fp32; {hidden}"
    return f"{BF16_OPTION}: a step of {ms(step['bf16'])} ms instead of {ms(step['fp32'])}; {hidden}; {begins}"


def _rate(rate: float | None) -> str:
    return rate_text(rate) if rate is not None else "no rate"


def _first(n: int | None) -> str:
    return counted(n, "process") if n else "no number"


def _zero(found: dict[str, Any], w: dict[str, Any]) -> str:
    memory, step, fits = w["memory"], w["step_ms"], w["largest_B"]
    told = (
        f"{ZERO_OPTION}: {mb(memory['with'])} a process instead of {mb(memory['without'])}, "
        f"a step of {ms(step['with'])} ms instead of {ms(step['without'])}; "
    )
    if not fits:
        return told + "whether that pays depends on the memory of a process: give --memory"
    told += f"B up to {fits['with']:,} instead of {fits['without']:,} in {mb(found['memory']['limit'])}"
    if w["tok_s"]:
        told += f", and then {w['tok_s']['with']:,.0f} tok/s instead of {w['tok_s']['without']:,.0f}"
    told += "; this batch "
    first = w["fits_from_processes"]
    return told + (
        f"fits from {counted(first, 'process')} on" if first else f"does not fit with {MOST:,} either"
    )


def _diloco(found: dict[str, Any], w: dict[str, Any]) -> str:
    memory = f"{mb(w['more_memory'])} more memory"
    if not w["faster_from"]:
        return f"--diloco: nothing is left to win, as no process waits; {memory}"
    return (
        f"--diloco=H: faster than averaging in each step from H={w['faster_from']:,} on; H={w['diloco']:,} reaches "
        f"{share(found['aim'])}; {memory}"
    )


TELLERS = {"accumulation": _accumulation, "bf16": _bf16, "zero": _zero, "diloco": _diloco}
