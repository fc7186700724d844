"""The texts of a file: text between delimiters, .jsonl, .json, .csv, .tsv, .parquet, all of them also compressed.

Text is UTF-8, unless its byte order mark or --encoding says otherwise. Line ends become "\n" unless they are to be kept.
"""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from pyllmc.base.errors import BadFile, DataError, need
from pyllmc.base.files import reading
from pyllmc.text.characters import How, Source, read_blocks
from pyllmc.text.tokenizer import check_characters

NAMES_SHOWN = 12  # fields in a message at most


class NoField(DataError):
    """A record lacks the field."""


def line_ends(text: str, how: How) -> str:
    """The text with "\\n" at the ends of its lines, unless they are to be kept."""
    return text if how.keep_line_ends or "\r" not in text else text.replace("\r\n", "\n").replace("\r", "\n")


# ---------------------------------------------------------------------------------------------------------
# plain text


def read_txt(source: Source, how: How) -> Iterator[str]:
    """The documents between delimiters, stripped. An empty delimiter gives the whole file as it is."""
    delimiter = line_ends(how.delimiter, how)
    for number, text in enumerate(documents(read_blocks(source, how), delimiter), 1):
        check_characters(text, where=f"{source.name}: document {number}: ")
        yield text


def documents(blocks: Iterable[str], delimiter: str) -> Iterator[str]:
    """The documents of a text that comes in blocks, as read_txt gives them."""
    if not delimiter:
        yield "".join(blocks)
        return
    pending: list[str] = []  # parts of the unfinished document; the last may end within a delimiter
    for block in blocks:
        tail = pending.pop() if pending else ""
        *whole, rest = (tail + block).split(delimiter)
        for document in whole:
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
    """The value of a field, named by one name or by several with dots between; ABSENT if there is none."""
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
        if isinstance(value, list) and value and isinstance(value[0], dict):
            yield from _names(value[0], f"{before}{name}.0.")
        elif isinstance(value, dict) and value:
            yield from _names(value, f"{before}{name}.")
        else:
            yield before + str(name)


def _text(where: str, record: Any, how: How) -> str | None:
    """The text of a record; None if it is null. Raises NoField, DataError."""
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
    """JSON's word for the type of a value."""
    kinds = {bool: "true or false", dict: "an object", list: "a list", str: "text", type(None): "null"}
    return kinds.get(type(value), "a number" if isinstance(value, (int, float)) else type(value).__name__)


def _texts(records: Iterable[tuple[str, Any]], how: How) -> Iterator[str]:
    """The texts of pairs (where, record). --skip_null also leaves out records without the field, if others have it."""
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
        yield line_ends(text, how)
    if absent and not found:
        raise absent


def read_jsonl(source: Source, how: How) -> Iterator[str]:
    """The text in the field --field of each line."""
    return _texts(_json_lines(source, how), how)


def _json_lines(source: Source, how: How) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(read_lines(source, how), 1):
        if line.strip():
            try:
                record = _parsed(line)
            except (ValueError, RecursionError) as e:
                why = f"{e.msg} (column {e.colno})" if isinstance(e, json.JSONDecodeError) else e
                remedy = "mend or remove that line"
                if number == 1 and line.lstrip()[0] in "[{" and line.strip()[-1] in "[{":
                    remedy = "is it one JSON text of many lines? Then --format json reads it"
                raise BadFile(f"{source.name}:{number}: not a JSON line: {why}: {remedy}") from e
            if isinstance(record, list):
                what = "a prompt and an answer" if how.pairs else f"a field {how.field!r}"
                wanted = f"an object with {what} was expected, not a list"
                remedy = "give --format json if the file is one list of records"
                raise DataError(f"{source.name}:{number}: {wanted}: {remedy}")
            yield f"{source.name}:{number}", record


def _parsed(text: str) -> Any:
    """Parse JSON with numbers of any length. Python refuses whole ones of over 4,300 digits, so these become floats."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except ValueError:
        return json.loads(text, parse_int=float)


def read_json(source: Source, how: How) -> Iterator[str]:
    """The texts of an array of records or texts, of a record, of an object with one list of records, or of JSON lines."""
    return _texts(_json_records(source, how), how)


def _json_records(source: Source, how: How) -> Iterator[tuple[str, Any]]:
    text = "".join(read_blocks(source, how))
    if not text.strip():
        return
    try:
        whole = _parsed(text)
    except json.JSONDecodeError as e:
        if e.msg == "Extra data":  # several values in a row: JSON lines
            yield from _json_lines(source, how)
            return
        raise BadFile(f"{source.name}:{e.lineno}: not JSON: {e.msg} (column {e.colno}): mend it there") from e
    except (ValueError, RecursionError) as e:
        raise BadFile(f"{source.name}: not JSON: {e}") from e
    records = whole if isinstance(whole, list) else [whole]
    is_talk = (
        how.pairs and isinstance(whole, dict) and not whole.keys().isdisjoint(("messages", "conversations"))
    )
    if isinstance(whole, dict) and not is_talk and _value(whole, how.field) is ABSENT:
        lists = [value for value in whole.values() if isinstance(value, list)]
        records = lists[0] if len(lists) == 1 else records
    yield from ((f"{source.name}: record {i}", r) for i, r in enumerate(records, 1))


def read_csv(source: Source, how: How) -> Iterator[str]:
    """The texts in the column --field. The first line names the columns, unless --field is a number, from 0 on."""
    return _texts(_rows(source, how), how)


def _rows(source: Source, how: How) -> Iterator[tuple[str, Any]]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    lines = (line + "\n" for line in read_lines(source, how))
    blank = 0  # the number of blank lines before the first row
    while not (head := next(lines, "x")).strip():
        blank += 1
    said = EXCELS_SEPARATOR.fullmatch(head)
    comma = said[1] if said else _separator(source, head)
    rows = csv.reader(lines if said else _chain(head, lines), delimiter=comma, strict=True)
    above = blank + (said is not None)  # the number of lines that rows.line_num does not count
    names: list[str] = []
    begun = 0
    try:
        for row in rows:
            if not names:
                names = _columns(row, how)
            if row and row is not names:
                row += [None] * (len(names) - len(row))  # type: ignore[list-item]
                yield f"{source.name}:{above + rows.line_num}", dict(zip(names, row))
            begun = rows.line_num
    except csv.Error as e:
        raise BadFile(f"{source.name}:{above + begun + 1}: {_why_no_row(source, e)}") from e
    if names and how.field not in names and not how.pairs:  # there was no row that could raise NoField
        shown = ", ".join(names[:NAMES_SHOWN])
        raise NoField(f"{source.name}: no column {how.field!r} (it has {shown}): name it with --field")


EXCELS_SEPARATOR = re.compile(r'"?sep=([^"\n])"?\n', re.I)


def _separator(source: Source, head: str) -> str:
    """The separator that the first line has most often outside quotes; for .tsv always a tab."""
    bare = re.sub(r'"[^"]*"', "", head)
    return "\t" if source.kind == ".tsv" else max(",;\t|", key=bare.count)


def _columns(row: list[str], how: How) -> list[str]:
    """The names of the columns: the first row; or numbers, if --field is a number that the first row does not hold."""
    has_no_names = how.field.isdecimal() and how.field not in row
    return list(map(str, range(len(row)))) if has_no_names else row


def _why_no_row(source: Source, error: csv.Error) -> str:
    why = "a quote that this row opens is never closed" if "end of data" in str(error) else str(error)
    return f"not a row of {source.kind}: {why}: mend it (within quotes, a quote is written twice)"


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
            if root not in names and not how.pairs:
                shown = ", ".join(names[:NAMES_SHOWN])
                raise NoField(
                    f"{source.name}: no column {how.field!r} (it has {shown}): name it with --field"
                )
            for batch in f.iter_batches(columns=None if how.pairs else [root], batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield (
                        f"{source.name}: row {number}",
                        {name: _of_bytes(value) for name, value in row.items()},
                    )
    except UnicodeDecodeError as e:
        where = f"{source.name}: row {number}: byte {e.start} of the text"
        raise BadFile(f"{where} is no UTF-8: write the file again as UTF-8") from e
    except pyarrow.ArrowException as e:
        raise BadFile(f"{source.name}: not a readable parquet file: {str(e).splitlines()[0]}") from e


def _of_bytes(value: Any) -> Any:
    """Decode bytes, because a column of bytes is text whose type was not declared."""
    return value.decode() if isinstance(value, bytes) else value


def read_ipynb(source: Source, how: How) -> Iterator[str]:
    """A notebook as one document: its cells of text and code, with a blank line between. Their output is left out."""
    text = "".join(read_blocks(source, how))
    try:
        cells = _parsed(text)["cells"] if text.strip() else []
        sources = ["".join(cell.get("source") or "").strip() for cell in cells]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as e:
        remedy = "give --format txt to read it as it is"
        raise BadFile(f"{source.name}: not a notebook with cells: {remedy}") from e
    joined = "\n\n".join(filter(None, sources))
    check_characters(joined, where=f"{source.name}: ")
    yield line_ends(joined, how)


READERS: dict[str, Callable[[Source, How], Iterator[str]]] = {
    ".txt": read_txt,
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": read_csv,
    ".parquet": read_parquet,
    ".ipynb": read_ipynb,
}

# kind of file -> (where, record) of each record, for those that hold records
RECORDS: dict[str, Callable[[Source, How], Iterator[tuple[str, Any]]]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json_records,
    ".csv": _rows,
    ".tsv": _rows,
    ".parquet": _parquet_rows,
}
