"""HellaSwag as llm.c has prepared it: token ids in an eval file (its hellaswag.py; 20240522 is its magic number)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pyllmc.base.errors import BadFile, DataError, InvalidArgument
from pyllmc.evaluate.fetch import Part, read_bytes
from pyllmc.evaluate.items import Choice
from pyllmc.evaluate.task import Records
from pyllmc.evaluate.tasks.hellaswag import CHOICES, HellaSwag
from pyllmc.text.bins import HEADER_BYTES, unpack_header

MAGIC, VERSION, START = 20240522, 1, 65535
# the numbers of an example before its context: START, bytes, index, label, choices, length of the context
HEAD = 6


class HellaSwagBin(HellaSwag):
    """The same protocol as the task hellaswag, on the ids of llm.c's file."""

    name = "hellaswag_bin"
    test = Part(("hellaswag_val.bin",), "llm.c's eval file", "")
    train = None  # type: ignore[assignment]

    def from_hub(self, part: Part) -> Iterable[Any]:
        raise DataError(
            f"{self.name} has no data set on the hub: make {part.files[0]} with llm.c's hellaswag.py, and name it or its "
            "folder with --data"
        )

    def from_file(self, path: Path) -> Iterable[Any]:
        return read_eval_file(path)

    def items(self, records: Records, scorer: Any, shots: int = 0, seed: int = 0) -> list[Choice]:
        if shots:
            raise InvalidArgument(
                f"{self.name} has no training part: leave --shots out, or take the task hellaswag"
            )
        if scorer.tokenizer and scorer.tokenizer.name != "gpt2":
            raise DataError(
                f"{self.name} holds GPT-2's ids, and the tokenizer is {scorer.tokenizer.name}: take the task hellaswag, whose texts "
                "any tokenizer writes"
            )
        return list(records)


def read_eval_file(path: Path) -> Iterator[Choice]:
    """The examples of an eval file. lengths are tokens. Raises BadFile, SystemFailure."""
    data = read_bytes(path)
    header = unpack_header(data[:HEADER_BYTES]) if len(data) >= HEADER_BYTES else [0]
    if header[0] != MAGIC:
        raise BadFile(
            f"{path}: expected magic {MAGIC} of llm.c's eval files, found {header[0]}: name hellaswag_val.bin"
        )
    if header[1] != VERSION:
        raise BadFile(
            f"{path}: expected version {VERSION}, found {header[1]}: make it again with today's llm.c"
        )
    body = data[HEADER_BYTES:]
    stream = np.frombuffer(body[: len(body) // 2 * 2], "<u2")
    at = 0
    for number in range(header[2]):
        example = stream[at : at + int(stream[at + 1]) // 2] if at + HEAD <= len(stream) else stream[:0]
        yield _example(example, f"{path}, example {number + 1} of {header[2]}")
        at += len(example)
    if at < len(stream) or len(body) % 2:
        raise BadFile(
            f"{path}: {len(body) - 2 * at} bytes follow the {header[2]} examples of its header: make it again"
        )


def _example(numbers: np.ndarray, where: str) -> Choice:
    """The question that an example's numbers tell."""
    if len(numbers) < HEAD or numbers[0] != START:
        raise BadFile(f"{where}: it does not begin here: the file is cut short or damaged, make it again")
    _, size, _, label, choices, _ = (int(x) for x in numbers[:HEAD])
    parts: list[np.ndarray] = []
    at = HEAD - 1
    while at < len(numbers) and len(parts) <= choices:
        end = at + 1 + int(numbers[at])
        parts.append(numbers[at + 1 : end].astype(np.int32))
        at = end
    if (
        choices != CHOICES
        or label >= choices
        or len(parts) != choices + 1
        or at != len(numbers)
        or 2 * at != size
    ):
        raise BadFile(f"{where}: its lengths do not agree: the file is cut short or damaged, make it again")
    return Choice(parts[0], parts[1:], label, [float(len(part)) for part in parts[1:]])
