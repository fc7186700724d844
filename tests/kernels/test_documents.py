"""Documents that share a window: attention and embeddings against PyTorch's, with a block-diagonal mask and with positions
that begin anew."""

from __future__ import annotations

import functools
import itertools
import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import MULTIPLY_BF16, Kernel, assert_parity, in_every_way, storable
from test_attention import Case, assert_same_bits, backward, distance, forward, inputs, split_heads, visible
from test_dropout import DROPOUT
from test_encoder import data, torch_encoder

from pyllmc.parity import yardstick


class Packed(NamedTuple):
    """A case of test_attention.py, and the lengths of the documents in a window, which are repeated as long as it goes on."""

    case: Case
    lengths: tuple[int, ...]

    def offsets(self) -> np.ndarray:
        """(B, T) int32. Each sequence begins with another one of the lengths."""
        B, T = self.case.B, self.case.T
        rows = []
        for b in range(B):
            turned = itertools.cycle(self.lengths[b:] + self.lengths[:b])
            row: list[int] = []
            while len(row) < T:
                row += range(next(turned))
            rows.append(row[:T])
        return np.array(rows, np.int32)


PACKED = [
    Packed(Case(1, 1, 1, 1), (1,)),
    Packed(Case(2, 7, 5, 2), (1,)),  # each row is a document
    Packed(Case(1, 13, 12, 2), (12, 1)),  # a boundary before the last row
    Packed(Case(1, 13, 12, 2), (1, 12)),  # and one behind the first
    Packed(Case(2, 31, 1, 3), (3, 17)),
    Packed(Case(1, 63, 25, 2), (62, 1)),
    Packed(Case(1, 128, 16, 2), (64,)),  # boundaries between blocks of rows
    Packed(Case(2, 129, 5, 3), (64, 1)),
    Packed(Case(2, 131, 16, 2), (30, 1, 1, 70)),
    Packed(Case(2, 131, 16, 2, 9), (30, 1, 1, 70)),
    Packed(Case(1, 131, 8, 2, 1), (5, 2)),
    Packed(Case(1, 300, 25, 2), (10,)),
    Packed(Case(1, 530, 16, 1, 100), (200, 130)),
    Packed(Case(1, 600, 8, 1), (257, 1, 300)),
    Packed(Case(1, 600, 8, 1), (300,)),
    Packed(Case(1, 1300, 8, 1), (515, 260, 9)),
    Packed(Case(2, 200, 64, 2), (65, 3)),
    Packed(Case(1, 200, 64, 1, 70), (190, 10)),
    Packed(Case(1, 131, 128, 2), (33, 31)),
    Packed(Case(1, 97, 96, 2), (96, 1)),
    Packed(Case(1, 70, 130, 1), (40,)),
    Packed(Case(1, 129, 40, 1), (2, 1)),
    Packed(Case(1, 70, 16, 2, gain=50.0), (31,)),
]


def mask(packed: Packed) -> torch.Tensor:
    """(B, 1, T, T) bool: query i sees the keys of its document, among those that it sees without documents."""
    T = packed.case.T
    begin = torch.arange(T) - torch.from_numpy(packed.offsets()).long()  # (B, T)
    return (visible(packed.case) & (torch.arange(T) >= begin[:, :, None]))[:, None]


def by_formula(
    qkv: torch.Tensor, packed: Packed, drop: bool = False, own: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """out (B,T,C) and lse (B,NH,T); own: out by PyTorch's own attention, which is much better in bfloat16."""
    case, seen = packed.case, mask(packed)
    q, k, v = split_heads(qkv, case)
    scores = (q @ k.transpose(-2, -1) / math.sqrt(case.hs)).masked_fill(~seen, -math.inf)
    weights = torch.softmax(scores, dim=-1)
    if drop:
        factors = torch.from_numpy(DROPOUT.factors(case.B * case.NH * case.T, case.T)).to(qkv.dtype)
        weights = weights * factors.view(case.B, case.NH, case.T, case.T)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=seen) if own else weights @ v
    return out.transpose(1, 2).reshape(case.B, case.T, case.C), torch.logsumexp(scores, dim=-1)


@functools.cache
def expected(packed: Packed, stored: str, drop: bool = False):
    """(single, float64) of out, lse and dqkv."""
    qkv, dout = inputs(packed.case, stored)

    def by_torch(dtype: torch.dtype) -> list[np.ndarray]:
        x, low = torch.from_numpy(qkv).to(dtype).requires_grad_(), dtype == torch.bfloat16
        out, lse = by_formula(x, packed, drop, own=low and not drop)
        if low:
            lse = by_formula(x.detach().float(), packed)[1]
        out.backward(torch.from_numpy(dout).to(dtype))
        assert x.grad is not None
        return [y.detach().double().numpy() for y in (out, lse, x.grad)]

    return list(zip(*yardstick.both(by_torch, getattr(torch, stored))))


def run(kernels, buffers, packed: Packed, drop: bool = False, dout=None, qkv=None) -> list[np.ndarray]:
    """out, lse and dqkv."""
    case, given = packed.case, inputs(packed.case, kernels.stored)
    dout, qkv = given.dout if dout is None else dout, given.qkv if qkv is None else qkv
    more = buffers.guarded(packed.offsets()), buffers.guarded(DROPOUT.words()) if drop else None
    out, lse = forward(kernels, buffers, case, qkv, *more)
    return [out, lse, backward(kernels, buffers, case, dout, out, lse, qkv, *more)]


@pytest.mark.parametrize("drop", [False, True], ids=["", "dropout"])
@pytest.mark.parametrize("packed", PACKED, ids=str)
def test_attention(kernels, buffers, packed, drop):
    want_out, want_lse, want_dqkv = expected(packed, kernels.stored, drop)
    out, lse, dqkv = run(kernels, buffers, packed, drop)
    rounding = float(np.abs(want_lse[1]).max())  # the largest score: test_attention.py says why
    floor = 2e-7 if packed.case.gain == 1 else 2.0**-22 * rounding
    assert_parity(out, *want_out, "out", floor)
    assert_parity(lse, *want_lse, "lse")
    for i, name in enumerate(("dq", "dk", "dv")):
        part = np.s_[..., i * packed.case.C : (i + 1) * packed.case.C]
        assert_parity(dqkv[part], *(x[part] for x in want_dqkv), name, max(floor, 2.0**-24 * rounding))


SOME = [packed for packed in PACKED if packed.lengths in ((30, 1, 1, 70), (65, 3), (257, 1, 300), (10,))]


@pytest.mark.parametrize("drop", [False, True], ids=["", "dropout"])
@pytest.mark.parametrize("packed", SOME, ids=str)
def test_no_number_crosses_a_boundary(kernels, buffers, packed, drop):
    """Other documents may hold any numbers: results keep every bit. And their gradients are exactly 0."""
    case, offsets = packed.case, packed.offsets()
    qkv, dout = inputs(case, kernels.stored)
    number = np.cumsum(offsets == 0, 1)  # each row tells its document, counted from 1
    mine = number == 3
    before = run(kernels, buffers, packed, drop)
    other = np.where(mine[..., None], qkv, storable(kernels, qkv * np.float32(-30)))
    after = run(kernels, buffers, packed, drop, np.where(mine[..., None], dout, np.float32(0)), other)
    assert_same_bits([[before[0][mine], before[2][mine]], [after[0][mine], after[2][mine]]])
    assert (before[1].transpose(0, 2, 1)[mine] == after[1].transpose(0, 2, 1)[mine]).all()
    assert (after[2][~mine] == 0).all() and np.abs(after[2][mine]).max() > 0


@pytest.mark.parametrize("drop", [False, True], ids=["", "dropout"])
@pytest.mark.parametrize("packed", PACKED, ids=str)
def test_the_first_row_copies_its_value(kernels, buffers, packed, drop):
    """It sees one key, whose weight is 1 whatever the score: so its query has no gradient."""
    out, _, dqkv = run(kernels, buffers, packed, drop)
    first, C = packed.offsets() == 0, packed.case.C
    if not drop:
        np.testing.assert_array_equal(out[first], inputs(packed.case, kernels.stored).qkv[first][:, 2 * C :])
    assert (dqkv[first][:, :C] == 0).all()


@pytest.mark.parametrize("drop", [False, True], ids=["", "dropout"])
@pytest.mark.parametrize("case", [Case(2, 150, 24, 2), Case(1, 300, 64, 2, 70)], ids=str)
def test_a_window_of_one_document(kernels, buffers, case, drop):
    """It gives the bits of a window without documents."""
    packed, qkv, words = Packed(case, (case.T,)), inputs(case, kernels.stored), DROPOUT.words()
    plain = None, buffers.guarded(words) if drop else None
    out, lse = forward(kernels, buffers, case, qkv.qkv, *plain)
    dqkv = backward(kernels, buffers, case, qkv.dout, out, lse, qkv.qkv, *plain)
    assert_same_bits([[out, lse, dqkv], run(kernels, buffers, packed, drop)])


@pytest.mark.parametrize("packed", SOME, ids=str)
def test_order_does_not_change_a_bit(kernels, buffers, packed):
    assert_same_bits(run(k, buffers, packed) for k in in_every_way(kernels))


@pytest.mark.parametrize("packed", SOME, ids=str)
@pytest.mark.parametrize("isa", MULTIPLY_BF16)
def test_bf16_rounds_what_the_reference_rounds(isa, buffers, packed):
    fast, slow = (run(Kernel(name, precision="bf16"), buffers, packed) for name in (isa, "reference"))
    want = expected(packed, "bfloat16")
    for i in 0, 2:
        scale = np.linalg.norm(want[i][1])
        assert distance(fast[i], slow[i]) <= distance(slow[i], want[i][1]) + 1e-6 * scale


# ---- embeddings ----

EMBEDDED = [
    (1, 1, 1, (1,)),
    (2, 3, 5, (1, 2)),
    (3, 5, 48, (2,)),
    (2, 11, 768, (4, 1)),
    (2, 113, 104, (7, 3)),
    (9, 150, 20, (2, 1)),  # so many rows at a position that a GPU adds them in pieces
    (1, 300, 33, (1,)),
    (1, 300, 32, (300,)),  # more positions than there are tokens
]


@pytest.mark.parametrize("B,T,C,lengths", EMBEDDED)
def test_embeddings(kernels, buffers, B, T, C, lengths):
    offsets = Packed(Case(B, T, C, 1), lengths).offsets()
    d = {name: buffers.guarded(x) for name, x in data(kernels, B, T, C, max_t=T).items()}
    given, out = buffers.guarded(offsets), buffers.out(B, T, C)
    kernels.encoder_forward(out, d["tokens"], d["wte"], d["wpe"], None, given, B, T, C)
    single, double = yardstick.both(lambda dtype: torch_encoder(d, offsets.astype(np.int64), dtype))
    want = torch_encoder(d, offsets.astype(np.int64), torch.float32)[0].numpy()
    assert (out == storable(kernels, want)).all()
    for wanted in ("dwte", "dwpe"), ("dwte",), ("dwpe",):
        found = {name: buffers.guarded(np.zeros_like(d[name[1:]])) for name in wanted}
        kernels.workspace(B, T, C)
        kernels.encoder_backward(found.get("dwte"), found.get("dwpe"), d["dout"], d["tokens"], given, B, T, C)
        for i, name in (1, "dwte"), (2, "dwpe"):
            if name in found:
                assert_parity(found[name], single[i], double[i], name)


def test_the_order_of_positions_does_not_change_a_bit(kernels, buffers):
    B, T, C, results = 9, 113, 99, []
    d, offsets = data(kernels, B, T, C, max_t=T), Packed(Case(B, T, C, 1), (7, 1)).offsets()
    for k in in_every_way(kernels):
        dwte, dwpe = np.zeros_like(d["wte"]), np.zeros_like(d["wpe"])
        k.workspace(B, T, C)
        k.encoder_backward(dwte, dwpe, d["dout"], d["tokens"], offsets, B, T, C)
        results.append(dwte.tobytes() + dwpe.tobytes())
    assert len(set(results)) == 1
