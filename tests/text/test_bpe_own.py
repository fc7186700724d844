"""Byte pairs learnt from texts encode alike in C and in tiktoken, however they were learnt."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from test_bpe import ROOT, SETTINGS
from test_tokenizer_c import EOT
from test_tokenizer_c import Tokenizer as InC

from pyllmc.base.errors import DataError
from pyllmc.text import bpe, vocabularies
from pyllmc.text.tokenizer import Tokenizer

TEXTS = [
    "Once upon a time, Tim's cat didn't see 12 Bären — 3 très rouges!\n\n",
    "The cat sat.  A cat ran.",
] * 20


def learnt(max_vocab: int = 400, texts: list[str] | None = None) -> Tokenizer:
    pytest.importorskip("tokenizers")
    return vocabularies.train("bpe", TEXTS if texts is None else texts, max_vocab)


def test_an_own_vocabulary_encodes_alike_everywhere(tmp_path):
    own = learnt()
    own.save(tmp_path / "t.bin")
    again = Tokenizer.load(tmp_path / "t.bin")
    assert (again.name, again.kind, again.eot, again.pieces[-1]) == ("bpe", "gpt2", own.vocab_size - 1, EOT)
    assert 300 < own.vocab_size <= 400 and again.pieces == own.pieces
    in_c = InC((tmp_path / "t.bin").read_bytes())

    @SETTINGS
    @given(st.one_of(st.text(), st.lists(st.sampled_from([*TEXTS[0].split(), " ", *TEXTS[1]])).map("".join)))
    @example("".join(TEXTS))
    def check(text):
        ids = in_c.encode(text.encode())
        assert ids == again.encode(text)
        assert in_c.decode(ids) == text.encode() and own.eot not in ids

    check()
    assert in_c.encode(b" cat") == [own.pieces.index(b" cat")]


def test_pieces_are_learnt_in_the_order_of_ids():
    own = learnt()
    made = set(own.pieces[:256])
    assert own.pieces[:256] == [bytes([b]) for b in bpe.PRINTABLE] and len(made) == 256
    for piece in own.pieces[256:-1]:
        assert any(piece[:i] in made and piece[i:] in made for i in range(1, len(piece)))
        made.add(piece)


def test_learning_does_not_depend_on_threads_or_the_process(tmp_path):
    """Neither hash seeds nor the number of threads, which the package takes from the environment, change the result."""
    pytest.importorskip("tokenizers")
    code = (
        "import sys; from pyllmc.text import vocabularies\n"
        "texts = [f'word{n % 97} and {n % 89}th, {n % 7} cats' for n in range(3000)]\n"
        "vocabularies.train('bpe', texts, 700).save(sys.argv[1])\n"
    )
    for threads in ("1", "2"):
        env = {**os.environ, "RAYON_NUM_THREADS": threads, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": threads}
        subprocess.run([sys.executable, "-c", code, tmp_path / threads], env=env, check=True)
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_bounds_of_an_own_vocabulary():
    assert learnt(257).vocab_size == 257
    assert learnt(300).vocab_size == 300
    assert learnt(texts=[]).vocab_size == 257
    assert learnt(texts=["abcdef"]).vocab_size == 257  # no pair occurs twice
    assert max(map(len, learnt(4096, ["x" * 5000] * 3).pieces)) <= 255
    with pytest.raises(DataError, match="a bpe vocabulary needs at least 257"):
        learnt(256)
    with pytest.raises(DataError, match="character 1 of the text is a lone surrogate"):
        learnt(300, ["a\ud800"])


def test_without_its_package_learning_gives_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(DataError, match="pip install tokenizers"):
        vocabularies.train("bpe", TEXTS)
