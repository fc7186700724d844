"""Runs that train LoRA's adapters, beside the run whose weights they adapt."""

# ruff: noqa: F401, F811 (fixtures are imported)
from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from test_trainer import QUIET, TINY, content, data

import pyllmc

ADAPTS = {"lora_rank": 2, "max_steps": 2, "B": 3, "T": 7, **QUIET}


@pytest.fixture
def base(data, tmp_path) -> Path:
    """A run with a best, a last and an older checkpoint."""
    run = tmp_path / "base"
    options = {"max_steps": 2, "val_every": 1, "checkpoint_every": 1, "keep": 2, "sample_every": 0}
    list(pyllmc.Trainer(data=data, out=run, **options, **TINY))
    return run


@pytest.mark.parametrize("name", ["", "best.ckpt", "last.ckpt", "step_00000001.ckpt"])
def test_adapters_do_not_replace_the_run_that_they_need(name, base, data, tmp_path):
    """Its weights would be removed after the first checkpoint, and the adapters be of no use."""
    before = content(base)
    assert not name or name in before
    (tmp_path / "link").symlink_to(base)
    for out in base, f"{base}/", tmp_path / "link":
        with pytest.raises(pyllmc.InvalidArgument, match="the adapters will need .*: name another --out"):
            pyllmc.Trainer(model=base / name, data=data, out=out, overwrite=True, **ADAPTS)
    assert content(base) == before


def test_adapters_of_adapters_do_not_replace_the_run_of_their_base(base, data, tmp_path):
    before = content(base)
    list(pyllmc.Trainer(model=base, data=data, out=tmp_path / "adapters", **ADAPTS))
    again = {"model": tmp_path / "adapters", "data": data, "overwrite": True, **ADAPTS}
    with pytest.raises(pyllmc.InvalidArgument, match="the adapters will need .*base/best.ckpt, which"):
        pyllmc.Trainer(out=base, **again)
    assert content(base) == before
    list(pyllmc.Trainer(out=tmp_path / "adapters", **again))  # a run of adapters may go: its base stays


def test_a_base_that_is_no_checkpoint_of_the_run_may_lie_beside_it(base, data, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    shutil.copy(base / "best.ckpt", out / "mine.ckpt")
    for _ in range(2):
        list(pyllmc.Trainer(model=out / "mine.ckpt", data=data, out=out, overwrite=True, **ADAPTS))
    assert (out / "mine.ckpt").read_bytes() == (base / "best.ckpt").read_bytes()


def test_a_base_that_holds_adapters_now_is_refused(base, data, tmp_path):
    """Also if they are those that are opened, which would go on for ever."""
    run = tmp_path / "adapters"
    list(pyllmc.Trainer(model=base / "best.ckpt", data=data, out=run, **ADAPTS))
    shutil.copy(run / "last.ckpt", base / "best.ckpt")
    for path in run, base / "best.ckpt":
        with pytest.raises(pyllmc.BadFile, match="which holds adapters itself: put back the model"):
            pyllmc.Model(path)


def logits(model: Path) -> np.ndarray:
    read = pyllmc.Model(model, B=1, T=7)
    read.forward([[1, 2, 3, 4, 5, 6, 7]])
    return read.logits.copy()


def go_on(run: Path, data: Path) -> None:
    """Lets a run change the weights that it is named for."""
    list(pyllmc.Trainer(resume=run, data=data, max_steps=4, checkpoint_every=1, val_every=1))


def test_adapters_outlive_the_run_of_their_base(base, data, tmp_path):
    """Its weights have a second name in the folder of the adapters, with which they may be moved, copied, trained further and
    replaced by others."""
    run, further = tmp_path / "adapters", tmp_path / "further"
    list(pyllmc.Trainer(model=base, data=data, out=run, **ADAPTS))
    expected = logits(run)
    assert (run / "lora_base.ckpt").samefile(base / "best.ckpt"), "no bytes are copied"
    go_on(base, data)
    assert not (run / "lora_base.ckpt").samefile(base / "best.ckpt")
    np.testing.assert_array_equal(logits(run), expected)
    shutil.rmtree(base)
    shutil.copytree(run, tmp_path / "copy")
    run.rename(tmp_path / "moved")
    for place in tmp_path / "copy", tmp_path / "moved":
        np.testing.assert_array_equal(logits(place), expected)
    list(pyllmc.Trainer(resume=tmp_path / "moved", data=data, max_steps=3))
    for out in further, further, tmp_path / "copy":
        list(pyllmc.Trainer(model=tmp_path / "copy", data=data, out=out, overwrite=True, **ADAPTS))
        assert (out / "lora_base.ckpt").samefile(tmp_path / "copy" / "lora_base.ckpt")
        assert logits(out).shape == expected.shape
    assert not list(tmp_path.rglob("*.tmp")) and not list(tmp_path.rglob("replaced"))


def test_an_older_run_of_adapters_gets_its_base_when_it_goes_on(base, data, tmp_path):
    run = tmp_path / "adapters"
    list(pyllmc.Trainer(model=base, data=data, out=run, **ADAPTS))
    (run / "lora_base.ckpt").unlink()
    list(pyllmc.Trainer(resume=run, data=data, max_steps=3))
    assert (run / "lora_base.ckpt").samefile(base / "best.ckpt")


def test_a_run_that_replaces_adapters_leaves_no_base(base, data, tmp_path):
    run = tmp_path / "adapters"
    list(pyllmc.Trainer(model=base, data=data, out=run, **ADAPTS))
    before = content(run)
    trainer = pyllmc.Trainer(data=data, out=run, overwrite=True, max_steps=1, **{**TINY, **QUIET})
    assert next(event for event in trainer if event.kind == "step")
    assert not (run / "lora_base.ckpt").exists()
    del trainer
    assert content(run) == before, "the adapters came back with their base"
    list(pyllmc.Trainer(data=data, out=run, overwrite=True, max_steps=1, **{**TINY, **QUIET}))
    assert not list(run.rglob("lora_base.ckpt"))


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="no second file system")
def test_a_base_that_has_no_second_name_is_found_by_its_path(base, data, tmp_path):
    """The kernel gives none from one file system to another."""
    elsewhere = Path(tempfile.mkdtemp(dir="/dev/shm"))
    try:
        out = elsewhere / "run"
        out.mkdir()
        (out / "lora_base.ckpt").write_bytes(b"of an earlier run")
        list(pyllmc.Trainer(model=base, data=data, out=out, **ADAPTS))
        assert not (out / "lora_base.ckpt").exists()
        assert np.isfinite(logits(out)).all()
    finally:
        shutil.rmtree(elsewhere)


def test_adapters_that_lie_together_find_each_its_base(base, data, tmp_path):
    """The folder has the base of the first beside them."""
    first, second = "best.ckpt", "step_00000001.ckpt"
    together = tmp_path / "together"
    together.mkdir()
    for name in first, second:
        list(pyllmc.Trainer(model=base / name, data=data, out=tmp_path / name, **ADAPTS))
        shutil.copy(tmp_path / name / "last.ckpt", together / f"of_{name}")
    shutil.copy(tmp_path / first / "lora_base.ckpt", together)
    for name in first, second:
        np.testing.assert_array_equal(logits(together / f"of_{name}"), logits(tmp_path / name))
    (base / second).unlink()
    with pytest.raises(pyllmc.BadFile, match="of other weights than .*together/lora_base.ckpt has now"):
        logits(together / f"of_{second}")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"lora_alpha": 12}, "lora_alpha=2 on matrices 15, the model is made for 2, 12 and 15"),
        ({"lora_alpha": 2, "lora_on": "qkv"}, "on matrices 15, the model is made for 2, 2 and 1"),
    ],
)
def test_adapters_with_another_factor_or_on_other_matrices_are_refused(
    options, message, base, data, tmp_path
):
    list(pyllmc.Trainer(model=base, data=data, out=tmp_path / "run", lora_alpha=2, **ADAPTS))
    with pytest.raises(pyllmc.InvalidArgument, match=message):
        pyllmc.Model(tmp_path / "run", lora_rank=2, **options)
