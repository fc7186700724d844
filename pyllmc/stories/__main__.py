"""The command that makes, shows or examines the stories of the default corpus.

python3 -m pyllmc.stories                     makes the training data
python3 -m pyllmc.stories --print 3           only shows three stories
python3 -m pyllmc.stories --exam samples.txt  tells which share of these the grammar accepts
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pyllmc.base.errors import BadFile, begin_command, run_command

if __name__ == "__main__":
    begin_command()

from pyllmc.stories.exam import exam, split_texts
from pyllmc.stories.telling import DEFAULT, default_folder, generate, write_dataset
from pyllmc.tables.options import Parser, at_least

PROG = "pyllmc.stories"
EXAMPLES = (
    "python -m pyllmc.stories            makes the default data",
    "python -m pyllmc.stories --print=3  shows three stories",
    "python -m pyllmc.stories --exam=a.txt  grades a story a line",
)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog=PROG,
        allow_abbrev=False,
        description="Make the embedded default corpus, or examine stories by its grammar.",
        examples=EXAMPLES,
    )
    parser.add_argument("--out", metavar="FOLDER", help=f"folder for the data set ({default_folder()})")
    parser.add_argument("--overwrite", action="store_true", help="replace the data set in that folder")
    parser.add_argument("--stories", type=at_least(1), default=DEFAULT, metavar="N", help="(%(default)s)")
    parser.add_argument("--seed", type=at_least(1), default=1, metavar="S", help="(%(default)s)")
    parser.add_argument("--print", type=at_least(1), metavar="K", help="only print K stories")
    parser.add_argument(
        "--exam",
        metavar="FILE",
        help="examine the stories in FILE (- is standard input); "
        "copies are looked for among the N stories of seed S",
    )
    parser.add_argument(
        "--cut",
        action="store_true",
        help="with --exam: a text without an end mark was cut off and need only begin a story",
    )
    return parser


def _examine(file: str, stories: int, seed: int, complete: bool) -> str:
    raw = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    try:
        texts = split_texts(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise BadFile(f"{file} is not UTF-8 text ({error}); save it as UTF-8") from None
    if not texts:
        raise BadFile(f"{file} holds no text; give a file with one story on each line")
    return exam(texts, generate(stories, seed), complete=complete).report()


def _run(args: argparse.Namespace) -> None:
    if args.exam:
        print(_examine(args.exam, args.stories, args.seed, complete=not args.cut))
    elif args.print:
        print("\n\n".join(generate(args.print, args.seed)))
    else:
        write_dataset(args.out or default_folder(), args.stories, args.seed, args.overwrite)


def main(argv: Sequence[str] | None = None) -> int:
    parser = _parser()
    args = parser.parse_args(argv)
    if sum(map(bool, (args.exam, args.print, args.out))) > 1:
        parser.error("--exam, --print and --out are three different jobs; give one of them")
    if args.cut and not args.exam:
        parser.error("--cut belongs to --exam FILE")
    if args.overwrite and (args.exam or args.print):
        parser.error("--overwrite belongs to the making of a data set")
    return run_command(PROG, lambda: _run(args))


if __name__ == "__main__":
    sys.exit(main())
