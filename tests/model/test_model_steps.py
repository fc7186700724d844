"""Steps of AdamW with the whole model: ten steps beside PyTorch's, and which tensors decay."""

# ruff: noqa: F811 (a fixture is imported)
from __future__ import annotations

import functools
import gc
import weakref

import numpy as np
import pytest
from conftest import DEVICES, assert_parity
from test_model import CASES, HYPER, Case, batch_of, engine_steps, isa, make_engine, make_reference  # noqa: F401

import pyllmc
from pyllmc.tables import layout

torch = pytest.importorskip("torch")
from pyllmc import check  # noqa: E402
from pyllmc.parity import yardstick  # noqa: E402

NUDGES = 12


def nudge(gpt, seed: int) -> None:
    """Moves half of the weights to the next float32: an error of one rounding, a different one for each seed."""
    draw = torch.Generator().manual_seed(seed)
    for p in gpt.parameters():
        moved = torch.nextafter(p.data, torch.where(torch.rand(p.shape, generator=draw) < 0.5, 1e9, -1e9))
        p.data = torch.where(torch.rand(p.shape, generator=draw) < 0.5, p.data, moved)


def torch_steps(
    c: Case, batches: list[check.Batch], dtype, seed: int = 0
) -> tuple[list[float], list[float], dict[str, np.ndarray]]:
    """Losses, gradient norms and final weights after AdamW steps, clipped to 1; seed: begins with weights that are
    nudged."""
    gpt, losses, norms = make_reference(c).to(dtype), [], []
    if seed:
        nudge(gpt, seed)
    optimizer = gpt.optimizer(**HYPER)
    for batch in batches:
        optimizer.zero_grad()
        _, loss = gpt(*(torch.from_numpy(array) for array in batch))
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(gpt.parameters(), 1.0).item())
        optimizer.step()
        losses.append(loss.item())
    return losses, norms, {name: p.detach().numpy() for name, p in gpt.named_parameters()}


@functools.cache
def torch_ten_steps(name: str):
    c = CASES[name]
    batches = [batch_of(c, seed) for seed in range(10)]
    plain = yardstick.once_plainly(lambda: torch_steps(c, batches, torch.float32))
    return batches, torch_steps(c, batches, torch.float32), plain, torch_steps(c, batches, torch.float64)


@functools.cache
def nudged_ten_steps(name: str, seed: int):
    """One more draw: from nudged weights, with sums in another order, the same on every CPU."""
    c = CASES[name]
    with yardstick.plainly(seed):
        return torch_steps(c, [batch_of(c, s) for s in range(10)], torch.float32, seed)


def far_off(ours: np.ndarray, single: yardstick.Single, exact: np.ndarray) -> str:
    """The tensor whose weights are, on average, further off than twice PyTorch's; "" if there is none."""
    for theirs in single.each():
        error = np.abs(ours - exact).mean()
        allowed = 2 * np.abs(theirs - exact).mean() + 2.0**-24 * np.abs(exact).max()
        if error <= allowed:
            return ""
    return f"{error:.3g}, allowed {allowed:.3g}"


@pytest.mark.parametrize("name", ["odd_tokens", "smaller_than_room", "thirteen_layers", "banded", "untied"])
def test_ten_adamw_steps(isa, name):
    batches, here, plain, (loss64, norm64, w64) = torch_ten_steps(name)
    # steps magnify a rounding, by chance more or less, so ten steps in one order of sums do not show how much
    loss32, norm32 = (
        yardstick.Single(
            here[i],
            lambda i=i: plain()[i],
            [lambda i=i, s=s: nudged_ten_steps(name, s)[i] for s in range(1, NUDGES + 1)],
        )
        for i in (0, 1)
    )
    m = make_engine(CASES[name])
    losses, norms = engine_steps(m, batches)
    assert m.step == 10
    assert_parity(losses, loss32, loss64, "losses")
    assert_parity(norms, norm32, norm64, "norms")
    for row in filter(lambda row: row.is_param, layout.table(m.config)):
        keys = [row.torch_name_of(layer) for layer in range(m.config.n_layer if row.per_layer else 1)]

        def layers(w: dict[str, np.ndarray], row=row, keys=keys) -> np.ndarray:
            C, x = m.config.n_embd, np.stack([w[key] for key in keys])
            # the gradient of the keys' bias is rounding only, which AdamW turns into steps
            return np.delete(x, range(C, 2 * C), axis=1) if row.name == "qkvb" else x

        single = yardstick.Single(layers(here[2]), lambda layers=layers: layers(plain()[2]))
        wrong = far_off(layers(m.params), single, layers(w64))
        assert not wrong, f"{row.name}: {wrong}"


@pytest.mark.parametrize("name", ["odd_tokens", "banded", "untied"])
def test_weight_decay_is_the_tables(isa, name):
    """A step without gradients moves the tensors that decay, by lr * decay, and nothing else."""
    m = make_engine(CASES[name])
    before = {key: m.params[key].copy() for key in m.params}
    m.zero_grad()
    m.update(lr=0.5, weight_decay=0.25)
    for row, layer in layout.parameters(m.config):
        key = row.torch_name_of(layer)
        factor = np.float32(1 - 0.5 * 0.25) if row.decay else np.float32(1)
        assert np.array_equal(m.params[key], before[key] * factor), key
        assert row.decay == (m.params[key].ndim == 2)


def test_the_loss_of_an_interrupted_step_still_has_its_place(monkeypatch):
    """A device writes it when it is next waited for."""
    m = pyllmc.Model(pyllmc.GPTConfig(50, 8, 1, 2, 8), B=1, T=4)
    lib, places = m._lib, []

    class Interrupted:
        def __getattr__(self, name):
            def call(*arguments):
                if name == "llmc_model_sync":
                    raise KeyboardInterrupt
                places.extend(weakref.ref(x) for x in arguments[-1:] if name == "llmc_model_micro_step")
                return getattr(lib, name)(*arguments)

            return call

    monkeypatch.setattr(m, "_lib", Interrupted())
    ids = np.arange(5)[None]
    with pytest.raises(KeyboardInterrupt):
        m.micro_step(ids[:, :-1], ids[:, 1:])
    gc.collect()
    assert len(places) == 1 and places[0]() is not None


@pytest.mark.parametrize("device", ["cpu", "emu"])
def test_moments_are_set_as_a_pair(device):
    if device not in {"cpu", *DEVICES}:
        pytest.skip("make emu builds the emulation")
    m = pyllmc.Model(pyllmc.GPTConfig(50, 8, 1, 2, 8), B=1, T=4, device=device)
    first, second = np.full((8, 8), 0.5, np.float32), np.full((8, 8), 0.25, np.float32)
    m.moments["wpe"] = first, second
    assert all(np.array_equal(a, b) for a, b in zip(m.moments["wpe"], (first, second)))
    with pytest.raises(pyllmc.InvalidArgument, match="as a pair"):
        m.moments["wpe"] = first
