"""Other compilers and other CPUs: the same source builds without a warning, also without threads."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import PRECISIONS, ROOT, lib

import pyllmc
from pyllmc.engine import _ffi
from pyllmc.tables import layout

WARNINGS = "-std=gnu11 -Wall -Wextra -Wshadow -Wmissing-prototypes -Wundef -Werror".split()


NO_CHECKS = "-O0 -fno-sanitize=undefined"  # zig adds checks to what it does not optimize, which takes long


def build(folder: Path, *variables: str) -> None:
    """Builds with -O1 unless told otherwise, because only compiling is tested."""
    command = ["make", "-C", str(ROOT), "-j2", f"BUILD={folder}", "OPT=-O1", *variables]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert (folder / "libpyllmc.so").exists()
    assert (folder / "train_gpt2").exists()


@pytest.mark.skipif(importlib.util.find_spec("ziglang") is None, reason="needs the package ziglang")
def test_aarch64_compiles_from_the_same_source(tmp_path):
    build(tmp_path, f"CC={sys.executable} -m ziglang cc -target aarch64-linux-gnu", f"OPT={NO_CHECKS}")
    with open(tmp_path / "libpyllmc.so", "rb") as f:
        assert f.read(20)[18:20] == (183).to_bytes(2, "little")  # ELF: AArch64
    folders = {path.name for path in tmp_path.iterdir() if path.is_dir()}
    assert {"neon_fp32", "neon_bf16", "neon_bf16_bf16"} <= folders
    assert not re.search("avx|generic", " ".join(folders))


EMULATOR = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")


@pytest.fixture(scope="module")
def arm(tmp_path_factory) -> Path:
    """A build for 64-bit Arm whose programs need no file of such a system."""
    folder = tmp_path_factory.mktemp("arm")
    compiler = f"CC={sys.executable} -m ziglang cc -target aarch64-linux-musl"
    build(folder, compiler, "all", str(folder / "sets"))
    return folder


@pytest.mark.skipif(EMULATOR is None, reason="needs qemu-aarch64 or qemu-aarch64-static")
@pytest.mark.skipif(importlib.util.find_spec("ziglang") is None, reason="needs the package ziglang")
@pytest.mark.parametrize("cpu, sets", [("max", ["neon_bf16", "neon"]), ("cortex-a72", ["neon"])])
def test_arm_multiplies_bf16_where_it_can(arm, data, cpu, sets, tmp_path):
    """qemu's CPU `max` has the extension BF16, a Cortex-A72 has not. The kernels of every set that the CPU can run
    agree with the reference, and the best of these sets trains."""

    def emulated(program: str, *arguments: str) -> subprocess.CompletedProcess:
        command = [str(EMULATOR), "-cpu", cpu, str(arm / program), *arguments]
        return subprocess.run(command, env={**os.environ, "PYLLMC_ISA": ""}, capture_output=True, text=True)

    done = emulated("sets", *sets)
    agree = [f"{isa} agrees with the reference" for isa in sets]
    assert (done.returncode, done.stdout.splitlines()) == (0, agree)
    size = "--n_layer=1 --n_head=2 --n_embd=32 --max_seq_len=24 --B=2 --max_steps=8 --threads=2".split()
    quiet = "--lr=0.01 --warmup_steps=0 --val_every=0 --sample_every=0".split()
    done = emulated(
        "train_gpt2", "--precision=bf16", f"--data={data}", f"--out={tmp_path / 'run'}", *size, *quiet
    )
    assert done.returncode == 0, done.stderr
    assert f"device: cpu, {sets[0]}, bf16, 2 threads" in done.stdout
    first, *_, last = map(float, re.findall(r"loss ([\d.]+)", done.stdout))
    assert last < first
    refused = emulated("sets", "neon_bf16")
    said = "" if "neon_bf16" in sets else "this CPU cannot run neon_bf16: unset PYLLMC_ISA\n"
    assert refused.stderr == said


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
@pytest.mark.parametrize(
    "target, isa",
    [
        ("aarch64-macos -mcpu=generic+bf16", "neon_bf16"),
        ("x86_64-linux-musl", "generic"),
        ("wasm32-wasi -DNO_THREADS", "generic"),
    ],
)
def test_the_engine_compiles_elsewhere(target, isa, tmp_path):
    """All of csrc/, on systems with other C libraries, other words for threads, or neither threads nor processes. Kernels ask a
    system for little, and other tests compile them for these CPUs, too: on macOS and with musl one element is enough."""
    command = [
        sys.executable,
        "-m",
        "ziglang",
        "cc",
        "-target",
        *target.split(),
        *NO_CHECKS.split(),
        *WARNINGS,
        f"-I{ROOT / 'csrc'}",
    ]
    builds = [f"{kind}_{element}" for kind in (isa, "reference") for element in PRECISIONS]
    each = " ".join(f"X({name})" for name in builds)
    command += [f"-DEACH_BUILD(X)={each}", '-DVERSION=""', '-DTABLES_CKSUM=""', "-c"]
    kernels, reference = {*(ROOT / "csrc/cpu").glob("*.c")}, ROOT / "csrc/cpu/reference.c"
    kernels -= {ROOT / "csrc/cpu" / name for name in ("dispatch.c", "memory.c", "reference.c")}
    apart = ROOT / "csrc/programs/chat_gpt2.c"  # zig joins the objects of a call, and there may be one main
    calls = [([], {*(ROOT / "csrc").rglob("*.c")} - {*kernels, apart, reference}), ([], {apart})]
    for element in PRECISIONS if "wasm" in target else ["fp32"]:
        flags = [f"-DELEMENT={element}", f"-DFLOATX_{element.upper()}"]
        calls += [([f"-DISA={isa}", *flags], kernels), (["-DISA=reference", *flags], {reference})]
    for flags, sources in calls:
        done = subprocess.run(
            [*command, *flags, *sorted(sources)], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[:4000]


CLANG = shutil.which("clang") or shutil.which("clang-14")


@pytest.mark.skipif(platform.machine() != "x86_64", reason="AMX belongs to x86-64")
def test_an_older_compiler_leaves_out_the_sets_that_it_cannot_compile(tmp_path):
    """gcc 10 knows no AMX; every other set, and its emulation, is built."""
    compiler = tmp_path / "cc"
    compiler.write_text('#!/bin/sh\ncase "$*" in *-mamx*) exit 1;; esac\nexec cc "$@"\n')
    compiler.chmod(0o755)
    command = ["make", "-n", "-C", str(ROOT), f"CC={compiler}", f"BUILD={tmp_path}"]
    planned = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "(amx, bf16)" not in planned and "X(amx_bf16)" not in planned
    assert all(f"({isa}, bf16)" in planned for isa in ("amx_emulated", "avx512_bf16", "generic"))


@pytest.mark.skipif(
    CLANG is None and importlib.util.find_spec("ziglang") is None, reason="needs clang or ziglang"
)
def test_clang_compiles_without_a_warning(tmp_path):
    compiler = CLANG or f"{sys.executable} -m ziglang cc -target x86_64-linux-gnu"
    build(tmp_path, f"CC={compiler}", f"OPT={NO_CHECKS}")


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


def example_of_the_header() -> str:
    """The program in the comment at the top of pyllmc.h."""
    comment = (ROOT / "csrc/pyllmc.h").read_text().split("*/", 1)[0]
    program = re.search(r"( \*   #include.*? \*   \}\n)", comment, re.S)[1]
    return re.sub(r"^ \*(   )?", "", program, flags=re.M)


def test_the_example_of_the_header_does_what_python_does(tmp_path):
    """It is compiled as its text says, and takes the step of the same model in Python."""
    (tmp_path / "example.c").write_text(example_of_the_header())
    library = Path(os.environ.get("PYLLMC_LIB") or ROOT / "pyllmc/lib/libpyllmc.so").resolve()
    shutil.copy(library, tmp_path / "libpyllmc.so")
    flags = ["-Wall", "-Wextra", "-Werror", f"-I{ROOT / 'csrc'}", f"-L{tmp_path}", f"-Wl,-rpath,{tmp_path}"]
    flags += ["-fsanitize=address,undefined"] if b"__asan_init" in library.read_bytes() else []
    command = ["gcc", tmp_path / "example.c", *flags, "-lpyllmc", "-o", tmp_path / "example"]
    subprocess.run(command, check=True, timeout=120)
    done = subprocess.run([tmp_path / "example"], capture_output=True, text=True, check=True, timeout=60)
    m = pyllmc.Model(layout.GPTConfig(100, 16, 2, 2, 64), B=2, T=16, seed=42, recompute=2, keep_logits=False)
    inputs = np.arange(1, 9).reshape(2, 4)
    loss = m.forward(inputs, inputs + 1)
    m.backward()
    norm = m.clip_grad_norm(1.0)
    m.update(lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    ids = m.generate(inputs[0, :4], max_new_tokens=6, temperature=0.8, seed=42)
    first = " ".join(str(i) for i in np.ravel(ids)[-6:-3])
    assert done.stdout == f"loss {loss:.6f}, gradient norm {norm:.6f}, then ids {first} ...\n"
    assert done.stderr == ""


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
