"""The formats that can say a model, and the words of a refusal that names them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from pyllmc.convert.recipes import targets
from pyllmc.tables.layout import GPTConfig


def banded_bias(config: GPTConfig, tensors: Mapping[str, np.ndarray]) -> str:
    """The first bias of q, k and v that is not zero in a banded model, which GPT-Neo then cannot say; "" if there is none."""
    names = (
        [name for name, _ in targets(config) if name.endswith("attn.c_attn.bias")] if config.banded else []
    )
    return next((name for name in names if tensors[name].any()), "")


def instead(config: GPTConfig, tensors: Mapping[str, np.ndarray] | None = None) -> str:
    """The remedy for a model that a format cannot say. tensors: None before its training, which leaves no bias at zero."""
    folder = not (banded_bias(config, tensors) if tensors else config.banded)
    formats = {
        "a folder (--to hf)": folder,
        "a GGUF file (--to gguf)": not config.banded,
        "llm.c's file (--to bin)": config.alternates and not config.untied,
    }
    can = [name for name, says in formats.items() if says]
    if not can:
        return "no other format can either: keep it as a checkpoint (pyllmc.Model(...).save)"
    return f"write {' or '.join(can)}"
