"""The figures in docs/promises.md about lost work: whole runs by ./train_gpt2 under kills, faults, bad disks, shrinking files."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT, not_under_asan
from test_checkpoint_faults import preloading, shim  # noqa: F401, a fixture

import pyllmc

sys.path.insert(0, str(ROOT / "dev"))
import soak  # noqa: E402

BINARY = str(ROOT / "train_gpt2")
LENGTH = "--B=2 --T=16 --max_steps=4 --checkpoint_every=2 --val_every=3 --val_batches=2 --sample_every=0 --threads=1"
SETTINGS = [*soak.SIZES, *LENGTH.split()]


def start(*options: str, **kwargs) -> subprocess.CompletedProcess:
    return subprocess.run([BINARY, *options], capture_output=True, text=True, timeout=120, **kwargs)


def preload(library: Path, **env) -> dict[str, str]:
    return {**os.environ, **preloading(library), **env}


def check_refused(done: subprocess.CompletedProcess, *words: str) -> None:
    """Checks for one line with these words, and for the status of input and output."""
    assert done.returncode == 5, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    for word in words:
        assert word in done.stderr


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return soak.write_tokens(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory) -> Path:
    """A run that nothing disturbs."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert start(f"--data={data}", f"--out={folder}", *SETTINGS).returncode == 0
    return folder


@pytest.fixture(scope="module")
def half(data, tmp_path_factory) -> Path:
    """The same run, after two of its steps."""
    folder = tmp_path_factory.mktemp("half") / "run"
    done = subprocess.run(
        [sys.executable, "-c", HALF, data, folder, *SETTINGS], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return folder


HALF = """
import sys
import pyllmc
given = dict(option[2:].split("=") for option in sys.argv[3:])
trainer = pyllmc.Trainer(data=sys.argv[1], out=sys.argv[2], **given)
for event in trainer:
    if event.kind == "step" and event.step == 2:
        trainer.stop()
"""


def finish(folder: Path) -> tuple:
    done = start(f"--resume={folder}", "--max_steps=4")
    assert done.returncode == 0, done.stderr
    return soak.outcome(folder)


# ---- kills, faults ----


def test_kill_at_random_instants():
    """`python dev/soak.py kill --count 200` is the long form of this test."""
    done = subprocess.run(
        [sys.executable, ROOT / "dev/soak.py", "kill", "--count=6"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "6 of 6 end in the same bits" in done.stdout


@not_under_asan
@pytest.mark.parametrize("replaces", [False, True], ids=["resumed", "overwrite"])
def test_a_fault_at_every_write_of_a_run(replaces, data, whole, half, shim, tmp_path):  # noqa: F811
    """Each failure is one line. A resume of the files that are left reaches the bits of an undisturbed run: of the new
    run, or of the old one."""
    anew = [f"--data={data}", *SETTINGS, "--seed=7"]
    allowed = [soak.outcome(whole)]
    if replaces:
        assert start(f"--out={tmp_path / 'anew'}", *anew).returncode == 0
        allowed.append(soak.outcome(tmp_path / "anew"))
    ends = set()
    for k in range(1, 1000):
        run, log = tmp_path / "run", tmp_path / "fired"
        shutil.rmtree(run, ignore_errors=True)
        log.unlink(missing_ok=True)
        shutil.copytree(whole if replaces else half, run)
        options = ["--overwrite", f"--out={run}", *anew] if replaces else [f"--resume={run}", "--max_steps=4"]
        done = start(*options, env=preload(shim, FAIL_AT=str(k), FAIL_LOG=str(log)))
        if done.returncode:
            check_refused(done, "No space left on device")
        ends.add(allowed.index(finish(run)))
        if not log.exists():
            break
    assert k > 20
    assert ends == set(range(len(allowed)))


# ---- disks ----


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of its own in memory, which may be filled, enlarged and made read-only."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder], capture_output=True
    ).returncode:
        pytest.skip("only root may mount")
    yield folder
    subprocess.run(["umount", folder], check=True)


def remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)


def numbered(folder: Path) -> list[int]:
    """The steps of the numbered checkpoints; each checkpoint is whole."""
    found = sorted(folder.glob("step_*.ckpt"))
    steps = [pyllmc.Model(path, B=1, T=4, threads=1).step for path in found]
    assert [int(path.stem[5:]) for path in found] == steps
    return steps


def test_kept_checkpoints_under_kill_9(data, whole, tmp_path):
    """At any instant the checkpoints that exist are whole, and the run goes on from the newest to the same bits."""
    for i in range(8):
        run = tmp_path / str(i)
        options = [f"--data={data}", f"--out={run}", *SETTINGS, "--checkpoint_every=1", "--keep=2"]
        process = subprocess.Popen([BINARY, *options], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        while i and (line := process.stdout.readline()):
            if line.startswith(b"step %d" % ((i + 1) // 2)):
                break
        time.sleep(0.0007 * i)
        process.kill()
        process.communicate()
        numbered(run)
        if (run / "last.ckpt").exists():
            assert finish(run) == soak.outcome(whole)
            assert numbered(run)[-1] == 4 and len(numbered(run)) <= 2


@not_under_asan
@pytest.mark.parametrize("keep", [0, 3])
def test_a_full_disk(keep, small_disk, data, whole, half):
    """Saved files stay; with space again the run reaches the same bits. Several amounts of space are tried."""
    run, filler = small_disk / "run", small_disk / "filler"
    for room in range(0, 640, 80):
        shutil.rmtree(run, ignore_errors=True)
        filler.unlink(missing_ok=True)
        shutil.copytree(half, run)
        free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
        filler.write_bytes(bytes(max(0, free - room * 1024)))
        done = start(f"--resume={run}", "--max_steps=4", f"--keep={keep}")
        if done.returncode:
            check_refused(done, "No space left on device", "free some space")
        numbered(run)
        filler.unlink()
        assert finish(run) == soak.outcome(whole), room
        assert set(numbered(run)) <= {2, 3, 4}


def test_a_folder_that_is_read_only(small_disk, data, half):
    run = small_disk / "run"
    shutil.copytree(half, run)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    remount(small_disk, "ro")
    for options in (
        [f"--resume={run}", "--max_steps=4"],
        [f"--out={small_disk / 'new'}", f"--data={data}", *SETTINGS],
    ):
        check_refused(start(*options), "Read-only file system", "name a folder that may be written")
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


# ---- files that change while they are read ----

CHANGES = """
import sys
from pathlib import Path
import numpy as np
import torch
from safetensors.numpy import save_file
from pyllmc.text import bins
from pyllmc.convert import huggingface, pytorch
from pyllmc.base.errors import LlmcError
folder = Path(sys.argv[1])

def refused(name, read):
    try:
        read()
    except Exception as error:
        assert "changed while it was" in str(error), error
        print(name, type(error).__name__)

bins.write_shard(folder / "t.bin", list(range(50)) * 2000, vocab_size=50)
loader = bins.Loader([folder / "t.bin"], 1, 8, position=9000)
save_file({"x": np.ones((300, 1000), np.float32)}, folder / "x.safetensors")
tensors = huggingface.read_safetensors(folder / "x.safetensors")
torch.save({"x": torch.ones(300, 1000)}, folder / "x.pt")
kept = pytorch.read(folder / "x.pt")["x"]
for path in folder.iterdir():
    with open(path, "r+b") as file:
        file.truncate(4096)
refused("shard", loader.next)
refused("safetensors", tensors["x"].read)
assert float(kept.sum()) == 300000
print("torch kept")
"""


def test_files_that_shrink_kill_nobody(tmp_path):
    """Nothing is mapped, so a missing page is an error, not a SIGBUS."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CHANGES, tmp_path], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, (done.returncode, done.stderr)
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["shard", "safetensors", "torch"]


SHRINKING = """
import sys
import pyllmc
given = dict(option[2:].split("=") for option in sys.argv[3:])
for event in pyllmc.Trainer(data=sys.argv[1], out=sys.argv[2], **given):
    if event.kind == "step" and event.step == 3:
        for name in ("train_0", "train_1"):
            with open(f"{sys.argv[1]}/{name}.bin", "r+b") as file:
                file.truncate(1100)
"""


@not_under_asan
def test_data_that_shrinks_loses_no_step(data, whole, tmp_path):
    """The steps so far are saved, and with the data restored the run reaches the same bits."""
    copy, run = shutil.copytree(data, tmp_path / "data"), tmp_path / "run"
    command = [sys.executable, "-c", SHRINKING, copy, run, *SETTINGS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    last = done.stderr.splitlines()[-1]
    assert "it is truncated, or was changed while it was read" in last, done.stderr
    assert "the steps so far are saved, continue with --resume" in last
    shutil.copytree(data, copy, dirs_exist_ok=True)
    assert soak.state(run / "last.ckpt").startswith("step=3\n")
    assert finish(run) == soak.outcome(whole)
