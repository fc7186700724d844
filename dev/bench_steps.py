"""Whole optimizer steps: forward, backward, clip, AdamW, on random tokens; rows steps, small, memory and threads.

    python dev/bench_steps.py system=pyllmc model=124M B=4 T=64 precision=fp32 threads=2 turns=3

Systems: pyllmc, eager and compile (PyTorch's). All start from the same weights and see the same tokens, so their losses
must agree before a time counts.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from bench_process import TUNED, Call, Failed, Process, Skip, check_agree, measured, not_measured, one_of, say

from pyllmc.planning.compute import BENCH_MODELS
from pyllmc.tables import layout, options

CLIP, LR, BETAS, EPS, DECAY = 1.0, 1e-4, (0.9, 0.95), 1e-8, 0.1
TOLERANCE = {"fp32": 1e-3, "bf16": 1e-2}  # relative difference of losses allowed
TORCH = ("eager", "compile")
WARM, COMPARABLE = 10, 50  # the most steps before any counts, and before small models' losses are compared


def config_of(model: str) -> layout.GPTConfig:
    """The sizes of one of the bench's models."""
    if model not in BENCH_MODELS:
        raise Skip(f"model '{model}' is not one of the bench's")
    return BENCH_MODELS[model]


class Case(NamedTuple):
    model: str
    B: int
    T: int
    precision: str
    calls: int  # calls in a turn

    @property
    def name(self) -> str:
        return f"{self.model} B={self.B} T={self.T} {self.precision}"


STEPS = [Case("124M", 4, 64, "fp32", 2), Case("124M", 4, 64, "bf16", 3)]
STEPS += [Case("124M", 4, 1024, "fp32", 1), Case("124M", 4, 1024, "bf16", 1)]
SMALL = [
    Case("nano-adder", 64, 6, "fp32", 100),
    Case("char-10M", 8, 256, "fp32", 2),
    Case("demo", 8, 160, "fp32", 10),
    Case("char-10M", 8, 256, "bf16", 2),
    Case("demo", 8, 160, "bf16", 10),
]
QUICK = [Case("tiny", 2, 16, "fp32", 2), Case("tiny", 2, 16, "bf16", 2)]


# ---- inside the measured process ----


def random_ids(V: int, B: int, T: int) -> Any:
    """(B, T+1) int32, the same for every system."""
    import numpy as np

    return np.random.default_rng(0).integers(0, V, (B, T + 1), dtype=np.int32)


def engine_model(source: Any, **how: Any) -> Any:
    """pyllmc.Model; Skip with the engine's reason if this build refuses the precision."""
    import pyllmc

    try:
        return pyllmc.Model(source, **how)
    except pyllmc.NoDevice as error:
        raise Skip(str(error)) from None


def our_step(c: layout.GPTConfig, B: int, T: int, precision: str, threads: int) -> Call:
    from pyllmc.engine import _ffi

    ids = random_ids(c.vocab_size, B, T)
    recompute = int(options.options()["recompute"].default)
    kept = {"keep_logits": False, "recompute": recompute}  # as in the trainer's model
    m = engine_model(c, B=B, T=T, precision=precision, threads=threads, **kept)
    hyper, norm = _ffi.ffi().new("llmc_adamw *", (LR, *BETAS, EPS, DECAY)), _ffi.ffi().new("float *")

    def step() -> float:
        loss = m.micro_step(ids[:, :-1], ids[:, 1:], accumulate=False)
        m._check(m._lib.llmc_model_grad_norm(m._handle, CLIP, norm))  # clips as the trainer does
        m._check(m._lib.llmc_model_update(m._handle, hyper, 1))
        return float(loss)

    return step


def torch_step(c: layout.GPTConfig, B: int, T: int, precision: str, threads: int, compiled: bool) -> Call:
    import torch

    import train_gpt2

    torch.set_num_threads(threads)
    m = train_gpt2.GPT(c, seed=42)
    optimizer = m.optimizer(lr=LR, betas=BETAS, eps=EPS, weight_decay=DECAY)
    for group in optimizer.param_groups:
        group["fused"] = True  # PyTorch's fastest AdamW on a CPU
    run: Any = torch.compile(m) if compiled else m
    ids = torch.from_numpy(random_ids(c.vocab_size, B, T)).long()

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
            _, loss = run(ids[:, :-1], ids[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(m.parameters(), CLIP)
        optimizer.step()
        return float(loss.item())

    return step


def prepare(system: str, model: str, B: int, T: int, precision: str, threads: int) -> Callable[..., Call]:
    one_of("system", system, ("pyllmc", *TORCH))
    one_of("precision", precision, TOLERANCE)
    c = config_of(model)
    if system == "pyllmc":
        step = our_step(c, B, T, precision, threads)
    else:
        step = torch_step(c, B, T, precision, threads, compiled=system == "compile")
    return lambda: step


# ---- in the bench ----


def start(system: str, case: Case, threads: int) -> Process:
    sizes = {key: value for key, value in case._asdict().items() if key != "calls"}
    environment = {} if system == "pyllmc" else TUNED
    return Process("bench_steps.py", environment, system=system, **sizes, threads=threads)


class Runner:
    """A system on a case: its process, after steps that do not count, and its answers."""

    def __init__(self, system: str, case: Case, threads: int) -> None:
        self.process = start(system, case, threads)
        self.record: dict[str, Any] = {"ms": [], "losses": []}
        self.turn(min(case.calls, WARM), counted=False)

    def turn(self, calls: int, counted: bool = True) -> None:
        found = self.process.ask(calls=calls)
        self.record["ms"] += found["ms"] if counted else []
        self.record["losses"].append([len(found["ms"]), found["value"]])
        self.record["peak_mb"] = found["peak_mb"]

    def losses(self) -> dict[int, float]:
        """The loss after each number of steps, as far as it was asked."""
        done, found = 0, {}
        for steps, loss in self.record["losses"]:
            done += steps
            found[done] = loss
        return found


def best_torch(case: Case, threads: int, systems: Sequence[str]) -> tuple[dict[str, Runner], dict[str, Any]]:
    """The runner of the fastest PyTorch, and the records of the others. One turn of each decides, by its best step."""
    runners, records = {}, {}
    for system in systems:
        try:
            runners[system] = Runner(system, case, threads)
            runners[system].turn(case.calls)
        except Failed as error:  # e.g. there is no C++ compiler
            records[system] = {"skipped": str(error)[-400:]}
            say(f"  {case.name}, {system}: skipped")
    if not runners:
        raise Failed(f"PyTorch failed on {case.name}: {records}")
    best = min(runners, key=lambda system: min(runners[system].record["ms"]))
    for system in set(runners) - {best}:
        runners[system].process.close()
        records[system] = runners[system].record
    return {best: runners[best]}, records


def check_losses(case: Case, runners: dict[str, Runner]) -> None:
    """Compares the first and the last loss that all systems have, up to the step after which rounding alone drives them
    apart."""
    known = {system: runner.losses() for system, runner in runners.items()}
    common = sorted(set.intersection(*(set(found) for found in known.values())))
    for step in (common[0], max(step for step in common if step <= max(common[0], COMPARABLE))):
        losses = {system: [found[step]] for system, found in known.items()}
        check_agree(f"{case.name}, loss at step {step}", losses, TOLERANCE[case.precision])


def measure_case(case: Case, rounds: int, threads: int, systems: Sequence[str]) -> dict[str, Any]:
    """The sizes of a case and the records of every system."""
    # a precision that this build lacks stops here, before others take time
    start("pyllmc", case, threads).close()
    torch, records = best_torch(case, threads, systems)
    runners = {"pyllmc": Runner("pyllmc", case, threads), **torch}
    for _ in range(rounds):
        for runner in runners.values():
            runner.turn(case.calls)
    for system, runner in runners.items():
        runner.process.close()
        records[system] = runner.record
        say(f"  {case.name}, {system}: {statistics.median(runner.record['ms']):.2f} ms")
    check_losses(case, runners)
    return {**case._asdict(), "systems": records}


def measure_cases(
    cases: list[Case], rounds: int, threads: int, systems: Sequence[str] = TORCH
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for case in cases:
        try:
            found[case.name] = measure_case(case, rounds, threads, systems)
        except (Skip, Failed) as reason:
            found[case.name] = {**case._asdict(), **not_measured(case.name, reason)}
    return found


def scaling(case: Case, rounds: int, counts: list[int]) -> dict[str, Any]:
    """Milliseconds of our step for each number of threads."""
    runners = {str(n): Runner("pyllmc", case, n) for n in counts}
    for _ in range(rounds):
        for runner in runners.values():
            runner.turn(case.calls)
    for runner in runners.values():
        runner.process.close()
    return {**case._asdict(), "threads": {n: runner.record["ms"] for n, runner in runners.items()}}


if __name__ == "__main__":
    measured(prepare)
