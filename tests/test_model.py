"""The whole model against PyTorch: every tensor of the table, on every instruction set, in awkward shapes."""

from __future__ import annotations

import functools
from typing import NamedTuple, Optional

import numpy as np
import pytest
from conftest import ISAS, assert_parity, ffi, lib

import pyllmc
from pyllmc import layout
from pyllmc.layout import GPTConfig

torch = pytest.importorskip("torch")
from pyllmc import check  # noqa: E402

reference = check.load_reference()


class Case(NamedTuple):
    config: GPTConfig
    room: tuple[int, int]  # B, T
    shape: tuple[int, int]  # b, t
    gain: float = 1  # of the last norm, and so of the logits


def case(V, maxT, L, NH, C, B, T, b=None, t=None, window=0, gain=1) -> Case:
    return Case(GPTConfig(V, maxT, L, NH, C, window), (B, T), (b or B, t or T), gain)


CASES = {
    "one_token": case(5, 4, 1, 1, 4, 1, 1),
    "odd_tokens": case(97, 20, 1, 1, 8, 3, 17),
    "smaller_than_room": case(257, 33, 2, 3, 48, 3, 19, b=2, t=13),
    "thirteen_layers": case(131, 9, 13, 2, 16, 3, 7),
    "big_vocabulary": case(50257, 8, 1, 2, 16, 1, 5),
    "banded": case(129, 40, 3, 4, 64, 2, 37, window=5),
    "window_of_one": case(61, 12, 2, 2, 12, 2, 11, window=1),
    "odd_channels": case(33, 70, 2, 3, 21, 1, 67),
}


def random_weights(c: Case, std: float = 0.1) -> dict[str, np.ndarray]:
    """By PyTorch's names; every tensor random, so that no bias of 0 hides a mistake. Norms are around 1."""
    rng = np.random.default_rng(1)
    drawn = {
        row.torch_name_of(layer): rng.normal(row.init == "ONE", std, row.shape).astype(np.float32)
        for row, layer in layout.parameters(c.config)
    }
    drawn["transformer.wte.weight"] = drawn["transformer.wte.weight"][: c.config.vocab_size]
    drawn["transformer.ln_f.weight"] *= c.gain
    return drawn


def make_engine(c: Case, threads: int = 2) -> pyllmc.Model:
    m = pyllmc.Model(c.config, *c.room, threads=threads)
    for name, value in random_weights(c).items():
        m.params[name][...] = value
    return m


def make_reference(c: Case):
    gpt = reference.GPT(c.config)
    for name, value in random_weights(c).items():
        gpt.get_parameter(name).data = torch.from_numpy(value.copy())
    return gpt


def batch_of(c: Case, seed: int = 0) -> check.Batch:
    return check.random_batch(c.config.vocab_size, *c.shape, seed)


@functools.lru_cache(maxsize=None)
def expected(name: str) -> tuple[check.Result, dict[str, float]]:
    """The float64 answer, and how far from it PyTorch's float32 is."""
    return check.run_torch(make_reference(CASES[name]), *CASES[name].shape, seed=0)


@pytest.fixture(params=ISAS)
def isa(request, monkeypatch) -> str:
    monkeypatch.setenv("PYLLMC_ISA", request.param)
    return request.param


@pytest.mark.parametrize("name", CASES)
def test_every_activation_and_gradient(isa, name):
    c = CASES[name]
    m = make_engine(c)
    assert m.isa == isa
    ours = check.run_engine(m, *batch_of(c))
    wrong = [line for line in check.compare(c.config, ours, *expected(name)) if not line.ok]
    assert not wrong
    assert ours.loss == ours.acts["loss", 0][0]


def test_logits_of_ten_thousand(isa):
    """Softmax without overflow. Rounding a logit of 1e4 moves a probability by 1e-3: gradients need only be finite."""
    c = case(77, 16, 2, 2, 32, 2, 9, gain=3e4)
    ours, (torch64, errors) = check.run_engine(make_engine(c), *batch_of(c)), check.run_torch(make_reference(c), *c.shape, 0)
    assert np.abs(ours.acts["logits", 0]).max() > 1e4
    assert not [l for l in check.compare(c.config, ours, torch64, errors) if l.name.startswith("act") and not l.ok]
    assert all(np.isfinite(g).all() for g in ours.grads.values())


def test_no_tensor_of_the_table_is_left_out():
    c = CASES["banded"]
    ours = check.run_engine(make_engine(c), *batch_of(c))
    seen = {name for kind in (ours.acts, ours.buffers, ours.grads) for name, _ in kind}
    assert {row.name for row in layout.table(c.config)} - seen == {"positions"}
    assert len(ours.grads) == 4 + 12 * c.config.n_layer
