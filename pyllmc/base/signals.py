"""Ctrl-C, SIGTERM, SIGUSR1 and SIGHUP: the first is answered in a line and stops a command's work, the second ends the process at once.

Python runs a handler in the main thread, between two of its own instructions, and so not while a library works there.
Therefore a thread of ours hears of each signal, too (signal.set_wakeup_fd). It answers, and ends the process if needed.
Only commands install anything (errors.begin_command, errors.run_command). Standard library only.
"""

from __future__ import annotations

import atexit
import os
import signal
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Thread
from typing import Any

from pyllmc.base import live

INTERRUPTED = 130
# the signals that end a command, as in csrc/programs/train_gpt2.c -> Python's default handler
WAYS_TO_END: dict[int, Any] = {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGTERM: signal.SIG_DFL,
    signal.SIGUSR1: signal.SIG_DFL,
    signal.SIGHUP: signal.SIG_DFL,
}


class Watch:
    """The thread that hears of every signal at once."""

    def __init__(self) -> None:
        self.came = 0
        self.copies_s = 0.0  # for so long after the first signal, others are copies of it
        self._first = 0.0
        self.stop: Callable[[], None] = lambda: None
        self.answer: Callable[[], str] = lambda: "stopping; again to quit now"
        self._ear, self._mouth = os.pipe()
        os.set_blocking(self._mouth, False)
        self.is_deaf = False  # True if the system starts no more threads: then Python's handlers call hear()
        self._thread = Thread(target=self._listen, daemon=True)
        try:
            self._thread.start()
        except RuntimeError:
            self.is_deaf = True
            os.close(self._ear)
        self._before = -1 if self.is_deaf else signal.set_wakeup_fd(self._mouth, warn_on_full_buffer=False)

    def close(self) -> None:
        if not self.is_deaf:
            signal.set_wakeup_fd(self._before)
        os.close(self._mouth)  # this ends the thread, once it has answered every signal
        if not self.is_deaf:
            self._thread.join(1)

    def _listen(self) -> None:
        while numbers := os.read(self._ear, 64):
            for number in numbers:
                if number in WAYS_TO_END:
                    self.hear(number)
        os.close(self._ear)

    def hear(self, number: int) -> None:
        if number == signal.SIGHUP:
            leave_terminal()
        if self.came and time.monotonic() - self._first < self.copies_s:
            return
        self.came += 1
        if self.came == 1:
            self._first = time.monotonic()
        else:
            live.clear()
            os._exit(INTERRUPTED)
        self.stop()
        if line := self.answer():
            live.answer(line)


def leave_terminal() -> None:
    """Send output that would go to a terminal which has gone to /dev/null, because writing it fails."""
    for fd in (1, 2):
        with suppress(OSError):
            if not stat.S_ISCHR(os.fstat(fd).st_mode):  # isatty() is false once the terminal has gone
                continue
            os.dup2(os.open(os.devnull, os.O_WRONLY), fd)


_watch: Watch | None = None  # set while a command runs


def expect_copies(seconds: float) -> None:
    """Take signals that follow the first one at once for the same: a cluster and torchrun may both send it to a process."""
    if _watch:
        _watch.copies_s = seconds


def _end(number: int, frame: Any) -> None:
    os._exit(INTERRUPTED)


def _leave(number: int, frame: Any) -> None:
    """End the program on SIGTERM: like Ctrl-C, but SystemExit never means the end of one answer only."""
    raise SystemExit(INTERRUPTED)


def _ignore() -> None:
    """Ignore signals while Python ends, because it would restore the system's handlers, and they change the exit code."""
    for number in WAYS_TO_END:
        if signal.getsignal(number) is _end:
            signal.signal(number, signal.SIG_IGN)


def end_quietly() -> None:
    """Let either signal end a command while it loads its libraries, unless the shell had the signal ignored."""
    atexit.register(_ignore)
    for number, default in WAYS_TO_END.items():
        if signal.getsignal(number) is default:
            signal.signal(number, _end)


@contextmanager
def interruptible() -> Iterator[None]:
    """Wrap a command's work, after end_quietly: Ctrl-C raises KeyboardInterrupt, SIGTERM raises SystemExit."""
    global _watch
    loading = [number for number in WAYS_TO_END if signal.getsignal(number) is _end]
    if not loading:
        yield
        return
    live.begin()
    _watch = Watch()
    for number in loading:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else _leave)
    try:
        yield
    finally:
        for number in loading:
            signal.signal(number, _end)
        _watch.close()
        _watch = None
        live.end()


@contextmanager
def stopped_by_signals(
    stop: Callable[[], None], answer: Callable[[], str] | None = None
) -> Iterator[Callable[[], bool]]:
    """Inside, Ctrl-C and SIGTERM call stop() from another thread, rather than raise. Yield a function: has one come?

    answer: makes the line that is shown then. Outside a command the handlers stay as they are.
    """
    watch = _watch
    if not watch:
        yield lambda: False
        return
    came: list[int] = []

    def stop_all() -> None:
        with live.turn:
            live.stop_wanted = True
        stop()

    watch.stop, before_stop = stop_all, watch.stop
    watch.answer, before_answer = answer or watch.answer, watch.answer
    caught = [number for number in WAYS_TO_END if signal.getsignal(number) not in (signal.SIG_IGN, None)]

    def note(number: int, frame: Any) -> None:
        came.append(number)
        if watch.is_deaf:
            watch.hear(number)

    handlers = {number: signal.signal(number, note) for number in caught}
    try:
        yield lambda: bool(came) or watch.came > 0
    finally:
        live.stop_wanted = False
        watch.stop, watch.answer = before_stop, before_answer
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextmanager
def answered_by_turns() -> Iterator[Callable[[], None]]:
    """Inside, Ctrl-C ends an answer without a line. The caller calls the yielded function at every turn: only a second
    Ctrl-C after that ends the program, at once."""
    watch = _watch
    if not watch:
        yield lambda: None
        return
    before, watch.answer = watch.answer, lambda: ""

    def forget() -> None:
        watch.came = 0

    try:
        yield forget
    finally:
        watch.answer = before
