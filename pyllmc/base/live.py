"""The line that a command shows on the terminal while it works. It is rewritten, and vanishes before other output.

Nothing is shown unless a command runs (errors.run_command) and its standard error is a terminal. Standard library only.
"""

from __future__ import annotations

import functools
import os
import stat
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import Any, TypeVar

Item = TypeVar("Item")
EVERY = 0.05  # seconds between two versions of a line that Python rewrites
_running = False  # True while a command runs
_visible = False  # True if the line can be seen
_width = 0  # characters of the line that is shown
_shown = 0.0  # the time at which that line was written


def begin() -> None:
    """Note that a command runs from now on."""
    global _running, _visible
    _running, _visible = True, _has_terminal()


def hide() -> None:
    """Show no line: of several processes one shows its own."""
    global _visible
    clear()
    _visible = False


def end() -> None:
    global _running, _visible
    clear()
    _running = _visible = False


def _has_terminal() -> bool:
    """True if stderr is a terminal and stdout is no pipe. A pipe's lines may come out on the same terminal (| tee)."""
    try:
        return os.isatty(2) and not stat.S_ISFIFO(os.fstat(1).st_mode)
    except OSError:
        return False


def show(text: str, at_once: bool = True) -> None:
    """Rewrite the line; "" removes it. at_once: do so even if the last line has just been shown."""
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
    """The characters that fit a line of the terminal itself, whatever $COLUMNS says, as in csrc/programs/terminal.c."""
    try:
        columns = os.get_terminal_size(2).columns
    except OSError:
        columns = 0
    return columns - 1 if columns > 8 else 79


def _fitted(text: str, most: int) -> str:
    """The text cut to `most` characters in its middle, where a path is; the progress at its end stays."""
    head = most // 4
    return text if len(text) <= most else f"{text[:head]}..{text[len(text) - (most - head - 2) :]}"


def clear() -> None:
    show("")


def tell(line: str) -> None:
    """Print a line that stays, on stderr, if a command runs: a library prints nothing."""
    if _running:
        clear()
        print(line, file=sys.stderr, flush=True)


def answer(line: str) -> None:
    """Show the answer to a signal, on a line of its own."""
    if _width:
        clear()
    elif os.isatty(2):
        line = f"\n{line}"  # the cursor may stand behind a text, or behind ^C
    _write(f"{line}\n")


def _write(text: str) -> None:
    """Write to stderr directly, because another thread may hold sys.stderr."""
    try:
        os.write(2, text.encode(sys.stderr.encoding or "utf-8", "replace"))
    except (OSError, AttributeError):
        pass  # the terminal is closed, so nobody would see the line


def each(items: Iterable[Item], what: str, of: int | None = None) -> Iterator[Item]:
    """Yield the items, while the line says "WHAT 3 of 50, ETA 0:12". of: their number, if `items` has no len()."""
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

_raised: list[BaseException] = []  # exceptions of signal handlers that ran within a callback
# True: the engine shall end its present work, without an exception (signals.stopped_by_signals)
stop_wanted = False
turn = threading.RLock()  # held while a line is shown or a stop is set, so that no line follows the stop


@functools.cache  # the cache keeps it alive, because C holds its address
def _receiver(ffi: Any) -> Any:
    """The callback that shows what a library reports. Python's signal handlers run at each report."""

    def pulse(context: Any, text: Any) -> int:
        with turn:
            if not stop_wanted:  # after a signal its answer stays the last line
                show(ffi.string(text).decode("utf-8", "replace"))
        return int(stop_wanted)

    def failed(kind: Any, error: BaseException, trace: Any) -> None:
        _raised.append(error)

    return ffi.callback("int(void *, const char *)", pulse, error=1, onerror=failed)


def listen(ffi: Any, lib: Any) -> None:
    """Show the progress that a library reports of this thread's calls, if a command runs."""
    if _running:
        lib.llmc_on_pulse(_receiver(ffi), ffi.NULL)


@contextmanager
def interruptible(ffi: Any, lib: Any) -> Iterator[None]:
    """Let Ctrl-C end a library's call within, also where no command runs: the call then fails, and the next check raises.

    Only the main thread runs signal handlers, so nothing changes in others.
    """
    if _running or threading.current_thread() is not threading.main_thread():
        yield
        return
    lib.llmc_on_pulse(_receiver(ffi), ffi.NULL)
    try:
        yield
    finally:
        lib.llmc_on_pulse(ffi.NULL, ffi.NULL)


def raise_what_came() -> None:
    """Raise the exception that a signal's handler raised during the main thread's call that has just ended, if any."""
    if _raised and threading.current_thread() is threading.main_thread():
        first = _raised[0]
        _raised.clear()
        raise first
