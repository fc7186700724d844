"""The tokenizer that belongs to some weights, wherever it lies."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from pyllmc.base.checks import as_path
from pyllmc.base.errors import DataError, MissingDependency, SystemFailure
from pyllmc.base.files import check_regular
from pyllmc.convert import peft_adapter
from pyllmc.convert.native import is_bundle
from pyllmc.engine import checkpoint
from pyllmc.engine.named import open_tokenizer
from pyllmc.text import foreign_tokenizer
from pyllmc.text.bpe import GPT2_VOCAB, NANOGPT_VOCAB
from pyllmc.text.tokenizer import Tokenizer
from pyllmc.text.vocabularies import FILES, gpt2

ROUNDED = (
    1,
    2,
    4,
    8,
    16,
    32,
    64,
    128,
)  # a vocabulary is padded to a multiple of one of these, as csrc/train/sizes.c says


def find_tokenizer(source: str | os.PathLike[str], V: int, choice: str = "") -> tuple[Tokenizer | None, str]:
    """Finds the tokenizer of a model with V ids; says where it comes from, in a few words.

    choice: "" looks for it; "none"; or any choice that `named` takes. Raises DataError if its number of ids is not V, not
    even with a vocabulary's padding. A checkpoint's own may have fewer, because the model was trained with it.
    """
    if not choice and (carried := checkpoint.section(source, checkpoint.TOKENIZER)):
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
    """True if V is the tokenizer's number of ids, or that number rounded up, as vocabularies are padded."""
    return V in {-(-tokenizer.vocab_size // multiple) * multiple for multiple in ROUNDED}


def named(choice: str) -> tuple[Tokenizer | None, str]:
    """Opens a tokenizer by its name, or from a file, a checkpoint, or the folder of a run, of data or of an export."""
    choice = as_path("tokenizer", choice)
    if choice in ("none", "gpt2") and not os.path.exists(choice):
        return (None, "none was wanted") if choice == "none" else (gpt2(), "GPT-2's")
    if os.path.isdir(choice) and not any(Path(choice, name).exists() for name in FILES):
        found, where = of_hugging_face(Path(choice))
        if where:
            return found, where
    return open_tokenizer(choice), f"of {choice}"


def tokenizer_beside(source: str | os.PathLike[str], V: int) -> bytes:
    """The tokenizer.bin of the tokenizer beside some weights, if it can be read and fits a model of V ids; else b""."""
    with suppress(DataError):
        found, _ = _beside(Path(source), V)
        if found and is_for(found, V):
            return found.to_bytes()
    return b""


def why_none_beside(source: str | os.PathLike[str], V: int) -> str:
    """Says why tokenizer_beside finds none if one is there but cannot be read; else ""."""
    try:
        found, where = _beside(Path(source), V)
    except DataError as error:
        return str(error)
    return "" if found else where


def _beside(source: Path, V: int) -> tuple[Tokenizer | None, str]:
    folder = source if source.is_dir() else source.parent
    for name in FILES if source.exists() or is_bundle(source) else ():
        check_regular(folder / name)
        found = Tokenizer.load(folder / name) if (folder / name).exists() else None
        if found and (source.is_dir() or found.vocab_size == V):  # another model's may lie beside a file
            return found, f"of {folder / name}"
    if not source.is_dir():
        return None, ""
    found, where = of_hugging_face(source)
    is_adapter = not where and (source / peft_adapter.CONFIG).exists()
    return _of_base(source, V) if is_adapter else (found, where)


def _of_base(adapter: Path, V: int) -> tuple[Tokenizer | None, str]:
    """The tokenizer of the model that a folder of PEFT's adapters belongs to."""
    base = peft_adapter.place_of_base(adapter)
    if carried := checkpoint.section(base, checkpoint.TOKENIZER):
        return Tokenizer.from_bytes(carried, os.fspath(base)), f"of {base}"
    return _beside(base, V)


def _look(source: Path, V: int) -> tuple[Tokenizer | None, str]:
    found, where = _beside(source, V)
    if where:
        return found, where
    if V not in (GPT2_VOCAB, NANOGPT_VOCAB):
        return None, f"{source} has none"
    try:
        return gpt2(), f"GPT-2's, as {V} ids suggest"
    except (MissingDependency, SystemFailure) as error:
        return None, str(error)


def of_hugging_face(folder: Path) -> tuple[Tokenizer | None, str]:
    """Opens a folder's vocab.json with merges.txt, tokenizer.json or nanoGPT's meta.pkl; (None, "") if it has none."""
    path = foreign_tokenizer.file_in(os.fspath(folder))
    if path is None:
        return None, ""
    try:
        return foreign_tokenizer.load(path), f"of {path}"
    except DataError as error:
        return None, f"{folder} has one that cannot be read: {error}"
