"""Dropout in the whole model: against PyTorch with the very masks, which passes drop, and what the masks depend on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from conftest import BF16_ISAS, DEVICES
from test_model import CASES, ON, batch_of, isa, make_engine, make_reference  # noqa: F401, isa is a fixture

import pyllmc
from pyllmc import check
from pyllmc.parity.dropout import Dropouts

P = {"embd": 0.15, "attn": 0.3, "resid": 0.2, "seed": (3 << 32) + 41}
C = CASES["banded"]


def dropping(name: str = "banded", p: dict[str, Any] = P, **options: Any) -> pyllmc.Model:
    m = make_engine(CASES[name], **options)
    m.set_dropout(**p)
    return m


def grads(m: pyllmc.Model) -> dict[str, bytes]:
    return {name: np.asarray(x).tobytes() for name, x in m.grads.items()}


@pytest.mark.parametrize("p", [P, {"embd": 0.4}, {"attn": 0.5}, {"resid": 0.5}], ids=str)
@pytest.mark.parametrize(
    "name", ["odd_tokens", "smaller_than_room", "thirteen_layers", "banded", "odd_channels"]
)
def test_every_activation_and_gradient(isa, name, p):  # noqa: F811
    if p is not P and (name != "banded" or "emu" in isa):
        pytest.skip("one shape is enough to tell the kinds apart")
    c = CASES[name]
    m = dropping(name, p).train()
    m.micro_steps = 5
    ours = check.run_engine(m, *batch_of(c))
    gpt = make_reference(c)
    gpt.dropouts = Dropouts(**p, micro_step=5)
    torch64, errors = check.run_torch(gpt, *c.shape, seed=0)
    lines = list(check.compare(c.config, ours, torch64, errors))
    # the gradient of the sum of the embeddings goes through the buffer `branch`
    assert not [line for line in lines if not line.ok and line.name != "gradient in branch"]
    assert len(lines) > 20
    assert m.micro_steps == 6


def distance(a: pyllmc.Model, b: pyllmc.Model) -> float:
    """How far the gradients of the one are from those of the other, as a share of their norm."""
    pairs = [(np.asarray(a.grads[n], np.float64), np.asarray(b.grads[n], np.float64)) for n in a.grads]
    return float(np.sqrt(sum(((x - y) ** 2).sum() for x, y in pairs) / sum((y**2).sum() for _, y in pairs)))


@pytest.mark.parametrize("kernels", [*BF16_ISAS, *(name for name in DEVICES if not name.endswith("_fp32"))])
def test_bf16_has_the_same_masks(kernels, monkeypatch):
    """In bf16 the gradients are those of fp32 with the same masks, up to rounding; other masks make others."""
    batch = batch_of(C)
    exact, other = dropping(), dropping(p={**P, "seed": 1})
    for m in exact, other:
        m.micro_step(*batch, accumulate=False)
    where = {"device": kernels} if kernels in DEVICES else {}
    if not where:
        monkeypatch.setenv("PYLLMC_ISA", kernels)
    for name, value in {**where, "precision": "bf16"}.items():
        monkeypatch.setitem(ON, name, value)
    m = dropping()
    m.micro_step(*batch, accumulate=False)
    assert distance(m, exact) < 0.05
    assert distance(m, other) > 0.3


def test_threads_and_recompute_do_not_change_a_bit():
    found = set()
    for options in [{"threads": n} for n in (1, 2, 3)] + [{"recompute": n} for n in (1, 2, 3, 4)]:
        m = dropping(**options)
        m.micro_step(*batch_of(C), accumulate=False)
        m.micro_step(*batch_of(C, 1))
        found.add(b"".join(grads(m).values()))
    assert len(found) == 1


def test_micro_step_is_forward_and_backward():
    a, b = dropping(), dropping().train()
    loss = a.micro_step(*batch_of(C), accumulate=False)
    assert b.forward(*batch_of(C)) == loss
    b.zero_grad()
    b.backward()
    assert distance(b, a) < 1e-5
    assert a.micro_steps == b.micro_steps == 1


def test_only_training_drops():
    plain, m = make_engine(C), dropping()
    batch, ids = batch_of(C), [1, 2, 3]
    loss, text = plain.forward(*batch), plain.generate(ids, 9, temperature=0)
    assert m.forward(*batch) == loss
    assert m.generate(ids, 9, temperature=0) == text
    m.train()
    dropped = m.forward(*batch)
    assert dropped != loss
    assert m.generate(ids, 9, temperature=0) == text
    assert m.train(False).forward(*batch) == loss
    m.train().eval()
    assert m.forward(*batch) == loss
    assert m.micro_step(*batch) != loss


def test_backward_after_eval_does_not_drop():
    plain, m = make_engine(C), dropping()
    m.micro_step(*batch_of(C))
    for each in plain, m:
        each.zero_grad()
        each.forward(*batch_of(C))
        each.backward()
    assert grads(m) == grads(plain)


def test_without_dropout_nothing_changes():
    plain, m = make_engine(C), dropping(p={"seed": 9})
    for each in plain, m:
        each.train().micro_step(*batch_of(C), accumulate=False)
    assert grads(m) == grads(plain)
    m.set_dropout(**P)
    m.set_dropout()
    m.micro_step(*batch_of(C), accumulate=False)
    assert grads(m) == grads(plain)


def test_every_pass_has_its_own_masks():
    """Passes of a step differ, steps differ, and a number that is set again makes the same masks again."""
    m, batch = dropping(), batch_of(C)
    losses = [m.micro_step(*batch, accumulate=False), m.micro_step(*batch), m.micro_step(*batch)]
    assert m.micro_steps == 3
    assert m.micro_step(*batch, accumulate=False) == losses[0]
    m.micro_steps = 1
    assert m.micro_step(*batch) == losses[1]
    m.update(lr=0)
    assert m.micro_steps == 0
    losses.append(m.micro_step(*batch, accumulate=False))
    assert len(set(losses)) == 4
    m.train()
    assert m.forward(*batch) != m.forward(*batch)


def test_other_masks_are_used_on_a_device_too():
    """A device that records calls finds new numbers each time."""
    for device in {name.removesuffix("_fp32") for name in DEVICES}:
        m = pyllmc.Model(C.config, *C.room, device=device, precision="fp32")
        m.set_dropout(**P)
        losses = [m.micro_step(*batch_of(C), accumulate=bool(i)) for i in range(4)]
        assert len(set(losses)) == 4
        m.set_dropout()
        assert m.micro_step(*batch_of(C)) == m.forward(*batch_of(C))


@pytest.mark.parametrize("p", [1, -0.1, float("nan"), 1.5])
@pytest.mark.parametrize("kind", ["embd", "attn", "resid"])
def test_impossible_probabilities_are_refused(kind, p):
    m = make_engine(C)
    with pytest.raises(pyllmc.InvalidArgument, match=kind):
        m.set_dropout(**{kind: p})
    assert m.train().forward(*batch_of(C)) == make_engine(C).forward(*batch_of(C))


def test_a_model_without_gradients_cannot_drop():
    m = pyllmc.Model(C.config, *C.room, training=False)
    for call in (lambda: m.set_dropout(embd=0.1), m.train):
        with pytest.raises(pyllmc.InvalidArgument, match="training=True"):
            call()
    m.eval()
