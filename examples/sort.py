"""A GPT learns to sort six digits of 0, 1 and 2. Its exam: a quarter of all rows, which it has never seen. minGPT's demo.

    python examples/sort.py
    python examples/sort.py --length=8 --trainer.max_iters=2000

It is written for minGPT's interface: with `mingpt` instead of `pyllmc.mingpt` in the imports, the same file runs on PyTorch.
"""

# %%
import itertools
import os
import signal
import sys
import time

signal.signal(signal.SIGINT, lambda *_: sys.exit(130))  # Ctrl-C ends the program without a traceback

import matplotlib.pyplot
import torch
from torch.utils.data import TensorDataset

from pyllmc.mingpt.model import GPT
from pyllmc.mingpt.trainer import Trainer
from pyllmc.mingpt.utils import CfgNode, set_seed

DIGITS = 3


# %% The settings.
def get_config():
    """Every setting; a word such as --trainer.learning_rate=1e-3 changes one."""
    config = CfgNode(
        length=6,
        seed=3407,
        out="sort.png",
        model=GPT.get_default_config(),
        trainer=Trainer.get_default_config(),
    )
    config.model.model_type = "gpt-nano"  # 3 layers, 3 heads, 48 channels
    config.model.embd_pdrop = config.model.resid_pdrop = config.model.attn_pdrop = 0.0
    config.trainer.max_iters = 400
    config.trainer.learning_rate = 3e-3
    config.trainer.num_workers = 0  # a batch is a few rows of a tensor: no process of its own is worth it
    return config


def check(config):
    """Raises ValueError for a setting with which the program would end later."""
    for node, prefix, name, kind, least, most in (
        (config, "", "length", int, 2, 12),
        (config, "", "seed", int, 0, 2**32 - 1),
        (config.trainer, "trainer.", "max_iters", int, 1, 10**9),
        (config.trainer, "trainer.", "batch_size", int, 1, 10**6),
        (config.trainer, "trainer.", "num_workers", int, 0, 10**3),
        (config.trainer, "trainer.", "learning_rate", (int, float), 0, 10**3),
        (config.trainer, "trainer.", "weight_decay", (int, float), 0, 10**3),
        (config.trainer, "trainer.", "grad_norm_clip", (int, float), 0, 10**9),
    ):
        value = getattr(node, name)
        if isinstance(value, bool) or not isinstance(value, kind) or not least <= value <= most:
            what = "whole number" if kind is int else "number"
            raise ValueError(f"--{prefix}{name}={value} is no {what} in {least}..{most}")
    if os.path.splitext(str(config.out))[1].lower() not in (".png", ".svg", ".pdf"):
        raise ValueError(f"--out={config.out}: a picture ends with .png, .svg or .pdf: name it so")
    if not os.path.isdir(os.path.dirname(config.out) or "."):
        raise ValueError(f"--out={config.out}: there is no such folder: make it first")
    if not os.access(os.path.dirname(config.out) or ".", os.W_OK):
        raise ValueError(f"--out={config.out}: nothing can be written in that folder: choose another")


# %% The data: every question with its answer.
def make_rows(length):
    """Every row of digits, with the same digits in order behind it: 2 0 1 becomes 2 0 1 0 1 2."""
    rows = torch.tensor(list(itertools.product(range(DIGITS), repeat=length)))
    return torch.cat([rows, rows.sort(dim=1).values], dim=1)


def make_dataset(rows, length):
    """Pairs (x, y): from each digit the next one is predicted. The question is not learnt: -1 is no target."""
    x, y = rows[:, :-1], rows[:, 1:].clone()
    y[:, : length - 1] = -1
    return TensorDataset(x, y)


# %% The exam.
def answer(model, rows, length):
    """The answers as rows with their questions, and which of them are right."""
    model.eval()
    answers = model.generate(rows[:, :length], length)  # the likeliest digit, `length` times
    model.train()
    return answers, (answers == rows).all(1)


def give_exam(model, rows, length, what):
    """Asks for the sorted digits, prints a few that are wrong, and returns the share that is right."""
    answers, right = answer(model, rows, length)
    for row, truth in zip(answers[~right][:3].tolist(), rows[~right].tolist()):
        print(f"  {row[:length]} sorted is {row[length:]}? It is {truth[length:]}")
    print(f"{what}: {int(right.sum())} of {len(rows)} rows are sorted")
    return right.double().mean().item()


def draw(curve, path):
    """Draws the share of right answers to what the model has never seen, against the iterations."""
    matplotlib.use("Agg")
    figure, axis = matplotlib.pyplot.subplots(figsize=(6, 3))
    axis.plot(*zip(*curve))
    axis.set(xlabel="iteration", ylabel="held-out rows that are sorted", ylim=(0, 1.03))
    figure.savefig(path, dpi=150, bbox_inches="tight")
    print(f"wrote {path}")


# %% The training.
def main(arguments):
    config = get_config()
    if {"-h", "--help"} & set(arguments):
        return print(f"{__doc__}\nEvery setting, with its value:\n\n{config}")
    try:
        config.merge_from_args(arguments)
        check(config)
        set_seed(config.seed)
        config.model.vocab_size = DIGITS
        config.model.block_size = 2 * config.length - 1  # the last digit is never read
        model = GPT(config.model)
        if config.trainer.device != "auto":
            model.to(config.trainer.device)
        model.configure_optimizers(config.trainer)  # so that betas which cannot be are refused here
    except (ValueError, TypeError, RuntimeError, AssertionError, AttributeError, LookupError) as error:
        raise SystemExit(f"sort.py: {error}") from None
    rows = make_rows(config.length)
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(1337))]
    exam = len(rows) // 4
    held_out, seen = rows[:exam], rows[exam:]

    trainer = Trainer(config.trainer, model, make_dataset(seen, config.length))

    def slow_down(trainer):
        """Lowers the learning rate in a straight line to 0, so that the last steps only polish."""
        for group in trainer.optimizer.param_groups:
            group["lr"] = config.trainer.learning_rate * (1 - trainer.iter_num / config.trainer.max_iters)

    curve = []

    def report(trainer):
        if trainer.iter_num % 20 == 0:
            curve.append((trainer.iter_num, answer(model, held_out, config.length)[1].double().mean().item()))
            print(
                f"iteration {trainer.iter_num}: loss {trainer.loss.item():.4f}, {curve[-1][1]:.0%} of the held-out rows sorted"
            )

    trainer.add_callback("on_batch_end", slow_down)
    trainer.add_callback("on_batch_end", report)
    start = time.time()
    trainer.run()
    draw(curve, config.out)
    print(f"trained for {time.time() - start:.1f} s")
    give_exam(model, seen[:500], config.length, "rows it has seen")
    return give_exam(model, held_out, config.length, "rows it has never seen")


if __name__ == "__main__":
    main(sys.argv[1:])
