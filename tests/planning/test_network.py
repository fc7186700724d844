"""The measurement of all-reduces and steps on links of a limited rate; and what such a network leaves behind.

A machine that does other work is slower than its plan, and so a test asks for no more than what load cannot change: that no
all-reduce is faster than the plan. That both agree within 15 % is shown by dev/bench_network.py, which exits with 1 if not.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import bench_network
import namespaces
import pytest
from conftest import ROOT

pytest.importorskip("torch")
REASON = namespaces.why_not() if sys.platform == "linux" else "this is not Linux"
pytestmark = pytest.mark.skipif(bool(REASON), reason=f"no network can be made here: {REASON}")


def command(*words: str) -> list[str]:
    return [sys.executable, str(ROOT / "dev/bench_network.py"), *words]


def marked() -> list[str]:
    """The processes that live in a network, or have made one, by the mark in their environment or their command."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes().decode(errors="replace").replace("\0", " ")
        except OSError:
            continue
        if TAG in words:
            found.append(f"{path.name}: {words}")
    return found


TAG = f"--vocab_size={os.getpid() + 100_000}"  # a vocabulary that only this test asks for marks its processes


def measured(*words: str) -> list[dict]:
    done = subprocess.run(command(*words, "--json"), capture_output=True, text=True, timeout=600)
    assert done.returncode in (0, 1), done.stderr
    rows = json.loads(done.stdout)
    within = [
        row["planned_s"] == pytest.approx(row["measured_s"], rel=bench_network.TOLERANCE) for row in rows
    ]
    assert done.returncode == (0 if all(within) else 1)
    return rows


def test_no_sum_is_faster_than_its_plan():
    rows = measured("--ranks=2", "--rates=100Mbit", "--rounds=2", "--model=gpt-micro")
    assert [row["ranks"] for row in rows] == [2]
    for row in rows:
        assert row["measured_s"] > row["planned_s"] * (1 - bench_network.TOLERANCE)


def test_a_step_of_a_training_is_measured():
    (row,) = measured("--train", "--ranks=2", "--rates=100Mbit", "--rounds=2", "--model=gpt-micro")
    assert row["what"] == "step"
    assert row["measured_s"] > row["planned_s"] * (1 - bench_network.TOLERANCE) > 0


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_behind(how):
    process = subprocess.Popen(
        command("--ranks=2", "--rates=100Mbit", "--rounds=1000", "--model=gpt-mini", TAG),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert (
        process.stderr and "of gradients" in process.stderr.readline()
    )  # the network is being made, or there
    time.sleep(0.5)
    assert len(marked()) >= 2
    process.send_signal(how)
    process.wait(30)
    deadline = time.monotonic() + 30
    while marked() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not marked()
    left = subprocess.run(["ip", "netns"], capture_output=True, text=True).stdout
    assert not [line for line in left.splitlines() if line.split()[0] in ("switch", "m0", "m1")]


def test_without_a_network_it_says_why():
    done = subprocess.run(command(), capture_output=True, text=True, env={"PATH": "/nowhere"})
    assert done.returncode == 6 and done.stdout == ""
    assert done.stderr == (
        "bench_network: no network can be made here: unshare is not installed: install util-linux and iproute2\n"
    )
