"""Contexts of thousands of tokens, and models of every size that has a name: they are planned, and the small ones trained."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from conftest import ffi, lib

import pyllmc
from pyllmc.convert.recipes import parameter_count
from pyllmc.convert.source import make_config
from pyllmc.engine import _ffi
from pyllmc.tables import layout
from pyllmc.tables.layout import GPTConfig


def plan_of(config: GPTConfig, T: int, training: bool):
    plan, room = ffi.new("llmc_plan *"), ffi.new("llmc_room *", (1, T, training, 2, 0))
    _ffi.check(lib, lib.llmc_plan_memory(make_config(config, lib)[0], room, 1, plan))
    return plan


@pytest.mark.parametrize("T", [0, 4096, 32768])  # 0: the size's own
@pytest.mark.parametrize("name", layout._known_sizes())
def test_every_size_has_a_plan(name, T):
    """The whole of GPT-3's table among them. The parts are as large as the tensors, and window and head count, too."""
    named = layout.config_of(name, fallback=65)
    T = T or named.max_seq_len
    for config in (
        replace(named, max_seq_len=T),
        replace(named, max_seq_len=T, window=256),
        replace(named, max_seq_len=T, window=256, pattern="L", untied=True),
    ):
        for training in (False, True):
            plan = plan_of(config, T, training)
            bytes_of_all = 4 * sum(row.size for row, _ in layout.parameters(config))
            assert plan.num_params == parameter_count(config)
            assert 0 <= plan.params - bytes_of_all < 64
            assert (plan.grads, plan.moments) == (plan.params * training, 2 * plan.params * training)
            acts = 4 * T * config.n_embd * config.n_layer * (3 if training else 0)
            assert plan.acts > acts
            assert plan.total == plan.params + plan.grads + plan.moments + plan.acts + plan.workspace
            text = ffi.new("char[1024]")
            room = ffi.new("llmc_room *", (1, T, training, 2, 0))
            status = lib.llmc_plan_text(make_config(config, lib)[0], room, 1, text, 1024)
            assert status in (0, lib.LLMC_ENOMEM)
            line = _ffi.text(text) if status == 0 else _ffi.message(lib)
            assert f"B=1 T={T} recompute=2" in line and "\n" not in line


@pytest.mark.parametrize("window, pattern", [(0, ""), (64, ""), (64, "L")])
def test_four_thousand_tokens(window, pattern):
    """A tiny model of this context has PyTorch's loss and gradients, learns, and writes up to its last position."""
    torch = pytest.importorskip("torch")
    from pyllmc.parity.reference import load_reference

    T = 4096
    config = GPTConfig(31, T, 2, 1, 8, window, pattern=pattern)
    m = pyllmc.Model(config, B=1, T=T, recompute=2, keep_logits=False, init_std=0.1)
    gpt = load_reference().GPT(config)
    with torch.no_grad():
        for name, p in gpt.named_parameters():
            p.copy_(torch.from_numpy(m.params[name].copy()))
    ids = np.arange(T + 1)[None] * 7 % 31
    loss = m.micro_step(ids[:, :-1], ids[:, 1:], accumulate=False)
    _, theirs = gpt(torch.from_numpy(ids[:, :-1]), torch.from_numpy(ids[:, 1:]))
    theirs.backward()
    assert loss == pytest.approx(theirs.item(), rel=1e-5)
    for name, p in gpt.named_parameters():
        scale = p.grad.abs().max().item()
        np.testing.assert_allclose(
            m.grads[name], p.grad.numpy(), rtol=0, atol=1e-4 * scale + 1e-8, err_msg=name
        )
    losses = []
    for _ in range(8):
        m.update(lr=1e-2)
        losses.append(m.micro_step(ids[:, :-1], ids[:, 1:], accumulate=False))
    assert losses[-1] < 0.9 * loss
    assert len(m.generate(ids[0, : T - 3].tolist(), max_new_tokens=5)) == 5
