"""Who was lost? After a call has failed the processes that are left answer a roll call; whoever does not is named.

The answers go through torch's store, which torchrun or rank 0 keeps, and a thread of each process gives them, so that a process
answers while it computes. A call of the store has no end while a link is down, whatever the store's timeout is; so no call is waited
for longer than this file says."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

EVERY = 0.25  # seconds between two looks at the store
LONGEST = 60.0  # seconds that a look takes at most where nothing has failed, on a machine that is very busy


def named(ranks: list[int]) -> str:
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))}"


def within(seconds: float, work: Callable[[], Any]) -> Any:
    """What `work` returns, or raises. Raises TimeoutError if it takes longer; it is then left to itself."""
    done: list[Any] = []

    def run() -> None:
        try:
            done.append((work(), None))
        except Exception as error:
            done.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if not done:
        raise TimeoutError(f"nothing came within {seconds:g} s")
    value, error = done[0]
    if error:
        raise error
    return value


class RollCall:
    """Answers roll calls from the start on. calls: how often this process has met the others; busy_since: the time since which
    it computes, 0 while it waits for others. keeps: this process keeps the store, which ends with it."""

    def __init__(self, store: Any, rank: int, world: int, patience: float, keeps: bool = False) -> None:
        self._store, self._rank, self._world = store, rank, world
        self._patience, self._keeps = patience, keeps
        # _awaited: what each other process sets when it needs the store no longer; "": nothing went wrong.
        # _left: why others have ended, as far as they had said it when the alarm came.
        self._awaited, self._left = "", dict[int, str]()
        self.calls, self.busy_since = 0, time.monotonic()
        self.speaks = rank == 0  # True if it is this process that tells the user
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """After something went wrong, whoever keeps the store waits until the others have read what it holds, or do not answer."""
        self._over.set()
        # a thread that is in a call of the store while Python ends would abort the process; a dead store never returns
        self._thread.join(2 * EVERY if self._awaited else LONGEST)
        if not self._awaited:
            return
        try:
            within(self._patience, self._end)
        except Exception:
            pass  # those that answered have read it

    def _end(self) -> None:
        self._store.set(f"read/{self._rank}", "1")
        self._store.set(f"heard/{self._rank}", "1")
        while self._keeps and not all(
            self._store.check([f"{self._awaited}/{rank}"]) for rank in self._others
        ):
            time.sleep(EVERY / 4)

    def leave(self, why: str) -> None:
        """Tell the others why this process ends."""
        self._awaited = self._awaited or "heard"
        try:
            within(self._patience, lambda: self._say(why[:500]))
        except Exception:
            pass  # they name it as one that does not answer

    def _say(self, why: str) -> None:
        self._store.set(f"left/{self._rank}", why)
        self._store.set("alarm", "1")

    def _listen(self) -> None:
        try:
            while not self._over.wait(EVERY):
                if self._store.check(["alarm"]):
                    self._answer()
                    self._left = self._those_who("left")
                    return self._store.set(f"heard/{self._rank}", "1")
        except Exception:
            pass  # the store has gone, and with it whoever would ask

    def _answer(self) -> None:
        busy = time.monotonic() - self.busy_since if self.busy_since else 0
        answer = {"host": socket.gethostname(), "pid": os.getpid(), "calls": self.calls, "busy": busy}
        self._store.set(f"here/{self._rank}", json.dumps(answer))

    def _get(self, key: str) -> str:
        return self._store.get(key).decode() if self._store.check([key]) else ""

    @property
    def _others(self) -> list[int]:
        return [rank for rank in range(self._world) if rank != self._rank]

    def _those_who(self, what: str) -> dict[int, str]:
        """What other processes have set, by rank."""
        return {rank: text for rank in self._others if (text := self._get(f"{what}/{rank}"))}

    def who_was_lost(self, reason: str) -> str:
        """Calls the roll, and waits for answers as long as `patience` says. Returns a line; `reason`: what the failed call
        said."""
        self._awaited = "read"
        try:
            return str(within(2 * self._patience, lambda: self._ask(reason)))
        except Exception:
            self.speaks = True
            if self._left:
                return self._ended(self._left)
            return (
                f"rank {self._rank} reaches no other process: the store where they meet, which torchrun or rank 0 keeps, "
                "does not answer; it has ended, or the network is cut"
            )

    def _ask(self, reason: str) -> str:
        self._store.set("alarm", "1")
        self._answer()
        deadline = time.monotonic() + self._patience
        answers: dict[int, str] = {}
        left: dict[int, str] = {}
        while len(answers.keys() | left.keys()) < len(self._others) and time.monotonic() < deadline:
            time.sleep(EVERY / 2)
            left, answers = self._those_who("left"), self._those_who("here")
        host = socket.gethostname()
        read = {rank: json.loads(text) for rank, text in answers.items()}
        # torchrun ends one that is at work before it could tell
        here = [rank for rank, answer in read.items() if answer["host"] == host and not answer["busy"]]
        self.speaks = self._rank < min([*here, self._world])
        return self._line(self._others, read, left, reason)

    def _ended(self, left: dict[int, str]) -> str:
        rank = min(left)
        return f"rank {rank} of {self._world} has ended: {left[rank]}"

    def _line(
        self, others: list[int], answers: dict[int, dict[str, Any]], left: dict[int, str], reason: str
    ) -> str:
        lost = [rank for rank in others if rank not in answers and rank not in left]
        if lost:
            verb = "do" if len(lost) > 1 else "does"
            return f"{named(lost)} of {self._world} {verb} not answer: it has ended, hangs, or its network is cut"
        if left:
            return self._ended(left)
        slow = [rank for rank, answer in answers.items() if answer["busy"] and answer["calls"] <= self.calls]
        if slow and not self.busy_since:
            busy = max(answers[rank]["busy"] for rank in slow)
            verb = "are" if len(slow) > 1 else "is"
            return (
                f"{named(slow)} of {self._world} {verb} still at work, for {busy:.0f} s now: raise --timeout"
            )
        return f"every process answers, but the connection between two has failed: {reason}"
