"""Token files of other projects, made into a data set: ids without a header (nanoGPT's), NumPy's .npy, llm.c's.

`python -m pyllmc.prepro --input FOLDER` comes here if the folder holds such files with their tokenizer beside them.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator
from typing import Any, BinaryIO

from pyllmc.base.errors import BadFile, DataError, need
from pyllmc.base.files import reading
from pyllmc.text.bins import HEADERED, RAW, UINT16, ShardInfo, format_for, inspect_shard, read_ids
from pyllmc.text.dataset import DEFAULT_VAL_FRACTION, write_encoded
from pyllmc.text.dataset_folder import SPLITS, TOKENIZER, Chunk
from pyllmc.text.foreign_tokenizer import META
from pyllmc.text.raw_tokens import what_holds
from pyllmc.text.tokenizer import Tokenizer

AT_ONCE = 1 << 20  # ids read at a time
ENDINGS = (".bin", ".npy")


def files_of(names: list[str]) -> list[str]:
    """The token files that --input names, directly or by their folder; [] for text."""
    if len(names) == 1 and os.path.isdir(names[0]):
        inside = sorted(os.listdir(names[0]))
        return [
            os.path.join(names[0], name)
            for name in inside
            if name.endswith(ENDINGS) and name.startswith(SPLITS)
        ]
    return names if all(name.endswith(ENDINGS) for name in names) else []


def tokenizer_beside(files: list[str]) -> str:
    """The tokenizer beside the files: nanoGPT's table of characters, or a tokenizer.bin; else "gpt2"."""
    folder = os.path.dirname(files[0])
    return next((path for n in (META, TOKENIZER) if os.path.isfile(path := os.path.join(folder, n))), "gpt2")


def inspect(path: str) -> ShardInfo:
    """The format, number and offset of the ids in a file of any of these projects."""
    with reading(path), open(path, "rb") as f:
        head = f.read(1 << 16)
        size = os.fstat(f.fileno()).st_size
        if head.startswith(b"\x93NUMPY"):
            f.seek(0)
            return _inspect_npy(path, f)
    headered = int.from_bytes(head[:4], "little") in HEADERED
    if not headered and what_holds(head, size) == "uint16":
        return ShardInfo(UINT16, size // 2, 0)
    return inspect_shard(path)


def _inspect_npy(path: str, f: BinaryIO) -> ShardInfo:
    numpy = need("numpy", "reading a token file")
    header = numpy.lib.format
    try:
        read = {(1, 0): header.read_array_header_1_0, (2, 0): header.read_array_header_2_0}
        shape, _, dtype = read[header.read_magic(f)](f)
    except (ValueError, KeyError) as e:
        raise BadFile(f"{path}: not a readable NumPy array: {e}") from e
    if len(shape) != 1 or dtype.kind not in "iu":
        raise DataError(f"{path}: one row of whole numbers was expected, not {dtype} {shape}")
    return ShardInfo(RAW._replace(name=str(dtype), dtype=dtype.str), shape[0], f.tell())


def _blocks(path: str, info: ShardInfo, first: int, end: int) -> Iterator[Any]:
    """Yield the ids from `first` to before `end`, AT_ONCE at a time, because a file may exceed the memory."""
    for at in range(first, end, AT_ONCE):
        yield read_ids(path, info, at, min(AT_ONCE, end - at))


def _check_ids(path: str, info: ShardInfo, tokenizer: Tokenizer) -> None:
    for ids in _blocks(path, info, 0, info.ntok):
        if not 0 <= int(ids.min()) <= int(ids.max()) < tokenizer.vocab_size:
            raise DataError(
                f"{path}: ids from {int(ids.min())} to {int(ids.max())}, and the tokenizer ({tokenizer.name}) has "
                f"{tokenizer.vocab_size}: name the one they were made with, as in --tokenizer FOLDER/{META}"
            )


def convert(files: list[str], tokenizer: Tokenizer, args: Any) -> dict[str, Any]:
    """Write the files as the data set args.out and return its metadata."""
    found = {path: inspect(path) for path in files}
    for path, info in found.items():
        _check_ids(path, info, tokenizer)
    source = ", ".join(map(os.path.basename, files))
    return write_encoded(
        _chunks(found, args.val_fraction, args.val_tokens, tokenizer),
        args.out, tokenizer, args.shard_tokens, source, args.overwrite, args.val_tokens or 0,
    )  # fmt: skip


def _chunks(
    files: dict[str, ShardInfo], share: float | None, val_tokens: int | None, tokenizer: Tokenizer
) -> Iterator[Chunk]:
    """Yield the files in chunks. Files called val are the validation split. Without any, it is the end of each file, or
    the first val_tokens ids."""
    has_val = any(os.path.basename(path).startswith("val") for path in files)
    share = 0 if has_val and share is None else DEFAULT_VAL_FRACTION if share is None else share
    for path, info in files.items():
        n = info.ntok
        is_val = has_val and os.path.basename(path).startswith("val")
        cut = n if is_val or val_tokens is not None else n - int(n * share)
        split = "val" if is_val else "train" if val_tokens is None else ""
        for name, first, end in ((split, 0, cut), ("val", cut, n)):
            for i, ids in enumerate(_blocks(path, info, first, end)):
                yield _chunk(name, ids, tokenizer, i == 0)


def _chunk(split: str, ids: Any, tokenizer: Tokenizer, begins: bool) -> Chunk:
    """A chunk of ids with its counts: a document for each EOT, or one; a character for each first byte."""
    numpy = need("numpy", "reading a token file")
    lengths = numpy.array([sum(b & 0xC0 != 0x80 for b in piece) for piece in tokenizer.pieces])
    if tokenizer.eot >= 0:
        lengths[tokenizer.eot] = 0
    documents = int((ids == tokenizer.eot).sum()) if tokenizer.eot >= 0 else 0
    typecode = format_for(tokenizer.vocab_size).typecode
    found = array(typecode)
    found.frombytes(numpy.ascontiguousarray(ids).astype(f"u{found.itemsize}").tobytes())
    return Chunk(documents or int(begins), int(lengths[ids].sum()), {split: found})
