"""Token files of other projects: ids without a header (nanoGPT's train.bin and val.bin), NumPy's .npy, llm.c's; made a data set.

`python -m pyllmc.prepro --input FOLDER` comes here when the folder holds such files and the tokenizer beside them.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator
from typing import Any

from pyllmc.bins import HEADERED, format_for, read_shard
from pyllmc.files import DataError, MalformedFile, need, reading
from pyllmc.foreign_tokenizer import META
from pyllmc.prepro import DEFAULT_VAL_FRACTION, SPLITS, TOKENIZER, Chunk, write_encoded
from pyllmc.raw_tokens import what_holds
from pyllmc.tokenizer import Tokenizer

AT_ONCE = 1 << 20  # ids
ENDINGS = (".bin", ".npy")


def files_of(names: list[str]) -> list[str]:
    """The token files that the arguments of --input are, or that a folder of nothing but these holds; [] for text."""
    if len(names) == 1 and os.path.isdir(names[0]):
        inside = sorted(os.listdir(names[0]))
        return [
            os.path.join(names[0], name)
            for name in inside
            if name.endswith(ENDINGS) and name.startswith(SPLITS)
        ]
    return names if all(name.endswith(ENDINGS) for name in names) else []


def tokenizer_beside(files: list[str]) -> str:
    """What lies beside them: nanoGPT's table of characters, or a tokenizer.bin; else GPT-2's by name."""
    folder = os.path.dirname(files[0])
    return next((path for n in (META, TOKENIZER) if os.path.isfile(path := os.path.join(folder, n))), "gpt2")


def read_ids(path: str) -> Any:
    """A numpy array of ids, mapped."""
    numpy = need("numpy", "reading a token file")
    with reading(path), open(path, "rb") as f:
        head = f.read(1 << 16)
        size = os.fstat(f.fileno()).st_size
    if head.startswith(b"\x93NUMPY"):
        try:
            ids = numpy.load(path, mmap_mode="r", allow_pickle=False)
        except ValueError as e:
            raise MalformedFile(f"{path}: not a readable NumPy array: {e}") from e
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise DataError(f"{path}: one row of whole numbers was expected, not {ids.dtype} {ids.shape}")
        return ids
    headered = int.from_bytes(head[:4], "little") in HEADERED
    if not headered and what_holds(head, size) == "uint16":
        return numpy.memmap(path, dtype="<u2", mode="r")
    return read_shard(path)


def convert(files: list[str], tokenizer: Tokenizer, args: Any) -> dict[str, Any]:
    """Write them as the data set args.out and return its metadata."""
    ids = {path: read_ids(path) for path in files}
    for path, found in ids.items():
        if len(found) and not 0 <= int(found.min()) <= int(found.max()) < tokenizer.vocab_size:
            raise DataError(
                f"{path}: ids from {int(found.min())} to {int(found.max())}, and the tokenizer ({tokenizer.name}) has "
                f"{tokenizer.vocab_size}: name the one they were made with, as in --tokenizer FOLDER/{META}"
            )
    source = ", ".join(map(os.path.basename, files))
    return write_encoded(
        _chunks(ids, args.val_fraction, args.val_tokens, tokenizer),
        args.out, tokenizer, args.shard_tokens, source, args.overwrite, args.val_tokens or 0,
    )  # fmt: skip


def _chunks(
    ids: dict[str, Any], share: float | None, val_tokens: int | None, tokenizer: Tokenizer
) -> Iterator[Chunk]:
    """In pieces: files called val validate, else the end of the others or their first ids."""
    has_val = any(os.path.basename(path).startswith("val") for path in ids)
    share = 0 if has_val and share is None else DEFAULT_VAL_FRACTION if share is None else share
    for path, all_ids in ids.items():
        is_val = has_val and os.path.basename(path).startswith("val")
        cut = len(all_ids) if is_val or val_tokens is not None else len(all_ids) - int(len(all_ids) * share)
        first = "val" if is_val else "train" if val_tokens is None else ""
        for split, part in ((first, all_ids[:cut]), ("val", all_ids[cut:])):
            for at in range(0, len(part), AT_ONCE):
                yield _chunk(split, part[at : at + AT_ONCE], tokenizer, at == 0)


def _chunk(split: str, ids: Any, tokenizer: Tokenizer, begins: bool) -> Chunk:
    """Documents are counted by their EOT, or are one; characters by their first bytes."""
    numpy = need("numpy", "reading a token file")
    lengths = numpy.array([sum(b & 0xC0 != 0x80 for b in piece) for piece in tokenizer.pieces])
    if tokenizer.eot >= 0:
        lengths[tokenizer.eot] = 0
    documents = int((ids == tokenizer.eot).sum()) if tokenizer.eot >= 0 else 0
    typecode = format_for(tokenizer.vocab_size).typecode
    found = array(typecode)
    found.frombytes(numpy.ascontiguousarray(ids).astype(f"u{found.itemsize}").tobytes())
    return Chunk(documents or int(begins), int(lengths[ids].sum()), {split: found})
