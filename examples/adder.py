"""A GPT learns to add two numbers of two digits. Its exam: 500 sums that it has never seen. minGPT's adder.

    python examples/adder.py
    python examples/adder.py --digits=3 --trainer.max_iters=10000

It is written for minGPT's interface: with `mingpt` instead of `pyllmc.mingpt` in the imports, the same file runs on PyTorch.
"""

# %%
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


# %% The settings.
def get_config():
    """Every setting; a word such as --trainer.learning_rate=1e-3 changes one."""
    config = CfgNode(
        digits=2,
        seed=3407,
        out="adder.png",
        model=GPT.get_default_config(),
        trainer=Trainer.get_default_config(),
    )
    config.model.model_type = "gpt-nano"  # 3 layers, 3 heads, 48 channels
    config.model.embd_pdrop = config.model.resid_pdrop = config.model.attn_pdrop = 0.0
    config.trainer.max_iters = 1500
    config.trainer.learning_rate = 3e-3
    config.trainer.num_workers = 0  # a batch is a few rows of a tensor: no process of its own is worth it
    return config


def check(config):
    """Raises ValueError for a setting with which the program would end later."""
    for node, prefix, name, kind, least, most in (
        (config, "", "digits", int, 1, 3),
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
def digits_of(numbers, n):
    """The n digits of each number, the last one first: 135 -> 5 3 1."""
    return torch.stack([numbers // 10**i % 10 for i in range(n)], dim=1)


def make_sums(n):
    """Every sum of two numbers of n digits as a row: 85 + 50 = 135 is 8 5 5 0 5 3 1.

    The answer is written backwards, because a carry goes from right to left: each digit then depends on what stands before it.
    """
    a, b = (x.flatten() for x in torch.meshgrid(*[torch.arange(10**n)] * 2, indexing="ij"))
    return torch.cat([digits_of(a, n).flip(1), digits_of(b, n).flip(1), digits_of(a + b, n + 1)], dim=1)


def make_dataset(sums, n):
    """Pairs (x, y): from each digit the next one is predicted. The question is not learnt: -1 is no target."""
    x, y = sums[:, :-1], sums[:, 1:].clone()
    y[:, : 2 * n - 1] = -1
    return TensorDataset(x, y)


# %% The exam.
def answer(model, sums, n):
    """The answers as rows with their questions, and which of them are right."""
    model.eval()
    answers = model.generate(sums[:, : 2 * n], n + 1)  # the likeliest digit, n + 1 times
    model.train()
    return answers, (answers == sums).all(1)


def give_exam(model, sums, n, what):
    """Asks for the answers, prints a few that are wrong, and returns the share that is right."""
    answers, right = answer(model, sums, n)
    for row in answers[~right][:3].tolist():
        a, b, c = (int("".join(map(str, part))) for part in (row[:n], row[n : 2 * n], row[2 * n :][::-1]))
        print(f"  {a} + {b} = {c}? It is {a + b}")
    print(f"{what}: {int(right.sum())} of {len(sums)} sums are right")
    return right.double().mean().item()


def draw(curve, path):
    """Draws the share of right answers to what the model has never seen, against the iterations."""
    matplotlib.use("Agg")
    figure, axis = matplotlib.pyplot.subplots(figsize=(6, 3))
    axis.plot(*zip(*curve))
    axis.set(xlabel="iteration", ylabel="held-out sums that are right", ylim=(0, 1.03))
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
        config.model.vocab_size = 10
        config.model.block_size = 3 * config.digits  # the last digit is never read
        model = GPT(config.model)
        if config.trainer.device != "auto":
            model.to(config.trainer.device)
        model.configure_optimizers(config.trainer)  # so that betas which cannot be are refused here
    except (ValueError, TypeError, RuntimeError, AssertionError, AttributeError, LookupError) as error:
        raise SystemExit(f"adder.py: {error}") from None
    n = config.digits
    sums = make_sums(n)
    sums = sums[torch.randperm(len(sums), generator=torch.Generator().manual_seed(1337))]
    exam = min(500, len(sums) // 5)
    held_out, seen = sums[:exam], sums[exam:]

    trainer = Trainer(config.trainer, model, make_dataset(seen, n))

    def slow_down(trainer):
        """Lowers the learning rate in a straight line to 0, so that the last steps only polish."""
        for group in trainer.optimizer.param_groups:
            group["lr"] = config.trainer.learning_rate * (1 - trainer.iter_num / config.trainer.max_iters)

    curve = []

    def report(trainer):
        if trainer.iter_num % 100 == 0:
            curve.append((trainer.iter_num, answer(model, held_out, n)[1].double().mean().item()))
            print(
                f"iteration {trainer.iter_num}: loss {trainer.loss.item():.4f}, {curve[-1][1]:.0%} of the held-out sums right"
            )

    trainer.add_callback("on_batch_end", slow_down)
    trainer.add_callback("on_batch_end", report)
    start = time.time()
    trainer.run()
    draw(curve, config.out)
    print(f"trained for {time.time() - start:.1f} s")
    give_exam(model, seen[:500], n, "sums it has seen")
    return give_exam(model, held_out, n, "sums it has never seen")


if __name__ == "__main__":
    main(sys.argv[1:])
