"""python dev/bench_network.py: measured all-reduces beside those that python -m pyllmc.plan predicts.

Ranks of torch.distributed (gloo) on machines of their own, which are namespaces joined by links of a limited rate, average the
gradients of a model. Needs Linux and `unshare`, `ip` and `tc`; nothing of it is left behind. Exit status: 0 all predictions
are within 15 %, 1 one is not, 2 usage, 6 no network can be made here.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import namespaces
from bench_process import ROOT

from pyllmc.planning import steptime
from pyllmc.tables import layout

TOLERANCE = 0.15  # as a share of the measured time
PORT = 29500
RATES = {"100Mbit": 100e6 / 8, "1Gbit": 1e9 / 8}  # as tc writes them: bytes a second


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


def compare(counts: Sequence[int], rates: Sequence[str], elements: int, rounds: int) -> list[dict[str, Any]]:
    """A row for each number of ranks and each rate."""
    rows = []
    for rate in rates:
        for n in counts:
            planned = steptime.all_reduce_s(n, elements * steptime.FP32, RATES[rate])
            # the least of several, because neighbours on the same cores only make a round longer
            measured = min(measure(n, RATES[rate], elements, rounds))
            rows.append({"ranks": n, "rate": rate, "measured_s": measured, "planned_s": planned})
            off = planned / measured - 1
            print(f"{n} ranks at {rate:>7}: measured {measured * 1e3:7.1f} ms, planned {planned * 1e3:7.1f} ms, "
                  f"{off:+.1%}", file=sys.stderr, flush=True)  # fmt: skip
    return rows


def elements_of(model: str, vocab_size: int) -> int:
    """The number of a model's parameters, as the engine lays them out."""
    return sum(row.size for row, _ in layout.parameters(layout.config_of(model, vocab_size)))


def main() -> int:
    if sys.argv[1:2] == ["--serve"]:
        serve(*sys.argv[2:])
        return 0
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--ranks", default="2,3,4", help="numbers of ranks [2,3,4]")
    parser.add_argument("--rates", default=",".join(RATES), help=f"rates of links [{','.join(RATES)}]")
    parser.add_argument(
        "--model", default="gpt-mini", help="the model whose gradients are averaged [gpt-mini]"
    )
    parser.add_argument("--vocab_size", type=int, default=65, help="its vocabulary [65]")
    parser.add_argument(
        "--rounds", type=int, default=6, help="all-reduces of each kind, of which the fastest counts [6]"
    )
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    o = parser.parse_args()
    reason = namespaces.why_not()
    if reason and not os.environ.get(namespaces.MARK):
        print(f"bench_network: no network can be made here: {reason}", file=sys.stderr)
        return 6
    namespaces.enter()
    os.environ.update(PYTHONPATH=str(ROOT), TORCH_CPP_LOG_LEVEL="ERROR")  # names of hosts are not known there
    elements = elements_of(o.model, o.vocab_size)
    print(f"{o.model}: {elements * 4e-6:.1f} MB of gradients in fp32", file=sys.stderr)
    rows = compare([int(n) for n in o.ranks.split(",")], o.rates.split(","), elements, o.rounds)
    if o.json:
        print(json.dumps(rows))
    return int(any(abs(row["planned_s"] / row["measured_s"] - 1) > TOLERANCE for row in rows))


if __name__ == "__main__":
    sys.exit(main())
