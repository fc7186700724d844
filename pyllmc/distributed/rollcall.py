"""Who was lost? After a call has failed the processes that are left answer a roll call; whoever does not is named.

The answers go through torch's store, which torchrun or rank 0 keeps, and a thread of each process gives them, so that a process
answers while it computes."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from typing import Any

EVERY = 0.25  # seconds between two looks at the store


def named(ranks: list[int]) -> str:
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))}"


class RollCall:
    """Answers roll calls from the start on. calls: how often this process has met the others; busy_since: the time since which
    it computes, 0 while it waits for others."""

    def __init__(self, store: Any, rank: int, world: int, patience: float) -> None:
        self._store, self._rank, self._world = store, rank, world
        self._patience = patience
        self.calls, self.busy_since = 0, time.monotonic()
        self.speaks = rank == 0  # True if it is this process that tells the user
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._over.set()
        self._thread.join(2 * EVERY)

    def leave(self, why: str) -> None:
        """Tell the others why this process ends."""
        try:
            self._store.set(f"left/{self._rank}", why[:500])
        except Exception:
            pass  # they name it as one that does not answer

    def _listen(self) -> None:
        try:
            while not self._over.wait(EVERY):
                if self._store.check(["alarm"]):
                    return self._answer()
        except Exception:
            pass  # the store has gone, and with it whoever would ask

    def _answer(self) -> None:
        busy = time.monotonic() - self.busy_since if self.busy_since else 0
        answer = {"host": socket.gethostname(), "pid": os.getpid(), "calls": self.calls, "busy": busy}
        self._store.set(f"here/{self._rank}", json.dumps(answer))

    def _get(self, key: str) -> str:
        return self._store.get(key).decode() if self._store.check([key]) else ""

    def who_was_lost(self, reason: str) -> str:
        """Calls the roll, and waits for answers as long as `patience` says. Returns a line; `reason`: what the failed call
        said."""
        try:
            return self._ask(reason)
        except Exception:
            self.speaks = True
            return (
                f"rank {self._rank} reaches no other process: the store where they meet, which torchrun or rank 0 keeps, "
                "does not answer; it has ended, or the network is cut"
            )

    def _ask(self, reason: str) -> str:
        self._store.set("alarm", "1")
        self._answer()
        others = [rank for rank in range(self._world) if rank != self._rank]
        deadline = time.monotonic() + self._patience
        answers: dict[int, str] = {}
        left: dict[int, str] = {}
        while len(answers.keys() | left.keys()) < len(others) and time.monotonic() < deadline:
            time.sleep(EVERY / 2)
            left = {rank: why for rank in others if (why := self._get(f"left/{rank}"))}
            answers = {rank: text for rank in others if (text := self._get(f"here/{rank}"))}
        host = socket.gethostname()
        here = [rank for rank, text in answers.items() if json.loads(text)["host"] == host]
        self.speaks = self._rank < min([*here, self._world])
        return self._line(others, answers, left, reason)

    def _line(self, others: list[int], answers: dict[int, str], left: dict[int, str], reason: str) -> str:
        lost = [rank for rank in others if rank not in answers and rank not in left]
        if lost:
            verb = "do" if len(lost) > 1 else "does"
            return f"{named(lost)} of {self._world} {verb} not answer: it has ended, hangs, or its network is cut"
        if left:
            rank = min(left)
            return f"rank {rank} of {self._world} has ended: {left[rank]}"
        read = {rank: json.loads(text) for rank, text in answers.items()}
        slow = [rank for rank, answer in read.items() if answer["busy"] and answer["calls"] < self.calls]
        if slow:
            busy = read[slow[0]]["busy"]
            return f"{named(slow)} of {self._world} still computes, for {busy:.0f} s now: raise --timeout"
        return f"every process answers, but the connection between two has failed: {reason}"
