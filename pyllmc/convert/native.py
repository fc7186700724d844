"""Files that the C engine reads: llm.c's models, pyllmc's checkpoints and run folders, OpenAI's TensorFlow checkpoint."""

from __future__ import annotations

from pathlib import Path

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


def describe(path: Path) -> str:
    from pyllmc.engine import _ffi

    lib, text = _ffi.load(), _ffi.ffi().new("char[]", 128)
    name = _ffi.encoded(file_of(path))
    _ffi.check(lib, lib.llmc_model_describe(name, text, 128))
    return _ffi.text(text)


def open_file(path: Path) -> Weights:
    """Loads a file; its tensors are views of memory that lives as long as they do."""
    from pyllmc.engine.arena import load_arena

    arena = load_arena(file_of(path))
    return Weights(describe(path), arena.config, arena.parameters())
