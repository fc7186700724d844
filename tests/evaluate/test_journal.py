"""An interrupted evaluation goes on, by results that nothing else writes or takes."""

# ruff: noqa: F401, F811 (fixtures are imported)
from __future__ import annotations

import errno
import io
import os
import re
import shutil

import numpy as np
import pytest
from benchmarks import TEXTS, make_files, make_scorer, write
from test_evaluate_command import run

import pyllmc
from pyllmc.base import locks
from pyllmc.evaluate import __main__ as command
from pyllmc.evaluate import journal
from pyllmc.evaluate.exam import Exam
from pyllmc.evaluate.items import Choice, Rolling, Word
from pyllmc.evaluate.journal import Journal, answers, digest_of, key_of, place_for
from pyllmc.evaluate.tasks import TASKS


class Stopped(Exception):
    pass


def until(left: list[int], results):
    """The results, until left[0] of them have come: the next one never does."""
    for result in results:
        if not left[0]:
            raise Stopped
        left[0] -= 1
        yield result


@pytest.mark.parametrize("name", ["lambada", "hellaswag", "lm1b", "wikitext2"])
def test_an_interrupted_evaluation_goes_on(name, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    scorer, exam = make_scorer(), Exam([TASKS[name]], str(make_files(tmp_path / "data")))
    (whole,) = exam.run("none", scorer)
    left = [2]
    for kind in ("rolling_parts", "choices", "words"):
        real = getattr(scorer, kind)
        monkeypatch.setattr(scorer, kind, lambda *a, real=real, **how: until(left, real(*a, **how)))
    with pytest.raises(Stopped):
        list(exam.run("none", scorer))
    (file,) = (tmp_path / "cache/pyllmc/evaluate").iterdir()
    assert file.read_bytes().count(b"\n") == 2
    file.write_bytes(file.read_bytes() + b"[[0.1")  # a crash cuts a line off
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    fresh, asked = make_scorer(), []
    call = fresh._run
    fresh._run = lambda spans, *more: (asked.append(len(spans)), call(spans, *more))[1]
    (again,) = exam.run("none", fresh)
    assert not file.exists()
    for one, other in zip(again, whole):
        assert one["value"] == pytest.approx(other["value"], rel=1e-5)
    everything = []
    fresh._run = lambda spans, *more: (everything.append(len(spans)), call(spans, *more))[1]
    list(exam.run("none", fresh))
    assert sum(asked) < sum(everything)


def test_results_of_other_weights_items_or_kernels_are_not_taken(tmp_path, monkeypatch):
    scorer = make_scorer()
    item = Rolling(scorer.encode(TEXTS[0]), 5, None, 1, 1.0, 1)
    digest = digest_of([item])
    key = key_of(scorer.model, 1, digest)
    assert key == key_of(scorer.model, 1, digest_of([item]))
    assert key != key_of(scorer.model, 2, digest)
    assert digest != digest_of([Rolling(item.ids, 6, None, 1, 1.0, 1)])
    free, filtered = Word(item.ids, item.ids), Word(item.ids, item.ids, item.ids[:1])
    assert digest_of([free]) != digest_of([filtered])
    sizes = scorer.model.config
    assert key != key_of(pyllmc.Model(sizes, precision="bf16"), 1, digest)
    monkeypatch.setenv("PYLLMC_ISA", "reference")  # results of other kernels differ in their last bits
    assert key != key_of(pyllmc.Model(sizes), 1, digest)
    journal = Journal(tmp_path, key)
    (first,) = answers(scorer, [item], journal)
    journal.close()
    (second,) = answers(None, [item], Journal(tmp_path, key))  # type: ignore[arg-type]
    assert (first == second).all()


def test_of_two_evaluations_of_the_same_one_keeps_its_results(tmp_path):
    one, other = Journal(tmp_path, "x"), Journal(tmp_path, "x")
    for result in range(3):
        one.add([result])
        other.add([result])
    other.close()
    one.close()
    third = Journal(tmp_path, "x")
    assert [result for _, result in third.known] == [[0], [1], [2]]
    (file,) = tmp_path.iterdir()
    with open(file, "ab") as half:
        half.write(b"[3")  # the line that the third is about to write
    assert Journal(tmp_path, "x").known == []
    assert file.read_bytes().endswith(b"[3")
    third.remove()
    assert not list(tmp_path.iterdir())


class Full(io.FileIO):
    """A file on a full disk."""

    def write(self, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC])
def test_an_evaluation_goes_on_where_nothing_can_be_kept(run, tmp_path, monkeypatch, capfd, number):
    """It warns once of what it keeps meanwhile, for all tasks, and once of evaluate.json. A full disk fails when a line is written, and
    again when the file is closed."""
    alone, reason = tmp_path / "run", os.strerror(number)
    shutil.copytree(run, alone, ignore=shutil.ignore_patterns("evaluate*"))

    def open_locked(path, wait):
        if number == errno.EROFS or wait:
            raise OSError(number, reason, str(path))
        return io.BufferedRandom(Full(path, "a+"))

    for module in (journal, locks):
        monkeypatch.setattr(module, "open_locked", open_locked)
    texts = [f"--text={write(tmp_path / name, ' '.join(TEXTS))}" for name in ("a.txt", "b.txt")]
    assert command.main([str(alone), *texts]) == 0
    told = capfd.readouterr()
    assert all(re.search(rf"^{name} +loss per token", told.out, re.M) for name in ("a.txt", "b.txt"))
    first, second = [line for line in told.err.splitlines() if "warning" in line]
    assert first.endswith(
        f"results cannot be kept in {alone}: {reason}: an evaluation that is interrupted begins there anew"
    )
    assert (
        f"the scores are only shown (--json > FILE keeps them elsewhere): cannot write {alone}/evaluate.json.lock: {reason}"
        in second
    )
    assert not list(alone.glob("evaluate*"))


def test_results_are_kept_where_the_model_is_a_run(run, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert place_for(str(run)) == place_for(str(run / "last.ckpt")) == run
    assert place_for("hub:gpt2") == tmp_path / "pyllmc/evaluate"


def test_where_a_context_ends_is_part_of_what_is_asked():
    ids = np.arange(6, dtype=np.int32)
    one, other = (Choice(ids[:n], [ids[n:], ids[:1]], 0, [1.0, 1.0]) for n in (2, 3))
    assert digest_of([one]) != digest_of([other])
