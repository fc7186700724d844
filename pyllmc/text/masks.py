"""Loss masks: which tokens of a token file are learnt. The format is in csrc/data/mask.h, which reads it in C.

The mask of NAME lies beside it as NAME.mask. Training ignores, in the loss, each target whose bit is 0.
"""

from __future__ import annotations

import bisect
import os
import struct
import zlib
from array import array
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from pyllmc.base.errors import BadFile, need
from pyllmc.base.files import flush_to_disk, reading, writing

if TYPE_CHECKING:
    import numpy as np

ENDING = ".mask"
MAGIC, VERSION = 20261130, 1
HEADER = struct.Struct("<iiqII8x")  # magic, version, tokens, crc of the token file, crc of the bits
DIGITS = bytes([48, 49]) + bytes(254)  # 0 and 1 as digits


class Marked(str):
    """A text in parts, of which only some are learnt. Each part is encoded alone, so that no token lies in two."""

    parts: tuple[tuple[str, bool], ...] = ()

    @classmethod
    def of(cls, parts: Iterable[Iterable[Any]]) -> Marked:
        """parts: pairs (text, whether it is learnt)."""
        found = tuple((str(text), bool(learn)) for text, learn in parts)
        marked = cls("".join(text for text, _ in found))
        marked.parts = found
        return marked


class MaskWriter:
    """The mask of a token file that is being written: a byte of 0 or 1 for each token, in any number of pieces.

    learnt: how many are learnt so far, without the first token, which nothing predicts.
    """

    def __init__(self) -> None:
        self.ntok = self.learnt = 0
        self._bits, self._rest = bytearray(), b""

    def append(self, learnt: bytes | bytearray) -> None:
        self.learnt += learnt.count(1, not self.ntok)
        self.ntok += len(learnt)
        flags = self._rest + learnt
        whole = len(flags) // 8 * 8
        self._bits += _packed(flags[:whole])
        self._rest = flags[whole:]

    def write(self, path: str, tokens: str, shown: str) -> None:
        """Write the mask of the token file `tokens`, which is complete, to `path`; errors call it `shown`."""
        bits = self._bits + _packed(self._rest + bytes(-len(self._rest) % 8))
        head = HEADER.pack(MAGIC, VERSION, self.ntok, crc_of(tokens), zlib.crc32(bits))
        with writing(shown), open(path, "wb") as f:
            f.write(head + bits)
            flush_to_disk(f)


def _packed(flags: bytes) -> bytes:
    """The bits of flags, whose number is a multiple of 8. The first flag is the lowest bit of the first byte."""
    return int(b"0" + flags[::-1].translate(DIGITS), 2).to_bytes(len(flags) // 8, "little")


def crc_of(path: str) -> int:
    """zlib's checksum of a file."""
    crc = 0
    with reading(path), open(path, "rb") as f:
        while block := f.read(1 << 20):
            crc = zlib.crc32(block, crc)
    return crc


def read_mask(tokens: str | os.PathLike[str], ntok: int) -> np.ndarray[Any, Any] | None:
    """Tell which of the ntok tokens of a token file are learnt: bool (ntok); None if it has no mask. Raises BadFile."""
    path = os.fspath(tokens) + ENDING
    if not os.path.lexists(path):
        return None
    numpy = need("numpy", "reading a loss mask")
    with reading(path), open(path, "rb") as f:
        data = f.read()
    if len(data) < HEADER.size:
        raise BadFile(f"{path} is truncated: it has {len(data)} bytes; write it again")
    magic, version, count, of_tokens, of_bits = HEADER.unpack_from(data)
    bits = data[HEADER.size :]
    expected = (MAGIC, VERSION, ntok, crc_of(os.fspath(tokens)), (ntok + 7) // 8, zlib.crc32(bits))
    if (magic, version, count, of_tokens, len(bits), of_bits) != expected:
        raise BadFile(f"{path} is not the loss mask of {os.fspath(tokens)}: write it again")
    found = numpy.frombuffer(bits, "u1")
    return numpy.unpackbits(found, count=ntok, bitorder="little").astype(bool)  # type: ignore[no-any-return]


def document_starts(
    ids: np.ndarray[Any, Any] | range, T: int, eot: int = -1, pack: bool = False
) -> array[int]:
    """The starts of the windows of a shard with a mask, and its last token: windows_part in csrc/data/windows.h."""
    numpy = need("numpy", "finding documents")
    documents, end = numpy.flatnonzero(ids == eot).tolist() if eot >= 0 else [], len(ids) - 1
    starts, s, k = array("q"), 0, 0
    while s < end:
        starts.append(s)
        k = bisect.bisect_right(documents, s, k)
        found = documents[k : bisect.bisect_right(documents, s + T, k)]  # those that begin in (s, s + T]
        if pack and found:
            s = end if end - s <= T else found[-1]
        else:
            s = min(s + T, end, *found[:1])
    starts.append(end)
    return starts


def masked_window(ids: Any, learnt: Any, start: int, end: int, T: int) -> tuple[Any, Any]:
    """(inputs, targets), int32 (T) each, of the window with the targets (start, end]. -1: not learnt, or padding.

    ids: those of the file from `start` on, T + 1 or as many as there are; learnt: the mask of the whole file.
    """
    numpy = need("numpy", "loading batches")
    inputs, targets = numpy.full(T, ids[0], "int32"), numpy.full(T, -1, "int32")
    inputs[: len(ids[:T])] = ids[:T]
    n = end - start
    targets[:n] = numpy.where(learnt[start + 1 : end + 1], ids[1 : n + 1].astype("int32"), -1)
    return inputs, targets
