"""LoRA's kernels: parity with PyTorch on every instruction set and device, around every edge of their tiles."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import Kernel, assert_parity, in_every_way, storable
from test_matmul import both, gelu, normal, slope

from pyllmc.parity.dropout import KINDS, Dropout

# (B, T, C, OC, r): ones, primes, tiles of 4 rows, strips of 32 and 64 columns, blocks of 64 rows, parts of 256 numbers
SHAPES = [
    (1, 1, 1, 1, 1), (1, 1, 8, 3, 8), (1, 2, 3, 5, 2), (1, 3, 17, 7, 5), (2, 2, 31, 33, 4), (1, 5, 48, 130, 7),
    (1, 4, 64, 63, 8), (1, 63, 20, 65, 8), (1, 65, 19, 64, 3), (2, 64, 33, 129, 16), (1, 130, 24, 48, 17),
    (1, 9, 257, 31, 8), (1, 5, 255, 40, 33), (1, 3, 768, 96, 8), (1, 4, 96, 768, 9), (1, 7, 300, 17, 256),
    (1, 31, 1056, 40, 8), (1, 20, 40, 1056, 33), (1, 40, 4200, 20, 16), (1, 33, 24, 4200, 5),
]  # fmt: skip
SCALE = 1.7
DROPOUT = Dropout(0.3, seed=(5 << 32) + 7, step=11, micro_step=3, layer=2, kind=KINDS.index("lora_fc"))


def words(buffers, drop: Dropout | None) -> np.ndarray | None:
    return drop and buffers.guarded(drop.words())


def factors(drop: Dropout | None, rows: int, columns: int) -> np.ndarray:
    return (
        np.ones((rows, columns), np.float32)
        if drop is None
        else drop.factors(rows, columns).astype(np.float32)
    )


class Case:
    """Inputs of one shape in guarded buffers, as numbers that the library can store."""

    def __init__(self, buffers, B: int, T: int, C: int, OC: int, r: int, stored: str) -> None:
        self.M, self.C, self.OC, self.r = B * T, C, OC, r
        self.size = B, T
        self.name = f"B={B} T={T} C={C} OC={OC} r={r}"
        self.buffers, self.kind = buffers, getattr(torch, stored)
        self.inp, self.dout = self.input("inp", self.M, C), self.input("dout", self.M, OC)
        self.A, self.B = self.input("A", r, C), self.input("B", OC, r)
        self.W, self.b = self.input("W", OC, C), self.input("b", OC)
        self.pre, self.hidden = self.input("pre", self.M, C), self.input("hidden", self.M, r)

    def input(self, name: str, *shape: int) -> np.ndarray:
        x = torch.from_numpy(normal(name + str(shape), *shape))
        return self.buffers.guarded(x.to(self.kind).float().numpy())

    def both(self, formula, *arrays: np.ndarray) -> list[np.ndarray]:
        return both(formula, *arrays, kind=self.kind)


def check_forward(kernels: Kernel, c: Case, drop: Dropout | None = None) -> None:
    read = storable(kernels, c.inp * factors(drop, c.M, c.C))
    for with_gelu in (False, True):
        out, hidden = c.buffers.out(c.M, c.OC), c.buffers.out(c.M, c.r)
        active = c.buffers.out(c.M, c.OC) if with_gelu else None
        sizes = *c.size, c.C, c.OC, c.r
        kernels.lora_forward(
            out, active, hidden, c.inp, c.W, c.b, c.A, c.B, words(c.buffers, drop), SCALE, *sizes
        )
        assert_parity(
            hidden,
            *c.both(lambda x, a: SCALE * (x @ a.T), read, c.A),
            what=f"hidden, {c.name}",
            stored=kernels.stored,
        )
        # the kernel multiplies hidden as it is stored
        expected = c.both(lambda x, w, b, h, B: x @ w.T + b + h @ B.T, c.inp, c.W, c.b, hidden, c.B)
        assert_parity(out, *expected, what=f"out, {c.name}", stored=kernels.stored)
        if active is not None:
            again = c.buffers.out(c.M, c.OC)
            kernels.gelu_forward(again, out, out.size)
            assert (active == again).all(), f"gelu is another than gelu_forward's, {c.name}"
            assert_parity(active, *c.both(gelu, out), what=f"gelu, {c.name}", stored=kernels.stored)


def check_backward(kernels: Kernel, c: Case, drop: Dropout | None = None) -> None:
    kept = factors(drop, c.M, c.C)
    dhidden = c.buffers.out(c.M, c.r)
    kernels.lora_backward_hidden(dhidden, c.dout, c.B, SCALE, *c.size, c.OC, c.r)
    expected = c.both(lambda d, b: SCALE * (d @ b), c.dout, c.B)
    assert_parity(dhidden, *expected, what=f"dhidden, {c.name}", stored=kernels.stored)
    for pre in (None, c.pre):
        dinp = c.buffers.out(c.M, c.C)
        sizes = *c.size, c.C, c.OC, c.r
        kernels.lora_backward_input(dinp, c.dout, c.W, c.hidden, c.A, pre, words(c.buffers, drop), *sizes)

        def formula(d, w, h, a, p, f, sloped=pre is not None):
            return (d @ w + h @ a * f) * (slope(p) if sloped else 1)

        expected = c.both(formula, c.dout, c.W, c.hidden, c.A, c.pre, kept)
        assert_parity(dinp, *expected, what=f"dinp, {c.name}", stored=kernels.stored)


@pytest.mark.parametrize("drop", [None, DROPOUT], ids=["", "dropout"])
@pytest.mark.parametrize("check", [check_forward, check_backward])
def test_parity(kernels, buffers, check, drop):
    kernels.workspace(2, 65, 768)
    for shape in SHAPES:
        check(kernels, Case(buffers, *shape, kernels.stored), drop)
        buffers.check()


def test_the_workspace_of_a_model_is_enough(kernels, buffers):
    """Its products are (C,3C), (C,C), (C,4C) and (4C,C), and r may be C: where the kernels copy operands, these are longer by r."""
    for T, C in ((128, 32), (120, 30), (33, 8), (260, 64)):
        kernels.workspace(1, T, C)
        for inp, out in ((C, 4 * C), (4 * C, C)):
            for check in (check_forward, check_backward):
                check(kernels, Case(buffers, 1, T, inp, out, C, kernels.stored))


def test_parity_unaligned(kernels, unaligned):
    kernels.workspace(2, 65, 768)
    for shape in SHAPES[::3]:
        for check in (check_forward, check_backward):
            check(kernels, Case(unaligned, *shape, kernels.stored), DROPOUT)


@pytest.mark.parametrize("drop", [None, DROPOUT], ids=["", "dropout"])
def test_results_do_not_depend_on_the_threads(kernels, buffers, drop):
    c = Case(buffers, 4, 120, 96, 130, 8, kernels.stored)
    seen, masks = set(), words(buffers, drop)
    for some in in_every_way(kernels):
        some.workspace(4, 120, 130)
        out, active, hidden = c.buffers.out(c.M, c.OC), c.buffers.out(c.M, c.OC), c.buffers.out(c.M, c.r)
        sizes = *c.size, c.C, c.OC, c.r
        some.lora_forward(out, active, hidden, c.inp, c.W, c.b, c.A, c.B, masks, SCALE, *sizes)
        dhidden, dinp = c.buffers.out(c.M, c.r), c.buffers.out(c.M, c.C)
        some.lora_backward_hidden(dhidden, c.dout, c.B, SCALE, *c.size, c.OC, c.r)
        some.lora_backward_input(dinp, c.dout, c.W, dhidden, c.A, c.pre, masks, *sizes)
        dA, dB = c.buffers.out(c.r, c.C), c.buffers.out(c.OC, c.r)
        some.matmul_backward_weight(dA, None, dhidden, c.inp, 0, *c.size, c.C, c.r)
        some.matmul_backward_weight(dB, None, c.dout, hidden, 0, *c.size, c.r, c.OC)
        seen.add(b"".join(x.tobytes() for x in (out, active, hidden, dhidden, dinp, dA, dB)))
    assert len(seen) == 1
