"""Runs train_gpt2.py and keeps every activation and gradient of PyTorch's, by the names of the engine's table."""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from pyllmc.base.checkout import of_source
from pyllmc.base.errors import DataError, need
from pyllmc.tables import layout
from pyllmc.tables.layout import GPTConfig

Key = tuple[str, int]  # a tensor of the table and its layer, 0 if it has none
Arrays = dict[Key, np.ndarray]
MAX_NORM = 1.0  # the norm that gradients are clipped to

# the table's names of the input and the output of a block's modules; "": not kept
TAPS = {
    "ln_1": ("residual1", "ln1"),
    "attn.c_attn": ("", "qkv"),
    "attn.c_proj": ("atty", ""),
    "ln_2": ("residual2", "ln2"),
    "mlp.c_fc": ("", "fch"),
    "mlp.c_proj": ("fch_gelu", "branch"),
}
LAST = {"ln_f": ("residual3", "lnf")}
# engine's buffer -> the activation of layer 0 whose gradient it holds after the backward pass
GRADIENT_OF = {"logits": "logits", "dfch": "fch", "dqkv": "qkv", "branch": "ln1", "dresidual": "residual1"}


def load_reference() -> ModuleType:
    """Imports train_gpt2.py of this checkout or of the installed package. Raises DataError without it or without PyTorch."""
    need("torch", "comparing with PyTorch")
    path = of_source("train_gpt2.py")
    if not path.exists():
        raise DataError("train_gpt2.py, with which pyllmc.check compares, is missing: install pyllmc again")
    if "train_gpt2" not in sys.modules:
        spec = importlib.util.spec_from_file_location("train_gpt2", path)
        assert spec
        assert spec.loader
        sys.modules["train_gpt2"] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules["train_gpt2"]


class Result(NamedTuple):
    """A step's tensors. acts: after the forward pass; buffers: activations that backward rewrote; grads: parameters'."""

    acts: Arrays
    buffers: Arrays
    grads: Arrays
    loss: float


def run_reference(
    gpt: Any, inputs: Any, targets: Any, weights: Any = None, scale: float = 1.0, dtype: str = "float32"
) -> Result:
    """Runs forward and backward in PyTorch and keeps every tensor of the table; inputs, targets, weights (b, t)."""
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
        acts = {**tapped, **derived(gpt, x, tapped, reference)}
        for name, value in (("tokens", x), ("targets", y), ("loss_weights", w), ("losses", losses)):
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
    """Adds hooks that keep each module's input and output; returns the dict, which forward fills, and the hooks' handles."""
    kept: dict[Key, Any] = {}

    def keep(module: Any, names: tuple[str, str], layer: int) -> Any:
        def hook(module: Any, arguments: Any, out: Any) -> None:
            kept.update({(name, layer): value for name, value in zip(names, (arguments[0], out)) if name})

        return module.register_forward_hook(hook)

    h = gpt.transformer
    handles = [keep(b.get_submodule(m), names, l) for l, b in enumerate(h["h"]) for m, names in TAPS.items()]
    return kept, handles + [keep(h[m], names, 0) for m, names in LAST.items()]


def derived(gpt: Any, ids: Any, tapped: Mapping[Key, Any], reference: ModuleType) -> dict[Key, Any]:
    """The statistics that the engine keeps and PyTorch does not show. ids (B, T): the inputs."""
    config: GPTConfig = gpt.config
    found = {("logits_lse", 0): tapped["logits", 0].logsumexp(-1)}
    offsets = reference.offsets_of(ids, gpt.separator) if gpt.separator >= 0 else None
    for (name, layer), x in tapped.items():
        if name.startswith("residual"):
            norm = {"residual1": "ln1", "residual2": "ln2", "residual3": "lnf"}[name]
            found[f"{norm}_mean", layer] = x.mean(-1)
            found[f"{norm}_rstd", layer] = (x.var(-1, unbiased=False) + 1e-5).rsqrt()
        if name == "qkv":
            found["lse", layer] = attention_lse(x, config.n_head, config.window_of(layer), reference, offsets)
    return found


def attention_lse(qkv: Any, NH: int, window: int, reference: ModuleType, offsets: Any) -> Any:
    """(B, NH, T): log sum exp of the scores q.k / sqrt(hs) of each query."""
    B, T, C3 = qkv.shape
    q, k, _ = qkv.view(B, T, 3, NH, C3 // 3 // NH).permute(2, 0, 3, 1, 4)  # (3, B, NH, T, hs)
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])  # (B, NH, T, T)
    return scores.masked_fill(~reference.visible(T, window, offsets=offsets), -math.inf).logsumexp(-1)


def loss_pair(losses: Any, targets: Any, weights: Any, reference: ModuleType) -> Any:
    """(the mean loss, 1 / sum of the weights, or 0 if that sum is 0)."""
    total = (weights * (targets != -1)).sum()
    inverse = 1 / total if total > 0 else total
    mean = reference.mean_loss(losses, targets, weights)
    return losses.new_tensor([mean.item(), inverse.item()])


def norm_pair(grads: Sequence[Any]) -> Any:
    """(the global norm of the gradients, the factor that clips it to MAX_NORM), as in clip_grad_norm_."""
    norm = sum(g.pow(2).sum() for g in grads).sqrt()
    return norm.new_tensor([norm.item(), min(1.0, MAX_NORM / (norm.item() + 1e-6))])
