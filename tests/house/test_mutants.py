"""Proof that the suite can fail: it runs against libraries with one defect each, made on purpose."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

MUTANTS = [  # file, the code that is replaced, its replacement, the tests that must fail
    (
        "layers.c",
        r"a\.residual2, w\.ln2w, a\.ln2_mean",
        "a.residual1, w.ln2w, a.ln2_mean",
        "tests/model/test_model.py",
    ),
    (
        "optimizer.c",
        r"return p->decay && .*;",
        "return 1;",
        "tests/model/test_model_steps.py::test_ten_adamw_steps",
    ),
    (
        "layers.c",
        r"if \(l < L - 1\) layer_recompute",
        "if (l < L - 2) layer_recompute",
        "tests/model/test_memory.py",
    ),
    ("layers.c", r"else last_layer_recompute\(m, pass, l\);", "", "tests/model/test_memory.py"),
    ("cpu/layernorm.c", r"\+ 1e-5f", "+ 1e-4f", "tests/kernels/test_layernorm.py"),
    ("cpu/gemm_amx_pack.h", r"row \+ 1 < K && lanes", "lanes", "tests/kernels/test_matmul.py"),
    ("cpu/attention_gradient.h", r"- s->D\[i\]\)", "+ s->D[i])", "tests/kernels/test_attention.py"),
    ("cpu/attention_gradient.h", r"\* kept - s->D", "- s->D", "tests/kernels/test_dropout.py"),
    ("cpu/attention.h", r"own\[i\] \+ 1\)", "own[i])", "tests/kernels/test_documents.py"),
    ("model/dropout.c", r"if \(on\) m->drop\.micro_step \+= .*;", "", "tests/model/test_model_dropout.py"),
    (
        "cpu/classifier.c",
        r"block_size\(at, V\);",
        "block_size(at, V - 1);",
        "tests/kernels/test_classifier.py",
    ),
    ("bpe.c", r"w->rank\[gone\] = NONE;", "", "tests/text/test_bpe.py"),
    (
        "tfbundle.c",
        r"return strcmp\(x, y\);",
        "return *(const int *)a - *(const int *)b;",
        "tests/files/test_tfbundle.py",
    ),
    ("load.c", r"r->crc\.value == e->crc", "1", "tests/files/test_tfbundle.py"),
    ("dataloader.c", r"ntok - 1\b", "ntok - 2", "tests/data/test_dataloader.py"),
]

if "PYLLMC_LIB" in os.environ:
    pytest.skip("breaks and builds the ordinary library", allow_module_level=True)


OTHER_BUILDS = shutil.ignore_patterns(
    "asan", "tsan", "arm", "clang", "bf16", "emu_*", "emulator", "check_*", "cuda_*", "*ptx*"
)


def build(folder: Path, file: str = "", old: str = "", new: str = "") -> Path:
    """A library with one replacement and one instruction set; only what includes that file is compiled again."""
    for name in ("csrc", "build", "cuda"):
        shutil.copytree(ROOT / name, folder / name, ignore=OTHER_BUILDS)
    for name in ("Makefile", "pyproject.toml"):  # the second one holds the version
        shutil.copy2(ROOT / name, folder)
    if file:
        path = next((folder / "csrc").rglob(file))
        text, count = re.subn(old, new, path.read_text(), count=1)
        assert count, f"{file} no longer contains {old}"
        path.write_text(text)
    isa = "amx_emulated" if "amx" in file else "generic"
    only = [f"ISAS={isa}", "-o", "build/flags", "-W", "csrc/cpu/dispatch.c"]  # dispatch.c lists the sets
    make = ["make", "-C", str(folder), *only, "EXTRA=-Wno-error", "pyllmc/lib/libpyllmc.so"]
    subprocess.run(make, check=True, capture_output=True)
    return folder / "pyllmc/lib/libpyllmc.so"


def run_suite(library: Path, tests: str) -> int:
    environment = {**os.environ, "PYLLMC_LIB": str(library), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", tests]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True).returncode


@pytest.mark.parametrize("file, old, new, tests", MUTANTS, ids=lambda x: x if str(x).endswith(".c") else "")
def test_a_broken_library_makes_the_suite_fail(file, old, new, tests, tmp_path):
    assert run_suite(build(tmp_path, file, old, new), tests) == 1


def test_an_unbroken_one_passes(tmp_path):
    assert run_suite(build(tmp_path), "tests/kernels/test_layernorm.py") == 0
