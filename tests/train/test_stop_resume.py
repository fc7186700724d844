"""A run that is stopped between two parts of its work and then resumed is the same run: no line, number or file differs."""

# ruff: noqa: F811 (fixtures are imported)
from __future__ import annotations

import re
from pathlib import Path

import pytest
from conftest import ffi, lib
from test_stop import data  # noqa: F401
from test_trainer import TINY

import pyllmc


class Ears:
    """Receives every sign of life of this thread's calls, and acts once, at the first that matches."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.pattern, self.act = "^$", lambda: None

        def pulse(context, text) -> int:
            self.heard.append(ffi.string(text).decode())
            if re.search(self.pattern, self.heard[-1]):
                self.pattern = "^$"
                self.act()
            return 0

        self.callback = ffi.callback("int(void *, const char *)", pulse)
        lib.llmc_on_pulse(self.callback, ffi.NULL)


@pytest.fixture
def ears():
    yield Ears()
    lib.llmc_on_pulse(ffi.NULL, ffi.NULL)


def content(run: Path) -> list[str]:
    return [re.sub(r', "ms".*', "", line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def samples(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (run / "samples").iterdir()}


def lines_of(events) -> list[str]:
    """The printed lines without times and without the text that a stop adds."""
    texts = [re.sub(r"\| [\d.]+ ms \|.*", "", event.text) for event in events if event.kind != "plan"]
    return [text for text in texts if text and "last.ckpt" not in text]


FULL = {
    "max_steps": 6,
    "val_every": 3,
    "val_batches": 3,
    "sample_every": 3,
    "grad_accum": 3,
    "sample_tokens": 9,
}
STOPS = [
    "step 0: validation, batch 2 of 3",
    "step 1/6: micro-step 2 of 3",
    "step 3: validation, batch 1 of 3",
    "step 3: validation, batch 3 of 3",
    "step 3: sample, token 1",
    "step 6: validation, batch 2 of 3",
    "step 6: sample, token 2",
    "saving .*/last.ckpt",
    "saving .*/best.ckpt",
]


@pytest.mark.parametrize("stop_at", STOPS)
def test_a_stop_is_seen_at_once_and_loses_nothing(stop_at, data, tmp_path, ears):
    """The lines, the metrics and the files are those of a run that was never stopped."""
    options = {"data": data, **TINY, **FULL, "temperature": 3, "checkpoint_every": 3}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    expected = lines_of(pyllmc.Trainer(out=whole, **options))
    trainer = pyllmc.Trainer(out=parts, **options)
    ears.heard.clear()
    ears.pattern, ears.act = stop_at, trainer.stop
    lines = lines_of(trainer)
    (at,) = [i for i, text in enumerate(ears.heard) if re.search(stop_at, text)][:1]
    work = [text for text in ears.heard[at + 1 :] if text and "saving" not in text]
    assert all(re.sub(r"\d+ of.*", "", text) == re.sub(r"\d+ of.*", "", ears.heard[at]) for text in work)
    assert not work, "it went on with another piece"
    lines += lines_of(pyllmc.Trainer(resume=parts))
    assert lines == expected
    assert content(parts) == content(whole)
    a, b = (pyllmc.Model(run / "last.ckpt", B=1, T=4) for run in (whole, parts))
    assert a.step == b.step == 6
    for name in a.params:
        assert a.params[name].tobytes() == b.params[name].tobytes(), name
        assert all(x.tobytes() == y.tobytes() for x, y in zip(a.moments[name], b.moments[name])), name
    a, b = (pyllmc.Model(run / "best.ckpt", B=1, T=4) for run in (whole, parts))
    assert a.step == b.step and all(a.params[name].tobytes() == b.params[name].tobytes() for name in a.params)
    assert samples(parts) == samples(whole)


def test_a_stop_before_the_first_step_leaves_a_replaced_run_alone(data, tmp_path, ears):
    run = tmp_path / "run"
    options = {"data": data, "out": run, **TINY, "max_steps": 2, "val_every": 1}
    list(pyllmc.Trainer(**options))
    before = (run / "last.ckpt").read_bytes()
    trainer = pyllmc.Trainer(overwrite=True, **options)
    ears.pattern, ears.act = "step 0: validation", trainer.stop
    list(trainer)
    assert (run / "last.ckpt").read_bytes() == before


@pytest.mark.parametrize("answer", ["stopped", "trained"])
def test_who_hears_a_pulse_may_stop_a_load(answer, data, tmp_path):
    run = tmp_path / "run"
    list(pyllmc.Trainer(data=data, out=run, **TINY, max_steps=1, val_every=0, sample_every=0))
    callback = ffi.callback("int(void *, const char *)", lambda context, text: answer == "stopped")
    lib.llmc_on_pulse(callback, ffi.NULL)
    try:
        if answer == "stopped":
            with pytest.raises(pyllmc.LlmcError, match="stopped"):
                pyllmc.Model(run / "last.ckpt", B=1, T=4)
        else:
            assert pyllmc.Model(run / "last.ckpt", B=1, T=4).step == 1
    finally:
        lib.llmc_on_pulse(ffi.NULL, ffi.NULL)


@pytest.mark.parametrize("kind", ["eval", "step"])
def test_a_sample_that_a_stop_leaves_out_is_written_by_the_resumed_run(kind, data, tmp_path):
    """With --diloco the run itself hears of a stop at the end of a round only."""
    options = {
        "max_steps": 4,
        "diloco": 2,
        "val_every": 2,
        "sample_every": 2,
        "checkpoint_every": 0,
        "lr": 0.01,
    }
    parts, whole = tmp_path / "parts", tmp_path / "whole"
    list(pyllmc.Trainer(data=data, out=whole, **options, **TINY))
    trainer = pyllmc.Trainer(data=data, out=parts, **options, **TINY)
    for event in trainer:
        if event.step == 2 and event.kind == kind:
            trainer.stop()
    assert [event.step for event in pyllmc.Trainer(resume=parts) if event.kind == "sample"] == [2, 4]
    assert samples(parts) == samples(whole)
