"""Runs that go on with another number of processes: the batch stays, the steps are those of one process, each window is seen
once."""

# ruff: noqa: F401, F811 (fixtures are imported)
from __future__ import annotations

import os
import re
import shutil
import signal
import socket
from pathlib import Path

import numpy as np
import pytest
import several
from test_finetune import uneven
from test_together import QUIET, SMALL, largest_difference
from test_trainer import TINY, data, eot_of, metrics

import pyllmc
from pyllmc.base.errors import InvalidArgument
from pyllmc.text import bins

STEPS = 12
ELASTIC = {**SMALL, "B": 4, "grad_accum": 2, "max_steps": STEPS, "val_every": 3, "val_batches": 3}


def case_of(data: Path, **more) -> dict:
    return {**ELASTIC, "data": str(data), **more}


def validations(run: Path) -> dict[int, float]:
    return {line["step"]: line["val_loss"] for line in metrics(run) if "val_loss" in line}


# ---- one process ----


def test_a_global_batch_is_made_of_micro_steps(data, tmp_path):
    """Micro-steps have at most B sequences, and nearly equal sizes: 12 is 3 times 4, also with B=5."""
    one = case_of(data, out=str(tmp_path / "a"), B=12, grad_accum=1)
    whole = several.steps_of(pyllmc.Trainer(**one))
    for B, given in ((4, 4), (5, 4), (12, 12), (7, 6), (100, 12)):
        out = tmp_path / f"b{B}"
        trainer = pyllmc.Trainer(**case_of(data, out=out, B=B, grad_accum=1, global_batch=12))
        plan = next(trainer).text
        assert f"for B={given} " in plan
        assert (B == 12) or "a step takes 12 windows, 84 tokens" in plan
        assert largest_difference(whole, several.steps_of(trainer)) < 1e-6
        assert [line.get("batch", 84) for line in metrics(out) if "loss" in line] == [84] * STEPS


@pytest.mark.parametrize("more", [{"dropout": 0.2}, {"batch_ramp_tokens": 300}, {"epochs": 0.4}], ids=str)
def test_it_is_grad_accum_where_B_divides_it(data, tmp_path, more):
    """To the same bits."""
    case = {k: v for k, v in case_of(data, **more).items() if k != "max_steps" or "epochs" not in more}
    runs = [{"grad_accum": 3}, {"grad_accum": 1, "global_batch": 12}]
    found = [list(pyllmc.Trainer(**{**case, **how, "out": tmp_path / str(i)})) for i, how in enumerate(runs)]
    assert len(found[0]) > 3
    assert [(e.loss, e.norm, e.lr) for e in found[0]] == [(e.loss, e.norm, e.lr) for e in found[1]]
    assert validations(tmp_path / "0") == validations(tmp_path / "1")


def test_a_ramp_ends_at_a_global_batch_that_B_does_not_divide(data, tmp_path):
    each = ELASTIC["T"]
    case = {
        **case_of(data, B=4, grad_accum=1, global_batch=10, batch_ramp_tokens=300),
        "out": tmp_path / "run",
    }
    events = list(pyllmc.Trainer(**case))
    sizes = [line["batch"] // each for line in metrics(tmp_path / "run") if "loss" in line]
    assert sorted(set(sizes)) == [4, 8, 10] and sizes == sorted(sizes)
    assert f"batches grow from {4 * each} to {10 * each} tokens" in events[0].text


@pytest.mark.parametrize(
    "options, told",
    [
        ({"grad_accum": 2, "global_batch": 8}, "--global_batch=8 and --grad_accum=2 both say how large a step is"),
        ({"B": 8, "global_batch": 8, "batch_ramp_tokens": 9}, "lets a batch grow"),
        ({"B": 1, "global_batch": 10**9}, "more than 1000000 micro-steps of --B=1: raise --B"),
        ({"global_batch": -1}, "global_batch"),
    ],
)  # fmt: skip
def test_what_is_refused(data, options, told):
    with pytest.raises(InvalidArgument, match=re.escape(told)):
        pyllmc.Trainer(data=data, out="", **{**TINY, **options})


def test_the_call_decides_when_a_run_is_resumed(data, tmp_path):
    """The same options leave the batch as it is; another --B or --grad_accum changes it, and --global_batch sets it."""

    def batch(**more) -> int:
        return next(pyllmc.Trainer(resume=tmp_path / "run", out="", max_steps=9, **more)).text

    list(pyllmc.Trainer(**case_of(data, out=tmp_path / "run", max_steps=2)))
    assert "batch:" not in batch() + batch(B=4) + batch(B=4, grad_accum=2) + batch(B=8)
    assert "B: 4 -> 8" in batch(B=8) and "for B=8 " in batch(B=8)
    assert "batch: a step takes 24 windows, 168 tokens: 4 x 6" in batch(global_batch=24)
    assert "batch: a step takes 8 windows, 56 tokens: 2 x 4" in batch(B=2, global_batch=8)


# ---- several processes ----


@pytest.fixture(scope="module")
def runs(data, uneven, tmp_path_factory) -> tuple[Path, dict[str, list[list[float]]]]:
    """Runs that begin with 1 or 2 processes and go on with 2, 3 or 1: the folder of all, and the steps of each part by name."""
    home = tmp_path_factory.mktemp("elastic")
    at = lambda name: str(home / name)  # noqa: E731
    names = ["plain", "dropout", "masked", "epoch"]
    fresh = {
        "plain": case_of(data, zero=1),
        "dropout": case_of(data, dropout=0.2),
        "masked": {**case_of(uneven, val_every=0), "T": 16, "max_seq_len": 16},
        # a rate that changes no weight, so that the loss of a step says which windows it has seen
        "epoch": {
            k: v for k, v in case_of(data, epochs=1, lr=1e-30, val_every=0).items() if k != "max_steps"
        },
    }
    found: dict[str, list[list[float]]] = {}
    for name in names:
        alone = {**fresh[name], "grad_accum": 4, "zero": 0}
        found[f"{name} alone"] = several.steps_of(pyllmc.Trainer(**{**alone, "out": at(f"{name} alone")}))
    one = {**fresh["plain"], "grad_accum": 4, "zero": 0, "out": at("plain 1")}
    found["plain 1"] = several.steps_of(pyllmc.Trainer(**one), 5)
    shutil.copytree(home / "plain 1", home / "plain 12")

    cases = [{**fresh[name], "out": at(f"{name} 2"), "stop": (None, 5)} for name in names]
    cases += [{"resume": at("plain 12")}]
    parts = several.train_cases(2, cases, home)
    found.update(zip([*(f"{name} 2" for name in names), "plain 12"], parts))
    for name in names:
        shutil.copytree(home / f"{name} 2", home / f"{name} 23")
        shutil.copytree(home / f"{name} 2", home / f"{name} 21")
        found[f"{name} 21"] = several.steps_of(pyllmc.Trainer(resume=at(f"{name} 21"), zero=0))

    cases = [{"resume": at(f"{name} 23"), "stop": (None, 8 if name == "epoch" else 0)} for name in names]
    found.update(zip([f"{name} 23" for name in names], several.train_cases(3, cases, home)))
    shutil.copytree(home / "epoch 23", home / "epoch 231")
    found["epoch 231"] = several.steps_of(pyllmc.Trainer(resume=at("epoch 231")))
    return home, found


@pytest.mark.parametrize(
    "parts",
    [
        ("plain 1", "plain 12"),
        ("plain 2", "plain 21"),
        ("plain 2", "plain 23"),
        ("dropout 2", "dropout 21"),
        ("masked 2", "masked 21"),
        ("masked 2", "masked 23"),
    ],
    ids=lambda parts: parts[-1],
)
def test_the_steps_are_those_of_one_process(runs, parts):
    """16 sequences: on 3 processes of at most 4 each that is 3 + 3 + 3, then 3 + 3 + 1."""
    home, found = runs
    steps = [step for part in parts for step in found[part]]
    assert len(steps) == STEPS and len(found[parts[0]]) == 5
    assert largest_difference(found[f"{parts[0].split()[0]} alone"], steps) < 1e-6
    lines = [line for line in metrics(home / parts[-1]) if "loss" in line]
    assert {line["batch"] for line in lines[5:]} == {16 * (16 if "masked" in parts[0] else ELASTIC["T"])}


def test_validations_read_the_same_windows(runs):
    home, _ = runs
    alone = validations(home / "plain alone")
    assert sorted(alone) == [0, 3, 6, 9, 12]
    # alone, a batch of the validation has 4 sequences; in a run that 2 processes began, 8
    two = validations(home / "plain 21")
    assert two == pytest.approx(validations(home / "plain 23"), rel=1e-6)
    assert validations(home / "plain 12") == pytest.approx(alone, rel=1e-6)


def test_each_window_is_seen_once_an_epoch(data, runs):
    """There is one order, of which 2, 3 and then 1 process each take a part."""
    home, found = runs
    steps = found["epoch 2"] + found["epoch 23"] + found["epoch 231"]
    loader = bins.Loader(bins.find_shards(data), 1, ELASTIC["T"], shuffle=True, seed=42, eot=eot_of(data))
    model = pyllmc.Model(home / "epoch 231/last.ckpt", B=1, T=ELASTIC["T"])
    losses = [float(model.forward(*loader.next())) for _ in range(loader.windows)]
    batches = [losses[i : i + 16] for i in range(0, len(losses), 16)]
    assert len(found["epoch 23"]) == 3 and len(batches[-1]) < 16, "else this tests too little"
    assert [loss for loss, _ in steps] == pytest.approx([np.mean(batch) for batch in batches], rel=1e-6)


# ---- torchrun's own elasticity ----

# The rate is so low that roundings do not grow in some hundred steps. Validations make steps slow, so that the run is not over before the
# second torchrun has come.
MACHINES = {**SMALL, "lr": 1e-6, "schedule": "constant", "threads": 1, "timeout": 4, "max_steps": 10**6}
SLOW = {"val_every": 1, "val_batches": 0, "checkpoint_every": 20, "resume": "auto"}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("", 0))
        return int(found.getsockname()[1])


def machine(number: int, port: int, **options) -> several.Run:
    """A torchrun as on a machine of its own, of which there are one or two; number 0 keeps the store where they meet. It is soon content
    with itself."""
    times = "last_call_timeout=1,keep_alive_interval=1,keep_alive_max_attempt=3"
    meeting = ["--rdzv_backend=c10d", "--rdzv_id=elastic", f"--rdzv_endpoint=localhost:{port}"]
    meeting += [f"--rdzv_conf=is_host={'false' if number else 'true'},{times}"]
    env = several.environment(TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1")  # docs/distributed.md says why
    return several.Run(1, "--nnodes=1:2", "--max-restarts=3", *meeting, env=env, **options)


def test_machines_come_and_are_lost(data, tmp_path):
    """One begins, a second comes, and is lost: the run goes on with its batch and its data, to the losses of a run that one process has
    made without a disturbance."""
    port, out = free_port(), tmp_path / "run"
    how = {**MACHINES, **SLOW, "data": data, "val_data": f"{data}/train*.bin", "grad_accum": 2, "out": out}
    first = machine(0, port, **how)
    first.wait_for(r"^step +20/")
    second = machine(1, port, **how)
    both = [first, second]
    several.wait_for_any(both, r"^processes: 2, .* a step takes 4 windows, 28 tokens: 2 in each process")
    began = len(metrics(out))
    several.wait_until(lambda: len(metrics(out)) > began + 40)
    lost = second.workers()
    for process in (second.process.pid, *lost.values()):
        os.kill(process, signal.SIGKILL)
    first.wait_for(r"does not answer: it has ended")
    began = len(metrics(out))
    several.wait_until(lambda: len(metrics(out)) > began + 40)
    first.process.send_signal(signal.SIGTERM)
    first.end()
    second.end()
    assert len(lost) == 1 and any("last.ckpt; stopped" in line for line in first.lines)
    lines = [line for line in metrics(out) if "loss" in line]
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    assert [line["batch"] for line in lines if "batch" in line].count(28) > 0, "only two processes tell it"
    alone = {**MACHINES, "data": data, "grad_accum": 2, "max_steps": len(lines), "out": ""}
    expected = [loss for loss, _ in several.steps_of(pyllmc.Trainer(**alone))]
    assert [line["loss"] for line in lines] == pytest.approx(expected, rel=1e-6)
