"""The loop: it learns, does not depend on threads, and loses nothing if it is stopped or fails."""

from __future__ import annotations

import json
import math
import re
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import pyllmc
from pyllmc.text import bins, dataset
from pyllmc.text.tokenizer import Tokenizer

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
    dataset.write_dataset(
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


def content(run: Path) -> dict[str, bytes]:
    return {str(p.relative_to(run)): p.read_bytes() for p in sorted(run.rglob("*")) if p.is_file()}


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


def test_a_thread_that_writes_with_the_model_in_training_waits_for_its_turn(data):
    """Without turns it writes over the activations of the step under way."""
    options = {"data": data, **TINY, **QUIET, "B": 8, "T": 16, "max_steps": 300, "threads": 1}
    alone = losses(**options)
    trainer = pyllmc.Trainer(**options)
    events = [next(trainer), next(trainer)]  # the plan, after which the model is made, and a step
    model, ended = trainer.model, threading.Event()

    def write() -> int:
        n = 0
        while not ended.is_set():
            model.generate([1, 2, 3], 12)
            n += 1
        return n

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write)
        together = [event.loss for event in (*events, *trainer) if event.kind == "step"]
        ended.set()
    assert together == alone and writing.result() > 0


def test_a_file_of_the_model_in_training_has_the_tokenizer(data, tmp_path):
    trainer = pyllmc.Trainer(data=data, max_steps=1, **TINY)
    list(trainer)
    trainer.model.save(tmp_path / "x.ckpt")
    assert pyllmc.Model(tmp_path / "x.ckpt").tokenizer_bytes == trainer.tokenizer_bytes != b""
    trainer.model.forward([[1, 2]], [[2, 3]])
    with pytest.raises(
        pyllmc.InvalidArgument, match=r"logits is not kept: .*save\(path\), and look into"
    ) as error:
        print(trainer.model.logits)
    assert "keep_logits" not in str(error.value), "no trainer has that"


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
        list(pyllmc.Trainer(data=data, model="d12", B=65536, T=7, **QUIET))


def test_a_refusal_for_memory_names_both_ways_out(data):
    """It names a B that fits, and a recompute that fits, if both exist."""
    plan = next(pyllmc.Trainer(data=data, model="d12", T=512, plan=True, **QUIET)).text
    largest = int(re.search(r"with B up to (\d+)", plan)[1])
    with pytest.raises(pyllmc.OutOfMemory, match=r"recompute=[34] would fit, or B=\d+ T=512$"):
        list(pyllmc.Trainer(data=data, model="d12", T=512, B=largest * 5 // 4, plan=True, **QUIET))


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
    """Windows begin where documents do, unless that is turned off."""
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
    dataset.write_dataset(["quite another alphabet: 0123456789"] * 20, other, tokenizer="char")
    with pytest.raises(pyllmc.InvalidArgument, match="V="):
        pyllmc.Trainer(data=other, model=first / "last.ckpt", B=3, T=7)


def test_ids_that_mean_something_else_are_refused(data, tmp_path):
    """Another tokenizer has the same V, but a z where this one has an m."""
    run, other = tmp_path / "run", tmp_path / "other"
    list(pyllmc.Trainer(data=data, out=run, max_steps=2, **TINY, **QUIET))
    before = content(run)
    words = ["the cat sat on the mat", "a dog ran", "we all saw the sun and the moon"]
    dataset.write_dataset([word.replace("m", "z") for word in words] * 40, other, tokenizer="char")
    assert (
        Tokenizer.load(other / "tokenizer.bin").vocab_size
        == Tokenizer.load(data / "tokenizer.bin").vocab_size
    )
    for options in ({"resume": run}, {"model": run}):
        with pytest.raises(pyllmc.InvalidArgument, match="another tokenizer.*prepare the data with"):
            list(pyllmc.Trainer(data=other, max_steps=4, B=3, T=7, **options))
    with pytest.raises(pyllmc.InvalidArgument, match="another tokenizer"):
        pyllmc.Trainer(resume=run, tokenizer=other / "tokenizer.bin")
    assert content(run) == before


def test_the_checkpoint_outlives_the_data_folder(data, tmp_path):
    """The file holds everything but the tokens."""
    copy, run = tmp_path / "copy", tmp_path / "run"
    shutil.copytree(data, copy)
    list(pyllmc.Trainer(data=copy, out=run, max_steps=2, **TINY, **QUIET))
    shutil.rmtree(copy)
    with pytest.raises(pyllmc.SystemFailure, match="there is no data"):
        pyllmc.Trainer(resume=run, max_steps=4)
    list(pyllmc.Trainer(resume=run, max_steps=4, data=data))


def test_sizes_that_a_file_does_not_have_are_refused(data, tmp_path):
    list(pyllmc.Trainer(data=data, out=tmp_path / "r", max_steps=1, **TINY, **QUIET))
    with pytest.raises(pyllmc.InvalidArgument, match=r"--n_layer=5, but .* has 2"):
        pyllmc.Trainer(data=data, model=tmp_path / "r/last.ckpt", n_layer=5, T=7)


@pytest.mark.parametrize("window, other", [(4, 0), (4, 5), (0, 4)])
def test_a_window_that_a_file_does_not_have_is_refused(data, tmp_path, window, other):
    """An explicit 0 is refused, too; the value in a checkpoint does not count as given."""
    list(pyllmc.Trainer(data=data, out=tmp_path / "a", max_steps=1, window=window, **TINY, **QUIET))
    banded = tmp_path / "a/last.ckpt"
    with pytest.raises(pyllmc.InvalidArgument, match=rf"--window={other}, but .* has {window}: leave"):
        pyllmc.Trainer(data=data, model=banded, window=other, T=7)
    how = dict(data=data, model=banded, out=tmp_path / "b", max_steps=1, B=3, T=7, **QUIET)
    plan = next(iter(pyllmc.Trainer(**how))).text
    assert ("window=4" in plan) == (window == 4)
    list(pyllmc.Trainer(**how, overwrite=True))
    list(pyllmc.Trainer(resume=tmp_path / "b", max_steps=2))
    with pytest.raises(pyllmc.InvalidArgument, match=f"--window={other}"):
        pyllmc.Trainer(resume=tmp_path / "b", window=other, max_steps=3)


def test_broken_validation_data_is_an_error_not_silence(data, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(data, copy)
    shard = copy / "val_000000.bin"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(pyllmc.BadFile, match="val_000000.bin"):
        pyllmc.Trainer(data=copy, **TINY)


def test_an_impossible_prompt_is_refused_before_the_first_step(data):
    with pytest.raises(pyllmc.LlmcError, match="(?i)character|alphabet|encode|byte"):
        pyllmc.Trainer(data=data, prompt="Ünknown", **TINY)


def test_the_tokenizer_travels_with_a_saved_model(data, tmp_path):
    list(pyllmc.Trainer(data=data, out=tmp_path / "r", max_steps=1, **TINY, **QUIET))
    pyllmc.Model(tmp_path / "r/last.ckpt", B=1).save(tmp_path / "copy.ckpt")
    texts = []
    for path in (tmp_path / "r/last.ckpt", tmp_path / "copy.ckpt"):
        writer = pyllmc.Writer(pyllmc.Model(path, B=1, training=False))
        texts.append(writer.write("cat", max_new_tokens=20))
    assert texts[0] == texts[1]


def test_data_that_breaks_during_a_run_costs_no_step(data, tmp_path):
    """The steps so far are saved, and with the data repaired the run ends as if nothing had happened."""
    copy, run, whole = tmp_path / "copy", tmp_path / "run", tmp_path / "whole"
    shutil.copytree(data, copy)
    options = {
        "data": copy,
        "max_steps": 8,
        "B": 3,
        "T": 7,
        **QUIET,
        **{k: v for k, v in TINY.items() if k not in "BT"},
    }
    list(pyllmc.Trainer(out=whole, **options))
    shards = {path: path.read_bytes() for path in copy.glob("train*.bin")}
    with pytest.raises(pyllmc.LlmcError, match="the steps so far are saved"):
        for event in pyllmc.Trainer(out=run, **options):
            if event.kind == "step" and event.step == 4:
                for path, content in shards.items():
                    path.write_bytes(content[:1500])
    for path, content in shards.items():
        path.write_bytes(content)
    list(pyllmc.Trainer(resume=run))
    assert without_times(metrics(run)) == without_times(metrics(whole))


@pytest.mark.parametrize(
    "bad", [{"lr": math.nan}, {"lr": -1}, {"betas": (1.0, 1.0)}, {"eps": 0}, {"weight_decay": -1}]
)
def test_updates_that_would_poison_the_weights_are_refused(bad):
    m = pyllmc.Model(pyllmc.GPTConfig(9, 8, 1, 1, 4), B=1, T=8)
    before = m.params["wpe"].copy()
    with pytest.raises(pyllmc.InvalidArgument):
        m.update(**bad)
    assert np.array_equal(m.params["wpe"], before)


def test_every_sample_has_random_numbers_of_its_own(data):
    """A model that does not change would else write the same again."""
    events = pyllmc.Trainer(
        data=data,
        out="",
        max_steps=6,
        sample_every=1,
        sample_tokens=40,
        temperature=1000,
        train_only="wpe",
        lr=1e-30,
        **TINY,
    )
    texts = [event.text for event in events if event.kind == "sample"]
    assert len(texts) == 6 and len(set(texts)) > 3
