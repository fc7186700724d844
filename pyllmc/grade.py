"""python -m pyllmc.grade RUN: let a model trained on the stories write some, and grade them by the grammar."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pyllmc.errors import begin_command, run_command

if __name__ == "__main__":
    begin_command("numpy", "cffi")

from pyllmc import exam, stories
from pyllmc.options import Parser, at_least
from pyllmc.writer import open_writer

PROG = "pyllmc.grade"
EXAMPLES = (
    "python -m pyllmc.grade runs/demo",
    "python -m pyllmc.grade runs/demo --count=200 --show=0 --temperature=0.6",
)


def grade(run: str, count: int, show: int, temperature: float, seed: int) -> None:
    """Prints the first `show` of `count` stories, and what the exam says of all."""
    writer = open_writer(run)
    texts = [
        writer.write(max_new_tokens=240, temperature=temperature, seed=seed + i).strip() for i in range(count)
    ]
    for text in texts[:show]:
        print(f"\n{text}")
    print(f"\n{exam.exam(texts, stories.generate(stories.DEFAULT)).report()}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(prog=PROG, description=__doc__, examples=EXAMPLES, allow_abbrev=False)
    parser.add_argument("run", help="a run folder or a checkpoint")
    parser.add_argument("--count", type=at_least(1), default=50, help="stories to grade [50]")
    parser.add_argument("--show", type=at_least(0), default=2, help="stories to print [2]")
    parser.add_argument("--temperature", type=float, default=0.8, help="of the sampling [0.8]")
    parser.add_argument("--seed", type=at_least(0), default=1, help="of the first story [1]")
    o = parser.parse_args(arguments)
    return run_command(PROG, lambda: grade(**vars(o)))


if __name__ == "__main__":
    sys.exit(main())
