"""python -m pyllmc.plot RUN [RUN ...]: the loss curve of a run folder, from its metrics.jsonl, as its loss.png; or the
validation losses of several, side by side."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pyllmc.errors import begin_command, run_command
from pyllmc.files import FileFailure, MalformedFile, need
from pyllmc.options import Parser

PROG = "pyllmc.plot"
EXAMPLES = (
    "python -m pyllmc.plot runs/demo                     draws its loss",
    "python -m pyllmc.plot runs/a runs/b --out both.png  compares them",
)
KINDS = {
    "loss": ("step", "loss", "lr"),
    "val_loss": ("step", "val_loss"),
}  # what marks a line, and what it needs
LARGEST = 1e30  # that is drawn


def read_metrics(run: str | Path) -> list[dict[str, Any]]:
    """The steps and validations in metrics.jsonl; a line cut short by a kill is left out.

    Raises FileFailure where there is none, MalformedFile for a line that holds something else.
    """
    path = Path(run) / "metrics.jsonl"
    if not path.exists():
        raise FileFailure(f"{path} does not exist: give the folder of a run that has trained")
    lines: list[dict[str, Any]] = []
    for number, text in enumerate(path.read_bytes().splitlines(), 1):
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            continue
        lines += _checked(f"{path}:{number}", line)
    return lines


def _checked(where: str, line: Any) -> Iterator[dict[str, Any]]:
    """The line, if there is something in it to draw."""
    if not isinstance(line, dict):
        raise MalformedFile(f"{where}: an object was expected, found {line!r:.40}: is it a run's file?")
    for kind, names in KINDS.items():
        if kind in line:
            for name in names:
                value = line.get(name)
                if not isinstance(value, (int, float)) or isinstance(value, bool) or not abs(value) < LARGEST:
                    raise MalformedFile(f"{where}: {name}={value!r:.40} is not a number: remove the line")
            yield line
            return


def smooth(values: list[float], keep: float = 0.9) -> list[float]:
    """Exponential mean, corrected for its start."""
    mean, weight, out = 0.0, 0.0, []
    for value in values:
        mean, weight = keep * mean + (1 - keep) * value, keep * weight + (1 - keep)
        out.append(mean / weight)
    return out


def draw_run(run: str | Path, path: str | Path | None = None) -> Path:
    """Draws `path`, or else RUN/loss.png: training loss (thin: each step), validation loss, learning rate below."""
    need("matplotlib", "the loss curve").use("Agg")
    import matplotlib.pyplot as plt

    lines = read_metrics(run)
    steps = [line for line in lines if "loss" in line]
    evals = [line for line in lines if "val_loss" in line]
    if not steps:
        raise MalformedFile(f"{Path(run) / 'metrics.jsonl'} holds no step to draw: train first")
    figure, (top, bottom) = plt.subplots(
        2, 1, sharex=True, figsize=(8, 5.5), height_ratios=(4, 1), layout="constrained"
    )
    x, losses = [line["step"] for line in steps], [line["loss"] for line in steps]
    top.plot(x, losses, color="tab:blue", alpha=0.25, linewidth=0.8)
    top.plot(x, smooth(losses), color="tab:blue", label="training loss")
    if evals:
        last = evals[-1]["val_loss"]
        label = f"validation loss (last {last:.3f})"
        top.plot(
            [line["step"] for line in evals],
            [line["val_loss"] for line in evals],
            "o-",
            ms=3,
            color="tab:orange",
            label=label,
        )
    top.set_yscale("log")  # most of a run is spent on the last tenth of the loss
    top.yaxis.set_major_formatter("{x:g}")
    top.yaxis.set_minor_formatter("{x:g}")
    top.set_ylabel("cross-entropy (nats per token)")
    top.set_title(Path(run).resolve().name)
    top.grid(alpha=0.3)
    top.legend()
    bottom.plot(x, [line["lr"] for line in steps], color="tab:green")
    bottom.set_ylabel("lr")
    bottom.set_xlabel("step")
    bottom.grid(alpha=0.3)
    path = Path(path or Path(run) / "loss.png")
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def draw_comparison(runs: Sequence[str | Path], path: str | Path) -> Path:
    """Draws the validation losses of several runs, named by their folders, in one picture."""
    need("matplotlib", "the loss curves").use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(8, 4), layout="constrained")
    for style, run in zip(itertools.cycle(("o-", "x--", "s:", "^-.")), runs):
        evals = [line for line in read_metrics(run) if "val_loss" in line]
        if not evals:
            raise MalformedFile(f"{run} holds no validation loss to compare")
        name = f"{Path(run).resolve().name} (last {evals[-1]['val_loss']:.4f})"
        axis.plot([e["step"] for e in evals], [e["val_loss"] for e in evals], style, ms=5, label=name)
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter("{x:g}")
    axis.set_ylabel("validation loss (nats per token)")
    axis.set_xlabel("step")
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return Path(path)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(prog=PROG, description=__doc__, examples=EXAMPLES, allow_abbrev=False)
    parser.add_argument("run", type=Path, nargs="+", help="a run folder; several are compared in one picture")
    parser.add_argument(
        "--out", type=Path, help="the picture [loss.png in the folder of one run, losses.png of several]"
    )
    o = parser.parse_args(arguments)

    def work() -> None:
        print(draw_comparison(o.run, o.out or "losses.png") if o.run[1:] else draw_run(o.run[0], o.out))

    return run_command(PROG, work)


if __name__ == "__main__":
    begin_command()
    sys.exit(main())
