"""Where the data of the tasks comes from: a file in its published format, or a data set of the Hugging Face hub."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Union

from pyllmc.base import live
from pyllmc.base.errors import BadFile, DataError, MissingDependency, SystemFailure, need
from pyllmc.text.characters import Source, opened

Folder = Union[str, "os.PathLike[str]", None]
MOST_SHOWN = 100  # characters of another library's error
CONVERTED = (
    "hf://datasets/{}@refs/convert/parquet/{}/{}/*.parquet"  # the hub's own copy of what a script once made
)


@dataclass(frozen=True)
class Part:
    """The test part of a data set, or the part that examples are drawn from.

    files: its names in the published archives, with their folder where the name alone says too little; any of them will do. form:
    what such a file holds. hub, config, split: its names there. scripted: the hub keeps a script, which is not run, and a
    converted copy, which is read.
    """

    files: tuple[str, ...]
    form: str
    hub: str
    config: str | None = None
    split: str = "test"
    scripted: bool = False

    def wanted(self) -> str:
        return f"{' or '.join(self.files)} ({self.form})"


def locate(part: Part, folder: str | os.PathLike[str], task: str) -> Path:
    """The file of a part: `folder` itself if that is a file, else what lies in it or at most two folders below.

    Raises SystemFailure, which says what to put where.
    """
    root = Path(folder)
    if root.is_file():
        return root
    for name in part.files:
        *above, file = name.split("/")
        near = [root / file] if above in ([], [root.resolve().name]) else []
        found = [path for path in [*near, *_below(root, name)] if path.is_file()]
        if found:
            return found[0]
    where = f"{root} is no folder" if not root.is_dir() else f"nothing of it lies in {root}"
    raise SystemFailure(f"{task}: {where}: put {part.wanted()} there")


def _below(root: Path, name: str) -> list[Path]:
    return [path for depth in ("", "*/", "*/*/") for path in sorted(root.glob(depth + name))]


# In what follows, own is True for a user's own file, which nobody has published.


def read_bytes(path: Path, own: bool = False) -> bytes:
    """The bytes of a file, unpacked if it is compressed. Raises BadFile, SystemFailure."""
    with opened(Source(str(path), str(path), "txt")) as f:
        data: bytes = f.read()
    if data.startswith(b"PK\x03\x04"):
        raise BadFile(f"{path} is a zip archive: unzip it, and name the file in it")
    if not data.strip():
        raise BadFile(f"{path} is empty: {'name another file' if own else 'fetch it again'}")
    return data


def decoded(data: bytes, path: Path, own: bool = False) -> str:
    try:
        return data.decode("utf-8-sig")  # a byte order mark is no text
    except UnicodeDecodeError as error:
        published = "" if own else ", which the published file is: fetch it again, or"
        raise BadFile(
            f"{path}: byte {error.start} is no UTF-8{published or ':'} rewrite it with iconv -t UTF-8"
        ) from None


def read_lines(path: Path, own: bool = False) -> list[str]:
    """The lines of a text file, without their ends. Raises BadFile, SystemFailure."""
    lines = decoded(read_bytes(path, own), path, own).replace("\r\n", "\n").split("\n")
    return lines if lines[-1] else lines[:-1]


def read_json_lines(path: Path, fields: tuple[str, ...], own: bool = False) -> Iterator[dict[str, Any]]:
    """The objects of a file that has one on each line, each with those fields. Raises BadFile, SystemFailure."""
    remedy = "write one object on each line" if own else "is the file cut short? Fetch it again"
    for number, line in enumerate(read_lines(path, own), 1):
        if line.strip():
            try:
                record = json.loads(line)
            except ValueError:
                raise BadFile(f"{path}:{number}: not a JSON line: {remedy}") from None
            yield checked(record, fields, f"{path}:{number}", own)


def checked(record: Any, fields: tuple[str, ...], where: str, own: bool = False) -> dict[str, Any]:
    """A record that has those fields. Raises BadFile."""
    lacking = [name for name in fields if not isinstance(record, dict) or name not in record]
    if lacking:
        remedy = f"each line has {', '.join(fields)}" if own else "is this the file of another data set?"
        raise BadFile(f"{where}: no field {lacking[0]!r}: {remedy}")
    return dict(record)


def read_hub(part: Part, task: str, fields: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """The rows of a part, through `datasets`, which keeps what it has fetched. Raises DataError, MissingDependency."""
    remedy = f"put {part.wanted()} into a folder and name that with --data"
    try:
        datasets = need("datasets", f"{task}: fetching {part.hub}")
    except MissingDependency as error:
        raise MissingDependency(f"{error}; or {remedy}") from error
    # Fetching may take long, so it is told before.
    live.tell(f"{task}: reading {part.hub}, which is fetched from the hub once")
    logging.disable(logging.WARNING)  # each attempt to reach the hub would be told
    try:
        if part.scripted:
            files = CONVERTED.format(part.hub, part.config, part.split)
            rows = datasets.load_dataset("parquet", data_files=files, split="train")
        else:
            rows = datasets.load_dataset(part.hub, part.config, split=part.split)
    except Exception as error:  # datasets and what it calls raise errors of many kinds
        why = f"{type(error).__name__}: {' '.join(str(error).split())}"[:MOST_SHOWN]
        raise DataError(f"{task}: {part.hub} cannot be fetched ({why}): {remedy}") from error
    finally:
        logging.disable(logging.NOTSET)
    for number, row in enumerate(rows, 1):
        yield checked(row, fields, f"{part.hub}, row {number}")
