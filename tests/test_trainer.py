"""The loop: learns, resumes bit for bit, does not depend on threads, and loses nothing when it is stopped or broken."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest

import pyllmc
from pyllmc import bins, prepro
from pyllmc.tokenizer import Tokenizer

TINY = {
    "model": "gpt-nano",
    "max_seq_len": 16,
    "n_layer": 2,
    "B": 3,
    "T": 7,
    "warmup_steps": 2,
    "log_every": 1,
}
QUIET = {"sample_every": 0, "val_every": 0, "checkpoint_every": 0}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Several shards of unequal size over a small alphabet."""
    out = tmp_path_factory.mktemp("data") / "letters"
    words = ["the cat sat on the mat", "a dog ran", "we all saw the sun and the moon"]
    prepro.write_dataset(
        [words[i % 3] * (1 + i % 4) for i in range(80)],
        out,
        tokenizer="char",
        val_fraction=0.1,
        shard_tokens=997,
    )
    assert len(list(out.glob("train*.bin"))) > 2
    return out


def eot_of(data: Path) -> int:
    return Tokenizer.load(data / "tokenizer.bin").eot


def losses(**options) -> list[float]:
    return [event.loss for event in pyllmc.Trainer(**options) if event.kind == "step"]


def metrics(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def without_times(lines: list[dict]) -> list[dict]:
    return [{k: v for k, v in line.items() if k not in ("ms", "tok_s")} for line in lines]


def test_it_learns(data):
    first, *_, last = losses(data=data, max_steps=60, lr=1e-2, **TINY, **QUIET)
    assert last < 0.7 * first


def test_a_run_writes_its_folder(data, tmp_path):
    run = tmp_path / "run"
    kinds = [
        event.kind
        for event in pyllmc.Trainer(
            data=data, out=run, max_steps=4, val_every=2, sample_every=4, checkpoint_every=3, **TINY
        )
    ]
    assert kinds[0] == "plan"
    assert kinds.count("step") == 4
    assert kinds.count("eval") == 3
    assert kinds.count("sample") == 1
    assert kinds.count("checkpoint") == 2
    assert {"config.txt", "metrics.jsonl", "last.ckpt", "best.ckpt", "samples"} <= {
        p.name for p in run.iterdir()
    }
    steps = [line for line in metrics(run) if "loss" in line]
    assert [set(line) for line in steps] == [{"step", "loss", "lr", "norm", "ms", "tok_s"}] * 4
    assert [line["step"] for line in metrics(run) if "val_loss" in line] == [0, 2, 4]
    assert (run / "samples" / "step_00000004.txt").exists()


@pytest.mark.parametrize("stop_at", [1, 4, 5])
def test_resume_is_bit_exact(data, tmp_path, stop_at):
    """Stopped at any step and resumed: the same metrics and the same file as the run that was not."""
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
        f.write('{"step": 4, "loss": 1}\n{"step": 5, "lo')  # as a kill between checkpoints leaves it
    list(pyllmc.Trainer(resume=run, max_steps=5))
    assert [line["step"] for line in metrics(run)] == [1, 2, 3, 4, 5]


def test_losses_do_not_depend_on_threads(data):
    options = {"data": data, "max_steps": 5, **TINY, **QUIET}
    assert losses(threads=1, **options) == losses(threads=2, **options) == losses(threads=5, **options)


def test_accumulation_equals_the_larger_batch(data):
    """k micro-steps of B and one step of k*B see the same windows and take the same step, up to rounding."""
    options = {**TINY, **QUIET, "data": data, "max_steps": 3}
    small = losses(**{**options, "B": 2, "grad_accum": 3})
    assert small == pytest.approx(losses(**{**options, "B": 6}), rel=2e-6)


def test_a_window_is_drawn_once_an_epoch(data):
    shards, eot = bins.find_shards(data), eot_of(data)
    loader = bins.Loader(shards, B=1, T=7, shuffle=True, seed=3, eot=eot)
    seen = [loader.next()[0].tobytes() for _ in range(loader.windows)]
    loader = bins.Loader(shards, B=1, T=7, shuffle=False, seed=3, eot=eot)
    assert sorted(seen) == sorted(loader.next()[0].tobytes() for _ in range(loader.windows))


def test_gradients_can_be_changed_before_they_are_applied(data):
    trainer = pyllmc.Trainer(data=data, max_steps=1, yield_gradients=True, weight_decay=0, **TINY, **QUIET)
    before = None
    for event in trainer:
        if event.kind == "gradients":
            before = trainer.model.params["qkvw"].copy()
            for name in trainer.model.grads:
                trainer.model.grads[name][...] = 0
    assert np.array_equal(trainer.model.params["qkvw"], before)


def test_a_broken_run_stops_names_the_tensor_and_keeps_its_checkpoint(data, tmp_path):
    run = tmp_path / "run"
    trainer = pyllmc.Trainer(
        data=data, out=run, max_steps=9, checkpoint_every=2, val_every=0, sample_every=0, **TINY
    )
    with pytest.raises(pyllmc.NotFinite, match=r"fcw.*resume"):
        for event in trainer:
            if event.kind == "step" and event.step == 3:
                trainer.model.params["transformer.h.1.mlp.c_fc.weight"][0, 0] = np.nan
    assert pyllmc.Model(run / "last.ckpt", B=1, T=4).step == 2
    assert list(trainer) == []  # it stays ended


def test_memory_that_is_not_there_is_refused_with_what_would_fit(data):
    with pytest.raises(pyllmc.OutOfMemory, match=r"memory plan: .* B=\d+ T=\d+ would fit"):
        list(pyllmc.Trainer(data=data, model="d48", B=65536, T=7, **QUIET))


def test_a_run_is_not_overwritten_unasked(data, tmp_path):
    options = {"data": data, "out": tmp_path / "run", "max_steps": 1, **TINY, **QUIET}
    list(pyllmc.Trainer(**options))
    with pytest.raises(pyllmc.InvalidArgument, match="--resume=.*--overwrite"):
        list(pyllmc.Trainer(**options))
    list(pyllmc.Trainer(overwrite=True, **options))


def test_zero_means_off(data, tmp_path):
    options = {**TINY, **QUIET, "warmup_steps": 0, "grad_clip": 0}
    events = list(pyllmc.Trainer(data=data, out=tmp_path / "run", max_steps=2, **options))
    assert [event.kind for event in events] == ["plan", "step", "step", "checkpoint"]


def test_no_steps_at_all(data):
    assert [event.kind for event in pyllmc.Trainer(data=data, max_steps=0, **TINY, **QUIET)] == ["plan"]


def test_plan_only(data):
    events = list(pyllmc.Trainer(data=data, plan=True, **TINY))
    assert [event.kind for event in events] == ["plan"]
    assert "memory plan" in events[0].text


def test_validation_does_not_move_the_training_data(data):
    """PEERS 15: a loop that trains on the last validation batch."""
    options = {"data": data, "max_steps": 6, "sample_every": 0, "checkpoint_every": 0, **TINY}
    assert losses(val_every=1, **options) == losses(val_every=0, **options)


@pytest.mark.parametrize("documents", [True, False])
def test_validation_is_the_mean_over_the_batches(data, documents):
    """Of windows that begin where documents do, unless that is turned off."""
    options = {"documents": documents, "val_batches": 2, "sample_every": 0, "checkpoint_every": 0, **TINY}
    trainer = pyllmc.Trainer(data=data, max_steps=0, val_every=1, **options)
    value = next(event.val_loss for event in trainer if event.kind == "eval")
    eot = eot_of(data) if documents else -1
    loader = bins.Loader(bins.find_shards(data, "val"), B=3, T=7, shuffle=False, seed=0, eot=eot)
    assert value == pytest.approx(
        np.mean([trainer.model.forward(*loader.next()) for _ in range(2)]), rel=1e-6
    )


def test_weights_of_a_file_are_the_start_and_their_vocabulary_must_fit(data, tmp_path):
    first = tmp_path / "a"
    list(pyllmc.Trainer(data=data, out=first, max_steps=2, **TINY, **QUIET))
    tuned = losses(data=data, model=first / "last.ckpt", max_steps=1, B=3, T=7, **QUIET)
    assert math.isfinite(tuned[0])
    other = tmp_path / "other"
    prepro.write_dataset(["quite another alphabet: 0123456789"] * 20, other, tokenizer="char")
    with pytest.raises(pyllmc.InvalidArgument, match="V="):
        pyllmc.Trainer(data=other, model=first / "last.ckpt", B=3, T=7)


def test_the_checkpoint_outlives_the_data_folder(data, tmp_path):
    """Everything but the tokens is in the file."""
    copy, run = tmp_path / "copy", tmp_path / "run"
    shutil.copytree(data, copy)
    list(pyllmc.Trainer(data=copy, out=run, max_steps=2, **TINY, **QUIET))
    shutil.rmtree(copy)
    with pytest.raises(pyllmc.SystemFailure, match="there is no data"):
        pyllmc.Trainer(resume=run, max_steps=4)
    list(pyllmc.Trainer(resume=run, max_steps=4, data=data))
