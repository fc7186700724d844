"""Validation in training: a run ends when its loss no longer falls, and with several sets the first decides what is best."""

# ruff: noqa: F811 (fixtures are imported)
from __future__ import annotations

import math
import shutil

import numpy as np
import pytest
from test_course import assert_same_run, long_data  # noqa: F401
from test_trainer import TINY, data, eot_of, metrics, without_times  # noqa: F401

import pyllmc
from pyllmc.draw import losses as drawn
from pyllmc.draw.curves import read_run
from pyllmc.engine.checkpoint import training
from pyllmc.text import bins, dataset
from pyllmc.text.tokenizer import Tokenizer

# ---- patience


def worse(data, **more) -> dict:
    """A rate at which the loss only gets worse."""
    return {
        "data": data,
        **TINY,
        "lr": 300,
        "grad_clip": 0,
        "weight_decay": 0,
        "sample_every": 0,
        "val_every": 2,
        "max_steps": 60,
        **more,
    }


def test_patience_ends_a_run_that_gets_no_better(data, tmp_path):
    run = tmp_path / "run"
    trainer = pyllmc.Trainer(out=run, **worse(data, patience=3))
    events = list(trainer)
    vals = [event.val_loss for event in events if event.kind == "eval"]
    best = int(np.argmin(vals))
    assert events[-1].step < 60 and len(vals) - 1 - best == 3 == sum(
        v >= vals[best] for v in vals[best + 1 :]
    )
    why = f"stopped early: 3 validations in a row without a better loss than {vals[best]:.4f} at step {2 * best}"
    assert why in [event.text for event in events if event.kind == "eval"][-1]
    ending = trainer.ending("./train_gpt2", "python")
    assert (
        f"{why} (--patience=3)\n" in ending
        and f"best: val loss {vals[best]:.4f} at step {2 * best}" in ending
    )
    assert f"last: step {events[-1].step}," in ending and f"--resume={run} --patience=6\n" in ending
    assert training(run / "best.ckpt")["state"]["step"] == str(2 * best)


def test_patience_counts_across_a_resume(data, tmp_path):
    whole, run = tmp_path / "whole", tmp_path / "run"
    list(pyllmc.Trainer(out=whole, **worse(data, patience=4)))
    last = metrics(whole)[-1]["step"]
    for at in (last - 3, last - 1):
        trainer = (
            pyllmc.Trainer(resume=run) if run.exists() else pyllmc.Trainer(out=run, **worse(data, patience=4))
        )
        for event in trainer:
            if event.kind == "step" and event.step == at:
                trainer.stop()
    list(pyllmc.Trainer(resume=run))
    assert_same_run(run, whole)


def test_a_run_that_ended_early_goes_on_if_patience_is_raised(data, tmp_path):
    run = tmp_path / "run"
    ended = list(pyllmc.Trainer(out=run, **worse(data, patience=2)))[-1].step
    again = list(pyllmc.Trainer(resume=run, max_steps=200))
    assert "--patience=2 is reached: nothing to do, raise it to go on" in again[-1].text
    more = list(pyllmc.Trainer(resume=run, patience=4))
    assert more[-1].step == ended + 4
    free = list(pyllmc.Trainer(resume=run, patience=0))
    assert free[-1].step == 60


# ---- validation sets


def test_every_validation_set_is_told_by_its_name(data, long_data, tmp_path):
    run = tmp_path / "run"
    sets = f"{data},other={data}/train_000000.bin"
    options = {"data": data, "val_every": 3, "max_steps": 6, "sample_every": 0, "val_batches": 2, **TINY}
    trainer = pyllmc.Trainer(out=run, val_data=sets, **options)
    assert trainer.val_losses.keys() == {"letters", "other"} and all(
        map(math.isnan, trainer.val_losses.values())
    )
    events = list(trainer)
    evals = [event for event in events if event.kind == "eval"]
    lines = [line for line in metrics(run) if "val_loss" in line]
    for event, line in zip(evals, lines):
        first, second = line["val_losses"]["letters"], line["val_losses"]["other"]
        assert line["val_loss"] == first == pytest.approx(event.val_loss, rel=1e-8)
        assert (
            event.text.replace(" (best)", "")
            == f"step {event.step} | val loss letters {first:.4f}, other {second:.4f}"
        )
    assert trainer.val_losses == pytest.approx(lines[-1]["val_losses"])
    assert (
        "validation: letters, " in events[0].text
        and " windows (decides what is best); other, " in events[0].text
    )
    loader = bins.Loader([data / "train_000000.bin"], B=3, T=7, shuffle=False, seed=0, eot=eot_of(data))
    expected = np.mean([trainer.model.forward(*loader.next()) for _ in range(2)])
    assert trainer.val_losses["other"] == pytest.approx(expected, rel=1e-6)
    ending = trainer.ending("x", "y")
    assert f"best: val loss letters {min(line['val_loss'] for line in lines):.4f}" in ending
    # the first set alone gives the same run
    alone = [e.val_loss for e in pyllmc.Trainer(val_data=data, **options) if e.kind == "eval"]
    assert alone == [event.val_loss for event in evals]


def test_the_first_set_decides_what_is_best(data, tmp_path):
    """Training on the second set alone makes the first worse."""
    run, other = tmp_path / "run", tmp_path / "b"
    words = ["the cat sat on the mat", "a dog ran", "we all saw the sun and the moon"]
    dataset.write_dataset([*words, *["moon moon moon moon " * 9] * 30], other, tokenizer="char")
    list(
        pyllmc.Trainer(
            data=other, out=run, max_steps=30, val_every=5, sample_every=0, lr=0.02,
            val_data=f"old={data},new={other}/train_000000.bin", **TINY,
        )
    )  # fmt: skip
    lines = [line for line in metrics(run) if "val_loss" in line]
    best = min(lines, key=lambda line: line["val_losses"]["old"])
    assert best["step"] < 30 and min(lines, key=lambda line: line["val_losses"]["new"])["step"] > best["step"]
    assert training(run / "best.ckpt")["state"]["step"] == str(best["step"])
    pytest.importorskip("matplotlib")
    picture = drawn.picture_of(read_run(run), drawn.LIGHT, (), "step")
    labels = [line.label.rsplit(" ", 1)[0] for line in picture.lines]
    assert labels == ["training", "validation, old", "validation, new"]
    assert len({line.colour for line in picture.lines}) == 3
    assert list(picture.lines[2].curve.y) == [line["val_losses"]["new"] for line in lines]


def test_a_run_with_several_sets_resumes_and_repeats(data, tmp_path):
    """config.txt and the checkpoint hold the sets."""
    run = tmp_path / "run"
    options = {"data": data, "max_steps": 4, "val_every": 2, "sample_every": 0, **TINY}
    list(pyllmc.Trainer(out=run, val_data=f"a={data},b={data}/train_000000.bin", **options))
    resumed = list(pyllmc.Trainer(resume=run, max_steps=6))
    assert "val loss a " in [event.text for event in resumed if event.kind == "eval"][-1]
    list(pyllmc.Trainer(config=run, max_steps=4, out=tmp_path / "again"))
    assert without_times(metrics(run))[:7] == without_times(metrics(tmp_path / "again"))


@pytest.mark.parametrize(
    "changed, forgotten",
    [
        ({"val_data": "b={data}/train_000000.bin"}, True),
        ({"val_data": "b={data},a={data}/train_000000.bin"}, False),
        ({"val_data": ""}, False),
        ({"val_data": "", "data": "{moved}"}, False),
        ({"val_data": "", "data": "{other}"}, True),
        ({"val_data": "{other}"}, True),
        ({"val_batches": 1}, True),
        ({"val_batches": 10**6}, False),
    ],
)
def test_a_best_of_another_first_set_is_forgotten_and_that_is_said(data, tmp_path, changed, forgotten):
    """Its loss does not compare, so the step is validated again. A set with another name or place, or that others follow, is the
    same one."""
    run, options = tmp_path / "run", {"val_every": 2, "sample_every": 0, "patience": 50}
    list(pyllmc.Trainer(data=data, out=run, max_steps=4, val_data=data, val_batches=0, **options, **TINY))
    path = run / "last.ckpt"
    before = training(path)["state"]
    assert before["best_step"] == "4"
    places = {"data": data, "moved": tmp_path / "moved", "other": tmp_path / "other"}
    shutil.copytree(data, places["moved"])
    letters = Tokenizer.load(data / "tokenizer.bin")
    dataset.write_dataset(["we all ran on the cat"] * 60, places["other"], letters, val_fraction=0.3)
    changed = {name: str(value).format(**places) for name, value in changed.items()}
    events = list(pyllmc.Trainer(resume=run, max_steps=6, lr=10, **changed))  # it gets worse
    said = f"best: the val loss of {float(before['best_val_loss']):.4f} is forgotten"
    assert (said in events[0].text) == forgotten
    validated = [event.step for event in events if event.kind == "eval"]
    assert validated == ([4, 6] if forgotten else [6])
    assert [line["step"] for line in metrics(run) if "val_loss" in line] == [0, 2, 4, 6]
    after = training(path)["state"]
    assert (after["best_step"], after["stale"]) == ("4", "1")
    assert (after["best_val_loss"] != before["best_val_loss"]) == forgotten


def test_a_validation_is_the_mean_over_its_windows(data):
    """The last batch is smaller, and a set that is shorter than asked for is not read twice."""
    options = {**TINY, "data": data, "max_steps": 1, "val_every": 1, "sample_every": 0, "out": "", "lr": 1e-9}

    def loss(B, batches):  # fmt: skip
        trainer = pyllmc.Trainer(**{**options, "B": B, "val_batches": batches})
        return next(event for event in trainer if event.kind == "eval").val_loss

    one = [loss(1, n) for n in (0, 10**6, 6)]
    assert one[0] == one[1] != one[2]
    for B in 2, 5, 64:
        assert loss(B, 0) == pytest.approx(one[0], rel=1e-6)
        assert loss(B, 1000) == pytest.approx(one[0], rel=1e-6)
    assert [loss(2, 3), loss(3, 2)] == pytest.approx([one[2]] * 2, rel=1e-6)


def test_a_set_that_was_not_validated_yet_has_no_loss(data, tmp_path):
    list(pyllmc.Trainer(data=data, out=tmp_path, max_steps=4, val_every=4, sample_every=0, **TINY))
    sets = f"x={data}/train_000000.bin,y={data}"
    trainer = pyllmc.Trainer(resume=tmp_path, val_data=sets, max_steps=5, val_every=0)
    next(iter(trainer))
    assert all(math.isnan(loss) for loss in trainer.val_losses.values())


def test_names_of_sets(data, tmp_path):
    """Commas and = may be part of a path that is there."""
    odd = tmp_path / "a=b,c"
    odd.symlink_to(data)
    options = {"data": data, "val_every": 1, "max_steps": 0, **TINY}
    assert [*pyllmc.Trainer(val_data=odd, **options).val_losses] == [""]
    assert [*pyllmc.Trainer(val_data=f"{data}/,{data}/train_000000.bin", **options).val_losses] == [
        "letters",
        "train_000000",
    ]
    nine = ",".join(f"s{i}={data}" for i in range(9))
    for bad, why in [
        ("a=", "names no path"), (",", "empty part"), (f"{data},", "empty part"), (nine, "more than 8 sets"),
        (f"a={data},a={data}", "two sets are named a"), (f"{tmp_path}/ä,{data}", "gives no name of letters"),
        (f"größe={data}", "größe is no name for a set: take at most 32 of the letters a to z, digits"),
        (f"a b={data},c={data}", "a b is no name"), (f"{'n' * 33}={data}", "n is no name for a set: take at most 32"),
        (f"a={data},b={tmp_path}/none", "none"),
    ]:  # fmt: skip
        with pytest.raises(pyllmc.LlmcError, match=why) as caught:
            pyllmc.Trainer(val_data=bad, **options)
        assert "\n" not in str(caught.value)


def test_another_tokenizer_is_refused_for_each_set(data, tmp_path):
    other = tmp_path / "other"
    dataset.write_dataset(["quite another alphabet: 0123456789"] * 20, other, tokenizer="char")
    with pytest.raises(pyllmc.InvalidArgument, match=f"--val_data={other} has another tokenizer"):
        pyllmc.Trainer(data=data, val_data=f"{data},{other}", **TINY)


def test_patience_counts_anew_with_other_validation_data(data, tmp_path):
    run = tmp_path / "run"
    ended = list(pyllmc.Trainer(out=run, **worse(data, patience=2)))[-1].step
    more = list(pyllmc.Trainer(resume=run, val_data=f"{data}/train_000000.bin"))
    steps = [event.step for event in more if event.kind == "step"]
    assert ended < 60 and steps and steps[0] == ended + 1
    assert training(run / "best.ckpt")["state"]["step"] != "0"
