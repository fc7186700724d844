"""Other compilers and other CPUs: the same source builds without a warning, also without threads."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, lib

from pyllmc import _ffi, layout


def build(folder: Path, *variables: str) -> None:
    """Builds with -O1, because only compiling is tested."""
    command = ["make", "-C", str(ROOT), "-j2", f"BUILD={folder}", "OPT=-O1", *variables]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert (folder / "libpyllmc.so").exists()
    assert (folder / "train_gpt2").exists()


@pytest.mark.skipif(importlib.util.find_spec("ziglang") is None, reason="needs the package ziglang")
def test_aarch64_compiles_from_the_same_source(tmp_path):
    build(tmp_path, f"CC={sys.executable} -m ziglang cc -target aarch64-linux-gnu")
    with open(tmp_path / "libpyllmc.so", "rb") as f:
        assert f.read(20)[18:20] == (183).to_bytes(2, "little")  # ELF: AArch64
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {"cpu", "neon"}


@pytest.mark.skipif(
    importlib.util.find_spec("scipy_openblas32") is None, reason="needs the package scipy-openblas32"
)
@pytest.mark.skipif("PYLLMC_LIB" in os.environ, reason="builds another library")
def test_products_by_a_blas(tmp_path):
    """OpenBLAS computes every product of test_matmul.py. The promise that threads change no bit holds for our products
    only."""
    import scipy_openblas32

    blas = Path(scipy_openblas32.get_lib_dir()) / scipy_openblas32.get_library(fullname=True)
    build(tmp_path, f"BLAS={blas}", "BLAS_PREFIX=scipy_", "ISAS=generic")
    suite = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "tests/kernels/test_matmul.py",
        "-k",
        "generic and not threads",
    ]
    env = {**os.environ, "PYLLMC_LIB": str(tmp_path / "libpyllmc.so")}
    done = subprocess.run(suite, env=env, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "[100%]" in done.stdout
    assert b"scipy_cblas_sgemm" in (tmp_path / "libpyllmc.so").read_bytes()


@pytest.mark.skipif(importlib.util.find_spec("ziglang") is None, reason="needs the package ziglang")
@pytest.mark.parametrize("target", ["aarch64-macos", "x86_64-linux-musl", "wasm32-wasi -DNO_THREADS"])
@pytest.mark.parametrize("name", ["base/pool.c", "base/cores.c"])
def test_threads_compile_elsewhere(name, target, tmp_path):
    """The code for threads compiles for systems with other calls for them, and for systems without threads."""
    command = [
        sys.executable,
        "-m",
        "ziglang",
        "cc",
        "-target",
        *target.split(),
        "-std=gnu11",
        "-Wall",
        "-Wextra",
    ]
    command += [
        "-Wshadow",
        "-Wmissing-prototypes",
        "-Werror",
        "-c",
        "-I",
        str(ROOT / "csrc"),
        str(ROOT / "csrc" / name),
    ]
    done = subprocess.run([*command, "-o", str(tmp_path / "out.o")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


CLANG = shutil.which("clang") or shutil.which("clang-14")


@pytest.mark.skipif(
    CLANG is None and importlib.util.find_spec("ziglang") is None, reason="needs clang or ziglang"
)
def test_clang_compiles_without_a_warning(tmp_path):
    compiler = CLANG or f"{sys.executable} -m ziglang cc -target x86_64-linux-gnu"
    build(tmp_path, f"CC={compiler}")


@pytest.mark.skipif("PYLLMC_LIB" in os.environ, reason="builds the ordinary library")
def test_without_threads_the_results_are_the_same(tmp_path):
    build(tmp_path, "THREADS=", "EXTRA=-DNO_THREADS", "OPT=-O3", "ISAS=generic")
    code = (
        "import numpy as np, pyllmc; m = pyllmc.Model(pyllmc.GPTConfig(50, 16, 2, 2, 24), B=2, T=9, seed=1)\n"
        "x = np.arange(18).reshape(2, 9); m.forward(x, x + 1); m.zero_grad(); m.backward(); m.update()\n"
        "print(m.params['qkvw'].tobytes().hex())"
    )
    outputs = [
        subprocess.run(
            [sys.executable, "-c", code], env=env, cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
        for env in (
            {**os.environ, "PYLLMC_ISA": "generic"},
            {**os.environ, "PYLLMC_LIB": str(tmp_path / "libpyllmc.so")},
        )
    ]
    assert outputs[0] == outputs[1]


def test_the_checksum_of_the_tables_is_cksums():
    tables = re.search(r"^TABLES  := (.*)$", (ROOT / "Makefile").read_text(), re.M)[1].split()
    assert tables == [f"csrc/{name}" for name in layout.TABLES]
    data = b"".join((ROOT / name).read_bytes() for name in tables)
    done = subprocess.run(["cksum"], input=data, capture_output=True, check=True)
    assert layout.tables_cksum() == done.stdout.split()[0].decode() == _ffi.text(lib.llmc_headers())


@pytest.mark.parametrize("name", layout.TABLES)
def test_a_stale_library_is_refused(name, tmp_path):
    """The library is refused after a header or table of the checkout has changed."""
    shutil.copytree(ROOT / "pyllmc", tmp_path / "pyllmc", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "csrc").mkdir()
    for table in layout.TABLES:
        shutil.copy(ROOT / "csrc" / table, tmp_path / "csrc")

    def load() -> subprocess.CompletedProcess:
        environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
        command = [sys.executable, "-m", "pyllmc.train", "--help"]
        return subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)

    assert load().returncode == 0
    with open(tmp_path / "csrc" / name, "a") as f:
        f.write("/* changed */\n")
    done = load()
    assert done.returncode == 6
    assert (
        "was built from other headers than csrc/ has now: run `pip install --force-reinstall .`"
        in done.stderr
    )
    assert done.stderr.count("\n") == 1


def test_a_python_too_old_for_the_tests_is_one_line(tmp_path):
    """The refusal comes before pip is asked for a PyTorch that does not exist for that Python."""
    for name in ("Makefile", "pyproject.toml", "csrc", "cuda"):
        (tmp_path / name).symlink_to(ROOT / name)
    tools = tmp_path / ".venv" / "bin"
    tools.mkdir(parents=True)
    code = "import sys; sys.version_info = (3, 9, 18); exec(sys.argv[1])"
    for name, line in (("python", f"exec '{sys.executable}' -c '{code}' \"$2\""), ("pip", "echo asked >&2")):
        (tools / name).write_text(f"#!/bin/sh\n{line}\n")
        (tools / name).chmod(0o755)
    done = subprocess.run(["make", ".venv/setup.done"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    said = [line for line in done.stderr.splitlines() if not line.startswith(("make", "cat"))]
    assert len(said) == 1 and "needs Python >= 3.10: rm -r .venv, then make PYTHON=" in said[0]
