"""Locks between processes. A lock belongs to an open file, and ends with the process that holds it, however that ends."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO

from pyllmc.base.files import writing

TRIES = 100  # so often its last holder may have removed the file; a file system that never tells the same twice must not hang


def open_locked(path: str | os.PathLike[str], wait: bool) -> BinaryIO | None:
    """The file, made if need be, for reading and appending, and locked until it is closed; None if another has it locked.

    wait: wait for the other instead. Where the file system knows no locks, everyone gets one, as in csrc/train/run.c. Raises OSError.
    """
    tries = 0
    while True:
        tries += 1
        file = open(path, "a+b")
        try:
            if not _lock(file, wait):
                file.close()
                return None
            if _is_at(file, path) or tries == TRIES:
                return file
        except BaseException:
            file.close()
            raise
        file.close()  # its last holder has removed it


def _lock(file: BinaryIO, wait: bool) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def _is_at(file: BinaryIO, path: str | os.PathLike[str]) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    return False


@contextmanager
def only_one(path: str) -> Iterator[None]:
    """Lets one process, or thread, at a time change the file at `path`; the others wait. A file PATH.lock is there meanwhile.

    Raises SystemFailure if that cannot be made.
    """
    name = f"{path}.lock"
    with writing(name):
        file = open_locked(name, wait=True)
    try:
        yield
    finally:
        with suppress(OSError):
            os.unlink(name)
        if file:
            file.close()
