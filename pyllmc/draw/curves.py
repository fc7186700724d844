"""Curves from a run's metrics.jsonl, with the smoothing, ticks and names that a picture needs. Nothing is drawn here."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pyllmc.base.errors import BadFile, DataError, SystemFailure
from pyllmc.engine.checkpoint import RUN, lines_of, read_header
from pyllmc.engine.run_files import METRICS, is_number, metrics_lines
from pyllmc.tables.layout import GPTConfig, parameters

KINDS = {
    "loss": ("step", "loss", "lr"),
    "val_loss": ("step", "val_loss"),
    "scores": ("step",),
}  # the key that marks a line, and the numbers that such a line must hold
MAY_BE_NAN = ("loss", "val_loss")
OF_SET = "val_loss "  # begins the name of the curve of a validation set that has a name
MOST_POINTS = 4000  # points drawn of a curve, because more cannot be seen


@dataclass
class Curve:
    """Points in the order of x. y is NaN where a loss was not finite."""

    x: np.ndarray
    y: np.ndarray

    def finite(self) -> Curve:
        good = np.isfinite(self.y)
        return Curve(self.x[good], self.y[good])


@dataclass
class Run:
    """A run's curves by name, against its steps."""

    folder: Path
    curves: dict[str, Curve] = field(
        default_factory=dict
    )  # loss, lr, norm, tok_s, tokens, val_loss, OF_SET + name, TASK:METRIC
    max_steps: int = 0  # 0: not known
    parameters: int = 0  # 0: not known

    @property
    def steps(self) -> int:
        return int(max((curve.x[-1] for curve in self.curves.values() if len(curve.x)), default=0))

    @property
    def tokens(self) -> int:
        """The number of tokens that the run has seen; 0 if its lines do not tell."""
        found = self.curves.get("tokens")
        return int(found.y[-1]) if found and len(found.y) else 0

    @property
    def sets(self) -> list[str]:
        """The names of the validation sets, the first of which decides what is best; none if there is one without a name."""
        return [name[len(OF_SET) :] for name in self.curves if name.startswith(OF_SET)]

    def drawable(self, name: str) -> bool:
        return name in self.curves and len(self.curves[name].finite().x) > 0

    def against_tokens(self) -> Run:
        """The same curves against the tokens seen. Raises DataError if the lines do not tell these."""
        tokens = self.curves.get("tokens")
        if tokens is None or not self.tokens:
            raise DataError(f"{self.folder} does not tell its tokens (ms and tok_s of a step): use --x=step")
        steps, seen = np.r_[0, tokens.x], np.r_[0, tokens.y]
        moved = {name: Curve(np.interp(curve.x, steps, seen), curve.y) for name, curve in self.curves.items()}
        return Run(self.folder, moved, self.max_steps, self.parameters)


# ---------------------------------------------------------------------------------------------------------
# reading


def read_metrics(run: str | Path) -> list[dict[str, Any]]:
    """The steps, validations and scores in metrics.jsonl; a line cut short by a kill is left out.

    Raises SystemFailure if there is no such file, BadFile for a line that holds something else.
    """
    path = Path(run, METRICS)
    if os.path.exists(run) and not os.path.isdir(run):
        raise SystemFailure(f"{run} is no folder: give the folder of a run that has trained")
    if not path.exists():
        raise SystemFailure(f"{path} does not exist: give the folder of a run that has trained")
    return [kept for number, line in metrics_lines(run) for kept in _checked(f"{path}:{number}", line)]


def _checked(where: str, line: Any) -> Iterator[dict[str, Any]]:
    """Yields the line if it holds something to draw."""
    if not isinstance(line, dict):
        raise BadFile(f"{where}: an object was expected, found {line!r:.40}: is it a run's file?")
    for kind, names in KINDS.items():
        if kind in line:
            for name in names:
                if not is_number(line.get(name)) and not (name in MAY_BE_NAN and _is_not_finite(line[name])):
                    raise BadFile(f"{where}: {name}={line.get(name)!r:.40} is not a number: remove the line")
            yield line
            return


def _is_not_finite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def read_run(folder: str | Path) -> Run:
    """Reads all that can be drawn of a run. Raises the errors of read_metrics."""
    lines = read_metrics(folder)
    run = Run(Path(folder), max_steps=_max_steps(folder), parameters=_parameters(folder))
    for kind in ("loss", "val_loss"):
        at = {line["step"]: line for line in lines if kind in line}  # a step that was done again counts once
        ordered = [at[step] for step in sorted(at)]
        for name in ("loss", "lr", "norm", "tok_s") if kind == "loss" else (kind,):
            run.curves[name] = _curve(ordered, name)
        if kind == "loss":
            run.curves["tokens"] = _tokens(ordered)
        else:
            run.curves |= _curves_of_sets(ordered)
    run.curves |= _curves_of_scores(lines)
    return run


def _curves_of_scores(lines: Sequence[dict[str, Any]]) -> dict[str, Curve]:
    """The scores of --eval_tasks, such as lambada:acc. A step that was scored again counts once."""
    found: dict[str, dict[float, float]] = {}
    for line in lines:
        scores = line["scores"] if isinstance(line.get("scores"), dict) else {}
        for metric, value in scores.items():
            at = found.setdefault(f"{line.get('task')}:{metric}", {})
            at[line["step"]] = value if is_number(value) else math.nan
    return {
        name: Curve(np.array(sorted(at), float), np.array([at[step] for step in sorted(at)], float))
        for name, at in found.items()
    }


def _curves_of_sets(lines: Sequence[dict[str, Any]]) -> dict[str, Curve]:
    """The validation losses by the names of their sets; a set may come or go when a run is resumed."""
    of_line = [line["val_losses"] if isinstance(line.get("val_losses"), dict) else {} for line in lines]
    found = {}
    for name in dict.fromkeys(name for losses in of_line for name in losses):
        own = [
            {"step": line["step"], name: losses[name] if is_number(losses[name]) else math.nan}
            for line, losses in zip(lines, of_line)
            if name in losses
        ]
        found[OF_SET + name] = _curve(own, name)
    return found


def _curve(lines: Sequence[dict[str, Any]], name: str) -> Curve:
    values = [line[name] if isinstance(line.get(name), (int, float)) else math.nan for line in lines]
    y = np.array(values, float)
    return Curve(np.array([line["step"] for line in lines], float), np.where(np.isfinite(y), y, np.nan))


def _tokens(lines: Sequence[dict[str, Any]]) -> Curve:
    """The tokens seen after each step: a step sees its rate times its time."""
    rate, ms = _curve(lines, "tok_s"), _curve(lines, "ms")
    each = np.nan_to_num(np.rint(rate.y * ms.y / 1e3))
    return Curve(rate.x, np.cumsum(each * np.diff(rate.x, prepend=0)))


def _max_steps(folder: str | Path) -> int:
    try:
        text = (Path(folder) / "config.txt").read_text(encoding="utf-8", errors="replace")
        return int(lines_of(text)["max_steps"])
    except (OSError, KeyError, ValueError):
        return 0


def _parameters(folder: str | Path) -> int:
    """The number of parameters, from the header of a checkpoint of the run; 0 if there is none."""
    for name in RUN:
        try:
            if found := read_header(Path(folder) / name):
                return sum(_size(found[1], row.shape) for row, _ in parameters(found[1]))
        except (OSError, ValueError):
            continue
    return 0


def _size(config: GPTConfig, shape: tuple[int, ...]) -> int:
    """The number of parameters in a tensor, without the padding of the vocabulary."""
    return math.prod(config.vocab_size if n == config.padded_vocab_size else n for n in shape)


# ---------------------------------------------------------------------------------------------------------
# smoothing


def thinned(curve: Curve) -> Curve:
    """The curve; if it has more than MOST_POINTS, the means of groups of neighbours, at most MOST_POINTS of them."""
    curve = curve.finite()
    k = -(-len(curve.x) // MOST_POINTS)
    if k <= 1:
        return curve
    starts = np.arange(0, len(curve.x), k)
    counts = np.diff(starts, append=len(curve.x))
    return Curve(
        *(np.add.reduceat(values, starts) / counts for values in (curve.x, curve.y)),
    )


def envelope(curve: Curve) -> Curve:
    """The curve; if it is long, the least and the largest value of each group of neighbours, which look the same."""
    k = -(-len(curve.x) // MOST_POINTS)
    if k <= 1:
        return curve
    curve = curve.finite()
    starts = np.arange(0, len(curve.x), k)
    ends = [reduce.reduceat(curve.y, starts) for reduce in (np.minimum, np.maximum)]
    return Curve(np.repeat(curve.x[starts], 2), np.stack(ends, 1).ravel())


def smooth(curve: Curve) -> Curve:
    """Replaces each value by the straight line that fits its neighbours best, as many before it as behind.

    So the curve neither lags behind a falling loss nor loses its ends. The last step has no neighbours behind it, and takes
    twice as many before it. The neighbourhood grows with the step up to a fortieth of the run, because the first steps fall
    steeply and say most. Losses of many sizes are smoothed by their logarithms, as they are drawn, because one that is far
    too large would else show for as long as its neighbourhood is.
    """
    n = len(curve.x)
    if n < 3:
        return curve
    y = np.log(curve.y) if (many := _has_many_sizes(curve.y)) else curve.y
    step = np.maximum(curve.x, 0) / max(float(np.median(np.diff(curve.x))), 1e-9)
    half = np.minimum(4 + 0.12 * step, 1 + max(n / 40, min(n / 12, 5))).astype(int)
    for _ in range(2):  # twice, so that single values do not show when they enter or leave the neighbourhood
        y = _lines_through(y, half)
    return Curve(curve.x, np.exp(y) if many else y)


def _has_many_sizes(y: np.ndarray) -> bool:
    return bool(y.min() > 0 and y.max() > 100 * y.min())


def _lines_through(y: np.ndarray, half: np.ndarray) -> np.ndarray:
    n = len(y)
    at = np.arange(n)
    first, last = np.maximum(np.minimum(at - half, n - 2 * half - 1), 0), np.minimum(at + half + 1, n)
    count, middle = last - first, (first + last - 1) / 2
    sums = [np.r_[0, np.cumsum(values)] for values in (y, y * (at - n / 2))]
    mean, product = ((total[last] - total[first]) / count for total in sums)
    variance = (count**2 - 1) / 12
    slope = (product - mean * (middle - n / 2)) / np.where(variance > 0, variance, 1)
    return mean + np.where(variance > 0, slope, 0) * (at - middle)


# ---------------------------------------------------------------------------------------------------------
# axes

MANTISSAS = (
    (1,),
    (1, 3),
    (1, 2, 5),
    (1, 2, 3, 5, 7),
    (1, 1.5, 2, 3, 4, 5, 6, 8),
    tuple(np.arange(10, 100) / 10),
)
MOST_TICKS = 8  # ticks on a logarithmic axis
# intervals on a linear axis, at most; at least 3, because a step is at most twice as long as the next shorter one
INTERVALS = 7


def fits_log(low: float, high: float) -> bool:
    """True if values are so far apart that a linear axis would press most of a run into a tenth of its height."""
    return low > 0 and high / low > 2.5


def log_ticks(low: float, high: float) -> list[float]:
    """Round values for a logarithmic axis: the densest set that is not crowded."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    best: list[float] = []
    for set_of in MANTISSAS:
        ticks = [float(f"{m}e{d}") for d in decades for m in set_of if low <= float(f"{m}e{d}") <= high]
        if not best or len(ticks) <= MOST_TICKS:
            best = ticks
    return best[:: -(-len(best) // MOST_TICKS)] if len(best) > 2 else linear_ticks(low, high)


def linear_ticks(low: float, high: float, least: float = 0) -> list[float]:
    """Multiples of 1, 2, 2.5 or 5 times a power of ten: as many as stand without crowding."""
    size = 10.0 ** math.floor(math.log10((high - low) / INTERVALS))
    step = next(s for m in (1, 2, 2.5, 5, 10) if (s := max(m * size, least)) * INTERVALS >= high - low)
    return [float(f"{i * step:.12g}") for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def told(values: Sequence[float]) -> list[str]:
    """The labels of ticks: as many decimals as they need, thousands apart, millions as M."""
    largest, smallest = max(map(abs, values), default=0), min((abs(v) for v in values if v), default=1)
    if largest > 1e15 or smallest < 1e-4 or largest > 1e8 * smallest:
        return [f"{value:g}" for value in values]
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if largest >= size:
            return [_plain(value / size) + (unit if value else "") for value in values]
    return [_plain(value) for value in values]


def _plain(value: float) -> str:
    return f"{value:,.10f}".rstrip("0").rstrip(".")


def short(count: float) -> str:
    """A count in few letters: 530,176 is 0.53M."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e5, "M")):
        if count >= size:
            size = max(size, 1e6)
            return f"{count / size:.{3 if count >= size else 2}g}{unit}"
    return f"{count:,.0f}"


# ---------------------------------------------------------------------------------------------------------
# names


def names_of(folders: Sequence[str | Path]) -> list[str]:
    """Names each folder by the shortest end of its path that no other has."""
    parts = [Path(folder).resolve().parts for folder in folders]
    return [_ending(own, [other for other in parts if other != own]) for own in parts]


def _ending(own: tuple[str, ...], others: Sequence[tuple[str, ...]]) -> str:
    for k in range(1, len(own)):
        if all(other[-k:] != own[-k:] for other in others):
            return "/".join(own[-k:])
    return str(Path(*own))


def shortened(name: str, most: int) -> str:
    """The name; if it is longer than `most` characters, without its middle."""
    half = (most - 1) // 2
    return name if len(name) <= most else f"{name[: most - 1 - half]}…{name[len(name) - half :]}"
