"""python dev/bench_network.py: measured all-reduces, or with --train whole steps, beside those that python -m pyllmc.plan predicts.

Ranks of torch.distributed (gloo) on machines of their own, which are namespaces joined by links of a limited rate, average the
gradients of a model, or train it under torchrun. Needs Linux and `unshare`, `ip` and `tc`; nothing of it is left behind. Exit status: 0 all predictions
are within 15 %, 1 one is not, 2 usage, 6 no network can be made here.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import namespaces
from bench_process import ROOT

from pyllmc.base.values import at_least
from pyllmc.planning import steptime
from pyllmc.tables import layout
from pyllmc.text import dataset

TOLERANCE = 0.15  # as a share of the measured time
PORT = 29500
RATES = {"100Mbit": 100e6 / 8, "1Gbit": 1e9 / 8}  # as tc writes them: bytes a second


B, T = 16, 128  # each rank has them
TRAINING = f"--T={T} --max_seq_len={T} --threads=1 --val_every=0 --sample_every=0 --checkpoint_every=0"


class Settings(NamedTuple):
    ranks: list[int]
    rates: list[str]
    elements: int  # floats that are averaged
    rounds: int
    train: bool
    json: bool
    training: list[str]  # options of training
    tokens: int  # each rank has so many in a step


# ---- one rank ----


def serve(address: str, *settings: str) -> None:
    """Averages a block with the other ranks, again and again; rank 0 prints the seconds of each round, those of the slowest.
    settings: the rank, the number of ranks, the floats of the block, the rounds."""
    import numpy as np
    import torch
    import torch.distributed as dist

    rank, n, elements, rounds = map(int, settings)
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "eth0"
    dist.init_process_group("gloo", init_method=f"tcp://{address}:{PORT}", rank=rank, world_size=n)
    block = torch.from_numpy(np.ones(elements, np.float32))
    taken = []
    for _ in range(rounds + 1):  # the first opens the connections
        dist.barrier()
        start = time.perf_counter()
        dist.all_reduce(block)
        seconds = torch.tensor([time.perf_counter() - start], dtype=torch.float64)
        dist.all_reduce(seconds, dist.ReduceOp.MAX)
        taken.append(float(seconds))
    assert float(block[0]) == float(block[-1]) == float(n) ** (rounds + 1)
    if rank == 0:
        print(json.dumps(taken[1:]), flush=True)
    dist.destroy_process_group()


# ---- all ranks ----


def measure(n: int, rate: float, elements: int, rounds: int) -> list[float]:
    """The seconds of each all-reduce of so many floats by n ranks."""
    with namespaces.Network(n, rate) as network:
        words = [sys.executable, __file__, "--serve", network.address(0)]
        ranks = [
            network.start(i, [*words, *map(str, (i, n, elements, rounds))], stdout=subprocess.PIPE)
            for i in range(n)
        ]
        said = [rank.communicate()[0] for rank in ranks]
    if any(rank.returncode for rank in ranks):
        raise SystemExit(f"bench_network: a rank ended with {[rank.returncode for rank in ranks]}")
    return [float(seconds) for seconds in json.loads(said[0])]


def compare(o: Settings) -> list[dict[str, Any]]:
    """A row of all-reduces for each number of ranks and each rate."""
    rows = []
    for rate in o.rates:
        for n in o.ranks:
            planned = steptime.all_reduce_s(n, o.elements * steptime.FP32, steptime.TCP * RATES[rate])
            # the least of several, because neighbours on the same cores only make a round longer
            measured = min(measure(n, RATES[rate], o.elements, o.rounds))
            rows.append(told("all-reduce", n, rate, measured, planned))
    return rows


def told(what: str, n: int, rate: str, measured: float, planned: float) -> dict[str, Any]:
    """Prints a row, and returns it."""
    figures = (
        f"measured {measured * 1e3:7.1f} ms, planned {planned * 1e3:7.1f} ms, {planned / measured - 1:+.1%}"
    )
    print(f"{what}, {n} ranks at {rate:>7}: {figures}", file=sys.stderr, flush=True)
    return {"what": what, "ranks": n, "rate": rate, "measured_s": measured, "planned_s": planned}


# ---- whole steps ----


def planned_step_s(o: Settings, n: int, rate: str, compute: float) -> float:
    """The plan's seconds of a step that takes `compute` without communication."""
    return steptime.Job(compute, o.elements, RATES[rate], carried=steptime.TCP).step_s(n, steptime.Way())


def train(o: Settings) -> list[dict[str, Any]]:
    """A row of training steps for each number of ranks and each rate."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        data = letters(Path(folder))
        for n in o.ranks:
            for rate in o.rates:
                found = steps_of(o, n, rate, data, Path(folder, f"{n}at{rate}"))
                planned = planned_step_s(o, n, rate, found.compute)
                rows.append(told("step", n, rate, found.step, planned))
    return rows


def letters(folder: Path) -> Path:
    """Makes data to train on, random letters, unless they are there."""
    data = folder / "data"
    if not data.exists():
        draw = random.Random(0)
        texts = ["".join(draw.choices("abcdefghij ", k=400)) for _ in range(500)]
        dataset.write_dataset(texts, data, tokenizer="char", val_fraction=0.1)
    return data


def start_together(
    network: namespaces.Network, n: int, words: list[str], program: Sequence[str] = ("-m", "pyllmc.train")
) -> list[subprocess.Popen[str]]:
    """Starts a training of n ranks, one on each machine, by torchrun."""
    torchrun = ["-m", "torch.distributed.run", f"--nnodes={n}", "--nproc_per_node=1", "--rdzv_backend=static",
                f"--master_addr={network.address(0)}", f"--master_port={PORT}"]  # fmt: skip
    env = {**os.environ, "GLOO_SOCKET_IFNAME": "eth0"}
    return [
        network.start(i, [sys.executable, *torchrun, f"--node_rank={i}", *program, *words],
                      stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env)
        for i in range(n)
    ]  # fmt: skip


def finish(ranks: list[subprocess.Popen[str]]) -> None:
    said = [rank.communicate()[0] for rank in ranks]
    if any(rank.returncode for rank in ranks):
        failed = next(text for text, rank in zip(said, ranks) if rank.returncode)
        raise SystemExit(f"bench_network: a training failed:\n{failed}")


class Steps(NamedTuple):
    """Seconds, medians of one run: of the steps that sum no gradients, of those that do, and how much longer one of these takes
    than the step before it."""

    compute: float
    step: float
    shown: float


def steps_of(o: Settings, n: int, rate: str, data: Path, out: Path) -> Steps:
    """How n ranks train on links of a rate, in twice o.rounds steps, of which every second one sums gradients. The two kinds take
    turns because neighbours make a core a third slower for some seconds."""
    words = [f"--data={data}", *o.training, f"--max_steps={2 * o.rounds + 2}", f"--out={out}"]
    with namespaces.Network(n, RATES[rate]) as network:
        finish(start_together(network, n, words, [str(Path(__file__).with_name("every_second.py"))]))
    lines = (out / "metrics.jsonl").read_text().splitlines()[2:]  # the first two do not count
    seconds = [json.loads(line)["ms"] * 1e-3 for line in lines]
    without, summed = seconds[0::2], seconds[1::2]
    longer = [b - a for a, b in zip(without, summed)]
    return Steps(statistics.median(without), statistics.median(summed), statistics.median(longer))


def elements_of(model: str, vocab_size: int) -> int:
    """The number of a model's parameters, as the engine lays them out."""
    config = replace(layout.config_of(model, vocab_size), max_seq_len=T)
    return sum(row.size for row, _ in layout.parameters(config))


def main() -> int:
    if sys.argv[1:2] == ["--serve"]:
        serve(*sys.argv[2:])
        return 0
    o = parse()
    reason = namespaces.why_not()
    if reason and not os.environ.get(namespaces.MARK):
        print(f"bench_network: no network can be made here: {reason}", file=sys.stderr)
        return 6
    namespaces.enter()
    os.environ.update(PYTHONPATH=str(ROOT), TORCH_CPP_LOG_LEVEL="ERROR")  # names of hosts are not known there
    print(f"{o.elements * 4e-6:.1f} MB of gradients in fp32", file=sys.stderr)
    rows = train(o) if o.train else compare(o)
    if o.json:
        print(json.dumps(rows))
    return int(any(abs(row["planned_s"] / row["measured_s"] - 1) > TOLERANCE for row in rows))


def settings(
    ranks: list[int],
    rates: list[str],
    model: str,
    vocab_size: int,
    rounds: int,
    train: bool,
    json: bool = False,
    B: int = B,
) -> Settings:
    training = f"--model={model} --vocab_size={vocab_size} --B={B} {TRAINING}".split()
    sizes = ranks, rates, elements_of(model, vocab_size)
    return Settings(*sizes, rounds, train, json, training, B * T)


def ranks_of(text: str) -> list[int]:
    """The type of --ranks."""
    return [at_least(1)(word) for word in text.split(",")]


def rates_of(text: str) -> list[str]:
    """The type of --rates."""
    for word in text.split(","):
        if word not in RATES:
            raise argparse.ArgumentTypeError(f"{word} is none of {', '.join(RATES)}")
    return text.split(",")


def parse() -> Settings:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--ranks", type=ranks_of, default="2,3,4", help="numbers of ranks [2,3,4]")
    parser.add_argument(
        "--rates", type=rates_of, default=",".join(RATES), help=f"rates of links [{','.join(RATES)}]"
    )
    parser.add_argument(
        "--model", default="gpt-mini", help="the model whose gradients are averaged [gpt-mini]"
    )
    parser.add_argument("--vocab_size", type=int, default=65, help="its vocabulary [65]")
    parser.add_argument(
        "--rounds",
        type=int,
        default=6,
        help="all-reduces, of which the fastest counts, or pairs of steps, whose median does [6]",
    )
    parser.add_argument(
        "--train", action="store_true", help="train it, with one thread a rank, instead of only averaging"
    )
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    o = parser.parse_args()
    if o.train and importlib.util.find_spec("pyllmc.distributed") is None:
        parser.error("--train: this version does not train under torchrun yet")
    return settings(o.ranks, o.rates, o.model, o.vocab_size, o.rounds, o.train, o.json)


if __name__ == "__main__":
    sys.exit(main())
