"""Weights of GPT-2's kind from any file: one loader, which tells the kind of file by its content.

>>> config, tensors = load("models/gpt2")  # a folder, a file, a run, or a name of the hub

Importing this package loads nothing heavy; each reader imports the rest when it is used.
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
    """Names the kind of weights at `path` for people: "Hugging Face folder", "OpenAI TensorFlow checkpoint", ...

    Raises BadFile or SystemFailure if `load` does not take them.
    """
    from pyllmc.convert import native
    from pyllmc.convert.kinds import find

    found = find(path)
    return found.kind.words or native.describe(found.where)


def open_weights(path: Path, *, revision: str | None = None, n_head: int = 0) -> Weights:
    """Opens weights as `load` does, but yields the tensors one at a time; only their numbers are not checked yet."""
    from pyllmc.base.checks import as_int
    from pyllmc.convert.kinds import find

    n_head = as_int("n_head", n_head)
    return find(path, revision).open(n_head)


def load(
    path: Path, *, revision: str | None = None, n_head: int = 0, tell: Callable[[str], Any] | None = None
) -> tuple[GPTConfig, dict[str, np.ndarray]]:
    """Loads the weights at `path`: their sizes, and {name: float32 array} with names and orientation as Model.params.

    path: a folder of Hugging Face's or a name of its hub ("hub:gpt2", "owner/name", at `revision`), OpenAI's TensorFlow
        checkpoint, llm.c's model file, nanoGPT's or minGPT's file, a run or checkpoint of pyllmc's.
    wte is (V, C), without padding; matrices are as nn.Linear has them, (out, in).
    n_head: for minGPT's files, because they do not tell it unless a config.json lies beside them.
    tell: is called with a sentence about what was read; nothing is printed. A pickle gives a warning, too, and so does a
        file whose maker computes something otherwise.

    Raises BadFile (a ValueError), NotFinite, SystemFailure (an OSError) or MissingDependency (an ImportError), with
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
