"""How far the preparation of data is, as a line on a terminal; nothing where nobody looks."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pyllmc.prepro import Progress

STAGES = {"learn": "reading", "merge": "learning byte pairs", "encode": "encoding"}


@contextmanager
def progress_bar(total: int | None) -> Iterator[Callable[[Progress], None]]:
    """A callback that shows on a terminal how far of `total` characters a stage is; plain without rich."""
    if not sys.stderr.isatty():
        yield lambda state: None
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bar
    except ImportError:
        yield _plain_line(total)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    tasks: dict[str, Any] = {}
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:

        def show(state: Progress) -> None:
            if state.stage not in tasks:
                tasks[state.stage] = bar.add_task("", total=None if state.stage == "merge" else total)
            bar.update(tasks[state.stage], completed=state.characters, description=_counts(state))

        yield show


def _plain_line(total: int | None) -> Callable[[Progress], None]:
    start = time.monotonic()

    def show(state: Progress) -> None:
        if state.stage == "merge":
            line = f"{_counts(state)}, {time.monotonic() - start:.0f} s"
            print(f"\r{line}  ", end="", file=sys.stderr, flush=True)
            return
        share = f" {min(100, 100 * state.characters // total)} %" if total else ""
        print(f"\r{_counts(state)}{share}  ", end="", file=sys.stderr, flush=True)

    return show


def _counts(state: Progress) -> str:
    tokens = f", {state.tokens:,} tokens" if state.tokens else ""
    return f"{STAGES[state.stage]}: {state.documents:,} documents{tokens}"
