"""examples/adder.py and sort.py at a small size, and that their exams tell right from wrong."""

from __future__ import annotations

import runpy
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT

adder, sort = (
    SimpleNamespace(**runpy.run_path(str(ROOT / f"examples/{name}.py"))) for name in ("adder", "sort")
)


class Oracle(torch.nn.Module):
    """Answers every question right but the first `wrong`."""

    def __init__(self, whole: torch.Tensor, wrong: int) -> None:
        super().__init__()
        self.whole, self.wrong = whole, wrong

    def generate(self, question: torch.Tensor, n: int) -> torch.Tensor:
        assert torch.equal(question, self.whole[:, :-n])
        answers = self.whole.clone()
        answers[: self.wrong, -1] += 1
        return answers


@pytest.mark.parametrize(
    ("example", "size", "rows"), [(adder, 2, 10_000), (sort, 6, 729)], ids=["adder", "sort"]
)
def test_the_exam_tells_right_from_wrong(example, size, rows, capsys):
    whole = example.make_sums(size) if example is adder else example.make_rows(size)
    assert len(whole) == rows
    assert example.give_exam(Oracle(whole, 0), whole, size, "all") == 1
    assert example.give_exam(Oracle(whole, 7), whole, size, "all") == 1 - 7 / rows
    told = capsys.readouterr().out.splitlines()
    assert len(told) == 1 + 3 + 1 and f"{rows - 7} of {rows}" in told[-1]


def test_a_sum_is_written_as_it_says():
    sums = adder.make_sums(2)
    assert sums[85 * 100 + 50].tolist() == [8, 5, 5, 0, 5, 3, 1]
    x, y = adder.make_dataset(sums, 2)[8550]
    assert x.tolist() == [8, 5, 5, 0, 5, 3] and y.tolist() == [-1, -1, -1, 5, 3, 1]


def test_rows_are_sorted():
    rows = sort.make_rows(3)
    assert rows[2 * 9 + 0 + 1].tolist() == [2, 0, 1, 0, 1, 2]
    x, y = sort.make_dataset(rows, 3)[19]
    assert x.tolist() == [2, 0, 1, 0, 1] and y.tolist() == [-1, -1, 0, 1, 2]


def test_sorting_is_learnt(tmp_path, monkeypatch):
    """The exam has 20 rows."""
    monkeypatch.chdir(tmp_path)
    assert sort.main(["--length=4", "--trainer.max_iters=250", "--trainer.batch_size=16"]) > 0.8


def test_adding_tells_its_loss_and_its_exam(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    adder.main(["--trainer.max_iters=3", "--trainer.batch_size=8"])
    out = capsys.readouterr().out
    assert "iteration 0: loss 2." in out and "of 500 sums are right" in out.splitlines()[-1]
