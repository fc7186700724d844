"""What is known of a model besides its weights: the tokenizer that belongs to it, and how it was trained."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from pyllmc import _ffi, foreign_tokenizer
from pyllmc.arguments import read_section
from pyllmc.bpe import GPT2_VOCAB, NANOGPT_VOCAB
from pyllmc.checks import as_path
from pyllmc.convert.engine import is_bundle
from pyllmc.convert.to_bin import MAGIC
from pyllmc.files import DataError, FileFailure, MissingDependency, find_checkpoint
from pyllmc.options import options
from pyllmc.tokenizer import Tokenizer
from pyllmc.tokenizer_command import open_tokenizer
from pyllmc.vocabularies import FILES, gpt2

HIDDEN = (
    "data",
    "val_data",
    "tokenizer",
    "out",
    "resume",
    "config",
    "overwrite",
    "plan",
    "threads",
    "log_every",
    "keep",
)  # of here only
ROUNDED = (1, 8, 16, 32, 64, 128)  # a vocabulary is padded to a multiple of


def checkpoint_of(source: str | os.PathLike[str]) -> Path | None:
    """The file of weights in llm.c's format that `source` names, if it does."""
    try:
        path = find_checkpoint(source)
        with open(path, "rb") as file:
            return path if file.read(4) == MAGIC.to_bytes(4, "little") else None
    except (DataError, OSError):
        return None


def sections(source: str | os.PathLike[str]) -> dict[str, bytes]:
    """The texts that a checkpoint carries: OPTIONS, STATE, TOKENIZR; none of another kind of source."""
    path = checkpoint_of(source)
    if path is None:
        return {}
    tags = ("OPTIONS ", "STATE   ", "TOKENIZR")
    lib = _ffi.load()
    return {tag.strip(): read_section(lib, _ffi.encoded(path), tag.encode()) for tag in tags}


# ---------------------------------------------------------------------------------------------------------
# the tokenizer


def find_tokenizer(source: str | os.PathLike[str], V: int, choice: str = "") -> tuple[Tokenizer | None, str]:
    """The tokenizer of a model with V ids, and where it comes from, in a few words.

    choice: "" looks for it; "none"; or whatever `named` takes. Raises DataError where it is of another number of ids,
    but for the padding of a vocabulary, and for a checkpoint's own, with which it was trained.
    """
    if not choice and (carried := sections(source).get("TOKENIZR")):
        found: Tokenizer | None = Tokenizer.from_bytes(carried, os.fspath(source))
        where, fits = "of the checkpoint", found.vocab_size <= V  # type: ignore[union-attr]
    else:
        found, where = named(choice) if choice else _look(Path(source), V)
        fits = not found or is_for(found, V)
    if found and not fits:
        raise DataError(
            f"the tokenizer {where} has {found.vocab_size} ids, the model {V}: name its own with --tokenizer, "
            "or --tokenizer=none"
        )
    return found, where


def is_for(tokenizer: Tokenizer, V: int) -> bool:
    """Whether V ids are its own, or these rounded up, as vocabularies are padded."""
    return V in {-(-tokenizer.vocab_size // multiple) * multiple for multiple in ROUNDED}


def named(choice: str) -> tuple[Tokenizer | None, str]:
    """By name, or of a file, a checkpoint, or the folder of a run, of data or of an export."""
    choice = as_path("tokenizer", choice)
    if choice in ("none", "gpt2") and not os.path.exists(choice):
        return (None, "none was wanted") if choice == "none" else (gpt2(), "GPT-2's")
    if os.path.isdir(choice) and not any(Path(choice, name).exists() for name in FILES):
        found, where = of_hugging_face(Path(choice))
        if where:
            return found, where
    return open_tokenizer(choice), f"of {choice}"


def tokenizer_beside(source: str | os.PathLike[str], V: int) -> bytes:
    """The tokenizer.bin of what lies in the folder of some weights, if it can be read and fits a model of V ids."""
    with suppress(DataError):
        found, _ = _beside(Path(source), V)
        if found and is_for(found, V):
            return found.to_bytes()
    return b""


def why_none_beside(source: str | os.PathLike[str], V: int) -> str:
    """Why tokenizer_beside finds none, where one is there that cannot be read; else ""."""
    try:
        found, where = _beside(Path(source), V)
    except DataError as error:
        return str(error)
    return "" if found else where


def _beside(source: Path, V: int) -> tuple[Tokenizer | None, str]:
    folder = source if source.is_dir() else source.parent
    for name in FILES if source.exists() or is_bundle(source) else ():
        found = Tokenizer.load(folder / name) if (folder / name).exists() else None
        if found and (source.is_dir() or found.vocab_size == V):  # beside a file may lie another's
            return found, f"of {folder / name}"
    return of_hugging_face(source) if source.is_dir() else (None, "")


def _look(source: Path, V: int) -> tuple[Tokenizer | None, str]:
    found, where = _beside(source, V)
    if where:
        return found, where
    if V not in (GPT2_VOCAB, NANOGPT_VOCAB):
        return None, f"{source} has none"
    try:
        return gpt2(), f"GPT-2's, as {V} ids suggest"
    except (MissingDependency, FileFailure) as error:
        return None, str(error)


def of_hugging_face(folder: Path) -> tuple[Tokenizer | None, str]:
    """Of a folder's vocab.json and merges.txt, or tokenizer.json; of nanoGPT's meta.pkl. ("" : there is none of these.)"""
    path = foreign_tokenizer.file_in(os.fspath(folder))
    if path is None:
        return None, ""
    try:
        return foreign_tokenizer.load(path), f"of {path}"
    except DataError as error:
        return None, f"{folder} has one that cannot be read: {error}"


# ---------------------------------------------------------------------------------------------------------
# how it was trained


def lines_of(data: bytes) -> dict[str, str]:
    """name=value lines as a dict."""
    return dict(
        line.split("=", 1)
        for line in data.decode("utf-8", "replace").splitlines()
        if "=" in line and line[0] != "#"
    )


def training(source: str | os.PathLike[str]) -> dict[str, Any]:
    """Of a run or a checkpoint: state, options and the data's meta.json; {} of anything else."""
    found = sections(source)
    state, given = lines_of(found.get("STATE", b"")), lines_of(found.get("OPTIONS", b""))
    if not given:
        return {}
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


def changed(given: dict[str, str]) -> dict[str, str]:
    """The options that are not as by default, but for those that say nothing to others (paths of this machine)."""
    kept = {}
    for name, option in options().items():
        value = given.get(name, "")
        if name in HIDDEN or not value or "/" in value or option.read(value) == option.default:
            continue
        kept[name] = f"{float(value):g}" if option.type == "FLOAT" else value
    return kept
