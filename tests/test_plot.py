"""python -m pyllmc.plot: what is drawn and where, and what no picture can be made of."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pyllmc import plot

STEP = {"step": 1, "loss": 3.5, "lr": 1e-3, "norm": 1.0}
EVAL = {"step": 1, "val_loss": 3.4}


def make_run(folder: Path, *lines: object) -> Path:
    folder.mkdir(exist_ok=True)
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (folder / "metrics.jsonl").write_text("".join(f"{text}\n" for text in texts))
    return folder


def test_a_picture_goes_where_it_is_asked_for(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    a, b = (make_run(tmp_path / name, STEP, EVAL, {"note": 1}, '{"step": 2, "lo') for name in "ab")
    for arguments, path in (
        ([a], a / "loss.png"),
        ([a, "--out", tmp_path / "one.png"], tmp_path / "one.png"),
        ([a, b, "--out", tmp_path / "both.png"], tmp_path / "both.png"),
    ):
        assert plot.main([str(argument) for argument in arguments]) == 0
        assert capsys.readouterr().out == f"{path}\n" and path.stat().st_size > 5000


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ([], "metrics.jsonl holds no step to draw: train first"),
        ([EVAL], "metrics.jsonl holds no step to draw: train first"),
        (["nonsense"], "metrics.jsonl holds no step to draw: train first"),
        ([STEP, [1]], "metrics.jsonl:2: an object was expected, found [1]"),
        ([{**STEP, "loss": "x"}], "metrics.jsonl:1: loss='x' is not a number"),
        ([{**STEP, "loss": True}], "metrics.jsonl:1: loss=True is not a number"),
        ([{**STEP, "step": None}], "metrics.jsonl:1: step=None is not a number"),
        ([{"step": 1, "loss": 2.0}], "metrics.jsonl:1: lr=None is not a number"),
        ([STEP, {"val_loss": 2.0}], "metrics.jsonl:2: step=None is not a number"),
        ([{**STEP, "loss": 10**400}], "metrics.jsonl:1: loss=1000"),
        ([{**STEP, "loss": float("nan")}], "metrics.jsonl:1: loss=nan is not a number"),
    ],
)
@pytest.mark.parametrize("runs", [1, 2])
def test_lines_that_cannot_be_drawn_are_one_line_and_4(tmp_path, capsys, lines, says, runs):
    pytest.importorskip("matplotlib")
    run = make_run(tmp_path / "run", *lines)
    assert plot.main([str(run)] * runs + ["--out", str(tmp_path / "x.png")]) == 4 or lines == [EVAL]
    said = capsys.readouterr().err
    assert said.count("\n") <= 1
    if runs == 1 or "no step" not in says:
        assert says in said and not (tmp_path / "x.png").exists()
