"""Weights of GPT-2's kind in whatever file they come: one loader that knows each of them by its content.

>>> config, tensors = load("gpt2")  # a folder, a file, a run, or a name of the hub

Importing this loads nothing heavy; each reader imports what it needs when it is used.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Callable, Union

if TYPE_CHECKING:
    import numpy as np

    from ..layout import GPTConfig

Path = Union[str, "os.PathLike[str]"]


def detect(path: Path) -> str:
    """What is there, in a few words for people: "Hugging Face folder", "OpenAI TensorFlow checkpoint", ..."""
    return "pyllmc run"


def load(
    path: Path, *, revision: str | None = None, tell: Callable[[str], Any] | None = None
) -> tuple[GPTConfig, dict[str, np.ndarray]]:
    """The sizes and {name: float32 array} of what is at `path`, names and orientation as Model.params.

    wte is (V, C), without padding. revision: of a name on the hub. tell: called with what was read, in a sentence;
    nothing is printed. Raises MalformedFile (a ValueError) or OSError with one line: what, expected, found, remedy.
    """
    # a stand-in until the readers are here
    import json

    import numpy as np
    from safetensors import safe_open

    from ..layout import GPTConfig
    from ..model import Model

    if not os.path.exists(os.path.join(path, "config.json")):
        m = Model(path, B=1, T=1, training=False)
        if tell:
            tell("a run")
        return m.config, {
            name: m.params[name][: m.config.vocab_size if "wte" in name else None].copy() for name in m.params
        }
    with open(os.path.join(path, "config.json")) as f:
        c = json.load(f)
    if tell:
        tell("a Hugging Face folder")
    import torch

    with safe_open(os.path.join(path, "model.safetensors"), "pt") as f:
        found = {k: f.get_tensor(k).to(torch.float32).numpy() for k in f.keys()}
    if c["model_type"] == "gpt2":
        for k in found:
            if k.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
                found[k] = np.ascontiguousarray(found[k].T)
        return GPTConfig(c["vocab_size"], c["n_positions"], c["n_layer"], c["n_head"], c["n_embd"]), found
    C, NH, L = c["hidden_size"], c["num_heads"], c["num_layers"]
    for l in range(L):
        a = f"transformer.h.{l}.attn."
        q, k, v = (found.pop(f"{a}attention.{x}_proj.weight") for x in "qkv")
        found[a + "c_attn.weight"] = np.concatenate([q * np.float32((C // NH) ** 0.5), k, v])
        found[a + "c_attn.bias"] = np.zeros(3 * C, np.float32)
        for x in ("weight", "bias"):
            found[f"{a}c_proj.{x}"] = found.pop(f"{a}attention.out_proj.{x}")
    return GPTConfig(c["vocab_size"], c["max_position_embeddings"], L, NH, C, c["window_size"]), found
