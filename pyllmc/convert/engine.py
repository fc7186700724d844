"""What the C engine reads itself: llm.c's model files, pyllmc's checkpoints and run folders, OpenAI's TensorFlow checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pyllmc.base.files import RUN, find_checkpoint
from pyllmc.convert.state import Weights

if TYPE_CHECKING:
    import numpy as np

BUNDLE = (".index", ".data-00000-of-00001")  # what a TensorFlow checkpoint's prefix goes on with


def is_bundle(path: Path) -> bool:
    """As tfbundle_is() in csrc/tfbundle.c."""
    prefix = path / "model.ckpt" if path.is_dir() else path
    return path.name.endswith(BUNDLE) or any(Path(f"{prefix}{end}").exists() for end in BUNDLE)


def is_run(path: Path) -> bool:
    return any((path / name).exists() for name in RUN)


def file_of(path: Path) -> Path:
    """What the engine is to open: a run folder's checkpoint."""
    return path if is_bundle(path) else find_checkpoint(path)


def describe(path: Path) -> str:
    from pyllmc import _ffi

    lib, text = _ffi.load(), _ffi.ffi().new("char[]", 128)
    name = _ffi.encoded(file_of(path))
    _ffi.check(lib, lib.llmc_model_describe(name, text, 128))
    return _ffi.text(text)


def open_file(path: Path) -> Weights:
    """Its tensors are views of a model's memory, which lives as long as they do."""
    from pyllmc.model import Model

    model = Model(path, B=1, T=1, training=False, keep_logits=False)

    def tensors() -> Iterator[tuple[str, np.ndarray]]:
        yield from ((name, model.params[name]) for name in model.params)

    return Weights(describe(path), model.config, tensors())
