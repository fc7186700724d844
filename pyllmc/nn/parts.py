"""Where the parameters that the engine computes with are in the tree of modules, also after a user has put others there."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from pyllmc.base.errors import InvalidArgument
from pyllmc.nn.memory import take_back

LAYERS = ("transformer", "lm_head")  # the parts that the engine computes; a subclass may have others


class Parts:
    """The modules that hold a GPT's parameters, in the engine's order, and the address of each parameter in the engine's memory."""

    def __init__(self, gpt: nn.Module, arena: Any) -> None:
        self._arena = arena
        base = arena.flat("params").ctypes.data
        self._addresses = [base + 4 * at for at, _ in arena.places().values()]
        self._find(gpt)

    def _find(self, gpt: nn.Module) -> None:
        paths = [name.rpartition(".") for name in self._arena.places()]
        try:
            self.held = [(gpt.get_submodule(part), name) for part, _, name in paths]
        except AttributeError as error:
            raise InvalidArgument(f"the engine computes GPT-2's layers and no others: {error}") from None
        trees = [part for name in LAYERS for part in gpt.get_submodule(name).modules()]
        tree = [(part._modules, name, child) for part in trees for name, child in part._modules.items()]
        self._tree = tree + [(gpt._modules, name, gpt._modules[name]) for name in LAYERS]

    def params(self, gpt: Any) -> list[nn.Parameter]:
        """The parameters. One that was moved elsewhere (p.data = x), or that another part has brought, comes into the engine's
        memory with its values. Raises InvalidArgument for what the engine cannot compute with."""
        if any(parts.get(name) is not child for parts, name, child in self._tree):
            self._find(gpt)
        found: list[nn.Parameter] = []
        for (part, name), address in zip(self.held, self._addresses):
            p = part._parameters.get(name)
            if p is None:
                whole = list(self._arena.places())[len(found)]
                raise InvalidArgument(
                    f"the engine cannot train without a plain parameter {whole}, and a {type(part).__name__} has none: remove what "
                    "takes its place; for LoRA use pyllmc.Model(source, lora_rank=8)"
                )
            found.append(p)
            if p.data_ptr() != address:
                take_back(p, self._arena, len(found) - 1)
        if not gpt.sizes.untied and gpt.lm_head._parameters.get("weight") is not found[0]:
            _tie_again(gpt.lm_head, found[0])
        return found


def _tie_again(head: Any, wte: nn.Parameter) -> None:
    """Makes the embedding the head, as after load_state_dict(assign=True). Raises InvalidArgument if they differ."""
    weight = getattr(head, "weight", None)
    if not isinstance(weight, nn.Parameter) or not torch.equal(weight, wte):
        raise InvalidArgument(
            "lm_head.weight is no longer transformer.wte.weight, but the engine computes with one matrix for both: write into "
            "it in place, or make the GPT of a GPTConfig with untied=True"
        )
    head.weight = wte
