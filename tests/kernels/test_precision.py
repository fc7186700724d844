"""Precision bf16, the whole model: as close to the float64 answer as PyTorch's own model in bf16, masters in float."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import test_model
import torch
from conftest import BF16_ISAS, ffi, lib
from test_master import halves
from test_memory import forward_backward, micro_step
from test_model import (
    CASES,
    ON,
    batch_of,
    bits,
    engine_steps,
    gradients,
    make_engine,
    make_reference,
    random_weights,
)
from test_trainer import QUIET, TINY, data  # noqa: F401

import pyllmc
from pyllmc import InvalidArgument, NoDevice
from pyllmc.convert.source import make_config
from pyllmc.engine import _ffi


@pytest.fixture(params=BF16_ISAS)
def isa(request, monkeypatch) -> str:
    """Models of test_model.py are made in bf16."""
    monkeypatch.setenv("PYLLMC_ISA", request.param)
    monkeypatch.setitem(ON, "precision", "bf16")
    return request.param


def torch_results(
    model, inputs, targets, kind: torch.dtype
) -> tuple[np.ndarray, float, dict[str, np.ndarray]]:
    """Logits, loss, and gradients by name, of a model whose weights and activations are stored in `kind`."""
    model = copy.deepcopy(model).to(kind)
    logits, loss = model(torch.from_numpy(inputs).long(), torch.from_numpy(targets).long())
    loss.backward()
    grads = {name: p.grad.double().numpy() for name, p in model.named_parameters()}
    return logits.detach().double().numpy(), loss.item(), grads


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(np.asarray(a, np.float64) - b))


def rounded(x: np.ndarray) -> np.ndarray:
    return torch.from_numpy(x.copy()).bfloat16().float().numpy()


# Both round the same tensors where they store them, so that either is closer by luck: over many seeds our logits err as much as
# PyTorch's (1.00), our gradients less (0.95), and one model's by 10 % more or less.
LUCK = 1.2


@pytest.mark.parametrize("name", ["smaller_than_room", "banded", "odd_channels", "thirteen_layers"])
def test_as_close_as_pytorch(isa, name):
    c, model = CASES[name], make_reference(CASES[name])
    inputs, targets, _ = batch_of(c)
    exact, theirs = (torch_results(model, inputs, targets, kind) for kind in (torch.float64, torch.bfloat16))
    m = make_engine(c)
    assert m.isa == isa
    loss, logits = m.forward(inputs, targets), m.logits
    grads = gradients(m, inputs, targets)
    assert distance(logits, exact[0]) <= LUCK * distance(theirs[0], exact[0])
    assert abs(loss - exact[1]) <= 2 * abs(theirs[1] - exact[1]) + 1e-3 * abs(exact[1])
    errors = {k: (distance(grads[k], g), distance(theirs[2][k], g)) for k, g in exact[2].items()}
    ours, pytorch = (np.linalg.norm(each) for each in zip(*errors.values()))
    assert ours <= LUCK * pytorch
    assert not {k: e for k, e in errors.items() if e[0] > 3 * e[1] + 1e-6}
    np.testing.assert_array_equal(logits, rounded(logits), "bf16 was not used at all")


def test_the_optimizer_moves_masters_in_float(isa):
    """Steps that are far smaller than the distance between two numbers of bf16 add up."""
    c = CASES["banded"]
    m, name = make_engine(c), "transformer.h.1.mlp.c_fc.weight"
    before = random_weights(c)[name]
    np.testing.assert_array_equal(m.params[name], before)
    for _ in range(10):
        gradients(m, *batch_of(c))
        m.update(lr=1e-6, betas=(0.0, 0.0), weight_decay=0.0)
    moved = np.abs(m.params[name] - before)
    assert np.median(moved) == pytest.approx(1e-5, rel=0.01)


def logits_of(m: pyllmc.Model, batch) -> bytes:
    m.forward(*batch)
    return m.logits.tobytes()


def test_the_weights_in_use_are_the_rounded_masters(isa, tmp_path):
    """They are after steps, after a load, and after tensors are set."""
    c = CASES["smaller_than_room"]
    batch, m, other = batch_of(c), make_engine(c), make_engine(c)
    fresh = logits_of(m, batch)
    engine_steps(m, [batch_of(c, seed) for seed in range(3)])
    used = logits_of(m, batch)
    assert used != fresh
    m.save(tmp_path / "m.ckpt")
    assert logits_of(pyllmc.Model(tmp_path / "m.ckpt", *c.room, precision="bf16"), batch) == used
    for key in m.params:
        assert (m.params[key] != rounded(m.params[key])).any(), "the masters are rounded"
        other.params[key] = halves(m.params[key])[0]
    assert logits_of(other, batch) == used


@pytest.mark.parametrize("name", ["thirteen_layers", "banded"])
def test_threads_do_not_change_a_bit(isa, name):
    batches = [batch_of(CASES[name], seed) for seed in range(2)]
    one, *others = (bits(make_engine(CASES[name], threads=threads), batches) for threads in (1, 2, 3, 5))
    assert all(other == one for other in others)


@pytest.mark.parametrize("recompute", [1, 2, 3, 4])
def test_recompute_changes_no_bit(isa, recompute):
    """It does not in the layers and in chunks of logits."""
    c = CASES["smaller_than_room"]
    batches = [batch_of(c, seed) for seed in range(2)]
    assert bits(make_engine(c, recompute=recompute), batches) == bits(make_engine(c), batches)
    m = make_engine(c, recompute=recompute, keep_logits=False)
    assert micro_step(m, *batches[0]) == forward_backward(m, *batches[0])


@pytest.mark.parametrize("name", ["odd_tokens", "smaller_than_room", "banded"])
def test_nothing_is_written_between_the_activations(isa, name):
    test_model.test_nothing_is_written_between_the_activations(isa, name)


def test_no_activation_is_read_before_it_is_written(isa):
    test_model.test_no_activation_is_read_before_it_is_written(isa)


@pytest.mark.parametrize("tensor", ["wte", "lmheadw"])
def test_the_padding_of_the_vocabulary_stays_zero(isa, tensor):
    test_model.test_the_padding_of_the_vocabulary_stays_zero(isa, "untied", tensor)


@pytest.mark.parametrize("weights", ["fp32", "int8"])
def test_generation_is_close_to_whole_passes(isa, weights):
    """No other id has a logit that is larger by more than rounding, whether a text is alone or one of many."""
    c = CASES["banded"]
    m = pyllmc.Model(c.config, 3, c.config.max_seq_len, training=False, init_std=0.3, weights=weights, **ON)
    prompts = [[3, 1, 4], [1, 5, 9], [2, 6, 5]]
    alone, together = m.generate(prompts[0], 20, temperature=0), m.generate(prompts, 20, temperature=0)
    for prompt, ids in ((prompts[0], alone), *zip(prompts, together)):
        text = [*prompt, *ids]
        m.forward(np.array([text[:-1]]))
        logits = m.logits[0, len(prompt) - 1 :]
        chosen = logits[np.arange(len(ids)), ids]
        assert (logits.max(axis=1) - chosen <= 0.02 * np.abs(logits).max()).all()


def plan(precision: int):
    config, out = make_config(pyllmc.GPTConfig(50257, 1024, 12, 12, 768), lib)[0], ffi.new("llmc_plan *")
    _ffi.check(
        lib, lib.llmc_plan_memory(config, ffi.new("llmc_room *", (4, 1024, 1, 2, 0, precision)), 1, out)
    )
    return out


def test_activations_take_half_the_memory():
    """Weights in bf16, and what they lack of float masters, take the memory of float weights. Gradients and moments are float."""
    fp32, bf16 = plan(lib.LLMC_FP32), plan(lib.LLMC_BF16)
    assert 0.49 < bf16.acts / fp32.acts < 0.52
    assert (fp32.stored, bf16.stored) == (0, bf16.params)
    assert [bf16.params + bf16.stored, bf16.grads, bf16.moments] == [fp32.params, fp32.grads, fp32.moments]
    for p in (fp32, bf16):
        assert p.total == p.params + p.stored + p.grads + p.moments + p.acts + p.workspace


@pytest.mark.skipif("amx" not in BF16_ISAS, reason="this CPU has no AMX")
def test_no_kernels_for_an_element_are_an_error_that_says_so(monkeypatch):
    monkeypatch.setenv("PYLLMC_ISA", "amx")
    with pytest.raises(
        NoDevice, match="amx has kernels for bf16 only: unset PYLLMC_ISA, or choose the precision bf16"
    ):
        pyllmc.Model("gpt-nano", B=1, T=4, vocab_size=9, precision="fp32")
    assert pyllmc.Model("gpt-nano", B=1, T=4, vocab_size=9, precision="bf16").isa == "amx"
    assert pyllmc.Model("gpt-nano", B=1, T=4, vocab_size=9).isa == "amx"


def test_misspelt():
    with pytest.raises(InvalidArgument, match="one of auto, fp32, bf16"):
        pyllmc.Model("gpt-nano", B=1, T=4, vocab_size=9, precision="fp16")


def losses(**options) -> dict[int, float]:
    return {e.step: e.loss for e in pyllmc.Trainer(**TINY, **QUIET, **options) if e.kind == "step"}


def test_training_resumes_bit_for_bit(isa, data, tmp_path):  # noqa: F811
    common = dict(data=data, max_steps=9, schedule="constant")
    whole = losses(out=tmp_path / "whole", precision="bf16", **common)
    first = losses(out=tmp_path / "part", precision="bf16", **{**common, "max_steps": 5})
    resumed = pyllmc.Trainer(resume=tmp_path / "part", max_steps=9)  # the precision comes from the checkpoint
    assert {**first, **{e.step: e.loss for e in resumed if e.kind == "step"}} == whole
    weights = [pyllmc.Model(tmp_path / run / "last.ckpt", B=1, T=4) for run in ("whole", "part")]
    for key in weights[0].params:
        np.testing.assert_array_equal(*(m.params[key] for m in weights))
