"""Files that the C engine reads: llm.c's models, pyllmc's checkpoints and run folders, OpenAI's TensorFlow checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pyllmc.convert.base import settle_base
from pyllmc.convert.recipes import Weights
from pyllmc.engine.checkpoint import find_checkpoint

BUNDLE = (".index", ".data-00000-of-00001")  # the ends of the names of a TensorFlow checkpoint's files


def is_bundle(path: Path) -> bool:
    """True for a TensorFlow checkpoint, by the rule of tfbundle_is() in csrc/files/tfbundle.c."""
    prefix = path / "model.ckpt" if path.is_dir() else path
    return path.name.endswith(BUNDLE) or any(Path(f"{prefix}{end}").exists() for end in BUNDLE)


def file_of(path: Path) -> Path:
    """The path that the engine is to open: for a run folder, its checkpoint."""
    return path if is_bundle(path) else find_checkpoint(path)


def open_native(path: Path) -> Any:
    """The WeightFile at a path. Only here the engine is loaded."""
    from pyllmc.engine import _ffi
    from pyllmc.engine.weightfile import WeightFile

    return WeightFile(_ffi.load(), file_of(path))


def describe(path: Path) -> str:
    return str(open_native(path).describe())


def open_file(path: Path, find: Callable[[str], Any]) -> Weights:
    """Reads the file. Its tensors are views of memory that lives as long as they do. find: finds the base of adapters."""
    from pyllmc.engine.arena import load_arena

    file = open_native(path)
    settle_base(file, find)
    arena = load_arena(file)
    return Weights(file.describe(), arena.config, arena.parameters())
