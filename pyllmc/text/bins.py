"""Token files: their formats, the writer, the strict reader, and the windows a trainer sees.

In Python the formats stand only here, in C only in csrc/data/dataloader.c; a test compares the two. Writing needs
the standard library only, reading needs numpy (imported when first used).

A token file ("shard") is little-endian: a header of 256 int32, then the ids:

    magic     version  ids      used for
    20240520  1        uint16   V <= 65536 (llm.c)
    20240801  7        uint32   V >  65536 (llm.c's Llama-3 files)
    none      -        int32    llm.c's first version: ids from byte 0, no header; read only

header[2] is the number of tokens, and the size of the file must agree with it exactly. It is an int32, so
one shard holds at most 2^31 - 1 tokens. dataset.write_dataset spreads longer streams over several shards.
"""

from __future__ import annotations

import bisect
import glob
import os
import struct
import sys
from array import array
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import accumulate, islice
from typing import TYPE_CHECKING, Any, NamedTuple

from pyllmc.base.errors import BadFile, DataError, SystemFailure, need
from pyllmc.base.files import atomic_path, flush_to_disk, reading, writing
from pyllmc.text.masks import document_starts, masked_window, read_mask
from pyllmc.text.raw_tokens import why_no_int32

if TYPE_CHECKING:
    import numpy as np

HEADER_INTS = 256
HEADER_BYTES = 4 * HEADER_INTS
MAX_SHARD_TOKENS = 2**31 - 1  # header[2] is an int32
MAX_UINT16_VOCAB = 2**16
WRITE_CHUNK = 1 << 16  # ids converted and written at a time


class TokenFormat(NamedTuple):
    name: str
    magic: int
    version: int
    typecode: str  # the type in array.array
    dtype: str  # the type in numpy


UINT16 = TokenFormat("uint16", 20240520, 1, "H", "<u2")
UINT32 = TokenFormat("uint32", 20240801, 7, "I", "<u4")
RAW = TokenFormat("raw int32", 0, 0, "i", "<i4")
HEADERED = {f.magic: f for f in (UINT16, UINT32)}
MODEL_MAGIC, TOKENIZER_MAGIC = 20240326, 20240328
OTHER_MAGICS = {
    MODEL_MAGIC: "model",
    20240327: "debug state",
    TOKENIZER_MAGIC: "tokenizer",
    20240522: "evaluation",
    20240527: "optimizer state",
}


def format_for(vocab_size: int) -> TokenFormat:
    """The format that holds every id of a vocabulary: uint16 unless V > 65536."""
    if vocab_size < 1:
        raise DataError(f"vocab_size is {vocab_size}: it must be at least 1")
    return UINT16 if vocab_size <= MAX_UINT16_VOCAB else UINT32


# ---------------------------------------------------------------------------------------------------------
# headers and files


def pack_header(*values: int) -> bytes:
    """The bytes of a header: 256 int32, little-endian: `values`, then zeros."""
    return struct.pack(f"<{HEADER_INTS}i", *values, *[0] * (HEADER_INTS - len(values)))


def unpack_header(data: bytes) -> tuple[int, ...]:
    return struct.unpack(f"<{HEADER_INTS}i", data)


# ---------------------------------------------------------------------------------------------------------
# writing


class ShardWriter:
    """A writer that appends ids to the token file `path`; errors call it `shown`. Only close() writes the header."""

    def __init__(self, path: str, vocab_size: int, shown: str):
        self.path = shown
        self.vocab_size = vocab_size
        self.format = format_for(vocab_size)
        self.ntok = 0
        with writing(shown):
            self._file = open(path, "wb")
            self._file.write(bytes(HEADER_BYTES))

    def append(self, ids: Iterable[int]) -> None:
        """Write ids, a bounded number at a time. Each must be an int in [0, V)."""
        it = iter(ids)
        while chunk := list(islice(it, WRITE_CHUNK)):
            packed = self._pack(chunk)
            if self.ntok + len(packed) > MAX_SHARD_TOKENS:
                raise DataError(
                    f"{self.path}: a shard holds at most {MAX_SHARD_TOKENS} tokens (its count is an int32): "
                    "write several, as dataset.write_dataset(shard_tokens=...) does"
                )
            with writing(self.path):
                self._file.write(packed)
            self.ntok += len(packed)

    def _pack(self, ids: list[int]) -> array[int]:
        try:
            packed = array(self.format.typecode, ids)
            in_range = max(packed) < self.vocab_size
        except (OverflowError, TypeError):
            in_range = False
        if not in_range:
            self._reject(ids)
        if sys.byteorder == "big":
            packed.byteswap()
        return packed

    def _reject(self, ids: list[int]) -> None:
        for offset, token in enumerate(ids, self.ntok):
            if not hasattr(token, "__index__") or not 0 <= token < self.vocab_size:
                where = f"{self.path}: id {token!r} at token {offset}"
                raise DataError(f"{where} is no int in [0, {self.vocab_size}): use the matching tokenizer")

    def close(self) -> None:
        """Write the header and wait until the file is on the disk."""
        with writing(self.path):
            self._file.seek(0)
            self._file.write(pack_header(self.format.magic, self.format.version, self.ntok))
            flush_to_disk(self._file)
            self._file.close()

    def abandon(self) -> None:
        """Close the file without a header, after an error."""
        with suppress(OSError):
            self._file.close()


def write_shard(path: str | os.PathLike[str], ids: Iterable[int], vocab_size: int) -> int:
    """Write a token file whole or not at all, in bounded memory. Return the number of tokens.

    `ids` is any iterable of ints in [0, vocab_size). Raises DataError for an id outside it, more than
    MAX_SHARD_TOKENS ids, or a place that cannot be written.
    """
    with atomic_path(os.fspath(path)) as tmp:
        writer = ShardWriter(tmp, vocab_size, os.fspath(path))
        try:
            writer.append(ids)
            writer.close()
        finally:
            writer.abandon()
    return writer.ntok


# ---------------------------------------------------------------------------------------------------------
# reading


class ShardInfo(NamedTuple):
    format: TokenFormat
    ntok: int
    offset: int  # byte where the ids start


def inspect_shard(path: str | os.PathLike[str]) -> ShardInfo:
    """The format and length of a token file, checked strictly, without numpy. Raises DataError."""
    path = os.fspath(path)
    with reading(path), open(path, "rb") as f:
        head = f.read(HEADER_BYTES)
        size = os.fstat(f.fileno()).st_size
    if size == 0:
        raise BadFile(f"{path} is empty: a token file was expected; write it again")
    magic = int.from_bytes(head[:4], "little", signed=True)
    if magic in HEADERED:
        return _inspect_headered(path, head, size, HEADERED[magic])
    if magic in OTHER_MAGICS:
        raise BadFile(f"{path} is a {OTHER_MAGICS[magic]} file of llm.c, not a token file: pass the tokens")
    if int.from_bytes(head[:4], "big") in HEADERED:
        raise BadFile(f"{path} is big-endian: token files are little-endian; write it again")
    problem = why_no_int32(
        path, head, size, f"expected magic {UINT16.magic} or {UINT32.magic}, found {magic}"
    )
    if problem:
        raise BadFile(problem)
    return ShardInfo(RAW, size // 4, 0)


def _inspect_headered(path: str, head: bytes, size: int, fmt: TokenFormat) -> ShardInfo:
    again = "write it again"
    if len(head) < HEADER_BYTES:
        raise BadFile(f"{path} is truncated: expected a {HEADER_BYTES}-byte header, found {size}; {again}")
    _, version, ntok = unpack_header(head)[:3]
    if version != fmt.version:
        raise BadFile(f"{path}: expected version {fmt.version}, found {version}; {again}")
    if ntok < 0:
        raise BadFile(f"{path}: the header counts {ntok} tokens; {again}")
    expected = HEADER_BYTES + ntok * array(fmt.typecode).itemsize
    if size != expected:
        state = "is truncated" if size < expected else "has trailing bytes"
        counted = f"{ntok} {fmt.name} tokens"
        raise BadFile(f"{path} {state}: expected {expected} bytes ({counted}), found {size}; {again}")
    return ShardInfo(fmt, ntok, HEADER_BYTES)


def read_shard(path: str | os.PathLike[str]) -> np.ndarray[Any, Any]:
    """The ids of a token file as a numpy array (uint16, uint32 or int32). Raises DataError."""
    return read_ids(path, (info := inspect_shard(path)), 0, info.ntok)


def read_ids(path: str | os.PathLike[str], info: ShardInfo, first: int, count: int) -> np.ndarray[Any, Any]:
    """`count` ids of a token file: read, not mapped, because a mapped file that shrinks kills the process (SIGBUS)."""
    numpy = need("numpy", "reading a token file")
    offset = info.offset + first * numpy.dtype(info.format.dtype).itemsize
    with reading(os.fspath(path)):
        ids = numpy.fromfile(path, dtype=info.format.dtype, count=count, offset=offset)
    if len(ids) < count:
        raise BadFile(f"{path} was changed while it was in use: write it again")
    return ids  # type: ignore[no-any-return]


def shard_order(paths: Iterable[str]) -> list[str]:
    """The paths sorted as bytes, in the order of C's strcmp, whatever the locale."""
    return sorted(paths, key=os.fsencode)


NO_DATA = ": make the data with python -m pyllmc.prepro, or check the path"


def find_shards(data: str | os.PathLike[str], split: str = "train") -> list[str]:
    """The sorted paths of the shards that `data` names: a directory (its SPLIT*.bin), a file, or a glob."""
    data = os.fspath(data)
    if os.path.isdir(data):
        found = glob.glob(os.path.join(glob.escape(data), f"{split}*.bin"))
        if not found:
            raise SystemFailure(f"{data} has no {split}*.bin{_shards_beside(data)}")
        return shard_order(found)
    if data and not os.path.exists(data) and not glob.has_magic(data):
        raise SystemFailure(f"there is no data at {data}{NO_DATA}")
    found = [data] if os.path.exists(data) else [p for p in glob.glob(data) if os.path.isfile(p)]
    if not found:
        raise SystemFailure(f"no token file matches {data}{NO_DATA}")
    return shard_order(found)


def _shards_beside(directory: str) -> str:
    others = shard_order(p for p in os.listdir(directory) if p.endswith(".bin") and p != "tokenizer.bin")
    if not others:
        return NO_DATA
    return f"; it has {', '.join(others[:3])}: name the files with a glob instead"


# ---------------------------------------------------------------------------------------------------------
# the order of windows

MASK64 = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio
FEISTEL_ROUNDS = 4


def mix64(z: int) -> int:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014) on uint64."""
    z &= MASK64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK64
    return z ^ (z >> 31)


def permute(i: int, N: int, seed: int, epoch: int) -> int:
    """The place of index i in [0, N) in the permutation of `epoch`, in O(1) memory and expected time.

    A Feistel network over 2h bits, h >= 1 the smallest with 2^(2h) >= N, keyed by (seed, epoch): rounds
    r = 0..3 do (L, R) <- (R, L ^ (mix64(R + key + r*GOLDEN) mod 2^h)) with i = L*2^h + R and
    key = mix64(seed*GOLDEN + epoch + 1). A value >= N is put through again (cycle walking) until it is
    below N. All sums and products wrap at 2^64.
    """
    if not 0 <= i < N:
        raise DataError(f"index {i} is outside [0, {N})")
    h = max(1, ((N - 1).bit_length() + 1) // 2)
    half = (1 << h) - 1
    key = mix64(seed * GOLDEN + epoch + 1)
    while True:
        L, R = i >> h, i & half
        for r in range(FEISTEL_ROUNDS):
            L, R = R, L ^ (mix64(R + key + r * GOLDEN) & half)
        i = L << h | R
        if i < N:
            return i


def window_starts(ids: np.ndarray[Any, Any] | range, T: int, eot: int = -1) -> Sequence[int]:
    """The starts of a shard's windows of T+1 ids, chosen so that documents are read from their first id.

    The first start is 0. The next after s is the first p with ids[p] == eot and s + T/2 < p <= s + T, or s + T
    if there is none. The last is the last with s + T + 1 <= n. If eot is -1, only len(ids) counts.
    csrc/data/windows.c is the same in C.
    """
    end = max(0, len(ids) - T)  # no window begins here or later
    if eot < 0:
        return range(0, end, T)
    numpy = need("numpy", "finding documents")
    documents, starts, s, k = numpy.flatnonzero(ids == eot).tolist(), array("q"), 0, 0
    while s < end:
        starts.append(s)
        k = bisect.bisect_right(documents, s + T // 2, k)
        s = min(s + T, documents[k]) if k < len(documents) else s + T
    return starts


class Loader:
    """Batches of windows; the reference for the loader in C.

    window_starts cuts a shard into windows. The shards follow each other in sorted order, which gives N windows
    an epoch. `position` (the number of windows consumed by all ranks) is the whole state: window number p of the
    stream is i = p % N of epoch p // N, or permute(i, N, seed, epoch) when shuffled. A batch of rank r takes
    windows position + r*B .. + B-1, then position advances by world*B.
    pack: in shards with a loss mask a window holds as many whole documents as fit, instead of one.
    """

    def __init__(
        self, paths: Sequence[str | os.PathLike[str]], B: int, T: int, shuffle: bool = False, seed: int = 0,
        rank: int = 0, world: int = 1, position: int = 0, vocab_size: int | None = None, eot: int = -1,
        pack: bool = False,
    ):  # fmt: skip
        _check_loader_arguments(B, T, rank, world, position, eot)
        self.paths = shard_order(os.fspath(p) for p in paths)
        self.B, self.T, self.shuffle, self.seed, self.rank, self.world = B, T, shuffle, seed, rank, world
        self.position, self.vocab_size = position, vocab_size
        self._shards = [inspect_shard(p) for p in self.paths]
        self._masks = [read_mask(p, info.ntok) for p, info in zip(self.paths, self._shards)]
        whole = (range(of.ntok) if eot < 0 else read_shard(p) for p, of in zip(self.paths, self._shards))
        self._starts = [
            window_starts(ids, T, eot) if m is None else document_starts(ids, T, eot, pack)
            for ids, m in zip(whole, self._masks)
        ]
        self.masked = any(m is not None for m in self._masks)
        lengths = [len(s) - (m is not None) for s, m in zip(self._starts, self._masks)]
        self._ends = list(accumulate(lengths))  # windows in shards 0..s
        if not self.windows:
            longest = max((info.ntok for info in self._shards), default=0)
            raise DataError(
                f"{', '.join(self.paths[:3]) or 'no shard'}: the longest shard has {longest} tokens, T={T} "
                f"needs {T + 1}: use more data or a smaller T"
            )

    @property
    def windows(self) -> int:
        """N: the number of windows in one epoch."""
        return self._ends[-1] if self._ends else 0

    def next(self) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """The next batch: (inputs, targets), both int32 (B, T). Targets are the inputs one token later; -1: masked."""
        numpy = need("numpy", "loading batches")
        first = self.position + self.rank * self.B
        windows = [self._window(p) for p in range(first, first + self.B)]
        self.position += self.world * self.B
        return numpy.stack([x for x, _ in windows]), numpy.stack([y for _, y in windows])

    def _window(self, p: int) -> tuple[Any, Any]:
        """Window number p of the stream: inputs and targets, int32 (T,) each."""
        epoch, i = divmod(p, self.windows)
        w = permute(i, self.windows, self.seed, epoch) if self.shuffle else i
        s = bisect.bisect_right(self._ends, w)
        i, info, learnt = w - (self._ends[s - 1] if s else 0), self._shards[s], self._masks[s]
        start = self._starts[s][i]
        ids = read_ids(self.paths[s], info, start, min(self.T + 1, info.ntok - start))
        limit = 2**31 if self.vocab_size is None else self.vocab_size
        if ids.max() >= limit or ids.min() < 0:
            self._reject(s, start, ids, limit)
        if learnt is not None:
            return masked_window(ids, learnt, start, self._starts[s][i + 1], self.T)
        return ids[:-1].astype("int32"), ids[1:].astype("int32")

    def _reject(self, s: int, start: int, ids: Any, limit: int) -> None:
        k = int(((ids >= limit) | (ids < 0)).argmax())
        raw = " (read as raw int32: is it a token file?)" if ids.dtype == RAW.dtype else ""
        raise BadFile(
            f"{self.paths[s]}: id {ids[k]} at token {start + k} is outside [0, {limit}){raw}: "
            "the data and the model have different vocabularies"
        )


def _check_loader_arguments(B: int, T: int, rank: int, world: int, position: int, eot: int) -> None:
    if B < 1 or T < 1:
        raise DataError(f"B={B}, T={T}: both must be at least 1")
    if not 0 <= rank < world:
        raise DataError(f"rank {rank} of world {world}: expected 0 <= rank < world")
    if position < 0:
        raise DataError(f"position {position}: it must not be negative")
    if eot < -1:
        raise DataError(f"eot={eot}: expected an id, or -1 to look for no documents")
