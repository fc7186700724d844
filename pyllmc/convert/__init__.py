"""Weights of GPT-2's kind in whatever file they come: one loader that knows each of them by its content.

>>> config, tensors = load("models/gpt2")  # a folder, a file, a run, or a name of the hub

Importing this loads nothing heavy; each reader imports what it needs when it is used.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Callable, NamedTuple, Union

if TYPE_CHECKING:
    import pathlib

    import numpy as np

    from pyllmc.convert.state import Weights
    from pyllmc.tables.layout import GPTConfig

Path = Union[str, "os.PathLike[str]"]


class Kind(NamedTuple):
    """A reader: the module that reads it, and its name for people ("": the engine tells)."""

    module: str
    opener: str
    words: str


ENGINE = Kind("engine", "open_file", "")
FOLDER = Kind("huggingface", "open_folder", "Hugging Face folder")
ONE_FILE = Kind("huggingface", "open_file", "file of a Hugging Face folder")
PYTORCH = Kind("pytorch", "open_file", "PyTorch file")
OTHERS = {b"GGUF": "GGUF, which is written here, not read", b"\x89HDF": "HDF5; save it as safetensors"}
IN_FOLDER = ("ckpt.pt", "model.pt")  # what nanoGPT and minGPT call theirs
WANTED = "config.json with *.safetensors or pytorch_model*.bin, ckpt.pt, model.pt, model.ckpt.*, best.ckpt, last.ckpt"


def _kind_of_folder(path: pathlib.Path) -> tuple[Kind, pathlib.Path]:
    from pyllmc.base.files import FileFailure
    from pyllmc.convert import engine, huggingface
    from pyllmc.engine.checkpoint import is_run

    if is_run(path) or engine.is_bundle(path):
        return ENGINE, path
    config = path / "config.json"
    if config.exists() and "model_type" in huggingface.read_json(config):
        return FOLDER, path
    for name in IN_FOLDER:
        if (path / name).exists():
            return _kind_of_file(path / name)
    if config.exists():
        return FOLDER, path
    raise FileFailure(f"{path} is a folder without weights: expected {WANTED}")


def _kind_of_file(path: pathlib.Path) -> tuple[Kind, pathlib.Path]:
    from pyllmc.base.files import MalformedFile, check_regular, reading

    check_regular(path)
    with reading(str(path)), open(path, "rb") as file:
        head = file.read(9)
    if other := OTHERS.get(head[:4]):
        raise MalformedFile(f"{path} is {other}")
    if path.suffix == ".safetensors" or head[8:] == b"{":
        return ONE_FILE, path
    if head[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        beside = path.name.startswith("pytorch_model") and (path.parent / "config.json").exists()
        return (ONE_FILE if beside else PYTORCH), path
    return ENGINE, path  # which says what else it may be


def _find(path: Path, revision: str | None = None) -> tuple[Kind, pathlib.Path]:
    """Who reads it, and where it is by now."""
    from pathlib import Path as Local

    from pyllmc.base.checks import as_path, as_text
    from pyllmc.base.files import FileFailure, explain_os_errors
    from pyllmc.convert import engine, hub

    name = as_path("path", path)
    revision = None if revision is None else as_text("revision", revision)
    local = Local(name)
    with explain_os_errors("read", name, "check the path and its permissions"):
        if local.is_dir():
            return _kind_of_folder(local)
        if engine.is_bundle(local):
            return ENGINE, local
        if local.exists():
            return _kind_of_file(local)
    if hub.repository(name):
        return FOLDER, hub.fetch(name, revision)
    if name in hub.OPENAI:
        raise FileFailure(f"{name} is a size, and there is no such file: OpenAI's weights are hub:{name}")
    raise FileFailure(f"{name} does not exist: give a file or folder of weights, or hub:owner/name")


def is_engines(path: Path) -> bool:
    """Whether the C engine reads what is at an existing path; MalformedFile where nobody does."""
    return _find(path)[0] == ENGINE


def detect(path: Path) -> str:
    """What is there, in a few words for people: "Hugging Face folder", "OpenAI TensorFlow checkpoint", ...

    Raises MalformedFile or FileFailure where it is nothing that `load` takes.
    """
    kind, where = _find(path)
    if kind.words:
        return kind.words
    from pyllmc.convert import engine

    return engine.describe(where)


def open_weights(path: Path, *, revision: str | None = None, n_head: int = 0) -> Weights:
    """What `load` loads, checked but for the numbers, its tensors one at a time: for whoever has a place for each."""
    from importlib import import_module

    from pyllmc.base.checks import as_int

    n_head = as_int("n_head", n_head)
    kind, where = _find(path, revision)
    opener = getattr(import_module(f"pyllmc.convert.{kind.module}"), kind.opener)
    found: Weights = opener(where, n_head) if kind == PYTORCH else opener(where)
    if n_head and found.config.n_head != n_head:
        from pyllmc.base.errors import InvalidArgument

        raise InvalidArgument(f"n_head={n_head}, but {where} tells {found.config.n_head}: leave n_head out")
    return found


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

    Raises MalformedFile (a ValueError), NotFinite, FileFailure (an OSError) or MissingDependency (an ImportError), in
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
