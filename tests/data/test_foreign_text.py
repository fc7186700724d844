"""Data of others: ids of nanoGPT and NumPy, Hugging Face's tokenizers, and a second data set for a model that
exists."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import subprocess

import numpy as np
import pytest
from conftest import ffi, lib
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_dataloader import Loader
from test_prepro import ROOT, documents_of, tokens
from test_prepro_tinystories import run_script

from pyllmc.base.errors import BadFile, DataError
from pyllmc.convert.chat_template import cut_at_marks
from pyllmc.engine import _ffi
from pyllmc.engine.named import open_tokenizer
from pyllmc.text import bins, foreign_tokenizer, raw_tokens, vocabularies
from pyllmc.text.dataset import write_dataset
from pyllmc.text.tokenizer import Tokenizer
from pyllmc.text.tokenizer_formats import hf_tokenizer, merges_of, printable

TEXT = "The cat sat on the mat; a dog ran after it.\n" * 40


def nanogpt(folder, text=TEXT):
    """The files that nanoGPT's data/shakespeare_char/prepare.py leaves."""
    folder.mkdir()
    characters = sorted(set(text))
    stoi = {c: i for i, c in enumerate(characters)}
    ids = np.array([stoi[c] for c in text], dtype=np.uint16)
    cut = int(len(ids) * 0.9)
    ids[:cut].tofile(folder / "train.bin")
    ids[cut:].tofile(folder / "val.bin")
    meta = {"vocab_size": len(characters), "itos": dict(enumerate(characters)), "stoi": stoi}
    (folder / "meta.pkl").write_bytes(pickle.dumps(meta))
    (folder / "input.txt").write_text(text)
    return folder, cut


# ---- ids


def test_a_data_set_of_nanogpts_comes_over_as_it_is(tmp_path, capsys):
    folder, cut = nanogpt(tmp_path / "chars")
    assert "train and" in run_script("--input", folder, "--out", tmp_path / "d", capsys=capsys)
    own = Tokenizer.load(tmp_path / "d/tokenizer.bin")
    assert (own.vocab_size, own.eot, own.name) == (len(set(TEXT)), -1, "char")
    assert own.decode(tokens(tmp_path / "d")) == TEXT[:cut]
    assert own.decode(tokens(tmp_path / "d", "val")) == TEXT[cut:]
    meta = json.loads((tmp_path / "d/meta.json").read_text())
    assert meta["characters"] == len(TEXT) and meta["source"] == "train.bin, val.bin"


def test_its_bare_ids_are_recognised_in_c_and_in_python(tmp_path):
    folder, _ = nanogpt(tmp_path / "chars")
    says = rf"looks like uint16 ids, as nanoGPT writes them: python -m pyllmc.prepro --input {folder} makes"
    with pytest.raises(BadFile, match=says):
        bins.read_shard(folder / "train.bin")
    with pytest.raises(_ffi.BadFile, match=says):
        Loader(folder / "train.bin")


@pytest.mark.parametrize("dtype", ["uint16", "int32", "uint32", "int64"])
@pytest.mark.parametrize("end", ["npy", "bin"])
def test_ids_in_any_width_become_a_data_set(tmp_path, capsys, dtype, end):
    if (dtype, end) == ("int64", "bin"):
        pytest.skip("no program writes these")
    ids = np.array([300, 7, 256, 12, 65] * 50, dtype=dtype)
    path = tmp_path / f"x.{end}"
    np.save(path, ids) if end == "npy" else ids.tofile(path)
    pieces = [bytes([b]) for b in range(256)] + [f"{i} ".encode() for i in range(45)]
    Tokenizer(pieces, "longest", -1).save(tmp_path / "t.bin")
    more = ["--tokenizer", tmp_path / "t.bin", "--val_fraction", "0.2", "--out", tmp_path / "d"]
    run_script("--input", path, *more, capsys=capsys)
    assert tokens(tmp_path / "d") == ids[:200].tolist()
    assert tokens(tmp_path / "d", "val") == ids[200:].tolist()


def test_the_first_ids_validate_if_their_number_is_told(tmp_path, capsys):
    ids = np.arange(250, dtype=np.uint16)
    ids.tofile(tmp_path / "x.bin")
    more = ["--tokenizer", "byte", "--val_tokens", "50", "--out", tmp_path / "d"]
    run_script("--input", tmp_path / "x.bin", *more, capsys=capsys)
    assert tokens(tmp_path / "d") == ids[50:].tolist()
    assert tokens(tmp_path / "d", "val") == ids[:50].tolist()


def npy(ids):
    out = io.BytesIO()
    np.save(out, ids)
    return out.getvalue()


@pytest.mark.parametrize(("content", "more", "code", "says"), [
    (np.arange(500, dtype=np.uint16).tobytes(), ["--tokenizer", "byte"], 2, "ids from 0 to 499, and the tokenizer (byte) has 257"),
    (np.arange(258, dtype=np.uint16).tobytes(), ["--tokenizer", "byte"], 2, "ids from 0 to 257, and the tokenizer (byte) has 257"),
    (npy(np.array([-1, 2])), ["--tokenizer", "byte"], 2, "ids from -1 to 2, and the tokenizer"),
    (np.arange(500, dtype=np.uint16).tobytes(), ["--tokenizer", "char"], 2, "--tokenizer char learns from text, and"),
    (b"Once upon a time", ["--tokenizer", "byte"], 4, "x.bin is no token file: expected magic 20240520 or 20240801, found 1701015119, and it looks like text"),
    (b"\x93NUMPY\x01", ["--tokenizer", "byte"], 4, "not a readable NumPy array"),
    (b"PK\x03\x04abcd", ["--tokenizer", "byte"], 4, "it is a zip archive, as .npz and PyTorch's .pt are"),
    (gzip.compress(b"x" * 99, mtime=0), ["--tokenizer", "byte"], 4, "it is compressed (gzip)"),
])  # fmt: skip
def test_bad_token_files_are_one_line(tmp_path, capsys, content, more, code, says):
    (tmp_path / "x.bin").write_bytes(content)
    assert says in run_script(
        "--input", tmp_path / "x.bin", "--out", tmp_path / "d", *more, code=code, capsys=capsys
    )


@given(st.binary(max_size=60) | st.lists(st.integers(0, 70000), max_size=20).map(lambda i: np.array(i, "<i4").tobytes())
       | st.lists(st.integers(0, 90), max_size=20).map(lambda i: np.array(i, "<u2").tobytes())
       | st.sampled_from([b"\x93NUMPY12", b"PK\x03\x04", b"\x1f\x8b..", b"text\n"]))  # fmt: skip
@example(np.array([100, 0] * 5 + [100, 7] * 3, "<u2").tobytes())  # uint16 ids of which many are 0
@example(np.array([2000, 20] * 8, "<u2").tobytes())  # as int32, they would be above a million
@settings(max_examples=150)
def test_c_and_python_decide_alike_what_a_file_holds(tmp_path_factory, head):
    path = tmp_path_factory.getbasetemp() / "decide.bin"
    path.write_bytes(head)
    out = ffi.new("llmc_loader **")
    status = lib.llmc_loader_open(out, os.fsencode(path), b"train", 1, 1, 0, 0, 0, 1, 0, -1)
    said = ffi.string(lib.llmc_last_error()).decode() if status < 0 else ""
    if not status:
        lib.llmc_loader_free(out[0])
    kind = raw_tokens.what_holds(head, len(head)) if head else "empty"
    for mark in ("looks like uint16", "NumPy", "zip archive", "gzip", "looks like text", "no raw int32"):
        marks = {"looks like uint16": "uint16", "no raw int32": ""}.get(mark)
        assert (mark in said) == (kind == marks if marks is not None else mark in kind), (kind, said)


# ---- tokenizers


def hugging_face(folder, own):
    """vocab.json, merges.txt and tokenizer.json, as `tokenizers` writes them."""
    folder.mkdir()
    hf_tokenizer(own).save(str(folder / "tokenizer.json"))
    names = {("<|endoftext|>" if i == own.eot else printable(p)): i for i, p in enumerate(own.pieces)}
    (folder / "vocab.json").write_text(json.dumps(names))
    lines = ["#version: 0.2", *(f"{printable(a)} {printable(b)}" for a, b in merges_of(own)[0])]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")
    return folder


@pytest.mark.parametrize("kind", ["bpe", "char", "word"])
def test_every_file_of_a_tokenizer_gives_the_same(tmp_path, capsys, kind):
    pytest.importorskip("tokenizers")
    own = vocabularies.train(kind, [TEXT], 300)
    (tmp_path / "my.txt").write_text(TEXT)
    if kind == "bpe":
        sources = [folder := hugging_face(tmp_path / "hf", own), *(folder / n for n in os.listdir(folder))]
    else:
        hf_tokenizer(own).save(str(tmp_path / "tokenizer.json"))
        sources = [tmp_path / "tokenizer.json"]
    for i, source in enumerate(sources):
        out = tmp_path / f"d{i}"
        run_script("--input", tmp_path / "my.txt", "--tokenizer", source, "--out", out, capsys=capsys)
        found = Tokenizer.load(out / "tokenizer.bin")
        assert (found.pieces, found.kind, found.eot) == (own.pieces, own.kind, own.eot), source
        assert tokens(out)[1:] == own.encode(TEXT[: int(len(TEXT.strip()) * 0.99)])


def with_added(own, *added):
    """The tokenizer with more pieces, which text becomes before the byte pairs."""
    ids = range(own.vocab_size, own.vocab_size + len(added))
    return Tokenizer([*own.pieces, *(piece.encode() for piece in added)], "gpt2", own.eot, ids)


def test_added_tokens_are_pieces_of_text(tmp_path):
    """As transformers saves GPT-2's with <|user|> added: in tokenizer.json, or in added_tokens.json beside vocab.json."""
    pytest.importorskip("tokenizers")
    own = vocabularies.train("bpe", [TEXT], 300)
    folder = hugging_face(tmp_path / "hf", own)
    hf_tokenizer(expected := with_added(own, "<|user|>", "<|bot|>", "[PAD]")).save(
        str(folder / "tokenizer.json")
    )
    found = open_tokenizer(str(folder))  # vocab.json beside it says less
    assert found.to_bytes() == expected.to_bytes()
    ids = found.encode("<|user|>The cat<|bot|> sat[PAD]")
    V = own.vocab_size
    assert ids == [V, *own.encode("The cat"), V + 1, *own.encode(" sat"), V + 2]
    assert found.decode(ids) == "<|user|>The cat<|bot|> sat[PAD]"
    os.remove(folder / "tokenizer.json")
    assert open_tokenizer(str(folder)).to_bytes() == own.to_bytes()
    (folder / "added_tokens.json").write_text(json.dumps({"<|bot|>": V + 1, "<|user|>": V, "[PAD]": V + 2}))
    assert open_tokenizer(str(folder)).to_bytes() == expected.to_bytes()


@pytest.mark.parametrize("how", ["lstrip", "rstrip", "single_word"])
def test_an_added_token_that_looks_beside_it_is_refused(tmp_path, how):
    hf = pytest.importorskip("tokenizers")
    made = hf_tokenizer(vocabularies.train("bpe", [TEXT], 300))
    made.add_tokens([hf.AddedToken("<mask>", **{how: True})])
    made.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(DataError, match=f"its added token '<mask>' looks at the text beside it \\({how}\\)"):
        open_tokenizer(str(tmp_path))


def test_the_tokenizer_json_of_a_fine_tuned_export_is_read(tmp_path):
    """It cuts text at a mark first."""
    pytest.importorskip("tokenizers")
    own = vocabularies.train("bpe", [TEXT], 300)
    cut_at_marks(made := hf_tokenizer(own))
    made.save(str(tmp_path / "tokenizer.json"))
    assert open_tokenizer(str(tmp_path)).to_bytes() == own.to_bytes()


def test_a_vocabulary_with_the_piece_model_is_no_tokenizer_json(tmp_path):
    """GPT-2's own vocab.json has that piece."""
    pytest.importorskip("tokenizers")
    own = vocabularies.train("bpe", ["model\n" * 40], 300)
    folder = hugging_face(tmp_path / "hf", own)
    os.remove(folder / "tokenizer.json")
    assert isinstance(json.loads((folder / "vocab.json").read_text())["model"], int)
    assert open_tokenizer(str(folder)).pieces == own.pieces


class Evil:
    def __reduce__(self):
        return os.mkdir, ("pwned",)


BPE = {"type": "BPE", "vocab": {"a": 0}, "merges": []}
LEVEL = {"type": "ByteLevel", "add_prefix_space": False}


@pytest.mark.parametrize(("name", "content", "says"), [
    ("meta.pkl", pickle.dumps({"itos": Evil()}), "it names (posix|nt).mkdir: only dictionaries of texts and numbers are read"),
    ("meta.pkl", pickle.dumps({"vocab_size": 3}), "it has no itos or stoi"),
    ("meta.pkl", pickle.dumps({"itos": {0: "a", 2: "b"}}), "no table of texts by the ids 0, 1, 2"),
    ("meta.pkl", pickle.dumps({"itos": {0: "a", 1: "a"}}), "piece b'a' stands in the table twice"),
    ("meta.pkl", pickle.dumps({"itos": {0: "a"}})[:-3], "damaged|no tokenizer that is known"),
    ("meta.pkl", b"\x80junk", "no tokenizer that is known here|damaged"),
    ("tokenizer.json", {"model": {"type": "WordPiece", "vocab": {}}}, "a WordPiece model: only byte pairs of GPT-2's kind"),
    ("tokenizer.json", {"model": {"type": "Unigram", "vocab": []}}, "a Unigram model"),
    ("tokenizer.json", {"model": BPE, "normalizer": {"type": "NFC"}, "pre_tokenizer": LEVEL}, "changes text first \\(normalizer NFC\\)"),
    ("tokenizer.json", {"model": BPE, "pre_tokenizer": {"type": "Metaspace"}}, "another rule than GPT-2's \\(Metaspace\\)"),
    ("tokenizer.json", {"model": BPE, "pre_tokenizer": {**LEVEL, "add_prefix_space": True}}, "a space in front"),
    ("tokenizer.json", {"model": BPE, "pre_tokenizer": LEVEL}, "a gpt2 table needs all 256 bytes"),
    ("tokenizer.json", b'{"model"', "no tokenizer that is known here"),
])  # fmt: skip
def test_what_cannot_be_taken_is_refused_with_the_reason(tmp_path, monkeypatch, name, content, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    with pytest.raises(DataError, match=says) as error:
        open_tokenizer(str(tmp_path / name))
    assert str(error.value).startswith(str(tmp_path / name)) and "\n" not in str(error.value)
    assert not (tmp_path / "pwned").exists()


def test_a_folder_names_what_it_could_hold(tmp_path):
    with pytest.raises(
        DataError, match="holds none of .*tokenizer.json, vocab.json with merges.txt, meta.pkl"
    ):
        open_tokenizer(str(tmp_path))
    assert foreign_tokenizer.file_in(str(tmp_path)) is None
    (tmp_path / "vocab.json").write_text("{}")  # without merges.txt
    assert foreign_tokenizer.file_in(str(tmp_path)) is None
    (tmp_path / "meta.pkl").write_bytes(b"")
    assert foreign_tokenizer.file_in(str(tmp_path)) == str(tmp_path / "meta.pkl")


def test_a_second_data_set_for_a_model_that_exists(tmp_path, capsys):
    """Runs the remedy that the program names, word for word."""
    if "PYLLMC_LIB" in os.environ:
        pytest.skip("the binary links the ordinary build")
    write_dataset([TEXT], tmp_path / "first", tokenizer="char", val_fraction=0)
    write_dataset(["0123456789 other characters"] * 30, tmp_path / "other", tokenizer="char", val_fraction=0)
    (tmp_path / "more.txt").write_text(TEXT[:200])

    def train(*arguments):
        sizes = ["--B=1", "--T=8", "--max_steps=1", "--sample_every=0", "--val_every=0", "--overwrite"]
        return subprocess.run(
            [ROOT / "train_gpt2", *arguments, *sizes], capture_output=True, text=True, cwd=tmp_path
        )

    made = train("--model=gpt-nano", "--max_seq_len=16", "--data=first", "--out=run")
    assert made.returncode == 0, made.stderr
    refused = train("--model=run", "--data=other", "--out=")
    remedy = refused.stderr.split("python -m pyllmc.prepro ")[1].split()
    assert refused.returncode == 2 and remedy[:3] == ["--input", "TEXT", "--tokenizer"]
    path = str(tmp_path / remedy[3])
    run_script(
        "--input", tmp_path / "more.txt", "--tokenizer", path, "--out", tmp_path / "second", capsys=capsys
    )
    assert TEXT.startswith(documents_of(tmp_path / "second")[0])
    again = train("--model=run", "--data=second", "--out=")
    assert again.returncode == 0, again.stderr


def test_a_broken_tokenizer_beside_the_weights_is_told_as_broken_and_how(tmp_path, capsys):
    from pyllmc import GPTConfig, Model, sample
    from pyllmc.convert.__main__ import main

    Model(GPTConfig(20, 8, 1, 1, 8), B=1, training=False).save(tmp_path / "m.ckpt")
    assert main([str(tmp_path / "m.ckpt"), str(tmp_path / "hf")]) == 0
    (tmp_path / "hf/tokenizer.json").write_text('{"model": ')
    capsys.readouterr()
    assert sample.main([str(tmp_path / "hf")]) == 4
    said = capsys.readouterr().err
    assert "hf/tokenizer.json: no tokenizer that is known here (JSONDecodeError: Expecting value" in said
    assert said.count("\n") == 1
