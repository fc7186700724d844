"""What a command shows while it works: a line on the terminal that is rewritten, and goes before anything else is shown.

Nothing is shown unless a command runs (errors.run_command) and its standard error is a terminal. Standard library only.
"""

from __future__ import annotations

import os
import stat
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sized
from typing import Any, TypeVar

Item = TypeVar("Item")
EVERY = 0.05  # seconds between two looks of a line that Python rewrites
_running = False  # whether a command runs
_visible = False  # whether somebody can see it
_width = 0  # characters of the line that is shown
_shown = 0.0  # when that line was written


def begin() -> None:
    """A command runs from now on."""
    global _running, _visible
    _running, _visible = True, _has_terminal()


def end() -> None:
    global _running, _visible
    clear()
    _running = _visible = False


def _has_terminal() -> bool:
    """Not before the lines of a pipe, which may come out on the same terminal (| tee)."""
    try:
        return os.isatty(2) and not stat.S_ISFIFO(os.fstat(1).st_mode)
    except OSError:
        return False


def show(text: str, at_once: bool = True) -> None:
    """Rewrites the line; "" takes it away. at_once: even if the one before has just been shown."""
    global _width, _shown
    if not _visible or (not text and not _width):
        return
    now = time.monotonic()
    if text and not at_once and now - _shown < EVERY:
        return
    text = _fitted(text, _fits())
    blank = " " * (_width - len(text))
    _shown, _width = now, len(text)
    _write(f"\r{text}{blank}" + ("" if text else "\r"))


def _fits() -> int:
    """How many characters, as csrc/terminal.c has it: of the terminal itself, whatever $COLUMNS says."""
    try:
        columns = os.get_terminal_size(2).columns
    except OSError:
        columns = 0
    return columns - 1 if columns > 8 else 79


def _fitted(text: str, most: int) -> str:
    """The path in its middle gives way to how far it is, at its end."""
    head = most // 4
    return text if len(text) <= most else f"{text[:head]}..{text[len(text) - (most - head - 2) :]}"


def clear() -> None:
    show("")


def answer(line: str) -> None:
    """The answer to a signal, on a line of its own."""
    if _width:
        clear()
    elif os.isatty(2):
        line = f"\n{line}"  # behind a text, or ^C
    _write(f"{line}\n")


def _write(text: str) -> None:
    """Past sys.stderr, which another thread may hold."""
    try:
        os.write(2, text.encode(sys.stderr.encoding or "utf-8", "replace"))
    except (OSError, AttributeError):
        pass  # the terminal has gone, and with it whoever would see it


def each(items: Iterable[Item], what: str, of: int | None = None) -> Iterator[Item]:
    """The items, while the line says "WHAT 3 of 50, ETA 0:12". of: how many, where it cannot be asked."""
    if of is None and isinstance(items, Sized):
        of = len(items)
    start = time.monotonic()
    try:
        for i, item in enumerate(items):
            show(f"{what} {i + 1}{_far(i, of, time.monotonic() - start)}", at_once=i == 0)
            yield item
    finally:
        clear()


def _far(done: int, of: int | None, seconds: float) -> str:
    if not of:
        return ""
    return f" of {of}" + (f", ETA {clock(seconds / done * (of - done))}" if done else "")


def clock(seconds: float) -> str:
    s = int(seconds)
    return f"{s // 3600}:{s // 60 % 60:02}:{s % 60:02}" if s >= 3600 else f"{s // 60}:{s % 60:02}"


# ---------------------------------------------------------------------------------------------------------
# the engine's signs of life

_callbacks: list[Any] = []  # kept alive: C holds their addresses
_raised: list[BaseException] = []  # by a signal's handler, within one
# the engine is to end what is under way, without an exception (signals.stopped_by_signals)
stop_wanted = False
turn = threading.RLock()  # who holds it decides between a line and a stop


def listen(ffi: Any, lib: Any) -> None:
    """Shows what a library says of this thread's calls, and lets Python's signal handlers run between their pieces."""
    if not _running:
        return

    def pulse(context: Any, text: Any) -> int:
        with turn:
            if not stop_wanted:  # the last line is the answer to the signal
                show(ffi.string(text).decode("utf-8", "replace"))
        return int(stop_wanted)

    def failed(kind: Any, error: BaseException, trace: Any) -> None:
        _raised.append(error)

    callback = ffi.callback("int(void *, const char *)", pulse, error=1, onerror=failed)
    _callbacks.append(callback)
    lib.llmc_on_pulse(callback, ffi.NULL)


def raise_what_came() -> None:
    """What a signal's handler has raised during the call that has just ended."""
    if _raised:
        raise _raised.pop()
