"""What can go wrong, and how a command then ends: one line on stderr and an exit code, the same as ./train_gpt2's.

Standard library only: a command calls `begin_command` before it imports anything large.
"""

from __future__ import annotations

import codecs
import errno
import importlib
import io
import os
import shlex
import shutil
import sys
import threading
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, NamedTuple

from pyllmc.base import checkout, live, signals
from pyllmc.base.signals import INTERRUPTED, stopped_by_signals  # noqa: F401, commands import them from here


class LlmcError(Exception):
    """Any failure of the engine or its tools; the message is one line that says why and what to do."""

    def __init__(self, *args: Any) -> None:
        # a path or a word that it names may hold a line break
        super().__init__(*(arg.replace("\n", "\\n") if isinstance(arg, str) else arg for arg in args))


class InvalidArgument(LlmcError, ValueError):
    """An argument, option or shape that cannot be."""


class OutOfMemory(LlmcError, MemoryError):
    """The memory plan does not fit."""


class DataError(LlmcError, ValueError):
    """Data, or a file, that cannot be used."""


class BadFile(DataError):
    """A file that is not what it should be."""


class SystemFailure(DataError, OSError):
    """The system would not read or write."""


class NoDevice(LlmcError, RuntimeError):
    """No such device or instruction set here, or a library is missing."""


class MissingDependency(DataError, NoDevice, ImportError):
    """An optional package is not installed; the message says how to install it."""


class NotFinite(LlmcError, ArithmeticError):
    """A loss or gradient that is NaN or infinite."""


for _public in (LlmcError, InvalidArgument, OutOfMemory, BadFile, SystemFailure, NoDevice, NotFinite):
    _public.__module__ = "pyllmc"  # by that name a user catches it, and a traceback shows it


class Ending(NamedTuple):
    """How a command ends after an error: with 1 - status."""

    status: int  # llmc_status
    error: type[LlmcError]
    alike: type[Exception] | None  # Python's own that ends so, too
    words: str  # what --help calls it

    @property
    def code(self) -> int:
        return 1 - self.status


ENDINGS = (
    Ending(-1, InvalidArgument, ValueError, "usage"),
    Ending(-2, OutOfMemory, MemoryError, "memory"),
    Ending(-3, BadFile, None, "malformed file"),
    Ending(-4, SystemFailure, OSError, "input/output"),
    Ending(-5, NoDevice, ImportError, "device"),
    Ending(-6, NotFinite, None, "not finite"),
)
ERRORS = {ending.status: ending.error for ending in ENDINGS}
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
EXIT_CODES = f"exit status: 0 done, {', '.join(f'{end.code} {end.words}' for end in ENDINGS)}, {INTERRUPTED} interrupted"


def exit_code(error: BaseException) -> int:
    """What a command ends with; 0 for an error that is none of the user's, but a mistake in the program."""
    for end in reversed(ENDINGS):  # the first row is last: many errors are a ValueError, too
        if isinstance(error, (end.error, end.alike or end.error)):
            return end.code
    return 0


def line_of(error: BaseException) -> str:
    """The message in one line; the system's as "file: reason"."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    if isinstance(error, OSError) and error.errno in FULL:  # of a file it would be explained (files.writing)
        return f"standard output: {error.strerror}: free some space or write elsewhere"
    if isinstance(error, OSError) and error.errno == errno.EBADF:
        return "standard input or output is closed: leave it open, or make it /dev/null"
    return " ".join(str(error).split("\n")) or type(error).__name__


def counted(n: int, what: str) -> str:
    """1 layer, 2 layers."""
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def how_to_install(package: str) -> str:
    """The remedy for a missing package; a checkout brings its own environment."""
    return f"pip install {package}" + (
        ", or make setup and use .venv/bin/python" if checkout.is_checkout() else ""
    )


def need(module: str, why: str, package: str = "") -> Any:
    """Import an optional `module`, or say in one line what lacks and how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as e:
        raise MissingDependency(f"{why} needs {module}: {how_to_install(package or module)}") from e


def python_command() -> str:
    """How this Python is called, in a command that can be pasted: by its name where that finds it, else by its path."""
    for name in ("python", "python3"):
        if os.path.abspath(shutil.which(name) or "") == sys.executable:
            return name
    here = os.path.relpath(sys.executable)
    return shlex.quote(sys.executable if here.startswith(os.pardir) else here)


def typed(argument: str) -> str:
    """The text of an argument, whatever the locale made of it; bytes that are no UTF-8 stay surrogates, which are refused later."""
    try:
        return argument.encode("utf-8", "surrogateescape").decode("utf-8")
    except UnicodeError:
        return argument


def _printable(error: UnicodeError) -> tuple[str | bytes, int]:
    """What an output cannot encode, as \\u2014; but bytes of a path or an argument, which Python hides in surrogates, as they were."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    if error.encoding.replace("-", "_").startswith(("utf_16", "utf_32")):  # where no byte stands alone
        return "".join(
            f"\\x{ord(c) - 0xDC00:02x}" if "\udc80" <= c <= "\udcff" else ascii(c)[1:-1] for c in text
        ), error.end
    return b"".join(
        bytes([ord(c) - 0xDC00]) if "\udc80" <= c <= "\udcff" else c.encode("ascii", "backslashreplace")
        for c in text
    ), error.end


def print_anything() -> None:
    """No command dies of a character that its terminal, pipe or file cannot hold: cp1252, ASCII, a locale of C."""
    codecs.register_error("pyllmc.printable", _printable)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="pyllmc.printable")


class _Told(io.FileIO):
    """Standard error: what cannot be told there ends no work."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in (*FULL, errno.EBADF):
                raise
            return memoryview(data).nbytes


def _stream(raw: io.FileIO, like: Any) -> io.TextIOWrapper:
    encoding = like.encoding if like else "utf-8"
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding, line_buffering=True)


def hold_streams() -> None:
    """A stream that was closed stays so, and no file takes its number: csrc/programs/program.h."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDONLY if fd else os.O_WRONLY)
    sys.stdin = sys.stdin or open(0, closefd=False)
    sys.stdout = sys.stdout or _stream(io.FileIO(1, "w", closefd=False), None)
    sys.stderr = _stream(_Told(2, "w", closefd=False), sys.stderr)


def begin_command(*packages: str) -> None:
    """The first thing a program does: Ctrl-C or SIGTERM while it loads end it quietly, a missing package is one line."""
    hold_streams()
    print_anything()
    spec = sys.modules["__main__"].__spec__
    prog = spec.name.removesuffix(".__main__") if spec else os.path.basename(sys.argv[0])
    signals.end_quietly()
    spare_threads()
    for package in packages:
        if find_spec(package) is None:
            print(f"{prog}: {package} is not installed: {how_to_install(package)}", file=sys.stderr)
            sys.exit(exit_code(ImportError()))


def spare_threads() -> None:
    """Where a limit (ulimit -u, a container's) lets no thread start for each core, libraries must not try: they end the process."""
    done, threads = threading.Event(), []
    try:
        for _ in range(os.cpu_count() or 1):
            threads.append(threading.Thread(target=done.wait, daemon=True))
            threads[-1].start()
    except RuntimeError:
        os.environ.update(OPENBLAS_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", RAYON_NUM_THREADS="1")
        threads.pop()
    done.set()
    for thread in threads:
        thread.join()


def _tell(line: str) -> None:
    live.clear()
    print(line, file=sys.stderr)


def _discard_output() -> None:
    """What is still held for it would fail again as the program ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def run_command(prog: str, work: Callable[[], int | None]) -> int:
    """The exit code of a command, which does `work` after its arguments were read; an error is one line."""
    print_anything()
    with signals.interruptible(), warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: _tell(f"{prog}: warning: {message}")
        try:
            code = work()
            sys.stdout.flush()
            return code or 0
        except BrokenPipeError:  # the reader, `head` for instance, has had enough
            _discard_output()
            return 0
        except KeyboardInterrupt:
            return INTERRUPTED
        except Exception as error:
            if not exit_code(error):
                raise
            _tell(f"{prog}: {line_of(error)}")
            if isinstance(error, OSError) and error.errno in (*FULL, errno.EBADF):
                _discard_output()
            return exit_code(error)
