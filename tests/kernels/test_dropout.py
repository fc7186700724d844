"""Dropout: the masks of every kernel against the rule in csrc/kernels.h, evaluated in numpy; and their statistics."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import torch
from conftest import assert_parity, in_every_way, storable
from test_attention import Case, inputs, sizes, split_heads, visible

from pyllmc.parity import yardstick
from pyllmc.parity.dropout import Dropout, philox

# Random123's kat_vectors: counter, key and result of philox4x32 with 7 rounds
KNOWN_ANSWERS = [
    ("0" * 32, "0" * 16, "5f6fb7090d893f644f121f814f730a48"),
    ("f" * 32, "f" * 16, "5207ddc245165e594d8ee7518c52f662"),
    ("243f6a8885a308d313198a2e03707344", "a4093822299f31d0", "4dfccaba190a87f0c47362bab6b5242a"),
]


def words(text: str) -> list[int]:
    return [int(text[i : i + 8], 16) for i in range(0, len(text), 8)]


@pytest.mark.parametrize("counter,key,result", KNOWN_ANSWERS)
def test_known_answers(counter, key, result):
    assert [int(x) for x in philox(tuple(np.array(words(counter))), tuple(words(key)))] == words(result)


SHAPES = [
    (1, 1, 1),
    (2, 3, 7),
    (1, 5, 8),
    (3, 2, 9),
    (1, 4, 63),
    (2, 2, 64),
    (1, 3, 65),
    (2, 5, 200),
    (1, 2, 1600),
]
DROPOUT = Dropout(0.3, seed=(5 << 32) + 7, step=11, micro_step=3, layer=2, kind=3)


@pytest.mark.parametrize("p", [0.1, 0.5, 2e-5, 0.99999])
@pytest.mark.parametrize("B,T,C", SHAPES)
def test_rows(kernels, buffers, B, T, C, p):
    """The kernel drops exactly the elements that the rule names, and multiplies the others by the scale."""
    drop = DROPOUT._replace(p=p)
    x = storable(kernels, np.random.default_rng(C).standard_normal((B, T, C)).astype(np.float32))
    out, given = buffers.out(B, T, C), buffers.guarded(drop.words())
    kernels.dropout(out, buffers.guarded(x), given, B, T, C)
    factors = drop.factors(B * T, C).reshape(B, T, C).astype(np.float32)
    np.testing.assert_array_equal(out, storable(kernels, x * factors))
    np.testing.assert_array_equal(given, drop.words())


def test_rows_in_place(kernels, buffers):
    x = buffers.guarded(np.ones((2, 3, 40), np.float32))
    kernels.dropout(x, x, buffers.guarded(DROPOUT.words()), 2, 3, 40)
    factors = DROPOUT.factors(6, 40).reshape(2, 3, 40).astype(np.float32)
    np.testing.assert_array_equal(x, storable(kernels, factors))


@pytest.mark.parametrize("B,T,C", SHAPES)
def test_residual_layernorm(kernels, buffers, B, T, C):
    """residual = inp1 + inp2 factor, and the norm is that of this sum."""
    rng = np.random.default_rng(C)
    a, b = (storable(kernels, rng.standard_normal((B, T, C)).astype(np.float32)) for _ in range(2))
    weight, bias = (storable(kernels, rng.standard_normal(C).astype(np.float32)) for _ in range(2))
    arrays = [buffers.guarded(x) for x in (a, b, weight, bias)]
    drop = buffers.guarded(DROPOUT.words())
    residual, out, mean, rstd = (
        buffers.out(B, T, C),
        buffers.out(B, T, C),
        buffers.out(B, T),
        buffers.out(B, T),
    )
    kernels.residual_layernorm_forward(residual, out, mean, rstd, *arrays, drop, B, T, C)
    exact = a + b * DROPOUT.factors(B * T, C).reshape(B, T, C)
    assert_parity(residual, exact.astype(np.float32), exact, "residual", stored=kernels.stored)
    again, mean2, rstd2 = buffers.out(B, T, C), buffers.out(B, T), buffers.out(B, T)
    kernels.layernorm_forward(again, mean2, rstd2, buffers.guarded(residual), *arrays[2:], B, T, C)
    for x, y in (out, again), (mean, mean2), (rstd, rstd2):
        np.testing.assert_array_equal(x, y)


# ---- attention ----

CASES = [
    Case(3, 1, 5, 2),
    Case(2, 7, 1, 3),
    Case(1, 13, 12, 2),
    Case(1, 63, 25, 2),
    Case(2, 65, 5, 3),
    Case(1, 97, 80, 1),
    Case(2, 131, 16, 2),
    Case(2, 131, 8, 2, 1),
    Case(2, 131, 8, 2, 65),
    Case(1, 300, 25, 2),
    Case(1, 530, 16, 1, 100),
    Case(2, 131, 64, 2),
    Case(1, 65, 96, 2),
    Case(1, 131, 128, 2, 64),
    Case(1, 64, 130, 1),
]


def dropped_attention(qkv: torch.Tensor, case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    """out (B,T,C) and lse (B,NH,T), by the formula."""
    q, k, v = split_heads(qkv, case)
    scores = (q @ k.transpose(-2, -1) / math.sqrt(case.hs)).masked_fill(~visible(case), -math.inf)
    factors = torch.from_numpy(DROPOUT.factors(case.B * case.NH * case.T, case.T)).to(qkv.dtype)
    out = (torch.softmax(scores, dim=-1) * factors.view(case.B, case.NH, case.T, case.T)) @ v
    return out.transpose(1, 2).reshape(case.B, case.T, case.C), torch.logsumexp(scores, dim=-1)


@functools.cache
def expected(case: Case, stored: str):
    qkv, dout = inputs(case, stored)

    def by_torch(dtype: torch.dtype) -> list[np.ndarray]:
        x = torch.from_numpy(qkv).to(dtype).requires_grad_()
        out, lse = dropped_attention(x, case)
        if dtype == torch.bfloat16:
            lse = dropped_attention(x.detach().float(), case)[1]
        out.backward(torch.from_numpy(dout).to(dtype))
        assert x.grad is not None
        return [y.detach().double().numpy() for y in (out, lse, x.grad)]

    return list(zip(*yardstick.both(by_torch, getattr(torch, stored))))


def run(
    kernels, buffers, case: Case, drop: Dropout | None = DROPOUT
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """out, lse and dqkv."""
    qkv, dout = inputs(case, kernels.stored)
    out, lse = buffers.out(case.B, case.T, case.C), buffers.out(case.B, case.NH, case.T)
    dqkv, given = buffers.out(*qkv.shape), None if drop is None else buffers.guarded(drop.words())
    kernels.workspace(case.B, case.T, case.C, case.NH)
    kernels.attention_forward(out, lse, buffers.guarded(qkv), None, given, *sizes(case))
    kernels.workspace(case.B, case.T, case.C, case.NH)
    kernels.attention_backward(
        dqkv, buffers.guarded(dout), out, lse, buffers.guarded(qkv), None, given, *sizes(case)
    )
    return out, lse, dqkv


@pytest.mark.parametrize("case", CASES, ids=str)
def test_attention(kernels, buffers, case):
    want_out, want_lse, want_dqkv = expected(case, kernels.stored)
    out, lse, dqkv = run(kernels, buffers, case)
    floor = max(2e-7, 2.0**-24 * float(np.abs(want_lse[1]).max()))
    assert_parity(out, *want_out, "out")
    assert_parity(lse, *want_lse, "lse")
    for i, name in enumerate(("dq", "dk", "dv")):
        part = np.s_[..., i * case.C : (i + 1) * case.C]
        assert_parity(dqkv[part], *(x[part] for x in want_dqkv), name, floor)


@pytest.mark.parametrize("case", [Case(2, 131, 64, 2), Case(1, 530, 16, 1, 100)], ids=str)
def test_order_does_not_change_a_bit(kernels, buffers, case):
    results = {b"".join(x.tobytes() for x in run(k, buffers, case)) for k in in_every_way(kernels)}
    assert len(results) == 1


# ---- statistics ----


def agreement(a: np.ndarray, b: np.ndarray) -> float:
    """How far the share of elements that two masks treat alike is from that of independent ones, in standard deviations."""
    p = DROPOUT.threshold / 65536
    alike = p * p + (1 - p) * (1 - p)
    return abs(float((a == b).mean()) - alike) / math.sqrt(alike * (1 - alike) / a.size)


ROWS, COLUMNS = 700, 333


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_the_share_that_drops_is_p(p):
    n, kept = ROWS * COLUMNS, DROPOUT._replace(p=p).kept(ROWS, COLUMNS)
    assert abs(1 - kept.mean() - p) < 4 * math.sqrt(p * (1 - p) / n)
    for axis, m in (0, ROWS), (1, COLUMNS):  # in each column and in each row
        assert np.abs(1 - kept.mean(axis) - p).max() < 5 * math.sqrt(p * (1 - p) / m)
    factors = DROPOUT._replace(p=p).factors(ROWS, COLUMNS)
    assert abs(factors.mean() - 1) < 4 * math.sqrt(p / (1 - p) / n)
    assert DROPOUT._replace(p=p).scale == pytest.approx(1 / (1 - p), rel=1e-4)


@pytest.mark.parametrize("field", ["seed", "step", "micro_step", "layer", "kind"])
def test_masks_of_different_places_are_independent(field):
    here = DROPOUT.kept(ROWS, COLUMNS)
    for change in (1, -1, 2):
        other = DROPOUT._replace(**{field: getattr(DROPOUT, field) + change}).kept(ROWS, COLUMNS)
        assert agreement(here, other) < 4
    assert agreement(here, DROPOUT._replace(seed=DROPOUT.seed + (1 << 32)).kept(ROWS, COLUMNS)) < 4


@pytest.mark.parametrize("rows,columns", [(0, 1), (1, 0), (0, 2), (0, 8), (1, 1), (7, 0), (64, 0), (0, 64)])
def test_elements_are_independent(rows, columns):
    kept = DROPOUT.kept(ROWS, COLUMNS)
    here = kept[: ROWS - rows, : COLUMNS - columns]
    assert agreement(here, kept[rows:, columns:]) < 4


def test_a_mask_does_not_depend_on_the_size():
    np.testing.assert_array_equal(DROPOUT.kept(20, 30), DROPOUT.kept(50, 100)[:20, :30])
