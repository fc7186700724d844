"""The loop: it learns, resumes bit for bit, does not depend on threads, and loses nothing if it is stopped or fails."""

from __future__ import annotations

import json
import math
import re
import shutil
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
        list(pyllmc.Trainer(data=data, model="d12", B=65536, T=7, **QUIET))


def test_a_refusal_for_memory_names_both_ways_out(data):
    """It names a B that fits, and a recompute that fits, if both exist."""
    plan = next(pyllmc.Trainer(data=data, model="d12", T=512, plan=True, **QUIET)).text
    largest = int(re.search(r"with B up to (\d+)", plan)[1])
    with pytest.raises(pyllmc.OutOfMemory, match=r"recompute=3 would fit, or B=\d+ T=512$"):
        list(pyllmc.Trainer(data=data, model="d12", T=512, B=largest * 5 // 4, plan=True, **QUIET))


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


def content(run: Path) -> dict[str, bytes]:
    return {str(p.relative_to(run)): p.read_bytes() for p in sorted(run.rglob("*")) if p.is_file()}


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


def test_another_model_is_refused_by_a_run_that_goes_on(data, tmp_path):
    list(pyllmc.Trainer(data=data, out=tmp_path / "r", max_steps=1, **TINY, **QUIET))
    with pytest.raises(
        pyllmc.InvalidArgument, match="--model=gpt2-xl.*began as gpt-nano: leave the option out"
    ):
        pyllmc.Trainer(resume=tmp_path / "r", model="gpt2-xl")
    pyllmc.Trainer(resume=tmp_path / "r", model="gpt-nano")


def test_the_checkpoint_outlives_the_data_folder(data, tmp_path):
    """The file holds everything but the tokens."""
    copy, run = tmp_path / "copy", tmp_path / "run"
    shutil.copytree(data, copy)
    list(pyllmc.Trainer(data=copy, out=run, max_steps=2, **TINY, **QUIET))
    shutil.rmtree(copy)
    with pytest.raises(pyllmc.SystemFailure, match="there is no data"):
        pyllmc.Trainer(resume=run, max_steps=4)
    list(pyllmc.Trainer(resume=run, max_steps=4, data=data))


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


def test_two_runs_cannot_share_a_folder(data, tmp_path):
    first = pyllmc.Trainer(data=data, out=tmp_path / "r", max_steps=3, **TINY, **QUIET)
    next(first), next(first)
    with pytest.raises(pyllmc.InvalidArgument, match="in use by another run"):
        list(pyllmc.Trainer(data=data, out=tmp_path / "r", overwrite=True, max_steps=3, **TINY, **QUIET))


@pytest.mark.parametrize(
    "bad", [{"lr": math.nan}, {"lr": -1}, {"betas": (1.0, 1.0)}, {"eps": 0}, {"weight_decay": -1}]
)
def test_updates_that_would_poison_the_weights_are_refused(bad):
    m = pyllmc.Model(pyllmc.GPTConfig(9, 8, 1, 1, 4), B=1, T=8)
    before = m.params["wpe"].copy()
    with pytest.raises(pyllmc.InvalidArgument):
        m.update(**bad)
    assert np.array_equal(m.params["wpe"], before)
