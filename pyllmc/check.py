"""python -m pyllmc.check: every activation and gradient of the engine against PyTorch.

The same weights and tokens go through the engine and through train_gpt2.py, in float32 and in float64. The
engine may be twice as far from the float64 answer as float32 is (FlashAttention's rule; yardstick.py). The table
is in the order of computation, so the first tensor that diverges is where to look.
"""

from __future__ import annotations

import importlib.util
import math
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

from pyllmc.errors import begin_command, run_command

if __name__ == "__main__":
    asked = {"-h", "--help", "--version"} & set(sys.argv[1:])  # these need no PyTorch
    begin_command("numpy", "cffi", *(() if asked else ("torch",)))

import numpy as np

from pyllmc import layout, live
from pyllmc.files import DataError, need
from pyllmc.layout import GPTConfig
from pyllmc.model import Model
from pyllmc.options import make_parser

PROG = "pyllmc.check"

Key = tuple[str, int]  # a tensor of the table and its layer, 0 where it has none
Arrays = dict[Key, np.ndarray]
OPTIONS = (
    "model",
    "n_layer",
    "n_head",
    "n_embd",
    "max_seq_len",
    "vocab_size",
    "window",
    "B",
    "T",
    "seed",
    "threads",
)
ABOUT = "Compares every activation and gradient of the engine with PyTorch's, on random tokens. Ends with 1 where one diverges."
EXAMPLES = (
    "python -m pyllmc.check                           the default size",
    "python -m pyllmc.check --model=d12 --B=1 --T=64  another size",
    "python -m pyllmc.check runs/demo                 the weights of a run",
)
WORDS = {
    "seed": "fresh weights and the tokens follow from it",
    "model": "a size (demo, d12, gpt2-xl, ...) or weights of any kind",
}
OWN_VOCAB = 257  # of sizes that take theirs from the data: not a multiple of anything
MAX_NORM = 1.0  # what the gradients are clipped to
BATCHES, MOST, TOKENS = 6, 64, 512  # over which float32's own error is taken: of few numbers it may be lucky
FLOOR = 4 * 2.0**-24  # times the largest value: four roundings, where PyTorch happens to be exact

# what enters and what leaves the modules of a block, by the table's names
TAPS = {
    "ln_1": ("residual1", "ln1"),
    "attn.c_attn": ("", "qkv"),
    "attn.c_proj": ("atty", ""),
    "ln_2": ("residual2", "ln2"),
    "mlp.c_fc": ("", "fch"),
    "mlp.c_proj": ("fch_gelu", "branch"),
}
LAST = {"ln_f": ("residual3", "lnf")}
# what the engine's buffers hold after the backward pass: whose gradient, always that of layer 0
GRADIENT_OF = {"logits": "logits", "dfch": "fch", "dqkv": "qkv", "branch": "ln1", "dresidual": "residual1"}
# positions serve generation; the others are first written by the backward pass and the clipping
NOT_OF_FORWARD = {"positions", "dfch", "dqkv", "dresidual", "norm", "adamw"}


def load_reference() -> ModuleType:
    """train_gpt2.py of this checkout, or of an installed package. Raises DataError where there is none, or no PyTorch."""
    need("torch", "comparing with PyTorch")
    places = [folder / "train_gpt2.py" for folder in (layout.HERE.parent, layout.HERE / "lib")]
    path = next((place for place in places if place.exists()), None)
    if path is None:
        raise DataError("train_gpt2.py, with which pyllmc.check compares, is missing: install pyllmc again")
    if "train_gpt2" not in sys.modules:
        spec = importlib.util.spec_from_file_location("train_gpt2", path)
        assert spec
        assert spec.loader
        sys.modules["train_gpt2"] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules["train_gpt2"]


# ---------------------------------------------------------------------------------------------------------
# the reference, looked into


class Result(NamedTuple):
    """acts: after the forward pass; buffers: activations that backward rewrote; grads: of parameters."""

    acts: Arrays
    buffers: Arrays
    grads: Arrays
    loss: float


def run_reference(
    gpt: Any, inputs: Any, targets: Any, weights: Any = None, scale: float = 1.0, dtype: str = "float32"
) -> Result:
    """Forward and backward in PyTorch, every tensor of the table kept; inputs, targets, weights (b, t)."""
    reference, torch = load_reference(), sys.modules["torch"]
    gpt = gpt.to(getattr(torch, dtype))
    x, y = (torch.as_tensor(np.asarray(ids), dtype=torch.long) for ids in (inputs, targets))
    w = torch.ones(x.shape) if weights is None else torch.as_tensor(np.asarray(weights, np.float32))
    gpt.zero_grad()
    tapped, handles = tap(gpt)
    logits, loss = gpt(x, y, w)
    tapped["logits", 0] = logits
    for value in tapped.values():
        value.retain_grad()
    (scale * loss).backward()
    for handle in handles:
        handle.remove()
    with torch.no_grad():
        losses = reference.token_losses(logits, y)
        acts = {**tapped, **derived(gpt.config, tapped, reference)}
        for name, value in (("tokens", x), ("targets", y), ("weights", w), ("losses", losses)):
            acts[name, 0] = value
        acts["loss", 0] = loss_pair(losses, y, w, reference)
        acts["branch", 0] = tapped["branch", gpt.config.n_layer - 1]
    buffers = {(name, 0): tapped[of, 0].grad for name, of in GRADIENT_OF.items()}
    keys = ((row.name, layer) for row, layer in layout.parameters(gpt.config))
    grads = {key: p.grad for key, (_, p) in zip(keys, gpt.rows())}
    buffers["norm", 0] = norm_pair(list(grads.values()))
    pad = gpt.config.padded_vocab_size - gpt.config.vocab_size
    for arrays in (acts, buffers):
        arrays["logits", 0] = torch.nn.functional.pad(arrays["logits", 0], (0, pad))
    return Result(numpy_of(acts), numpy_of(buffers), numpy_of(grads), loss.item())


def numpy_of(tensors: Mapping[Key, Any]) -> Arrays:
    return {key: value.detach().cpu().numpy().copy() for key, value in tensors.items()}


def tap(gpt: Any) -> tuple[dict[Key, Any], list[Any]]:
    """Forward hooks that keep what enters and leaves each module; the dict fills in the forward pass."""
    kept: dict[Key, Any] = {}

    def keep(module: Any, names: tuple[str, str], layer: int) -> Any:
        def hook(module: Any, arguments: Any, out: Any) -> None:
            kept.update({(name, layer): value for name, value in zip(names, (arguments[0], out)) if name})

        return module.register_forward_hook(hook)

    h = gpt.transformer
    handles = [keep(b.get_submodule(m), names, l) for l, b in enumerate(h["h"]) for m, names in TAPS.items()]
    return kept, handles + [keep(h[m], names, 0) for m, names in LAST.items()]


def derived(config: GPTConfig, tapped: Mapping[Key, Any], reference: ModuleType) -> dict[Key, Any]:
    """The statistics that the engine keeps and PyTorch does not show."""
    found = {("logits_lse", 0): tapped["logits", 0].logsumexp(-1)}
    for (name, layer), x in tapped.items():
        if name.startswith("residual"):
            norm = {"residual1": "ln1", "residual2": "ln2", "residual3": "lnf"}[name]
            found[f"{norm}_mean", layer] = x.mean(-1)
            found[f"{norm}_rstd", layer] = (x.var(-1, unbiased=False) + 1e-5).rsqrt()
        if name == "qkv":
            found["lse", layer] = attention_lse(x, config.n_head, config.window_of(layer), reference)
    return found


def attention_lse(qkv: Any, NH: int, window: int, reference: ModuleType) -> Any:
    """(B, NH, T): log sum exp of the scores q.k / sqrt(hs) of each query."""
    B, T, C3 = qkv.shape
    q, k, _ = qkv.view(B, T, 3, NH, C3 // 3 // NH).permute(2, 0, 3, 1, 4)  # (3, B, NH, T, hs)
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])  # (B, NH, T, T)
    return scores.masked_fill(~reference.visible(T, window), -math.inf).logsumexp(-1)


def loss_pair(losses: Any, targets: Any, weights: Any, reference: ModuleType) -> Any:
    """The mean loss, 1 / sum of the weights (0 if that is 0)."""
    total = (weights * (targets != -1)).sum()
    inverse = 1 / total if total > 0 else total
    mean = reference.mean_loss(losses, targets, weights)
    return losses.new_tensor([mean.item(), inverse.item()])


def norm_pair(grads: Sequence[Any]) -> Any:
    """The global norm of the gradients, the factor that clips it to MAX_NORM: as clip_grad_norm_."""
    norm = sum(g.pow(2).sum() for g in grads).sqrt()
    return norm.new_tensor([norm.item(), min(1.0, MAX_NORM / (norm.item() + 1e-6))])


# ---------------------------------------------------------------------------------------------------------
# the engine


def run_engine(m: Model, inputs: Any, targets: Any, weights: Any = None, scale: float = 1.0) -> Result:
    """The same of the engine; adds to the gradients that are there."""
    rows = layout.table(m.config)
    params = [row for row in rows if row.is_param]
    loss = m.forward(inputs, targets, weights)
    assert loss is not None
    acts = layers_of(
        m.acts, [row for row in rows if not row.is_param and row.name not in NOT_OF_FORWARD], m.config
    )
    m.backward(scale)
    grads = layers_of(m.grads, params, m.config)
    m.clip_grad_norm(MAX_NORM)
    buffers = {(name, 0): m.acts[name].copy() for name in (*GRADIENT_OF, "norm")}
    return Result(acts, buffers, grads, loss)


def layers_of(views: Mapping[str, Any], rows: Sequence[layout.Row], config: GPTConfig) -> Arrays:
    """Copies, layer by layer in the order of computation."""
    return {
        (row.name, layer): (views[row.name][layer] if row.per_layer else views[row.name]).copy()
        for row, layer in layout.in_order(rows, config.n_layer)
    }


# ---------------------------------------------------------------------------------------------------------
# the comparison


class Line(NamedTuple):
    """One tensor: its largest error against float64, and what it may be."""

    name: str
    error: float
    allowed: float

    @property
    def ok(self) -> bool:
        return self.error <= self.allowed


def relative(error: np.ndarray, exact: np.ndarray) -> float:
    """The largest error by the largest value."""
    scale = np.abs(exact).max(initial=0)
    return float(np.abs(error).max(initial=0) / scale) if scale else 0.0


def measure(name: str, ours: np.ndarray, torch64: np.ndarray, torch_error: float) -> Line:
    """Diverges if off by more than twice PyTorch's relative error and FLOOR, or not finite."""
    if ours.shape != torch64.shape:
        return Line(f"{name} {ours.shape} instead of {torch64.shape}", math.inf, 0.0)
    error = float(np.abs(ours - torch64.astype(np.float64)).max(initial=0))
    allowed = (2 * torch_error + FLOOR) * float(np.abs(torch64).max(initial=0))
    return Line(name, error if math.isfinite(error) else math.inf, allowed)


def add_errors(errors: dict[str, float], run32: Result, run64: Result) -> None:
    """float32's relative error of each tensor: the largest of all layers and runs; one alone may be lucky."""
    for kind in ("acts", "buffers", "grads"):
        r32, r64 = getattr(run32, kind), getattr(run64, kind)
        for key, exact in r64.items():
            name = f"{kind} {key[0]}"
            errors[name] = max(errors.get(name, 0.0), relative(r32[key] - exact, exact))


def compare(config: GPTConfig, ours: Result, torch64: Result, errors: Mapping[str, float]) -> Iterator[Line]:
    """Every tensor in the order of computation: activations forward, gradients from the last layer."""

    def lines(what: str, kind: str, keys: Iterable[Key]) -> Iterator[Line]:
        for key in keys:
            arrays = getattr(ours, kind)[key], getattr(torch64, kind)[key]
            yield measure(f"{what} {label(*key, config)}", *arrays, errors[f"{kind} {key[0]}"])

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
    """What the engine drew or loaded against what PyTorch did, tensor by tensor."""
    for (row, p), (_, layer) in zip(gpt.rows(), layout.parameters(m.config)):
        theirs = p.detach().numpy()
        yield measure(
            f"weight {label(row.name, layer, m.config)}", m.params[row.torch_name_of(layer)], theirs, 0.0
        )


def disturb(m: Model, seed: int) -> None:
    """Fresh weights have biases of 0 and norms of 1, which hide mistakes: makes them random."""
    rng = np.random.default_rng(seed)
    for row, layer in layout.parameters(m.config):
        if row.init in ("ONE", "ZERO"):
            view = m.params[row.torch_name_of(layer)]
            view += rng.normal(0, 0.1, view.shape).astype(np.float32)


def copy_weights(m: Model, gpt: Any) -> None:
    """The engine's weights into the reference."""
    torch = sys.modules["torch"]
    for name, p in gpt.named_parameters():
        p.data = torch.from_numpy(m.params[name].copy())


class Batch(NamedTuple):
    inputs: np.ndarray
    targets: np.ndarray
    weights: np.ndarray


def random_batch(V: int, b: int, t: int, seed: int) -> Batch:
    """(b, t): some targets are ignored, every token has a weight of its own."""
    rng = np.random.default_rng(seed)
    inputs, targets = rng.integers(0, V, (2, b, t))
    targets[rng.random((b, t)) < 0.2] = -1
    targets[0, 0] = 0  # at least one counts
    return Batch(inputs, targets, rng.uniform(0.1, 2, (b, t)).astype(np.float32))


def run_torch(gpt: Any, b: int, t: int, seed: int) -> tuple[Result, dict[str, float]]:
    """The float64 answer to random_batch(seed), and float32's errors on it and on the batches of the seeds that follow."""
    from pyllmc import yardstick  # which needs PyTorch

    errors: dict[str, float] = {}
    batches = max(BATCHES, min(MOST, -(-TOKENS // (b * t))))
    # one at a time, as the results are large; that of the first seed comes last and is kept
    for i in live.each(range(batches)[::-1], "PyTorch in float32 and float64: batch"):
        batch = random_batch(gpt.config.vocab_size, b, t, seed + i)
        run64 = run_reference(gpt, *batch, dtype="float64")
        add_errors(errors, run_reference(gpt, *batch), run64)
        with yardstick.plainly():
            add_errors(errors, run_reference(gpt, *batch), run64)
    return run64, errors


def check(m: Model, gpt: Any, b: int, t: int, seed: int = 0) -> Iterator[Line]:
    """Compares m with a reference of the same weights on a random batch (b, t). Overwrites m's gradients."""
    m.zero_grad()
    live.show("the engine: forward and backward")
    ours = run_engine(m, *random_batch(m.config.vocab_size, b, t, seed))
    live.clear()
    yield from compare(m.config, ours, *run_torch(gpt, b, t, seed))


def report(lines: Iterable[Line]) -> list[Line]:
    """Prints the table as it grows; the lines that diverge."""
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
    if reference.names_weights(o.model):
        name = os.path.join(os.curdir, o.model) if os.path.exists(o.model) else o.model  # d12 may be a folder
        return Model(name, o.B, o.T or None, threads=o.threads), reference.load_model(o)
    config = reference.make_config(o, fallback=OWN_VOCAB)
    m = Model(config, o.B, o.T or config.max_seq_len, seed=o.seed, threads=o.threads)
    return m, reference.GPT(config, o.seed)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = make_parser(PROG, ABOUT, OPTIONS, examples=EXAMPLES, words=WORDS, B=2, T=64)
    parser.add_argument("path", nargs="?", default="", help="weights of any kind, instead of --model")
    o = parser.parse_args(arguments)
    o.model = o.path or o.model
    return run_command(PROG, lambda: compare_models(o))


def compare_models(o: Any) -> int:
    """Prints the tables; 1 if something diverges."""
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
