"""The one tokenizer class for every vocabulary: a table id -> bytes, a way to encode, an end-of-text id.

The file is llm.c's tokenizer.bin: a header of 256 int32 (20240328, 2, n, EOT id or -1, kind), then n times
{u8 length, bytes}. header[4], 0 in llm.c's own files, says how text becomes ids:

    0 unknown   decode only; but if the table is GPT-2's, as in llm.c's files, it encodes as gpt2
    1 longest   at each byte, the longest piece of the table that matches; the EOT piece never does
    2 gpt2      byte-pair encoding with GPT-2's split of text, run by tiktoken on this very table

`byte`, `char` and `word` vocabularies are tables for `longest`; `gpt2` and `bpe` vocabularies are tables for `gpt2`.
A table for `gpt2` may have added pieces (pyllmc/text/added.py).
OpenAI's vocab.bpe is read as well. Text never becomes EOT: the characters "<|endoftext|>" in a document are ordinary
ones for every kind (for gpt2: tiktoken's encode_ordinary). Only gpt2 needs a package: tiktoken, to encode.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from pyllmc.base.checks import as_bytes, as_int, as_path, as_text, refuse
from pyllmc.base.errors import BadFile, DataError, need
from pyllmc.base.files import atomic_path, flush_to_disk, reading, writing
from pyllmc.text.added import cutter, of_header, problem
from pyllmc.text.bins import HEADER_BYTES, TOKENIZER_MAGIC, pack_header, unpack_header
from pyllmc.text.bpe import GPT2_SPLIT, GPT2_VOCAB, MAX_PIECE, is_gpt2, is_vocab_bpe, packed, read_vocab_bpe

VERSION = 2
KINDS = ("unknown", "longest", "gpt2")  # header[4] is an index of this
BYTES = [bytes([b]) for b in range(256)]
ALPHABET_SHOWN = 396  # bytes of the alphabet in a message at most


class Tokenizer:
    """A table of byte strings with an encoder. Immutable; build with load() or vocabularies.train().

    pieces: the bytes of each id. kind: one of KINDS. eot: the id that separates documents, or -1. added: the ids of a gpt2
    table that text becomes before the byte pairs, at most added.MOST.
    """

    __module__ = "pyllmc"  # pickle writes this name

    def __init__(self, pieces: Sequence[bytes], kind: str, eot: int, added: Iterable[int] = ()):
        if isinstance(pieces, (str, bytes)) or not isinstance(pieces, Sequence):
            refuse("pieces", pieces, "a list of bytes")
        self.pieces = [as_bytes("piece", piece) for piece in pieces]
        self.kind, self.eot = as_text("kind", kind), as_int("eot", eot)
        self.added = tuple(sorted(as_ids(added)))
        if fault := _table_problem(self):
            raise DataError(f"bad tokenizer: {fault}")
        self._encoder: Callable[[bytes], list[int]] | None = None

    def __reduce__(self) -> Any:
        return Tokenizer, (self.pieces, self.kind, self.eot, self.added)

    def __repr__(self) -> str:
        return f"<Tokenizer {self.name} V={self.vocab_size} eot={self.eot}>"

    @property
    def vocab_size(self) -> int:
        """V: the number of ids, EOT included."""
        return len(self.pieces)

    @property
    def name(self) -> str:
        """The vocabulary's name, told from the table: byte, char, word, gpt2, bpe or unknown."""
        if self.kind == "gpt2":
            return "gpt2" if is_gpt2(self.pieces, self.eot) else "bpe"
        if self.kind != "longest":
            return self.kind
        text_pieces = [p for i, p in enumerate(self.pieces) if i != self.eot]
        if text_pieces == BYTES:
            return "byte"
        return "char" if all(len(p.decode("utf-8", "ignore")) == 1 for p in text_pieces) else "word"

    @property
    def ranks(self) -> dict[bytes, int]:
        """The pieces that byte pairs can become, with their ids: all but EOT and the added ones."""
        apart = {self.eot, *self.added}
        return {piece: i for i, piece in enumerate(self.pieces) if i not in apart}

    def encode(self, text: str) -> list[int]:
        """The ids of a text, never EOT. Raises DataError if the vocabulary lacks a character."""
        return self.encode_bytes(utf8(as_text("text", text)))

    def encode_bytes(self, data: bytes) -> list[int]:
        data = as_bytes("data", data)
        if self._encoder is None:
            self._encoder = ENCODERS[self.kind](self)
        return self._encoder(data)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids. Bytes that are no UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        ids = as_ids(ids)
        V = self.vocab_size
        if ids and not 0 <= min(ids) <= max(ids) < V:
            bad = next(i for i in ids if not 0 <= i < V)
            raise DataError(f"id {bad} is outside [0, {V}): use the tokenizer the model was trained with")
        return b"".join([self.pieces[i] for i in ids])

    def alphabet(self) -> str:
        """The characters that are pieces, as shown() writes them. If there are many: the first ones, then '...'."""
        found = ""
        for i, piece in enumerate(self.pieces):
            if i != self.eot and _is_character(piece):
                if len((found + shown(piece)).encode()) > ALPHABET_SHOWN:
                    return found + "..."
                found += shown(piece)
        return found

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write tokenizer.bin, whole or not at all."""
        path = as_path("path", path)
        with atomic_path(path) as tmp, writing(path), open(tmp, "wb") as f:
            f.write(self.to_bytes())
            flush_to_disk(f)

    def to_bytes(self) -> bytes:
        """The bytes of a tokenizer.bin. from_bytes() reads them."""
        head = (TOKENIZER_MAGIC, VERSION, self.vocab_size, self.eot, KINDS.index(self.kind))
        return pack_header(*head, len(self.added), *self.added) + packed(self.pieces)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Tokenizer:
        """Read a tokenizer.bin, ours or llm.c's (version 1 or 2), or vocab.bpe. Raises DataError."""
        path = as_path("path", path)
        with reading(path), open(path, "rb") as f:
            return Tokenizer.from_bytes(f.read(), path)

    @staticmethod
    def from_bytes(data: bytes, name: str) -> Tokenizer:
        """The tokenizer of the bytes of such a file; a checkpoint carries them, too. `name`: its name in errors."""
        data, name = as_bytes("data", data), as_text("name", name)
        if is_vocab_bpe(data):
            return Tokenizer(read_vocab_bpe(data, name), "gpt2", GPT2_VOCAB - 1)
        try:
            return _parse(data)
        except DataError as e:
            raise BadFile(f"{name}: {e}; write it again with python -m pyllmc.prepro") from e


def as_ids(ids: Iterable[int]) -> list[int]:
    """The whole numbers in anything that can be iterated, such as an array of numpy or PyTorch."""
    if isinstance(ids, (str, bytes)) or not isinstance(ids, Iterable):
        refuse("ids", ids, "a list of ids")
    try:
        return [as_int("id", i, 1024) for i in ids]  # 1024 bits: the vocabulary, checked later, is the bound
    except TypeError:  # an array of dimension 0
        refuse("ids", ids, "a list of ids")


# ---------------------------------------------------------------------------------------------------------
# the file


def _parse(data: bytes) -> Tokenizer:
    if len(data) < HEADER_BYTES:
        raise DataError(f"expected a header of {HEADER_BYTES} bytes, found {len(data)}")
    header = unpack_header(data[:HEADER_BYTES])
    magic, version, n, eot, kind = header[:5]
    if magic != TOKENIZER_MAGIC:
        raise DataError(f"expected magic {TOKENIZER_MAGIC} of a tokenizer file, found {magic}")
    if version == 1:  # llm.c's first files hold GPT-2's table without an EOT id
        eot, kind = GPT2_VOCAB - 1, 0
        if n != GPT2_VOCAB:
            raise DataError(f"version 1 has {GPT2_VOCAB} pieces, found {n}")
    elif version != VERSION:
        raise DataError(f"expected version 1 or {VERSION}, found {version}")
    if not 0 <= kind < len(KINDS):
        raise DataError(f"expected a kind in 0..{len(KINDS) - 1}, found {kind}")
    pieces = _parse_pieces(data, n)
    if KINDS[kind] == "gpt2":
        return Tokenizer(pieces, "gpt2", eot, of_header(header))
    return Tokenizer(
        pieces, "gpt2" if KINDS[kind] == "unknown" and is_gpt2(pieces, eot) else KINDS[kind], eot
    )


def _parse_pieces(data: bytes, n: int) -> list[bytes]:
    pieces: list[bytes] = []
    at = HEADER_BYTES
    while len(pieces) < n and at < len(data):
        end = at + 1 + data[at]
        pieces.append(data[at + 1 : end])
        at = end
    if len(pieces) < n or at > len(data):
        raise DataError(f"truncated: expected {n} pieces, found {len(pieces) - (at > len(data))}")
    if at < len(data):
        raise DataError(f"{len(data) - at} trailing bytes after {n} pieces")
    return pieces


def _table_problem(tokenizer: Tokenizer) -> str:
    """The fault of a table in words, or ''."""
    pieces, kind, eot, added = tokenizer.pieces, tokenizer.kind, tokenizer.eot, tokenizer.added
    if kind not in KINDS:
        return f"kind {kind!r} is not one of {', '.join(KINDS)}"
    if not pieces:
        return "the table has no pieces"
    if not -1 <= eot < len(pieces):
        return f"EOT id {eot} is outside [0, {len(pieces)})"
    lengths = set(map(len, pieces))
    if 0 in lengths or max(lengths) > MAX_PIECE:
        return f"a piece has {0 if 0 in lengths else max(lengths)} bytes, not 1..{MAX_PIECE}"
    text_pieces = [p for i, p in enumerate(pieces) if i != eot]
    if kind != "unknown" and len(set(text_pieces)) < len(text_pieces):
        twice = Counter(text_pieces).most_common(1)[0][0]
        return f"piece {twice!r} stands in the table twice"
    if added and (
        fault := "only a gpt2 table has added pieces" if kind != "gpt2" else problem(pieces, eot, added)
    ):
        return fault
    if kind == "gpt2" and not set(BYTES) <= set(tokenizer.ranks):
        return "a gpt2 table needs all 256 bytes"
    return ""


# ---------------------------------------------------------------------------------------------------------
# encoders: Tokenizer -> function from bytes to ids


def utf8(text: str) -> bytes:
    """The UTF-8 of a text. Raises DataError for a lone surrogate."""
    check_characters(text)
    return text.encode("utf-8")


def check_characters(text: str, what: str = "the text", where: str = "") -> None:
    """Raise DataError for a lone surrogate, which UTF-8 cannot write. The message names it and its place, `where`."""
    if text.isascii():
        return
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as e:
        raise DataError(
            f"{where}character {e.start} of {what} is a lone surrogate (\\u{ord(text[e.start]):04x}), which no UTF-8 can "
            "write: remove it or put the whole character there"
        ) from e


def _longest_encoder(tokenizer: Tokenizer) -> Callable[[bytes], list[int]]:
    """An encoder that takes the longest match. Two bytes tell the lengths worth trying, so a token takes few look-ups."""
    table = {p: i for i, p in enumerate(tokenizer.pieces) if i != tokenizer.eot}
    lengths = _candidate_lengths(table)

    def encode(data: bytes) -> list[int]:
        ids: list[int] = []
        append, get, candidates, single = ids.append, table.get, lengths.get, (1,)
        at, n = 0, len(data)
        while at < n:
            for length in candidates(data[at : at + 2], single):
                piece = get(data[at : at + length])  # at the end of data: the longest that fits
                if piece is not None:
                    break
            else:
                raise DataError(_unknown_character(tokenizer, data, at))
            append(piece)
            at += length
        return ids

    return encode


def _candidate_lengths(table: Mapping[bytes, int]) -> dict[bytes, tuple[int, ...]]:
    """First two bytes -> the lengths of the pieces that start with them, longest first, and 1 in the end."""
    found: dict[bytes, set[int]] = {}
    for piece in table:
        if len(piece) > 1:
            found.setdefault(piece[:2], {1}).add(len(piece))
    return {prefix: tuple(sorted(lengths, reverse=True)) for prefix, lengths in found.items()}


def _is_character(data: bytes) -> bool:
    try:
        return len(data.decode("utf-8")) == 1
    except UnicodeDecodeError:
        return False


def shown(data: bytes) -> str:
    r"""A text in one line: control characters and bytes that are no UTF-8 become \n, \t or \xNN, as in csrc/text."""
    return "".join(map(_shown_character, data.decode("utf-8", "surrogateescape")))


def _shown_character(character: str) -> str:
    code = ord(character)
    if character in "\n\t":
        return "\\n" if character == "\n" else "\\t"
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is no UTF-8, as a surrogate
        code -= 0xDC00
    elif code >= 32 and code != 127:
        return character
    return f"\\x{code:02x}"


def _unknown_character(tokenizer: Tokenizer, data: bytes, at: int) -> str:
    heads = (data[at : at + n] for n in range(1, 5))
    character = next((head for head in heads if _is_character(head)), data[at : at + 1])
    return (
        f"character '{shown(character)}' (byte {data[at]} at byte {at}) is not in the vocabulary; it has only "
        f"'{tokenizer.alphabet()}': change the text, or make the data again with a byte or word tokenizer"
    )


# All of Unicode's white space, which tiktoken's regular expressions mean by \s.
WHITE = r"\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
LONG_RUN = re.compile(rf"(?<![{WHITE}])[{WHITE}]{{10000,}}")  # tiktoken gives up at a million
GAP = re.compile(rf"[^{WHITE}][{WHITE}]")
PART = 1 << 18  # characters encoded in one call; Python sees signals between the calls


def parts(text: str) -> Iterator[str]:
    """Yield a text in parts that GPT-2's split cuts as it cuts the whole. A part may end in front of white space, because
    no word has a space behind another character; and in front of the last of many white characters, because only that
    one can join the next word."""
    at = 0
    for run in LONG_RUN.finditer(text):
        yield from _short_parts(text, at, run.start())
        at = run.end() if run.end() == len(text) else run.end() - 1
        yield text[run.start() : at]
    yield from _short_parts(text, at, len(text))


def _short_parts(text: str, at: int, end: int) -> Iterator[str]:
    while end - at > PART and (gap := GAP.search(text, at + PART, end)):
        yield text[at : gap.start() + 1]
        at = gap.start() + 1
    if at < end:
        yield text[at:end]


def _gpt2_encoder(tokenizer: Tokenizer) -> Callable[[bytes], list[int]]:
    """tiktoken's encoder. Ids are the ranks of the merges, so it needs only the table, and no download."""
    tiktoken = need("tiktoken", f"encoding with the {tokenizer.name} tokenizer")
    encoding = tiktoken.Encoding(
        "gpt2", pat_str=GPT2_SPLIT, mergeable_ranks=tokenizer.ranks, special_tokens={}
    )
    cut = cutter(tokenizer.pieces, tokenizer.added)

    def pairs(text: str) -> list[int]:
        if len(text) < PART and not LONG_RUN.search(text):
            return encoding.encode_ordinary(text)  # type: ignore[no-any-return]
        return [i for part in parts(text) for i in encoding.encode_ordinary(part)]

    def encode(data: bytes) -> list[int]:
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as e:
            raise DataError(
                f"byte {e.start} is no UTF-8: give the text in UTF-8, or use a byte tokenizer"
            ) from e
        if not tokenizer.added:
            return pairs(text)
        return [i for part, added in cut(text) for i in (pairs(part) if added < 0 else [added])]

    return encode


def _no_encoder(tokenizer: Tokenizer) -> Callable[[bytes], list[int]]:
    raise DataError(
        "this tokenizer file does not say how to encode, nor is its table GPT-2's: pass token ids, or write "
        "another with python -m pyllmc.prepro"
    )


ENCODERS = {"unknown": _no_encoder, "longest": _longest_encoder, "gpt2": _gpt2_encoder}
