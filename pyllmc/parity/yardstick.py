"""The distance from the float64 answer that float32 may have: every comparison with PyTorch takes its measure here.

PyTorch's own error depends on the library that multiplies matrices on this CPU. On another CPU it adds up in another
order, and errs three to five times less (MKL with AVX-512, measured). So the formula is evaluated twice in float32, as
PyTorch does it here and plainly, and the result that is further from the float64 answer counts. The plain evaluation is
slow, so it is made only if PyTorch's own error allows too little. Plainly means:

    a product adds up its terms one after the other, each product and each sum rounded, as a loop in C does;
    a sum of many numbers adds up runs of RUN of them, and then the runs (numbers of one sign add their errors up);
    softmax is exp(x - lse) with an lse that is stored, as in kernels that keep lse and no weights;
    softmax, GELU and AdamW round every operation of their formulas.

The largest error of few numbers is luck, too. So if the plain evaluation allows too little, it is made again with the
terms of every sum in other orders, which are drawn once and for all (ORDERS).

numpy's multiplications and additions round as IEEE 754 says, so this is the same number on every CPU. A kernel that
works in float32 adds up in some such order or in a better one: for n terms, the error is at most about sqrt(n) roundings of
the partial sums (Higham and Mary, "A new approach to probabilistic rounding error analysis", SIAM J. Sci. Comput. 41(5),
2019). Their bound itself, from the sum of the terms' sizes, is about sqrt(n) times too wide where signs differ.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

RUN = 128  # numbers in a run
ORDERS = 3  # orders in which terms are added up, besides their own
TILE = 1 << 14  # results at a time, so that they stay in a core's cache while their terms are added
aten = torch.ops.aten
NARROW = (torch.float32, torch.bfloat16)
LUCK = 1000  # an error so many times larger than allowed is no rounding, so it needs no second evaluation


_order = 0  # 0: terms are added as they come; else the seed of their order


def arranged(n: int) -> np.ndarray:
    """The order in which n terms are added up."""
    terms = np.arange(n)
    return np.random.RandomState(_order).permutation(terms) if _order else terms


def product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The product (M, K) @ (K, N), added up term after term."""
    (M, K), N = a.shape, b.shape[1]
    out, b = np.zeros((M, N), np.float32), np.ascontiguousarray(b)
    rows = max(1, TILE // max(N, 1))
    for m in range(0, M, rows):
        total, left = out[m : m + rows], a[m : m + rows]
        term = np.empty_like(total)
        for k in arranged(K):
            np.multiply(left[:, k : k + 1], b[k], out=term)
            total += term
    return out


def total(x: np.ndarray) -> np.ndarray:
    """The sum over the first axis."""
    x = x[arranged(len(x))] if _order else x
    while len(x) > 1:
        pad = [(0, -len(x) % min(RUN, len(x)))] + [(0, 0)] * (x.ndim - 1)
        runs = np.pad(x, pad).reshape(-1, min(RUN, len(x)), *x.shape[1:])
        x = runs[:, 0].copy()
        for k in range(1, runs.shape[1]):
            x += runs[:, k]
    return x.sum(0, dtype=np.float32)  # one term is left, or none


def numbers(x: Any) -> np.ndarray:
    return np.asarray(x.detach().float().numpy())


def like(out: np.ndarray, x: Any) -> Any:
    return torch.tensor(out).to(x.dtype)


def mm(a: Any, b: Any) -> Any:
    return like(product(numbers(a), numbers(b)), a)


def addmm(bias: Any, a: Any, b: Any, *, beta: float = 1, alpha: float = 1) -> Any:
    out = np.float32(alpha) * product(numbers(a), numbers(b)) + np.float32(beta) * numbers(bias)
    return like(out, a)


def bmm(a: Any, b: Any) -> Any:
    return like(np.stack([product(x, y) for x, y in zip(numbers(a), numbers(b))]), a)


def sum_dims(x: Any, dims: Sequence[int] | None = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    axes = [d % x.ndim for d in dims] if dims else list(range(x.ndim))
    others = [d for d in range(x.ndim) if d not in axes]
    moved = numbers(x).transpose(axes + others).reshape(-1, *(x.shape[d] for d in others))
    out = like(total(moved), x)
    return out.reshape([1 if d in axes else n for d, n in enumerate(x.shape)]) if keepdim else out


def sum_all(x: Any, *, dtype: Any = None) -> Any:
    return sum_dims(x)


def embedding_dense_backward(grad: Any, ids: Any, rows: int, padding: int, scaled: bool) -> Any:
    """Row i is the sum of the gradients of all tokens i, added one after the other, as PyTorch does."""
    flat, at = numbers(grad).reshape(-1, grad.shape[-1]), ids.numpy().ravel()
    out = np.zeros((rows, flat.shape[1]), np.float32)
    for i, row in zip(at, flat):
        out[i] += row
    return like(out, grad)


def native_layer_norm(x: Any, shape: Any, weight: Any, bias: Any, eps: float) -> Any:
    v = numbers(x)
    C = np.float32(v.shape[-1])
    mean = total(np.moveaxis(v, -1, 0).copy())[..., None] / C
    away = v - mean
    rstd = 1 / np.sqrt(total(np.moveaxis(away * away, -1, 0).copy())[..., None] / C + np.float32(eps))
    out = away * rstd * numbers(weight) + numbers(bias)
    kinds = aten.native_layer_norm(x, shape, weight, bias, eps)[1:]  # only their types are used
    return like(out, x), *(like(y, k) for y, k in zip((mean, rstd), kinds))


def native_layer_norm_backward(
    dout: Any, x: Any, shape: Any, mean: Any, rstd: Any, weight: Any, bias: Any, mask: Any
) -> Any:
    """dinp is PyTorch's; dweight and dbias add up all the rows, one after the other, as PyTorch does."""
    dinp, _, _ = aten.native_layer_norm_backward(dout, x, shape, mean, rstd, weight, bias, mask)
    d, norm = numbers(dout), (numbers(x) - numbers(mean)) * numbers(rstd)
    C = d.shape[-1]
    dweight, dbias = (like(np.add.accumulate(y.reshape(-1, C))[-1], dout) for y in (d * norm, d))
    return dinp, dweight, dbias


def vector_norm(x: Any, *more: Any, **named: Any) -> Any:
    """The root of the sum of all the squares."""
    values = numbers(x).ravel()
    return like(np.sqrt(total(values * values)), x)


def set_to(x: Any, out: np.ndarray) -> Any:
    return x.copy_(like(out, x))


def lerp_(x: Any, end: Any, weight: float) -> Any:
    return set_to(x, numbers(x) + np.float32(weight) * (numbers(end) - numbers(x)))


def mul_(x: Any, by: Any) -> Any:
    return set_to(x, numbers(x) * (numbers(by) if isinstance(by, torch.Tensor) else np.float32(by)))


def addcmul_(x: Any, a: Any, b: Any, *, value: float = 1) -> Any:
    return set_to(x, numbers(x) + np.float32(value) * numbers(a) * numbers(b))


def addcdiv_(x: Any, a: Any, b: Any, *, value: float = 1) -> Any:
    return set_to(x, numbers(x) + np.float32(value) * numbers(a) / numbers(b))


ROOT, CUBE, HALF = np.float32((2 / np.pi) ** 0.5), np.float32(0.044715), np.float32(0.5)


def tanh_of(x: np.ndarray) -> np.ndarray:
    """tanh(sqrt(2/pi) (x + 0.044715 x^3)), itself rounded once."""
    return np.tanh((ROOT * (x + CUBE * x * x * x)).astype(np.float64)).astype(np.float32)


def gelu(x: Any, *, approximate: str = "none") -> Any:
    if approximate != "tanh":
        return aten.gelu(x, approximate=approximate)
    v = numbers(x)
    return like(HALF * v * (1 + tanh_of(v)), x)


def gelu_backward(dout: Any, x: Any, *, approximate: str = "none") -> Any:
    if approximate != "tanh":
        return aten.gelu_backward(dout, x, approximate=approximate)
    v = numbers(x)
    t = tanh_of(v)
    inner = ROOT * (1 + 3 * CUBE * v * v)
    return like(numbers(dout) * (HALF * (1 + t) + HALF * v * (1 - t * t) * inner), x)


def softmax(x: Any, dim: int, to_float: bool) -> Any:
    v = np.moveaxis(numbers(x), dim, 0)
    top = v.max(0)
    summed = total(np.exp((v - top).astype(np.float64)).astype(np.float32))
    lse = (top + np.log(summed.astype(np.float64))).astype(np.float32)
    return like(np.moveaxis(np.exp((v - lse).astype(np.float64)), 0, dim), x)


def softmax_backward(dout: Any, out: Any, dim: int, dtype: Any) -> Any:
    d, p = (np.moveaxis(numbers(y), dim, 0) for y in (dout, out))
    return like(np.moveaxis(p * (d - total(d * p)), 0, dim), dout)


def foreach_norm(xs: Any, *more: Any, **named: Any) -> Any:
    return [vector_norm(x) for x in xs]


PLAINLY: dict[Any, Callable[..., Any]] = {
    aten.mm.default: mm,
    aten.addmm.default: addmm,
    aten.bmm.default: bmm,
    aten.sum.dim_IntList: sum_dims,
    aten.sum.default: sum_all,
    aten.embedding_dense_backward.default: embedding_dense_backward,
    aten.native_layer_norm_backward.default: native_layer_norm_backward,
    aten.linalg_vector_norm.default: vector_norm,
    aten._foreach_norm.Scalar: foreach_norm,
    aten.native_layer_norm.default: native_layer_norm,
    aten.lerp_.Scalar: lerp_,
    aten.mul_.Tensor: mul_,
    aten.addcmul_.default: addcmul_,
    aten.addcdiv_.default: addcdiv_,
    aten._softmax.default: softmax,
    aten._softmax_backward_data.default: softmax_backward,
    aten.gelu.default: gelu,
    aten.gelu_backward.default: gelu_backward,
}


class Plain(TorchDispatchMode):
    """A mode in which PyTorch computes by the functions above."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        plain = PLAINLY.get(func)
        first = (
            args[0][0]
            if args and isinstance(args[0], (list, tuple)) and args[0]
            else args[0]
            if args
            else None
        )
        if plain and isinstance(first, torch.Tensor) and first.dtype in NARROW:
            return plain(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def plainly(order: int = 0) -> Iterator[None]:
    """Inside, PyTorch adds up float32 in an order that is the same on every CPU."""
    global _order
    _order = order
    try:
        with sdpa_kernel(SDPBackend.MATH), Plain():
            yield
    finally:
        _order = 0


class Single:
    """An array of a formula in float32: as PyTorch computes it here, then plainly if asked for, then in more ways."""

    __array_ufunc__ = None  # so that an array + this calls __radd__

    def __init__(self, here: Any, plain: Callable[[], Any], more: Sequence[Callable[[], Any]] = ()) -> None:
        self.here, self.plain, self.more = np.asarray(here), plain, more

    def __array__(self, *how: Any, **named: Any) -> np.ndarray:
        return np.asarray(self.here, *how)

    def each(self) -> Iterator[np.ndarray]:
        yield self.here
        yield np.asarray(self.plain())
        for evaluate in self.more:
            yield np.asarray(evaluate())

    def map(self, change: Callable[[np.ndarray], Any]) -> Single:
        more = [lambda f=f: change(np.asarray(f())) for f in self.more]  # type: ignore[misc]
        return Single(change(self.here), lambda: change(np.asarray(self.plain())), more)

    def __getitem__(self, part: Any) -> Single:
        return self.map(lambda x: x[part])

    def __add__(self, start: Any) -> Single:
        return self.map(lambda x: x + start)

    __radd__ = __add__

    def __sub__(self, start: Any) -> Single:
        return self.map(lambda x: x - start)


def once_plainly(formula: Callable[[], Any], order: int = 0) -> Callable[[], Any]:
    """A function that evaluates the formula plainly at its first call, and keeps the result."""

    @functools.cache
    def evaluate() -> Any:
        with plainly(order):
            return formula()

    return evaluate


def both(
    formula: Callable[[Any], Sequence[Any]], kind: Any = torch.float32
) -> tuple[list[Single], list[Any]]:
    """The arrays of formula(kind) and of formula(torch.float64). A good kernel may be twice as far off as the first."""
    exact = [np.asarray(x) for x in formula(torch.float64)]
    ways = [once_plainly(lambda: formula(kind), order) for order in range(ORDERS + 1)]

    def single(i: int, here: Any) -> Single:
        plain, *more = [lambda way=way: way()[i] for way in ways]  # type: ignore[misc]
        return Single(here, plain, more)

    return [single(i, x) for i, x in enumerate(formula(kind))], exact
