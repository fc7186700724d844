"""Sizes beyond 32 bits: counts have 64 bits everywhere, and impossible sizes are refused before anything is
allocated."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import CPU_KERNELS, ffi, lib, make_kernels

import pyllmc
from pyllmc.convert.source import make_config
from pyllmc.engine import _ffi


def plan(config: pyllmc.GPTConfig, B: int, T: int, training: bool = True):
    out, room = ffi.new("llmc_plan *"), ffi.new("llmc_room *", (B, T, int(training), 0, 1))
    _ffi.check(lib, lib.llmc_plan_memory(make_config(config, lib)[0], room, 1, out))
    return out


def test_more_than_2_31_logits_are_counted_right():
    config = pyllmc.GPTConfig(50257, 1024, 12, 12, 768)
    B, T = 64, 1024
    p = plan(config, B, T)
    assert B * T * 50304 > 2**31
    assert p.acts > 4 * B * T * (50304 + 12 * 16 * 768)
    assert p.params == 4 * (50304 * 768 + 1024 * 768 + 12 * (12 * 768**2 + 13 * 768) + 2 * 768)
    assert p.total == p.params + p.grads + p.moments + p.acts + p.workspace
    assert p.num_params == 124_439_808


@pytest.mark.parametrize(
    "L, C, V, B, T", [(1000, 2**24, 50257, 1, 1), (4, 2**22, 2**24, 1, 1), (12, 768, 50257, 2**31 - 1, 1024)]
)
def test_products_that_no_machine_holds_are_refused(L, C, V, B, T):
    with pytest.raises(ValueError, match="more than any machine holds"):
        plan(pyllmc.GPTConfig(V, 1024, L, 1, C), B, T)


def test_inference_leaves_out_what_only_gradients_need():
    config = pyllmc.GPTConfig(50257, 1024, 12, 12, 768)
    whole, less = plan(config, 1, 1024), plan(config, 1, 1024, training=False)
    assert (less.grads, less.moments) == (0, 0)
    assert less.acts < whole.acts / 2


@pytest.mark.parametrize("name", CPU_KERNELS)
def test_attention_keeps_no_T_by_T_matrix(name):
    """The scratch memory of every kernel grows with T, not with its square (PEERS 4: llm.c kept B NH T T)."""
    table = make_kernels(name).table
    short, long = (table.workspace_bytes(1, T, 64, 1, 128, 1) for T in (4096, 32768))
    assert long <= 8 * short + 2**20
    names = [ffi.string(row.name).decode() for row in rows(4096)]
    sizes = [(a.size, b.size) for a, b in zip(rows(4096), rows(8192))]
    assert all(b <= 2 * a for a, b in sizes), names


def rows(T: int):
    config = make_config(pyllmc.GPTConfig(100, 8192, 1, 1, 16), lib)[0]
    out = ffi.new("llmc_tensor[]", lib.llmc_num_tensors())
    _ffi.check(lib, lib.llmc_layout(config, ffi.new("llmc_room *", (1, T, 1, 0, 1)), out))
    rows.held = getattr(rows, "held", []) + [out]  # type: ignore[attr-defined]
    return list(out)


def test_a_token_file_beyond_two_gigabytes(tmp_path):
    """The file is sparse, so it takes no space: llm.c's first format, int32 ids without a header."""
    path, count = tmp_path / "large.bin", 700_000_000
    with open(path, "wb") as f:
        f.truncate(4 * count)
        f.seek(4 * (count - 5))
        f.write(np.arange(1, 6, dtype=np.int32).tobytes())
    loader = ffi.new("llmc_loader **")
    _ffi.check(lib, lib.llmc_loader_open(loader, str(path).encode(), b"train", 1, 4, 0, 0, 0, 1, 10, -1))
    handle = ffi.gc(loader[0], lib.llmc_loader_free)
    assert lib.llmc_loader_tokens(handle) == count
    windows = (count - 1) // 4
    assert lib.llmc_loader_windows(handle) == windows
    _ffi.check(lib, lib.llmc_loader_set_position(handle, windows - 1))
    inputs, targets = np.empty(4, np.int32), np.empty(4, np.int32)
    pointers = [ffi.cast("int *", x.ctypes.data) for x in (inputs, targets)]
    _ffi.check(lib, lib.llmc_loader_next(handle, *pointers))
    expected = np.zeros(count % 4 + 8, np.int32)
    expected[-5:] = np.arange(1, 6)
    start = (windows - 1) * 4 - (count - expected.size)
    assert inputs.tolist() == expected[start : start + 4].tolist()
    assert targets.tolist() == expected[start + 1 : start + 5].tolist()
