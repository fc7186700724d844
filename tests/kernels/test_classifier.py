"""classifier_forward, loss_mean and classifier_backward against torch.nn.functional.cross_entropy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import Buffers, Kernel, assert_parity, in_every_way, storable

from pyllmc.parity import yardstick

# B, T, V, Vp: V is no multiple of a vector; V is one more and one less than a block; padding is none, or more than a
# row
SHAPES = [
    (1, 1, 1, 128),
    (2, 3, 2, 128),
    (1, 7, 10, 10),
    (3, 5, 97, 128),
    (2, 2, 1023, 1024),
    (1, 3, 1025, 1152),
    (1, 3, 50257, 50304),
]
SCALE = 0.25
JUNK = np.float32(1e30)  # lies in the padding, which no kernel may read


def data(B: int, T: int, V: int, Vp: int, spread: float = 3.0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(B * 1000 + T * 10 + V)
    logits = np.full((B, T, Vp), JUNK, np.float32)
    logits[..., :V] = rng.standard_normal((B, T, V), dtype=np.float32) * spread
    return {
        "logits": logits,
        "targets": rng.integers(0, V, (B, T), dtype=np.int32),
        "weights": rng.random((B, T), dtype=np.float32) * 2,
    }


def mask(d: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every third target does not count, every fourth weight is 0."""
    d["targets"].ravel()[1::3] = -1
    d["weights"].ravel()[3::4] = 0
    return d


def torch_classifier(d: dict[str, np.ndarray], V: int, dtype: torch.dtype):
    """losses, lse, loss and the gradient of SCALE * loss."""
    x = torch.tensor(d["logits"][..., :V], dtype=dtype, requires_grad=True)
    targets, weights = torch.tensor(d["targets"]).long(), torch.tensor(d["weights"], dtype=dtype)
    losses = torch.nn.functional.cross_entropy(
        x.reshape(-1, V), targets.ravel(), reduction="none", ignore_index=-1
    )
    weights = weights.ravel() * (targets.ravel() != -1)
    loss = (weights * losses).sum() / weights.sum().clamp(min=1e-30)
    dlogits = torch.autograd.grad(SCALE * loss, x)[0]
    return [
        a.detach().numpy() for a in (losses.reshape(targets.shape), torch.logsumexp(x, -1), loss, dlogits)
    ]


def run(k: Kernel, buffers: Buffers, d: dict[str, np.ndarray], V: int):
    """losses, lse, loss (2), dlogits."""
    B, T, Vp = d["logits"].shape
    logits, targets, weights = (buffers.guarded(d[name]) for name in ("logits", "targets", "weights"))
    losses, lse, loss = buffers.out(B, T), buffers.out(B, T), buffers.out(2)
    k.classifier_forward(losses, lse, logits, targets, B, T, V, Vp)
    k.loss_mean(loss, losses, targets, weights, B * T)
    k.classifier_backward(logits, lse, targets, weights, loss, SCALE, B, T, V, Vp)
    return losses, lse, loss, logits


def check(k: Kernel, buffers: Buffers, d: dict[str, np.ndarray], V: int):
    d = {**d, "logits": storable(k, d["logits"])}
    losses, lse, loss, dlogits = run(k, buffers, d, V)
    single, double = yardstick.both(lambda dtype: torch_classifier(d, V, dtype))
    for got, a, b, what in zip((losses, lse, loss[0]), single, double, ("losses", "lse", "loss")):
        assert_parity(got, a, b, what)
    # some subtract lse as float stores it; the others make up for that rounding
    as_float = k.isa == "reference" or k.stored == "bfloat16"
    floor = 2e-7 + (6e-8 * np.abs(lse).max() if as_float else 0)
    assert_parity(dlogits[..., :V], single[3], double[3], "dlogits", floor=floor, stored=k.stored)
    assert (dlogits[..., V:] == 0).all()
    return losses, loss, dlogits


@pytest.mark.parametrize("B,T,V,Vp", SHAPES)
def test_forward_and_backward(kernels: Kernel, buffers: Buffers, B: int, T: int, V: int, Vp: int):
    check(kernels, buffers, data(B, T, V, Vp), V)


@pytest.mark.parametrize("B,T,V,Vp", SHAPES)
def test_masked_and_weighted(kernels: Kernel, buffers: Buffers, B: int, T: int, V: int, Vp: int):
    d = mask(data(B, T, V, Vp))
    losses, loss, dlogits = check(kernels, buffers, d, V)
    counted = d["targets"] != -1
    assert (losses[~counted] == 0).all()
    assert (dlogits[~counted | (d["weights"] == 0)] == 0).all()
    np.testing.assert_allclose(loss[1], 1 / d["weights"][counted].sum(dtype=np.float64), rtol=1e-6)


@pytest.mark.parametrize("how", ["targets", "weights"])
def test_nothing_counts(kernels: Kernel, buffers: Buffers, how: str):
    """A batch without a target gives 0, not 0/0."""
    d = data(2, 3, 97, 128)
    d[how][:] = -1 if how == "targets" else 0
    _, _, loss, dlogits = run(kernels, buffers, d, 97)
    assert (loss == 0).all() and (dlogits == 0).all()


@pytest.mark.parametrize("spread,offset", [(1e4, 0.0), (3.0, 1e4), (3.0, -1e4), (5.0, -80.0)])
def test_large_logits(kernels: Kernel, buffers: Buffers, spread: float, offset: float):
    d = data(3, 5, 97, 128, spread)
    d["logits"][..., :97] += np.float32(offset)
    check(kernels, buffers, d, 97)


def test_largest_logit_anywhere(kernels: Kernel, buffers: Buffers):
    """The running maximum grows, stays or jumps from block to block."""
    V, Vp = 4099, 4224
    largest_at = (0, 1, 1023, 1024, 2500, 3071, 4096, V - 1)
    d = data(1, len(largest_at), V, Vp)
    d["logits"][0, range(len(largest_at)), largest_at] = 30
    d["logits"][0, :4, :V] += np.linspace(0, 60, V, dtype=np.float32)
    check(kernels, buffers, d, V)


def test_forbidden_tokens(kernels: Kernel, buffers: Buffers):
    """A logit of -inf has probability 0, even in a whole block of them."""
    V, Vp = 2100, 2176
    d = data(1, 2, V, Vp)
    d["logits"][0, 0, :2048] = -np.inf
    d["targets"][:] = V - 1
    check(kernels, buffers, d, V)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("at", [0, 50, 96])
def test_bad_logit_shows(kernels: Kernel, buffers: Buffers, bad: float, at: int):
    d = data(1, 2, 97, 128)
    d["logits"][0, 0, at] = bad
    losses, _, loss, dlogits = run(kernels, buffers, d, 97)
    assert not np.isfinite(losses[0, 0]) and np.isfinite(losses[0, 1])
    assert not np.isfinite(loss[0]) and not np.isfinite(dlogits[0, 0]).all()


def test_loss_mean_of_many(kernels: Kernel, buffers: Buffers):
    n = 100_003
    rng = np.random.default_rng(0)
    losses, weights = rng.random(n, dtype=np.float32) * 10, rng.random(n, dtype=np.float32)
    targets = rng.integers(-1, 3, n, dtype=np.int32)
    losses[targets == -1], weights[targets == -1] = np.nan, np.inf  # no kernel may read these
    loss = buffers.out(2)
    kernels.loss_mean(loss, losses, targets, weights, n)
    losses, w = losses[targets != -1], weights[targets != -1].astype(np.float64)
    np.testing.assert_allclose(loss, [(w * losses).sum() / w.sum(), 1 / w.sum()], rtol=1e-7)


def test_unaligned(kernels: Kernel, unaligned: Buffers):
    check(kernels, unaligned, mask(data(3, 5, 97, 128)), 97)


def test_order_does_not_change_a_bit(kernels: Kernel, buffers: Buffers):
    d = mask(data(7, 11, 1500, 1536))
    results = [run(k, buffers, d, 1500) for k in in_every_way(kernels)]
    assert len({b"".join(x.tobytes() for x in result) for result in results}) == 1
