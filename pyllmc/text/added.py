"""Added pieces of a table of byte pairs, as Hugging Face's tokenizers have them (<|user|>, [PAD]): text becomes them wherever
they stand, before the byte pairs of the text between them.

A tokenizer.bin says in header[5] how many they are, in header[6] and on their ids, ascending; csrc/text/tokenizer.c reads the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

from pyllmc.base.errors import DataError
from pyllmc.text.bins import HEADER_BYTES

AT = 5  # where the header tells them
MOST = HEADER_BYTES // 4 - AT - 1
Cut = Callable[[str], Iterator[tuple[str, int]]]


def of_header(header: Sequence[int]) -> Sequence[int]:
    """The ids in the header of a tokenizer.bin. Raises DataError."""
    if not 0 <= header[AT] <= MOST:
        raise DataError(f"expected 0..{MOST} added pieces, found {header[AT]}")
    ids = header[AT + 1 : AT + 1 + header[AT]]
    if any(a >= b for a, b in zip(ids, ids[1:])):
        raise DataError("the ids of the added pieces do not ascend")
    return ids


def problem(pieces: Sequence[bytes], eot: int, ids: Sequence[int]) -> str:
    """The fault of the added pieces in words, or ''."""
    if len(ids) > MOST:
        return f"{len(ids)} pieces are added, and a tokenizer.bin has room for {MOST}"
    for i in ids:
        if not 0 <= i < len(pieces) or i == eot or ids.count(i) > 1:
            return f"the added id {i} stands twice, is EOT, or is outside [0, {len(pieces)})"
        try:
            pieces[i].decode("utf-8")
        except UnicodeDecodeError:
            return f"the added piece {pieces[i]!r} is no UTF-8"
    return ""


def cutter(pieces: Sequence[bytes], ids: Sequence[int]) -> Cut:
    """A function that yields a text in parts: an added piece and its id, or what stands between two, and -1. Of several that
    begin at a place it takes the longest."""
    known = {pieces[i].decode("utf-8"): i for i in ids}
    pattern = re.compile("|".join(map(re.escape, sorted(known, key=len, reverse=True))) or r"(?!)")

    def cut(text: str) -> Iterator[tuple[str, int]]:
        at = 0
        for found in pattern.finditer(text):
            if found.start() > at:
                yield text[at : found.start()], -1
            yield found[0], known[found[0]]
            at = found.end()
        if at < len(text):
            yield text[at:], -1

    return cut
