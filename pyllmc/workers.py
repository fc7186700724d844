"""Work spread over processes: a function of each item, in the items' order, and no process that outlives its parent."""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from threading import Thread
from typing import Any, TypeVar

from pyllmc.files import DataError

Item = TypeVar("Item")
Result = TypeVar("Result")
_function: Callable[[Any], Any] | None = None  # of this worker process


def _end_with_parent() -> None:
    """A killed parent closes nothing down: its workers hold both ends of the queue they wait for."""
    parent = parent_process()
    if parent:
        parent.join()
        os._exit(1)


def _start(function: Callable[[Any], Any]) -> None:
    global _function
    _function = function
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    Thread(target=_end_with_parent, daemon=True).start()


def _call(item: Any) -> Any:
    assert _function is not None
    return _function(item)


def in_order(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int
) -> Generator[Result, None, None]:
    """function(item) of each, in their order; `function` is sent to each worker once, and must pickle.

    Processes are spawned, not forked: the caller may have threads. Raises DataError when one of them dies.
    """
    if workers == 1:
        yield from map(function, items)
        return
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _start, (function,))
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(_call, item))
            if len(waiting) > 2 * workers:  # bounds the memory
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as e:
        raise DataError(
            "a worker process died: out of memory (use fewer workers), or the calling script lacks "
            'if __name__ == "__main__":'
        ) from e
    finally:
        for future in waiting:
            future.cancel()
        pool.shutdown()
