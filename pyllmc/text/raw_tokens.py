"""The content of a file without a token file's header, told from its first bytes.

csrc/data/rawids.c decides alike, and a test compares the two.
"""

from __future__ import annotations

import os
import sys
from array import array

SAMPLE = 1024  # bytes that are examined
MOST_HIGH = 15  # the upper half of an int32 id of any vocabulary below 2^20
FEW_IDS = 1024  # two halves that are both below this are a pair of uint16 ids
CONVERT = "python -m pyllmc.prepro --input {} makes a data set"
FOREIGN = {
    b"\x93NUMPY": "it is a NumPy array",
    b"PK\x03\x04": "it is a zip archive, as .npz and PyTorch's .pt are",
    b"\x1f\x8b": "it is compressed (gzip)",
}


def what_holds(head: bytes, size: int) -> str:
    """The type of the ids, "uint16" or "int32"; another content in words; or "" if it is unknown.

    The upper halves of int32 ids are small, and zero for most vocabularies. If two uint16 ids stand in the place of an
    int32, the upper is as large as the lower.
    """
    head = head[:SAMPLE]
    for start, what in FOREIGN.items():
        if head.startswith(start):
            return what
    if head and all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in head):
        return "it looks like text"
    halves = array("H", head[: len(head) // 4 * 4])
    if sys.byteorder == "big":
        halves.byteswap()
    low, high = halves[::2], halves[1::2]
    large, some = sum(h > MOST_HIGH for h in high), sum(h > 0 for h in high)
    if size % 2 == 0 and (4 * large > len(high) or (4 * some > len(high) and max(low) < FEW_IDS)):
        return "uint16"
    return "" if size % 4 else "int32"


def why_no_int32(path: str, head: bytes, size: int, expected: str) -> str:
    """The reason why a file without a header is no stream of int32 ids, and the remedy; "" if it is one."""
    kind = what_holds(head, size)
    if kind == "uint16":
        made = CONVERT.format(os.path.dirname(path) or os.curdir)
        return f"{path}: it has no header and looks like uint16 ids, as nanoGPT writes them: {made}"
    if kind == "int32":
        return ""
    kind = kind or f"{size} bytes are no raw int32 stream either"
    return f"{path} is no token file: {expected}, and {kind}; {CONVERT.format('TEXT')}"
