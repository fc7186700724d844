"""How a run goes: its length in passes or tokens, growing batches, outliers, one batch learnt by heart. Resumed, it is the same."""

# ruff: noqa: F811 (fixtures are imported)
from __future__ import annotations

import math
import re
import statistics
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from test_trainer import QUIET, TINY, data, eot_of, metrics, without_times  # noqa: F401

import pyllmc
from pyllmc.draw.curves import read_run
from pyllmc.text import bins, dataset

ALL_ON = {
    "epochs": 0.5,
    "grad_accum": 3,
    "batch_ramp_tokens": 1500,
    "skip_outliers": 1.5,
    "patience": 50,
    "val_every": 20,
    "sample_every": 0,
    "checkpoint_every": 0,
    "lr": 0.01,
}


@pytest.fixture(scope="module")
def long_data(tmp_path_factory) -> Path:
    """More windows than `data` has, because outliers are looked for after 128 steps."""
    out = tmp_path_factory.mktemp("data") / "long"
    texts = ["the cat sat on the mat ", "a dog ran off ", "we all saw the sun and the moon "]
    dataset.write_dataset(
        [texts[i % 3] * (1 + i % 7) for i in range(500)], out, tokenizer="char", val_fraction=0.1
    )
    return out


def steps(events: list) -> list:
    return [event for event in events if event.kind == "step"]


def planned(plan: str) -> int:
    """The steps that epochs or tokens make."""
    return int(re.search(r"; --\w+=\S+ makes (\d+) steps?", plan)[1])


def sections(path: Path) -> dict[bytes, bytes]:
    """All of a checkpoint that the options of its call do not change: the weights, then its sections."""
    whole = path.read_bytes()
    at, found = whole.index(b"OPTIONS "), {}
    found[b"weights"] = whole[:at]
    while at < len(whole):
        tag, size = struct.unpack_from("<8sq", whole, at)
        found[tag] = whole[at + 16 : at + 16 + size]
        at += 16 + size
    return {name: found[name] for name in found if name not in (b"OPTIONS ", b"CRC32   ")}


def assert_same_run(a: Path, b: Path) -> None:
    assert without_times(metrics(a)) == without_times(metrics(b))
    for path in a.glob("*.ckpt"):
        ours, theirs = sections(path), sections(b / path.name)
        assert ours.keys() == theirs.keys() and b"STATE   " in ours
        for name, content in ours.items():
            assert content == theirs[name], (path.name, name)


def windows_of(data: Path, T: int = 7) -> bins.Loader:
    return bins.Loader(bins.find_shards(data), B=1, T=T, shuffle=True, seed=42, eot=eot_of(data))


# ---- epochs


@pytest.mark.parametrize("epochs, grad_accum", [(1, 1), (2, 4), (0.5, 4)])
def test_epochs_take_each_window_exactly_once_a_pass(data, epochs, grad_accum):
    """The tokens say so: what is left for the last step need not fill a batch."""
    windows = windows_of(data).windows
    wanted = math.ceil(epochs * windows)
    events = list(pyllmc.Trainer(data=data, epochs=epochs, grad_accum=grad_accum, **TINY, **QUIET))
    assert events[-1].tokens == wanted * TINY["T"]
    assert len(steps(events)) == -(-wanted // (TINY["B"] * grad_accum)) == planned(events[0].text)
    assert wanted % (TINY["B"] * grad_accum), "the last batch is not full: else this tests too little"
    # the schedule spans the run: the rate falls to nearly a tenth
    rates = [event.lr for event in steps(events)]
    assert rates[-1] < 0.12 * max(rates)
    assert f"--epochs={epochs:g} makes {len(rates)} steps" in events[0].text


def test_the_loss_of_a_short_last_step_is_that_of_its_windows(data):
    """As the model alone computes it from those windows, in a batch of that many; all of them weigh the same."""
    windows = windows_of(data).windows
    left = windows % (2 * TINY["B"])
    assert TINY["B"] < left < 2 * TINY["B"], "a full micro-step and a smaller one"
    last, expected, end = math.nan, math.nan, 0
    trainer = pyllmc.Trainer(data=data, epochs=1, grad_accum=2, **TINY, **QUIET)
    loader = windows_of(data)
    loader.position = windows - left
    batch = [np.concatenate(ids) for ids in zip(*(loader.next() for _ in range(left)))]
    for event in trainer:
        end = planned(event.text) if event.kind == "plan" else end
        if event.kind == "step":
            last = event.loss
            if event.step == end - 1:
                model = pyllmc.Model(trainer.model.config, B=left, T=7)
                for name in model.params:
                    model.params[name][...] = trainer.model.params[name]
                expected = model.forward(*batch)
    assert last == pytest.approx(expected, rel=1e-6)


def test_a_whole_epoch_is_what_as_many_steps_are(data):
    """Up to the last, smaller batch, and with the same schedule."""
    options = {"data": data, **TINY, **QUIET, "schedule": "constant"}
    by_epochs = steps(list(pyllmc.Trainer(epochs=1, **options)))
    by_steps = steps(list(pyllmc.Trainer(max_steps=len(by_epochs), **options)))
    assert [e.loss for e in by_epochs[:-1]] == [e.loss for e in by_steps[:-1]]


def test_a_run_of_epochs_goes_on_for_more(data, tmp_path):
    run, windows = tmp_path / "run", windows_of(data).windows
    list(pyllmc.Trainer(data=data, epochs=1, out=run, **TINY, **QUIET))
    assert "max_steps=" in (run / "config.txt").read_text()
    again = list(pyllmc.Trainer(resume=run))
    assert "--epochs=1 is reached: nothing to do, raise it" in again[-1].text
    more = list(pyllmc.Trainer(resume=run, epochs=3))
    assert more[-1].tokens == 3 * windows * TINY["T"]
    assert "epochs: 1 -> 3" in more[0].text
    # steps that the call gives count instead
    last = list(pyllmc.Trainer(resume=run, max_steps=more[-1].step + 2))
    assert last[-1].step == more[-1].step + 2 and "epochs: 3 -> 0" in last[0].text


def test_a_config_with_epochs_repeats_the_run(data, tmp_path):
    """It holds epochs and the max_steps that followed, which no longer count with other data or another B."""
    run = tmp_path / "run"
    first = list(pyllmc.Trainer(data=data, epochs=1, out=run, **TINY, **QUIET))
    again = list(pyllmc.Trainer(config=run / "config.txt", out=tmp_path / "again"))
    assert [e.loss for e in steps(first)] == [e.loss for e in steps(again)]
    assert len(steps(list(pyllmc.Trainer(config=run, B=6, out="")))) == -(-windows_of(data).windows // 6)
    assert len(steps(list(pyllmc.Trainer(config=run, max_steps=4, out="")))) == 4


def test_a_fine_tune_of_an_epoch_warms_up_for_a_tenth_of_it(data, tmp_path):
    list(pyllmc.Trainer(data=data, max_steps=1, out=tmp_path / "r", **TINY, **QUIET))
    plan = next(pyllmc.Trainer(data=data, model=tmp_path / "r", epochs=1, B=3, T=7)).text
    total = -(-windows_of(data).windows // 3)
    assert f"warm-up {min(50, total // 10)}," in plan


# ---- tokens


def test_a_schedule_in_tokens_is_that_in_steps_for_batches_of_one_size(data):
    each = TINY["B"] * TINY["T"]
    options = {"data": data, **QUIET, **{k: v for k, v in TINY.items() if k != "warmup_steps"}}
    in_steps = steps(list(pyllmc.Trainer(max_steps=40, warmup_steps=6, **options)))
    in_tokens = steps(list(pyllmc.Trainer(max_tokens=40 * each, warmup_tokens=6 * each, **options)))
    assert [e.lr for e in in_tokens] == pytest.approx([e.lr for e in in_steps], rel=1e-12)


def test_after_the_decay_the_final_rate_stays(data):
    each = TINY["B"] * TINY["T"]
    events = list(
        pyllmc.Trainer(data=data, max_tokens=30 * each - 5, decay_tokens=20 * each, lr=1e-3, **TINY, **QUIET)
    )
    rates = [event.lr for event in steps(events)]
    assert len(rates) == 30, "whole steps"
    assert rates[20:] == pytest.approx([1e-4] * 10)
    assert all(a > b for a, b in zip(rates[2:20], rates[3:21]))
    assert f"warm-up {2 * each} tokens, schedule cosine up to {20 * each} tokens" in events[0].text


def test_batches_grow_as_gpt3s(data, tmp_path):
    """The batch is the formula's at every step, and the run has as many steps as it takes."""
    each, accum, ramp, total = TINY["B"] * TINY["T"], 5, 2000, 4000
    trainer = pyllmc.Trainer(
        data=data,
        out=tmp_path / "run",
        grad_accum=accum,
        batch_ramp_tokens=ramp,
        max_tokens=total,
        **TINY,
        **QUIET,
    )
    events = list(trainer)
    seen, sizes = 0, []
    while seen < total:
        sizes.append(each * min(accum, 1 + (accum - 1) * seen // ramp))
        seen += sizes[-1]
    assert set(sizes) == {each * n for n in range(1, accum + 1)}
    assert [line["batch"] for line in metrics(tmp_path / "run")] == sizes
    assert [event.tokens for event in steps(events)] == list(np.cumsum(sizes))
    assert planned(events[0].text) == len(sizes)
    assert f"batch {sizes[-1]}" in steps(events)[-1].text
    assert f"batches grow from {each} to {accum * each} tokens over the first {ramp}" in events[0].text
    assert read_run(tmp_path / "run").tokens == seen, "the picture counts the tokens of each batch"


@pytest.mark.parametrize("ramp", [1, 10**12])
def test_the_longest_ramps_are_planned_at_once(data, ramp):
    trainer = pyllmc.Trainer(
        data=data, grad_accum=10**6, batch_ramp_tokens=ramp, max_tokens=10**15, plan=True, **TINY, **QUIET
    )
    assert planned(next(trainer).text) > 10**15 // (10**6 * TINY["B"] * TINY["T"])


# ---- resume


@pytest.mark.parametrize("stop_at", [(1,), (135, 150)])
def test_all_of_it_resumes_to_the_same_bits(long_data, tmp_path, stop_at):
    """Batches that grow, epochs, outliers that are left out, and the count of patience."""
    whole, run = tmp_path / "whole", tmp_path / "run"
    events = list(pyllmc.Trainer(data=long_data, out=whole, **TINY, **ALL_ON))
    skipped = [event.step for event in steps(events) if event.skipped]
    assert skipped and len(steps(events)) > 160, "else this tests too little"
    how = {"data": long_data, "out": run, **TINY, **ALL_ON}
    for at in stop_at:
        trainer = pyllmc.Trainer(**how)
        for event in trainer:
            if event.kind == "step" and event.step == at:
                trainer.stop()
        how = {"resume": run}
    list(pyllmc.Trainer(**how))
    assert_same_run(run, whole)


# ---- outliers


def z_scores(values: list[float]) -> list[float]:
    """The formula of llm.c's outlier_detector.h, from the 129th value on: the value itself is in the window."""
    found = [0.0] * min(128, len(values))
    for i in range(128, len(values)):
        window = values[i - 127 : i + 1]
        std = statistics.pstdev(window)
        found.append((values[i] - statistics.mean(window)) / std if std else 0.0)
    return found


def test_an_outlier_changes_nothing_and_is_told(long_data, tmp_path):
    run, limit = tmp_path / "run", 1.0
    trainer = pyllmc.Trainer(
        data=long_data,
        out=run,
        max_steps=250,
        skip_outliers=limit,
        weight_decay=0,
        **{**TINY, **QUIET, "log_every": 1000},
    )
    before, told = None, {}
    for event in trainer:
        if event.kind != "step":
            continue
        now = trainer.model.params["wte"].tobytes()
        assert event.skipped == (now == before), event.step
        before = now
        if event.skipped:
            told[event.step] = event.text
    lines = metrics(run)
    scores = {name: z_scores([line[name] for line in lines]) for name in ("loss", "norm")}
    expected = {}
    for i, line in enumerate(lines):
        for name in ("norm", "loss"):  # the loss is looked at first
            if scores[name][i] > limit:
                expected[line["step"]] = (name, scores[name][i])
    assert {what for what, _ in expected.values()} == {"loss", "norm"}, "else this tests too little"
    assert {line["step"]: line["skipped"] for line in lines if "skipped" in line} == {
        step: name for step, (name, _) in expected.items()
    }
    assert told.keys() == expected.keys()
    for step, (name, z) in expected.items():
        assert f"skipped: the {name} is an outlier, z-score {z:.2f}" in told[step]
        assert lines[step - 1]["z"] == pytest.approx(z, rel=1e-5)


def test_without_outliers_the_run_is_the_same(data):
    options = {"data": data, "max_steps": 140, **TINY, **QUIET}
    plain = [e.loss for e in steps(list(pyllmc.Trainer(**options)))]
    assert plain == [e.loss for e in steps(list(pyllmc.Trainer(skip_outliers=11, **options)))]


# ---- one batch


@pytest.mark.parametrize("grad_accum", [1, 2])
def test_one_batch_is_learnt_by_heart(data, grad_accum):
    """What follows a beginning that two of its windows share stays uncertain."""
    options = {**TINY, "grad_accum": grad_accum, "lr": 0.01}
    trainer = pyllmc.Trainer(data=data, overfit_batch=True, max_steps=200, **options, **QUIET)
    events = list(trainer)
    assert steps(events)[-1].loss < 0.1 < 1 < steps(events)[0].loss
    assert "on the first batch alone (--overfit_batch)" in events[0].text
    assert "on the one batch that it trained on (--overfit_batch)" in trainer.ending("x", "y")
    first = bins.Loader(bins.find_shards(data), B=3, T=7, shuffle=True, seed=42, eot=eot_of(data))
    expected = np.mean([trainer.model.forward(*first.next()) for _ in range(grad_accum)])
    assert steps(events)[-1].loss == pytest.approx(expected, rel=0.1)


def test_one_batch_resumes(data, tmp_path):
    options = {"data": data, "overfit_batch": True, "max_steps": 8, **TINY, **QUIET}
    list(pyllmc.Trainer(out=tmp_path / "whole", **options))
    trainer = pyllmc.Trainer(out=tmp_path / "run", **options)
    for event in trainer:
        if event.kind == "step" and event.step == 3:
            trainer.stop()
    list(pyllmc.Trainer(resume=tmp_path / "run"))
    assert_same_run(tmp_path / "run", tmp_path / "whole")


# ---- the plan, the table


def test_a_plan_tells_the_course_of_a_run(data):
    plan = [
        ROOT / "train_gpt2",
        f"--data={data}",
        "--plan",
        "--epochs=2",
        "--grad_accum=2",
        "--batch_ramp_tokens=100",
    ]
    done = subprocess.run(plan, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--epochs=2 makes " in done.stdout and "; batches grow from " in done.stdout
