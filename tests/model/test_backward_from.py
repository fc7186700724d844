"""The backward pass from a gradient of the logits, for losses of one's own, on every instruction set and device."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import BF16_ISAS, DEVICES, ISAS
from test_model import CASES, batch_of, make_reference, random_weights

import pyllmc
from pyllmc.base.errors import InvalidArgument

CPUS = [("cpu", "fp32", isa) for isa in ISAS] + [("cpu", "bf16", isa) for isa in BF16_ISAS]
OTHERS = [tuple(f"{name}_bf16".split("_")[:2]) for name in DEVICES]
ALL = CPUS + [(device, precision, "") for device, precision in OTHERS]
MOST = {"fp32": 2e-5, "bf16": 4e-2}  # error, as a share of a gradient's norm


def engine(name: str, device: str, precision: str, isa: str, monkeypatch, **how) -> pyllmc.Model:
    if isa:
        monkeypatch.setenv("PYLLMC_ISA", isa)
    c = CASES[name]
    m = pyllmc.Model(c.config, *c.room, device=device, precision=precision, threads=2, **how)
    for key, value in random_weights(c).items():
        m.params[key] = value
    return m


def given(name: str) -> np.ndarray:
    c = CASES[name]
    return np.random.default_rng(3).normal(size=(*c.shape, c.config.vocab_size)).astype(np.float32)


def expected(name: str) -> dict[str, np.ndarray]:
    """The same gradients by PyTorch, in float64."""
    gpt, inputs = make_reference(CASES[name]).double(), torch.from_numpy(batch_of(CASES[name]).inputs).long()
    gpt(inputs)[0].backward(torch.from_numpy(given(name)).double())
    return {key: p.grad.numpy() for key, p in gpt.named_parameters()}


def assert_close(m: pyllmc.Model, wanted: dict[str, np.ndarray], most: float, factor: float = 1) -> None:
    for key, right in wanted.items():
        off = np.linalg.norm(m.grads[key] - factor * right)
        assert off <= most * (np.linalg.norm(right) + 1e-2), (key, off, np.linalg.norm(right))


@pytest.mark.parametrize("where", ALL, ids=lambda where: "-".join(filter(None, where)))
@pytest.mark.parametrize("name", ["smaller_than_room", "banded"])
def test_any_gradient_of_the_logits_goes_back(name, where, monkeypatch):
    m, inputs = engine(name, *where, monkeypatch), batch_of(CASES[name]).inputs
    m.forward(inputs)
    m.backward(dlogits=given(name), accumulate=False)
    wanted = expected(name)
    assert_close(m, wanted, MOST[where[1]])
    m.forward(inputs)
    m.backward(dlogits=given(name))
    assert_close(m, wanted, MOST[where[1]], factor=2)
    m.forward(inputs)
    m.backward(dlogits=given(name), accumulate=False)
    assert_close(m, wanted, MOST[where[1]])


@pytest.mark.parametrize("keep_logits", [True, False])
def test_the_losss_own_gradient_is_written_or_added(keep_logits, monkeypatch):
    """Written over NaN, it is what a micro-step writes, to the bit."""
    name, batch = "big_vocabulary", batch_of(CASES["big_vocabulary"])
    m = engine(name, "cpu", "fp32", "", monkeypatch, keep_logits=keep_logits)
    m.micro_step(batch.inputs, batch.targets, accumulate=False)
    wanted = {key: m.grads[key].copy() for key in m.grads}
    for key in m.grads:
        m.grads[key][...] = np.nan
    m.forward(batch.inputs, batch.targets)
    m.backward(accumulate=False)
    assert all(np.array_equal(m.grads[key], wanted[key]) for key in m.grads)


def test_what_is_refused(monkeypatch):
    c = CASES["odd_tokens"]
    m = engine("odd_tokens", "cpu", "fp32", "", monkeypatch)
    with pytest.raises(InvalidArgument, match="backward needs a forward pass just before it"):
        m._check(m._lib.llmc_model_backward_from(m._handle, pyllmc.engine._ffi.ffi().new("float *"), 1, 1))
    m.forward(batch_of(c).inputs)
    with pytest.raises(InvalidArgument, match="not of the shape of the logits"):
        m.backward(dlogits=np.zeros((1, 2, 3)))
    with pytest.raises(InvalidArgument, match="a forward pass with targets just before it"):
        m.backward()
    m.backward(dlogits=given("odd_tokens"))
    with pytest.raises(InvalidArgument, match="a forward pass just before it"):
        m.backward(dlogits=given("odd_tokens"))


def test_a_step_that_was_set_counts_on(monkeypatch):
    m = engine("odd_tokens", "cpu", "fp32", "", monkeypatch)
    m._check(m._lib.llmc_model_set_step(m._handle, 7))
    m.update()
    assert m.step == 8
    with pytest.raises(InvalidArgument, match="step=-1 is not >= 0"):
        m._check(m._lib.llmc_model_set_step(m._handle, -1))


@pytest.mark.parametrize("still", [False, True])
def test_which_tensors_decay(still, monkeypatch):
    """Without gradients only the decay changes a tensor."""
    m = engine("odd_tokens", "cpu", "fp32", "", monkeypatch)
    before = {key: m.params[key].copy() for key in m.params}
    m.zero_grad()
    m.update(lr=0.1, weight_decay=0.5, still_embeddings=still)
    changed = {key for key in m.params if not np.array_equal(m.params[key], before[key])}
    matrices = {key for key in m.params if m.params[key].ndim == 2}
    embeddings = {"transformer.wte.weight", "transformer.wpe.weight"}
    assert changed == (matrices - embeddings if still else matrices)
