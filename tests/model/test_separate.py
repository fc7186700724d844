"""Documents that share a window and do not see each other, in the whole model: against PyTorch, against each document alone, and
exact zeros across the boundaries."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from conftest import BF16_ISAS, DEVICES
from test_lora import make_lora
from test_model import CASES, ON, Case, isa, make_engine, make_reference  # noqa: F401, isa is a fixture

import pyllmc
from pyllmc import check
from pyllmc.parity.dropout import Dropouts

EOT = 3
C = CASES["banded"]
NAMES = ["odd_tokens", "smaller_than_room", "thirteen_layers", "banded", "odd_channels", "untied"]
DROPOUT = {"embd": 0.15, "attn": 0.3, "resid": 0.2, "seed": 41}


def batch(c: Case, seed: int = 0) -> check.Batch:
    """Random tokens, about every fifth of which begins a document; one of length 1 at the end of each window."""
    ids, targets, weights = check.random_batch(c.config.vocab_size, *c.shape, seed)
    ids = np.where(np.random.default_rng(seed).random(ids.shape) < 0.2, EOT, ids).astype(ids.dtype)
    ids[:, -1] = EOT
    return check.Batch(ids, targets, weights)


def learnt() -> tuple[np.ndarray, np.ndarray]:
    """(ids, targets), of which none is ignored."""
    ids, targets, _ = batch(C)
    return ids, np.maximum(targets, 0)


def separating(c: Case = C, **options) -> pyllmc.Model:
    m = make_engine(c, **options)
    m.separate_documents(EOT)
    return m


@functools.cache
def expected(name: str, drops: bool) -> tuple[check.Result, check.Errors]:
    gpt = make_reference(CASES[name])
    gpt.separator = EOT
    if drops:
        gpt.dropouts = Dropouts(**DROPOUT, micro_step=5)
    errors = check.Errors(gpt, [batch(CASES[name], seed) for seed in range(6)])
    return errors.exact, errors


@pytest.mark.parametrize("drops", [False, True], ids=["", "dropout"])
@pytest.mark.parametrize("name", NAMES)
def test_every_activation_and_gradient(isa, name, drops):  # noqa: F811
    if drops and "emu" in isa and name != "banded":
        pytest.skip("one shape is enough for the emulated kernels with both")
    c = CASES[name]
    m = separating(c)
    if drops:
        m.set_dropout(**DROPOUT)
        m.train().micro_steps = 5
    ours = check.run_engine(m, *batch(c))
    lines = list(check.compare(c.config, ours, *expected(name, drops)))
    # with dropout the gradient of the sum of the embeddings goes through the buffer `branch`
    assert not [line for line in lines if not line.ok and not (drops and line.name == "gradient in branch")]
    assert len(lines) > 20


def documents_of(row: np.ndarray) -> list[slice]:
    begins = [0, *(i for i in range(1, len(row)) if row[i] == EOT), len(row)]
    return [slice(a, b) for a, b in zip(begins, begins[1:])]


def test_the_logits_of_each_document_are_those_of_it_alone(isa):  # noqa: F811
    ids, targets = learnt()
    packed, alone = separating(), make_engine(C)
    packed.forward(ids, targets)
    logits, losses = packed.logits.copy(), np.array(packed.losses)
    seen = {1: 0, 2: 0}
    for b, row in enumerate(ids):
        for part in documents_of(row):
            alone.forward(row[None, part], targets[b, None, part])
            np.testing.assert_allclose(logits[b, part], alone.logits[0], rtol=1e-4, atol=2e-5)
            np.testing.assert_allclose(losses[b, part], np.array(alone.losses)[0], rtol=1e-4, atol=2e-5)
            seen[min(2, len(row[part]))] += 1
    assert min(seen.values()) > 2  # documents of one token, and longer ones


def test_no_gradient_crosses_a_boundary(isa):  # noqa: F811
    """The loss of one document's targets has gradients of exactly 0 for the embeddings of all others."""
    ids, targets = learnt()
    m = separating()
    for part in documents_of(ids[0])[:4]:
        weights = np.zeros(ids.shape, np.float32)
        weights[0, part] = 1
        m.zero_grad()
        m.forward(ids, targets, weights)
        m.backward()
        gradient = np.abs(np.array(m.acts["dresidual"])).max(-1)  # (B, T), of the sum of the embeddings
        mine = np.zeros(ids.shape, bool)
        mine[0, part] = True
        assert (gradient[mine] > 0).all()
        assert (gradient[~mine] == 0).all()


def results(m: pyllmc.Model) -> bytes:
    losses = [m.micro_step(*batch(C), accumulate=False), m.micro_step(*batch(C, 1))]
    return b"".join(np.asarray(x).tobytes() for x in m.grads.values()) + np.array(losses).tobytes()


@pytest.mark.parametrize("drops", [False, True], ids=["", "dropout"])
def test_threads_and_recompute_do_not_change_a_bit(drops):
    found = set()
    for options in [{"threads": n} for n in (1, 2, 3)] + [{"recompute": n} for n in (1, 2, 3, 4)]:
        m = separating(**options)
        if drops:
            m.set_dropout(**DROPOUT)
        found.add(results(m))
    assert len(found) == 1


def distance(a: pyllmc.Model, b: pyllmc.Model) -> float:
    """How far the gradients of the one are from those of the other, as a share of their norm."""
    pairs = [(np.asarray(a.grads[n], np.float64), np.asarray(b.grads[n], np.float64)) for n in a.grads]
    return float(np.sqrt(sum(((x - y) ** 2).sum() for x, y in pairs) / sum((y**2).sum() for _, y in pairs)))


@pytest.mark.parametrize("kernels", [*BF16_ISAS, *(name for name in DEVICES if not name.endswith("_fp32"))])
def test_bf16(kernels, monkeypatch):
    exact, blurred = separating(), make_engine(C)
    where = {"device": kernels} if kernels in DEVICES else {}
    if not where:
        monkeypatch.setenv("PYLLMC_ISA", kernels)
    for name, value in {**where, "precision": "bf16"}.items():
        monkeypatch.setitem(ON, name, value)
    m = separating()
    for each in exact, blurred, m:
        each.micro_step(*batch(C), accumulate=False)
    assert distance(m, exact) < 0.05
    assert distance(m, blurred) > 0.2


def test_it_is_switched_between_batches():
    """And a device that records its calls starts others then."""
    for device in {"cpu", *(name.removesuffix("_fp32") for name in DEVICES)}:
        m = pyllmc.Model(C.config, *C.room, device=device, precision="fp32")
        plain, others = m.micro_step(*batch(C)), m.micro_step(*batch(C, 1))
        m.separate_documents(EOT)
        apart = m.micro_step(*batch(C))
        assert m.micro_step(*batch(C, 1)) != others and apart != plain
        assert m.micro_step(*batch(C)) == apart == pytest.approx(m.forward(*batch(C)), rel=1e-6)
        m.separate_documents(None)
        assert m.micro_step(*batch(C)) == plain


def test_without_a_boundary_nothing_changes():
    ids, targets, weights = batch(C)
    whole = np.where(ids == EOT, EOT + 1, ids)
    assert separating().forward(whole, targets, weights) == make_engine(C).forward(whole, targets, weights)


def test_generation_is_not_concerned():
    ids = [EOT, 1, EOT, 2, EOT]
    assert separating().generate(ids, 9, temperature=0) == make_engine(C).generate(ids, 9, temperature=0)


def test_a_backward_pass_sees_the_documents_of_its_forward_pass():
    m = make_engine(C)
    m.forward(*batch(C))
    m.separate_documents(EOT)
    with pytest.raises(pyllmc.InvalidArgument, match="backward needs a forward pass"):
        m.backward()


@pytest.mark.parametrize("token", [-1, C.config.vocab_size, 1.5, "3"])
def test_an_id_that_cannot_be(token):
    m = separating()
    before = m.forward(*batch(C))
    with pytest.raises(pyllmc.InvalidArgument):
        m.separate_documents(token)
    assert m.forward(*batch(C)) == before


def test_adapters(isa):  # noqa: F811
    """LoRA's gradients in a window are the sum of those of its documents, each alone."""
    ids, targets = learnt()
    packed, alone = (make_lora("banded", 2) for _ in range(2))
    packed.separate_documents(EOT)
    packed.micro_step(ids, targets, accumulate=False)
    alone.zero_grad()
    for b, row in enumerate(ids):
        for part in documents_of(row):
            alone.micro_step(row[None, part], targets[b, None, part], scale=len(row[part]) / ids.size)
    assert distance(packed, alone) < 1e-4
