"""python -m pyllmc.check: compare every activation and gradient of the engine with PyTorch's.

The same weights and tokens go through the engine and through train_gpt2.py, in float32 and in float64. The
engine may be twice as far from the float64 answer as float32 is (FlashAttention's rule; yardstick.py). The table
is in the order of computation, so the first tensor that diverges is where to look.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

from pyllmc.base.errors import begin_command, run_command

if __name__ == "__main__":
    asked = {"-h", "--help", "--version"} & set(sys.argv[1:])  # these need no PyTorch
    begin_command("numpy", "cffi", *(() if asked else ("torch",)))

import numpy as np

from pyllmc.base import live
from pyllmc.model import Model
from pyllmc.parity.reference import GRADIENT_OF, MAX_NORM, Arrays, Key, Result, load_reference, run_reference
from pyllmc.tables import layout
from pyllmc.tables.layout import GPTConfig
from pyllmc.tables.options import make_parser

PROG = "pyllmc.check"
OPTIONS = (
    "model",
    "n_layer",
    "n_head",
    "n_embd",
    "max_seq_len",
    "vocab_size",
    "window",
    "untied",
    "pattern",
    "B",
    "T",
    "seed",
    "threads",
)
ABOUT = "Compares every activation and gradient of the engine with PyTorch's, on random tokens. The exit code is 1 if one diverges."
EXAMPLES = (
    "python -m pyllmc.check                           the default size",
    "python -m pyllmc.check --model=d12 --B=1 --T=64  another size",
    "python -m pyllmc.check runs/demo                 the weights of a run",
)
WORDS = {
    "seed": "fresh weights and the tokens follow from it",
    "model": "a size (demo, d12, gpt2-xl, ...) or weights of any kind",
}
OWN_VOCAB = 257  # V for sizes that take theirs from the data: a prime, so no multiple of any tile
# least and most batches, and tokens, over which float32's error is taken, because on few it may be small by luck
BATCHES, MOST, TOKENS = 6, 64, 512
# error, as a share of the largest value, that is allowed even if PyTorch happens to be exact: four roundings
FLOOR = 4 * 2.0**-24

# positions serve generation, offsets separated documents, dropouts are no result; the others are first written by the backward pass and the clipping
NOT_OF_FORWARD = {"positions", "offsets", "dfch", "dqkv", "dresidual", "norm", "adamw", "dropouts"}


# ---------------------------------------------------------------------------------------------------------
# the engine


def run_engine(m: Model, inputs: Any, targets: Any, weights: Any = None, scale: float = 1.0) -> Result:
    """Runs the engine as run_reference runs PyTorch; adds to the gradients that are there."""
    rows = layout.table(m.config)
    params = [row for row in rows if row.is_param]
    loss = m.forward(inputs, targets, weights)
    assert loss is not None
    acts = layers_of(m.acts, [row for row in rows if row.is_act and row.name not in NOT_OF_FORWARD], m.config)
    m.backward(scale)
    grads = layers_of(m.grads, params, m.config)
    m.clip_grad_norm(MAX_NORM)
    buffers = {(name, 0): m.acts[name].copy() for name in (*GRADIENT_OF, "norm")}
    return Result(acts, buffers, grads, loss)


def layers_of(views: Mapping[str, Any], rows: Sequence[layout.Row], config: GPTConfig) -> Arrays:
    """Copies the tensors, layer by layer in the order of computation."""
    return {
        (row.name, layer): (views[row.name][layer] if row.per_layer else views[row.name]).copy()
        for row, layer in layout.in_order(rows, config.n_layer)
    }


# ---------------------------------------------------------------------------------------------------------
# the comparison


class Line(NamedTuple):
    """One tensor: its largest error against float64, and the largest allowed."""

    name: str
    error: float
    allowed: float

    @property
    def ok(self) -> bool:
        return self.error <= self.allowed


def relative(error: np.ndarray, exact: np.ndarray) -> float:
    """The largest error divided by the largest value."""
    scale = np.abs(exact).max(initial=0)
    return float(np.abs(error).max(initial=0) / scale) if scale else 0.0


def measure(name: str, ours: np.ndarray, torch64: np.ndarray, torch_error: float) -> Line:
    """The error of one tensor. Twice PyTorch's relative error plus FLOOR is allowed; an error that is not finite is not."""
    if ours.shape != torch64.shape:
        return Line(f"{name} {ours.shape} instead of {torch64.shape}", math.inf, 0.0)
    error = float(np.abs(ours - torch64.astype(np.float64)).max(initial=0))
    allowed = (2 * torch_error + FLOOR) * float(np.abs(torch64).max(initial=0))
    return Line(name, error if math.isfinite(error) else math.inf, allowed)


class Errors:
    """float32's relative error of each tensor: the largest of all layers and batches, because one alone may be lucky."""

    def __init__(self, gpt: Any, batches: Sequence[Batch]) -> None:
        self.gpt, self.batches = gpt, batches
        self.here = self.largest("PyTorch in float32 and float64: batch")

    @functools.cached_property
    def plain(self) -> dict[str, float]:
        """The errors of the plain evaluation. It is slow, so only tensors that are further off than PyTorch here need it."""
        from pyllmc.parity import yardstick  # here, because it needs PyTorch

        return self.largest("a plain evaluation in float32: batch", yardstick.plainly)

    def largest(self, title: str, way: Callable[[], Any] = contextlib.nullcontext) -> dict[str, float]:
        found: dict[str, float] = {}
        for batch in live.each(self.batches, title):  # one at a time, because the results are large
            run64 = run_reference(self.gpt, *batch, dtype="float64")
            if batch is self.batches[0]:
                self.exact = run64
            with way():
                run32 = run_reference(self.gpt, *batch)
            for kind in ("acts", "buffers", "grads"):
                r32, r64 = getattr(run32, kind), getattr(run64, kind)
                for key, exact in r64.items():
                    name = f"{kind} {key[0]}"
                    found[name] = max(found.get(name, 0.0), relative(r32[key] - exact, exact))
        return found


def held(name: str, ours: np.ndarray, torch64: np.ndarray, errors: Errors, key: str) -> Line:
    """Measures a tensor by PyTorch's own error; if that allows too little, by the error of a plain evaluation."""
    line = measure(name, ours, torch64, errors.here[key])
    if line.ok or hopeless(line):
        return line
    return measure(name, ours, torch64, max(errors.here[key], errors.plain[key]))


def hopeless(line: Line) -> bool:
    from pyllmc.parity import yardstick

    return not math.isfinite(line.error) or 0 < line.allowed * yardstick.LUCK < line.error


def compare(config: GPTConfig, ours: Result, torch64: Result, errors: Errors) -> Iterator[Line]:
    """Compares every tensor in the order of computation: activations forward, gradients from the last layer."""

    def lines(what: str, kind: str, keys: Iterable[Key]) -> Iterator[Line]:
        for key in keys:
            arrays = getattr(ours, kind)[key], getattr(torch64, kind)[key]
            yield held(f"{what} {label(*key, config)}", *arrays, errors, f"{kind} {key[0]}")

    buffers = list(ours.buffers)
    yield from lines("activation", "acts", ours.acts)
    yield from lines("gradient in", "buffers", buffers[:1])
    yield from lines("gradient of", "grads", reversed(list(ours.grads)))
    yield from lines("gradient in", "buffers", buffers[1:])


def label(name: str, layer: int, config: GPTConfig) -> str:
    """ "qkvw" of layer 3 -> "h.3.qkvw" """
    per_layer = {row.name for row in layout.table(config) if row.per_layer}
    return f"h.{layer}.{name}" if name in per_layer else name


def compare_weights(m: Model, gpt: Any) -> Iterator[Line]:
    """Compares the weights that the engine drew or loaded with PyTorch's, tensor by tensor."""
    for (row, p), (_, layer) in zip(gpt.rows(), layout.parameters(m.config)):
        theirs = p.detach().numpy()
        yield measure(
            f"weight {label(row.name, layer, m.config)}", m.params[row.torch_name_of(layer)], theirs, 0.0
        )


def disturb(m: Model, seed: int) -> None:
    """Makes biases and norms random, because fresh ones, of 0 and 1, hide mistakes."""
    rng = np.random.default_rng(seed)
    for row, layer in layout.parameters(m.config):
        if row.init in ("ONE", "ZERO"):
            name = row.torch_name_of(layer)
            fresh = m.params[name]
            m.params[name] = fresh + rng.normal(0, 0.1, fresh.shape).astype(np.float32)


def copy_weights(m: Model, gpt: Any) -> None:
    """Copies the engine's weights into the reference."""
    torch = sys.modules["torch"]
    for name, p in gpt.named_parameters():
        p.data = torch.from_numpy(m.params[name].copy())


class Batch(NamedTuple):
    inputs: np.ndarray
    targets: np.ndarray
    weights: np.ndarray


def random_batch(V: int, b: int, t: int, seed: int) -> Batch:
    """A random batch (b, t): some targets are ignored, and every token has a weight of its own."""
    rng = np.random.default_rng(seed)
    inputs, targets = rng.integers(0, V, (2, b, t))
    targets[rng.random((b, t)) < 0.2] = -1
    targets[0, 0] = 0  # at least one counts
    return Batch(inputs, targets, rng.uniform(0.1, 2, (b, t)).astype(np.float32))


def run_torch(gpt: Any, b: int, t: int, seed: int) -> tuple[Result, Errors]:
    """The float64 answer to random_batch(seed), and float32's errors on it and on the batches of the seeds that follow."""
    many = max(BATCHES, min(MOST, -(-TOKENS // (b * t))))
    batches = [random_batch(gpt.config.vocab_size, b, t, seed + i) for i in range(many)]
    errors = Errors(gpt, batches)
    return errors.exact, errors


def check(m: Model, gpt: Any, b: int, t: int, seed: int = 0) -> Iterator[Line]:
    """Compares m with a reference of the same weights on a random batch (b, t). Overwrites m's gradients."""
    m.zero_grad()
    live.show("the engine: forward and backward")
    ours = run_engine(m, *random_batch(m.config.vocab_size, b, t, seed))
    live.clear()
    yield from compare(m.config, ours, *run_torch(gpt, b, t, seed))


def report(lines: Iterable[Line]) -> list[Line]:
    """Prints the table as it grows; returns the lines that diverge."""
    print(f"{'tensor':<40} {'error':>10} {'allowed':>10}")
    wrong = []
    for line in lines:
        print(f"{line.name:<40} {line.error:10.3g} {line.allowed:10.3g}{'' if line.ok else '  <-- diverges'}")
        if not line.ok:
            wrong.append(line)
    return wrong


# ---------------------------------------------------------------------------------------------------------
# the command


def open_models(o: Any, reference: ModuleType) -> tuple[Model, Any]:
    """The engine's model and the reference, each made or loaded by its own code."""
    how = {"threads": o.threads, "precision": "fp32"}
    if reference.names_weights(o.model):
        name = os.path.join(os.curdir, o.model) if os.path.exists(o.model) else o.model  # d12 may be a folder
        gpt = reference.load_model(o)  # first, because it refuses options that are not the weights'
        return Model(name, o.B, o.T or None, **how), gpt
    config = reference.make_config(o, fallback=OWN_VOCAB)
    m = Model(config, o.B, o.T or config.max_seq_len, seed=o.seed, **how)
    return m, reference.GPT(config, o.seed)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = make_parser(PROG, ABOUT, OPTIONS, examples=EXAMPLES, words=WORDS, B=2, T=64)
    parser.add_argument("path", nargs="?", default="", help="weights of any kind, instead of --model")
    o = parser.parse_args(arguments)
    o.given = parser.given
    if o.path and "model" in o.given:
        parser.error(f"{o.path} and --model={o.model} both name a model: give one of them")
    o.model = o.path or o.model
    return run_command(PROG, lambda: compare_models(o))


def compare_models(o: Any) -> int:
    """Prints the tables; returns 1 if something diverges, else 0."""
    m, gpt = open_models(o, load_reference())
    wrong = report(compare_weights(m, gpt))
    if not load_reference().names_weights(o.model):
        disturb(m, o.seed)
    copy_weights(m, gpt)
    wrong += report(check(m, gpt, o.B, o.T or m.config.max_seq_len, o.seed))
    if wrong:
        print(f"diverges from PyTorch: first the {wrong[0].name}, {len(wrong)} of its tensors in all")
        return 1
    print(f"every tensor agrees with PyTorch ({m.isa})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
