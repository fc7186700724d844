"""The cache of a banded layer holds the rows of its window, and generation has the bits that it has with all rows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from conftest import BF16_ISAS, DEVICES, ISAS, ffi, lib
from test_generate import Generation
from test_model import CANARY, block_of, used_acts

import pyllmc
from pyllmc import GPTConfig, InvalidArgument, Model
from pyllmc.convert.source import make_config
from pyllmc.engine import _ffi

V, T, SLACK = 61, 90, 16
PATTERNS = ["DL", "L", "DLLL"]
BANDED = [("DL", 1), ("L", 3), ("DLLL", 29), ("DL", 60), ("L", T + 5)]  # patterns and windows
PIECES = {"at once": [80], "in pieces": [1, 40, 2, 5, 32], "then one by one": [50, *[1] * 30]}
ON_CPU = [(isa, "cpu", "fp32") for isa in ISAS] + [(isa, "cpu", "bf16") for isa in BF16_ISAS]
ON_DEVICES = [
    ("", name.removesuffix("_fp32"), "fp32" if name.endswith("_fp32") else "bf16") for name in DEVICES
]


def each(name: str, cases: list, on_devices: list):
    """Parametrizes with all cases on CPUs, and with some on devices, because an emulated one takes long."""
    where = [(on, case) for on in ON_CPU for case in cases] + [
        (on, case) for on in ON_DEVICES for case in on_devices
    ]
    ids = ["-".join([*on, str(case)]) for on, case in where]
    return pytest.mark.parametrize(f"on, {name}", where, ids=ids, indirect=["on"])


@pytest.fixture(params=ON_CPU + ON_DEVICES, ids="-".join)
def on(request, monkeypatch) -> dict[str, str]:
    """A device and a precision, with the instruction set in the environment."""
    isa, device, precision = request.param
    if isa:
        monkeypatch.setenv("PYLLMC_ISA", isa)
    return {"device": device, "precision": precision}


def two_models(config: GPTConfig, on: dict[str, str], B: int = 1) -> tuple[Model, Model]:
    """The same weights in a model with rings, and in one that training makes keep all rows."""
    models = [Model(config, B, T, training=training, seed=1, **on) for training in (False, True)]
    for name in models[1].params:
        values = np.array(models[1].params[name]) * 2
        for m in models:
            m.params[name] = values
    return models[0], models[1]


def banded(window: int, pattern: str) -> GPTConfig:
    return GPTConfig(V, T, 4, 2, 24, window, pattern=pattern)


def extend(m: Model, ids: np.ndarray, pos: list[int]) -> np.ndarray:
    """The logits (b,V) of the last of ids (b,n), which follow the pos[b] ids of each sequence."""
    ids, at = np.ascontiguousarray(ids, np.int32), np.array(pos, np.int32)
    out = np.empty((len(ids), V), np.float32)
    inputs = [ffi.cast("int *", x.ctypes.data) for x in (ids, at)]
    m._check(
        lib_of(m).llmc_model_extend(m._handle, *inputs, *ids.shape, ffi.cast("float *", out.ctypes.data))
    )
    return out


def lib_of(m: Model):
    return m._arena.lib


def fed(m: Model, ids: np.ndarray, pieces: list[int]) -> np.ndarray:
    """The logits (pieces,V) after each piece."""
    ends = np.cumsum(pieces)
    return np.concatenate([extend(m, ids[None, end - n : end], [end - n]) for n, end in zip(pieces, ends)])


def ids_of(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, V, n, dtype=np.int32)


def assert_close(ours: np.ndarray, theirs: np.ndarray, precision: str) -> None:
    share = 1e-4 if precision == "fp32" else 0.1
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=share * np.abs(theirs).max())


_, IN_PIECES, ONE_BY_ONE = PIECES
FED = [(pattern, window, pieces) for pattern, window in BANDED for pieces in PIECES]


@each("case", FED, [("DLLL", 29, IN_PIECES), ("L", 3, ONE_BY_ONE)])
def test_the_logits_are_those_of_all_rows(on, case):
    pattern, window, pieces = case
    rings, rows = two_models(banded(window, pattern), on)
    assert ("ring" in list(rings.acts)) == (window < T) and "ring" not in list(rows.acts)
    ids = ids_of(80)
    ours = fed(rings, ids, PIECES[pieces])
    assert np.array_equal(ours, fed(rows, ids, PIECES[pieces]))
    rings.forward(ids[None])
    whole = np.array(rings.logits[0])
    assert_close(ours, whole[np.cumsum(PIECES[pieces]) - 1], on["precision"])
    rows.forward(ids[None])
    assert np.array_equal(whole, rows.logits[0])


@each("window", [1, 3, 29], [3])
def test_sequences_at_different_positions(on, window):
    """The first one has gone around its ring when the second begins."""
    rings, rows = two_models(banded(window, "DLLL"), on, B=3)
    ids = np.stack([ids_of(T, seed) for seed in range(3)])
    for m in (rings, rows):
        extend(m, ids[:1, :70], [0])
        extend(m, ids[:2, :5], [0, 0])
        extend(m, ids[:1, 5:60], [5])
    pos = [60, 5, 0]
    for n in (1, 4, 1, 1, 9, 1):
        fresh = np.stack([ids[i, p : p + n] for i, p in enumerate(pos)])
        ours = extend(rings, fresh, pos)
        assert np.array_equal(ours, extend(rows, fresh, pos))
        pos = [p + n for p in pos]
    for i, end in enumerate(pos):
        rows.forward(ids[i : i + 1, :end])
        assert_close(ours[i], np.array(rows.logits[0, end - 1]), on["precision"])


def test_texts_are_the_same(on):
    """Longer than the context, which is then begun anew."""
    rings, rows = two_models(banded(3, "DL"), on, B=2)
    ours = rings.generate([1, 2, 3], T + 10, temperature=1.0, seed=5)
    assert ours == rows.generate([1, 2, 3], T + 10, temperature=1.0, seed=5) and len(set(ours)) > 5


def read_again(m: Model) -> int:
    """The number of ids that the last step found in the cache."""
    return int(np.array(m.acts["positions"])[0])


@each("window", [1, 29], [3])
def test_after_a_cut(on, window):
    """A text goes on where its rows are still there, and is read again where they are not."""
    R = window + SLACK
    rings, rows = two_models(banded(window, "DL"), on)
    cuts = [(60, SLACK + 1), (60, SLACK + 2), (60, 1), (60, SLACK), (60, 40), (R, R - 1), (R - 5, 4)]
    for length, back in cuts if on["device"] == "cpu" else cuts[:2]:
        drawn = []
        for m in (rings, rows):
            generation = Generation(m, temperature=0.0)
            generation.feed(ids_of(length))
            generation.next()
            generation.cut(length - back, length + 1)
            generation.feed([7, 8])
            drawn.append(generation.next(20))
        assert drawn[0] == drawn[1]
        generation = Generation(rings, temperature=0.0)
        generation.feed(ids_of(length))
        generation.next()
        generation.cut(length - back, length + 1)
        generation.feed([7])
        generation.next()
        gone = length > R and back > SLACK + 1
        assert read_again(rings) == (0 if gone else length - back)


def test_what_is_forgotten_is_refused():
    m, _ = two_models(banded(3, "DL"), {})
    extend(m, ids_of(60)[None], [0])
    extend(m, ids_of(2)[None], [60 - SLACK - 1])
    extend(m, ids_of(2)[None], [60 - SLACK - 1])  # the rows that it overwrote are needed by no one
    with pytest.raises(
        InvalidArgument, match="sequence 0 cannot go on from token 42: after 60 tokens the banded"
    ):
        extend(m, ids_of(2)[None], [42])
    extend(m, ids_of(5)[None], [0])
    extend(m, ids_of(2)[None], [2])


@each("pattern", PATTERNS, PATTERNS[-1:])
def test_nothing_is_written_outside(on, pattern):
    """The words after a ring keep their canary, and no row is read before it was written: what was there does not matter."""
    if on["device"] == "cuda":
        pytest.skip("the memory of a GPU is not the host's")
    logits = []
    for poison in (0, 0x7FC07FC0):  # the second is NaN as a float and as two numbers of bf16
        m, _ = two_models(banded(3, pattern), on, B=2)
        used = used_acts(m, (2, T))
        acts = block_of(m, lib_of(m).LLMC_ACTS, used.size).view(np.uint32)
        acts[:] = poison
        acts[~used] = CANARY
        ids = np.stack([ids_of(T), ids_of(T, 1)])
        logits.append(extend(m, ids[:, :30], [0, 0]))
        for pos in range(30, 60):
            logits.append(extend(m, ids[:, pos : pos + 1], [pos, pos]))
        logits.append(extend(m, ids[:, 60:], [60, 60]))
        assert (acts[~used] == CANARY).all()
    assert np.array_equal(logits[: len(logits) // 2], logits[len(logits) // 2 :])


@pytest.mark.parametrize("B", [1, 2])
def test_training_that_computes_again_has_rings(on, B):
    """From recompute=3 on each layer keeps one sequence for generation: in fch, or, if the layers share that, banded ones have rings.
    Its steps and its texts have the bits of recompute=2."""
    config, results = banded(3, "DLLL"), []
    batch = ids_of(B * 41).reshape(B, 41)
    for recompute in (2, 3, 4):
        m = Model(config, B, T, recompute=recompute, seed=1, **on)
        assert ("ring" in list(m.acts)) == (recompute == 4)
        losses = []
        for _ in range(2):
            losses.append(m.micro_step(batch[:, :-1], batch[:, 1:], accumulate=False))
            m.update(lr=1e-2)
            losses.append(m.generate([1, 2, 3], 30, temperature=1.0))
        results.append((losses, [np.array(m.params[name]).tobytes() for name in m.params]))
    assert results[0] == results[1] == results[2]


# ---- memory ----


def acts_of(config: GPTConfig, B: int, T: int, training: int = 0, recompute: int = 2) -> tuple[int, dict]:
    """The bytes of all activations, and the table's rows."""
    plan, room = ffi.new("llmc_plan *"), ffi.new("llmc_room *", (B, T, training, recompute, 0))
    rows, c = ffi.new("llmc_tensor[]", lib.llmc_num_tensors()), make_config(config, lib)[0]
    _ffi.check(lib, lib.llmc_plan_memory(c, room, 1, plan))
    _ffi.check(lib, lib.llmc_layout(c, room, rows))
    return plan.acts, {_ffi.text(row.name): row for row in rows}


@pytest.mark.parametrize("B", [1, 3])
@pytest.mark.parametrize("pattern, banded_layers", [("DL", 6), ("L", 12), ("DLLL", 9), ("D", 0)])
def test_a_banded_layer_takes_memory_for_its_window(pattern, banded_layers, B):
    """It grows with w and not with T, and the plan counts it so."""
    dense = GPTConfig(97, 8192, 12, 2, 64)
    for T in (1024, 8192):
        all_rows = acts_of(dense, B, T)[0]
        for window in (1, 64, 640):
            config = replace(dense, window=window, pattern=pattern)
            acts, rows = acts_of(config, B, T)
            R = window + SLACK if banded_layers else 0
            assert list(rows["ring"].shape)[:3] == [B, R, 3 * 64]
            assert rows["qkv"].layers == max(1, 12 - banded_layers) and rows["ring"].layers == banded_layers
            saved = 4 * B * 3 * 64 * banded_layers * (T - R)
            assert all_rows - acts == pytest.approx(saved, abs=4 * 32 * 12 + 128)
    assert rows["whole"].offset == rows["fch"].offset, "rows of one layer take no memory of their own"


def test_where_rings_save_nothing_there_are_none():
    config = GPTConfig(97, 8192, 12, 2, 64, 256)
    dense = replace(config, window=0, pattern="")
    assert not acts_of(config, 1, 256 + SLACK)[1]["ring"].size
    assert acts_of(config, 1, 256 + SLACK + 1)[1]["ring"].size
    for recompute in range(4):  # at 3 a sequence of each layer's lies in fch
        assert acts_of(config, 2, 1024, 1, recompute)[0] == acts_of(dense, 2, 1024, 1, recompute)[0]
    saved = 4 * 3 * 64 * 6 * (1024 - 256 - SLACK)
    fewer = acts_of(dense, 2, 1024, 1, 4)[0] - acts_of(config, 2, 1024, 1, 4)[0]
    assert fewer == pytest.approx(saved, abs=4 * 32 * 12 + 128)


def test_the_plan_tells_it():
    texts = []
    for window in (0, 64):
        text, room = ffi.new("char[1024]"), ffi.new("llmc_room *", (1, 8192, 0, 2, 0))
        config = make_config(GPTConfig(97, 8192, 12, 2, 64, window), lib)[0]
        assert lib.llmc_plan_text(config, room, 1, text, 1024) == 0
        texts.append(float(_ffi.text(text).split("activations ")[1].split(",")[0]))
    assert texts[0] - texts[1] == pytest.approx(4e-6 * 3 * 64 * 6 * (8192 - 80), abs=0.2)


def test_an_open_model_takes_it():
    config = GPTConfig(97, 8192, 12, 2, 64, 64)
    sizes = [
        pyllmc.Model(c, 1, training=False)._arena for c in (replace(config, window=0, pattern=""), config)
    ]
    ends = [max(row.offset + row.stride * max(row.layers - 1, 0) + row.size for row in a.rows.values()
                if not a.is_weight(row)) for a in sizes]  # fmt: skip
    assert ends[0] - ends[1] == pytest.approx(3 * 64 * 6 * (8192 - 80), abs=32 * 12 + 32)
