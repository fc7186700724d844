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
    "n, steps, sequences", [(1, 5, 2), (2, 3, 2), (3, 2, 2), (4, 2, 2), (5, 1, 2), (8, 1, 2), (16, 1, 1)]
)
def test_a_step_is_that_of_the_process_with_most(n, steps, sequences):
    """9 sequences of a step; 5 ms for the 2 of a whole micro-step."""
    row = row_of(made(*TIMED, f"--nodes={n}", "--global_batch=9", "--network=900GB/s"), n)
    assert row["micro_steps"] == steps
    assert row["step_ms"] == pytest.approx(steps * sequences * 2.5, rel=1e-3)
    assert row["tokens"] == 9 * 64
    assert row["efficiency"] == pytest.approx(9 / (n * steps * sequences), rel=1e-3)
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
    """8 processes with B=2 have 16, so 20 sequences take two micro-steps, of 2 and 1 of them."""
    lines = " ".join(told.text(made(*TIMED, "--global_batch=20", "--network=900GB/s")).split())
    assert "20 sequences a step of all processes" in lines
    assert "38% is lost to uneven shares, which a multiple of 16 sequences has not" in lines
    assert "uneven" not in told.text(made(*TIMED, "--global_batch=32"))


def test_waiting_begins_where_shares_are_small():
    """With more processes each computes less, so the first that waits is found by what each has."""
    found = made(*TIMED, "--global_batch=64", "--network=1Gbit", "--nodes=64")
    waiting = [row["processes"] for row in found["rows"] if row["waiting_ms"] > 0]
    first = found["worth"]["bf16"]["first_waiting_processes"]["fp32"]
    assert first and first <= waiting[0] and all(row_of(found, n)["waiting_ms"] > 0 for n in waiting)


def test_memory_and_zero_are_those_of_B():
    whole, own = (made(*TIMED, f"--global_batch={g}", "--memory=1GB", "--network=1Gbit") for g in (64, 0))
    assert whole["memory"] == own["memory"]
    for name in ("memory", "largest_B", "fits_from_processes"):
        assert whole["worth"]["zero"][name] == own["worth"]["zero"][name]
    assert whole["worth"]["zero"]["tok_s"] is None and "tok/s instead" not in told.text(whole)


def test_two_sizes_of_a_step_are_refused():
    with pytest.raises(InvalidArgument, match="--global_batch=8 and --grad_accum=2 both say how large"):
        made(*SMALL, "--step_ms=5", "--global_batch=8", "--grad_accum=2")
