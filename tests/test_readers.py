"""Files of text of every kind: what is read of them, and the one line when that is nothing."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import subprocess
import sys

import pytest
from test_prepro import ROOT, documents_of
from test_prepro_tinystories import run_script

CSV = 'id,joke\n1,"a, b"\n2,"c ""d""\r\ne"\n'
RECORDS = [{"id": 1, "data": {"text": "one"}}, {"id": 2, "data": {"text": "two\r\n2"}}]
LINES = "".join(json.dumps(r) + "\n" for r in RECORDS)
FIELD = ["--field", "data.text"]
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
    "pair.jsonl": (b'{"text": "\\ud83d\\ude00"}', [], ["\U0001f600"]),
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_what_is_read(tmp_path, capsys, name):
    content, more, expected = GOOD[name]
    (tmp_path / name).write_bytes(content)
    more = [*more, "--tokenizer", "byte", "--val_tokens", "0", "--out", tmp_path / "d"]
    run_script("--input", tmp_path / name, *more, capsys=capsys)
    assert documents_of(tmp_path / "d") == expected


LONE = b'{"text": "fine"}\n{"text": "ab\\ud83dc"}\n'
BAD = {
    "null.jsonl": (b'{"text": null}\n', [], 2, "null.jsonl:1: field 'text' is null: leave such records out with --skip_null"),
    "nested.jsonl": (LINES.encode(), [], 2, "nested.jsonl:1: no field 'text' (it has id, data.text): name it with --field"),
    "typo.jsonl": (LINES.encode(), ["--field", "txt", "--skip_null"], 2, "typo.jsonl:1: no field 'txt' (it has id, data.text)"),
    "jokes.csv": (CSV.encode(), [], 2, "jokes.csv:2: no field 'text' (it has id, joke): name it with --field"),
    "head.csv": (b"id,joke\n", [], 2, "head.csv: no column 'text' (it has id, joke)"),
    "open.csv": (b'text\n"a\nb\n', [], 4, "not a line of .csv: unexpected end of data"),
    "bad.json": (b"[1,\n}", [], 4, "bad.json:2: not JSON:"),
    "numbers.json": (b"[1]", [], 2, "numbers.json: record 1: an object with a field 'text' was expected, not a number"),
    "lone.json": (b'["\\udc00"]', [], 2, "lone.json: record 1: character 0 of field 'text' is a lone surrogate"),
    "cut.txt.gz": (gzip.compress(b"packed" * 99)[:-9], [], 4, "cut.txt.gz: the compressed file is damaged"),
    "latin.md": (b"caf\xe9 noir", [], 4, "latin.md: byte 3 is no UTF-8: name the encoding that the file has, as in --encoding cp1252"),
    "bare.txt": ("twelve bears".encode("utf-16-le"), [], 2, "looks like UTF-16 without a byte order mark: say so with --encoding utf-16-le"),
    "odd.txt": (b"\xff\xfea", [], 4, "odd.txt: byte 2 is no UTF-16"),
    "p.png": (b"\x89PNG\r\n", [], 2, "p.png is a picture, no text"),
    "blob": (b"ab\0cd", [], 2, "blob is no text: byte 2 is zero"),
    "white.txt": (b" \n<|endoftext|>\n", [], 2, "white.txt: no documents: white space, delimiters or skipped records are all there is"),
    "none.jsonl": (b'{"text": null}\n', ["--skip_null"], 2, "none.jsonl: no documents: white space, delimiters or skipped"),
    "x.txt": (b"x", ["--encoding", "latin-99"], 2, "--encoding: 'latin-99' is no encoding: utf-8, cp1252"),
    "y.txt": (b"x", ["--delimiter", r"\d"], 2, "is no escape"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_read_is_one_line(tmp_path, capsys, name):
    content, more, code, says = BAD[name]
    (tmp_path / name).write_bytes(content)
    more = [*more, "--tokenizer", "byte", "--out", tmp_path / "d"]
    assert says in run_script("--input", tmp_path / name, *more, code=code, capsys=capsys)


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
    (folder / "a.py").write_text("x = 1")
    (folder / "b.dat").write_bytes(b"\0\1")
    (folder / "c.bin").write_bytes(b"\xff\xfa\xff")
    (folder / "d.rst").write_text("zwölf")
    os.mkfifo(folder / "pipe")
    more = ["--tokenizer", "byte", "--val_tokens", "0", "--out", str(tmp_path / "d")]
    from pyllmc.prepro_command import main

    assert main(["--input", str(folder), *more]) == 0
    assert f"{folder}: left out 3 files that are no text: b.dat, c.bin, pipe\n" in capsys.readouterr().err
    assert documents_of(tmp_path / "d") == ["x = 1", "zwölf"]
    said = run_script("--input", folder / ".git", folder / "pipe", *more, code=2, capsys=capsys)
    assert "pipe is no regular file: pipe what it gives into --input -" in said


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
        from pyllmc.prepro_command import main

        main(["--help"])
    out = capsys.readouterr().out
    assert "python -m pyllmc.prepro --input my.txt --tokenizer bpe" in out and "(CR LF, CR)" in out
    assert max(map(len, out.splitlines())) <= 100


def test_the_characters_of_a_block_do_not_depend_on_its_size(tmp_path, monkeypatch):
    from pyllmc import readers

    text = "a\r\nzwölf\r\r\n\U0001f600\n"
    (tmp_path / "a.txt").write_bytes(text.encode())
    source = readers.Source(str(tmp_path / "a.txt"), "a", ".txt")
    for size in (4, 5, 7, 100):
        monkeypatch.setattr(readers, "BLOCK", size)
        expected = io.StringIO(text, newline=None).read()
        assert "".join(readers.read_blocks(source, readers.How())) == expected
        assert "".join(readers.read_blocks(source, readers.How(keep_line_ends=True))) == text
