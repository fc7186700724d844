"""The engine's tokenizer: its file, greedy longest match against a plain search, bad files."""

from __future__ import annotations

import contextlib
import itertools
import os
import pickle
import struct

import numpy as np
import pytest
from conftest import ffi, lib
from hypothesis import given, settings
from hypothesis import strategies as st

from pyllmc.base.errors import DataError
from pyllmc.engine import _ffi
from pyllmc.text import bpe, tokenizer
from pyllmc.text.vocabularies import train

SETTINGS = settings(max_examples=200)
UNKNOWN, LONGEST, GPT2 = 0, 1, 2
EOT = b"<|endoftext|>"
BYTES = [bytes([b]) for b in range(256)]


def file_bytes(pieces, eot=None, kind=LONGEST, magic=20240328, version=2, n=None, added=()) -> bytes:
    eot = len(pieces) - 1 if eot is None else eot
    head = [magic, version, len(pieces) if n is None else n, eot, kind, len(added), *added[:250]]
    return struct.pack("<256i", *head, *[0] * (256 - len(head))) + b"".join(
        bytes([len(p)]) + p for p in pieces
    )


def made_up_vocab_bpe() -> bytes:
    """As many merges as GPT-2 has, each of two bytes."""
    pairs = itertools.product(bpe.PRINTABLE.values(), repeat=2)
    lines = [" ".join(pair) for pair in itertools.islice(pairs, bpe.MERGES)]
    return "\n".join(["#version: 0.2", *lines, ""]).encode()


class Tokenizer:
    def __init__(self, data: bytes) -> None:
        out = ffi.new("llmc_tokenizer **")
        _ffi.check(lib, lib.llmc_tokenizer_read(out, data, len(data), b"tok.bin"))
        self.handle = ffi.gc(out[0], lib.llmc_tokenizer_free)

    def encode(self, text: bytes) -> list[int]:
        n = _ffi.check(lib, lib.llmc_tokenizer_encode(self.handle, text, len(text), ffi.NULL, 0))
        out = ffi.new("int[]", [-5] * (n + 1))
        assert lib.llmc_tokenizer_encode(self.handle, text, len(text), out, n) == n
        assert out[n] == -5
        return list(out)[:n]

    def decode(self, ids) -> bytes:
        ids = list(map(int, ids))
        n = _ffi.check(lib, lib.llmc_tokenizer_decode(self.handle, ids, len(ids), ffi.NULL, 0))
        out = ffi.new("char[]", b"#" * n + b"!")
        assert lib.llmc_tokenizer_decode(self.handle, ids, len(ids), out, n) == n
        assert ffi.buffer(out)[n : n + 1] == b"!"
        return ffi.buffer(out)[:n]


def greedy(pieces, text: bytes) -> list[int]:
    ids, table = [], {p: i for i, p in enumerate(pieces)}
    while text:
        length = max(n for n in range(1, len(text) + 1) if text[:n] in table)
        ids.append(table[text[:length]])
        text = text[length:]
    return ids


def test_byte_vocabulary_round_trips_everything():
    tokenizer = Tokenizer(file_bytes([*BYTES, EOT]))
    text = bytes(range(256)) + "Zwölf Bären 🐻\0<|endoftext|>".encode()
    assert tokenizer.encode(text) == list(text)
    assert tokenizer.decode(text) == text
    assert lib.llmc_tokenizer_size(tokenizer.handle) == 257
    assert lib.llmc_tokenizer_eot(tokenizer.handle) == 256
    assert tokenizer.decode([256]) == EOT
    assert tokenizer.encode(b"") == []


@SETTINGS
@given(st.sets(st.binary(min_size=1, max_size=5), max_size=40), st.lists(st.integers(0, 10**6), max_size=30))
def test_longest_match(words, picks):
    """The texts are made of the pieces themselves, so that long ones occur."""
    pieces = [*BYTES, *sorted(w for w in words if len(w) > 1), EOT]
    text = b"".join(pieces[pick % (len(pieces) - 1)] for pick in picks)
    tokenizer = Tokenizer(file_bytes(pieces))
    ids = tokenizer.encode(text)
    assert ids == greedy(pieces[:-1], text)
    assert tokenizer.decode(ids) == text


def test_long_and_nested_pieces():
    pieces = [b"a" * n for n in range(1, 256)]
    tokenizer = Tokenizer(file_bytes(pieces, eot=-1))
    assert tokenizer.encode(b"a" * 600) == [254, 254, 89]
    assert lib.llmc_tokenizer_eot(tokenizer.handle) == -1


def test_eot_is_never_encoded():
    tokenizer = Tokenizer(file_bytes([b"<", b"|", b"x", EOT, b"x>"], eot=3))
    assert tokenizer.encode(b"<|x>") == [0, 1, 4]
    with pytest.raises(_ffi.InvalidArgument, match="character 'e'"):
        tokenizer.encode(EOT)


def test_unknown_character_lists_the_alphabet():
    tokenizer = Tokenizer(file_bytes([b"a", "ö".encode(), b"\n", b"b", EOT]))
    with pytest.raises(
        _ffi.InvalidArgument, match=r"character 'é' \(byte 195 at byte 3\).* it has only 'aö\\nb': change"
    ):
        tokenizer.encode("aöéb".encode())


MANY = [chr(0x4E00 + i).encode() for i in range(5000)]


@pytest.mark.parametrize("text", ["aé", b"a\xff\xff", b"a\xe2\x82", "a\x7f", "a\t", "a€", b"a\x80"])
@pytest.mark.parametrize("pieces", [[b"a"], [b"a", b"\n", b"\t.", b"\x01", b"\xc3"], [b"a", *MANY]], ids=len)
def test_c_and_python_refuse_a_character_in_the_same_words(pieces, text):
    text = text if isinstance(text, bytes) else text.encode()
    with pytest.raises(_ffi.InvalidArgument) as c:
        Tokenizer(file_bytes([*pieces, EOT])).encode(text)
    with pytest.raises(DataError) as python:
        tokenizer.Tokenizer([*pieces, EOT], "longest", len(pieces)).encode_bytes(text)
    assert str(c.value) == str(python.value)
    assert "\n" not in str(c.value)


def test_a_file_that_does_not_say_how_to_encode():
    unknown = Tokenizer(file_bytes([*BYTES, EOT], kind=UNKNOWN))
    assert unknown.decode([72, 105]) == b"Hi"
    with pytest.raises(_ffi.InvalidArgument) as c:
        unknown.encode(b"Hi")
    with pytest.raises(DataError) as python:
        tokenizer.Tokenizer([*BYTES, EOT], "unknown", 256).encode("Hi")
    assert str(c.value) == str(python.value)


def test_version_1_is_gpt2():
    pieces = [str(i).encode() for i in range(50257)]
    tokenizer = Tokenizer(file_bytes(pieces, version=1, eot=0, kind=0))
    assert lib.llmc_tokenizer_eot(tokenizer.handle) == 50256
    assert tokenizer.decode([7, 50256]) == b"750256"


def test_ids_outside():
    tokenizer = Tokenizer(file_bytes([b"a", EOT]))
    for bad in (-1, 2, 2**31 - 1):
        with pytest.raises(_ffi.InvalidArgument, match=rf"ids\[1\] = {bad} is outside \[0, 2\)"):
            tokenizer.decode([0, bad])


def test_short_buffers_are_not_overrun():
    tokenizer = Tokenizer(file_bytes([b"abc", b"d", EOT]))
    out = ffi.new("char[]", b"........")
    assert lib.llmc_tokenizer_decode(tokenizer.handle, [0, 1, 0], 3, out, 5) == 7
    assert ffi.string(out) == b"abcda..."


BAD = {
    "empty": (b"", "expected a header of 1024 bytes, found 0"),
    "short header": (file_bytes([b"a"])[:1023], "found 1023"),
    "magic": (
        file_bytes([b"a"], magic=7),
        "something else, not a tokenizer file: expected magic 20240328, found 7",
    ),
    "tokens": (file_bytes([b"a"], magic=20240520), "is a token file, not a tokenizer"),
    "version": (file_bytes([b"a"], version=3), "expected version 1 or 2, found 3"),
    "version 1": (file_bytes([b"a"], version=1), "version 1 has 50257 pieces, found 1"),
    "no pieces": (file_bytes([], eot=-1), "0 pieces do not fit"),
    "negative": (file_bytes([b"a"], n=-1), "-1 pieces do not fit"),
    "huge": (file_bytes([b"a"], n=2**31 - 1), "2147483647 pieces do not fit"),
    "more than there are": (file_bytes([b"a"], n=2), "truncated: expected 2 pieces, found 1"),
    "cut in a piece": (file_bytes([b"abc"])[:-1], "truncated: expected 1 pieces, found 0"),
    "trailing": (file_bytes([b"abc"]) + b"12", "2 trailing bytes"),
    "empty piece": (file_bytes([b"a", b""]), "piece 1 is empty"),
    "eot": (file_bytes([b"a"], eot=1), r"EOT id 1 is outside \[0, 1\)"),
    "eot below": (file_bytes([b"a"], eot=-2), "EOT id -2"),
    "kind": (file_bytes([b"a"], kind=3), r"expected a kind in 0..2, found 3"),
    "twice": (file_bytes([b"a", b"b", b"a"], eot=-1), "pieces 0 and 2 are the same"),
    "many added": (file_bytes(BYTES, -1, GPT2, added=range(251)), "expected 0..250 added pieces, found 251"),
    "added twice": (file_bytes([*BYTES, b"<a>"], -1, GPT2, added=(256, 256)), "ascend"),
    "added beyond": (
        file_bytes([*BYTES, b"<a>"], -1, GPT2, added=(257,)),
        r"added id 257 .* outside \[0, 257\)",
    ),
    "added below": (file_bytes([*BYTES, b"<a>"], -1, GPT2, added=(-1,)), "added id -1 "),
    "added EOT": (file_bytes([*BYTES, EOT], None, GPT2, added=(256,)), "added id 256 .*, is EOT"),
    "added bytes": (file_bytes([*BYTES, b"\xff<"], -1, GPT2, added=(256,)), "added piece .* is no UTF-8"),
    "added, too": (
        file_bytes([*BYTES, b"ab", b"ab"], -1, GPT2, added=(256,)),
        "are the same|stands in the table twice",
    ),
    "added byte": (file_bytes(BYTES, -1, GPT2, added=(65,)), "a gpt2 table needs all 256 bytes"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_file(tmp_path, case):
    data, message = BAD[case]
    with pytest.raises(_ffi.BadFile, match=message):
        Tokenizer(data)
    path = tmp_path / "t.bin"
    path.write_bytes(data)
    out = ffi.new("llmc_tokenizer **")
    with pytest.raises(_ffi.BadFile, match=message):
        _ffi.check(lib, lib.llmc_tokenizer_open(out, os.fsencode(path)))
    assert out[0] == ffi.NULL
    if "added" in case:
        with pytest.raises(DataError, match=message):
            tokenizer.Tokenizer.from_bytes(data, "t.bin")


def test_open_and_travel(tmp_path):
    data = file_bytes([*BYTES, EOT])
    path = tmp_path / "tökenizer.bin"
    path.write_bytes(data)
    out, size = ffi.new("llmc_tokenizer **"), ffi.new("int64_t *")
    _ffi.check(lib, lib.llmc_tokenizer_open(out, os.fsencode(path)))
    assert bytes(ffi.buffer(lib.llmc_tokenizer_bytes(out[0], size), len(data))) == data
    assert size[0] == len(data)
    lib.llmc_tokenizer_free(out[0])
    for missing in (tmp_path / "none", tmp_path):
        with pytest.raises(_ffi.SystemFailure, match=r"cannot be opened|is a directory"):
            _ffi.check(lib, lib.llmc_tokenizer_open(out, os.fsencode(missing)))


@SETTINGS
@given(st.data())
def test_every_damaged_file_is_refused_or_works(data):
    whole = file_bytes([b"a", b"bc", b"def", EOT], kind=data.draw(st.integers(0, 2)))
    damaged = bytearray(whole[: data.draw(st.integers(0, len(whole)))] + data.draw(st.binary(max_size=4)))
    for _ in range(data.draw(st.integers(0, 3))):
        if damaged:
            at = data.draw(
                st.one_of(st.integers(0, min(19, len(damaged) - 1)), st.integers(0, len(damaged) - 1))
            )
            damaged[at] = data.draw(st.integers(0, 255))
    with contextlib.suppress(_ffi.LlmcError):
        tokenizer = Tokenizer(bytes(damaged))
        assert tokenizer.decode(np.arange(lib.llmc_tokenizer_size(tokenizer.handle)))
        tokenizer.encode(b"abcdef")


def test_agrees_with_python():
    text = "Once upon a time, a fox and a Bär met. They didn't 12 fight!\n\nThe end."
    for kind in ("byte", "char", "word"):
        theirs = train(kind, [text])
        ours = Tokenizer(file_bytes(theirs.pieces, eot=theirs.eot))
        assert ours.encode(text.encode()) == theirs.encode(text)


ADDED = ["<|a|>", "<|a", "[PAD]", "[PAD] ", "é>", "  ", "\n<b>"]


@pytest.fixture(scope="module")
def with_added():
    """Byte pairs with added pieces at the beginning, in the middle and at the end: in Python, in C and of `tokenizers`."""
    formats = pytest.importorskip("pyllmc.text.tokenizer_formats")
    pytest.importorskip("tokenizers")
    learnt = train("bpe", ["the cat [PAD] said <|a|> to the PAD at a|> <b>\n" * 20], 290).pieces[:-1]
    pieces = [EOT, *(a.encode() for a in ADDED[:2]), *learnt, *(a.encode() for a in ADDED[2:])]
    added = [1, 2, *range(len(learnt) + 3, len(pieces))]
    ours = tokenizer.Tokenizer(pieces, "gpt2", 0, added)
    assert ours.to_bytes() == file_bytes(pieces, 0, GPT2, added=added)
    assert pickle.loads(pickle.dumps(ours)).to_bytes() == ours.to_bytes()
    return ours, Tokenizer(ours.to_bytes()), formats.hf_tokenizer(ours)


@SETTINGS
@given(
    st.lists(st.sampled_from([*ADDED, "the", " cat", "<", "|", "a", ">", " ", "é", "\n", "PAD", "[", "]"]))
)
def test_added_pieces_come_before_the_byte_pairs(with_added, parts):
    ours, c, theirs = with_added
    text = "".join(parts)
    ids = ours.encode(text)
    assert c.encode(text.encode()) == ids == theirs.encode(text).ids
    assert c.decode(ids).decode() == text == ours.decode(ids)


def test_bytes_that_are_no_text_are_counted_from_the_beginning(with_added):
    ours, c, _ = with_added
    for encode in (ours.encode_bytes, c.encode):
        with pytest.raises(_ffi.LlmcError, match="byte 7 is no UTF-8"):
            encode(b"<|a|>ab\xff")
