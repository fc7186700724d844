"""The whole model against PyTorch: every tensor of the table, on every instruction set, in awkward shapes."""

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import pytest
from conftest import DEVICES, ISAS, ffi, lib

import pyllmc
from pyllmc.tables import layout
from pyllmc.tables.layout import GPTConfig

torch = pytest.importorskip("torch")
from pyllmc import check  # noqa: E402

reference = check.load_reference()


class Case(NamedTuple):
    config: GPTConfig
    room: tuple[int, int]  # B, T
    shape: tuple[int, int]  # b, t
    gain: float = 1  # factor of the last norm, and so of the logits


def case(V, maxT, L, NH, C, B, T, b=None, t=None, window=0, gain=1, untied=False, pattern="") -> Case:
    return Case(GPTConfig(V, maxT, L, NH, C, window, untied, pattern), (B, T), (b or B, t or T), gain)


CASES = {
    "one_token": case(5, 4, 1, 1, 4, 1, 1),
    "odd_tokens": case(97, 20, 1, 1, 8, 3, 17),
    "smaller_than_room": case(257, 33, 2, 3, 48, 3, 19, b=2, t=13),
    "thirteen_layers": case(131, 9, 13, 2, 16, 3, 7),
    "big_vocabulary": case(50257, 8, 1, 2, 16, 1, 5),
    "banded": case(129, 40, 3, 4, 64, 2, 37, window=5),
    "window_of_one": case(61, 12, 2, 2, 12, 2, 11, window=1),
    "odd_channels": case(33, 70, 2, 3, 21, 1, 67),
    "patterned": case(61, 20, 5, 2, 24, 2, 17, window=4, pattern="LLD"),
    "untied": case(97, 20, 2, 2, 24, 3, 17, b=2, t=13, untied=True),
}


def random_weights(c: Case, std: float = 0.1) -> dict[str, np.ndarray]:
    """Random tensors by PyTorch's names, so that no bias of 0 hides a mistake. Norms are around 1."""
    rng = np.random.default_rng(1)
    drawn = {
        row.torch_name_of(layer): rng.normal(row.init == "ONE", std, row.shape).astype(np.float32)
        for row, layer in layout.parameters(c.config)
    }
    for row, layer in layout.parameters(c.config):
        if row.padded:
            drawn[row.torch_name_of(layer)] = drawn[row.torch_name_of(layer)][: c.config.vocab_size]
    drawn["transformer.ln_f.weight"] *= c.gain
    return drawn


ON: dict[str, str] = {}  # device and precision, if they are not those of the CPU; a fixture sets them


def make_engine(c: Case, threads: int = 2, **options) -> pyllmc.Model:
    m = pyllmc.Model(c.config, *c.room, threads=threads, **ON, **options)
    for name, value in random_weights(c).items():
        m.params[name] = value
    return m


def make_reference(c: Case):
    gpt = reference.GPT(c.config)
    for name, value in random_weights(c).items():
        gpt.get_parameter(name).data = torch.from_numpy(value.copy())
    return gpt


def batch_of(c: Case, seed: int = 0) -> check.Batch:
    return check.random_batch(c.config.vocab_size, *c.shape, seed)


@functools.cache
def expected(name: str) -> tuple[check.Result, check.Errors]:
    """The float64 answer, and the distance of PyTorch's float32 from it."""
    return check.run_torch(make_reference(CASES[name]), *CASES[name].shape, seed=0)


FP32_DEVICES = [name for name in DEVICES if name.endswith("_fp32")]


@pytest.fixture(params=[*ISAS, *FP32_DEVICES])
def isa(request, monkeypatch) -> str:
    name: str = request.param
    if name not in DEVICES:
        monkeypatch.setenv("PYLLMC_ISA", name)
        return name
    device = name.removesuffix("_fp32")
    monkeypatch.setitem(ON, "device", device)
    monkeypatch.setitem(ON, "precision", "fp32")
    return device


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
    """Softmax does not overflow. Rounding such logits moves a probability by 1e-3, so gradients are only checked to be
    finite."""
    c = case(77, 16, 2, 2, 32, 2, 9, gain=3e4)
    ours, (torch64, errors) = (
        check.run_engine(make_engine(c), *batch_of(c)),
        check.run_torch(make_reference(c), *c.shape, 0),
    )
    assert np.abs(ours.acts["logits", 0]).max() > 1e4
    assert not [
        l for l in check.compare(c.config, ours, torch64, errors) if l.name.startswith("act") and not l.ok
    ]
    assert all(np.isfinite(g).all() for g in ours.grads.values())


def test_no_tensor_of_the_table_is_left_out():
    c = CASES["banded"]
    ours = check.run_engine(make_engine(c), *batch_of(c))
    seen = {name for kind in (ours.acts, ours.buffers, ours.grads) for name, _ in kind}
    assert {row.name for row in layout.table(c.config)} - seen == {
        "positions",
        "offsets",
        "adamw",
        "dropouts",
    }
    assert len(ours.grads) == 4 + 12 * c.config.n_layer


HYPER = {"lr": 3e-3, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}


def engine_steps(m: pyllmc.Model, batches: list[check.Batch]) -> tuple[list[float], list[float]]:
    losses, norms = [], []
    for batch in batches:
        m.zero_grad()
        losses.append(m.forward(*batch))
        m.backward()
        norms.append(m.clip_grad_norm(1.0))
        m.update(**HYPER)
    return losses, norms


# ---- batches in parts, threads ----


@pytest.mark.parametrize("k", [2, 3, 6])
@pytest.mark.parametrize("untied", [False, True])
def test_micro_steps_equal_one_batch(isa, untied, k):
    """k micro-steps of 6/k sequences give every tensor's gradient: none keeps its last micro-step only."""
    c = case(97, 12, 3, 2, 24, 6, 11, window=4, untied=untied)
    batch = check.random_batch(97, 6, 11, 0)
    batch = batch._replace(
        targets=np.abs(batch.targets), weights=np.ones((6, 11), np.float32)
    )  # equal shares
    m, (torch64, errors) = make_engine(c), check.run_torch(make_reference(c), 6, 11, 0)
    torch64 = check.run_reference(make_reference(c), *batch, dtype="float64")
    m.zero_grad()
    for rows in np.split(np.arange(6), k):
        m.forward(*(array[rows] for array in batch))
        m.backward(scale=1 / k)
    for row, layer in layout.parameters(c.config):
        exact = torch64.grads[row.name, layer]
        line = check.held(row.name, m.grads[row.torch_name_of(layer)], exact, errors, f"grads {row.name}")
        assert line.ok, line


def bits(m: pyllmc.Model, batches: list[check.Batch]) -> list[bytes]:
    losses, norms = engine_steps(m, batches)
    blocks = [m.params[key] for key in m.params] + [m.grads[key] for key in m.grads]
    blocks += [moment for key in m.params for moment in m.moments[key]]
    return [
        np.array([losses, norms]).tobytes(),
        *(block.tobytes() for block in blocks),
        m.acts["losses"].tobytes(),
    ]


@pytest.mark.parametrize("name", ["thirteen_layers", "banded", "untied"])
def test_threads_do_not_change_a_bit(isa, name):
    batches = [batch_of(CASES[name], seed) for seed in range(3)]
    one = bits(make_engine(CASES[name], threads=1), batches)
    for threads in (2, 3, 8):
        assert bits(make_engine(CASES[name], threads=threads), batches) == one


def test_calls_from_two_threads_wait_for_each_other():
    """Each returns what it would alone, although both use the same activations."""
    c = CASES["banded"]
    m, batches = make_engine(c, threads=1), [batch_of(c, seed) for seed in range(2)]

    def computed(i: int):
        return m.forward(*batches[i % 2]), m.generate(batches[i % 2][0][:1, :4], 4, seed=i % 2)

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(computed, range(200))) == [computed(0), computed(1)] * 100


# ---- targets that count, and targets that do not ----


def gradients(m: pyllmc.Model, *batch) -> dict[str, np.ndarray]:
    m.zero_grad()
    m.forward(*batch)
    m.backward()
    return {key: m.grads[key].copy() for key in m.grads}


def test_ignored_targets_and_weights_of_zero_are_the_same(isa):
    c = CASES["banded"]
    m, batch = make_engine(c), batch_of(c)
    targets, ignored = np.abs(batch.targets), batch.targets < 0
    assert ignored.any()
    masked = gradients(m, batch.inputs, batch.targets)
    loss = m.acts["loss"][0]
    weightless = gradients(m, batch.inputs, targets, (~ignored).astype(np.float32))
    assert m.acts["loss"][0] == loss
    for key, value in masked.items():
        assert np.array_equal(value, weightless[key]), key
    assert not np.array_equal(
        gradients(m, batch.inputs, targets)["transformer.wte.weight"], masked["transformer.wte.weight"]
    )


def test_the_loss_is_the_mean_of_what_counts(isa):
    c = CASES["smaller_than_room"]
    m, batch = make_engine(c), batch_of(c)
    counts = batch.targets >= 0
    loss = m.forward(batch.inputs, batch.targets)
    assert (m.losses[~counts] == 0).all()
    assert loss == pytest.approx(m.losses[counts].mean(), rel=1e-6)
    weighted = m.forward(*batch)
    assert weighted == pytest.approx(np.average(m.losses[counts], weights=batch.weights[counts]), rel=1e-6)
    assert m.forward(batch.inputs, batch.targets, 7 * batch.weights) == pytest.approx(weighted, rel=1e-6)


@pytest.mark.parametrize("how", ["targets", "weights"])
def test_a_batch_that_does_not_count_changes_nothing(isa, how):
    c = CASES["odd_tokens"]
    m, batch = make_engine(c), batch_of(c)
    if how == "targets":
        grads = gradients(m, batch.inputs, np.full_like(batch.targets, -1))
    else:
        grads = gradients(m, batch.inputs, np.abs(batch.targets), np.zeros_like(batch.weights))
    assert m.acts["loss"][0] == 0
    assert all((value == 0).all() for value in grads.values())


# ---- the arena ----


def block_of(m: pyllmc.Model, which: int, elements: int) -> np.ndarray:
    """A whole block of the arena as float32."""
    pointer = lib.llmc_model_block(m._handle, which)
    return np.frombuffer(ffi.buffer(pointer, 4 * elements), np.float32)


def used_acts(m: pyllmc.Model, shape: tuple[int, int]) -> np.ndarray:
    """The words of the block of activations that belong to a tensor of shape (b, t)."""
    config, plan = lib.llmc_model_config(m._handle), ffi.new("llmc_plan *")
    room = ffi.new("llmc_room *", lib.llmc_model_room(m._handle)[0])
    assert lib.llmc_plan_memory(config, room, 1, plan) == 0
    used, narrow = np.zeros(plan.acts // 4, bool), room.precision == lib.LLMC_BF16
    rows = ffi.new("llmc_tensor[]", lib.llmc_num_tensors())
    room.B, room.T = shape
    assert lib.llmc_layout(config, room, rows) == 0
    for i, row in enumerate(rows):
        if row.kind == lib.LLMC_GRAD_ACT and not room.training:
            continue  # it takes no memory
        place = lib.llmc_model_tensor(m._handle, i)
        for layer in range(max(row.layers, 1) if row.kind != lib.LLMC_PARAM else 0):
            start = place.offset + layer * place.stride
            end = start + (-(-row.size // 2) if narrow and row.type == lib.LLMC_X else row.size)
            if row.kept or row.kind not in (lib.LLMC_CACHE, lib.LLMC_OVER_ACT, lib.LLMC_CHUNK_ACT):
                assert not used[start:end].any(), "two tensors overlap"
            used[start:end] = True
    return used


CANARY = np.uint32(0xC0FFEE42)
POISONS = (np.uint32(0), np.uint32(0x7FC07FC0))  # the second is NaN as a float and as two numbers of bf16


@pytest.mark.parametrize("name", ["odd_tokens", "smaller_than_room", "banded", "untied"])
def test_nothing_is_written_between_the_activations(isa, name):
    """Every element outside the tensors, and outside the batch in use, keeps its canary."""
    c = CASES[name]
    m = make_engine(c)
    used = used_acts(m, c.shape)
    acts = block_of(m, lib.LLMC_ACTS, used.size).view(np.uint32)
    acts[~used] = CANARY
    assert (~used).sum() >= 16 * c.config.n_layer
    engine_steps(m, [batch_of(c)])
    assert (acts[~used] == CANARY).all()


def test_no_activation_is_read_before_it_is_written(isa):
    """The results have the same bits, whether the activations held zeros or NaN before."""
    c, results = CASES["smaller_than_room"], []
    for poison in POISONS:
        m = make_engine(c)
        block_of(m, lib.LLMC_ACTS, used_acts(m, c.shape).size).view(np.uint32)[:] = poison
        results.append(bits(m, [batch_of(c)]))
    assert results[0] == results[1]


def test_a_new_model_is_poisoned():
    c = CASES["odd_tokens"]
    m = pyllmc.Model(c.config, *c.room)
    assert np.isnan(m.acts["fch"]).all()
    assert not any(m.grads[key].any() for key in m.grads)


@pytest.mark.parametrize(
    "name, tensor", [("smaller_than_room", "wte"), ("untied", "wte"), ("untied", "lmheadw")]
)
def test_the_padding_of_the_vocabulary_stays_zero(isa, name, tensor):
    c = CASES[name]
    V, Vp, C = c.config.vocab_size, c.config.padded_vocab_size, c.config.n_embd
    m = make_engine(c)
    engine_steps(m, [batch_of(c, seed) for seed in range(2)])
    for block in (lib.LLMC_PARAMS, lib.LLMC_GRADS, lib.LLMC_M, lib.LLMC_V):
        rows = np.empty((Vp, C), np.float32)
        out = ffi.cast("void *", rows.ctypes.data)
        index = list(m._arena.rows).index(tensor)
        assert m._lib.llmc_model_read(m._handle, block, index, 0, Vp * C, out) == 0
        assert rows[:V].any()
        assert not rows[V:].any()
