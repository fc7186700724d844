"""The learning rate against its formulas, step by step."""

from __future__ import annotations

import math

import pytest
from conftest import ffi, lib

from pyllmc.engine import _ffi


def rate(kind: str, step: int, max_steps=100, warmup=10, lr=3e-4, final=0.1, decay=0.2, size=1) -> float:
    out = ffi.new("double *")
    _ffi.check(lib, lib.llmc_schedule_lr(out, kind.encode(), step, size, max_steps, warmup, lr, final, decay))
    return out[0]


def expected(
    kind: str, step: int, max_steps: int, warmup: int, lr: float, final_frac: float, decay: float
) -> float:
    if step < warmup:
        return lr * (step + 1) / warmup
    final = lr * final_frac
    x = min((step - warmup) / max(1, max_steps - warmup), 1)
    if kind == "linear":
        return lr + (final - lr) * x
    if kind == "cosine":
        return final + (lr - final) * 0.5 * (1 + math.cos(math.pi * x))
    start = max_steps * (1 - decay)
    if kind == "constant" or step <= start:
        return lr
    return lr + (final - lr) * min((step - max(start, warmup)) / (max_steps - max(start, warmup)), 1)


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine", "wsd"])
@pytest.mark.parametrize("warmup", [0, 1, 10])
def test_formula(kind, warmup):
    for step in range(120):
        ours = rate(kind, step, warmup=warmup)
        assert ours == pytest.approx(expected(kind, step, 100, warmup, 3e-4, 0.1, 0.2), rel=1e-12), step


@pytest.mark.parametrize("kind", ["linear", "cosine", "wsd"])
def test_ends(kind):
    assert rate(kind, 9) == rate(kind, 10) == 3e-4  # the schedule starts where the warm-up ends
    assert rate(kind, 100) == pytest.approx(3e-5) == rate(kind, 10**12)
    assert all(rate(kind, s) >= rate(kind, s + 1) for s in range(10, 100))


def test_degenerate_lengths():
    assert math.isfinite(rate("cosine", 0, max_steps=0, warmup=0))
    assert rate("linear", 5, max_steps=5, warmup=5) == 3e-4
    assert rate("linear", 0, max_steps=5, warmup=50) == pytest.approx(3e-4 / 50)
    assert rate("wsd", 99, decay=0) == 3e-4
    assert rate("wsd", 55, decay=1) == pytest.approx(rate("linear", 55), rel=1e-12)


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine", "wsd"])
def test_tokens_make_the_same_rates_as_steps(kind):
    """With steps of one size the schedule is the same, in whichever unit it is counted."""
    for step in range(120):
        in_tokens = rate(kind, 512 * step, 512 * 100, 512 * 10, size=512)
        assert in_tokens == pytest.approx(rate(kind, step), rel=1e-12), step


def test_a_large_step_does_not_warm_up_beyond_the_peak():
    assert rate("cosine", 9, size=5) == 3e-4
    assert rate("cosine", 5, size=3) == pytest.approx(3e-4 * 8 / 10)


def test_unknown_kind():
    with pytest.raises(_ffi.InvalidArgument, match="'cosin' is not one of constant, linear, cosine, wsd"):
        rate("cosin", 0)
