"""Memory in training: logits a chunk at a time, layers computed again; not one bit changes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, ffi, lib

import pyllmc
from pyllmc.convert.source import make_config
from pyllmc.engine import _ffi
from pyllmc.tables import layout

pytest.importorskip("torch")
from test_model import (  # noqa: E402
    CANARY,
    CASES,
    POISONS,
    batch_of,
    bits,
    block_of,
    case,
    check,
    isa,  # noqa: F401 - a fixture
    make_engine,
    make_reference,
    used_acts,
)
from test_trainer import data, metrics, without_times  # noqa: E402, F401

LEVELS = (0, 1, 2, 3, 4)
# more rows than a chunk, in chunks of unequal size; fewer than the model has room for
MANY = {
    "chunks": case(97, 350, 2, 2, 24, 3, 347),
    "chunks_in_room": case(131, 400, 2, 1, 12, 4, 400, b=3, t=231, window=7),
}


def micro_step(m: pyllmc.Model, *batch, scale: float = 1.0) -> list[bytes]:
    """The bytes of the loss, of each token's loss, and of gradients, after two micro-steps that add up."""
    m.zero_grad()
    losses = [m.micro_step(*batch, scale=scale) for _ in range(2)]
    return [np.array(losses).tobytes(), m.losses.tobytes(), *(m.grads[key].tobytes() for key in m.grads)]


def forward_backward(m: pyllmc.Model, *batch, scale: float = 1.0) -> list[bytes]:
    losses = []
    m.zero_grad()
    for _ in range(2):
        losses.append(m.forward(*batch))
        m.backward(scale)
    return [np.array(losses).tobytes(), m.losses.tobytes(), *(m.grads[key].tobytes() for key in m.grads)]


# ---- the micro-step ----


@pytest.mark.parametrize("name", [*CASES, *MANY])
def test_gradients_can_be_written_instead_of_added(name):
    """The old content is not read, even if it is NaN."""
    c = {**CASES, **MANY}[name]
    m, batch = make_engine(c, keep_logits=False), batch_of(c)
    expected = micro_step(m, *batch)
    for key in m.grads:
        m.grads[key][...] = np.nan
    losses = [m.micro_step(*batch, accumulate=accumulate) for accumulate in (False, True)]
    found = [np.array(losses).tobytes(), m.losses.tobytes(), *(m.grads[key].tobytes() for key in m.grads)]
    assert found == expected


@pytest.mark.parametrize("keep_logits", [True, False])
@pytest.mark.parametrize("name", [*CASES, *MANY])
def test_a_micro_step_is_forward_and_backward(name, keep_logits):
    c = {**CASES, **MANY}[name]
    m, batch = make_engine(c, keep_logits=keep_logits), batch_of(c)
    assert micro_step(m, *batch, scale=0.5) == forward_backward(m, *batch, scale=0.5)
    assert micro_step(m, *batch[:2]) == forward_backward(m, *batch[:2])  # weights of 1


@pytest.mark.parametrize("name", MANY)
def test_chunks_of_logits_are_as_exact_as_all_at_once(isa, name):  # noqa: F811
    """Some targets do not count, some have weights; PyTorch has all logits at once."""
    c = MANY[name]
    if isa == "reference":
        c = c._replace(shape=(1, c.shape[1]) if name == "chunks_in_room" else (2, 280))
    gpt, batch = make_reference(c), batch_of(c)
    errors = check.Errors(gpt, [batch])
    exact = errors.exact
    m = make_engine(c, keep_logits=False)
    m.zero_grad()
    loss = m.micro_step(*batch)
    lines = [check.held("losses", m.losses, exact.acts["losses", 0], errors, "acts losses")]
    lines.append(check.held("loss", np.array(loss), np.array(exact.loss), errors, "acts loss"))
    for row, layer in layout.parameters(c.config):
        name, key = row.torch_name_of(layer), f"grads {row.name}"
        lines.append(check.held(name, m.grads[name], exact.grads[row.name, layer], errors, key))
    assert not [line for line in lines if not line.ok]


def test_one_and_several_chunks_agree_on_every_loss(isa):  # noqa: F811
    c = MANY["chunks"] if isa != "reference" else case(31, 600, 1, 1, 4, 1, 600)
    batch = batch_of(c)
    whole, chunked = make_engine(c), make_engine(c, keep_logits=False)
    assert whole.forward(*batch) == pytest.approx(chunked.forward(*batch), rel=1e-6)
    np.testing.assert_allclose(whole.losses, chunked.losses, rtol=1e-5, atol=1e-6)


def test_threads_do_not_change_a_bit_of_a_micro_step():
    c = MANY["chunks"]
    steps = [
        micro_step(make_engine(c, threads=n, keep_logits=False, recompute=3), *batch_of(c)) for n in (1, 2, 5)
    ]
    assert steps[0] == steps[1] == steps[2]


def test_a_batch_that_does_not_count_changes_nothing():
    c = MANY["chunks"]
    m, batch = make_engine(c, keep_logits=False), batch_of(c)
    m.zero_grad()
    assert m.micro_step(batch.inputs, np.full_like(batch.targets, -1)) == 0
    assert not any(m.grads[key].any() for key in m.grads)


# ---- recompute ----


@pytest.mark.parametrize(
    "name, keep_logits",
    [
        ("one_token", True),
        ("odd_tokens", False),
        ("smaller_than_room", True),
        ("patterned", False),
        ("banded", False),
    ],
)
def test_recompute_changes_no_bit(isa, name, keep_logits):  # noqa: F811
    c = CASES[name]
    batches = [batch_of(c, seed) for seed in range(2)]
    kept = bits(make_engine(c, keep_logits=keep_logits), batches)
    for level in LEVELS[1:]:
        m = make_engine(c, recompute=level, keep_logits=keep_logits)
        assert bits(m, batches) == kept, f"recompute={level}"
        assert micro_step(m, *batches[0]) == forward_backward(m, *batches[0])


@pytest.mark.parametrize("level", LEVELS)
def test_nothing_is_written_between_the_activations(isa, level):  # noqa: F811
    c = CASES["smaller_than_room"]
    m = make_engine(c, recompute=level, keep_logits=False)
    used = used_acts(m, c.shape)
    acts = block_of(m, lib.LLMC_ACTS, used.size).view(np.uint32)
    acts[~used] = CANARY
    micro_step(m, *batch_of(c))
    assert (acts[~used] == CANARY).all()


@pytest.mark.parametrize("level", LEVELS)
def test_no_activation_is_read_before_it_is_written(isa, level):  # noqa: F811
    c, results = CASES["smaller_than_room"], []
    for poison in POISONS:
        m = make_engine(c, recompute=level, keep_logits=False)
        block_of(m, lib.LLMC_ACTS, used_acts(m, c.shape).size).view(np.uint32)[:] = poison
        results.append(micro_step(m, *batch_of(c)))
    assert results[0] == results[1]


# ---- what is not kept ----


def test_what_is_not_kept_cannot_be_looked_at():
    c = CASES["banded"]
    m = make_engine(c, recompute=2, keep_logits=False)
    m.micro_step(*batch_of(c))
    with pytest.raises(pyllmc.InvalidArgument, match="logits is not kept: .*keep_logits=True"):
        m.logits  # noqa: B018
    for name in ("ln1", "ln2", "fch_gelu"):
        with pytest.raises(pyllmc.InvalidArgument, match=f"{name} is not kept: .*lower recompute"):
            m.acts[name]
    assert m.acts["fch"].shape == (3, *c.shape, 4 * c.config.n_embd)
    assert m.losses.shape == c.shape
    with pytest.raises(pyllmc.InvalidArgument, match="without the logits"):
        m.forward(batch_of(c).inputs)
    with pytest.raises(pyllmc.InvalidArgument, match="ln1 is not kept: .*training=True"):
        pyllmc.Model(c.config, 1, 4, training=False).acts["ln1"]


@pytest.mark.parametrize("level", LEVELS)
def test_generation_needs_neither_logits_nor_layers(isa, level):  # noqa: F811
    c = CASES["banded"]
    less, whole = make_engine(c, recompute=level, keep_logits=False), make_engine(c)
    less.micro_step(*batch_of(c))
    how = {"max_new_tokens": 60, "temperature": 0.9, "seed": 3}  # longer than T
    assert less.generate([3, 1, 4], **how) == whole.generate([3, 1, 4], **how)
    with pytest.raises(pyllmc.InvalidArgument, match="just before"):
        less.backward()


def extend(m: pyllmc.Model, b: int) -> np.ndarray:
    tokens, pos = np.arange(b, dtype=np.int32) % 17, np.zeros(b, np.int32)
    out = np.empty((b, m.config.vocab_size), np.float32)
    pointers = [ffi.cast("int *", x.ctypes.data) for x in (tokens, pos)]
    m._check(lib.llmc_model_extend(m._handle, *pointers, b, 1, ffi.cast("float *", out.ctypes.data)))
    return out


def test_many_sequences_at_once_have_their_logits_and_their_cache():
    """More sequences than a chunk has rows; with recompute=3 there is a cache for one."""
    c = case(17, 3, 2, 1, 4, 700, 3)
    whole, chunked = make_engine(c), make_engine(c, keep_logits=False, recompute=2)
    assert np.array_equal(extend(whole, 700), extend(chunked, 700))
    m = make_engine(c, recompute=3)
    assert np.array_equal(extend(m, 1), extend(whole, 1))
    with pytest.raises(pyllmc.InvalidArgument, match="2 sequences at once"):
        extend(m, 2)


def test_what_cannot_be_is_refused():
    config = CASES["odd_tokens"].config
    for level in (-1, 5):
        with pytest.raises(pyllmc.InvalidArgument, match=r"is not in 0\.\.4"):
            pyllmc.Model(config, 1, 4, recompute=level)
    ids = np.zeros((1, 4), np.int32)
    with pytest.raises(pyllmc.InvalidArgument, match="without gradients"):
        pyllmc.Model(config, 1, 4, training=False).micro_step(ids, ids)
    with pytest.raises(pyllmc.InvalidArgument, match="needs targets"):
        pyllmc.Model(config, 1, 4).micro_step(ids, None)


@pytest.mark.parametrize("level", LEVELS)
def test_where_an_infinity_came_from_is_found_among_what_is_kept(level):
    c = CASES["thirteen_layers"]
    m, name = make_engine(c, recompute=level, keep_logits=False), ffi.new("char[128]")
    m.params["transformer.h.5.mlp.c_fc.bias"][:] = 3e38
    m.params["transformer.h.5.mlp.c_fc.weight"][:] *= 1e38
    assert not np.isfinite(m.micro_step(*batch_of(c)))
    m._check(lib.llmc_model_find_nonfinite(m._handle, name, 128))
    assert _ffi.text(name) == ("activation h.5.fch" if level < 4 else "activation h.6.residual1")


# ---- runs ----

RUN = {
    "model": "gpt-nano",
    "max_seq_len": 16,
    "n_layer": 3,
    "B": 40,
    "T": 15,
    "warmup_steps": 2,
    "max_steps": 6,
}
RUN.update(val_every=3, val_batches=1, sample_every=6, sample_tokens=40, checkpoint_every=0)


def contents(run: Path) -> list:
    """Metrics without times, samples, weights and moments."""
    m = pyllmc.Model(run / "last.ckpt", B=1, T=4)
    samples = [path.read_text() for path in sorted((run / "samples").iterdir())]
    return [
        without_times(metrics(run)),
        samples,
        *(m.params[key].tobytes() for key in m.params),
        *(moment.tobytes() for key in m.params for moment in m.moments[key]),
    ]


def test_a_run_does_not_depend_on_recompute(data, tmp_path):  # noqa: F811
    """The run is trained, validated and sampled; another is stopped and resumed at another level."""
    runs = [tmp_path / f"level{level}" for level in LEVELS]
    for level, run in zip(LEVELS, runs):
        events = list(pyllmc.Trainer(data=data, out=run, recompute=level, **RUN))
        assert [event.kind for event in events].count("sample") == 1
        assert f"recompute={level}" in events[0].text
    first = contents(runs[0])
    assert len(first[1]) == 1
    assert all(contents(run) == first for run in runs[1:])
    trainer = pyllmc.Trainer(data=data, out=tmp_path / "parts", recompute=4, **RUN)
    for event in trainer:
        if event.kind == "step" and event.step == 4:
            trainer.stop()
    list(pyllmc.Trainer(resume=tmp_path / "parts", recompute=1))
    assert contents(tmp_path / "parts") == first


def test_the_trainers_model_keeps_no_logits(data):  # noqa: F811
    trainer = pyllmc.Trainer(data=data, out="", **{**RUN, "max_steps": 1, "sample_every": 0})
    list(trainer)
    with pytest.raises(pyllmc.InvalidArgument, match="logits is not kept"):
        trainer.model.logits  # noqa: B018
    ids = np.zeros((2, 5), np.int32)
    assert trainer.model.forward(ids, ids) == pytest.approx(trainer.model.losses.mean(), rel=1e-6)


# ---- the plan ----


def plan(config: pyllmc.GPTConfig, B: int, T: int, recompute: int, keep_logits: bool):
    out, room = ffi.new("llmc_plan *"), ffi.new("llmc_room *", (B, T, 1, recompute, int(keep_logits)))
    _ffi.check(lib, lib.llmc_plan_memory(make_config(config, lib)[0], room, 1, out))
    return out


def test_each_level_saves_what_the_table_says():
    config, B, T = layout.config_of("d12"), 4, 1024
    rows = layout.table(config, B, T)
    kept = plan(config, B, T, 0, False)
    for level in LEVELS[1:]:
        dropped = [row for row in rows if row.level and row.level <= level]
        own_cache = level == 4  # where layers share fch, one sequence of each has memory of its own
        saved = 4 * sum(
            row.size
            if row.other
            else 11 * (row.size - (row.size // B if row.kind == "CACHE" and own_cache else 0))
            for row in dropped
        )
        # lies beneath the logits
        saved += 4 * sum(row.size for row in rows if row.name in ("fch_gelu", "dresidual"))
        less = plan(config, B, T, level, False)
        assert kept.acts - less.acts == pytest.approx(saved, abs=11 * 128 * len(rows))
        assert kept.total - less.total == kept.acts - less.acts
    assert [row.name for row in rows if row.level == 5] == ["residual1"]
    logits = 4 * 50304 * (B * T - 512)
    assert plan(config, B, T, 0, True).acts - kept.acts == pytest.approx(logits, abs=256)


TAKE = """
import numpy as np, pyllmc
def resident():
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * 4096
ids = np.random.default_rng(0).integers(0, 3000, (4, 257), dtype=np.int32)
config = pyllmc.GPTConfig(3000, 256, 6, 4, 128)
pyllmc.Model(config, 1, 1).update()
before = resident()
m = pyllmc.Model(config, 4, 256, recompute=LEVEL, keep_logits=False, threads=2)
m.micro_step(ids[:, :-1], ids[:, 1:])
m.update()
print(resident() - before)
"""


@pytest.mark.parametrize("level", LEVELS)
def test_the_plan_is_what_a_process_takes(level):
    """A new model's memory is filled, so all of it is held at once; a step takes no more."""
    command = [sys.executable, "-c", TAKE.replace("LEVEL", str(level))]
    taken = int(subprocess.run(command, capture_output=True, check=True, cwd=ROOT).stdout)
    planned = plan(pyllmc.GPTConfig(3000, 256, 6, 4, 128), 4, 256, level, False).total
    assert planned > 40e6
    assert -3e6 < taken - planned < 6e6


@pytest.mark.parametrize("V", [2_097_153, 2_097_160 + 1_048_576])
def test_fresh_weights_are_drawn_in_pieces(V):
    """The numbers are those drawn at once into memory that is there: with C=1, wte is more than two parts and not whole
    vectors."""
    config, rng = pyllmc.GPTConfig(V, 1, 1, 1, 1), ffi.new("llmc_rng *")
    at_once = np.empty(V, np.float32)
    lib.llmc_rng_seed(rng, 42)
    lib.llmc_rng_normal(rng, ffi.cast("float *", at_once.ctypes.data), V, 0, 0.02)
    m = pyllmc.Model(config, 1, 1, training=False, init_std=0.02)
    assert np.array_equal(m.params["wte"].ravel(), at_once)
    assert not block_of(m, lib.LLMC_PARAMS, config.padded_vocab_size)[V:].any()


def test_the_largest_batch_that_fits_is_named():
    """The line names the memory that it counted with; another process may have changed it by now."""
    config, text = pyllmc.GPTConfig(3000, 256, 6, 4, 128), ffi.new("char[512]")
    for B in (1, 3):
        room = ffi.new("llmc_room *", (B, 256, 1, 2, 0))
        _ffi.check(lib, lib.llmc_plan_text(make_config(config, lib)[0], room, 1, text, 512))
        found = re.search(r"; fits in (\d+) MB, with B up to (\d+)$", _ffi.text(text))
        available, most = int(found[1]) * 1e6, int(found[2])
        assert most > B
        assert plan(config, most, 256, 2, False).total <= available + 1e6
        assert plan(config, most + 1, 256, 2, False).total > available - 1e6


def test_less_memory_is_first_bought_with_time():
    """A refusal names the least recomputation that would fit, before a smaller batch."""
    config, text = pyllmc.GPTConfig(100, 1024, 50, 1, 64), ffi.new("char[512]")
    available = lib.llmc_kernels(ffi.NULL, lib.LLMC_AUTO).memory_available()
    B = next(B for B in range(1, 1 << 16) if plan(config, B, 1024, 0, False).total > 1.1 * available)
    room = ffi.new("llmc_room *", (B, 1024, 1, 0, 0))
    status = lib.llmc_plan_text(make_config(config, lib)[0], room, 1, text, 512)
    assert status == lib.LLMC_ENOMEM
    assert re.search(r"available; recompute=[1234] would fit", _ffi.message(lib))
