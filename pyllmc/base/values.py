"""Values on a command line: numbers as csrc/base/number.c reads them, and text with escapes; and numbers in JSON."""

from __future__ import annotations

import argparse
import decimal
import math
import re
from collections.abc import Callable
from typing import Any

from pyllmc.base.errors import typed

NUMBER = re.compile(
    r"[+-]?(?:\d(?:_?\d)*\.?(?:\d(?:_?\d)*)?|\.\d(?:_?\d)*)(?:[eE][+-]?\d(?:_?\d)*)?", re.ASCII
)
LONGEST = 300  # characters of a number at most, as in csrc/base/number.c
LARGEST = 2**63 - 1  # the largest whole number that csrc/base/number.c holds


def number(text: str) -> float:
    """A number as csrc/base/number.c reads it: 0.5, 1e-4, 10_000. Raises argparse.ArgumentTypeError."""
    if len(text) > LONGEST or not NUMBER.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number")
    value = float(text)
    if not value and decimal.Decimal(text):
        raise argparse.ArgumentTypeError(f"{text} is too small for a number, and is not 0: write 0")
    return value


def whole(text: str) -> int:
    """A whole number; 1e4, 1.5e3 and 10_000 are some, 1e-1 is none. Raises argparse.ArgumentTypeError."""
    known = len(text) <= LONGEST and NUMBER.fullmatch(text)
    value = decimal.Decimal(text) if known else decimal.Decimal("nan")
    if not value.is_finite() or value != value.to_integral_value():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    if not value or value.adjusted() < 30:
        return int(value)
    return 10**30 if value > 0 else -(10**30)  # beyond every bound, and cheaper than all its digits


def at_least(low: int) -> Callable[[str], int]:
    """The type of an argument that is a whole number of at least `low`."""

    def read(text: str) -> int:
        try:
            value = whole(text)
        except argparse.ArgumentTypeError:
            value = low - 1
        if value < low:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {low}")
        if value > LARGEST:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at most {LARGEST}")
        return value

    return read


def finite(values: dict[str, Any]) -> dict[str, Any]:
    """The values for JSON, which has no number that is not finite: None takes its place."""
    return {name: None if isinstance(x, float) and not math.isfinite(x) else x for name, x in values.items()}


MOST_BYTES = 1e18  # a size or a rate above it is a mistake
UNITS = {letter: 1000.0**i for i, letter in enumerate("kmgt", 1)}
RATE = re.compile(r"([\d._eE+-]+) ?([kmgtKMGT])(bit(?:/s)?|bps|B/s)", re.ASCII)
SIZE = re.compile(r"([\d._eE+-]+) ?([kmgtKMGT])B", re.ASCII)


def _with_unit(text: str, pattern: re.Pattern[str], what: str) -> float:
    """A number with a decimal unit, in bytes: one byte or more. Bits and bytes are told apart by whole words: b and B are too alike."""
    found = pattern.fullmatch(text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
    value = number(found[1]) * UNITS[found[2].lower()] / (8 if "b" in text[found.end(2) :] else 1)
    if not 1 <= value <= MOST_BYTES:
        raise argparse.ArgumentTypeError(f"{text!r} is not in 1..{MOST_BYTES:g} bytes")
    return value


def rate(text: str) -> float:
    """Bytes a second: 10Gbit, 10Gbps, 100Mbit, 12.5GB/s. Raises argparse.ArgumentTypeError."""
    return _with_unit(text, RATE, "a rate with its unit, such as 10Gbit, 100Mbit (a second) or 12.5GB/s")


def size(text: str) -> float:
    """Bytes: 24GB, 512MB, by powers of 1000. Raises argparse.ArgumentTypeError."""
    return _with_unit(text, SIZE, "a size with its unit, such as 24GB or 512MB")


ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\"}
ESCAPE = re.compile(r"\\(?:([ntr\\])|x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|)")


def unescaped(text: str) -> str:
    r"""Replace the escapes in an option's text: \n \t \r \\ \xHH \uHHHH. Any other backslash is an error.

    Two \uHHHH may be the two halves of one character, as in JSON. Raises argparse.ArgumentTypeError.
    """

    def character(found: re.Match[str]) -> str:
        letter, x, u = found.groups()
        if letter is None and not x and not u:
            at = text[found.start() : found.start() + 2]
            raise argparse.ArgumentTypeError(
                f"{at!r} in {text!r} is no escape: there are \\n \\t \\r \\xHH \\uHHHH, and \\\\ for a backslash"
                if at != "\\"
                else f"{text!r} ends within an escape: write \\\\ for a backslash"
            )
        return ESCAPES[letter] if letter else chr(int(x or u, 16))

    text = typed(text)
    decoded = ESCAPE.sub(character, text)
    if "\\u" not in text:
        return decoded
    try:  # the two halves of a character become one
        return decoded.encode("utf-16-le", "surrogatepass").decode("utf-16-le")
    except UnicodeDecodeError:
        raise argparse.ArgumentTypeError(
            f"{text!r} holds half a character: \\uD800 to \\uDFFF come in pairs"
        ) from None
