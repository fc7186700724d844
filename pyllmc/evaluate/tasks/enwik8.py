"""enwik8 (the Hutter prize): the first 10^8 bytes of Wikipedia's XML. The last 5 million are the test part."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pyllmc.base.errors import BadFile
from pyllmc.evaluate.fetch import Part, decoded, read_bytes, read_hub
from pyllmc.evaluate.streams import HALF, Stream
from pyllmc.evaluate.task import Records

WHOLE, TEST = 100_000_000, 5_000_000  # bytes; the usual division is 90, 5 and 5 million
BLOCK = 1000  # bytes of a record


class Enwik8(Stream):
    """Bits per byte of the test part, which the GPT-2 paper (section 3.1) calls enwik8's canonical unit. The bytes are scored as they are."""

    name = "enwik8"
    metrics = ("bpb", "loss")
    protocol = f"the last 5 million bytes as they are; bits per byte (GPT-2 paper, sec. 3.1); {HALF}"
    record = "block of 1,000 bytes"
    test = Part(
        ("enwik8", "enwik8/test.txt"),
        "the 100,000,000 bytes, or the last 5,000,000",
        "LTCB/enwik8",
        "enwik8-raw",
        "train",
        scripted=True,
    )

    def from_file(self, path: Path) -> Iterable[bytes]:
        return _blocks(read_bytes(path), path)

    def from_hub(self, part: Part) -> Iterable[bytes]:
        """The hub's enwik8-raw is one text; its other edition has lines without the spaces at their ends."""
        texts = [row["text"] for row in read_hub(part, self.name, self.fields)]
        return _blocks("".join(texts).encode(), Path(part.hub))

    def texts(self, records: Records) -> Iterable[tuple[str, float, int]]:
        text = whole_characters(b"".join(records), Path(self.name))
        size = len(text.encode())
        yield text, size, size


def _blocks(data: bytes, path: Path) -> Iterable[bytes]:
    if len(data) not in (WHOLE, TEST):
        raise BadFile(
            f"{path} has {len(data):,} bytes, and enwik8 has {WHOLE:,} (its test part {TEST:,}): is it cut short? Fetch it again"
        )
    data = data[-TEST:]
    whole_characters(data, path)
    return (data[at : at + BLOCK] for at in range(0, len(data), BLOCK))


def whole_characters(data: bytes, path: Path) -> str:
    """The text without the parts of a character that a cut has left at either end: at most 3 bytes each. Raises BadFile."""
    start = next((i for i in range(min(4, len(data))) if data[i] & 0xC0 != 0x80), 0)
    for end in range(len(data), max(start, len(data) - 4), -1):
        try:
            return data[start:end].decode()
        except UnicodeDecodeError as error:
            if error.start + start < len(data) - 3:
                break
    return decoded(data[start:], path)
