"""The picture of an exam after examples: the share of right answers against the number of examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from pyllmc.base.errors import InvalidArgument
from pyllmc.draw.curves import Curve
from pyllmc.draw.picture import DASHES, LIGHT, Line, Picture, Style, checked_path


def draw_shots(
    path: str | Path,
    shots: Sequence[int],
    right: Mapping[str, Sequence[float]],
    known: Mapping[str, Sequence[float]] | None = None,
    *,
    title: str = "Right answers against the number of examples",
    about: str = "",
    style: Style = LIGHT,
) -> Path:
    """Draws shares of right answers, 0..1 for each number of examples, a line for each kind of task.

    shots: numbers of examples, growing. known: the share that the best reader could know, dashed in the colour of its kind.
    Raises InvalidArgument if the numbers are not as many, or the path names no picture.
    """
    path = checked_path(path)
    x, known = np.asarray(shots, float), known or {}
    for name, values in [*right.items(), *known.items()]:
        if len(values) != len(x):
            raise InvalidArgument(f"{name}: {len(values)} shares for {len(x)} numbers of examples")
    colours = {name: style.curves[i % len(style.curves)] for i, name in enumerate(right)}
    lines = [
        Line(Curve(x, np.asarray(y, float)), f"{name} {y[-1]:.0%}", colours[name], points=True)
        for name, y in right.items()
    ]
    lines += [
        Line(
            Curve(x, np.asarray(y, float)), f"{name}: can be known", colours.get(name, style.muted), DASHES[1]
        )
        for name, y in known.items()
    ]
    picture = Picture(style, title, about, lines)
    picture.draw()
    picture.shares([int(n) for n in shots], "examples before the query", "right answers")
    picture.label_ends()
    return picture.save(path)
