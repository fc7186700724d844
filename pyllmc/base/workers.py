"""Work spread over processes: a function of each item, in the items' order. No process outlives its parent."""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import Pipe, get_context
from multiprocessing.connection import Connection
from threading import Thread
from typing import Any, TypeVar

from pyllmc.base.errors import DataError

Item = TypeVar("Item")
Result = TypeVar("Result")
_function: Callable[[Any], Any] | None = None  # the function of this worker process


def _end_with_parent(alive: Connection) -> None:
    """End this process with its parent, which alone holds the other end and closes it when it ends, even if killed."""
    try:
        alive.recv()
    except (EOFError, OSError):
        os._exit(1)


def _start(function: Callable[[Any], Any], alive: Connection) -> None:
    global _function
    _function = function
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    Thread(target=_end_with_parent, args=(alive,), daemon=True).start()


def _call(item: Any) -> Any:
    assert _function is not None
    return _function(item)


def in_order(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int
) -> Generator[Result, None, None]:
    """Yield function(item) of each item, in their order. `function` is sent to each worker once, and must pickle.

    Processes are spawned, not forked, because the caller may have threads. Raises DataError if one of them dies.
    """
    if workers == 1:
        yield from map(function, items)
        return
    end, alive = Pipe()
    pool = None
    waiting: deque[Future[Result]] = deque()
    done = False
    try:
        pool = ProcessPoolExecutor(workers, get_context("spawn"), _start, (function, alive))
        for item in items:
            waiting.append(pool.submit(_call, item))
            if len(waiting) > 2 * workers:  # bounds the memory
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
        done = True
    except BrokenProcessPool as e:
        raise DataError(
            "a worker process died: out of memory (use fewer workers), or the calling script lacks "
            'if __name__ == "__main__":'
        ) from e
    except (BlockingIOError, RuntimeError) as e:  # a limit on processes or threads
        if isinstance(e, RuntimeError) and "new thread" not in str(e):
            raise
        raise DataError(
            "the system starts no more processes or threads (ulimit -u, or its container's limit): use one worker"
        ) from e
    finally:
        if not done:  # after Ctrl-C, for instance, nobody waits for the present items
            end.close()  # ends the workers; futures stay uncancelled, because Python 3.11's pool cannot clean up after a cancel
        if pool:
            pool.shutdown()
        end.close()
        alive.close()
