"""encoder_forward and encoder_backward against torch.nn.functional.embedding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import Buffers, Kernel, assert_parity, in_every_way, storable

from pyllmc.parity import yardstick

SHAPES = [(1, 1, 1), (2, 3, 5), (1, 13, 7), (3, 5, 48), (37, 1, 17), (2, 11, 768), (2, 3, 1600)]
V, MAX_T = 29, 16


def data(k: Kernel, B: int, T: int, C: int, V: int = V, max_t: int = MAX_T) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(B * 1000 + T * 10 + C)
    tokens = rng.integers(0, V, (B, T), dtype=np.int32)
    shapes = {"wte": (V, C), "wpe": (max_t, C), "dout": (B, T, C)}
    rows = {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}
    return {"tokens": tokens, **{name: storable(k, x) for name, x in rows.items()}}


def torch_encoder(d: dict[str, np.ndarray], positions: np.ndarray, dtype: torch.dtype):
    """out, dwte, dwpe"""
    wte, wpe = (torch.tensor(d[name], dtype=dtype, requires_grad=True) for name in ("wte", "wpe"))
    embed = torch.nn.functional.embedding
    out = embed(torch.from_numpy(d["tokens"]), wte) + embed(torch.from_numpy(positions), wpe)
    return out.detach(), *torch.autograd.grad(out, (wte, wpe), torch.tensor(d["dout"], dtype=dtype))


@pytest.mark.parametrize("B,T,C", SHAPES)
@pytest.mark.parametrize("shifted", [False, True])
def test_forward(kernels: Kernel, buffers: Buffers, B: int, T: int, C: int, shifted: bool):
    d = {name: buffers.guarded(x) for name, x in data(kernels, B, T, C).items()}
    pos = buffers.guarded((np.arange(B) % (MAX_T - T + 1)).astype(np.int32)) if shifted else None
    positions = np.arange(T)[None] + (np.zeros((B, 1), int) if pos is None else pos[:, None])
    out = buffers.out(B, T, C)
    kernels.encoder_forward(out, d["tokens"], d["wte"], d["wpe"], pos, None, B, T, C)
    expected = torch_encoder(d, positions, torch.float32)[0].numpy()
    assert (out == storable(kernels, expected)).all()  # one addition, rounded once


@pytest.mark.parametrize("B,T,C", SHAPES)
def test_backward(kernels: Kernel, buffers: Buffers, B: int, T: int, C: int):
    d = {name: buffers.guarded(x) for name, x in data(kernels, B, T, C).items()}
    dwte, dwpe = buffers.guarded(np.zeros_like(d["wte"])), buffers.guarded(np.zeros_like(d["wpe"]))
    kernels.workspace(B, T, C)
    kernels.encoder_backward(dwte, dwpe, d["dout"], d["tokens"], None, B, T, C)
    positions = np.tile(np.arange(T), (B, 1))
    single, double = yardstick.both(lambda dtype: torch_encoder(d, positions, dtype))
    assert_parity(dwte, single[1], double[1], "dwte")
    assert_parity(dwpe, single[2], double[2], "dwpe")
    assert (dwpe[T:] == 0).all()


@pytest.mark.parametrize("C", [20, 32])
def test_backward_of_one_token_repeated(kernels: Kernel, buffers: Buffers, C: int):
    """The sum of many rows is as accurate as PyTorch's, in dwte and in dwpe."""
    B, T = 997, 3
    d = data(kernels, B, T, C)
    d["tokens"][:] = 5
    dwte, dwpe = buffers.guarded(np.zeros_like(d["wte"])), buffers.guarded(np.zeros_like(d["wpe"]))
    kernels.workspace(B, T, C)
    kernels.encoder_backward(dwte, dwpe, d["dout"], d["tokens"], None, B, T, C)
    positions = np.tile(np.arange(T), (B, 1))
    single, double = yardstick.both(lambda dtype: torch_encoder(d, positions, dtype))
    assert_parity(dwte, single[1], double[1], "dwte")
    assert_parity(dwpe, single[2], double[2], "dwpe")
    assert (np.delete(dwte, 5, axis=0) == 0).all()


def test_backward_accumulates(kernels: Kernel, buffers: Buffers):
    B, T, C = 3, 5, 48
    d = data(kernels, B, T, C)
    d["dout"] = np.round(d["dout"] * 8)  # small integers, so that sums are exact in any order
    dwte, dwpe = buffers.guarded(np.ones_like(d["wte"])), buffers.guarded(np.ones_like(d["wpe"]))
    kernels.workspace(B, T, C)
    for _ in range(2):
        kernels.encoder_backward(dwte, dwpe, d["dout"], d["tokens"], None, B, T, C)
    _, expected_dwte, expected_dwpe = torch_encoder(d, np.tile(np.arange(T), (B, 1)), torch.float64)
    assert (dwte == 1 + 2 * expected_dwte.numpy()).all()
    assert (dwpe == 1 + 2 * expected_dwpe.numpy()).all()


def test_unaligned(kernels: Kernel, unaligned: Buffers):
    test_forward(kernels, unaligned, 3, 5, 48, shifted=True)
    test_backward(kernels, unaligned, 3, 5, 48)


@pytest.mark.parametrize("C", [99, 104])
def test_order_does_not_change_a_bit(kernels: Kernel, C: int):
    B, T = 9, 113
    d = data(kernels, B, T, C, max_t=T)
    results = []
    for k in in_every_way(kernels):
        k.workspace(B, T, C)
        out, dwte, dwpe = np.empty((B, T, C), np.float32), np.zeros_like(d["wte"]), np.zeros_like(d["wpe"])
        k.encoder_forward(out, d["tokens"], d["wte"], d["wpe"], None, None, B, T, C)
        k.encoder_backward(dwte, dwpe, d["dout"], d["tokens"], None, B, T, C)
        results.append(out.tobytes() + dwte.tobytes() + dwpe.tobytes())
    assert len(set(results)) == 1
