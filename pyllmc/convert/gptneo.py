"""GPT-Neo read as a GPT-2 of dense and banded layers.

EleutherAI's GPT-Neo has q, k and v apart and without biases; here they are joined, and their biases are 0. It takes the
softmax of q k^T without a scale, so q is multiplied by sqrt(head size), which this engine's 1/sqrt(head size) undoes. Its
local layers see the keys i - window < j <= i.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pyllmc.base.errors import BadFile
from pyllmc.convert.hf_config import TANH, refuse_other
from pyllmc.convert.recipes import Recipe, Shape, config_said, make_config, plain, targets, zeros
from pyllmc.tables.layout import GPTConfig


def layer_kinds(origin: str, said: Mapping[str, Any], L: int) -> list[str]:
    """The kind of every layer, "global" or "local"."""
    kinds: list[str] = []
    try:
        for pattern, times in said["attention_types"]:
            kinds += list(pattern) * min(int(times), L // max(len(pattern), 1) + 1)  # one too many at most
        if not all(isinstance(kind, str) for kind in kinds):
            raise TypeError
    except (KeyError, TypeError, ValueError):
        raise BadFile(f"{origin}: attention_types is no list of [[kinds], times]: copy it again") from None
    if (listed := said.get("attention_layers")) not in (None, kinds):
        raise BadFile(
            f"{origin}: attention_layers, {str(listed)[:60]}, and attention_types, {str(kinds)[:60]}, differ: copy it again"
        )
    if len(kinds) != L:
        raise BadFile(f"{origin}: attention_types tells {len(kinds)} layers, num_layers {L}: copy it again")
    return kinds


def config(origin: str, said: Mapping[str, Any]) -> GPTConfig:
    """The sizes of a GPTNeoConfig. Refuses one that a banded GPT-2 does not compute."""
    names = dict(
        max_seq_len="max_position_embeddings", n_layer="num_layers", n_head="num_heads", n_embd="hidden_size"
    )
    refuse_other(origin, {**said, "activation_function": said.get("activation_function", TANH[0])})
    made = config_said(origin, said, "a GPT-Neo's", inner="intermediate_size", **names)
    kinds = layer_kinds(origin, said, made.n_layer)
    if set(kinds) == {"global"}:
        return made
    if other := set(map(str, kinds)) - {"global", "local"}:
        raise BadFile(f"{origin}: a layer is {min(other)}, but GPT-Neo's are global or local: copy it again")
    window = said.get("window_size", 256)
    if not window:
        raise BadFile(
            f"{origin}: window_size={window!r}, but local layers see 1 position at least: copy it again"
        )
    pattern = "".join("L" if kind == "local" else "D" for kind in kinds)
    return make_config(origin, {**vars(made), "window": window, "pattern": pattern})


def read_query(q: Any, head_size: int) -> Any:
    """Our q of GPT-Neo's."""
    import numpy as np

    return q * np.float32(math.sqrt(head_size))


def written_query(q: Any, head_size: int) -> Any:
    """GPT-Neo's q of ours. It is the way back but for roundings, unless sqrt(head_size) is a power of 2."""
    import numpy as np

    return q * np.float32(1 / math.sqrt(head_size))


def joined(name: str, C: int, head_size: int) -> Recipe:
    """The recipe of qkv's weight: the rows of q, scaled, then k, then v: (3C, C)."""
    import numpy as np

    stem = name.replace("c_attn.weight", "attention.")
    sources = tuple((f"{stem}{part}_proj.weight", (C, C)) for part in "qkv")
    return Recipe(sources, lambda q, k, v: np.concatenate([read_query(q, head_size), k, v]))


def recipe(name: str, shape: Shape, config: GPTConfig) -> Recipe:
    if name.endswith("attn.c_attn.weight"):
        return joined(name, config.n_embd, config.n_embd // config.n_head)
    if name.endswith("attn.c_attn.bias"):
        return zeros(shape)
    return plain(name.replace("attn.c_proj", "attn.attention.out_proj"), shape)


def recipes(config: GPTConfig) -> dict[str, Recipe]:
    return {name: recipe(name, shape, config) for name, shape in targets(config)}
