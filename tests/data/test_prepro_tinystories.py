"""python -m pyllmc.prepro, dev/prepro_tinystories.py: every kind of input, wrong input, golden token counts of Tiny
Shakespeare."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_prepro import ROOT, contents, documents_of, tokens

from pyllmc import prepro as script
from pyllmc.text import characters, readers, vocabularies
from pyllmc.text.bins import DataError
from pyllmc.text.dataset import write_dataset


def run_script(*arguments: str, code: int = 0, capsys=None) -> str:
    """The output of the command; the exit code must be `code`, and an error must be one line."""
    try:
        found = script.main([str(a) for a in arguments])
    except SystemExit as e:
        found = e.code
    captured = capsys.readouterr()
    assert found == code, captured.err
    if code not in (0, 130):
        assert captured.err.startswith("pyllmc.prepro: ") and captured.err.count("\n") == 1
    return captured.out if code == 0 else captured.err


def test_script_reads_txt_jsonl_parquet_and_folders(tmp_path, capsys):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    data = tmp_path / "in"
    (data / "deep").mkdir(parents=True)
    (data / "a.txt").write_bytes("\ufeffone\r\nline\n<|endoftext|>\ntwo\n<|endoftext|>\n".encode())
    (data / "b.jsonl").write_text('{"text": "three"}\n\n{"text": "fo\\u00e9ur", "id": 7}\n')
    parquet.write_table(arrow.table({"text": ["five", None, "six"]}), data / "deep" / "c.PARQUET")
    (data / "notes.md").write_text("seven")
    more = ["--tokenizer", "word", "--val_fraction", "0", "--skip_null"]
    run_script("--input", data, "--out", tmp_path / "d", *more, capsys=capsys)
    assert documents_of(tmp_path / "d") == ["one\nline", "two", "three", "foéur", "five", "six", "seven"]
    assert json.loads((tmp_path / "d" / "meta.json").read_text())["source"] == "in"


@given(st.text("ab<>\né", max_size=60), st.sampled_from(["<>", "\n\n", "a", "", "ab<"]), st.integers(1, 9))
@settings(max_examples=200)
def test_delimiters_are_found_across_blocks(tmp_path_factory, text, delimiter, block):
    path = tmp_path_factory.getbasetemp() / "blocks.txt"
    path.write_bytes(text.encode())
    expected = [part.strip() for part in text.split(delimiter)] if delimiter else [text]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(characters, "BLOCK", block)
        source = characters.Source(str(path), "blocks", ".txt")
        assert list(readers.read_txt(source, characters.How(delimiter))) == expected


def test_script_delimiter_escapes_and_workers(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("one\n\ntwo\n\nthree\tthree")
    for workers in (1, 2):
        out = tmp_path / f"d{workers}"
        run_script("--input", tmp_path / "a.txt", "--out", out, "--tokenizer", "char", "--delimiter", r"\n\n",
                   "--workers", workers, "--val_tokens", 4, "--shard_tokens", 5, capsys=capsys)  # fmt: skip
    assert documents_of(tmp_path / "d1", "val") == ["one"]
    assert documents_of(tmp_path / "d1") == ["two", "three\tthree"]
    assert contents(tmp_path / "d1") == contents(tmp_path / "d2")


@pytest.mark.parametrize(("arguments", "code", "message"), [
    (["--inptu", "x"], 2, "unknown option --inptu: did you mean --input"),
    (["--qqq"], 2, "unknown option --qqq: --help lists them\n"),
    (["--workers", "0", "--input", "x"], 2, "'0' is not a whole number of at least 1"),
    (["--shard_tokens", "-5", "--input", "x"], 2, "'-5' is not a whole number"),
    (["--val_tokens", "1e-3", "--input", "x"], 2, "'1e-3' is not a whole number"),
    (["--val_fraction", "1.5", "--input", "x"], 2, "'1.5' is not a number in"),
    (["--val_fraction", "nan", "--input", "x"], 2, "'nan' is not a number"),
    (["--val_fraction", "0.1", "--val_tokens", "3", "--input", "x"], 2, "not allowed with"),
    (["--tokenizer", "bep"], 2, "'bep' is neither word, bpe, char, byte, gpt2 nor a file or folder with a tokenizer"),
    (["--delimiter", "\\", "--input", "x"], 2, "ends within an escape"),
    (["--delimiter", "###", "--input", "{dir}/plain.txt"], 2, "--delimiter '###' occurs nowhere in"),
    (["--split", "llmc"], 2, "need --input"),
    (["--split", "llmc", "--input", "a.txt", "b.txt"], 2, "needs one file of text"),
    (["--input", "none.txt"], 5, "cannot read none.txt: No such file"),
    (["--input", "{dir}/x.csv"], 2, "x.csv: no column 'text' (it has a): name it with --field"),
    (["--input", "{dir}/none"], 2, "none holds no text"),
    (["--input", "{dir}/empty.txt"], 2, "no documents: the input is empty"),
    (["--input", "{dir}/latin.txt"], 4, "latin.txt: byte 3 is no UTF-8"),
    (["--input", "{dir}/cut.txt"], 4, "cut.txt: byte 3 is no UTF-8"),
    (["--input", "{dir}/bad.jsonl"], 4, "bad.jsonl:2: not a JSON line"),
    (["--input", "{dir}/good.jsonl", "--field", "story"], 2, "no field 'story' (it has text, n): name it"),
    (["--input", "{dir}/good.jsonl", "--field", "n"], 2, "field 'n' is a number, not text"),
    (["--input", "{dir}/list.jsonl"], 2, "an object with a field 'text' was expected, not a list"),
    (["--input", "{dir}/bad.parquet"], 4, "bad.parquet: not a readable parquet file"),
    (["--input", "{dir}/good.jsonl", "--out", "{dir}/none"], 2, "none is a data set already: choose another output "
     "place, or replace it with --overwrite"),
    (["--input", "{dir}/good.jsonl", "--out", "{dir}", "--overwrite"], 2, "inside the output folder"),
])  # fmt: skip
def test_script_bad_input(tmp_path, capsys, arguments, code, message):
    (tmp_path / "none").mkdir()
    if "--out" in arguments:
        write_dataset(["one"], tmp_path / "none", tokenizer="byte")
    for name, content in {
        "x.csv": b"a", "empty.txt": b"", "plain.txt": b"once", "latin.txt": b"caf\xe9 noir", "cut.txt": "café".encode()[:-1],
        "bad.jsonl": b'{"text": "a"}\n{"text": \n', "good.jsonl": b'{"text": "a", "n": 3}\n',
        "list.jsonl": b"[1]\n", "bad.parquet": b"PAR1",
    }.items():  # fmt: skip
        (tmp_path / name).write_bytes(content)
    if "parquet" in arguments[-1]:
        pytest.importorskip("pyarrow")
    before = set(os.listdir(tmp_path))
    arguments = [a.replace("{dir}", str(tmp_path)) for a in arguments]
    if "--out" not in arguments:
        arguments += ["--out", str(tmp_path / "d")]
    if "--tokenizer" not in arguments:
        arguments += ["--tokenizer", "byte"]
    assert message in run_script(*arguments, code=code, capsys=capsys)
    assert set(os.listdir(tmp_path)) == before


@pytest.mark.parametrize(
    ("inputs", "out"),
    [(None, "data/tinystories"), (["x/my.txt"], "data/my"), (["{dir}/books.old/", "b.txt"], "data/books.old"),
     (["/"], "data/text")],
)  # fmt: skip
def test_the_output_is_named_after_the_input(tmp_path, inputs, out):
    (tmp_path / "books.old").mkdir()
    assert script.default_out(inputs and [name.replace("{dir}", str(tmp_path)) for name in inputs]) == out


@pytest.mark.parametrize(("name", "says"), [
    ("four", "6,004 of 6,016 tokens validate, more than half: whole documents do; choose --val_tokens"),
    ("tiny", "only 2 of 51 tokens validate: raise --val_fraction"),
    ("none", ""),
    ("good", ""),
])  # fmt: skip
def test_odd_splits_are_pointed_out(tmp_path, capsys, name, says):
    texts = {
        "four": ["x" * 6003, *["abc"] * 3],
        "tiny": ["x" * 49],
        "none": ["x" * 50],
        "good": ["x" * 99_999],
    }
    (tmp_path / "in").mkdir()
    for i, text in enumerate(texts[name]):
        (tmp_path / "in" / f"{i}.txt").write_text(text)
    more = ["--val_fraction", "0"] if name == "none" else []
    script.main(["--input", f"{tmp_path}/in", "--out", f"{tmp_path}/d", "--tokenizer", "byte", *more])
    said = capsys.readouterr().err
    assert said.count("\n") == bool(says) and says in said


@pytest.mark.parametrize("name, sections", [("nanogpt", 9), ("llmc", 4500)])
def test_a_split_that_was_asked_for_is_not_pointed_out(tmp_path, capsys, name, sections):
    """The remedies, --val_fraction and --val_tokens, are refused beside --split."""
    (tmp_path / "a.txt").write_text("abc def\n\n" * sections)
    script.main(
        ["--input", f"{tmp_path}/a.txt", "--out", f"{tmp_path}/d", "--tokenizer", "byte", "--split", name]
    )
    assert capsys.readouterr().err == ""


class FakeHub:
    """Stands in for the `datasets` package, because there is no network."""

    @staticmethod
    def load_dataset(name, split, streaming):
        assert name == "roneneldan/TinyStories" and streaming
        return iter([{"text": f" {split} story {n}\n"} for n in range(3)])


class NoNetwork:
    @staticmethod
    def load_dataset(name, split, streaming):
        raise ConnectionError("no route\nto host")


@pytest.mark.parametrize("kind", ["byte", "word"])
def test_script_streams_tinystories(tmp_path, monkeypatch, capsys, kind):
    monkeypatch.setitem(sys.modules, "datasets", FakeHub)
    run_script("--out", tmp_path / "d", "--tokenizer", kind, capsys=capsys)
    assert documents_of(tmp_path / "d") == [f"train story {n}" for n in range(3)]
    assert documents_of(tmp_path / "d", "val") == [f"validation story {n}" for n in range(3)]


def test_script_without_network_or_packages(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "datasets", NoNetwork)
    message = run_script("--out", tmp_path / "d", "--tokenizer", "byte", code=5, capsys=capsys)
    assert "is there a network?" in message and "--input" in message
    monkeypatch.setitem(sys.modules, "datasets", None)
    message = run_script("--out", tmp_path / "d", "--tokenizer", "byte", code=6, capsys=capsys)
    assert "pip install datasets" in message
    assert os.listdir(tmp_path) == []


def test_script_ctrl_c(tmp_path, monkeypatch, capsys):
    def interrupted(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(script, "run", interrupted)
    assert run_script("--input", "x", code=130, capsys=capsys) == ""


# ---- golden: Tiny Shakespeare in GPT-2's tokens


@pytest.fixture(scope="module")
def shakespeare() -> Path:
    path = Path(
        os.environ.get("PYLLMC_TINYSHAKESPEARE") or ROOT.parent / "shared" / "data" / "tinyshakespeare.txt"
    )
    if not path.is_file():
        pytest.skip("no tinyshakespeare.txt: name it in PYLLMC_TINYSHAKESPEARE")
    return path


@pytest.mark.parametrize(("split", "train", "val"), [("nanogpt", 301_966, 36_059), ("llmc", 305_260, 32_768)])
def test_golden_token_counts(tmp_path, capsys, shakespeare, split, train, val):
    try:
        gpt2 = vocabularies.train("gpt2")
    except DataError as e:
        pytest.skip(str(e))
    run_script("--input", shakespeare, "--split", split, "--out", tmp_path / "d", capsys=capsys)
    stream = tokens(tmp_path / "d", "val"), tokens(tmp_path / "d")
    assert (len(stream[1]), len(stream[0])) == (train, val)
    text = shakespeare.read_bytes().decode()
    if split == "nanogpt":
        assert gpt2.decode(stream[1]) + gpt2.decode(stream[0]) == text
    else:
        assert gpt2.decode(stream[0] + stream[1]).replace("<|endoftext|>", "") == text
        assert stream[0][0] == gpt2.eot
