"""The characters of a file: unpacked, whatever its name is, and decoded. A damaged file is an error, not a shorter text."""

from __future__ import annotations

import bz2
import codecs
import gzip
import importlib
import io
import lzma
import re
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple

from pyllmc.base.errors import BadFile, need
from pyllmc.base.files import reading
from pyllmc.text.bpe import EOT_PIECE

BLOCK = 1 << 20
AT_ONCE = 1 << 12  # bytes of .zst at a time, because each may stand for thousands
ERRORS = (gzip.BadGzipFile, EOFError, zlib.error, lzma.LZMAError)


class Source(NamedTuple):
    """A file of texts."""

    path: str  # the path to open
    name: str  # the name in messages
    kind: str  # a key of READERS


@dataclass
class How:
    """The options of reading, and the number of records left out (skipped)."""

    delimiter: str = EOT_PIECE.decode()
    field: str = "text"
    skip_null: bool = False
    encoding: str = ""  # "": UTF-8, unless a byte order mark says another
    keep_line_ends: bool = False
    skipped: int = 0
    pairs: bool = False  # records are read whole, because they hold prompts and answers


# ---------------------------------------------------------------------------------------------------------
# compressed files


class Zstd(io.RawIOBase):
    """The frames of a .zst. The package's stream_reader is not used, because it takes a cut-off file for a whole one."""

    def __init__(self, f: BinaryIO):
        self._decompressor = need("zstandard", "reading .zst").ZstdDecompressor()
        self._file, self._frame = f, None
        self._packed = self._ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            self._packed = self._packed or self._file.read(AT_ONCE)
            if not self._packed:
                if self._frame:
                    raise EOFError("it ends within a frame")
                return 0
            self._step()
        n = min(len(buffer), len(self._ready))
        buffer[:n], self._ready = self._ready[:n], self._ready[n:]
        return n

    def _step(self) -> None:
        frame: Any = self._frame or self._decompressor.decompressobj()
        self._ready, self._frame = frame.decompress(self._packed), frame
        self._packed = b""
        if frame.eof:
            self._packed, self._frame = frame.unused_data, None


def _open_zstd(f: BinaryIO) -> Any:
    if sys.version_info >= (3, 14):
        return importlib.import_module("compression.zstd").ZstdFile(f)  # Python's own
    return io.BufferedReader(Zstd(f))


COMPRESSED: dict[bytes, Callable[[BinaryIO], Any]] = {
    b"\x1f\x8b": lambda f: gzip.GzipFile(fileobj=f),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\x00": lzma.LZMAFile,
    b"]\x00\x00": lzma.LZMAFile,  # .lzma, the older form of .xz
    b"\x28\xb5\x2f\xfd": _open_zstd,
}


def unpacking(f: BinaryIO, head: bytes) -> Any:
    """A file that unpacks `f`, whatever its name says; `f` itself if `head` does not begin a compressed file."""
    opener = next((o for magic, o in COMPRESSED.items() if head.startswith(magic)), None)
    return opener(f) if opener else f


@contextmanager
def explain_damage(name: str) -> Iterator[None]:
    """Turn an error of unpacking inside into a BadFile of one line."""
    try:
        yield
    except Exception as e:
        if isinstance(e, ERRORS) or type(e).__name__ == "ZstdError":  # both packages for .zst call it so
            raise BadFile(f"{name}: the compressed file is damaged ({e}): fetch it again") from e
        raise


# ---------------------------------------------------------------------------------------------------------
# bytes and characters


BYTE_ORDER_MARKS = {  # the longer ones first
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
SURROGATE = re.compile(rb"\xed[\xa0-\xbf][\x80-\xbf]")


@contextmanager
def opened(source: Source) -> Iterator[Any]:
    """Open a file, and unpack it if it is compressed, whatever its name. Raises SystemFailure, BadFile."""
    with reading(source.name), open(source.path, "rb") as f:
        head = f.read(8)
        f.seek(0)
        with explain_damage(source.name):
            yield unpacking(f, head)


def codec_of(head: bytes, encoding: str) -> str:
    return next(
        (codec for mark, codec in BYTE_ORDER_MARKS.items() if head.startswith(mark)), encoding or "utf-8"
    )


def read_blocks(source: Source, how: How) -> Iterator[str]:
    """Yield the characters of a file in blocks, without a byte order mark. Raises BadFile."""
    with opened(source) as f:
        data, size, lines = f.read(BLOCK), 0, 1
        codec = codec_of(data, how.encoding)
        inner = codecs.getincrementaldecoder(codec)()
        decoder = io.IncrementalNewlineDecoder(inner, translate=not how.keep_line_ends)
        while True:
            size += len(data)
            try:
                block = decoder.decode(data, final=not data)
            except UnicodeDecodeError as e:
                chosen = codec == (how.encoding or "utf-8")
                raise BadFile(_undecodable(source.name, size, lines, codec, chosen, e)) from e
            except UnicodeError as e:  # utf-16 or utf-32 without a mark, or an unknown encoding
                remedy = "name the one that the file has, as in --encoding utf-16-le or cp1252"
                raise BadFile(f"{source.name}: {codec} does not read it ({e}): {remedy}") from e
            if block:
                lines += block.count("\n")
                yield block
            if not data:
                return
            data = f.read(BLOCK)


def _undecodable(name: str, size: int, line: int, codec: str, chosen: bool, error: UnicodeDecodeError) -> str:
    byte, there = size - len(error.object) + error.start, error.object[error.start : error.start + 3]
    codec = "UTF-8" if codec == "utf-8-sig" else codec.upper()
    if codec == "UTF-8" and SURROGATE.match(there):
        line += error.object.count(b"\n", 0, error.start)
        half = there.decode("utf-8", "surrogatepass")
        return (
            f"{name}:{line}: byte {byte} begins a lone surrogate (\\u{ord(half):04x}), which no UTF-8 can write: "
            "remove it or put the whole character there"
        )
    place = f"{name}: byte {byte} is no {codec}"
    if not chosen:
        return f"{place}, which its byte order mark says it is: mend that place, or fetch the file again"
    return f"{place}: name the encoding that the file has, as in --encoding cp1252 or latin-1"
