"""Byte pairs in C: GPT-2's cutting and merging against tiktoken; vocab.bpe and the ways to damage it."""

from __future__ import annotations

import contextlib
import os
import random
import re
import time

import pytest
import unicode_table
from conftest import ROOT, ffi, lib
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_tokenizer_c import EOT, UNKNOWN, file_bytes, made_up_vocab_bpe
from test_tokenizer_c import Tokenizer as InC

from pyllmc.base.errors import DataError
from pyllmc.engine import _ffi
from pyllmc.text import bpe, vocabularies
from pyllmc.text.tokenizer import Tokenizer

tiktoken = pytest.importorskip("tiktoken")
SETTINGS = settings(max_examples=300)
BPE = 2


@pytest.fixture(scope="module")
def gpt2(vocab_bpe) -> InC:
    return InC(vocab_bpe)


@pytest.fixture(scope="module")
def reference(vocab_bpe):
    return tiktoken.get_encoding("gpt2")


def bytes_of(tokenizer: InC) -> bytes:
    size = ffi.new("int64_t *")
    return ffi.buffer(lib.llmc_tokenizer_bytes(tokenizer.handle, size), size[0])[:]


# ---- characters


def codes(name: str) -> set[int]:
    """The code points of one class in csrc/text/unicode.def."""
    rows = re.findall(rf"\b{name}\((0x\w+), (0x\w+)\)", (ROOT / "csrc/text/unicode.def").read_text())
    return {code for first, last in rows for code in range(int(first, 16), int(last, 16) + 1)}


@pytest.fixture(scope="module")
def differing() -> set[int]:
    """The code points whose class differs between the table and this tiktoken."""
    return set().union(*(codes(name) ^ unicode_table.matched(p) for name, p in unicode_table.CLASSES.items()))


def test_the_table_is_tiktokens_over_all_code_points(differing):
    """The two differ only in code points that the older Unicode does not have yet."""
    if not differing:
        return
    version = re.search(r"Unicode (\d+\.\d+)", (ROOT / "csrc/text/unicode.def").read_text())[1]
    unknown = unicode_table.matched(r"\p{Cn}")
    with contextlib.suppress(ValueError):  # tiktoken is older than the table
        unknown |= unicode_table.matched(rf"[^\p{{age:{version}}}]")
    assert differing <= unknown


def test_the_table_can_be_made_again():
    text = unicode_table.table()
    table = (ROOT / "csrc/text/unicode.def").read_text()
    assert text == table or text.splitlines()[0] != table.splitlines()[0], "run dev/unicode_table.py"


def test_every_character_is_split_as_tiktoken_splits_it(gpt2, reference, differing):
    """Each character stands among letters, digits and signs: the ends of words show its class."""
    characters = [c for c in unicode_table.EVERY_CHARACTER if ord(c) not in differing]
    for around in ("a{}a 1{}1 .{}. {}", "{}{} {}\n"):
        text = "".join(around.replace("{}", c) for c in characters[:4000] + characters[4000::37])
        assert gpt2.encode(text.encode()) == reference.encode_ordinary(text)


# ---- ids


def test_every_id_decodes_and_encodes_as_tiktokens(gpt2, reference):
    for i in range(50257):
        piece = reference.decode_single_token_bytes(i)
        assert gpt2.decode([i]) == piece
        try:
            text = piece.decode()
        except UnicodeDecodeError:
            continue
        assert gpt2.encode(piece) == reference.encode_ordinary(text)
    assert lib.llmc_tokenizer_eot(gpt2.handle) == 50256
    assert 50256 not in gpt2.encode(EOT)


ALPHABETS = st.one_of(
    st.text(),
    st.text("ab 'sltrvemd\n\t 12é—.!\r\x0b\x1c\x85\xa0\u2003\u200b"),
    st.text(st.characters(max_codepoint=0x300)),
    st.text("漢字かなカナ한글🐻👨\u200d👩\ufe0f\u0301١٢³½Ⅷ 1.a"),
    st.lists(st.sampled_from(["'s", "'ll", "'RE", "'", " ", "  ", "\n\n", "\u3000", "we", "x", "42"])).map(
        "".join
    ),
)


@pytest.fixture(scope="module")
def same(gpt2, reference):
    def check(text: str) -> None:
        ids = gpt2.encode(text.encode())
        assert ids == reference.encode_ordinary(text)
        assert gpt2.decode(ids) == text.encode()

    return check


def test_fuzzed_text_encodes_as_in_tiktoken(same, differing):
    @SETTINGS
    @given(ALPHABETS)
    @example("")
    @example("  leading,   inner   and trailing  ")
    @example("I'll we've 'tis 'S 'sa ''s\n\n\n  x\n 9\u00a0y\u2003 ")
    @example(" \u3000\n")
    @example("a\0b\x7f")
    def check(text):
        if differing.isdisjoint(map(ord, text)):
            same(text)

    check()


def test_random_code_points_of_all_planes(same, differing):
    rng = random.Random(5)
    for most in (0x80, 0x800, 0x3000, 0x10000, 0x20000, 0x110000):
        picks = (rng.randrange(most) for _ in range(20_000))
        same("".join(chr(c) for c in picks if not 0xD800 <= c < 0xE000 and c not in differing))


def test_long_words_of_common_letters(same):
    """Many merges compete here, and a part that was merged away must not come back."""
    rng = random.Random(7)
    for letters in ("etaoinshrdlu", "ab", "aeéo", "=-_*", "0123456789"):
        for size in (20, 200, 20_000):
            same("".join(rng.choices(letters, k=size)))


def test_one_long_word_takes_no_square(gpt2, reference):
    for word in ("a" * 10**6, "ab" * 200_000 + "!" * 100_000, " " * 300_000 + "x", "é" * 200_000):
        began = time.perf_counter()
        ids = gpt2.encode(word.encode())
        assert time.perf_counter() - began < 20, "1 MB takes well under a second"
        if " " not in word:
            assert ids == reference.encode_ordinary(word)
        assert gpt2.decode(ids) == word.encode()


def test_what_is_no_utf8_is_named_as_python_names_it(gpt2, vocab_bpe):
    python = Tokenizer.from_bytes(vocab_bpe, "vocab.bpe")

    @SETTINGS
    @given(st.lists(st.one_of(st.binary(max_size=5), st.text(max_size=5).map(str.encode))).map(b"".join))
    @example(b"abc\xc3")
    @example(b"12345678\xe2\x82")
    @example(b"\xed\xa0\x80")
    @example(b"\xc0\x80")
    @example(b"\xf4\x90\x80\x80")
    @example(b"\xe0\x80\x80")
    def check(data):
        try:
            expected = python.encode_bytes(data)
        except DataError as e:
            with pytest.raises(_ffi.InvalidArgument, match=re.escape(str(e))):
                gpt2.encode(data)
        else:
            assert gpt2.encode(data) == expected

    check()


def test_a_short_buffer_is_not_overrun(gpt2):
    out = ffi.new("int[]", [-7] * 4)
    text = b"It wasn't me, qwxzv"
    assert lib.llmc_tokenizer_encode(gpt2.handle, text, len(text), out, 3) == len(gpt2.encode(text)) > 4
    assert list(out)[:3] == gpt2.encode(text)[:3] and out[3] == -7


# ---- the files


def test_any_50000_merges_are_a_vocabulary():
    python = Tokenizer.from_bytes(made_up_vocab_bpe(), "vocab.bpe")
    assert (python.name, python.vocab_size, python.eot) == ("bpe", 50257, 50256)
    assert InC(made_up_vocab_bpe()).encode("abcdé e".encode()) == python.encode("abcdé e")


def test_vocab_bpe_becomes_a_tokenizer_bin_that_travels(gpt2, vocab_bpe, tmp_path):
    (tmp_path / "vocab.bpe").write_bytes(vocab_bpe)
    python = Tokenizer.load(tmp_path / "vocab.bpe")
    assert (python.name, python.kind, python.pieces) == ("gpt2", "gpt2", vocabularies.gpt2().pieces)
    python.save(tmp_path / "t.bin")
    assert bytes_of(gpt2) == (tmp_path / "t.bin").read_bytes()
    assert bytes_of(InC(bytes_of(gpt2))) == bytes_of(gpt2)
    out = ffi.new("llmc_tokenizer **")
    _ffi.check(lib, lib.llmc_tokenizer_open(out, os.fsencode(tmp_path / "vocab.bpe")))
    assert lib.llmc_tokenizer_size(out[0]) == 50257
    lib.llmc_tokenizer_free(out[0])


@pytest.mark.parametrize("version", [1, 2])
def test_llm_cs_own_file_is_known_by_its_table(vocab_bpe, version):
    """Its header does not say how it encodes; a table with one other byte is not taken for it."""
    pieces = bpe.read_vocab_bpe(vocab_bpe, "")
    data = file_bytes(pieces, kind=UNKNOWN, version=version)
    assert Tokenizer.from_bytes(data, "").name == "gpt2"
    text = "It's known, isn't it?"
    assert InC(data).encode(text.encode()) == Tokenizer.from_bytes(data, "").encode(text)
    pieces[1000] = pieces[1000][:-1] + b"\0"
    other = file_bytes(pieces, kind=UNKNOWN, version=version)
    assert Tokenizer.from_bytes(other, "").name == "unknown"
    with pytest.raises(_ffi.InvalidArgument, match="does not say how to encode, nor is its table GPT-2's"):
        InC(other).encode(b"a")


def replaced(line: int, by: bytes):
    def damage(data: bytes) -> bytes:
        lines = data.split(b"\n")
        lines[line - 1] = by
        return b"\n".join(lines)

    return damage


DAMAGED = {
    "another version": (replaced(1, b"#version: 0.3"), ":1: expected #version: 0.2"),
    "CR LF": (lambda data: data.replace(b"\n", b"\r\n"), ":1: the line ends in CR LF"),
    "one CR": (replaced(9, b"e r\r"), ":9: the line ends in CR LF"),
    "only a head": (lambda data: b"#version: 0.2", ":1: the line has no end"),
    "no merges": (lambda data: b"#version: 0.2\n", ":1: expected 50000 merges, found 0"),
    "missing": (lambda data: b"\n".join(data.split(b"\n")[:700]) + b"\n", ":700: expected 50000 merges, found 699"),
    "the last one missing": (lambda data: data[: data.rindex(b"\n", 0, -1) + 1], ":50000: expected 50000 merges, found 49999"),
    "cut in a line": (lambda data: data[:5000], "the line has no end, so the file is truncated"),
    "no last line end": (lambda data: data[:-1], ":50001: the line has no end"),
    "too many": (lambda data: data + b"zz zz\n", ":50002: expected 50000 merges, found more"),
    "an empty line": (replaced(5, b""), ":5: expected two symbols"),
    "one symbol": (replaced(5, b"in"), ":5: expected two symbols"),
    "three symbols": (replaced(5, b"i n g"), ":5: expected two symbols"),
    "two spaces": (replaced(5, b"i  n"), ":5: expected two symbols"),
    "a space first": (replaced(5, b" in"), ":5: expected two symbols"),
    "a space last": (replaced(5, b"in "), ":5: expected two symbols"),
    "unknown symbol": (replaced(7, b"i ngx"), ":7: 'ngx' is neither a byte nor made by a line above"),
    "long unknown symbol": (replaced(7, b"i" + "é".encode() * 300 + b" n"), ":7: 'ié"),
    "no such character": (replaced(7, "i €".encode()), ":7: U\\+20AC stands for no byte"),
    "a tab": (replaced(7, b"i\tn g"), ":7: U\\+0009 stands for no byte"),
    "a soft hyphen": (replaced(7, "i \xad".encode()), ":7: U\\+00AD stands for no byte"),
    "the last hidden byte and on": (replaced(7, "\u0143 \u0144".encode()), ":7: U\\+0144 stands for no byte"),
    "no UTF-8": (replaced(7, b"i n\xff"), ":7: byte \\d+ of the file is no UTF-8"),
    "cut UTF-8": (replaced(7, b"\xc4 n"), ":7: byte \\d+ of the file is no UTF-8"),
    "twice": (replaced(9, "\u0120 t".encode()), ":9: makes the same piece as line 2"),
    "made otherwise": (replaced(4000, b"in g"), ":4000: makes the same piece as line"),
    "binary": (lambda data: b"#version: 0.2\n" + bytes(range(256)) * 9, ":2: "),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_vocab_bpe_is_refused_in_the_same_words(vocab_bpe, case):
    damage, message = DAMAGED[case]
    data = damage(vocab_bpe)
    with pytest.raises(_ffi.BadFile, match=message) as c:
        InC(data)
    with pytest.raises(DataError) as python:
        Tokenizer.from_bytes(data, "tok.bin")
    assert str(c.value) == str(python.value)
    assert "\n" not in str(c.value) and str(c.value).endswith("fetch it again, as binary")


def test_a_piece_longer_than_a_file_can_say_is_refused(vocab_bpe):
    doubling = [b"a" * 2**i + b" " + b"a" * 2**i for i in range(8)]
    data = b"\n".join([b"#version: 0.2", *doubling, b""])
    with pytest.raises(_ffi.BadFile, match=":9: the piece has 256 bytes, expected at most 255") as c:
        InC(data)
    with pytest.raises(DataError) as python:
        bpe.read_vocab_bpe(data, "tok.bin")
    assert str(c.value) == str(python.value)


@SETTINGS
@given(st.data())
def test_any_damage_is_an_error_or_a_tokenizer_in_both(data):
    """The damage is in the head of a vocab.bpe, where every line is read before a missing one is noticed."""
    head = b"#version: 0.2\n\xc4\xa0 t\n\xc4\xa0 a\nh e\ni n\nr e\no n\n\xc4\xa0t he\n"
    damaged = bytearray(head[: data.draw(st.integers(8, len(head)))] + data.draw(st.binary(max_size=4)))
    for _ in range(data.draw(st.integers(0, 3))):
        if len(damaged) > 8:
            at = data.draw(st.integers(8, len(damaged) - 1))
            damaged[at] = data.draw(st.sampled_from(b"\n\r \xc4\xa0\xffat\0"))
    with pytest.raises(_ffi.BadFile) as c:
        InC(bytes(damaged))
    with pytest.raises(DataError) as python:
        Tokenizer.from_bytes(bytes(damaged), "tok.bin")
    assert str(c.value) == str(python.value)


@pytest.mark.parametrize(("pieces", "message"), [
    ([bytes([b]) for b in range(255)], "needs all 256 bytes, found none that is 255"),
    ([*[bytes([b]) for b in range(256)], b"ab", b"ab"], "pieces 256 and 257 are the same"),
])  # fmt: skip
def test_a_table_that_cannot_encode_is_refused(pieces, message):
    with pytest.raises(_ffi.BadFile, match=message):
        InC(file_bytes([*pieces, EOT], kind=BPE))
    with pytest.raises(DataError):
        Tokenizer.from_bytes(file_bytes([*pieces, EOT], kind=BPE), "tok.bin")


# ---- any table


@st.composite
def tables(draw):
    """Bytes and pieces over few letters, with or without merges that lead to them, and a text over the same letters."""
    words = st.text("ab '1é", min_size=2, max_size=6)
    pieces = draw(st.lists(words.map(str.encode), max_size=30, unique=True))
    return [*[bytes([b]) for b in range(256)], *pieces, EOT], draw(st.text("ab '1é", max_size=60))


@SETTINGS
@given(tables())
def test_any_table_encodes_as_in_tiktoken(table):
    pieces, text = table
    in_c = InC(file_bytes(pieces, kind=BPE))
    assert in_c.encode(text.encode()) == Tokenizer(pieces, "gpt2", len(pieces) - 1).encode(text)


@SETTINGS
@given(tables())
def test_the_work_that_is_shown_leads_to_the_same_ids(table):
    pytest.importorskip("regex")
    pieces, text = table
    tokenizer = Tokenizer(pieces, "gpt2", len(pieces) - 1)
    ranks = {p: i for i, p in enumerate(pieces[:-1])}
    last = [list(bpe.merge_steps(word.encode(), ranks))[-1][0] for word in bpe.split_words(text)]
    assert [ranks[part] for parts in last for part in parts] == tokenizer.encode(text)
