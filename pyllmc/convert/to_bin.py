"""Writes llm.c's model file: version 3 (fp32) or 5 (bf16), the vocabulary padded with rows of zeros.

Header of 256 int32: magic, version, maxT, V, L, NH, C, Vp, and in [8] the window, which is ours and 0 in llm.c's own.
Then follows every parameter in the order of csrc/tensors.def. In version 3 a tokenizer.bin may come behind them, where llm.c
no longer reads, as in pyllmc's checkpoints: {char tag[8]; int64 size; payload} TOKENIZR, then CRC32 of all bytes before it.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Mapping
from typing import BinaryIO

import numpy as np

from pyllmc.base import live
from pyllmc.base.errors import DataError
from pyllmc.base.files import flush_to_disk
from pyllmc.convert.dtypes import narrow
from pyllmc.convert.sayable import instead
from pyllmc.tables.layout import GPTConfig, parameters
from pyllmc.text.bins import HEADER_BYTES, pack_header
from pyllmc.text.bins import MODEL_MAGIC as MAGIC

VERSIONS = {"fp32": 3, "bf16": 5}  # versions that this module writes


def check_bin(config: GPTConfig, tensors: Mapping[str, np.ndarray] | None = None) -> None:
    """Raises DataError if llm.c's file has no room for this model. tensors: None if it is still to be trained."""
    if config.untied:
        raise DataError(
            "this model has an lm_head of its own, and llm.c's file has room for the embedding only: "
            f"{instead(config, tensors)}"
        )
    if not config.alternates:
        raise DataError(
            f"{config.bands} see the last {config.window} positions, and llm.c's file can say that of odd layers only: "
            f"{instead(config, tensors)}"
        )


def padded_bytes(x: np.ndarray, rows: int = 0, dtype: str = "fp32") -> bytes:
    """A tensor's elements, little-endian, with rows of zeros added up to `rows`."""
    data = narrow(x, dtype)
    missing = max(rows - len(data), 0) if rows else 0
    return data.tobytes() + bytes(missing * data[:1].nbytes)


def section(tag: bytes, data: bytes) -> bytes:
    return tag.ljust(8) + struct.pack("<q", len(data)) + data


class Summed:
    """A file that is written from its beginning, with zlib's CRC32 of what was written."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.crc = file, 0

    def write(self, data: bytes) -> None:
        self.crc = zlib.crc32(data, self.crc)
        self.file.write(data)


def write_bin(
    path: str | os.PathLike[str],
    config: GPTConfig,
    tensors: Mapping[str, np.ndarray],
    dtype: str = "fp32",
    tokenizer: bytes = b"",
) -> None:
    """Writes `path` in place. The caller makes that atomic, and explains an OSError.

    tokenizer: a tokenizer.bin, for fp32 only. Raises DataError as check_bin does.
    """
    check_bin(config, tensors)
    c = config
    sizes = (c.max_seq_len, c.vocab_size, c.n_layer, c.n_head, c.n_embd, c.padded_vocab_size, c.window)
    with open(path, "wb") as file:
        out = Summed(file)
        out.write(pack_header(MAGIC, VERSIONS[dtype], *sizes))
        for row, layer in live.each(list(parameters(config)), "writing: tensor"):
            out.write(padded_bytes(tensors[row.torch_name_of(layer)], row.shape[0], dtype))
        if tokenizer:
            out.write(section(b"TOKENIZR", tokenizer))
            out.write(section(b"CRC32", struct.pack("<I", out.crc)))
        flush_to_disk(file)


def size_of(config: GPTConfig, version: int) -> int:
    """The size in bytes of a file of that version, one of VERSIONS; raises KeyError for others."""
    width = {3: 4, 5: 2}[version]
    return HEADER_BYTES + width * sum(row.size for row, _ in parameters(config))
