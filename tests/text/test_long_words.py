"""Text without a space, and much white space: the time of learning and encoding grows with the text, and both can be
ended."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time

import pytest
from conftest import PLAIN
from hypothesis import example, given
from hypothesis import strategies as st
from test_bpe import ROOT, SETTINGS
from test_tokenizer_c import Tokenizer as InC

from pyllmc.base.errors import DataError, OutOfMemory
from pyllmc.text import bpe_learn, tokenizer, vocabularies

PROSE = "Once upon a time, Tim's cat didn't see 12 Bären — 3 très rouges!\n\nThe cat sat.  A cat ran.\n" * 30
random.seed(5)
LONG = {
    "han": "".join(chr(random.randrange(0x4E00, 0x5600)) for _ in range(300_000)),
    "one letter": "a" * 300_000,
    "dna": "".join(random.choices("ACGT", k=300_000)),
    "signs": "!" * 300_000,
    "accents": "e\u0301" * 150_000,
    "spaces": " " * 1_100_000 + "x",
    "lines": "x" + "\n" * 1_100_000 + "x",
    "wide spaces": "\u3000" * 1_100_000 + "x",
    "quotes": "'s" * 150_000,
}


def test_ordinary_text_is_learnt_as_if_nothing_were_cut(monkeypatch):
    hf = pytest.importorskip("tokenizers")
    cut = bpe_learn.learn_here(hf, [PROSE], 500)
    monkeypatch.setattr(bpe_learn, "LONGEST_RUN", 90_000)
    assert cut == bpe_learn.learn_here(hf, [PROSE], 500)
    monkeypatch.setattr(bpe_learn, "LONGEST_RUN", 3)
    assert cut != bpe_learn.learn_here(hf, [PROSE], 500)


def test_learning_from_one_long_word_takes_no_square():
    """Eight times the text takes about 8 times as long; it took 64 times when words were not cut."""
    hf = pytest.importorskip("tokenizers")

    def seconds(characters: int) -> float:
        start = time.monotonic()
        bpe_learn.learn_here(hf, [LONG["han"][:characters]], 4096)
        return time.monotonic() - start

    seconds(1000)
    assert seconds(96_000) / min(seconds(12_000) for _ in range(3)) < 30


@pytest.mark.parametrize("name", LONG)
def test_a_long_word_is_encoded_in_seconds_and_alike(name):
    pytest.importorskip("tokenizers")
    for kind, text in (("bpe", LONG[name]), ("word", LONG[name][-9000:]), ("char", LONG[name][-9000:])):
        own = vocabularies.train(kind, [PROSE, text[-9000:]], 400)
        start = time.monotonic()
        ids = own.encode(text)
        assert ids == InC(own.to_bytes()).encode(text.encode())
        assert time.monotonic() - start < 20, kind
        assert own.decode(ids) == text


def test_the_parts_of_a_text_give_the_ids_of_the_whole(monkeypatch):
    pytest.importorskip("tokenizers")
    own = vocabularies.train("bpe", [PROSE], 400)
    characters = st.sampled_from(
        ["a", "cat", "'s", "'", "1", "!", " ", "  ", "\n", "\t", "\xa0", "\u3000", "é", "\x1c"]
    )

    @SETTINGS
    @given(st.lists(characters, max_size=30).map("".join))
    @example(" \n" * 9 + "x")
    @example("a   \n\n  ")
    def check(text):
        whole = own.encode(text)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tokenizer, "PART", 2)
            patch.setattr(tokenizer, "LONG_RUN", re.compile(tokenizer.LONG_RUN.pattern.replace("10000", "3")))
            assert "".join(tokenizer.parts(text)) == text
            assert own.encode(text) == whole

    check()


# ---- the child that learns


def test_a_child_learns_the_same_and_shows_that_it_lives(monkeypatch):
    hf = pytest.importorskip("tokenizers")
    here = bpe_learn.learn_here(hf, [PROSE] * 3, 400)
    monkeypatch.setattr(bpe_learn, "FEW", 10)
    monkeypatch.setattr(bpe_learn, "STEP", 0.01)
    seen = []
    assert bpe_learn.learn([PROSE] * 3, 400, lambda: seen.append(1)) == here
    assert seen


def test_a_child_that_dies_is_one_line(monkeypatch):
    pytest.importorskip("tokenizers")
    monkeypatch.setattr(bpe_learn, "FEW", 10)
    for code, says in (
        ("import os; os.kill(os.getpid(), 9)", r"died: signal 9, as when memory runs out: learn from less"),
        ("raise SystemExit('no room')", "died: no room"),
    ):
        monkeypatch.setattr(bpe_learn, "CHILD", code)
        with pytest.raises((DataError, OutOfMemory), match=says):
            bpe_learn.learn([PROSE] * 3000, 400)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_learning_ends_at_once(tmp_path, number):
    """Its child ends with it."""
    pytest.importorskip("tokenizers")
    (tmp_path / "long.txt").write_text(LONG["han"] * 2)
    command = ["-m", "pyllmc.prepro", "--input", str(tmp_path / "long.txt"), "--tokenizer", "bpe"]
    process = subprocess.Popen(
        [sys.executable, *command, "--out", str(tmp_path / "d")],
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    children = []
    while not children and process.poll() is None:
        time.sleep(0.1)
        children = subprocess.run(
            ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, env=PLAIN
        ).stdout.split()
    time.sleep(1)  # the package is at work by now
    start = time.monotonic()
    process.send_signal(number)
    assert process.wait(timeout=30) == (-9 if number == signal.SIGKILL else 130)
    assert time.monotonic() - start < 2
    answer = b"" if number == signal.SIGKILL else b"stopping; again to quit now\n"
    assert process.stderr.read() == answer
    for _ in range(50):
        if (
            not os.path.exists(f"/proc/{children[0]}/cmdline")
            or not open(f"/proc/{children[0]}/cmdline").read()
        ):
            break
        time.sleep(0.1)
    else:
        raise AssertionError("the child outlived its parent")
    assert not (tmp_path / "d").exists()
