"""python -m pyllmc.evaluate MODEL [MODEL ...]: score models on benchmarks by their published protocols, or on your own texts and
questions; the paper's figures stand beside yours."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pyllmc.base.errors import InvalidArgument, SystemFailure, begin_command, run_command

if __name__ == "__main__":
    begin_command("numpy", "cffi")

from pyllmc.base import live
from pyllmc.draw.curves import names_of
from pyllmc.draw.picture import checked_path
from pyllmc.draw.scores import Panel, draw_bars, draw_course
from pyllmc.engine.checkpoint import is_run
from pyllmc.engine.run_files import read_scores
from pyllmc.evaluate import report
from pyllmc.evaluate.exam import KNOWN, Exam, Record, named
from pyllmc.evaluate.opening import checkpoints_of, open_scorer, step_of
from pyllmc.evaluate.task import Task
from pyllmc.evaluate.tasks.choices import OwnChoices
from pyllmc.evaluate.tasks.text import OwnText
from pyllmc.tables.options import Parser, add_options, at_least

PROG = "pyllmc.evaluate"
EXAMPLES = (
    "python -m pyllmc.evaluate hub:gpt2 --tasks=lambada,wikitext2",
    "python -m pyllmc.evaluate runs/demo --text=my.txt --choices=my.jsonl",
    "python -m pyllmc.evaluate runs/a runs/b --tasks=ptb --out=both.png",
    "python -m pyllmc.evaluate runs/demo --text=my.txt --every_checkpoint",
    "python -m pyllmc.evaluate hub:gpt2 --tasks=hellaswag --shots=5 --json",
)
OPTIONS = ("threads", "precision", "device")  # rows of csrc/options.def


def make_parser() -> Parser:
    parser = Parser(prog=PROG, description=__doc__, examples=EXAMPLES, allow_abbrev=False)
    parser.add_argument(
        "model",
        nargs="+",
        help="a run folder (its best.ckpt, else last.ckpt), a checkpoint, weights of Hugging Face's or nanoGPT's, "
        "or a name of the hub: hub:gpt2, owner/name; several are set beside each other",
    )
    parser.add_argument("--tasks", default="", metavar="NAME,NAME", help=f"among {', '.join(KNOWN)}")
    parser.add_argument(
        "--data",
        metavar="PATH",
        help="the folder, or the file, of the tasks' data; default: the hub's, through datasets",
    )
    parser.add_argument("--text", action="append", default=[], metavar="FILE", help="a text of your own")
    parser.add_argument(
        "--choices", action="append", default=[], metavar="FILE",
        help='questions of your own: lines {"context": "...", "choices": ["...", "..."], "answer": 0}',
    )  # fmt: skip
    parser.add_argument(
        "--limit",
        type=at_least(1),
        metavar="N",
        help="the first N records of each task, questions of --choices and documents of --text alone",
    )
    parser.add_argument(
        "--shots",
        type=at_least(0),
        default=0,
        metavar="K",
        help="examples before each question, of the training part [0]",
    )
    parser.add_argument("--seed", type=at_least(0), default=0, help="draws those examples [0]")
    parser.add_argument(
        "--every_checkpoint", action="store_true",
        help="score every checkpoint that a run keeps (--keep), and draw the scores against the steps",
    )  # fmt: skip
    parser.add_argument(
        "--out",
        metavar="PICTURE",
        help="draw the scores: a .png, .svg or .pdf [evaluate.png of the run with --every_checkpoint]",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument(
        "--tokenizer", default="", help="a tokenizer.bin, vocab.bpe, run or export; default: the model's own"
    )
    parser.add_argument(
        "--B", type=at_least(0), default=0, help="sequences in memory; 0: some 2,048 tokens [0]"
    )
    add_options(parser, OPTIONS)
    return parser


def tasks_of(o: Any) -> list[Task]:
    """What is asked. Raises InvalidArgument if nothing is."""
    tasks = [*named(o.tasks), *map(OwnText, o.text), *map(OwnChoices, o.choices)]
    if not tasks:
        raise InvalidArgument(
            f"name what to score: --tasks among {', '.join(KNOWN)}; or --text=FILE, --choices=FILE"
        )
    names = [task.name for task in tasks]
    if twice := {name for name in names if names.count(name) > 1}:
        raise InvalidArgument(f"{min(twice)} is named twice: give it once, or two files different names")
    for path in [*o.text, *o.choices]:
        if not Path(path).is_file():
            raise SystemFailure(f"{path} is no file: check the path")
    return tasks


def models_of(o: Any) -> dict[str, tuple[str, int | None]]:
    """The weights to score, with their names in the table, and their steps if they have any."""
    if o.every_checkpoint:
        if o.model[1:]:
            raise InvalidArgument("--every_checkpoint is of one run: name one")
        return {path: (f"step {step:,}", step) for step, path in checkpoints_of(o.model[0]).items()}
    sources = list(dict.fromkeys(o.model))
    names = names_of(sources) if sources[1:] else sources
    return {source: (name, step_of(source)) for source, name in zip(sources, names)}


def run_of(source: str) -> Path | None:
    """The run's folder that weights belong to, where their scores are kept."""
    folder = Path(source) if Path(source).is_dir() else Path(source).parent
    return folder if is_run(folder) else None


def panels_of(records: Sequence[Record], names: dict[str, str]) -> list[Panel]:
    found: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        found.setdefault((record["task"], record["metric"]), []).append(record)
    return [
        Panel(
            f"{task}: {report.NAMES.get(metric, metric)}",
            [names[record["model"]] for record in some],
            [record["value"] if math.isfinite(record["value"]) else math.nan for record in some],
            [record["error"] or 0.0 for record in some],
            metric.startswith("acc"),
            some[0]["paper"] or {},
        )
        for (task, metric), some in found.items()
    ]


def draw(o: Any, records: Sequence[Record], names: dict[str, str]) -> Path | None:
    panels = panels_of(records, names)
    if o.every_checkpoint:
        steps = list(dict.fromkeys(record["step"] for record in records))
        return draw_course(
            o.out, steps, panels, f"{Path(o.model[0]).resolve().name}: scores of its checkpoints"
        )
    return draw_bars(o.out, panels, "Scores") if o.out else None


def why_not_kept(run: Path | None, scores: Sequence[Record]) -> str:
    """Keeps scores in their run's folder, if they have one. Returns why they cannot be written there; the work goes on without."""
    try:
        if run:
            report.keep(run, scores)
    except SystemFailure as error:
        return str(error)
    return ""


def evaluate(o: Any) -> None:
    exam = Exam(tasks_of(o), o.data, o.limit, o.shots, o.seed)
    models, records = models_of(o), []
    names = {source: name for source, (name, _) in models.items()}
    if o.every_checkpoint:
        o.out = o.out or str(Path(o.model[0], "evaluate.png"))
    if o.out:
        checked_path(o.out)
    folders = {source: run_of(source) for source in models}
    for folder in filter(None, folders.values()):
        read_scores(folder)  # a file that scores cannot be added to is refused before the work begins
    not_kept = ""
    for source, (_, step) in models.items():
        live.show(f"opening {source}")
        scorer = open_scorer(source, o.tokenizer, o.B, **{name: getattr(o, name) for name in OPTIONS})
        for scores in exam.run(source, scorer, step):
            records += scores
            not_kept = not_kept or why_not_kept(folders[source], scores)
    live.clear()
    print(report.as_json(records) if o.json else report.table(records, names), end="" if o.json else "\n")
    if not_kept:
        warnings.warn(
            f"the scores are only shown (--json > FILE keeps them elsewhere): {not_kept}",
            RuntimeWarning,
            stacklevel=1,
        )
    if picture := draw(o, records, names):
        print(f"picture: {picture}", file=sys.stderr if o.json else sys.stdout)


def main(arguments: Sequence[str] | None = None) -> int:
    o = make_parser().parse_args(arguments)
    return run_command(PROG, lambda: evaluate(o))


if __name__ == "__main__":
    sys.exit(main())
