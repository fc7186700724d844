"""Work spread over processes: a function of each item, in the items' order, and no process that outlives its parent.

Every worker has a pipe of its own, and one item at a time: whoever ends, the other sees the end of the pipe. (Python's
ProcessPoolExecutor shares one pipe, whose end nobody sees when a worker dies in the middle of a result.)
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import Pipe, get_context, resource_tracker
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from pyllmc.base.errors import DataError

Item = TypeVar("Item")
Result = TypeVar("Result")


def _serve(function: Callable[[Any], Any], parent: Connection) -> None:
    """The life of a worker: items come and results go, until the parent ends. Ctrl-C is the parent's business."""
    with suppress(EOFError, OSError):
        while True:
            item = parent.recv()
            try:
                answer = True, function(item)
            except Exception as error:
                answer = False, error
            parent.send(answer)


@contextmanager
def _deaf_children() -> Iterator[None]:
    """Processes that start inside never hear Ctrl-C, not even while they import; the parent hears it afterwards."""
    resource_tracker.ensure_running()  # multiprocessing's own process, whose start would let Ctrl-C through
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


DIED = (
    "a worker process died: out of memory (use fewer workers), or the calling script lacks "
    'if __name__ == "__main__":'
)


class _Worker:
    """A process, spawned and not forked, since the caller may have threads. It gets `function` once, which must pickle."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self._pipe, theirs = Pipe()
        self._process = get_context("spawn").Process(target=_serve, args=(function, theirs), daemon=True)
        try:
            with _deaf_children():
                self._process.start()
        except BrokenPipeError as e:  # before it had read what it was given
            raise DataError(DIED) from e
        except OSError as e:
            raise DataError(
                "the system starts no more processes (ulimit -u, or its container's limit): use one worker"
            ) from e
        finally:
            theirs.close()

    def give(self, item: Any) -> None:
        """Hand over an item, whose result has to be taken before the next one is given."""
        with suppress(OSError):  # take() tells that the process has died
            self._pipe.send(item)

    def take(self) -> Any:
        """Wait for the result of the last item, or raise what the function has raised."""
        try:
            done, result = self._pipe.recv()
        except (EOFError, OSError) as e:
            raise DataError(DIED) from e
        if not done:
            raise result
        return result

    def end(self) -> None:
        self._process.kill()  # after Ctrl-C, for one, nobody waits for its result
        self._process.join()
        self._pipe.close()


def in_order(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int
) -> Generator[Result, None, None]:
    """Yield function(item) of each item, in their order. Raises DataError when a worker dies or none can be started."""
    if workers == 1:
        yield from map(function, items)
        return
    pool: list[_Worker] = []  # the next result comes from the first, which then gets the next item
    try:
        for item in items:
            if len(pool) < workers:
                pool.append(_Worker(function))
                pool[-1].give(item)
                continue
            worker = pool.pop(0)
            pool.append(worker)
            result = worker.take()
            worker.give(item)
            yield result
        for worker in pool:
            yield worker.take()
    finally:
        for worker in pool:
            worker.end()
