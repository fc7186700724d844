"""Files that Python writes: whole or absent, synced to disk, and one clear line when they fail."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import stat
from collections.abc import Callable, Container, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import BinaryIO

from pyllmc.base.errors import FULL, DataError, SystemFailure

# Pipes that this process has open. A shell passes one of these names for <(command).
OPEN_PIPES = ("/dev/stdin", "/dev/fd/", "/proc/self/fd/")


@contextmanager
def explain_os_errors(action: str, path: str, remedy: str, full: Container[int] = ()) -> Iterator[None]:
    """Turn an OSError inside into a SystemFailure of one line: "cannot ACTION PATH: reason; REMEDY".

    full: the errnos that mean that the disk is full.
    """
    try:
        yield
    except DataError:
        raise  # its message explains it already
    except OSError as e:
        remedy = f"free some space or {remedy}" if e.errno in full else remedy
        raise SystemFailure(f"cannot {action} {path}: {e.strerror or e}; {remedy}") from e


def writing(path: str) -> AbstractContextManager[None]:
    return explain_os_errors("write", path, "choose another output place", FULL)


def reading(path: str) -> AbstractContextManager[None]:
    return explain_os_errors("read", path, "check the path and its permissions")


def is_named_pipe(path: str) -> bool:
    """True if `path` is a named pipe, which may never get a writer. A pipe that is open here, <(command), has one."""
    with suppress(OSError):
        return stat.S_ISFIFO(os.stat(path).st_mode) and not path.startswith(OPEN_PIPES)
    return False


def check_regular(path: str | os.PathLike[str]) -> None:
    """Raise SystemFailure for a pipe or a device, which cannot be read twice. A missing file passes."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise SystemFailure(f"{os.fspath(path)} is not a regular file: copy its content into one")


def sync_directory(path: str) -> None:
    """Make renames in a directory durable. Systems that cannot open a directory do not need it."""
    with suppress(OSError):
        fd = os.open(path or ".", os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True  # the process is another user's
    return True


def _temporary(path: str, suffix: str = "") -> str:
    """A temporary name that begins with `path` and ends with this process's id. Files that killed processes left go.

    suffix: a pattern that may follow the names of those files.
    """
    parent, name = os.path.split(path)
    with suppress(OSError):
        for other in os.listdir(parent or "."):
            pid = re.fullmatch(re.escape(name) + r"\.tmp-(\d+)" + suffix, other)
            if pid and (int(pid[1]) == os.getpid() or not _is_alive(int(pid[1]))):
                _remove(os.path.join(parent, other))
    return f"{path}.tmp-{os.getpid()}"


def _remove(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path, ignore_errors=True)
    with suppress(OSError):
        os.unlink(path)


@contextmanager
def atomic_path(path: str) -> Iterator[str]:
    """A temporary name beside `path`. The file written there replaces `path` when the block ends well."""
    tmp = _temporary(path)
    try:
        yield tmp
        with writing(path):
            os.replace(tmp, path)
            sync_directory(os.path.dirname(path))
    except BaseException:
        with suppress(OSError):
            os.unlink(tmp)
        raise


def check_writable(path: str) -> None:
    """Raise SystemFailure if atomic_path cannot write there: now, rather than after hours of work."""
    with writing(path):
        if os.path.isdir(path):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        tmp = _temporary(path)
        open(tmp, "wb").close()
        os.unlink(tmp)


def flush_to_disk(f: BinaryIO) -> None:
    f.flush()
    os.fsync(f.fileno())


@contextmanager
def atomic_directory(out: str, check: Callable[[], None]) -> Iterator[str]:
    """A hidden directory beside `out`. It becomes `out` when the block ends well; otherwise it is removed.

    `check` runs just before that. It raises if `out` must not be replaced any more.
    """
    parent, name = os.path.split(out)
    replaced = (
        r"(?:\.old)?" if os.path.exists(out) else ""
    )  # without `out`, a .old is the last copy of what was being replaced
    tmp = _temporary(os.path.join(parent, f".{name}"), replaced)
    try:
        with writing(out):
            os.makedirs(parent, exist_ok=True)
            os.mkdir(tmp)
        yield tmp
        with writing(out):
            sync_directory(tmp)
            check()
            _replace_directory(tmp, out)
    finally:
        shutil.rmtree(tmp, ignore_errors=True)


def _replace_directory(new: str, out: str) -> None:
    old = new + ".old"
    if os.path.isdir(out):
        os.rename(out, old)
    try:
        os.rename(new, out)
    except OSError:
        if os.path.isdir(old):
            os.rename(old, out)
        raise
    sync_directory(os.path.dirname(out))
    shutil.rmtree(old, ignore_errors=True)


def sha256_of(path: str) -> str:
    """The SHA-256 of a file, as hexadecimal digits."""
    digest = hashlib.sha256()
    with reading(path), open(path, "rb") as f:
        while block := f.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
