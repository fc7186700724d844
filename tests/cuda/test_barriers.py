"""Every __syncthreads of the kernels is needed: without it the emulation's checked build reports something, or a number
changes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest
from conftest import DEVICES, ROOT

pytestmark = pytest.mark.skipif("emu" not in DEVICES, reason="make emu builds the emulation")


def barriers() -> set[str]:
    return {
        f"{path.name}:{number}"
        for path in [*(ROOT / "cuda").glob("*.cu"), *(ROOT / "cuda").glob("*.cuh")]
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(r"__syncthreads\(\)", line.partition("/*")[0])
    }


def noticed(library: str, barriers: set[str]) -> dict[str, str]:
    path = ROOT / "pyllmc" / "lib" / "check" / library
    ran = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "emulator" / "barriers.py"), *sorted(barriers)],
        env={**os.environ, "PYLLMC_LIB": str(path), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def test_every_barrier_is_needed():
    assert len(barriers()) > 10, "the pattern no longer finds them"
    left = barriers()
    for library in ("libpyllmc_emu.so", "libpyllmc_emu_fp32.so"):
        left = left - noticed(library, left).keys() if left else left
    assert left == set(), "nothing notices when these are taken out"
