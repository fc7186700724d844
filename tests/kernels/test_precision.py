"""Precision bf16, the whole model: no further from the float64 answer than PyTorch's own bf16 (autocast)."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from conftest import ISAS, lib
from test_model import CASES, batch_of, make_engine, make_reference
from test_trainer import QUIET, TINY, data  # noqa: F401

import pyllmc
from pyllmc import InvalidArgument, NoDevice

WITH_BF16 = [isa for isa in ISAS if lib.llmc_kernels(isa.encode()).bf16]


def torch_results(model, inputs, targets, autocast: bool) -> tuple[np.ndarray, float, dict[str, np.ndarray]]:
    """Logits, loss, and gradients by name."""
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        logits, loss = model(torch.from_numpy(inputs).long(), torch.from_numpy(targets).long())
    loss.backward()
    grads = {name: p.grad.double().numpy() for name, p in model.named_parameters()}
    return logits.detach().double().numpy(), loss.item(), grads


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(np.asarray(a, np.float64) - b))


@pytest.mark.parametrize("name", ["smaller_than_room", "banded", "odd_channels", "thirteen_layers"])
@pytest.mark.parametrize("isa", WITH_BF16)
def test_closer_than_autocast(isa, name, monkeypatch):
    monkeypatch.setenv("PYLLMC_ISA", isa)
    c, model = CASES[name], make_reference(CASES[name])
    batch = batch_of(c)
    inputs, targets = batch.inputs, batch.targets
    exact = torch_results(copy.deepcopy(model).double(), inputs, targets, autocast=False)
    theirs = torch_results(model, inputs, targets, autocast=True)
    m = make_engine(c)
    m._check(lib.llmc_model_set_precision(m._handle, b"bf16"))
    loss = m.forward(inputs, targets)
    logits = np.array(m.logits, np.float64)
    m.zero_grad()
    m.backward()
    assert distance(logits, exact[0]) <= distance(theirs[0], exact[0])
    assert abs(loss - exact[1]) <= 2 * abs(theirs[1] - exact[1]) + 1e-3 * abs(exact[1])
    errors = {k: (distance(m.grads[k], g), distance(theirs[2][k], g)) for k, g in exact[2].items()}
    assert np.linalg.norm([ours for ours, _ in errors.values()]) <= np.linalg.norm(
        [e for _, e in errors.values()]
    )
    assert not {k: e for k, e in errors.items() if e[0] > 2 * e[1] + 1e-6}
    fp32 = make_engine(c)
    fp32.forward(inputs, targets)
    assert distance(fp32.logits, exact[0]) < distance(logits, exact[0]) / 4, "bf16 was not used at all"


def test_refused_where_the_cpu_has_none(monkeypatch):
    monkeypatch.setenv("PYLLMC_ISA", "generic")
    with pytest.raises(NoDevice, match="leave the precision at fp32"):
        pyllmc.Model("gpt-nano", B=1, T=4, vocab_size=9, precision="bf16")


def test_misspelt():
    with pytest.raises(InvalidArgument, match="one of auto, fp32, bf16"):
        pyllmc.Model("gpt-nano", B=1, T=4, vocab_size=9, precision="fp16")


def losses(**options) -> dict[int, float]:
    return {e.step: e.loss for e in pyllmc.Trainer(**TINY, **QUIET, **options) if e.kind == "step"}


@pytest.mark.parametrize("isa", WITH_BF16)
def test_training_resumes_bit_for_bit(isa, data, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("PYLLMC_ISA", isa)
    common = dict(data=data, max_steps=9, schedule="constant")
    whole = losses(out=tmp_path / "whole", precision="bf16", **common)
    fp32 = losses(out=tmp_path / "fp32", **common)
    assert whole[9] != fp32[9] and abs(whole[9] - fp32[9]) < 0.05
    first = losses(out=tmp_path / "part", precision="bf16", **{**common, "max_steps": 5})
    resumed = pyllmc.Trainer(resume=tmp_path / "part", max_steps=9)  # the precision comes from the checkpoint
    assert {**first, **{e.step: e.loss for e in resumed if e.kind == "step"}} == whole
