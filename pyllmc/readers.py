"""From a file to its texts: text between delimiters, .jsonl, .json, .csv, .tsv, .parquet, all of them also compressed.

Text is UTF-8, or what its byte order mark or --encoding says. Ends of lines become "\n" unless they are to be kept.
"""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import json
import lzma
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple

from pyllmc.bpe import EOT_PIECE
from pyllmc.files import DataError, MalformedFile, need, reading
from pyllmc.tokenizer import check_characters

BLOCK = 1 << 20
NAMES_SHOWN = 12  # fields in a message


class Source(NamedTuple):
    """A file of texts."""

    path: str  # what is opened
    name: str  # what messages call it
    kind: str  # a key of READERS


@dataclass
class How:
    """The options of reading, and how many records were left out."""

    delimiter: str = EOT_PIECE.decode()
    field: str = "text"
    skip_null: bool = False
    encoding: str = ""  # "": UTF-8, unless a byte order mark says another
    keep_line_ends: bool = False
    skipped: int = 0


class NoField(DataError):
    """A record without the field."""


# ---------------------------------------------------------------------------------------------------------
# bytes and characters


def _open_zstd(f: BinaryIO) -> Any:
    if sys.version_info >= (3, 14):
        from compression import zstd

        return zstd.ZstdFile(f)
    return need("zstandard", "reading .zst").ZstdDecompressor().stream_reader(f, read_across_frames=True)


COMPRESSED: dict[bytes, Callable[[BinaryIO], Any]] = {
    b"\x1f\x8b": lambda f: gzip.GzipFile(fileobj=f),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\x00": lzma.LZMAFile,
    b"\x28\xb5\x2f\xfd": _open_zstd,
}
BYTE_ORDER_MARKS = {  # the longer ones first
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


@contextmanager
def opened(source: Source) -> Iterator[Any]:
    """The file, and what is inside if it is compressed, whatever its name. Raises FileFailure, MalformedFile."""
    with reading(source.name), open(source.path, "rb") as f:
        head = f.read(8)
        f.seek(0)
        opener = next((o for magic, o in COMPRESSED.items() if head.startswith(magic)), None)
        try:
            yield opener(f) if opener else f
        except (gzip.BadGzipFile, EOFError, zlib.error, lzma.LZMAError) as e:
            raise MalformedFile(f"{source.name}: the compressed file is damaged ({e}): fetch it again") from e
        except Exception as e:
            if type(e).__name__ == "ZstdError":  # both packages call it so
                raise MalformedFile(
                    f"{source.name}: the compressed file is damaged ({e}): fetch it again"
                ) from e
            raise


def codec_of(head: bytes, encoding: str) -> str:
    return next(
        (codec for mark, codec in BYTE_ORDER_MARKS.items() if head.startswith(mark)), encoding or "utf-8"
    )


def read_blocks(source: Source, how: How) -> Iterator[str]:
    """The characters, a block at a time, without a byte order mark. Raises MalformedFile."""
    with opened(source) as f:
        data, size = f.read(BLOCK), 0
        codec = codec_of(data, how.encoding)
        inner = codecs.getincrementaldecoder(codec)()
        decoder = io.IncrementalNewlineDecoder(inner, translate=not how.keep_line_ends)
        while True:
            size += len(data)
            try:
                block = decoder.decode(data, final=not data)
            except UnicodeDecodeError as e:
                raise MalformedFile(_undecodable(source.name, size, codec, e)) from e
            if block:
                yield block
            if not data:
                return
            data = f.read(BLOCK)


def _undecodable(name: str, size: int, codec: str, error: UnicodeDecodeError) -> str:
    codec = "UTF-8" if codec == "utf-8-sig" else codec.upper()
    place = f"{name}: byte {size - len(error.object) + error.start} is no {codec}"
    return f"{place}: name the encoding that the file has, as in --encoding cp1252 or latin-1"


def _line_ends(text: str, how: How) -> str:
    return text if how.keep_line_ends or "\r" not in text else text.replace("\r\n", "\n").replace("\r", "\n")


# ---------------------------------------------------------------------------------------------------------
# plain text


def read_txt(source: Source, how: How) -> Iterator[str]:
    """Documents between delimiters, stripped; the whole file as it is when the delimiter is empty."""
    for number, text in enumerate(_documents(source, how), 1):
        check_characters(text, where=f"{source.name}: document {number}: ")
        yield text


def _documents(source: Source, how: How) -> Iterator[str]:
    delimiter = _line_ends(how.delimiter, how)
    if not delimiter:
        yield "".join(read_blocks(source, how))
        return
    pending: list[str] = []  # parts of the document that goes on; the last may end within a delimiter
    for block in read_blocks(source, how):
        tail = pending.pop() if pending else ""
        *documents, rest = (tail + block).split(delimiter)
        for document in documents:
            pending.append(document)
            yield "".join(pending).strip()
            pending = []
        keep = max(0, len(rest) - len(delimiter) + 1)
        pending += [rest[:keep], rest[keep:]]
    yield "".join(pending).strip()


def read_lines(source: Source, how: How) -> Iterator[str]:
    pending: list[str] = []
    for block in read_blocks(source, how):
        *lines, rest = block.split("\n")
        for line in lines:
            pending.append(line)
            yield "".join(pending)
            pending = []
        pending.append(rest)
    yield "".join(pending)


# ---------------------------------------------------------------------------------------------------------
# records

ABSENT = object()


def _value(record: Any, field: str) -> Any:
    """What a record has under a name, or under names with dots between; ABSENT if nothing."""
    if isinstance(record, dict) and field in record:
        return record[field]
    for part in field.split("."):
        if isinstance(record, dict) and part in record:
            record = record[part]
        elif isinstance(record, list) and part.isdecimal() and int(part) < len(record):
            record = record[int(part)]
        else:
            return None if record is None else ABSENT
    return record


def _names(record: dict[str, Any], before: str = "") -> Iterator[str]:
    for name, value in record.items():
        if isinstance(value, dict) and value:
            yield from _names(value, f"{before}{name}.")
        else:
            yield before + str(name)


def _text(where: str, record: Any, how: How) -> str | None:
    """The text of a record; None is null. Raises NoField, DataError."""
    if isinstance(record, str):
        return record
    if not isinstance(record, dict):
        raise DataError(f"{where}: an object with a field {how.field!r} was expected, not {_kind(record)}")
    value = _value(record, how.field)
    if value is ABSENT:
        names = list(_names(record))
        shown = ", ".join(names[:NAMES_SHOWN]) + (", ..." if names[NAMES_SHOWN:] else "")
        raise NoField(f"{where}: no field {how.field!r} (it has {shown or 'none'}): name it with --field")
    if value is None and not how.skip_null:
        raise DataError(f"{where}: field {how.field!r} is null: leave such records out with --skip_null")
    if value is not None and not isinstance(value, str):
        remedy = "name the field of the text with --field"
        raise DataError(f"{where}: field {how.field!r} is {_kind(value)}, not text: {remedy}")
    return value


def _kind(value: Any) -> str:
    """What JSON calls it."""
    kinds = {bool: "true or false", dict: "an object", list: "a list", str: "text", type(None): "null"}
    return kinds.get(type(value), "a number")


def _texts(records: Iterable[tuple[str, Any]], how: How) -> Iterator[str]:
    """Of (where, record). With --skip_null one without the field is left out, too, if others have it."""
    absent, found = None, False
    for where, record in records:
        try:
            text = _text(where, record, how)
            found = True
        except NoField as e:
            if not how.skip_null:
                raise
            absent, text = absent or e, None
        if text is None:
            how.skipped += 1
            continue
        check_characters(text, f"field {how.field!r}", f"{where}: ")
        yield _line_ends(text, how)
    if absent and not found:
        raise absent


def read_jsonl(source: Source, how: How) -> Iterator[str]:
    """The text in --field of each line."""
    return _texts(_json_lines(source, how), how)


def _json_lines(source: Source, how: How) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(read_lines(source, how), 1):
        if line.strip():
            try:
                yield f"{source.name}:{number}", json.loads(line)
            except (ValueError, RecursionError) as e:
                raise MalformedFile(f"{source.name}:{number}: not a JSON line: {e}") from e


def read_json(source: Source, how: How) -> Iterator[str]:
    """Of an array of records or texts; one record; an object whose only list is one of records; or JSON lines."""
    try:
        whole = json.loads("".join(read_blocks(source, how)))
    except json.JSONDecodeError as e:
        if e.msg == "Extra data":  # values that follow each other
            yield from read_jsonl(source, how)
            return
        raise MalformedFile(f"{source.name}:{e.lineno}: not JSON: {e.msg} (column {e.colno})") from e
    except (ValueError, RecursionError) as e:
        raise MalformedFile(f"{source.name}: not JSON: {e}") from e
    records = whole if isinstance(whole, list) else [whole]
    if isinstance(whole, dict) and _value(whole, how.field) is ABSENT:
        lists = [value for value in whole.values() if isinstance(value, list)]
        records = lists[0] if len(lists) == 1 else records
    yield from _texts(((f"{source.name}: record {i}", r) for i, r in enumerate(records, 1)), how)


def read_csv(source: Source, how: How) -> Iterator[str]:
    """The texts in the column --field. The first line names the columns."""
    return _texts(_rows(source, how), how)


def _rows(source: Source, how: How) -> Iterator[tuple[str, Any]]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    lines = (line + "\n" for line in read_lines(source, how))
    head = next(lines, "")
    comma = "\t" if source.kind == ".tsv" else max(",;\t", key=head.count)
    rows = csv.reader(_chain(head, lines), delimiter=comma, strict=True)
    names: list[str] = []
    try:
        for row in rows:
            if not names:
                names = row
            elif row:
                row += [None] * (len(names) - len(row))  # type: ignore[list-item]
                yield f"{source.name}:{rows.line_num}", dict(zip(names, row))
    except csv.Error as e:
        raise MalformedFile(f"{source.name}:{rows.line_num}: not a line of {source.kind}: {e}") from e
    if names and how.field not in names:  # and no row said so
        shown = ", ".join(names[:NAMES_SHOWN])
        raise NoField(f"{source.name}: no column {how.field!r} (it has {shown}): name it with --field")


def _chain(first: str, rest: Iterable[str]) -> Iterator[str]:
    yield first
    yield from rest


def read_parquet(source: Source, how: How) -> Iterator[str]:
    """The texts in the column --field, a batch of rows at a time."""
    return _texts(_parquet_rows(source, how), how)


def _parquet_rows(source: Source, how: How) -> Iterator[tuple[str, Any]]:
    parquet = need("pyarrow.parquet", "reading .parquet", "pyarrow")
    pyarrow = need("pyarrow", "reading .parquet")
    number = 0
    try:
        with reading(source.name), parquet.ParquetFile(source.path) as f:
            names = f.schema_arrow.names
            root = how.field if how.field in names else how.field.split(".")[0]
            if root not in names:
                shown = ", ".join(names[:NAMES_SHOWN])
                raise NoField(
                    f"{source.name}: no column {how.field!r} (it has {shown}): name it with --field"
                )
            for batch in f.iter_batches(columns=[root], batch_size=1024):
                for value in batch.column(0):
                    number += 1
                    yield f"{source.name}: row {number}", {root: value.as_py()}
    except UnicodeDecodeError as e:
        raise MalformedFile(f"{source.name}: row {number}: {e}: write the file again as UTF-8") from e
    except pyarrow.ArrowException as e:
        raise MalformedFile(f"{source.name}: not a readable parquet file: {str(e).splitlines()[0]}") from e


READERS: dict[str, Callable[[Source, How], Iterator[str]]] = {
    ".txt": read_txt,
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": read_csv,
    ".parquet": read_parquet,
}
