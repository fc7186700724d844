"""python -m pyllmc.grade RUN: let a model trained on the stories write some, and grade them by the grammar."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pyllmc.errors import EXIT_CODES, begin_command, python_command, run_command

if __name__ == "__main__":
    begin_command("numpy", "cffi")

from pyllmc import exam, live, stories
from pyllmc.options import Parser, at_least
from pyllmc.writer import open_writer, tell_weights

PROG = "pyllmc.grade"


def grade(run: str, count: int, show: int, temperature: float, seed: int) -> None:
    """Prints the first `show` of `count` stories, and what the exam says of all."""
    tell_weights(PROG, run, f"{python_command()} -m {PROG} ")
    writer = open_writer(run)
    texts = [
        writer.write(max_new_tokens=240, temperature=temperature, seed=seed + i).strip()
        for i in live.each(range(count), "grading: story")
    ]
    known = live.each(stories.generate(stories.DEFAULT), "reading: story", stories.DEFAULT)
    for text in texts[:show]:
        print(f"\n{text}")
    print(f"\n{exam.exam(texts, known).report()}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(prog=PROG, description=__doc__, epilog=EXIT_CODES, allow_abbrev=False)
    parser.add_argument("run", help="a run folder (its best.ckpt, else last.ckpt) or a checkpoint")
    parser.add_argument("--count", type=at_least(1), default=50, help="stories to grade [50]")
    parser.add_argument("--show", type=at_least(0), default=2, help="stories to print [2]")
    parser.add_argument("--temperature", type=float, default=0.8, help="of the sampling [0.8]")
    parser.add_argument("--seed", type=at_least(0), default=1, help="of the first story [1]")
    o = parser.parse_args(arguments)
    return run_command(PROG, lambda: grade(**vars(o)))


if __name__ == "__main__":
    sys.exit(main())
