"""text8: the text of Wikipedia in 27 characters, a to z and space. The last 5 million are the test part."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from pyllmc.base.errors import BadFile
from pyllmc.evaluate.fetch import Part, decoded, read_bytes, read_hub
from pyllmc.evaluate.streams import HALF, Stream
from pyllmc.evaluate.task import Records

WHOLE, TEST = 100_000_000, 5_000_000  # characters; the usual division is 90, 5 and 5 million
BLOCK = 1000  # characters of a record


class Text8(Stream):
    """Bits per character of the test part (GPT-2 paper, section 3.1). Nothing can be de-tokenised: capitals, digits and marks are lost."""

    name = "text8"
    metrics = ("bpc", "loss")
    protocol = (
        f"the last 5 million characters as they are; bits per character (GPT-2 paper, sec. 3.1); {HALF}"
    )
    record = "block of 1,000 characters"
    test = Part(
        ("text8", "text8/test.txt"), "the 100,000,000 characters, or the last 5,000,000", "afmck/text8"
    )

    def from_file(self, path: Path) -> Iterable[str]:
        text = decoded(read_bytes(path), path).rstrip("\n")
        return _blocks(text, str(path))

    def from_hub(self, part: Part) -> Iterable[str]:
        text = "".join(row["text"] for row in read_hub(part, self.name, self.fields))
        return _blocks(text, part.hub)

    def texts(self, records: Records) -> Iterable[tuple[str, float, int]]:
        text = "".join(records)
        yield text, len(text), len(text)


def _blocks(text: str, where: str) -> Iterable[str]:
    if len(text) not in (WHOLE, TEST):
        raise BadFile(
            f"{where} has {len(text):,} characters, and text8 has {WHOLE:,} (its test part {TEST:,}): is it cut short? Fetch it again"
        )
    text = text[-TEST:]
    if other := re.search("[^a-z ]", text):
        raise BadFile(
            f"{where} holds {other[0]!r}, and text8 has a to z and spaces only: is this another file?"
        )
    return (text[at : at + BLOCK] for at in range(0, len(text), BLOCK))
