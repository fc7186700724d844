"""config.json as transformers writes it: it is read, and refused if GPT-2 computes something else than it says."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyllmc.base.errors import BadFile
from pyllmc.base.files import check_regular, reading
from pyllmc.convert.recipes import config_said
from pyllmc.tables.layout import GPTConfig

TANH = ("gelu_new", "gelu_pytorch_tanh")  # two names of one function
# the values of a key that mean what GPT-2 computes; a missing key means the first
FIXED: dict[str, tuple[Any, ...]] = {
    "activation_function": TANH,
    "layer_norm_epsilon": (1e-5,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "tie_word_embeddings": (True, False),
    "add_cross_attention": (False,),
    "quantization_config": (None,),
}


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; raises BadFile if it is none."""
    check_regular(path)
    try:
        with reading(str(path)):
            found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise BadFile(f"{path} is not JSON ({error}): copy it again") from None
    if not isinstance(found, dict):
        raise BadFile(f"{path} is not a JSON object: copy it again")
    return found


def refuse_other(origin: str, config: Mapping[str, Any]) -> None:
    """Raises BadFile if this engine would compute something else than the model's maker."""
    for key, allowed in FIXED.items():
        found = config.get(key, allowed[0])
        if found not in allowed:
            raise BadFile(f"{origin}: {key}={found!r}, but GPT-2 has {allowed[0]!r}: another kind of model")


def gpt2_config(origin: str, config: Mapping[str, Any]) -> GPTConfig:
    """The sizes of a GPT2Config."""
    refuse_other(origin, config)
    context = "n_ctx" if config.get("n_ctx") and not config.get("n_positions") else "n_positions"
    return config_said(origin, config, "a GPT-2's", inner="n_inner", max_seq_len=context)
