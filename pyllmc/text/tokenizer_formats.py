"""Our tokenizers in other programs' formats: GPT-2's merges, Hugging Face's tokenizer.json, llama.cpp's lists.

A format is either exact or refused: Unexpressible says why.

byte-pair encodings  the ids are the ranks of the merges, so the table gives the merges: the last one that makes a piece
longest match        tokenizer.json: a regular expression that is the table as a trie cuts the text, and each part is
                     looked up. llama.cpp: its "rwkv" vocabulary is the longest match over bytes, but needs every
                     single byte; its "llama" vocabulary without merges looks up characters.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from pyllmc.base.errors import need
from pyllmc.text.bpe import PRINTABLE, merge_steps
from pyllmc.text.tokenizer import BYTES, Tokenizer

WHY = "a tokenizer.json"
SPACE = "\u2581"  # llama.cpp's sign for a space
PART = "<|part|>"  # the mark at which an exported tokenizer.json cuts text, and which it drops (convert/chat_template.py)


class Unexpressible(Exception):
    """The format cannot express the tokenizer exactly. The message says why."""


def printable(piece: bytes) -> str:
    """A piece in the alphabet of vocab.bpe. bpe.printed_bytes() is the way back."""
    return "".join(PRINTABLE[b] for b in piece)


def names(tokenizer: Tokenizer) -> list[str]:
    """Each piece in printable characters, EOT and added ones as they are. Raises Unexpressible if two are the same."""
    found = [printable(p) for p in tokenizer.pieces]
    if tokenizer.eot >= 0:
        found[tokenizer.eot] = eot_text(tokenizer)
    for i in tokenizer.added:
        found[i] = tokenizer.pieces[i].decode()
    if len(set(found)) < len(found):
        raise Unexpressible("its end-of-text piece, or an added one, is an ordinary piece, too")
    return found


def eot_text(tokenizer: Tokenizer) -> str:
    try:
        return tokenizer.pieces[tokenizer.eot].decode()
    except UnicodeDecodeError:
        raise Unexpressible("its end-of-text piece is no text") from None


# ---------------------------------------------------------------------------------------------------------
# byte-pair encodings


def last_parts(piece: bytes, ranks: Mapping[bytes, int]) -> list[bytes]:
    """The two parts that the last merge of a piece joins; another number of parts if no merge makes the piece."""
    before: list[bytes] = []
    for parts, made in merge_steps(piece, ranks):
        if made == piece:
            break
        before = parts
    return before


@functools.lru_cache(maxsize=1)
def merges_of(tokenizer: Tokenizer) -> tuple[list[tuple[bytes, bytes]], list[int]]:
    """The merges of a gpt2 tokenizer in order, and the ids that no merge makes, but only a whole word becomes."""
    ranks = tokenizer.ranks
    merges, whole = [], []
    for piece, rank in ranks.items():
        if len(piece) == 1:
            continue
        parts = last_parts(piece, ranks)
        if len(parts) == 2:
            merges.append((parts[0], parts[1]))
        else:
            whole.append(rank)
    return merges, whole


# ---------------------------------------------------------------------------------------------------------
# Hugging Face's tokenizer.json


def trie_pattern(words: Iterable[str]) -> str:
    """A regular expression that matches the longest word that begins at a place."""
    root: dict[str, Any] = {}
    for word in words:
        node = root
        for c in word:
            node = node.setdefault(c, {})
        node[""] = {}  # a word ends here
    return _pattern(root)


def _pattern(node: dict[str, Any]) -> str:
    branches = [re.escape(c) + _pattern(below) for c, below in sorted(node.items()) if c]
    if not branches:
        return ""
    return f"(?:{'|'.join(branches)})" + ("?" if "" in node else "")


def hf_tokenizer(tokenizer: Tokenizer) -> Any:
    """A tokenizers.Tokenizer that encodes and decodes as ours does. Raises Unexpressible, MissingDependency."""
    hf = need("tokenizers", WHY)
    vocabulary = {name: i for i, name in enumerate(names(tokenizer))}
    if tokenizer.kind == "gpt2":
        made = _byte_pairs(hf, tokenizer, vocabulary)
    elif tokenizer.kind == "longest":
        made = _longest(hf, tokenizer, vocabulary)
    else:
        raise Unexpressible("it only decodes (llm.c's file does not say how to encode)")
    made.decoder = hf.decoders.ByteLevel()
    if tokenizer.eot >= 0:
        made.add_special_tokens([hf.AddedToken(eot_text(tokenizer), normalized=False, special=True)])
    # not special, because decoders leave those out of the text
    made.add_tokens([hf.AddedToken(tokenizer.pieces[i].decode(), normalized=False) for i in tokenizer.added])
    return made


def _byte_pairs(hf: Any, tokenizer: Tokenizer, vocabulary: dict[str, int]) -> Any:
    merges, whole = merges_of(tokenizer)
    pairs = [(printable(a), printable(b)) for a, b in merges]
    made = hf.Tokenizer(hf.models.BPE(vocabulary, pairs, ignore_merges=bool(whole)))
    made.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    return made


def _longest(hf: Any, tokenizer: Tokenizer, vocabulary: dict[str, int]) -> Any:
    """A tokenizer for longest match. An unknown character is an error here, too: its token is in no vocabulary."""
    made = hf.Tokenizer(hf.models.WordLevel(vocabulary, unk_token=" "))
    trie = trie_pattern(name for name, i in vocabulary.items() if i != tokenizer.eot)
    made.pre_tokenizer = hf.pre_tokenizers.Sequence(
        [
            hf.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            hf.pre_tokenizers.Split(hf.Regex(trie), "isolated"),
        ]
    )
    return made


# ---------------------------------------------------------------------------------------------------------
# llama.cpp's lists


class Lists(NamedTuple):
    """The entries of a GGUF file for a tokenizer."""

    model: str  # tokenizer.ggml.model
    pre: str  # tokenizer.ggml.pre: the cut of text into words before merging
    pieces: Sequence[str]
    merges: Sequence[str]  # "a b", in order


def gguf_lists(tokenizer: Tokenizer) -> Lists:
    """The GGUF entries of a tokenizer. Raises Unexpressible."""
    if tokenizer.kind == "gpt2":
        merges, whole = merges_of(tokenizer)
        if whole:
            raise Unexpressible(
                f"no merge makes {tokenizer.pieces[whole[0]]!r}, and llama.cpp encodes by merges"
            )
        return Lists("gpt2", "gpt-2", names(tokenizer), [f"{printable(a)} {printable(b)}" for a, b in merges])
    if tokenizer.kind != "longest":
        raise Unexpressible("it only decodes (llm.c's file does not say how to encode)")
    text = [p for i, p in enumerate(tokenizer.pieces) if i != tokenizer.eot]
    if set(BYTES) <= set(text):
        return _rwkv(tokenizer, text)
    return _characters(tokenizer, text)


def _rwkv(tokenizer: Tokenizer, text: list[bytes]) -> Lists:
    """The entries for "rwkv": pieces with Python's escapes, hexadecimal digits in lower case."""
    if any(0 in p for p in text if len(p) > 1):
        raise Unexpressible("a piece holds a zero byte, which llama.cpp also sees behind the end of the text")
    escaped = [
        "".join(chr(b) if 32 < b < 127 and b != 92 else f"\\x{b:02x}" for b in p) for p in tokenizer.pieces
    ]
    return Lists("rwkv", "", escaped, [])


def _characters(tokenizer: Tokenizer, text: list[bytes]) -> Lists:
    """The entries for a table of characters. It cannot use "rwkv", because llama.cpp 2026 does not return there from a
    character of which it knows only the first byte."""
    characters = [p.decode("utf-8", "replace") for p in text]
    if any(len(c) != 1 or c.encode() != p for c, p in zip(characters, text)):
        raise Unexpressible(
            "its table has neither every byte nor only characters, and llama.cpp knows no such search"
        )
    if SPACE in characters or "\0" in characters:
        raise Unexpressible("its table has U+2581 or U+0000, which mean something else to llama.cpp")
    eot_text(tokenizer)
    return Lists("llama", "default", [p.decode().replace(" ", SPACE) for p in tokenizer.pieces], [])
