"""The files of texts that --input names: the kind of each file, the texts in a folder, and the refusal of other data."""

from __future__ import annotations

import codecs
import os
import stat
import sys
import tempfile
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO

from pyllmc.base.errors import DataError, SystemFailure, counted
from pyllmc.base.files import OPEN_PIPES, reading, writing
from pyllmc.text.characters import BLOCK, BYTE_ORDER_MARKS, COMPRESSED, Source, opened
from pyllmc.text.readers import READERS

STDIN = "-"
COMPRESSIONS = (".gz", ".bz2", ".xz", ".lzma", ".zst", ".zstd")
FORMATS = tuple(kind[1:] for kind in READERS)
HEAD = 1 << 16  # the first bytes, which tell text from other data
SHOWN = 3  # names in a message at most
MAGICS = {
    b"%PDF": "a PDF",
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
    b"PK\x03\x04": "a zip archive, as .docx, .epub and .npz are",
    b"\x93NUMPY": "a NumPy array",
    b"\x80\x02}": "a pickle",
    b"\x80\x03}": "a pickle",
    b"\x80\x04\x95": "a pickle",
    b"SQLite format 3": "a data base",
    b"\x7fELF": "a program",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"Rar!\x1a\x07": "a RAR archive",
    b"\x04\x22\x4d\x18": "an LZ4 file",
    **dict.fromkeys(COMPRESSED, "compressed twice"),
}
TAR, TAR_AT = b"ustar", 257
BARE = ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be")  # encodings that may lack a byte order mark


def find(inputs: Iterable[str], kind: str, encoding: str, warn: Callable[[str], None]) -> list[Source]:
    """The files named, and the files below the folders named, by name. kind: for all of them; "": each name decides.

    Raises DataError for a file that cannot be text, now rather than after an hour.
    """
    found: list[Source] = []
    for name in inputs:
        if os.path.isdir(name):
            found += _of_folder(name, kind, encoding, warn)
            continue
        source = _named(name, kind)
        problem = why_no_text(source, encoding)
        if problem:
            raise DataError(f"{source.name} {problem}")
        found.append(source)
    return found


def suffix_of(path: str) -> str:
    """The ending that names a file's kind; an ending that names a compression is taken off first."""
    path = without_compression(path)
    return os.path.splitext(path)[1].lower()


def without_compression(path: str) -> str:
    stem, end = os.path.splitext(path)
    return stem if end.lower() in COMPRESSIONS else path


def _kind(path: str) -> str:
    return suffix if (suffix := suffix_of(path)) in READERS else ".txt"


def _named(name: str, kind: str) -> Source:
    if name == STDIN:
        if sys.stdin is None or sys.stdin.closed:
            raise DataError("standard input is closed: name a file")
        return Source(_kept(sys.stdin.buffer, "standard input"), "standard input", kind or ".txt")
    with reading(name):
        mode = os.stat(name).st_mode
    if name.startswith(OPEN_PIPES) and not stat.S_ISREG(mode):
        with reading(name), open(name, "rb") as f:
            return Source(_kept(f, name), name, kind or ".txt")
    if not stat.S_ISREG(mode):
        raise DataError(f"{name} is not a regular file: pipe its content into --input -, or copy it into one")
    return Source(name, name, kind or _kind(name))


_copies: list[Any] = []  # copies of inputs that can be read only once; they vanish with the process


def _kept(f: BinaryIO, name: str) -> str:
    """Copy an input that can be read only once. Return the path of the copy."""
    copy = tempfile.NamedTemporaryFile(prefix="pyllmc-")
    _copies.append(copy)
    if f.isatty():
        print("type or paste the text, then Ctrl-D", file=sys.stderr)
    while True:
        with reading(name):
            block = f.read(BLOCK)
        if not block:
            break
        with writing(tempfile.gettempdir()):
            copy.write(block)
    with writing(tempfile.gettempdir()):
        copy.flush()
    return copy.name


# ---------------------------------------------------------------------------------------------------------
# folders


def _of_folder(folder: str, kind: str, encoding: str, warn: Callable[[str], None]) -> list[Source]:
    found, other = [], []
    for path in sorted(_below(folder), key=os.fsencode):
        source = Source(path, path, kind or _kind(path))
        is_known = suffix_of(path) in READERS
        if os.path.lexists(path) and not os.path.isfile(path) and not os.path.islink(path):
            other.append(path)
        elif why_no_text(source, encoding, whole=not is_known):
            other.append(path)
        else:
            found.append(source)
    if other:
        names = ", ".join(os.path.relpath(path, folder) for path in other[:SHOWN])
        more = f" and {len(other) - SHOWN} more" if other[SHOWN:] else ""
        left_out = f"{counted(len(other), 'file')} that {'are' if other[1:] else 'is'} no text: {names}{more}"
        if not found:
            raise DataError(f"{folder} holds no text, only {left_out}")
        warn(f"{folder}: left out {left_out}")
    if not found:
        raise DataError(f"{folder} holds no text: name a folder or a file with some")
    return found


def _below(folder: str) -> Iterator[str]:
    def refuse(error: OSError) -> None:
        raise SystemFailure(
            f"cannot read {error.filename}: {error.strerror}; check the path and its permissions"
        ) from error

    for directory, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (os.path.join(directory, name) for name in names if not name.startswith("."))


# ---------------------------------------------------------------------------------------------------------
# is it text?


def why_no_text(source: Source, encoding: str, whole: bool = False) -> str:
    """The reason why a file cannot be read as text; "" if it can, judged by its beginning.

    whole: characters that are no UTF-8 are such a reason, too, and not a fault to be reported.
    """
    with opened(source) as f:
        if source.kind == ".parquet":
            return ""
        head = f.read(HEAD)
    if encoding or head.startswith(tuple(BYTE_ORDER_MARKS)):
        return ""
    for magic, what in MAGICS.items():
        if head.startswith(magic):
            return f"is {what}, no text: make a text file of it first"
    if head[TAR_AT:].startswith(TAR):
        return "is a tar archive, no text: unpack it, and name the folder"
    if found := _bare(head):
        what = found[: len("utf-xx")].upper()
        return f"looks like {what} without a byte order mark: say so with --encoding {found}"
    if b"\0" in head and suffix_of(source.name) not in READERS:
        return f"is no text: byte {head.index(0)} is zero"
    if whole:
        try:
            codecs.getincrementaldecoder("utf-8")().decode(head, final=len(head) < HEAD)
        except UnicodeDecodeError as e:
            return f"is no text: byte {e.start} is no UTF-8"
    return ""


def _bare(head: bytes) -> str:
    """The UTF-16 or UTF-32 in which bytes full of control characters make sense as text; "" if there is none."""
    if _controls(head.decode("latin-1")) * 20 <= len(head):
        return ""
    texts = {codec: codecs.getincrementaldecoder(codec)("replace").decode(head) for codec in BARE}
    likely = [codec for codec, text in texts.items() if _makes_sense(text)]
    return min(likely, key=lambda codec: len({ord(c) >> 8 for c in texts[codec]}), default="")


def _makes_sense(text: str) -> bool:
    odd = _controls(text) + sum(c == "\ufffd" or unicodedata.category(c) in ("Cn", "Co") for c in text)
    is_spaced = any(c in " \n\u3000\u3001\u3002" for c in text)
    is_latin = sum(c.isascii() for c in text) * 3 > len(text) * 2
    return odd * 50 <= len(text) and (is_spaced or is_latin)


def _controls(text: str) -> int:
    return sum(c < " " and c not in "\t\n\r\f\x1b" for c in text)
