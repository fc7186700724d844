"""python -m pyllmc.plan --global_batch=N: one batch shared out to more and more processes, as training shares it out."""

from __future__ import annotations

import re

import pytest
from test_plan import SMALL, TIMED, made, row_of

import pyllmc
from pyllmc.base.errors import InvalidArgument
from pyllmc.planning import told
from pyllmc.text import dataset

REDUCED = ("reduce_ms", "waiting_ms", "step_ms", "efficiency", "tokens", "tok_s", "micro_steps")


def test_it_is_what_grad_accum_is_where_it_divides():
    """B=2: 48 sequences are 3 micro-steps of 8 processes."""
    whole = row_of(made(*TIMED, "--global_batch=48", "--network=100Mbit"), 8)
    own = row_of(made(*TIMED, "--grad_accum=3", "--network=100Mbit"), 8)
    assert {name: whole[name] for name in REDUCED} == pytest.approx({name: own[name] for name in REDUCED})


@pytest.mark.parametrize(
    "n, steps, most", [(1, 5, 9), (2, 3, 5), (3, 2, 4), (4, 2, 3), (5, 1, 2), (8, 1, 2), (16, 1, 1)]
)
def test_a_step_is_that_of_the_process_with_most(n, steps, most):
    """9 sequences of a step, dealt out two by two; a micro-step of two takes 5 ms."""
    row = row_of(made(*TIMED, f"--nodes={n}", "--global_batch=9", "--network=900GB/s"), n)
    assert row["micro_steps"] == steps
    assert row["step_ms"] == pytest.approx(most * 2.5, rel=1e-3)
    assert row["tokens"] == 9 * 64
    assert row["efficiency"] == pytest.approx(9 / (n * most), rel=1e-3)
    assert row["tok_s"] == pytest.approx(9 * 64 / row["step_ms"] * 1e3)


def test_training_takes_as_many_micro_steps(tmp_path):
    dataset.write_dataset(["the cat sat on the mat"] * 60, tmp_path / "data", tokenizer="char")
    how = {"data": str(tmp_path / "data"), "model": "gpt-nano", "B": 2, "T": 8, "out": ""}
    events = pyllmc.Trainer(**how, global_batch=9, max_steps=0)
    steps = re.search(r"a step takes 9 windows.* x (\d+)", "".join(event.text for event in events))
    assert steps and int(steps[1]) == row_of(made(*TIMED, "--global_batch=9"), 1)["micro_steps"] == 5


def test_a_larger_batch_reaches_the_aim():
    found = made(*TIMED, "--global_batch=16", "--network=10Mbit")
    w = found["worth"]["accumulation"]
    assert w["worth"] and f"{w['option']} brings" in " ".join(told.text(found).split())
    assert row_of(made(*TIMED, w["option"], "--network=10Mbit"), 8)["efficiency"] >= 0.9
    less = int(w["option"].partition("=")[2]) - 16
    assert row_of(made(*TIMED, f"--global_batch={less}", "--network=10Mbit"), 8)["efficiency"] < 0.9


def test_uneven_shares_are_told():
    """20 sequences, dealt out to 8 processes two by two: two have 4 and the others 2, so a step is as long as that of 32."""
    found = made(*TIMED, "--global_batch=20", "--network=900GB/s")
    lines = " ".join(told.text(found).split())
    assert "20 sequences a step of all processes" in lines
    assert row_of(found, 8)["efficiency"] == pytest.approx(20 / 32, rel=1e-3)
    assert "yes a larger batch: --global_batch=32 brings 62% to 90%" in lines
    assert "38% is lost because the shares are uneven: a multiple of 16 sequences is shared evenly" in lines
    even = made(*TIMED, "--global_batch=32", "--network=900GB/s")
    assert not even["worth"]["accumulation"]["worth"] and "uneven" not in told.text(even)


def test_waiting_begins_where_shares_are_small():
    """64 processes have one sequence each, which hides less than two; whatever number is planned."""
    for n in (63, 64, 128):
        found = made(*TIMED, "--global_batch=64", "--network=5Gbit", f"--nodes={n}")
        assert (row_of(found, n)["waiting_ms"] > 0) == (n >= 64)
        assert found["worth"]["bf16"]["first_waiting_processes"]["fp32"] == 64


def test_memory_and_zero_are_those_of_B():
    whole, own = (made(*TIMED, f"--global_batch={g}", "--memory=1GB", "--network=1Gbit") for g in (64, 0))
    assert whole["memory"] == own["memory"]
    for name in ("memory", "largest_B", "fits_from_processes"):
        assert whole["worth"]["zero"][name] == own["worth"]["zero"][name]
    assert whole["worth"]["zero"]["tok_s"] is None and "tok/s instead" not in told.text(whole)


def test_two_sizes_of_a_step_are_refused():
    with pytest.raises(InvalidArgument, match="--global_batch=8 and --grad_accum=2 both say how large"):
        made(*SMALL, "--step_ms=5", "--global_batch=8", "--grad_accum=2")
