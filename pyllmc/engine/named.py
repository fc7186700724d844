"""A tokenizer opened by its name: a file, a checkpoint, the folder of a run or of data, or a fixed one (byte, gpt2)."""

from __future__ import annotations

import os

from pyllmc.base.errors import SystemFailure
from pyllmc.base.files import check_regular, reading
from pyllmc.engine.checkpoint import RUN, find_checkpoint, is_model_file, read_tokenizer
from pyllmc.text import foreign_tokenizer
from pyllmc.text.tokenizer import Tokenizer
from pyllmc.text.vocabularies import FILES, FIXED, train


def open_tokenizer(source: str) -> Tokenizer:
    """Open the tokenizer of a file, a checkpoint, a run's or data set's folder, or a name. Raises DataError or LlmcError."""
    if source in FIXED and not os.path.exists(source):
        return train(source)
    if os.path.isdir(source):
        source = file_in(source)
    check_regular(source)
    with reading(source), open(source, "rb") as f:
        head = f.read(64)
    if is_model_file(head):
        return read_tokenizer(source)
    if foreign_tokenizer.is_foreign(source, head):
        return foreign_tokenizer.load(source)
    return Tokenizer.load(source)


def file_in(folder: str) -> str:
    """The file in a folder that holds its tokenizer. Raises SystemFailure if there is none."""
    inside = [path for name in FILES if os.path.exists(path := os.path.join(folder, name))]
    if inside or any(os.path.exists(os.path.join(folder, name)) for name in RUN):
        return inside[0] if inside else os.fspath(find_checkpoint(folder))
    found = foreign_tokenizer.file_in(folder)
    if not found:
        names = ", ".join((*FILES, *RUN, *foreign_tokenizer.NAMES))
        raise SystemFailure(f"{folder} holds none of {names}: name the tokenizer's file")
    return found
