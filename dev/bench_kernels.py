"""The profile of a training step: each of its kernels alone, with one thread and with all, and the work that it cannot avoid.
Serial kernels gain nothing from more threads.

python dev/bench_kernels.py model=124M B=4 T=256 precision=fp32 threads=2 kernel=attention_forward turns=3
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from bench_limits import BYTES, visible
from bench_matmul import Engine, random_array
from bench_process import Call, Process, measured, one_of, say, take_turns
from bench_steps import Case, config_of

from pyllmc.base.errors import InvalidArgument
from pyllmc.convert.source import make_config
from pyllmc.engine import _ffi
from pyllmc.tables import layout

KEPT = 200  # repeats of a kernel that a report keeps, or a few more


class Kernel(NamedTuple):
    name: str  # the entry in csrc/kernels.h, and the tensor that it multiplies
    calls: float  # calls in a step
    arrays: list[Any]  # an argument: a shape for random numbers, an array, or None
    sizes: list[Any]
    flops: float = 0  # those of the products in a call
    # the elements of an argument that are read or written, each time counted; of the others, all elements once
    touched: Mapping[int, float] = {}

    @property
    def entry(self) -> str:
        return self.name.split()[0]

    def bytes(self, precision: str) -> float:
        """What a call must read and write. A floatX and a split master have the precision's bytes, all else 4."""
        kinds = _ffi.ffi().typeof("Kernels").fields
        types = next(of.type for name, of in kinds if name == self.entry).args[1:]
        each = [BYTES[precision] if "floatX" in kind.cname or kind.cname == "void *" else 4 for kind in types]
        return sum(
            float(size * self.touched.get(i, elements(spec)))
            for i, (size, spec) in enumerate(zip(each, self.arrays))
        )


def elements(spec: Any) -> int:
    if spec is None:
        return 0
    return spec.size if isinstance(spec, np.ndarray) else int(np.prod(spec))


def rows_of_logits(c: layout.GPTConfig, B: int, T: int) -> int:
    """The rows in a chunk of logits, as rows_in_chunk of csrc/model/batch.c counts them."""
    ffi, lib = _ffi.ffi(), _ffi.load()
    rows, room = (
        ffi.new("llmc_tensor[]", lib.llmc_num_tensors()),
        ffi.new("llmc_room *", (B, T, 1, 2, 0, lib.LLMC_FP32)),
    )
    _ffi.check(lib, lib.llmc_layout(make_config(c, lib)[0], room, rows))
    most = next(row.shape[1] for row in rows if _ffi.text(row.name) == "logits")
    return -(-B * T // -(-B * T // most))


class Squares(NamedTuple):
    """The shape of an array without negative numbers."""

    N: int


def kernels(model: str, B: int, T: int, precision: str = "bf16") -> Iterator[Kernel]:
    """The calls of csrc/model/batch.c, layers.c and optimizer.c in a step (recompute=2)."""
    c, stored = config_of(model), precision != "fp32"
    C, L, NH, V, Vp = c.n_embd, c.n_layer, c.n_head, c.vocab_size, c.padded_vocab_size
    M, R = B * T, rows_of_logits(c, B, T)
    x, row, ids = (M, C), (M,), np.random.default_rng(0).integers(0, V, M, np.int32)
    pairs = 2.0 * B * C * visible(T, 0)  # FLOPs of a product of queries and keys
    yield Kernel("encoder_forward", 1, [x, ids, (Vp, C), (T, C), None, None], [B, T, C], touched={2: M * C})
    yield Kernel("layernorm_forward", 2 * L - 1, [x, row, row, x, (C,), (C,)], [B, T, C])
    yield Kernel("residual_layernorm_forward", 2 * L, [x, x, row, row, x, x, (C,), (C,), None], [B, T, C])
    yield Kernel("attention_forward", L, [x, (B, NH, T), (M, 3 * C), None, None], [B, T, C, NH, 0], 2 * pairs)
    yield Kernel("gelu_forward", L, [(M, 4 * C), (M, 4 * C)], [M * 4 * C])
    yield Kernel("classifier_forward", M / R, [(R,), (R,), (R, Vp), ids], [1, R, V, Vp])
    yield Kernel("loss_mean", 2, [(2,), row, ids, row], [M])
    logits = [(R, Vp), (R,), ids, row, (2,)]
    yield Kernel("classifier_backward", M / R, logits, [1.0, 1, R, V, Vp], touched={0: 2 * R * Vp})
    yield from products(C, L, M, R, Vp)
    arrays = [x, (C,), (C,), x, x, (C,), row, row]
    yield Kernel("layernorm_backward", 2 * L + 1, arrays, [B, T, C], touched={0: 2 * M * C})
    backward = [(M, 3 * C), x, x, (B, NH, T), (M, 3 * C), None, None]
    yield Kernel("attention_backward", L, backward, [B, T, C, NH, 0], 5 * pairs)
    rows = {0: 2 * M * C, 1: 2 * T * C}
    yield Kernel("encoder_backward", 1, [(Vp, C), (T, C), x, ids, None], [B, T, C], touched=rows)
    N = Vp * C  # elements of the largest tensor
    tensors = sum(row.size for row, _ in layout.parameters(c)) / N
    numbers = np.array([0.9, 0.1, 0.95, 0.05, 1e-4, 1, 1e-8, 1e-5], np.float32)  # struct AdamW
    update = [(N,), (N,), (N,), Squares(N), (N,), None, numbers]
    yield Kernel("global_norm", tensors, [(2,), (N,)], [1.0, N])
    # where floats are stored, they are the parameters; of bf16 they are one half of them
    yield Kernel("adamw", tensors, update, [1, N], touched={0: 2 * N, 1: stored * 2 * N, 2: 2 * N, 3: 2 * N})


def products(C: int, L: int, M: int, R: int, Vp: int) -> Iterator[Kernel]:
    """Matrix products of M rows, and of the head, R rows at a time."""
    each: list[tuple[str, float, int, int, int]] = [("qkv", L, M, C, 3 * C), ("attproj", L, M, C, C)]
    each += [("fc", L, M, C, 4 * C), ("fcproj", L, M, 4 * C, C), ("head", M / R, R, C, Vp)]
    for what, calls, rows, inp, out in each:
        x, y, weight, sizes = (rows, inp), (rows, out), (out, inp), [1, rows, inp, out]
        flops = 2.0 * rows * inp * out
        bias = None if what == "head" else (out,)
        if what == "fc":
            yield Kernel("matmul_gelu_forward fc", calls, [y, y, x, weight, bias], sizes, flops)
        else:
            yield Kernel(f"matmul_forward {what}", calls, [y, x, weight, bias], sizes, flops)
        yield Kernel(f"matmul_backward_weight {what}", calls, [weight, bias, y, x], [0, *sizes], flops)
        if what == "fcproj":
            yield Kernel("matmul_gelu_backward_input fcproj", calls, [x, y, weight, x], sizes, flops)
        else:
            yield Kernel(f"matmul_backward_input {what}", calls, [x, y, weight], sizes, flops)


# ---- inside the measured process ----


def made(spec: Any) -> np.ndarray | None:
    """Makes one array of a kernel's arguments."""
    if not isinstance(spec, tuple):
        return spec
    x = random_array(*spec)
    return np.square(x, out=x) if isinstance(spec, Squares) else x


def prepare(
    model: str, B: int, T: int, precision: str, threads: int, kernel: str = ""
) -> Callable[..., Call]:
    one_of("precision", precision, ("fp32", "bf16"))
    try:
        known = {k.name: k for k in kernels(model, B, T, precision)}
    except InvalidArgument as error:
        raise SystemExit(str(error)) from None
    c = config_of(model)

    def choose(kernel: str = kernel) -> Call:
        one_of("kernel", kernel, known)
        k = known[kernel]
        engine = Engine(precision, threads, B, T, c.n_embd, c.n_head, c.padded_vocab_size)
        call = engine.bind(k.entry, [made(spec) for spec in k.arrays], *k.sizes)
        return lambda: call() and None

    return choose


# ---- in the bench ----


def thinned(ms: list[float]) -> list[float]:
    """At most about KEPT of the repeats, because a kernel that takes a microsecond is repeated 100,000 times."""
    return ms[:: max(1, len(ms) // KEPT)]


def measure(case: Case, rounds: int, counts: list[int], quick: bool) -> dict[str, Any]:
    """Repeats in ms, by kernel and number of threads; the number of calls in a step; the work of a call."""
    sizes = case._asdict()
    sizes.pop("calls")
    processes = {str(n): Process("bench_kernels.py", **sizes, threads=n) for n in counts}
    found = {}
    seconds, warm = (0, 0) if quick else (0.1, 3)
    for k in kernels(case.model, case.B, case.T, case.precision):
        ms = take_turns(processes, rounds, kernel=k.name, seconds=seconds, warm=warm)
        work = {"flops": k.flops, "bytes": k.bytes(case.precision)}
        found[k.name] = {"calls": k.calls, **work, "ms": {n: thinned(values) for n, values in ms.items()}}
    for process in processes.values():
        process.close()
    say(f"  {case.name}: {len(found)} kernels")
    return {**case._asdict(), "kernels": found}


if __name__ == "__main__":
    measured(prepare)
