"""Copies of a GPT, by copy.deepcopy and pickle: what goes along, and how the copy gets memory of its own.

The parameters themselves go along, so that an optimizer, or a layer of a subclass, that is copied together with the model has
those of the copy. Gradients and moments stay behind.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from pyllmc.nn.memory import ORIGIN, Engine, tensors

OWN = ("_engine", "_gradients", "_parts", "_turn")  # attributes that no copy gets


def state_for_copy(gpt: Any) -> dict[str, Any]:
    """What a copy of the model is made from."""
    state = {name: value for name, value in gpt.__dict__.items() if name not in OWN}
    origin = {name: getattr(gpt._engine, name) for name in (*ORIGIN, "_separator")}
    return {**state, "_modules": gpt._others(), "_weights": gpt._params(), "_from": origin}


def become_copy(gpt: Any, state: dict[str, Any]) -> None:
    """Makes the model from such a state, whose parameters move into its memory."""
    weights, others, origin = (state.pop(name) for name in ("_weights", "_modules", "_from"))
    nn.Module.__setstate__(gpt, {**state, "_modules": {}})
    gpt._adopt(Engine(gpt.sizes, 1, 1, **gpt._how))
    gpt._engine.separate_documents(origin.pop("_separator", None))
    vars(gpt._engine).update(origin)
    for name, part in others.items():
        gpt.add_module(name, part)
    for p, memory, (part, name) in zip(weights, tensors(gpt._engine._arena, "params"), gpt._parts.held):
        memory.copy_(p.detach())
        p.data = memory
        setattr(part, name, p)
    gpt._tie()
    gpt.train(gpt.training)
