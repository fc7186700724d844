"""Large temporary files, such as weights, that do not outlive the process by long, however that ends."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any

# A folder may be one of several machines, and a lock may hold on one of them only.
PREFIX = f".pyllmc-tmp-{re.sub(r'[^A-Za-z0-9.]', '_', os.uname().nodename)}-"
OURS = re.compile(re.escape(PREFIX) + r"\w{8}")


def temporary_file(write: Callable[[str], object], name: str, owner: Any, place: str = "") -> str:
    """Lets `write` write a file called `name` into `place`, the system's folder if it is empty; returns a path of it, which is good
    as long as `owner` lives.

    Where the system has /proc, the file loses its name as soon as it is written. Until then a lock says that the process lives; what a
    killed one has left goes with this machine's next call, where the file system locks folders. Raises OSError, and what `write` raises.
    """
    folder, lock = _new_folder(place or tempfile.gettempdir())
    path = os.path.join(folder, name)
    remove = weakref.finalize(owner, _remove, folder, lock)
    try:
        write(path)
        if not os.path.exists("/proc/self/fd"):
            return path
        number = os.open(path, os.O_RDONLY)
    except BaseException:
        remove()
        raise
    weakref.finalize(owner, os.close, number)
    remove()  # the open file stays, without a name
    return f"/proc/self/fd/{number}"


def _new_folder(place: str) -> tuple[str, int]:
    """A new folder, and the number by which it is open and locked."""
    _sweep(place)
    while True:
        folder = tempfile.mkdtemp(prefix=PREFIX, dir=place)
        with suppress(FileNotFoundError):  # another process may sweep a folder that is not locked yet
            lock = os.open(folder, os.O_RDONLY)
            with suppress(OSError):
                fcntl.flock(lock, fcntl.LOCK_EX)
            if os.path.exists(folder):
                return folder, lock
            os.close(lock)


def _sweep(place: str) -> None:
    """Removes the folders that no living process has locked. One that cannot be locked stays."""
    with suppress(OSError):
        for name in filter(OURS.fullmatch, os.listdir(place)):
            with suppress(OSError):
                lock = os.open(os.path.join(place, name), os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(os.path.join(place, name), ignore_errors=True)
                finally:
                    os.close(lock)


def _remove(folder: str, lock: int) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    os.close(lock)
