"""make gpu-check: facts about this machine, its missing tools, and the build. This file needs nothing but Python
itself."""

from __future__ import annotations

import csv
import hashlib
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bench_process import ROOT, Failed, Skip

from pyllmc.planning.compute import DATA_SHEETS

NEEDED = ("numpy", "cffi", "torch", "pytest")
SMI = {  # nvidia-smi's name: ours
    "name": "name", "driver_version": "driver", "compute_cap": "compute", "memory.total": "memory_mib",
    "clocks.sm": "sm_mhz", "clocks.max.sm": "sm_max_mhz", "clocks.mem": "memory_mhz", "power.limit": "power_limit_w",
    "power.draw": "power_w", "temperature.gpu": "celsius",
}  # fmt: skip


class Setting(NamedTuple):
    """The facts that a part may use: the device, whether only the machinery is tried, the end of its time, the folder
    for files."""

    device: str  # "cuda" or "emu"
    quick: bool
    deadline: float  # time.monotonic() at its end
    out: Path  # the folder for the report

    @property
    def left(self) -> float:
        """Seconds left; Skip if there are none."""
        seconds = self.deadline - time.monotonic()
        if seconds < 1:
            raise Skip("no time was left")
        return seconds

    def within(self, seconds: float) -> Setting:
        return self._replace(deadline=min(self.deadline, time.monotonic() + seconds))

    def need_gpu(self) -> None:
        if self.device != "cuda":
            raise Skip("needs a GPU, and this run emulates one")


class Ran(NamedTuple):
    code: int
    text: str
    late: bool  # its time was over, so it was ended


def run(command: Sequence[str], seconds: float, environment: Mapping[str, str] | None = None) -> Ran:
    """Runs a command and ends it, with all processes that it started, after so many seconds; stdout and stderr
    together."""
    child = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        text = child.communicate(timeout=seconds)[0]
        return Ran(child.returncode, text, False)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        return Ran(-1, child.communicate()[0], True)


# ---- what is needed ----


def missing(device: str) -> list[str]:
    """The tools that a run needs and does not find."""
    found = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    tools = ["make", "g++"] + (["nvcc"] if device == "cuda" else [])
    return found + [tool for tool in tools if not (nvcc() if tool == "nvcc" else shutil.which(tool))]


def advice(lacking: Sequence[str]) -> str:
    """The first line of a run."""
    if not lacking:
        return "nothing is missing: numpy, cffi, torch, pytest and the compilers are here"
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    packages = " ".join(name for name in lacking if name in NEEDED)
    how = [
        f"without a network, elsewhere `pip download --only-binary=:all: --python-version {python} "
        f"--platform manylinux2014_x86_64 -d DIR {packages}`, carry DIR here and add `--wheels DIR`"
    ]
    tools = [name for name in lacking if name not in NEEDED]
    return f"missing: {', '.join(lacking)}; " + "; ".join(
        (how if packages else []) + ([f"put {', '.join(tools)} on the PATH"] if tools else [])
    )


def use_wheels(folder: Path, unpacked: Path) -> None:
    """Puts the wheels of a folder, or packages unpacked there, before all other packages, here and in child
    processes."""
    wheels = sorted(folder.glob("*.whl"))
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as file:
            file.extractall(unpacked)
    place = str((unpacked if wheels else folder).resolve())
    sys.path.insert(0, place)
    importlib.invalidate_caches()
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [place, os.environ.get("PYTHONPATH")]))


def nvcc() -> str:
    """The path of nvcc, "" if there is none."""
    usual = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin/nvcc")
    return shutil.which("nvcc") or (str(usual) if usual.exists() else "")


# ---- what is here ----


def gpu() -> dict[str, Any]:
    """The first GPU's figures by nvidia-smi; Skip if there is no GPU."""
    try:
        found = run(["nvidia-smi", f"--query-gpu={','.join(SMI)}", "--format=csv,noheader,nounits"], 20)
    except OSError as error:
        raise Skip(f"no GPU can be asked: {error}") from None
    if found.code:
        raise Skip(f"nvidia-smi: {found.text.strip()[-200:]}")
    values = next(csv.reader(found.text.splitlines(), skipinitialspace=True))
    return {name: number(value) for name, value in zip(SMI.values(), values)}


def number(text: str) -> Any:
    """ "132" -> 132.0. A text that is no number stays, and so does a compute capability."""
    return float(text) if re.fullmatch(r"\d+(\.\d\d+)?", text) else text


def peak(name: str) -> float:
    """Dense bf16 TFLOP/s by the data sheet; 0: unknown. The first name that fits counts."""
    return next((float(d.tflops) for d in DATA_SHEETS.values() if name.startswith(d.name)), 0.0)


def versions() -> dict[str, str]:
    """Versions of Python, its packages and nvcc. torch's version says which CUDA it brings."""
    import importlib.metadata

    found = {"Python": sys.version.split()[0]}
    for name in (*NEEDED, "triton", "nvidia-cublas"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            pass
    release = re.search(r"release [\d.]+, V([\d.]+)", run([nvcc(), "--version"], 20).text) if nvcc() else None
    return {**found, **({"nvcc": release[1]} if release else {})}


def kernels_hash() -> str:
    """A hash of all sources of the kernels: a report with another one is out of date."""
    digest = hashlib.sha256()
    for path in sorted([*(ROOT / "cuda").glob("*.cu"), *(ROOT / "cuda").glob("*.cuh")]):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def cublas_found() -> str:
    """The cuBLASLt that the CUDA library will find; "none" if it will find none."""
    from pyllmc.engine import cublas

    found = cublas.settle()
    return f"{Path(found).name} of a package" if found else "the system's" if cublas.in_system() else "none"


def facts(device: str) -> dict[str, Any]:
    """The machine's facts. Skip if a GPU is wanted and there is none."""
    return {**gpu(), "cublaslt": cublas_found()} if device == "cuda" else {"name": "emulated"}


# ---- the build ----


def make(setting: Setting, *targets: str) -> None:
    """Runs make. Failed with the end of its output."""
    words = ["make", "--no-print-directory", f"-j{os.cpu_count() or 1}", *targets]
    if setting.device == "cuda":
        words += [f"CUDA_ARCHS={str(gpu()['compute']).replace('.', '')}", f"NVCC={nvcc()}"]
    done = run(words, setting.left)
    if done.code:
        raise Failed(
            f"`{' '.join(words)}`{' took too long' if done.late else ''}: {done.text.strip()[-3000:]}"
        )


def build(setting: Setting) -> dict[str, Any]:
    """Builds the GPU's library, and the CPU's, with which it is compared."""
    make(setting, "all", setting.device)
    return {"device": setting.device}
