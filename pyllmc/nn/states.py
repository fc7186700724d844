"""State dicts of other programs, read as pyllmc.convert reads their files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pyllmc.base.errors import BadFile
from pyllmc.convert.pytorch import open_mingpt, open_old_mingpt, stripped, tensors
from pyllmc.convert.recipes import HEAD, WTE, renamed
from pyllmc.tables.layout import GPTConfig

WHAT = Path("the state dict")  # the name in messages


def read_state(state: Mapping[str, Any], config: GPTConfig) -> Iterator[tuple[str, Any]]:
    """Yields (name, float32 array) of every parameter of a whole state dict. Raises BadFile.

    An untied model's head is the embedding where the state dict has no other.
    """
    if not state:
        raise BadFile(f"{WHAT} has no tensor of a GPT-2: pass that of a whole model, or strict=False")
    named = renamed(str(WHAT), tensors(WHAT, state), stripped)
    opener = open_old_mingpt if "tok_emb.weight" in named else open_mingpt
    found = opener(WHAT, named, config.n_head)
    for name in ("vocab_size", "max_seq_len", "n_layer", "n_embd"):
        if (its := getattr(found.config, name)) != getattr(config, name):
            raise BadFile(
                f"{WHAT} has {name}={its}, but the model {getattr(config, name)}: make the model of its sizes"
            )
    if found.config.untied and not config.untied:
        raise BadFile(
            f"{WHAT} has an {HEAD} that is not the embedding: make the model of a GPTConfig with untied=True"
        )
    for name, values in found.tensors:
        yield name, values
        if name == WTE and config.untied and not found.config.untied:
            yield HEAD, values
