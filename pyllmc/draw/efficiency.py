"""The picture of a plan: the efficiency of 1 to 1,024 processes, for each way to share the work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from pyllmc.draw.curves import Curve
from pyllmc.draw.picture import DASHES, LIGHT, Line, Picture, Style, checked_path


def draw_efficiency(
    path: str | Path,
    processes: Sequence[int],
    shares: Mapping[str, Sequence[float]],
    *,
    title: str,
    about: str = "",
    style: Style = LIGHT,
) -> Path:
    """Draws a line of efficiencies, 0..1, against the numbers of processes for each way, by its name. Dashes make lines visible that
    lie on others. Raises InvalidArgument if the path names no picture.
    """
    path, x = checked_path(path), np.asarray(processes, float)
    lines = [
        Line(
            Curve(x, np.asarray(y, float)),
            f"{name} {y[-1]:.0%}",
            style.curves[i % len(style.curves)],
            DASHES[i % len(DASHES)],
        )
        for i, (name, y) in enumerate(shares.items())
    ]
    picture = Picture(style, title, about, lines)
    picture.draw()
    picture.shares([int(n) for n in processes], "processes", "efficiency", log=True)
    picture.label_ends()
    return picture.save(path)
