"""Checks of a caller's values: each returns the value in the type that is needed, or raises InvalidArgument in one line.

Standard library only.
"""

from __future__ import annotations

import math
import operator
import os
from typing import Any, NoReturn

from pyllmc.base.errors import InvalidArgument

MOST_SHOWN = 60  # characters of a value in a message at most


class CannotCopy(InvalidArgument, TypeError):
    """An object that lives in the engine's memory can neither be pickled nor copied."""


def refuse(name: str, value: Any, wanted: str) -> NoReturn:
    """Raise InvalidArgument: it shows the value that was given, and names what is wanted."""
    text = " ".join(repr(value).split())
    text = text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."
    raise InvalidArgument(f"{name}={text} is not {wanted}")


def is_array(value: Any) -> bool:
    """True if the value is an array of numpy or PyTorch. Even one of a single number is no number here."""
    return getattr(value, "ndim", 0) != 0


def as_int(name: str, value: Any, bits: int = 32) -> int:
    """A whole number that a C integer of that many bits holds."""
    try:
        number = operator.index(value)
    except TypeError:
        refuse(name, value, "a whole number")
    if not -(2 ** (bits - 1)) <= number < 2 ** (bits - 1):
        raise InvalidArgument(
            f"{name}={number if number.bit_length() < 200 else '...'} does not fit {bits} bits"
        )
    return number


def as_count(name: str, value: Any) -> int:
    """A whole number of at least 0 that a C int holds."""
    number = as_int(name, value)
    if number < 0:
        raise InvalidArgument(f"{name}={number} is negative")
    return number


def as_float(name: str, value: Any, finite: bool = True) -> float:
    """A finite number. With finite=False infinity passes, too, but NaN never does."""
    try:
        if isinstance(value, (str, bytes, bytearray)) or is_array(value):
            raise TypeError
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        refuse(name, value, "a number")
    if math.isnan(number) or (finite and math.isinf(number)):
        refuse(name, value, "a finite number")
    return number


def as_flag(name: str, value: Any) -> bool:
    """A flag as bool: Python's or numpy's True and False, or 1 and 0."""
    if is_array(value) or not hasattr(value, "__index__") and type(value).__name__ not in ("bool_", "bool"):
        refuse(name, value, "True or False")
    if value not in (0, 1):
        refuse(name, value, "True or False")
    return bool(value)


def as_text(name: str, value: Any) -> str:
    """A text: a str, and nothing else."""
    if not isinstance(value, str):
        refuse(name, value, "a text (str)")
    return str(value)


def as_word(name: str, value: Any) -> bytes:
    """The bytes of a name as C takes it: without a NUL, and without a lone surrogate."""
    text = as_text(name, value)
    try:
        if "\0" not in text:
            return text.encode()
    except UnicodeEncodeError:
        pass
    refuse(name, value, "a name")


def as_bytes(name: str, value: Any) -> bytes:
    if not isinstance(value, (bytes, bytearray, memoryview)):
        refuse(name, value, "bytes")
    return bytes(value)


def encoded(text: str | bytes | os.PathLike[str]) -> bytes:
    """The bytes of a path or an argument as C takes it: the system's own encoding if that can write it, else UTF-8."""
    try:
        return os.fsencode(text)
    except UnicodeEncodeError:  # the locale knows no such character, so no argument brought it
        return text_bytes(str(os.fspath(text)))


def text_bytes(text: str) -> bytes:
    """The UTF-8 of a text that a user typed. Bytes that the locale does not know stay as they are."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise InvalidArgument(f"{text!r:.80} holds half a character, which no text has") from None


def as_path(name: str, value: Any) -> str:
    """The path of a file or folder: a str, bytes or path-like object that the system can take."""
    if not isinstance(value, (str, bytes, os.PathLike)):
        refuse(name, value, "a path")
    try:
        data = encoded(value)
    except (TypeError, InvalidArgument):
        refuse(name, value, "a path")
    if b"\0" in data:
        raise InvalidArgument(f"{name} holds a NUL byte")
    return os.fsdecode(data)


class NotCopied:
    """A class whose objects refuse pickle, copy and deepcopy. The error says what to do instead: _INSTEAD."""

    _INSTEAD = ""

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise CannotCopy(
            f"a {type(self).__name__} lives in the engine's memory and can neither be pickled nor copied: {self._INSTEAD}"
        )
