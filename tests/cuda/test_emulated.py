"""A GPT-2 trained by the CUDA kernels, which the CPU emulates, equals one of the CPU engine, in every schedule."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import numpy as np
import pytest
from conftest import DEVICES, ROOT, ffi, not_under_asan

import pyllmc
from pyllmc.base.errors import InvalidArgument, OutOfMemory
from pyllmc.tables.layout import GPTConfig
from pyllmc.text import dataset

EMULATED = [name for name in DEVICES if name.startswith("emu")]
SIZES = GPTConfig(61, 24, 2, 2, 32, window=5, untied=True)
B, T, STEPS = 2, 19, 4
SMALLER = GPTConfig(29, 16, 1, 2, 16, window=5, untied=True)  # every access to its memory is checked


def on(name: str) -> dict[str, str]:
    return {"device": "emu", "precision": "fp32" if name.endswith("fp32") else "bf16"}


def batch(seed: int) -> tuple[np.ndarray, np.ndarray]:
    ids = np.random.default_rng(seed).integers(0, SIZES.vocab_size, (B, T + 1))
    return ids[:, :-1], ids[:, 1:]


def train(dropout: float = 0, **options) -> tuple[pyllmc.Model, list[float], list[float]]:
    """Two micro-steps a step; the last batch is shorter."""
    m = pyllmc.Model(SIZES, B=B, T=T, keep_logits=False, **options)
    m.set_dropout(dropout, dropout, dropout, seed=7)
    losses, norms = [], []
    for step in range(STEPS):
        for micro in range(2):
            inputs, targets = batch(2 * step + micro)
            length = T - 6 * (step == STEPS - 1)
            losses.append(
                m.micro_step(inputs[:, :length], targets[:, :length], scale=0.5, accumulate=micro > 0)
            )
        norms.append(m.clip_grad_norm(1.0))
        m.update(lr=3e-3 / (step + 1))  # a graph that has kept the first rate would show
    return m, losses, norms


def everything(m: pyllmc.Model, losses: list[float], norms: list[float]) -> list[object]:
    return [losses, norms, *(m.params[name].tobytes() for name in m.params), m.generate([1, 2], 9)]


@pytest.fixture(scope="module")
def letters(tmp_path_factory) -> dict[str, object]:
    """A trainer's options: a tiny model and its data."""
    data = tmp_path_factory.mktemp("data") / "letters"
    dataset.write_dataset(["the cat sat on the mat " * 9] * 20, data, tokenizer="char", val_fraction=0.1)
    sizes = {"n_layer": 1, "n_head": 2, "n_embd": 16, "B": 2, "T": 16, "grad_accum": 2}
    when = {"val_every": 2, "val_batches": 1, "sample_every": 0, "checkpoint_every": 2}
    return {**sizes, **when, "device": "emu", "data": data}


DROPOUT = [0, 0.2]
# Where each run takes long, either element has one of the two.
either_dropout = pytest.mark.parametrize("name, dropout", list(zip(EMULATED, DROPOUT)))


@pytest.mark.parametrize("dropout", DROPOUT)
@pytest.mark.parametrize("name", EMULATED)
def test_it_learns_what_the_cpu_learns(name: str, dropout: float):
    cpu, losses, norms = train(dropout)
    m, ours, our_norms = train(dropout, **on(name))
    close = 2e-6 if name.endswith("fp32") else 4e-3
    np.testing.assert_allclose(ours, losses, rtol=close)
    np.testing.assert_allclose(our_norms, norms, rtol=5 * close)
    assert ours[0] > ours[-1] or losses[0] <= losses[-1]
    if name.endswith("fp32"):
        assert m.generate([1, 2, 3], 12, temperature=0) == cpu.generate([1, 2, 3], 12, temperature=0)


@either_dropout
@pytest.mark.parametrize("recompute", [1, 2, 3, 4])
def test_recompute_changes_no_bit(name: str, recompute: int, dropout: float):
    expected = everything(*train(dropout, **on(name)))
    assert everything(*train(dropout, recompute=recompute, **on(name))) == expected


@pytest.mark.parametrize("dropout", DROPOUT)
@pytest.mark.parametrize("name", EMULATED)
def test_a_graph_changes_no_bit(name: str, dropout: float, monkeypatch):
    """A recorded step that is started again drops by the new step's numbers."""
    expected = everything(*train(dropout, **on(name)))
    monkeypatch.setenv("PYLLMC_GRAPHS", "0")
    assert everything(*train(dropout, **on(name))) == expected


def counts() -> dict[str, int]:
    """How often the host has waited for the device so far, and the graphs that it has started."""
    found = ffi.new("uint64_t[6]")
    DEVICES["emu"].emu_statistics(found)
    return {"waits": found[4], "graphs": found[5]}


@pytest.mark.skipif("emu" not in EMULATED, reason="needs make emu")
def test_steps_that_never_come_again_leave_room_for_graphs():
    """Masked data gives nearly every micro-step its own scale."""
    m = pyllmc.Model(SMALLER, B=1, T=3, keep_logits=False, **on("emu"))
    ids = np.arange(3)[None]

    def started(scale: float) -> int:
        before = counts()["graphs"]
        m.micro_step(ids, ids, scale=scale)
        return counts()["graphs"] - before

    assert [started(0.5) for _ in range(3)] == [0, 1, 1]
    assert not any(started(1 + i / 64) for i in range(1, 30))
    assert started(0.5) == 1  # a graph that is wanted now and then stays
    assert not any(started(3 + i / 64) for i in range(1, 50))
    assert [started(0.25) for _ in range(3)] == [0, 1, 1]
    assert sum(started(1 + i % 40 / 64) for i in range(400)) == 0  # each comes again, but too late
    assert sum(started(1 + i // 2 / 64) for i in range(80)) == 40  # each comes twice
    assert [started(0.25) for _ in range(3)] == [0, 1, 1]


@pytest.mark.skipif("emu" not in EMULATED, reason="needs make emu")
def test_a_step_waits_for_the_device_once(letters):
    """This includes micro-steps, norm, clipping and AdamW, from the first step on."""
    trainer = pyllmc.Trainer(out="", max_steps=5, **{**letters, "val_every": 0, "checkpoint_every": 0})
    seen = [counts()["waits"] for event in trainer if event.kind == "step"]
    assert len(seen) == 5 and set(np.diff(seen)) == {1}


@pytest.mark.skipif("emu" not in EMULATED, reason="needs make emu")
def test_the_plan_tells_what_fits_the_device(letters):
    plan = next(iter(pyllmc.Trainer(out="", max_steps=1, **letters))).text
    assert plan.startswith("device: emu, bf16") and re.search(r"fits in \d+ MB, with B up to \d+", plan)
    with pytest.raises(OutOfMemory, match=r"MB are available; .* would fit"):
        pyllmc.Model("d12", B=4096, T=1024, device="emu")


CODE = """
import sys
sys.path[:0] = ["tests", "tests/cuda"]
import ctypes, test_emulated
from pyllmc.engine import _ffi
name = sys.argv[1]
if sys.argv[2] == "check":
    test_emulated.SIZES, test_emulated.T, test_emulated.STEPS = test_emulated.SMALLER, 13, 2
results = test_emulated.everything(*test_emulated.train(float(sys.argv[4]), **test_emulated.on(name)))
lib = ctypes.CDLL(str(sys.argv[3]))
text = ctypes.create_string_buffer(1 << 16)
if sys.argv[2] == "check":
    assert lib.emu_report(text, ctypes.c_size_t(len(text))) == 0, text.value.decode()
import hashlib
print(hashlib.sha256(repr(results).encode()).hexdigest())
"""


def run(name: str, library: str, dropout: float, **environment: str) -> str:
    """Runs in a process of its own, because the library reads its settings once."""
    path = ROOT / "pyllmc" / "lib" / library / f"libpyllmc_{name}.so"
    ran = subprocess.run(
        [sys.executable, "-c", CODE, name, library, str(path), str(dropout)],
        env={**os.environ, "PYTHONPATH": ".", "PYLLMC_LIB": str(path), **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@either_dropout
def test_no_order_of_threads_changes_a_bit(name: str, dropout: float):
    schedules = ["in_order", "reversed", "random"]
    results = {run(name, "", dropout, PYLLMC_EMU_SCHEDULE=order, PYLLMC_EMU_DEFER="1") for order in schedules}
    assert len(results) == 1


@either_dropout
def test_the_checked_build_has_nothing_to_report(name: str, dropout: float):
    """There is no race, no access out of bounds, no read before a write, in a whole step and a text."""
    run(name, "check", dropout, PYLLMC_EMU_SCHEDULE="random")


@pytest.mark.parametrize("name", EMULATED)
def test_tensors_are_copies_and_can_be_set(name: str):
    m = pyllmc.Model(SIZES, B=B, T=T, **on(name))
    with pytest.raises(ValueError, match="read-only"):
        m.params["wte"][0] = 1
    m.params["transformer.h.1.ln_1.weight"] = 2
    assert (m.params["ln1w"][1] == 2).all() and (m.params["ln1w"][0] == 1).all()
    m.grads["qkvb"] = np.arange(2 * 96).reshape(2, 96)
    assert m.grads["transformer.h.1.attn.c_attn.bias"][0] == 96
    with pytest.raises(InvalidArgument, match="does not fit"):
        m.params["lnfw"] = np.zeros(7)
    with pytest.raises(InvalidArgument, match="computes"):
        m.acts["lnf"] = 0


@pytest.mark.parametrize("name", EMULATED)
def test_a_checkpoint_moves_between_devices(name: str, tmp_path):
    m, _, _ = train(**on(name))
    m.save(tmp_path / "m.ckpt")
    cpu = pyllmc.Model(tmp_path / "m.ckpt", B=B, T=T)
    assert cpu.step == STEPS
    for key in m.params:
        np.testing.assert_array_equal(m.params[key], cpu.params[key])
    for ours, theirs in zip(m.moments["qkvw"], cpu.moments["qkvw"]):
        np.testing.assert_array_equal(ours, theirs)


@not_under_asan
@pytest.mark.parametrize(
    "precision", ["auto", "fp32"]
)  # each is a library of its own, which a resume must find
def test_the_trainer_on_it(letters, precision, tmp_path):
    """Runs the command's loop; a run resumed from a checkpoint has the same bits as one never stopped."""
    letters = {**letters, "precision": precision}
    whole = pyllmc.Trainer(out=tmp_path / "whole", max_steps=4, **letters)
    losses = [e.loss for e in whole if e.kind == "step"]
    first = pyllmc.Trainer(out=tmp_path / "part", max_steps=4, **letters)
    for event in first:
        if event.kind == "checkpoint":
            break
    del first
    again = pyllmc.Trainer(resume=tmp_path / "part", device="emu")
    assert [e.loss for e in again if e.kind == "step"] == losses[2:]
    assert again.model.params["wte"].tobytes() == whole.model.params["wte"].tobytes()


@not_under_asan
def test_batches_of_many_sizes_on_it(letters):
    """Launches that are recorded once are replayed for batches of their own size only: here batches grow, the last one has
    fewer windows."""
    run = {
        **letters,
        "precision": "fp32",
        "grad_accum": 3,
        "batch_ramp_tokens": 150,
        "epochs": 0.15,
    }
    losses = {
        device: [e.loss for e in pyllmc.Trainer(**{**run, "device": device}) if e.kind == "step"]
        for device in ("cpu", "emu")
    }
    assert len(losses["cpu"]) > 5
    np.testing.assert_allclose(losses["emu"], losses["cpu"], rtol=2e-5)
