"""Results that are kept while an evaluation runs, so that one which is interrupted goes on where it stood."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Union

import numpy as np

from pyllmc.base.locks import open_locked
from pyllmc.engine import _ffi
from pyllmc.engine.checkpoint import is_run
from pyllmc.evaluate.items import Choice, Rolling, Word
from pyllmc.evaluate.scorer import Scorer
from pyllmc.model import Model

ENDING = ".part.jsonl"
Item = Union[Rolling, Choice, Word]


def checksum_of(model: Model) -> int:
    """The CRC-32 of all weights, whatever file they came from."""
    crc = 0
    for name in model.params:
        crc = zlib.crc32(np.ascontiguousarray(model.params[name]).data, crc)
    return crc


def arrays_of(item: Item) -> Iterator[np.ndarray]:
    """All numbers of an item that its result depends on."""
    if isinstance(item, Rolling):
        yield from (item.ids, np.array([item.stride, item.window or 0, item.first]))
    elif isinstance(item, Word):
        yield from (item.context, item.target, item.banned if item.banned is not None else item.target[:0])
    else:
        yield from (item.context, *item.choices)


def digest_of(items: Sequence[Item]) -> str:
    """A checksum of all that is asked."""
    digest = hashlib.sha256()
    for item in items:
        for array in arrays_of(item):
            digest.update(len(array).to_bytes(8, "little") + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def precision_of(model: Model) -> str:
    """The number format that the model computes in."""
    return "bf16" if model._arena.room.precision == model._lib.LLMC_BF16 else "fp32"


def key_of(model: Model, checksum: int, digest: str) -> str:
    """A name for items of this digest, asked of this model: the same only if every result must be the same to the last bit, which
    depends on the device and the instruction set, too."""
    kernels = f"{_ffi.text(model._lib.llmc_backend())} {model.isa} {precision_of(model)}"
    return hashlib.sha256(f"{checksum} {kernels} {model.config} {digest}".encode()).hexdigest()[:16]


def place_for(source: str) -> Path:
    """Where results are kept for a model: in its run's folder; for others in the user's cache ($XDG_CACHE_HOME)."""
    folder = Path(source) if Path(source).is_dir() else Path(source).parent
    if is_run(folder):
        return folder
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "pyllmc", "evaluate")


class Journal:
    """A file of lines, one for each result or part of a stream. A line that was cut off by a crash does not count. Nothing is kept if
    folder is None, or while another process keeps the same, because both would write the same lines; nor where
    nothing can be written, which is told by a RuntimeWarning."""

    def __init__(self, folder: Path | None, name: str) -> None:
        self.known: list[tuple[bytes, Any]] = []  # each line, and what it says
        self._file: BinaryIO | None = None
        self._fails = False
        if not folder:
            return
        self._path = folder / f"evaluate-{name}{ENDING}"
        with self._told_once():
            folder.mkdir(parents=True, exist_ok=True)
            self._file = open_locked(self._path, wait=False)
            if self._file:
                self._file.seek(0)
                self.known = list(_lines(self._file))
                self._file.truncate(sum(len(line) for line, _ in self.known))

    def add(self, result: Any) -> None:
        if self._file and not self._fails:
            with self._told_once():
                self._file.write(json.dumps(result).encode() + b"\n")
                self._file.flush()

    @contextmanager
    def _told_once(self) -> Iterator[None]:
        """Lets the evaluation go on after an error of the system, with the results that are already kept."""
        try:
            yield
        except OSError as error:
            self._fails = True
            why = f"{error.strerror or error}: an evaluation that is interrupted begins there anew"
            # the text is the same for each task, so that Python tells it once
            warnings.warn(
                f"results cannot be kept in {self._path.parent}: {why}", RuntimeWarning, stacklevel=1
            )

    def close(self) -> None:
        """Ends the writing. A file that nothing was written to goes."""
        if self._file and not self._file.closed and os.path.getsize(self._file.fileno()):
            self._release()
        else:
            self.remove()

    def _release(self) -> None:
        if self._file:
            with suppress(OSError):  # a line that could not be written fails again, and is told already
                self._file.close()

    def remove(self) -> None:
        """Ends the writing, and removes the file while it is locked, so that no other process has begun to write to it."""
        if self._file and not self._file.closed:
            with suppress(OSError):
                self._path.unlink()
            self._release()


def _lines(file: BinaryIO) -> Iterator[tuple[bytes, Any]]:
    with suppress(ValueError):
        for line in file:
            if not line.endswith(b"\n"):
                return
            yield line, json.loads(line)


def answers(scorer: Scorer, items: Sequence[Any], journal: Journal) -> Iterator[Any]:
    """The scorer's results of items of one kind, in order: those that the journal knows, then those that it learns."""
    known = [result for _, result in journal.known]
    if isinstance(items[0], Rolling):
        yield from _streams(scorer, items, journal, known)
        return
    rest = items[len(known) :]
    if isinstance(items[0], Choice):
        yield from ([np.array(logs) for logs in result] for result in known)
        for logs in scorer.choices(rest):
            journal.add([list(choice) for choice in logs])
            yield logs
        return
    yield from ((float(log), bool(guessed)) for log, guessed in known)
    for result in scorer.words(rest):
        journal.add(result)
        yield result


def _streams(
    scorer: Scorer, items: Sequence[Any], journal: Journal, known: list[Any]
) -> Iterator[np.ndarray]:
    """Each line of the journal is [number of the item, [log-probabilities of a batch of windows]]."""
    for i, item in enumerate(items):
        parts = [np.array(logs) for number, logs in known if number == i]
        done = sum(map(len, parts))
        if done < len(item.ids) - item.first:
            for part in scorer.rolling_parts(item, skip=done):
                journal.add([i, list(part)])
                parts.append(part)
        yield np.concatenate(parts)
