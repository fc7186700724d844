"""Tokenizers of other projects: Hugging Face's tokenizer.json, or vocab.json and merges.txt; nanoGPT's meta.pkl.

It takes byte-level byte pairs of GPT-2's kind with their added tokens, tables of characters, and the files that this project
exports. Others are refused with the reason.
"""

from __future__ import annotations

import io
import json
import os
import pickle
from collections.abc import Set
from typing import Any, NoReturn

from pyllmc.base.errors import BadFile, DataError
from pyllmc.base.files import reading
from pyllmc.text.bpe import BYTE_OF, EOT_PIECE, printed_bytes
from pyllmc.text.tokenizer import Tokenizer
from pyllmc.text.tokenizer_formats import PART, merges_of, printable, trie_pattern

JSON, VOCAB, MERGES, META = "tokenizer.json", "vocab.json", "merges.txt", "meta.pkl"
ADDED = "added_tokens.json"  # beside VOCAB: {token: id} of those that were added later
NAMES = (JSON, f"{VOCAB} with {MERGES}", META)
# pieces that may end a document; the first that a vocabulary has becomes its EOT
ENDS = (EOT_PIECE.decode(), "</s>", "<|end_of_text|>", "<eos>")
MOST_BYTES = 1 << 28  # a larger file is no tokenizer


def file_in(folder: str) -> str | None:
    """The tokenizer file of another project in a folder; None if there is none. tokenizer.json says the most."""
    there = [name for name in (JSON, VOCAB, META) if os.path.isfile(os.path.join(folder, name))]
    if VOCAB in there and not os.path.isfile(os.path.join(folder, MERGES)):
        there.remove(VOCAB)
    return os.path.join(folder, there[0]) if there else None


def is_foreign(path: str, head: bytes) -> bool:
    """True if a file with this path and first bytes is a tokenizer file of another project."""
    return path.endswith((".json", ".pkl")) or head[:1] == b"\x80" or _has_vocab(path)


def _has_vocab(path: str) -> bool:
    folder, name = os.path.split(path)
    return name == MERGES and os.path.isfile(os.path.join(folder, VOCAB))


def load(path: str) -> Tokenizer:
    """Read the tokenizer in a file of another project. Raises DataError, BadFile."""
    if _has_vocab(path):
        path = os.path.join(os.path.dirname(path), VOCAB)
    data = _read(path)
    try:
        if data.lstrip()[:1] != b"{":
            return _of_meta(_unpickled(data))
        said = json.loads(data)
        if isinstance(said.get("model"), dict):  # in GPT-2's own vocab.json "model" is a piece, with an id
            return _of_json(said)
        return _of_files(os.path.dirname(path), said)
    except DataError as e:
        raise BadFile(f"{path}: {e}") from e
    except (
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        IndexError,
        RecursionError,
        pickle.UnpicklingError,
    ) as e:
        raise BadFile(
            f"{path}: no tokenizer that is known here ({type(e).__name__}: {e}); fetch it again"
        ) from e


def _read(path: str) -> bytes:
    with reading(path), open(path, "rb") as f:
        data = f.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise BadFile(f"{path} is too large to be a tokenizer: name another file")
    return data


# ---------------------------------------------------------------------------------------------------------
# nanoGPT's meta.pkl


class _Plain(pickle.Unpickler):
    """An unpickler that refuses every class, and so runs no code. Dictionaries, lists, texts and numbers need none."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise DataError(f"it names {module}.{name}: only dictionaries of texts and numbers are read")


def _unpickled(data: bytes) -> Any:
    try:
        return _Plain(io.BytesIO(data)).load()
    except (EOFError, MemoryError, OverflowError) as e:
        raise DataError(f"damaged ({type(e).__name__}); make it again with nanoGPT's prepare.py") from e


def _of_meta(meta: Any) -> Tokenizer:
    itos = meta.get("itos") if isinstance(meta, dict) else None
    if itos is None and isinstance(meta, dict) and isinstance(meta.get("stoi"), dict):
        itos = {i: s for s, i in meta["stoi"].items()}
    if isinstance(itos, (list, tuple)):
        itos = dict(enumerate(itos))
    if not isinstance(itos, dict):
        raise DataError("it has no itos or stoi, nanoGPT's tables of characters: name another tokenizer")
    if set(itos) != set(range(len(itos))) or not all(isinstance(s, str) for s in itos.values()):
        raise DataError("its itos is no table of texts by the ids 0, 1, 2, ...: make it again")
    pieces = [itos[i].encode("utf-8") for i in range(len(itos))]
    return Tokenizer(pieces, "longest", pieces.index(EOT_PIECE) if EOT_PIECE in pieces else -1)


# ---------------------------------------------------------------------------------------------------------
# Hugging Face's


def _of_files(folder: str, ids: dict[str, int]) -> Tokenizer:
    """The tokenizer of vocab.json, whose content is `ids`, merges.txt and added_tokens.json, which may be missing."""
    more = os.path.join(folder, ADDED)
    added = json.loads(_read(more)) if os.path.isfile(more) else {}
    return of_vocab({**ids, **added}, _read(os.path.join(folder, MERGES)).decode().split("\n"), set(added))


def _of_json(said: dict[str, Any]) -> Tokenizer:
    model, kind = said["model"], said["model"].get("type") or "BPE"
    added = {token["content"]: token["id"] for token in said.get("added_tokens") or ()}
    ids = {**model["vocab"], **added} if isinstance(model["vocab"], dict) else {}
    if kind == "WordLevel" and (found := _own_longest(said, ids)):
        return found
    if kind != "BPE":
        raise DataError(
            f"a {kind} model: only byte pairs of GPT-2's kind are known here; name another tokenizer"
        )
    _check_cut(said)
    _check_added(said)
    pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    return of_vocab(ids, pairs, set(added), all_made=not model.get("ignore_merges"))


def _check_cut(said: dict[str, Any]) -> None:
    """Raise DataError unless text is cut into words as GPT-2 cuts it, and not changed otherwise."""
    cut = said.get("pre_tokenizer") or {}
    steps = cut.get("pretokenizers", [cut])
    if steps[0].get("pattern") == {"String": PART}:  # an export's, of a model that was fine-tuned
        steps = steps[1:]
    if said.get("normalizer") is not None:
        raise DataError(
            f"it changes text first (normalizer {said['normalizer'].get('type')}): name another tokenizer"
        )
    if len(steps) != 1 or steps[0].get("type") != "ByteLevel" or not steps[0].get("use_regex", True):
        kinds = ", ".join(str(step.get("type")) for step in steps)
        raise DataError(
            f"it cuts text into words by another rule than GPT-2's ({kinds}): name another tokenizer"
        )
    if steps[0].get("add_prefix_space"):
        raise DataError("it puts a space in front of every text (add_prefix_space): name another tokenizer")


def _check_added(said: dict[str, Any]) -> None:
    """Raise DataError unless an added token is taken wherever it stands, without the spaces beside it."""
    for token in said.get("added_tokens") or ():
        how = next((how for how in ("lstrip", "rstrip", "single_word") if token.get(how)), "")
        if how and token["content"] not in ENDS:  # text never becomes an end
            raise DataError(
                f"its added token {token['content']!r} looks at the text beside it ({how}): name another tokenizer"
            )


def of_vocab(
    ids: dict[str, int], lines: list[str], added: Set[str] = frozenset(), all_made: bool = False
) -> Tokenizer:
    """The tokenizer of a vocabulary of byte pairs. lines: the merges in order, "a b" each. added: what is taken before the byte
    pairs. all_made: True if merges must make all others. Raises DataError."""
    ordered = sorted(ids, key=ids.__getitem__)
    if [ids[name] for name in ordered] != list(range(len(ids))):
        raise DataError("its ids are not 0, 1, 2, ... each once: name another tokenizer")
    pieces = [
        name.encode() if name in added or not set(name) <= set(BYTE_OF) else printed_bytes(name)
        for name in ordered
    ]
    eot = next((ids[name] for name in ENDS if name in ids), -1)
    found = Tokenizer(pieces, "gpt2", eot, [ids[name] for name in added if ids[name] != eot])
    pairs = [line.rstrip("\r") for line in lines if line.strip() and not line.startswith("#version")]
    merges, whole = merges_of(found)
    if pairs != [f"{printable(a)} {printable(b)}" for a, b in merges]:
        raise DataError("its ids are not in the order of its merges, as GPT-2's are: name another tokenizer")
    if all_made and whole:
        raise DataError("it has pieces that no merge makes: name another tokenizer")
    return found


def _own_longest(said: dict[str, Any], ids: dict[str, int]) -> Tokenizer | None:
    """The tokenizer of a file that pyllmc.convert wrote for characters, words or bytes; None for any other file."""
    ordered = sorted(ids, key=ids.__getitem__)
    eot = next((ids[token["content"]] for token in said.get("added_tokens") or ()), -1)
    cut = (said.get("pre_tokenizer") or {}).get("pretokenizers") or [{}]
    trie = trie_pattern(name for name in ordered if ids[name] != eot)
    if cut[-1].get("pattern") != {"Regex": trie} or cut[0].get("type") != "ByteLevel":
        return None
    pieces = [name.encode() if i == eot else printed_bytes(name) for i, name in enumerate(ordered)]
    return Tokenizer(pieces, "longest", eot)
