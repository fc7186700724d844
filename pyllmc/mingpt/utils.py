"""minGPT's helpers: configs, seeds, the log of a run, and sampling as in 2020."""

from __future__ import annotations

import ast
import json
import os
import random
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyllmc.base.errors import InvalidArgument


class CfgNode:
    """A tree of settings: each is an attribute, and a branch is a CfgNode."""

    def __init__(self, **named: Any) -> None:
        vars(self).update(named)

    def __str__(self) -> str:
        return "".join(f"{line}\n" for line in self._lines(""))

    def _lines(self, margin: str) -> Iterable[str]:
        for name, value in vars(self).items():
            if isinstance(value, CfgNode):
                yield f"{margin}{name}:"
                yield from value._lines(margin + "    ")
            else:
                yield f"{margin}{name}: {value}"

    def to_dict(self) -> dict[str, Any]:
        return {name: v.to_dict() if isinstance(v, CfgNode) else v for name, v in vars(self).items()}

    def merge_from_dict(self, d: Mapping[str, Any]) -> None:
        vars(self).update(d)

    def merge_from_args(self, args: Iterable[str]) -> None:
        """Takes settings from words that begin with the name of a part, as in minGPT. Raises InvalidArgument for one that is not there,
        or that is a whole branch."""
        for word in args:
            name, equals, text = word.partition("=")
            if not name.startswith("--") or not equals:
                raise InvalidArgument(f"'{word}' is not of the form --name=value")
            self._set(name[2:].split("."), value_of(text), word)

    def _set(self, path: list[str], value: Any, word: str) -> None:
        node: Any = self
        for name in path[:-1]:
            node = vars(node).get(name) if isinstance(node, CfgNode) else None
        if not isinstance(node, CfgNode) or path[-1] not in vars(node):
            known = ", ".join(vars(node if isinstance(node, CfgNode) else self))
            raise InvalidArgument(f"'{word}': no such setting; there are {known}")
        if isinstance(branch := vars(node)[path[-1]], CfgNode):
            name = word.partition("=")[0]
            raise InvalidArgument(
                f"'{word}': {name} is a branch; set {name}.NAME, one of {', '.join(vars(branch))}"
            )
        setattr(node, path[-1], value)


def value_of(text: str) -> Any:
    """The Python value that a text writes, or else the text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def set_seed(seed: int) -> None:
    """Seeds Python's, numpy's and PyTorch's generators; weights and samples of pyllmc.nn follow from the last."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def setup_logging(config: CfgNode) -> None:
    """Makes config.system.work_dir, and writes args.txt, the command line, and config.json there."""
    folder = config.system.work_dir  # type: ignore[attr-defined]
    os.makedirs(folder, exist_ok=True)
    for name, text in (
        ("args.txt", " ".join(sys.argv)),
        ("config.json", json.dumps(config.to_dict(), indent=4)),
    ):
        with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
            file.write(text)


def sample(
    model: Any,
    x: Tensor,
    steps: int,
    temperature: float = 1.0,
    sample: bool = False,
    top_k: int | None = None,
) -> Tensor:
    """x (b, t) with `steps` ids more in each row; sample=False takes the likeliest. The model is left in eval mode."""
    model.eval()
    return model.generate(x, steps, temperature=temperature, do_sample=sample, top_k=top_k)  # type: ignore[no-any-return]
