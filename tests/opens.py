"""How often a process opens a file: counted by the kernel, whoever opens it."""

from __future__ import annotations

import ctypes
import os
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

IN_CLOSE, IN_OPEN = 0x18, 0x20
EVENT = struct.Struct("iIII")  # struct inotify_event: watch, mask, cookie, length of a name that follows


@contextmanager
def count_opens(path: Path) -> Iterator[list[int]]:
    """Fills the list with one number when the block ends: how often the file that `path` names now was opened in it.

    inotify drops an event that is the same as the one before, so closing is watched as well: it comes between two opens.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    watcher = libc.inotify_init()
    assert watcher >= 0, os.strerror(ctypes.get_errno())
    assert libc.inotify_add_watch(watcher, os.fsencode(path), IN_OPEN | IN_CLOSE) >= 0
    count, opens = [], 0

    def listen() -> None:
        nonlocal opens
        while True:
            events = os.read(watcher, 1 << 16)
            for at in range(0, len(events), EVENT.size):  # a watch on a file sends no names
                mask = EVENT.unpack_from(events, at)[1]
                opens += bool(mask & IN_OPEN)
                if not mask & (IN_OPEN | IN_CLOSE):  # the watch is gone
                    return

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    try:
        yield count
    finally:
        libc.inotify_rm_watch(watcher, 1)
        listener.join(10)
        os.close(watcher)
    count.append(opens)
