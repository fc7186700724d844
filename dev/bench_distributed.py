"""python dev/bench_distributed.py: how long a step of several processes takes on a slow network, beside compute and sums alone.

Each process gets a network namespace of its own, joined by a bridge whose links carry --rate (`ip netns`, `tc tbf`; needs root).
The namespaces and the bridge are removed at the end. The aim: a step takes at most compute + 0.4 x communication where
communication is shorter than the backward pass."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PREFIX = f"llmc{os.getpid() % 10000}"
SUMS = """
import os, time, torch, torch.distributed as dist
dist.init_process_group('gloo')
n = int(os.environ['ELEMENTS'])
parts = [torch.ones(min(n, 1 << 20)) for _ in range(max(1, n >> 20))]
for turn in range(4):
    began = time.monotonic()
    for handle in [dist.all_reduce(part, async_op=True) for part in parts]:
        handle.wait()
    best = min(best, time.monotonic() - began) if turn else 1e9
if os.environ['RANK'] == '0':
    print(best * 1e3)
"""


def ip(*words: str, check: bool = True) -> None:
    subprocess.run(["ip", *words], check=check, stderr=None if check else subprocess.DEVNULL)


def make_network(processes: int, rate: str) -> None:
    """One namespace a process, PREFIX0, PREFIX1, ..., with the address 10.77.0.1, 10.77.0.2, ..."""
    ip("link", "add", f"{PREFIX}br", "type", "bridge")
    ip("link", "set", f"{PREFIX}br", "up")
    for i in range(processes):
        name, inside, outside = f"{PREFIX}{i}", f"{PREFIX}i{i}", f"{PREFIX}o{i}"
        ip("netns", "add", name)
        ip("link", "add", inside, "type", "veth", "peer", "name", outside)
        ip("link", "set", inside, "netns", name)
        ip("link", "set", outside, "master", f"{PREFIX}br", "up")
        for command in (
            f"addr add 10.77.0.{i + 1}/24 dev {inside}",
            f"link set {inside} up",
            "link set lo up",
        ):
            ip("-n", name, *command.split())
        limit = f"tc qdisc add dev {inside} root tbf rate {rate} burst 256kb latency 100ms"
        subprocess.run(["ip", "netns", "exec", name, *limit.split()], check=True)


def remove_network(processes: int) -> None:
    for i in range(processes):
        ip("netns", "del", f"{PREFIX}{i}", check=False)
    ip("link", "del", f"{PREFIX}br", check=False)


def run_all(processes: int, command: list[str], **more: str) -> str:
    """Runs a command in every namespace as one of several; returns what rank 0 prints."""
    env = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "WORLD_SIZE": str(processes),
        "MASTER_PORT": "29533",
        **more,
    }
    env.update(MASTER_ADDR="10.77.0.1", OMP_NUM_THREADS="1", LOCAL_WORLD_SIZE="1")
    started = [
        subprocess.Popen(
            ["ip", "netns", "exec", f"{PREFIX}{rank}", *command],
            env={**env, "RANK": str(rank), "GLOO_SOCKET_IFNAME": f"{PREFIX}i{rank}"},
            stdout=subprocess.PIPE if rank == 0 else subprocess.DEVNULL,
            text=True,
        )
        for rank in range(processes)
    ]
    text = started[0].communicate()[0]
    for process in started:
        assert process.wait() == 0, f"a process ended with {process.returncode}"
    return text


def step_ms(run: Path, skip: int = 3) -> float:
    """The median time of a step, without the first ones."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    times = sorted(line["ms"] for line in lines if "ms" in line)[skip // 2 :]
    return times[len(times) // 2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rate", default="1gbit", help="as tc writes it: 1gbit, 100mbit")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument(
        "--options", default="--model=d4 --B=2 --T=256", help="of pyllmc.train; they must name --data"
    )
    parser.add_argument("--elements", type=int, help="parameters of that model; default: as its plan says")
    o = parser.parse_args()
    train = [sys.executable, "-m", "pyllmc.train", *o.options.split()]
    train += [
        f"--max_steps={o.steps}",
        "--val_every=0",
        "--sample_every=0",
        "--checkpoint_every=0",
        "--threads=1",
    ]
    plan = subprocess.run(
        [*train, "--plan"], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    elements = o.elements or round(float(plan.stdout.split("M parameters")[0].split()[-1]) * 1e6)
    with tempfile.TemporaryDirectory() as folder:
        try:
            make_network(o.processes, o.rate)
            run_all(o.processes, [*train, f"--out={folder}/together"])
            env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
            alone = [
                subprocess.Popen([*train, f"--out={folder}/alone{i}"], env=env, stdout=subprocess.DEVNULL)
                for i in range(
                    o.processes
                )  # as many at once, because they share the machine's memory and caches
            ]
            assert [process.wait() for process in alone] == [0] * o.processes
            sums = float(run_all(o.processes, [sys.executable, "-c", SUMS], ELEMENTS=str(elements)))
        finally:
            remove_network(o.processes)
        compute = max(step_ms(Path(folder, f"alone{i}")) for i in range(o.processes))
        together = step_ms(Path(folder, "together"))
    hidden = (compute + sums - together) / sums
    print(f"{o.processes} processes at {o.rate}: {elements / 1e6:.1f}M parameters")
    print(
        f"compute {compute:.0f} ms, sums alone {sums:.0f} ms, a step {together:.0f} ms: {hidden:.0%} of the sums is hidden"
    )
    print(f"aim, compute + 0.4 x communication: {compute + 0.4 * sums:.0f} ms")


if __name__ == "__main__":
    main()
