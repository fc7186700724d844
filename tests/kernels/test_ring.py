"""attention_cached with a cache of R < T rows, a ring: its results have the bits of the cache that holds all rows."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import assert_parity, in_every_way
from test_attention import Case, assert_same_bits, cached, expected, floor, inputs

# hs and window; no GPU kernel for a single query takes a head of 5 or 130
CASES = [(16, 1), (5, 3), (64, 29), (16, 64), (130, 65), (5, 100)]
PIECES = {
    "at once": [150],
    "in pieces": [70, 1, 3, 40, 2, 34],
    "then one by one": [80, *[1] * 30],
}


def rows_of_ring(qkv: np.ndarray, pos: np.ndarray, R: int) -> np.ndarray:
    """The ring (B,R,3C) after pos[b] rows of each sequence; NaN where nothing was stored."""
    ring = np.full((len(qkv), R, qkv.shape[2]), np.nan, np.float32)
    for b, end in enumerate(pos):
        for p in range(max(0, end - R), end):
            ring[b, p % R] = qkv[b, p]
    return ring


@pytest.mark.parametrize("pieces", PIECES)
@pytest.mark.parametrize("hs, window", CASES)
def test_a_ring_gives_the_bits_of_all_rows(kernels, buffers, hs, window, pieces):
    case, parts = Case(2, 150, hs, 1, window), PIECES[pieces]
    want, start = expected(case, kernels.stored), np.zeros(2)
    all_rows, _ = cached(kernels, buffers, case, want.qkv, parts, start)
    for R in (window, window + 16):
        out, ring = cached(kernels, buffers, case, want.qkv, parts, start, R=R)
        np.testing.assert_array_equal(out, all_rows)
        np.testing.assert_array_equal(ring, rows_of_ring(want.qkv, start.astype(int) + sum(parts), R))


@pytest.mark.parametrize("n", [1, 2, 9, 70])
@pytest.mark.parametrize("window", [1, 30, 64])
def test_sequences_at_different_positions(kernels, buffers, window, n):
    """Some have not filled their ring, one goes across its end."""
    case, R = Case(4, 240, 16, 2, window), window + 7
    want, pos = expected(case, kernels.stored), np.array([0, 7, R - 1, 2 * R + 3])
    ring = buffers.guarded(rows_of_ring(want.qkv, pos, R))
    out, ring = cached(kernels, buffers, case, want.qkv, [n], pos, ring, R)
    every = want.out[1].copy()
    for b, p in enumerate(pos):
        every[b, p : p + n] = out[b]
    assert_parity(every, *want.out, "out", floor(case, want))
    np.testing.assert_array_equal(ring, rows_of_ring(want.qkv, pos + n, R))


def test_rows_at_any_address(kernels, unaligned):
    case = Case(2, 90, 24, 2, 9)
    want = expected(case, kernels.stored)
    out, _ = cached(kernels, unaligned, case, want.qkv, [80, 1, 1, 8], np.zeros(2), R=11)
    assert_parity(out, *want.out, "out", floor(case, want))


def test_order_does_not_change_a_bit(kernels, buffers):
    case = Case(2, 150, 40, 3, 33)
    qkv = inputs(case, kernels.stored).qkv
    assert_same_bits(
        cached(k, buffers, case, qkv, [100, 1, 2, 40, 1], np.zeros(2), R=50) for k in in_every_way(kernels)
    )
