"""What an evaluation says: a table, and the file evaluate.json in a run's folder."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pyllmc.base.files import atomic_path, flush_to_disk, writing
from pyllmc.base.locks import only_one
from pyllmc.base.values import finite
from pyllmc.engine.run_files import SCORES, read_scores

Record = dict[str, Any]
SAME = (
    "weights",
    "step",
    "task",
    "metric",
    "shots",
    "seed",
    "limit",
    "protocol",
    "precision",
    "data",
)  # a later record replaces one with the same
NAMES = {
    "loss": "loss per token",
    "ppl": "perplexity",
    "ppl_word": "perplexity per word",
    "bpb": "bits per byte",
    "bpc": "bits per character",
    "acc": "accuracy",
    "acc_norm": "accuracy, normalised",
}


def figure(metric: str, value: float) -> str:
    """A score as people read it: accuracies in percent, others with four digits."""
    if metric.startswith("acc"):
        return f"{100 * value:.2f} %"
    return f"{value:#.4g}".rstrip(".") if 1e-3 <= abs(value) < 1e5 else f"{value:.3e}"


def with_error(record: Record) -> str:
    """A score and its standard error: 45.99 % ± 0.69."""
    metric, error = record["metric"], record["error"]
    told = figure(metric, record["value"])
    if error is None or not math.isfinite(error):
        return told
    return f"{told} ± {100 * error:.2f}" if metric.startswith("acc") else f"{told} ± {error:.2g}"


def line(step: int, records: Sequence[Record]) -> str:
    """The scores at a step of training: step 20 | lambada acc 12.50 % ± 4.2, ppl 930.1 ± 88."""
    tasks: dict[str, list[str]] = {}
    for record in records:
        tasks.setdefault(record["task"], []).append(f"{record['metric']} {with_error(record)}")
    return " | ".join([f"step {step}", *(f"{task} {', '.join(told)}" for task, told in tasks.items())])


def published(record: Record) -> str:
    """The paper's figures for the same score, by the sizes of its models."""
    return ", ".join(f"{size} {figure(record['metric'], x)}" for size, x in (record["paper"] or {}).items())


def table(records: Sequence[Record], names: dict[str, str]) -> str:
    """All scores: a row for each, a column for each model. names: how the columns are called, by a record's model."""
    rows: dict[tuple[str, str], dict[str, Record]] = {}
    for record in records:
        rows.setdefault((record["task"], record["metric"]), {})[record["model"]] = record
    lines = [["task", "score", "n", *names.values(), "published"]]
    for (task, metric), found in rows.items():
        one = next(iter(found.values()))
        scores = [with_error(found[model]) if model in found else "-" for model in names]
        lines.append([task, NAMES.get(metric, metric), _counts(found, names), *scores, published(one)])
    if not any(line[-1] for line in lines[1:]):
        lines = [line[:-1] for line in lines]
    protocols = dict.fromkeys(f"{record['task']}: {record['protocol']}" for record in records)
    return "\n".join([*_columns(lines), "", *protocols])


def _counts(found: dict[str, Record], names: dict[str, str]) -> str:
    """How many each score is of: one number, or that of each model where they differ, as tokens do."""
    counts = [f"{found[model]['n']:,}" if model in found else "-" for model in names]
    return " / ".join(counts) if len({*counts} - {"-"}) > 1 else next(n for n in counts if n != "-")


def _columns(lines: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*lines)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines]


def keep(folder: Path, records: Sequence[Record]) -> None:
    """Adds records to those of a run's folder; each takes the place of an earlier one of the same weights, task and protocol.

    Raises SystemFailure; BadFile if the file that is there holds something else, which stays.
    """

    def key(record: Record) -> str:
        return json.dumps([record.get(name) for name in SAME])

    path = str(folder / SCORES)
    with only_one(path):
        merged = {key(record): record for record in [*read_scores(folder), *records]}
        with atomic_path(path) as tmp, writing(path), open(tmp, "wb") as file:
            file.write(as_json(list(merged.values())).encode())
            flush_to_disk(file)


def as_json(records: Sequence[Record]) -> str:
    """{"scores": [...]}, one record a line. A score that is not finite becomes null, because JSON has no such number."""
    lines = [json.dumps(finite(record)) for record in records]
    return '{"scores": [\n' + ",\n".join(lines) + "\n]}\n"
