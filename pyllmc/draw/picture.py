"""The looks of a picture: colours, places, labels that cover nothing. losses.py and shots.py say what is drawn."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pyllmc.base.errors import InvalidArgument, SystemFailure, need
from pyllmc.base.files import atomic_path, writing
from pyllmc.draw import curves
from pyllmc.draw.curves import Curve

WHY = "the picture"
PANELS = {"lr": "learning rate", "norm": "gradient norm", "tok_s": "tokens/s"}
NOTE_SIDES = (0, -30, 30, -70, 70, -110, 110, -160, 160, -220, 220)  # points to the right of the best value
NOTE_HEIGHTS = (30, 45, 70, 100, 140, 180, -30, -45, -70, -100)  # points above the best value
FORMATS = (".png", ".svg", ".pdf")
LEFT = 0.8  # inches to the left of the axes
GOLD = 0.62  # a picture's height, as a share of its width


@dataclass(frozen=True)
class Style:
    """Colours. Curves' colours differ for every kind of colour blindness, and stand out from the paper."""

    paper: str
    ink: str
    muted: str
    grid: str
    curves: tuple[str, ...]

    @property
    def train(self) -> str:
        return self.curves[0]

    @property
    def val(self) -> str:
        return self.curves[1]


LIGHT = Style(
    "#ffffff", "#1f2328", "#57606a", "#e3e7ec",
    ("#0072b2", "#d55e00", "#00845f", "#a8568e", "#8a6d00", "#1b8a9e", "#333333"),
)  # fmt: skip
DARK = Style(
    "#0d1117", "#e6edf3", "#9198a1", "#252c35",
    ("#56b4e9", "#ff8c42", "#2fc59a", "#e08fc4", "#f0e442", "#b79cff", "#cfcfcf"),
)  # fmt: skip
DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)))  # styles of lines, for when the colours are used up


@dataclass
class Line:
    """A curve as it is drawn, and the label at its end."""

    curve: Curve
    label: str
    colour: str
    style: Any = "-"
    points: bool = False  # True: each point is marked


class Picture:
    """A figure with a title, an axis for losses, panels below, and labels in the right margin; sizes are in inches."""

    def __init__(self, style: Style, title: str, subtitle: str, lines: list[Line], panels: int = 0) -> None:
        need("matplotlib", WHY)
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        self.style, self.lines = style, lines
        width, below = 8.0, 1.15 * panels
        height = max(width * GOLD, 1.6 + 0.21 * len(lines)) + below
        self.figure = Figure(figsize=(width, height), dpi=180, facecolor=style.paper)
        FigureCanvasAgg(self.figure)
        self._write(title, subtitle, height)
        right = self._margin() / width
        rows = self.figure.add_gridspec(
            1 + panels, 1, height_ratios=[height - 1.3 - below, *[0.75] * panels], hspace=0.35,
            left=LEFT / width, right=1 - right, bottom=0.55 / height, top=1 - 0.78 / height,
        )  # fmt: skip
        axes: list[Any] = []
        for i in range(1 + panels):
            axes.append(self._axis(self.figure.add_subplot(rows[i], sharex=axes[0] if axes else None)))
        self.axis, self.panels = axes[0], axes[1:]
        for axis in axes[:-1]:
            axis.tick_params(labelbottom=False)

    def text(self, axis: Any, *where: Any, **how: Any) -> Any:
        """Text in which no letter has a meaning of its own, as $ has to matplotlib."""
        made = axis.text(*where, **{"color": self.style.ink, "fontfamily": fonts(), **how})
        made.set_parse_math(False)
        return made

    def _write(self, title: str, subtitle: str, height: float) -> None:
        left = LEFT / 8
        self.title = self.text(self.figure, left, 1 - 0.3 / height, title, fontsize=14, fontweight="bold")
        self.subtitle = self.text(
            self.figure, left, 1 - 0.57 / height, subtitle, fontsize=10, color=self.style.muted
        )

    def _margin(self) -> float:
        """Room for the longest label, in inches."""
        longest = 0.0
        for line in self.lines:
            sample = self.text(self.figure, 0, 0, line.label, fontsize=10)
            longest = max(longest, sample.get_window_extent(self.renderer()).width / self.figure.dpi)
            sample.remove()
        return longest + 0.45

    def renderer(self) -> Any:
        return self.figure.canvas.get_renderer()  # type: ignore[attr-defined]

    def _axis(self, axis: Any) -> Any:
        axis.set_facecolor(self.style.paper)
        axis.grid(color=self.style.grid, linewidth=0.8)
        axis.set_axisbelow(True)
        for side, spine in axis.spines.items():
            spine.set_visible(side == "bottom")
            spine.set_color(self.style.muted)
        axis.tick_params(length=0, colors=self.style.muted, labelsize=9.5, pad=5)
        return axis

    # ---- the curves ----

    def draw(self) -> None:
        for line in self.lines:
            marks = dict(marker="o", markersize=4.5, linewidth=1) if line.points else dict(linewidth=1.8)
            self.axis.plot(
                line.curve.x,
                line.curve.y,
                color=line.colour,
                linestyle=line.style,
                solid_capstyle="round",
                **marks,
            )

    def scale(self, values: np.ndarray, x_name: str) -> None:
        """Sets limits and ticks; they are logarithmic if most of a run would else be pressed flat."""
        low, high = float(values.min()), float(values.max())
        if curves.fits_log(low, high):
            self.axis.set_yscale("log")
            room = (high / low) ** 0.05
            ticks = curves.log_ticks(*self._limits(low / room**2, high * room))
        else:
            room = 0.05 * (high - low) or 0.05 * abs(high) or 0.05
            ticks = curves.linear_ticks(*self._limits(low - 2 * room, high + room))
        self._ticks(self.axis.yaxis, ticks)
        self._label(self.axis, "loss (nats per token)")
        self._steps(x_name)

    def shares(self, numbers: Sequence[int], x_name: str, y_name: str, log: bool = False) -> None:
        """Scales for shares 0..1, written in percent, of the whole numbers on the x axis, which are its ticks. log: the numbers
        double, and stand equally far apart."""
        self._limits(-0.03, 1.03)
        formats = _matplotlib("ticker")
        if log:
            self.axis.set_xscale("log", base=2)
            self.axis.set_xlim(numbers[0] * 0.9, numbers[-1] * 1.1)
            self._ticks(self.axis.xaxis, [float(n) for n in numbers])
        else:
            self.axis.set_xlim(numbers[0] - 0.02 * numbers[-1], numbers[-1] * 1.02)
            self.axis.xaxis.set_major_locator(formats.FixedLocator(numbers))
        self.axis.yaxis.set_major_locator(formats.FixedLocator([0, 0.25, 0.5, 0.75, 1]))
        self.axis.yaxis.set_major_formatter(formats.PercentFormatter(1))
        self.axis.set_xlabel(x_name, color=self.style.muted, fontsize=9.5)
        self._label(self.axis, y_name)

    def _limits(self, low: float, high: float) -> tuple[float, float]:
        self.axis.set_ylim(low, high)
        return low, high

    def _ticks(self, axis: Any, ticks: list[float]) -> None:
        axis.set_major_locator(_matplotlib("ticker").FixedLocator(ticks))
        axis.set_major_formatter(_matplotlib("ticker").FixedFormatter(curves.told(ticks)))
        axis.set_minor_locator(_matplotlib("ticker").NullLocator())

    def _label(self, axis: Any, text: str) -> None:
        axis.set_ylabel(text, color=self.style.muted, fontsize=9.5)
        axis.yaxis.set_label_coords(-0.55 / (axis.get_position().width * 8), 0.5)

    def _steps(self, x_name: str) -> None:
        """Scales the steps: from 0, unless the run began far behind it, to the last step."""
        found = [line.curve.x for line in self.lines if len(line.curve.x)]
        first, last = float(min(x[0] for x in found)), float(max(x[-1] for x in found))
        first = 0 if first < 0.4 * last or first <= 2 else first
        last = max(last, first + 2)
        self.axis.set_xlim(first - 0.012 * (last - first), last + 0.012 * (last - first))
        self._ticks(self.axis.xaxis, curves.linear_ticks(first, last, least=1))
        (self.panels or [self.axis])[-1].set_xlabel(x_name, color=self.style.muted, fontsize=9.5)

    def panel(self, axis: Any, curve: Curve, name: str) -> None:
        curve = curves.envelope(curve)
        axis.plot(curve.x, curve.y, color=self.style.muted, linewidth=0.8, alpha=0.9)
        low, high = float(np.nanmin(curve.y)), float(np.nanmax(curve.y))
        if name == "lr":
            low = min(low, 0)
        room = 0.08 * (high - low) or 0.08 * abs(high) or 0.08
        axis.set_ylim(low - room, high + room)
        ticks = curves.linear_ticks(low - room, high + room)
        self._ticks(axis.yaxis, ticks[:: -(-len(ticks) // 3)])
        self.text(
            axis,
            0,
            1.04,
            PANELS.get(name, name),  # a score has its own name
            transform=axis.transAxes,
            color=self.style.muted,
            fontsize=9.5,
            va="bottom",
        )

    # ---- what is written beside the curves ----

    def label_ends(self) -> None:
        """Writes each curve's label at its end, in the margin, in the order of the ends and apart from each other."""
        axis, box = self.axis, self.axis.get_window_extent(self.renderer())
        ends = [axis.transData.transform((line.curve.x[-1], line.curve.y[-1])) for line in self.lines]
        heights = spread([float(y) for _, y in ends], 0.19 * self.figure.dpi, box.y0, box.y1)
        back = self.figure.transFigure.inverted()
        start = box.x1 + 0.2 * self.figure.dpi
        self.labels = []
        for line, (x, y), at in zip(self.lines, ends, heights):
            where = back.transform((start + 0.06 * self.figure.dpi, at))
            self.labels.append(
                self.text(self.figure, *where, line.label, color=line.colour, fontsize=10, va="center")
            )
            self._lead(back, [(max(x, box.x1 - 1), y), (start, at)] if x > box.x1 - 0.2 * self.figure.dpi else
                       [(x + 0.05 * self.figure.dpi, y), (box.x1, y), (start, at)], line)  # fmt: skip

    def _lead(self, back: Any, points: list[tuple[float, float]], line: Line) -> None:
        """Draws a thin line from a curve's end to its label."""
        xs, ys = zip(*(back.transform(point) for point in points))
        made = _matplotlib("lines").Line2D(
            xs, ys, color=line.colour, linewidth=0.8, alpha=0.55, transform=self.figure.transFigure,
            linestyle="-" if len(points) == 2 else ":",
        )  # fmt: skip
        self.figure.add_artist(made)

    def mark_best(self, curve: Curve, colour: str, text: str) -> None:
        """Draws a ring about the lowest point, and writes the text, if any, near it where no curve is."""
        at = int(np.argmin(curve.y))
        x, y = float(curve.x[at]), float(curve.y[at])
        (self.best,) = self.axis.plot(
            [x], [y], "o", markersize=8.5, markerfacecolor=self.style.paper, markeredgecolor=colour,
            markeredgewidth=2, zorder=5, clip_on=False,
        )  # fmt: skip
        if text:
            self._note(text, (x, y))

    def _note(self, text: str, point: tuple[float, float]) -> None:
        """Writes text near a point, where it covers least of the curves, and draws a thin line between the two."""
        x, y = self.axis.transData.transform(point)
        pixel = self.figure.dpi / 72
        self.note = self.text(self.axis, 0, 0, text, fontsize=10, va="center", zorder=6, transform=None)
        drawn = self._drawn()
        places = [(dx * pixel, dy * pixel) for dy in NOTE_HEIGHTS for dx in NOTE_SIDES]
        dx, dy = min(places, key=lambda place: self._cost(drawn, (x, y), place))
        self._cost(drawn, (x, y), (dx, dy))
        tip, foot = 8 * math.copysign(pixel, dy), 6 * math.copysign(pixel, dy)
        length = math.hypot(dx, dy)
        ends = [(x + dx / length * abs(foot), y + dy / length * abs(foot)), (x + dx, y + dy - tip)]
        self.axis.add_line(
            _matplotlib("lines").Line2D(
                *zip(*ends), transform=None, color=self.style.muted, linewidth=0.9, zorder=4
            )
        )

    def _cost(self, drawn: np.ndarray, at: tuple[float, float], move: tuple[float, float]) -> float:
        """Moves the note there; returns how bad that place is."""
        self.note.set_ha(
            "center" if abs(move[0]) < self.figure.dpi / 4 else "right" if move[0] < 0 else "left"
        )
        self.note.set_position((at[0] + move[0], at[1] + move[1]))
        box = self.note.get_window_extent(self.renderer()).padded(0.04 * self.figure.dpi)
        inside = self.axis.get_window_extent(self.renderer())
        outside = max(inside.x0 - box.x0, box.x1 - inside.x1, inside.y0 - box.y0, box.y1 - inside.y1, 0)
        x, y, weight = drawn.T
        covered = (x > box.x0) & (x < box.x1) & (y > box.y0) & (y < box.y1)
        return float(covered @ weight) + 10 * outside + 0.02 * math.hypot(*move)

    def _drawn(self) -> np.ndarray:
        """(n, 3): x, y of pixels that the curves cross, and how bad it is to cover them."""
        box = self.axis.get_window_extent(self.renderer())
        columns = np.arange(box.x0, box.x1, 2.0)
        found = []
        for line in self.axis.lines:
            xy = self.axis.transData.transform(np.column_stack(line.get_data()).astype(float))
            xy = xy[np.isfinite(xy).all(1)]
            if len(xy):
                weight = np.full(len(columns), 1 if (line.get_alpha() or 1) == 1 else 0.3)
                y = np.interp(columns, xy[:, 0], xy[:, 1], left=-1e9, right=-1e9)
                found += [
                    np.column_stack((columns, y, weight)),
                    np.column_stack((xy, np.full(len(xy), weight[0]))),
                ]
        return np.concatenate(found)

    def mark_gaps(self, curve: Curve) -> None:
        """Marks the first step whose loss was not finite."""
        bad = np.flatnonzero(~np.isfinite(curve.y))
        if len(bad) == 0:
            return
        x = float(curve.x[bad[0]])
        self.axis.axvline(x, color=self.style.muted, linewidth=1, linestyle=(0, (2, 2)))
        right = x > sum(self.axis.get_xlim()) / 2
        self.text(
            self.axis, x, 0.97, f" not finite at step {x:,.0f} ", transform=self.axis.get_xaxis_transform(),
            color=self.style.muted, fontsize=9.5, ha="right" if right else "left", va="top",
        )  # fmt: skip

    def save(self, path: Path) -> Path:
        """Writes the picture whole or not at all, with the same bytes each time."""
        return save_figure(self.figure, path, self.style.paper)


def checked_path(path: str | Path) -> Path:
    """The path. Raises InvalidArgument if pictures of its kind are not drawn, SystemFailure if its folder is not there."""
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise InvalidArgument(f"{path}: a picture ends with {', '.join(FORMATS)}: name it so")
    if not path.parent.is_dir():
        raise SystemFailure(f"{path}: {path.parent} is no folder: make it, or choose another place")
    return path


def save_figure(figure: Any, path: Path, paper: str) -> Path:
    rc = {"svg.hashsalt": "pyllmc", "svg.fonttype": "path"}
    kind = path.suffix[1:].lower()
    date = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}[kind]
    with need("matplotlib", WHY).rc_context(rc), atomic_path(str(path)) as temporary, writing(str(path)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # letters that no font here has become boxes
            figure.savefig(temporary, format=kind, metadata=date, facecolor=paper)
    return path


def _matplotlib(module: str) -> Any:
    return need(f"matplotlib.{module}", WHY, "matplotlib")


def fonts() -> list[str]:
    """The fonts to write with: matplotlib's own, and for other scripts two of this machine's."""
    known = {font.name for font in _matplotlib("font_manager").fontManager.ttflist}
    others = [name for name in sorted(known) if name.startswith(("Noto Sans CJK", "WenQuanYi", "Unifont"))]
    return ["DejaVu Sans", *others[:2]]


def spread(wanted: Sequence[float], apart: float, low: float, high: float) -> list[float]:
    """Places as near to the wanted ones as possible: in their order, `apart` at least, between low and high if they fit."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    groups: list[list[float]] = []  # (sum of the places that its members want for its first, its size)
    for i in order:
        groups.append([wanted[i], 1])
        while (
            len(groups) > 1
            and groups[-2][0] / groups[-2][1] + apart * groups[-2][1] > groups[-1][0] / groups[-1][1]
        ):
            total, n = groups.pop()
            groups[-1] = [groups[-1][0] + total - n * apart * groups[-1][1], groups[-1][1] + n]
    places = [total / n + apart * k for total, n in groups for k in range(int(n))]
    for i, place in enumerate(places):
        places[i] = max(place, low + apart * (i + 0.3), places[i - 1] + apart if i else low)
    for i in reversed(range(len(places))):
        places[i] = min(places[i], high - apart * (len(places) - 1 - i + 0.3))
    return [places[order.index(i)] for i in range(len(wanted))]
