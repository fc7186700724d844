"""layernorm_forward, residual_layernorm_forward and layernorm_backward against torch.native_layer_norm."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import Buffers, Kernel, assert_parity, in_every_way, storable

from pyllmc.parity import yardstick

# rows of one warp, of several, and rows too long for its registers
SHAPES = [(1, 1, 1), (2, 3, 5), (1, 13, 7), (3, 5, 48), (2, 1, 97), (2, 11, 768), (1, 3, 1600), (7, 101, 33),
          (1, 2, 4104), (1, 2, 8200)]  # fmt: skip
EPS = 1e-5


def data(k: Kernel, B: int, T: int, C: int, offset: float = 0.3) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(B * 1000 + T * 10 + C)
    rows = {
        name: rng.standard_normal((B, T, C), dtype=np.float32)
        for name in ("inp", "inp2", "dout", "dresidual")
    }
    rows["inp"] = (rows["inp"] * 2 + offset).astype(np.float32)
    params = {name: rng.standard_normal(C, dtype=np.float32) + np.float32(1) for name in ("weight", "bias")}
    return {name: storable(k, x) for name, x in {**rows, **params}.items()}


def torch_layernorm(inp, weight, bias, dtype: torch.dtype, dout=None):
    """out, mean, rstd; and with dout also dinp, dweight, dbias."""
    x, w, b = (torch.tensor(a, dtype=dtype, requires_grad=True) for a in (inp, weight, bias))
    out, mean, rstd = torch.native_layer_norm(x, (x.shape[-1],), w, b, EPS)
    forward = [a.detach().numpy() for a in (out, mean[..., 0], rstd[..., 0])]
    if dout is None:
        return forward
    return [
        *forward,
        *(a.numpy() for a in torch.autograd.grad(out, (x, w, b), torch.tensor(dout, dtype=dtype))),
    ]


def both(*args, **kwargs):
    return yardstick.both(lambda dtype: torch_layernorm(*args, dtype=dtype, **kwargs))


def check_forward(kernels: Kernel, buffers: Buffers, B: int, T: int, C: int, offset: float):
    d = {name: buffers.guarded(x) for name, x in data(kernels, B, T, C, offset).items()}
    got = buffers.out(B, T, C), buffers.out(B, T), buffers.out(B, T)
    kernels.layernorm_forward(*got, d["inp"], d["weight"], d["bias"], B, T, C)
    for ours, single, double, what in zip(
        got, *both(d["inp"], d["weight"], d["bias"]), ("out", "mean", "rstd")
    ):
        assert_parity(ours, single, double, what, stored=kernels.stored if what == "out" else "float32")


@pytest.mark.parametrize("B,T,C", SHAPES)
def test_forward(kernels: Kernel, buffers: Buffers, B: int, T: int, C: int):
    check_forward(kernels, buffers, B, T, C, 0.3)


@pytest.mark.parametrize("offset", [100.0, -3000.0])
def test_forward_far_from_zero(kernels: Kernel, buffers: Buffers, offset: float):
    """The variance must not cancel if the mean is large."""
    check_forward(kernels, buffers, 2, 7, 1600, offset)


def test_constant_rows(kernels: Kernel, buffers: Buffers):
    """A variance of 0 leaves eps: rstd = 1/sqrt(eps), out = bias."""
    B, T, C = 2, 3, 37
    d = data(kernels, B, T, C)
    inp = storable(kernels, np.full((B, T, C), 1.1, np.float32))
    out, mean, rstd = buffers.out(B, T, C), buffers.out(B, T), buffers.out(B, T)
    kernels.layernorm_forward(out, mean, rstd, inp, d["weight"], d["bias"], B, T, C)
    np.testing.assert_allclose(rstd, EPS**-0.5, rtol=1e-6)
    np.testing.assert_allclose(out, np.broadcast_to(d["bias"], out.shape), atol=2e-4)


@pytest.mark.parametrize("B,T,C", SHAPES)
def test_residual_forward(kernels: Kernel, buffers: Buffers, B: int, T: int, C: int):
    d = {name: buffers.guarded(x) for name, x in data(kernels, B, T, C).items()}
    residual, got = buffers.out(B, T, C), (buffers.out(B, T, C), buffers.out(B, T), buffers.out(B, T))
    kernels.residual_layernorm_forward(
        residual, *got, d["inp"], d["inp2"], d["weight"], d["bias"], None, B, T, C
    )
    assert (residual == storable(kernels, d["inp"] + d["inp2"])).all()
    for ours, single, double, what in zip(
        got, *both(residual, d["weight"], d["bias"]), ("out", "mean", "rstd")
    ):
        assert_parity(ours, single, double, what, stored=kernels.stored if what == "out" else "float32")


def run_backward(
    k: Kernel, buffers: Buffers, d: dict[str, np.ndarray], B: int, T: int, C: int, calls: int = 1
):
    """dresidual, which starts as d["dresidual"], and dweight, dbias, which start as 1."""
    k.workspace(B, T, C)
    got = [buffers.guarded(x) for x in (d["dresidual"], np.ones(C, np.float32), np.ones(C, np.float32))]
    _, mean, rstd, *_ = torch_layernorm(d["inp"], d["weight"], d["bias"], torch.float64)
    mean, rstd = (buffers.guarded(x.astype(np.float32)) for x in (mean, rstd))
    for _ in range(calls):
        k.layernorm_backward(*got, d["dout"], d["inp"], d["weight"], mean, rstd, B, T, C)
    return got


@pytest.mark.parametrize("B,T,C", SHAPES)
def test_backward(kernels: Kernel, buffers: Buffers, B: int, T: int, C: int):
    d = {name: buffers.guarded(x) for name, x in data(kernels, B, T, C).items()}
    got = run_backward(kernels, buffers, d, B, T, C)
    single, double = both(d["inp"], d["weight"], d["bias"], dout=d["dout"])
    for ours, start, a, b, what in zip(
        got,
        (d["dresidual"], np.float32(1), np.float32(1)),
        single[3:],
        double[3:],
        ("dinp", "dweight", "dbias"),
    ):
        stored = kernels.stored if what == "dinp" else "float32"
        assert_parity(ours, start + a, np.float64(start) + b, what, stored=stored)


@pytest.mark.parametrize("C", [19, 40])
def test_backward_of_many_rows(kernels: Kernel, buffers: Buffers, C: int):
    """dweight and dbias, sums over thousands of rows, are as accurate as PyTorch's."""
    B, T = 5, 1009
    d = data(kernels, B, T, C)
    got = run_backward(kernels, buffers, d, B, T, C)
    single, double = both(d["inp"], d["weight"], d["bias"], dout=d["dout"])
    for i, what in (1, "dweight"), (2, "dbias"):
        assert_parity(got[i], 1 + single[3 + i], 1 + double[3 + i], what)


def test_backward_accumulates(kernels: Kernel, buffers: Buffers):
    B, T, C = 3, 5, 48
    d = data(kernels, B, T, C)
    once, twice = (run_backward(kernels, buffers, d, B, T, C, calls) for calls in (1, 2))
    roundings = {"float32": 1e-5, "bfloat16": 3 * 2**-8 * np.abs(once[0]).max()}
    for start, a, b, atol in zip(
        (d["dresidual"], 1, 1), once, twice, (roundings[kernels.stored], 1e-5, 1e-5)
    ):
        np.testing.assert_allclose(b - start, 2 * (a - start), rtol=1e-5, atol=atol)


def test_unaligned(kernels: Kernel, unaligned: Buffers):
    check_forward(kernels, unaligned, 2, 3, 48, 0.3)
    test_residual_forward(kernels, unaligned, 2, 3, 48)
    test_backward(kernels, unaligned, 2, 3, 48)


@pytest.mark.parametrize("B,T,C", [(9, 113, 99), (3, 11, 768), (1, 5, 1600)])
def test_order_does_not_change_a_bit(kernels: Kernel, buffers: Buffers, B: int, T: int, C: int):
    d = data(kernels, B, T, C)
    results = []
    for k in in_every_way(kernels):
        got = np.empty((B, T, C), np.float32), np.empty((B, T), np.float32), np.empty((B, T), np.float32)
        k.layernorm_forward(*got, d["inp"], d["weight"], d["bias"], B, T, C)
        fused = [np.empty_like(x) for x in (got[0], *got)]
        k.residual_layernorm_forward(*fused, d["inp"], d["inp2"], d["weight"], d["bias"], None, B, T, C)
        grads = run_backward(k, buffers, d, B, T, C)
        results.append(b"".join(x.tobytes() for x in (*got, *fused, *grads)))
    assert len(set(results)) == 1
