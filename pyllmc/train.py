"""python -m pyllmc.train: train a GPT-2. Trainer and options are those of ./train_gpt2; the loss is drawn at the end."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pyllmc.base.errors import (
    INTERRUPTED,
    LlmcError,
    begin_command,
    exit_code,
    how_to_install,
    line_of,
    python_command,
    run_command,
    stopped_by_signals,
)

if __name__ == "__main__":
    begin_command("numpy", "cffi")

from pyllmc.base import live
from pyllmc.base.signals import expect_copies
from pyllmc.distributed.place import (
    Place,
    is_one_of_several,
    settle_machine,
    tell_torchrun,
    tells_for_machine,
)
from pyllmc.engine import _ffi
from pyllmc.trainer import Options, Trainer
from pyllmc.writer import tell_weights, write_text

if TYPE_CHECKING:
    from pyllmc.distributed.team import Team
    from pyllmc.evaluate.training import Examiner

PROG = "pyllmc.train"

WRITING = " --max_steps=0 --prompt="


def examiner(trainer: Trainer) -> Examiner:
    """Is called for runs with --eval_tasks only, so that others do not wait for the import."""
    from pyllmc.evaluate.training import Examiner

    return Examiner(trainer)


def draw(trainer: Trainer) -> None:
    """Draws the loss curve if matplotlib is installed."""
    if not trainer.out:
        return
    try:
        from pyllmc.draw.losses import draw_run

        print(f"loss curve: {draw_run(trainer.out)}")
    except ImportError:
        print(f"loss curve: not drawn: {how_to_install('matplotlib')}")
    except (OSError, LlmcError) as error:
        print(f"loss curve: not drawn: {error}")


class Lines:
    """The lines of a run, on standard output. Where they cannot be written, the run goes on, because its steps are worth more."""

    def __init__(self) -> None:
        self._failed: OSError | None = None

    def show(self, line: str) -> None:
        live.clear()
        try:
            print(line, flush=True)
        except OSError as error:
            self._failed = error
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)

    def finish(self, code: int) -> int:
        """Returns the exit code of a run. Raises the OSError with which lines were lost, unless the run ended otherwise than well, or
        their reader, or the terminal, has gone."""
        if self._failed and code == 0 and self._failed.errno not in (errno.EPIPE, errno.EIO):
            raise self._failed
        return code


def run(trainer: Trainer, lines: Lines) -> int:
    with stopped_by_signals(trainer.stop, lambda: trainer.stopping) as interrupted:
        for event in trainer:
            if event.text:
                lines.show(("sample: " if event.kind == "sample" else "") + event.text)
        live.clear()
        if not interrupted():
            draw(trainer)
        python = python_command()
        print(trainer.ending(f"{python} -m {PROG}", python), end="", file=sys.stderr)
        return INTERRUPTED if interrupted() else 0


def write(options: Options) -> int:
    """Writes one text with a model, instead of training it."""
    pieces = write_text(options)
    before = f"{python_command()} -m {PROG} --model="
    tell_weights(PROG, options.get("model"), before, WRITING)
    for piece in pieces:
        live.clear()
        print(piece, end="", flush=True)
    print()
    return 0


# ---- several processes, started by torchrun ----

COPIES_S = 5.0  # a cluster signals every process, and torchrun passes the signal on


def run_together(options: Options, team: Team) -> int:
    """Trains with the other processes. Rank 0 alone prints and writes."""
    lines = Lines()
    trainer = Trainer(options, team=team, examiner=examiner)
    expect_copies(COPIES_S)
    if team.place.rank == 0:
        code = run(trainer, lines)
    else:
        with stopped_by_signals(trainer.stop, lambda: "") as interrupted:
            for _ in trainer:
                pass
            code = INTERRUPTED if interrupted() else 0
    return lines.finish(INTERRUPTED if team.any(code == INTERRUPTED) else code)


def without_a_line(error: Exception) -> SystemExit:
    """Ends a process whose error another one tells. torchrun shows the reason of whichever has ended first."""
    tell_torchrun(line_of(error), exit_code(error))
    return SystemExit(exit_code(error))


def train_together(options: Options, place: Place) -> int:
    """The same, where one process of a machine tells an error, after which the others end without a line."""
    from pyllmc.distributed.team import Team

    team = None
    try:
        team = Team(options, place)
        return run_together(options, team)
    except BaseException as error:
        if team:
            team.leave(error)
        if not isinstance(error, Exception):
            raise
        if not exit_code(error) or (team.speaks if team else tells_for_machine(place.local_rank)):
            raise
        raise without_a_line(error) from None
    finally:
        if team:
            team.close()


def start(arguments: Sequence[str]) -> int:
    place = None
    if is_one_of_several():
        place = Place.read()
        settle_machine()
        if place.rank:
            live.hide()
    options = Options(_ffi.load())
    try:
        asked = options.parse(arguments)
    except LlmcError as error:
        if place and not tells_for_machine(place.local_rank):
            raise without_a_line(error) from None
        raise
    if place and not asked and not options.only_write():
        return train_together(options, place)
    if place and place.rank:
        return 0
    if asked:
        print(asked.rstrip())
        return 0
    if options.only_write():
        return write(options)
    lines = Lines()
    return lines.finish(run(Trainer(options, examiner=examiner), lines))


def main(arguments: Sequence[str] | None = None) -> int:
    def work() -> int:
        try:
            return start(sys.argv[1:] if arguments is None else arguments)
        except Exception as error:
            if exit_code(error):
                tell_torchrun(line_of(error), exit_code(error))
            raise

    return run_command(PROG, work)


if __name__ == "__main__":
    sys.exit(main())
