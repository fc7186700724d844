"""Masters that are split in two halves: the same floats as whole ones, through every kernel, model and file."""

from __future__ import annotations

import numpy as np
import pytest
import test_adamw
import torch
from conftest import BF16_ISAS, Buffers, Kernel, ffi, in_every_way, lib, make_kernels
from test_compress import FORMATS, normal

import pyllmc
from pyllmc import InvalidArgument
from pyllmc.engine import _ffi

# both sides of what rounds up and down, ties among them; the ends of the normal numbers, denormals and zeros
ENDS = [0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF]
UPPERS = [0, 1, 0x7F, 0x80, 0x3F80, 0x3F81, 0x7F7E, 0x7F7F]
FLOATS = np.array([s << 31 | u << 16 | l for s in (0, 1) for u in UPPERS for l in ENDS], np.uint32)
BEYOND = np.array([0x7F800000, 0xFF800000], np.uint32)  # infinities
NANS = np.array([0x7F800001, 0x7FC00000, 0x7FFFFFFF, 0xFFFFFFFF, 0xFF808000], np.uint32)


@pytest.fixture(params=BF16_ISAS)
def kernels(request) -> Kernel:
    return make_kernels(f"{request.param}-bf16")


def halves(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(upper, as floats; lower) of x, which are no NaN, as the comment at bf16_split says."""
    bits = x.view(np.uint32).astype(np.uint64)
    upper = (bits + 0x8000 >> 16).astype(np.uint32) << 16
    return upper.view(np.float32), (bits & 0xFFFF).astype(np.uint16).view(np.int16)


def joined(upper: np.ndarray, lower: np.ndarray) -> np.ndarray:
    return (upper.view(np.uint32).astype(np.int64) + lower).astype(np.uint32).view(np.float32)


def bits_of(*arrays: np.ndarray) -> list[bytes]:
    return [x.tobytes() for x in arrays]


def split_adamw(k: Kernel, buffers: Buffers, start: np.ndarray, grads, decay: float, by: np.ndarray | None):
    """param, m, v after the last gradient, and what is stored."""
    k.context.split = 1
    stored, lower = (buffers.guarded(x) for x in halves(start))
    m, v = (buffers.guarded(np.zeros_like(start)) for _ in range(2))
    for t, grad in enumerate(grads, 1):
        of_step = test_adamw.numbers(t, decay)
        k.adamw(lower, stored, m, v, buffers.guarded(grad), by, of_step, decay > 0, start.size)
    k.context.split = 0
    return joined(stored, lower), m, v, stored


@pytest.mark.parametrize("n", test_adamw.COUNTS)
@pytest.mark.parametrize("decay,factor", [(0.0, None), (0.125, 0.37)])
def test_steps_are_those_of_whole_masters(kernels: Kernel, buffers: Buffers, n: int, decay, factor):
    start, grads = test_adamw.random(n), test_adamw.gradients(n)
    whole = test_adamw.adamw(kernels, buffers, start, grads, decay, factor)
    by = None if factor is None else np.array([factor], np.float32)
    *split, stored = split_adamw(kernels, buffers, start, grads, decay, by)
    assert bits_of(*split) == bits_of(*whole)
    np.testing.assert_array_equal(stored, halves(split[0])[0])


def test_unaligned(kernels: Kernel, unaligned: Buffers):
    test_steps_are_those_of_whole_masters(kernels, unaligned, 97, 0.125, 0.37)


def test_every_float_passes_a_step_that_changes_nothing(kernels: Kernel, buffers: Buffers):
    start = FLOATS.view(np.float32)
    still = [np.zeros_like(start)]
    param, _, _, stored = split_adamw(kernels, buffers, start, still, 0.0, None)
    assert bits_of(param, stored) == bits_of(start, halves(start)[0])


@pytest.mark.parametrize("bad", [*NANS, *BEYOND], ids=hex)
def test_a_bad_gradient_shows_in_both(kernels: Kernel, buffers: Buffers, bad: np.uint32):
    """A NaN whose lower bits are ones must not become a number by a carry."""
    start, grad = np.full(40, -1.0, np.float32), np.zeros(40, np.float32)
    grad.view(np.uint32)[17] = bad
    param, _, _, stored = split_adamw(kernels, buffers, start, [grad], 0.0, None)
    assert [i for i in range(40) if not np.isfinite(param[i])] == [17]
    assert [i for i in range(40) if not np.isfinite(stored[i])] == [17]


def test_threads_do_not_change_a_bit(kernels: Kernel, buffers: Buffers):
    start, grads = test_adamw.random(70_001), test_adamw.gradients(70_001)[:2]
    results = [bits_of(*split_adamw(k, buffers, start, grads, 0.1, None)) for k in in_every_way(kernels)]
    assert all(one == results[0] for one in results)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("rows,C", [(1, 4), (5, 33), (3, 770)])
def test_they_are_compressed_as_whole_ones(kernels: Kernel, buffers: Buffers, form: str, rows: int, C: int):
    weight = normal(rows, C)
    kernels.workspace(1, rows, C)
    whole = buffers.out(rows, C)
    kernels.compress(whole, buffers.guarded(weight), FORMATS[form], rows, C)
    upper, lower = (buffers.guarded(x) for x in halves(weight))
    kernels.context.split = 1
    kernels.compress(upper, lower, FORMATS[form], rows, C)
    used = rows * (C + 4) // 2 if form == "int8" else rows * C
    assert upper.ravel()[:used].tobytes() == whole.ravel()[:used].tobytes()


def model(**options) -> pyllmc.Model:
    return pyllmc.Model("gpt-nano", B=2, T=32, vocab_size=67, precision="bf16", **options)


def test_a_model_keeps_every_float():
    m = model()
    values = np.resize(np.concatenate([FLOATS, BEYOND]).view(np.float32), m.params["qkvw"].shape)
    m.params["qkvw"] = values
    assert m.params["qkvw"].tobytes() == values.tobytes()
    m.params["lnfb"] = np.resize(NANS, 48).view(np.float32)
    assert np.isnan(m.params["lnfb"]).all()
    m.forward(np.zeros((1, 4), np.int32))
    assert np.isnan(m.logits).all(), "a NaN is a number for the kernels"


def test_fresh_weights_are_the_seeds_own():
    fp32 = pyllmc.Model("gpt-nano", B=2, T=32, vocab_size=67, precision="fp32")
    for name, x in model().params.items():
        assert x.tobytes() == fp32.params[name].tobytes(), name


def test_their_memory_is_nobody_elses():
    """Half as much as whole masters, and no pointer to them as floats."""
    m = model()
    assert not m._arena.room.whole
    assert m._lib.llmc_model_block(m._handle, lib.LLMC_PARAMS) == ffi.NULL
    with pytest.raises(
        InvalidArgument, match=r"not floats in this machine's memory: read and write model.params\[name\]"
    ):
        m._arena.flat("params")
    config, room, plan = m._lib.llmc_model_config(m._handle), ffi.new("llmc_room *"), ffi.new("llmc_plan *")
    room[0] = m._arena.room
    _ffi.check(lib, lib.llmc_plan_memory(config, room, 1, plan))
    split = plan.params
    room.whole = 1
    _ffi.check(lib, lib.llmc_plan_memory(config, room, 1, plan))
    assert split == plan.stored
    assert abs(plan.params - 2 * split) <= 64, "blocks begin at multiples of 64"


def test_files_hold_the_floats(tmp_path):
    """A trained model's file has its masters, and gives them to a model that keeps them whole, and back."""
    from pyllmc.nn import GPT  # noqa: PLC0415, PyTorch is heavy

    m, ids = model(), np.random.default_rng(0).integers(0, 67, (2, 33))
    for _ in range(3):
        m.micro_step(ids[:, :-1], ids[:, 1:])
        m.update(lr=1e-3)
    m.save(tmp_path / "split.ckpt")
    whole = GPT(tmp_path / "split.ckpt", B=2, T=32, precision="bf16")
    whole.save(tmp_path / "whole.ckpt")
    again = pyllmc.Model(tmp_path / "whole.ckpt", B=2, T=32, precision="bf16")
    for name, x in m.params.items():
        assert (halves(x)[1] != 0).any(), "the masters are rounded"
        assert x.tobytes() == whole.engine.params[name].tobytes() == again.params[name].tobytes(), name
    assert (whole.transformer.wte.weight == torch.from_numpy(m.params["wte"].copy())).all()
