"""pyllmc: a Python-driven, llm.c-style C/CUDA trainer for GPT-2-class language models.

>>> import pyllmc
>>> m = pyllmc.Model("d12", B=4, T=64, seed=42)

Each name is loaded when it is first used. So importing the package costs next to nothing, and the data tools run on a
bare Python.
"""

# annotations are not imported from __future__, because an old Python must get as far as the message below
import sys

if sys.version_info < (3, 9):  # noqa: UP036
    sys.stderr.write(
        "pyllmc needs Python >= 3.9, this is {}.{}: start it with a newer one, e.g. python3.11\n".format(
            *sys.version_info[:2]
        )
    )
    sys.exit(2)

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "Model": "model",
    "GPTConfig": "tables.layout",
    "Trainer": "trainer",
    "Event": "trainer",
    "Examiner": "evaluate.training",
    "Tokenizer": "text.tokenizer",
    "Writer": "writer",
    "Chat": "writer",
    "Primer": "priming",
    "prime": "priming",
    "LlmcError": "base.errors",
    "InvalidArgument": "base.errors",
    "OutOfMemory": "base.errors",
    "BadFile": "base.errors",
    "SystemFailure": "base.errors",
    "NoDevice": "base.errors",
    "NotFinite": "base.errors",
}
_ROOMS = ("convert", "distributed", "evaluate", "mingpt", "nn", "priming")  # rooms that users name
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"pyllmc.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'pyllmc' has no attribute '{name}'")
    return getattr(importlib.import_module(f"pyllmc.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
