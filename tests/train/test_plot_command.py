"""The command python -m pyllmc.plot: where its picture goes, and what it says to wrong options and damaged metrics."""

from __future__ import annotations

import os
import xml.etree.ElementTree as xml

import pytest
from test_plot import EVAL, STEP, make_run

from pyllmc import plot
from pyllmc.draw.curves import read_run


def test_a_picture_goes_where_it_is_asked_for(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    a, b = (make_run(tmp_path / name, STEP, EVAL, {"note": 1}, '{"step": 2, "lo') for name in "ab")
    for arguments, path in (
        ([a], a / "loss.png"),
        ([a, "--out", tmp_path / "one.png", "--panels=lr,norm"], tmp_path / "one.png"),
        ([a, "--dark", "--out", tmp_path / "dark.png"], tmp_path / "dark.png"),
        ([a, b, "--out", tmp_path / "both.png"], tmp_path / "both.png"),
        ([a, b, a, "--out", tmp_path / "both.svg"], tmp_path / "both.svg"),
        ([a, "--out", tmp_path / "one.PDF"], tmp_path / "one.PDF"),
    ):
        assert plot.main([str(argument) for argument in arguments]) == 0
        assert capsys.readouterr().out == f"{path}\n" and path.stat().st_size > 5000
    assert xml.parse(tmp_path / "both.svg").getroot().tag.endswith("svg")
    before = (tmp_path / "both.svg").read_bytes()
    assert plot.main([str(a), str(b), "--out", str(tmp_path / "both.svg")]) == 0
    assert (tmp_path / "both.svg").read_bytes() == before
    assert (tmp_path / "dark.png").read_bytes() != (a / "loss.png").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--out=x.bmp"], "x.bmp: a picture ends with .png, .svg, .pdf"),
        (["--out=x"], "a picture ends with"),
        (["--panels=speed"], "--panels=speed is not one of lr, norm, tok_s, all"),
        (["--panels=tok_s"], "tells no tok_s"),
        (["--x=tokens"], "use --x=step"),
        (["{run}", "--panels=lr"], "--panels is of one run"),
        (["--x=days"], "--x"),
    ],
)
def test_what_is_asked_for_wrongly_is_one_line_and_2(tmp_path, monkeypatch, capsys, arguments, says):
    pytest.importorskip("matplotlib")
    run = make_run(tmp_path / "run", STEP)
    monkeypatch.chdir(tmp_path)
    try:
        code = plot.main([str(run), *(a.format(run=run) for a in arguments)])
    except SystemExit as stopped:
        code = stopped.code
    said = capsys.readouterr().err
    assert (code, said.count("\n")) == (2, 1) and says in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


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
        ([{**STEP, "step": float("nan")}], "metrics.jsonl:1: step=nan is not a number"),
        ([{**STEP, "loss": float("nan")}], "metrics.jsonl holds no step to draw: train first"),
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


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")], ids=["fifo", "zero"])
def test_lines_that_never_end_are_one_line_and_5(tmp_path, capsys, make):
    pytest.importorskip("matplotlib")
    make(tmp_path / "metrics.jsonl")
    assert plot.main([str(tmp_path)]) == 5
    assert capsys.readouterr().err.endswith(
        "metrics.jsonl is not a regular file: copy its content into one\n"
    )


def test_losses_of_sets_that_are_no_numbers_are_gaps(tmp_path):
    """A set may also come or go when a run is resumed."""
    run = make_run(
        tmp_path / "run",
        STEP,
        {**EVAL, "step": 1, "val_losses": {"a": 3.4, "b": 1e300}},
        {**EVAL, "step": 2, "val_losses": {"a": 3.3, "b": "x"}},
        {**EVAL, "step": 3, "val_losses": {"a": 3.2, "b": 2.5}},
        {**EVAL, "step": 4, "val_losses": 7},
        {**EVAL, "step": 5, "val_losses": {"c": 1.0}},
    )
    read = read_run(run)
    assert read.sets == ["a", "b", "c"]
    found = {name: read.curves[f"val_loss {name}"].finite() for name in read.sets}
    assert {name: (list(curve.x), list(curve.y)) for name, curve in found.items()} == {
        "a": ([1, 2, 3], [3.4, 3.3, 3.2]),
        "b": ([3], [2.5]),
        "c": ([5], [1.0]),
    }
