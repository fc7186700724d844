"""A run that goes on, and a run in the place of another: the same bits, and nothing lost unasked."""

# ruff: noqa: F401, F811 (fixtures are imported)
from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from test_trainer import QUIET, TINY, content, data, losses, metrics, without_times

import pyllmc


@pytest.mark.parametrize("stop_at", [1, 4, 5])
def test_resume_is_bit_exact(data, tmp_path, stop_at):
    """Stopped at any step and resumed, a run has the same metrics and the same file as one that was not."""
    options = {
        "data": data,
        "max_steps": 8,
        "val_every": 3,
        "val_batches": 2,
        "sample_every": 0,
        "checkpoint_every": 0,
        "grad_accum": 2,
        **TINY,
    }
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    list(pyllmc.Trainer(out=whole, **options))
    trainer = pyllmc.Trainer(out=parts, **options)
    for event in trainer:
        if event.kind == "step" and event.step == stop_at:
            trainer.stop()
    list(pyllmc.Trainer(resume=parts))
    assert without_times(metrics(parts)) == without_times(metrics(whole))
    a, b = pyllmc.Model(whole / "last.ckpt", B=1, T=4), pyllmc.Model(parts / "last.ckpt", B=1, T=4)
    for name in a.params:
        assert a.params[name].tobytes() == b.params[name].tobytes(), name
        assert all(x.tobytes() == y.tobytes() for x, y in zip(a.moments[name], b.moments[name])), name


def test_metrics_written_after_the_checkpoint_are_dropped_on_resume(data, tmp_path):
    run = tmp_path / "run"
    list(pyllmc.Trainer(data=data, out=run, max_steps=3, **TINY, **QUIET))
    with open(run / "metrics.jsonl", "a") as f:
        f.write('{"step": 4, "loss": 1}\n{"step": 5, "lo')  # as a kill between two checkpoints leaves it
    list(pyllmc.Trainer(resume=run, max_steps=5))
    assert [line["step"] for line in metrics(run)] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("spelled", ["{}/", "{}/../run", "{}/samples/.."])
def test_a_run_goes_on_in_its_folder_however_that_is_spelled(spelled, data, tmp_path):
    run = tmp_path / "run"
    list(pyllmc.Trainer(data=data, out=run, max_steps=2, **TINY, **QUIET))
    list(pyllmc.Trainer(resume=run, out=spelled.format(run), max_steps=3))
    list(pyllmc.Trainer(resume=spelled.format(run), out=run, max_steps=4))
    assert [line["step"] for line in metrics(run)] == [1, 2, 3, 4]


def test_a_config_that_cannot_be_written_again_stays(data, tmp_path):
    """A full disk, or a kill, must not leave it empty, because a run can be repeated from it."""
    run = tmp_path / "run"
    list(pyllmc.Trainer(data=data, out=run, max_steps=2, **TINY, **QUIET))
    before = content(run)
    (run / "config.txt.tmp").mkdir()
    with pytest.raises(pyllmc.SystemFailure, match="config.txt cannot be written"):
        list(pyllmc.Trainer(resume=run, max_steps=3, lr=1e-5))
    assert content(run) == before


def test_a_run_is_not_overwritten_unasked(data, tmp_path):
    options = {"data": data, "out": tmp_path / "run", "max_steps": 1, **TINY, **QUIET}
    list(pyllmc.Trainer(**options))
    with pytest.raises(pyllmc.InvalidArgument, match="--resume=.*--overwrite"):
        list(pyllmc.Trainer(**options))
    list(pyllmc.Trainer(overwrite=True, **options))


def old_run(data, tmp_path) -> tuple[Path, dict[str, bytes]]:
    run = tmp_path / "run"
    list(pyllmc.Trainer(data=data, out=run, max_steps=2, val_every=1, sample_every=1, **TINY))
    (run / "samples/mine.txt").write_text("kept")
    return run, content(run)


def test_overwrite_is_of_one_call(data, tmp_path):
    """A checkpoint records it, but a resumed run does not adopt it."""
    for name in "ab":
        list(pyllmc.Trainer(data=data, out=tmp_path / name, overwrite=True, max_steps=2, **TINY, **QUIET))
    before = content(tmp_path / "b")
    with pytest.raises(pyllmc.InvalidArgument, match="--overwrite"):
        list(pyllmc.Trainer(resume=tmp_path / "a", out=tmp_path / "b", max_steps=4))
    assert content(tmp_path / "b") == before


@pytest.mark.parametrize("evaluates", [False, True])
def test_a_replaced_run_comes_back_unless_the_new_one_saves(evaluates, data, tmp_path):
    run, before = old_run(data, tmp_path)
    options = {
        "data": data,
        "out": run,
        "overwrite": True,
        "max_steps": 9,
        **TINY,
        **QUIET,
        "val_every": int(evaluates),
    }
    trainer = pyllmc.Trainer(**options)
    with pytest.raises(pyllmc.NotFinite):
        for event in trainer:
            if event.kind == "step" and event.step == 3:
                trainer.model.params["transformer.h.1.mlp.c_fc.weight"][0, 0] = np.nan
    assert content(run) == before
    list(pyllmc.Trainer(**options))
    after = content(run)
    assert after.pop("samples/mine.txt") == b"kept"
    assert set(after) == {"last.ckpt", "metrics.jsonl", "config.txt"} | (
        {"best.ckpt"} if evaluates else set()
    )
    assert not (run / "replaced").exists()


@pytest.mark.parametrize("after", ["moving", "replaced", "saved"])
def test_a_kill_while_a_run_is_replaced_leaves_one_of_them_whole(after, data, tmp_path):
    """The states that a kill can leave are made by hand; the next one to open the folder cleans it up."""
    run, before = old_run(data, tmp_path)
    new = tmp_path / "new"
    list(pyllmc.Trainer(data=data, out=new, max_steps=4, **TINY, **QUIET))
    aside = run / ("moving" if after == "moving" else "replaced")
    aside.mkdir()
    for name in before:
        if name != "samples/mine.txt" and not (after == "moving" and name in ("config.txt", "best.ckpt")):
            (run / name).rename(aside / Path(name).name)
    if after != "moving":
        shutil.copy(new / "metrics.jsonl", run)
        shutil.copy(new / "last.ckpt", run / ("last.ckpt" if after == "saved" else "best.ckpt"))
    with pytest.raises(pyllmc.InvalidArgument, match="holds a run: continue it with"):
        list(pyllmc.Trainer(data=data, out=run, **TINY, **QUIET))
    # already past that step
    list(pyllmc.Trainer(resume=run, data=data, max_steps=1, val_every=0, sample_every=0))
    left = content(run)
    if after == "saved":
        assert left["last.ckpt"] == (new / "last.ckpt").read_bytes()
        assert left["metrics.jsonl"] == (new / "metrics.jsonl").read_bytes()
    else:
        for name in before:
            assert name == "config.txt" or left[name] == before[name]  # a resumed run writes this one again
        assert set(left) == set(before)
    assert not aside.exists()


def test_a_validation_is_not_noted_twice(data, tmp_path):
    """A run stopped at a step that is due for validation leaves it to the resumed run; if that one is killed, to the
    next."""
    run = tmp_path / "run"
    trainer = pyllmc.Trainer(data=data, out=run, max_steps=8, val_every=2, sample_every=0, **TINY)
    for event in trainer:
        if event.kind == "step" and event.step == 4:
            trainer.stop()
    for _ in range(2):
        for event in pyllmc.Trainer(resume=run):
            if event.kind == "step":
                break
    list(pyllmc.Trainer(resume=run))
    assert [line["step"] for line in metrics(run) if "val_loss" in line] == [0, 2, 4, 6, 8]


def test_another_model_is_refused_by_a_run_that_goes_on(data, tmp_path):
    list(pyllmc.Trainer(data=data, out=tmp_path / "r", max_steps=1, **TINY, **QUIET))
    with pytest.raises(
        pyllmc.InvalidArgument, match="--model=gpt2-xl.*began as gpt-nano: leave the option out"
    ):
        pyllmc.Trainer(resume=tmp_path / "r", model="gpt2-xl")
    pyllmc.Trainer(resume=tmp_path / "r", model="gpt-nano")


def test_the_last_validation_loss_outlives_a_resume(data, tmp_path):
    """It is the last loss, not the best one, whose name has the same end."""
    run, options = tmp_path / "run", {**TINY, "lr": 0.5, "grad_clip": 0, "weight_decay": 0}
    trained = list(pyllmc.Trainer(data=data, out=run, max_steps=6, val_every=1, sample_every=0, **options))
    vals = [event.val_loss for event in trained if event.kind == "eval"]
    assert vals[-1] != min(vals)
    events = list(pyllmc.Trainer(resume=run, max_steps=7, val_every=0))
    assert [event.val_loss for event in events if event.kind == "step"] == [vals[-1]]


def test_resuming_elsewhere_does_not_overwrite_what_lies_there(data, tmp_path):
    for name in "ab":
        list(pyllmc.Trainer(data=data, out=tmp_path / name, max_steps=2, **TINY, **QUIET))
    before = (tmp_path / "b/last.ckpt").read_bytes()
    with pytest.raises(pyllmc.InvalidArgument, match="--overwrite"):
        list(pyllmc.Trainer(resume=tmp_path / "a", out=tmp_path / "b", max_steps=4))
    assert (tmp_path / "b/last.ckpt").read_bytes() == before
    # a file's folder is where its run goes on
    list(pyllmc.Trainer(resume=tmp_path / "a/last.ckpt", max_steps=4))
    assert [line["step"] for line in metrics(tmp_path / "a")] == [1, 2, 3, 4]


def test_a_checkpoint_without_moments_is_no_place_to_resume(data, tmp_path):
    list(pyllmc.Trainer(data=data, out=tmp_path / "r", max_steps=2, val_every=1, sample_every=0, **TINY))
    with pytest.raises(pyllmc.InvalidArgument, match="holds no moments.*--model"):
        list(pyllmc.Trainer(resume=tmp_path / "r/best.ckpt", max_steps=4))


def test_two_runs_cannot_share_a_folder(data, tmp_path):
    first = pyllmc.Trainer(data=data, out=tmp_path / "r", max_steps=3, **TINY, **QUIET)
    next(first), next(first)
    with pytest.raises(pyllmc.InvalidArgument, match="in use by another run"):
        list(pyllmc.Trainer(data=data, out=tmp_path / "r", overwrite=True, max_steps=3, **TINY, **QUIET))
