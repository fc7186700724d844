"""A data set made of documents: token shards, tokenizer.bin and meta.json in one directory.

    train_000000.bin ...  val_000000.bin ...     token files (bins.py)
    tokenizer.bin                                 decodes them and encodes prompts (tokenizer.py)
    meta.json                                     vocabulary, counts, source, sha256 of each file

and, if it is made of prompts and answers (pairs.py), with the tokens that are learnt:

    train_000000.bin.mask ...                     loss masks (masks.py)
    template.txt                                  how a turn and its answer became text (template.py)

EOT stands BEFORE each document, as in llm.c, so a stream starts with EOT. Documents are read as a stream
and encoded in chunks by any number of processes, in order. The bytes written depend neither on that number
nor on the time or the place. The directory appears whole or not at all. A killed process leaves at most a
hidden .NAME.tmp-PID beside it, which the next one removes. Standard library only (gpt2 and bpe need tiktoken;
to learn, bpe needs tokenizers).
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, suppress
from functools import partial
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, Union

from pyllmc.base.errors import DataError
from pyllmc.base.files import atomic_directory, atomic_path, writing
from pyllmc.base.workers import in_order
from pyllmc.text.bins import MAX_SHARD_TOKENS, format_for, inspect_shard
from pyllmc.text.dataset_folder import SPLITS, UNDECIDED, Chunk, DatasetWriter, check_out
from pyllmc.text.masks import ENDING, Marked, MaskWriter
from pyllmc.text.tokenizer import Tokenizer, check_characters
from pyllmc.text.vocabularies import DEFAULT_MAX_VOCAB, FIXED, train

CHUNK_CHARACTERS = 1 << 20  # characters that a process gets at a time
DEFAULT_VAL_FRACTION = 0.01
DEFAULT_SHARD_TOKENS = 100_000_000

if TYPE_CHECKING:
    Document = Union[str, tuple[str, str]]  # a text, or (split, text)
    Documents = Union[Iterable[Document], Callable[[], Iterable[Document]]]
    Texts = Iterable[tuple[str, str]]  # (split or UNDECIDED, text)


class Progress(NamedTuple):
    """The argument of a progress callback: the stage, and counts so far.

    stage: "learn" (texts for a vocabulary are read), "merge" (byte pairs are learnt from them) or "encode".
    """

    stage: str
    documents: int
    characters: int
    tokens: int


def write_dataset(
    documents: Documents,
    out: str | os.PathLike[str],
    tokenizer: str | Tokenizer = "word",
    val_fraction: float | None = None,
    val_tokens: int | None = None,
    val_documents: int | None = None,
    shard_tokens: int = DEFAULT_SHARD_TOKENS,
    workers: int = 1,
    source: str = "",
    progress: Callable[[Progress], None] | None = None,
    eot: bool = True,
    max_vocab: int = DEFAULT_MAX_VOCAB,
    overwrite: bool = False,
    template: str | None = None,
    max_len: int = 0,
) -> dict[str, Any]:
    """Write a data set to `out` and return its metadata.

    documents: texts as a list, an iterator, or a function that returns one. Learning a vocabulary reads them
    twice, so an iterator is then kept in a temporary file. An item (split, text) decides its own split.
    Empty texts are skipped. Memory holds the largest document and a few chunks per worker.
    tokenizer: word, bpe, char, byte, gpt2, or a Tokenizer. max_vocab: bound on V for word and bpe.
    Give one of val_fraction (default 0.01: every 1/fraction-th document from the first on; the end of a single
    document), val_documents (the first n), val_tokens (the stream's first n tokens). 0 means no validation.
    workers: processes; with more than one, call it below `if __name__ == "__main__":`.
    eot: whether EOT precedes each document.
    overwrite: replace the data set at `out`. A folder that holds any other file is never replaced.
    template: how turns became text, for documents that are masks.Marked; their masks are written, too, and no shard
    cuts one. max_len: those with more tokens, their EOT included, are left out; 0: none is.
    Raises DataError: no documents, a bad argument, an unknown character, a full disk, `out` exists.
    """
    out = os.path.realpath(os.fspath(out))
    if template is not None and val_tokens is not None:
        raise DataError("val_tokens would cut a prompt from its answer: give val_fraction instead")
    split = _choose_split(val_fraction, val_tokens, val_documents)
    _check_counts(shard_tokens=shard_tokens, workers=workers)
    check_out(out, overwrite)
    report = progress or (lambda state: None)
    with ExitStack() as stack:
        fixed = isinstance(tokenizer, Tokenizer) or tokenizer in FIXED
        again = documents if callable(documents) else _repeatable(documents, fixed, stack)
        if not isinstance(tokenizer, Tokenizer):
            learning = _Learning(report)
            texts = () if fixed else learning.texts(again())
            tokenizer = train(tokenizer, texts, max_vocab, learning.alive)
        if eot and tokenizer.eot < 0:
            raise DataError("the tokenizer has no EOT to separate documents with: pass eot=False")
        directory = stack.enter_context(atomic_directory(out, lambda: check_out(out, overwrite)))
        writer = DatasetWriter(directory, out, tokenizer, shard_tokens, val_tokens or 0, eot, template)
        stack.callback(writer.abandon)
        encoded = in_order(
            partial(_encode_chunk, tokenizer, eot, template is not None, max_len),
            _chunks(split(_texts(again()))),
            workers,
        )
        for chunk in stack.enter_context(closing(encoded)):
            writer.append(chunk)
            report(Progress("encode", writer.documents, writer.characters, sum(writer.tokens.values())))
        return writer.finish(source)


def write_encoded(
    chunks: Iterable[Chunk], out: str, tokenizer: Tokenizer, shard_tokens: int, source: str, overwrite: bool, val_tokens: int
) -> dict[str, Any]:  # fmt: skip
    """Write a data set of ids that exist already. The rest is as in write_dataset."""
    out = os.path.realpath(out)
    check_out(out, overwrite)
    with ExitStack() as stack:
        directory = stack.enter_context(atomic_directory(out, lambda: check_out(out, overwrite)))
        writer = DatasetWriter(directory, out, tokenizer, shard_tokens, val_tokens, tokenizer.eot >= 0)
        stack.callback(writer.abandon)
        for chunk in chunks:
            writer.append(chunk)
        return writer.finish(source)


def _check_counts(**counts: int) -> None:
    for name, value in counts.items():
        if value < 1:
            raise DataError(f"{name} is {value}: it must be at least 1")
    if counts["shard_tokens"] > MAX_SHARD_TOKENS:
        raise DataError(f"shard_tokens is {counts['shard_tokens']}: a shard holds at most {MAX_SHARD_TOKENS}")


# ---------------------------------------------------------------------------------------------------------
# documents


def _texts(documents: Iterable[Document]) -> Iterator[tuple[str, str]]:
    """Yield (split or UNDECIDED, text) of every document that is not empty."""
    for number, document in enumerate(documents):
        split, text = document if isinstance(document, tuple) else (UNDECIDED, document)
        if not isinstance(text, str):
            raise DataError(f"document {number} is a {type(text).__name__}, not a str")
        if split not in (UNDECIDED, *SPLITS):
            raise DataError(f"document {number} has split {split!r}: expected {' or '.join(SPLITS)}")
        check_characters(text, where=f"document {number}: ")
        if text:
            yield split, text


class _Learning:
    """The texts that a vocabulary is learnt from. It reports about once a chunk, and while pairs are merged."""

    def __init__(self, report: Callable[[Progress], None]):
        self._report = report
        self._documents = self._characters = 0

    def texts(self, documents: Iterable[Document]) -> Iterator[str]:
        reported = 0
        for self._documents, (_, text) in enumerate(_texts(documents), 1):
            self._characters += len(text)
            if self._characters - reported >= CHUNK_CHARACTERS:
                self._report(Progress("learn", self._documents, self._characters, 0))
                reported = self._characters
            yield text

    def alive(self) -> None:
        self._report(Progress("merge", self._documents, self._characters, 0))


def _repeatable(
    documents: Iterable[Document], once: bool, stack: ExitStack
) -> Callable[[], Iterable[Document]]:
    """A function that gives the documents at each call. Unless `once` is enough, an iterator goes to disk."""
    if once or iter(documents) is not documents:
        return lambda: documents
    spool = tempfile.TemporaryFile()
    stack.callback(_close, spool)
    for item in _texts(documents):
        with writing(tempfile.gettempdir()):
            split, text = item
            held = (split, text.parts if isinstance(text, Marked) else text)
            spool.write(json.dumps(held).encode("ascii") + b"\n")
    return lambda: _spooled(spool)


def _close(spool: BinaryIO) -> None:
    with suppress(OSError):  # on a full disk this writes once more; the error has been told
        spool.close()


def _spooled(spool: BinaryIO) -> Iterator[Document]:
    with writing(tempfile.gettempdir()):  # seeking writes what is still buffered
        spool.seek(0)
    for line in spool:
        split, text = json.loads(line)
        yield split, Marked.of(text) if isinstance(text, list) else text


def _choose_split(
    fraction: float | None, tokens: int | None, documents: int | None
) -> Callable[[Texts], Texts]:
    """The function that gives each undecided document its split."""
    given = {"val_fraction": fraction, "val_tokens": tokens, "val_documents": documents}
    named = [f"{name}={value}" for name, value in given.items() if value is not None]
    if len(named) > 1:
        raise DataError(f"{' and '.join(named)}: give one of them")
    if (tokens or 0) < 0 or (documents or 0) < 0:
        raise DataError(f"{named[0]}: it must not be negative")
    if tokens is not None:
        return lambda texts: texts
    if documents is not None:
        return lambda texts: _split_by_number(texts, lambda i: i < documents)
    share = DEFAULT_VAL_FRACTION if fraction is None else fraction
    if not 0 <= share < 1:
        raise DataError(f"val_fraction is {share}: expected 0 <= val_fraction < 1")
    return lambda texts: _split_by_fraction(texts, share)


def _split_by_number(texts: Texts, is_val: Callable[[int], bool]) -> Iterator[tuple[str, str]]:
    for i, (split, text) in enumerate(texts):
        yield split or SPLITS[is_val(i)], text


def _split_by_fraction(texts: Texts, share: float) -> Iterator[tuple[str, str]]:
    it = iter(texts)
    first = list(islice(it, 2))
    if len(first) == 1 and share and first[0][0] == UNDECIDED:  # one document: cut it, unless it is one pair
        if isinstance(first[0][1], Marked):
            return iter([("train", first[0][1])])
        text = first[0][1]
        cut = int(len(text) * (1 - share))
        return iter([part for part in (("train", text[:cut]), ("val", text[cut:])) if part[1]])
    return _split_by_number(chain(first, it), lambda i: math.floor(i * share) > math.floor((i - 1) * share))


def _chunks(texts: Texts) -> Iterator[list[tuple[str, str]]]:
    """Yield lists of consecutive documents, about CHUNK_CHARACTERS each."""
    chunk: list[tuple[str, str]] = []
    size = 0
    for item in texts:
        chunk.append(item)
        size += len(item[1])
        if size >= CHUNK_CHARACTERS:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


# ---------------------------------------------------------------------------------------------------------
# encoding


def _encode_chunk(
    tokenizer: Tokenizer, eot: bool, masked: bool, max_len: int, texts: list[tuple[str, str]]
) -> Chunk:
    typecode = format_for(tokenizer.vocab_size).typecode
    chunk = Chunk()
    for split, text in texts:
        found, learnt = array(typecode), bytearray()
        if eot:
            found.append(tokenizer.eot)
            learnt.append(1)  # the writer decides, who knows the document before
        for part, learn in text.parts if isinstance(text, Marked) else ((text, True),):
            ids = tokenizer.encode(part)
            found.extend(ids)
            if masked:
                learnt.extend(bytes([learn]) * len(ids))
        chunk.longest = max(chunk.longest, len(found))
        if max_len and len(found) > max_len:
            chunk.too_long += 1
            continue
        chunk.documents += 1
        chunk.characters += len(text)
        chunk.ids.setdefault(split, array(typecode)).extend(found)
        if masked:
            chunk.learnt.setdefault(split, bytearray()).extend(learnt)
            chunk.sizes.setdefault(split, []).append(len(found))
    return chunk


def _flag(value: Any) -> bool:
    if value not in (0, 1):
        raise DataError(f"learnt holds {value}: give True or False for each token")
    return bool(value)


def write_mask(tokens: str | os.PathLike[str], learnt: Iterable[bool]) -> None:
    """Write the mask of a token file that exists, whole or not at all. learnt: a bool, or 0 or 1, for each of its tokens, in
    order. Raises DataError for another number of them and for other values, such as token ids, all of which would count as learnt;
    BadFile for a file without tokens."""
    path, writer = os.fspath(tokens) + ENDING, MaskWriter()
    writer.append(bytes(map(_flag, learnt)))
    if writer.ntok != (ntok := inspect_shard(os.fspath(tokens)).ntok):
        raise DataError(
            f"learnt has {writer.ntok} values, and {os.fspath(tokens)} {ntok} tokens: give one for each"
        )
    with atomic_path(path) as tmp:
        writer.write(tmp, os.fspath(tokens), path)
