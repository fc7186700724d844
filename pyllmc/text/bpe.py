"""The byte-pair encoding of GPT-2: the split of text, vocab.bpe, the merges one by one.

GPT2_SPLIT cuts text into words. A word begins as its bytes. Two neighbours that together are a piece may merge. The pair
whose piece has the lowest id merges first, the leftmost among equals. So the table of pieces suffices: ids are ranks.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

from pyllmc.base.errors import BadFile, DataError, need

# OpenAI's pattern with possessive quantifiers (++): they match the same, and cannot backtrack
GPT2_SPLIT = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
GPT2_VOCAB = 50257
NANOGPT_VOCAB = 50304  # GPT2_VOCAB as nanoGPT rounds it up
GPT2_CRC = 0x4565975D  # the CRC-32 of GPT-2's pieces in the form of a tokenizer.bin
EOT_PIECE = b"<|endoftext|>"
MAX_PIECE = 255  # bytes, because a piece's length is a u8

# The bytes as vocab.bpe writes them, in the order of their ids: first those that Latin-1 prints, as themselves; then the
# others, as U+0100 and on.
_PRINTED = [*range(33, 127), *range(161, 173), *range(174, 256)]
_HIDDEN = [b for b in range(256) if b not in _PRINTED]
PRINTABLE = {**{b: chr(b) for b in _PRINTED}, **{b: chr(256 + i) for i, b in enumerate(_HIDDEN)}}
BYTE_OF = {character: b for b, character in PRINTABLE.items()}


def printed_bytes(symbol: str) -> bytes:
    """The bytes of a symbol in the alphabet of vocab.bpe."""
    return bytes(BYTE_OF[character] for character in symbol)


def packed(pieces: Iterable[bytes]) -> bytes:
    """The pieces in the form of a tokenizer.bin: n times {u8 length, bytes}."""
    return b"".join(bytes([len(p)]) + p for p in pieces)


def unpacked(data: bytes) -> list[bytes]:
    """The pieces that packed() has packed."""
    pieces, at = [], 0
    while at < len(data):
        pieces.append(data[at + 1 : at + 1 + data[at]])
        at += 1 + data[at]
    return pieces


def is_gpt2(pieces: Sequence[bytes], eot: int) -> bool:
    """True if a table is GPT-2's own."""
    return (len(pieces), eot) == (GPT2_VOCAB, GPT2_VOCAB - 1) and zlib.crc32(packed(pieces)) == GPT2_CRC


# ---------------------------------------------------------------------------------------------------------
# vocab.bpe

VERSION = b"#version: 0.2"
MERGES = GPT2_VOCAB - 256 - 1


def is_vocab_bpe(data: bytes) -> bool:
    return data.startswith(VERSION[:8])


def read_vocab_bpe(data: bytes, name: str) -> list[bytes]:
    """GPT-2's pieces in the order of their ids; csrc/text/vocabbpe.c reads the same. Raises BadFile."""
    pieces = [bytes([b]) for b in PRINTABLE]
    ids = {p: i for i, p in enumerate(pieces)}
    line = at = 0
    try:
        while at < len(data):
            line, end = line + 1, data.find(b"\n", at)
            if line > MERGES + 1:
                raise DataError(f"expected {MERGES} merges, found more")
            if end < 0:
                raise DataError("the line has no end, so the file is truncated")
            if data[end - 1 : end] == b"\r" and end > at:
                raise DataError("the line ends in CR LF, expected LF")
            if line == 1 and data[at:end] != VERSION:
                raise DataError(f"expected {VERSION.decode()}, found another")
            if line > 1:
                piece = _merged(data, at, end, ids)
                ids[piece] = len(pieces)
                pieces.append(piece)
            at = end + 1
        if line <= MERGES:
            raise DataError(f"expected {MERGES} merges, found {line - 1}")
    except DataError as e:
        raise BadFile(f"{name}:{line}: {e}; fetch it again, as binary") from e
    return [*pieces, EOT_PIECE]


def _merged(data: bytes, at: int, end: int, ids: Mapping[bytes, int]) -> bytes:
    """The piece that the line data[at:end] makes."""
    symbols = data[at:end].split(b" ")
    if len(symbols) != 2 or not all(symbols):
        raise DataError("expected two symbols with one space between")
    piece = _symbol(symbols[0], at, ids) + _symbol(symbols[1], at + len(symbols[0]) + 1, ids)
    if len(piece) > MAX_PIECE:
        raise DataError(f"the piece has {len(piece)} bytes, expected at most {MAX_PIECE}")
    if piece in ids:
        raise DataError(f"makes the same piece as line {ids[piece] - 256 + 2}")
    return piece


def _symbol(symbol: bytes, at: int, ids: Mapping[bytes, int]) -> bytes:
    """The bytes of a symbol. `at`: its place in the file."""
    bad = None
    try:
        text = symbol.decode("utf-8")
    except UnicodeDecodeError as e:
        text, bad = symbol[: e.start].decode("utf-8"), at + e.start
    for character in text:
        if character not in BYTE_OF:
            raise DataError(f"U+{ord(character):04X} stands for no byte in GPT-2's alphabet")
    if bad is not None:
        raise DataError(f"byte {bad} of the file is no UTF-8")
    piece = printed_bytes(text)
    if piece not in ids:
        shown = symbol[:99].decode("utf-8", "ignore")
        raise DataError(f"'{shown}' is neither a byte nor made by a line above")
    return piece


# ---------------------------------------------------------------------------------------------------------
# the merges one by one, to be shown


def split_words(text: str) -> list[str]:
    """The words of a text; each is encoded by itself. Needs the package regex, which comes with tiktoken."""
    return need("regex", "showing how text is split").findall(GPT2_SPLIT, text)  # type: ignore[no-any-return]


def merge_steps(word: bytes, ranks: Mapping[bytes, int]) -> Iterator[tuple[list[bytes], bytes]]:
    """Yield the parts of a word and the piece that the last merge made; at first its bytes, and b""."""
    parts = [word[i : i + 1] for i in range(len(word))]
    yield parts, b""
    while pairs := [a + b for a, b in zip(parts, parts[1:]) if a + b in ranks]:
        made = min(pairs, key=ranks.__getitem__)
        at = next(i for i in range(len(parts)) if parts[i] + parts[i + 1] == made)
        parts = [*parts[:at], made, *parts[at + 2 :]]
        yield parts, made
    if word in ranks and len(parts) > 1:  # a word that is a piece becomes one, even if no merge makes it
        yield [word], word
