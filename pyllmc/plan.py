"""python -m pyllmc.plan --nodes=N --network=RATE: plan a training on many processes: memory, time of a step, efficiency, and what
pays. Nothing is trained."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pyllmc.base.errors import InvalidArgument, begin_command, need, run_command

if __name__ == "__main__":
    begin_command("numpy", "cffi")

from pyllmc.base.values import at_least, number, rate, size
from pyllmc.draw.efficiency import draw_efficiency
from pyllmc.draw.picture import DARK, LIGHT, WHY, checked_path
from pyllmc.planning import compute, memory, report, told
from pyllmc.planning.compute import Compute, Work
from pyllmc.planning.steptime import BF16, FP32, OVERLAP, TCP, Job, Way
from pyllmc.tables.options import Parser, add_options

PROG = "pyllmc.plan"
EXAMPLES = (
    "python -m pyllmc.plan --nodes=8 --network=1Gbit",
    "python -m pyllmc.plan --model=d48 --network=50GB/s --device=h200 --mfu=0.4",
    "python -m pyllmc.plan --tok_s=3e5 --memory=24GB --zero=1 --out=plan.png",
)
MEASURED_STEPS = 3
LEAST, MOST = 1e-6, 1e12  # bounds of what is measured or assumed, so that what follows is finite
LONGER = {3: "about 4 %", 4: "up to a fifth"}  # a step, by --recompute


def between(low: float, high: float) -> Callable[[str], float]:
    """The type of an argument that is a number from low to high."""

    def read(text: str) -> float:
        value = number(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text} is not in {low:g}..{high:g}")
        return value

    return read


# ---- the command line ----


def make_parser() -> Parser:
    usage = "%(prog)s [--name=value ...]"
    parser = Parser(prog=PROG, usage=usage, description=__doc__, examples=EXAMPLES, allow_abbrev=False)
    training = parser.add_argument_group("the training, as python -m pyllmc.train takes it")
    add_options(training, memory.OPTIONS, model="d12", B=4)
    _add_cluster(parser.add_argument_group("the cluster"))
    _add_compute(parser.add_argument_group("the time of a micro-step, if no report of make bench has it"))
    _add_way(parser.add_argument_group("how processes agree"))
    output = parser.add_argument_group("output")
    output.add_argument(
        "--json", action="store_true", help="print all figures as JSON: ms, bytes, bytes a second"
    )
    output.add_argument("--out", type=Path, help="draw the efficiencies: a .png, .svg or .pdf")
    output.add_argument("--dark", action="store_true", help="light lines on dark paper")
    return parser


def _add_cluster(group: Any) -> None:
    group.add_argument("--nodes", type=at_least(1), default=8, metavar="N", help="machines [8]")
    group.add_argument(
        "--nproc_per_node",
        type=at_least(1),
        default=1,
        metavar="N",
        help="processes on each, as torchrun's [1]",
    )
    group.add_argument(
        "--network",
        type=rate,
        default="10Gbit",
        metavar="RATE",
        help="what the slowest link between processes carries each way: 10Gbit, 100Mbit, 12.5GB/s; of one machine, that within it [10Gbit]",
    )
    group.add_argument(
        "--device",
        default="cpu",
        metavar="TEXT",
        help="cpu, which is this machine's class; another class of CPUs, by its best instruction set, such as amx; or a GPU: "
        f"{', '.join(compute.DATA_SHEETS)}, or any name if you give its time [cpu]",
    )
    group.add_argument(
        "--memory", type=size, metavar="SIZE", help="memory of a process, such as 24GB; default: the GPU's"
    )


def _add_compute(group: Any) -> None:
    group.add_argument(
        "--step_ms",
        type=between(LEAST, MOST),
        default=0.0,
        metavar="X",
        help="milliseconds that you have measured",
    )
    group.add_argument(
        "--tok_s",
        type=between(LEAST, MOST),
        default=0.0,
        metavar="X",
        help="tokens a second of one process that you have measured",
    )
    group.add_argument(
        "--measure",
        action="store_true",
        help=f"measure it here and now: {MEASURED_STEPS + 1} steps on random tokens",
    )
    group.add_argument(
        "--mfu",
        type=between(LEAST, 1),
        default=0.0,
        metavar="X",
        help="assume this share of the peak, by llm.c's formula (6 N + 6 L C T); 0.4 is 40 %%",
    )
    group.add_argument(
        "--peak_tflops",
        type=between(LEAST, MOST),
        default=0.0,
        metavar="X",
        help="the peak; default: dense bf16 of the GPU's data sheet",
    )


def _add_way(group: Any) -> None:
    add_options(group, ("reduce_precision", "zero"))
    group.add_argument(
        "--diloco",
        type=at_least(0),
        default=0,
        metavar="H",
        help="steps without communication before an outer step (DiLoCo); 0: none [0]",
    )
    group.add_argument(
        "--overlap",
        type=between(0, 1),
        default=OVERLAP,
        metavar="X",
        help=f"share of a micro-step in which gradients travel unnoticed [{OVERLAP}]",
    )
    group.add_argument(
        "--aim",
        type=between(LEAST, 1 - LEAST),
        default=0.9,
        metavar="X",
        help="the efficiency aimed at [0.9]",
    )


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options by name, and `given`: the names of those that the user gave."""
    parser = make_parser()
    o = parser.parse_args(arguments)
    o.given = parser.given
    return o


# ---- the work ----


def is_gpu(device: str) -> bool:
    return device not in ("cpu", *compute.cpu_classes())


def measure(o: argparse.Namespace, planner: memory.Planner) -> Compute:
    """Times whole steps of one process on this machine: forward, backward, clip, AdamW. The first one, which takes memory from the
    system, does not count."""
    import numpy as np

    import pyllmc

    device = "cuda" if planner.gpu else "cpu"
    model = pyllmc.Model(
        planner.sizes, o.B, planner.T, device=device, precision=o.precision, recompute=o.recompute, keep_logits=False,
        train_only=o.train_only, lora_rank=o.lora_rank, lora_on=o.lora_on, threads=o.threads,
    )  # fmt: skip
    model.set_dropout(lora=o.lora_dropout)
    ids = np.random.default_rng(0).integers(0, planner.sizes.vocab_size, (o.B, planner.T + 1))
    taken = []
    for _ in range(MEASURED_STEPS + 1):
        start = time.perf_counter()
        model.micro_step(ids[:, :-1], ids[:, 1:], accumulate=False)
        model.clip_grad_norm(1.0)
        model.update()
        taken.append(time.perf_counter() - start)
    words = f"measured here: {device}, {model.isa}, {model.threads} threads, median of {MEASURED_STEPS} steps"
    return Compute(statistics.median(taken[1:]), "measured", words)


def time_of(o: argparse.Namespace, planner: memory.Planner) -> Compute:
    """The time of a micro-step, from the one source that the options name."""
    named = [name for name in ("step_ms", "tok_s", "measure", "mfu") if getattr(o, name)]
    if len(named) > 1:
        raise InvalidArgument(f"--{named[0]} and --{named[1]} both say how long a micro-step takes: give one")
    if o.peak_tflops and not o.mfu:
        raise InvalidArgument("--peak_tflops needs --mfu, the share of it that is reached")
    work = Work(planner.sizes, o.B, planner.T, planner.precision)
    if o.step_ms or o.tok_s:
        return compute.given(work, o.step_ms, o.tok_s)
    if o.mfu:
        return compute.assumed(work, o.mfu, o.peak_tflops, o.device)
    return measure(o, planner) if o.measure else compute.of_device(work, o.device, unlike_bench(o))


def unlike_bench(o: argparse.Namespace) -> str:
    """How a step differs from those that make bench measures."""
    if o.train_only or o.lora_rank:
        return "training a part of the model takes less"
    return f"--recompute={o.recompute} takes {LONGER[o.recompute]} longer" if o.recompute in LONGER else ""


def make_plan(o: argparse.Namespace) -> dict[str, Any]:
    """The plan of what parse() returns, as a dictionary. Raises InvalidArgument, BadFile, NoDevice."""
    memory.adopt_adapter(o)
    if o.zero and o.diloco:
        raise InvalidArgument(
            "--zero shares out the moments, which --diloco changes on each process by itself: give one"
        )
    if o.zero and (o.lora_rank or o.train_only):
        raise InvalidArgument(
            "--zero=1 is for whole models: with --lora_rank or --train_only moments are few, and each has all"
        )
    if o.global_batch and o.grad_accum != 1:
        raise InvalidArgument(
            f"--global_batch={o.global_batch} and --grad_accum={o.grad_accum} both say how large a step is: leave one of them out"
        )
    if o.reduce_precision not in ("fp32", "bf16"):
        raise InvalidArgument(f"--reduce_precision={o.reduce_precision} is neither fp32 nor bf16")
    gpu = is_gpu(o.device)
    planner = memory.Planner(o, gpu)
    plan, taken = planner.plan(o.B), time_of(o, planner)
    way = Way(BF16 if o.reduce_precision == "bf16" else FP32, bool(o.zero), o.grad_accum, o.diloco)
    carried = 1.0 if gpu else TCP  # gloo's way
    job = Job(
        taken.seconds,
        plan.trained,
        o.network,
        o.overlap,
        scatters=gpu,
        carried=carried,
        unseen=planner.unseen(),
    )
    sheet = compute.DATA_SHEETS.get(o.device)
    limit = o.memory or (sheet.memory if sheet else 0.0)
    processes = o.nodes * o.nproc_per_node
    cluster = report.Cluster(planner, taken, job, way, processes, o.aim, limit, o.global_batch)
    return report.report(cluster)


def draw(o: argparse.Namespace, found: dict[str, Any]) -> Path:
    rows = found["rows"]
    lines = {told.ways(found["way"]) or "fp32": [r["efficiency"] for r in rows]}
    lines.update({name: [r["efficiency_with"][name] for r in rows] for name in rows[0]["efficiency_with"]})
    compute_ms, kind = told.ms(found["compute"]["micro_step_ms"]), found["compute"]["kind"]
    about = f"{told.rate_text(found['network']['rate'])}  ·  B={o.B} T={found['batch']['T']}  ·  {compute_ms} ms a micro-step ({kind})"
    counts = [r["processes"] for r in rows]
    title = f"Efficiency of 1 to {counts[-1]:,} processes: {o.model}"
    return draw_efficiency(o.out, counts, lines, title=title, about=about, style=DARK if o.dark else LIGHT)


def main(arguments: Sequence[str] | None = None) -> int:
    o = parse(arguments)

    def work() -> None:
        if o.out:
            checked_path(o.out)
            need("matplotlib", WHY)
        found = make_plan(o)
        print(json.dumps(found, indent=2) if o.json else told.text(found))
        if o.out:
            print(draw(o, found), file=sys.stderr if o.json else sys.stdout)

    return run_command(PROG, work)


if __name__ == "__main__":
    sys.exit(main())
