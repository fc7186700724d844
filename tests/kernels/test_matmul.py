"""matmul: parity with PyTorch for every entry and instruction set, around every edge of the blocking."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import CPU_KERNELS, DEVICES, KNOWN_ISAS, Kernel, assert_parity, make_kernels

from pyllmc.parity import yardstick

BLOCKED = [name for name in CPU_KERNELS if not name.startswith("reference")]

# (B, T, C, OC): ones, primes, the demo's sizes, GPT-2's sizes cut short
SHAPES = [
    (1, 1, 1, 1), (1, 1, 1, 5), (1, 1, 7, 1), (1, 3, 1, 1), (2, 2, 3, 5), (1, 1, 97, 101), (1, 2, 31, 33),
    (1, 3, 128, 130), (2, 16, 17, 19), (1, 17, 48, 10), (3, 11, 23, 1), (1, 37, 1, 53), (5, 13, 48, 144),
    (1, 67, 113, 59), (1, 128, 128, 384), (2, 64, 128, 640), (1, 19, 768, 96), (1, 1, 768, 256),
    (1, 5, 3072, 40), (1, 75, 1024, 21), (1, 75, 21, 1024), (1, 7, 2100, 19), (1, 13, 2100, 19), (1, 21, 2100, 19),
    (1, 24, 100, 768), (1, 1, 64, 2304), (1, 8, 2304, 24), (1, 64, 520, 17), (1, 65, 520, 18),
    (1, 16, 128, 33), (1, 17, 128, 33), (1, 96, 20, 50), (1, 97, 20, 50), (1, 128, 20, 50), (1, 129, 20, 50),
]  # fmt: skip
CACHE = [191, 192, 193, 385]  # around the blocks of the summed dimension
WIDE = [383, 385, 769]  # around the blocks of columns


def edge_shapes(isa: str) -> list[tuple[int, int, int, int]]:
    """Shapes of one less, as many, and one more than a tile, a vector and a block, in each dimension."""
    lanes, rows, columns = KNOWN_ISAS[isa]
    near = [x + d for x in (rows, 2 * rows, columns, lanes) for d in (-1, 0, 1)]
    pairs = list(zip(near, near[::-1]))
    tiles = [(1, m, 9, n) for m, n in pairs] + [(1, 33, m, n) for m, n in pairs]
    caches = [s for k in CACHE for s in ((1, 20, k, 21), (1, 18, 19, k), (1, k, 18, 17))]
    return tiles + caches + [s for n in WIDE for s in ((1, 18, 7, n), (1, 19, n, 7), (1, n, 6, 7))]


# around the GPU's tiles of 128 x 128 x 32 and 64 x 64 x 16, with rows of whole 16 bytes and others
DEVICE_SHAPES = [(1, 128, 32, 128), (1, 129, 40, 136), (1, 127, 88, 120), (2, 65, 96, 264), (1, 200, 8, 8),
                 (1, 1030, 64, 152), (1, 65, 33, 63), (3, 40, 192, 130)]  # fmt: skip


# around what csrc/cpu/gemm_amx.c cuts K, M and N into: parts of 768, slices of 4,096, slabs of 8 MiB; and around the 16 rows
# or columns and the groups of 96 of csrc/cpu/gemm_thin.c
AMX_SHAPES = [(1, 97, 1100, 70), (1, 1100, 70, 97), (1, 130, 4096, 1030), (1, 66, 4128, 40), (1, 66, 40, 4128),
              (1, 4128, 40, 33), (1, 12, 768, 50), (1, 4200, 40, 8), (1, 4200, 8, 40), (1, 33, 16, 200),
              (1, 70, 97, 16), (1, 31, 16, 15), (1, 64, 193, 9)]  # fmt: skip


def workspace(kernels: Kernel, shape: tuple[int, int, int, int]) -> None:
    """Scratch memory for a product: B*T, 4C and Vp are the largest that a model has."""
    B, T, C, OC = shape
    kernels.workspace(B, T, max(C, OC))


def shapes_of(isa: str) -> list[tuple[int, int, int, int]]:
    edges = DEVICE_SHAPES if isa in DEVICES else edge_shapes(isa) if isa in KNOWN_ISAS else []
    return SHAPES + edges + (AMX_SHAPES if isa.startswith("amx") else [])


def normal(seed: str, *shape: int) -> np.ndarray:
    return np.random.default_rng(zlib.crc32(seed.encode())).standard_normal(shape, dtype=np.float32)


def gelu(x: torch.Tensor) -> torch.Tensor:
    return F.gelu(x, approximate="tanh")


def both(formula, *arrays: np.ndarray, kind: torch.dtype = torch.float32) -> list[np.ndarray]:
    """The formula in PyTorch, in `kind` and in float64."""
    tensors = [torch.from_numpy(a.copy()) for a in arrays]
    single, double = yardstick.both(lambda k: [formula(*(x.to(k) for x in tensors)).double().numpy()], kind)
    return [*single, *double]


def slope(x: torch.Tensor) -> torch.Tensor:
    x = x.detach().requires_grad_()
    return torch.autograd.grad(gelu(x).sum(), x)[0]


class Case:
    """Inputs of one shape in guarded buffers, as numbers that the library can store."""

    def __init__(self, buffers, B: int, T: int, C: int, OC: int, stored: str = "float32") -> None:
        self.shape, self.M = (B, T, C, OC), B * T
        self.kind = getattr(torch, stored)
        self.name = f"B={B} T={T} C={C} OC={OC}"
        self.buffers = buffers
        self.inp, self.dout = self.input("inp", self.M, C), self.input("dout", self.M, OC)
        self.weight, self.bias = self.input("weight", OC, C), self.input("bias", OC)
        self.pre = self.input("pre", self.M, C)

    def input(self, name: str, *shape: int) -> np.ndarray:
        x = torch.from_numpy(normal(name + str(shape), *shape))
        return self.buffers.guarded(x.to(self.kind).float().numpy())

    def out(self, like: np.ndarray) -> np.ndarray:
        return self.buffers.out(*like.shape)

    def both(self, formula, *arrays: np.ndarray) -> list[np.ndarray]:
        """For a result that is stored. A result that is always float goes to both() itself."""
        return both(formula, *arrays, kind=self.kind)


def check_forward(kernels: Kernel, c: Case) -> None:
    for bias in (c.bias, None):
        out = c.out(c.dout)
        kernels.matmul_forward(out, c.inp, c.weight, bias, *c.shape)
        given = (c.inp, c.weight) if bias is None else (c.inp, c.weight, bias)
        assert_parity(out, *c.both(F.linear, *given), what=f"out, {c.name}")


def check_gelu_forward(kernels: Kernel, c: Case) -> None:
    out, pre = c.out(c.dout), c.out(c.dout)
    kernels.matmul_gelu_forward(out, pre, c.inp, c.weight, c.bias, *c.shape)
    assert_parity(pre, *c.both(F.linear, c.inp, c.weight, c.bias), what=f"pre, {c.name}")
    assert_parity(
        out, *c.both(lambda *x: gelu(F.linear(*x)), c.inp, c.weight, c.bias), what=f"gelu, {c.name}"
    )


def check_backward_input(kernels: Kernel, c: Case) -> None:
    dinp, dpre = c.out(c.inp), c.out(c.inp)
    kernels.matmul_backward_input(dinp, c.dout, c.weight, *c.shape)
    assert_parity(dinp, *c.both(torch.matmul, c.dout, c.weight), what=f"dinp, {c.name}")
    kernels.matmul_gelu_backward_input(dpre, c.dout, c.weight, c.pre, *c.shape)
    expected = c.both(lambda d, w, p: (d @ w) * slope(p), c.dout, c.weight, c.pre)
    assert_parity(dpre, *expected, what=f"dpre, {c.name}")


def check_backward_weight(kernels: Kernel, c: Case) -> None:
    """Checks it twice with gradients that accumulate, then once with gradients that are written. They are float
    whatever is stored; a tensor core adds up one by one along K, whereas PyTorch's float32 on the CPU has many sums
    side by side."""
    tensor_cores = 8 if kernels.isa in DEVICES and c.kind == torch.bfloat16 else 2
    start_w, start_b = normal("dw" + c.name, *c.weight.shape), normal("db" + c.name, *c.bias.shape)
    dweight, dbias = c.buffers.guarded(start_w), c.buffers.guarded(start_b)
    for times in (1, 2):
        kernels.matmul_backward_weight(dweight, dbias, c.dout, c.inp, 1, *c.shape)
        expected = both(lambda s, d, x, n=times: s + n * (d.T @ x), start_w, c.dout, c.inp)
        assert_parity(dweight, *expected, what=f"dweight x{times}, {c.name}", times=tensor_cores)
        expected = both(lambda s, d, n=times: s + n * d.sum(0), start_b, c.dout)
        assert_parity(dbias, *expected, what=f"dbias x{times}, {c.name}")
    only = c.out(start_w)  # NaN, which must not be read
    kernels.matmul_backward_weight(only, None, c.dout, c.inp, 0, *c.shape)
    expected = both(lambda d, x: d.T @ x, c.dout, c.inp)
    assert_parity(only, *expected, what=f"dweight written, without dbias, {c.name}", times=tensor_cores)


CHECKS = [check_forward, check_gelu_forward, check_backward_input, check_backward_weight]


@pytest.mark.parametrize("check", CHECKS)
def test_parity(kernels: Kernel, buffers, check) -> None:
    for shape in shapes_of(kernels.isa):
        B, T, C, OC = shape
        workspace(kernels, (B, T, C, OC))
        check(kernels, Case(buffers, *shape, kernels.stored))
        buffers.check()
        buffers.held.clear()


@pytest.mark.parametrize("check", CHECKS)
def test_unaligned(kernels: Kernel, unaligned, check) -> None:
    for shape in ((1, 1, 97, 101), (2, 13, 48, 144), (1, 129, 40, 136)):
        workspace(kernels, shape)
        check(kernels, Case(unaligned, *shape, kernels.stored))


@pytest.mark.parametrize("name", BLOCKED)
def test_threads_do_not_change_a_bit(name: str, buffers) -> None:
    """The shapes are so large that every thread has work."""
    for shape in ((1, 2, 700, 900), (1, 301, 130, 520), (2, 70, 530, 401), (1, 1030, 64, 150)):
        c, results = Case(buffers, *shape), []
        for threads in (1, 2, 3, 5):
            kernels = make_kernels(name, threads)
            workspace(kernels, shape)
            out, pre, dinp, dpre = c.out(c.dout), c.out(c.dout), c.out(c.inp), c.out(c.inp)
            dweight, dbias = np.ones_like(c.weight), np.ones_like(c.bias)
            kernels.matmul_gelu_forward(out, pre, c.inp, c.weight, c.bias, *shape)
            kernels.matmul_backward_input(dinp, c.dout, c.weight, *shape)
            kernels.matmul_gelu_backward_input(dpre, c.dout, c.weight, c.pre, *shape)
            kernels.matmul_backward_weight(dweight, dbias, c.dout, c.inp, 1, *shape)
            results.append([x.tobytes() for x in (out, pre, dinp, dpre, dweight, dbias)])
        assert all(r == results[0] for r in results), f"threads change the result at {shape}"


def test_gelu_of_extremes(kernels: Kernel, buffers) -> None:
    """The numbers go through the whole kernel: C=1, weight 1, so that pre = inp."""
    special = [0.0, -0.0, 100, -100, np.inf, -np.inf, np.nan, 3e38, -3e38]
    special += [1e-30, 12, -12, 5, -5, 0.5, -0.5, 1e-3]
    x = buffers.guarded(np.array(special, np.float32))
    one, M = buffers.guarded(np.ones((1, 1), np.float32)), len(special)
    kernels.workspace(1, 1, 1)
    out, pre, dpre = buffers.out(M), buffers.out(M), buffers.out(M)
    kernels.matmul_gelu_forward(out, pre, x, one, buffers.guarded(np.zeros(1, np.float32)), 1, M, 1, 1)
    kernels.matmul_gelu_backward_input(dpre, buffers.guarded(np.ones(M, np.float32)), one, x, 1, M, 1, 1)
    np.testing.assert_array_equal(pre, x)  # x is by now as it is stored
    special = x.tolist()
    limits = {x[7]: (x[7], 1), x[8]: (0, 0), 100: (100, 1), -100: (0, 0)}
    if kernels.isa in KNOWN_ISAS:  # the plain formula makes NaN of infinities
        limits.update({np.inf: (np.inf, 1), -np.inf: (0, 0)})
    for i, value in enumerate(special):
        if np.isnan(value):
            assert np.isnan(out[i]) and np.isnan(dpre[i]), "NaN must stay NaN"
        elif value in limits:
            np.testing.assert_allclose([out[i], dpre[i]], limits[value], rtol=1e-6, err_msg=f"at {value}")
    tame = [i for i, v in enumerate(special) if abs(v) < 13]
    kind = getattr(torch, kernels.stored)
    assert_parity(out[tame], *both(gelu, x[tame], kind=kind), what="gelu")
    assert_parity(dpre[tame], *both(slope, x[tame], kind=kind), what="gelu'")


@pytest.mark.parametrize("n", [1, 7, 16, 17, 1000, 70_001])
def test_gelu_again_is_the_same_to_the_bit(kernels: Kernel, buffers, n) -> None:
    """The backward pass must compute the bits that the forward pass had, by whichever kernel it computed them."""
    kernels.context.gelu_again = 1
    for M, OC in ((1, n), (n, 1)):
        workspace(kernels, (1, M, 1, OC))
        x, weight = (buffers.guarded(3 * normal(f"gelu {n}", *shape)) for shape in ((M, 1), (OC, 1)))
        out, pre, again = buffers.out(M, OC), buffers.out(M, OC), buffers.out(M, OC)
        kernels.matmul_gelu_forward(out, pre, x, weight, buffers.guarded(normal("bias", OC)), 1, M, 1, OC)
        kernels.gelu_forward(again, pre, n)
        assert again.tobytes() == out.tobytes()


@pytest.mark.parametrize("shape", [(1, 1, 40, 50), (1, 40, 50, 60)])
def test_nan_and_inf_spread_as_in_pytorch(kernels: Kernel, buffers, shape) -> None:
    kernels.workspace(1, 1, max(shape))
    c = Case(buffers, *shape)
    c.inp[0, 3], c.weight[7, 5], c.dout[0, 9] = np.inf, np.nan, -np.inf
    if c.M > 1:
        c.inp[-1, 4] = np.nan
    out, dinp, dweight, dbias = c.out(c.dout), c.out(c.inp), np.zeros_like(c.weight), np.zeros_like(c.bias)
    kernels.matmul_forward(out, c.inp, c.weight, c.bias, *shape)
    kernels.matmul_backward_input(dinp, c.dout, c.weight, *shape)
    kernels.matmul_backward_weight(dweight, dbias, c.dout, c.inp, 1, *shape)
    expected = [
        both(F.linear, c.inp, c.weight, c.bias)[1],
        both(torch.matmul, c.dout, c.weight)[1],
        both(lambda d, x: d.T @ x, c.dout, c.inp)[1],
        both(lambda d: d.sum(0), c.dout)[1],
    ]
    for ours, theirs in zip((out, dinp, dweight, dbias), expected):
        np.testing.assert_array_equal(np.isnan(ours), np.isnan(theirs))
        np.testing.assert_array_equal(np.isinf(ours), np.isinf(theirs))


def test_bias_gradient_of_many_rows(kernels: Kernel, buffers) -> None:
    """A plain running sum of 20,000 positive numbers would be ten times worse than PyTorch's."""
    M, OC = 20_000, 70
    kernels.workspace(1, M, OC)
    dout = buffers.guarded(normal("many", M, OC) ** 2)
    dweight, dbias = np.zeros((OC, 1), np.float32), buffers.guarded(np.zeros(OC, np.float32))
    kernels.matmul_backward_weight(dweight, dbias, dout, np.zeros((M, 1), np.float32), 0, 1, M, 1, OC)
    assert_parity(dbias, *both(lambda d: d.sum(0), dout), what="dbias")
    assert not dweight.any()
