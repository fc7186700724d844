"""A measured process of make bench: one system, alone with its memory and its threads, that runs calls on request.

A script ends with `measured(prepare)`; prepare(**settings) gets the key=value words of the command line, sets up once and
returns choose(**request), which returns the call to time. Without the bench: `python dev/bench_steps.py system=pyllmc ... turns=3`.
The bench keeps several such processes and asks them by turns, so that a busy moment of the machine hits all of them.
"""

from __future__ import annotations

import inspect
import json
import os
import platform
import re
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # finds pyllmc and train_gpt2 of this checkout

from pyllmc.base import live  # noqa: E402, found by the line above
from pyllmc.planning.compute import isa_name  # noqa: E402

TUNED = {  # makes PyTorch fastest: large tensors cause no page faults
    "GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=8589934592:glibc.malloc.trim_threshold=17179869184",
    "THP_MEM_ALLOC_ENABLE": "1",
}
PAUSE = 0.02  # seconds between turns, in which idle threads stop spinning
Call = Callable[[], Any]


class Skip(Exception):
    """A measurement that cannot be made here; the message says why."""


class Failed(Exception):
    """A measured process that broke, or figures that contradict each other."""


def need(module: str, extra: str) -> Any:
    """An optional package, or Skip with the remedy."""
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise Skip(f"{error}: pip install 'pyllmc[{extra}]'") from None


# ---- inside the measured process ----


def peak_mb() -> float:
    """The most memory that this process has held, in MiB, by VmHWM: ru_maxrss would count its parent before the fork,
    too."""
    try:
        found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        found = None
    return (int(found[1]) if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) / 1024


def timed(call: Call, calls: int, seconds: float) -> tuple[list[float], Any]:
    """Milliseconds of each of at least `calls` calls that take at least `seconds` together; and the result of the
    last."""
    ms: list[float] = []
    begin = time.perf_counter()
    value = None
    while len(ms) < calls or time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        value = call()
        ms.append((time.perf_counter() - start) * 1e3)
    return ms, value


class Worker:
    """Answers requests. A request's call is kept for its next turn, until another request comes."""

    def __init__(self, choose: Callable[..., Call]) -> None:
        self.choose = choose
        self.what: dict[str, Any] | None = None
        self.call: Call | None = None

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Runs a request. calls, seconds: at least so many calls and so long; warm: calls before its first turn."""
        usual = (("calls", 1), ("seconds", 0), ("warm", 0))
        calls, seconds, warm = (request.pop(key, default) for key, default in usual)
        if self.call is None or self.what != request:
            self.call = None  # frees its memory before the next call takes some
            self.what, self.call = request, self.choose(**request)
            for _ in range(warm):
                self.call()
        ms, value = timed(self.call, calls, seconds)
        value = value() if callable(value) else value  # computed outside of the measured time
        return {"ms": ms, "value": value, "peak_mb": peak_mb()}


def settings_of(words: Iterable[str], prepare: Callable[..., Any]) -> tuple[dict[str, Any], int]:
    """["B=4", "system=torch", "turns=2"] -> {"B": 4, "system": "torch"}, 2. SystemExit if prepare takes other words."""
    keys = f"words are key=value, keys {', '.join(inspect.signature(prepare).parameters)}, turns"
    words = list(words)
    for word in words:
        if "=" not in word:
            raise SystemExit(f"{word}: {keys}")
    try:
        pairs = dict(word.split("=", 1) for word in words)
        settings = {k: int(v) if v.lstrip("-").isdigit() else v for k, v in pairs.items()}
        turns = int(settings.pop("turns", 0))
        inspect.signature(prepare).bind(**settings)
    except (ValueError, TypeError) as error:
        raise SystemExit(f"{error}: {keys}") from None
    return settings, turns


def one_of(what: str, value: str, known: Iterable[str]) -> None:
    """SystemExit if `value` is not known."""
    if value not in known:
        raise SystemExit(f"{what}={value} is not one of {', '.join(known)}")


def measured(prepare: Callable[..., Callable[..., Call]]) -> None:
    """The main function of a measured process: JSON requests on stdin, answers on stdout; or turns=N of them without a
    bench."""
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # other output must not mix with the answers

    def tell(what: dict[str, Any]) -> None:
        out.write(json.dumps(what) + "\n")

    settings, turns = settings_of(sys.argv[1:], prepare)
    try:
        worker = Worker(prepare(**settings))
    except Skip as reason:
        tell({"skipped": str(reason)})
        return
    tell({"ready": peak_mb()})
    for request in ({} for _ in range(turns)) if turns else map(json.loads, sys.stdin):
        try:
            tell(worker.answer(request))
        except Skip as reason:
            tell({"skipped": str(reason)})


# ---- in the bench ----


class Process:
    """A measured process, ready to be asked. Raises Skip with its reason, Failed with the end of what it printed.

    limit: ends the process after so many seconds; 0: never.
    """

    def __init__(
        self, script: str, environment: Mapping[str, str] | None = None, limit: float = 0, **settings: Any
    ) -> None:
        self.name = " ".join([script, *(f"{key}={value}" for key, value in settings.items())])
        self.errors = tempfile.TemporaryFile("w+")
        self.child = subprocess.Popen(
            [sys.executable, str(ROOT / "dev" / script), *self.name.split()[1:]],
            env={**os.environ, **(environment or {})},
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )
        self.end = threading.Timer(limit, self.child.kill)
        self.end.daemon = True
        if limit:
            self.end.start()
        live.show(f"  starting: {self.name}")
        try:
            self.read()
        except (Skip, Failed):
            self.close()
            raise

    def read(self) -> dict[str, Any]:
        assert self.child.stdout
        try:
            line = self.child.stdout.readline()
        except (KeyboardInterrupt, SystemExit):
            self.child.kill()  # nobody waits for its measurement any more
            raise
        if not line:
            late = f" after {self.end.interval:.0f} s" if self.end.finished.is_set() else ""
            code = self.child.wait()
            raise Failed(f"python dev/{self.name}: exit {code}{late}\n{self.printed()[-2000:]}")
        found = dict(json.loads(line))
        if "skipped" in found:
            raise Skip(found["skipped"])
        return found

    def ask(self, **request: Any) -> dict[str, Any]:
        """{"ms": [...], "value": result of the call, "peak_mb": so far}. calls, seconds, warm: see Worker.answer."""
        assert self.child.stdin
        live.show(f"  measuring: {self.name}")
        time.sleep(PAUSE)
        try:
            self.child.stdin.write(json.dumps(request) + "\n")
            self.child.stdin.flush()
        except BrokenPipeError:
            pass  # the answer, which is read next, tells the reason
        found = self.read()
        live.clear()
        return found

    def printed(self) -> str:
        self.errors.seek(0)
        return self.errors.read()

    def close(self) -> None:
        try:
            self.child.communicate()
        finally:
            self.end.cancel()
            self.errors.close()

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def take_turns(systems: Mapping[str, Process], rounds: int, **request: Any) -> dict[str, list[float]]:
    """Milliseconds of each call of each system, asked one after the other, `rounds` times."""
    ms: dict[str, list[float]] = {name: [] for name in systems}
    for _ in range(rounds):
        for name, process in systems.items():
            ms[name] += process.ask(**request)["ms"]
    return ms


def check_agree(what: str, values: Mapping[str, Sequence[float]], tolerance: float) -> None:
    """Compares each system's numbers with ours, within tolerance times the largest of them; if they differ, no time
    counts."""
    ours = values["pyllmc"]
    allowed = tolerance * max(map(abs, ours))
    if not all(abs(a - b) <= allowed for other in values.values() for a, b in zip(ours, other)):
        raise Failed(f"{what}: results differ: {dict(values)}")


def say(text: str) -> None:
    live.clear()
    print(text, file=sys.stderr, flush=True)


def not_measured(what: str, reason: Exception) -> dict[str, str]:
    """The entry in a report in place of figures."""
    kind = "skipped" if isinstance(reason, Skip) else "failed"
    say(f"  {what}: {kind}, {reason}")
    return {kind: str(reason)}


# ---- the machine ----


def cpu_name() -> str:
    try:
        found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def default_threads() -> int:
    from pyllmc.engine import _ffi

    return int(_ffi.load().llmc_default_threads())


def machine() -> dict[str, Any]:
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    found = {"cpu": cpu_name(), "cores": os.cpu_count(), "memory_gb": round(pages / 2**30, 1)}
    return {**found, "isa": isa_name(), "system": platform.platform()}
