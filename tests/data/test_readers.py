"""Files of text of every kind: the text read from them, and the one line if there is none."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import random
import subprocess
import sys
import tarfile

import pytest
import zstandard
from test_prepro import ROOT, documents_of
from test_prepro_tinystories import run_script

CSV = 'id,joke\n1,"a, b"\n2,"c ""d""\r\ne"\n'
RECORDS = [{"id": 1, "data": {"text": "one"}}, {"id": 2, "data": {"text": "two\r\n2"}}]
LINES = "".join(json.dumps(r) + "\n" for r in RECORDS)
FIELD = ["--field", "data.text"]
CELLS = [{"source": ["# one\n", "two\n"]}, {"source": ""}, {"source": "print(1)", "outputs": [{"text": "1"}]}]
NOTEBOOK = json.dumps({"cells": CELLS, "nbformat": 4}).encode()
RNG = random.Random(1)
NOISE = RNG.randbytes(30_000).hex().encode()


def zstd(data):
    return zstandard.ZstdCompressor().compress(data)


def tar(data):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as f:
        info = tarfile.TarInfo("a.txt")
        info.size = len(data)
        f.addfile(info, io.BytesIO(data))
    return out.getvalue()


GOOD = {
    "crlf.txt": (b"a\r\nb\rc\n\nd", [], ["a\nb\nc\n\nd"]),
    "kept.txt": (b"a\r\nb", ["--keep_line_ends"], ["a\r\nb"]),
    "paragraphs.txt": (b"a\r\n\r\nb\r\nc\r\n\r\nd", ["--delimiter", r"\n\n"], ["a", "b\nc", "d"]),
    "crlf_delimiter.txt": (b"a\r\n\r\nb", ["--delimiter", r"\r\n\r\n"], ["a", "b"]),
    "notes.md": (b"# title", [], ["# title"]),
    "code.py": (b"x = 1", [], ["x = 1"]),
    "LICENSE": (b"free", [], ["free"]),
    "utf16.txt": ("zwölf".encode("utf-16"), [], ["zwölf"]),
    "utf16be.txt": (b"\xfe\xff" + "zwölf".encode("utf-16-be"), [], ["zwölf"]),
    "utf32.txt": ("zwölf".encode("utf-32"), [], ["zwölf"]),
    "bom.csv": (b"\xef\xbb\xbftext\nhi\n", [], ["hi"]),
    "windows.txt": ("“zwölf”".encode("cp1252"), ["--encoding", "cp1252"], ["“zwölf”"]),
    "bare16.txt": ("zwölf".encode("utf-16-le"), ["--encoding", "utf-16-le"], ["zwölf"]),
    "a.txt.gz": (gzip.compress(b"packed"), [], ["packed"]),
    "misnamed.txt": (gzip.compress(b"packed"), [], ["packed"]),
    "a.txt.bz2": (bz2.compress(b"packed"), [], ["packed"]),
    "a.txt.xz": (lzma.compress(b"packed"), [], ["packed"]),
    "a.jsonl.gz": (gzip.compress(LINES.encode()), FIELD, ["one", "two\n2"]),
    "a.csv.gz": (gzip.compress(CSV.encode()), ["--field", "joke"], ["a, b", 'c "d"\ne']),
    "a.jsonl": (LINES.encode(), FIELD, ["one", "two\n2"]),
    "dotted.jsonl": (b'{"data.text": "x"}', FIELD, ["x"]),
    "in_list.jsonl": (b'{"data": [{"text": "x"}]}', ["--field", "data.0.text"], ["x"]),
    "a.ndjson": (LINES.encode(), FIELD, ["one", "two\n2"]),
    "array.json": (json.dumps(RECORDS, indent=1).encode(), FIELD, ["one", "two\n2"]),
    "texts.json": (b'["a", "b"]', [], ["a", "b"]),
    "lines.json": (LINES.encode(), FIELD, ["one", "two\n2"]),
    "inside.json": (b'{"version": 1, "rows": [{"text": "a"}]}', [], ["a"]),
    "semicolons.csv": (b"id;text\n1;a, b\n", [], ["a, b"]),
    "a.tsv": (b"id\ttext\n1\ta, b\n", [], ["a, b"]),
    "null.jsonl": (b'{"text": null}\n{"text": "a"}\n{"other": 1}\n', ["--skip_null"], ["a"]),
    "null_above.jsonl": (b'{"data": null}\n{"data": {"text": "a"}}\n', [*FIELD, "--skip_null"], ["a"]),
    "short.csv": (b"id,text\n1\n2,a\n", ["--skip_null"], ["a"]),
    "data": (LINES.encode(), [*FIELD, "--format", "jsonl"], ["one", "two\n2"]),
    "quoted_head.csv": (b'"a;b;c",text\n1,x;y\n', [], ["x;y"]),
    "bars.csv": (b"id|text\n1|a, b\n", [], ["a, b"]),
    "excel.csv": (b"sep=;\r\nid;text\r\n1;a, b\r\n", [], ["a, b"]),
    "blank_above.csv": (b"\n\nid,text\n1,a\n", [], ["a"]),
    "no_head.csv": (b"one,1\ntwo,2\n", ["--field", "0"], ["one", "two"]),
    "named_by_number.csv": (b"7,0\none,two\n", ["--field", "0"], ["two"]),
    "long_number.jsonl": (b'{"n": ' + b"9" * 5000 + b', "text": "a"}\n', [], ["a"]),
    "a.ipynb": (NOTEBOOK, [], ["# one\ntwo\n\nprint(1)"]),
    "older.txt.lzma": (lzma.compress(b"packed", lzma.FORMAT_ALONE), [], ["packed"]),
    "frames.txt.zst": (zstd(b"a" * 300_000) + zstd(b"b"), [], ["a" * 300_000 + "b"]),
    "pair.jsonl": (b'{"text": "\\ud83d\\ude00"}', [], ["\U0001f600"]),
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_what_is_read(tmp_path, capsys, name):
    content, more, expected = GOOD[name]
    (tmp_path / name).write_bytes(content)
    more = [*more, "--tokenizer", "byte", "--val_tokens", "0", "--out", tmp_path / "d"]
    run_script("--input", tmp_path / name, *more, capsys=capsys)
    assert documents_of(tmp_path / "d") == expected


def test_records_that_are_left_out_are_counted(tmp_path, capsys):
    from pyllmc.prepro import main

    (tmp_path / "a.jsonl").write_text('{"text": null}\n{"text": "a"}\n{"other": 1}\n')
    more = [
        "--tokenizer",
        "char",
        "--val_tokens",
        "0",
        "--out",
        str(tmp_path / "d"),
    ]  # reads twice, counts once
    assert main(["--input", str(tmp_path / "a.jsonl"), "--skip_null", *more]) == 0
    assert "left out 2 records without a text in 'text'\n" in capsys.readouterr().err


LONE = b'{"text": "fine"}\n{"text": "ab\\ud83dc"}\n'
BAD = {
    "null.jsonl": (b'{"text": null}\n', [], 2, "null.jsonl:1: field 'text' is null: leave such records out with --skip_null"),
    "nested.jsonl": (LINES.encode(), [], 2, "nested.jsonl:1: no field 'text' (it has id, data.text): name it with --field"),
    "typo.jsonl": (LINES.encode(), ["--field", "txt", "--skip_null"], 2, "typo.jsonl:1: no field 'txt' (it has id, data.text)"),
    "jokes.csv": (CSV.encode(), [], 2, "jokes.csv:2: no field 'text' (it has id, joke): name it with --field"),
    "head.csv": (b"id,joke\n", [], 2, "head.csv: no column 'text' (it has id, joke)"),
    "bad.json": (b"[1,\n}", [], 4, "bad.json:2: not JSON:"),
    "numbers.json": (b"[1]", [], 2, "numbers.json: record 1: an object with a field 'text' was expected, not a number"),
    "lone.json": (b'["\\udc00"]', [], 2, "lone.json: record 1: character 0 of field 'text' is a lone surrogate"),
    "cut.txt.gz": (gzip.compress(b"packed" * 99)[:-9], [], 4, "cut.txt.gz: the compressed file is damaged"),
    "latin.md": (b"caf\xe9 noir", [], 4, "latin.md: byte 3 is no UTF-8: name the encoding that the file has, as in --encoding cp1252"),
    "bare.txt": ("twelve bears".encode("utf-16-le"), [], 2, "looks like UTF-16 without a byte order mark: say so with --encoding utf-16-le"),
    "odd.txt": (b"\xff\xfea", [], 4, "odd.txt: byte 2 is no UTF-16"),
    "p.png": (b"\x89PNG\r\n", [], 2, "p.png is a picture, no text"),
    "cyrillic.txt": ("да и нет, ".encode("utf-16-le") * 20, [], 2, "UTF-16 without a byte order mark: say so with --encoding utf-16-le"),
    "big_ended.txt": ("twelve bears".encode("utf-16-be"), [], 2, "say so with --encoding utf-16-be"),
    "kana.csv": ("漢字、仮名。".encode("utf-16-be") * 20, [], 2, "say so with --encoding utf-16-be"),
    "bare32.txt": ("twelve bears".encode("utf-32-le"), [], 2, "UTF-32 without a byte order mark: say so with --encoding utf-32-le"),
    "no_mark.txt": (b"twelve", ["--encoding", "utf-16"], 4, "no_mark.txt: utf-16 does not read it"),
    "marked.txt": (b"\xef\xbb\xbfcaf\xe9", [], 4, "byte 6 is no UTF-8, which its byte order mark says it is: mend that place"),
    "half.csv": (b'text\na\n"b\n\xed\xa0\x80"\n', [], 4, "half.csv:4: byte 10 begins a lone surrogate (\\ud800), which no"),
    "other_field.jsonl": (b'{"a": [{"b": "x"}]}', [], 2, "no field 'text' (it has a.0.b): name it with --field"),
    "cut.jsonl": (b'{"text": "a"}\n{"text": "b', [], 4, "cut.jsonl:2: not a JSON line: Unterminated string starting at (column 10)"),
    "pretty.jsonl": (b'{\n "text": "a"\n}\n', [], 4, "Then --format json reads it"),
    "list.jsonl": (b'["a", "b"]', [], 2, "not a list: give --format json"),
    "noise.json": (b"\xff\xff", [], 4, "noise.json: byte 0 is no UTF-8"),
    "open.csv": (b'text\na\n"b\nc\n', [], 4, "open.csv:3: not a row of .csv: a quote that this row opens is never closed"),
    "no.ipynb": (b'{"cells": 1}', [], 4, "no.ipynb: not a notebook with cells: give --format txt"),
    "cut.zst": (zstd(NOISE)[:-200], [], 4, "cut.zst: the compressed file is damaged (it ends within a frame): fetch it again"),
    "a.tar.gz": (gzip.compress(tar(b"a")), [], 2, "a.tar.gz is a tar archive, no text: unpack it, and name the folder"),
    "twice.gz.gz": (gzip.compress(gzip.compress(b"a")), [], 2, "twice.gz.gz is compressed twice"),
    "blob": (b"ab\0cd", [], 2, "blob is no text: byte 2 is zero"),
    "white.txt": (b" \n<|endoftext|>\n", [], 2, "white.txt: no documents: white space, delimiters or skipped records are all there is"),
    "none.jsonl": (b'{"text": null}\n', ["--skip_null"], 2, "none.jsonl: no documents: white space, delimiters or skipped"),
    "x.txt": (b"x", ["--encoding", "latin-99"], 2, "--encoding: 'latin-99' is no encoding: utf-8, cp1252"),
    "w.txt": (b"x", ["--encoding", "a\udcffb"], 2, r"--encoding: 'a\udcffb' is no encoding: utf-8, cp1252"),
    "y.txt": (b"x", ["--delimiter", r"\d"], 2, "is no escape"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_read_is_one_line(tmp_path, capsys, name):
    content, more, code, says = BAD[name]
    (tmp_path / name).write_bytes(content)
    more = [*more, "--tokenizer", "byte", "--out", tmp_path / "d"]
    said = run_script("--input", tmp_path / name, *more, code=code, capsys=capsys)
    assert says in said and said.count(str(tmp_path)) <= 1


@pytest.mark.parametrize("kind", ["char", "byte", "word", "bpe"])
def test_half_a_character_is_named_with_its_place(tmp_path, capsys, kind):
    (tmp_path / "lone.jsonl").write_bytes(LONE)
    if kind == "bpe":
        pytest.importorskip("tokenizers")
    more = ["--tokenizer", kind, "--out", tmp_path / "d"]
    said = run_script("--input", tmp_path / "lone.jsonl", *more, code=2, capsys=capsys)
    assert r"lone.jsonl:2: character 2 of field 'text' is a lone surrogate (\ud83d)" in said


def test_parquet_has_nested_columns_and_nulls_too(tmp_path, capsys):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = arrow.table({"data": [{"text": "a"}, {"text": None}, None]})
    parquet.write_table(rows, tmp_path / "a.parquet")
    more = ["--tokenizer", "byte", "--val_tokens", "0", "--out", tmp_path / "d", *FIELD]
    said = run_script("--input", tmp_path / "a.parquet", *more, code=2, capsys=capsys)
    assert "a.parquet: row 2: field 'data.text' is null: leave such records out with --skip_null" in said
    run_script("--input", tmp_path / "a.parquet", "--skip_null", *more, capsys=capsys)
    assert documents_of(tmp_path / "d") == ["a"]


def test_a_folder_leaves_out_what_is_no_text_and_says_so(tmp_path, capsys):
    folder = tmp_path / "in"
    (folder / ".git").mkdir(parents=True)
    (folder / ".git/config").write_text("hidden")
    (folder / ".notes.txt").write_text("hidden")
    (folder / "a.py").write_text("x = 1")
    (folder / "b.dat").write_bytes(b"\0\1")
    (folder / "c.bin").write_bytes(b"\xff\xfa\xff")
    (folder / "d.rst").write_text("zwölf")
    os.mkfifo(folder / "pipe")
    more = ["--tokenizer", "byte", "--val_tokens", "0", "--out", str(tmp_path / "d")]
    from pyllmc.prepro import main

    assert main(["--input", str(folder), *more]) == 0
    assert f"{folder}: left out 3 files that are no text: b.dat, c.bin, pipe\n" in capsys.readouterr().err
    assert documents_of(tmp_path / "d") == ["x = 1", "zwölf"]
    said = run_script("--input", folder / ".git", folder / "pipe", *more, code=2, capsys=capsys)
    assert "pipe is not a regular file: pipe its content into --input -" in said


@pytest.mark.parametrize("command", [["-m", "pyllmc.prepro"], ["dev/prepro_tinystories.py"]])
def test_what_comes_in_is_read_as_often_as_needed(tmp_path, command):
    """`char` reads twice; the old name of the command does the same."""
    more = ["--input", "-", "--tokenizer", "char", "--val_tokens", "0", "--out", str(tmp_path / "d")]
    done = subprocess.run(
        [sys.executable, *command, *more], input=b"once\r\nupon", capture_output=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert documents_of(tmp_path / "d") == ["once\nupon"]


def test_help_shows_examples_and_fits_the_terminal(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit):
        from pyllmc.prepro import main

        main(["--help"])
    out = capsys.readouterr().out
    assert "python -m pyllmc.prepro --input my.txt --tokenizer bpe" in out and "(CR LF, CR)" in out
    assert max(map(len, out.splitlines())) <= 100


def test_the_characters_of_a_block_do_not_depend_on_its_size(tmp_path, monkeypatch):
    from pyllmc.text import characters

    text = "a\r\nzwölf\r\r\n\U0001f600\n"
    (tmp_path / "a.txt").write_bytes(text.encode())
    source = characters.Source(str(tmp_path / "a.txt"), "a", ".txt")
    for size in (4, 5, 7, 100):
        monkeypatch.setattr(characters, "BLOCK", size)
        expected = io.StringIO(text, newline=None).read()
        assert "".join(characters.read_blocks(source, characters.How())) == expected
        assert "".join(characters.read_blocks(source, characters.How(keep_line_ends=True))) == text
