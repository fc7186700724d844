"""The folder of a data set: its shards, their loss masks, tokenizer.bin, template.txt, meta.json; and when it may be replaced."""

from __future__ import annotations

import json
import os
from array import array
from dataclasses import dataclass, field
from typing import Any

from pyllmc.base.errors import DataError
from pyllmc.base.files import flush_to_disk, sha256_of, writing
from pyllmc.text.bins import ShardWriter, format_for
from pyllmc.text.masks import ENDING, MaskWriter
from pyllmc.text.template import FILE as TEMPLATE
from pyllmc.text.tokenizer import Tokenizer

META = "meta.json"
TOKENIZER = "tokenizer.bin"
SPLITS = ("train", "val")
UNDECIDED = ""  # the split of a document while val_tokens decides token by token
MAX_SHARDS = 10**6  # a shard's name has six digits, so that names sort in order


@dataclass
class Chunk:
    """Encoded documents: their ids by split, in order."""

    documents: int = 0
    characters: int = 0
    ids: dict[str, array[int]] = field(default_factory=dict)
    learnt: dict[str, bytearray] = field(
        default_factory=dict
    )  # 0 or 1 for each id, if the data set has masks
    sizes: dict[str, list[int]] = field(default_factory=dict)  # then also the tokens of each document
    longest: int = 0  # tokens of the longest document, with its EOT
    too_long: int = 0  # documents that were left out


def files_of(path: str) -> set[str]:
    """The names of the files of the data set in the folder `path`; none if it holds no data set."""
    try:
        with open(os.path.join(path, META), "rb") as f:
            meta = json.load(f)
        template = [meta["template"]] if "template" in meta else []
        parts = [meta["tokenizer"], *template, *meta["shards"], *meta.get("masks", [])]
        return {META, *(part["file"] for part in parts)}
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return set()


def check_out(out: str, overwrite: bool) -> None:
    if not os.path.lexists(out) or (os.path.isdir(out) and not os.listdir(out)):
        return
    own = files_of(out)
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


class DatasetWriter:
    """A writer that cuts the stream of each split into shards of shard_tokens, and writes the files beside them.

    eot: whether EOT precedes each document. template: None, or the line that tells how turns became text. Then each shard
    gets a loss mask, and holds whole documents: one that is longer than shard_tokens has a shard of its own.
    """

    def __init__(
        self, directory: str, out: str, tokenizer: Tokenizer, shard_tokens: int, val_tokens: int,
        eot: bool, template: str | None = None,
    ):  # fmt: skip
        self.eot, self.template = eot, template
        self._last = dict.fromkeys(SPLITS, 1)  # whether the last token of each split is learnt
        self.longest = self.too_long = 0
        self.learnt = dict.fromkeys(SPLITS, 0)
        self.masks: list[dict[str, str]] = []
        self._open_masks: dict[str, MaskWriter] = {}
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
        self.longest = max(self.longest, chunk.longest)
        self.too_long += chunk.too_long
        for split, ids in chunk.ids.items():
            if self.template is not None:
                self._append_documents(split, ids, chunk.learnt[split], chunk.sizes[split])
            elif split == UNDECIDED:
                to_val = max(0, self.val_tokens - self.tokens["val"])
                self._append("val", ids[:to_val])
                self._append("train", ids[to_val:])
            else:
                self._append(split, ids)

    def _append_documents(self, split: str, ids: array[int], learnt: bytearray, sizes: list[int]) -> None:
        at = 0
        for size in sizes:
            if split in self._open and self._open[split].ntok + size + self.eot > self.shard_tokens:
                self._end_shard(split)
            if self.eot:  # it ends the answer before it, and is learnt with that
                learnt[at] = self._last[split]
            self._append_whole(split, ids[at : at + size], learnt[at : at + size])
            at += size

    def _append_whole(self, split: str, ids: array[int], learnt: bytes | bytearray) -> None:
        (self._open.get(split) or self._start_shard(split)).append(ids)
        self._open_masks[split].append(learnt)
        self._last[split] = learnt[-1]
        self.tokens[split] += len(ids)

    def _end_shard(self, split: str) -> None:
        """Close a shard with a mask behind the end of its last answer."""
        if self.eot:
            end = array(self._open[split].format.typecode, [self.tokenizer.eot])
            self._append_whole(split, end, bytes([self._last[split]]))
        self._close_shard(split)

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
        self._open_masks[split] = MaskWriter()
        return self._open[split]

    def _close_shard(self, split: str) -> None:
        writer = self._open[split]
        writer.close()
        del self._open[split]
        name = os.path.basename(writer.path)
        self.shards.append({"tokens": writer.ntok, **self._file(name)})
        if self.template is not None:
            self._close_mask(split, name)

    def _close_mask(self, split: str, name: str) -> None:
        mask = self._open_masks.pop(split)
        tokens, path = (os.path.join(self.directory, n) for n in (name, name + ENDING))
        mask.write(path, tokens, os.path.join(self.out, name + ENDING))
        self.learnt[split] += mask.learnt
        self.masks.append(self._file(name + ENDING))

    def _file(self, name: str) -> dict[str, str]:
        return {"file": name, "sha256": sha256_of(os.path.join(self.directory, name))}

    def abandon(self) -> None:
        for writer in self._open.values():
            writer.abandon()

    def finish(self, source: str) -> dict[str, Any]:
        """Close the shards, write tokenizer.bin and meta.json. Return the content of meta.json."""
        if not self.documents:
            why = f"all {self.too_long} are longer than --max_len" if self.too_long else "the input is empty"
            raise DataError(f"no documents: {why}")
        if not self.tokens["train"]:
            raise DataError(f"all {self.tokens['val']} tokens are validation: lower its part or add text")
        for split in list(self._open):
            (self._close_shard if self.template is None else self._end_shard)(split)
        if self.template is not None and not self.learnt["train"]:
            raise DataError("no answer of the training data is learnt: each has weight 0; give some weight 1")
        if self.template is not None:
            self._write(TEMPLATE, self.template.encode() + b"\n")
        self.tokenizer.save(os.path.join(self.directory, TOKENIZER))
        meta = self._meta(source)
        self._write(META, json.dumps(meta, indent=1).encode("ascii") + b"\n")
        return meta

    def _write(self, name: str, data: bytes) -> None:
        path = os.path.join(self.directory, name)
        with writing(path), open(path, "wb") as f:
            f.write(data)
            flush_to_disk(f)

    def _meta(self, source: str) -> dict[str, Any]:
        names = {"name": self.tokenizer.name, "kind": self.tokenizer.kind}
        masked = {
            "template": self._file(TEMPLATE),
            "learnt": self.learnt,
            "longest": self.longest,
            "too_long": self.too_long,
            "masks": sorted(self.masks, key=lambda mask: mask["file"]),
        } if self.template is not None else {}  # fmt: skip
        return {
            "vocab_size": self.tokenizer.vocab_size,
            "tokenizer": {**names, **self._file(TOKENIZER)},
            "eot": self.tokenizer.eot,
            "eot_before_documents": self.eot,
            "token_format": format_for(self.tokenizer.vocab_size).name,
            "source": source,
            "documents": self.documents,
            "characters": self.characters,
            "tokens": self.tokens,
            "shards": sorted(self.shards, key=lambda shard: str(shard["file"])),
            **masked,
        }
