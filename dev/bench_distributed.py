"""python dev/bench_distributed.py: several ranks on links of a limited rate, beside one process: losses, overlap, tok/s.

    losses     40 steps of 2 and 4 ranks at 1 Gbit and 100 Mbit: their losses beside those of one process with the same batch, which
               must be equal within 1e-6, and the same bits at every rate
    overlap    a step must take at most compute + 0.4 x communication, where communication is shorter than the backward pass
    ranks      tok/s of 1, 2 and 4 ranks, measured and planned (python -m pyllmc.plan), as a picture with --out

Each rank is a machine of its own (dev/namespaces.py), but all of them share this one's cores. Compute is therefore the time of steps of
the same run that sum no gradients (dev/every_second.py). Exit status: 0 held, 1 broken, 2 usage, 6 no network
can be made here.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import bench_network
import namespaces
from bench_process import ROOT

from pyllmc.planning import steptime

STEPS = 40
TOLERANCE = 1e-6  # the losses may differ by this share
HIDDEN = 0.6  # the share of the communication that must not be seen
QUIET = ["--val_every=0", "--sample_every=0", "--checkpoint_every=0", "--threads=1", "--log_every=1000"]
BATCH = 8  # sequences of all ranks together
ROUNDS = 8  # sums alone


# ---- losses ----


def losses_of(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def train(words: list[str], out: Path) -> list[float]:
    """The losses of one process."""
    done = subprocess.run(
        [sys.executable, "-m", "pyllmc.train", *words, f"--out={out}"], capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"bench_distributed: {done.stderr}")
    return losses_of(out)


def together(words: list[str], n: int, rate: str, out: Path) -> list[float]:
    """The losses of n ranks on links of a rate."""
    with namespaces.Network(n, bench_network.RATES[rate]) as network:
        bench_network.finish(bench_network.start_together(network, n, [*words, f"--out={out}"]))
    return losses_of(out)


def losses(folder: Path) -> bool:
    sizes = ["--model=gpt-nano", "--B=1", "--T=64", "--max_seq_len=64", "--warmup_steps=2", *QUIET,
             f"--data={bench_network.letters(folder)}", f"--max_steps={STEPS}"]  # fmt: skip
    alone = train([*sizes, f"--grad_accum={BATCH}"], folder / "alone")
    held = True
    for n in (2, 4):
        words = [*sizes, f"--grad_accum={BATCH // n}"]
        found = [together(words, n, rate, folder / f"{n}at{rate}") for rate in bench_network.RATES]
        furthest = max(abs(a - b) / abs(a) for a, b in zip(alone, found[0]))
        same = all(one == found[0] for one in found)
        held &= same and len(found[0]) == STEPS and furthest <= TOLERANCE
        print(f"{n} ranks, {STEPS} steps: losses differ from those of one process by {furthest:.1e} at most; "
              f"{'the same bits' if same else 'OTHER BITS'} at {' and '.join(bench_network.RATES)}", flush=True)  # fmt: skip
    return held


# ---- overlap ----


def turns_of(
    o: bench_network.Settings, n: int, rate: str, folder: Path, turns: int
) -> list[bench_network.Steps]:
    data = bench_network.letters(folder)
    return [bench_network.steps_of(o, n, rate, data, folder / f"{turn}-{n}-{rate}") for turn in range(turns)]


def overlap(o: bench_network.Settings, folder: Path, turns: int) -> bool:
    """Whether what a step is longer than one without communication is at most a share of the communication."""
    held = True
    for n in o.ranks:
        for rate in o.rates:
            found = turns_of(o, n, rate, folder, turns)
            rounds = bench_network.measure(n, bench_network.RATES[rate], o.elements, ROUNDS)
            compute, sums = statistics.median(f.compute for f in found), statistics.median(rounds)
            shown = [f.shown / sums for f in found]
            counts = sums < steptime.OVERLAP * compute
            held &= not counts or statistics.median(shown) <= 1 - HIDDEN
            says = f"{statistics.median(shown):.2f} of the communication shows ({min(shown):.2f}-{max(shown):.2f})"
            print(f"{n} ranks at {rate}: compute {compute * 1e3:.0f} ms, communication {sums * 1e3:.0f} ms, {says}"
                  + ("" if counts else ", which is longer than the backward pass"), flush=True)  # fmt: skip
    return held


# ---- tok/s against ranks ----


def ranks(o: bench_network.Settings, folder: Path, turns: int, out: Path | None) -> bool:
    """Planned and measured steps. The plan is given the time that a step takes without communication."""
    held = True
    lines: dict[str, list[tuple[int, float]]] = {}
    for rate in o.rates:
        for n in o.ranks:
            found = turns_of(o, n, rate, folder, turns)
            measured = statistics.median(f.step for f in found)
            planned = bench_network.planned_step_s(o, n, rate, statistics.median(f.compute for f in found))
            tokens = n * o.tokens
            lines.setdefault(f"{rate}, measured", []).append((n, tokens / measured))
            lines.setdefault(f"{rate}, planned", []).append((n, tokens / planned))
            held &= abs(planned / measured - 1) <= bench_network.TOLERANCE
            bench_network.told("step", n, rate, measured, planned)
    if out:
        draw(lines, out)
    return held


def draw(lines: dict[str, list[tuple[int, float]]], out: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for i, (name, points) in enumerate(lines.items()):
        color, planned = ("#1f6fb4", "#c8553d", "#3a7d44")[i // 2], i % 2
        axes.plot(*zip(*points), "--" if planned else "o-", color=color, label=name)
    counts = [n for n, _ in next(iter(lines.values()))]
    axes.set_xticks(counts)
    axes.set_ylim(0, None)
    axes.set_xlabel("ranks, which share the cores of this machine")
    axes.set_ylabel("tok/s of all")
    axes.grid(True, alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(out, dpi=110)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("losses", "overlap", "ranks"))
    parser.add_argument(
        "--ranks", type=bench_network.ranks_of, help="overlap, ranks: numbers of ranks [2,4; 1,2,4]"
    )
    parser.add_argument(
        "--rates",
        type=bench_network.rates_of,
        default=",".join(bench_network.RATES),
        help=f"rates of links [{','.join(bench_network.RATES)}]",
    )
    parser.add_argument(
        "--model", default="gpt-mini", help="overlap, ranks: the model that is trained [gpt-mini]"
    )
    parser.add_argument(
        "--rounds",
        type=int,
        default=40,
        help="overlap, ranks: pairs of steps of a turn, one without and one with communication [40]",
    )
    parser.add_argument(
        "--B",
        type=int,
        default=bench_network.B,
        help=f"overlap, ranks: sequences of each rank; more make the backward pass longer [{bench_network.B}]",
    )
    parser.add_argument("--turns", type=int, default=3, help="overlap, ranks: turns, whose median counts [3]")
    parser.add_argument("--out", type=Path, help="ranks: the picture")
    asked = parser.parse_args()
    reason = "" if os.environ.get(namespaces.MARK) else namespaces.why_not()
    if reason:
        print(f"bench_distributed: no network can be made here: {reason}", file=sys.stderr)
        return 6
    namespaces.enter()
    os.environ.update(PYTHONPATH=str(ROOT), TORCH_CPP_LOG_LEVEL="ERROR")  # names of hosts are not known there
    with tempfile.TemporaryDirectory() as name:
        return int(not work(asked, Path(name)))


def work(asked: Any, folder: Path) -> bool:
    if asked.what == "losses":
        return losses(folder)
    counts = asked.ranks or ([2, 4] if asked.what == "overlap" else [1, 2, 4])
    sizes = (counts, asked.rates, asked.model, 65, asked.rounds)
    o = bench_network.settings(*sizes, train=True, B=asked.B)
    return (
        overlap(o, folder, asked.turns)
        if asked.what == "overlap"
        else ranks(o, folder, asked.turns, asked.out)
    )


if __name__ == "__main__":
    sys.exit(main())
