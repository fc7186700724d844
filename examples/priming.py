"""GPT-3's priming, small enough to see: a model that learns to read examples, and the exam that shows it.

    python examples/priming.py                 # makes the corpus, trains, examines: about three minutes on two cores
    python examples/priming.py --out runs/shots --steps 3000

Every document of the corpus (pyllmc/stories/tasks.py) is one little task, for instance a cipher in which each letter stands for
another, drawn anew for each document:

    ab>fc
    ea>bf
    bd>ca

The queries look alike in every task, so nothing but the lines before tells which answer is right: a model of this corpus can only
get better by learning to read examples. The exam asks for ciphers that were never in the corpus, and for phrase books that
are drawn anew, after 0, 1, 2, 4 and 8 examples. No weight changes between a wrong answer without examples and a right one with
them.
"""

# %%
from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

signal.signal(signal.SIGINT, lambda *_: sys.exit(130))  # Ctrl-C ends the program without a traceback

import pyllmc
from pyllmc.base.errors import end_in_one_line
from pyllmc.draw.shots import draw_shots
from pyllmc.stories import tasks
from pyllmc.stories.dice import Dice
from pyllmc.tables.options import at_least
from pyllmc.text.dataset import write_dataset

SHOTS = (0, 1, 2, 4, 8)
T = tasks.LINES * (2 * tasks.SIZE + 2) + 1  # a document: the token before it, and `ab>cd\n` for each line


# %% The corpus and the training.
def train(out: Path, documents: int, steps: int) -> None:
    """Trains a model of 150,000 parameters on windows that are a document each."""
    write_dataset(tasks.generate(documents), out / "data", tokenizer="char", overwrite=True)
    shape = dict(model="demo", n_layer=3, n_head=4, n_embd=64, max_seq_len=T)
    how = dict(B=32, lr=6e-3, max_steps=steps, sample_every=0, log_every=100, overwrite=True)
    for event in pyllmc.Trainer(data=str(out / "data"), out=str(out / "run"), **shape, **how):
        if event.text:
            print(event.text, flush=True)


# %% The exam.
def examine(run: Path, kind: str, shots: int, questions: int) -> tuple[float, float]:
    """The share of right answers, and the share of answers that the examples tell. Each question is another task."""
    writer, dice, right, told = pyllmc.Writer(run), Dice(7), 0, 0
    for _ in range(questions):
        task = tasks.make_task(kind, dice, held_out=True)
        query, answer = task.pairs[shots]
        primer = pyllmc.Primer(writer, task.pairs[:shots], separator=tasks.SEPARATOR, end=tasks.END)
        right += primer.answer(query) == answer
        told += task.told(shots)
    return right / questions, told / questions


# %% All of it.
def main() -> None:
    end_in_one_line()
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/priming"),
        help="folder for data, run and picture [%(default)s]",
    )
    parser.add_argument(
        "--documents", type=at_least(400), default=120_000, help="documents in the corpus [%(default)s]"
    )
    parser.add_argument("--steps", type=at_least(1), default=5000, help="optimizer steps [%(default)s]")
    parser.add_argument(
        "--questions",
        type=at_least(1),
        default=500,
        help="questions of each kind, after each number of examples [%(default)s]",
    )
    o = parser.parse_args()

    os.makedirs(o.out, exist_ok=True)
    train(o.out, o.documents, o.steps)

    print(f"\n{'examples before the query':28}" + "".join(f"{n:>8}" for n in SHOTS))
    right, known = {}, {}
    for kind in tasks.EXAMINED:
        marks = [examine(o.out / "run", kind, n, o.questions) for n in SHOTS]
        right[kind], known[kind] = ([mark[i] for mark in marks] for i in (0, 1))
        print(f"{kind:28}" + "".join(f"{share:>8.1%}" for share in right[kind]))
        print(f"{'  the examples tell':28}" + "".join(f"{share:>8.1%}" for share in known[kind]))
    about = f"{o.questions} tasks that training has not shown, for each number of examples"
    print(f"\npicture: {draw_shots(o.out / 'priming.png', SHOTS, right, known, about=about)}")


if __name__ == "__main__":
    main()
