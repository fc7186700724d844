"""csrc/base/utf8.c against Python's own decoder."""

from __future__ import annotations

import os
import shutil
import subprocess

import cffi
import pytest
from conftest import ROOT
from hypothesis import example, given, settings
from hypothesis import strategies as st

COMPILER = shutil.which(os.environ.get("CC", "cc"))
SOURCE = ROOT / "csrc/base/utf8.c"
SETTINGS = settings(max_examples=400)
TEXTS = st.lists(
    st.one_of(
        st.text(max_size=3).map(str.encode),
        st.binary(max_size=3),
        st.sampled_from([b"\xe2\x82", b"\xf0\x9f\x90", b"\xed\xa0", b"\xc0\x80", b"\xf5", b"12345678"]),
    )
).map(b"".join)


@pytest.fixture(scope="module")
def utf8(tmp_path_factory):
    """The functions of utf8.c, which the library does not export."""
    if COMPILER is None:
        pytest.skip("needs a C compiler")
    library = tmp_path_factory.mktemp("utf8") / "utf8.so"
    command = [COMPILER, "-std=gnu11", "-Wall", "-shared", "-fPIC", f"-I{ROOT / 'csrc'}"]
    subprocess.run([*command, SOURCE, "-o", library], check=True)
    ffi = cffi.FFI()
    ffi.cdef("int utf8_decode(const char *text, int64_t n, uint32_t *code);"
             "int64_t utf8_whole(const char *text, int64_t n); int64_t utf8_check(const char *text, int64_t n);")  # fmt: skip
    return ffi.dlopen(str(library))


CODE = cffi.FFI().new("uint32_t *")


def test_every_character_is_decoded(utf8):
    for code in (*range(0xD800), *range(0xE000, 0x110000, 17), 0x10FFFF):
        data = chr(code).encode()
        assert utf8.utf8_decode(data, len(data), CODE) == len(data) and CODE[0] == code
        for n in range(1, len(data)):
            assert utf8.utf8_decode(data, n, CODE) == 0


def test_whatever_begins_no_character_is_refused(utf8):
    """All pairs of bytes, with and without more bytes after them."""
    for a in range(256):
        for b in range(256):
            data = bytes([a, b]) + b"\x80\x80"
            legal = any(_is_text(data[:n]) for n in range(1, 5))
            assert (utf8.utf8_decode(data, 4, CODE) > 0) == legal


def _is_text(data: bytes) -> bool:
    try:
        return len(data.decode()) == 1
    except UnicodeDecodeError:
        return False


def test_what_is_whole_can_be_shown(utf8):
    """All bytes count but a tail that begins some character."""
    codes = (c for c in range(0x80, 0x110000, 64) if not 0xD800 <= c < 0xE000)
    cut = {chr(c).encode()[:n] for c in codes for n in range(1, len(chr(c).encode()))}

    @SETTINGS
    @given(TEXTS)
    @example(b"")
    def check(data):
        waiting = next((n for n in (1, 2, 3) if data[-n:] in cut and n <= len(data)), 0)
        assert utf8.utf8_whole(data, len(data)) == len(data) - waiting

    check()


def test_the_first_byte_that_is_no_text_is_found(utf8):
    @SETTINGS
    @given(TEXTS)
    @example(b"1234567\xff")
    @example(b"12345678\xff")
    def check(data):
        try:
            data.decode()
            expected = len(data)
        except UnicodeDecodeError as e:
            expected = e.start
        assert utf8.utf8_check(data, len(data)) == expected

    check()
