"""What the tests of pyllmc.nn share: a small model, PyTorch's twin of it, a batch, and the comparison of gradients."""

from __future__ import annotations

import torch

from pyllmc import check
from pyllmc.nn import GPT
from pyllmc.tables.layout import GPTConfig

CONFIG = GPTConfig(vocab_size=33, max_seq_len=12, n_layer=2, n_head=2, n_embd=16)
reference = check.load_reference()


def make(**how) -> GPT:
    return GPT(CONFIG, seed=5, threads=2, **how)


def twin(model: GPT):
    """The PyTorch reference with the same weights, in float64."""
    gpt = reference.GPT(CONFIG)
    gpt.load_state_dict({n: p.detach().clone() for n, p in model.named_parameters()})
    return gpt.double()


def batch(b: int = 3, t: int = 9, seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    x, y = torch.randint(33, (2, b, t), generator=g)
    y[0, :2] = -1
    return x, y


def grads(model) -> dict[str, torch.Tensor]:
    return {n: p.grad.double().clone() for n, p in model.named_parameters()}


def assert_same(ours, right, factor: float = 1, most: float = 1e-4) -> None:
    assert ours.keys() == right.keys()
    for name in right:
        off = (ours[name] - factor * right[name]).norm() / (right[name].norm() + 1e-3)
        assert off < most, (name, off)


def in_engine(model: GPT) -> bool:
    return model._gradients.in_place(model._params())
