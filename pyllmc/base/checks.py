"""Checks of what a caller hands over: the value in the type that is needed, or InvalidArgument in one line. Standard library only."""

from __future__ import annotations

import math
import operator
import os
from typing import Any, NoReturn

from pyllmc.base.errors import InvalidArgument

MOST_SHOWN = 60  # characters of a value in a message


class CannotCopy(InvalidArgument, TypeError):
    """What lives in the engine's memory can neither be pickled nor copied."""


def refuse(name: str, value: Any, wanted: str) -> NoReturn:
    """Raises InvalidArgument: what was given, and what is wanted."""
    text = " ".join(repr(value).split())
    text = text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."
    raise InvalidArgument(f"{name}={text} is not {wanted}")


def is_array(value: Any) -> bool:
    """Of one number or more, as numpy and PyTorch have them: never a number here."""
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


def as_float(name: str, value: Any, finite: bool = True) -> float:
    """A number; finite=False: infinity, too, but never NaN."""
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
    """True or False, or numpy's, or 1 or 0."""
    if is_array(value) or not hasattr(value, "__index__") and type(value).__name__ not in ("bool_", "bool"):
        refuse(name, value, "True or False")
    if value not in (0, 1):
        refuse(name, value, "True or False")
    return bool(value)


def as_text(name: str, value: Any) -> str:
    """A str."""
    if not isinstance(value, str):
        refuse(name, value, "a text (str)")
    return str(value)


def as_word(name: str, value: Any) -> bytes:
    """A name as C takes it: no NUL in it, and no lone surrogate."""
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
    """A path or an argument as C takes it: the bytes that the system calls it by, else UTF-8."""
    try:
        return os.fsencode(text)
    except UnicodeEncodeError:  # the locale knows no such character, so no argument brought it
        return text_bytes(str(os.fspath(text)))


def text_bytes(text: str) -> bytes:
    """A text that a user typed as UTF-8; bytes that the locale does not know stay what they are."""
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
    """A class whose objects are refused by pickle, copy and deepcopy, with what to do instead."""

    _INSTEAD = ""

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise CannotCopy(
            f"a {type(self).__name__} lives in the engine's memory and can neither be pickled nor copied: {self._INSTEAD}"
        )
