"""Runs that train LoRA's adapters, beside the run whose weights they adapt."""

# ruff: noqa: F401, F811 (fixtures are imported)
from __future__ import annotations

import shutil
from pathlib import Path

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
