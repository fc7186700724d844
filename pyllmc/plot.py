"""python -m pyllmc.plot RUN [RUN ...]: draw the loss curve of a run folder, from its metrics.jsonl, as its loss.png; or several
runs in one picture, by their validation losses."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from pyllmc.base.errors import InvalidArgument, begin_command, run_command

if __name__ == "__main__":
    begin_command("numpy")

from pyllmc.draw.losses import draw_comparison, draw_run
from pyllmc.draw.picture import DARK, LIGHT, PANELS
from pyllmc.tables.options import Parser

PROG = "pyllmc.plot"
EXAMPLES = (
    "python -m pyllmc.plot runs/demo                     draws its loss",
    "python -m pyllmc.plot runs/a runs/b --out both.png  compares them",
)


def parse_panels(text: str) -> tuple[str, ...]:
    names = tuple(PANELS) if text == "all" else tuple(name for name in text.split(",") if name)
    for name in names:
        if name not in PANELS and ":" not in name:
            raise InvalidArgument(
                f"--panels={name} is not one of {', '.join(PANELS)}, all, or a score of --eval_tasks, such as lambada:acc"
            )
    return names


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(prog=PROG, description=__doc__, examples=EXAMPLES, allow_abbrev=False)
    parser.add_argument("run", type=Path, nargs="+", help="a run folder; several are compared in one picture")
    parser.add_argument(
        "--out",
        type=Path,
        help="the picture, a .png, .svg or .pdf [loss.png in the folder of one run, losses.png of several]",
    )
    parser.add_argument("--dark", action="store_true", help="light curves on dark paper")
    parser.add_argument("--x", choices=("step", "tokens"), default="step", help="the horizontal axis [step]")
    parser.add_argument(
        "--panels",
        default="",
        help="curves below the losses of one run: lr, norm, tok_s, or all; and scores of --eval_tasks, such as lambada:acc",
    )
    o = parser.parse_args(arguments)

    def work() -> None:
        style, panels = DARK if o.dark else LIGHT, parse_panels(o.panels)
        if o.run[1:] and panels:
            raise InvalidArgument("--panels is of one run: leave it out, or draw each run by itself")
        if o.run[1:]:
            print(draw_comparison(o.run, o.out or "losses.png", style=style, x=o.x))
        else:
            print(draw_run(o.run[0], o.out, style=style, panels=panels, x=o.x))

    return run_command(PROG, work)


if __name__ == "__main__":
    sys.exit(main())
