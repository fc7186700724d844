"""adamw, global_norm and scale against torch.optim.AdamW and torch.nn.utils.clip_grad_norm_."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import Buffers, Kernel, assert_parity, in_every_way, storable

from pyllmc.parity import yardstick

COUNTS = [1, 3, 16, 17, 97, 1009, 8191, 8193, 70001]
STEPS = 10
LR, BETA1, BETA2, EPS = 3e-4, 0.9, 0.999, 1e-8


def random(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng((n, seed)).standard_normal(n, dtype=np.float32)


def gradients(n: int) -> list[np.ndarray]:
    """Gradients of all sizes; some are always 0."""
    spread = np.float32(10) ** np.linspace(-6, 2, n, dtype=np.float32)
    grads = [random(n, seed) * spread for seed in range(1, STEPS + 1)]
    for grad in grads:
        grad[::7] = 0
    return grads


def torch_adamw(start: np.ndarray, grads, dtype: torch.dtype, decay: float, factor: float, eps: float = EPS):
    """param, m, v after the last gradient."""
    param = torch.nn.Parameter(torch.tensor(start, dtype=dtype))
    optimizer = torch.optim.AdamW([param], lr=LR, betas=(BETA1, BETA2), eps=eps, weight_decay=decay)
    for grad in grads:
        param.grad = torch.tensor(grad, dtype=dtype) * factor
        optimizer.step()
    state = optimizer.state[param]
    return [a.detach().numpy() for a in (param, state["exp_avg"], state["exp_avg_sq"])]


def stored_beside(k: Kernel, buffers: Buffers, param: np.ndarray) -> np.ndarray:
    """The tensor beside the master weights: the same memory if floats are stored."""
    return param if k.stored == "float32" else buffers.out(*param.shape)


def numbers(t: int, decay: float, eps: float = EPS) -> np.ndarray:
    """struct AdamW of step t; a tensor that is not decayed must not read the last number."""
    unbias = 1 / np.sqrt(1 - BETA2**t)
    step = [
        BETA1,
        1 - BETA1,
        BETA2,
        1 - BETA2,
        LR / (1 - BETA1**t),
        unbias,
        eps,
        LR * decay if decay else np.nan,
    ]
    return np.array(step, np.float32)


def adamw(
    k: Kernel,
    buffers: Buffers,
    start: np.ndarray,
    grads,
    decay: float,
    factor: float | None,
    eps: float = EPS,
):
    n = start.size
    param, m, v = (buffers.guarded(x) for x in (start, np.zeros_like(start), np.zeros_like(start)))
    stored = stored_beside(k, buffers, param)
    grad_scale = None if factor is None else np.array([factor], np.float32)
    for t, grad in enumerate(grads, 1):
        k.adamw(param, stored, m, v, buffers.guarded(grad), grad_scale, numbers(t, decay, eps), decay > 0, n)
        assert (stored == storable(k, param)).all()
    return [param, m, v]


@pytest.mark.parametrize("n", COUNTS)
@pytest.mark.parametrize("decay,factor", [(0.0, None), (0.125, None), (0.125, 0.37), (0.0, 1.0)])
def test_ten_steps(kernels: Kernel, buffers: Buffers, n: int, decay: float, factor: float | None):
    start, grads = random(n), gradients(n)
    got = adamw(kernels, buffers, start, grads, decay, factor)
    used = 1.0 if factor is None else float(np.float32(factor))
    single, double = yardstick.both(lambda dtype: torch_adamw(start, grads, dtype, decay, used))
    for ours, a, b, what in zip(got, single, double, ("param", "m", "v")):
        assert_parity(ours, a, b, what)
    assert_parity(got[0] - start, single[0] - start, double[0] - start, "update", floor=1e-3)


def test_eps_outside_the_root(kernels: Kernel, buffers: Buffers):
    """An eps as large as the gradient tells sqrt(v) + eps from sqrt(v + eps)."""
    start, grads, eps = random(97), [g * np.float32(1e-3) for g in gradients(97)], float(np.float32(1e-3))
    got = adamw(kernels, buffers, start, grads, 0.0, None, eps)
    single, double = yardstick.both(lambda dtype: torch_adamw(start, grads, dtype, 0.0, 1.0, eps))
    assert_parity(got[0] - start, single[0] - start, double[0] - start, "update", floor=1e-3)


def test_late_step(kernels: Kernel, buffers: Buffers):
    """After millions of steps the moments are no longer corrected, and t needs 64 bits."""
    n, t = 33, 3_000_000_000
    param, m, v, grad = (buffers.guarded(np.abs(random(n, seed)) + np.float32(0.5)) for seed in range(4))
    p, m1, v1 = (x.astype(np.float64) for x in (param, m, v))
    m1, v1 = BETA1 * m1 + (1 - BETA1) * grad, BETA2 * v1 + (1 - BETA2) * grad.astype(np.float64) ** 2
    stored = stored_beside(kernels, buffers, param)
    kernels.adamw(param, stored, m, v, grad, None, numbers(t, 0.0), 0, n)
    np.testing.assert_allclose(param, p - LR * m1 / (np.sqrt(v1) + EPS), rtol=1e-6)


def norm_of(k: Kernel, buffers: Buffers, grads: np.ndarray, max_norm: float = 1.0) -> np.ndarray:
    norm = buffers.out(2)
    k.workspace(1, 1, 1)
    k.global_norm(norm, buffers.guarded(grads), max_norm, grads.size)
    return norm


def torch_norm(grads: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    param = torch.nn.Parameter(torch.zeros(grads.size, dtype=dtype))
    param.grad = torch.tensor(grads, dtype=dtype)
    return torch.nn.utils.clip_grad_norm_([param], 1.0).numpy()


@pytest.mark.parametrize("n", [*COUNTS, 2_200_001])
def test_global_norm(kernels: Kernel, buffers: Buffers, n: int):
    grads = random(n)
    norm = norm_of(kernels, buffers, grads)
    (single,), (double,) = yardstick.both(lambda dtype: [torch_norm(grads, dtype)])
    assert_parity(norm[0], single, double, "norm")
    np.testing.assert_allclose(norm[1], min(1.0, 1 / (double + 1e-6)), rtol=1e-6)


@pytest.mark.parametrize("max_norm,expected", [(0.0, 1.0), (-1.0, 1.0), (100.0, 1.0), (2.5, 0.5)])
def test_clip_factor(kernels: Kernel, buffers: Buffers, max_norm: float, expected: float):
    norm = norm_of(kernels, buffers, np.array([3, -4], np.float32), max_norm)
    np.testing.assert_allclose(norm, [5, expected], rtol=1e-6)


@pytest.mark.parametrize("size", [1e-21, 1e25])
def test_norm_whose_squares_leave_float(kernels: Kernel, buffers: Buffers, size: float):
    norm = norm_of(kernels, buffers, np.full(1000, size, np.float32))
    np.testing.assert_allclose(norm[0], np.float32(size) * np.sqrt(1000.0), rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, 5000, 20000])
def test_bad_gradient_shows(kernels: Kernel, buffers: Buffers, bad: float, at: int):
    grads = random(20001)
    grads[at] = bad
    assert not np.isfinite(norm_of(kernels, buffers, grads)[0])


@pytest.mark.parametrize("n", COUNTS)
@pytest.mark.parametrize("factor", [1.0, 0.3, 0.0])
def test_scale(kernels: Kernel, buffers: Buffers, n: int, factor: float):
    x, by = buffers.guarded(random(n)), np.array([factor], np.float32)
    kernels.scale(x, by, n)
    assert (x == random(n) * by).all()


@pytest.mark.parametrize("n", COUNTS)
def test_store(kernels: Kernel, buffers: Buffers, n: int):
    """Rounds to nearest, ties to even; NaN and infinity stay."""
    param = buffers.guarded(random(n))
    param[:3] = [np.inf, np.nan, -(1 + 2.0**-8)][:n]
    stored = buffers.out(n)
    kernels.store(stored, param, n)
    np.testing.assert_array_equal(stored, storable(kernels, param))


def test_unaligned(kernels: Kernel, unaligned: Buffers):
    test_ten_steps(kernels, unaligned, 97, 0.125, 0.37)
    test_global_norm(kernels, unaligned, 97)
    test_scale(kernels, unaligned, 97, 0.3)
    test_store(kernels, unaligned, 97)


def test_order_does_not_change_a_bit(kernels: Kernel, buffers: Buffers):
    n, results = 150_001, []
    grads = gradients(n)[:2]
    for k in in_every_way(kernels):
        norm = norm_of(k, buffers, grads[0])
        state = adamw(k, buffers, random(n), grads, 0.1, norm[1])
        scaled = grads[1].copy()
        k.scale(scaled, norm[1:], n)
        results.append(b"".join(x.tobytes() for x in (norm, scaled, *state)))
    assert len(set(results)) == 1
