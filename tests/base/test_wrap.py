"""csrc/base/wrap.c: words at a terminal's edge, in whatever parts the text comes."""

from __future__ import annotations

import unicodedata

import pytest
import width_table
from conftest import ffi, lib
from hypothesis import given, settings
from hypothesis import strategies as st

WORDS = st.sampled_from(
    ["a", "cat", "garden", "日本", "é", "e\u0301", "😀", "longer-than-a-line", "\n", " ", "\t"]
)


def wrapped(pieces: list[str], columns: int) -> str:
    wrap = ffi.gc(lib.llmc_wrap_new(), lib.llmc_wrap_free)
    out, size, shown = ffi.new("char **"), ffi.new("int64_t *"), b""
    for piece in [*pieces, None]:
        data = ffi.NULL if piece is None else piece.encode()
        assert lib.llmc_wrap_next(wrap, columns, data, len((piece or "").encode()), out, size) == 0
        shown += bytes(ffi.buffer(out[0], size[0]))
    return shown.decode()


def width(text: str) -> int:
    return sum(width_table.columns_of(c) for c in text)


@settings(max_examples=300)
@given(st.lists(st.tuples(WORDS, st.sampled_from([" ", "", "  "]))), st.integers(2, 30))
def test_lines_fit_and_words_stay_whole(parts, columns):
    text = "".join(a + b for a, b in parts)
    shown = wrapped([text], columns)
    assert shown == wrapped(list(text), columns)
    assert all(width(line) <= columns for line in shown.split("\n"))
    assert "".join(shown.split()) == "".join(text.split())
    assert shown.count("\n") >= text.count("\n")
    for word in text.split():
        if width(word) <= columns and not any(width(c) > 1 for c in word):
            assert word in shown
    assert wrapped(list(text), 0) == text


def test_examples():
    assert wrapped(["one two ", "th", "ree"], 8) == "one two\nthree"
    assert wrapped(["one two three"], 7) == "one two\nthree"
    assert wrapped(["日本日本"], 5) == "日本\n日本"
    assert wrapped(["abcdefgh"], 3) == "abc\ndef\ngh"
    assert wrapped(["a\n\n  b"], 9) == "a\n\n  b"


def test_the_width_changes_while_it_is_written():
    wrap = ffi.gc(lib.llmc_wrap_new(), lib.llmc_wrap_free)
    out, size, shown = ffi.new("char **"), ffi.new("int64_t *"), b""
    for columns, piece in ((20, b"aaa bbb ccc ddd "), (7, b"eee fff ggg "), (0, b"hhh iii")):
        assert lib.llmc_wrap_next(wrap, columns, piece, len(piece), out, size) == 0
        shown += bytes(ffi.buffer(out[0], size[0]))
    assert shown == b"aaa bbb ccc ddd\neee fff\nggg hhh iii"


def test_columns_are_pythons_table():
    """All characters of Python's Unicode are compared."""
    for first in range(0, 0x30000, 0x400):
        for code in range(first, first + 0x400):
            c = chr(code)
            if code > 159 and unicodedata.category(c) not in ("Cn", "Cs"):
                expected = width_table.columns_of(c)
                fits = "\n" not in wrapped([f"{c}b"], expected + 1)
                assert fits, hex(code)
                if expected:
                    assert "\n" in wrapped([f"a{c}b"], expected + 1), hex(code)


@pytest.mark.parametrize("words, code", [(["--help"], 0), (["--chek"], 2), (["now"], 2)])
def test_the_table_is_written_only_if_that_is_asked(tmp_path, monkeypatch, words, code):
    path = tmp_path / "width.def"
    monkeypatch.setattr(width_table, "PATH", str(path))
    with pytest.raises(SystemExit) as end:
        width_table.main(words)
    assert end.value.code == code and not path.exists()


def test_the_table_is_written_and_compared(tmp_path, monkeypatch, capsys):
    path = tmp_path / "width.def"
    monkeypatch.setattr(width_table, "PATH", str(path))
    assert width_table.main([]) == 0 and path.read_text() == width_table.table()
    assert width_table.main(["--check"]) == 0
    path.write_text("")
    assert width_table.main(["--check"]) == 1 and path.read_text() == ""
    assert "is not what this Python makes of it" in capsys.readouterr().out
