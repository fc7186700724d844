"""Several processes compute what one computes with the same batch, and the same bits every time."""

# ruff: noqa: F401, F811 (fixtures are imported)
from __future__ import annotations

from pathlib import Path

import pytest
import several
from conftest import not_under_asan
from test_finetune import uneven
from test_trainer import TINY, content, data, metrics

import pyllmc

QUIET = {"sample_every": 0, "val_every": 0, "checkpoint_every": 0}
SMALL = {**TINY, "B": 2, "max_steps": 40, **QUIET}
LORA = {"train_only": "h.1.*,lnf*"}
CASES = {
    "plain": {},
    "micro-steps": {"grad_accum": 3, "max_steps": 15},
    "ramp": {"grad_accum": 4, "batch_ramp_tokens": 400, "max_steps": 15},
    "uneven end": {"epochs": 1, "B": 5},  # the last step has fewer windows than one of the processes takes
    "dropout": {"dropout": 0.2, "grad_accum": 2, "max_steps": 15},
    "some tensors": LORA,
    "untied": {"untied": 1, "max_steps": 10},
    "outliers": {"skip_outliers": 6},
    "bf16": {"precision": "bf16", "max_steps": 10},
}


def case_of(name: str, data: Path, **more) -> dict:
    case = {**SMALL, "data": str(data), "out": "", **CASES[name], **more}
    return {k: v for k, v in case.items() if k != "max_steps" or "epochs" not in case}


def whole(case: dict, processes: int) -> dict:
    """The same for one process. It makes the passes of all one after another, so that dropout's masks are the same, too."""
    micro = case.get("grad_accum", 1) * processes
    if "batch_ramp_tokens" in case:  # a ramp of one process has other sizes, unless its batches are larger
        return {**case, "B": case["B"] * processes}
    return {**case, "grad_accum": micro}


def largest_difference(a: list[list[float]], b: list[list[float]]) -> float:
    assert len(a) == len(b)
    return max(abs(x[0] - y[0]) / abs(x[0]) for x, y in zip(a, b))


@pytest.fixture(scope="module")
def two(data, uneven, tmp_path_factory) -> dict[str, list[list[float]]]:
    """Loss and norm of each case, trained by two processes."""
    cases = {name: case_of(name, data) for name in CASES}
    cases["again"] = case_of("plain", data)
    cases["shared"] = case_of("plain", data, zero=1)
    cases["shared bf16"] = case_of("bf16", data, zero=1)
    cases["sums in bf16"] = case_of("plain", data, reduce_precision="bf16")
    cases["masked"] = {**case_of("micro-steps", uneven), "T": 16, "max_seq_len": 16}
    found = several.train_cases(2, list(cases.values()), tmp_path_factory.mktemp("two"))
    return dict(zip(cases, found))


@pytest.mark.parametrize("name", [name for name in CASES if name != "bf16"])
def test_two_processes_compute_what_one_does(data, two, name):
    case = whole(case_of(name, data), 2)
    alone = several.steps_of(pyllmc.Trainer(**case))
    assert largest_difference(alone, two[name]) < 1e-6


def test_with_a_loss_mask_every_target_counts_the_same(uneven, two):
    case = {**case_of("micro-steps", uneven), "T": 16, "max_seq_len": 16}
    alone = several.steps_of(pyllmc.Trainer(**whole(case, 2)))
    assert largest_difference(alone, two["masked"]) < 1e-6


def test_the_same_number_of_processes_gives_the_same_bits(two):
    assert two["again"] == two["plain"]


def test_zero_gives_the_same_bits(two):
    assert two["shared"] == two["plain"]
    assert two["shared bf16"] == two["bf16"]


def test_sums_in_bf16_are_near(two):
    assert two["sums in bf16"] != two["plain"]
    assert largest_difference(two["plain"], two["sums in bf16"]) < 0.02


def test_three_processes(data, tmp_path):
    """The order of their sums is fixed, too, and a share of the moments may be left over."""
    case = case_of("plain", data)
    plain, again, shared = several.train_cases(3, [case, case, {**case, "zero": 1}], tmp_path)
    assert plain == again == shared
    assert largest_difference(several.steps_of(pyllmc.Trainer(**whole(case, 3))), plain) < 1e-6


@not_under_asan
def test_the_emulated_device(data, tmp_path):
    """The same calls reach a device's memory."""
    if not (pyllmc.engine._ffi.PACKAGE / "lib" / "libpyllmc_emu_fp32.so").exists():
        pytest.skip("the emulated library is not built")
    case = case_of("plain", data, max_steps=2, device="emu", precision="fp32")
    plain, shared = several.train_cases(2, [case, {**case, "zero": 1}], tmp_path)
    assert plain == shared
    assert largest_difference(several.steps_of(pyllmc.Trainer(**whole(case, 2))), plain) < 1e-5


def test_every_window_is_seen_once_an_epoch(data):
    """The loaders of all ranks together read each window of an epoch once, whatever their number; and one that begins in the
    middle goes on there."""
    ffi, lib = pyllmc.engine._ffi.ffi(), pyllmc.engine._ffi.load()
    for world in (1, 2, 3):
        seen = []
        for rank in range(world):
            loader = ffi.new("llmc_loader **")
            arguments = str(data).encode(), b"train", 1, 7, 1, 42, rank, world, 0, -1
            assert lib.llmc_loader_open(loader, *arguments) == 0
            windows = lib.llmc_loader_windows(loader[0])
            lib.llmc_loader_set_position(loader[0], 6)
            inputs, targets = ffi.new("int[7]"), ffi.new("int[7]")
            for position in range(6, windows, world):
                assert lib.llmc_loader_next(loader[0], inputs, targets) == 0
                if position + rank < windows:
                    seen.append(bytes(ffi.buffer(inputs)) + bytes(ffi.buffer(targets)))
            lib.llmc_loader_free(loader[0])
        expected = sorted(seen) if world == 1 else expected  # noqa: F821
        assert sorted(seen) == expected
