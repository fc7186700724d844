"""The picture of a run's loss, or of several runs' losses side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pyllmc.base.errors import BadFile, DataError, counted
from pyllmc.draw import curves
from pyllmc.draw.curves import OF_SET, Curve, Run, read_run
from pyllmc.draw.picture import DASHES, LIGHT, Line, Picture, Style, checked_path

MOST_LETTERS = 36  # letters in a run's name


def draw_run(
    run: str | Path,
    path: str | Path | None = None,
    *,
    style: Style = LIGHT,
    panels: Sequence[str] = (),
    x: str = "step",
) -> Path:
    """Draws the training loss, each step faint and smoothed, and the validation loss, into `path` or RUN/loss.png."""
    path = checked_path(path) if path else Path(run) / "loss.png"
    picture = picture_of(read_run(run), style, panels, x)
    return picture.save(path)


def picture_of(run: Run, style: Style, panels: Sequence[str], x: str) -> Picture:
    if not run.drawable("loss"):
        raise BadFile(f"{run.folder / 'metrics.jsonl'} holds no step to draw: train first")
    shown = run.against_tokens() if x == "tokens" else run
    raw = shown.curves["loss"]
    short = curves.thinned(raw)
    smooth = curves.smooth(short)
    lines = [Line(smooth, f"training {value(smooth.y[-1])}", style.train, points=len(smooth.x) < 3)]
    val = shown.curves["val_loss"].finite()
    lines += _validations(shown, style)
    picture = Picture(style, _title(run), _about(run), lines, len(panels))
    faint = curves.envelope(raw)
    picture.axis.plot(faint.x, faint.y, color=style.train, alpha=0.32, linewidth=0.7)
    picture.draw()
    picture.scale(_range([faint, *(line.curve for line in lines)]), _axis_name(x))
    for axis, name in zip(picture.panels, panels):
        picture.panel(axis, _panel(shown, name), name)
    picture.mark_gaps(raw if x == "step" else Curve(raw.x[:0], raw.y[:0]))
    if len(val.x):
        picture.mark_best(val, style.val, best_of(val, x))
    picture.label_ends()
    return picture


def _validations(run: Run, style: Style) -> list[Line]:
    """The curve of each validation set; the first has the colour of the only one."""
    kinds = {f"validation, {name}": OF_SET + name for name in run.sets} or {"validation": "val_loss"}
    lines = []
    for i, (label, kind) in enumerate(kinds.items()):
        curve, n = run.curves[kind].finite(), len(style.curves) - 1
        if len(curve.x):
            lines.append(
                Line(curve, f"{label} {value(curve.y[-1])}", style.curves[1 + i % n], DASHES[i // n % len(DASHES)],
                     points=len(curve.x) <= 60)
            )  # fmt: skip
    return lines


def value(loss: float) -> str:
    """A loss with four digits, zeros too, so that values below each other compare."""
    return f"{loss:#.4g}".rstrip(".") if loss < 1e5 else f"{loss:.3g}"


def best_of(val: Curve, x: str) -> str:
    at = int(np.argmin(val.y))
    where = f"step {val.x[at]:,.0f}" if x == "step" else f"{curves.short(val.x[at])} tokens"
    return f"{'best ' if len(val.x) > 1 else ''}{value(val.y[at])} at {where}"


def _axis_name(x: str) -> str:
    return {"step": "step", "tokens": "tokens seen"}[x]


def _title(run: Run) -> str:
    return curves.shortened(run.folder.resolve().name or str(run.folder.resolve()), 60)


def _about(run: Run) -> str:
    """The model's size, its steps and the tokens it has seen, as far as they are known."""
    going_on = run.steps < run.max_steps
    parts = [f"{curves.short(run.parameters)} parameters"] if run.parameters else []
    parts.append(f"{run.steps:,} of {run.max_steps:,} steps" if going_on else counted(run.steps, "step"))
    parts += [f"{curves.short(run.tokens)} tokens"] if run.tokens else []
    return "  ·  ".join(parts)


def _panel(run: Run, name: str) -> Curve:
    if not run.drawable(name):
        raise DataError(f"{run.folder / 'metrics.jsonl'} tells no {name}: leave it out of --panels")
    return run.curves[name]


def _range(shown: Sequence[Curve]) -> np.ndarray:
    """The values that must be seen: all but the wildest half percent of single steps' losses, the first curve."""
    faint, others = shown[0].finite().y, [curve.finite().y for curve in shown[1:]]
    return np.concatenate((np.quantile(faint, (0.0025, 0.9975)), *others))


def draw_comparison(
    runs: Sequence[str | Path], path: str | Path, *, style: Style = LIGHT, x: str = "step"
) -> Path:
    """Draws the validation losses of several runs, named by their folders, in one picture.

    If not every run was validated at least twice, their smoothed training losses are drawn instead.
    """
    path = checked_path(path)
    folders = list({Path(run).resolve(): run for run in runs}.values())
    return comparison_of([read_run(run) for run in folders], style, x).save(path)


def comparison_of(runs: Sequence[Run], style: Style, x: str) -> Picture:
    kind = _comparable(runs)
    lines = []
    for i, (run, name) in enumerate(zip(runs, names_of(runs))):
        curve = (run.against_tokens() if x == "tokens" else run).curves[kind].finite()
        if kind == "loss":
            curve = curves.smooth(curves.thinned(curve))
        n = len(style.curves)
        lines.append(
            Line(curve, f"{name}  {value(curve.y.min())}", style.curves[i % n], DASHES[i // n % len(DASHES)],
                 points=kind == "val_loss" and len(curve.x) <= 30)
        )  # fmt: skip
    # a run that ends at its best needs no ring: its label stands there
    ringed = [line for line in lines if line.curve.y[-1] > line.curve.y.min()]
    title = {"val_loss": "Validation loss", "loss": "Training loss, smoothed"}[kind]
    picture = Picture(style, title, _about_all(runs, bool(ringed)), lines)
    picture.draw()
    picture.scale(np.concatenate([line.curve.y for line in lines]), _axis_name(x))
    for line in ringed:
        picture.mark_best(line.curve, line.colour, "")
    picture.label_ends()
    return picture


def names_of(runs: Sequence[Run]) -> list[str]:
    names = curves.names_of([run.folder for run in runs])
    brief = [curves.shortened(name, MOST_LETTERS) for name in names]
    return [b if brief.count(b) == 1 else name for b, name in zip(brief, names)]


def _comparable(runs: Sequence[Run]) -> str:
    """The loss by which runs are compared: val_loss if each has two values of it at least."""
    if all(len(run.curves["val_loss"].finite().x) > 1 for run in runs):
        return "val_loss"
    for kind in ("loss", "val_loss"):
        if all(run.drawable(kind) for run in runs):
            return kind
    bare = next(run for run in runs if not run.drawable("loss"))
    raise BadFile(f"{bare.folder / 'metrics.jsonl'} holds no step to draw: train first")


def _about_all(runs: Sequence[Run], ringed: bool) -> str:
    sizes = sorted({run.parameters for run in runs if run.parameters})
    parts = [counted(len(runs), "run")]
    if sizes:
        parts.append(
            " to ".join(curves.short(n) for n in dict.fromkeys((sizes[0], sizes[-1]))) + " parameters"
        )
    return "  ·  ".join([*parts, "with the best of each"] if ringed else parts)
