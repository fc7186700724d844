"""Pictures of scores: bars of several models, or lines against the steps of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pyllmc.base.errors import need
from pyllmc.draw.curves import short, shortened
from pyllmc.draw.picture import LIGHT, Style, checked_path, fonts, save_figure

ACROSS = 3  # panels beside each other
WIDTH, HEIGHT = 3.4, 2.4  # inches of a panel
MOST_LETTERS = 24  # letters of a model's name


class Panel(NamedTuple):
    """One score of every model or checkpoint. percent: values are shares, shown in percent. published: the paper's, by size."""

    title: str
    names: Sequence[str]
    values: Sequence[float]
    errors: Sequence[float]
    percent: bool = False
    published: dict[str, float] = {}


def draw_bars(path: str | Path, panels: Sequence[Panel], title: str, style: Style = LIGHT) -> Path:
    """A panel for each score, in which each model has a bar with its standard error. Raises InvalidArgument for a path that names no
    picture."""
    most = max(len(panel.names) for panel in panels)
    figure, axes = _sheet(checked_path(path), panels, title, style, 0.9 + 0.3 * most)
    for axis, panel in zip(axes, panels):
        scale = 100 if panel.percent else 1
        rows = range(len(panel.names))
        bars = [scale * value for value in panel.values]
        errors = [scale * error for error in panel.errors]
        colours = [style.curves[i % len(style.curves)] for i in rows]
        axis.barh(rows, bars, xerr=errors, color=colours, height=0.62, ecolor=style.muted, capsize=2)
        axis.set_yticks(list(rows), [shortened(name, MOST_LETTERS) for name in panel.names])
        axis.invert_yaxis()
        axis.grid(axis="y", visible=False)
        axis.margins(x=0.12)
    return save_figure(figure, Path(path), style.paper)


def draw_course(
    path: str | Path, steps: Sequence[int], panels: Sequence[Panel], title: str, style: Style = LIGHT
) -> Path:
    """A panel for each score, against the steps of the checkpoints; the band is one standard error to both sides. The paper's
    figures are dashed where they are near."""
    figure, axes = _sheet(checked_path(path), panels, title, style, HEIGHT)
    for axis, panel in zip(axes, panels):
        scale = 100 if panel.percent else 1
        y = [scale * value for value in panel.values]
        low, high = ([v + sign * scale * e for v, e in zip(y, panel.errors)] for sign in (-1, 1))
        axis.fill_between(steps, low, high, color=style.train, alpha=0.18, linewidth=0)
        axis.plot(steps, y, color=style.train, marker="o", markersize=3.5)
        bottom, top = axis.get_ylim()
        for name, value in panel.published.items():
            if bottom <= scale * value <= top:
                axis.axhline(scale * value, color=style.muted, linestyle=(0, (4, 3)), linewidth=0.8)
                axis.annotate(name, (steps[0], scale * value), fontsize=8, color=style.muted)
        ticks = sorted({steps[0], steps[len(steps) // 2], steps[-1]})
        axis.set_xticks(ticks, [short(step) for step in ticks])
        axis.set_xlabel("step", fontsize=9, color=style.muted)
    return save_figure(figure, Path(path), style.paper)


def _sheet(
    path: Path, panels: Sequence[Panel], title: str, style: Style, height: float
) -> tuple[Any, list[Any]]:
    """A figure with an axis for each panel."""
    need("matplotlib", "the picture of the scores")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    across = min(ACROSS, len(panels))
    down = -(-len(panels) // across)
    size = (max(WIDTH * across, 5) + 0.4, height * down + 0.7)
    figure = Figure(figsize=size, dpi=180, facecolor=style.paper, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, color=style.ink, fontsize=13, fontweight="bold", fontfamily=fonts())
    axes = []
    for i, panel in enumerate(panels):
        axis = figure.add_subplot(down, across, i + 1)
        unit = ", %" if panel.percent else ""
        axis.set_title(f"{panel.title}{unit}", fontsize=10, color=style.ink, loc="left", parse_math=False)
        axis.set_facecolor(style.paper)
        axis.grid(color=style.grid, linewidth=0.8)
        axis.set_axisbelow(True)
        axis.tick_params(length=0, colors=style.muted, labelsize=8.5)
        for side, spine in axis.spines.items():
            spine.set_visible(side == "bottom")
            spine.set_color(style.muted)
        axes.append(axis)
    return figure, axes
