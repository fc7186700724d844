"""What is asked of cuBLASLt, against a stand-in for it that computes what its documentation says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import DEVICES

HERE = Path(__file__).parent

CODE = """
import ctypes, sys
sys.path.insert(0, "tests")
import conftest, test_matmul
name = sys.argv[1]
for check in test_matmul.CHECKS:
    kernels = conftest.make_kernels(name)
    for shape in test_matmul.DEVICE_SHAPES[:4] + test_matmul.SHAPES[:12]:
        buffers = conftest.Buffers()
        kernels.workspace(shape[0], shape[1], max(shape[2:]))
        check(kernels, test_matmul.Case(buffers, *shape, kernels.stored))
        buffers.check()
print(ctypes.c_int.in_dll(ctypes.CDLL(sys.argv[2]), "fake_products").value)
"""


@pytest.fixture(scope="module")
def fake(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("cublas") / "libcublasLt.so"
    command = ["gcc", "-O1", "-shared", "-fPIC", str(HERE / "cublas" / "fake.c"), "-o", str(path)]
    subprocess.run(command, check=True)
    return path


@pytest.mark.parametrize("name", [name for name in DEVICES if name.startswith("emu")])
def test_every_product_is_asked_for_rightly(name: str, fake: Path):
    run = subprocess.run(
        [sys.executable, "-c", CODE, name, str(fake)],
        env={**os.environ, "PYLLMC_CUBLASLT": str(fake), "PYTHONPATH": "."},
        cwd=HERE.parent,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) == 16 * (2 + 1 + 2 + 3), "some products were not left to the library"
