"""Weights of GPT-2's kind in whatever file they come: one loader that knows each of them by its content.

>>> config, tensors = load("models/gpt2")  # a folder, a file, a run, or a name of the hub

Importing this loads nothing heavy; each reader imports what it needs when it is used.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Callable, Union

if TYPE_CHECKING:
    import numpy as np

    from pyllmc.convert.recipes import Weights
    from pyllmc.tables.layout import GPTConfig

Path = Union[str, "os.PathLike[str]"]


def detect(path: Path) -> str:
    """What is there, in a few words for people: "Hugging Face folder", "OpenAI TensorFlow checkpoint", ...

    Raises BadFile or SystemFailure where it is nothing that `load` takes.
    """
    from pyllmc.convert import native
    from pyllmc.convert.kinds import find

    found = find(path)
    return found.kind.words or native.describe(found.where)


def open_weights(path: Path, *, revision: str | None = None, n_head: int = 0) -> Weights:
    """What `load` loads, checked but for the numbers, its tensors one at a time: for whoever has a place for each."""
    from pyllmc.base.checks import as_int
    from pyllmc.convert.kinds import find

    n_head = as_int("n_head", n_head)
    return find(path, revision).open(n_head)


def load(
    path: Path, *, revision: str | None = None, n_head: int = 0, tell: Callable[[str], Any] | None = None
) -> tuple[GPTConfig, dict[str, np.ndarray]]:
    """The sizes and {name: float32 array} of what is at `path`, names and orientation as Model.params.

    path: a folder of Hugging Face's or a name of its hub ("hub:gpt2", "owner/name"; revision: which), OpenAI's TensorFlow
        checkpoint, llm.c's model file, nanoGPT's or minGPT's file, a run or checkpoint of pyllmc's.
    wte is (V, C), without padding; matrices are as nn.Linear has them, (out, in).
    n_head: of minGPT's files, which do not tell it where no config.json lies beside them.
    tell: called with what was read, in a sentence; nothing is printed. Where the file's maker computes something
        otherwise, or it is a pickle, there is a warning too.

    Raises BadFile (a ValueError), NotFinite, SystemFailure (an OSError) or MissingDependency (an ImportError), in
    one line: what, expected, found, remedy.
    """
    if tell is not None and not callable(tell):
        from pyllmc.base.checks import refuse

        refuse("tell", tell, "a function")
    weights = open_weights(path, revision=revision, n_head=n_head)
    tensors = dict(weights.tensors)
    if tell:
        tell(weights.told())
    return weights.config, tensors
