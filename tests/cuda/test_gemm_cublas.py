"""The calls to cuBLASLt, answered by a stand-in that computes by its documentation. If it refuses a call, lacks one or
computes wrongly, a model's steps differ by rounding only."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import DEVICES, ROOT

CODE = """
import ctypes, sys
sys.path[:0] = ["tests", "tests/kernels"]
import conftest, test_matmul
name, count = sys.argv[1], ctypes.c_int.in_dll(ctypes.CDLL(sys.argv[2]), "fake_products")
for check in test_matmul.CHECKS:
    before = count.value
    kernels = conftest.make_kernels(name)
    count.value = before  # without the probe's
    for shape in test_matmul.DEVICE_SHAPES[:4] + test_matmul.SHAPES[:12]:
        buffers = conftest.Buffers()
        kernels.workspace(shape[0], shape[1], max(shape[2:]))
        check(kernels, test_matmul.Case(buffers, *shape, kernels.stored))
        buffers.check()
print(count.value)
"""

EMULATED = [name for name in DEVICES if name.startswith("emu")]


@pytest.fixture(scope="module")
def fake(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("cublas") / "libcublasLt.so"
    command = ["gcc", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    subprocess.run([*command, str(ROOT / "tests/cublas/fake.c"), "-o", str(path), "-lm"], check=True)
    return path


def run(fake: Path, *words: str, **environment: str) -> str:
    """Runs in a process of its own, because the library is looked for once."""
    done = subprocess.run(
        [sys.executable, *words],
        env={**os.environ, "PYLLMC_CUBLASLT": str(fake), "PYTHONPATH": ".", **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", EMULATED)
def test_every_product_is_asked_for_rightly(name: str, fake: Path):
    products = run(fake, "-c", CODE, name, str(fake))
    assert int(products) == 16 * (2 + 1 + 2 + 3), "some products were not left to the library"


# ---- a model's steps (cublas/scenarios.py) ----


class Steps:
    """The outcome of each scenario, and the folder with its files of choices."""

    def __init__(self, fake: Path, precision: str, folder: Path) -> None:
        words = ["tests/cublas/scenarios.py", precision, str(fake), str(folder)]
        # the stand-in computes at once, also while a graph is being recorded
        self.found = json.loads(run(fake, *words, PYLLMC_GRAPHS="0"))
        self.precision, self.folder = precision, folder

    def bits(self, name: str) -> str:
        return self.found[name]["bits"]

    def products(self, name: str) -> int:
        return self.found[name]["products"]

    def epilogues(self, name: str) -> list[int]:
        """The numbers of products with GELU, with its slope, and with sums."""
        return self.found[name]["epilogues"]

    def chosen(self, name: str) -> list[str]:
        """The number of the algorithm in each line of a file."""
        return re.findall(r": [0-9a-f]{16} 0{15}(\d) ", (self.folder / name).read_text(errors="replace"))


@pytest.fixture(scope="module", params=EMULATED)
def steps(request, fake: Path, tmp_path_factory) -> Steps:
    precision = "fp32" if request.param.endswith("fp32") else "bf16"
    return Steps(fake, precision, tmp_path_factory.mktemp("choices"))


def test_whatever_it_does_the_losses_are_right(steps: Steps):
    ours = steps.found["ours"]
    assert ours["products"] == 0
    close = 2e-6 if steps.precision == "fp32" else 4e-3
    for name, found in steps.found.items():
        assert found["losses"] == pytest.approx(ours["losses"], rel=close), name


# for tests that do not depend on the element
whole = pytest.mark.parametrize("steps", EMULATED[-1:], indirect=True)


@whole
def test_a_call_that_fails_leaves_the_products_to_us(steps: Steps):
    failed = [name for name in steps.found if name.startswith("fail ")]
    assert len(failed) == 9
    for name in failed:
        if name != "fail MatmulAlgoCheck":  # without this call the heuristic's first algorithm is taken
            assert steps.bits(name) == steps.bits("ours"), name
    assert steps.bits("fail MatmulAlgoCheck") == steps.bits("level 0")
    assert steps.bits("no algorithm") == steps.bits("ours")


def test_epilogues_are_used_where_they_are_right(steps: Steps):
    """Two layers, four micro-steps: GELU and its slope for each, sums for each of four linear layers."""
    assert steps.epilogues("level 0") == [8, 8, 32]
    assert steps.epilogues("level 0, none") == [0, 0, 0]
    for i, name in enumerate(("gelu", "dgelu", "sums")):
        left = [0 if j == i else n for j, n in enumerate([8, 8, 32])]
        assert steps.epilogues(f"refuse {name}") == steps.epilogues(f"wrong {name}") == left
        assert steps.bits(f"refuse {name}") == steps.bits(f"wrong {name}")
        assert steps.products(f"wrong {name}") == steps.products("level 0")


def test_recompute_changes_no_bit_but_where_gelu_is_the_library_s(steps: Steps):
    """The library computes GELU of numbers that are not yet rounded. Levels 1 to 3 compute GELU again, so all their
    GELU is ours; 0 and 4 have the library's GELU everywhere, 4 once more for each layer."""
    assert steps.bits("level 0") == steps.bits("level 4")
    assert (
        steps.bits("level 1") == steps.bits("level 2") == steps.bits("level 3") == steps.bits("refuse gelu")
    )
    assert [steps.epilogues(f"level {level}")[0] for level in range(5)] == [8, 0, 0, 0, 16]
    assert steps.bits("level 0, none") == steps.bits("level 1, none")


@whole
def test_the_fastest_algorithm_is_written_down_and_found_again(steps: Steps):
    """Real times are measured on a machine that does other things, so only most of them must agree."""
    chosen = steps.chosen(".cache/pyllmc/cublaslt.txt")
    assert len(chosen) == steps.found["timed"]["checks"] > 10
    assert chosen.count("2") > len(chosen) / 2
    assert steps.products("timed") > steps.products("untimed") == steps.products("kept")
    assert steps.bits("kept") == steps.bits("timed")
    assert len(steps.chosen("xdg.txt")) == len(chosen)


@whole
def test_the_first_line_of_a_shape_counts(steps: Steps):
    for name in ("twice", "long"):
        assert steps.bits(name) == steps.bits("timed") and steps.products(name) == steps.products("kept")


@whole
def test_a_damaged_or_foreign_file_is_as_none(steps: Steps):
    count = len(steps.chosen(".cache/pyllmc/cublaslt.txt"))
    for name in ("words", "foreign", "binary"):
        assert steps.products(name) > steps.products("kept")
        new = steps.chosen(f".cache/pyllmc/{name}.txt")
        assert len(new) >= count
    assert steps.products("timed") > steps.products("cut") > steps.products("kept")
    assert steps.bits("recovered") == steps.bits("cut")
    assert steps.products("recovered") == steps.products("kept")


@whole
def test_what_cannot_be_kept_is_not_taken(steps: Steps):
    """Otherwise a later run would have other bits."""
    for name in ("does not run", "a folder", "endless", "full", "elsewhere"):
        assert steps.bits(name) == steps.bits("untimed"), name
    for name in ("a folder", "endless", "elsewhere"):
        assert steps.products(name) == steps.products("untimed"), f"{name}: timed in vain"


# ---- NVIDIA's header, where pip has put it ----

PREFIXES = {"DESC": "MATMUL_DESC", "PREF": "MATMUL_PREF", "EPILOGUE": "EPILOGUE", "REDUCTION": "REDUCTION"}


def header() -> str:
    for place in sys.path:
        for path in Path(place or ".").glob("nvidia/*/include/cublasLt.h"):
            return path.read_text()
    pytest.skip("needs NVIDIA's header: pip install nvidia-cublas")


def test_the_numbers_are_nvidia_s():
    theirs: dict[str, int] = {}
    for name, text in re.findall(
        rf"^ +CUBLASLT_((?:{'|'.join(PREFIXES.values())})_\w+) = (.*?),", header(), re.M
    ):
        words = text.replace("CUBLASLT_", "").strip("()").split(" | ")
        theirs[name] = sum(theirs[word] if word in theirs else int(word, 0) for word in words)
    source = (ROOT / "cuda/cublaslt.cuh").read_text()
    ours = re.findall(r"\b(DESC|PREF|EPILOGUE|REDUCTION)_(\w+) = (\d+)", source)
    assert len(ours) > 15
    for kind, name, number in ours:
        assert theirs[f"{PREFIXES[kind]}_{name}"] == int(number), name
