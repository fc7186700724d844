"""DiLoCo: steps that each process takes by itself, then an outer step for all."""

# ruff: noqa: F401, F811 (fixtures are imported)
from __future__ import annotations

import os
import signal
import struct
from pathlib import Path

import numpy as np
import pytest
import several
from conftest import not_under_asan
from test_checkpoint import sections
from test_finetune import uneven
from test_together import SMALL, largest_difference
from test_torchrun import moments, only_line
from test_trainer import content, data, eot_of, metrics

import pyllmc
from pyllmc import plan
from pyllmc.engine import _ffi
from pyllmc.engine.arena import make_handle
from pyllmc.planning.steptime import TCP
from pyllmc.text.tokenizer import Tokenizer

H, STEPS = 4, 10  # exchanges after steps 4, 8 and, as the last, 10
APART = {**SMALL, "max_steps": STEPS, "diloco": H, "checkpoint_every": H, "keep": 5, "lr": 0.01}
lib = _ffi.load()


@pytest.fixture(scope="module")
def two(data, uneven, tmp_path_factory) -> dict[str, list[dict]]:
    """What each of two processes has found in each case; and the folder of their runs."""
    home = tmp_path_factory.mktemp("diloco")
    case = {**APART, "data": str(data)}
    cases = {
        "first": case,
        "again": case,
        "resumed": {"resume": str(home / "first/step_00000008.ckpt")},
        "bf16": {**case, "reduce_precision": "bf16"},
        "some tensors": {**case, "train_only": "h.1.*,lnf*"},
        "masked": {**case, "data": str(uneven), "T": 16, "max_seq_len": 16, "grad_accum": 2},
        "wild": {
            **case,
            "lr": 1e3,
            "grad_clip": 0,
            "warmup_steps": 0,
            "weight_decay": 1,
            "max_steps": 90,
            "diloco": 90,
        },
        "stopped": {**case, "max_steps": 90, "checkpoint_every": 0, "stop": (1, 5)},
        # the last step has windows for rank 0 only
        "uneven end": {k: v for k, v in case.items() if k != "max_steps"} | {"epochs": 1, "B": 5},
    }
    for name, one in cases.items():
        one = cases[name] = {**one, "out": str(home / name)}
    found = several.train_apart(2, list(cases.values()), home)
    return {"home": home, **{name: [one[i] for one in found] for i, name in enumerate(cases)}}


# ---- the algorithm ----


class Batches:
    """The batches of one of several processes."""

    def __init__(self, data: Path, rank: int, world: int) -> None:
        self.shape = SMALL["B"], SMALL["T"]
        loader = _ffi.ffi().new("llmc_loader **")
        arguments = os.fsencode(data), b"train", *self.shape, 1, 42, rank, world, 0, eot_of(data)
        _ffi.check(lib, lib.llmc_loader_open(loader, *arguments))
        self.loader = _ffi.ffi().gc(loader[0], lib.llmc_loader_free)

    def __next__(self) -> tuple[np.ndarray, np.ndarray]:
        pair = np.empty(self.shape, np.int32), np.empty(self.shape, np.int32)
        pointers = (_ffi.ffi().cast("int *", x.ctypes.data) for x in pair)
        _ffi.check(lib, lib.llmc_loader_next(self.loader, *pointers))
        return pair


def reference(data: Path, world: int, lrs: list[float]) -> dict[str, np.ndarray]:
    """Algorithm 1 of Douillard et al. 2023 with PyTorch's SGD, in numpy; AdamW is the engine's, one model a process."""
    models = [pyllmc.Model(sizes_of(data), B=SMALL["B"], T=SMALL["T"], seed=42) for _ in range(world)]
    batches = [Batches(data, rank, world) for rank in range(world)]
    last = {name: np.array(x, np.float64) for name, x in models[0].params.items()}
    momentum = {name: np.zeros_like(x) for name, x in last.items()}
    for step, lr in enumerate(lrs, 1):
        for model, batch in zip(models, batches):
            model.micro_step(*next(batch), accumulate=False)
            model.clip_grad_norm(1)
            model.update(lr=lr)
        if step % H and step != len(lrs):
            continue
        for name, x in last.items():
            gradient = x - np.mean([model.params[name] for model in models], axis=0, dtype=np.float64)
            momentum[name] = 0.9 * momentum[name] + gradient
            last[name] = x - 0.7 * (gradient + 0.9 * momentum[name])
            for model in models:
                model.params[name] = last[name].astype(np.float32)
    return last


def sizes_of(data: Path) -> pyllmc.GPTConfig:
    V = Tokenizer.load(data / "tokenizer.bin").vocab_size
    return pyllmc.GPTConfig(V, SMALL["max_seq_len"], SMALL["n_layer"], 3, 48)


def assert_is_reference(run: Path, data: Path, world: int) -> None:
    lrs = [line["lr"] for line in metrics(run) if "lr" in line]
    assert len(lrs) == STEPS
    expected, found = reference(data, world, lrs), pyllmc.Model(run / "last.ckpt", B=1, T=1)
    for name, x in expected.items():
        a, b = np.array(found.params[name]), x
        if name.endswith("c_attn.bias"):  # keys shift all scores alike: AdamW makes steps of rounding errors
            a, b = (np.delete(y, slice(48, 96)) for y in (a, b))
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6, err_msg=name)


def test_two_processes_are_as_the_paper_says(two, data):
    assert_is_reference(two["home"] / "first", data, 2)


def test_one_process_is_as_the_paper_says(data, tmp_path):
    list(pyllmc.Trainer(**APART, data=data, out=tmp_path / "run"))
    assert_is_reference(tmp_path / "run", data, 1)


def test_the_same_bits_every_time(two):
    assert two["first"] == two["again"]
    assert moments(two["home"] / "first") == moments(two["home"] / "again")


def test_a_resumed_run_comes_to_the_same_bits(two):
    """Its checkpoint holds the moments of both processes, and the momentum of the outer step."""
    assert moments(two["home"] / "resumed") == moments(two["home"] / "first")
    for one, whole in zip(two["resumed"], two["first"]):
        assert one["steps"] == whole["steps"][8:]


def test_processes_compute_their_own_steps(two):
    """Their losses differ, but for the validation, which comes at exchanges; with summed gradients they would be the same."""
    first, second = (one["steps"] for one in two["first"])
    assert first != second


def test_sums_in_bf16_are_near(two):
    plain, rounded = two["first"][0]["steps"], two["bf16"][0]["steps"]
    assert plain[:H] == rounded[:H] and plain != rounded
    assert largest_difference(plain, rounded) < 0.02


@pytest.mark.parametrize("name", ["masked", "uneven end", "some tensors"])
def test_it_trains(two, name):
    for one in two[name]:
        losses = [loss for loss, _ in one["steps"]]
        assert np.isfinite(losses).all() and losses[-2] < losses[0]


# ---- what goes through the network ----


def test_an_exchange_sends_what_the_plan_says(two, data):
    """A ring of two sends as many bytes as each has: 2 (n-1)/n S."""
    options = f"--model=gpt-nano --n_layer=2 --max_seq_len=16 --T=7 --B=2 --step_ms=1 --vocab_size={sizes_of(data).vocab_size}"
    for case, asked in (("first", []), ("bf16", ["--reduce_precision=bf16"])):
        words = [*options.split(), "--nodes=2", "--network=1Gbit", f"--diloco={H}", *asked]
        found = plan.make_plan(plan.parse(words))
        row = next(row for row in found["rows"] if row["processes"] == 2)
        assert row["step_ms"] == pytest.approx(1 + row["reduce_ms"] / H)
        planned = row["reduce_ms"] * 1e-3 * 1e9 / 8 * TCP  # the time, times the rate without headers
        assert all(one["sent"] == pytest.approx(3 * planned) for one in two[case])


def test_the_memory_is_that_of_the_plan(data):
    words = [
        "--model=gpt-nano",
        "--vocab_size=1000",
        "--B=2",
        "--T=64",
        "--device=cpu",
        "--step_ms=5",
        f"--diloco={H}",
    ]
    memory = plan.make_plan(plan.parse(words))["memory"]
    out = _ffi.ffi().new("llmc_plan *")
    room = room_of(B=2, T=64)
    config = _ffi.ffi().new("llmc_config *", {"maxT": 1024, "V": 1000, "L": 3, "NH": 3, "C": 48})
    _ffi.check(lib, lib.llmc_config_check(config))
    _ffi.check(lib, lib.llmc_plan_memory(config, room, 0, out))
    assert memory["of_process"] == pytest.approx(
        out.total, abs=128
    )  # each block begins at a multiple of 64 bytes


# ---- the checkpoint ----


def room_of(**sizes: int):
    return _ffi.ffi().new(
        "llmc_room *", {"training": 1, "recompute": 2, "precision": lib.LLMC_FP32, "outer": 1, **sizes}
    )


def loaded(checkpoint: Path, sizes: pyllmc.GPTConfig, rank: int, world: int) -> pyllmc.Model:
    """The model of a process that resumes from a checkpoint, without the others."""
    config = _ffi.ffi().new(
        "llmc_config *",
        {"maxT": sizes.max_seq_len, "V": sizes.vocab_size, "L": sizes.n_layer, "NH": 3, "C": 48},
    )
    _ffi.check(lib, lib.llmc_config_check(config))
    handle = make_handle(lib, config, room_of(B=1, T=4), 1)
    team = _ffi.ffi().new("llmc_team *", {"rank": rank, "world": world, "local": 1})
    _ffi.check(lib, lib.llmc_model_join(handle, team))
    _ffi.check(lib, lib.llmc_model_load(handle, os.fsencode(checkpoint)))
    return pyllmc.Model._borrow(lib, handle, team)


def test_another_number_of_processes_takes_the_moments_in_turn(two, data):
    """Rank r goes on with those of rank r modulo the number that were saved."""
    checkpoint, sizes = two["home"] / "first/last.ckpt", sizes_of(data)
    held = [loaded(checkpoint, sizes, rank, 3) for rank in range(3)]
    flat = [b"".join(x.tobytes() for name in m.params for x in m.moments[name]) for m in held]
    assert flat[0] == flat[2] != flat[1]


def test_the_format_has_a_version_of_its_own(two, tmp_path):
    """Who does not know the outer step refuses the file by its version; best.ckpt and the weights are for all."""
    last = (two["home"] / "first/last.ckpt").read_bytes()
    magic, version = struct.unpack_from("<2i", last)
    assert version == 104
    plain, stripped = tmp_path / "plain.ckpt", tmp_path / "stripped.ckpt"
    model = pyllmc.Model(two["home"] / "first", B=1, T=4)
    model.save(plain)
    assert struct.unpack_from("<2i", plain.read_bytes())[1] == 3
    stripped.write_bytes(struct.pack("<2i", magic, 3) + last[8:])
    with pytest.raises(pyllmc.BadFile, match="expected no outer step, found"):
        pyllmc.Model(stripped)
    at = last.rindex(b"OUTER   ")
    stripped.write_bytes(last[:at] + last[-20:])
    with pytest.raises(pyllmc.BadFile, match="expected an outer step, found 0 bytes"):
        pyllmc.Model(stripped)


def test_going_on_without_it_and_beginning_with_it(two, data, tmp_path):
    """A run with summed gradients takes the moments of the first process, and its checkpoint may go on with an outer step."""
    options = {"max_steps": STEPS + 2, "lr": 0.01}
    run = tmp_path / "run"
    list(pyllmc.Trainer(resume=two["home"] / "first/last.ckpt", out=run, diloco=0, **options))
    assert struct.unpack_from("<2i", (run / "last.ckpt").read_bytes())[1] == 3
    list(pyllmc.Trainer(resume=run, diloco=3, max_steps=STEPS + 4))
    assert struct.unpack_from("<2i", (run / "last.ckpt").read_bytes())[1] == 104


# ---- events, stops, faults ----


def test_work_between_steps_waits_for_an_exchange(data):
    options = {**APART, "data": data, "max_steps": 14, "val_every": 5, "val_batches": 1}
    assert [event.step for event in pyllmc.Trainer(**options) if event.kind == "eval"] == [0, 8, 12, 14]


@pytest.mark.parametrize(
    "device, precision", [("cpu", "fp32"), ("cpu", "bf16"), pytest.param("emu", "fp32", marks=not_under_asan)]
)
def test_a_stop_waits_for_an_exchange(data, tmp_path, device, precision):
    """A resumed run then comes to the bits of one that was never stopped. It begins with weights that it has loaded, so the outer
    step must have left the same for the kernels."""
    if device == "emu" and not (_ffi.PACKAGE / "lib/libpyllmc_emu_fp32.so").exists():
        pytest.skip("the emulated library is not built")
    how = {"device": device, "precision": precision}
    for name, stop in (("whole", None), ("stopped", 5)):
        trainer = pyllmc.Trainer(**APART, **how, data=data, out=tmp_path / name)
        for event in trainer:
            if event.kind == "step" and event.step == stop:
                assert "next exchange" in trainer.stopping
                trainer.stop()
    assert event.kind == "checkpoint" and event.step == 2 * H
    list(pyllmc.Trainer(resume=tmp_path / "stopped", device=device))
    assert moments(tmp_path / "stopped") == moments(tmp_path / "whole")


@pytest.mark.parametrize(
    "options, told",
    [
        ({"zero": 1}, "--zero shares out the moments, which --diloco changes on each process by itself: give one"),
        ({"skip_outliers": 6}, "--skip_outliers looks at the loss of all processes"),
        ({"lora_rank": 4}, "--diloco saves little with --lora_rank"),
        ({"diloco_momentum": 1}, "diloco_momentum"),
        ({"diloco_lr": 0}, "diloco_lr"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(data, options, told):
    with pytest.raises(pyllmc.InvalidArgument, match=told):
        pyllmc.Trainer(**{**APART, "data": data, **options})


LONG = {**APART, "max_steps": 100_000, "diloco": 20, "checkpoint_every": 20, "keep": 0, "timeout": 5}


def test_a_process_that_hangs_is_named(data, tmp_path):
    """The others look for it at the next exchange. The last checkpoint is the one to go on from."""
    run = several.Run(2, **LONG, data=data, out=tmp_path / "run")
    run.wait_for(r"step +50/")
    hanging = run.send(1, signal.SIGSTOP)
    try:
        run.wait_for("^pyllmc.train: ")
    finally:
        os.kill(hanging, signal.SIGKILL)
    assert "rank 1 of 2 does not answer" in only_line(run.end(), run.told)
    assert last_step(tmp_path / "run") % 20 == 0


def last_step(run: Path) -> int:
    return pyllmc.Model(run / "last.ckpt", B=1, T=4).step


def test_an_error_of_one_process_is_told_by_all_at_the_next_exchange(two):
    """Weights that grow without bound become infinite at different steps in the two processes."""
    first, second = two["wild"]
    assert first["error"] == second["error"] and "first seen in" in first["error"]
    assert not {len(first["steps"]), len(second["steps"])} & {0, 90}


def test_a_stop_of_one_process_is_that_of_all_at_the_next_exchange(two):
    assert [len(one["steps"]) for one in two["stopped"]] == [2 * H, 2 * H]
    assert last_step(two["home"] / "stopped") == 2 * H


def test_a_last_step_that_is_smaller_has_the_loss_of_its_windows(data):
    """Until the first exchange a process alone trains as without DiLoCo."""
    how = {**SMALL, "data": data, "out": "", "epochs": 1, "B": 5, "grad_accum": 2}
    how.pop("max_steps", None)
    losses = []
    for diloco in (0, 1_000_000):
        events = list(pyllmc.Trainer(**how, diloco=diloco))
        losses.append([event.loss for event in events if event.kind == "step"])
    assert losses[0] == losses[1] and len(losses[0]) > 1
