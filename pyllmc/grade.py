"""python -m pyllmc.grade RUN: let a model trained on the stories write some, and grade them by the grammar."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pyllmc.base.errors import InvalidArgument, begin_command, python_command, run_command

if __name__ == "__main__":
    begin_command("numpy", "cffi")

from pyllmc.base import live
from pyllmc.stories import exam, telling
from pyllmc.stories.telling import readings, split_sentences
from pyllmc.tables.options import Parser, at_least, number
from pyllmc.writer import open_writer, tell_weights

PROG = "pyllmc.grade"
EXAMPLES = (
    "python -m pyllmc.grade runs/demo",
    "python -m pyllmc.grade runs/demo --count=200 --show=0 --temperature=0.6",
)


PROBE = 3  # texts after which a model that writes no story is refused


def refuse_other_text(texts: list[str], run: str) -> None:
    """Raises InvalidArgument if no text is a story, because the grammar reads no other text and would give it 0 %."""
    if not any(readings(part) for text in texts for part in split_sentences(text)[0]):
        raise InvalidArgument(
            f"{run} writes no stories: of the first {len(texts)} texts the grammar accepts not one sentence, and it knows "
            f"those of {telling.default_folder()} only: grade a model that was trained on them, for long enough"
        )


def grade(run: str, count: int, show: int, temperature: float, seed: int) -> None:
    """Prints the first `show` of `count` stories, and the exam's report on all of them."""
    writer, texts = open_writer(run), []
    for i in live.each(range(count), "grading: story"):
        texts.append(writer.write(max_new_tokens=240, temperature=temperature, seed=seed + i).strip())
        if i + 1 == min(PROBE, count):
            refuse_other_text(texts, run)
            tell_weights(PROG, run, f"{python_command()} -m {PROG} ")
    known = live.each(telling.generate(telling.DEFAULT), "reading: story", telling.DEFAULT)
    for text in texts[:show]:
        print(f"\n{text}")
    print(f"\n{exam.exam(texts, known).report()}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(prog=PROG, description=__doc__, examples=EXAMPLES, allow_abbrev=False)
    parser.add_argument("run", help="a run folder (its best.ckpt, else last.ckpt) or a checkpoint")
    parser.add_argument("--count", type=at_least(1), default=50, help="stories to grade [50]")
    parser.add_argument("--show", type=at_least(0), default=2, help="stories to print [2]")
    parser.add_argument("--temperature", type=number, default=0.8, help="randomness of the stories [0.8]")
    parser.add_argument("--seed", type=at_least(0), default=1, help="seed of the first story [1]")
    o = parser.parse_args(arguments)
    return run_command(PROG, lambda: grade(**vars(o)))


if __name__ == "__main__":
    sys.exit(main())
