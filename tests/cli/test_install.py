"""pip's output: the sdist is the whole source; the wheel has its engine and the right tag, and works in an empty
folder."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT

pytestmark = pytest.mark.skipif("PYLLMC_LIB" in os.environ, reason="builds the ordinary library")

VARIABLES = ("MAKEFLAGS", "PYTHONPATH", "PYLLMC_LIB", "PYLLMC_ISA", "PYLLMC_DEVICES")
LEFT_OUT = (
    ".ci/",
    ".gitignore",
    "MANIFEST.in",
)  # only in the repository: not in an sdist, or handled by setuptools itself
HOOK = "import sys; from setuptools import build_meta; getattr(build_meta, sys.argv[1])(sys.argv[2])"


def run(*command: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    kept = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**kept, **environment},
        capture_output=True,
        text=True,
        timeout=400,
    )


def hook(name: str, source: Path, out: Path, **environment: str) -> subprocess.CompletedProcess:
    """Calls build_sdist or build_wheel for a source folder, as pip and build do, without the network."""
    return run(sys.executable, "-c", HOOK, name, out, cwd=source, **environment)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("install")


@pytest.fixture(scope="module")
def source(place) -> Path:
    """The sdist, unpacked."""
    made = hook("build_sdist", ROOT, place)
    assert made.returncode == 0, made.stderr
    (archive,) = place.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(place)
    return place / archive.name[: -len(".tar.gz")]


@pytest.fixture(scope="module")
def wheel(place, source) -> Path:
    """A wheel made from the sdist alone. The checkout's objects are as old as its sources, so make compiles nothing
    again."""
    objects = place / "objects"
    folders = [ROOT / "build" / isa for isa in os.listdir(ROOT / "build") if "." not in isa]
    kept = [folder for folder in folders if (folder / "gemm.o").exists() or folder.name == "cpu"]
    for folder in kept:
        shutil.copytree(folder, objects / folder.name, copy_function=shutil.copy2)
    for file in [*(ROOT / "build").glob("*.o"), ROOT / "build" / "flags"]:
        shutil.copy2(file, objects / file.name)
    made = hook("build_wheel", source, place, BUILD=os.path.relpath(objects, source))
    assert made.returncode == 0, made.stderr
    (found,) = place.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def python(place, wheel) -> Path:
    """A fresh environment with the wheel; numpy and the other packages come from the environment that runs the
    tests."""
    assert run(sys.executable, "-m", "venv", "--without-pip", place / "venv", cwd=place).returncode == 0
    python = place / "venv" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--no-index", "--no-deps", wheel]
    made = run(*pip, cwd=place)
    assert made.returncode == 0, made.stderr
    said = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=place)
    borrowed = {str(Path(__import__(name).__file__).parent.parent) for name in ("numpy", "cffi")}
    Path(said.stdout.strip(), "borrowed.pth").write_text("\n".join(sorted(borrowed)))
    return python


def test_the_sdist_is_the_whole_source(source):
    tracked = run("git", "ls-files", cwd=ROOT)
    if tracked.returncode:
        pytest.skip("not in a git repository: nothing to compare the sdist with")
    names = [name for name in tracked.stdout.splitlines() if not name.startswith(LEFT_OUT)]
    assert [name for name in names if (ROOT / name).exists() and not (source / name).exists()] == []
    assert not [path for path in source.rglob("*.so")]


def test_the_wheel_has_the_engine_and_says_so(wheel):
    platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    assert wheel.name.endswith(f"-py3-none-{platform}.whl")
    names = zipfile.ZipFile(wheel).namelist()
    wanted = ("libpyllmc.so", "options.def", "tensors.def", "pyllmc.h", "train_gpt2.py", "isas.def")
    assert {f"pyllmc/lib/{name}" for name in wanted} <= set(names)
    assert not [name for name in names if "purelib" in name or "emu" in name or name.startswith("tests")]
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "pyllmc").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == {*modules, "pyllmc/lib/train_gpt2.py"}


TRAINING = """
import numpy as np, pyllmc
assert "venv" in pyllmc.__file__, pyllmc.__file__
m = pyllmc.Model("gpt-nano", B=2, T=8, vocab_size=65)
x = np.arange(16).reshape(2, 8)
losses = [m.micro_step(x, (x + 1) % 65, accumulate=False) for _ in range(5) if not m.update(lr=1e-2)]
assert losses[-1] < losses[0], losses
"""


def test_the_installed_package_trains_from_python(python, tmp_path):
    done = run(python, "-c", TRAINING, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_installed_commands_work_in_an_empty_folder(python, tmp_path):
    """The default data is made there; then the steps of a user follow: train, sample, grade, convert, check."""
    train = ["train", "--out=run", "--max_steps=2", "--val_batches=1", "--sample_tokens=2", "--B=1", "--T=32"]
    ways = {
        "pyllmc": "python -m pyllmc.train",
        "pyllmc.train": "loss",
        "pyllmc.sample": "",
        "pyllmc.grade": "run writes no stories",
        "pyllmc.convert": "wrote",
        "pyllmc.check": "every tensor agrees",
    }
    calls = [
        [],
        train,
        ["sample", "run", "--max_new_tokens=3"],
        ["grade", "run", "--count=1"],
        ["convert", "run", "run.bin", "--tokenizer=none"],
        ["check", "run", "--B=1", "--T=4"],
    ]
    for (module, word), call in zip(ways.items(), calls):
        done = run(python, "-m", module, *call[1:], cwd=tmp_path)
        code = 2 if module == "pyllmc.grade" else 0  # after two steps there is no story to grade
        assert done.returncode == code, f"{module}: {done.stderr}"
        assert word in (done.stderr if code else done.stdout), module
    assert (tmp_path / "data" / "stories" / "meta.json").exists()


def test_the_installed_plan_knows_what_was_measured(python, tmp_path):
    """It is the plan of the checkout, to the letter."""
    plan = ["-m", "pyllmc.plan", "--nodes=8", "--network=1Gbit", "--device=amx"]
    there, here = run(python, *plan, cwd=tmp_path), run(sys.executable, *plan, cwd=ROOT)
    assert (there.returncode, there.stdout) == (0, here.stdout), there.stderr


@pytest.mark.parametrize("missing", ["make", "no-such-compiler"])
def test_without_make_or_a_compiler_one_line_says_what_to_install(source, tmp_path, missing):
    (tmp_path / "cc").symlink_to("/bin/true")
    environment = {"PATH": str(tmp_path)} if missing == "make" else {"CC": missing}
    made = hook("build_wheel", source, tmp_path, **environment)
    assert made.returncode != 0 and "Traceback" not in made.stderr
    assert [line for line in made.stderr.splitlines() if line.startswith("error: ")] == [
        f"error: pyllmc's engine is compiled here, and there is no {missing}: apt-get install make gcc, "
        "or name a compiler: CC=clang pip install ..."
    ]


def test_a_device_that_is_none_is_refused(source, tmp_path):
    made = hook("build_wheel", source, tmp_path, PYLLMC_DEVICES="gpu")
    assert made.returncode != 0 and "PYLLMC_DEVICES=gpu: the devices are cpu, cuda, emu" in made.stderr


def test_an_editable_install_builds_nothing_where_make_does(source, tmp_path):
    """In `make setup` make builds the engine, so that pip is quick and two builds do not collide in one folder."""
    made = hook("build_editable", source, tmp_path, PYLLMC_DEVICES="")
    assert made.returncode == 0, made.stderr
    assert not (source / "pyllmc" / "lib").exists()
    recipes = (ROOT / "Makefile").read_text().splitlines()
    assert all("PYLLMC_DEVICES= " in line for line in recipes if "--editable" in line)


def test_every_variable_that_is_read_is_documented():
    """The variables that setup.py and the running code read stand in docs/install.md."""
    files = [path for room in ("csrc", "cuda", "pyllmc") for path in (ROOT / room).rglob("*.[chp]*")]
    text = "".join(
        path.read_text()
        for path in [*files, ROOT / "setup.py"]
        if path.suffix in (".c", ".h", ".cu", ".cuh", ".cpp", ".py")
    )
    read = set(re.findall(r"""["'](PYLLMC_[A-Z_]+)["']""", text))
    assert read >= {"PYLLMC_LIB", "PYLLMC_ISA", "PYLLMC_DEVICES", "PYLLMC_GRAPHS"}
    documented = set(re.findall(r"`(PYLLMC_[A-Z_]+)`", (ROOT / "docs/install.md").read_text()))
    assert read <= documented
