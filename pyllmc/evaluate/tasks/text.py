"""Any text file of the user's own: perplexity and bits per byte."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from pyllmc.base.errors import BadFile, InvalidArgument
from pyllmc.evaluate.fetch import Folder, decoded, read_bytes
from pyllmc.evaluate.items import Rolling
from pyllmc.evaluate.streams import HALF, Stream
from pyllmc.evaluate.task import Records, beginning
from pyllmc.text.characters import How
from pyllmc.text.readers import documents, line_ends

AS_PREPRO = How()  # the options that python -m pyllmc.prepro reads text with unless told otherwise


class OwnText(Stream):
    """A text as one stream. loss and ppl are those of a token, so they compare models of one tokenizer only; bpb (bits per byte) and
    ppl_word (by words, which white space separates) compare any."""

    metrics = ("loss", "ppl", "ppl_word", "bpb")
    protocol = (
        f"one stream, cut into documents at <|endoftext|>, {HALF}; loss and ppl per token, ppl_word per word"
    )
    record = "document"
    own = True

    def __init__(self, path: str) -> None:
        self.path, self.name = Path(path), Path(path).name

    @property
    def where(self) -> str:
        return str(self.path)

    def read(self, folder: Folder = None, limit: int | None = None) -> Records:
        """The documents of the text, or the first `limit` of them. Raises BadFile, SystemFailure."""
        text = line_ends(decoded(read_bytes(self.path, own=True), self.path, own=True), AS_PREPRO)
        found = list(islice(filter(None, documents([text], AS_PREPRO.delimiter)), limit))
        if not found:
            raise BadFile(f"{self.path} holds no text but white space: name another file")
        return Records(found, None)

    def items(self, records: Records, scorer: Any, shots: int = 0, seed: int = 0) -> list[Rolling]:
        """Each document begins with the token that ends documents; without one, they follow each other, as in the token files that
        prepro makes then, and the first token of all is context only."""
        if shots:
            raise InvalidArgument(f"{self.name} is a text and takes no examples: leave --shots out")
        ids = np.concatenate([x for part in records for x in (beginning(scorer), scorer.encode(part))])
        words, size = sum(len(part.split()) for part in records), sum(len(part.encode()) for part in records)
        return [Rolling(ids, max(1, scorer.T // 2), None, 1, float(words), size)]

    def units(self, items: Sequence[Rolling], tokens: Sequence[float]) -> dict[str, Sequence[float]]:
        """The ppl is that of a token, because no published figure is compared."""
        words, size = [item.units for item in items], [item.bytes for item in items]
        return {"loss": tokens, "ppl": tokens, "ppl_word": words, "bpb": size}
