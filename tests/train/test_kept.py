"""--keep: older checkpoints by their steps. They belong to this run, are the newest, whole, and can be resumed; a kill
loses none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from test_checkpoint_faults import preloading

import pyllmc
from pyllmc.engine.checkpoint import training
from pyllmc.engine.run_files import metrics_lines
from pyllmc.text.dataset import write_dataset

SIZES = {
    "model": "gpt-nano",
    "max_seq_len": 16,
    "n_layer": 1,
    "B": 2,
    "T": 8,
    "val_every": 0,
    "sample_every": 2,
}


def train(**options) -> list[float]:
    return [event.loss for event in pyllmc.Trainer(**options) if event.kind == "step"]


def numbered(run: Path) -> list[int]:
    return sorted(int(path.stem[5:]) for path in run.glob("step_*.ckpt"))


def best_step(run: Path) -> int:
    return int(training(run / "best.ckpt")["state"]["step"])


@pytest.mark.parametrize("keep, kept", [(0, []), (1, [7]), (2, [6, 7]), (99, [2, 4, 6, 7])])
def test_the_newest_are_kept(keep, kept, data, tmp_path):
    train(data=data, out=tmp_path, max_steps=7, checkpoint_every=2, keep=keep, **SIZES)
    assert numbered(tmp_path) == kept
    assert not list(tmp_path.glob("*.tmp")) and len(list((tmp_path / "samples").iterdir())) == 4
    if kept:
        # a link, which takes no space
        assert (tmp_path / "last.ckpt").samefile(tmp_path / "step_00000007.ckpt")


def test_one_of_them_is_resumed_and_the_future_that_was_left_goes_if_that_is_wanted(data, tmp_path):
    losses = train(data=data, out=tmp_path, max_steps=8, checkpoint_every=2, keep=3, **SIZES)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.*")}
    with pytest.raises(
        pyllmc.InvalidArgument, match="is at step 4, and .* has come to step 8: name another --out, or"
    ):
        train(resume=tmp_path / "step_00000004.ckpt", max_steps=6)
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.*")} == before
    again = train(resume=tmp_path / "step_00000004.ckpt", max_steps=8, overwrite=True)
    assert again == losses[4:] and numbered(tmp_path) == [4, 6, 8]
    (tmp_path / "last.ckpt").unlink()  # a second name of the newest
    (tmp_path / "last.ckpt").write_bytes(b"broken")  # then the numbered ones say how far it has come
    with pytest.raises(pyllmc.InvalidArgument, match="has come to step 8"):
        train(resume=tmp_path / "step_00000004.ckpt", max_steps=6)
    assert train(resume=tmp_path / "step_00000008.ckpt", max_steps=9, keep=4) and numbered(tmp_path) == [
        4,
        6,
        8,
        9,
    ]
    train(resume=tmp_path / "step_00000004.ckpt", max_steps=6, overwrite=True)
    assert numbered(tmp_path) == [4, 6]
    train(resume=tmp_path, max_steps=7, keep=0)  # removes nothing
    assert numbered(tmp_path) == [4, 6]


def test_a_kill_after_going_back_does_not_bring_the_future_back(data, tmp_path):
    """The checkpoint that is gone back to is the last one from then on."""
    losses = train(data=data, out=tmp_path, max_steps=8, checkpoint_every=2, keep=9, **SIZES)
    trainer = pyllmc.Trainer(resume=tmp_path / "step_00000004.ckpt", overwrite=True, lr=0.05)
    assert next(event for event in trainer if event.kind == "step").step == 5
    del trainer  # as a kill would
    assert pyllmc.Model(tmp_path / "last.ckpt").step == 4 and numbered(tmp_path) == [2, 4]
    assert train(resume=tmp_path, max_steps=8) == losses[4:]
    steps = [line["step"] for _, line in metrics_lines(tmp_path) if "loss" in line]
    assert steps == list(range(1, 9))


def test_a_run_that_is_replaced_takes_them_along(data, tmp_path):
    train(data=data, out=tmp_path, max_steps=4, checkpoint_every=2, keep=3, **SIZES)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.ckpt")}
    trainer = pyllmc.Trainer(
        data=data, out=tmp_path, overwrite=True, max_steps=4, keep=3, checkpoint_every=0, **SIZES
    )
    for event in trainer:
        if event.kind == "step":
            break
    assert numbered(tmp_path) == [] and (tmp_path / "replaced/step_00000002.ckpt").exists()
    del trainer, event  # it saved nothing: the old run comes back
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.ckpt")} == before
    train(data=data, out=tmp_path, overwrite=True, max_steps=3, keep=3, checkpoint_every=0, **SIZES)
    assert numbered(tmp_path) == [3] and not (tmp_path / "replaced").exists()


def test_a_file_system_with_one_name_for_a_file(data, tmp_path):
    """FAT gives a file one name only. Here a library that refuses link(2) stands in for it: the checkpoints are
    copies."""
    source, library = tmp_path / "nolink.c", tmp_path / "nolink.so"
    source.write_text(
        "#include <errno.h>\nint link(const char *a, const char *b) { (void)a, (void)b; errno = EPERM; return -1; }\n"
    )
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source], check=True)
    code = "import sys, pyllmc; list(pyllmc.Trainer(**eval(sys.argv[1])))"
    options = {
        "data": str(data),
        "out": str(tmp_path / "run"),
        "max_steps": 4,
        "checkpoint_every": 2,
        "keep": 2,
        **SIZES,
    }
    environment = {**os.environ, **preloading(library)}
    subprocess.run(
        [sys.executable, "-c", code, repr(options)], check=True, cwd=ROOT, env=environment, timeout=60
    )
    assert numbered(tmp_path / "run") == [2, 4]
    last, copy = (tmp_path / "run/last.ckpt"), (tmp_path / "run/step_00000004.ckpt")
    assert not last.samefile(copy) and last.read_bytes() == copy.read_bytes()


@pytest.mark.parametrize("max_steps", [4, 5])
def test_a_name_that_a_kill_prevented_is_given_when_the_run_goes_on(max_steps, data, tmp_path):
    """Or when there is nothing left to do."""
    train(data=data, out=tmp_path, max_steps=4, checkpoint_every=2, keep=3, **SIZES)
    (tmp_path / "step_00000004.ckpt").unlink()
    train(resume=tmp_path, max_steps=max_steps)
    assert numbered(tmp_path) == [2, 4, 5][: max_steps - 2]


def test_a_later_best_goes_with_the_steps_that_are_given_up(data, tmp_path):
    """best.ckpt must not stand for a run that has gone back before it."""
    train(
        data=data, out=tmp_path, max_steps=8, checkpoint_every=2, keep=9, lr=1e-2, **{**SIZES, "val_every": 2}
    )
    assert best_step(tmp_path) == 8  # the loss still falls
    train(resume=tmp_path / "step_00000004.ckpt", max_steps=5, overwrite=True, val_every=0)
    assert not (tmp_path / "best.ckpt").exists() and numbered(tmp_path) == [2, 4, 5]
    train(resume=tmp_path, max_steps=6, val_every=2)
    assert best_step(tmp_path) == 6


def test_older_checkpoints_alone_are_a_run(data, tmp_path):
    """Without last.ckpt, another run with --keep would delete them as if they were its own."""
    train(data=data, out=tmp_path, max_steps=4, checkpoint_every=2, keep=2, **SIZES)
    for name in ("last.ckpt", "metrics.jsonl"):
        (tmp_path / name).unlink()
    with pytest.raises(
        pyllmc.InvalidArgument, match="holds a run's older checkpoints: replace them with --over"
    ):
        train(data=data, out=tmp_path, max_steps=2, keep=1, **SIZES)
    assert numbered(tmp_path) == [2, 4]


def test_a_config_txt_of_ones_own_stays(data, tmp_path):
    (tmp_path / "config.txt").write_text("mine\n")
    with pytest.raises(pyllmc.InvalidArgument, match="holds a config.txt that is no run's"):
        train(data=data, out=tmp_path, max_steps=2, **SIZES)
    assert (tmp_path / "config.txt").read_text() == "mine\n"
    (tmp_path / "config.txt").unlink()
    (tmp_path / "replaced").write_text("a file of this name is no run that was replaced")
    assert len(train(data=data, out=tmp_path, max_steps=2, **SIZES)) == 2
    assert (tmp_path / "replaced").exists()


def test_validation_data_of_another_tokenizer_are_refused(tmp_path):
    for name, text in (("a", "abc" * 99), ("b", "xyz" * 99)):
        write_dataset([text], tmp_path / name, tokenizer="char", val_fraction=0.5)
    options = {**SIZES, "data": tmp_path / "a", "max_steps": 1, "val_every": 1}
    assert len(train(**options, val_data=tmp_path / "a")) == 1
    with pytest.raises(pyllmc.InvalidArgument, match="has another tokenizer than --data.*--tokenizer .*a"):
        train(**options, val_data=tmp_path / "b")


def test_a_best_of_the_very_step_that_is_resumed_stays(data, tmp_path):
    train(
        data=data, out=tmp_path, max_steps=4, checkpoint_every=2, keep=9, lr=1e-2, **{**SIZES, "val_every": 2}
    )
    assert best_step(tmp_path) == 4
    train(resume=tmp_path, max_steps=8, lr=10, val_every=0)
    train(resume=tmp_path / "step_00000004.ckpt", max_steps=5, lr=10, overwrite=True, val_every=0)
    assert best_step(tmp_path) == 4
