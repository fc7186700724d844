"""A run's folder and its checkpoints: which file is meant, its sizes, the texts it carries, how it was trained.

A checkpoint begins as llm.c's model file does and goes on with sections by tag (csrc: checkpoint.c). The engine is loaded
only where a section is read.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Union

from pyllmc.base.errors import DataError, SystemFailure
from pyllmc.tables.layout import GPTConfig
from pyllmc.text.bins import MODEL_MAGIC
from pyllmc.text.tokenizer import Tokenizer

Source = Union[str, "os.PathLike[str]"]
RUN = ("best.ckpt", "last.ckpt")  # what of a run folder is opened: the first that is there
TOKENIZER, OPTIONS, STATE = b"TOKENIZR", b"OPTIONS ", b"STATE   "  # tags
HEAD = 9  # int32 of the header that are read here


# ---------------------------------------------------------------------------------------------------------
# which file


def is_run(path: Path) -> bool:
    return any((path / name).exists() for name in RUN)


def find_checkpoint(path: Source) -> Path:
    """A checkpoint, or the best, else the last, of a run folder."""
    path = Path(path)
    for name in RUN:
        if (path / name).exists():
            return path / name
    if path.is_dir():
        raise DataError(f"{path} holds neither best.ckpt nor last.ckpt: is it a run folder?")
    if not path.exists():
        raise SystemFailure(f"{path} does not exist: give a run folder or a checkpoint")
    return path


def is_model_file(head: bytes) -> bool:
    """Whether a file that begins so is of llm.c's format, as every checkpoint is."""
    return int.from_bytes(head[:4], "little") == MODEL_MAGIC


def checkpoint_of(source: Source) -> Path | None:
    """The file of weights in llm.c's format that `source` names, if it does."""
    try:
        path = find_checkpoint(source)
        with open(path, "rb") as file:
            return path if is_model_file(file.read(4)) else None
    except (DataError, OSError):
        return None


def read_head(path: Source) -> tuple[int, GPTConfig] | None:
    """The version and the sizes that a model file tells; None where it is none. Raises OSError, ValueError."""
    with open(path, "rb") as file:
        head = file.read(4 * HEAD)
    if len(head) < 4 * HEAD or not is_model_file(head):
        return None
    numbers = (int.from_bytes(head[4 * i : 4 * i + 4], "little", signed=True) for i in range(1, HEAD))
    version, maxT, V, L, NH, C, _, window = numbers
    return version, GPTConfig(V, maxT, L, NH, C, window)


# ---------------------------------------------------------------------------------------------------------
# its sections


def read_section(lib: Any, path: bytes, tag: bytes) -> bytes:
    """A section of a checkpoint; empty if it has none."""
    from pyllmc.engine import _ffi

    size = _ffi.check(lib, lib.llmc_checkpoint_text(path, tag, _ffi.ffi().NULL, 0))
    data = _ffi.ffi().new("char[]", max(size, 1))
    if size:
        _ffi.check(lib, lib.llmc_checkpoint_text(path, tag, data, size))
    return bytes(_ffi.ffi().buffer(data, size))


def section(source: Source, tag: bytes) -> bytes:
    """The text that a run or a checkpoint carries under a tag; empty of another kind of source, too."""
    from pyllmc.engine import _ffi

    path = checkpoint_of(source)
    return read_section(_ffi.load(), _ffi.encoded(path), tag) if path else b""


def read_tokenizer(path: Source) -> Tokenizer:
    """The tokenizer inside a checkpoint. Raises DataError where there is none."""
    from pyllmc.engine import _ffi

    data = read_section(_ffi.load(), _ffi.encoded(path), TOKENIZER)
    if not data:
        raise DataError(f"{path} carries no tokenizer: it was trained on data without one")
    return Tokenizer.from_bytes(data, os.fspath(path))


# ---------------------------------------------------------------------------------------------------------
# how it was trained


def lines_of(text: str) -> dict[str, str]:
    """name=value lines as a dict: a checkpoint's state and options, a run's config.txt."""
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line and line[0] != "#")


def training(source: Source) -> dict[str, Any]:
    """State and options of a run or a checkpoint, its data's meta.json and its loss; {} of anything else."""
    given = lines_of(section(source, OPTIONS).decode("utf-8", "replace"))
    if not given:
        return {}
    state = lines_of(section(source, STATE).decode("utf-8", "replace"))
    return {
        "state": state,
        "options": given,
        "meta": _meta(given.get("data", "")),
        "loss": _loss(Path(source), state),
    }


def _meta(folder: str) -> dict[str, Any]:
    try:
        found = json.loads(Path(folder, "meta.json").read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError):
        return {}


def _loss(source: Path, state: dict[str, str]) -> str:
    """The training loss of the checkpoint's step, from the run's metrics.jsonl."""
    try:
        for line in (source / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            if str(entry.get("step")) == state.get("step") and "loss" in entry:
                return f"{entry['loss']:.4f}"
    except (OSError, ValueError):
        pass
    return ""
