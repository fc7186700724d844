"""Limits on processes and memory (ulimit, a container's): commands for text need less, or name the remedy in one
line."""

from __future__ import annotations

import multiprocessing.context
import os
import subprocess

import pytest

from pyllmc.base import errors, workers
from pyllmc.base.errors import DataError, OutOfMemory
from pyllmc.text import bpe_learn

NO_MORE = BlockingIOError(11, "Resource temporarily unavailable")
TEXTS = [f"the cat sat on mat {i} " * 20 for i in range(2000)]


def refuse(*_, **__):
    raise NO_MORE


def test_byte_pairs_are_learnt_where_no_process_starts(monkeypatch):
    assert sum(map(len, TEXTS)) > bpe_learn.FEW
    elsewhere = bpe_learn.learn(TEXTS, 300)
    monkeypatch.setattr(subprocess, "Popen", refuse)
    assert bpe_learn.learn(iter(TEXTS), 300) == elsewhere


@pytest.mark.parametrize("number", [6, 9])  # an allocation that fails in the package; the system's killer
def test_a_learner_that_dies_of_memory_says_so_with_that_status(monkeypatch, number):
    code = f"import os; os.kill(os.getpid(), {number})"
    monkeypatch.setattr(bpe_learn, "CHILD", code)
    with pytest.raises(OutOfMemory, match="learn from less text or lower --max_vocab") as e:
        bpe_learn.learn(TEXTS, 300)
    assert errors.exit_code(e.value) == 3


def test_workers_that_cannot_start_name_the_remedy(monkeypatch):
    monkeypatch.setattr(multiprocessing.context.SpawnProcess, "start", refuse)
    with pytest.raises(DataError, match="ulimit -u, or its container's limit.: use one worker"):
        list(workers.in_order(str, [1, 2], 2))


def test_libraries_start_no_threads_where_the_system_has_none_left(monkeypatch):
    class None_Left:
        def __init__(self, *_, **__) -> None: ...

        def start(self) -> None:
            raise RuntimeError("can't start new thread")

    for name in ("OPENBLAS_NUM_THREADS", "TOKENIZERS_PARALLELISM", "RAYON_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    errors.spare_threads()
    assert "OPENBLAS_NUM_THREADS" not in os.environ
    monkeypatch.setattr(errors.threading, "Thread", None_Left)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    errors.spare_threads()
    assert (os.environ["OPENBLAS_NUM_THREADS"], os.environ["TOKENIZERS_PARALLELISM"]) == ("1", "false")
