"""Weights of GPT-2's kind in whatever file they come: one loader that knows each of them by its content.

>>> config, tensors = load("gpt2")  # a folder, a file, a run, or a name of the hub

Importing this loads nothing heavy; each reader imports what it needs when it is used.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Callable, Union

if TYPE_CHECKING:
    import numpy as np

    from ..layout import GPTConfig

Path = Union[str, "os.PathLike[str]"]


def detect(path: Path) -> str:
    """What is there, in a few words for people: "Hugging Face folder", "OpenAI TensorFlow checkpoint", ..."""
    raise NotImplementedError


def load(
    path: Path, *, revision: str | None = None, tell: Callable[[str], Any] | None = None
) -> tuple[GPTConfig, dict[str, np.ndarray]]:
    """The sizes and {name: float32 array} of what is at `path`, names and orientation as Model.params.

    wte is (V, C), without padding. revision: of a name on the hub. tell: called with what was read, in a sentence;
    nothing is printed. Raises MalformedFile (a ValueError) or OSError with one line: what, expected, found, remedy.
    """
    raise NotImplementedError
