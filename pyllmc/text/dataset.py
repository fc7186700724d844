"""A data set made of documents: token shards, tokenizer.bin and meta.json in one directory.

    train_000000.bin ...  val_000000.bin ...     token files (bins.py)
    tokenizer.bin                                 decodes them and encodes prompts (tokenizer.py)
    meta.json                                     vocabulary, counts, source, sha256 of each file

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
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, Union

from pyllmc.base.errors import DataError
from pyllmc.base.files import atomic_directory, flush_to_disk, sha256_of, writing
from pyllmc.base.workers import in_order
from pyllmc.text.bins import MAX_SHARD_TOKENS, ShardWriter, format_for
from pyllmc.text.tokenizer import Tokenizer, check_characters
from pyllmc.text.vocabularies import DEFAULT_MAX_VOCAB, FIXED, train

META = "meta.json"
TOKENIZER = "tokenizer.bin"
SPLITS = ("train", "val")
UNDECIDED = ""  # the split of a document while val_tokens decides token by token
CHUNK_CHARACTERS = 1 << 20  # characters that a process gets at a time
MAX_SHARDS = 10**6  # a shard's name has six digits, so that names sort in order
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
    Raises DataError: no documents, a bad argument, an unknown character, a full disk, `out` exists.
    """
    out = os.path.realpath(os.fspath(out))
    split = _choose_split(val_fraction, val_tokens, val_documents)
    _check_counts(shard_tokens=shard_tokens, workers=workers)
    _check_out(out, overwrite)
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
        directory = stack.enter_context(atomic_directory(out, lambda: _check_out(out, overwrite)))
        writer = _DatasetWriter(directory, out, tokenizer, shard_tokens, val_tokens or 0)
        stack.callback(writer.abandon)
        encoded = in_order(partial(_encode_chunk, tokenizer, eot), _chunks(split(_texts(again()))), workers)
        for chunk in stack.enter_context(closing(encoded)):
            writer.append(chunk)
            report(Progress("encode", writer.documents, writer.characters, sum(writer.tokens.values())))
        return writer.finish(source, eot)


def write_encoded(
    chunks: Iterable[Chunk], out: str, tokenizer: Tokenizer, shard_tokens: int, source: str, overwrite: bool, val_tokens: int
) -> dict[str, Any]:  # fmt: skip
    """Write a data set of ids that exist already. The rest is as in write_dataset."""
    out = os.path.realpath(out)
    _check_out(out, overwrite)
    with ExitStack() as stack:
        directory = stack.enter_context(atomic_directory(out, lambda: _check_out(out, overwrite)))
        writer = _DatasetWriter(directory, out, tokenizer, shard_tokens, val_tokens)
        stack.callback(writer.abandon)
        for chunk in chunks:
            writer.append(chunk)
        return writer.finish(source, tokenizer.eot >= 0)


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
            spool.write(json.dumps(item).encode("ascii") + b"\n")
    return lambda: _spooled(spool)


def _close(spool: BinaryIO) -> None:
    with suppress(OSError):  # on a full disk this writes once more; the error has been told
        spool.close()


def _spooled(spool: BinaryIO) -> Iterator[Document]:
    with writing(tempfile.gettempdir()):  # seeking writes what is still buffered
        spool.seek(0)
    for line in spool:
        yield tuple(json.loads(line))


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
    if len(first) == 1 and share and first[0][0] == UNDECIDED:  # one document: cut it
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


@dataclass
class Chunk:
    """Encoded documents: their ids by split, in order."""

    documents: int = 0
    characters: int = 0
    ids: dict[str, array[int]] = field(default_factory=dict)


def _encode_chunk(tokenizer: Tokenizer, eot: bool, texts: list[tuple[str, str]]) -> Chunk:
    typecode = format_for(tokenizer.vocab_size).typecode
    chunk = Chunk(len(texts), sum(len(text) for _, text in texts))
    for split, text in texts:
        ids = chunk.ids.setdefault(split, array(typecode))
        if eot:
            ids.append(tokenizer.eot)
        ids.extend(tokenizer.encode(text))
    return chunk


# ---------------------------------------------------------------------------------------------------------
# the directory


def _files_of(path: str) -> set[str]:
    """The names of the files of the data set in the folder `path`; none if it holds no data set."""
    try:
        with open(os.path.join(path, META), "rb") as f:
            meta = json.load(f)
        return {META, *(part["file"] for part in [meta["tokenizer"], *meta["shards"]])}
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return set()


def _check_out(out: str, overwrite: bool) -> None:
    if not os.path.lexists(out) or (os.path.isdir(out) and not os.listdir(out)):
        return
    own = _files_of(out)
    if not own:
        raise DataError(f"{out} exists and is not a data set: choose another output place")
    if not overwrite:
        raise DataError(
            f"{out} is a data set already: choose another output place, or replace it with --overwrite "
            "(overwrite=True)"
        )
    foreign = sorted(set(os.listdir(out)) - own)
    if foreign:
        more = f" and {len(foreign) - 1} more" if foreign[1:] else ""
        raise DataError(
            f"{out} holds {foreign[0]}{more}, which is not of the data set: move it elsewhere, or choose another "
            "output place"
        )


class _DatasetWriter:
    """A writer that cuts the stream of each split into shards of shard_tokens, and writes the files beside them."""

    def __init__(self, directory: str, out: str, tokenizer: Tokenizer, shard_tokens: int, val_tokens: int):
        self.directory, self.out, self.tokenizer = directory, out, tokenizer
        self.shard_tokens, self.val_tokens = shard_tokens, val_tokens
        self.documents = self.characters = 0
        self.tokens = dict.fromkeys(SPLITS, 0)
        self.shards: list[dict[str, Any]] = []
        self._open: dict[str, ShardWriter] = {}
        self._count = dict.fromkeys(SPLITS, 0)

    def append(self, chunk: Chunk) -> None:
        self.documents += chunk.documents
        self.characters += chunk.characters
        for split, ids in chunk.ids.items():
            if split == UNDECIDED:
                to_val = max(0, self.val_tokens - self.tokens["val"])
                self._append("val", ids[:to_val])
                self._append("train", ids[to_val:])
            else:
                self._append(split, ids)

    def _append(self, split: str, ids: array[int]) -> None:
        at = 0
        while at < len(ids):
            writer = self._open.get(split) or self._start_shard(split)
            part = ids[at : at + self.shard_tokens - writer.ntok]
            writer.append(part)
            at += len(part)
            if writer.ntok == self.shard_tokens:
                self._close_shard(split)
        self.tokens[split] += len(ids)

    def _start_shard(self, split: str) -> ShardWriter:
        number = self._count[split]
        if number >= MAX_SHARDS:
            raise DataError(f"more than {MAX_SHARDS} shards: raise shard_tokens from {self.shard_tokens}")
        self._count[split] += 1
        path, shown = (os.path.join(d, f"{split}_{number:06d}.bin") for d in (self.directory, self.out))
        self._open[split] = ShardWriter(path, self.tokenizer.vocab_size, shown)
        return self._open[split]

    def _close_shard(self, split: str) -> None:
        writer = self._open[split]
        writer.close()
        del self._open[split]
        self.shards.append({"tokens": writer.ntok, **self._file(os.path.basename(writer.path))})

    def _file(self, name: str) -> dict[str, str]:
        return {"file": name, "sha256": sha256_of(os.path.join(self.directory, name))}

    def abandon(self) -> None:
        for writer in self._open.values():
            writer.abandon()

    def finish(self, source: str, eot: bool) -> dict[str, Any]:
        """Close the shards, write tokenizer.bin and meta.json. Return the content of meta.json."""
        if not self.documents:
            raise DataError("no documents: the input is empty")
        if not self.tokens["train"]:
            raise DataError(f"all {self.tokens['val']} tokens are validation: lower its part or add text")
        for split in list(self._open):
            self._close_shard(split)
        self.tokenizer.save(os.path.join(self.directory, TOKENIZER))
        meta = self._meta(source, eot)
        path = os.path.join(self.directory, META)
        with writing(path), open(path, "wb") as f:
            f.write(json.dumps(meta, indent=1).encode("ascii") + b"\n")
            flush_to_disk(f)
        return meta

    def _meta(self, source: str, eot: bool) -> dict[str, Any]:
        names = {"name": self.tokenizer.name, "kind": self.tokenizer.kind}
        return {
            "vocab_size": self.tokenizer.vocab_size,
            "tokenizer": {**names, **self._file(TOKENIZER)},
            "eot": self.tokenizer.eot,
            "eot_before_documents": eot,
            "token_format": format_for(self.tokenizer.vocab_size).name,
            "source": source,
            "documents": self.documents,
            "characters": self.characters,
            "tokens": self.tokens,
            "shards": sorted(self.shards, key=lambda shard: str(shard["file"])),
        }
