"""Patterns of dense and banded layers: what they mean, where they are kept, what is refused. Their gradients: test_model.py."""

from __future__ import annotations

import json
import re
import struct
from dataclasses import replace

import numpy as np
import pytest
from conftest import ROOT, ffi, lib
from converted import logits, make_model
from hypothesis import given
from hypothesis import strategies as st

import pyllmc
from pyllmc import Model, convert
from pyllmc.base.errors import DataError, InvalidArgument
from pyllmc.convert.export import save
from pyllmc.engine import _ffi
from pyllmc.tables.layout import GPTConfig
from pyllmc.text import dataset

DENSE = GPTConfig(97, 12, 4, 2, 24)
DLLL = replace(DENSE, window=3, pattern="DLLL")
IDS = [5, 17, 3, 96, 0, 42, 7, 8, 9]


@given(
    L=st.integers(1, 9),
    window=st.integers(0, 2),
    pattern=st.text("DL", max_size=10) | st.text("DLx", max_size=3),
)
def test_c_and_python_agree(L, window, pattern):
    """On the shortest pattern, and on what is refused, to the word."""
    c = ffi.new("llmc_config *", {"maxT": 8, "V": 9, "L": L, "NH": 1, "C": 4, "window": window})
    assert lib.llmc_config_set_pattern(c, pattern.encode()) == 0
    if lib.llmc_config_check(c) < 0:
        with pytest.raises(InvalidArgument) as error:
            GPTConfig(9, 8, L, 1, 4, window, pattern=pattern)
        assert str(error.value) == _ffi.message(lib)
        return
    config = GPTConfig(9, 8, L, 1, 4, window, pattern=pattern)
    assert config.pattern == _ffi.text(c.pattern)
    letters = pattern or ("DL" if window else "D")
    assert [config.window_of(l) for l in range(L)] == [
        window * (letters[l % len(letters)] == "L") for l in range(L)
    ]
    again = replace(config, pattern=config.pattern)
    assert again == config
    assert lib.llmc_config_check(c) == 0
    assert config.pattern == _ffi.text(c.pattern)


def test_the_usual_one_is_not_said():
    banded = replace(DENSE, window=3)
    assert banded.pattern == "DL"
    assert banded == replace(banded, pattern="DLDL") != replace(banded, pattern="LD")
    assert lib.llmc_config_set_pattern(ffi.new("llmc_config *"), b"D" * 128) == lib.LLMC_EINVAL


@pytest.mark.parametrize("device", ["cpu"])
def test_a_banded_layer_sees_the_window_and_a_dense_one_all(device):
    """A token of long ago reaches a model of local layers only through L windows, one of DLLL at once."""
    for pattern, reached in (("L", 1 + 4 * 2), ("DLLL", 12), ("LLLD", 12)):
        m = make_model(replace(DLLL, pattern=pattern))
        ids = np.arange(12)[None]
        m.forward(ids)
        before = m.logits.copy()
        m.forward(np.where(ids == 0, 50, ids))
        assert (m.logits != before).any(-1)[0].tolist() == [t < reached for t in range(12)]


def test_a_checkpoint_keeps_it(tmp_path):
    m, path = make_model(DLLL), tmp_path / "m.ckpt"
    m.save(path)
    assert struct.unpack_from("<2i", path.read_bytes())[1] == 103
    again = Model(path, B=1)
    assert again.config == DLLL == convert.load(path)[0]
    assert logits(again, IDS).tobytes() == logits(m, IDS).tobytes()
    other = Model(replace(DLLL, pattern="L"), B=1)
    assert lib.llmc_model_load(other._handle, str(path).encode()) == lib.LLMC_EINVAL
    assert "pattern=DLLL, the model L" in _ffi.message(lib)
    for usual in (replace(DENSE, window=3), replace(DENSE, window=3, n_layer=1), DENSE):
        make_model(usual).save(path)
        assert struct.unpack_from("<2i", path.read_bytes())[1] == 3
        assert not any(path.read_bytes()[36:1024])
        assert Model(path, B=1).config == usual


@pytest.mark.parametrize("pattern, L", [("DLLL", 4), ("L", 3), ("LD", 5), ("DLL", 4), ("DLDL", 4)])
def test_a_folder_of_gpt_neo(tmp_path, pattern, L):
    """It is written, run by transformers, and read back."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    config = replace(DENSE, window=3, n_layer=L, pattern=pattern)
    m = make_model(config)
    for layer in range(L):
        m.params[f"transformer.h.{layer}.attn.c_attn.bias"][:] = 0
    save(tmp_path / "neo", config, m.params)
    said = json.loads((tmp_path / "neo/config.json").read_text())
    assert said["attention_layers"] == ["global" if (pattern * L)[l] == "D" else "local" for l in range(L)]
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "neo").eval()
    with torch.no_grad():
        expected = theirs(torch.tensor([IDS])).logits[0].numpy()
    np.testing.assert_allclose(expected, logits(m, IDS), rtol=1e-4, atol=1e-4)
    assert Model(tmp_path / "neo", B=1).config == config


def test_what_the_documents_name_for_transformers_can_be_said_there(tmp_path):
    """All is trained but the bias that GPT-Neo lacks."""
    (names,) = re.findall(r"--train_only='(w\*,[^']*)'", (ROOT / "docs/use.md").read_text())
    dataset.write_dataset(["the cat sat on the mat. " * 20], tmp_path / "d", "byte", 0.2)
    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 32, "max_seq_len": 32, "window": 4, "B": 2}
    how = {"data": tmp_path / "d", "sample_every": 0, "max_steps": 2, **sizes}
    list(pyllmc.Trainer(out=tmp_path / "run", train_only=names, **how))
    before = convert.load(tmp_path / "run")[1]
    save(tmp_path / "hf", *convert.load(tmp_path / "run"))
    list(pyllmc.Trainer(out=tmp_path / "all", **how))
    after = convert.load(tmp_path / "all")[1]
    assert {name for name in after if not before[name].any()} == {
        f"transformer.h.{layer}.attn.c_attn.bias" for layer in range(2)
    }
    with pytest.raises(DataError, match="GPT-Neo has no bias for q, k and v"):
        save(tmp_path / "other", *convert.load(tmp_path / "all"))


def test_what_other_files_cannot_say(tmp_path):
    m = make_model(DLLL)
    with pytest.raises(DataError, match="the layers L of DLLL see the last 3 positions, and llm.c's file"):
        save(tmp_path / "m.bin", DLLL, m.params)
    with pytest.raises(DataError, match="the layers L of DLLL of this model.*llama.cpp"):
        save(tmp_path / "m.gguf", DLLL, m.params)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def tiny(tmp_path) -> dict:
    """Options of a small run."""
    data = tmp_path / "data"
    dataset.write_dataset(["the cat sat on the mat " * 9] * 20, data, tokenizer="char", val_fraction=0.1)
    return dict(
        data=str(data), n_layer=4, n_head=2, n_embd=16, max_seq_len=16, B=2, val_every=0, sample_every=0
    )


@pytest.mark.parametrize(
    "sizes, note",
    [
        ({}, ","),
        ({"window": 15}, " window=15,"),
        ({"window": 16}, " window=16 (no text is longer than 16: the window has no effect),"),
        ({"window": 15, "T": 8}, " window=15 (no text is longer than 8: the window has no effect),"),
        ({"window": 3, "pattern": "D"}, " pattern=D (no layer is banded: the window has no effect),"),
    ],
)
def test_a_window_without_effect_is_told(tiny, sizes, note):
    texts = "".join(event.text for event in pyllmc.Trainer(**tiny, **sizes, max_steps=0, out=""))
    line = next(line for line in texts.splitlines() if line.startswith("model: "))
    assert note in line and ("effect" in line) == ("effect" in note)


def test_a_run_keeps_it(tiny, tmp_path):
    run = str(tmp_path / "run")
    first = pyllmc.Trainer(**tiny, window=4, pattern="LLD", max_steps=1, out=run)
    assert " window=4 pattern=LLD," in "".join(event.text for event in first)
    again = pyllmc.Trainer(resume=run, max_steps=2)
    for _ in again:
        pass
    assert (again.model.config.window, again.model.config.pattern) == (4, "LLD")
    assert "pattern=LLD\n" in (tmp_path / "run/config.txt").read_text()
    for wrong, reason in (
        (dict(pattern="DL"), "pattern=DL without a window"),
        (dict(pattern="DLx", window=4), "pattern=DLx has the letter 'x'"),
        (dict(pattern="DLLLL", window=4), "pattern=DLLLL has 5 letters, but n_layer=4"),
        (
            dict(pattern="D" * 200, window=4),
            "pattern=DDDDDDDDDDDDDDDDDDDD... has 200 letters: 127 are possible",
        ),
        (
            dict(model=run, pattern="DL", n_layer=0, n_head=0, n_embd=0, max_seq_len=0),
            "--pattern=DL, but .* has LLD",
        ),
    ):
        with pytest.raises(InvalidArgument, match=reason):
            pyllmc.Trainer(**{**tiny, **wrong}, out="")
