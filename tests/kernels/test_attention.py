"""Causal attention: forward, backward and cached, against softmax(q k' / sqrt(hs)) v as PyTorch computes it."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import DEVICES, MULTIPLY_BF16, Kernel, assert_parity, in_every_way

from pyllmc.parity import yardstick


class Case(NamedTuple):
    """One shape; hs is C / NH."""

    B: int
    T: int
    hs: int
    NH: int
    window: int = 0
    gain: float = 1.0  # factor of queries and keys

    @property
    def C(self) -> int:
        return self.NH * self.hs


SHAPES = [
    Case(1, 1, 1, 1),
    Case(3, 1, 5, 2),
    Case(2, 7, 1, 3),
    Case(1, 13, 12, 2),
    Case(2, 31, 16, 2),
    Case(1, 63, 25, 2),
    Case(1, 64, 64, 2),
    Case(2, 65, 5, 3),
    Case(1, 97, 80, 1),
    Case(1, 127, 32, 2),
    Case(1, 129, 128, 1),
    Case(2, 200, 16, 1),
]
WINDOWS = [Case(2, T, 8, 2, window) for T in (1, 5, 64, 131) for window in (1, 3, 64, 65, T, T + 5)]
LARGE = [Case(1, 70, 16, 2, gain=50.0), Case(1, 70, 16, 2, 9, gain=50.0)]  # scores up to +-1e4 and more
LONG = [Case(1, 300, 25, 2), Case(1, 600, 8, 1), Case(1, 530, 16, 1, 100)]  # several segments of keys
LONG += [Case(1, 300, 16, 2, gain=gain) for gain in (1.5, 3.0)]  # segments whose largest scores grow
# around the GPU's tiles of 64 and 128 rows, with every head size of its tensor cores, padded or not
TILES = [
    Case(2, 131, 64, 2),
    Case(1, 200, 64, 1, 70),
    Case(1, 65, 96, 2),
    Case(1, 131, 128, 2, 64),
    Case(1, 64, 130, 1),
    Case(1, 131, 7, 2),
    Case(1, 129, 40, 1),
]
CASES = list(dict.fromkeys(SHAPES + WINDOWS + LARGE + LONG + TILES))


class Expected(NamedTuple):
    """The inputs, and PyTorch's results from them, in the stored element and in float64."""

    qkv: np.ndarray
    dout: np.ndarray
    out: tuple[yardstick.Single, np.ndarray]
    lse: tuple[yardstick.Single, np.ndarray]
    dqkv: tuple[yardstick.Single, np.ndarray]


def split_heads(qkv: torch.Tensor, case: Case) -> list[torch.Tensor]:
    """q, k and v (B,NH,T,hs) from qkv (B,T,3C)."""
    return [x.view(case.B, case.T, case.NH, case.hs).transpose(1, 2) for x in qkv.split(case.C, dim=2)]


def visible(case: Case) -> torch.Tensor:
    i, j = torch.arange(case.T)[:, None], torch.arange(case.T)[None, :]
    return (j <= i) & (j > i - (case.window or case.T + 1))


def softmax_attention(qkv: torch.Tensor, case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    """out (B,T,C) and lse (B,NH,T) from qkv (B,T,3C), by the formula, with a mask written out."""
    q, k, v = split_heads(qkv, case)
    scores = (q @ k.transpose(-2, -1) / math.sqrt(case.hs)).masked_fill(~visible(case), -math.inf)
    out = torch.softmax(scores, dim=-1) @ v
    return out.transpose(1, 2).reshape(case.B, case.T, case.C), torch.logsumexp(scores, dim=-1)


def torch_attention(qkv: torch.Tensor, case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    """The same by PyTorch's own attention, which in bfloat16 is much better than the formula. It does not return lse,
    so lse is the formula's in float32."""
    out = F.scaled_dot_product_attention(*split_heads(qkv, case), attn_mask=visible(case))
    lse = softmax_attention(qkv.detach().float(), case)[1]
    return out.transpose(1, 2).reshape(case.B, case.T, case.C), lse


def floor(case: Case, want: Expected) -> float:
    """The cost of rounding: a score s and its lse are each off by up to 2^-24 |s|, and e^s turns that into a relative
    error. PyTorch never rounds lse here, which is too little to allow for at ordinary scores."""
    return 2e-7 if case.gain == 1 else 2.0**-22 * float(np.abs(want.lse[1]).max())


def floor_backward(case: Case, want: Expected) -> float:
    """The same; and P = e^(s - lse) is computed again from an lse stored in float, unlike PyTorch's."""
    return max(floor(case, want), 2.0**-24 * float(np.abs(want.lse[1]).max()))


class Inputs(NamedTuple):
    qkv: np.ndarray
    dout: np.ndarray


def inputs(case: Case, stored: str = "float32") -> Inputs:
    """Numbers that a library with these elements can store."""
    rng = np.random.default_rng(sum(case[:5]))
    qkv = rng.standard_normal((case.B, case.T, 3 * case.C)).astype(np.float32)
    qkv[..., : 2 * case.C] *= np.float32(case.gain)
    dout = rng.standard_normal((case.B, case.T, case.C)).astype(np.float32)
    return Inputs(*(torch.from_numpy(x).to(getattr(torch, stored)).float().numpy() for x in (qkv, dout)))


@functools.cache
def expected(case: Case, stored: str = "float32") -> Expected:
    qkv, dout = inputs(case, stored)

    def by_torch(dtype: torch.dtype) -> list[np.ndarray]:
        x = torch.from_numpy(qkv).to(dtype).requires_grad_()
        out, lse = (torch_attention if dtype == torch.bfloat16 else softmax_attention)(x, case)
        out.backward(torch.from_numpy(dout).to(dtype))
        assert x.grad is not None
        return [y.detach().double().numpy() for y in (out, lse, x.grad)]

    return Expected(qkv, dout, *zip(*yardstick.both(by_torch, getattr(torch, stored))))


def sizes(case: Case) -> tuple[int, int, int, int, int]:
    return case.B, case.T, case.C, case.NH, case.window


def forward(kernels, buffers, case: Case, qkv: np.ndarray, *more) -> tuple[np.ndarray, np.ndarray]:
    """more: offsets and the words of dropout, if any."""
    out, lse = buffers.out(case.B, case.T, case.C), buffers.out(case.B, case.NH, case.T)
    kernels.workspace(case.B, case.T, case.C, case.NH)
    kernels.attention_forward(out, lse, buffers.guarded(qkv), *(more or (None, None)), *sizes(case))
    return out, lse


def backward(kernels, buffers, case: Case, dout, out, lse, qkv, *more) -> np.ndarray:
    dqkv = buffers.out(*qkv.shape)
    kernels.workspace(case.B, case.T, case.C, case.NH)
    inputs = (buffers.guarded(np.asarray(x, np.float32)) for x in (dout, out, lse, qkv))
    kernels.attention_backward(dqkv, *inputs, *(more or (None, None)), *sizes(case))
    return dqkv


def cached(
    kernels, buffers, case: Case, qkv: np.ndarray, pieces: list[int], pos: np.ndarray, cache=None, R: int = 0
):
    """Feeds rows pos[b].. of each sequence in parts of pieces[i] rows; returns the outputs and the cache after the last
    part, which has R rows, or T."""
    R = R or case.T
    cache = buffers.out(case.B, R, 3 * case.C) if cache is None else cache
    whole = buffers.out(*qkv.shape) if R < case.T else None
    outs, pos = [], pos.astype(np.int32)
    for n in pieces:
        rows = np.stack([qkv[b, p : p + n] for b, p in enumerate(pos)])
        outs.append(buffers.out(case.B, n, case.C))
        kernels.workspace(case.B, case.T, case.C, case.NH)
        at = buffers.guarded(pos)
        kernels.attention_cached(
            outs[-1], cache, whole, buffers.guarded(rows), at, case.B, n, R, *sizes(case)[1:]
        )
        pos = pos + np.int32(n)
    return np.concatenate(outs, axis=1), cache


@pytest.mark.parametrize("case", CASES, ids=str)
def test_forward(kernels, buffers, case):
    want = expected(case, kernels.stored)
    out, lse = forward(kernels, buffers, case, want.qkv)
    assert_parity(out, *want.out, "out", floor(case, want))
    assert_parity(lse, *want.lse, "lse")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_backward(kernels, buffers, case):
    want = expected(case, kernels.stored)
    out, lse = forward(kernels, buffers, case, want.qkv)
    dqkv = backward(kernels, buffers, case, want.dout, out, lse, want.qkv)
    for i, name in enumerate(("dq", "dk", "dv")):
        part = np.s_[..., i * case.C : (i + 1) * case.C]
        assert_parity(dqkv[part], *(x[part] for x in want.dqkv), name, floor_backward(case, want))


PIECES = {
    1: [1],
    5: [1, 4],
    13: [5, 8],
    64: [64],
    65: [64, 1],
    70: [3] * 23 + [1],
    97: [40, 57],
    131: [1, 2, 65, 63],
}


@pytest.mark.parametrize("case", [c for c in CASES if c.T in PIECES], ids=str)
def test_cached_in_pieces_is_forward(kernels, buffers, case):
    want = expected(case, kernels.stored)
    out, cache = cached(kernels, buffers, case, want.qkv, PIECES[case.T], np.zeros(case.B))
    assert_parity(out, *want.out, "out", floor(case, want))
    np.testing.assert_array_equal(cache, want.qkv)


@pytest.mark.parametrize("window", [0, 1, 30])
@pytest.mark.parametrize("hs", [5, 16, 64])
@pytest.mark.parametrize("n", [1, 2, 9, 33, 70])
def test_cached_from_different_positions(kernels, buffers, n, hs, window):
    case = Case(3, 140, hs, 2, window)
    want, pos = expected(case, kernels.stored), np.array([70, 0, 7])
    cache = buffers.out(*want.qkv.shape)
    for b, p in enumerate(pos):
        cache[b, :p] = want.qkv[b, :p]
    out, cache = cached(kernels, buffers, case, want.qkv, [n], pos, cache)
    single, double = want.out

    def seen(x: np.ndarray) -> np.ndarray:
        return np.stack([x[b, p : p + n] for b, p in enumerate(pos)])

    assert_parity(out, single.map(seen), seen(double), "out", floor(case, want))
    for b, p in enumerate(pos):
        np.testing.assert_array_equal(cache[b, : p + n], want.qkv[b, : p + n])
        assert np.isnan(cache[b, p + n :]).all(), "written past the new rows"


@pytest.mark.parametrize("window", [0, 100, 300])
@pytest.mark.parametrize("hs", [16, 64, 96, 128, 7, 260])
def test_one_query_after_many_keys(kernels, buffers, hs, window):
    """The commonest shape in generation; on a GPU several blocks share the keys."""
    case = Case(2, 600, hs, 2, window)
    want, pos = expected(case, kernels.stored), np.array([599, 255])
    cache = want.qkv.copy()
    for b, p in enumerate(pos):
        cache[b, p:] = np.nan
    cache = buffers.guarded(cache)
    out, cache = cached(kernels, buffers, case, want.qkv, [1], pos, cache)
    every = want.out[1].copy()  # two rows are too few to tell how much PyTorch errs
    for b, p in enumerate(pos):
        every[b, p] = out[b, 0]
    assert_parity(every, *want.out, "out", floor(case, want))
    for b, p in enumerate(pos):
        np.testing.assert_array_equal(cache[b, : p + 1], want.qkv[b, : p + 1])
        assert np.isnan(cache[b, p + 1 :]).all(), "written past the new row"


@pytest.mark.parametrize("case", [Case(2, 131, 64, 2), Case(1, 70, 24, 2, 9)], ids=str)
def test_rows_at_any_address(kernels, buffers, case):
    """The rows begin one element past a multiple of 16 bytes, where a GPU's tensor cores cannot read."""
    want = expected(case, kernels.stored)

    def shifted(x: np.ndarray) -> np.ndarray:
        return buffers.guarded(np.append(np.float32(0), x))[1:].reshape(x.shape)

    qkv, empty = shifted(want.qkv), np.full(want.dout.shape, np.nan, np.float32)
    out, lse, dqkv = shifted(empty), buffers.out(case.B, case.NH, case.T), shifted(np.full_like(qkv, np.nan))
    kernels.workspace(case.B, case.T, case.C, case.NH)
    kernels.attention_forward(out, lse, qkv, None, None, *sizes(case))
    kernels.attention_backward(dqkv, shifted(want.dout), out, lse, qkv, None, None, *sizes(case))
    assert_parity(out, *want.out, "out", floor(case, want))
    assert_parity(lse, *want.lse, "lse")
    assert_parity(dqkv, *want.dqkv, "dqkv", floor_backward(case, want))
    if kernels.isa in DEVICES and kernels.stored == "bfloat16":
        aligned = forward(kernels, buffers, case, want.qkv)[0]
        assert (aligned != out).any(), "the tensor cores, which round the weights, were not used"


def everything(kernels, buffers, case: Case) -> list[np.ndarray]:
    """out, lse, dqkv, and out and cache of generation."""
    qkv, dout = inputs(case, kernels.stored)
    out, lse = forward(kernels, buffers, case, qkv)
    dqkv = backward(kernels, buffers, case, dout, out, lse, qkv)
    return [out, lse, dqkv, *cached(kernels, buffers, case, qkv, [case.T - 3, 1, 2], np.zeros(case.B))]


THREADED = [
    Case(2, 150, 40, 3),
    Case(1, 300, 64, 2),  # more than one segment of keys; enough heads for one thread, few for five
    Case(2, 200, 64, 3, 50),
    Case(1, 1300, 8, 1),  # more segments than are computed at once
    Case(1, 1300, 8, 1, 130),
]


def assert_same_bits(runs) -> None:
    first, *others = runs
    for other in others:
        for one, two in zip(first, other):
            np.testing.assert_array_equal(one.view(np.int32), two.view(np.int32))


@pytest.mark.parametrize("case", THREADED, ids=str)
def test_order_does_not_change_a_bit(kernels, buffers, case):
    assert_same_bits(everything(k, buffers, case) for k in in_every_way(kernels))


def test_window_of_one_copies_the_values(kernels, buffers):
    case = Case(2, 77, 12, 2, 1)
    qkv = expected(case, kernels.stored).qkv
    out, lse = forward(kernels, buffers, case, qkv)
    np.testing.assert_array_equal(out, qkv[..., 2 * case.C :])
    score = (qkv[..., : case.C] * qkv[..., case.C : 2 * case.C]).reshape(2, 77, 2, 12).sum(-1) / math.sqrt(12)
    np.testing.assert_allclose(lse, score.transpose(0, 2, 1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("window", [0, 20])
def test_the_future_and_the_forgotten_do_not_matter(kernels, buffers, window):
    """Keys that query i cannot see may hold any finite numbers: its output keeps every bit."""
    case, i = Case(1, 150, 24, 2, window), 90
    qkv = expected(case, kernels.stored).qkv
    out, _ = forward(kernels, buffers, case, qkv)
    other = qkv.copy()
    other[:, i + 1 :] = 1e9
    if window:
        other[:, : i - window + 1] = -1e9
    changed, _ = forward(kernels, buffers, case, other)
    np.testing.assert_array_equal(out[:, i], changed[:, i])


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(np.asarray(a, np.float64) - b))


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("isa", MULTIPLY_BF16)
def test_bf16_rounds_what_the_reference_rounds(isa, buffers, case):
    """The operands are the same, so both err alike: they differ by far less than either does from the float64
    answer."""
    fast, slow = Kernel(isa, precision="bf16"), Kernel("reference", precision="bf16")
    want = expected(case, "bfloat16")
    out, lse = forward(slow, buffers, case, want.qkv)
    dqkv = backward(slow, buffers, case, want.dout, out, lse, want.qkv)
    again = backward(fast, buffers, case, want.dout, out, lse, want.qkv)
    scale = np.linalg.norm(want.dqkv[1])
    assert distance(again, dqkv) <= 0.3 * distance(dqkv, want.dqkv[1]) + 1e-6 * scale
    fast_out, fast_lse = forward(fast, buffers, case, want.qkv)
    share = (
        0.3 if case.T <= 64 else 1
    )  # beyond one block of keys, exp(score - largest so far) is rounded elsewhere
    assert distance(fast_out, out) <= share * distance(out, want.out[1]) + 1e-6 * np.linalg.norm(want.out[1])
    np.testing.assert_allclose(fast_lse, lse, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("gain", [2.0, 5.0])
@pytest.mark.parametrize("isa", MULTIPLY_BF16)
def test_bf16_does_not_round_the_largest_weight(isa, buffers, gain):
    """exp(largest - largest) is 1: a few keys with most of the weight, in any block, lose least by rounding."""
    case = Case(1, 600, 64, 2, gain=gain)
    qkv = inputs(case, "bfloat16").qkv  # so that the weights alone are rounded
    exact = softmax_attention(torch.from_numpy(qkv).double(), case)[0].numpy()
    ours, plain = (
        distance(forward(Kernel(x, precision="bf16"), buffers, case, qkv)[0], exact)
        for x in (isa, "reference")
    )
    assert ours <= 1.1 * plain


def test_nan_is_not_hidden(kernels, buffers):
    case = Case(1, 70, 16, 1)
    qkv = expected(case, kernels.stored).qkv.copy()
    qkv[0, 3, 0] = np.nan  # a query
    out, lse = forward(kernels, buffers, case, qkv)
    assert np.isnan(out[0, 3]).all() and np.isnan(lse[0, 0, 3])
    assert np.isfinite(out[0, 4:]).all() and np.isfinite(out[0, :3]).all()
