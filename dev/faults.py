"""Shows that a training by two processes survives what happens to machines, and that it tells what has happened.

    python dev/faults.py kill --count 50     kill -9 of each rank in turn, 50 times, at random instants, and torchrun's restarts
    python dev/faults.py slow                a rank that stands still: for less than --timeout, and for longer
    python dev/faults.py cut                 a machine whose link is down: for less than --timeout, and for longer
    python dev/faults.py disk                a disk of rank 0 that becomes full

Every run must end in the bits of an undisturbed one: at once, after torchrun's restart, or after the same command was given again.
Where a run ends early, one line must say why. `cut` and `disk` make a network and a disk of their own (dev/namespaces.py).

Exit status: 0 held, 1 broken, 2 usage, 6 no network can be made here.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import namespaces
import soak
from bench_process import ROOT

TRAINING = (
    "--B=2 --T=32 --checkpoint_every=10 --val_every=20 --sample_every=0 --threads=1 --log_every=1".split()
)
TIMEOUT = 6  # seconds
EACH = 5  # kills in a run
MOST_STEPS = 50  # between the beginning of an attempt and its kill
LIMIT = 900  # seconds: far more than a run takes on a busy machine
PORT = 29500
LINE = re.compile(r"pyllmc\.train: (.*)")  # how a run says why it ends


class Run:
    """Two processes that train under torchrun: one torchrun on this machine, or one on each machine of a network."""

    def __init__(
        self, folder: Path, steps: int, network: namespaces.Network | None = None, restarts: int = 0
    ) -> None:
        self.folder, self.lines, self.steps = folder, [""], 0
        self._news = threading.Condition()
        torchrun = [sys.executable, "-m", "torch.distributed.run", f"--max-restarts={restarts}"]
        train = ["-m", "pyllmc.train", f"--data={folder.parent}", f"--out={folder}", "--resume=auto",
                 f"--max_steps={steps}", f"--timeout={TIMEOUT}", *soak.SIZES, *TRAINING]  # fmt: skip
        env = {**os.environ, "PYTHONPATH": str(ROOT), "TORCH_CPP_LOG_LEVEL": "ERROR"}
        if network:
            meet = ["--nnodes=2", "--nproc_per_node=1", "--rdzv_backend=static",
                    f"--master_addr={network.address(0)}", f"--master_port={PORT}"]  # fmt: skip
            env["GLOO_SOCKET_IFNAME"] = "eth0"
            starts = [
                network.start(
                    i,
                    [*torchrun, *meet, f"--node_rank={i}", *train],
                    stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env,
                )
                for i in range(2)
            ]  # fmt: skip
        else:
            words = [*torchrun, "--standalone", "--nproc_per_node=2", *train]
            starts = [
                subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)
            ]
        self.processes = starts
        self._readers = [threading.Thread(target=self._read, args=(p,), daemon=True) for p in starts]
        for reader in self._readers:
            reader.start()

    def _read(self, process: subprocess.Popen[str]) -> None:
        for line in process.stdout or ():
            with self._news:
                self.lines.append(line.rstrip("\n"))
                self.steps += line.startswith("step")
                self._news.notify_all()

    def wait_for(self, pattern: str) -> None:
        with self._news:
            found = self._news.wait_for(lambda: any(re.search(pattern, x) for x in self.lines), LIMIT)
        if not found:
            self.fail(f"no line has {pattern}")

    def wait_for_steps(self, count: int) -> None:
        """Waits for so many steps from now on, or for the end of the run."""
        goal, deadline = self.steps + count, time.monotonic() + LIMIT
        while self.steps < goal and not self.ended:
            if time.monotonic() > deadline:
                self.fail("the run takes no step")
            time.sleep(0.01)

    def fail(self, why: str) -> None:
        for process in self.processes:
            process.terminate()
        raise SystemExit("\n".join([*self.lines[-60:], f"faults: {why}"]))

    def worker(self, rank: int, before: int = 0) -> int:
        """The process id of a rank, which is not `before`; 0: it is not there."""
        parents = {process.pid for process in self.processes}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
                found = parent in parents and f"\0RANK={rank}\0" in (folder / "environ").read_text()
                if found and int(folder.name) != before:
                    return int(folder.name)
            except OSError:
                continue
        return 0

    def wait_for_worker(self, rank: int, before: int = 0) -> int:
        """The same, once it is there; 0: the run has ended instead."""
        deadline = time.monotonic() + LIMIT
        while not (worker := self.worker(rank, before)) and not self.ended:
            if time.monotonic() > deadline:
                self.fail(f"rank {rank} does not come")
            time.sleep(0.02)
        return worker

    @property
    def ended(self) -> bool:
        return all(process.poll() is not None for process in self.processes)

    def end(self) -> list[int]:
        """Waits for the end: the exit codes of torchrun."""
        try:
            codes = [process.wait(LIMIT) for process in self.processes]
        except subprocess.TimeoutExpired:
            self.fail("the run does not end")
        for reader in self._readers:
            reader.join(10)
        return codes

    @property
    def reasons(self) -> list[str]:
        """What the processes said of why they end."""
        return [found[1] for line in self.lines if (found := LINE.match(line))]


class Case:
    """A kind of fault: the folder of its runs, and the undisturbed run that they are compared with."""

    def __init__(self, folder: str, steps: int, short: bool) -> None:
        self.folder, self.steps = soak.write_tokens(Path(folder)), steps
        self.failed = 0
        if not short:
            self._undisturbed()

    def _undisturbed(self) -> None:
        run = self.start("undisturbed")
        run.wait_for_worker(1)
        began = time.monotonic()
        if any(run.end()):
            run.fail("the undisturbed run failed")
        self.usual = time.monotonic() - began  # seconds, from the beginning of the processes
        self.expected = soak.outcome(run.folder)

    def start(self, name: str, network: namespaces.Network | None = None, restarts: int = 0) -> Run:
        return Run(self.folder / name, self.steps, network, restarts)

    def same(self, name: str) -> bool:
        return soak.outcome(self.folder / name) == self.expected

    def tell(self, what: str, held: bool) -> None:
        self.failed += not held
        print(f"{'held' if held else 'BROKEN'}: {what}", flush=True)

    def again(self, name: str, network: namespaces.Network | None = None) -> bool:
        """Gives the same command again: True if the run then ends in the same bits."""
        run = self.start(name, network)
        return not any(run.end()) and self.same(name)


# ---- a process that dies ----


def kill(run: Run, rank: int, before: list[int], draw: random.Random, usual: float) -> str:
    """Kills a rank, one time in five while it begins, else within the steps. before: the processes of the attempt before, by
    rank, which become those of this one. Returns where the kill came; "" if the run ended first."""
    worker = run.wait_for_worker(rank, before[rank])
    early = draw.random() < 0.2
    if early:
        time.sleep(draw.uniform(0, usual / 4))
    else:
        run.wait_for_steps(draw.randrange(1, MOST_STEPS))
        time.sleep(draw.uniform(0, 0.05))
    before[:] = [run.worker(r, before[r]) for r in range(2)]
    if run.ended or not worker:
        return ""
    with contextlib.suppress(ProcessLookupError):
        os.kill(worker, signal.SIGKILL)
        return "as it begins" if early else "within the steps"
    return ""


def kills(case: Case, count: int, seed: int) -> None:
    """Each run is killed several times: its ranks in turn, in each attempt one."""
    draw = random.Random(seed)
    found: Counter[str] = Counter()
    runs = equal = 0
    while found.total() < count:
        name, last = f"killed{runs}", [0, 0]
        run = case.start(name, restarts=EACH)
        for i in range(min(EACH, count - found.total())):
            rank = (runs + i) % 2
            if came := kill(run, rank, last, draw, case.usual):
                found[f"rank {rank} {came}"] += 1
        same = not any(run.end()) and case.same(name)
        runs, equal = runs + 1, equal + same
        print(f"  {found.total()} kills, {equal} of {runs} runs the same", file=sys.stderr, flush=True)
        if not same:
            print("\n".join(run.lines[-80:]))
    parts = ", ".join(f"{n} {what}" for what, n in sorted(found.items()))
    case.tell(f"{count} times kill -9 ({parts}): {equal} of {runs} runs end in the same bits", equal == runs)


# ---- a process that stands still ----


def slow(case: Case) -> None:
    run = case.start("short")
    run.wait_for(r"^step +20/")
    stopped = run.wait_for_worker(1)
    os.kill(stopped, signal.SIGSTOP)
    time.sleep(TIMEOUT / 2)
    os.kill(stopped, signal.SIGCONT)
    case.tell(
        f"rank 1 stands still for half of --timeout: the run goes on, to the same bits; it says {run.reasons}",
        not any(run.end()) and case.same("short") and not run.reasons,
    )
    run = case.start("long")
    run.wait_for(r"^step +20/")
    stopped, began = run.wait_for_worker(1), time.monotonic()
    os.kill(stopped, signal.SIGSTOP)
    try:
        run.wait_for(LINE.pattern)
    finally:
        os.kill(stopped, signal.SIGKILL)
    seconds, codes = time.monotonic() - began, run.end()
    named = len(run.reasons) == 1 and "rank 1 of 2 does not answer" in run.reasons[0]
    case.tell(
        f"rank 1 stands still: after {seconds:.1f} s, --timeout={TIMEOUT}, one line: {run.reasons}",
        any(codes) and named and seconds < 2 * TIMEOUT,
    )
    case.tell("the same command again: the same bits", case.again("long"))


# ---- a machine that is cut off ----


def blink(case: Case) -> None:
    with namespaces.Network(2) as network:
        run = case.start("blink", network)
        run.wait_for(r"^step +20/")
        network.cut(1)
        time.sleep(TIMEOUT / 4)
        network.cut(1, off=False)
        case.tell(
            f"the link of rank 1 is down for a quarter of --timeout: the run goes on, to the same bits; it says {run.reasons}",
            not any(run.end()) and case.same("blink") and not run.reasons,
        )


def stay_down(case: Case) -> None:
    with namespaces.Network(2) as network:
        run = case.start("cut", network)
        run.wait_for(r"^step +20/")
        began = time.monotonic()
        network.cut(1)
        codes = run.end()
        seconds = time.monotonic() - began
    one = [line for line in run.reasons if "rank 1 of 2 does not answer" in line]
    other = [line for line in run.reasons if "rank 1 reaches no other process" in line]
    step = soak.state(run.folder / "last.ckpt").split("\n")[0]
    case.tell(
        f"the link of rank 1 stays down: all end within {seconds:.1f} s, --timeout={TIMEOUT}, each machine with a line: "
        f"{run.reasons}; last.ckpt of {step} is whole",
        all(codes) and len(one) == len(other) == 1 and len(run.reasons) == 2 and seconds < 8 * TIMEOUT,
    )


def cut(case: Case) -> None:
    blink(case)
    stay_down(case)
    with namespaces.Network(2) as network:
        case.tell("the same command again: the same bits", case.again("cut", network))


# ---- a disk that becomes full ----


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[None]:
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def disk(case: Case) -> None:
    """The disk has room for the first checkpoints of last.ckpt and best.ckpt, and not for a third file."""
    run_folder = case.folder / "disk"
    whole = (case.folder / "undisturbed/last.ckpt").stat().st_size
    best = (case.folder / "undisturbed/best.ckpt").stat().st_size
    with small_disk(run_folder, whole + best + whole // 2):
        run = case.start("disk")
        codes = run.end()
        full = len(run.reasons) == 1 and "cannot be written: No space left on device" in run.reasons[0]
        left = soak.state(run_folder / "last.ckpt").split("\n")[0]
        case.tell(
            f"the disk of rank 0 is full: one line: {run.reasons}; last.ckpt of {left} is whole",
            any(codes) and full,
        )
        more = ["mount", "-o", f"remount,size={9 * whole}", str(run_folder)]
        subprocess.run(more, check=True)
        case.tell("the same command again, with room: the same bits", case.again("disk"))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("fault", choices=("kill", "slow", "cut", "disk"))
    parser.add_argument("--count", type=int, default=50, help="kill: how often [50]")
    parser.add_argument("--seed", type=int, default=1, help="kill: of the instants [1]")
    parser.add_argument("--steps", type=int, default=300, help="steps of a run [300]")
    parser.add_argument("--short", action="store_true", help="cut: only what a link that stays down does")
    asked = parser.parse_args()
    if asked.short and asked.fault != "cut":
        parser.error("--short is for cut")
    if asked.fault in ("cut", "disk"):
        reason = "" if os.environ.get(namespaces.MARK) else namespaces.why_not()
        if reason:
            print(f"faults: no network can be made here: {reason}", file=sys.stderr)
            return 6
        namespaces.enter()
    with tempfile.TemporaryDirectory() as folder:
        case = Case(folder, asked.steps, asked.short)
        if asked.short:
            stay_down(case)
        elif asked.fault == "kill":
            kills(case, asked.count, asked.seed)
        else:
            {"slow": slow, "cut": cut, "disk": disk}[asked.fault](case)
    return int(case.failed > 0)


if __name__ == "__main__":
    sys.exit(main())
