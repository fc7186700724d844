"""Starts processes by torchrun, for the tests beside it; run by torchrun itself, it trains several cases after each other."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
STANDALONE = [*TORCHRUN, "--standalone"]
LIMIT = 300  # seconds: far more than any of these runs takes on a busy machine


def environment(**more: str) -> dict[str, str]:
    """The caller's, without what torchrun sets; the package is that of this checkout."""
    kept = {
        k: v for k, v in os.environ.items() if not re.match(r"(TORCHELASTIC|MASTER|LOCAL_|RANK|WORLD)", k)
    }
    return {**kept, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests/distributed'}", **more}


def words(options: dict[str, Any]) -> list[str]:
    return [f"--{name}={int(v) if isinstance(v, bool) else v}" for name, v in options.items()]


def told(output: str) -> list[str]:
    """The lines of pyllmc, without torchrun's own."""
    theirs = r"([WE]\d{4} |\[|={5}|-{5}|Traceback|Failures|Root Cause|  |torch\.dist|pyllmc.train FAILED|$)"
    return [line for line in output.splitlines() if not re.match(theirs, line)]


class Run:
    """`torchrun -m pyllmc.train` under way. Its lines are read by a thread, so that a test can wait for one of them.
    --nnodes in `launch`: one torchrun of several, which meet where it says."""

    def __init__(
        self,
        processes: int,
        *launch: str,
        before: Any = None,
        env: Any = None,
        program: Sequence[str] = ("-m", "pyllmc.train"),
        **options: Any,
    ):
        begin = TORCHRUN if any(word.startswith("--nnodes") for word in launch) else STANDALONE
        command = [*begin, f"--nproc_per_node={processes}", *launch, *program]
        self.process = subprocess.Popen(
            [*command, *words(options)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=env or environment(),
            preexec_fn=before,
        )
        self.lines: list[str] = []
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            with self._news:
                self.lines.append(line.rstrip("\n"))
                self._news.notify_all()

    def wait_for(self, pattern: str) -> None:
        with self._news:
            found = self._news.wait_for(lambda: any(re.search(pattern, x) for x in self.lines), LIMIT)
        assert found, f"no line has {pattern}: {self.lines[-30:]}"

    def workers(self) -> dict[int, int]:
        """The process ids by rank."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
                rank = re.search(r"\0RANK=(\d+)\0", (folder / "environ").read_text())
                if parent == self.process.pid and rank:
                    found[int(rank[1])] = int(folder.name)
            except OSError:
                continue
        return found

    def send(self, rank: int, number: int) -> int:
        worker = self.workers()[rank]
        os.kill(worker, number)
        return worker

    def end(self) -> int:
        """Waits for the end; returns the exit code."""
        try:
            return self.process.wait(LIMIT)
        finally:
            self.process.send_signal(signal.SIGTERM)
            self._reader.join(10)

    @property
    def told(self) -> list[str]:
        return told("\n".join(self.lines))


def wait_until(ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def wait_for_any(runs: list[Run], pattern: str) -> None:
    """Waits for a line of the one that has rank 0."""
    wait_until(lambda: any(re.search(pattern, line) for run in runs for line in list(run.lines)))


def train(processes: int, *launch: str, **options: Any) -> tuple[int, list[str]]:
    """A whole run: its exit code and its lines."""
    run = Run(processes, *launch, **options)
    return run.end(), run.told


def train_apart(processes: int, cases: list[dict[str, Any]], folder: Path) -> list[list[dict[str, Any]]]:
    """Trains every case with so many processes, which are started once. Returns for each process and case "steps": loss and norm
    of each, "sent": the bytes of floats that it handed to sums, and "error": the line of it. A case's "stop" is (rank, step): the
    process that asks for a stop, or None for all, and after which step."""
    (folder / "cases.json").write_text(json.dumps(cases))
    done = subprocess.run(
        [*STANDALONE, f"--nproc_per_node={processes}", __file__, str(folder)],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=LIMIT,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads((folder / f"found{rank}.json").read_text()) for rank in range(processes)]


def train_cases(processes: int, cases: list[dict[str, Any]], folder: Path) -> list[list[list[float]]]:
    """The same where all processes have the same losses and norms; returns those of each case."""
    done = train_apart(processes, cases, folder)
    assert not [case["error"] for one in done for case in one if case["error"]]
    found = [[case["steps"] for case in one] for one in done]
    assert all(one == found[0] for one in found), "the processes differ"
    return found[0]


def count_sent() -> list[int]:
    """From now on counts the bytes of floats that are handed to sums."""
    import torch.distributed as dist

    plain, sent = dist.all_reduce, [0]

    def counted(x: Any, *arguments: Any, **named: Any) -> Any:
        sent[0] += x.numel() * x.element_size() if x.element_size() < 8 else 0
        return plain(x, *arguments, **named)

    dist.all_reduce = counted
    return sent


def steps_of(trainer: Any, stop: int | None = None) -> list[list[float]]:
    done = run_case(trainer, stop)
    assert not done["error"]
    return done["steps"]


def run_case(trainer: Any, stop: int | None) -> dict[str, Any]:
    steps, error = [], ""
    try:
        for event in trainer:
            if event.kind != "step":
                continue
            steps.append([event.loss, event.norm])
            if event.step == stop:
                trainer.stop()
    except ArithmeticError as raised:  # the weights are no longer finite
        error = str(raised)
    return {"steps": steps, "error": error}


def main() -> None:
    import pyllmc
    from pyllmc import distributed
    from pyllmc.distributed.place import settle_machine
    from pyllmc.engine import _ffi
    from pyllmc.trainer import Options

    settle_machine()
    sent = count_sent()
    folder, rank, found = Path(sys.argv[1]), os.environ["RANK"], []
    for number, case in enumerate(json.loads((folder / "cases.json").read_text())):
        os.environ["TORCHELASTIC_RUN_ID"] = f"case{number}"
        stopper, stop = case.pop("stop", (None, None))
        options = Options(_ffi.load())
        for name, value in case.items():
            options.set(name, value)
        team = distributed.join(options)
        sent[0] = 0
        one = run_case(pyllmc.Trainer(options, team=team), stop if stopper in (None, int(rank)) else None)
        found.append({**one, "sent": sent[0]})
        team.close()
    (folder / f"found{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
