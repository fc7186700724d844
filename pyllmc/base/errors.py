"""Every error, and how a command ends after it: one line on stderr and an exit code, the same as ./train_gpt2's.

Standard library only, because a command calls `begin_command` before it imports anything large.
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
from pyllmc.base.signals import INTERRUPTED, stopped_by_signals  # noqa: F401, commands import both from here


class LlmcError(Exception):
    """Any failure of the engine or its tools. The message is one line that says why, and what to do."""

    def __init__(self, *args: Any) -> None:
        # the message may name a path or a word that holds a line break
        super().__init__(*(arg.replace("\n", "\\n") if isinstance(arg, str) else arg for arg in args))


class InvalidArgument(LlmcError, ValueError):
    """An argument, an option or a shape is not valid."""


class OutOfMemory(LlmcError, MemoryError):
    """The memory plan does not fit."""


class DataError(LlmcError, ValueError):
    """Data, or a file, cannot be used."""


class BadFile(DataError):
    """A file is malformed, or of another kind than expected."""


class SystemFailure(DataError, OSError):
    """The system refused to read or write."""


class NoDevice(LlmcError, RuntimeError):
    """The machine lacks the device or the instruction set, or a library is missing."""


class MissingDependency(DataError, NoDevice, ImportError):
    """An optional package is not installed. The message says how to install it."""


class NotFinite(LlmcError, ArithmeticError):
    """A loss or a gradient is NaN or infinite."""


class Stopped(LlmcError):
    """The caller wanted no more of a work that was under way."""


for _public in (LlmcError, InvalidArgument, OutOfMemory, BadFile, SystemFailure, NoDevice, NotFinite):
    _public.__module__ = "pyllmc"  # users catch it by that name, so a traceback shows that name


class Ending(NamedTuple):
    """A kind of error, and how a command ends after it: with exit code 1 - status."""

    status: int  # llmc_status
    error: type[LlmcError]
    alike: type[Exception] | None  # an exception of Python's own that ends a command in the same way
    words: str  # its name in --help

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
ERRORS: dict[int, type[LlmcError]] = {ending.status: ending.error for ending in ENDINGS} | {-7: Stopped}
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
EXIT_CODES = f"exit status: 0 done, {', '.join(f'{end.code} {end.words}' for end in ENDINGS)}, {INTERRUPTED} interrupted"


def exit_code(error: BaseException) -> int:
    """The exit code of a command after an error; 0 if the error is not the user's, but a mistake in the program."""
    for end in reversed(ENDINGS):  # the first row comes last, because many errors are a ValueError, too
        if isinstance(error, (end.error, end.alike or end.error)):
            return end.code
    return 0


def line_of(error: BaseException) -> str:
    """The message of an error in one line; an error of the system becomes "file: reason"."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    if isinstance(error, OSError) and error.errno in FULL:  # not a file's: files.writing explains those
        return f"standard output: {error.strerror}: free some space or write elsewhere"
    if isinstance(error, OSError) and error.errno == errno.EBADF:
        return "standard input or output is closed: leave it open, or make it /dev/null"
    return " ".join(str(error).split("\n")) or type(error).__name__


def counted(n: int, what: str) -> str:
    """A number with its noun: 1 layer, 1,024 layers, 2 processes."""
    ending = "" if n == 1 else "es" if what.endswith("s") else "s"
    return f"{n:,} {what}{ending}"


def how_to_install(package: str) -> str:
    """The remedy for a missing package. In a checkout it names make setup, too."""
    return f"pip install {package}" + (
        ", or make setup and use .venv/bin/python" if checkout.is_checkout() else ""
    )


def need(module: str, why: str, package: str = "") -> Any:
    """Import an optional `module`. If it is missing, raise MissingDependency, which says how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as e:
        raise MissingDependency(f"{why} needs {module}: {how_to_install(package or module)}") from e


def python_command() -> str:
    """This Python's name in a command that can be pasted; its path if no name finds it."""
    for name in ("python", "python3"):
        if os.path.abspath(shutil.which(name) or "") == sys.executable:
            return name
    here = os.path.relpath(sys.executable)
    return shlex.quote(sys.executable if here.startswith(os.pardir) else here)


def typed(argument: str) -> str:
    """The text of an argument, read as UTF-8 whatever the locale is.

    Bytes that are no UTF-8 stay surrogates, which are refused later.
    """
    try:
        return argument.encode("utf-8", "surrogateescape").decode("utf-8")
    except UnicodeError:
        return argument


def _printable(error: UnicodeError) -> tuple[str | bytes, int]:
    """Replace characters that an output cannot encode by escapes like \\u2014.

    The bytes of a path or an argument, which Python hides in surrogates, come out as they were.
    """
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    if error.encoding.replace("-", "_").startswith(("utf_16", "utf_32")):  # these cannot write a single byte
        return "".join(
            f"\\x{ord(c) - 0xDC00:02x}" if "\udc80" <= c <= "\udcff" else ascii(c)[1:-1] for c in text
        ), error.end
    return b"".join(
        bytes([ord(c) - 0xDC00]) if "\udc80" <= c <= "\udcff" else c.encode("ascii", "backslashreplace")
        for c in text
    ), error.end


def print_anything() -> None:
    """Make stdout and stderr escape characters that they cannot hold (cp1252, ASCII, locale C), so that no command dies."""
    codecs.register_error("pyllmc.printable", _printable)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="pyllmc.printable")


class _Told(io.FileIO):
    """Standard error. A full disk or a closed stream there drops the message, and the work goes on."""

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
    """Hold the numbers 0 to 2, so that no file takes the number of a closed stream: csrc/programs/program.h."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDONLY if fd else os.O_WRONLY)
    sys.stdin = sys.stdin or open(0, closefd=False)
    sys.stdout = sys.stdout or _stream(io.FileIO(1, "w", closefd=False), None)
    sys.stderr = _stream(_Told(2, "w", closefd=False), sys.stderr)


def begin_command(*packages: str) -> None:
    """Prepare a program before it loads anything: Ctrl-C and SIGTERM end it quietly, a missing package is one line."""
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
    """Make libraries use one thread if a limit (ulimit -u, a container's) forbids one a core.

    Otherwise they would try to start all of them, and end the process.
    """
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
    """Send the buffered output to /dev/null, because writing it would fail again as the program ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _code_after(prog: str, error: BaseException) -> int | None:
    """Tells an error in one line; returns the exit code, or None if the error is not the user's."""
    if isinstance(error, BrokenPipeError):  # the reader, `head` for instance, has had enough
        _discard_output()
        return 0
    if not exit_code(error):
        return None
    _tell(f"{prog}: {line_of(error)}")
    if isinstance(error, OSError) and error.errno in (*FULL, errno.EBADF):
        _discard_output()
    return exit_code(error)


def end_in_one_line() -> None:
    """Let errors end a script that has no function to give run_command, such as a notebook's, as they end a command."""

    def tell(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        code = _code_after(os.path.basename(sys.argv[0]), error)
        if code is None:
            sys.__excepthook__(kind, error, trace)
        else:
            sys.exit(code)

    sys.excepthook = tell


def run_command(prog: str, work: Callable[[], int | None]) -> int:
    """Do a command's `work` after its arguments were read, and return its exit code. An error becomes one line."""
    print_anything()
    with signals.interruptible(), warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: _tell(f"{prog}: warning: {message}")
        try:
            code = work()
            sys.stdout.flush()
            return code or 0
        except KeyboardInterrupt:
            return INTERRUPTED
        except Exception as error:
            found = _code_after(prog, error)
            if found is None:
                raise
            return found
