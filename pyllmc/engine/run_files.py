"""What a run's folder tells beside its checkpoints: metrics.jsonl, and evaluate.json with its scores."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Union

from pyllmc.base.errors import BadFile
from pyllmc.base.files import check_regular, reading

Folder = Union[str, "os.PathLike[str]"]
METRICS = "metrics.jsonl"
SCORES = "evaluate.json"  # pyllmc/evaluate/report.py writes it
LARGEST = 1e30  # a larger number is none that a run writes
# Every score has these fields, of these types.
NEEDED = {"task": str, "metric": str, "protocol": str, "n": int}


def metrics_lines(folder: Folder) -> Iterator[tuple[int, Any]]:
    """The lines of metrics.jsonl, each as its number, from 1, and what it holds; a line cut short by a kill is left out.

    Raises SystemFailure.
    """
    path = Path(folder, METRICS)
    for number, line in enumerate(_bytes_of(path).splitlines(), 1):
        try:
            yield number, json.loads(line)
        except (ValueError, RecursionError):
            continue


def read_scores(folder: Folder) -> list[dict[str, Any]]:
    """The records in evaluate.json; none if there is no such file. Raises SystemFailure; BadFile for a file that is something else."""
    path = Path(folder, SCORES)
    if not os.path.lexists(path):
        return []
    text = _bytes_of(path)
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    scores = found.get("scores") if isinstance(found, dict) else None
    if not isinstance(scores, list) or not all(map(_is_score, scores)):
        raise BadFile(
            f"{path} holds no scores that can be read: mend it, or move it away, so that a new one is begun"
        )
    return scores


def is_number(value: Any) -> bool:
    """True for a finite number of a size that a run writes."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < LARGEST


def _bytes_of(path: Path) -> bytes:
    check_regular(path)  # a pipe or a device may never end
    with reading(str(path)):
        return path.read_bytes()


def _is_score(record: Any) -> bool:
    return isinstance(record, dict) and all(
        isinstance(record.get(name), kind) for name, kind in NEEDED.items()
    )
