"""A run's folder and its checkpoints: the file that is meant, its sizes, the texts it carries, its training.

A checkpoint begins like llm.c's model file and continues with sections by tag (csrc/files/checkpoint.c). Only reading
a section loads the engine.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any, Union

from pyllmc.base.errors import BadFile, DataError, SystemFailure
from pyllmc.engine.run_files import is_number, metrics_lines, read_scores
from pyllmc.tables.layout import GPTConfig
from pyllmc.text import template
from pyllmc.text.bins import MODEL_MAGIC
from pyllmc.text.tokenizer import Tokenizer

Source = Union[str, "os.PathLike[str]"]
RUN = ("best.ckpt", "last.ckpt")  # a run folder means the first of these that exists
TOKENIZER, OPTIONS, STATE = b"TOKENIZR", b"OPTIONS ", b"STATE   "  # tags of sections
CHECKSUM = 20  # bytes of the last section: its tag, its size, the checksum
HEADER_INTS = 42  # so many int32 of the header are read here; the last 32 are the pattern
OWN_VERSION = 103  # a model file that llm.c's version 3 cannot say has this version (csrc/files/llmcfile.h)
OUTER_VERSION = 104  # a checkpoint with DiLoCo's outer step
ADAPTER_VERSION = 1000  # a file that holds LoRA adapters instead of a model (csrc/files/adapterfile.h)


# ---------------------------------------------------------------------------------------------------------
# the file that is meant


def _in_run(path: Path) -> Path | None:
    """The checkpoint that a run folder stands for; None if `path` is no run folder."""
    return next((path / name for name in RUN if (path / name).exists()), None)


def is_run(path: Path) -> bool:
    return _in_run(path) is not None


def find_checkpoint(path: Source) -> Path:
    """The path of a checkpoint: `path` itself, or best.ckpt, else last.ckpt, of a run folder."""
    path = Path(path)
    if found := _in_run(path):
        return found
    if path.is_dir():
        raise SystemFailure(f"{path} holds neither best.ckpt nor last.ckpt: is it a run folder?")
    if not path.exists():
        raise SystemFailure(f"{path} does not exist: give a run folder or a checkpoint")
    return path


def is_model_file(start: bytes) -> bool:
    """True if a file with these first bytes has llm.c's format, as every checkpoint has."""
    return int.from_bytes(start[:4], "little") == MODEL_MAGIC


def checkpoint_of(source: Source) -> Path | None:
    """The weight file in llm.c's format that `source` names; None if it names none."""
    try:
        path = find_checkpoint(source)
        with open(path, "rb") as file:
            return path if is_model_file(file.read(4)) else None
    except (DataError, OSError):
        return None


def adapters_of(source: Source) -> Path | None:
    """The file of LoRA adapters that `source` names (csrc/files/adapterfile.h); None if it names none."""
    try:
        path = find_checkpoint(source)
        with open(path, "rb") as file:
            start = file.read(8)
    except (DataError, OSError):
        return None
    version = int.from_bytes(start[4:], "little")
    return path if is_model_file(start) and version == ADAPTER_VERSION else None


def read_header(path: Source) -> tuple[int, GPTConfig] | None:
    """The version and the sizes in a model file; None if the file is of another format. Raises OSError, ValueError."""
    with open(path, "rb") as file:
        header = file.read(4 * HEADER_INTS)
    return parse_header(header) if len(header) == 4 * HEADER_INTS and is_model_file(header) else None


def parse_header(header: bytes) -> tuple[int, GPTConfig]:
    """The same of the first bytes of a model file. Raises ValueError for impossible sizes."""
    version, maxT, V, L, NH, C, _, window, untied, pattern = struct.unpack_from("<9i128s", header, 4)
    if version not in (OWN_VERSION, OUTER_VERSION, ADAPTER_VERSION):
        untied, pattern = 0, b""
    return version, GPTConfig(
        V, maxT, L, NH, C, window, untied, pattern.partition(b"\0")[0].decode("latin-1")
    )


# ---------------------------------------------------------------------------------------------------------
# the sections of a checkpoint


def read_section(lib: Any, path: Source, tag: bytes) -> bytes:
    """The bytes of a section of a checkpoint; empty if it has no such section."""
    from pyllmc.engine.weightfile import WeightFile

    return WeightFile(lib, path).section(tag)


def section(source: Source, tag: bytes) -> bytes:
    """The text that a run or a checkpoint carries under a tag; empty for other kinds of source, too."""
    from pyllmc.engine import _ffi

    path = checkpoint_of(source)
    return read_section(_ffi.load(), path, tag) if path else b""


def verify(path: Source) -> None:
    """Raise BadFile unless the checksum that ends a checkpoint is that of all bytes before it. Loading weights does this, too."""
    left, crc = os.path.getsize(path) - CHECKSUM, 0
    with open(path, "rb") as file:
        while block := file.read(max(0, min(left, 1 << 20))):
            crc, left = zlib.crc32(block, crc), left - len(block)
        expected = int.from_bytes(file.read()[-4:], "little")
    if crc != expected:
        raise BadFile(
            f"{os.fspath(path)} is damaged: expected checksum {expected:08x}, found {crc:08x}; use another copy or an "
            "earlier checkpoint"
        )


def read_tokenizer(path: Source) -> Tokenizer:
    """The tokenizer inside a checkpoint. Raises DataError if there is none."""
    from pyllmc.engine import _ffi

    data = read_section(_ffi.load(), path, TOKENIZER)
    if not data:
        raise DataError(f"{path} carries no tokenizer: it was trained on data without one")
    verify(path)
    return Tokenizer.from_bytes(data, os.fspath(path))


# ---------------------------------------------------------------------------------------------------------
# the training of a checkpoint


def lines_of(text: str) -> dict[str, str]:
    """The name=value lines of a text as a dict: a checkpoint's state and options, a run's config.txt."""
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line and line[0] != "#")


def recorded(source: Source) -> tuple[dict[str, str], dict[str, str]]:
    """The options and the state that a run or a checkpoint carries; both are empty for anything else."""
    from pyllmc.engine import _ffi
    from pyllmc.engine.weightfile import WeightFile

    path = checkpoint_of(source)
    if not path:
        return {}, {}
    file = WeightFile(_ffi.load(), path)
    given, state = (lines_of(file.section(tag).decode("utf-8", "replace")) for tag in (OPTIONS, STATE))
    return (given, state) if given else ({}, {})


def template_of(source: Source, asked: str = "auto") -> template.Template | None:
    """The template that turns of a model are written with: its run's, or that of template.txt beside it; None: prompts are taken
    literally. Raises DataError."""
    if asked == "auto":
        asked = lines_of(section(source, OPTIONS).decode("utf-8", "replace")).get("template", asked)
    if asked == "auto":
        asked = template.beside(source) or asked
    return template.meant(asked)


def training(source: Source) -> dict[str, Any]:
    """The state and options of a run or a checkpoint, its data's meta.json, its loss and its scores; {} for anything else."""
    given, state = recorded(source)
    if not given:
        return {}
    return {
        "state": state,
        "options": given,
        "meta": _meta(given.get("data", "")),
        "loss": _loss(Path(source), state),
        "scores": _scores(find_checkpoint(source)),
    }


def _meta(folder: str) -> dict[str, Any]:
    try:
        found = json.loads(Path(folder, "meta.json").read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError):
        return {}


def checksum_in(path: Source) -> str:
    """The checksum that ends a checkpoint, in hexadecimal digits."""
    with open(path, "rb") as file:
        file.seek(-4, os.SEEK_END)
        return f"{int.from_bytes(file.read(), 'little'):08x}"


def _scores(path: Path) -> list[dict[str, Any]]:
    """What python -m pyllmc.evaluate has found of this very file, from the run's evaluate.json."""
    try:
        scores = read_scores(path.parent)
        own = checksum_in(path) if scores else ""
        return [score for score in scores if score.get("checkpoint") == own]
    except (OSError, DataError):
        return []


def _loss(folder: Path, state: dict[str, str]) -> str:
    """The training loss of the checkpoint's step, from the run's metrics.jsonl; "" if no line tells it."""
    loss = None
    with suppress(SystemFailure):
        for _, line in metrics_lines(folder):
            if isinstance(line, dict) and str(line.get("step")) == state.get("step"):
                loss = line.get("loss", loss)
    return f"{loss:.4f}" if is_number(loss) else ""
