"""The progress of preparing data, in the line that a command shows while it works (live.py)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pyllmc.base import live
from pyllmc.text.dataset import Progress

STAGES = {"learn": "reading", "merge": "learning byte pairs", "encode": "encoding"}


@contextmanager
def progress_line(total: int | None) -> Iterator[Callable[[Progress], None]]:
    """A callback that shows a stage's progress, in percent of about `total` characters."""
    start = time.monotonic()

    def show(state: Progress) -> None:
        far = f", {min(100, 100 * state.characters // total)} %" if total and state.stage != "merge" else ""
        live.show(f"{_counts(state)}{far}, {live.clock(time.monotonic() - start)}", at_once=False)

    try:
        yield show
    finally:
        live.clear()


def _counts(state: Progress) -> str:
    tokens = f", {state.tokens:,} tokens" if state.tokens else ""
    return f"{STAGES[state.stage]}: {state.documents:,} documents{tokens}"
