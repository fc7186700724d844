"""What the C engine reads itself: llm.c's model files, pyllmc's checkpoints and run folders, OpenAI's TensorFlow checkpoint."""

from __future__ import annotations

from pathlib import Path

from pyllmc.convert.recipes import Weights
from pyllmc.engine.checkpoint import find_checkpoint

BUNDLE = (".index", ".data-00000-of-00001")  # what a TensorFlow checkpoint's prefix goes on with


def is_bundle(path: Path) -> bool:
    """As tfbundle_is() in csrc/files/tfbundle.c."""
    prefix = path / "model.ckpt" if path.is_dir() else path
    return path.name.endswith(BUNDLE) or any(Path(f"{prefix}{end}").exists() for end in BUNDLE)


def file_of(path: Path) -> Path:
    """What the engine is to open: a run folder's checkpoint."""
    return path if is_bundle(path) else find_checkpoint(path)


def describe(path: Path) -> str:
    from pyllmc.engine import _ffi

    lib, text = _ffi.load(), _ffi.ffi().new("char[]", 128)
    name = _ffi.encoded(file_of(path))
    _ffi.check(lib, lib.llmc_model_describe(name, text, 128))
    return _ffi.text(text)


def open_file(path: Path) -> Weights:
    """Its tensors are views of memory that lives as long as they do."""
    from pyllmc.engine.arena import load_arena

    arena = load_arena(file_of(path))
    return Weights(describe(path), arena.config, arena.parameters())
