"""The plan of a cluster, as a dictionary of plain values: --json prints it, told.py tells it, and the picture is drawn from it."""

from __future__ import annotations

import dataclasses
import functools
import math
from dataclasses import dataclass, replace
from typing import Any

from pyllmc.planning.compute import Compute
from pyllmc.planning.memory import Plan, Planner
from pyllmc.planning.steptime import BF16, FP32, Job, Way

MOST = 1024  # processes in the table
BF16_OPTION, ZERO_OPTION = "--reduce_precision=bf16", "--zero=1"


@dataclass(frozen=True)
class Cluster:
    """All that a plan is made of. memory: the bytes that a process may take; 0: not known. global_batch: the sequences of a step of all
    processes; 0: each has B in each of its micro-steps."""

    planner: Planner
    compute: Compute
    job: Job
    way: Way
    processes: int
    aim: float
    memory: float = 0
    global_batch: int = 0

    @functools.cached_property
    def plan(self) -> Plan:
        return self.planner.plan(self.planner.options.B)

    def tokens(self, n: int, way: Way) -> int:
        """The tokens of an optimizer step of n processes."""
        return (self.global_batch or n * self.planner.options.B * way.accumulate) * self.planner.T

    def share(self, n: int) -> tuple[int, int]:
        """(micro-steps, sequences) of the process that has most of a global batch. Training deals out `each` to n processes in turn until
        nothing is left (csrc/train/step.c)."""
        steps = math.ceil(self.global_batch / (n * self.planner.options.B))
        each = math.ceil(self.global_batch / (n * steps))
        return steps, sum(min(each, max(0, self.global_batch - i * n * each)) for i in range(steps))

    def of(self, n: int) -> Cluster:
        """The same with the micro-steps of n processes, to whose sequences their time is proportional."""
        if not self.global_batch:
            return self
        steps, sequences = self.share(n)
        compute = self.compute.seconds * sequences / (steps * self.planner.options.B)
        way = replace(self.way, accumulate=steps)
        return replace(self, job=replace(self.job, compute=compute), way=way)

    def evenness(self, n: int) -> float:
        """The share of n processes' time that is left if some have fewer sequences of a global batch than others, 0..1."""
        return self.global_batch / (n * self.share(n)[1]) if self.global_batch else 1.0

    def efficiency(self, n: int, way: Way) -> float:
        """The speed of n processes over n times that of one, 0..1."""
        return self.job.efficiency(n, way) * self.evenness(n)

    def first_waiting(self, way: Way) -> int | None:
        """The fewest processes that wait for gradients; None if MOST do not."""
        if not self.global_batch:
            return self.job.first_shown(way)
        return next((n for n in range(2, MOST + 1) if self.of(n).job.shows(n, way)), None)

    def batch_for(self, n: int) -> int:
        """What reaches the efficiency aimed at: micro-steps, or the sequences of a global batch of full micro-steps."""
        B, each = self.planner.options.B, replace(self.way, diloco=0)
        whole = replace(self.job, compute=self.compute.seconds)
        steps = whole.accumulation_for(n, each, self.aim)
        return steps * n * B if self.global_batch else steps


def counts(processes: int) -> list[int]:
    """Powers of two up to MOST, and the planned number."""
    return sorted({processes, *(2**i for i in range(MOST.bit_length()))})


def others(c: Cluster, n: int) -> dict[str, Way]:
    """The ways that are compared with the one asked for, by the option that chooses each: with --grad_accum and --diloco as large
    as the planned number of processes needs for the efficiency aimed at. A global batch leaves no choice of --grad_accum."""
    planned, way = c.of(c.processes), c.of(n).way
    each = replace(way, diloco=0)
    H = planned.job.diloco_for(c.processes, replace(planned.way, diloco=0), c.aim)
    ways = {BF16_OPTION: replace(way, reduced=BF16), ZERO_OPTION: replace(each, zero=True)}
    if not c.global_batch:
        k = c.batch_for(c.processes)
        ways[f"--grad_accum={k}"] = replace(each, accumulate=max(k, each.accumulate))
    ways[f"--diloco={H}"] = replace(each, zero=False, diloco=H)
    return {name: other for name, other in ways.items() if other != way}


def row(c: Cluster, n: int) -> dict[str, Any]:
    """The figures of n processes in the way that is asked for; and what others would bring."""
    compared, c = others(c, n), c.of(n)
    each, step = replace(c.way, diloco=0), c.job.step_s(n, c.way)
    return {
        "processes": n,
        "tokens": c.tokens(n, c.way),
        "micro_steps": c.way.accumulate,
        "reduce_ms": c.job.reduce_s(n, c.way) * 1e3,
        "waiting_ms": c.job.waiting_s(n, c.way) * 1e3,
        "step_ms": step * 1e3,
        "efficiency": c.efficiency(n, c.way),
        "tok_s": c.tokens(n, c.way) / step,
        "memory": c.plan.of_process(n, c.way),
        "efficiency_with": {name: c.efficiency(n, way) for name, way in compared.items()},
        "batch_for_aim": c.batch_for(n),
        "diloco_for_aim": c.job.diloco_for(n, each, c.aim),
    }


# ---- when something pays ----


def accumulation(c: Cluster) -> dict[str, Any]:
    """A larger batch, of more micro-steps. worth: the efficiency aimed at is not reached without."""
    n, each, B = c.processes, replace(c.way, diloco=0), c.planner.options.B
    most, name, tokens = c.batch_for(n), "grad_accum", n * B * c.planner.T
    if c.global_batch:
        even = math.ceil(c.global_batch / (n * B)) * n * B
        most, name, tokens = max(most, even), "global_batch", c.planner.T
    aim = c.aim / c.evenness(n)
    return {
        "worth": c.efficiency(n, each) < c.aim,
        "option": f"--{name}={most}",
        "tokens": most * tokens,
        "efficiency": c.efficiency(n, each),
        "evenness": c.evenness(n),
        "even_batch": n * B,
        "not_needed_from_rate": c.job.rate_for(n, each, aim) if aim < 1 else None,
    }


def precision(c: Cluster) -> dict[str, Any]:
    """Gradients that travel as bf16. worth: processes wait for them in fp32."""
    n = c.processes
    ways = {"fp32": replace(c.way, reduced=FP32), "bf16": replace(c.way, reduced=BF16)}
    steps = {name: c.job.step_s(n, way) for name, way in ways.items()}
    return {
        "worth": steps["bf16"] < steps["fp32"],
        "step_ms": {name: seconds * 1e3 for name, seconds in steps.items()},
        "hidden_from_rate": {name: _finite(c.job.hidden_from(n, way)) for name, way in ways.items()},
        "first_waiting_processes": {name: c.first_waiting(way) for name, way in ways.items()},
    }


def _finite(rate: float) -> float | None:
    return rate if math.isfinite(rate) else None


def zero(c: Cluster) -> dict[str, Any]:
    """ZeRO-1. worth: the batch fits only so, or the largest batch that fits so makes more tokens a second than the largest without;
    None: the memory of a process is not known."""
    n, B, each = c.processes, c.planner.options.B, replace(c.way, diloco=0)
    ways = {"without": replace(each, zero=False), "with": replace(each, zero=True)}
    fits = {name: c.planner.largest_B(c.memory, n, way) for name, way in ways.items()} if c.memory else None
    speed = (
        {name: _speed(c, fits[name], ways[name]) for name in ways} if fits and not c.global_batch else None
    )
    faster = speed and speed["with"] > speed["without"]
    return {
        "worth": bool(fits["without"] < B <= fits["with"] or faster) if fits else None,
        "memory": {name: c.plan.of_process(n, way) for name, way in ways.items()},
        "step_ms": {name: c.job.step_s(n, way) * 1e3 for name, way in ways.items()},
        "largest_B": fits,
        "tok_s": speed,
        "fits_from_processes": first_fit(c, ways["with"]) if c.memory else None,
    }


def _speed(c: Cluster, B: int, way: Way) -> float:
    """Tokens a second with another B, to which the time of a micro-step is proportional; 0 if B is."""
    factor = B / c.planner.options.B
    job = replace(c.job, compute=c.job.compute * factor)
    return factor * c.tokens(c.processes, way) / job.step_s(c.processes, way) if B else 0.0


def first_fit(c: Cluster, way: Way) -> int | None:
    """The fewest processes with which a process has room; None if MOST are too few."""
    plan = c.plan
    return next((n for n in range(1, MOST + 1) if plan.of_process(n, way) <= c.memory), None)


def diloco(c: Cluster) -> dict[str, Any]:
    """DiLoCo. worth: averaging in each step misses the efficiency aimed at."""
    n, each = c.processes, replace(c.way, diloco=0)
    alone = replace(each, zero=False)
    return {
        "worth": c.job.efficiency(n, each) < c.aim,
        "faster_from": c.job.diloco_faster(n, each),
        "diloco": c.job.diloco_for(n, each, c.aim),
        "more_memory": c.plan.of_process(n, replace(alone, diloco=1)) - c.plan.of_process(n, alone),
    }


def report(c: Cluster) -> dict[str, Any]:
    """The whole plan. Times are in ms, memory in bytes, rates in bytes a second."""
    sizes, o, plan = dataclasses.asdict(c.planner.sizes), c.planner.options, c.plan
    worth = {"accumulation": accumulation, "bf16": precision, "zero": zero, "diloco": diloco}
    return {
        "model": {"name": o.model, **sizes, "parameters": plan.num_params},
        "batch": {"B": o.B, "T": c.planner.T, "grad_accum": c.way.accumulate, "global_batch": c.global_batch or None},
        "processes": c.processes,
        "gpu": c.planner.gpu,
        "way": dataclasses.asdict(c.way),
        "memory": {**dataclasses.asdict(plan), "of_process": plan.of_process(c.processes, c.way), "limit": c.memory or None},
        "compute": {"micro_step_ms": c.compute.seconds * 1e3, "kind": c.compute.kind, "source": c.compute.source},
        "network": {"rate": c.job.rate, "overlap": c.job.overlap, "reduced_bytes": c.job.sent(c.way) * c.way.reduced},
        "aim": c.aim,
        "rows": [row(c, n) for n in counts(c.processes)],
        # one process has nothing to average
        "worth": {name: find(c.of(c.processes)) for name, find in worth.items()} if c.processes > 1 else {},
    }  # fmt: skip
